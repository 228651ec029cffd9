//! Passwords: what a good one is, argon2id, and a limit on how many are hashed at once.
//!
//! Invariants: hashing runs off the async threads, a bounded number at once, a bounded number
//! waiting; an unknown account is checked against a dummy hash and so takes as long as a known one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OnceCell, Semaphore};

use super::AuthError;
use crate::clock::Stopwatch;
use crate::config;

const CHARS_MIN: usize = 8;
const BYTES_MAX: usize = 256;
/// The commonest passwords of eight characters and more in published leaks.
const COMMON: &[&str] = &[
    "password",
    "12345678",
    "123456789",
    "1234567890",
    "qwertyuiop",
    "qwerty123",
    "1q2w3e4r",
    "1qaz2wsx",
    "iloveyou",
    "password1",
    "password123",
    "sunshine",
    "princess",
    "football",
    "baseball",
    "superman",
    "trustno1",
    "starwars",
    "88888888",
    "00000000",
    "11111111",
    "66666666",
    "12341234",
    "87654321",
    "abcd1234",
    "abc12345",
    "a1234567",
    "a12345678",
    "aa123456",
    "woaini1314",
    "5201314520",
    "147258369",
    "987654321",
    "qwer1234",
    "asdfghjkl",
    "zxcvbnm123",
    "administrator",
    "changeme",
    "letmein1",
    "welcome1",
];

/// What is wrong with a password, in words.
pub(super) fn check(password: &str, email: &str) -> Result<(), &'static str> {
    if password.chars().count() < CHARS_MIN {
        return Err("must have at least 8 characters");
    }
    if password.len() > BYTES_MAX {
        return Err("must have at most 256 bytes");
    }
    let lower = password.to_lowercase();
    if COMMON.contains(&lower.as_str()) {
        return Err("is among the most used passwords; choose another");
    }
    if lower == email.trim().to_lowercase() {
        return Err("must not be the address");
    }
    Ok(())
}

fn argon2(settings: &config::Auth) -> Result<Argon2<'static>, AuthError> {
    let params = Params::new(settings.argon2_memory_kib, settings.argon2_passes, 1, None)
        .map_err(|error| AuthError::Hash(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes on this thread, for tens of milliseconds.
pub(super) fn hash_now(password: &str, settings: &config::Auth) -> Result<String, AuthError> {
    argon2(settings)?
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| AuthError::Hash(error.to_string()))
}

fn verify_now(password: &str, stored: &str) -> bool {
    PasswordHash::new(stored).is_ok_and(|hash| {
        Argon2::default()
            .verify_password(password.as_bytes(), &hash)
            .is_ok()
    })
}

pub(super) struct Passwords {
    settings: config::Auth,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Microseconds that a check takes, its wait included; the newest count most.
    usual_micros: AtomicU64,
    dummy: OnceCell<String>,
}

impl Passwords {
    pub(super) fn new(settings: &config::Auth) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let running = match settings.hash_concurrency {
            0 => cores.min(4),
            set => set,
        };
        Self {
            settings: settings.clone(),
            running: Arc::new(Semaphore::new(running)),
            waiting: AtomicUsize::new(0),
            usual_micros: AtomicU64::new(0),
            dummy: OnceCell::new(),
        }
    }

    pub(super) async fn hash(&self, password: &str) -> Result<String, AuthError> {
        let (password, settings) = (password.to_owned(), self.settings.clone());
        self.run(move || hash_now(&password, &settings)).await?
    }

    /// Whether the password is the stored one; without a stored one it is not, after the same work.
    pub(super) async fn verify(
        &self,
        password: &str,
        stored: Option<String>,
    ) -> Result<bool, AuthError> {
        let known = stored.is_some();
        let stored = match stored {
            Some(stored) => stored,
            None => self
                .dummy
                .get_or_try_init(|| self.hash("no account has this"))
                .await?
                .clone(),
        };
        let password = password.chars().take(BYTES_MAX).collect::<String>();
        let watch = Stopwatch::start();
        let is_right = self.run(move || verify_now(&password, &stored)).await?;
        let took = u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Two at once may lose one of their marks, which no average minds.
        let usual = self.usual_micros.load(Ordering::Relaxed);
        let usual = (usual / 4 * 3).saturating_add(took / 4);
        self.usual_micros.store(usual, Ordering::Relaxed);
        Ok(is_right && known)
    }

    /// How long a check takes nowadays.
    pub(super) fn usual_time(&self) -> Duration {
        Duration::from_micros(self.usual_micros.load(Ordering::Relaxed))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = Waiting(&self.waiting);
        if before >= self.settings.hash_queue_max {
            return Err(AuthError::Overloaded);
        }
        let permit = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|_| AuthError::Overloaded)?;
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
        .map_err(|error| AuthError::Hash(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_account_passes() {
        let settings = config::Auth {
            argon2_memory_kib: 8,
            argon2_passes: 1,
            ..config::Auth::default()
        };
        let passwords = Passwords::new(&settings);
        let stored = passwords.hash("correct horse").await.expect("hash");
        assert!(
            passwords
                .verify("correct horse", Some(stored.clone()))
                .await
                .expect("verify")
        );
        assert!(
            !passwords
                .verify("wrong horse", Some(stored))
                .await
                .expect("verify")
        );
        assert!(
            !passwords
                .verify("no account has this", None)
                .await
                .expect("verify")
        );
    }

    #[test]
    fn weak_passwords_are_refused_with_a_reason() {
        for weak in ["short", "password", "PASSWORD123", "me@example.com"] {
            assert!(check(weak, "me@example.com").is_err(), "{weak}");
        }
        assert!(check("correct horse", "me@example.com").is_ok());
        assert!(check("密码密码密码密码", "me@example.com").is_ok());
    }
}
