//! `onrush task`: enqueue one, list them, show one.
//!
//! Listing and showing work beside a running server; enqueueing takes the data directory, so while
//! the server runs it is done through its API.

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;

use super::{Common, EXIT_USAGE, Failed, Outcome, existing_database, print};
use crate::app;
use crate::check::{self, JsonError};
use crate::config::Settings;
use crate::store::{Tx, file};
use crate::task::{self, Asked, Filter, Task, TaskError, TaskId, TaskState};

#[derive(Subcommand)]
pub(super) enum TaskCommand {
    /// Make a task; the server must not run (use its API then)
    Enqueue(EnqueueArgs),
    /// List tasks, newest first
    List(ListArgs),
    /// Show a task with its attempts and log lines
    Show {
        /// The task's id
        id: String,
    },
}

#[derive(Args)]
pub(super) struct EnqueueArgs {
    /// What is to be done
    name: String,
    /// Its arguments, as JSON
    #[arg(long, default_value = "{}")]
    args: String,
    /// Where it waits [default: the built-in task's own queue, else `default`]
    #[arg(long)]
    queue: Option<String>,
    /// Higher first, 0 to 255 [default: the built-in task's own, else 100]
    #[arg(long)]
    priority: Option<u8>,
    /// Not before so many seconds have passed
    #[arg(long, value_name = "SECONDS")]
    countdown: Option<u32>,
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// Only in this state
    #[arg(long)]
    state: Option<String>,
    /// Only of this queue
    #[arg(long)]
    queue: Option<String>,
    /// Only of this name
    #[arg(long)]
    name: Option<String>,
    /// Rows at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
}

fn read_alone<T>(
    settings: &Settings,
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, TaskError>,
) -> Result<T, Failed> {
    let path = existing_database(settings)?;
    Ok(file::read_alone(&path, &settings.database, work)?)
}

fn brief(task: &Task) -> serde_json::Value {
    serde_json::json!({
        "id": task.id, "name": task.name, "queue": task.queue, "state": task.state,
        "priority": task.priority, "attempt": task.attempt, "max_attempts": task.max_attempts,
        "run_at": task.run_at, "created_at": task.created_at, "finished_at": task.finished_at,
        "error": task.error,
    })
}

pub(super) fn task(common: &Common, command: &TaskCommand) -> Outcome {
    let settings = common.load(Vec::new())?.settings;
    match command {
        TaskCommand::Enqueue(args) => enqueue(common, &settings, args),
        TaskCommand::List(args) => list(common, &settings, args),
        TaskCommand::Show { id } => show(common, &settings, id),
    }
}

fn enqueue(common: &Common, settings: &Settings, args: &EnqueueArgs) -> Outcome {
    check::parse_kept_json::<serde_json::Value>(args.args.as_bytes()).map_err(|error| {
        let reason = match error {
            JsonError::Malformed(reason) => format!("--args is no JSON: {reason}"),
            JsonError::Shape(fault) if fault.field.is_empty() => format!("--args {}", fault.reason),
            JsonError::Shape(fault) => format!("--args: {} {}", fault.field, fault.reason),
        };
        Failed::new(EXIT_USAGE, reason)
    })?;
    let opened = app::open_data(settings)?;
    let now = opened.clock.now();
    let registry = opened.registry(settings)?;
    let asked = Asked {
        name: args.name.clone(),
        queue: args.queue.clone(),
        args: args.args.clone(),
        priority: args.priority,
        ..Asked::default()
    };
    let made = registry
        .resolve(&settings.tasks, asked)
        .and_then(|mut new| {
            new.run_at = args
                .countdown
                .map(|seconds| now.plus_seconds(i64::from(seconds)));
            registry
                .check(&settings.tasks, now, &new)
                .map_err(TaskError::Invalid)?;
            opened
                .store
                .write(move |tx| task::enqueue(tx, now, &new))
                .blocking()
        });
    opened.close();
    let id = made?.id();
    print(&if common.json {
        serde_json::json!({"id": id}).to_string()
    } else {
        format!("task {id}: {} waits", args.name)
    });
    Ok(())
}

fn list(common: &Common, settings: &Settings, args: &ListArgs) -> Outcome {
    let state = args
        .state
        .as_deref()
        .map(|word| {
            TaskState::from_word(word).ok_or_else(|| {
                let words = TaskState::WORDS.join(", ");
                Failed::new(
                    EXIT_USAGE,
                    format!("`{word}` is no state; choose one of {words}"),
                )
            })
        })
        .transpose()?;
    let filter = Filter {
        state,
        queue: args.queue.clone(),
        name: args.name.clone(),
        before: None,
        limit: args.limit,
    };
    let (tasks, next) = read_alone(settings, |tx| task::list(tx, &filter))?;
    if common.json {
        let items: Vec<serde_json::Value> = tasks.iter().map(brief).collect();
        print(&serde_json::json!({"items": items, "has_more": next.is_some()}).to_string());
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_preset(UTF8_BORDERS_ONLY)
        .set_header(["id", "name", "queue", "state", "attempt", "due", "error"]);
    for task in &tasks {
        table.add_row([
            task.id.to_string(),
            task.name.clone(),
            task.queue.clone(),
            task.state.word().to_owned(),
            format!("{}/{}", task.attempt, task.max_attempts),
            task.run_at.to_string(),
            task.error.clone().unwrap_or_default(),
        ]);
    }
    print(&table.to_string());
    Ok(())
}

fn show(common: &Common, settings: &Settings, id: &str) -> Outcome {
    let id: TaskId = id
        .parse()
        .map_err(|_| Failed::new(EXIT_USAGE, format!("`{id}` is no task's id")))?;
    let now = crate::clock::Clock::system().now();
    let (task, attempts, logs) = read_alone(settings, |tx| task::get(tx, now, id))?;
    let args = task::shown(&task.name, &task.args);
    let result = task
        .result
        .as_deref()
        .map(|text| task::shown(&task.name, text));
    if common.json {
        let mut view = brief(&task);
        view["args"] = args;
        view["result"] = result.unwrap_or_default();
        view["attempts"] = attempts
            .iter()
            .map(|attempt| {
                serde_json::json!({
                    "attempt": attempt.attempt, "outcome": attempt.outcome, "error": attempt.error,
                    "started_at": attempt.started_at, "finished_at": attempt.finished_at,
                })
            })
            .collect();
        view["logs"] = logs
            .iter()
            .map(|line| {
                serde_json::json!({
                    "attempt": line.attempt, "at": line.at, "level": line.level, "line": line.line,
                })
            })
            .collect();
        print(&view.to_string());
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    for (what, value) in [
        ("id", task.id.to_string()),
        ("name", task.name),
        ("queue", task.queue),
        ("state", task.state.word().to_owned()),
        (
            "attempt",
            format!("{} of {}", task.attempt, task.max_attempts),
        ),
        ("due", task.run_at.to_string()),
        ("made", task.created_at.to_string()),
        ("args", args.to_string()),
        (
            "result",
            result.map(|value| value.to_string()).unwrap_or_default(),
        ),
        ("error", task.error.unwrap_or_default()),
    ] {
        table.add_row([what.to_owned(), value]);
    }
    print(&table.to_string());
    for attempt in attempts {
        let why = attempt.error.unwrap_or_default();
        print(&format!(
            "attempt {} {} at {}: {why}",
            attempt.attempt,
            attempt.outcome.word(),
            attempt.finished_at
        ));
    }
    for line in logs {
        print(&format!("{} {} {}", line.at, line.level.word(), line.line));
    }
    Ok(())
}
