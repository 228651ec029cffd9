//! Passwords: what a good one is, argon2id, and who waits how long for its turn to be hashed.
//!
//! Invariants: hashing runs on threads that give way to others, a bounded number at once. Who waits does so in one of
//! three [`Lane`]s, each bounded, and half of each for one client, so that strangers never fill the lane of
//! known places. A free place goes to the first lane in which a caller waits; now and then to another, so that
//! each lane moves. A password for an account that is not there takes as long as a wrong one: it is checked
//! against a dummy hash while a place is free, and else waits as long as such a check takes now, so that
//! made-up accounts take no place from real ones.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, oneshot};

use super::AuthError;
use crate::clock::Stopwatch;
use crate::config;
use crate::http::network_of;
use crate::threads::Yielding;

/// Characters that a new password must have: what OWASP ASVS 5.0 (6.2.1) demands, so no shop may ask for less.
const CHARS_MIN: usize = 8;
/// Bytes that a password may have. A longer one is no safer, and each is hashed and held in memory.
pub(super) const BYTES_MAX: usize = 256;
/// The most used passwords, one a line behind two lines of where they are from.
const COMMON: &str = include_str!("common_passwords.txt");

/// What is wrong with a password, in words.
pub(super) fn check(password: &str, email: &str) -> Result<(), &'static str> {
    if password.chars().count() < CHARS_MIN {
        return Err("must have at least 8 characters");
    }
    if password.len() > BYTES_MAX {
        return Err("must have at most 256 bytes");
    }
    let lower = password.to_lowercase();
    if COMMON.lines().skip(2).any(|common| common == lower) {
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

/// Whose password it is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Log-ins from places where the account has logged in before, and callers who have shown credentials.
    Known,
    /// A stranger who tries an account that there is.
    Stranger,
    /// A registration.
    Newcomer,
}

/// Lanes in which passwords wait; see [`Lane`].
const LANES: usize = 3;
/// Of so many places that get free, one goes to strangers before those who are known …
const FOR_STRANGERS: u64 = 4;
/// … and of so many, one to newcomers before all others.
const FOR_NEWCOMERS: u64 = 16;

/// Who is hashing and who waits for it.
struct Turns {
    free: usize,
    /// Places that were given to one who waited.
    given: u64,
    waiting: [VecDeque<(IpAddr, oneshot::Sender<Turn>)>; LANES],
    waiting_max: usize,
}

impl Turns {
    /// The lane whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        self.given = self.given.wrapping_add(1);
        let first = if self.given.is_multiple_of(FOR_NEWCOMERS) {
            Lane::Newcomer
        } else if self.given.is_multiple_of(FOR_STRANGERS) {
            Lane::Stranger
        } else {
            Lane::Known
        };
        let (first, rest) = (first as usize, 0..LANES);
        let lane = std::iter::once(first)
            .chain(rest)
            .find(|lane| !self.waiting[*lane].is_empty())?;
        self.waiting[lane].pop_front().map(|(_, turn)| turn)
    }
}

/// The right to hash one password; dropped, it goes to the next who waits.
struct Turn(Option<Arc<Mutex<Turns>>>);

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else {
            return;
        };
        loop {
            let next = {
                let mut all = turns.lock();
                let next = all.next();
                if next.is_none() {
                    all.free += 1;
                }
                next
            };
            let Some(next) = next else {
                return;
            };
            match next.send(Turn(Some(Arc::clone(&turns)))) {
                Ok(()) => return,
                // The caller that waited has gone away; the turn comes back without being dropped.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

pub(super) struct Passwords {
    settings: config::Auth,
    turns: Arc<Mutex<Turns>>,
    threads: Yielding,
    /// Microseconds that the check of a stranger's password takes, its wait included; the newest count most.
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
            threads: Yielding::new("onrush-hash", running),
            turns: Arc::new(Mutex::new(Turns {
                free: running,
                given: 0,
                waiting: [const { VecDeque::new() }; LANES],
                waiting_max: settings.hash_queue_max,
            })),
            usual_micros: AtomicU64::new(0),
            dummy: OnceCell::new(),
        }
    }

    /// `client` is who waits for it.
    pub(super) async fn hash(
        &self,
        lane: Lane,
        client: IpAddr,
        password: &str,
    ) -> Result<String, AuthError> {
        let turn = self.turn(lane, client).await?;
        self.hash_in(turn, password).await
    }

    async fn hash_in(&self, turn: Turn, password: &str) -> Result<String, AuthError> {
        let (password, settings) = (password.to_owned(), self.settings.clone());
        self.run(turn, move || hash_now(&password, &settings))
            .await?
    }

    /// Whether the password is the stored one. `client` is who waits for it.
    pub(super) async fn verify(
        &self,
        lane: Lane,
        client: IpAddr,
        password: &str,
        stored: String,
    ) -> Result<bool, AuthError> {
        let watch = Stopwatch::start();
        let turn = self.turn(lane, client).await?;
        let is_right = self.verify_in(turn, password, stored).await?;
        if lane == Lane::Stranger {
            self.note(watch);
        }
        Ok(is_right)
    }

    /// Takes the time that a wrong password of a stranger takes, where there is none to be checked.
    pub(super) async fn verify_nothing(&self, password: &str) -> Result<(), AuthError> {
        let watch = Stopwatch::start();
        let Some(turn) = self.free_turn() else {
            tokio::time::sleep(self.usual_time()).await;
            return Ok(());
        };
        match self.dummy.get() {
            Some(dummy) => {
                self.verify_in(turn, password, dummy.clone()).await?;
                self.note(watch);
            }
            None => {
                // Making one takes as long as checking one.
                let dummy = self.hash_in(turn, "no account has this").await?;
                self.note(watch);
                // Another may have been faster.
                let _set = self.dummy.set(dummy);
            }
        }
        Ok(())
    }

    async fn verify_in(
        &self,
        turn: Turn,
        password: &str,
        stored: String,
    ) -> Result<bool, AuthError> {
        let password = password.to_owned();
        self.run(turn, move || verify_now(&password, &stored)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let work = self.threads.run(move || {
            let result = work();
            drop(turn);
            result
        });
        work.await
            .map_err(|error| AuthError::Hash(error.to_string()))
    }

    fn note(&self, watch: Stopwatch) {
        let took = u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Two at once may lose one of their marks, which no average minds.
        let usual = self.usual_micros.load(Ordering::Relaxed);
        let usual = match usual {
            0 => took,
            usual => (usual / 4 * 3).saturating_add(took / 4),
        };
        self.usual_micros.store(usual, Ordering::Relaxed);
    }

    /// How long a check takes nowadays.
    pub(super) fn usual_time(&self) -> Duration {
        Duration::from_micros(self.usual_micros.load(Ordering::Relaxed))
    }

    fn free_turn(&self) -> Option<Turn> {
        let mut all = self.turns.lock();
        all.free = all.free.checked_sub(1)?;
        Some(Turn(Some(Arc::clone(&self.turns))))
    }

    async fn turn(&self, lane: Lane, client: IpAddr) -> Result<Turn, AuthError> {
        let client = network_of(client);
        let turn = {
            let mut all = self.turns.lock();
            if let Some(free) = all.free.checked_sub(1) {
                all.free = free;
                return Ok(Turn(Some(Arc::clone(&self.turns))));
            }
            let most = all.waiting_max;
            let waiting = &mut all.waiting[lane as usize];
            let is_full = |waiting: &VecDeque<(IpAddr, _)>| {
                let own = waiting.iter().filter(|(other, _)| *other == client);
                waiting.len() >= most || own.count() >= most.div_ceil(2)
            };
            if is_full(waiting) {
                // Those who went away make room.
                waiting.retain(|(_, one)| !one.is_closed());
            }
            if is_full(waiting) {
                return Err(AuthError::Overloaded);
            }
            let (send, turn) = oneshot::channel();
            waiting.push_back((client, send));
            turn
        };
        turn.await.map_err(|_| AuthError::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn passwords(change: impl FnOnce(&mut config::Auth)) -> Passwords {
        let mut settings = config::Auth {
            argon2_memory_kib: 8,
            argon2_passes: 1,
            hash_concurrency: 1,
            ..config::Auth::default()
        };
        change(&mut settings);
        Passwords::new(&settings)
    }

    #[tokio::test]
    async fn only_the_right_password_passes() {
        let passwords = passwords(|_| ());
        let stored = passwords
            .hash(Lane::Newcomer, HERE, "correct horse")
            .await
            .expect("hash");
        for (password, is_right) in [("correct horse", true), ("wrong horse", false)] {
            let verified = passwords.verify(Lane::Known, HERE, password, stored.clone());
            assert_eq!(verified.await.expect("verify"), is_right);
        }
        passwords.verify_nothing("x").await.expect("the first");
        passwords.verify_nothing("x").await.expect("the second");
        assert!(passwords.usual_time() > Duration::ZERO);
    }

    #[tokio::test]
    async fn who_is_known_goes_first_and_nobody_waits_for_ever() {
        let passwords = passwords(|settings| settings.hash_queue_max = 60);
        let held = passwords.free_turn().expect("it is free");
        let order = Mutex::new(Vec::new());
        let join = |lane| {
            let (passwords, order) = (&passwords, &order);
            async move {
                let turn = passwords.turn(lane, HERE).await.expect("a turn");
                order.lock().push(lane);
                drop(turn);
            }
        };
        let lanes = [Lane::Newcomer, Lane::Stranger, Lane::Known];
        let all = lanes.iter().flat_map(|lane| [*lane; 30]).map(join);
        let all = futures_util::future::join_all(all);
        let release = async {
            // By now all of them wait; a made-up account is told of no place.
            assert!(passwords.free_turn().is_none());
            drop(held);
        };
        tokio::join!(all, release);
        let order = order.into_inner();
        assert_eq!(order.len(), 90);
        let of = |part: &[Lane], lane| part.iter().filter(|one| **one == lane).count();
        assert_eq!(of(&order[..16], Lane::Known), 12);
        assert_eq!(of(&order[..16], Lane::Stranger), 3);
        assert_eq!(of(&order[..16], Lane::Newcomer), 1);
        assert_eq!(of(&order[60..], Lane::Known), 0);
    }

    #[tokio::test]
    async fn a_full_lane_refuses_its_own_and_those_who_went_away_leave_it() {
        let passwords = passwords(|settings| settings.hash_queue_max = 3);
        let held = passwords.free_turn().expect("it is free");
        let newcomer =
            |client: u8| passwords.turn(Lane::Newcomer, IpAddr::from([192, 0, 2, client]));
        let mut waiting: Vec<_> = [1, 1, 2].map(|client| Box::pin(newcomer(client))).into();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        assert!(matches!(newcomer(3).await, Err(AuthError::Overloaded)));
        let mut known = Box::pin(passwords.turn(Lane::Known, HERE));
        assert!((&mut known).now_or_never().is_none());
        waiting.pop();
        // One client has half of a lane at most.
        assert!(matches!(newcomer(1).await, Err(AuthError::Overloaded)));
        waiting.clear();
        let mut another = Box::pin(newcomer(1));
        assert!((&mut another).now_or_never().is_none());
        drop(held);
        drop(known.await.expect("its turn"));
        drop(another.await.expect("its turn"));
        assert!(passwords.free_turn().is_some(), "the place is free again");
    }

    #[test]
    fn weak_passwords_are_refused_with_a_reason() {
        for weak in [
            "short",
            "password",
            "PASSWORD123",
            "me@example.com",
            "samantha1",
            "5201314520",
        ] {
            assert!(check(weak, "me@example.com").is_err(), "{weak}");
        }
        assert!(check("correct horse", "me@example.com").is_ok());
        assert!(check("密码密码密码密码", "me@example.com").is_ok());
        let common: Vec<&str> = COMMON.lines().skip(2).collect();
        assert!(common.len() >= 3_000, "{}", common.len());
        let fits = |word: &&str| word.len() >= CHARS_MIN && **word == word.to_lowercase();
        assert!(common.iter().all(fits), "a line that no password can be");
    }
}
