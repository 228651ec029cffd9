//! The settings as a whole: what wins, what is refused and how, what is shown.

use std::path::PathBuf;

use ipnet::IpNet;

use super::bounds::Bounds;
use super::error::OF_OTHER_POOLS;
use super::keys::{defaults, flatten, known_keys};
use super::sections::{ENTRIES, SECRETS, SECTIONS, Setting};
use super::*;

fn env(pairs: &[(&str, &str)]) -> Inputs {
    Inputs {
        env: pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        ..Inputs::default()
    }
}

#[test]
fn later_sources_win_and_are_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("onrush.toml");
    std::fs::write(&file, "[server]\nport = 1111\nbacklog = 7\n").expect("write");
    let mut inputs = env(&[
        ("PORT", "2222"),
        ("ONRUSH_SERVER__PORT", "3333"),
        ("ONRUSH_UI_DIST", "elsewhere"),
        ("HOST", "::1"),
    ]);
    inputs.file = Some(file);
    let loaded = load(&inputs).expect("valid");
    assert_eq!(loaded.settings.server.port, 3333);
    assert_eq!(loaded.settings.server.backlog, 7);
    assert_eq!(
        loaded.sources["server.port"],
        "environment ONRUSH_SERVER__PORT"
    );
    inputs.flags = vec![("server.port".to_owned(), "4444".to_owned())];
    assert_eq!(load(&inputs).expect("valid").settings.server.port, 4444);
}

#[test]
fn a_misspelt_key_is_refused_with_the_nearest_one() {
    let error = load(&env(&[("ONRUSH_SERVER__PROT", "1")])).expect_err("unknown");
    assert!(
        error.to_string().contains("did you mean `server.port`?"),
        "{error}"
    );
}

#[test]
fn the_settings_of_other_pools_are_told_what_takes_their_place() {
    let told = |name: &str| {
        let name = format!("ONRUSH_DATABASE__{}", name.to_uppercase());
        let error = load(&env(&[(&name, "1")])).expect_err("unknown");
        error.to_string()
    };
    for (name, word) in OF_OTHER_POOLS {
        assert!(told(name).contains(word), "{name}");
    }
    let known = known_keys();
    for (_, word) in OF_OTHER_POOLS {
        for key in word.split('`').filter(|part| part.starts_with("database.")) {
            assert!(known.contains_key(key), "{key}");
        }
    }
}

#[test]
fn schedules_are_declared_by_name_and_their_unknown_keys_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("onrush.toml");
    let load_text = |text: &str, pairs: &[(&str, &str)]| {
        std::fs::write(&file, text).expect("write");
        let mut inputs = env(pairs);
        inputs.file = Some(file.clone());
        load(&inputs)
    };
    let text = "[schedules.entries.nightly]\ncron = \"0 1 * * *\"\ntask = \"resize\"\n\
                args = { image = { id = 7 }, headers = { X-Api-Key = \"k7\", X-Own = \"o7\" } }\n[schedules.entries.often]\ninterval_seconds = 5\n";
    let priority = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__PRIORITY", "7");
    let task = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__TASK", "count");
    let loaded = load_text(text, &[priority, task]).expect("valid");
    let entries = &loaded.settings.schedules.entries;
    assert_eq!(
        entries["nightly"].args,
        Some(serde_json::json!({
            "image": {"id": 7}, "headers": {"X-Api-Key": "k7", "X-Own": "o7"}
        }))
    );
    assert_eq!(entries["often"].priority, Some(7));
    assert_eq!(entries["often"].task.as_deref(), Some("count"));
    let effective = loaded.effective();
    let shown = |key: &str| effective.iter().find(|row| row.key == key);
    let args = &shown("schedules.entries.nightly.args")
        .expect("shown")
        .value;
    assert!(args.contains("o7") && !args.contains("k7"), "{args}");
    assert!(shown("schedules.entries.nightly.queue").is_none());
    let source = &shown("schedules.entries.often.priority")
        .expect("shown")
        .source;
    assert_eq!(
        source,
        "environment ONRUSH_SCHEDULES__ENTRIES__OFTEN__PRIORITY"
    );
    let wrong = "[schedules.entries.nightly]\ncorn = \"0 1 * * *\"\n";
    let error = load_text(wrong, &[]).expect_err("unknown").to_string();
    assert!(error.contains("schedules.entries.nightly.corn"), "{error}");
    assert!(
        error.contains("mean `schedules.entries.nightly.cron`"),
        "{error}"
    );
    for number in ["inf", "-inf", "nan"] {
        let wrong = format!("[schedules.entries.nightly]\nargs = {{ n = [{number}] }}\n");
        let error = load_text(&wrong, &[]).expect_err("no JSON").to_string();
        assert!(error.contains("JSON has no numbers"), "{error}");
    }
    let args = ("ONRUSH_SCHEDULES__ENTRIES__OFTEN__ARGS", r#"{"n":[1e400]}"#);
    let error = load_text(text, &[task, args])
        .expect_err("lost")
        .to_string();
    assert!(error.contains("n[0] is a number"), "{error}");
    let args = (args.0, r#"{"n":18446744073709551615}"#);
    let loaded = load_text(text, &[task, args]).expect("valid");
    let kept = &loaded.settings.schedules.entries["often"].args;
    assert_eq!(kept, &Some(serde_json::json!({"n": u64::MAX})));
    let wrong = "[schedules.entries]\nnightly = 5\n";
    assert!(load_text(wrong, &[]).is_err());
    let wrong = "[schedules.entries.nightly]\npriority = \"high\"\n";
    assert!(load_text(wrong, &[]).is_err());
}

#[test]
fn wrong_types_and_ranges_name_the_key_and_its_source() {
    for (name, value, word) in [
        ("ONRUSH_SERVER__PORT", "abc", "whole number"),
        ("ONRUSH_SERVER__PORT", "70000", "server.port"),
        ("ONRUSH_AUTH__OPEN_REGISTRATION", "maybe", "neither"),
        ("ONRUSH_DATABASE__READERS", "0", "the least is 1"),
        (
            "ONRUSH_SERVER__TRUSTED_PROXIES",
            "10.0.0.0/33",
            "server.trusted_proxies",
        ),
    ] {
        let error = load(&env(&[(name, value)])).expect_err(name).to_string();
        assert!(error.contains(word) && error.contains(name), "{error}");
    }
}

#[test]
fn what_is_fit_for_trying_out_alone_is_told_and_the_defaults_are_not() {
    let risks = |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.risks()
    };
    assert_eq!(risks(&|_| ()), Vec::<String>::new());
    let everywhere = |settings: &mut Settings| settings.server.host = [0, 0, 0, 0].into();
    let ranges = |text: &str| vec![text.parse::<IpNet>().expect("a range")];
    type Change<'a> = &'a dyn Fn(&mut Settings);
    let cases: &[(Change<'_>, &str)] = &[
        (
            &|settings| settings.orders.customers_confirm_payment = true,
            "customers_confirm_payment",
        ),
        (&everywhere, "travel in the clear: server.host is 0.0.0.0"),
        (
            &|settings| settings.server.public_url = "https://shop.example".to_owned(),
            "server.public_url",
        ),
        (
            &|settings| settings.server.metrics_allow = ranges("0.0.0.0/0"),
            "/metrics",
        ),
        (
            &|settings| {
                settings.faktory.enabled = true;
                settings.faktory.host = [10, 0, 0, 1].into();
            },
            "faktory.tls",
        ),
        (
            &|settings| {
                settings.mail.smtp_host = "mail.example.com".to_owned();
                settings.mail.smtp_tls = MailTls::None;
            },
            "mail.smtp_tls",
        ),
    ];
    for (change, word) in cases {
        let told = risks(change);
        assert!(told.len() == 1 && told[0].contains(word), "{told:?}");
    }
    let safe: &[Change<'_>] = &[
        &|settings| {
            everywhere(settings);
            settings.server.tls_cert = PathBuf::from("cert.pem");
        },
        &|settings| {
            everywhere(settings);
            settings.server.trusted_proxies = ranges("10.0.0.0/8");
        },
        &|settings| settings.server.public_url = "http://localhost:8000".to_owned(),
    ];
    for change in safe {
        assert_eq!(risks(change), Vec::<String>::new());
    }
}

#[test]
fn a_password_is_needed_where_others_can_connect_and_is_never_shown() {
    let open = [
        ("ONRUSH_FAKTORY__ENABLED", "true"),
        ("ONRUSH_FAKTORY__HOST", "0.0.0.0"),
    ];
    let error = load(&env(&open)).expect_err("no password").to_string();
    assert!(error.contains("faktory.password"), "{error}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "hunter2\n").expect("written");
    let path = file.path().to_string_lossy().into_owned();
    let mut pairs = open.to_vec();
    pairs.push(("ONRUSH_FAKTORY__PASSWORD_FILE", &path));
    let loaded = load(&env(&pairs)).expect("valid");
    assert_eq!(loaded.settings.faktory.password.reveal(), "hunter2");
    assert!(!format!("{:?}", loaded.settings).contains("hunter2"));
    let shown = loaded.effective();
    assert!(shown.iter().all(|row| !row.value.contains("hunter2")));
    let row = shown.iter().find(|row| row.key == "faktory.password");
    assert_eq!(row.map(|row| row.value.as_str()), Some("\"********\""));
}

#[test]
fn the_shops_time_zone_is_everyones_who_has_none() {
    let zones = |pairs: &[(&str, &str)]| {
        let loaded = load(&env(pairs)).expect("valid");
        let settings = &loaded.settings;
        let shown = loaded.effective();
        let sources = ["schedules.time_zone", "reports.time_zone"].map(|wanted| {
            let row = shown.iter().find(|row| row.key == wanted);
            row.map(|row| row.source.clone()).expect("shown")
        });
        (
            settings.schedules.time_zone.name().to_owned(),
            settings.reports.time_zone.name().to_owned(),
            sources,
        )
    };
    let (shop, reports) = (
        ("ONRUSH_SHOP__TIME_ZONE", "Asia/Shanghai"),
        ("ONRUSH_REPORTS__TIME_ZONE", "Europe/Berlin"),
    );
    let none = (
        "UTC".to_owned(),
        "UTC".to_owned(),
        ["default", "default"].map(str::to_owned),
    );
    assert_eq!(zones(&[]), none);
    let (schedules, of_reports, sources) = zones(&[shop, reports]);
    assert_eq!(
        (schedules.as_str(), of_reports.as_str()),
        ("Asia/Shanghai", "Europe/Berlin")
    );
    assert_eq!(
        sources,
        ["shop.time_zone", "environment ONRUSH_REPORTS__TIME_ZONE"]
    );
    assert_eq!(zones(&[shop]).1, "Asia/Shanghai");
    // Files from before know of the one or the other.
    assert_eq!(zones(&[reports]).0, "UTC");
    for key in ["shop", "schedules", "reports"] {
        let name = format!("ONRUSH_{}__TIME_ZONE", key.to_uppercase());
        let wrong = load(&env(&[(&name, "Asia/Beijing")]));
        let wrong = wrong.expect_err("no such zone").to_string();
        assert!(wrong.contains(&format!("{key}.time_zone")), "{wrong}");
        assert!(wrong.contains("did you mean Asia/Shanghai?"), "{wrong}");
    }
}

#[test]
fn a_secret_is_not_shown_by_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("onrush.toml");
    for key in SECRETS {
        let (section, name) = key.split_once('.').expect("a section");
        for (wrong, told) in [
            ("4711", "must be a text in quotes"),
            ("\"4711", "line 2"),
            ("[\"4711\"]", "must be a text in quotes"),
        ] {
            let text = format!("[{section}]\n{name} = {wrong}\n");
            std::fs::write(&file, text).expect("write");
            let inputs = Inputs {
                file: Some(file.clone()),
                ..Inputs::default()
            };
            let error = load(&inputs).expect_err(wrong);
            let (shown, inside) = (error.to_string(), format!("{error:?}"));
            assert!(shown.contains(told), "{shown}");
            assert!(
                !shown.contains("4711") && !inside.contains("4711"),
                "{shown}"
            );
        }
    }
}

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("write");
    load(&Inputs {
        file: Some(file.path().to_owned()),
        ..Inputs::default()
    })
}

#[test]
fn a_heading_with_nothing_below_it_sets_nothing() {
    let sections = SECTIONS.iter().map(|(name, _)| format!("[{name}]\n"));
    let all: String = sections.clone().collect();
    let others = [
        "",
        "# nothing\n",
        "[schedules.entries]\n",
        "auth = {}\n",
        &all,
    ];
    for text in sections.chain(others.map(str::to_owned)) {
        let loaded = load_text(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(loaded.settings, Settings::default(), "{text}");
        assert!(loaded.sources.is_empty(), "{text}");
    }
    let entry = load_text("[schedules.entries.nightly]\n").expect("an entry of nothing");
    assert_eq!(
        entry.settings.schedules.entries["nightly"],
        ScheduleEntry::default()
    );
    let named = "[schedules.entries.\"v1.5\"]\ncron = \"0 1 * * *\"\n";
    let entries = load_text(named).expect("a name with a point");
    assert!(entries.settings.schedules.entries.contains_key("v1.5"));
    for (text, word) in [
        ("[ordres]\n", "did you mean `orders`?"),
        ("[auth.session]\n", "there is no setting `auth.session`"),
        ("auth = 5\n", "auth: is a section"),
        ("[[server]]\nport = 1\n", "server: is a section"),
        ("[schedules]\nentries = 5\n", "schedules.entries: "),
    ] {
        let error = load_text(text).expect_err(text).to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn each_line_of_the_commented_file_holds_by_itself() {
    let text = commented_file();
    let mut lines = 0;
    for (at, line) in text.lines().enumerate() {
        let is_setting = line.strip_prefix("# ").filter(|rest| {
            let name = rest.split_once(" = ").map_or("", |(name, _)| name);
            !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
        });
        let Some(setting) = is_setting else {
            continue;
        };
        let lines_with = text.lines().enumerate();
        let with: Vec<&str> = lines_with
            .map(|(other, line)| if other == at { setting } else { line })
            .collect();
        let loaded = load_text(&with.join("\n"));
        let loaded = loaded.unwrap_or_else(|error| panic!("{setting}: {error}"));
        assert_eq!(loaded.settings, Settings::default(), "{setting}");
        assert_eq!(loaded.changed(), 0, "{setting}");
        lines += 1;
    }
    assert_eq!(
        lines,
        SECTIONS.iter().map(|(_, all)| all.len()).sum::<usize>()
    );
}

#[test]
fn lists_numbers_and_tables_in_the_environment_may_be_written_as_in_the_file() {
    let proxies = |text: &str| {
        let loaded = load(&env(&[("ONRUSH_SERVER__TRUSTED_PROXIES", text)]))?;
        Ok::<_, ConfigError>(loaded.settings.server.trusted_proxies)
    };
    let both = proxies("10.0.0.0/8, 192.168.0.0/16").expect("with commas");
    assert_eq!(both.len(), 2);
    for same in [
        "[\"10.0.0.0/8\", \"192.168.0.0/16\"]",
        " ['10.0.0.0/8','192.168.0.0/16',] ",
        "10.0.0.0/8,,192.168.0.0/16,",
    ] {
        assert_eq!(proxies(same).expect(same), both, "{same}");
    }
    assert!(proxies("").expect("none").is_empty() && proxies("[]").expect("none").is_empty());
    for (text, word) in [
        (
            "[10.0.0.0/8]",
            "`[10.0.0.0/8]` is no list; write one,two or",
        ),
        ("[\"10.0.0.0/8\"", "is no list"),
        ("[\"10.0.0.0/8\"]\nother = 1", "is no list"),
        ("[\"10.0.0.0/8\", 5]", "server.trusted_proxies"),
        (
            "10.0.0.0/8,10.0.0.1",
            "`10.0.0.1` is no range of addresses; write 10.0.0.0/8",
        ),
        ("[\"10.0.0.0/33\"]", "`10.0.0.0/33` is no range"),
    ] {
        let error = proxies(text).expect_err(text).to_string();
        assert!(error.contains(word), "{error}");
        assert!(error.contains("(set by environment ONRUSH_SERVER__TRUSTED_PROXIES)"));
    }
    let loaded = load(&env(&[
        ("ONRUSH_SERVER__CORS_ORIGINS", "[\"https://a.example\"]"),
        ("ONRUSH_SERVER__BODY_BYTES_MAX", "2_097_152"),
        (
            "ONRUSH_SCHEDULES__ENTRIES",
            "{ nightly = { cron = \"0 1 * * *\" } }",
        ),
        ("ONRUSH_SCHEDULES__ENTRIES__NIGHTLY__ARGS", "{ image = 7 }"),
    ]));
    let settings = loaded.expect("as in the file").settings;
    assert_eq!(settings.server.cors_origins, ["https://a.example"]);
    assert_eq!(settings.server.body_bytes_max, 2_097_152);
    let nightly = &settings.schedules.entries["nightly"];
    assert_eq!(nightly.cron.as_deref(), Some("0 1 * * *"));
    assert_eq!(nightly.args, Some(serde_json::json!({"image": 7})));
    for (text, word) in [("five", "is no table"), ("{ nightly = 5 }", "nightly")] {
        let error = load(&env(&[("ONRUSH_SCHEDULES__ENTRIES", text)]));
        let error = error.expect_err(text).to_string();
        assert!(error.contains(word), "{error}");
    }
    let wrong = load_text("[server]\nmetrics_allow = [\"127.0.0.0/8\", \"all\"]\n");
    let wrong = wrong.expect_err("no range").to_string();
    assert!(
        wrong.contains("server.metrics_allow: `all` is no range"),
        "{wrong}"
    );
}

#[test]
fn the_commented_file_is_valid_and_says_only_defaults() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("onrush.toml");
    let text = commented_file();
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.contains("ONRUSH_") => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&file, uncommented).expect("write");
    let loaded = load(&Inputs {
        file: Some(file),
        ..Inputs::default()
    })
    .expect("valid");
    assert_eq!(loaded.settings, Settings::default());
    assert!(loaded.sources.len() > 50);
}

/// Every setting with its dotted key.
fn all_settings() -> Vec<(String, &'static Setting)> {
    let keyed = |section: &str, all: &'static [Setting]| -> Vec<(String, &'static Setting)> {
        let keyed = |setting: &'static Setting| (format!("{section}.{}", setting.name), setting);
        all.iter().map(keyed).collect()
    };
    let sections = SECTIONS.iter();
    sections
        .flat_map(|(section, all)| keyed(section, all))
        .collect()
}

#[test]
fn every_setting_has_bounds_of_its_kind_or_a_reason_why_it_has_none() {
    let (settings, defaults) = (all_settings(), flatten(&defaults()));
    for key in known_keys().keys() {
        let is_declared = settings.iter().any(|(declared, _)| declared == key);
        assert!(is_declared || key.starts_with(ENTRIES), "{key}");
    }
    for (key, setting) in &settings {
        let default = &defaults[key];
        let fits = match setting.bounds {
            Bounds::Number { least, most } | Bounds::ZeroOr { least, most } => {
                default.is_u64() && least < most
            }
            Bounds::Each { least, most } => default.is_array() && least < most,
            Bounds::Rising { .. } | Bounds::Items { .. } => default.is_array(),
            Bounds::Text { .. }
            | Bounds::Path { .. }
            | Bounds::Directory { .. }
            | Bounds::Page { .. } => default.is_string(),
            // A number, a list or a free text is never bounded by its type alone.
            Bounds::OfType(_) => default.is_boolean() || default.is_string(),
            Bounds::None { because } => because.split(' ').count() > 5,
        };
        assert!(fits, "{key}: {:?} and {default}", setting.bounds);
        assert_eq!(setting.bounds.check(default), Ok(()), "{key}");
    }
    let unbounded = |setting: &Setting| matches!(setting.bounds, Bounds::None { .. });
    let unbounded = settings.iter().filter(|(_, setting)| unbounded(setting));
    let keys: Vec<&str> = unbounded.map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, [ENTRIES], "another setting has no bounds");
}

#[test]
fn a_number_at_each_end_is_read_and_one_beyond_it_is_refused_by_name() {
    let mut refused = 0;
    for (key, setting) in all_settings() {
        let (least, most) = match setting.bounds {
            Bounds::Number { least, most } | Bounds::ZeroOr { least, most } => (least, most),
            _ => continue,
        };
        let name = format!("ONRUSH_{}", key.to_uppercase().replace('.', "__"));
        let load_with = |number: u64| load(&env(&[(&name, &number.to_string())]));
        for end in [least, most] {
            assert_eq!(setting.bounds.check(&end.into()), Ok(()), "{key}");
            // Other settings may not go with it, but its type has room for it.
            if let Err(error) = load_with(end) {
                let shown = error.to_string();
                assert!(shown.contains("; the "), "{shown}");
            }
        }
        let beyond = [least.checked_sub(1), most.checked_add(1)];
        for number in beyond.into_iter().flatten() {
            if number == 0 && matches!(setting.bounds, Bounds::ZeroOr { .. }) {
                continue;
            }
            let Err(error) = load_with(number) else {
                panic!("{key} = {number} was taken");
            };
            let shown = error.to_string();
            assert!(shown.starts_with(&key), "{shown}");
            assert!(
                shown.ends_with(&format!("(set by environment {name})")),
                "{shown}"
            );
            refused += 1;
        }
    }
    assert!(refused > 250, "{refused}");
}

#[test]
fn a_text_that_is_too_long_is_refused_without_being_shown() {
    let mut refused = 0;
    for (key, setting) in all_settings() {
        let longest = match setting.bounds {
            Bounds::Text { chars_max } | Bounds::Page { chars_max } => chars_max,
            Bounds::Path { bytes_max } | Bounds::Directory { bytes_max } => bytes_max,
            _ => continue,
        };
        let name = format!("ONRUSH_{}", key.to_uppercase().replace('.', "__"));
        let text = format!("https://{}", "q".repeat(longest - 7));
        let error = load(&env(&[(&name, &text)])).expect_err(&key).to_string();
        assert!(
            error.starts_with(&format!("{key}: it has {} ", longest + 1)),
            "{error}"
        );
        assert!(!error.contains("qq"), "{error}");
        refused += 1;
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn settings_that_do_not_go_together_are_refused_with_the_one_to_change() {
    for (pairs, words) in [
        (
            &[("ONRUSH_SERVER__BODIES_BYTES_SMALL", "67108865")][..],
            "server.bodies_bytes_small: 67108865 is too large; the most is 67108864",
        ),
        (
            &[("ONRUSH_AUTH__HASH_QUEUE_MAX", "3")],
            "auth.hash_queue_small: 4 is too large; the most is 3",
        ),
        (
            &[("ONRUSH_DATABASE__WAL_READY_BYTES", "134217729")],
            "database.wal_bytes_max: 134217728 is too small; the least is 134217729",
        ),
        (
            &[("ONRUSH_CACHE__MEMORY_BYTES", "1048576")],
            "cache.hot_bytes_max: 4194304 is too large; the most is 1048576",
        ),
        (
            &[("ONRUSH_CACHE__ADAPTIVE_LOAD_MS", "5,6")],
            "cache.adaptive_ttl_seconds: it needs one life for each of the 2 steps",
        ),
        (
            &[("ONRUSH_CACHE__ADAPTIVE_LOAD_MS", "5,5,5")],
            "cache.adaptive_load_ms: it must be at most 16 rising numbers",
        ),
        (
            &[("ONRUSH_CACHE__DISK_BYTES", "1")],
            "cache.disk_bytes: it must be 0, or 67108864 at least",
        ),
        (
            &[
                ("ONRUSH_FAKTORY__ENABLED", "true"),
                ("ONRUSH_FAKTORY__TLS", "true"),
            ],
            "faktory.tls: it needs server.tls_cert and server.tls_key",
        ),
        (
            &[("ONRUSH_SERVER__TLS_CERT", "cert.pem")],
            "server.tls_key: tls_cert and tls_key go together",
        ),
        (
            &[("ONRUSH_DATA__DIR", "")],
            "data.dir: it must name a directory",
        ),
        (
            &[("ONRUSH_MAIL__CONFIRM_URL", "shop.example")],
            "mail.confirm_url: it must begin with https:// or http:// and have no `#`",
        ),
    ] {
        let error = load(&env(pairs)).expect_err(words).to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn the_commented_file_and_the_list_of_values_tell_the_bounds() {
    let file = commented_file();
    for line in [
        "# readers = 8  # 1 to 256\n",
        "# disk_bytes = 0  # 0, or 67_108_864 to 1_099_511_627_776\n",
        "# docs = true\n",
    ] {
        assert!(file.contains(line), "{line}");
    }
    let shown = load(&Inputs::default()).expect("the defaults").effective();
    let bounds = |key: &str| {
        let row = shown.iter().find(|row| row.key == key);
        row.expect("shown").bounds.as_deref()
    };
    assert_eq!(bounds("database.readers"), Some("1 to 256"));
    assert_eq!(bounds("server.docs"), None);
}
