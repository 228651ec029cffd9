//! Virtual buyers against a real server over real HTTP, and the report card.
//!
//! Invariants: what the card calls sold is counted from the rows, not from the answers; every 201
//! is looked up in the database; a broken promise is named. Buyers behave like people and bots: most
//! try once, some double-click under one key, some try again and again, bots try past the limit of
//! attempts, and one in twenty comes when the crowd is through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::SaleError;
use crate::allotment::{self, Sale, SaleId, SaleStatus};
use crate::auth::{self, AuthError};
use crate::clock::{Stopwatch, Timestamp};
use crate::http::client::Connection;
use crate::product::ProductId;
use crate::product::stock;
use crate::store::{Store, StoreError, Tx};
use crate::webhook::Events;

/// Who does what.
pub struct Plan {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The sale.
    pub sale_id: SaleId,
    /// Units that it has left.
    pub allotted: u32,
    /// Units that were ordered in it before.
    pub sold_before: i64,
    /// Whether units may come back unpaid in the middle of it.
    pub units_may_return: bool,
    /// One session for each buyer.
    pub tokens: Vec<String>,
    /// Connections at once.
    pub connections: usize,
}

/// What the buyers have done so far.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests sent.
    pub attempts: AtomicU64,
    /// Claims granted, each counted once.
    pub accepted: AtomicU64,
}

/// How it went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Card {
    /// Units set aside.
    pub allotted: i64,
    /// Units in orders, by the rows.
    pub sold: i64,
    /// Units left, by the row.
    pub remaining: i64,
    /// Requests sent: `accepted` and `replayed` and `unanswered` and all of `refused`.
    pub attempts: u64,
    /// Claims that were answered 201, each counted once.
    pub accepted: u64,
    /// Requests that got the answer of the accepted claim before them, under the same key.
    pub replayed: u64,
    /// Units sold beyond the allotment: must be 0.
    pub oversold: i64,
    /// Accepted claims without an order: must be 0.
    pub accepted_lost: u64,
    /// Doubled requests that were answered with two different claims: must be 0.
    pub doubled: u64,
    /// Requests that got no answer.
    pub unanswered: u64,
    /// Refusals by code.
    pub refused: BTreeMap<String, u64>,
    /// Whether the stock ledger adds up and its hashes hold.
    pub ledger_ok: bool,
    /// Units by which ledger and tables disagree: must be 0.
    pub drift_units: i64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Answers a second.
    pub requests_per_second: f64,
    /// Median time of an answer.
    pub p50_ms: f64,
    /// The 99th of 100.
    pub p99_ms: f64,
    /// What all of it comes to.
    pub verdict: Verdict,
    /// The promise that broke, if one did.
    pub broken: Option<String>,
    #[serde(skip)]
    units_may_return: bool,
}

/// What a card comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A promise broke, or the promises were not looked at yet.
    #[default]
    Broken,
    /// Every promise was kept.
    Kept,
}

impl Card {
    /// Adds what the stock ledger says, and with it the verdict.
    pub fn conclude(&mut self, ledger: &stock::Verdict) {
        self.ledger_ok = ledger.problems_total == 0;
        self.drift_units = ledger.drift_units;
        self.broken = self.find_broken();
        self.verdict = match self.broken {
            Some(_) => Verdict::Broken,
            None => Verdict::Kept,
        };
    }

    /// The promise that broke, if one did.
    fn find_broken(&self) -> Option<String> {
        if self.oversold > 0 {
            return Some(format!("{} units were sold too often", self.oversold));
        }
        if self.accepted_lost > 0 {
            return Some(format!(
                "{} accepted claims have no order",
                self.accepted_lost
            ));
        }
        if self.doubled > 0 {
            return Some(format!(
                "{} doubled requests were granted twice",
                self.doubled
            ));
        }
        if !self.ledger_ok {
            return Some(format!(
                "the stock ledger does not add up; drift {} units",
                self.drift_units
            ));
        }
        if self.remaining > 0 && !self.units_may_return && self.refused.contains_key("sold_out") {
            return Some(format!(
                "{} units are left, yet buyers were told that it is sold out",
                self.remaining
            ));
        }
        // A claim whose answer was lost may have been granted; what was granted may have come back.
        let count = |requests: u64| i64::try_from(requests).unwrap_or(i64::MAX);
        let most = count(self.accepted.saturating_add(self.unanswered));
        let least = match self.units_may_return {
            true => 0,
            false => count(self.accepted),
        };
        if !(least..=most).contains(&self.sold) {
            return Some(format!(
                "{} units are sold, but {} claims were accepted",
                self.sold, self.accepted
            ));
        }
        let outcomes = self.accepted + self.replayed + self.unanswered;
        if outcomes + self.refused.values().sum::<u64>() != self.attempts {
            return Some(format!(
                "the answers do not add up to {} attempts",
                self.attempts
            ));
        }
        None
    }
}

/// What the buyers on one connection saw.
struct ConnectionSeen {
    accepted: BTreeMap<String, i64>,
    replayed: u64,
    doubled: u64,
    unanswered: u64,
    refused: BTreeMap<String, u64>,
    latencies: Histogram<u64>,
}

#[derive(serde::Deserialize)]
struct ClaimAnswer {
    claim_id: String,
    order_id: i64,
}

#[derive(serde::Deserialize)]
struct Refused {
    code: String,
}

/// Makes `count` virtual buyers, numbered from `first`, each with a session of a day; answers their tokens.
pub fn create_buyers(
    tx: &mut Tx<'_>,
    now: Timestamp,
    first: u32,
    count: u32,
) -> Result<Vec<String>, AuthError> {
    (first..first + count)
        .map(|number| {
            let email = format!("buyer-{}-{number}@rehearsal.invalid", now.0);
            let name = format!("Buyer {number}");
            auth::create_customer_with_session(tx, now, &email, &name, 86_400)
        })
        .collect()
}

/// The sale to rehearse in a copy of a shop: the one that is named, or else the next open one. It
/// begins now and lasts for another hour at least.
pub fn open_now(
    tx: &mut Tx<'_>,
    now: Timestamp,
    sale: Option<SaleId>,
) -> Result<Option<Sale>, SaleError> {
    let id = match sale {
        Some(id) => id,
        None => match allotment::open_sales(tx)?
            .iter()
            .filter(|sale| sale.ends_at > now && sale.remaining > 0)
            .min_by_key(|sale| sale.starts_at)
        {
            Some(next) => next.id,
            None => return Ok(None),
        },
    };
    if !allotment::bring_forward(tx, now, id, now.plus_seconds(3_600))? {
        super::get(tx, id)?;
        return Err(SaleError::Ended);
    }
    Ok(Some(super::get(tx, id)?))
}

/// Closes the product's other open sales, in a copy or a sample: a new one may then be made.
pub fn close_others(tx: &mut Tx<'_>, now: Timestamp, product: ProductId) -> Result<(), SaleError> {
    let open = allotment::open_sales(tx)?;
    for sale in open.iter().filter(|sale| sale.product_id == product) {
        super::close(tx, now, &Events::default(), sale.id, SaleStatus::Stopped)?;
    }
    Ok(())
}

/// Lets the buyers loose, then checks every promise against the database.
pub async fn run(plan: Plan, store: &Store, progress: Arc<Progress>) -> anyhow::Result<Card> {
    let plan = Arc::new(plan);
    let watch = Stopwatch::start();
    let mut card = Card {
        allotted: i64::from(plan.allotted),
        units_may_return: plan.units_may_return,
        ..Card::default()
    };
    let mut accepted = Vec::new();
    let mut latencies = histogram()?;
    let buyers = plan.tokens.len();
    let crowd = buyers - buyers / LATE_COMERS;
    // The second wave meets what the first one left.
    for (from, to) in [(0, crowd), (crowd, buyers)] {
        let next = Arc::new(AtomicUsize::new(from));
        let mut connections = JoinSet::new();
        for _ in 0..plan.connections.min(to - from) {
            connections.spawn(buy(
                Arc::clone(&plan),
                Arc::clone(&next),
                to,
                Arc::clone(&progress),
            ));
        }
        while let Some(seen) = connections.join_next().await {
            let seen = seen??;
            card.replayed += seen.replayed;
            card.doubled += seen.doubled;
            card.unanswered += seen.unanswered;
            latencies.add(&seen.latencies)?;
            for (code, count) in seen.refused {
                *card.refused.entry(code).or_default() += count;
            }
            accepted.extend(seen.accepted);
        }
    }
    card.seconds = watch.elapsed_seconds();
    card.attempts = progress.attempts.load(Ordering::Relaxed);
    card.accepted = accepted.len() as u64;
    card.requests_per_second = latencies.len() as f64 / card.seconds.max(1e-9);
    card.p50_ms = latencies.value_at_quantile(0.5) as f64 / 1_000.0;
    card.p99_ms = latencies.value_at_quantile(0.99) as f64 / 1_000.0;
    let (sale_id, sold_before) = (plan.sale_id, plan.sold_before);
    let mut lost = 0;
    // In parts, because a read has a time limit and a crowd may win a hundred thousand units.
    for part in accepted.chunks(1_000) {
        let part = part.to_vec();
        lost += store
            .read(move |tx| {
                let mut lost = 0;
                for (claim, order) in &part {
                    if !super::is_on_record(tx, claim, *order)? {
                        lost += 1;
                    }
                }
                Ok::<_, StoreError>(lost)
            })
            .await?;
    }
    let (sold, remaining) = store
        .read(move |tx| {
            let remaining = allotment::get(tx, sale_id)?.map_or(0, |sale| sale.remaining);
            Ok::<_, StoreError>((super::units_ordered(tx, sale_id)? - sold_before, remaining))
        })
        .await?;
    card.sold = sold;
    card.remaining = remaining;
    card.accepted_lost = lost;
    card.oversold = (sold - card.allotted).max(0);
    Ok(card)
}

/// One buyer in so many comes late.
const LATE_COMERS: usize = 20;

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

/// One connection: takes buyers from the common queue until there are none.
async fn buy(
    plan: Arc<Plan>,
    next: Arc<AtomicUsize>,
    end: usize,
    progress: Arc<Progress>,
) -> anyhow::Result<ConnectionSeen> {
    let mut seen = ConnectionSeen {
        accepted: BTreeMap::new(),
        replayed: 0,
        doubled: 0,
        unanswered: 0,
        refused: BTreeMap::new(),
        latencies: histogram()?,
    };
    let mut connection = Connection::open(plan.address).await?;
    let path = format!("/api/v1/flash-sales/{}/claims", plan.sale_id);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(token) = plan.tokens[..end].get(number) else {
            return Ok(seen);
        };
        let key = format!("rehearsal-{}-{number}", plan.sale_id);
        // Of ten buyers: six try once, two double-click, one comes back twice, one is a bot.
        let (tries, keyed) = match number % 10 {
            0..=5 => (1, number.is_multiple_of(2)),
            6 | 7 => (2, true),
            8 => (3, false),
            _ => (6, false),
        };
        let mut claims = Vec::new();
        for _ in 0..tries {
            progress.attempts.fetch_add(1, Ordering::Relaxed);
            let watch = Stopwatch::start();
            let answer = match connection
                .post(&path, token, keyed.then_some(key.as_str()), "{}")
                .await
            {
                Ok(answer) => answer,
                Err(_) => {
                    seen.unanswered += 1;
                    connection = Connection::open(plan.address).await?;
                    continue;
                }
            };
            let micros = u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX);
            seen.latencies.saturating_record(micros);
            if answer.status == 201 {
                let claim: ClaimAnswer = serde_json::from_str(&answer.body)?;
                if claims.contains(&claim.claim_id) {
                    seen.replayed += 1;
                    continue;
                }
                progress.accepted.fetch_add(1, Ordering::Relaxed);
                claims.push(claim.claim_id.clone());
                seen.accepted.insert(claim.claim_id, claim.order_id);
            } else {
                let code = serde_json::from_str::<Refused>(&answer.body).map_or_else(
                    |_| format!("http_{}", answer.status),
                    |refused| refused.code,
                );
                *seen.refused.entry(code).or_default() += 1;
            }
        }
        if keyed {
            seen.doubled += (claims.len() as u64).saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(card: Card) -> Verdict {
        let mut card = Card {
            attempts: card.accepted + card.replayed + card.unanswered,
            ..card
        };
        card.conclude(&stock::Verdict::default());
        assert_eq!(card.broken.is_none(), card.verdict == Verdict::Kept);
        card.verdict
    }

    #[test]
    fn what_is_sold_lies_between_what_was_accepted_and_what_got_no_answer() {
        let card = |accepted, unanswered, sold, units_may_return| Card {
            accepted,
            unanswered,
            sold,
            units_may_return,
            ..Card::default()
        };
        for (accepted, unanswered, sold, units_may_return, expected) in [
            (5, 0, 5, false, Verdict::Kept),
            (5, 0, 4, false, Verdict::Broken),
            (5, 0, 6, false, Verdict::Broken),
            // A claim may have been granted though its answer was lost, but only one for each.
            (5, 1, 6, false, Verdict::Kept),
            (5, 1, 7, false, Verdict::Broken),
            (5, 1, 4, false, Verdict::Broken),
            // An unpaid unit comes back.
            (5, 0, 3, true, Verdict::Kept),
            (5, 0, 6, true, Verdict::Broken),
        ] {
            let card = card(accepted, unanswered, sold, units_may_return);
            assert_eq!(verdict(card.clone()), expected, "{card:?}");
        }
        let mut card = card(5, 0, 5, false);
        card.attempts = 6;
        card.conclude(&stock::Verdict::default());
        assert_eq!(card.verdict, Verdict::Broken, "an attempt is missing");
    }
}
