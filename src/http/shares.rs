//! What one process has to give, kept per client and in sum.
//!
//! A limit on each request is none on ten thousand of them. Here is what all requests together may
//! hold of a resource, and how clients come to terms over it. A client is what [`network_of`] counts
//! as one; behind a trusted proxy that is the address that the proxy names.
//!
//! Invariants: the sum never passes [`ShareLimit::sum`]; a client's small share is granted as long as the
//! sum allows, and the last quarter of the sum is kept for those; beyond its small share a client holds
//! at most as much as is left free for all clients (the dynamic thresholds of Choudhury and Hahne, 1998,
//! with α = 1), so that of k greedy clients each gets one part in k + 1 and a newcomer finds one; what
//! was granted comes back when its [`Share`] is dropped; clients are remembered only while they hold
//! something.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::problem::Problem;
use super::request::network_of;
use crate::clock::Stopwatch;
use crate::config::Settings;
use crate::monitor::{Metrics, ShareMetrics};

/// Locks that the clients of one resource are spread over.
const SHARDS: usize = 16;
/// Seconds after which to come back: what is held is held for the time of a request.
const RETRY_SECONDS: u64 = 1;

/// What there is only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of request bodies that were read and are not done with.
    BodyBytes,
    /// Bytes of answers that were made and are not sent.
    AnswerBytes,
    /// Passwords that wait to be checked or are.
    Hashing,
    /// Reads that look through many rows, such as searches, and wait to be done or are.
    SlowReads,
}

impl Resource {
    const ALL: [Self; 4] = [
        Self::BodyBytes,
        Self::AnswerBytes,
        Self::Hashing,
        Self::SlowReads,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::BodyBytes => "body_bytes",
            Self::AnswerBytes => "answer_bytes",
            Self::Hashing => "hashing",
            Self::SlowReads => "slow_reads",
        }
    }

    fn limit(self, settings: &Settings) -> ShareLimit {
        let server = &settings.server;
        let (sum, small) = match self {
            Self::BodyBytes => (server.bodies_bytes_max, server.bodies_bytes_small),
            Self::AnswerBytes => (server.answers_bytes_max, server.answers_bytes_small),
            Self::Hashing => (settings.auth.hash_queue_max, settings.auth.hash_queue_small),
            Self::SlowReads => (server.slow_reads_max, server.slow_reads_small),
        };
        // A client that is alone gets three eighths of the sum, in which the largest body must fit.
        let least = match self {
            Self::BodyBytes => server.body_bytes_max / 3 * 8 + 8,
            Self::AnswerBytes | Self::Hashing | Self::SlowReads => 1,
        };
        ShareLimit {
            sum: sum.max(least) as u64,
            small: small as u64,
        }
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
struct ShareLimit {
    /// For all together.
    sum: u64,
    /// What each client may hold as long as there is any.
    small: u64,
}

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareRefused {
    /// This client holds its share.
    #[error("too much is under way for this address at once")]
    Client,
    /// All of it is held.
    #[error("too much is under way at once")]
    Everyone,
}

impl From<ShareRefused> for Problem {
    fn from(refused: ShareRefused) -> Self {
        match refused {
            ShareRefused::Client => Problem::new(
                poem::http::StatusCode::TOO_MANY_REQUESTS,
                "client_busy",
                "Too much is under way for your address at once; let some of it end first.",
            )
            .retry_after(RETRY_SECONDS),
            ShareRefused::Everyone => Problem::overloaded(RETRY_SECONDS),
        }
    }
}

/// All resources; clones share them.
#[derive(Clone)]
pub struct Shares(Arc<[ResourcePool; Resource::ALL.len()]>);

impl Shares {
    /// As much of each as the settings say.
    pub fn new(settings: &Settings, metrics: &Metrics) -> Self {
        Self(Arc::new(Resource::ALL.map(|resource| {
            ResourcePool::new(resource, resource.limit(settings), metrics)
        })))
    }

    /// Takes `amount` of a resource for the client at `address`.
    pub fn take(
        &self,
        resource: Resource,
        address: IpAddr,
        amount: u64,
    ) -> Result<Share, ShareRefused> {
        let mut share = self.nothing(resource, address);
        share.grow(amount)?;
        Ok(share)
    }

    /// A share of nothing, to be grown.
    pub fn nothing(&self, resource: Resource, address: IpAddr) -> Share {
        Share {
            shares: self.clone(),
            resource,
            client: network_of(address),
            amount: 0,
        }
    }

    /// Refuses this client where a resource is short and it would not get another `amount`: before work
    /// is done for it. Where there is plenty it costs nothing to ask.
    pub fn unless_short(
        &self,
        resource: Resource,
        address: IpAddr,
        amount: u64,
    ) -> Result<(), ShareRefused> {
        let pool = self.pool(resource);
        if pool.used.load(Ordering::Acquire) < pool.limit.sum / 2 {
            return Ok(());
        }
        let client = network_of(address);
        let clients = pool.shard(&client).lock();
        let held = clients.get(&client).copied().unwrap_or_default();
        drop(clients);
        let used = pool.used.load(Ordering::Acquire);
        match pool.limit.refusal(held, used, amount) {
            Some(refused) => {
                pool.tell(resource, client, refused);
                Err(refused)
            }
            None => Ok(()),
        }
    }

    fn pool(&self, resource: Resource) -> &ResourcePool {
        &self.0[resource as usize]
    }
}

impl ShareLimit {
    /// Whether one that holds `held` of `used` may not have `more`.
    fn refusal(self, held: u64, used: u64, more: u64) -> Option<ShareRefused> {
        let after = used.saturating_add(more);
        if after > self.sum {
            return Some(ShareRefused::Everyone);
        }
        let own = held.saturating_add(more);
        let common = self.sum - self.sum / 4;
        let is_fair = own <= self.small || own <= common.saturating_sub(after);
        (!is_fair).then_some(ShareRefused::Client)
    }
}

/// One resource.
struct ResourcePool {
    limit: ShareLimit,
    used: AtomicU64,
    clients: [Mutex<HashMap<IpAddr, u64>>; SHARDS],
    hasher: RandomState,
    told: NowAndThen,
    metrics: ShareMetrics,
}

impl ResourcePool {
    fn new(resource: Resource, limit: ShareLimit, metrics: &Metrics) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            clients: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            told: NowAndThen::default(),
            metrics: metrics.share(resource.word(), limit.sum),
        }
    }

    fn shard(&self, client: &IpAddr) -> &Mutex<HashMap<IpAddr, u64>> {
        &self.clients[self.hasher.hash_one(client) as usize % SHARDS]
    }

    fn take(&self, client: IpAddr, more: u64) -> Result<(), ShareRefused> {
        let mut clients = self.shard(&client).lock();
        let held = clients.get(&client).copied().unwrap_or_default();
        let mut refused = ShareRefused::Everyone;
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                match self.limit.refusal(held, used, more) {
                    None => Some(used + more),
                    Some(why) => {
                        refused = why;
                        None
                    }
                }
            })
            .map_err(|_| refused)?;
        clients.insert(client, held + more);
        drop(clients);
        self.metrics
            .used
            .add(i64::try_from(more).unwrap_or(i64::MAX));
        Ok(())
    }

    fn give_back(&self, client: IpAddr, amount: u64) {
        if let Entry::Occupied(mut held) = self.shard(&client).lock().entry(client) {
            *held.get_mut() = held.get().saturating_sub(amount);
            if *held.get() == 0 {
                held.remove();
            }
        }
        self.used.fetch_sub(amount, Ordering::AcqRel);
        self.metrics
            .used
            .sub(i64::try_from(amount).unwrap_or(i64::MAX));
    }

    /// Counts a refusal, and says so in the log now and then.
    fn tell(&self, resource: Resource, client: IpAddr, refused: ShareRefused) {
        match refused {
            ShareRefused::Client => self.metrics.of_client.inc(),
            ShareRefused::Everyone => self.metrics.of_everyone.inc(),
        }
        if let Some(refused_requests) = self.told.note(1) {
            tracing::warn!(
                resource = resource.word(),
                client = %client,
                refused_requests,
                reason = %refused,
                used = self.used.load(Ordering::Relaxed),
                sum = self.limit.sum,
                "a share ran out; requests beyond it are refused for now"
            );
        }
    }
}

/// What happens too often for a line in the log each time.
pub(super) struct NowAndThen {
    began: Stopwatch,
    /// When the log was last told, and of how much since it was not.
    told_ms: AtomicU64,
    untold: AtomicU64,
}

impl Default for NowAndThen {
    fn default() -> Self {
        Self {
            began: Stopwatch::start(),
            told_ms: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }
}

impl NowAndThen {
    /// Least time between two lines.
    const PAUSE_MS: u64 = 10_000;

    /// It happened so often once more; if it is time for a line, answers how often since the last.
    pub(super) fn note(&self, times: u64) -> Option<u64> {
        self.untold.fetch_add(times, Ordering::Relaxed);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let told = self.told_ms.load(Ordering::Relaxed);
        let is_time = told == 0 || now.saturating_sub(told) >= Self::PAUSE_MS;
        // Of threads that come here at the same time, one says it for all.
        let says = is_time
            && self
                .told_ms
                .compare_exchange(told, now.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        says.then(|| self.untold.swap(0, Ordering::Relaxed))
    }
}

/// A part of a resource that a client holds; given back when dropped.
pub struct Share {
    shares: Shares,
    resource: Resource,
    client: IpAddr,
    amount: u64,
}

impl Share {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.amount == 0
    }

    /// Gives back a part.
    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.amount);
        if less > 0 {
            self.amount -= less;
            self.shares.pool(self.resource).give_back(self.client, less);
        }
    }

    /// Takes more; what was held before stays held if that is refused.
    pub fn grow(&mut self, more: u64) -> Result<(), ShareRefused> {
        if more == 0 {
            return Ok(());
        }
        let pool = self.shares.pool(self.resource);
        if let Err(refused) = pool.take(self.client, more) {
            pool.tell(self.resource, self.client, refused);
            return Err(refused);
        }
        self.amount += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(sum: usize, small: usize) -> Shares {
        let mut settings = Settings::default();
        settings.server.slow_reads_max = sum;
        settings.server.slow_reads_small = small;
        let metrics = Metrics::new().expect("metrics");
        Shares::new(&settings, &metrics)
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    const READS: Resource = Resource::SlowReads;

    #[test]
    fn a_lone_client_gets_much_and_never_all() {
        let shares = shares(1_000, 10);
        let mut held = shares.nothing(READS, client(1));
        let got = std::iter::from_fn(|| held.grow(1).ok()).count();
        assert_eq!(got, 375, "as much as it leaves of three quarters");
        assert_eq!(held.grow(1), Err(ShareRefused::Client));
        let other = shares.take(READS, client(2), 187);
        assert!(other.is_ok(), "half of what is left");
        drop(held);
        assert!(shares.take(READS, client(1), 250).is_ok());
    }

    #[test]
    fn a_client_within_its_small_share_goes_on_beside_greedy_ones() {
        let shares = shares(1_000, 10);
        let greedy: Vec<Share> = (0..20)
            .map(|number| {
                let mut held = shares.nothing(READS, client(number));
                while held.grow(1).is_ok() {}
                held
            })
            .collect();
        let honest: Vec<_> = (100..110)
            .map(|number| shares.take(READS, client(number), 10))
            .collect();
        assert!(honest.iter().all(Result::is_ok));
        assert_eq!(
            shares.take(READS, client(200), 11).err(),
            Some(ShareRefused::Client)
        );
        assert!(greedy.iter().all(|held| held.amount >= 10));
    }

    #[test]
    fn neighbours_in_one_ipv6_network_are_one_client() {
        let shares = shares(1_000, 10);
        let held = shares.take(READS, "2001:db8::1".parse().expect("address"), 375);
        assert!(held.is_ok());
        let neighbour = "2001:db8::ffff:1".parse().expect("address");
        assert_eq!(
            shares.take(READS, neighbour, 1).err(),
            Some(ShareRefused::Client)
        );
        let short = |address| shares.unless_short(READS, address, 1);
        assert_eq!(short(neighbour), Ok(()), "more than half is free");
        let _more = shares.take(READS, client(1), 180);
        assert_eq!(short(neighbour), Err(ShareRefused::Client));
        assert_eq!(short(client(2)), Ok(()));
    }

    proptest! {
        /// Whatever is taken and given back: the sum holds, agrees with what is held, and ends at nothing.
        #[test]
        fn the_sum_is_never_passed(
            steps in prop::collection::vec((0..8_u8, 0..400_u64, any::<bool>()), 1..200),
        ) {
            let shares = shares(1_000, 50);
            let mut held: Vec<Share> = Vec::new();
            for (number, amount, takes) in steps {
                match takes {
                    true => held.extend(shares.take(READS, client(number), amount).ok()),
                    false if held.is_empty() => {}
                    false => drop(held.swap_remove(amount as usize % held.len())),
                }
                let sum: u64 = held.iter().map(|share| share.amount).sum();
                prop_assert!(sum <= 1_000);
                prop_assert_eq!(sum, shares.pool(READS).used.load(Ordering::Acquire));
                // A client that holds nothing gets a small share as long as the sum allows it.
                let newcomer = shares.take(READS, client(99), 50);
                prop_assert_eq!(newcomer.is_ok(), sum + 50 <= 1_000);
            }
            held.clear();
            let pool = shares.pool(READS);
            prop_assert_eq!(pool.used.load(Ordering::Acquire), 0);
            prop_assert!(pool.clients.iter().all(|clients| clients.lock().is_empty()));
        }
    }
}
