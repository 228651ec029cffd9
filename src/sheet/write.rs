//! Every CSV file that goes out: RFC 4180, with the mark by which spreadsheet programs know UTF-8.
//!
//! Invariant: no text of the shop becomes a formula where the file is opened.

use std::borrow::Cow;

pub use csv::Error as WriteError;

/// What a spreadsheet takes for the start of a formula, in both widths (OWASP, CSV injection).
const FORMULA: &[char] = &['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

/// Spreadsheet programs read a file without it in the machine's own code page.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// What stands in a column of a row.
pub enum Cell<'a> {
    /// Text that people chose.
    Text(&'a str),
    /// A number, a date or a word of ours: it goes out as it is.
    Exact(Cow<'a, str>),
    /// Nothing.
    Empty,
}

impl<'a> Cell<'a> {
    /// A number or a word of ours.
    pub fn exact(value: impl Into<Cow<'a, str>>) -> Self {
        Cell::Exact(value.into())
    }

    /// A whole number, if there is one.
    pub fn number(value: Option<i64>) -> Self {
        value.map_or(Cell::Empty, |value| Cell::exact(value.to_string()))
    }
}

/// A file that is being written.
pub struct CsvOut {
    writer: csv::Writer<Vec<u8>>,
    has_mark: bool,
}

impl CsvOut {
    /// Begins with the column names.
    pub fn new<const N: usize>(columns: &[&str; N], has_mark: bool) -> Result<Self, WriteError> {
        let mut writer = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_writer(Vec::new());
        writer.write_record(columns)?;
        Ok(Self { writer, has_mark })
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: &[Cell<'_>; N]) -> Result<(), WriteError> {
        for cell in cells {
            match cell {
                Cell::Text(text) => self.writer.write_field(harmless(text).as_bytes())?,
                Cell::Exact(text) => self.writer.write_field(text.as_bytes())?,
                Cell::Empty => self.writer.write_field("")?,
            }
        }
        self.writer.write_record(None::<&[u8]>)
    }

    /// The whole file.
    pub fn finish(self) -> Result<String, WriteError> {
        let bytes = self
            .writer
            .into_inner()
            .map_err(|error| WriteError::from(error.into_error()))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| WriteError::from(std::io::Error::other(error)))?;
        Ok(if self.has_mark {
            format!("{BYTE_ORDER_MARK}{text}")
        } else {
            text
        })
    }
}

/// A text that begins as a formula does gets an apostrophe before it, which spreadsheets read as
/// "this is text".
fn harmless(text: &str) -> Cow<'_, str> {
    if text.trim_start_matches(' ').starts_with(FORMULA) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_harmless_and_numbers_stay_numbers() {
        let mut out = CsvOut::new(&["name", "amount", "note"], true).expect("begun");
        for name in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(1)",
            "  =1",
            "＝1",
            "\t=1",
            "毛毯, 1-2",
        ] {
            out.row(&[Cell::Text(name), Cell::number(Some(-5)), Cell::Empty])
                .expect("written");
        }
        let text = out.finish().expect("a file");
        let rest = text.strip_prefix('\u{feff}').expect("a mark");
        assert!(rest.starts_with("name,amount,note\r\n'=1+1,-5,\r\n'+1,-5,\r\n"));
        assert!(rest.ends_with("\"毛毯, 1-2\",-5,\r\n"));
        assert_eq!(rest.matches("\r\n'").count(), 7);
    }
}
