//! The store's promises, against real files.

use super::file::Budget;
use super::*;
use crate::sql;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug, thiserror::Error)]
enum TestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("refused")]
    Refused,
}

fn open(dir: &Path) -> Store {
    let metrics = Metrics::new().expect("metrics");
    Store::open(
        &dir.join("onrush.db"),
        &Database::default(),
        metrics,
        |_| (),
    )
    .expect("store opens")
}

fn insert(tx: &mut Tx<'_>, key: &str) -> Result<(), TestError> {
    tx.execute(
        sql!("INSERT INTO idempotency_keys (key, caller, fingerprint, location, body, created_at) VALUES ($2, $1, '', '', '', $3)"),
        &["caller".into(), key.into(), 7i64.into()],
    )?;
    Ok(())
}

fn keys(tx: &mut Tx<'_>) -> Result<Vec<String>, TestError> {
    Ok(tx.rows(
        sql!("SELECT key FROM idempotency_keys WHERE caller = $1 ORDER BY key LIMIT 1000"),
        &["caller".into()],
        |row| row.get(0),
    )?)
}

#[tokio::test]
async fn an_err_or_a_panic_undoes_its_own_work_and_no_other() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (good, refused, panicked, better) = tokio::join!(
        store.write(|tx| insert(tx, "good")),
        store.write(|tx| {
            insert(tx, "refused")?;
            Err::<(), _>(TestError::Refused)
        }),
        store.write(|tx| -> Result<(), TestError> {
            insert(tx, "panicked")?;
            panic!("on purpose")
        }),
        store.write(|tx| insert(tx, "better")),
    );
    assert!(good.is_ok() && better.is_ok());
    assert!(matches!(refused, Err(TestError::Refused)));
    assert!(
        matches!(panicked, Err(TestError::Store(StoreError::Panicked(text))) if text == "on purpose")
    );
    assert_eq!(store.read(keys).await.expect("read"), ["better", "good"]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_after_is_told_of_every_outcome() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let metrics = Metrics::new().expect("metrics");
    let settings = Database {
        write_queue_max: 1,
        ..Database::default()
    };
    let store = Store::open(&dir.path().join("onrush.db"), &settings, metrics, |_| ())
        .expect("store opens");
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (started, mut has_started) = tokio::sync::mpsc::channel(1);
    let outcomes = Arc::new(AtomicU32::new(0));
    let blocker = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .write(move |_| {
                    let _ = started.try_send(());
                    held.recv().map_err(|_| TestError::Refused)
                })
                .await
        }
    });
    has_started
        .recv()
        .await
        .expect("the writer runs the first job");
    let calls: Vec<_> = (0..5)
        .map(|n| {
            let (store, outcomes) = (store.clone(), Arc::clone(&outcomes));
            tokio::spawn(async move {
                store
                    .write(move |tx| insert(tx, &format!("key-{n}")))
                    .then(move |_| {
                        outcomes.fetch_add(1, Ordering::SeqCst);
                    })
                    .await
            })
        })
        .collect();
    while outcomes.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    hold.send(()).expect("the blocker waits");
    blocker.await.expect("task").expect("first write");
    let mut refused = 0;
    for call in calls {
        if matches!(
            call.await.expect("task"),
            Err(TestError::Store(StoreError::Overloaded))
        ) {
            refused += 1;
        }
    }
    assert_eq!((refused, outcomes.load(Ordering::SeqCst)), (4, 5));
}

#[tokio::test]
async fn what_was_written_is_there_after_close_and_reopen_and_the_log_is_empty() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    store.write(|tx| insert(tx, "kept")).await.expect("write");
    store.close();
    assert!(matches!(
        store.write(|tx| insert(tx, "late")).await,
        Err(TestError::Store(StoreError::Stopped))
    ));
    drop(store);
    let wal = std::fs::metadata(dir.path().join("onrush.db-wal"))
        .map(|meta| meta.len())
        .unwrap_or(0);
    assert_eq!(wal, 0);
    assert_eq!(open(dir.path()).read(keys).await.expect("read"), ["kept"]);
}

#[tokio::test]
async fn a_scan_without_end_is_stopped() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let metrics = Metrics::new().expect("metrics");
    let settings = Database {
        statement_timeout_ms: 50,
        ..Database::default()
    };
    let store = Store::open(&dir.path().join("onrush.db"), &settings, metrics, |_| ())
        .expect("store opens");
    let endless = store
        .read(|tx| {
            tx.row::<i64>(
                sql!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"),
                &[],
                |row| row.get(0),
            )
        })
        .await;
    assert!(
        matches!(endless, Err(StoreError::StatementTimeout)),
        "{endless:?}"
    );
    assert!(
        store.read(keys).await.is_ok(),
        "the connection is usable again"
    );
}

#[test]
fn a_newer_or_foreign_database_is_refused_untouched() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("onrush.db");
    for pragma in [
        "PRAGMA user_version = 9999; PRAGMA application_id = 1332638323",
        "PRAGMA application_id = 7",
    ] {
        drop(std::fs::remove_file(&path));
        let conn = rusqlite::Connection::open(&path).expect("open");
        conn.execute_batch(&format!("CREATE TABLE t (x); {pragma}"))
            .expect("prepare");
        drop(conn);
        let before = std::fs::read(&path).expect("read");
        let metrics = Metrics::new().expect("metrics");
        let opened = Store::open(&path, &Database::default(), metrics, |_| ());
        assert!(matches!(opened, Err(StoreError::Foreign(_))));
        assert_eq!(std::fs::read(&path).expect("read"), before);
    }
}

#[test]
fn damage_is_found_and_garbage_is_no_database() {
    let unclean = Left::default();
    let long = Duration::from_secs(60);
    let budget = Budget {
        after_order: long,
        after_disorder: long,
    };
    let check = |path: &Path| file::examine(path, &unclean, Some(budget));
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    store.close();
    drop(store);
    let path = dir.path().join("onrush.db");
    assert!(!check(&path).expect("healthy").is_unchecked);
    let mut bytes = std::fs::read(&path).expect("read");
    for byte in &mut bytes[4096..12288] {
        *byte ^= 0xa5;
    }
    std::fs::write(&path, &bytes).expect("write");
    assert!(matches!(check(&path), Err(StoreError::Corrupt(_))));
    std::fs::write(&path, b"this is no database, but it is long enough to have a header of one hundred bytes if it were one").expect("write");
    assert!(matches!(check(&path), Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn once_damage_was_met_nothing_is_written_also_not_what_shared_a_commit_with_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    store
        .write(|tx| insert(tx, "before"))
        .await
        .expect("written");
    let condition = store.condition().clone();
    let (first, second) = tokio::join!(
        store.write(|tx| insert(tx, "shared")),
        store.write(move |tx| {
            insert(tx, "met")?;
            condition.note(&StoreError::Corrupt("a page".to_owned()));
            Ok::<_, TestError>(())
        }),
    );
    let is_corrupt = |result| matches!(result, Err(TestError::Store(StoreError::Corrupt(what))) if what == "a page");
    assert!(is_corrupt(second));
    let is_shared = is_corrupt(first);
    assert!(is_corrupt(store.write(|tx| insert(tx, "late")).await));
    let kept = store.read(keys).await.expect("read");
    let expected: &[&str] = match is_shared {
        true => &["before"],
        false => &["before", "shared"],
    };
    assert_eq!(kept, expected);
    store.close();
}

#[test]
fn a_second_holder_is_refused_by_name_and_an_unclean_end_is_noticed() {
    let root = tempfile::tempdir().expect("temporary directory");
    let path = root.path().join("data");
    let first = DataDir::open(&path).expect("first");
    assert!(first.left().is_clean);
    first.begin(&Mark::fresh());
    let refusal = DataDir::open(&path).expect_err("second").to_string();
    assert!(
        refusal.contains(&std::process::id().to_string()),
        "{refusal}"
    );
    drop(first);
    let second = DataDir::open(&path).expect("after a crash");
    assert!(!second.left().is_clean);
    second.release();
    drop(second);
    assert!(
        DataDir::open(&path)
            .expect("after an orderly end")
            .left()
            .is_clean
    );
}

/// `.cargo/config.toml` names them; a build that misses them is a slower product.
#[test]
fn sqlite_is_compiled_as_it_was_measured() {
    let conn = rusqlite::Connection::open_in_memory().expect("open");
    let options: Vec<String> = conn
        .prepare("PRAGMA compile_options")
        .and_then(|mut all| all.query_map([], |row| row.get(0))?.collect())
        .expect("options");
    for (option, wanted) in [
        ("DEFAULT_MEMSTATUS=0", true),
        ("DQS=0", true),
        ("ENABLE_MEMORY_MANAGEMENT", false),
        ("ENABLE_API_ARMOR", false),
        ("ENABLE_FTS5", true),
    ] {
        assert_eq!(
            options.iter().any(|have| have == option),
            wanted,
            "{option} in {options:?}"
        );
    }
}

/// Callers are woken in turns; one who does not go on must not keep the others' turns.
#[tokio::test]
async fn callers_that_stand_still_hold_nobody_up() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let mut still: Vec<_> = (0..100)
        .map(|number| {
            let write = store.write(move |tx| insert(tx, &format!("still {number:02}")));
            write.into_future()
        })
        .collect();
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    for write in &mut still {
        assert!(write.as_mut().poll(&mut nobody).is_pending());
    }
    for number in 0..100 {
        store
            .write(move |tx| insert(tx, &format!("other {number:02}")))
            .await
            .expect("answered beside those who stand still");
    }
    assert_eq!(store.read(keys).await.expect("keys").len(), 200);
    for write in still {
        write.await.expect("kept for them");
    }
}

#[tokio::test]
async fn a_long_read_sees_one_moment_and_ends_when_nobody_waits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    store.write(|tx| insert(tx, "one")).await.expect("written");
    let reads = LongReads::new(dir.path().join("onrush.db"), &Database::default(), &store);
    let seen = reads.read(|tx, wanted| {
        wanted.check()?;
        keys(tx)
    });
    assert_eq!(seen.await.expect("read"), ["one"]);
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    let endless = reads.read(move |tx, wanted| {
        begun.send(()).expect("somebody waits");
        loop {
            if let Err(error) = wanted.check() {
                ended.send(keys(tx)?).expect("somebody waits");
                return Err::<(), TestError>(error.into());
            }
            std::thread::yield_now();
        }
    });
    tokio::select! {
        _ = endless => panic!("it ended though it was wanted"),
        begun = has_begun => begun.expect("it began"),
    }
    assert_eq!(has_ended.await.expect("it ended"), ["one"]);
}

#[tokio::test]
async fn a_topic_is_told_after_its_commit_and_never_for_work_that_was_undone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    const TOPIC: Topic = Topic::new(31);
    let told = Arc::new(AtomicU32::new(0));
    let (count, reader) = (Arc::clone(&told), store.clone());
    let seen = Arc::new(AtomicU32::new(0));
    let seen_then = Arc::clone(&seen);
    store.on_commit(TOPIC, move || {
        let rows = reader.read_blocking(keys).expect("read").len();
        seen_then.store(u32::try_from(rows).expect("few"), Ordering::SeqCst);
        count.fetch_add(1, Ordering::SeqCst);
    });
    store
        .write(|tx| insert(tx, "quiet"))
        .await
        .expect("written");
    let refused = store.write(|tx| {
        tx.touch(TOPIC);
        insert(tx, "refused")?;
        Err::<(), _>(TestError::Refused)
    });
    assert!(refused.await.is_err());
    assert_eq!(told.load(Ordering::SeqCst), 0);
    let touched = store.write(|tx| {
        tx.touch(TOPIC);
        tx.touch(Topic::new(0));
        insert(tx, "loud")
    });
    touched.await.expect("written");
    assert_eq!(
        (told.load(Ordering::SeqCst), seen.load(Ordering::SeqCst)),
        (1, 2),
        "told once, when the row could be seen"
    );
    let (answer, answered) = tokio::sync::oneshot::channel();
    store
        .write(|tx| insert(tx, "unanswered"))
        .then(move |done| answer.send(done.is_ok()).expect("somebody waits"))
        .unanswered();
    assert!(answered.await.expect("told"));
    store
        .write(|tx| insert(tx, "patient"))
        .patience(Patience::Unlimited)
        .await
        .expect("written");
    assert_eq!(store.read(keys).await.expect("read").len(), 4);
}

/// The numbers of placeholders are remembered by where a text stands: another text in the same place
/// must not be taken for it.
#[test]
fn placeholders_are_bound_by_number_wherever_the_text_stands() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let mut text = String::with_capacity(64);
    for (sql, expected) in [
        ("SELECT $1 || '-' || $2 || '-' || $1", "a-b-a"),
        ("SELECT $2 || '-' || $1 || '-' || $2", "b-a-b"),
        ("SELECT $2 || '-' || $2 || '-' || $1", "b-b-a"),
    ] {
        text.clear();
        text.push_str(sql);
        for _ in 0..2 {
            let found: Result<Option<String>, StoreError> = store.read_blocking(|tx| {
                tx.row(sql!(&text), &["a".into(), "b".into()], |row| row.get(0))
            });
            assert_eq!(found.expect("read").as_deref(), Some(expected));
        }
    }
    let missing: Result<Option<String>, StoreError> =
        store.read_blocking(|tx| tx.row(sql!("SELECT $1 || $3"), &["a".into()], |row| row.get(0)));
    assert!(matches!(missing, Err(StoreError::Bug(_))), "{missing:?}");
}

#[tokio::test]
async fn a_write_knows_the_trace_of_whoever_asked_for_it_and_no_other() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let metrics = Metrics::new().expect("metrics");
    let settings = Database {
        // Whoever is patient waits on another thread from the beginning.
        write_queue_max: 1,
        ..Database::default()
    };
    let path = dir.path().join("onrush.db");
    let store = Store::open(&path, &settings, metrics, |_| ()).expect("store opens");
    struct Traced(&'static str);
    impl crate::monitor::statements::StatementCaller for Traced {
        fn what(&self) -> String {
            "test".to_owned()
        }

        fn id(&self) -> String {
            String::new()
        }

        fn trace(&self) -> Option<&str> {
            Some(self.0)
        }
    }
    let trace = |tx: &mut Tx<'_>| {
        let caller = tx.caller();
        let trace = caller.as_ref().and_then(|caller| caller.trace());
        Ok::<_, StoreError>(trace.map(str::to_owned))
    };
    let patient = || store.write(trace).patience(Patience::Unlimited);
    for wanted in [Some("00-a"), None, Some("00-b")] {
        let (quick, slow) = match wanted {
            Some(wanted) => {
                let both = async { (store.write(trace).await, patient().await) };
                crate::monitor::statements::called_by(Arc::new(Traced(wanted)), both).await
            }
            None => (store.write(trace).await, patient().await),
        };
        assert_eq!(quick.expect("written").as_deref(), wanted);
        assert_eq!(slow.expect("written").as_deref(), wanted);
    }
}

/// Waits for a condition that other threads bring about.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !is_so() {
        assert!(watch.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_log_is_given_room_keeps_it_and_starts_anew_under_load() {
    const READY: u64 = 2 * 1_048_576;
    const WRITES: usize = 6_000;
    let dir = tempfile::tempdir().expect("temporary directory");
    let settings = Database {
        wal_ready_bytes: READY,
        checkpoint_interval_ms: 10,
        ..Database::default()
    };
    let at = |name: &str| dir.path().join(name);
    let metrics = Metrics::new().expect("metrics");
    let store = Store::open(&at("onrush.db"), &settings, metrics, |_| ()).expect("store opens");
    let write = async |number: usize| {
        let body = "x".repeat(4_000);
        let key = format!("{number:05}");
        let sql = "INSERT INTO idempotency_keys (key, caller, fingerprint, location, body, created_at) \
                   VALUES ($1, 'caller', '', '', $2, 7)";
        store
            .write(move |tx| tx.execute(sql!(sql), &[(&key).into(), (&body).into()]))
            .await
            .expect("written");
    };
    for number in 0..100 {
        write(number).await;
    }
    until("room is made in a quiet moment", || {
        store.stats().wal_bytes >= READY
    })
    .await;
    let mut most = 0;
    for first in (100..WRITES).step_by(50) {
        futures_util::future::join_all((first..first + 50).map(&write)).await;
        let bytes = store.stats().wal_bytes;
        assert!(bytes >= READY, "it was cut to {bytes}");
        most = most.max(bytes);
    }
    // More than 24 MB were written, each page more than once.
    assert!(most < 16 * 1_048_576, "it grew to {most}");

    // What an end without order leaves: the log with old frames and zeros behind its end.
    for name in ["onrush.db", "onrush.db-wal"] {
        std::fs::copy(at(name), at(&name.replace("onrush", "copy"))).expect("copied");
    }
    let metrics = Metrics::new().expect("metrics");
    let copy = Store::open(&at("copy.db"), &settings, metrics, |_| ()).expect("copy opens");
    let count = copy.read(|tx| {
        tx.row(sql!("SELECT count(*) FROM idempotency_keys"), &[], |row| {
            row.get::<i64>(0)
        })
    });
    assert_eq!(count.await.expect("counted"), Some(WRITES as i64));
    copy.close();
    store.close();
}

/// Writes words in sets of those that wait together; tells how large each was.
fn words(store: &Store) -> (Gather<u8, &'static str, usize, TestError>, Arc<Sizes>) {
    let sizes = Arc::new(Sizes::default());
    let seen = Arc::clone(&sizes);
    let told = Arc::clone(&sizes);
    let gathered = store.gather(
        move |tx, _: &u8, words: &[&'static str]| {
            seen.sets.lock().push(words.len());
            let mut outcomes = Vec::new();
            for (at, word) in words.iter().enumerate() {
                match *word {
                    "refused" => outcomes.push(Err(TestError::Refused)),
                    "panics" => panic!("on purpose"),
                    "fails" => return Err(TestError::Refused),
                    word => {
                        insert(tx, word)?;
                        outcomes.push(Ok(at));
                    }
                }
            }
            Ok(outcomes)
        },
        move |_, word, outcome: &Result<usize, TestError>| {
            told.outcomes.lock().push((word, outcome.is_ok()));
        },
    );
    (gathered, sizes)
}

#[derive(Default)]
struct Sizes {
    sets: parking_lot::Mutex<Vec<usize>>,
    outcomes: parking_lot::Mutex<Vec<(&'static str, bool)>>,
}

/// Holds up the writer until the answer is dropped.
fn hold_up(store: &Store) -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel();
    store
        .write::<_, StoreError>(move |_| {
            let _gone = released.recv();
            Ok(())
        })
        .unanswered();
    release
}

#[tokio::test]
async fn what_waits_together_is_written_as_one_set_in_order_and_told_apart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (gathered, sizes) = words(&store);
    let release = hold_up(&store);
    let (a, refused, b, other, ()) = tokio::join!(
        gathered.write(&store, 1, "a"),
        gathered.write(&store, 1, "refused"),
        gathered.write(&store, 1, "b"),
        gathered.write(&store, 2, "other"),
        async move { drop(release) },
    );
    assert!(matches!((a, b, other), (Ok(0), Ok(2), Ok(0))));
    assert!(matches!(refused, Err(TestError::Refused)));
    assert_eq!(*sizes.sets.lock(), [3, 1]);
    let told = [
        ("a", true),
        ("refused", false),
        ("b", true),
        ("other", true),
    ];
    assert_eq!(*sizes.outcomes.lock(), told);
    assert_eq!(store.read(keys).await.expect("read"), ["a", "b", "other"]);
}

#[tokio::test]
async fn a_set_that_can_not_be_written_is_written_one_by_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (gathered, sizes) = words(&store);
    for bad in ["fails", "panics"] {
        sizes.sets.lock().clear();
        let (before, after) = match bad {
            "fails" => ("a", "b"),
            _ => ("c", "d"),
        };
        let release = hold_up(&store);
        let (first, wrong, last, ()) = tokio::join!(
            gathered.write(&store, 1, before),
            gathered.write(&store, 1, bad),
            gathered.write(&store, 1, after),
            async move { drop(release) },
        );
        assert!(first.is_ok() && wrong.is_err() && last.is_ok(), "{bad}");
        assert_eq!(*sizes.sets.lock(), [3, 1, 1, 1]);
        // Alone, it leaves nothing either.
        assert!(gathered.write(&store, 1, bad).await.is_err());
    }
    assert_eq!(store.read(keys).await.expect("read"), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn who_went_away_is_left_out_and_a_store_that_stops_tells_those_who_wait() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    let (gathered, sizes) = words(&store);
    let release = hold_up(&store);
    {
        let gone = gathered.write(&store, 1, "gone");
        let mut gone = std::pin::pin!(gone);
        let polled = futures_util::poll!(gone.as_mut());
        assert!(polled.is_pending());
    }
    let (kept, ()) = tokio::join!(gathered.write(&store, 1, "kept"), async move {
        drop(release);
    });
    assert!(kept.is_ok());
    assert_eq!(*sizes.sets.lock(), [1]);
    store.close();
    let late = gathered.write(&store, 1, "late").await;
    assert!(matches!(late, Err(TestError::Store(StoreError::Stopped))));
    let last = sizes.outcomes.lock().last().copied();
    assert_eq!(last, Some(("late", false)));
}

#[tokio::test]
async fn more_than_a_set_holds_is_written_in_several_and_a_bounded_number_waits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let settings = Database {
        write_queue_max: 700,
        ..Database::default()
    };
    let metrics = Metrics::new().expect("metrics");
    let store = Store::open(&dir.path().join("onrush.db"), &settings, metrics, |_| ());
    let store = store.expect("store opens");
    let (gathered, sizes) = words(&store);
    let release = hold_up(&store);
    let all = (0..1_000).map(|_| gathered.write(&store, 1, "refused"));
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(all), async move {
        drop(release);
    });
    let is_full = |outcome: &&Result<usize, TestError>| {
        matches!(outcome, Err(TestError::Store(StoreError::Overloaded)))
    };
    assert_eq!(outcomes.iter().filter(is_full).count(), 300);
    assert_eq!(*sizes.sets.lock(), [256, 256, 188]);
}

const FIRST: LockOrder = LockOrder::new(1, "first");
const SECOND: LockOrder = LockOrder::new(2, "second");

#[tokio::test]
async fn a_transaction_that_locks_out_of_order_or_relies_on_a_lock_it_has_not_fails() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open(dir.path());
    type Locking = fn(&mut Tx<'_>) -> Result<(), StoreError>;
    let run = |work: Locking| store.write(work).into_future();
    let in_order = run(|tx| {
        tx.lock(FIRST, [2, 1])?;
        tx.locks(SECOND, 1);
        tx.made(SECOND, 9);
        // Held already, and made by itself.
        tx.locks(FIRST, 1);
        tx.locks(SECOND, 9);
        tx.locks(SECOND, 2);
        tx.require_lock(FIRST, 2);
        tx.require_lock(SECOND, 9);
        Ok(())
    });
    in_order.await.expect("this is the order");
    let wrong: [Locking; 3] = [
        |tx| {
            tx.locks(SECOND, 1);
            tx.lock(FIRST, [1])
        },
        |tx| {
            tx.locks(FIRST, 2);
            tx.lock(FIRST, [1])
        },
        |tx| {
            tx.locks(FIRST, 2);
            tx.require_lock(FIRST, 1);
            Ok(())
        },
    ];
    for work in wrong {
        assert!(matches!(run(work).await, Err(StoreError::Panicked(_))));
    }
}
