//! Tables as spreadsheet programs write and read them: the room of every CSV file that comes or goes.
//!
//! Invariants: a file is read in one encoding or not at all, and that is settled before the first
//! row is handed out; memory stays bounded whatever the file holds; a quote that is not closed costs
//! its own row and no other; text that goes out never becomes a formula. What is absent: what the
//! columns mean, and HTTP.

pub mod cell;
mod encoding;
mod rows;
mod write;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

pub use rows::{Columns, Next, Record, Sheet};
pub use write::{Cell, CsvOut, WriteError};

/// What is said of a file beside its bytes.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The charset that its sender named, such as `gbk`; a byte-order mark counts more.
    pub charset: Option<String>,
}

/// How a file turned out to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Its encoding, such as `UTF-8` or `GB18030`.
    pub encoding: String,
    /// What stands between its columns: `comma`, `semicolon`, `tab`, or the character itself.
    pub delimiter: String,
}

/// Why a file can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// Its bytes are no text that is understood; the reason names the place.
    #[error("{0}")]
    Text(String),
    /// The line of its column names can't be used.
    #[error("{0}")]
    Header(String),
    /// It breaks off.
    #[error("the file can't be read: {0}")]
    Read(std::io::Error),
    /// It could not be put aside while it was looked at.
    #[error("the file can't be kept while it is looked at: {0}")]
    Spool(std::io::Error),
}

/// A stream of up to this many bytes is kept in memory.
const SPOOL_BYTES_IN_MEMORY: usize = 1 << 20;
/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A stream, put aside so that it can be read twice. A larger one goes into a file in `folder` that
/// has no name (or loses it at once, where the file system knows no such files): it is gone when the
/// process ends, however that ends.
pub fn spool(mut input: impl Read, folder: &Path) -> Result<impl Read + Seek, SheetError> {
    let mut kept = tempfile::spooled_tempfile_in(SPOOL_BYTES_IN_MEMORY, folder);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SheetError::Read(error)),
        };
        kept.write_all(&chunk[..count]).map_err(SheetError::Spool)?;
    }
    kept.seek(SeekFrom::Start(0)).map_err(SheetError::Spool)?;
    Ok(kept)
}
