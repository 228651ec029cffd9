//! Idempotency keys (draft-ietf-httpapi-idempotency-key-header-07): the same request twice is done
//! once and answered alike.
//!
//! Invariants: the key's row commits with the work that it stands for; only successes are kept, for
//! a refusal has changed nothing and may be tried again; a second request that comes while the first
//! waits for the writer runs after it and finds its answer, so "still running" never has to be told.
//! An operation looks for the answer before it looks at anything that may have changed since, or once
//! that has refused it: the first answer is given again whatever has become of the world.

use sha2::{Digest, Sha256};

use super::{UserId, sql};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::store::{StoreError, Tx};

/// An answer that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Hash of what was asked.
    pub fingerprint: String,
    /// Where the made thing is.
    pub location: String,
    /// The JSON that was answered.
    pub body: String,
}

/// Why no answer can be looked up.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    Reused,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key with what was asked under it.
#[derive(Clone, Debug)]
pub struct Key {
    key: String,
    fingerprint: String,
    seconds: i64,
}

impl Key {
    /// Checks the header's value; `asked` is anything that tells two requests apart.
    pub fn new(key: &str, asked: &str, seconds: u64) -> Result<Self, Vec<FieldError>> {
        if key.is_empty()
            || key.len() > 255
            || !key
                .bytes()
                .all(|byte| byte.is_ascii_graphic() || byte == b' ')
        {
            return Err(vec![FieldError::new(
                "Idempotency-Key",
                "must be 1 to 255 visible ASCII characters",
            )]);
        }
        Ok(Self {
            key: key.to_owned(),
            fingerprint: fingerprint(asked),
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        })
    }

    /// The same key, with something else asked under it.
    #[must_use]
    pub fn asking(&self, asked: &str) -> Self {
        Self {
            key: self.key.clone(),
            fingerprint: fingerprint(asked),
            seconds: self.seconds,
        }
    }

    /// Where the thing is that was made under this key, whatever was asked.
    pub fn made_at(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        caller: UserId,
    ) -> Result<Option<String>, StoreError> {
        let stored = sql::stored(tx, caller, &self.key, now.plus_seconds(-self.seconds))?;
        Ok(stored.map(|stored| stored.location))
    }

    /// The answer given before, if there is one.
    pub fn look_up(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        caller: UserId,
    ) -> Result<Option<Stored>, KeyError> {
        match sql::stored(tx, caller, &self.key, now.plus_seconds(-self.seconds))? {
            Some(stored) if stored.fingerprint == self.fingerprint => Ok(Some(stored)),
            Some(_) => Err(KeyError::Reused),
            None => Ok(None),
        }
    }

    /// Keeps an answer.
    pub fn keep(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        caller: UserId,
        location: String,
        body: String,
    ) -> Result<(), StoreError> {
        let stored = Stored {
            fingerprint: self.fingerprint.clone(),
            location,
            body,
        };
        sql::store(tx, now, caller, &self.key, &stored)
    }
}

fn fingerprint(asked: &str) -> String {
    let digest = Sha256::digest(asked.as_bytes());
    let half = digest.iter().take(16);
    half.map(|byte| format!("{byte:02x}")).collect()
}

/// Drops answers that are older than `seconds`, a bounded number at a time.
pub fn purge(tx: &mut Tx<'_>, now: Timestamp, seconds: u64) -> Result<u64, StoreError> {
    sql::purge_keys(
        tx,
        now.plus_seconds(-i64::try_from(seconds).unwrap_or(i64::MAX)),
    )
}
