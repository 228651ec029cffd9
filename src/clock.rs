//! Time: the only file that reads the system clock, and the ids that hold a time.
//!
//! Invariants: tables and domain functions speak [`Timestamp`] (integer microseconds since the Unix
//! epoch, UTC); JSON speaks RFC 3339. A domain function never asks for the time, it is told
//! (`now`). Durations that decide limits and deadlines come from [`Clock::monotonic_ms`], which a
//! jump of the wall clock does not move.
//!
//! A wall clock that is set by more than a few seconds is held back ([`Clock::held`]): the time goes on as it
//! was until the new one has stood for a while. A clock that is wrong for a moment would otherwise end sales,
//! expire orders and delete what is kept for a time, and none of that can be taken back. All of it goes
//! by [`Clock::now`], so nothing else need know. A suspended machine is no jump: its time passes for
//! the clock that we compare with as well.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use parking_lot::Mutex;
use uuid::{ContextV7, Uuid};

/// A moment in UTC, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The moment `seconds` later (earlier when negative), saturating at the ends of the range.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// The moment `ms` milliseconds later (earlier when negative), saturating as well.
    pub fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000)))
    }

    /// Microseconds from `earlier` to this moment; negative when `earlier` is in fact later.
    pub fn micros_since(self, earlier: Timestamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Parses RFC 3339 (`2026-11-11T00:00:00+08:00`). `None` for anything else, and for moments
    /// before 1970 or after 9999, which no shop means.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let micros = DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros();
        (0..=MAX_MICROS).contains(&micros).then_some(Self(micros))
    }
}

/// 9999-12-31T23:59:59.999999Z, the last moment that RFC 3339 can write.
const MAX_MICROS: i64 = 253_402_300_799_999_999;

/// `2026-11-11T00:00:00.000000Z`.
type Text = [u8; 27];

impl Timestamp {
    /// RFC 3339 in microseconds, digit by digit: a page of products writes dozens of times, and
    /// chrono's own formatting costs ten times as much. `None` outside the years 1970 to 9999.
    fn text(self) -> Option<Text> {
        if !(0..=MAX_MICROS).contains(&self.0) {
            return None;
        }
        let time = DateTime::<Utc>::from_timestamp_micros(self.0)?.naive_utc();
        let mut text: Text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |places: std::ops::Range<usize>, mut value: u32| {
            for at in places.rev() {
                text[at] = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0..4, u32::try_from(time.year()).ok()?);
        put(5..7, time.month());
        put(8..10, time.day());
        put(11..13, time.hour());
        put(14..16, time.minute());
        put(17..19, time.second());
        put(20..26, time.nanosecond() / 1_000);
        Some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        if let Some(text) = text
            .as_ref()
            .and_then(|text| std::str::from_utf8(text).ok())
        {
            return f.write_str(text);
        }
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{} µs", self.0),
        }
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.text();
        match text
            .as_ref()
            .and_then(|text| std::str::from_utf8(text).ok())
        {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse_rfc3339(&text).ok_or_else(|| {
            serde::de::Error::custom("expected a time in RFC 3339, such as 2026-11-11T00:00:00Z")
        })
    }
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the wall clock, which may be set.
    pub wall: Timestamp,
    /// By [`Clock::monotonic_ms`].
    pub monotonic_ms: u64,
}

impl Moment {
    /// The wall clock's lead over the time that passed, in microseconds: it changes only when that
    /// clock is set.
    pub fn wall_lead_micros(self) -> i64 {
        let passed = i64::try_from(self.monotonic_ms).unwrap_or(i64::MAX);
        self.wall.0.saturating_sub(passed.saturating_mul(1_000))
    }
}

/// Where the time comes from: the machine, or a hand that a test moves.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    guard: Option<Arc<Guard>>,
}

#[derive(Clone, Debug)]
enum Source {
    System {
        started: Instant,
    },
    Manual {
        now_micros: Arc<AtomicI64>,
        /// How far the wall clock was set from the time that passed.
        jumped_micros: Arc<AtomicI64>,
    },
}

impl Source {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the system clock"
    )]
    fn wall_micros(&self) -> i64 {
        match self {
            Source::System { .. } => Utc::now().timestamp_micros(),
            Source::Manual {
                now_micros,
                jumped_micros,
            } => now_micros
                .load(Ordering::Acquire)
                .saturating_add(jumped_micros.load(Ordering::Acquire)),
        }
    }

    /// Time that passed since an arbitrary moment, also while the machine was suspended.
    fn steady_micros(&self) -> i64 {
        match self {
            Source::System { started } => since_boot_micros().unwrap_or_else(|| {
                i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX)
            }),
            Source::Manual { now_micros, .. } => now_micros.load(Ordering::Acquire),
        }
    }
}

/// `CLOCK_MONOTONIC` of Linux stands still while the machine is suspended; this one does not.
#[cfg(target_os = "linux")]
fn since_boot_micros() -> Option<i64> {
    use nix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    Some(
        time.tv_sec()
            .saturating_mul(1_000_000)
            .saturating_add(time.tv_nsec() / 1_000),
    )
}

#[cfg(not(target_os = "linux"))]
fn since_boot_micros() -> Option<i64> {
    None
}

/// A clock's lead that changed by less is followed without a look at how it came about: clocks drift, and
/// are slowed down and sped up to follow others.
const DRIFT_MICROS: i64 = 100_000;
/// Longest pause between two lines of the log about a clock that jumps to and fro.
const SAID_EVERY_MICROS: i64 = 1_000_000;

/// Holds back a wall clock that was set until its new time has stood for a while.
#[derive(Debug)]
struct Guard {
    bound_micros: i64,
    hold_micros: i64,
    /// The wall clock's lead over the time that passed, as it is followed.
    lead: AtomicI64,
    is_holding: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// The lead that the wall clock shows instead, and since when, by the time that passed.
    shown: Option<(i64, i64)>,
    said_at: Option<i64>,
}

impl Guard {
    /// The time by a wall clock that is to be read from `source`.
    fn now(&self, source: &Source) -> i64 {
        // A thread that is stopped between the two sees them apart; it looks once more.
        for _ in 0..2 {
            let (steady, wall) = (source.steady_micros(), source.wall_micros());
            let lead = wall.saturating_sub(steady);
            let set_by = lead.saturating_sub(self.lead.load(Ordering::Acquire));
            if set_by.saturating_abs() <= self.bound_micros {
                if set_by.saturating_abs() > DRIFT_MICROS {
                    self.lead.store(lead, Ordering::Release);
                }
                if self.is_holding.load(Ordering::Acquire) {
                    self.let_go();
                }
                return wall;
            }
        }
        self.judge(source)
    }

    fn let_go(&self) {
        let mut held = self.held.lock();
        if held.shown.take().is_some() {
            tracing::warn!("the system's clock is back where it was; its jump was not followed");
        }
        self.is_holding.store(false, Ordering::Release);
    }

    /// The time while the wall clock shows another one.
    fn judge(&self, source: &Source) -> i64 {
        let mut held = self.held.lock();
        let (steady, wall) = (source.steady_micros(), source.wall_micros());
        let (lead, followed) = (
            wall.saturating_sub(steady),
            self.lead.load(Ordering::Acquire),
        );
        let set_by = lead.saturating_sub(followed);
        if set_by.saturating_abs() <= self.bound_micros {
            return wall;
        }
        let since = match held.shown {
            Some((shown, since))
                if lead.saturating_sub(shown).saturating_abs() <= self.bound_micros =>
            {
                since
            }
            _ => {
                held.shown = Some((lead, steady));
                self.is_holding.store(true, Ordering::Release);
                let is_new = |said_at| steady.saturating_sub(said_at) >= SAID_EVERY_MICROS;
                if self.hold_micros > 0 && held.said_at.is_none_or(is_new) {
                    held.said_at = Some(steady);
                    tracing::warn!(
                        seconds = set_by / 1_000_000,
                        hold_seconds = self.hold_micros / 1_000_000,
                        "the system's clock was set; the time goes on as it was until the new one has stood for a while"
                    );
                }
                steady
            }
        };
        if steady.saturating_sub(since) < self.hold_micros {
            return steady.saturating_add(followed);
        }
        self.lead.store(lead, Ordering::Release);
        held.shown = None;
        self.is_holding.store(false, Ordering::Release);
        tracing::warn!(
            seconds = set_by / 1_000_000,
            "the system's clock was set and stays so; it is followed from now on"
        );
        wall
    }
}

impl Clock {
    fn of(source: Source) -> Self {
        Self {
            source,
            guard: None,
        }
    }

    /// The machine's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the system clock"
    )]
    pub fn system() -> Self {
        Self::of(Source::System {
            started: Instant::now(),
        })
    }

    /// A clock that stands still at `now` until [`Clock::advance`].
    pub fn manual(now: Timestamp) -> Self {
        Self::of(Source::Manual {
            now_micros: Arc::new(AtomicI64::new(now.0)),
            jumped_micros: Arc::default(),
        })
    }

    /// The same clock, whose wall is followed at once when it is set by no more than `bound`, and else only
    /// when its new time has stood for `hold`. What it shows now is taken for right.
    pub fn guarded(mut self, bound: Duration, hold: Duration) -> Self {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let (steady, wall) = (self.source.steady_micros(), self.source.wall_micros());
        self.guard = Some(Arc::new(Guard {
            bound_micros: micros(bound),
            hold_micros: micros(hold),
            lead: AtomicI64::new(wall.saturating_sub(steady)),
            is_holding: AtomicBool::new(false),
            held: Mutex::default(),
        }));
        self
    }

    /// The wall-clock time.
    pub fn now(&self) -> Timestamp {
        Timestamp(match &self.guard {
            Some(guard) => guard.now(&self.source),
            None => self.source.wall_micros(),
        })
    }

    /// By how many seconds the wall clock was set that are not followed (yet).
    pub fn held(&self) -> Option<i64> {
        let guard = self.guard.as_ref()?;
        if !guard.is_holding.load(Ordering::Acquire) {
            return None;
        }
        // It may be back meanwhile.
        self.now();
        let (shown, _) = guard.held.lock().shown?;
        Some(shown.saturating_sub(guard.lead.load(Ordering::Acquire)) / 1_000_000)
    }

    /// Milliseconds since an arbitrary start; never goes back, whatever happens to the wall clock.
    pub fn monotonic_ms(&self) -> u64 {
        match &self.source {
            Source::System { started } => {
                u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
            }
            Source::Manual { now_micros, .. } => {
                u64::try_from(now_micros.load(Ordering::Acquire) / 1_000).unwrap_or(0)
            }
        }
    }

    /// Now, by both clocks.
    pub fn moment(&self) -> Moment {
        Moment {
            wall: self.now(),
            monotonic_ms: self.monotonic_ms(),
        }
    }

    /// Moves a manual clock forward; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual { now_micros, .. } = &self.source {
            let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            now_micros.fetch_add(micros, Ordering::AcqRel);
        }
    }

    /// Sets a manual clock's wall forward, or back, as a machine's is set; no time passes.
    pub fn jump_seconds(&self, by: i64) {
        if let Source::Manual { jumped_micros, .. } = &self.source {
            jumped_micros.fetch_add(by.saturating_mul(1_000_000), Ordering::AcqRel);
        }
    }
}

/// The latest moment of this process's UUIDs, and how many it has had. One for all of them, because their order
/// must hold over all rooms.
static UUIDS: Mutex<ContextV7> = Mutex::new(ContextV7::new());

/// A new UUIDv7 (RFC 9562, 5.7) of the moment `now`. It is greater than every one before it in this process:
/// where `now` is the same moment as before, a counter grows; where it is an earlier one, the latest is used.
pub fn uuid_at(now: Timestamp) -> Uuid {
    let moment = v7_moment(&UUIDS.lock(), now);
    Uuid::new_v7(moment)
}

/// The moment and the counter that a UUIDv7 begins with.
fn v7_moment(before: &ContextV7, now: Timestamp) -> uuid::Timestamp {
    // Before 1970 there is none.
    let micros = u64::try_from(now.0).unwrap_or(0);
    let nanos = (micros % 1_000_000) as u32 * 1_000;
    uuid::Timestamp::from_unix(before, micros / 1_000_000, nanos)
}

/// Milliseconds since some moment before the program began, a few of them late: for what happens with
/// each request and needs no more, since it costs a fraction of an exact reading (clock_gettime(2),
/// `CLOCK_MONOTONIC_COARSE`).
pub fn coarse_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    // Linux has had it since 2.6.32, and it can't fail there.
    now.map_or(0, |now| {
        u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX)
    })
}

/// A stopwatch for measurements; never for a decision about data.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the system clock"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Seconds since the start, for a histogram.
    pub fn elapsed_seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_chrono_writes_it() {
        let some = (0..3_000).map(|step| step * 84_467_440_737_095);
        for micros in some.chain([0, 1, 951_782_399_999_999, 951_782_400_000_000, MAX_MICROS]) {
            let time = DateTime::<Utc>::from_timestamp_micros(micros).expect("a moment");
            let expected = time.to_rfc3339_opts(SecondsFormat::Micros, true);
            assert_eq!(Timestamp(micros).to_string(), expected);
            let json = serde_json::to_string(&Timestamp(micros)).expect("JSON");
            assert_eq!(json, format!("\"{expected}\""));
        }
    }

    #[test]
    fn uuids_hold_the_moment_and_grow_while_the_clock_stands_still_or_goes_back() {
        let (own, start) = (ContextV7::new(), Timestamp(1_700_000_000_123_456));
        let mut before = Uuid::nil();
        let mut next = |now: Timestamp| {
            let id = Uuid::new_v7(v7_moment(&own, now));
            assert!(id > before, "{id} after {before}");
            assert_eq!(id.get_version_num(), 7);
            before = id;
            id.get_timestamp().expect("a time").to_unix()
        };
        let millis = |second: u64, milli: u32| (second, milli * 1_000_000);
        for _ in 0..1_000 {
            assert_eq!(next(start), millis(1_700_000_000, 123));
        }
        assert_eq!(next(start.plus_seconds(1)), millis(1_700_000_001, 123));
        for earlier in [start, Timestamp(0), Timestamp(-1)] {
            assert_eq!(next(earlier), millis(1_700_000_001, 123));
        }
        assert_eq!(next(start.plus_seconds(2)), millis(1_700_000_002, 123));
    }

    #[test]
    fn uuids_of_many_threads_are_all_different_and_grow_in_each() {
        let now = Timestamp(1_700_000_000_000_000);
        let some = || (0..2_000).map(|_| uuid_at(now)).collect::<Vec<Uuid>>();
        let all: Vec<Vec<Uuid>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(some)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|ids| ids.expect("no panic")).collect()
        });
        for ids in &all {
            assert!(ids.is_sorted_by(|one, next| one < next));
        }
        let distinct: std::collections::HashSet<Uuid> = all.into_iter().flatten().collect();
        assert_eq!(distinct.len(), 8_000);
    }

    #[test]
    fn rfc3339_round_trip_keeps_microseconds_and_offset() {
        let time = Timestamp::parse_rfc3339("2026-11-11T00:00:00.123456+08:00").expect("valid");
        assert_eq!(time.to_string(), "2026-11-10T16:00:00.123456Z");
        assert_eq!(Timestamp::parse_rfc3339(&time.to_string()), Some(time));
    }

    #[test]
    fn absurd_times_are_refused() {
        for text in [
            "",
            "yesterday",
            "1969-12-31T23:59:59Z",
            "2026-13-01T00:00:00Z",
            "2026-11-11",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(text), None, "{text}");
        }
    }

    const SECOND: i64 = 1_000_000;

    fn held() -> Clock {
        let start = Timestamp(1_000_000 * SECOND);
        Clock::manual(start).guarded(Duration::from_secs(10), Duration::from_secs(60))
    }

    #[test]
    fn a_clock_that_is_set_for_a_moment_is_not_followed_and_one_that_stays_is() {
        for by in [3_600, -3_600, 11, 86_400 * 365] {
            let clock = held();
            let start = clock.now();
            clock.jump_seconds(by);
            assert_eq!(clock.now(), start, "{by}");
            assert_eq!(clock.held(), Some(by));
            clock.advance(Duration::from_secs(3));
            assert_eq!(clock.now(), start.plus_seconds(3), "{by}: the time goes on");
            clock.jump_seconds(-by);
            assert_eq!((clock.now(), clock.held()), (start.plus_seconds(3), None));

            // The next one is held for the whole time again.
            clock.jump_seconds(by);
            clock.now();
            clock.advance(Duration::from_secs(59));
            assert_eq!(clock.now(), start.plus_seconds(62), "{by}");
            clock.advance(Duration::from_secs(1));
            assert_eq!(
                clock.now(),
                start.plus_seconds(63 + by),
                "{by}: it is followed"
            );
            assert_eq!(clock.held(), None);
            clock.jump_seconds(-by);
            assert_eq!(
                clock.now(),
                start.plus_seconds(63 + by),
                "{by}: back is a jump as well"
            );
        }
    }

    #[test]
    fn a_clock_that_drifts_or_is_set_by_little_is_followed_at_once() {
        let clock = held();
        for step in 1..=100 {
            let before = clock.now();
            clock.jump_seconds(if step % 3 == 0 { -10 } else { 9 });
            let by = if step % 3 == 0 { -10 } else { 9 };
            assert_eq!(clock.now(), before.plus_seconds(by));
            assert_eq!(clock.held(), None);
        }
    }

    #[test]
    fn a_clock_that_jumps_on_is_held_from_its_last_jump_on() {
        let clock = held();
        let start = clock.now();
        for _ in 0..20 {
            clock.jump_seconds(3_600);
            clock.now();
            clock.advance(Duration::from_secs(30));
        }
        assert_eq!(clock.now(), start.plus_seconds(600));
        clock.advance(Duration::from_secs(30));
        assert_eq!(clock.now(), start.plus_seconds(630 + 20 * 3_600));
    }

    #[test]
    fn the_system_clock_agrees_with_itself() {
        let clock = Clock::system().guarded(Duration::from_secs(10), Duration::from_secs(60));
        let (plain, first) = (Clock::system(), clock.now());
        assert!(plain.now().micros_since(first).abs() < 10 * SECOND);
        assert_eq!(clock.held(), None);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(Timestamp(5_000));
        assert_eq!(clock.now(), Timestamp(5_000));
        clock.advance(Duration::from_millis(3));
        assert_eq!(clock.now(), Timestamp(8_000));
        assert_eq!(clock.monotonic_ms(), 8);
        clock.jump_seconds(-1);
        assert_eq!(clock.now(), Timestamp(8_000 - 1_000_000));
        assert_eq!(clock.monotonic_ms(), 8);
    }
}
