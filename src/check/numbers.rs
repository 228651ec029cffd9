//! Numbers of JSON that is kept for the client that sent it: arguments, metadata, results.
//!
//! They are kept in 64 bits: whole numbers as signed or unsigned integers, all others as floats.
//! Invariant: a number that would come back as another one is refused by the name of its field, and
//! never rounded in silence. How it is spelt is free: `1.50` may come back as `1.5`.

use super::{FieldError, shortened};

/// What is wrong with a number that 64 bits do not hold.
pub(super) const NOT_KEPT: &str =
    "is a number that does not fit in 64 bits without loss; send it as a text";
/// No float has more decimal digits than this, written out in full.
const FLOAT_DIGITS_MAX: usize = 767;

/// That each number in `text` comes back as it is; to be called with valid JSON.
pub(super) fn require_kept_numbers(text: &[u8]) -> Result<(), FieldError> {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let end = token_end(text, at);
        if matches!(byte, b'-' | b'0'..=b'9') && !is_kept(&text[at..end]) {
            return Err(FieldError::new(path_to(text, at), NOT_KEPT));
        }
        at = end;
    }
    Ok(())
}

/// Where the text, number or single sign that begins at `at` ends.
fn token_end(text: &[u8], at: usize) -> usize {
    let rest = &text[at + 1..];
    let more = match text[at] {
        b'"' => {
            let mut is_escaped = false;
            rest.iter()
                .position(|byte| {
                    let is_end = *byte == b'"' && !is_escaped;
                    is_escaped = *byte == b'\\' && !is_escaped;
                    is_end
                })
                .map_or(rest.len(), |quote| quote + 1)
        }
        b'-' | b'0'..=b'9' => rest
            .iter()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
            .unwrap_or(rest.len()),
        _ => 0,
    };
    at + 1 + more
}

fn is_kept(number: &[u8]) -> bool {
    let Ok(number) = str::from_utf8(number) else {
        return false;
    };
    if number
        .bytes()
        .any(|byte| matches!(byte, b'.' | b'e' | b'E'))
    {
        return is_kept_as_float(number);
    }
    number.len() <= 18 || number.parse::<u64>().is_ok() || number.parse::<i64>().is_ok()
}

/// Whether the nearest float is written so: by the fewest digits that mean it, as most programs
/// print it, or rounded to as many digits as there are here.
fn is_kept_as_float(number: &str) -> bool {
    let Ok(float) = number.parse::<f64>() else {
        return false;
    };
    let written = Decimal::of(number);
    if !float.is_finite() || written.digits.len() > FLOAT_DIGITS_MAX {
        return false;
    }
    let more = written.digits.len().saturating_sub(1);
    written == Decimal::of(&format!("{float:e}"))
        || written == Decimal::of(&format!("{float:.more$e}"))
}

/// The value of a decimal number, whatever way it is spelt.
#[derive(PartialEq)]
struct Decimal {
    is_negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    /// Power of ten of the digit behind the last one; 0 for zero.
    exponent: i64,
}

impl Decimal {
    fn of(number: &str) -> Self {
        let (mantissa, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{}{part}", whole.trim_start_matches('-'));
        let led = all.trim_start_matches('0');
        let digits = led.trim_end_matches('0');
        let zeros = (led.len() - digits.len()) as i64 - part.len() as i64;
        // A power that no integer holds is that of zero or of no float; both are told apart before.
        let power = power.parse::<i64>().unwrap_or(0);
        Self {
            is_negative: number.starts_with('-'),
            digits: digits.to_owned(),
            exponent: if digits.is_empty() {
                0
            } else {
                power.saturating_add(zeros)
            },
        }
    }
}

/// The field that `place` lies in, as `args.sizes[2].width`.
fn path_to(text: &[u8], place: usize) -> String {
    enum Level<'a> {
        Object(&'a [u8]),
        List(usize),
    }
    let mut levels: Vec<Level<'_>> = Vec::new();
    let mut at = 0;
    while at < place {
        let end = token_end(text, at);
        match (text[at], levels.last_mut()) {
            (b'{', _) => levels.push(Level::Object(b"")),
            (b'[', _) => levels.push(Level::List(0)),
            (b'}' | b']', _) => drop(levels.pop()),
            (b',', Some(Level::List(index))) => *index += 1,
            // The last text before a value is its name, for the values before it are over.
            (b'"', Some(Level::Object(name))) => *name = &text[at + 1..end - 1],
            _ => {}
        }
        at = end;
    }
    let mut path = String::new();
    for level in &levels {
        match level {
            Level::Object(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&String::from_utf8_lossy(name));
            }
            Level::List(index) => path.push_str(&format!("[{index}]")),
        }
    }
    shortened(&path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(text: &str) -> Option<String> {
        require_kept_numbers(text.as_bytes())
            .err()
            .map(|fault| fault.field)
    }

    #[test]
    fn what_64_bits_hold_is_kept_and_nothing_else() {
        for kept in [
            "0",
            "-0",
            "0.0",
            "-0.0",
            "0e0",
            "0e99999999999999999999",
            "1.50",
            "1e2",
            "1E+2",
            "738529527931269425",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
            "1e20",
            "1.7976931348623157e308",
            "5e-324",
            "2.5e-320",
            // As PHP and C print 0.1, and in full.
            "0.10000000000000001",
            "0.1000000000000000055511151231257827021181583404541015625",
            // The shortest that means this float is not the nearest of that length.
            "5.684341886080802e-14",
            "9007199254740992.0",
            "123456789.12345678e-3",
        ] {
            assert_eq!(fault(kept), None, "{kept}");
        }
        for lost in [
            "18446744073709551616",
            "-9223372036854775809",
            "100000000000000000000",
            "1e400",
            "-1e309",
            "1e-400",
            "3.14159265358979323846",
            "0.30000000000000000001",
            "9007199254740993.0",
            "738529527931269425.0",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            assert_eq!(fault(lost), Some(String::new()), "{lost}");
        }
        let long = format!("0.{}", "1".repeat(100_000));
        assert_eq!(fault(&long), Some(String::new()));
    }

    #[test]
    fn the_field_is_named_and_texts_are_left_alone() {
        for (text, field) in [
            (
                r#"{"args":{"order_no":99999999999999999999}}"#,
                "args.order_no",
            ),
            (
                r#"{"a":{"x":[1]},"tasks":[{},{"args":[[0],[1, 1e400 ]]}]}"#,
                "tasks[1].args[1][1]",
            ),
            (r#"{"a\"b":1e400}"#, r#"a\"b"#),
            (r#"[{"x":"1e400"},"99999999999999999999",-1e400]"#, "[2]"),
        ] {
            assert_eq!(fault(text).as_deref(), Some(field), "{text}");
        }
        for text in [
            r#""1e400""#,
            r#"{"1e400":"99999999999999999999"}"#,
            r#"["\\","\"1e400","é 1e400"]"#,
            "",
            "[true,null,{}]",
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
        let name = "n".repeat(10_000);
        let field = fault(&format!(r#"{{"{name}":1e400}}"#)).expect("a fault");
        assert!(field.len() < 1_000);
    }

    proptest! {
        /// What any program prints of a float is kept, and comes back as the same float.
        #[test]
        fn a_float_comes_back_as_it_was(bits: u64, more in 16_usize..25) {
            let float = f64::from_bits(bits);
            prop_assume!(float.is_finite());
            for text in [format!("{float:e}"), format!("{float:.more$e}"), format!("{float:?}")] {
                prop_assert_eq!(fault(&text), None, "{}", text);
                let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                prop_assert_eq!(read.as_f64().map(f64::to_bits), Some(bits), "{}", text);
            }
        }

        #[test]
        fn integers_are_kept_up_to_64_bits(number: i128) {
            let is_held = i64::try_from(number).is_ok() || u64::try_from(number).is_ok();
            prop_assert_eq!(fault(&number.to_string()).is_none(), is_held);
            prop_assert_eq!(fault(&(number >> 62).to_string()).is_none(),
                i64::try_from(number >> 62).is_ok() || u64::try_from(number >> 62).is_ok());
        }
    }
}
