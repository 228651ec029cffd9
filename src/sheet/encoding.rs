//! Which encoding a whole file is in, and reading it as UTF-8.
//!
//! In this order: a byte-order mark; the charset that its sender named; NUL bytes as UTF-16 has them
//! in a line of column names; UTF-8, if the whole file is; GB18030 (with GBK and GB2312 in it), if
//! the whole file is and looks like it. The few Chinese words that are UTF-8 as well by chance (毛毯 in
//! GBK) are told by the mixture of scripts that they would be. Invariant: nothing is replaced: a byte
//! that does not fit refuses the file.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use encoding_rs::{Decoder, DecoderResult, Encoding, GB18030, UTF_8, UTF_16BE, UTF_16LE};

use super::{CHUNK_BYTES, SheetError};
use crate::check::shortened;

const MARKS: &[(&[u8], &Encoding)] = &[
    (&[0xEF, 0xBB, 0xBF], UTF_8),
    (&[0xFF, 0xFE], UTF_16LE),
    (&[0xFE, 0xFF], UTF_16BE),
    (&[0x84, 0x31, 0x95, 0x33], GB18030),
];

/// Files that are no text, by how they begin, and what they are called.
const NO_TEXT: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a workbook (.xlsx or .ods)"),
    (&[0xD0, 0xCF, 0x11, 0xE0], "a workbook (.xls)"),
    (&[0xFF, 0xFE, 0, 0], "in UTF-32"),
    (&[0, 0, 0xFE, 0xFF], "in UTF-32"),
    (&[0x1F, 0x8B], "compressed"),
];

const SAVE_AS: &str = "save it as \"CSV UTF-8\"";

/// An encoding, and how many bytes of a mark stand before the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settled {
    encoding: &'static Encoding,
    mark_bytes: u64,
}

impl Settled {
    pub(super) fn name(&self) -> String {
        match self.encoding.name() {
            "gb18030" => "GB18030".to_owned(),
            name => name.to_owned(),
        }
    }
}

/// Reads the whole file and says what it is.
pub(super) fn settle(
    input: &mut (impl Read + Seek),
    charset: Option<&str>,
) -> Result<Settled, SheetError> {
    let named = match charset {
        None => None,
        Some(name) => Some(
            Encoding::for_label_no_replacement(name.trim().as_bytes()).ok_or_else(|| {
                SheetError::Text(format!(
                    "there is no charset `{}`; common ones are utf-8, gb18030 and utf-16le",
                    shortened(name)
                ))
            })?,
        ),
    };
    let mut head = Vec::with_capacity(4);
    rewind(input, 0)?;
    input
        .by_ref()
        .take(4)
        .read_to_end(&mut head)
        .map_err(SheetError::Read)?;
    if let Some((_, what)) = NO_TEXT.iter().find(|(bytes, _)| head.starts_with(bytes)) {
        return Err(SheetError::Text(format!("the file is {what}; {SAVE_AS}")));
    }
    let marked = MARKS.iter().find(|(mark, _)| head.starts_with(mark));
    let (sure, mark_bytes) = match (marked, named, head.get(..2)) {
        (Some((mark, encoding)), ..) => (Some(*encoding), mark.len() as u64),
        (None, Some(encoding), _) => (Some(encoding), 0),
        // Column names are letters of ASCII, one of whose two bytes is 0.
        (None, None, Some([1..=255, 0])) => (Some(UTF_16LE), 0),
        (None, None, Some([0, 1..=255])) => (Some(UTF_16BE), 0),
        (None, None, _) => (None, 0),
    };
    let settled = |encoding| Settled {
        encoding,
        mark_bytes,
    };
    if let Some(encoding) = sure {
        return match first_fault(input, settled(encoding), None)? {
            None => Ok(settled(encoding)),
            Some(at) => {
                let line = line_of(input, settled(encoding), at)?;
                Err(SheetError::Text(format!(
                    "line {line}, byte {} of the file: is not {}; {SAVE_AS}, or name another charset",
                    at + 1,
                    settled(encoding).name()
                )))
            }
        };
    }
    let mut looks = Looks::default();
    let fault = first_fault(input, settled(UTF_8), Some(&mut looks))?;
    if fault.is_some() || looks.is_mixed() {
        let chinese = settled(GB18030);
        if first_fault(input, chinese, Some(&mut looks))?.is_none() && looks.is_chinese() {
            return Ok(chinese);
        }
    }
    let Some(at) = fault else {
        return Ok(settled(UTF_8));
    };
    let line = line_of(input, settled(UTF_8), at)?;
    Err(SheetError::Text(format!(
        "line {line}, byte {} of the file: is neither UTF-8 nor GB18030; {SAVE_AS}, or name its charset",
        at + 1
    )))
}

fn rewind(input: &mut impl Seek, to: u64) -> Result<(), SheetError> {
    match input.seek(SeekFrom::Start(to)) {
        Ok(_) => Ok(()),
        Err(error) => Err(SheetError::Read(error)),
    }
}

/// Reads until `chunk` is full or the file ends.
fn fill(input: &mut impl Read, chunk: &mut [u8]) -> Result<usize, SheetError> {
    let mut full = 0;
    while full < chunk.len() {
        match input.read(&mut chunk[full..]) {
            Ok(0) => break,
            Ok(count) => full += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SheetError::Read(error)),
        }
    }
    Ok(full)
}

/// Where in the file the first byte stands that does not fit; `None` when all do.
fn first_fault(
    input: &mut (impl Read + Seek),
    settled: Settled,
    mut looks: Option<&mut Looks>,
) -> Result<Option<u64>, SheetError> {
    rewind(input, settled.mark_bytes)?;
    let mut decoder = settled.encoding.new_decoder_without_bom_handling();
    let is_utf8 = settled.encoding == UTF_8;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut text = vec![0; if is_utf8 { 0 } else { CHUNK_BYTES }];
    let (mut done, mut kept) = (settled.mark_bytes, 0);
    loop {
        let count = fill(input, &mut chunk[kept..])?;
        let is_last = count < chunk.len() - kept;
        let bytes = &chunk[..kept + count];
        if is_utf8 {
            let read = std::str::from_utf8(bytes);
            if let Some(looks) = looks.as_deref_mut() {
                let valid = read.map_or_else(|error| error.valid_up_to(), str::len);
                looks.see_utf8(&bytes[..valid]);
            }
            match read {
                Ok(_) => {
                    done += bytes.len() as u64;
                    kept = 0;
                }
                Err(error) if error.error_len().is_some() || is_last => {
                    return Ok(Some(done + error.valid_up_to() as u64));
                }
                Err(error) => {
                    // A character stands across two chunks.
                    let whole = error.valid_up_to();
                    done += whole as u64;
                    kept = bytes.len() - whole;
                    chunk.copy_within(whole..whole + kept, 0);
                }
            }
        } else {
            if let Some(looks) = looks.as_deref_mut() {
                looks.see_gb18030(bytes);
            }
            let mut at = 0;
            loop {
                let (result, read, _) =
                    decoder.decode_to_utf8_without_replacement(&bytes[at..], &mut text, is_last);
                at += read;
                match result {
                    DecoderResult::InputEmpty => break,
                    DecoderResult::OutputFull => {}
                    DecoderResult::Malformed(length, after) => {
                        let back = u64::from(length) + u64::from(after);
                        return Ok(Some((done + at as u64).saturating_sub(back)));
                    }
                }
            }
            done += bytes.len() as u64;
        }
        if is_last {
            return Ok(None);
        }
    }
}

/// The line that the byte at `offset` stands in, from 1.
fn line_of(
    input: &mut (impl Read + Seek),
    settled: Settled,
    offset: u64,
) -> Result<u64, SheetError> {
    rewind(input, settled.mark_bytes)?;
    let unit = match settled.encoding {
        encoding if encoding == UTF_16LE || encoding == UTF_16BE => 2,
        _ => 1,
    };
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, input).take(offset - settled.mark_bytes);
    let (mut line, mut before, mut bytes) = (1, 0, [0; 2]);
    while fill(&mut reader, &mut bytes[..unit])? == unit {
        let this = match (unit, settled.encoding == UTF_16BE) {
            (1, _) => u16::from(bytes[0]),
            (_, false) => u16::from_le_bytes(bytes),
            (_, true) => u16::from_be_bytes(bytes),
        };
        let is_end =
            this == u16::from(b'\r') || (this == u16::from(b'\n') && before != u16::from(b'\r'));
        line += u64::from(is_end);
        before = this;
    }
    Ok(line)
}

/// What a file looks like in each of the two encodings that are tried.
///
/// Of Chinese in GB18030, nearly all is in GB 2312. Bytes of a European code page pass for GB18030 too,
/// but fall outside that part. Of UTF-8, what can also be GB 2312 are characters of two bytes; read
/// so, Chinese words mix scripts that no text has side by side.
#[derive(Debug, Default)]
struct Looks {
    common: u64,
    other: u64,
    state: PairState,
    /// The script of the character before, unless that was of ASCII.
    script: Option<u8>,
    mixes_scripts: bool,
    /// Something is in it that GB 2312 has not.
    is_utf8: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum PairState {
    #[default]
    Between,
    Lead(u8),
    /// So many bytes of a character of four are still to come.
    Four(u8),
}

impl Looks {
    /// `text` is valid.
    fn see_utf8(&mut self, text: &[u8]) {
        if self.is_utf8 {
            return;
        }
        if text.is_ascii() {
            self.script = None;
            return;
        }
        let mut bytes = text.iter();
        while let Some(lead) = bytes.next() {
            let script = match lead {
                ..0x80 => {
                    self.script = None;
                    continue;
                }
                0xC2 => None, // signs, at home in each script
                0xC3..=0xCB => Some(0),
                0xCC | 0xCD => Some(1), // marks to be put over letters
                0xCE | 0xCF => Some(2),
                0xD0..=0xD3 => Some(3),
                0xD4..=0xD7 => Some(4),
                0xD8..=0xDB => Some(5),
                0xDC..=0xDF => Some(6),
                0xE0.. | 0x80..=0xC1 => {
                    self.is_utf8 = true;
                    return;
                }
            };
            if bytes.next().is_none_or(|trail| *trail < 0xA1) {
                self.is_utf8 = true;
                return;
            }
            if script.is_some() {
                self.mixes_scripts |= self.script.is_some() && self.script != script;
                self.script = script;
            }
        }
    }

    /// Whether valid UTF-8 is none in truth.
    fn is_mixed(&self) -> bool {
        self.mixes_scripts && !self.is_utf8
    }

    fn see_gb18030(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = match (self.state, byte) {
                (PairState::Between, ..0x80) => PairState::Between,
                (PairState::Between, 0x80) => {
                    self.other += 1;
                    PairState::Between
                }
                (PairState::Between, lead) => PairState::Lead(*lead),
                (PairState::Lead(_), 0x30..0x3A) => {
                    self.other += 1;
                    PairState::Four(2)
                }
                (PairState::Lead(0xA1..=0xA9 | 0xB0..=0xF7), 0xA1..) => {
                    self.common += 1;
                    PairState::Between
                }
                (PairState::Lead(_), _) => {
                    self.other += 1;
                    PairState::Between
                }
                (PairState::Four(2), _) => PairState::Four(1),
                (PairState::Four(_), _) => PairState::Between,
            };
        }
    }

    fn is_chinese(&self) -> bool {
        self.common >= self.other.saturating_mul(2)
    }
}

/// The text of a file from its beginning, in UTF-8 and without its mark.
pub(super) fn text_of<'a>(
    mut input: impl Read + Seek + 'a,
    settled: Settled,
) -> Result<Box<dyn BufRead + 'a>, SheetError> {
    rewind(&mut input, settled.mark_bytes)?;
    if settled.encoding == UTF_8 {
        return Ok(Box::new(BufReader::with_capacity(CHUNK_BYTES, input)));
    }
    Ok(Box::new(Decoding {
        input: BufReader::with_capacity(CHUNK_BYTES, input),
        decoder: settled.encoding.new_decoder_without_bom_handling(),
        is_over: false,
        text: vec![0; CHUNK_BYTES],
        rest: 0..0,
    }))
}

struct Decoding<R> {
    input: R,
    decoder: Decoder,
    is_over: bool,
    text: Vec<u8>,
    /// What of `text` was not taken yet.
    rest: std::ops::Range<usize>,
}

impl<R: BufRead> BufRead for Decoding<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.rest.is_empty() && !self.is_over {
            let bytes = self.input.fill_buf()?;
            let is_last = bytes.is_empty();
            let (result, read, written) =
                self.decoder
                    .decode_to_utf8_without_replacement(bytes, &mut self.text, is_last);
            self.input.consume(read);
            self.rest = 0..written;
            match result {
                DecoderResult::Malformed(..) => return Err(changed()),
                DecoderResult::InputEmpty => self.is_over = is_last,
                DecoderResult::OutputFull => {}
            }
        }
        Ok(&self.text[self.rest.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.rest.start = self.rest.end.min(self.rest.start + count);
    }
}

impl<R: BufRead> Read for Decoding<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// What was read a first time without a fault can't have one.
pub(super) fn changed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it was changed while it was being read",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn settled(bytes: &[u8], charset: Option<&str>) -> Result<(String, String), String> {
        let mut input = Cursor::new(bytes);
        let settled = settle(&mut input, charset).map_err(|error| error.to_string())?;
        let mut text = String::new();
        text_of(input, settled)
            .expect("text")
            .read_to_string(&mut text)
            .expect("UTF-8");
        Ok((settled.name(), text))
    }

    fn utf16(text: &str, is_big: bool, mark: bool) -> Vec<u8> {
        let mark = mark.then_some(0xFEFF);
        mark.into_iter()
            .chain(text.encode_utf16())
            .flat_map(|unit| {
                if is_big {
                    unit.to_be_bytes()
                } else {
                    unit.to_le_bytes()
                }
            })
            .collect()
    }

    const TEXT: &str = "sku,name\nA,羊毛毯 50×60\n";

    #[test]
    fn a_mark_then_the_charset_then_the_whole_file_decide() {
        let gbk = encoding_rs::GBK.encode(TEXT).0.into_owned();
        let marked = [&[0xEF, 0xBB, 0xBF], TEXT.as_bytes()].concat();
        let big5 = encoding_rs::BIG5
            .encode("sku,name\nA,羊毛毯\n")
            .0
            .into_owned();
        for (bytes, charset, name) in [
            (TEXT.as_bytes(), None, "UTF-8"),
            (&marked, None, "UTF-8"),
            (&marked, Some("gbk"), "UTF-8"),
            (&gbk, None, "GB18030"),
            (&gbk, Some("GBK"), "GBK"),
            (&utf16(TEXT, false, true), None, "UTF-16LE"),
            (&utf16(TEXT, true, true), Some("utf-16le"), "UTF-16BE"),
            (&utf16(TEXT, false, false), None, "UTF-16LE"),
            (&utf16(TEXT, true, false), None, "UTF-16BE"),
            (&utf16(TEXT, true, false), Some("utf-16be"), "UTF-16BE"),
        ] {
            assert_eq!(
                settled(bytes, charset),
                Ok((name.to_owned(), TEXT.to_owned())),
                "{charset:?} {name}"
            );
        }
        let (name, text) = settled(&big5, Some("big5")).expect("named");
        assert_eq!(
            (name.as_str(), text.as_str()),
            ("Big5", "sku,name\nA,羊毛毯\n")
        );
    }

    #[test]
    fn what_is_no_text_or_another_encoding_is_refused_with_its_place() {
        let latin = encoding_rs::WINDOWS_1252
            .encode("sku;name\r\nA;Müller\r\nB;café crème\r\n")
            .0
            .into_owned();
        // A file of UTF-8 that a program cut within a character.
        let cut = [TEXT.as_bytes(), b"B,\xE7\xBE,\n"].concat();
        let mut odd = utf16(TEXT, false, true);
        odd.push(b'x');
        for (bytes, charset, words) in [
            (
                &latin[..],
                None,
                "line 2, byte 14 of the file: is neither UTF-8 nor GB18030",
            ),
            (&cut, None, "line 3, byte 31 of the file"),
            (
                &cut,
                Some("utf-8"),
                "line 3, byte 31 of the file: is not UTF-8",
            ),
            (&odd, None, "line 3, byte 45 of the file: is not UTF-16LE"),
            (b"sku,name\nX,\xff\xfe\n", None, "line 2, byte 12"),
            (
                TEXT.as_bytes(),
                Some("klingon"),
                "there is no charset `klingon`",
            ),
            (b"PK\x03\x04....", None, "workbook"),
            (b"\xFF\xFE\0\0s\0\0\0", None, "UTF-32"),
        ] {
            let refused = settled(bytes, charset).expect_err(words);
            assert!(refused.contains(words), "{refused}");
        }
        let named = settled(&latin, Some("windows-1252")).expect("named");
        assert!(named.1.contains("Müller"));
    }

    #[test]
    fn words_that_are_utf_8_by_chance_are_told_by_their_scripts() {
        let gbk = encoding_rs::GBK.encode("sku,name\nA,毛毯\n").0;
        assert!(std::str::from_utf8(&gbk).is_ok());
        let (name, text) = settled(&gbk, None).expect("GBK");
        assert_eq!(
            (name.as_str(), text.as_str()),
            ("GB18030", "sku,name\nA,毛毯\n")
        );
        for text in [
            "sku,name\nA,créée «à l’été» naïve\n",
            "sku,name\nA,café «créée»\n",
            "sku,name\nA,«Ваза»\n",
            "sku,name\nA,βάζο\n",
            "sku,name\nA,Müller & Söhne\n",
        ] {
            let read = settled(text.as_bytes(), None);
            assert_eq!(read, Ok(("UTF-8".to_owned(), text.to_owned())));
        }
    }

    #[test]
    fn characters_stand_across_chunks() {
        for shift in 0..4 {
            let text = format!("{}{}", "x".repeat(shift), "毛毯".repeat(CHUNK_BYTES / 2));
            let (name, read) = settled(text.as_bytes(), None).expect("UTF-8");
            assert!(name == "UTF-8" && read == text);
            let gbk = encoding_rs::GBK.encode(&text).0;
            let (name, read) = settled(&gbk, None).expect("GBK");
            assert!(name == "GB18030" && read == text);
        }
    }
}
