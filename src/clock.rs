//! Time: the only file that reads the system clock.
//!
//! Invariants: tables and domain functions speak [`Timestamp`] (integer microseconds since the Unix
//! epoch, UTC); JSON speaks RFC 3339. A domain function never asks for the time, it is told
//! (`now`). Durations that decide limits and deadlines come from [`Clock::monotonic_ms`], which a
//! jump of the wall clock does not move.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};

/// A moment in UTC, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The moment `seconds` later (earlier when negative), saturating at the ends of the range.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
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
pub struct Clock(Source);

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

impl Clock {
    /// The machine's clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the system clock"
    )]
    pub fn system() -> Self {
        Self(Source::System {
            started: Instant::now(),
        })
    }

    /// A clock that stands still at `now` until [`Clock::advance`].
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual {
            now_micros: Arc::new(AtomicI64::new(now.0)),
            jumped_micros: Arc::default(),
        })
    }

    /// The wall-clock time.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the home of the system clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { .. } => Timestamp(Utc::now().timestamp_micros()),
            Source::Manual {
                now_micros,
                jumped_micros,
            } => Timestamp(
                now_micros
                    .load(Ordering::Acquire)
                    .saturating_add(jumped_micros.load(Ordering::Acquire)),
            ),
        }
    }

    /// Milliseconds since an arbitrary start; never goes back, whatever happens to the wall clock.
    pub fn monotonic_ms(&self) -> u64 {
        match &self.0 {
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
        if let Source::Manual { now_micros, .. } = &self.0 {
            let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
            now_micros.fetch_add(micros, Ordering::AcqRel);
        }
    }

    /// Sets a manual clock's wall forward, or back, as somebody sets a machine's; no time passes.
    pub fn jump_seconds(&self, by: i64) {
        if let Source::Manual { jumped_micros, .. } = &self.0 {
            jumped_micros.fetch_add(by.saturating_mul(1_000_000), Ordering::AcqRel);
        }
    }
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
