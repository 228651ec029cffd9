//! The store's texts fit PostgreSQL 15: its migrations run there, and it prepares every statement of the program
//! with the types that its parameters have.

mod server;
mod tour;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;

use onrush::store::conformance::{self, Kind, Statement};
use onrush::store::migrations_for_postgres;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::faults::note;
use crate::statements;
use server::Server;

/// Types of columns that a row is read from: what is narrower than a bigint is widened.
const READ: &[Type] = &[Type::INT2, Type::INT4, Type::INT8, Type::TEXT];

/// Statements that do not prepare, or come back as `numeric`, unless the text and the types of its parameters say
/// more than SQLite asks for; and how many texts each has.
const EXACTING: &[(&str, usize)] = &[
    ("auth.revoke_key", 1),
    ("flash_sale.insert_claim", 1),
    ("flash_sale.units_ordered", 1),
    ("order.list", 4),
    ("task.complete", 1),
    ("task.complete_all", 1),
    ("task.complete_fresh", 1),
    ("task.list.floor", 2),
    ("task.list.page", 4),
    ("task.unfinished_above", 1),
    ("user.beginning_with", 1),
    ("user.list", 2),
];

/// A statement that the tour does not run, with the types of its parameters.
struct NotRun {
    name: &'static str,
    kinds: &'static [Kind],
    why: &'static str,
}

const B: Kind = Kind::Bigint;
const T: Kind = Kind::Text;

const fn not_run(name: &'static str, kinds: &'static [Kind], why: &'static str) -> NotRun {
    NotRun { name, kinds, why }
}

const NOT_RUN: &[NotRun] = &[
    not_run("schedule.drop_void_runs.schedule_runs", &[T, B], SET_BACK),
    not_run("schedule.drop_void_runs.schedules", &[T, B], SET_BACK),
    not_run("schedule.forget_runs.schedule_runs", &[T, B], MANY),
    not_run("schedule.forget_runs.schedules", &[T, B], MANY),
    not_run(
        "schedule.set_aside",
        &[T, T, B],
        "a schedule that another program wrote",
    ),
    not_run(
        "task.hand_over_lock",
        &[T, T, T],
        "a debounced task begins as another comes",
    ),
    not_run("task.leave_batch", &[T], "a batch went before its tasks"),
    not_run("task.purge_locks", &[B], OLD),
    not_run("task.remove.task_edges", &[T], OLD),
    not_run("task.shift_run", &[T, B, B, B, B], SET_BACK),
    not_run("webhook.purge.deliveries", &[B, B], OLD),
    not_run("webhook.purge.events", &[B, B], OLD),
];
const SET_BACK: &str = "the clock is set";
const MANY: &str = "a schedule with more runs than are kept";
const OLD: &str = "what is kept for days is removed";

fn with_server(test: impl AsyncFnOnce(&mut Server)) {
    let Some(mut server) = Server::start() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test(&mut server));
}

/// A connection to a database that all migrations made.
async fn migrated(server: &mut Server) -> Client {
    let mut client = server.connect().await;
    for (name, text) in migrations_for_postgres() {
        assert!(!text.contains('{'), "{name} has a token that is not known");
        let transaction = client.transaction().await.expect("a transaction");
        if let Err(error) = transaction.batch_execute(&text).await {
            panic!("{name}: {}", told(&error));
        }
        transaction.commit().await.expect("a commit");
    }
    client
}

/// An error in the server's words.
fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => format!("{error}: {:?}", error.source()),
    }
}

#[test]
fn the_migrations_run_and_their_texts_are_ordered_by_bytes() {
    with_server(async |server| {
        let client = migrated(server).await;
        let columns = client
            .query(
                "SELECT table_name || '.' || column_name, data_type, collation_name \
                 FROM information_schema.columns WHERE table_schema = 'public'",
                &[],
            )
            .await
            .expect("the columns");
        assert!(columns.len() > 150, "{}", columns.len());
        for column in columns {
            let (name, kind): (String, String) = (column.get(0), column.get(1));
            match (kind.as_str(), column.get::<_, Option<&str>>(2)) {
                ("bigint", None) | ("text", Some("C")) => {}
                other => panic!("{name} is {other:?}"),
            }
        }
        // What the server takes for the order where nothing is said, and what the tables have.
        let ordered = async |order: &str| -> Vec<String> {
            let text = format!("SELECT term FROM product_terms ORDER BY {order}");
            let rows = client.query(&text, &[]).await.expect("rows");
            rows.iter().map(|row| row.get(0)).collect()
        };
        client
            .batch_execute("INSERT INTO product_terms (term, product_id) VALUES ('b', 1), ('B', 1), ('ä', 1), ('a', 1)")
            .await
            .expect("inserted");
        assert_eq!(ordered("term").await, ["B", "a", "b", "ä"]);
        assert_eq!(
            ordered("term COLLATE \"default\"").await,
            ["a", "ä", "b", "B"]
        );
    });
}

#[test]
fn every_statement_prepares_with_the_types_of_its_parameters() {
    with_server(async |server| {
        tour::run();
        let client = migrated(server).await;
        let ran = conformance::statements();
        let mut texts: BTreeMap<&str, Vec<&Statement>> = BTreeMap::new();
        for statement in &ran {
            texts.entry(&statement.name).or_default().push(statement);
        }
        let written = written();
        let mut others = Vec::new();
        for one in NOT_RUN {
            let text = written.get(one.name).filter(|text| !text.is_empty());
            let text =
                text.unwrap_or_else(|| panic!("{} ({}) is not written so", one.name, one.why));
            assert!(!texts.contains_key(one.name), "{} runs", one.name);
            others.push(Statement {
                name: one.name.to_owned(),
                text: text.clone(),
                kinds: vec![one.kinds.to_vec()],
            });
        }
        let excused: BTreeSet<&str> = NOT_RUN.iter().map(|one| one.name).collect();
        let missing: Vec<&String> = written
            .keys()
            .filter(|name| !texts.contains_key(name.as_str()) && !excused.contains(name.as_str()))
            .collect();
        assert!(missing.is_empty(), "the tour leaves out: {missing:#?}");
        let (mut wrong, mut widened, mut untyped) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for statement in ran.iter().chain(&others) {
            match prepare(&client, statement).await {
                Ok(false) => {}
                Ok(true) => drop(widened.insert(statement.name.as_str())),
                Err(why) => {
                    wrong.push(format!("{}: {why}\n    {}", statement.name, statement.text))
                }
            }
            if client.prepare(&statement.text).await.is_err() {
                untyped.insert(statement.name.as_str());
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        for (name, count) in EXACTING {
            let found = texts.get(name).map_or(0, Vec::len);
            assert!(found >= *count, "{name} ran with {found} texts of {count}");
        }
        note(&format!(
            "{} texts of {} statements prepare, and {} that were not run; with columns to be widened: {widened:?}; \
             without types these would not: {untyped:?}",
            ran.len(),
            texts.len(),
            others.len()
        ));
    });
}

/// Whether a column comes back narrower than a bigint.
async fn prepare(client: &Client, statement: &Statement) -> Result<bool, String> {
    let [kinds] = &statement.kinds[..] else {
        return Err(format!("calls do not agree: {:?}", statement.kinds));
    };
    let types: Vec<Type> = kinds
        .iter()
        .map(|kind| match kind {
            Kind::Bigint => Type::INT8,
            Kind::Text => Type::TEXT,
        })
        .collect();
    let prepared = client
        .prepare_typed(&statement.text, &types)
        .await
        .map_err(|error| told(&error))?;
    let read = prepared.columns().iter().map(|column| column.type_());
    match read.clone().find(|kind| !READ.contains(kind)) {
        Some(other) => Err(format!("a column comes back as {other}")),
        None => Ok(read
            .clone()
            .any(|kind| [Type::INT2, Type::INT4].contains(kind))),
    }
}

/// The statements of the sources, by name, with their texts; one that is put together has none here.
fn written() -> BTreeMap<String, String> {
    let written = statements::statements().into_iter();
    // The macro itself is none.
    let all = written.filter(|(place, _)| !place.contains("/src/store/"));
    all.map(|(place, text)| (name_of(&place), text)).collect()
}

/// The name of the statement that stands at `place` of the sources: `…/src/task/sql.rs:find:one` is counted as
/// `task.find.one`.
fn name_of(place: &str) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    let place = place.strip_prefix(source).expect("a place in src/");
    let words = place
        .split(['/', ':'])
        .map(|word| word.trim_end_matches(".rs"));
    let words: Vec<&str> = words
        .filter(|word| !word.is_empty() && !matches!(*word, "sql" | "mod"))
        .collect();
    words.join(".")
}
