//! Schedules against a clock that is moved, set back and forward, on one database and several nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::clock::Clock;
use crate::monitor::Metrics;
use crate::store::Store;
use crate::task::{
    self, Filter, Handler, NoArgs, Task, TaskContext, TaskFailure, TaskOutcome, TaskState, Tasks,
};

/// 2026-11-11, midnight UTC.
const START: &str = "2026-11-11T00:00:00Z";

/// A built-in task for these tests.
struct Tidy;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TidyArgs {
    #[serde(default)]
    room: u32,
}

impl Handler for Tidy {
    type Args = TidyArgs;
    const NAME: &'static str = "tidy";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Tidies up.";

    async fn run(&self, _: TaskContext, _: TidyArgs) -> Result<TaskOutcome, TaskFailure> {
        Ok(TaskOutcome::Done(None))
    }
}

/// Another one.
struct TidyAttic;

impl Handler for TidyAttic {
    type Args = NoArgs;
    const NAME: &'static str = "tidy_attic";
    const QUEUE: &'static str = "maintenance";
    const ABOUT: &'static str = "Tidies up above.";

    async fn run(&self, _: TaskContext, _: NoArgs) -> Result<TaskOutcome, TaskFailure> {
        Ok(TaskOutcome::Done(None))
    }
}

/// A database and a clock.
struct World {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    _dir: tempfile::TempDir,
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).expect(text)
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let metrics = Metrics::new().expect("metrics");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &config::Database::default(), metrics.clone(), |_| ());
        Self {
            store: store.expect("a store"),
            clock: Clock::manual(at(START)),
            metrics,
            _dir: dir,
        }
    }

    /// A process on this database.
    fn node(&self) -> Schedules {
        self.node_with(&self.clock, |_| ())
    }

    fn node_with(&self, clock: &Clock, change: impl FnOnce(&mut config::Schedules)) -> Schedules {
        let mut rules = config::Schedules::default();
        change(&mut rules);
        let tasks = Tasks::new(
            self.store.clone(),
            clock.clone(),
            Arc::default(),
            self.metrics.clone(),
            Registry::builder().with(Tidy).with(TidyAttic).build(),
        );
        Schedules::new(&tasks, Arc::new(rules), self.metrics.clone())
    }

    fn runs(&self, name: &str) -> Vec<Run> {
        let mut all = Vec::new();
        let mut before = Timestamp(i64::MAX);
        loop {
            let page = self
                .store
                .read_blocking(|tx| runs(tx, name, before, 200))
                .expect("runs");
            let Some(last) = page.last() else {
                all.reverse();
                return all;
            };
            before = last.fire_at;
            all.extend(page);
        }
    }

    /// `(seconds from the start, outcome)` of each run, oldest first.
    fn history(&self, name: &str) -> Vec<(i64, RunOutcome)> {
        let runs = self.runs(name);
        let seconds = |run: &Run| run.fire_at.micros_since(at(START)) / 1_000_000;
        runs.iter().map(|run| (seconds(run), run.outcome)).collect()
    }

    /// All tasks, oldest first.
    fn tasks(&self) -> Vec<Task> {
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let filter = Filter {
                before,
                limit: 500,
                ..Filter::default()
            };
            let (page, next) = self
                .store
                .read_blocking(|tx| task::list(tx, &filter))
                .expect("tasks");
            all.extend(page);
            before = next;
            if before.is_none() {
                all.reverse();
                return all;
            }
        }
    }

    async fn cancel(&self, id: TaskId) {
        let now = self.clock.now();
        let work = move |tx: &mut Tx<'_>| task::cancel(tx, now, id).map(|_changes| ());
        self.store.write(work).await.expect("cancelled");
    }

    /// Ends every unfinished task.
    async fn finish_all(&self) {
        for task in self.tasks() {
            if !task.state.is_final() {
                self.cancel(task.id).await;
            }
        }
    }

    fn state(&self, id: TaskId) -> TaskState {
        let found = self.store.read_blocking(|tx| task::find(tx, id));
        found.expect("read").expect("a task").state
    }
}

fn every(seconds: u32) -> Draft {
    Draft {
        interval_seconds: Some(seconds),
        task: Some("count".to_owned()),
        ..Draft::default()
    }
}

fn cron(text: &str) -> Draft {
    Draft {
        cron: Some(text.to_owned()),
        task: Some("count".to_owned()),
        ..Draft::default()
    }
}

fn word(word: &str) -> Option<String> {
    Some(word.to_owned())
}

async fn make(schedules: &Schedules, name: &str, draft: Draft) -> Schedule {
    let made = schedules.create(name.to_owned(), draft, false).await;
    made.expect("a schedule")
}

/// Lets time pass by seconds, with a look after each step.
async fn pass(world: &World, ticker: &mut Ticker, seconds: u64, step: u64) {
    for _ in 0..seconds / step {
        world.clock.advance(Duration::from_secs(step));
        ticker.step().await.expect("a look");
    }
}

#[tokio::test]
async fn each_fire_makes_one_task_and_its_end_is_noted() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    let made = make(&schedules, "s", every(60)).await;
    assert_eq!(made.next_run_at, Some(at("2026-11-11T00:01:00Z")));
    assert_eq!(made.upcoming().len(), 10);
    assert_eq!(made.upcoming()[9], at("2026-11-11T00:10:00Z"));
    pass(&world, &mut ticker, 59, 1).await;
    assert!(world.runs("s").is_empty());
    pass(&world, &mut ticker, 1, 1).await;
    let [run] = &world.runs("s")[..] else {
        panic!("one run");
    };
    assert_eq!(
        (run.cause, run.outcome),
        (Cause::Time, RunOutcome::Enqueued)
    );
    let [task] = &world.tasks()[..] else {
        panic!("one task");
    };
    assert_eq!(run.task_id, Some(task.id));
    assert_eq!(
        (&*task.name, &*task.queue, &*task.args),
        ("count", "default", "{}")
    );
    let tag: serde_json::Value =
        serde_json::from_str(task.metadata.as_deref().expect("metadata")).expect("JSON");
    assert_eq!(tag["schedule"], "s");
    assert_eq!(tag["fire_at"], "2026-11-11T00:01:00.000000Z");
    world.finish_all().await;
    assert_eq!(
        world.runs("s")[0].outcome,
        RunOutcome::Cancelled,
        "told by the task at once"
    );
    ticker.step().await.expect("a look");
    let id = task.id;
    let removed = world.store.write(move |tx| task::remove(tx, id)).await;
    removed.expect("removed");
    let run = &world.runs("s")[0];
    assert_eq!(run.outcome, RunOutcome::Cancelled, "kept without the task");
    assert_eq!(run.finished_at, Some(world.clock.now()));
    assert!(
        world
            .metrics
            .render()
            .contains(r#"schedule_runs_total{outcome="cancelled",schedule="s"} 1"#)
    );
    schedules.remove("s".to_owned()).await.expect("removed");
    assert!(!world.metrics.render().contains("schedule_runs_total{"));
}

#[tokio::test]
async fn overlapping_fires_are_skipped_allowed_or_one_is_queued() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    for policy in Overlap::WORDS {
        let draft = Draft {
            overlap: word(policy),
            ..every(10)
        };
        make(&schedules, policy, draft).await;
    }
    pass(&world, &mut ticker, 40, 10).await;
    let outcomes = |name: &str| -> Vec<&str> {
        let history = world.history(name);
        history.iter().map(|(_, outcome)| outcome.word()).collect()
    };
    assert_eq!(
        outcomes("skip"),
        ["enqueued", "skipped", "skipped", "skipped"]
    );
    assert_eq!(outcomes("allow"), ["enqueued"; 4]);
    assert_eq!(
        outcomes("queue_one"),
        ["enqueued", "enqueued", "skipped", "skipped"]
    );
    let queued = world.runs("queue_one")[1].task_id.expect("a task");
    assert_eq!(world.state(queued), TaskState::Scheduled);
    // It starts when the first one is finished, whatever came of that.
    let first = world.runs("queue_one")[0].task_id.expect("a task");
    world.cancel(first).await;
    assert_eq!(world.state(queued), TaskState::Available);
    pass(&world, &mut ticker, 10, 10).await;
    assert_eq!(
        outcomes("queue_one"),
        ["cancelled", "enqueued", "skipped", "skipped", "enqueued"]
    );
    world.finish_all().await;
    pass(&world, &mut ticker, 10, 10).await;
    assert_eq!(outcomes("skip").last(), Some(&"enqueued"));
    // By hand it is no different, and nothing is left behind of what was refused.
    let by_hand = |name: &str| {
        let (schedules, name) = (schedules.clone(), name.to_owned());
        async move {
            schedules
                .change(move |tx, now, basis| run(tx, now, basis, &name))
                .await
        }
    };
    let before = world.runs("skip").len();
    assert!(matches!(
        by_hand("skip").await,
        Err(ScheduleError::Unfinished(_))
    ));
    assert_eq!(world.runs("skip").len(), before);
    by_hand("allow").await.expect("a run");
    by_hand("allow").await.expect("another in the same moment");
    assert_eq!(world.runs("allow").last().expect("one").cause, Cause::Hand);
}

#[tokio::test]
async fn after_downtime_the_missed_policy_decides() {
    let world = World::new();
    let schedules = world.node();
    for policy in Missed::WORDS {
        let draft = Draft {
            missed: word(policy),
            missed_max: Some(3),
            overlap: word("allow"),
            ..cron("0 * * * *")
        };
        make(&schedules, policy, draft).await;
    }
    drop(schedules);
    // Ten and a half hours later another process starts.
    world.clock.advance(Duration::from_secs(37_800));
    let mut ticker = Ticker::new(world.node());
    ticker.step().await.expect("a look");
    let hours = |name: &str| -> Vec<(i64, &str, &str)> {
        let runs = world.runs(name);
        runs.iter()
            .map(|run| {
                let hour = run.fire_at.micros_since(at(START)) / 3_600_000_000;
                (hour, run.cause.word(), run.outcome.word())
            })
            .collect()
    };
    assert_eq!(hours("skip"), [(10, "time", "missed")]);
    assert_eq!(hours("once"), [(10, "catch_up", "enqueued")]);
    let all = [8, 9, 10].map(|hour| (hour, "catch_up", "enqueued"));
    assert_eq!(hours("all"), all);
    // From then on it is as ever.
    pass(&world, &mut ticker, 1_800, 600).await;
    for policy in Missed::WORDS {
        assert_eq!(hours(policy).last(), Some(&(11, "time", "enqueued")));
    }
    assert_eq!(world.tasks().len(), 1 + 2 + 4);
}

#[tokio::test]
async fn a_clock_that_goes_back_fires_nothing_again() {
    for history_max in [1_000, 3] {
        let world = World::new();
        let schedules = world.node_with(&world.clock, |rules| rules.history_max = history_max);
        let mut ticker = Ticker::new(schedules.clone());
        let draft = || Draft {
            overlap: word("allow"),
            ..cron("*/5 * * * *")
        };
        make(&schedules, "wall", draft()).await;
        let step = Draft {
            overlap: word("allow"),
            ..every(300)
        };
        make(&schedules, "step", step).await;
        pass(&world, &mut ticker, 7_200, 60).await;
        let count = |name: &str| {
            let named = world.tasks().into_iter().filter(|task| {
                let tag = task.metadata.as_deref().expect("metadata");
                tag.contains(&format!("\"{name}\""))
            });
            named.count()
        };
        assert_eq!((count("wall"), count("step")), (24, 24));
        world.clock.jump_seconds(-3_600);
        pass(&world, &mut ticker, 3_540, 60).await;
        assert_eq!(count("wall"), 24, "each wall time fires once");
        assert!(
            count("step") >= 34,
            "what counts seconds goes on: {}",
            count("step")
        );
        pass(&world, &mut ticker, 60 + 600, 60).await;
        assert_eq!(count("wall"), 26, "it goes on where it was");
        // Also when the process was down when the clock was set back.
        world.clock.jump_seconds(-1_800);
        let mut ticker = Ticker::new(schedules.clone());
        pass(&world, &mut ticker, 1_740, 60).await;
        assert_eq!(count("wall"), 26);
        pass(&world, &mut ticker, 360, 60).await;
        assert_eq!(count("wall"), 27);
    }
}

#[tokio::test]
async fn a_clock_that_goes_forward_fires_by_the_missed_policy() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    for policy in Missed::WORDS {
        let draft = Draft {
            missed: word(policy),
            overlap: word("allow"),
            ..cron("*/5 * * * *")
        };
        make(&schedules, policy, draft).await;
    }
    pass(&world, &mut ticker, 420, 60).await;
    world.clock.jump_seconds(3_600);
    ticker.step().await.expect("a look");
    let count = |name: &str, outcome| {
        let history = world.history(name);
        history.iter().filter(|(_, was)| *was == outcome).count()
    };
    assert_eq!(count("skip", RunOutcome::Enqueued), 1);
    assert_eq!(count("skip", RunOutcome::Missed), 1);
    assert_eq!(count("once", RunOutcome::Enqueued), 2);
    assert_eq!(count("all", RunOutcome::Enqueued), 1 + 10);
}

#[tokio::test]
async fn a_clock_that_was_years_ahead_leaves_nothing_stuck() {
    let world = World::new();
    let schedules = world.node_with(&world.clock, |rules| rules.history_max = 2);
    let mut ticker = Ticker::new(schedules.clone());
    let allowed = |draft: Draft| Draft {
        overlap: word("allow"),
        ..draft
    };
    make(&schedules, "wall", allowed(cron("0 * * * *"))).await;
    make(&schedules, "step", allowed(every(600))).await;
    pass(&world, &mut ticker, 3_600, 600).await;
    let years = 70 * 31_536_000;
    world.clock.jump_seconds(years);
    // Long enough there that the history holds nothing else.
    pass(&world, &mut ticker, 5 * 3_600, 600).await;
    world.clock.jump_seconds(-years);
    let before = world.tasks().len();
    pass(&world, &mut ticker, 3_600, 600).await;
    let made = world.tasks().len() - before;
    assert!(
        (6..=7).contains(&made),
        "one of each hour, six of ten minutes: {made}"
    );
}

#[tokio::test]
async fn two_nodes_with_two_clocks_fire_each_time_once() {
    let world = World::new();
    let other_clock = Clock::manual(at(START).plus_seconds(2));
    let (one, two) = (world.node(), world.node_with(&other_clock, |_| ()));
    let allowed = Draft {
        overlap: word("allow"),
        missed: word("all"),
        ..cron("*/2 * * * * *")
    };
    make(&one, "s", allowed).await;
    let (mut first, mut second) = (Ticker::new(one), Ticker::new(two));
    for round in 0..120_u64 {
        world.clock.advance(Duration::from_secs(1));
        other_clock.advance(Duration::from_secs(1));
        if round == 40 {
            other_clock.jump_seconds(-30);
        }
        let (a, b) = tokio::join!(first.step(), second.step());
        a.expect("a look");
        b.expect("a look");
    }
    let runs = world.runs("s");
    let tasks = world.tasks();
    assert_eq!(runs.len(), tasks.len());
    let mut seen: Vec<_> = tasks.iter().map(|task| task.metadata.clone()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), tasks.len(), "no fire has two tasks");
    let seconds: Vec<i64> = world
        .history("s")
        .iter()
        .map(|(second, _)| *second)
        .collect();
    let expected: Vec<i64> = (1..=60).map(|number| number * 2).collect();
    assert_eq!(&seconds[..60], expected, "and none was left out");
}

#[tokio::test]
async fn paused_it_rests_and_resumed_it_goes_on_from_then() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    let made = schedules.create("s".to_owned(), every(60), true).await;
    assert_eq!(made.expect("made").next_run_at, None);
    pass(&world, &mut ticker, 300, 60).await;
    assert!(world.runs("s").is_empty());
    let resumed = schedules.set_paused("s".to_owned(), false).await;
    let next = resumed.expect("resumed").next_run_at;
    assert_eq!(next, Some(at("2026-11-11T00:06:00Z")));
    pass(&world, &mut ticker, 60, 60).await;
    assert_eq!(world.runs("s").len(), 1);
    // Other times begin anew; other policies leave the time as it is.
    world.clock.advance(Duration::from_secs(30));
    let policy = Draft {
        overlap: word("allow"),
        ..Draft::default()
    };
    let edited = schedules
        .edit("s".to_owned(), policy)
        .await
        .expect("edited");
    assert_eq!(edited.next_run_at, Some(at("2026-11-11T00:07:00Z")));
    let times = Draft {
        cron: word("0 9 * * *"),
        time_zone: word("Asia/Shanghai"),
        ..Draft::default()
    };
    let edited = schedules.edit("s".to_owned(), times).await.expect("edited");
    assert_eq!(edited.next_run_at, Some(at("2026-11-11T01:00:00Z")));
    assert_eq!(edited.spec.overlap, Overlap::Allow);
}

#[tokio::test]
async fn jitter_puts_the_task_off_not_the_fire() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    let draft = Draft {
        jitter_seconds: Some(3_600),
        overlap: word("allow"),
        ..every(60)
    };
    make(&schedules, "s", draft).await;
    pass(&world, &mut ticker, 1_200, 60).await;
    let runs = world.runs("s");
    assert_eq!(runs.len(), 20);
    let mut waits: Vec<i64> = Vec::new();
    for (run, task) in runs.iter().zip(world.tasks()) {
        let wait = task.run_at.micros_since(run.fire_at);
        assert!((0..=3_600_000_000).contains(&wait), "{wait}");
        waits.push(wait);
    }
    waits.dedup();
    assert!(waits.len() > 10, "they differ: {waits:?}");
}

#[tokio::test]
async fn what_can_not_be_read_or_made_is_said_and_holds_up_nobody() {
    let world = World::new();
    let schedules = world.node();
    let mut ticker = Ticker::new(schedules.clone());
    for name in ["broken", "refused", "well"] {
        make(&schedules, name, every(60)).await;
    }
    let tidy = Draft {
        task: word("tidy"),
        queue: word("maintenance"),
        args: word(r#"{"room": 1}"#),
        ..Draft::default()
    };
    schedules
        .edit("refused".to_owned(), tidy)
        .await
        .expect("edited");
    world
        .store
        .write::<_, StoreError>(|tx| sql::spoil(tx, "broken"))
        .await
        .expect("spoilt");
    // A version that does not know the task.
    let tasks = Tasks::new(
        world.store.clone(),
        world.clock.clone(),
        Arc::default(),
        world.metrics.clone(),
        Registry::builder().build(),
    );
    let other = Schedules::new(&tasks, Arc::default(), world.metrics.clone());
    let mut old = Ticker::new(other);
    pass(&world, &mut old, 60, 60).await;
    assert_eq!(world.history("well"), [(60, RunOutcome::Enqueued)]);
    assert_eq!(world.history("refused"), [(60, RunOutcome::Refused)]);
    let why = world.runs("refused")[0].error.clone().expect("why");
    assert!(why.contains("there is no task tidy"), "{why}");
    let (broken, _) = schedules.get("broken".to_owned()).await.expect("there");
    assert_eq!(broken.next_run_at, None);
    assert!(broken.error.expect("why").contains("Mars/Olympus"));
    let mended = Draft {
        time_zone: word("UTC"),
        ..Draft::default()
    };
    let mended = schedules
        .edit("broken".to_owned(), mended)
        .await
        .expect("mended");
    assert_eq!(mended.error, None);
    pass(&world, &mut ticker, 60, 60).await;
    assert_eq!(world.runs("broken").len(), 1);
}

#[tokio::test]
async fn what_is_declared_is_there_and_keeps_what_somebody_changed() {
    let world = World::new();
    let built_ins = [
        BuiltIn::of::<Tidy>(When::Every(300)),
        BuiltIn::of::<TidyAttic>(When::Cron("0 1 * * *".to_owned())).soon_after_start(60),
    ];
    let entry = |text: &str| config::ScheduleEntry {
        cron: word(text),
        task: word("count"),
        ..config::ScheduleEntry::default()
    };
    let with = |entries: &[(&str, config::ScheduleEntry)]| {
        let entries: BTreeMap<String, config::ScheduleEntry> = entries
            .iter()
            .map(|(name, entry)| ((*name).to_owned(), entry.clone()))
            .collect();
        world.node_with(&world.clock, |rules| rules.entries = entries)
    };
    let names = || -> Vec<String> {
        let all = world
            .store
            .read_blocking(|tx| list(tx, "", 100))
            .expect("all");
        all.into_iter().map(|(schedule, _)| schedule.name).collect()
    };
    let schedules = with(&[("nightly", entry("0 2 * * *"))]);
    schedules.declare(&built_ins).await.expect("declared");
    assert_eq!(names(), ["nightly", "tidy", "tidy_attic"]);
    let get = |name: &str| {
        let name = name.to_owned();
        let found = world.store.read_blocking(|tx| get(tx, &name));
        found.expect("there")
    };
    assert_eq!(
        get("tidy_attic").next_run_at,
        Some(at("2026-11-11T00:01:00Z"))
    );
    let basis = schedules.basis().clone();
    let declared = declarations(&basis, world.clock.now(), &built_ins).expect("sound");
    let differ = |declared: &[Declared]| {
        let now = world.clock.now();
        let found = world
            .store
            .read_blocking(|tx| declared::differences(tx, now, declared));
        found.expect("read").len()
    };
    assert_eq!(differ(&declared), 0, "nothing is written at the next start");
    // Neither kind is removed by hand; one is re-timed here, the other in the settings.
    for name in ["nightly", "tidy"] {
        let removed = schedules.remove(name.to_owned()).await;
        assert!(matches!(removed, Err(ScheduleError::Fixed(..))), "{name}");
    }
    let sooner = Draft {
        interval_seconds: Some(60),
        ..Draft::default()
    };
    let refused = schedules.edit("nightly".to_owned(), sooner.clone()).await;
    assert!(matches!(refused, Err(ScheduleError::Fixed(..))));
    let refused = schedules.edit("tidy".to_owned(), every(60)).await;
    assert!(
        matches!(refused, Err(ScheduleError::Invalid(_))),
        "its task is its own"
    );
    schedules
        .edit("tidy".to_owned(), sooner)
        .await
        .expect("re-timed");
    schedules
        .set_paused("nightly".to_owned(), true)
        .await
        .expect("paused");
    // The next start, with other settings: a built-in one takes its times from them as well.
    let attic = config::ScheduleEntry {
        task: None,
        ..entry("0 3 * * *")
    };
    let schedules = with(&[("nightly", entry("0 4 * * *")), ("tidy_attic", attic)]);
    schedules.declare(&built_ins).await.expect("declared");
    assert_eq!(
        get("tidy").spec.when,
        When::Every(60),
        "as somebody wanted it"
    );
    assert_eq!(get("nightly").spec.when, When::Cron("0 4 * * *".to_owned()));
    assert!(get("nightly").paused_at.is_some(), "still paused");
    assert_eq!(
        get("tidy_attic").spec.when,
        When::Cron("0 3 * * *".to_owned())
    );
    assert_eq!(get("tidy_attic").source, Source::BuiltIn);
    // What is declared no more is gone.
    let schedules = with(&[]);
    schedules.declare(&built_ins[..1]).await.expect("declared");
    assert_eq!(names(), ["tidy"]);
    // What can't be is told with its name.
    for (name, wrong, words) in [
        (
            "x",
            entry("0 25 * * *"),
            "schedules.entries.x: cron the hour `25`",
        ),
        ("a b", entry("@daily"), "name must be"),
        ("tidy", entry("@daily"), "task can't be set"),
        ("x", config::ScheduleEntry::default(), "task is required"),
    ] {
        let error = with(&[(name, wrong)]).declare(&built_ins).await;
        let error = error.expect_err(name).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn there_are_only_so_many_schedules_and_so_much_history() {
    let world = World::new();
    let schedules = world.node_with(&world.clock, |rules| {
        rules.schedules_max = 2;
        rules.history_max = 5;
    });
    let mut ticker = Ticker::new(schedules.clone());
    make(&schedules, "a", every(10)).await;
    make(&schedules, "b", every(10)).await;
    let third = schedules.create("c".to_owned(), every(10), false).await;
    assert!(matches!(third, Err(ScheduleError::TooMany(2))));
    let again = schedules.create("a".to_owned(), every(10), false).await;
    assert!(matches!(again, Err(ScheduleError::Exists(_))));
    pass(&world, &mut ticker, 200, 10).await;
    assert_eq!(world.runs("a").len(), 5);
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Jump(i64),
    Look(usize),
    Restart(usize),
    Finish,
    ByHand(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..200u64).prop_map(Step::Pass),
        1 => (-4_000..4_000i64).prop_map(Step::Jump),
        8 => (0..2usize).prop_map(Step::Look),
        1 => (0..2usize).prop_map(Step::Restart),
        2 => Just(Step::Finish),
        1 => (0..3usize).prop_map(Step::ByHand),
    ]
}

const NAMES: [&str; 3] = ["wall", "step", "queued"];

/// Whatever happens, a fire has one run and one task, at a time that its schedule names.
fn hold_to_the_rules(world: &World) {
    let tasks = world.tasks();
    let mut by_tag: BTreeMap<String, usize> = BTreeMap::new();
    for task in &tasks {
        *by_tag
            .entry(task.metadata.clone().expect("metadata"))
            .or_default() += 1;
    }
    assert!(by_tag.values().all(|count| *count == 1), "{by_tag:?}");
    let known: BTreeMap<TaskId, &Task> = tasks.iter().map(|task| (task.id, task)).collect();
    let mut with_task = 0;
    for name in NAMES {
        for run in world.runs(name) {
            let has_task = match run.outcome {
                RunOutcome::Skipped | RunOutcome::Missed | RunOutcome::Refused => false,
                RunOutcome::Enqueued
                | RunOutcome::Completed
                | RunOutcome::Cancelled
                | RunOutcome::Discarded
                | RunOutcome::Removed => true,
            };
            assert_eq!(run.task_id.is_some(), has_task, "{run:?}");
            with_task += usize::from(has_task);
            assert!(
                run.task_id.is_none_or(|id| known.contains_key(&id)),
                "{run:?}"
            );
            let is_whole = run.fire_at.0 % 1_000_000 == 0;
            assert!(run.cause != Cause::Hand || !is_whole, "{run:?}");
            if name == "wall" && run.cause != Cause::Hand {
                assert_eq!(run.fire_at.0 % 300_000_000, 0, "{run:?}");
            }
        }
        if name != "wall" {
            // At most one unfinished task, or one and one that waits for it.
            let open = world
                .runs(name)
                .iter()
                .filter(|run| run.outcome == RunOutcome::Enqueued)
                .count();
            assert!(
                open <= if name == "queued" { 2 } else { 1 },
                "{name}: {open}"
            );
        }
    }
    assert_eq!(with_task, tasks.len(), "no task without its run");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_history_doubles_a_fire(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let world = World::new();
        runtime.block_on(async {
            let nodes = [world.node(), world.node()];
            let mut tickers = nodes.clone().map(Ticker::new);
            let all = Draft { overlap: word("allow"), missed: word("all"), ..cron("*/5 * * * *") };
            make(&nodes[0], "wall", all).await;
            make(&nodes[0], "step", every(90)).await;
            let queued = Draft { overlap: word("queue_one"), missed: word("all"), ..every(60) };
            make(&nodes[0], "queued", queued).await;
            for step in steps {
                match step {
                    Step::Pass(seconds) => world.clock.advance(Duration::from_secs(seconds)),
                    Step::Jump(seconds) => world.clock.jump_seconds(seconds),
                    Step::Look(node) => {
                        tickers[node].step().await.expect("a look");
                    }
                    Step::Restart(node) => tickers[node] = Ticker::new(nodes[node].clone()),
                    Step::Finish => world.finish_all().await,
                    Step::ByHand(name) => {
                        let made = nodes[0]
                            .change(move |tx, now, basis| run(tx, now, basis, NAMES[name]))
                            .await;
                        assert!(matches!(made, Ok(_) | Err(ScheduleError::Unfinished(_))));
                    }
                }
            }
        });
        hold_to_the_rules(&world);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nudge_alone_is_enough() {
    let world = World::new();
    // By its own time it would look again in an hour.
    let schedules = world.node_with(&world.clock, |rules| rules.poll_interval_ms = 3_600_000);
    let draft = Draft {
        overlap: word("allow"),
        ..every(3_600)
    };
    make(&schedules, "s", draft).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(Ticker::new(schedules.clone()).run(stopped));
    for count in 1..=2 {
        // Nothing tells it that the clock was moved.
        world.clock.advance(Duration::from_secs(3_600));
        let fired = async {
            while world.runs("s").len() < count {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), fired).await;
        waited.expect("it was nudged");
    }
    stop.send_replace(true);
    running.await.expect("it ends");
}
