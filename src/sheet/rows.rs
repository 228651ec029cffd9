//! The rows of a file: its column names, what stands between columns, quotes.
//!
//! A row ends at a line end outside quotes (`\n`, `\r\n` or `\r`). A quote opens a field only at its
//! very beginning, is doubled within it, and what follows its end is the next column. Lines may only
//! stand in a column that the caller says may have them. Where that does not hold, or the file ends
//! or the bound is passed before the quote closes, the line in which it opened is a bad row, and
//! reading goes on with the next line: no row is swallowed. Nor is one where both a line and what
//! its quote swallowed are rows by themselves.
//!
//! Invariants: a row has at most so many bytes and [`FIELDS_MAX`] fields, and no more than one row
//! is in memory; columns without a name at the end of each row, and rows of nothing, are left out.

use std::io::{self, BufRead, Read, Seek};

use super::encoding::{changed, settle, text_of};
use super::{Reading, SheetError, Written};

/// Fields of a row at most.
pub const FIELDS_MAX: usize = 256;
/// A file's row has room for so many of its longest fields.
const LONG_FIELDS: usize = 4;

/// What may stand between columns where no `sep=` line says so.
const DELIMITERS: &[u8] = b",;\t";

/// A row; its fields are without blanks around them.
#[derive(Debug, Default)]
pub struct Record {
    text: String,
    /// Where each field ends in `text`.
    ends: Vec<usize>,
    line: u64,
}

impl Record {
    /// How many fields it has.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The line that it begins in, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// A field, empty where there is none.
    pub fn get(&self, field: usize) -> &str {
        let start = match field {
            0 => 0,
            _ => self.ends.get(field - 1).copied().unwrap_or_default(),
        };
        let end = self.ends.get(field).copied().unwrap_or(start);
        self.text.get(start..end).unwrap_or_default().trim()
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|field| self.get(field))
    }
}

/// What comes next in a file.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// A row: [`Sheet::record`] has it.
    Row,
    /// A row that can't be read, and why. [`Sheet::record`] has what stands in its line, split without
    /// regard to quotes.
    Bad(String),
    /// The file is over.
    End,
}

/// What the caller knows of the columns.
pub struct Columns<'a> {
    /// Those whose text may have several lines.
    pub with_lines: &'a [&'a str],
    /// Whether a line is a row by itself. Given are the column names and the line's fields.
    pub is_row: fn(&[String], &[&str]) -> bool,
}

/// A file that is read row by row.
pub struct Sheet<'a> {
    input: Box<dyn BufRead + 'a>,
    /// Lines to be read again, before `input`.
    again: Vec<u8>,
    again_at: usize,
    written: Written,
    delimiter: u8,
    header: Vec<String>,
    may_have_lines: Vec<bool>,
    is_row: fn(&[String], &[&str]) -> bool,
    bytes_max: usize,
    /// The line that is read next, from 1.
    line: u64,
    /// The lines of the row, as they stand in the file.
    raw: Vec<u8>,
    /// Whether any of them came from `input`.
    is_fresh: bool,
    /// The fields of the row, one after the other.
    bytes: Vec<u8>,
    record: Record,
}

#[derive(Debug, PartialEq)]
enum Line {
    Whole,
    End,
    TooLong,
}

/// Where the reading of a row stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After the quote that ends a field.
    Closed,
}

#[derive(Debug, PartialEq)]
enum Split {
    Row,
    /// The quote is still open at the end of the line.
    Open,
    /// Something stands between the quote that ends a field and the next column.
    Stray,
    TooMany,
}

impl<'a> Sheet<'a> {
    /// Settles how the file is written, and reads its column names: small letters, none twice.
    pub fn open(
        mut input: impl Read + Seek + 'a,
        reading: &Reading,
        field_bytes_max: usize,
        columns: &Columns<'_>,
    ) -> Result<Self, SheetError> {
        let settled = settle(&mut input, reading.charset.as_deref())?;
        let mut sheet = Self {
            input: text_of(input, settled)?,
            again: Vec::new(),
            again_at: 0,
            written: Written {
                encoding: settled.name(),
                delimiter: String::new(),
            },
            delimiter: b',',
            header: Vec::new(),
            may_have_lines: Vec::new(),
            is_row: columns.is_row,
            bytes_max: field_bytes_max.saturating_mul(LONG_FIELDS),
            line: 1,
            raw: Vec::new(),
            is_fresh: false,
            bytes: Vec::new(),
            record: Record::default(),
        };
        sheet.find_delimiter()?;
        sheet.written.delimiter = match sheet.delimiter {
            b',' => "comma".to_owned(),
            b';' => "semicolon".to_owned(),
            b'\t' => "tab".to_owned(),
            other => char::from(other).to_string(),
        };
        sheet.read_header(columns.with_lines)?;
        Ok(sheet)
    }

    /// How the file is written.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// What stands between its columns.
    pub fn delimiter(&self) -> u8 {
        self.delimiter
    }

    /// The column names.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The row that was read last.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// By the first line: `sep=;` says it, else it is what the column names have most of between them.
    fn find_delimiter(&mut self) -> Result<(), SheetError> {
        let mut line = self.read_line().map_err(SheetError::Read)?;
        while line == Line::Whole && self.raw.trim_ascii().is_empty() {
            self.raw.clear();
            line = self.read_line().map_err(SheetError::Read)?;
        }
        let first = self.raw.trim_ascii_end();
        let unquoted = first.strip_prefix(b"\"").unwrap_or(first);
        let unquoted = unquoted.strip_suffix(b"\"").unwrap_or(unquoted);
        let begins = |bytes: &[u8], word: &[u8]| {
            bytes
                .get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word))
        };
        let said = if begins(&self.raw, b"sep=\t") {
            Some(&b"\t"[..])
        } else {
            begins(unquoted, b"sep=").then(|| &unquoted[4..])
        };
        match said {
            Some([one]) if *one == b'\t' || (one.is_ascii_punctuation() && *one != b'"') => {
                self.delimiter = *one;
            }
            Some(other) => {
                return Err(SheetError::Header(format!(
                    "the line `sep=` names `{}`, which can't stand between columns",
                    String::from_utf8_lossy(other)
                )));
            }
            None => {
                let mut counts = [0usize; DELIMITERS.len()];
                let mut is_quoted = false;
                for byte in first {
                    match DELIMITERS.iter().position(|delimiter| delimiter == byte) {
                        Some(at) if !is_quoted => counts[at] += 1,
                        _ => is_quoted ^= *byte == b'"',
                    }
                }
                let most = counts.iter().copied().max().unwrap_or_default();
                let at = counts
                    .iter()
                    .position(|count| *count == most)
                    .unwrap_or_default();
                self.delimiter = DELIMITERS[at];
                // The line is read again, as that of the names.
                self.line -= u64::from(line == Line::Whole);
                self.again = std::mem::take(&mut self.raw);
                self.again_at = 0;
            }
        }
        Ok(())
    }

    fn read_header(&mut self, with_lines: &[&str]) -> Result<(), SheetError> {
        let wrong = |reason: String| Err(SheetError::Header(reason));
        match self.read_row().map_err(SheetError::Read)? {
            Next::Row => {}
            Next::Bad(reason) => return wrong(format!("line {}: {reason}", self.record.line)),
            Next::End => {
                return wrong("the file is empty; its first line has the column names".to_owned());
            }
        }
        let mut header: Vec<String> = self
            .record
            .iter()
            .map(|name| {
                name.trim_start_matches('\u{feff}')
                    .trim()
                    .to_ascii_lowercase()
            })
            .collect();
        while header.last().is_some_and(String::is_empty) {
            header.pop();
        }
        if let Some(at) = header.iter().position(String::is_empty) {
            return wrong(format!("column {} has no name", at + 1));
        }
        if let Some((_, twice)) = header
            .iter()
            .enumerate()
            .find(|(index, name)| header[..*index].contains(*name))
        {
            return wrong(format!("the column `{twice}` is there twice"));
        }
        self.may_have_lines = header
            .iter()
            .map(|name| with_lines.contains(&name.as_str()))
            .collect();
        self.header = header;
        Ok(())
    }

    /// The next row with something in it.
    pub fn next_row(&mut self) -> Result<Next, SheetError> {
        let next = self.read_row().map_err(SheetError::Read)?;
        let (has, columns) = (self.record.len(), self.header.len());
        if next == Next::Row {
            if has > columns && self.record.iter().skip(columns).all(str::is_empty) {
                self.record.ends.truncate(columns);
            } else if has != columns {
                // Its values stand in wrong columns: a delimiter is too many or too few.
                return Ok(Next::Bad(format!(
                    "has {has} fields, the header has {columns}"
                )));
            }
        }
        Ok(next)
    }

    fn read_row(&mut self) -> io::Result<Next> {
        loop {
            self.raw.clear();
            self.is_fresh = false;
            self.bytes.clear();
            self.record.ends.clear();
            self.record.line = self.line;
            match self.read_line()? {
                Line::Whole => {}
                Line::End => return Ok(Next::End),
                Line::TooLong => {
                    self.skip_line()?;
                    return self.bad(
                        0,
                        format!("the row is longer than {} bytes", self.bytes_max),
                    );
                }
            }
            let first_bytes = self.raw.len();
            let (mut state, mut at) = (State::FieldStart, 0);
            let reason = loop {
                match self.split(&mut state, &mut at) {
                    Split::Row => break self.swallowed(first_bytes).unwrap_or_default(),
                    Split::TooMany => break format!("has more than {FIELDS_MAX} fields"),
                    Split::Stray if self.raw.len() > first_bytes => {
                        break "a quote opens in this line and is not closed in it".to_owned();
                    }
                    Split::Stray => {
                        break "something stands after the quote that ends a field; a quote within a field is written twice".to_owned();
                    }
                    Split::Open => match self.read_line()? {
                        Line::Whole => {}
                        Line::End | Line::TooLong => {
                            break "a quote opens in this line and is never closed".to_owned();
                        }
                    },
                }
            };
            if !reason.is_empty() {
                return self.bad(first_bytes, reason);
            }
            let text = std::mem::take(&mut self.record.text).into_bytes();
            let bytes = std::mem::replace(&mut self.bytes, text);
            self.record.text = String::from_utf8(bytes).map_err(|_| changed())?;
            if !self.record.text.trim().is_empty() {
                return Ok(Next::Row);
            }
        }
    }

    /// Why a row of several lines is none.
    fn swallowed(&self, first_bytes: usize) -> Option<String> {
        if self.raw.len() == first_bytes {
            return None;
        }
        let mut start = 0;
        for (field, end) in self.record.ends.iter().enumerate() {
            let has_lines = self.bytes[start..*end]
                .iter()
                .any(|byte| matches!(byte, b'\n' | b'\r'));
            if has_lines && !self.may_have_lines.get(field).copied().unwrap_or(false) {
                return Some("a quote opens in this line and is not closed in it".to_owned());
            }
            start = *end;
        }
        let is_row = |line: &[u8]| {
            let line = String::from_utf8_lossy(line);
            let fields: Vec<&str> = self.fields_of(&line).collect();
            fields.len() == self.header.len() && (self.is_row)(&self.header, &fields)
        };
        let mut inside = self.raw[first_bytes..].split(|byte| matches!(byte, b'\n' | b'\r'));
        (is_row(&self.raw[..first_bytes]) && inside.any(is_row)).then(|| {
            "a quote opens in this line and closes in another, which is a row by itself".to_owned()
        })
    }

    fn fields_of<'b>(&self, line: &'b str) -> impl Iterator<Item = &'b str> + use<'b> {
        line.split(char::from(self.delimiter))
            .map(|field| field.trim().trim_matches('"'))
    }

    /// A bad row, of one line; what was read beyond it is read again. With 0 bytes it is cut off at
    /// the bound, and over.
    fn bad(&mut self, first_bytes: usize, reason: String) -> io::Result<Next> {
        if first_bytes > 0 {
            let beyond = self.raw.len() - first_bytes;
            self.line = self.record.line + 1;
            if self.is_fresh {
                // What was to be read again is used up by then.
                self.again.clear();
                self.again.extend_from_slice(&self.raw[first_bytes..]);
                self.again_at = 0;
            } else {
                self.again_at -= beyond;
            }
            self.raw.truncate(first_bytes);
        }
        let line = String::from_utf8_lossy(&self.raw);
        let (mut text, mut ends) = (String::new(), Vec::new());
        for field in self.fields_of(&line).take(FIELDS_MAX) {
            text.push_str(field);
            ends.push(text.len());
        }
        (self.record.text, self.record.ends) = (text, ends);
        Ok(Next::Bad(reason))
    }

    /// Splits what came of the row since the last call.
    fn split(&mut self, state: &mut State, at: &mut usize) -> Split {
        let raw = &self.raw;
        let end = raw.len() - line_end_bytes(raw);
        loop {
            if self.record.ends.len() >= FIELDS_MAX {
                return Split::TooMany;
            }
            match *state {
                State::FieldStart if raw.get(*at) == Some(&b'"') => {
                    *at += 1;
                    *state = State::Quoted;
                }
                State::FieldStart => *state = State::Plain,
                State::Plain => {
                    let rest = &raw[*at..end];
                    let length = rest.iter().position(|byte| *byte == self.delimiter);
                    self.bytes
                        .extend_from_slice(&rest[..length.unwrap_or(rest.len())]);
                    self.record.ends.push(self.bytes.len());
                    match length {
                        Some(length) => *at += length + 1,
                        None => return Split::Row,
                    }
                    *state = State::FieldStart;
                }
                State::Quoted => {
                    let rest = &raw[*at..];
                    let Some(length) = rest.iter().position(|byte| *byte == b'"') else {
                        self.bytes.extend_from_slice(rest);
                        *at = raw.len();
                        return Split::Open;
                    };
                    self.bytes.extend_from_slice(&rest[..length]);
                    *at += length + 1;
                    if raw.get(*at) == Some(&b'"') {
                        self.bytes.push(b'"');
                        *at += 1;
                    } else {
                        *state = State::Closed;
                    }
                }
                State::Closed => {
                    if *at >= end {
                        self.record.ends.push(self.bytes.len());
                        return Split::Row;
                    }
                    if raw[*at] == self.delimiter {
                        self.record.ends.push(self.bytes.len());
                        *state = State::FieldStart;
                    } else if !raw[*at].is_ascii_whitespace() {
                        return Split::Stray;
                    }
                    *at += 1;
                }
            }
        }
    }

    fn chunk(&mut self) -> io::Result<&[u8]> {
        if self.again_at < self.again.len() {
            return Ok(&self.again[self.again_at..]);
        }
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if self.again_at < self.again.len() {
            self.again_at += count;
        } else {
            self.is_fresh = true;
            self.input.consume(count);
        }
    }

    /// Adds the next line of the file, with its end, to `raw`.
    fn read_line(&mut self) -> io::Result<Line> {
        let before = self.raw.len();
        loop {
            let room = self.bytes_max.saturating_sub(self.raw.len());
            let (source, raw) = match self.again_at < self.again.len() {
                true => (&self.again[self.again_at..], &mut self.raw),
                false => (self.input.fill_buf()?, &mut self.raw),
            };
            if source.is_empty() {
                let is_end = raw.len() == before;
                self.line += u64::from(!is_end);
                return Ok(if is_end { Line::End } else { Line::Whole });
            }
            let end = source.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let count = end.map_or(source.len(), |end| end + 1);
            if count > room {
                return Ok(Line::TooLong);
            }
            raw.extend_from_slice(&source[..count]);
            let is_return = raw.last() == Some(&b'\r');
            self.consume(count);
            if end.is_some() {
                self.line += 1;
                if is_return && self.chunk()?.first() == Some(&b'\n') {
                    self.raw.push(b'\n');
                    self.consume(1);
                }
                return Ok(Line::Whole);
            }
        }
    }

    /// Leaves out the rest of the line.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let is_return = end.is_some_and(|end| chunk[end] == b'\r');
            let count = end.map_or(chunk.len(), |end| end + 1);
            self.consume(count);
            if end.is_some() {
                if is_return && self.chunk()?.first() == Some(&b'\n') {
                    self.consume(1);
                }
                break;
            }
        }
        self.line += 1;
        Ok(())
    }
}

/// How many bytes of a line are its end.
fn line_end_bytes(raw: &[u8]) -> usize {
    match raw {
        [.., b'\r', b'\n'] => 2,
        [.., b'\r' | b'\n'] => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    const COLUMNS: Columns<'static> = Columns {
        with_lines: &["note"],
        is_row: |header, fields| {
            let price = header.iter().position(|name| name == "price");
            price.is_some_and(|at| fields[at].parse::<u32>().is_ok())
        },
    };

    /// Each row as `line: a|b|c`, each bad one as `line! reason`.
    fn rows(text: &[u8], field_bytes_max: usize) -> (Vec<String>, String) {
        let mut sheet = Sheet::open(
            Cursor::new(text),
            &Reading::default(),
            field_bytes_max,
            &COLUMNS,
        )
        .expect("a file");
        let mut rows = Vec::new();
        loop {
            let next = sheet.next_row().expect("readable");
            let line = sheet.record().line();
            match next {
                Next::Row => {
                    let fields: Vec<&str> = sheet.record().iter().collect();
                    rows.push(format!("{line}: {}", fields.join("|")));
                }
                Next::Bad(reason) => rows.push(format!("{line}! {reason}")),
                Next::End => return (rows, sheet.written().delimiter.clone()),
            }
            let held = sheet.raw.capacity() + sheet.again.capacity() + sheet.bytes.capacity();
            assert!(
                held <= 16 * sheet.bytes_max.max(64),
                "{held} bytes are held"
            );
        }
    }

    #[test]
    fn what_stands_between_columns_is_found() {
        for (text, delimiter) in [
            ("sku,price,note\nA,1,x\n", "comma"),
            ("sku;price;note\r\nA;1;x\r\n", "semicolon"),
            ("sku\tprice\tnote\rA\t1\tx\r", "tab"),
            ("sep=;\nsku;price;note\nA;1;x\n", "semicolon"),
            ("\"sep=|\"\r\nsku|price|note\r\nA|1|x", "|"),
            ("SEP=\t\r\nsku\tprice\tnote\r\nA\t1\tx", "tab"),
            ("\n\nsku;price;\"note\"\nA;1;x", "semicolon"),
            ("sku,price,note,,\nA,1,x,,\n,,,,\n\n,,,,,,\n", "comma"),
        ] {
            let (rows, found) = rows(text.as_bytes(), 64);
            assert_eq!(found, delimiter, "{text}");
            assert_eq!(rows.len(), 1, "{text}: {rows:?}");
            assert!(rows[0].ends_with(": A|1|x"), "{text}: {rows:?}");
        }
        for text in [
            "",
            "\n\n",
            "sep=ab\nsku",
            "sku,,note\n",
            "sku,SKU\n",
            "\"sku,note\nx,1\n",
        ] {
            let opened = Sheet::open(
                Cursor::new(text.as_bytes()),
                &Reading::default(),
                64,
                &COLUMNS,
            );
            assert!(matches!(opened, Err(SheetError::Header(_))), "{text}");
        }
    }

    #[test]
    fn quotes_are_read_as_spreadsheets_write_them() {
        let text = "sku,price,note\r\n\"A\" ,1,\"a \"\"b\"\", c\"\r\nB,2,\"one\r\ntwo, three\n\"\r\nC,3,27\" wide\r\n\"\",4,\r\n";
        let (rows, _) = rows(text.as_bytes(), 64);
        assert_eq!(
            rows,
            [
                "2: A|1|a \"b\", c",
                "3: B|2|one\r\ntwo, three",
                "6: C|3|27\" wide",
                "7: |4|"
            ]
        );
    }

    #[test]
    fn a_quote_that_is_not_closed_costs_its_own_row_alone() {
        let opens = "2! a quote opens in this line and";
        for (bad, why) in [
            ("A,1,\"x\nB,2,y\nC,3,z\n", "is never closed"),
            // It closes at the next quote, wherever that is.
            ("A,1,\"x\nB,2,\"y\"\nC,3,z\n", "is not closed in it"),
            (
                "A,1,\"x\nB,2,y\"\nC,3,z\n",
                "closes in another, which is a row by itself",
            ),
            ("\"A,1,x\nB,2,y\"\nC,3,z\n", "is not closed in it"),
            ("A,\"1,x\nB,2\",y\nC,3,z\n", "is not closed in it"),
        ] {
            let (rows, _) = rows(["sku,price,note\n", bad].concat().as_bytes(), 64);
            assert_eq!(rows.len(), 3, "{bad} {rows:?}");
            assert_eq!(rows[0], format!("{opens} {why}"), "{bad}");
            assert!(rows[1].starts_with("3: B|2"), "{bad} {rows:?}");
            assert_eq!(rows[2], "4: C|3|z");
        }
        let (stray, _) = rows(b"sku,price,note\nA,1,\"27\" wide\"\nB,2,y\n", 64);
        assert!(stray[0].starts_with("2! something stands after the quote"));
        assert_eq!(stray[1], "3: B|2|y");
    }

    #[test]
    fn what_is_too_long_is_a_bad_row_and_memory_is_bounded() {
        let long = "x".repeat(1_000_000);
        let text = format!(
            "sku,price,note\nA,1,{long}\nB,2,y\nC,3,\"{}\nD,4,z\n",
            "n\n".repeat(500_000)
        );
        let (rows, _) = rows(text.as_bytes(), 64);
        assert_eq!(rows[0], "2! the row is longer than 256 bytes");
        assert_eq!(rows[1], "3: B|2|y");
        assert_eq!(rows[2], "4! a quote opens in this line and is never closed");
        assert_eq!(rows.last().map(String::as_str), Some("500005: D|4|z"));
        let many = format!("sku,price,note\nA,1{}\nB,2,y\n", ",".repeat(300));
        let (rows, _) = super::tests::rows(many.as_bytes(), 512);
        assert_eq!(rows, ["2! has more than 256 fields", "3: B|2|y"]);
    }

    proptest! {
        /// What the CSV writer writes is read back, whatever is in it; and any other text is read to
        /// its end without more rows than lines.
        #[test]
        fn what_is_written_is_read_back(
            table in proptest::collection::vec(("[a-z\"', ;毯]{1,12}", "[0-9]{1,3}", "[a-z\"',\n\r 毯]{0,12}"), 1..20),
        ) {
            let mut writer = csv::WriterBuilder::new()
                .terminator(csv::Terminator::CRLF)
                .from_writer(Vec::new());
            writer.write_record(["sku", "price", "note"]).expect("written");
            let mut expected = Vec::new();
            for (sku, price, note) in &table {
                writer.write_record([sku, price, note]).expect("written");
                expected.push(format!("{}|{price}|{}", sku.trim(), note.trim()));
            }
            let text = writer.into_inner().expect("written");
            let (rows, _) = rows(&text, 256);
            let read: Vec<String> = rows
                .iter()
                .map(|row| row.split_once(": ").map_or(row.as_str(), |(_, row)| row).to_owned())
                .collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_text_is_read_to_its_end(text in "[a,\"\n\r 1;]{0,200}") {
            let text = format!("sku,price,note\n{text}");
            let lines = text.matches(['\n', '\r']).count() + 1;
            let (rows, _) = rows(text.as_bytes(), 16);
            prop_assert!(rows.len() <= lines);
        }
    }
}
