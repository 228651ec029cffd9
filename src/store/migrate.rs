//! The numbered migrations, embedded in the binary, and the guard against foreign or newer files.
//!
//! Invariants: migrations only add; a database of a newer Onrush, or of another program, is refused
//! before a byte of it is touched.

use std::path::Path;

use refinery::{Migration, Runner};
use rusqlite::Connection;

use super::StoreError;
use super::sqlite::connection;

/// `PRAGMA application_id` of every Onrush database: "Onrs" in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x4f6e_7273;

const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__shop", include_str!("migrations/0001_shop.sql")),
    ("V2__tasks", include_str!("migrations/0002_tasks.sql")),
    (
        "V3__schedules",
        include_str!("migrations/0003_schedules.sql"),
    ),
    ("V4__webhooks", include_str!("migrations/0004_webhooks.sql")),
    ("V5__reports", include_str!("migrations/0005_reports.sql")),
    (
        "V6__task_external_ids",
        include_str!("migrations/0006_task_external_ids.sql"),
    ),
    (
        "V7__task_keys_edges_batches",
        include_str!("migrations/0007_task_keys_edges_batches.sql"),
    ),
    (
        "V8__cheap_checks",
        include_str!("migrations/0008_cheap_checks.sql"),
    ),
    (
        "V9__task_index",
        include_str!("migrations/0009_task_index.sql"),
    ),
    (
        "V10__imported_popularity",
        include_str!("migrations/0010_imported_popularity.sql"),
    ),
    (
        "V11__batches_count_again",
        include_str!("migrations/0011_batches_count_again.sql"),
    ),
    (
        "V12__sold_and_set_aside",
        include_str!("migrations/0012_sold_and_set_aside.sql"),
    ),
    (
        "V13__known_places",
        include_str!("migrations/0013_known_places.sql"),
    ),
    (
        "V14__search_words",
        include_str!("migrations/0014_search_words.sql"),
    ),
    (
        "V15__openings",
        include_str!("migrations/0015_openings.sql"),
    ),
    (
        "V16__registrations",
        include_str!("migrations/0016_registrations.sql"),
    ),
    (
        "V17__what_costs_what_it_brings",
        include_str!("migrations/0017_what_costs_what_it_brings.sql"),
    ),
    (
        "V18__unpaid_orders",
        include_str!("migrations/0018_unpaid_orders.sql"),
    ),
];

/// What SQLite alone needs of the eighth.
const CHEAP_CHECKS: &str = include_str!("migrations/0008_cheap_checks_sqlite.sql");

/// The DDL as SQLite reads it.
fn for_sqlite(text: &str) -> String {
    text.replace("{id}", "INTEGER PRIMARY KEY")
        .replace("{clustered}", "WITHOUT ROWID")
        .replace("{cheap_checks}", CHEAP_CHECKS)
}

/// The version that this binary brings a database to.
pub(super) fn latest() -> i32 {
    let number = |name: &str| name.strip_prefix('V')?.split_once("__")?.0.parse().ok();
    let last = MIGRATIONS.last().and_then(|(name, _)| number(name));
    last.unwrap_or(i32::MAX)
}

/// Reads the header of a file that nobody has open, and refuses what this binary must not open. `None`
/// if there is no database yet, else the version of its schema.
pub(super) fn check_header(path: &Path) -> Result<Option<i32>, StoreError> {
    let Some(head) = connection::head(path)? else {
        return Ok(None);
    };
    check_versions(head.application_id, head.version)?;
    Ok(Some(head.version))
}

/// The same of an open database, whose log may tell otherwise.
pub(super) fn check_open(conn: &Connection) -> Result<i32, StoreError> {
    let application_id: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i32 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    check_versions(application_id, version)?;
    Ok(version)
}

/// Refuses a database whose earlier upgrades are not those that this binary knows, before the next one
/// begins.
pub(super) fn check_history(conn: &Connection) -> Result<(), StoreError> {
    let exists = conn
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'refinery_schema_history'")?
        .exists([])?;
    if !exists {
        return Ok(());
    }
    let mut applied = conn
        .prepare("SELECT version, name, checksum FROM refinery_schema_history ORDER BY version")?;
    let mut rows = applied.query([])?;
    let known = migrations()?;
    let mut expected = known.iter();
    while let Some(row) = rows.next()? {
        let (version, name, checksum): (i64, String, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let is_known = expected.next().is_some_and(|migration| {
            i64::from(migration.version()) == version
                && migration.name() == name
                && migration.checksum().to_string() == checksum
        });
        if !is_known {
            return Err(StoreError::Unavailable(format!(
                "the database can't be upgraded: its step {version} ({name}) is not the one that this Onrush \
                 knows; start the version that wrote it, or restore a backup"
            )));
        }
    }
    Ok(())
}

fn migrations() -> Result<Vec<Migration>, StoreError> {
    MIGRATIONS
        .iter()
        .map(|(name, text)| Migration::unapplied(name, &for_sqlite(text)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::Bug(error.to_string()))
}

fn check_versions(application_id: i32, version: i32) -> Result<(), StoreError> {
    // A first start that was cut off between creation and migration leaves both at 0.
    if application_id != APPLICATION_ID && !(application_id == 0 && version == 0) {
        return Err(StoreError::Foreign(
            "the database belongs to another program; choose another data directory".to_owned(),
        ));
    }
    if version > latest() {
        return Err(StoreError::Foreign(format!(
            "the database was written by a newer Onrush (schema {version}, this one knows {}); \
             start that version, or restore a backup",
            latest()
        )));
    }
    Ok(())
}

/// Brings the database to [`latest`]: a new one at once, since each commit waits for the disk; one with
/// rows by each migration in its own transaction, since those may be large.
pub(super) fn run(conn: &mut Connection) -> Result<(), StoreError> {
    let version = check_open(conn)?;
    if version == latest() {
        return Ok(());
    }
    let runner = Runner::new(&migrations()?).set_grouped(version == 0);
    runner.run(conn).map_err(|error| {
        StoreError::Unavailable(format!("the database could not be upgraded: {error}"))
    })?;
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", latest())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brought to an earlier version.
    fn at(version: usize) -> Connection {
        let mut conn = Connection::open_in_memory().expect("a database in memory");
        let migrations: Vec<Migration> = MIGRATIONS[..version]
            .iter()
            .map(|(name, text)| Migration::unapplied(name, &for_sqlite(text)).expect("named"))
            .collect();
        Runner::new(&migrations).run(&mut conn).expect("migrated");
        conn.pragma_update(None, "application_id", APPLICATION_ID)
            .expect("set");
        conn.pragma_update(None, "user_version", version as i64)
            .expect("set");
        conn
    }

    #[test]
    fn a_new_database_is_the_one_that_came_step_by_step() {
        let schema = |conn: &Connection| {
            let read = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name";
            let mut rows = conn.prepare(read).expect("a statement");
            let objects = rows.query_map([], |row| {
                let sql = row.get::<_, Option<String>>(3)?;
                Ok([
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    sql.unwrap_or_default(),
                ])
            });
            let objects: Result<Vec<[String; 4]>, _> = objects.expect("read").collect();
            objects.expect("text")
        };
        let mut new = Connection::open_in_memory().expect("a database in memory");
        run(&mut new).expect("made");
        assert_eq!(schema(&new), schema(&at(MIGRATIONS.len())));
        check_history(&new).expect("known steps");
        assert_eq!(check_open(&new).expect("ours"), latest());
        // The checks that the eighth rewrites hold.
        let wrong = TASK.replace("'available'", "'lost'");
        assert!(new.execute(&wrong, []).is_err());
        new.execute(TASK, []).expect("a task");
    }

    const TASK: &str = "INSERT INTO tasks (id, name, queue, state, priority, run_at, created_at, max_attempts, \
         timeout_ms, args, lock_until) VALUES ('t', 'n', 'q', 'available', 1, 0, 0, 1, 1, '{}', 'started')";
    const ORDER: &str = "INSERT INTO orders (id, user_id, status, total_amount, currency, created_at, updated_at) \
         VALUES (1, 1, 'paid', 5, 'EUR', 0, 0)";

    #[test]
    fn checks_that_cost_less_refuse_the_same() {
        let mut conn = at(7);
        conn.execute_batch("PRAGMA foreign_keys = OFF")
            .expect("set");
        conn.execute(TASK, []).expect("a task");
        conn.execute(ORDER, []).expect("an order");
        run(&mut conn).expect("brought up to date");
        for (was, word) in [
            ("tasks SET state", "nonsense"),
            ("tasks SET lock_until", "nonsense"),
            ("orders SET status", "nonsense"),
            ("orders SET total_amount", "-1"),
        ] {
            let refused = conn.execute(&format!("UPDATE {was} = '{word}'"), []);
            assert!(
                matches!(&refused, Err(error) if error.to_string().contains("CHECK")),
                "{was}: {refused:?}"
            );
        }
        for state in crate::task::TaskState::WORDS {
            let sql = format!("UPDATE tasks SET state = '{state}'");
            assert_eq!(conn.execute(&sql, []).expect(state), 1);
        }
        for status in crate::order::OrderStatus::WORDS {
            let sql = format!("UPDATE orders SET status = '{status}'");
            assert_eq!(conn.execute(&sql, []).expect(status), 1);
        }
        let verdict: String = conn
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .expect("checked");
        assert_eq!(verdict, "ok");
    }

    #[test]
    fn what_open_sales_have_set_aside_is_known_after_the_upgrade_and_old_reports_are_gone() {
        let mut conn = at(9);
        conn.execute_batch(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO products (id, name, description, category, unit_amount, currency, stock, popularity, status, \
             created_at, last_updated) VALUES (1, 'a', '', '', 1, 'CNY', 0, 0, 'active', 0, 0), (2, 'b', '', '', 1, 'CNY', 5, 0, 'active', 0, 0);
             INSERT INTO flash_sales (product_id, quantity, remaining, held, sold, returned, unit_amount, currency, starts_at, \
             ends_at, per_user_limit, attempts_per_minute, payment_window_seconds, status, created_at) VALUES \
             (1, 7, 4, 0, 3, 0, 1, 'CNY', 0, 9, 1, 1, 0, 'open', 0), (1, 5, 5, 0, 0, 0, 1, 'CNY', 10, 19, 1, 1, 0, 'open', 0), \
             (1, 9, 0, 0, 9, 0, 1, 'CNY', 0, 1, 1, 1, 0, 'ended', 0), (2, 3, 0, 0, 0, 3, 1, 'CNY', 0, 1, 1, 1, 0, 'stopped', 0);
             INSERT INTO cached_reports (key, time_zone, body, made_at, expires_at) VALUES ('k', 'UTC', '{}', 0, 9);",
        )
        .expect("a shop");
        run(&mut conn).expect("brought up to date");
        let number = |sql: &str| -> i64 { conn.query_row(sql, [], |row| row.get(0)).expect(sql) };
        assert_eq!(number("SELECT set_aside FROM products WHERE id = 1"), 12);
        assert_eq!(number("SELECT set_aside FROM products WHERE id = 2"), 0);
        assert_eq!(number("SELECT COUNT(*) FROM cached_reports"), 0);
        let refused = conn.execute("UPDATE products SET set_aside = -1", []);
        assert!(matches!(&refused, Err(error) if error.to_string().contains("CHECK")));
    }

    #[test]
    fn no_write_of_a_task_or_an_order_builds_a_table_of_its_own() {
        let mut conn = at(7);
        run(&mut conn).expect("brought up to date");
        for sql in [
            TASK,
            ORDER,
            "UPDATE tasks SET state = 'running', attempt = attempt + 1 WHERE id = 't'",
            "UPDATE orders SET status = 'processed' WHERE id = 1",
        ] {
            let mut explained = conn.prepare(&format!("EXPLAIN {sql}")).expect("explained");
            let steps: Vec<String> = explained
                .query_map([], |row| row.get(1))
                .and_then(Iterator::collect)
                .expect("steps");
            assert!(
                !steps.iter().any(|step| step == "OpenEphemeral"),
                "{sql}: {steps:?}"
            );
        }
    }
}
