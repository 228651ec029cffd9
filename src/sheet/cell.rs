//! What stands in a field: numbers, amounts and times as spreadsheet programs write them.
//!
//! Invariants: what can be read in two ways is refused with both; a file writes its decimals in one
//! way from its first row to its last; nothing goes through floating point.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Utc};

use crate::clock::Timestamp;

/// Why a field is not what it should be.
pub type Reason = Cow<'static, str>;

/// What stands before the decimals of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Point,
    Comma,
}

impl Mark {
    fn char(self) -> char {
        match self {
            Mark::Point => '.',
            Mark::Comma => ',',
        }
    }
}

/// How a file writes numbers, learned from the first one that can be read in one way only.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// What stands before decimals, and the line that showed it.
    shown: Option<(Mark, u64)>,
    /// What it is taken for until then: a program that separates columns by commas has no decimal
    /// comma, as a rule.
    assumed: Option<Mark>,
}

/// Said of what is no number at all.
pub const NO_NUMBER: Reason = Cow::Borrowed("is not a number");

impl Numbers {
    /// Of a file with this between its columns.
    pub fn of(delimiter: u8) -> Self {
        Self {
            shown: None,
            assumed: (delimiter == b',').then_some(Mark::Point),
        }
    }

    /// A number of the line `line` as digits with at most one point: `1.234,50` is `1234.50`.
    /// `decimals` is how many digits after the point it may have.
    pub fn plain<'a>(
        &mut self,
        text: &'a str,
        line: u64,
        decimals: usize,
    ) -> Result<Cow<'a, str>, Reason> {
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !text.is_empty() && is_digits(text) {
            return Ok(Cow::Borrowed(text));
        }
        // The common case, without an allocation.
        if let Some((whole, part)) = text.split_once('.')
            && part.len() != 3
            && !whole.is_empty()
            && is_digits(whole)
            && is_digits(part)
        {
            self.show(Mark::Point, line)?;
            return Ok(Cow::Borrowed(text));
        }
        let text: String = text.chars().map(narrow).collect();
        if text.is_empty()
            || !text
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | ' ' | '\''))
        {
            return Err(NO_NUMBER);
        }
        let (mark, groups) = self.marks(&text, line, decimals)?;
        let (whole, part) = match mark {
            Some(mark) => text.split_once(mark.char()).ok_or(NO_NUMBER)?,
            None => (text.as_str(), ""),
        };
        let whole = match groups {
            Some(group) => ungrouped(whole, group).ok_or(NO_NUMBER)?,
            None => whole.to_owned(),
        };
        if whole.is_empty() || !is_digits(&whole) || !is_digits(part) {
            return Err(NO_NUMBER);
        }
        Ok(Cow::Owned(match part {
            "" => whole,
            part => format!("{whole}.{part}"),
        }))
    }

    /// What stands before the decimals of a number, and between its groups of three digits.
    fn marks(
        &mut self,
        text: &str,
        line: u64,
        decimals: usize,
    ) -> Result<(Option<Mark>, Option<char>), Reason> {
        let count = |c: char| text.matches(c).count();
        let other = match (count(' '), count('\'')) {
            (0, 0) => None,
            (_, 0) => Some(' '),
            (0, _) => Some('\''),
            _ => return Err(NO_NUMBER),
        };
        let (mark, group) = match (count('.'), count(',')) {
            (0, 0) => return Ok((None, other)),
            (1.., 1..) => {
                // The last one stands before the decimals.
                let (mark, group) = match text.rfind('.') > text.rfind(',') {
                    true => (Mark::Point, ','),
                    false => (Mark::Comma, '.'),
                };
                self.show(mark, line)?;
                return Ok((Some(mark), Some(group)));
            }
            (1, 0) => (Mark::Point, Mark::Comma),
            (0, 1) => (Mark::Comma, Mark::Point),
            // Several stand between groups.
            (_, 0) => {
                self.show(Mark::Comma, line)?;
                return Ok((None, Some('.')));
            }
            (0, _) => {
                self.show(Mark::Point, line)?;
                return Ok((None, Some(',')));
            }
        };
        let (whole, part) = text.split_once(mark.char()).ok_or(NO_NUMBER)?;
        if part.len() != 3 || !(1..=3).contains(&whole.len()) || whole.starts_with('0') {
            self.show(mark, line)?;
            return Ok((Some(mark), other));
        }
        // One mark with three digits after it.
        let assumed = self
            .assumed
            .filter(|assumed| *assumed == mark || decimals < 3);
        match self.shown.map(|(shown, _)| shown).or(assumed) {
            Some(decimal) => {
                self.show(decimal, line)?;
                Ok(match decimal == mark {
                    true => (Some(mark), None),
                    false => (None, Some(mark.char())),
                })
            }
            None if decimals == 0 => {
                self.show(group, line)?;
                Ok((None, Some(mark.char())))
            }
            None => Err(Cow::Owned(format!(
                "could mean {whole}{part} or {whole}.{part}; write it without a mark between thousands"
            ))),
        }
    }

    fn show(&mut self, mark: Mark, line: u64) -> Result<(), Reason> {
        match self.shown {
            Some((shown, at)) if shown != mark => Err(Cow::Owned(format!(
                "the decimals stand after `{}` here and after `{}` in line {at}; write all numbers of the file alike",
                mark.char(),
                shown.char()
            ))),
            Some(_) => Ok(()),
            None => {
                self.shown = Some((mark, line));
                Ok(())
            }
        }
    }

    /// A whole number; `None` where nothing stands. Zeros after the point don't count.
    pub fn whole(&mut self, text: &str, line: u64) -> Result<Option<i64>, Reason> {
        const NO_WHOLE: Reason = Cow::Borrowed("is not a whole number");
        if text.is_empty() {
            return Ok(None);
        }
        if let Ok(number) = text.parse() {
            return Ok(Some(number));
        }
        // With two decimals: `1.234` is no whole number for certain.
        let plain = self.plain(text, line, 2).map_err(|reason| {
            if reason == NO_NUMBER {
                NO_WHOLE
            } else {
                reason
            }
        })?;
        let (whole, part) = plain.split_once('.').unwrap_or((&plain, ""));
        match whole.parse() {
            Ok(number) if part.bytes().all(|byte| byte == b'0') => Ok(Some(number)),
            _ => Err(NO_WHOLE),
        }
    }
}

/// A character of full width as the narrow one, and every blank and apostrophe that stands between
/// thousands as the plain one.
fn narrow(c: char) -> char {
    match c {
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(u32::from(c) - 0xFEE0).unwrap_or(c),
        '\u{A0}' | '\u{2009}' | '\u{202F}' | '\u{3000}' => ' ',
        '\u{2019}' => '\'',
        other => other,
    }
}

/// Digits in groups of three, as one.
fn ungrouped(whole: &str, group: char) -> Option<String> {
    let mut groups = whole.split(group);
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let fits = (1..=3).contains(&first.len()) && rest.iter().all(|part| part.len() == 3);
    (rest.is_empty() || fits).then(|| format!("{first}{}", rest.concat()))
}

/// The signs of currencies that may stand at an amount, longest first, and what each can mean.
const SIGNS: &[(&str, &[&str])] = &[
    ("HK$", &["HKD"]),
    ("NT$", &["TWD"]),
    ("US$", &["USD"]),
    ("R$", &["BRL"]),
    ("S$", &["SGD"]),
    ("A$", &["AUD"]),
    ("C$", &["CAD"]),
    (
        "$",
        &[
            "USD", "ARS", "AUD", "BBD", "BMD", "BND", "BSD", "BZD", "CAD", "CLP", "COP", "FJD",
            "GYD", "HKD", "JMD", "KYD", "LRD", "MXN", "NAD", "NZD", "SBD", "SGD", "SRD", "TTD",
            "TWD", "UYU", "XCD",
        ],
    ),
    ("¥", &["CNY", "JPY"]),
    ("￥", &["CNY", "JPY"]),
    ("元", &["CNY"]),
    ("円", &["JPY"]),
    ("€", &["EUR"]),
    ("£", &["GBP", "EGP", "FKP", "GIP", "SHP"]),
    ("₩", &["KRW"]),
    ("₹", &["INR"]),
    ("₽", &["RUB"]),
    ("₫", &["VND"]),
    ("฿", &["THB"]),
];

/// An amount without the sign or the code of its currency, which must be `currency`.
pub fn without_sign<'a>(text: &'a str, currency: &str) -> Result<&'a str, Reason> {
    // The common case.
    let bare = |text: &str| {
        let ends = [text.chars().next(), text.chars().next_back()];
        ends.iter().flatten().all(char::is_ascii_digit)
    };
    if bare(text) {
        return Ok(text);
    }
    let mut rest = text;
    for (sign, currencies) in SIGNS {
        let taken = rest.strip_prefix(sign).or_else(|| rest.strip_suffix(sign));
        if let Some(taken) = taken {
            if !currencies.contains(&currency) {
                return Err(Cow::Owned(format!(
                    "has the sign {sign}, and the currency is {currency}"
                )));
            }
            rest = taken.trim();
            break;
        }
    }
    let taken = rest
        .strip_prefix(currency)
        .or_else(|| rest.strip_suffix(currency));
    Ok(taken.map_or(rest, str::trim))
}

/// Whether a spreadsheet program shortened a long number to powers of ten, `6.90123E+12`: what stood
/// there is lost, and two of them may look alike.
pub fn is_shortened(text: &str) -> bool {
    let Some((number, power)) = text.split_once("E+") else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = number.split_once(['.', ',']).unwrap_or((number, "0"));
    whole.len() == 1 && digits(whole) && digits(part) && power.len() >= 2 && digits(power)
}

/// What is said of such a field.
pub const SHORTENED: &str = "is a number that the spreadsheet program shortened; give its column the format \"text\" and fill it anew";

const NO_TIME: &str = "is no time, such as 2026-11-11T00:00:00Z or 2026/11/11 9:03";

/// A moment: with an offset as RFC 3339 has it, else by the clocks of `zone`. A time that they leave
/// out is the first moment after that; of one that they show twice it is the first.
pub fn moment<Z: TimeZone>(text: &str, zone: &Z) -> Result<Timestamp, Reason> {
    if let Some(at) = Timestamp::parse_rfc3339(text) {
        return Ok(at);
    }
    let wall = wall_time(text)?;
    let at = first_moment(wall, zone).ok_or(Cow::Borrowed(NO_TIME))?;
    // The bounds of what a shop means are the same.
    Timestamp::parse_rfc3339(&at.to_rfc3339()).ok_or(Cow::Borrowed(NO_TIME))
}

fn first_moment<Z: TimeZone>(wall: NaiveDateTime, zone: &Z) -> Option<DateTime<Utc>> {
    if let Some(at) = zone.from_local_datetime(&wall).earliest() {
        return Some(at.with_timezone(&Utc));
    }
    // Within a gap: no zone is, or ever was, two days away from UTC.
    let days = TimeDelta::days(2);
    let (mut low, mut high) = (
        wall.checked_sub_signed(days)?.and_utc(),
        wall.checked_add_signed(days)?.and_utc(),
    );
    let shown = |at: DateTime<Utc>| {
        let offset = zone.offset_from_utc_datetime(&at.naive_utc()).fix();
        at.naive_utc() + TimeDelta::seconds(i64::from(offset.local_minus_utc()))
    };
    while high - low > TimeDelta::seconds(1) {
        let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
        if shown(middle) > wall {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// A date, or a date and a time of day, in the forms that spreadsheet programs write.
fn wall_time(text: &str) -> Result<NaiveDateTime, Reason> {
    let text: String = text.chars().map(narrow).collect();
    let is_number = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
            && text.matches('.').count() <= 1
    };
    if is_number(&text) {
        return Err(Cow::Borrowed(
            "is a bare number; give its column the format of a date",
        ));
    }
    let (date, time) = halves(&text);
    let date = date_of(date)?;
    let time = match time {
        "" => NaiveTime::MIN,
        time => time_of_day(time).ok_or(Cow::Borrowed(NO_TIME))?,
    };
    Ok(date.and_time(time))
}

/// The date and what comes after it.
fn halves(text: &str) -> (&str, &str) {
    let after_day = text
        .find('日')
        .map(|at| (&text[..at], &text[at + '日'.len_utf8()..]));
    let (date, time) = after_day
        .or_else(|| text.split_once(' '))
        .or_else(|| text.split_once('T'))
        .unwrap_or((text, ""));
    (date.trim(), time.trim())
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];

fn date_of(text: &str) -> Result<NaiveDate, Reason> {
    let wrong = || Cow::Borrowed(NO_TIME);
    let parts: Vec<&str> = text.split(['-', '/', '.', '年', '月']).collect();
    let [first, second, third] = parts[..] else {
        return Err(wrong());
    };
    let number = |text: &str| -> Option<u32> {
        let is_short = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        is_short.then(|| text.parse().ok())?
    };
    let month_name = |text: &str| {
        let name = text.to_ascii_lowercase();
        (1..)
            .zip(MONTHS)
            .find(|(_, month)| *month == name)
            .map(|(number, _)| number)
    };
    let date = |year: u32, month: u32, day: u32| {
        NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)
    };
    if first.len() == 4 {
        let (Some(year), Some(month), Some(day)) = (number(first), number(second), number(third))
        else {
            return Err(wrong());
        };
        return date(year, month, day).ok_or_else(wrong);
    }
    let (Some(first), Some(year)) = (number(first), number(third)) else {
        return Err(wrong());
    };
    if third.len() != 4 {
        return Err(Cow::Borrowed(
            "has a year of two digits; write it as 2026-11-11",
        ));
    }
    if let Some(month) = month_name(second) {
        return date(year, month, first).ok_or_else(wrong);
    }
    let second = number(second).ok_or_else(wrong)?;
    // With points it is the day that comes first.
    let by_day = date(year, second, first);
    let by_month = date(year, first, second).filter(|_| !text.contains('.'));
    match (by_day, by_month) {
        (Some(day), Some(month)) if day != month => Err(Cow::Owned(format!(
            "could mean {day} or {month}; write the year first"
        ))),
        (Some(date), _) | (None, Some(date)) => Ok(date),
        (None, None) => Err(wrong()),
    }
}

/// `9:03`, `09:03:15.5`, `9:03 PM`, `上午9:03`.
fn time_of_day(text: &str) -> Option<NaiveTime> {
    let text = text.trim().to_ascii_uppercase();
    let halves: [(&str, u32); 4] = [("AM", 0), ("PM", 12), ("上午", 0), ("下午", 12)];
    let half = halves.iter().find_map(|(word, hours)| {
        let rest = text
            .strip_prefix(word)
            .or_else(|| text.strip_suffix(word))?;
        Some((rest.trim().to_owned(), *hours))
    });
    let (clock, later) = match half {
        Some((clock, later)) => (clock, Some(later)),
        None => (text, None),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((&clock, "0"));
    let parts: Vec<&str> = clock.split(':').collect();
    let (hour, minute, second) = match parts[..] {
        [hour, minute] => (hour, minute, "0"),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let number = |text: &str, digits: usize| -> Option<u32> {
        let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse().ok())?
    };
    let hour = match (number(hour, 2)?, later) {
        (hour, None) => hour,
        (hour @ 1..=12, Some(later)) => hour % 12 + later,
        _ => return None,
    };
    let micros = number(&format!("{fraction:0<6}"), 6)?;
    NaiveTime::from_hms_micro_opt(hour, number(minute, 2)?, number(second, 2)?, micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::Zone;

    fn zone(name: &str) -> Zone {
        Zone::named(name).expect("a zone")
    }

    #[test]
    fn numbers_are_read_as_the_file_writes_them_or_refused() {
        for (delimiter, text, decimals, plain) in [
            (b',', "1234.5", 2, "1234.5"),
            (b',', "1,234.50", 2, "1234.50"),
            (b',', "1,234,567", 2, "1234567"),
            (b',', "1,234", 2, "1234"),
            (b',', "12,50", 2, "12.50"),
            (b',', "12.345", 2, "12.345"),
            (b';', "12,5", 2, "12.5"),
            (b';', "1.234,50", 2, "1234.50"),
            (b';', "0,500", 2, "0.500"),
            (b';', "1.234", 0, "1234"),
            (b'\t', "1 234,50", 2, "1234.50"),
            (b'\t', "1\u{202f}234\u{a0}567", 2, "1234567"),
            (b'\t', "1'234.50", 2, "1234.50"),
            (b',', "１２．５", 2, "12.5"),
            (b';', "1234.567", 3, "1234.567"),
        ] {
            let read = Numbers::of(delimiter).plain(text, 2, decimals);
            assert_eq!(read.as_deref(), Ok(plain), "{text}");
        }
        for (delimiter, text, decimals, words) in [
            (b';', "1.234", 2, "could mean 1234 or 1.234"),
            (b';', "1,234", 2, "could mean 1234 or 1.234"),
            (b'\t', "1.500", 3, "could mean 1500 or 1.500"),
            (b',', "1,500", 3, "could mean 1500 or 1.500"),
            (b',', "1,23,456", 2, "is not a number"),
            (b',', "1.2.3", 2, "is not a number"),
            (b',', "12,34.56", 2, "is not a number"),
            (b',', "twelve", 2, "is not a number"),
            (b',', "-1", 2, "is not a number"),
            (b',', "1e3", 2, "is not a number"),
            (b',', ".", 2, "is not a number"),
            (b',', "", 2, "is not a number"),
            (b',', ",50", 2, "is not a number"),
        ] {
            let refused = Numbers::of(delimiter)
                .plain(text, 2, decimals)
                .expect_err(text);
            assert!(refused.starts_with(words), "{text}: {refused}");
        }
    }

    #[test]
    fn one_file_has_one_decimal_mark() {
        let mut numbers = Numbers::of(b';');
        assert_eq!(numbers.plain("12,50", 2, 2).as_deref(), Ok("12.50"));
        assert_eq!(numbers.plain("1.234", 3, 2).as_deref(), Ok("1234"));
        assert_eq!(numbers.plain("1,234", 4, 3).as_deref(), Ok("1.234"));
        let other = numbers.plain("12.50", 5, 2).expect_err("another mark");
        assert!(
            other.contains("after `.` here and after `,` in line 2"),
            "{other}"
        );
        // What was taken for thousands binds as well.
        let mut numbers = Numbers::of(b',');
        assert_eq!(numbers.plain("1,500", 2, 2).as_deref(), Ok("1500"));
        assert!(numbers.plain("12,50", 3, 2).is_err());
        let mut numbers = Numbers::of(b',');
        for (text, whole) in [
            ("", Ok(None)),
            ("12", Ok(Some(12))),
            ("-3", Ok(Some(-3))),
            ("12.00", Ok(Some(12))),
            ("1,200", Ok(Some(1200))),
            ("1.5", Err("is not a whole number")),
            ("few", Err("is not a whole number")),
            ("99999999999999999999", Err("is not a whole number")),
        ] {
            let read = numbers.whole(text, 2);
            assert_eq!(read, whole.map_err(Cow::Borrowed), "{text}");
        }
    }

    #[test]
    fn a_sign_must_be_one_of_the_currency() {
        for (text, currency, bare) in [
            ("12.50", "CNY", Ok("12.50")),
            ("¥12.50", "CNY", Ok("12.50")),
            ("￥ 12.50", "CNY", Ok("12.50")),
            ("12.50元", "CNY", Ok("12.50")),
            ("¥500", "JPY", Ok("500")),
            ("$12", "USD", Ok("12")),
            ("US$12", "USD", Ok("12")),
            ("HK$12", "HKD", Ok("12")),
            ("12,50 €", "EUR", Ok("12,50")),
            ("12,50\u{a0}€", "EUR", Ok("12,50")),
            ("£12", "GBP", Ok("12")),
            ("EUR 12", "EUR", Ok("12")),
            ("12 CNY", "CNY", Ok("12")),
            ("€12", "CNY", Err("has the sign €, and the currency is CNY")),
            (
                "US$12",
                "CAD",
                Err("has the sign US$, and the currency is CAD"),
            ),
            ("¥12", "USD", Err("has the sign ¥, and the currency is USD")),
        ] {
            let read = without_sign(text, currency);
            assert_eq!(read, bare.map_err(Cow::Borrowed), "{text} {currency}");
        }
        // What is left over is no number.
        assert_eq!(without_sign("CNY 12", "EUR").as_deref(), Ok("CNY 12"));
    }

    #[test]
    fn numbers_that_were_shortened_are_known() {
        for text in ["6.90123E+12", "2,02601E+17", "1E+12"] {
            assert!(is_shortened(text), "{text}");
        }
        for text in [
            "LED-12E+7W",
            "E+12",
            "6.9E+1",
            "12E+12",
            "6901234567892",
            "A1E+12",
            "",
        ] {
            assert!(!is_shortened(text), "{text}");
        }
    }

    #[test]
    fn times_are_read_in_the_forms_that_spreadsheets_write() {
        for (text, utc) in [
            ("2026-01-05T09:03:00+08:00", "2026-01-05T01:03:00Z"),
            ("2026/1/5 9:03", "2026-01-05T01:03:00Z"),
            ("2026/1/5", "2026-01-04T16:00:00Z"),
            ("2026-01-05 09:03:15", "2026-01-05T01:03:15Z"),
            ("2026-01-05T09:03:15.25", "2026-01-05T01:03:15.25Z"),
            ("2026年1月5日 9:03", "2026-01-05T01:03:00Z"),
            ("2026年1月5日", "2026-01-04T16:00:00Z"),
            ("2026/1/5 下午9:03", "2026-01-05T13:03:00Z"),
            ("13/5/2026 9:03", "2026-05-13T01:03:00Z"),
            ("5/13/2026 9:03 PM", "2026-05-13T13:03:00Z"),
            ("1/1/2026 12:03 AM", "2025-12-31T16:03:00Z"),
            ("5.1.2026 09:03", "2026-01-05T01:03:00Z"),
            ("5-Jan-2026 9:03", "2026-01-05T01:03:00Z"),
            ("２０２６／１／５　９：０３", "2026-01-05T01:03:00Z"),
        ] {
            let read = moment(text, &zone("Asia/Shanghai"));
            assert_eq!(
                read,
                Ok(Timestamp::parse_rfc3339(utc).expect("a time")),
                "{text}"
            );
        }
        for (text, words) in [
            (
                "1/5/2026 9:03",
                "could mean 2026-05-01 or 2026-01-05; write the year first",
            ),
            ("1/5/26 9:03", "has a year of two digits"),
            ("46027.377", "is a bare number"),
            ("20260105", "is a bare number"),
            ("2026-02-30", "is no time"),
            ("2026/1/5 25:00", "is no time"),
            ("2026/1/5 13:00 PM", "is no time"),
            ("2026/1/5 9", "is no time"),
            ("1969-12-31 9:00", "is no time"),
            ("yesterday", "is no time"),
            ("", "is no time"),
            ("//", "is no time"),
        ] {
            let refused = moment(text, &zone("Asia/Shanghai")).expect_err(text);
            assert!(refused.starts_with(words), "{text}: {refused}");
        }
    }

    #[test]
    fn a_time_that_the_clocks_leave_out_or_show_twice_is_the_first() {
        for (text, utc) in [
            // Left out: what comes right after.
            ("2026-03-29 02:30", "2026-03-29T01:00:00Z"),
            // Shown twice: the first time.
            ("2026-10-25 02:30", "2026-10-25T00:30:00Z"),
        ] {
            let read = moment(text, &zone("Europe/Berlin"));
            assert_eq!(
                read,
                Ok(Timestamp::parse_rfc3339(utc).expect("a time")),
                "{text}"
            );
        }
    }
}
