//! Idempotency keys (draft-ietf-httpapi-idempotency-key-header-07): the same request twice is done
//! once and answered alike.
//!
//! Invariants: the key's row is the first that its transaction writes, and the answer joins it last, so a second
//! request, on whichever connection, waits there for the end of the first and finds its answer ("still running"
//! never has to be told); the row commits with the work that it stands for; only successes are kept, for a
//! refusal has changed nothing and may be tried again.
//! An operation looks for the answer before it looks at anything that may have changed since, or once
//! that has refused it: the first answer is given again whatever has become of the world.

mod sql;

use sha2::{Digest, Sha256};

use super::UserId;
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
pub struct IdempotencyKey {
    key: String,
    fingerprint: String,
    seconds: i64,
}

impl IdempotencyKey {
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
        let stored = sql::stored(tx, caller, &self.key, self.since(now))?;
        Ok(stored.map(|stored| stored.location))
    }

    /// The answer given before, if there is one.
    pub fn look_up(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        caller: UserId,
    ) -> Result<Option<Stored>, KeyError> {
        let stored = sql::stored(tx, caller, &self.key, self.since(now))?;
        stored.map(|stored| self.fitting(stored)).transpose()
    }

    /// Takes the key for what is to be done in this transaction, which ends it with [`IdempotencyKey::keep`]; or the answer
    /// given before. Another transaction that has taken the key is waited for, so two never do the same.
    pub fn begin(
        &self,
        tx: &mut Tx<'_>,
        now: Timestamp,
        caller: UserId,
    ) -> Result<Option<Stored>, KeyError> {
        let asked = KeyAsked {
            now,
            caller,
            key: self,
        };
        let stored = Self::begin_all(tx, &[asked])?.pop().flatten();
        stored.map(|stored| self.fitting(stored)).transpose()
    }

    /// [`IdempotencyKey::begin`] of many, no two alike: in their order, `None` for each that was taken, and the answer
    /// given before for each other, whatever was asked then.
    pub fn begin_all(
        tx: &mut Tx<'_>,
        asked: &[KeyAsked<'_>],
    ) -> Result<Vec<Option<Stored>>, StoreError> {
        if asked.is_empty() || sql::begin_keys(tx, asked)? == asked.len() as u64 {
            return Ok(vec![None; asked.len()]);
        }
        sql::answered(tx, asked)
    }

    /// The answer, if it is one to what is asked under this key.
    pub fn fitting(&self, stored: Stored) -> Result<Stored, KeyError> {
        match stored.fingerprint == self.fingerprint {
            true => Ok(stored),
            false => Err(KeyError::Reused),
        }
    }

    /// What tells it apart from others of its caller.
    pub fn text(&self) -> &str {
        &self.key
    }

    /// From when on an answer is still given again at `now`.
    fn since(&self, now: Timestamp) -> Timestamp {
        now.plus_seconds(-self.seconds)
    }

    /// An answer to what is asked under this key.
    pub fn answer(&self, location: String, body: String) -> Stored {
        Stored {
            fingerprint: self.fingerprint.clone(),
            location,
            body,
        }
    }

    /// Keeps the answer under the key that this transaction has taken.
    pub fn keep(
        &self,
        tx: &mut Tx<'_>,
        caller: UserId,
        location: String,
        body: String,
    ) -> Result<(), StoreError> {
        Self::keep_all(tx, &[(caller, self, &self.answer(location, body))])
    }

    /// [`IdempotencyKey::keep`] of many.
    pub fn keep_all(
        tx: &mut Tx<'_>,
        kept: &[(UserId, &IdempotencyKey, &Stored)],
    ) -> Result<(), StoreError> {
        if kept.is_empty() || sql::keep_answers(tx, kept)? == kept.len() as u64 {
            return Ok(());
        }
        Err(StoreError::Bug("an answer has no key".to_owned()))
    }

    /// Gives up keys that this transaction has taken and has no answer for.
    pub fn give_up_all(
        tx: &mut Tx<'_>,
        keys: &[(UserId, &IdempotencyKey)],
    ) -> Result<(), StoreError> {
        match keys.is_empty() {
            true => Ok(()),
            false => sql::give_up_keys(tx, keys),
        }
    }
}

/// Who asks for something under a key, and when.
#[derive(Clone, Copy, Debug)]
pub struct KeyAsked<'a> {
    /// The time of the request.
    pub now: Timestamp,
    /// Whose key it is.
    pub caller: UserId,
    /// The key.
    pub key: &'a IdempotencyKey,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::monitor::Metrics;
    use crate::store::Store;

    const CALLER: UserId = UserId(7);
    const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

    #[test]
    fn a_key_is_taken_first_and_is_free_again_when_the_work_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let metrics = Metrics::new().expect("unique names");
        let path = dir.path().join("onrush.db");
        let store = Store::open(&path, &Database::default(), metrics, |_| ()).expect("a store");
        let key = IdempotencyKey::new("a key", "what is asked", 3_600).expect("a key");
        let asked = key.clone();
        let refused = store.write::<(), KeyError>(move |tx| {
            assert_eq!(asked.begin(tx, NOW, CALLER)?, None);
            let again = KeyAsked {
                now: NOW,
                caller: CALLER,
                key: &asked,
            };
            assert_eq!(sql::begin_keys(tx, &[again])?, 0, "it is taken already");
            Err(KeyError::Reused)
        });
        assert!(matches!(refused.blocking(), Err(KeyError::Reused)));
        let do_it = |now: Timestamp, key: &IdempotencyKey| {
            let key = key.clone();
            let work = move |tx: &mut Tx<'_>| {
                let before = key.begin(tx, now, CALLER)?;
                if before.is_none() {
                    key.keep(tx, CALLER, "/made".to_owned(), "{}".to_owned())?;
                }
                Ok::<_, KeyError>(before.is_some())
            };
            store.write(work).blocking()
        };
        assert!(
            matches!(do_it(NOW, &key), Ok(false)),
            "nothing was left behind"
        );
        assert!(matches!(do_it(NOW, &key), Ok(true)), "it is answered");
        let other = key.asking("something else");
        assert!(matches!(do_it(NOW, &other), Err(KeyError::Reused)));
        assert!(
            matches!(do_it(NOW.plus_seconds(3_600), &other), Ok(false)),
            "it is too old"
        );
        let kept = store.write::<(), KeyError>(move |tx| {
            let untaken = IdempotencyKey::new("another", "", 1).expect("a key");
            Ok(untaken.keep(tx, CALLER, String::new(), "{}".to_owned())?)
        });
        assert!(matches!(
            kept.blocking(),
            Err(KeyError::Store(StoreError::Bug(_)))
        ));
    }
}
