//! Days as a shop counts them: from midnight to midnight of its own time zone.
//!
//! Invariants: the days of a range follow each other without gap or overlap, whatever the clocks of
//! the zone do, so that each order is on exactly one of them; a range is bounded.

use chrono::{Days as Span, NaiveDate, NaiveTime, TimeDelta, TimeZone};

use crate::check::{Checks, FieldError};
use crate::clock::Timestamp;
use crate::zone::Zone;

/// Clock changes leave out an hour as a rule; once a zone left out a whole day.
const GAP_SECONDS_MAX: i64 = 2 * 86_400;

/// The days from one date to another, both included.
#[derive(Clone, Debug, PartialEq)]
pub struct Days {
    first: NaiveDate,
    last: NaiveDate,
    zone: Zone,
    /// The start of each day, and the end of the last.
    bounds: Vec<Timestamp>,
}

impl Days {
    /// The days from `start_date` to `end_date`, written as `2026-11-11`.
    pub fn parse(
        start_date: &str,
        end_date: &str,
        zone: Zone,
        days_max: u32,
    ) -> Result<Self, Vec<FieldError>> {
        let (first, last) = dates(start_date, end_date)?;
        let count = last.signed_duration_since(first).num_days() + 1;
        let mut checks = Checks::new();
        checks.require(
            count <= i64::from(days_max),
            "end_date",
            format!("must be within {days_max} days of start_date"),
        );
        checks.finish()?;
        let mut bounds = Vec::with_capacity(usize::try_from(count).unwrap_or(0) + 1);
        let mut day = first;
        for _ in 0..=count {
            bounds.push(start_of(day, &zone));
            day = day + Span::new(1);
        }
        Ok(Self {
            first,
            last,
            zone,
            bounds,
        })
    }

    /// How many there are: at least one.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// First moment of the first day.
    pub fn from(&self) -> Timestamp {
        self.bounds[0]
    }

    /// First moment after the last day.
    pub fn until(&self) -> Timestamp {
        self.bounds[self.len()]
    }

    /// The day of a moment within the range, looked for from the day `from` on: for moments that come
    /// in their order.
    pub fn place(&self, from: usize, at: Timestamp) -> usize {
        let mut place = from;
        while place + 1 < self.len() && at >= self.bounds[place + 1] {
            place += 1;
        }
        place
    }

    /// The date of a day of the range, from 0.
    pub fn date(&self, place: usize) -> String {
        (self.first + Span::new(place as u64)).to_string()
    }

    /// The first date.
    pub fn first_date(&self) -> String {
        self.first.to_string()
    }

    /// The last date.
    pub fn last_date(&self) -> String {
        self.last.to_string()
    }

    /// Whose midnights they are.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }
}

/// The two dates of a range, however long it is.
pub(super) fn dates(
    start_date: &str,
    end_date: &str,
) -> Result<(NaiveDate, NaiveDate), Vec<FieldError>> {
    let reason = "must be a date such as 2026-11-11, from the years 1970 to 9998";
    let mut checks = Checks::new();
    let (first, last) = (date(start_date), date(end_date));
    checks.require(first.is_some(), "start_date", reason);
    checks.require(last.is_some(), "end_date", reason);
    if let (Some(first), Some(last)) = (first, last) {
        checks.require(last >= first, "end_date", "must not be before start_date");
    }
    checks.finish()?;
    Ok((first.unwrap_or_default(), last.unwrap_or_default()))
}

/// `2026-11-11`, and nothing that only resembles it.
fn date(text: &str) -> Option<NaiveDate> {
    let is_plain = text.len() == 10 && text.bytes().all(|byte| b"0123456789-".contains(&byte));
    let date = is_plain.then(|| text.parse::<NaiveDate>().ok())??;
    let year = chrono::Datelike::year(&date);
    (1970..=9998).contains(&year).then_some(date)
}

/// When the clocks of `zone` first show the day: at midnight, or, where a change of the clocks leaves
/// that out, at what comes after. Where midnight comes twice it is the first.
fn start_of(day: NaiveDate, zone: &Zone) -> Timestamp {
    let midnight = day.and_time(NaiveTime::MIN);
    let start = (0..=GAP_SECONDS_MAX).find_map(|seconds| {
        let shown = midnight.checked_add_signed(TimeDelta::seconds(seconds))?;
        zone.from_local_datetime(&shown).earliest()
    });
    let micros = match start {
        Some(start) => start.timestamp_micros(),
        None => midnight.and_utc().timestamp_micros(), // no zone is like that
    };
    Timestamp(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use proptest::prelude::*;

    fn days(first: &str, last: &str, zone: &str) -> Days {
        let zone = Zone::named(zone).expect("a zone");
        Days::parse(first, last, zone, 4_000).expect("days")
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(text).expect("a time")
    }

    #[test]
    fn days_begin_at_the_midnights_of_the_zone() {
        let utc = days("2026-11-11", "2026-11-11", "UTC");
        assert_eq!(
            (utc.from(), utc.until()),
            (at("2026-11-11T00:00:00Z"), at("2026-11-12T00:00:00Z"))
        );
        let shanghai = days("2026-11-11", "2026-11-12", "Asia/Shanghai");
        assert_eq!(shanghai.from(), at("2026-11-10T16:00:00Z"));
        assert_eq!(
            (shanghai.len(), shanghai.date(1)),
            (2, "2026-11-12".to_owned())
        );
        let hours = |first: &str, zone| {
            let day = days(first, first, zone);
            day.until().micros_since(day.from()) / 3_600_000_000
        };
        assert_eq!(hours("2026-03-29", "Europe/Berlin"), 23);
        assert_eq!(hours("2026-10-25", "Europe/Berlin"), 25);
        assert_eq!(hours("2026-03-08", "America/New_York"), 23);
        // Where the clocks are changed at midnight, the day begins at one.
        let beirut = days("2022-03-27", "2022-03-27", "Asia/Beirut");
        assert_eq!(beirut.from(), at("2022-03-26T22:00:00Z"));
        assert_eq!(hours("2022-03-27", "Asia/Beirut"), 23);
        // Samoa went without a day.
        assert_eq!(hours("2011-12-30", "Pacific/Apia"), 0);
        assert_eq!(hours("2011-12-31", "Pacific/Apia"), 24);
    }

    #[test]
    fn a_day_that_begins_twice_begins_at_the_first_midnight() {
        // Havana's clocks are set back at one, to midnight. In 2025 they were; for 2026 the older data
        // says so, and the newer that Cuba stays on summer time: its rule of before, then, as it was.
        let old = Zone::by_rule("CST5CDT,M3.2.0/0,M11.1.0/1");
        let now = Zone::named("America/Havana").expect("a zone");
        for (zone, date, next, first, second, end) in [
            (
                now,
                "2025-11-02",
                "2025-11-03",
                "2025-11-02T04:00:00Z",
                "2025-11-02T05:00:00Z",
                "2025-11-03T05:00:00Z",
            ),
            (
                old,
                "2026-11-01",
                "2026-11-02",
                "2026-11-01T04:00:00Z",
                "2026-11-01T05:00:00Z",
                "2026-11-02T05:00:00Z",
            ),
        ] {
            let day = Days::parse(date, date, zone.clone(), 1).expect("a day");
            assert_eq!((day.from(), day.until()), (at(first), at(end)), "{date}");
            let before = at(first).plus_seconds(-86_400);
            let days = Days::parse(&before.to_string()[..10], next, zone, 3).expect("days");
            assert_eq!((days.from(), days.len()), (before, 3));
            for (moment, place) in [
                (Timestamp(at(first).0 - 1), 0),
                (at(first), 1),
                (Timestamp(at(second).0 - 1), 1),
                (at(second), 1),
                (Timestamp(at(end).0 - 1), 1),
                (at(end), 2),
            ] {
                assert_eq!(days.place(0, moment), place, "{moment}");
            }
        }
        // In spring the day goes without its midnight.
        let spring = days("2026-03-08", "2026-03-08", "America/Havana");
        assert_eq!(
            (spring.from(), spring.until()),
            (at("2026-03-08T05:00:00Z"), at("2026-03-09T04:00:00Z"))
        );
    }

    #[test]
    fn what_is_no_range_is_refused_with_its_field() {
        let fields = |first: &str, last: &str| -> Vec<String> {
            Days::parse(first, last, Zone::utc(), 366)
                .expect_err("no range")
                .into_iter()
                .map(|fault| fault.field)
                .collect()
        };
        for text in [
            "",
            "2026-1-5",
            "2026-02-30",
            "11.11.2026",
            "+2026-1-01",
            "1969-12-31",
            "9999-01-01",
            "2026-11-11T00:00:00Z",
        ] {
            assert_eq!(fields(text, "2026-11-11"), ["start_date"], "{text}");
            assert_eq!(fields("2026-11-11", text), ["end_date"], "{text}");
        }
        assert_eq!(fields("x", "y"), ["start_date", "end_date"]);
        assert_eq!(fields("2026-11-11", "2026-11-10"), ["end_date"]);
        assert_eq!(fields("2026-01-01", "2027-01-02"), ["end_date"]);
        assert_eq!(days("2024-01-01", "2024-12-31", "UTC").len(), 366);
    }

    proptest! {
        /// Each moment is on the day that the clocks of the zone show; only where they show a day a
        /// second time, after going back over its midnight, is it on the day after.
        #[test]
        fn a_moment_is_on_the_day_that_the_clock_shows(
            zone in 0..chrono_tz::TZ_VARIANTS.len(),
            first in 0..20_000u64,
            moments in proptest::collection::vec(0..40i64 * 86_400, 1..50),
        ) {
            let name = chrono_tz::TZ_VARIANTS[zone].name();
            let zone = Zone::named(name).expect(name);
            let first = NaiveDate::default() + Span::new(first);
            let last = first + Span::new(39);
            let days = days(&first.to_string(), &last.to_string(), name);
            prop_assert!(days.bounds.is_sorted());
            let mut moments = moments;
            moments.sort_unstable();
            let mut place = 0;
            for seconds in moments {
                let at = days.from().plus_seconds(seconds);
                if at >= days.until() {
                    break;
                }
                place = days.place(place, at);
                let shown = DateTime::from_timestamp_micros(at.0)
                    .expect("a moment")
                    .with_timezone(&zone)
                    .date_naive()
                    .to_string();
                let before = place.checked_sub(1).map(|place| days.date(place));
                let is_shown_again = before.as_ref() == Some(&shown)
                    && at.micros_since(days.bounds[place]) <= 2 * 3_600_000_000;
                prop_assert!(days.date(place) == shown || is_shown_again, "{at} {zone}");
            }
        }
    }
}
