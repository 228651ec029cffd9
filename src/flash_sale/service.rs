//! The sweeper: closes sales whose window is over, expires unpaid orders, has what a sale needs ready
//! before it begins.
//!
//! Invariants: it takes no input and may run at any time and twice; each step is bounded; what it
//! finds is decided from the rows.

use std::sync::Arc;

use tokio::sync::watch;

use super::SaleError;
use super::gate::Gate;
use crate::allotment::{self, SaleStatus, SaleUnits};
use crate::cache::Cache;
use crate::clock::{Clock, Timestamp};
use crate::config::{Settings, ms};
use crate::order::{self, FollowUps, OrderError};
use crate::store::Store;

/// The background service; clones do the same.
#[derive(Clone)]
pub struct Sweeper {
    store: Store,
    clock: Clock,
    settings: Arc<Settings>,
    gate: Gate,
    follow_ups: FollowUps,
    cache: Cache,
}

impl Sweeper {
    /// With the handles that it works on.
    pub fn new(
        store: Store,
        clock: Clock,
        settings: Arc<Settings>,
        gate: Gate,
        follow_ups: FollowUps,
        cache: Cache,
    ) -> Self {
        Self {
            store,
            clock,
            settings,
            gate,
            follow_ups,
            cache,
        }
    }

    /// Runs until `stopped` turns true.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let interval = ms(self
            .settings
            .flash_sales
            .sweep_interval_ms
            .min(self.settings.orders.expiry_interval_ms));
        loop {
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "a sweep did not finish; the next one tries again");
            }
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// One round.
    pub async fn sweep(&self) -> Result<(), SaleError> {
        let now = self.clock.now();
        for id in self.store.point(move |tx| allotment::due(tx, now)).await? {
            let (gate, events) = (self.gate.clone(), self.follow_ups.events.clone());
            self.store
                .write(move |tx| super::close(tx, now, &events, id, SaleStatus::Ended))
                .then(move |done| {
                    if done.is_ok() {
                        gate.close(id);
                    }
                })
                .await?;
        }
        self.expire_holds().await?;
        self.warm_up(now).await;
        self.gate.publish_metrics();
        Ok(())
    }

    /// Loads what the crowd of a sale that is about to begin will ask for. What is there is left.
    async fn warm_up(&self, now: Timestamp) {
        let ahead = i64::from(self.settings.cache.warm_sale_seconds);
        let mut keys = Vec::new();
        for (sale, product) in self.gate.opening(now, now.plus_seconds(ahead)) {
            keys.push(format!("flash_sale:{sale}"));
            keys.push(format!("product:{product}"));
        }
        if !keys.is_empty() {
            self.cache.warm(&keys).await;
        }
    }

    /// Expires the orders that were not paid in time; their units go back. Answers how many.
    pub async fn expire_holds(&self) -> Result<usize, SaleError> {
        let now = self.clock.now();
        let batch = self.settings.orders.expiry_batch;
        let mut all = 0;
        while self.store.point(move |tx| order::any_due(tx, now)).await? {
            let (gate, follow_ups) = (self.gate.clone(), self.follow_ups.clone());
            let (expired, _) = self
                .store
                .write(move |tx| order::expire_due(tx, now, &follow_ups, batch))
                .then(move |done: &Result<(usize, Vec<SaleUnits>), OrderError>| {
                    if let Ok((_, released)) = done {
                        gate.adjust(released);
                    }
                })
                .await?;
            all += expired;
            if expired < batch as usize {
                break;
            }
        }
        Ok(all)
    }
}
