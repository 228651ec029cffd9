//! Slows down guessing: what is guessed earns a growing wait, and is forgotten with time.
//!
//! A guess counts against what it is a guess at. Of a stranger that is the account, from wherever the
//! guess comes, and the address, for each account that is tried from it. Of a caller that has logged
//! in to this account before, from the same address or the same browser (a *place*), it is a count
//! that no stranger can fill: [`Throttle::known_begins`] lets such a caller in where strangers must wait.
//! Strangers' failures count for their wider network as well, so that a block of addresses is no block of
//! guesses. Registrations are counted by the same means, as buckets that fill up again.
//!
//! Invariants:
//! - A guess counts when it begins, so that of many at once no more are checked than one by one.
//! - Each count sinks by one in a fixed time ([`Limit::forget_ms`]); there is no permanent lock.
//! - A success takes back what the same caller added for the same account, and no more: nobody buys
//!   guesses at one account with the password of another, or with the owner's own logins.
//! - An account that does not exist counts as one that does.
//! - Bounded in bytes, whatever is sent: a key is a digest with a secret of this process, which no
//!   spelling makes meet another of its own or of another kind, and each table has a fixed number of
//!   places. Where they run short, what would be forgotten soonest gives way; accounts, addresses and
//!   wider networks have tables of their own, so that trying many of one kind washes away none of another.
//! - Time is monotonic, so setting the wall clock helps nobody; an address is what [`network_of`]
//!   counts as one, and a wider network what [`wider_network_of`] does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::clock::Clock;
use crate::config;
use crate::http::network_of;

/// How many failures are borne, and for how long they are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Failures at once before one must wait.
    pub failures: u32,
    /// Time after which one failure is forgotten.
    pub forget_ms: u64,
    /// Whether one waits until a failure is forgotten, and not the growing waits of the rules.
    is_bucket: bool,
}

impl Limit {
    /// So many failures; one is forgotten after so many seconds.
    pub fn new(failures: u32, forget_seconds: u64) -> Self {
        Self {
            failures,
            forget_ms: forget_seconds.saturating_mul(1_000).max(1),
            is_bucket: false,
        }
    }

    /// So many at once, and so many an hour from then on.
    pub fn an_hour(count: u32) -> Self {
        Self {
            failures: count,
            forget_ms: (3_600_000 / u64::from(count.max(1))).max(1),
            is_bucket: true,
        }
    }
}

/// How much is borne before one must wait, and how long then.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Wrong passwords of one account: by strangers from wherever, and again from each known place.
    pub account: Limit,
    /// Accounts that fail at one address.
    pub address: Limit,
    /// Accounts that fail in one wider network.
    pub network: Limit,
    /// Accounts that fail at one place where they have succeeded before.
    pub known: Limit,
    /// The first wait; each further failure doubles it.
    pub delay_seconds: u64,
    /// The longest wait.
    pub delay_seconds_max: u64,
    /// Registrations from one address, from one wider network, from everywhere.
    pub registrations: [Limit; 3],
    /// Registrations of one address of mail.
    pub recipient: Limit,
    /// Counts that are remembered of accounts, and as many of addresses.
    pub tracked_max: usize,
}

/// Mails to one address that others have registered: so many at once, and so many an hour.
const MAILS_TO_ONE: u32 = 3;

impl From<&config::Auth> for Rules {
    fn from(settings: &config::Auth) -> Self {
        let address = |failures| Limit::new(failures, settings.login_address_forget_seconds);
        Self {
            account: Limit::new(
                settings.login_account_failures,
                settings.login_account_forget_seconds,
            ),
            address: address(settings.login_address_failures),
            network: Limit::new(
                settings.login_network_failures,
                settings.login_network_forget_seconds,
            ),
            known: address(settings.login_known_failures),
            registrations: [
                settings.registrations_per_address,
                settings.registrations_per_network,
                settings.registrations_in_all,
            ]
            .map(Limit::an_hour),
            recipient: Limit::an_hour(MAILS_TO_ONE),
            delay_seconds: settings.login_delay_seconds,
            delay_seconds_max: settings.login_delay_seconds_max,
            tracked_max: settings.login_tracked_max,
        }
    }
}

/// What a count is of. The number is part of the key, so that no two kinds ever meet.
#[derive(Clone, Copy)]
enum Kind {
    /// An account, by its address.
    Account = 1,
    /// A network.
    Address = 2,
    /// An account as tried from one network.
    Visit = 3,
    /// A place where accounts have succeeded before.
    Place = 4,
    /// An account as tried from such a place.
    KnownVisit = 5,
    /// A network, for a secret that belongs to no account.
    Secret = 6,
    /// A wider network.
    Network = 7,
    /// Registrations from a network.
    Registering = 8,
    /// Registrations from a wider network.
    RegisteringNear = 9,
    /// All registrations.
    RegisteringAll = 10,
    /// Registrations of one address of mail.
    Recipient = 11,
    /// A wider network, for a secret that belongs to no account.
    SecretNear = 12,
}

/// Which table a count is in: so many of one kind push out none of another.
#[derive(Clone, Copy)]
enum Room {
    Accounts,
    Addresses,
    Networks,
    All,
}

impl Kind {
    fn room(self) -> Room {
        match self {
            Kind::Account | Kind::Visit | Kind::KnownVisit | Kind::Recipient => Room::Accounts,
            Kind::Address | Kind::Place | Kind::Secret | Kind::Registering => Room::Addresses,
            Kind::Network | Kind::SecretNear | Kind::RegisteringNear => Room::Networks,
            Kind::RegisteringAll => Room::All,
        }
    }
}

/// The wider network that an address is in: its /24, or of IPv6 the /48 that one customer of a provider
/// is given.
fn wider_network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

/// What a count is found by, and where.
#[derive(Clone, Copy)]
struct CountKey {
    digest: [u8; 16],
    room: Room,
}

/// One count. It is kept as the moment at which all of it will be forgotten, so it sinks by itself.
#[derive(Clone, Copy)]
struct Count {
    key: [u8; 16],
    forgotten_at_ms: u64,
    /// When the last guess began.
    last_ms: u64,
    /// Guesses that have begun and are not known to be right or wrong.
    pending: u32,
}

impl Count {
    fn level_ms(&self, now: u64) -> u64 {
        self.forgotten_at_ms.saturating_sub(now)
    }

    fn take_back(&mut self, ms: u64, now: u64) {
        self.forgotten_at_ms = self.forgotten_at_ms.saturating_sub(ms);
        if self.forgotten_at_ms <= now {
            // Nothing is left, so the last guess has not earned a wait either.
            self.forgotten_at_ms = self.last_ms;
        }
    }
}

/// Counts of one bucket. More of them make the one that gives way more surely the least.
const BUCKET: usize = 8;

/// A table of a fixed number of counts: a key belongs to one bucket, where it takes the place of what
/// is forgotten, or else of what will be soonest.
type Table = Box<[Vec<Count>]>;

/// The tables, by [`Room`].
struct Counts([Table; 4]);

impl Counts {
    fn new(tracked_max: usize) -> Self {
        let table = |places: usize| -> Table {
            let buckets = places.div_ceil(BUCKET).max(1);
            std::iter::repeat_with(Vec::new).take(buckets).collect()
        };
        Self([
            table(tracked_max),
            table(tracked_max),
            table(tracked_max / 4),
            table(1),
        ])
    }

    fn bucket(&mut self, key: &CountKey) -> &mut Vec<Count> {
        let [a, b, c, d, e, f, g, h, ..] = key.digest;
        let table = &mut self.0[key.room as usize];
        let at = u64::from_le_bytes([a, b, c, d, e, f, g, h]) % table.len() as u64;
        &mut table[at as usize]
    }

    fn get(&mut self, key: &CountKey) -> Option<&mut Count> {
        self.bucket(key)
            .iter_mut()
            .find(|count| count.key == key.digest)
    }

    fn level_ms(&mut self, key: &CountKey, now: u64) -> u64 {
        self.get(key).map_or(0, |count| count.level_ms(now))
    }

    fn add(&mut self, key: &CountKey, ms: u64, now: u64) {
        let bucket = self.bucket(key);
        let at = match bucket.iter().position(|count| count.key == key.digest) {
            Some(at) => at,
            None => {
                let new = Count {
                    key: key.digest,
                    forgotten_at_ms: now,
                    last_ms: now,
                    pending: 0,
                };
                let least = (0..bucket.len())
                    .min_by_key(|at| (bucket[*at].level_ms(now), bucket[*at].pending));
                match least {
                    Some(at) if bucket.len() == BUCKET || bucket[at].level_ms(now) == 0 => {
                        bucket[at] = new;
                        at
                    }
                    _ => {
                        bucket.push(new);
                        bucket.len() - 1
                    }
                }
            }
        };
        let count = &mut bucket[at];
        count.forgotten_at_ms = count.forgotten_at_ms.max(now).saturating_add(ms);
        count.last_ms = now;
        count.pending = count.pending.saturating_add(1);
    }
}

/// How much of a guess counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Each guess is one.
    Each,
    /// The first guess at an account is one, each further one at the same account a quarter: trying
    /// many accounts is what slows an address, more than one customer who has forgotten a password.
    Accounts,
}

/// A count that a guess adds to.
#[derive(Clone, Copy)]
struct Counter {
    key: CountKey,
    limit: Limit,
    weight: Weight,
    /// Whether its level can refuse a guess; otherwise it only tells what a success may take back.
    refuses: bool,
}

/// What one guess would add to. The first counter is of this account from this place alone: it tells
/// what a success vouches for.
struct Guess {
    visit: Counter,
    others: Vec<Counter>,
}

impl Guess {
    fn counters(&self) -> impl Iterator<Item = &Counter> {
        std::iter::once(&self.visit).chain(&self.others)
    }
}

/// Parts of a level that was reached at one account, as [`Weight`] counts them.
fn weighed(weight: Weight, level_ms: u64, one_ms: u64) -> u64 {
    match weight {
        Weight::Each => level_ms,
        Weight::Accounts => level_ms.min(one_ms) + level_ms.saturating_sub(one_ms) / 4,
    }
}

/// `ms` of one limit as the same number of failures of another.
fn converted(ms: u64, from: Limit, to: Limit) -> u64 {
    let ms = u128::from(ms) * u128::from(to.forget_ms) / u128::from(from.forget_ms);
    u64::try_from(ms).unwrap_or(u64::MAX)
}

/// A place from which an account was logged in to before.
#[derive(Clone, Copy, Debug)]
pub enum KnownPlace<'a> {
    /// The network of this address.
    Address(IpAddr),
    /// The browser that holds the token with this hash.
    Device(&'a str),
}

/// Who failed how often.
pub struct Throttle {
    rules: Rules,
    clock: Clock,
    secret: [u8; 32],
    counts: Mutex<Counts>,
    settled: Notify,
}

/// Whether a guess may be checked.
pub enum Verdict<'a> {
    /// It may, and is counted already.
    Go(Attempt<'a>),
    /// Not before so many seconds.
    Wait(u64),
    /// It depends on guesses that are being checked; ask again when one is over
    /// ([`Throttle::settled`]).
    Busy,
}

/// A guess that is being checked. Dropped without a word on how it ended, it counts as wrong.
#[must_use]
pub struct Attempt<'a> {
    throttle: &'a Throttle,
    guess: Guess,
    added_ms: Vec<u64>,
}

impl Throttle {
    /// Nobody has failed yet.
    pub fn new(rules: Rules, clock: Clock) -> Self {
        Self {
            counts: Mutex::new(Counts::new(rules.tracked_max)),
            rules,
            clock,
            secret: rand::random(),
            settled: Notify::new(),
        }
    }

    fn key(&self, kind: Kind, parts: &[&[u8]]) -> CountKey {
        let mut digest = Sha256::new_with_prefix(self.secret);
        digest.update([kind as u8]);
        for part in parts {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let whole: [u8; 32] = digest.finalize().into();
        let mut digest = [0; 16];
        digest.copy_from_slice(&whole[..16]);
        CountKey {
            digest,
            room: kind.room(),
        }
    }

    fn stranger(&self, account: &str, address: IpAddr) -> Guess {
        let (network, wider) = (
            network_of(address).to_string(),
            wider_network_of(address).to_string(),
        );
        let (account, network, wider) = (account.as_bytes(), network.as_bytes(), wider.as_bytes());
        let counter = |kind, parts: &[&[u8]], limit, weight, refuses| Counter {
            key: self.key(kind, parts),
            limit,
            weight,
            refuses,
        };
        let Rules {
            account: most,
            address: wide,
            network: wider_limit,
            ..
        } = self.rules;
        Guess {
            visit: counter(Kind::Visit, &[account, network], most, Weight::Each, false),
            others: vec![
                counter(Kind::Account, &[account], most, Weight::Each, true),
                counter(Kind::Address, &[network], wide, Weight::Accounts, true),
                counter(Kind::Network, &[wider], wider_limit, Weight::Accounts, true),
            ],
        }
    }

    /// Begins a guess at an account's password, as anybody may.
    pub fn stranger_begins(&self, account: &str, address: IpAddr) -> Verdict<'_> {
        self.begin(self.stranger(account, address))
    }

    /// Begins a guess at the password of an account from a place that has logged in to it before.
    pub fn known_begins(&self, account: &str, place: KnownPlace<'_>) -> Verdict<'_> {
        let place = match place {
            KnownPlace::Address(address) => format!("address {}", network_of(address)),
            KnownPlace::Device(hash) => format!("device {hash}"),
        };
        let place = place.as_bytes();
        self.begin(Guess {
            visit: Counter {
                key: self.key(Kind::KnownVisit, &[account.as_bytes(), place]),
                limit: self.rules.account,
                weight: Weight::Each,
                refuses: true,
            },
            others: vec![Counter {
                key: self.key(Kind::Place, &[place]),
                limit: self.rules.known,
                weight: Weight::Accounts,
                refuses: true,
            }],
        })
    }

    /// Begins a guess at a secret that belongs to no account; `what` names it.
    pub fn secret_begins(&self, what: &str, address: IpAddr) -> Verdict<'_> {
        let (network, wider) = (
            network_of(address).to_string(),
            wider_network_of(address).to_string(),
        );
        let counter = |kind, network: &str, limit| Counter {
            key: self.key(kind, &[what.as_bytes(), network.as_bytes()]),
            limit,
            weight: Weight::Each,
            refuses: true,
        };
        self.begin(Guess {
            visit: counter(Kind::Secret, &network, self.rules.address),
            others: vec![counter(Kind::SecretNear, &wider, self.rules.network)],
        })
    }

    /// Begins a registration. What it came to, its end need not say: each counts that was begun, also of
    /// an address that has an account, unless it never came to be looked at.
    pub fn registration_begins(&self, address: IpAddr) -> Verdict<'_> {
        let (network, wider) = (
            network_of(address).to_string(),
            wider_network_of(address).to_string(),
        );
        let [own, near, all] = self.rules.registrations;
        let counter = |kind, parts: &[&[u8]], limit| Counter {
            key: self.key(kind, parts),
            limit,
            weight: Weight::Each,
            refuses: true,
        };
        self.begin(Guess {
            visit: counter(Kind::Registering, &[network.as_bytes()], own),
            others: vec![
                counter(Kind::RegisteringNear, &[wider.as_bytes()], near),
                counter(Kind::RegisteringAll, &[], all),
            ],
        })
    }

    /// Whether a mail may go to an address that somebody has registered; it counts.
    pub fn may_write_to(&self, recipient: &str) -> bool {
        let begun = self.begin(Guess {
            visit: Counter {
                key: self.key(Kind::Recipient, &[recipient.as_bytes()]),
                limit: self.rules.recipient,
                weight: Weight::Each,
                refuses: true,
            },
            others: Vec::new(),
        });
        matches!(begun, Verdict::Go(_))
    }

    /// The seconds that a stranger would have to wait now.
    pub fn stranger_waits(&self, account: &str, address: IpAddr) -> Option<u64> {
        let now = self.clock.monotonic_ms();
        let guess = self.stranger(account, address);
        let mut counts = self.counts.lock();
        self.refusal(&mut counts, &guess, now)
            .map(|(wait_ms, _)| wait_ms.div_ceil(1_000))
    }

    /// A right password that came in spite of a refusal, for the account's owner who was let in as
    /// known: takes back what the same address had added for the same account as a stranger.
    pub fn vouched(&self, account: &str, address: IpAddr) {
        let now = self.clock.monotonic_ms();
        let guess = self.stranger(account, address);
        take_back(&mut self.counts.lock(), &guess, 0, now);
    }

    /// Waits until a guess is over; to be made before [`Verdict::Busy`] is heard, so that none is missed.
    pub fn settled(&self) -> Notified<'_> {
        self.settled.notified()
    }

    fn begin(&self, guess: Guess) -> Verdict<'_> {
        let now = self.clock.monotonic_ms();
        let mut counts = self.counts.lock();
        if let Some((wait_ms, may_change)) = self.refusal(&mut counts, &guess, now) {
            return match may_change {
                true => Verdict::Busy,
                false => Verdict::Wait(wait_ms.div_ceil(1_000)),
            };
        }
        let before = counts.level_ms(&guess.visit.key, now);
        let one = guess.visit.limit.forget_ms;
        let added_ms: Vec<u64> = guess
            .counters()
            .map(|counter| {
                let share = weighed(counter.weight, before.saturating_add(one), one)
                    .saturating_sub(weighed(counter.weight, before, one));
                converted(share, guess.visit.limit, counter.limit)
            })
            .collect();
        for (counter, ms) in guess.counters().zip(&added_ms) {
            counts.add(&counter.key, *ms, now);
        }
        Verdict::Go(Attempt {
            throttle: self,
            guess,
            added_ms,
        })
    }

    /// How long the guess must wait, and whether guesses that are being checked may shorten it.
    fn refusal(&self, counts: &mut Counts, guess: &Guess, now: u64) -> Option<(u64, bool)> {
        let mut refusal: Option<(u64, bool)> = None;
        for counter in guess.counters().filter(|counter| counter.refuses) {
            let Some(count) = counts.get(&counter.key) else {
                continue;
            };
            let wait_ms = self.wait_ms(count, counter.limit, now);
            if wait_ms > 0 {
                let (longest, may_change) = refusal.unwrap_or((0, true));
                // What ends gives nothing back to a bucket.
                let may_change = may_change && count.pending > 0 && !counter.limit.is_bucket;
                refusal = Some((longest.max(wait_ms), may_change));
            }
        }
        refusal
    }

    fn wait_ms(&self, count: &Count, limit: Limit, now: u64) -> u64 {
        if limit.is_bucket {
            let most = limit.forget_ms.saturating_mul(u64::from(limit.failures));
            let after = count.level_ms(now).saturating_add(limit.forget_ms);
            return after.saturating_sub(most);
        }
        // Rounded: failures that came within a moment of each other have sunk by next to nothing.
        let level = count
            .level_ms(count.last_ms)
            .saturating_add(limit.forget_ms / 2)
            / limit.forget_ms;
        let Some(over) = level.checked_sub(u64::from(limit.failures)) else {
            return 0;
        };
        let factor = u32::try_from(over)
            .ok()
            .and_then(|over| 1u64.checked_shl(over))
            .unwrap_or(u64::MAX);
        let seconds = self
            .rules
            .delay_seconds
            .saturating_mul(factor)
            .min(self.rules.delay_seconds_max);
        count
            .last_ms
            .saturating_add(seconds.saturating_mul(1_000))
            .saturating_sub(now)
    }
}

/// Takes back all that this account has added from this place, but for what is still being checked,
/// which `ending` of those are no longer.
fn take_back(counts: &mut Counts, guess: &Guess, ending: u32, now: u64) {
    let one = guess.visit.limit.forget_ms;
    let Some(visit) = counts.get(&guess.visit.key) else {
        return;
    };
    let level = visit.level_ms(now);
    let pending = u64::from(visit.pending.saturating_sub(ending));
    let kept = level.min(pending.saturating_mul(one));
    visit.take_back(level - kept, now);
    for counter in &guess.others {
        let share = weighed(counter.weight, level, one) - weighed(counter.weight, kept, one);
        let ms = converted(share, guess.visit.limit, counter.limit);
        if let Some(count) = counts.get(&counter.key) {
            count.take_back(ms, now);
        }
    }
}

impl Attempt<'_> {
    /// The guess was right.
    pub fn succeeded(self) {
        let now = self.throttle.clock.monotonic_ms();
        take_back(&mut self.throttle.counts.lock(), &self.guess, 1, now);
    }

    /// The guess was wrong.
    pub fn failed(self) {}

    /// Nobody was told whether the guess was right: it was never checked.
    pub fn unchecked(self) {
        let now = self.throttle.clock.monotonic_ms();
        let mut counts = self.throttle.counts.lock();
        for (counter, ms) in self.guess.counters().zip(&self.added_ms) {
            if let Some(count) = counts.get(&counter.key) {
                count.take_back(*ms, now);
            }
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        {
            let mut counts = self.throttle.counts.lock();
            for counter in self.guess.counters() {
                if let Some(count) = counts.get(&counter.key) {
                    count.pending = count.pending.saturating_sub(1);
                }
            }
        }
        self.throttle.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
    const OWNER: &str = "owner@example.com";

    struct Bench {
        clock: Clock,
        throttle: Throttle,
    }

    impl Bench {
        fn with(rules: Rules) -> Self {
            let clock = Clock::manual(Timestamp(1_000_000_000));
            let throttle = Throttle::new(rules, clock.clone());
            Self { clock, throttle }
        }

        fn new() -> Self {
            Self::with(Rules::from(&config::Auth::default()))
        }

        fn wrong(&self, account: &str, address: IpAddr) -> Result<(), u64> {
            ended(self.throttle.stranger_begins(account, address), false)
        }

        fn right(&self, account: &str, address: IpAddr) -> Result<(), u64> {
            ended(self.throttle.stranger_begins(account, address), true)
        }

        /// How many guesses are checked in this time, if each is made as soon as it may be.
        fn guesses(&self, seconds: u32, mut guess: impl FnMut(&Throttle) -> bool) -> u64 {
            let mut checked = 0;
            for _ in 0..seconds {
                while guess(&self.throttle) {
                    checked += 1;
                }
                self.clock.advance(Duration::from_secs(1));
            }
            checked
        }
    }

    fn ended(verdict: Verdict<'_>, is_right: bool) -> Result<(), u64> {
        match verdict {
            Verdict::Go(attempt) if is_right => attempt.succeeded(),
            Verdict::Go(attempt) => attempt.failed(),
            Verdict::Wait(seconds) => return Err(seconds),
            Verdict::Busy => panic!("nothing is being checked"),
        }
        Ok(())
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[test]
    fn the_wait_grows_ends_and_is_forgotten() {
        let bench = Bench::new();
        for _ in 0..5 {
            assert_eq!(bench.wrong(OWNER, HERE), Ok(()));
        }
        for wait in [1, 2, 4, 8] {
            assert_eq!(bench.wrong(OWNER, HERE), Err(wait));
            assert_eq!(bench.wrong("other@example.com", address(9)), Ok(()));
            bench.clock.advance(Duration::from_secs(wait));
            assert_eq!(bench.wrong(OWNER, HERE), Ok(()));
        }
        assert_eq!(bench.right(OWNER, HERE), Err(16), "the right one waits too");
        bench.clock.advance(Duration::from_secs(16));
        assert_eq!(bench.right(OWNER, HERE), Ok(()));
        for _ in 0..5 {
            assert_eq!(bench.wrong(OWNER, HERE), Ok(()), "a success clears its own");
        }
        assert!(bench.wrong(OWNER, HERE).is_err());
        bench.clock.advance(Duration::from_secs(5 * 900));
        for _ in 0..5 {
            assert_eq!(bench.wrong(OWNER, HERE), Ok(()), "and so does time");
        }
        assert!(bench.wrong(OWNER, HERE).is_err());
    }

    #[test]
    fn customers_behind_one_address_who_mistype_and_log_in_block_nobody() {
        let bench = Bench::new();
        for number in 0..200 {
            let customer = format!("customer{number}@example.com");
            for _ in 0..3 {
                assert_eq!(bench.wrong(&customer, HERE), Ok(()), "{customer}");
            }
            assert_eq!(bench.right(&customer, HERE), Ok(()), "{customer}");
        }
        // One who has forgotten the password is a fraction of many accounts.
        for _ in 0..5 {
            assert_eq!(bench.wrong("forgetful@example.com", HERE), Ok(()));
        }
        for number in 0..17 {
            let customer = format!("stranger{number}@example.com");
            assert_eq!(bench.wrong(&customer, HERE), Ok(()), "{customer}");
        }
    }

    #[test]
    fn strangers_do_not_shut_out_a_known_place_and_its_own_guesses_are_counted() {
        let bench = Bench::new();
        let known = |place, right| ended(bench.throttle.known_begins(OWNER, place), right);
        let home = KnownPlace::Address(HOME);
        for number in 0..9 {
            let _refused = bench.wrong(OWNER, address(number));
        }
        assert!(bench.right(OWNER, HOME).is_err());
        assert_eq!(known(home, true), Ok(()));
        assert!(
            bench.right(OWNER, HOME).is_err(),
            "a success of the owner's gives strangers nothing"
        );
        for _ in 0..5 {
            assert_eq!(known(home, false), Ok(()));
        }
        assert_eq!(
            known(home, true),
            Err(1),
            "whoever guesses from there waits"
        );
        assert_eq!(
            known(KnownPlace::Device("hash"), true),
            Ok(()),
            "a browser there is another place"
        );
        // A place from which many accounts are guessed at waits as well.
        let spray = |number: u32| {
            let account = format!("{number}@example.com");
            ended(bench.throttle.known_begins(&account, home), false)
        };
        let let_in = (0..1_000)
            .take_while(|number| spray(*number).is_ok())
            .count();
        assert!((95..=100).contains(&let_in), "{let_in}");
    }

    #[test]
    fn a_success_takes_back_what_is_its_own_and_no_more() {
        let bench = Bench::new();
        for number in 0..4 {
            assert_eq!(bench.wrong(OWNER, address(number)), Ok(()));
        }
        assert_eq!(bench.right(OWNER, HOME), Ok(()));
        assert_eq!(bench.wrong(OWNER, address(7)), Ok(()));
        assert_eq!(
            bench.wrong(OWNER, address(8)),
            Err(1),
            "four were there before"
        );
        // An attacker's own account at the same address pays for no other's.
        for number in 0..20 {
            let _end = bench.wrong(&format!("{number}@example.com"), HERE);
            let _end = bench.right("attacker@example.com", HERE);
        }
        assert!(bench.right("attacker@example.com", HERE).is_err());
    }

    #[test]
    fn guesses_an_hour_stay_within_what_the_settings_say() {
        // As the settings' own words state them: in the first hour, and in each after it.
        let account = (19, 4);
        let wide = (57, 30);
        let hours = |guess: &mut dyn FnMut(&Throttle) -> bool| {
            let bench = Bench::new();
            let first = bench.guesses(3_600, &mut *guess);
            let next = bench.guesses(3_600, guess);
            (first, next)
        };
        let close = |checked: (u64, u64), most: (u64, u64), times: u64| {
            assert!(
                checked.0 <= most.0 * times && checked.1 <= most.1 * times,
                "{checked:?}"
            );
            assert!(
                checked.0 * 10 >= most.0 * times * 9,
                "{checked:?} of {most:?}"
            );
        };
        // One account from a thousand addresses.
        let mut number = 0;
        close(
            hours(&mut |throttle| {
                number = (number + 1) % 1_000;
                ended(throttle.stranger_begins(OWNER, address(number)), false).is_ok()
            }),
            account,
            1,
        );
        // Spraying: one address, an account after the other.
        let mut number = 0;
        close(
            hours(&mut |throttle| {
                number += 1;
                let account = format!("{number}@example.com");
                ended(throttle.stranger_begins(&account, HERE), false).is_ok()
            }),
            wide,
            1,
        );
        // Stuffing: a list of accounts and passwords, from ten addresses in as many networks.
        let (mut number, mut refused) = (0, 0);
        close(
            hours(&mut |throttle| {
                loop {
                    number += 1;
                    let account = format!("{number}@example.com");
                    let from = address(number % 10 * 256);
                    if ended(throttle.stranger_begins(&account, from), false).is_ok() {
                        refused = 0;
                        return true;
                    }
                    refused += 1;
                    if refused >= 10 {
                        refused = 0;
                        return false;
                    }
                }
            }),
            wide,
            10,
        );
        // A few accounts from one address, again and again: no more than four times as many.
        let mut number = 0;
        let (first, next) = hours(&mut |throttle| {
            for _ in 0..30 {
                number += 1;
                let account = format!("{}@example.com", number % 30);
                if ended(throttle.stranger_begins(&account, HERE), false).is_ok() {
                    return true;
                }
            }
            false
        });
        assert!(first <= wide.0 * 4 && next <= wide.1 * 4, "{first} {next}");
    }

    /// One way of guessing: whom the next guess is at, and where it comes from.
    type Way = Box<dyn FnMut(u32) -> (String, IpAddr)>;

    /// Guesses that are checked in the first hour and in the next, if each second so many are made until
    /// `tries` in a row are refused. `at_once` leaves all of a second open until it is over.
    fn checked_in_two_hours(way: &mut Way, tries: u32, at_once: bool) -> [u64; 2] {
        let bench = Bench::new();
        let mut number = 0;
        [(); 2].map(|()| {
            let mut checked = 0;
            for _ in 0..3_600 {
                let (mut refused, mut open) = (0, Vec::new());
                while refused < tries {
                    number += 1;
                    let (account, from) = way(number);
                    match bench.throttle.stranger_begins(&account, from) {
                        Verdict::Go(attempt) => {
                            (checked, refused) = (checked + 1, 0);
                            open.push(attempt);
                        }
                        Verdict::Wait(_) | Verdict::Busy => refused += 1,
                    }
                    if !at_once {
                        open.clear();
                    }
                }
                drop(open);
                bench.clock.advance(Duration::from_secs(1));
            }
            checked
        })
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "the figures are wanted as such")]
    fn figures_of_guessing_stay_below_their_bounds() {
        let owner = || OWNER.to_owned();
        let any = |number: u32| format!("{number}@example.com");
        let of_site = |number: u32| {
            let [.., a, b] = number.to_be_bytes();
            IpAddr::from([0x2001, 0xdb8, 7, u16::from_be_bytes([a, b]), 0, 0, 0, 1])
        };
        // (how, tries, guesses in the first hour and in each further one at most)
        let ways: Vec<(&str, Way, u32, [u64; 2])> = vec![
            (
                "one account, one address",
                Box::new(move |_| (owner(), HERE)),
                1,
                [19, 4],
            ),
            (
                "one account, 1,000 addresses",
                Box::new(move |number| (owner(), address(number % 1_000))),
                1,
                [19, 4],
            ),
            (
                "one address, account after account",
                Box::new(move |number| (any(number), HERE)),
                1,
                [57, 30],
            ),
            (
                "256 addresses of one network, account after account",
                Box::new(move |number| (any(number), address(number % 256))),
                2,
                [510, 300],
            ),
            (
                "an IPv6 /48, account after account, an address for each",
                Box::new(move |number| (any(number), of_site(number))),
                2,
                [510, 300],
            ),
            (
                "20 addresses in 20 networks, account after account",
                Box::new(move |number| (any(number), address(number % 20 * 256))),
                20,
                [20 * 57, 20 * 30],
            ),
        ];
        for (how, mut way, tries, [first, next]) in ways {
            for at_once in [false, true] {
                let checked = checked_in_two_hours(&mut way, tries, at_once);
                let order = if at_once { "all at once" } else { "one by one" };
                eprintln!(
                    "{how}, {order}: {} in the first hour, then {} an hour",
                    checked[0], checked[1]
                );
                assert!(
                    checked[0] <= first && checked[1] <= next,
                    "{how}, {order}: {checked:?}"
                );
            }
        }
    }

    #[test]
    fn a_network_of_strangers_waits_and_known_places_in_it_do_not() {
        let bench = Bench::new();
        let in_network = |number: u32| address(number % 256);
        let let_in = (0..2_000)
            .take_while(|number| {
                let account = format!("{number}@example.com");
                bench.wrong(&account, in_network(*number)).is_ok()
            })
            .count();
        assert_eq!(let_in, 200);
        assert!(bench.right(OWNER, in_network(9)).is_err());
        assert_eq!(
            bench.right(OWNER, address(300)),
            Ok(()),
            "the network beside it"
        );
        let secrets = (0..2_000)
            .take_while(|number| {
                let begun = bench.throttle.secret_begins("setup", in_network(*number));
                ended(begun, false).is_ok()
            })
            .count();
        assert_eq!(secrets, 200, "of a secret as well");
        let home = KnownPlace::Address(in_network(9));
        let known = ended(bench.throttle.known_begins(OWNER, home), true);
        assert_eq!(known, Ok(()));
        bench.clock.advance(Duration::from_secs(200 * 12));
        assert_eq!(bench.right(OWNER, in_network(9)), Ok(()));
    }

    #[test]
    fn registrations_are_so_many_at_once_and_so_many_an_hour_wherever_they_come_from() {
        let bench = Bench::with(Rules {
            registrations: [3, 5, 8].map(Limit::an_hour),
            ..Rules::from(&config::Auth::default())
        });
        let begin = |number| match bench.throttle.registration_begins(address(number)) {
            Verdict::Go(attempt) => {
                attempt.failed();
                Ok(())
            }
            Verdict::Wait(seconds) => Err(seconds),
            Verdict::Busy => panic!("there is nothing to wait for"),
        };
        assert_eq!([begin(1), begin(1), begin(1)], [Ok(()); 3]);
        assert_eq!(begin(1), Err(1_200));
        assert_eq!([begin(2), begin(3)], [Ok(()); 2]);
        assert_eq!(begin(4), Err(720), "the network has had its five");
        assert_eq!([begin(256), begin(512), begin(1_024)], [Ok(()); 3]);
        assert_eq!(begin(2_048), Err(450), "and all together their eight");
        bench.clock.advance(Duration::from_secs(450));
        assert_eq!(begin(2_048), Ok(()));
        assert!(begin(4_096).is_err());
        bench.clock.advance(Duration::from_secs(3_600));
        assert_eq!([begin(1), begin(1), begin(1)], [Ok(()); 3]);
        // One that was never looked at is none.
        let room = bench.throttle.registration_begins(address(256));
        match room {
            Verdict::Go(attempt) => attempt.unchecked(),
            Verdict::Wait(_) | Verdict::Busy => panic!("there is room"),
        }
        assert_eq!([begin(256), begin(256), begin(256)], [Ok(()); 3]);
        let mails = (0..9)
            .filter(|_| bench.throttle.may_write_to(OWNER))
            .count();
        assert_eq!(mails, 3);
        assert!(bench.throttle.may_write_to("other@example.com"));
    }

    #[test]
    fn many_accounts_that_are_tried_wash_away_no_count_of_an_address() {
        let bench = Bench::with(Rules {
            tracked_max: 1_000,
            address: Limit::new(20, 30),
            ..Rules::from(&config::Auth::default())
        });
        for number in 0..20 {
            assert_eq!(bench.wrong(&format!("{number}@a.example"), HERE), Ok(()));
        }
        for number in 0..900 {
            for guess in 0..4 {
                let account = format!("{number}-{guess}@b.example");
                let _end = bench.wrong(&account, address(number * 256));
            }
        }
        assert!(bench.right(OWNER, HERE).is_err());
    }

    #[test]
    fn of_guesses_at_once_no_more_are_checked_than_one_by_one() {
        let bench = Bench::new();
        let begin = |number| bench.throttle.stranger_begins(OWNER, address(number));
        let mut going = Vec::new();
        for number in 0..200 {
            match begin(number) {
                Verdict::Go(attempt) => going.push(attempt),
                Verdict::Busy => {}
                Verdict::Wait(_) => panic!("those that are being checked may be right"),
            }
        }
        assert_eq!(going.len(), 5);
        // One that was never checked, and one that was right, make room.
        going.pop().expect("one").unchecked();
        going.push(match begin(300) {
            Verdict::Go(attempt) => attempt,
            Verdict::Busy | Verdict::Wait(_) => panic!("there is room"),
        });
        going.pop().expect("one").succeeded();
        assert!(
            matches!(begin(301), Verdict::Go(_)),
            "and a client that goes away counts"
        );
        assert!(matches!(begin(302), Verdict::Busy));
        for attempt in going {
            attempt.failed();
        }
        assert!(matches!(begin(303), Verdict::Wait(1)));
    }

    #[test]
    fn kinds_of_counts_never_meet_and_a_network_is_one_address() {
        let bench = Bench::with(Rules {
            address: Limit::new(2, 120),
            ..Rules::from(&config::Auth::default())
        });
        for account in ["@192.0.2.1", "192.0.2.1", "address 192.0.2.1"] {
            for _ in 0..9 {
                let _refused = bench.wrong(account, address(3));
            }
        }
        assert_eq!(bench.right(OWNER, HERE), Ok(()));
        let [first, second, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
            .map(|text| text.parse().expect("one"));
        assert_eq!(bench.wrong("a@example.com", first), Ok(()));
        assert_eq!(bench.wrong("b@example.com", second), Ok(()));
        assert_eq!(bench.wrong("c@example.com", first), Err(1));
        assert_eq!(bench.wrong("c@example.com", other), Ok(()));
        let secret = |right| ended(bench.throttle.secret_begins("setup", first), right);
        assert_eq!(secret(false), Ok(()));
        assert_eq!(secret(true), Ok(()), "a right one leaves nothing to guess");
        assert_eq!((secret(false), secret(false)), (Ok(()), Ok(())));
        assert_eq!(secret(false), Err(1));
    }

    #[test]
    fn memory_is_bounded_and_a_flood_does_not_wash_away_what_was_guessed_at() {
        let bench = Bench::with(Rules {
            tracked_max: 1_000,
            ..Rules::from(&config::Auth::default())
        });
        for number in 0..9 {
            let _refused = bench.wrong(OWNER, address(number));
        }
        for number in 0..20_000 {
            let account = format!("{number}{}@example.com", "x".repeat(100));
            let _end = bench.wrong(&account, address(number));
        }
        let counts = bench.throttle.counts.lock();
        let sizes = counts.0.each_ref().map(|table| {
            let places: usize = table.iter().map(Vec::len).sum();
            places
        });
        let fit = sizes.iter().zip([1_000, 1_000, 256, 8]);
        assert!(
            fit.into_iter().all(|(size, most)| *size <= most),
            "{sizes:?}"
        );
        assert!(size_of::<Count>() <= 40);
        drop(counts);
        assert!(bench.right(OWNER, HOME).is_err());
    }
}
