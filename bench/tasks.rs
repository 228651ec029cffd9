//! Tasks: enqueued over HTTP, run in process, pushed and fetched over the Faktory port, fetched over
//! HTTP; alone, and beside a million tasks that wait; and a start after a crash with those.
//!
//! `cargo bench --bench tasks`, with `-- --quick`, `-- --tenfold` (ten million wait), `-- --json`, or
//! words of the wanted figures' names: `enqueue`, `in process`, `faktory`, `fetch and ack`, `batches`, `latency`,
//! and `waiting` for those beside waiting tasks.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use onrush::clock::{self, Clock, Stopwatch, Timestamp};
use rusqlite::{Connection, params};

#[path = "support/data.rs"]
mod data;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/faktory.rs"]
mod faktory;
#[path = "support/load.rs"]
mod load;
#[path = "support/metrics.rs"]
mod metrics;
mod support;
#[path = "support/talk.rs"]
mod talk;

use data::Data;
use load::{Length, request};
use support::{Bar, Options, Process, Report, binary, tell};
use talk::{Next, Talked};

const ROUNDS: usize = 5;
/// Tasks of one request when many are made.
const AT_ONCE: usize = 1_000;
/// Where those wait that are only to be there.
const READY_QUEUE: &str = "waiting";
const LATER_QUEUE: &str = "waiting-for-tomorrow";
/// The built-in task that does nothing: it writes down who was seen since the last time, and between
/// two requests that are not the bench's own nobody was.
const NO_OP: &str = "sync_user_activity";
const NO_OP_QUEUE: &str = "maintenance";
/// Tasks that a consumer fetches and acknowledges at once.
const BATCH: usize = 32;
/// Consumers that speak plain HTTP.
const CONSUMERS: usize = 16;
/// Between two looks at something that takes its time.
const LOOK: Duration = Duration::from_millis(20);
/// Longest that is waited for something.
const PATIENCE_SECONDS: f64 = 300.0;

fn main() -> ExitCode {
    support::run(measure)
}

fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let binary = binary()?;
    let alone = Subject::new(&binary)?;
    let count = match (options.quick, options.tenfold) {
        (true, _) => 100_000,
        (false, false) => 1_000_000,
        (false, true) => 10_000_000,
    };
    let beside = if options.wants("waiting tasks") {
        tell(&format!("enqueuing {count} tasks that are to wait"));
        let mut subject = Subject::new(&binary)?;
        fill(report, &mut subject, count)?;
        Some(subject)
    } else {
        None
    };
    let mut bench = Bench {
        options,
        report,
        alone,
        beside,
    };
    for producers in [1, 16, 64] {
        let what = match producers {
            1 => "enqueue, 1 producer".to_owned(),
            more => format!("enqueue, {more} producers"),
        };
        if options.wants(&what) {
            bench.enqueue(&what, producers)?;
        }
    }
    if options.wants("in process") {
        bench.in_process()?;
    }
    for pairs in [1, 16, 64] {
        if options.wants(&format!("faktory, {pairs} + {pairs}")) {
            bench.end_to_end(pairs)?;
        }
    }
    if options.wants("fetch and ack, faktory") {
        bench.fetch_and_ack(false)?;
    }
    if options.wants("fetch and ack, http") {
        bench.fetch_and_ack(true)?;
    }
    let what = format!("fetch and ack in batches of {BATCH}, http");
    if options.wants(&what) {
        bench.in_batches(&what)?;
    }
    if options.wants("latency") {
        bench.latency()?;
    }
    let Bench { alone, beside, .. } = bench;
    report.add("after all of it", "RSS MB", alone.rss_mb()?, Bar::None);
    alone.server.stop()?;
    if let Some(subject) = beside {
        restart(options, report, &binary, subject)?;
    }
    Ok(())
}

/// What something cost the server.
struct Cost {
    cpu_seconds: f64,
    /// Writes that shared a commit.
    batch: f64,
}

impl Cost {
    /// Processor µs for each of so many.
    fn micros(&self, count: usize) -> f64 {
        self.cpu_seconds * 1e6 / count as f64
    }
}

/// A shop with a server that also speaks Faktory.
struct Subject {
    data: Data,
    server: Process,
    faktory: SocketAddr,
    /// Tasks that wait in it all the time.
    waiting: usize,
}

/// Starts a server with the Faktory port; answers where that is.
fn serve(binary: &Path, data: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    // The port is free again when the listener is gone, and nobody else is told of it.
    let faktory = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let settings = [
        ("ONRUSH_FAKTORY__ENABLED", "true".to_owned()),
        ("ONRUSH_FAKTORY__PORT", faktory.port().to_string()),
    ];
    Ok((Process::serve(binary, data, &settings)?, faktory))
}

impl Subject {
    fn new(binary: &Path) -> anyhow::Result<Self> {
        let data = Data::new()?;
        let (server, faktory) = serve(binary, &data.path)?;
        Ok(Self {
            data,
            server,
            faktory,
            waiting: 0,
        })
    }

    /// Starts its server again, which has ended, and has a worker do one task; answers since when.
    fn start_again(
        &mut self,
        report: &mut Report,
        binary: &Path,
        what: &str,
        ready_bar: Bar,
    ) -> anyhow::Result<Stopwatch> {
        let watch = Stopwatch::start();
        (self.server, self.faktory) = serve(binary, &self.data.path)?;
        let (status, body) = self.server.call("GET", "/readyz", "", "")?;
        let ready_ms = watch.elapsed_seconds() * 1e3;
        ensure!(status == 200, "not ready: {status} {body}");
        faktory::run(self.faktory, READY_QUEUE, 0, &[], 1, 1)?;
        let first_ms = watch.elapsed_seconds() * 1e3;
        report.add(what, "start to ready ms", ready_ms, ready_bar);
        report.add(what, "start to first task done ms", first_ms, Bar::None);
        Ok(watch)
    }

    /// How often the delivery index failed and was made anew since the start.
    fn rebuilds(&self) -> anyhow::Result<f64> {
        let [count] = metrics::values(&self.server, ["task_index_rebuilds_total"])?;
        count.context("rebuilds are not counted")
    }

    fn rss_mb(&self) -> anyhow::Result<f64> {
        self.server.memory_mb("VmRSS")
    }

    fn call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<serde_json::Value> {
        let (status, body) = self.server.call(method, path, &self.data.key, body)?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {body}"
        );
        Ok(serde_json::from_str(&body)?)
    }

    /// Tasks that can be started, of one queue, and those of all queues that wait for their time.
    fn deliverable(&self, queue: &str) -> anyhow::Result<(usize, usize)> {
        let queues = self.call("GET", "/api/v1/queues", "")?;
        let count = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as usize;
        let ready = queues["items"]
            .as_array()
            .context("no queues")?
            .iter()
            .find(|item| item["name"] == queue)
            .map_or(0, |item| count(&item["ready"]));
        Ok((ready, count(&queues["scheduled"])))
    }

    /// Enqueues tasks in requests of [`AT_ONCE`], two at a time.
    fn enqueue_many(&self, task: &serde_json::Value, count: usize) -> anyhow::Result<()> {
        let body = serde_json::json!({"tasks": vec![task; AT_ONCE]}).to_string();
        let left = AtomicUsize::new(count.div_ceil(AT_ONCE));
        let take = |left: usize| left.checked_sub(1);
        let one = || -> anyhow::Result<()> {
            while left
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
                .is_ok()
            {
                self.call("POST", "/api/v1/tasks/batch", &body)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(one);
            one()?;
            other.join().ok().context("it ended in a panic")?
        })
    }

    /// What `run` cost the server, and what came of it.
    fn costed<T>(&self, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Cost)> {
        let (writes, commits) = metrics::commits(&self.server)?;
        let before = self.server.cpu_seconds()?;
        let came = run()?;
        let cpu_seconds = self.server.cpu_seconds()? - before;
        let (writes_now, commits_now) = metrics::commits(&self.server)?;
        let batch = (writes_now - writes) / (commits_now - commits).max(1.0);
        Ok((came, Cost { cpu_seconds, batch }))
    }

    /// Fetches and acknowledges what waits in a queue, by 16 consumers over the Faktory port.
    fn drain(&self, queue: &str, count: usize) -> anyhow::Result<Talked> {
        faktory::run(self.faktory, queue, 0, &[], 16, count)
    }
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    while !is_so()? {
        ensure!(
            watch.elapsed_seconds() < PATIENCE_SECONDS,
            "{what} took longer than {PATIENCE_SECONDS} s"
        );
        std::thread::sleep(LOOK);
    }
    Ok(watch.elapsed_seconds())
}

/// Half of the tasks are ready, half wait for tomorrow.
fn fill(report: &mut Report, subject: &mut Subject, count: usize) -> anyhow::Result<()> {
    let what = "waiting tasks";
    let half = count / 2;
    let ready = serde_json::json!({"name": "resize", "queue": READY_QUEUE, "args": {"image": 7}});
    let later = serde_json::json!({
        "name": "resize", "queue": LATER_QUEUE, "args": {"image": 7}, "countdown_seconds": 86_400,
    });
    let watch = Stopwatch::start();
    let (_, cost) = subject.costed(|| {
        subject.enqueue_many(&ready, half)?;
        subject.enqueue_many(&later, half)
    })?;
    let rate = 2.0 * half as f64 / watch.elapsed_seconds();
    subject.waiting = 2 * half;
    report.add(what, "tasks", subject.waiting as f64, Bar::None);
    report.add(what, "enqueued in 1,000s: /s", rate, Bar::None);
    let micros = cost.micros(2 * half);
    report.add(what, "enqueued in 1,000s: µs", micros, Bar::None);
    let behind = until("indexing", || {
        Ok(subject.deliverable(READY_QUEUE)? == (half, half))
    })?;
    report.add(what, "indexed after s", behind, Bar::None);
    report.add(what, "index failures", subject.rebuilds()?, Bar::None);
    report.add(what, "RSS MB", subject.rss_mb()?, Bar::None);
    let data = &subject.data.path;
    for (name, path) in [
        ("database MB", "onrush.db"),
        ("WAL MB", "onrush.db-wal"),
        ("queue/ MB", "queue"),
    ] {
        report.add(what, name, disk_mb(&data.join(path))?, Bar::None);
    }
    Ok(())
}

/// What a file, or all in a folder, takes on disk; nothing where there is none.
fn disk_mb(path: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let Ok(about) = std::fs::metadata(path) else {
        return Ok(0.0);
    };
    let mut all = about.blocks() as f64 * 512.0 / 1e6;
    if about.is_dir() {
        for entry in std::fs::read_dir(path)? {
            all += disk_mb(&entry?.path())?;
        }
    }
    Ok(all)
}

/// Killed, and started again with all that waits.
fn restart(
    options: &Options,
    report: &mut Report,
    binary: &Path,
    mut subject: Subject,
) -> anyhow::Result<()> {
    let half = subject.waiting / 2;
    let what = "waiting tasks, killed";
    for round in 1..=if options.quick { 1 } else { 3 } {
        tell(&format!("{what}, round {round}"));
        subject.server.kill()?;
        let watch = subject.start_again(report, binary, what, Bar::Most(300.0, 120.0))?;
        until("rebuilding the index", || {
            let (ready, scheduled) = subject.deliverable(READY_QUEUE)?;
            // One was done in each round.
            Ok(ready + round >= half && scheduled >= half)
        })?;
        let all = watch.elapsed_seconds();
        let peak = subject.server.memory_mb("VmHWM")?;
        report.add(what, "start to all deliverable s", all, Bar::Most(5.0, 5.0));
        report.add(what, "peak RSS MB", peak, Bar::None);
        report.add(what, "index failures", subject.rebuilds()?, Bar::None);
    }
    let what = "waiting tasks, stopped in order";
    tell(what);
    subject.server.terminate()?;
    subject.start_again(report, binary, what, Bar::Most(150.0, 25.0))?;
    subject.server.stop()
}

/// One round of a figure.
struct Round {
    /// What a task took, in any unit; it is compared beside waiting tasks, ...
    time: f64,
    /// ... and so is the processor time of the server.
    micros: f64,
    /// `(unit, value, bar)`.
    values: Vec<(&'static str, f64, Bar)>,
}

/// What all measurements need.
struct Bench<'a> {
    options: &'a Options,
    report: &'a mut Report,
    alone: Subject,
    beside: Option<Subject>,
}

impl Bench<'_> {
    fn rounds(&self) -> usize {
        if self.options.quick { 3 } else { ROUNDS }
    }

    /// So many tasks of a round, fewer when it is to be quick.
    fn count(&self, count: usize) -> usize {
        if self.options.quick { count / 4 } else { count }
    }

    /// Rounds alone, each followed by one beside waiting tasks.
    fn alternate(
        &mut self,
        what: &str,
        mut round: impl FnMut(&Subject, usize) -> anyhow::Result<Round>,
    ) -> anyhow::Result<()> {
        tell(what);
        for number in 0..self.rounds() {
            let alone = round(&self.alone, number).with_context(|| what.to_owned())?;
            for (unit, value, bar) in &alone.values {
                self.report.add(what, unit, *value, *bar);
            }
            let Some(subject) = &self.beside else {
                continue;
            };
            let name = format!("{what}, beside waiting tasks");
            let beside = round(subject, number).with_context(|| name.clone())?;
            for (unit, ratio) in [
                ("time of alone", beside.time / alone.time),
                ("µs of alone", beside.micros / alone.micros),
            ] {
                self.report.add(&name, unit, ratio, Bar::Most(1.3, 1.1));
            }
            for (unit, value, _) in &beside.values {
                self.report.add(&name, unit, *value, Bar::None);
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, what: &str, producers: usize) -> anyhow::Result<()> {
        let queue = format!("enqueue-{producers}");
        let body = serde_json::json!({"name": "resize", "queue": queue, "args": {"image": 7}});
        let body = body.to_string();
        let length = Length::Seconds(if self.options.quick { 0.4 } else { 1.5 });
        let mut rows = TaskRows::new(Data::new()?)?;
        let (ratio_bar, micros_bar) = match producers {
            64 => (Bar::Least(0.35, 0.35), Bar::Most(100.0, 100.0)),
            _ => (Bar::None, Bar::None),
        };
        self.alternate(what, |subject, _| {
            let requests = [request("POST", "/api/v1/tasks", &subject.data.key, &body)];
            // Until its connections, statements and files are as they are in a server that runs.
            let warm = Length::Requests(200);
            let seen = load::run(subject.server.address, 16, warm, &requests, |_| true)?;
            subject.drain(&queue, seen.answered)?;
            let (seen, cost) = subject.costed(|| {
                let address = subject.server.address;
                load::run(address, producers, length, &requests, |answer| {
                    answer.status == 202
                })
            })?;
            if let Some(first) = &seen.first_wrong {
                bail!("{} wrong answers, first {first}", seen.wrong);
            }
            ensure!(seen.broken == 0, "{} connections broke", seen.broken);
            let floor = rows.write(seen.answered, (cost.batch.round() as usize).max(1))?;
            // Every answered task must be there; and the next round shall find none.
            subject.drain(&queue, seen.answered)?;
            let micros = cost.micros(seen.answered);
            let own = seen.cpu_seconds * 1e6 / seen.answered as f64;
            Ok(Round {
                time: 1.0 / seen.rate(),
                micros,
                values: vec![
                    ("of S", seen.rate() / floor, ratio_bar),
                    ("µs", micros, micros_bar),
                    ("/s", seen.rate(), Bar::None),
                    ("p50 ms", seen.quantile_ms(0.5), Bar::None),
                    ("p99 ms", seen.quantile_ms(0.99), Bar::None),
                    ("writes a commit", cost.batch, Bar::None),
                    ("S: /s", floor, Bar::None),
                    ("load: µs", own, Bar::None),
                ],
            })
        })
    }

    /// The pool runs [`NO_OP`]: first those that had been enqueued while their queue was paused, then
    /// as they are enqueued.
    fn in_process(&mut self) -> anyhow::Result<()> {
        let count = self.count(40_000);
        let done = format!("tasks_total{{state=\"completed\",task=\"{NO_OP}\"}}");
        let completed = |subject: &Subject| -> anyhow::Result<usize> {
            let [count] = metrics::values(&subject.server, [done.as_str()])?;
            Ok(count.unwrap_or(0.0) as usize)
        };
        let pause = format!("/api/v1/queues/{NO_OP_QUEUE}/pause");
        let resume = format!("/api/v1/queues/{NO_OP_QUEUE}/resume");
        let task = serde_json::json!({"name": NO_OP});
        self.alternate("in process, enqueued before", |subject, _| {
            subject.call("POST", &pause, "")?;
            let (ready, _) = subject.deliverable(NO_OP_QUEUE)?;
            subject.enqueue_many(&task, count)?;
            until("indexing", || {
                Ok(subject.deliverable(NO_OP_QUEUE)?.0 >= ready + count)
            })?;
            let target = completed(subject)? + count;
            let watch = Stopwatch::start();
            let (_, cost) = subject.costed(|| {
                subject.call("POST", &resume, "")?;
                until("running", || Ok(completed(subject)? >= target))
            })?;
            Ok(in_process_round(count, watch.elapsed_seconds(), &cost))
        })?;
        self.alternate("in process, enqueued meanwhile", |subject, _| {
            let target = completed(subject)? + count;
            let watch = Stopwatch::start();
            let (_, cost) = subject.costed(|| {
                subject.enqueue_many(&task, count)?;
                until("running", || Ok(completed(subject)? >= target))
            })?;
            Ok(in_process_round(count, watch.elapsed_seconds(), &cost))
        })
    }

    fn end_to_end(&mut self, pairs: usize) -> anyhow::Result<()> {
        let count = self.count(match pairs {
            1 => 2_000,
            _ => 20_000,
        });
        let rate_bar = match pairs {
            16 => Bar::Least(8_000.0, 20_000.0),
            _ => Bar::None,
        };
        let queue = format!("faktory-{pairs}");
        self.alternate(&format!("faktory, {pairs} + {pairs}"), |subject, _| {
            let pushes: Vec<_> = (0..count).map(|_| faktory::push(&queue)).collect();
            let address = subject.faktory;
            let (talked, cost) =
                subject.costed(|| faktory::run(address, &queue, pairs, &pushes, pairs, count))?;
            Ok(talked_round(count, &talked, &cost, rate_bar))
        })
    }

    fn fetch_and_ack(&mut self, is_http: bool) -> anyhow::Result<()> {
        let count = self.count(20_000);
        let (name, rate_bar) = match is_http {
            true => ("http", Bar::None),
            false => ("faktory", Bar::Least(18_000.0, 37_000.0)),
        };
        let queue = format!("ready-{name}");
        let task = serde_json::json!({"name": "resize", "queue": queue, "args": {"image": 7}});
        self.alternate(&format!("fetch and ack, {name}"), |subject, _| {
            subject.enqueue_many(&task, count)?;
            until("indexing", || Ok(subject.deliverable(&queue)?.0 >= count))?;
            let (talked, cost) = subject.costed(|| match is_http {
                true => over_http(subject, &queue, count),
                false => subject.drain(&queue, count),
            })?;
            Ok(talked_round(count, &talked, &cost, rate_bar))
        })
    }

    /// As [`Bench::fetch_and_ack`] over HTTP, many tasks to a request.
    fn in_batches(&mut self, what: &str) -> anyhow::Result<()> {
        let count = self.count(40_000);
        let queue = "ready-batches";
        let task = serde_json::json!({"name": "resize", "queue": queue, "args": {"image": 7}});
        self.alternate(what, |subject, _| {
            subject.enqueue_many(&task, count)?;
            until("indexing", || Ok(subject.deliverable(queue)?.0 >= count))?;
            let (talked, cost) = subject.costed(|| batches_over_http(subject, queue, count))?;
            Ok(talked_round(count, &talked, &cost, Bar::None))
        })
    }

    /// From the moment a lone client sends `POST /tasks` until a worker that waits has the task, by the
    /// client's own clock: one commit lies between, for the task is handed over with its enqueue.
    fn latency(&mut self) -> anyhow::Result<()> {
        let count = self.count(320);
        let queue = "latency";
        let body = serde_json::json!({"name": "resize", "queue": queue, "args": {"image": 7}});
        let body = body.to_string();
        self.alternate("latency", |subject, _| {
            let syncs = disk::syncs_ms(count)?;
            let f = syncs[syncs.len() / 2];
            let mut producer = TcpStream::connect(subject.server.address)?;
            producer.set_nodelay(true)?;
            let post = request("POST", "/api/v1/tasks", &subject.data.key, &body);
            let mut worker = faktory::connect(subject.faktory, Some("bench-latency"))?;
            let mut lines = BufReader::new(worker.try_clone()?);
            let (fetch, mut buffer) = (faktory::fetch(queue), vec![0; 4_096]);
            let mut times = Vec::with_capacity(count);
            let before = subject.server.cpu_seconds()?;
            while times.len() < count {
                worker.write_all(&fetch)?;
                // Until it waits, and nothing of the task before is under way.
                std::thread::sleep(LOOK / 4);
                let watch = Stopwatch::start();
                producer.write_all(&post)?;
                let size = faktory::line(&mut lines)?;
                let job = faktory::line(&mut lines)?;
                times.push(watch.elapsed_seconds() * 1e3);
                let jid = faktory::jid(job.as_bytes())?.with_context(|| format!("none: {size}"))?;
                let mut filled = 0;
                let status = loop {
                    let read = producer.read(&mut buffer[filled..])?;
                    ensure!(read > 0, "the server closed the producer's connection");
                    filled += read;
                    if let Some((status, ..)) = load::whole(&buffer[..filled])? {
                        break status;
                    }
                };
                ensure!(status == 202, "a task was answered {status}");
                write!(worker, "ACK {{\"jid\":\"{jid}\"}}\r\n")?;
                let answer = faktory::line(&mut lines)?;
                ensure!(answer == "+OK", "an ACK was answered {answer}");
            }
            let spent = subject.server.cpu_seconds()? - before;
            times.sort_by(f64::total_cmp);
            let (p50, p99) = (times[count / 2], times[count * 99 / 100]);
            Ok(Round {
                time: p50,
                micros: spent * 1e6 / count as f64,
                values: vec![
                    // F differs from round to round, so each round is held against its own.
                    (
                        "of 2 F + 0.5 ms",
                        p50 / (2.0 * f + 0.5),
                        Bar::Most(1.0, 1.0),
                    ),
                    (
                        "of 2 F + 0.3 ms",
                        p50 / (2.0 * f + 0.3),
                        Bar::Most(1.0, 1.0),
                    ),
                    ("p50 ms", p50, Bar::None),
                    ("p99 ms", p99, Bar::None),
                    ("F: p50 ms", f, Bar::None),
                ],
            })
        })
    }
}

fn in_process_round(count: usize, seconds: f64, cost: &Cost) -> Round {
    let rate = count as f64 / seconds;
    let micros = cost.micros(count);
    Round {
        time: 1.0 / rate,
        micros,
        values: vec![
            ("/s", rate, Bar::Least(15_000.0, 40_000.0)),
            ("µs", micros, Bar::None),
            ("writes a commit", cost.batch, Bar::None),
        ],
    }
}

fn talked_round(count: usize, talked: &Talked, cost: &Cost, rate_bar: Bar) -> Round {
    let micros = cost.micros(count);
    let rate = count as f64 / talked.seconds;
    let own = talked.cpu_seconds * 1e6 / count as f64;
    Round {
        time: 1.0 / rate,
        micros,
        values: vec![
            ("/s", rate, rate_bar),
            ("µs", micros, Bar::None),
            ("writes a commit", cost.batch, Bar::None),
            ("load: µs", own, Bar::None),
        ],
    }
}

/// Fetches and acknowledges what waits in a queue, by 16 consumers that speak plain HTTP.
fn over_http(subject: &Subject, queue: &str, count: usize) -> anyhow::Result<Talked> {
    let key = &subject.data.key;
    let path = format!("/api/v1/queues/{queue}/fetch");
    let fetch = request(
        "POST",
        &path,
        key,
        "{\"worker\":\"bench\",\"wait_seconds\":5}",
    );
    let streams = (0..CONSUMERS)
        .map(|_| TcpStream::connect(subject.server.address))
        .collect::<Result<Vec<_>, _>>()?;
    let mut has_task = [false; CONSUMERS];
    let (mut seen, mut done) = (HashSet::with_capacity(count), 0);
    let whole = |bytes: &[u8]| {
        let found = load::whole(bytes)?;
        Ok(found.map(|(_, start, length)| start + length))
    };
    talk::run(streams, whole, |number, answer, words| {
        if !answer.is_empty() {
            let (status, start, _) = load::whole(answer)?.context("half an answer")?;
            if std::mem::take(&mut has_task[number]) {
                ensure!(status == 204, "an ack was answered {status}");
                done += 1;
                if done == count {
                    return Ok(Next::Over);
                }
            } else {
                ensure!(status == 200, "a fetch was answered {status}");
                let body: Fetched<'_> = serde_json::from_slice(&answer[start..])?;
                if let Some(task) = body.task {
                    ensure!(
                        seen.insert(task.id.to_owned()),
                        "{} was handed out twice",
                        task.id
                    );
                    has_task[number] = true;
                    let path = format!("/api/v1/tasks/{}/ack", task.id);
                    let body = format!("{{\"attempt\":{}}}", task.attempt);
                    words.extend(request("POST", &path, key, &body));
                    return Ok(Next::Say);
                }
            }
        }
        words.extend_from_slice(&fetch);
        Ok(Next::Say)
    })
}

/// [`over_http`] with [`BATCH`] tasks to a request.
fn batches_over_http(subject: &Subject, queue: &str, count: usize) -> anyhow::Result<Talked> {
    let key = &subject.data.key;
    let path = format!("/api/v1/queues/{queue}/fetch");
    let body = format!("{{\"worker\":\"bench\",\"wait_seconds\":5,\"max\":{BATCH}}}");
    let fetch = request("POST", &path, key, &body);
    let streams = (0..CONSUMERS)
        .map(|_| TcpStream::connect(subject.server.address))
        .collect::<Result<Vec<_>, _>>()?;
    let mut has_tasks = [0; CONSUMERS];
    let (mut seen, mut done) = (HashSet::with_capacity(count), 0);
    let whole = |bytes: &[u8]| {
        let found = load::whole(bytes)?;
        Ok(found.map(|(_, start, length)| start + length))
    };
    talk::run(streams, whole, |number, answer, words| {
        if !answer.is_empty() {
            let (status, start, _) = load::whole(answer)?.context("half an answer")?;
            ensure!(status == 200, "a consumer was answered {status}");
            let body = &answer[start..];
            match std::mem::take(&mut has_tasks[number]) {
                0 => {
                    let body: FetchedMany<'_> = serde_json::from_slice(body)?;
                    if !body.tasks.is_empty() {
                        let mut ends = String::from("{\"runs\":[");
                        for (at, FetchedTask { id, attempt }) in body.tasks.iter().enumerate() {
                            ensure!(seen.insert((*id).to_owned()), "{id} was handed out twice");
                            let comma = if at == 0 { "" } else { "," };
                            ends.push_str(&format!(
                                "{comma}{{\"task_id\":\"{id}\",\"attempt\":{attempt},\"outcome\":\"completed\"}}"
                            ));
                        }
                        ends.push_str("]}");
                        has_tasks[number] = body.tasks.len();
                        words.extend(request("POST", "/api/v1/tasks/runs/end", key, &ends));
                        return Ok(Next::Say);
                    }
                }
                had => {
                    let body: EndedMany = serde_json::from_slice(body)?;
                    ensure!(
                        body.runs.len() == had,
                        "{had} runs, {} answers",
                        body.runs.len()
                    );
                    for run in body.runs {
                        ensure!(
                            run.status == 204,
                            "the end of a run was answered {}",
                            run.status
                        );
                    }
                    done += had;
                    if done >= count {
                        return Ok(Next::Over);
                    }
                }
            }
        }
        words.extend_from_slice(&fetch);
        Ok(Next::Say)
    })
}

#[derive(serde::Deserialize)]
struct FetchedMany<'a> {
    #[serde(borrow)]
    tasks: Vec<FetchedTask<'a>>,
}

#[derive(serde::Deserialize)]
struct EndedMany {
    runs: Vec<EndedRun>,
}

#[derive(serde::Deserialize)]
struct EndedRun {
    status: u16,
}

#[derive(serde::Deserialize)]
struct Fetched<'a> {
    #[serde(borrow)]
    task: Option<FetchedTask<'a>>,
}

#[derive(serde::Deserialize)]
struct FetchedTask<'a> {
    id: &'a str,
    attempt: u32,
}

/// S: the rows of tasks, all columns and indexes of them, in a database of their own and under the
/// settings that the product commits with.
struct TaskRows {
    conn: Connection,
    _data: Data,
}

impl TaskRows {
    fn new(data: Data) -> anyhow::Result<Self> {
        let conn = Connection::open(data.path.join("onrush.db"))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        Ok(Self { conn, _data: data })
    }

    /// Writes `count` of them, `batch` to a transaction; answers tasks a second.
    fn write(&mut self, count: usize, batch: usize) -> anyhow::Result<f64> {
        let watch = Stopwatch::start();
        for first in (0..count).step_by(batch) {
            let now = Clock::system().now().0;
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
            for _ in first..count.min(first + batch) {
                self.conn
                    .prepare_cached(
                        "INSERT INTO tasks (id, name, queue, state, priority, run_at, created_at, max_attempts, \
                         waiting_on, timeout_ms, args, metadata, traceparent, soft_timeout_ms, retry_policy, \
                         expires_at, lock_key, batch_id, result_seconds, error, finished_at, external_id) VALUES \
                         (?1, 'resize', 'enqueue-64', 'available', 100, ?2, ?2, 25, 0, 1800000, '{\"image\":7}', \
                         NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
                    )?
                    .execute(params![clock::uuid_at(Timestamp(now)).to_string(), now])?;
            }
            self.conn.execute_batch("COMMIT")?;
        }
        Ok(count as f64 / watch.elapsed_seconds())
    }
}
