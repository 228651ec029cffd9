//! The currencies of ISO 4217, and how many digits their amounts have after the point.
//!
//! Source: List One of the ISO 4217 maintenance agency (SIX) as of 1 January 2026, without metals,
//! bonds, test codes and other units that no price is in. A list of our own, because the crates that
//! have one lack codes in use or bring more than it. Invariant: only what comes in is held against it;
//! what is stored under another code stays readable, with two digits.

/// Amounts of these have no digit after the point.
const WHOLE: &[&str] = &[
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
    "VUV", "XAF", "XOF", "XPF",
];
/// Amounts of these have three.
const THOUSANDTHS: &[&str] = &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];
/// Amounts of these have four.
const TEN_THOUSANDTHS: &[&str] = &["CLF", "UYW"];
/// Amounts of these have two. In order, to be searched.
const HUNDREDTHS: &[&str] = &[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BMD",
    "BND", "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHE", "CHF",
    "CHW", "CNY", "COP", "COU", "CRC", "CUP", "CVE", "CZK", "DKK", "DOP", "DZD", "EGP", "ERN",
    "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GTQ", "GYD", "HKD", "HNL",
    "HTG", "HUF", "IDR", "ILS", "INR", "IRR", "JMD", "KES", "KGS", "KHR", "KPW", "KYD", "KZT",
    "LAK", "LBP", "LKR", "LRD", "LSL", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU",
    "MUR", "MVR", "MWK", "MXN", "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD",
    "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "QAR", "RON", "RSD", "RUB", "SAR", "SBD", "SCR",
    "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB",
    "TJS", "TMT", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "USD", "USN", "UYU", "UZS", "VED",
    "VES", "WST", "XCD", "XCG", "YER", "ZAR", "ZMW", "ZWG",
];
/// Codes that were withdrawn since 2000, and what took their place: old orders may be in them.
const WITHDRAWN: &[(&str, &str)] = &[
    ("ANG", "XCG"),
    ("ATS", "EUR"),
    ("AZM", "AZN"),
    ("BEF", "EUR"),
    ("BGN", "EUR"),
    ("BYR", "BYN"),
    ("CSD", "RSD"),
    ("CUC", "CUP"),
    ("CYP", "EUR"),
    ("DEM", "EUR"),
    ("EEK", "EUR"),
    ("ESP", "EUR"),
    ("FIM", "EUR"),
    ("FRF", "EUR"),
    ("GHC", "GHS"),
    ("GRD", "EUR"),
    ("HRK", "EUR"),
    ("IEP", "EUR"),
    ("ITL", "EUR"),
    ("LTL", "EUR"),
    ("LUF", "EUR"),
    ("LVL", "EUR"),
    ("MRO", "MRU"),
    ("MTL", "EUR"),
    ("MZM", "MZN"),
    ("NLG", "EUR"),
    ("PTE", "EUR"),
    ("ROL", "RON"),
    ("SIT", "EUR"),
    ("SKK", "EUR"),
    ("SLL", "SLE"),
    ("STD", "STN"),
    ("TRL", "TRY"),
    ("VEB", "VES"),
    ("VEF", "VES"),
    ("ZMK", "ZMW"),
    ("ZWL", "ZWG"),
];
/// What is often written where a code belongs, and the code.
const NICKNAMES: &[(&str, &str)] = &[
    ("RMB", "CNY"),
    ("CNH", "CNY"),
    ("CHY", "CNY"),
    ("YUAN", "CNY"),
    ("RENMINBI", "CNY"),
    ("人民币", "CNY"),
    ("元", "CNY"),
    ("¥", "CNY or JPY"),
    ("￥", "CNY or JPY"),
    ("NTD", "TWD"),
    ("NT$", "TWD"),
    ("TWN", "TWD"),
    ("HK$", "HKD"),
    ("UKP", "GBP"),
    ("GPB", "GBP"),
    ("STG", "GBP"),
    ("£", "GBP"),
    ("EURO", "EUR"),
    ("EUROS", "EUR"),
    ("€", "EUR"),
    ("$", "USD"),
    ("US$", "USD"),
    ("DOLLAR", "USD"),
    ("YEN", "JPY"),
    ("JPN", "JPY"),
    ("WON", "KRW"),
    ("RUR", "RUB"),
    ("SFR", "CHF"),
    ("INT", "INR"),
    ("RP", "IDR"),
    ("NIS", "ILS"),
];

fn is_active(code: &str) -> bool {
    [WHOLE, HUNDREDTHS, THOUSANDTHS, TEN_THOUSANDTHS]
        .iter()
        .any(|list| list.binary_search(&code).is_ok())
}

fn among(list: &[(&str, &'static str)], code: &str) -> Option<&'static str> {
    list.iter()
        .find(|(known, _)| *known == code)
        .map(|(_, instead)| *instead)
}

/// Refuses what is no currency in use, with the code that was probably meant.
pub fn check(code: &str) -> Result<(), String> {
    if is_active(code) {
        return Ok(());
    }
    let upper = code.to_uppercase();
    let upper = upper.trim();
    if is_active(upper) {
        return Err(format!("must be in capital letters: {upper}"));
    }
    if let Some(instead) = among(NICKNAMES, upper) {
        return Err(format!(
            "{upper} is no currency of ISO 4217; write {instead}"
        ));
    }
    if let Some(instead) = among(WITHDRAWN, upper) {
        return Err(format!("{upper} is no currency any more; write {instead}"));
    }
    let has_form = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    Err(if has_form {
        format!("{code} is no currency of ISO 4217; write one such as CNY")
    } else {
        "must be three capital letters of ISO 4217, such as CNY".to_owned()
    })
}

/// As [`check`], for what was paid in the past: currencies that are no longer in use are taken too.
pub fn check_past(code: &str) -> Result<(), String> {
    match among(WITHDRAWN, code) {
        Some(_) => Ok(()),
        None => check(code),
    }
}

/// Digits after the point in amounts of a currency; two where it is not known.
pub fn minor_digits(code: &str) -> usize {
    let has = |list: &[&str]| list.contains(&code);
    if has(WHOLE) {
        0
    } else if has(THOUSANDTHS) {
        3
    } else if has(TEN_THOUSANDTHS) {
        4
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_is_refused_with_what_was_meant() {
        for good in [
            "CNY", "EUR", "JPY", "KWD", "CLF", "XOF", "VES", "XCG", "ZWG", "USD",
        ] {
            assert_eq!(check(good), Ok(()));
        }
        for (bad, hint) in [
            ("RMB", "write CNY"),
            ("rmb", "write CNY"),
            ("CNH", "write CNY"),
            ("NTD", "write TWD"),
            ("UKP", "write GBP"),
            ("EURO", "write EUR"),
            ("€", "write EUR"),
            ("cny", "must be in capital letters: CNY"),
            ("HRK", "HRK is no currency any more; write EUR"),
            (
                "XYZ",
                "XYZ is no currency of ISO 4217; write one such as CNY",
            ),
            ("XXX", "XXX is no currency of ISO 4217"),
            ("XTS", "XTS is no currency of ISO 4217"),
            ("", "must be three capital letters"),
            ("CNYY", "must be three capital letters"),
            ("ＣＮＹ", "must be three capital letters"),
        ] {
            let reason = check(bad).expect_err(bad);
            assert!(reason.contains(hint), "{bad}: {reason}");
        }
        assert_eq!(check_past("BGN"), Ok(()), "orders of last year are");
        assert!(check_past("RMB").is_err());
    }

    #[test]
    fn the_lists_are_in_order_and_their_hints_lead_to_codes() {
        for list in [WHOLE, HUNDREDTHS, THOUSANDTHS, TEN_THOUSANDTHS] {
            assert!(list.is_sorted(), "{list:?}");
        }
        for (wrong, instead) in WITHDRAWN.iter().chain(NICKNAMES) {
            assert!(!is_active(wrong), "{wrong}");
            for code in instead.split(" or ") {
                assert!(is_active(code), "{wrong}: {code}");
            }
        }
        assert_eq!(
            ["JPY", "CNY", "KWD", "CLF", "RMB"].map(minor_digits),
            [0, 2, 3, 4, 2]
        );
    }
}
