//! When a schedule fires: cron expressions and intervals, in a time zone, through its changes of the
//! clock.
//!
//! An expression has 5 fields (minute, hour, day of the month, month, day of the week) or 6 (seconds
//! in front), or is `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight` or `@hourly`.
//! Where both days are restricted either suffices, as cron has it.
//!
//! What the clock does twice a year:
//!
//! - An hour that is skipped: what would fire within it fires once, right after the gap.
//! - An hour that is repeated: what fires within it does so at the first pass alone.
//! - An expression for every hour (`*` in the field of the hour) follows time as it passes: it fires
//!   at each time that a wall clock shows it, in both passes, and not for minutes that never were.
//!
//! Intervals count elapsed seconds and know no time zone.
//!
//! Invariants: a fire is a whole second; [`Rule::next_after`] is strictly later than what it was
//! asked about, and going from fire to fire it leaves none out.

use chrono::{DateTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::check;
use crate::clock::Timestamp;
use crate::zone::Zone;

/// Longest expression.
pub const EXPRESSION_CHARS_MAX: usize = 200;

/// A second, in microseconds.
const SECOND: i64 = 1_000_000;

const NICKNAMES: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// The fields of an expression, from the seconds on, and what may stand in each.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    (
        "day of the month",
        "1 to 31, L for the last, W for the nearest weekday",
    ),
    ("month", "1 to 12 or JAN to DEC"),
    (
        "day of the week",
        "0 to 7 or SUN to SAT, MON#2 for the second, MONL for the last",
    ),
];

/// The least and the most of each field.
const RANGES: [(u32, u32); 6] = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];

/// What each field comes round in, and how many seconds its step of one is, if that is always the same.
const ROUNDS: [(&str, Option<u64>); 6] = [
    ("a minute", Some(1)),
    ("an hour", Some(60)),
    ("a day", Some(3_600)),
    ("a month", Some(86_400)),
    ("a year", None),
    ("a week", Some(86_400)),
];

/// Refuses a step that is longer than what it steps through: `*/90` in the field of the minute is not
/// every 90 minutes, as it looks, but once an hour. Other implementations take it in silence, and so do
/// the rows that are there already.
pub fn check_steps(text: &str) -> Result<(), String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let skipped = RANGES.len().saturating_sub(fields.len());
    for (at, field) in (skipped..RANGES.len()).zip(fields) {
        for part in field.split(',') {
            let Some((from, step)) = part.split_once('/') else {
                continue;
            };
            let Ok(step) = step.parse::<u64>() else {
                continue; // what is no number was refused before
            };
            let (least, most) = RANGES[at];
            let bound = |text: &str, other: u32| text.parse().unwrap_or(other);
            // Names stand for a day or a month; how many they are does not matter that much.
            let (first, last) = match from.split_once('-') {
                Some((first, last)) => (bound(first, least), bound(last, most)),
                None => (bound(from, least), most),
            };
            let places = u64::from(last.saturating_sub(first)) + 1;
            if step <= places {
                continue;
            }
            let ((name, _), (round, seconds)) = (FIELDS[at], ROUNDS[at]);
            let hint = match seconds {
                Some(seconds) => format!(
                    "; for every {step} {name}s use interval_seconds {} instead",
                    step.saturating_mul(seconds)
                ),
                None => String::new(),
            };
            // `day of the month` and `day of the week` step by days.
            let hint = hint
                .replace("day of the months", "days")
                .replace("day of the weeks", "days");
            return Err(format!(
                "the {name} `{}` steps by {step} where there are {places}: it would fire at the first \
                 of them alone, once {round}{hint}",
                check::shortened(part)
            ));
        }
    }
    Ok(())
}

/// When to fire.
#[derive(Clone, Debug)]
pub enum Rule {
    /// As an expression says.
    Cron(Box<Expression>),
    /// Every so many seconds.
    Every(i64),
}

impl Rule {
    /// The first fire after `after`. An interval counts from `anchor`, which is one of its fires, or
    /// the moment of its making.
    pub fn next_after(&self, after: Timestamp, anchor: Timestamp) -> Option<Timestamp> {
        match self {
            Rule::Cron(expression) => expression.next_after(after),
            Rule::Every(seconds) => {
                let step = seconds.saturating_mul(SECOND);
                let anchor = whole(anchor);
                let steps = after
                    .micros_since(anchor)
                    .div_euclid(step)
                    .saturating_add(1);
                Some(Timestamp(
                    anchor.0.saturating_add(steps.saturating_mul(step)),
                ))
            }
        }
    }
}

/// The second that a moment lies in.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_euclid(SECOND) * SECOND)
}

/// A cron expression in its time zone.
#[derive(Clone, Debug)]
pub struct Expression {
    cron: Cron,
    zone: Zone,
    is_hourly: bool,
}

impl Expression {
    /// Reads an expression, or says which field is wrong.
    pub fn parse(text: &str, zone: Zone) -> Result<Self, String> {
        let text = text.trim();
        if text.chars().count() > EXPRESSION_CHARS_MAX {
            return Err(format!("may have {EXPRESSION_CHARS_MAX} characters"));
        }
        let text = if text.starts_with('@') {
            let known = NICKNAMES
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(text));
            known.map(|(_, meaning)| *meaning).ok_or_else(|| {
                let names: Vec<&str> = NICKNAMES.iter().map(|(name, _)| *name).collect();
                format!("must be one of {} where it begins with @", names.join(", "))
            })?
        } else {
            text
        };
        let mut fields: Vec<&str> = text.split_whitespace().collect();
        match fields.len() {
            5 => fields.insert(0, "0"),
            6 => {}
            count => {
                return Err(format!(
                    "has {count} fields, expected 5 (minute, hour, day of the month, month, \
                     day of the week) or 6 (seconds in front)"
                ));
            }
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .year(Year::Disallowed)
            .build();
        // Each field by itself, so that the one at fault can be named.
        for (at, (name, allowed)) in FIELDS.iter().enumerate() {
            let mut alone = ["0", "0", "0", "*", "*", "*"];
            alone[at] = fields[at];
            if parser.parse(&alone.join(" ")).is_err() {
                return Err(format!(
                    "the {name} `{}` is not understood; it is {allowed}, or * , - / with them",
                    check::shortened(fields[at])
                ));
            }
        }
        let cron = parser
            .parse(&fields.join(" "))
            .map_err(|error| error.to_string())?;
        let made = Self {
            cron,
            zone,
            is_hourly: ["*", "*/1", "0-23"].contains(&fields[2]),
        };
        if made.next_after(Timestamp(0)).is_none() {
            return Err("never fires: no day fits".to_owned());
        }
        Ok(made)
    }

    /// The first fire after `after`.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = DateTime::from_timestamp_micros(whole(after).0)?;
        let next = if self.is_hourly {
            self.next_as_time_passes(after)
        } else {
            self.next_by_the_wall(after)
        }?;
        Some(Timestamp(next.timestamp_micros()))
    }

    /// The next match on a wall clock that is never changed.
    fn next_on_wall(&self, from: NaiveDateTime, is_inclusive: bool) -> Option<NaiveDateTime> {
        // croner reads the wall clock of whatever zone it is given: UTC's has neither gap nor repeat.
        let next = self
            .cron
            .find_next_occurrence(&from.and_utc(), is_inclusive)
            .ok()?;
        Some(next.naive_utc())
    }

    fn offset(&self, at: DateTime<Utc>) -> TimeDelta {
        let offset = self.zone.offset_from_utc_datetime(&at.naive_utc()).fix();
        TimeDelta::seconds(i64::from(offset.local_minus_utc()))
    }

    fn wall(&self, at: DateTime<Utc>) -> NaiveDateTime {
        at.naive_utc() + self.offset(at)
    }

    fn next_by_the_wall(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut wall = self.wall(after);
        loop {
            wall = self.next_on_wall(wall, false)?;
            let at = self.first_pass(wall)?;
            // What the first pass did is not done again in the second.
            if at > after {
                return Some(at);
            }
        }
    }

    /// The first moment at which the wall clock shows `wall`, or more if it never shows that.
    fn first_pass(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        if let Some(at) = self.zone.from_local_datetime(&wall).earliest() {
            return Some(at.with_timezone(&Utc));
        }
        // Within a gap: no zone is, or ever was, two days away from UTC.
        let (mut low, mut high) = (
            wall.and_utc() - TimeDelta::days(2),
            wall.and_utc() + TimeDelta::days(2),
        );
        while high - low > TimeDelta::seconds(1) {
            let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
            if self.wall(middle) > wall {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high)
    }

    fn next_as_time_passes(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (mut from, mut is_inclusive) = (after, false);
        loop {
            let offset = self.offset(from);
            let wall = self.next_on_wall(from.naive_utc() + offset, is_inclusive)?;
            let at = (wall - offset).and_utc();
            match self.first_change(from, at) {
                None => return Some(at),
                Some(change) => (from, is_inclusive) = (change, true),
            }
        }
    }

    /// The first moment after `from`, up to `to`, at which the zone has another offset.
    fn first_change(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset = self.offset(from);
        let mut low = from;
        while low < to {
            // Nowhere does an offset last for less than a day.
            let mut high = to.min(low + TimeDelta::days(1));
            if self.offset(high) == offset {
                low = high;
                continue;
            }
            while high - low > TimeDelta::seconds(1) {
                let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
                if self.offset(middle) == offset {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            return Some(high);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(text: &str, zone_name: &str) -> Expression {
        Expression::parse(text, Zone::named(zone_name).expect("a zone")).expect(text)
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).expect(text)
    }

    /// The fires after `from`, up to and with `until`.
    fn fires(rule: &Expression, from: &str, until: &str) -> Vec<String> {
        let (mut now, until) = (at(from), at(until));
        let mut all = Vec::new();
        while let Some(next) = rule.next_after(now).filter(|next| *next <= until) {
            assert!(next > now, "time goes on");
            all.push(next.to_string()[..19].to_owned());
            now = next;
        }
        all
    }

    #[test]
    fn a_skipped_hour_fires_once_right_after_the_gap() {
        let ny = "America/New_York";
        // 2026-03-08: 02:00 EST (07:00 UTC) becomes 03:00 EDT.
        let (from, until) = ("2026-03-08T05:00:00Z", "2026-03-08T12:00:00Z");
        for (text, expected) in [
            ("30 2 * * *", &["2026-03-08T07:00:00"][..]),
            ("*/10 2 * * *", &["2026-03-08T07:00:00"]),
            ("0 2,3 * * *", &["2026-03-08T07:00:00"]),
            ("0 3 * * *", &["2026-03-08T07:00:00"]),
            (
                "30 1,3 * * *",
                &["2026-03-08T06:30:00", "2026-03-08T07:30:00"],
            ),
        ] {
            assert_eq!(
                fires(&expression(text, ny), from, until),
                expected,
                "{text}"
            );
        }
        // The day after it is the ordinary time again.
        let next = expression("30 2 * * *", ny).next_after(at("2026-03-08T07:00:00Z"));
        assert_eq!(next, Some(at("2026-03-09T06:30:00Z")));
        // Lord Howe leaps by half an hour: 2026-10-04 02:00 +10:30 (15:30 UTC the day before) to 02:30.
        let lord = expression("15 2 * * *", "Australia/Lord_Howe");
        assert_eq!(
            fires(&lord, "2026-10-03T00:00:00Z", "2026-10-04T23:00:00Z"),
            ["2026-10-03T15:30:00", "2026-10-04T15:15:00"]
        );
    }

    #[test]
    fn a_repeated_hour_fires_at_the_first_pass_alone() {
        let ny = "America/New_York";
        // 2026-11-01: 02:00 EDT (06:00 UTC) becomes 01:00 EST.
        let (from, until) = ("2026-11-01T04:00:00Z", "2026-11-01T09:00:00Z");
        for (text, expected) in [
            ("30 1 * * *", &["2026-11-01T05:30:00"][..]),
            (
                "*/20 1 * * *",
                &[
                    "2026-11-01T05:00:00",
                    "2026-11-01T05:20:00",
                    "2026-11-01T05:40:00",
                ],
            ),
            (
                "0 1,2 * * *",
                &["2026-11-01T05:00:00", "2026-11-01T07:00:00"],
            ),
        ] {
            assert_eq!(
                fires(&expression(text, ny), from, until),
                expected,
                "{text}"
            );
        }
        // Asked in the middle of the second pass, the answer is tomorrow.
        let next = expression("30 1 * * *", ny).next_after(at("2026-11-01T06:10:00Z"));
        assert_eq!(next, Some(at("2026-11-02T06:30:00Z")));
        // Lord Howe falls back by half an hour: 2026-04-05 02:00 +11 (15:00 UTC the day before) to 01:30.
        let lord = expression("45 1 * * *", "Australia/Lord_Howe");
        assert_eq!(
            fires(&lord, "2026-04-04T00:00:00Z", "2026-04-05T23:00:00Z"),
            ["2026-04-04T14:45:00", "2026-04-05T15:15:00"]
        );
    }

    #[test]
    fn every_hour_means_every_hour_that_passes() {
        let ny = "America/New_York";
        let hourly = expression("30 * * * *", ny);
        assert_eq!(
            fires(&hourly, "2026-03-08T06:00:00Z", "2026-03-08T09:00:00Z"),
            [
                "2026-03-08T06:30:00",
                "2026-03-08T07:30:00",
                "2026-03-08T08:30:00"
            ]
        );
        assert_eq!(
            fires(&hourly, "2026-11-01T05:00:00Z", "2026-11-01T08:00:00Z"),
            [
                "2026-11-01T05:30:00",
                "2026-11-01T06:30:00",
                "2026-11-01T07:30:00"
            ]
        );
        // Half an hour back at Lord Howe: the wall shows 01:45 twice.
        let lord = expression("45 * * * *", "Australia/Lord_Howe");
        assert_eq!(
            fires(&lord, "2026-04-04T14:00:00Z", "2026-04-04T16:30:00Z"),
            [
                "2026-04-04T14:45:00",
                "2026-04-04T15:15:00",
                "2026-04-04T16:15:00"
            ]
        );
    }

    #[test]
    fn shanghai_knows_no_change() {
        let nightly = expression("0 1 * * *", "Asia/Shanghai");
        let all = fires(&nightly, "2025-12-31T17:00:00Z", "2026-12-31T17:00:00Z");
        assert_eq!(all.len(), 365);
        assert!(
            all.iter().all(|fire| fire.ends_with("T17:00:00")),
            "{all:?}"
        );
    }

    /// What an expression means, said by looking at every second that matters: at each minute of the
    /// year, which wall times have come up since the minute before.
    fn by_brute_force(
        matches: impl Fn(NaiveDateTime) -> bool,
        is_hourly: bool,
        zone_name: &str,
        from: Timestamp,
        minutes: i64,
    ) -> Vec<Timestamp> {
        let zone = Zone::named(zone_name).expect("a zone");
        let wall = |time: Timestamp| {
            let utc = DateTime::from_timestamp_micros(time.0).expect("a time");
            utc.with_timezone(&zone).naive_local()
        };
        let minute = TimeDelta::minutes(1);
        let mut all = Vec::new();
        // The latest that the wall has ever shown.
        let mut shown = wall(from);
        for step in 1..=minutes {
            let now = from.plus_seconds(step * 60);
            let here = wall(now);
            let fires = if is_hourly {
                matches(here)
            } else {
                let mut any = false;
                while shown < here {
                    shown += minute;
                    any |= matches(shown);
                }
                any
            };
            if fires {
                all.push(now);
            }
        }
        all
    }

    #[test]
    fn a_year_of_minutes_agrees_with_brute_force() {
        use chrono::{Datelike, Timelike};
        type Matches = fn(NaiveDateTime) -> bool;
        let cases: [(&str, bool, Matches); 8] = [
            ("*/7 * * * *", true, |t| t.minute() % 7 == 0),
            ("30 * * * *", true, |t| t.minute() == 30),
            ("15 */2 * * *", false, |t| {
                t.minute() == 15 && t.hour() % 2 == 0
            }),
            ("5,50 1-3 * * *", false, |t| {
                [5, 50].contains(&t.minute()) && (1..=3).contains(&t.hour())
            }),
            ("* 2 * * 0", false, |t| {
                t.hour() == 2 && t.weekday().num_days_from_sunday() == 0
            }),
            ("0 0 1 * *", false, |t| {
                (t.minute(), t.hour(), t.day()) == (0, 0, 1)
            }),
            // Either day suffices where both are restricted.
            ("45 1 13 * FRI", false, |t| {
                (t.minute(), t.hour()) == (45, 1)
                    && (t.day() == 13 || t.weekday().num_days_from_sunday() == 5)
            }),
            ("20 * 3-9 MAR,OCT *", true, |t| {
                t.minute() == 20 && (3..=9).contains(&t.day()) && [3, 10].contains(&t.month())
            }),
        ];
        let (from, minutes) = (at("2025-12-31T23:59:00Z"), 366 * 24 * 60);
        let until = from.plus_seconds(minutes * 60);
        for zone_name in [
            "UTC",
            "Asia/Shanghai",
            "America/New_York",
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "Asia/Kathmandu",
            "Africa/Casablanca",
            "America/St_Johns",
        ] {
            for (text, is_hourly, matches) in &cases {
                let rule = expression(text, zone_name);
                assert_eq!(rule.is_hourly, *is_hourly);
                let mut now = from;
                let mut all = Vec::new();
                while let Some(next) = rule.next_after(now).filter(|next| *next <= until) {
                    all.push(next);
                    now = next;
                }
                let expected = by_brute_force(matches, *is_hourly, zone_name, from, minutes);
                let first = all.iter().zip(&expected).find(|(a, b)| a != b);
                assert_eq!(first, None, "{text} in {zone_name}");
                assert_eq!(all.len(), expected.len(), "{text} in {zone_name}");
                // And whatever moment one asks about, the answer is the first fire after it.
                for pair in all.windows(2).step_by(97) {
                    let between = Timestamp((pair[0].0 + pair[1].0) / 2 + 1);
                    assert_eq!(rule.next_after(between), Some(pair[1]), "{text}");
                }
            }
        }
    }

    #[test]
    fn seconds_names_and_nicknames_are_understood() {
        let from = at("2026-01-01T00:00:00.5Z");
        for (text, expected) in [
            ("*/10 * * * * *", "2026-01-01T00:00:10Z"),
            ("30 15 6 * * *", "2026-01-01T06:15:30Z"),
            ("0 12 * * mon-fri", "2026-01-01T12:00:00Z"),
            ("0 12 * * SUN", "2026-01-04T12:00:00Z"),
            ("0 12 * * 7", "2026-01-04T12:00:00Z"),
            ("0 0 L * *", "2026-01-31T00:00:00Z"),
            ("0 0 * * MON#2", "2026-01-12T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("@hourly", "2026-01-01T01:00:00Z"),
            ("@Daily", "2026-01-02T00:00:00Z"),
            ("@midnight", "2026-01-02T00:00:00Z"),
            ("@weekly", "2026-01-04T00:00:00Z"),
            ("@monthly", "2026-02-01T00:00:00Z"),
            ("@yearly", "2027-01-01T00:00:00Z"),
        ] {
            let next = expression(text, "UTC").next_after(from);
            assert_eq!(next, Some(at(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("", "has 0 fields"),
            ("* * * *", "has 4 fields"),
            ("* * * * * * *", "has 7 fields"),
            ("60 * * * *", "the minute `60`"),
            ("0 24 * * *", "the hour `24`"),
            ("0 0 32 * *", "the day of the month `32`"),
            ("0 0 * 13 *", "the month `13`"),
            ("0 0 * * 8", "the day of the week `8`"),
            ("0 0 * * FOO", "the day of the week `FOO`"),
            ("61 0 0 * * *", "the second `61`"),
            ("*/0 * * * *", "the minute `*/0`"),
            ("5-1 * * * *", "the minute `5-1`"),
            ("0 0 31 2 *", "never fires"),
            ("@fortnightly", "@monthly"),
            ("@reboot", "must be one of"),
        ] {
            let error = Expression::parse(text, Zone::utc()).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_step_that_does_not_fit_is_refused_with_what_was_meant() {
        for (text, words) in [
            (
                "*/90 * * * *",
                "once an hour; for every 90 minutes use interval_seconds 5400",
            ),
            ("*/61 * * * *", "where there are 60"),
            (
                "0 */25 * * *",
                "once a day; for every 25 hours use interval_seconds 90000",
            ),
            (
                "0 0 */40 * *",
                "once a month; for every 40 days use interval_seconds 3456000",
            ),
            ("0 0 1 */13 *", "once a year"),
            ("0 0 * * */8", "once a week; for every 8 days use"),
            (
                "*/120 * * * * *",
                "once a minute; for every 120 seconds use interval_seconds 120",
            ),
            ("0 */90 * * * *", "for every 90 minutes"),
            ("0,30,*/90 * * * *", "`*/90`"),
            ("0-29/45 * * * *", "where there are 30"),
            ("50/20 * * * *", "where there are 10"),
        ] {
            Expression::parse(text, Zone::utc()).expect(text);
            let error = check_steps(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        for text in [
            "*/60 * * * *",
            "*/7 * * * *",
            "0 */24 * * *",
            "0 0 */31 * *",
            "0 0 1 */12 *",
            "0 0 * * */7",
            "0 0 * JAN-JUN/2 MON-FRI/2",
            "5-50/15 * * * *",
            "59 * * * *",
            "@hourly",
            "0 0 L * *",
        ] {
            Expression::parse(text, Zone::utc()).expect(text);
            assert_eq!(check_steps(text), Ok(()), "{text}");
        }
    }

    /// The issue's own: at noon of the first of each month, in a province that keeps summer time.
    #[test]
    fn noon_in_vancouver_is_at_seven_in_the_evening_from_2026_on() {
        let noon = expression("0 12 1 * *", "America/Vancouver");
        assert_eq!(
            fires(&noon, "2026-09-30T00:00:00Z", "2027-02-28T00:00:00Z"),
            [
                "2026-10-01T19:00:00",
                "2026-11-01T19:00:00",
                "2026-12-01T19:00:00",
                "2027-01-01T19:00:00",
                "2027-02-01T19:00:00"
            ]
        );
    }

    #[test]
    fn an_interval_keeps_its_step_whatever_is_asked() {
        let rule = Rule::Every(300);
        let anchor = at("2026-01-01T00:00:07Z");
        for (after, expected) in [
            ("2026-01-01T00:00:07Z", "2026-01-01T00:05:07Z"),
            ("2026-01-01T00:05:06.999999Z", "2026-01-01T00:05:07Z"),
            ("2026-01-03T10:00:00Z", "2026-01-03T10:00:07Z"),
            ("2025-12-31T23:59:00Z", "2026-01-01T00:00:07Z"),
        ] {
            assert_eq!(rule.next_after(at(after), anchor), Some(at(expected)));
        }
    }
}
