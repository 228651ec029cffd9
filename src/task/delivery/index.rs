//! The delivery index: which task is next, by queue, priority and time.
//!
//! Owns the order of what waits, the leases of outside workers, and what each queue lets through
//! (pause, concurrency, rate). The head of each queue is in memory, the rest on [`Disk`]. Invariants:
//! everything in it may be stale or missing and nothing is lost by that, because a start is decided
//! by the row; adding twice is adding once; every entry of a queue in memory comes before every one
//! on disk; sled is opened only once memory does not suffice; without a disk what does not fit is
//! forgotten and noted ([`Index::is_short`]), to be looked for in the rows again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Disk, DiskError, EntryKey, Guard, Item, Rest, Tree};
use crate::clock::Timestamp;
use crate::config;
use crate::task::{Entry, QueueRow, TaskId};

/// An empty folder of sled, with its segments allocated, and what churn adds before it is compacted.
const EMPTY_DISK_BYTES: u64 = 64 * 1_048_576;
/// What an entry takes on disk, generously.
const ENTRY_DISK_BYTES: u64 = 200;
/// Entries that are due and moved from the scheduled to their queues in one step.
const DUE_BATCH: usize = 2_000;

/// Entries that go to disk, or come from it, at a time.
const DISK_BATCH: usize = 2_000;

/// Where an [`EntryKey`] has its parts: the rank within the list, the time, the task's id.
const RANK_AT: usize = 0;
const TIME_AT: std::ops::Range<usize> = 1..9;
const ID_AT: std::ops::RangeFrom<usize> = 9..;

/// The key of a task that waits for its time: all of them have the same rank.
fn key_by_time(at: Timestamp, id: TaskId) -> EntryKey {
    key_of(0, at, id)
}

/// The key of a task that is due: the higher its priority, the lower its rank.
fn key_by_priority(priority: u8, at: Timestamp, id: TaskId) -> EntryKey {
    key_of(u8::MAX - priority, at, id)
}

fn key_of(rank: u8, at: Timestamp, id: TaskId) -> EntryKey {
    let mut key = [0; size_of::<EntryKey>()];
    key[RANK_AT] = rank;
    // Times before 1970 do not occur; as bits they would sort after all others.
    key[TIME_AT].copy_from_slice(&at.0.max(0).to_be_bytes());
    key[ID_AT].copy_from_slice(id.0.as_bytes());
    key
}

fn time_of(key: &EntryKey) -> Timestamp {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[TIME_AT]);
    Timestamp(i64::from_be_bytes(bytes))
}

fn id_of(key: &EntryKey) -> TaskId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&key[ID_AT]);
    TaskId(uuid::Uuid::from_bytes(bytes))
}

/// Entries on their way to the disk, by the list that they belong to.
#[derive(Default)]
struct Spill {
    ready: Vec<Item>,
    scheduled: Vec<Item>,
}

impl Spill {
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.scheduled.is_empty()
    }
}

/// An ordered list with its head in memory.
#[derive(Default)]
struct Shelf {
    head: BTreeMap<EntryKey, (u8, Arc<str>)>,
    on_disk: u64,
    /// Whether entries were forgotten for want of a disk.
    is_short: bool,
}

impl Shelf {
    fn len(&self) -> u64 {
        self.head.len() as u64 + self.on_disk
    }
}

struct Queue {
    name: Arc<str>,
    waiting: Shelf,
    running: u32,
    row: QueueRow,
    /// When the next start is allowed, in thousandths of a millisecond; for the rate.
    next_free_us: u64,
}

impl Queue {
    /// How many more may be handed out now, as far as concurrency and pause go.
    fn room(&self) -> usize {
        if self.row.paused_at.is_some() {
            return 0;
        }
        self.row.concurrency_max.map_or(usize::MAX, |most| {
            most.saturating_sub(self.running) as usize
        })
    }

    /// Microseconds between two starts at the allowed rate, and how far a burst may run ahead.
    fn pace(&self) -> Option<(u64, u64)> {
        let limit = u64::from(self.row.rate_limit?);
        let period_us = u64::try_from(self.row.rate_period_ms?)
            .ok()?
            .saturating_mul(1_000);
        let step = (period_us / limit.max(1)).max(1);
        Some((step, period_us.saturating_sub(step)))
    }

    /// Takes one start out of the rate, or says when to come back (ms).
    fn pay(&mut self, now_ms: u64) -> Result<(), u64> {
        let Some((step, burst)) = self.pace() else {
            return Ok(());
        };
        let now_us = now_ms.saturating_mul(1_000);
        let due = self.next_free_us.max(now_us);
        if due - now_us > burst {
            return Err((due - now_us - burst).div_ceil(1_000));
        }
        self.next_free_us = due + step;
        Ok(())
    }
}

/// A task that was handed out and is not over.
struct Handed {
    queue: Arc<str>,
    /// An entry of it that came up meanwhile, old or ahead of the news: it waits for the end.
    again: Option<(EntryKey, u8)>,
}

struct Lease {
    attempt: u32,
    queue: Arc<str>,
    deadline_ms: u64,
    ends: Timestamp,
}

/// Figures of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStats {
    /// Its name.
    pub name: String,
    /// Tasks that could be started. Some may have been cancelled since.
    pub ready: u64,
    /// Tasks that run.
    pub running: u32,
    /// When the first of the ready ones was due.
    pub oldest_due_at: Option<Timestamp>,
    /// Pause and limits.
    pub row: QueueRow,
}

/// See the module.
pub(super) struct Index {
    queues: HashMap<Arc<str>, Queue>,
    scheduled: Shelf,
    leases: HashMap<TaskId, Lease>,
    lease_ends: BTreeSet<(u64, TaskId)>,
    handed: HashMap<TaskId, Handed>,
    disk: Option<Disk>,
    /// Whether there is no disk because it failed, and not because none was needed so far.
    disk_failed: bool,
    spill: Spill,
    folder: PathBuf,
    memory_max: usize,
    queues_max: usize,
    /// What an empty folder may take.
    spare_bytes: u64,
    guard: Guard,
}

/// What there was when an index was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: the rows have to be looked through.
    Nothing,
    /// Something that can't be used, and is gone now: so do the rows.
    Unusable,
    /// What an orderly end left; rows up to this id have been seen.
    Kept(Option<TaskId>),
}

impl Index {
    /// Opens what an orderly end left, if the rows know it by its mark, or begins empty.
    pub(super) fn open(folder: &Path, rules: &config::Tasks, mark: Option<&str>) -> (Self, Found) {
        let mut index = Self::closed(folder, rules);
        match disk::exists(folder, &index.guard) {
            Ok(true) => {}
            Ok(false) => {
                index.start_over();
                return (index, Found::Nothing);
            }
            Err(error) => {
                tracing::warn!(%error, "there is no disk for the tasks' delivery index; it goes on in memory");
                index.disk_failed = true;
                return (index, Found::Unusable);
            }
        }
        match Disk::reopen(folder, &index.guard) {
            Ok((disk, rest)) => {
                let entries = rest.scheduled + rest.ready.values().sum::<u64>();
                if disk.size() > index.fair_size(entries) {
                    tracing::info!(
                        "the tasks' delivery index has grown too large; it is made anew"
                    );
                    drop(disk);
                    index.start_over();
                    return (index, Found::Unusable);
                }
                if mark != Some(rest.mark.as_str()) {
                    tracing::info!(
                        "the tasks' delivery index is of another moment than the rows; it is made anew from them"
                    );
                    drop(disk);
                    index.start_over();
                    return (index, Found::Unusable);
                }
                // Damage can show as entries that are simply not there.
                if let Err(error) = disk.verify(&rest) {
                    tracing::warn!(%error, "the tasks' delivery index is damaged; it is made anew from the rows");
                    drop(disk);
                    index.start_over();
                    return (index, Found::Unusable);
                }
                index.disk = Some(disk);
                let seen = rest.seen;
                index.take_up(rest);
                (index, Found::Kept(seen))
            }
            Err(error) => {
                tracing::info!(%error, "the tasks' delivery index can't be taken up; it is made anew from the rows");
                index.start_over();
                (index, Found::Unusable)
            }
        }
    }

    /// Empty, and without its disk.
    pub(super) fn closed(folder: &Path, rules: &config::Tasks) -> Self {
        Self {
            queues: HashMap::new(),
            scheduled: Shelf::default(),
            leases: HashMap::new(),
            lease_ends: BTreeSet::new(),
            handed: HashMap::new(),
            disk: None,
            disk_failed: false,
            spill: Spill::default(),
            folder: folder.to_owned(),
            memory_max: rules.index_memory_max,
            queues_max: rules.queues_max,
            spare_bytes: EMPTY_DISK_BYTES,
            guard: Guard::new(config::ms(rules.index_timeout_ms)),
        }
    }

    fn take_up(&mut self, rest: Rest) {
        self.scheduled.on_disk = rest.scheduled;
        for (name, entries) in rest.ready {
            self.queue(&name).waiting.on_disk = entries;
        }
        // Their deadlines are set by the caller, who knows the time.
        for (id, attempt, queue, ends) in rest.leases {
            self.lease(id, attempt, &queue, 0, Timestamp(ends));
        }
    }

    /// Forgets everything, and the folder with it.
    pub(super) fn start_over(&mut self) {
        for queue in self.queues.values_mut() {
            queue.waiting = Shelf::default();
        }
        self.scheduled = Shelf::default();
        self.spill = Spill::default();
        self.disk = None;
        self.disk_failed = false;
        disk::clear(&self.folder, &self.guard);
    }

    /// Opens an empty folder; if that can't be, what was to go there is forgotten.
    fn open_disk(&mut self) {
        match Disk::anew(&self.folder, &self.guard) {
            Ok(disk) => self.disk = Some(disk),
            Err(error) => {
                tracing::warn!(%error, "there is no disk for the tasks' delivery index; it goes on in memory");
                self.disk_failed = true;
                self.spill = Spill::default();
                let shelves = self.queues.values_mut().map(|queue| &mut queue.waiting);
                for shelf in shelves.chain([&mut self.scheduled]) {
                    shelf.is_short |= shelf.on_disk > 0;
                    shelf.on_disk = 0;
                }
            }
        }
    }

    /// Whether it has a disk.
    pub(super) fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        let name: Arc<str> = match self.queues.get_key_value(name) {
            Some((known, _)) => Arc::clone(known),
            None => name.into(),
        };
        self.queues
            .entry(Arc::clone(&name))
            .or_insert_with(|| Queue {
                waiting: Shelf::default(),
                running: 0,
                row: QueueRow {
                    name: name.to_string(),
                    ..QueueRow::default()
                },
                next_free_us: 0,
                name,
            })
    }

    /// Pause and limits of a queue.
    pub(super) fn set_queue(&mut self, row: QueueRow) {
        let name = row.name.clone();
        self.queue(&name).row = row;
    }

    /// Adds a task that waits; answers whether it could be delivered at once.
    pub(super) fn add(&mut self, now: Timestamp, entry: &Entry) -> bool {
        if entry.run_at > now {
            let name = Arc::clone(&self.queue(&entry.queue).name);
            let key = key_by_time(entry.run_at, entry.id);
            let spilled = place(
                &mut self.scheduled,
                key,
                entry.priority,
                name,
                self.memory_max,
                !self.disk_failed,
            );
            self.spill.scheduled.extend(spilled);
            return false;
        }
        self.add_ready(entry.priority, entry.run_at, entry.id, &entry.queue);
        true
    }

    /// Adds a task that could be delivered at once.
    pub(super) fn add_due(&mut self, entry: &Entry) {
        self.add_ready(entry.priority, entry.run_at, entry.id, &entry.queue);
    }

    fn add_ready(&mut self, priority: u8, run_at: Timestamp, id: TaskId, queue: &str) {
        let (most, has_disk) = (self.memory_max, !self.disk_failed);
        let queue = self.queue(queue);
        let key = key_by_priority(priority, run_at, id);
        let name = Arc::clone(&queue.name);
        let spilled = place(&mut queue.waiting, key, priority, name, most, has_disk);
        self.spill.ready.extend(spilled);
    }

    /// Tasks that waited and do so no longer: their entries go, wherever they are. What is not found
    /// was never here, or is in another place: then its start is refused by the row.
    pub(super) fn forget(&mut self, gone: &[Entry]) -> Result<(), DiskError> {
        let (mut ready, mut scheduled) = (Vec::new(), Vec::new());
        for entry in gone {
            if self.handed.contains_key(&entry.id) {
                continue;
            }
            let by_time = key_by_time(entry.run_at, entry.id);
            if self.scheduled.head.remove(&by_time).is_some() {
                continue;
            }
            let by_rank = key_by_priority(entry.priority, entry.run_at, entry.id);
            let name: Box<str> = entry.queue.as_str().into();
            if let Some(queue) = self.queues.get_mut(&*name) {
                if queue.waiting.head.remove(&by_rank).is_some() {
                    continue;
                }
                if queue.waiting.on_disk > 0 {
                    ready.push((by_rank, entry.priority, name.clone()));
                }
            }
            if self.scheduled.on_disk > 0 {
                scheduled.push((by_time, entry.priority, name));
            }
        }
        if ready.is_empty() && scheduled.is_empty() {
            return Ok(());
        }
        self.settle()?; // they may be on their way to the disk
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let of_queues = disk.remove(Tree::Ready, ready)?;
        let of_scheduled = disk.remove(Tree::Scheduled, scheduled)?;
        self.scheduled.on_disk -= (of_scheduled.len() as u64).min(self.scheduled.on_disk);
        for name in of_queues {
            if let Some(queue) = self.queues.get_mut(&*name) {
                queue.waiting.on_disk = queue.waiting.on_disk.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Writes what did not fit into memory. To be called after a round of adding.
    pub(super) fn settle(&mut self) -> Result<(), DiskError> {
        if self.disk.is_none() && !self.spill.is_empty() {
            self.open_disk();
        }
        let Spill { ready, scheduled } = std::mem::take(&mut self.spill);
        if let Some(disk) = &self.disk {
            put(disk, Tree::Ready, ready)?;
            put(disk, Tree::Scheduled, scheduled)?;
        }
        Ok(())
    }

    /// Moves what is due to its queue, a bounded number at a time; answers whether there is more.
    pub(super) fn ripen(&mut self, now: Timestamp) -> Result<bool, DiskError> {
        for _ in 0..DUE_BATCH {
            self.refill_scheduled()?;
            let Some(first) = self.scheduled.head.first_entry() else {
                return Ok(false);
            };
            if time_of(first.key()) > now {
                return Ok(false);
            }
            let (key, (priority, queue)) = first.remove_entry();
            self.add_ready(priority, time_of(&key), id_of(&key), &queue);
        }
        Ok(true)
    }

    fn refill_scheduled(&mut self) -> Result<(), DiskError> {
        if !self.scheduled.head.is_empty() || self.scheduled.on_disk == 0 {
            return Ok(());
        }
        self.settle()?;
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let most = DISK_BATCH.min(self.memory_max / 2);
        let items = disk.take(Tree::Scheduled, "", most)?;
        self.scheduled.on_disk -= (items.len() as u64).min(self.scheduled.on_disk);
        if items.is_empty() {
            // Counted and not there: the rows know.
            self.scheduled.on_disk = 0;
            self.scheduled.is_short = true;
        }
        for (key, priority, queue) in items {
            let name = Arc::clone(&self.queue(&queue).name);
            self.scheduled.head.insert(key, (priority, name));
        }
        Ok(())
    }

    /// When the next scheduled task is due, as far as memory knows.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.scheduled.head.keys().next().map(time_of)
    }

    /// Hands out up to `most` tasks of a queue. `Err` inside `Ok` says when (ms) the rate allows more.
    pub(super) fn hand_out(
        &mut self,
        name: &str,
        most: usize,
        now_ms: u64,
        out: &mut Vec<Entry>,
    ) -> Result<Option<u64>, DiskError> {
        let Some(queue) = self.queues.get(name) else {
            return Ok(None);
        };
        let most = most.min(queue.room());
        let wanted = out.len().saturating_add(most);
        while out.len() < wanted {
            self.refill(name)?;
            let Some(queue) = self.queues.get_mut(name) else {
                return Ok(None);
            };
            let Some((first, (priority, _))) = queue.waiting.head.first_key_value() else {
                return Ok(None);
            };
            if let Some(handed) = self.handed.get_mut(&id_of(first)) {
                handed.again = Some((*first, *priority));
                queue.waiting.head.pop_first();
                continue;
            }
            if let Err(again_ms) = queue.pay(now_ms) {
                return Ok(Some(again_ms));
            }
            if let Some((key, (priority, queue_name))) = queue.waiting.head.pop_first() {
                let id = id_of(&key);
                let handed = Handed {
                    queue: Arc::clone(&queue_name),
                    again: None,
                };
                self.handed.insert(id, handed);
                queue.running += 1;
                out.push(Entry {
                    queue: queue_name.to_string(),
                    priority,
                    run_at: time_of(&key),
                    id,
                });
            }
        }
        Ok(None)
    }

    fn refill(&mut self, name: &str) -> Result<(), DiskError> {
        let is_needed = self
            .queues
            .get(name)
            .is_some_and(|queue| queue.waiting.head.is_empty() && queue.waiting.on_disk > 0);
        if !is_needed {
            return Ok(());
        }
        self.settle()?;
        let most = DISK_BATCH.min(self.memory_max / 2);
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let items = disk.take(Tree::Ready, name, most)?;
        let queue = self.queue(name);
        if items.is_empty() {
            queue.waiting.on_disk = 0;
            queue.waiting.is_short = true;
        }
        queue.waiting.on_disk -= (items.len() as u64).min(queue.waiting.on_disk);
        for (key, priority, _) in items {
            let queue_name = Arc::clone(&queue.name);
            queue.waiting.head.insert(key, (priority, queue_name));
        }
        Ok(())
    }

    /// A task that was handed out was not started; unless another has it, who was faster.
    pub(super) fn not_started(&mut self, id: TaskId) {
        if !self.leases.contains_key(&id) {
            self.over(id);
        }
    }

    /// A task that was handed out runs no longer.
    pub(super) fn over(&mut self, id: TaskId) -> Option<Arc<str>> {
        if let Some(lease) = self.leases.remove(&id) {
            self.lease_ends.remove(&(lease.deadline_ms, id));
        }
        let handed = self.handed.remove(&id)?;
        let queue = self.queues.get_mut(&handed.queue)?;
        queue.running = queue.running.saturating_sub(1);
        if let Some((key, priority)) = handed.again {
            self.add_ready(priority, time_of(&key), id, &handed.queue);
        }
        Some(handed.queue)
    }

    /// A task that is known to run, whoever handed it out.
    pub(super) fn note_running(&mut self, id: TaskId, queue: &str) {
        let queue = self.queue(queue);
        let name = Arc::clone(&queue.name);
        if self.handed.contains_key(&id) {
            return;
        }
        if let Some(queue) = self.queues.get_mut(&name) {
            queue.running += 1;
            let handed = Handed {
                queue: name,
                again: None,
            };
            self.handed.insert(id, handed);
        }
    }

    /// All that were handed out and are not over, as far as it was told.
    pub(super) fn handed(&self) -> Vec<TaskId> {
        self.handed.keys().copied().collect()
    }

    /// An outside worker has the task until `deadline_ms`; the row says `ends`.
    pub(super) fn lease(
        &mut self,
        id: TaskId,
        attempt: u32,
        queue: &str,
        deadline_ms: u64,
        ends: Timestamp,
    ) {
        self.note_running(id, queue);
        let queue = Arc::clone(&self.queue(queue).name);
        let lease = Lease {
            attempt,
            queue,
            deadline_ms,
            ends,
        };
        if let Some(before) = self.leases.insert(id, lease) {
            self.lease_ends.remove(&(before.deadline_ms, id));
        }
        self.lease_ends.insert((deadline_ms, id));
    }

    /// The worker was heard of.
    pub(super) fn renew(&mut self, id: TaskId, deadline_ms: u64, ends: Timestamp) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.lease_ends.remove(&(lease.deadline_ms, id));
            (lease.deadline_ms, lease.ends) = (deadline_ms, ends);
            self.lease_ends.insert((deadline_ms, id));
        }
    }

    /// The rows' ends of all leases were moved.
    pub(super) fn shift_leases(&mut self, by_micros: i64) {
        for lease in self.leases.values_mut() {
            lease.ends.0 = lease.ends.0.saturating_add(by_micros);
        }
    }

    /// All leases as `(id, attempt, end as the row says)`.
    pub(super) fn leases(&self) -> Vec<(TaskId, u32, Timestamp)> {
        self.leases
            .iter()
            .map(|(id, lease)| (*id, lease.attempt, lease.ends))
            .collect()
    }

    /// When a lease runs out.
    pub(super) fn lease_deadline(&self, id: TaskId) -> Option<u64> {
        self.leases.get(&id).map(|lease| lease.deadline_ms)
    }

    /// When the next lease runs out.
    pub(super) fn next_lease_end(&self) -> Option<u64> {
        self.lease_ends.first().map(|(deadline, _)| *deadline)
    }

    /// Leases that have run out: id, attempt, and the end that the row must still show. Each is
    /// looked at again at `again_ms`, if nothing is heard of it by then.
    pub(super) fn run_out(
        &mut self,
        now_ms: u64,
        again_ms: u64,
        most: usize,
    ) -> Vec<(TaskId, u32, Timestamp)> {
        let due: Vec<TaskId> = self
            .lease_ends
            .iter()
            .take_while(|(deadline, _)| *deadline <= now_ms)
            .take(most)
            .map(|(_, id)| *id)
            .collect();
        due.into_iter()
            .filter_map(|id| {
                let (attempt, ends) = {
                    let lease = self.leases.get(&id)?;
                    (lease.attempt, lease.ends)
                };
                self.renew(id, again_ms, ends);
                Some((id, attempt, ends))
            })
            .collect()
    }

    /// Whether entries of this queue were forgotten and none is left in memory: time to look into the
    /// rows again.
    pub(super) fn is_short(&self) -> bool {
        let dry = |shelf: &Shelf| shelf.is_short && shelf.head.is_empty();
        dry(&self.scheduled) || self.queues.values().any(|queue| dry(&queue.waiting))
    }

    /// The rows are being looked through again: nothing is forgotten so far.
    pub(super) fn not_short(&mut self) {
        self.scheduled.is_short = false;
        for queue in self.queues.values_mut() {
            queue.waiting.is_short = false;
        }
    }

    /// Whether the disk is still sound; `true` when it takes more than is fair.
    pub(super) fn check(&self) -> Result<bool, DiskError> {
        let Some(disk) = &self.disk else {
            return Ok(false);
        };
        let ready = self.queues.values().map(|queue| queue.waiting.on_disk);
        let entries = self.scheduled.on_disk + ready.sum::<u64>();
        Ok(disk.check()? > self.fair_size(entries))
    }

    /// Bytes that so many entries may take on disk; sled does not give back what churn takes.
    fn fair_size(&self, entries: u64) -> u64 {
        self.spare_bytes + 4 * ENTRY_DISK_BYTES * entries
    }

    /// Forgets queues of which nothing waits or runs and that are served in the ordinary way, if
    /// there are more than should be.
    pub(super) fn forget_idle(&mut self) {
        if self.queues.len() >= self.queues_max {
            self.queues.retain(|_, queue| {
                let row = &queue.row;
                queue.running > 0
                    || queue.waiting.len() > 0
                    || row.paused_at.is_some()
                    || row.concurrency_max.is_some()
                    || row.rate_limit.is_some()
            });
        }
    }

    /// Figures of all queues, and how many tasks wait for their time.
    pub(super) fn stats(&self) -> (Vec<QueueStats>, u64) {
        let mut all: Vec<QueueStats> = self
            .queues
            .values()
            .map(|queue| QueueStats {
                name: queue.name.to_string(),
                ready: queue.waiting.len(),
                running: queue.running,
                // The first of the highest priority; near enough to the oldest.
                oldest_due_at: queue.waiting.head.keys().next().map(time_of),
                row: queue.row.clone(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        (all, self.scheduled.len())
    }

    /// Everything that waits, in memory or on disk; empties the disk's lists. For tests.
    #[cfg(test)]
    pub(super) fn drain(&mut self) -> Result<Vec<Entry>, DiskError> {
        let mut all = Vec::new();
        let names: Vec<Arc<str>> = self.queues.keys().cloned().collect();
        for name in names {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.row = QueueRow::default();
            }
            self.hand_out(&name, usize::MAX >> 1, 0, &mut all)?;
        }
        loop {
            self.refill_scheduled()?;
            let Some((key, (priority, queue))) = self.scheduled.head.pop_first() else {
                break;
            };
            all.push(Entry {
                queue: queue.to_string(),
                priority,
                run_at: time_of(&key),
                id: id_of(&key),
            });
        }
        all.sort_by_key(|entry| entry.id);
        Ok(all)
    }

    /// Ends in order: the next start takes it up from here, once the rows know its mark.
    pub(super) fn close(mut self, seen: Option<TaskId>, mark: &str) -> Result<(), DiskError> {
        let Some(disk) = self.disk.take() else {
            return Ok(());
        };
        let mut rest = Rest {
            mark: mark.to_owned(),
            seen,
            ..Rest::default()
        };
        let to_items = |shelf: &mut Shelf| -> Vec<Item> {
            std::mem::take(&mut shelf.head)
                .into_iter()
                .map(|(key, (priority, queue))| (key, priority, (*queue).into()))
                .collect()
        };
        let Spill { ready, scheduled } = std::mem::take(&mut self.spill);
        put(&disk, Tree::Ready, ready)?;
        put(&disk, Tree::Scheduled, scheduled)?;
        rest.scheduled = self.scheduled.len();
        put(&disk, Tree::Scheduled, to_items(&mut self.scheduled))?;
        for queue in self.queues.values_mut() {
            if queue.waiting.len() > 0 {
                rest.ready
                    .insert(queue.name.to_string(), queue.waiting.len());
                put(&disk, Tree::Ready, to_items(&mut queue.waiting))?;
            }
        }
        rest.leases = self
            .leases
            .iter()
            .map(|(id, lease)| (*id, lease.attempt, lease.queue.to_string(), lease.ends.0))
            .collect();
        disk.close(rest)
    }
}

/// Hands entries to the disk in parts that it is quickly done with.
fn put(disk: &Disk, tree: Tree, mut items: Vec<Item>) -> Result<(), DiskError> {
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(DISK_BATCH));
        disk.put(tree, std::mem::replace(&mut items, rest))?;
    }
    Ok(())
}

/// Puts an entry where it belongs; answers what has to go to disk for it.
fn place(
    shelf: &mut Shelf,
    key: EntryKey,
    priority: u8,
    queue: Arc<str>,
    most: usize,
    has_disk: bool,
) -> Vec<Item> {
    // While there is more on disk (or forgotten), only what comes before the end of the head may
    // enter it.
    let is_beyond = (shelf.on_disk > 0 || shelf.is_short)
        && shelf
            .head
            .last_key_value()
            .is_none_or(|(last, _)| key > *last);
    let mut spilled = Vec::new();
    if is_beyond {
        spilled.push((key, priority, (*queue).into()));
    } else {
        shelf.head.insert(key, (priority, queue));
        if shelf.head.len() > most {
            let middle = shelf.head.keys().nth(most / 2).copied();
            if let Some(middle) = middle {
                spilled = shelf
                    .head
                    .split_off(&middle)
                    .into_iter()
                    .map(|(key, (priority, queue))| (key, priority, (*queue).into()))
                    .collect();
            }
        }
    }
    if has_disk {
        shelf.on_disk += spilled.len() as u64;
        spilled
    } else {
        shelf.is_short |= !spilled.is_empty();
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    fn rules() -> config::Tasks {
        config::Tasks {
            index_memory_max: 100,
            ..config::Tasks::default()
        }
    }

    fn entries(count: usize) -> Vec<Entry> {
        (0..count)
            .map(|at| Entry {
                queue: ["a", "b", "c"][at % 3].to_owned(),
                priority: (at % 7) as u8,
                run_at: NOW.plus_seconds((at % 11) as i64 - 5),
                id: TaskId::next(NOW),
            })
            .collect()
    }

    const MARK: &str = "the mark in the rows";

    fn filled(folder: &Path, entries: &[Entry]) -> Index {
        let (mut index, taken_up) = Index::open(folder, &rules(), Some(MARK));
        assert_eq!(taken_up, Found::Nothing);
        for entry in entries {
            index.add(NOW, entry);
        }
        index.settle().expect("written");
        index
    }

    #[test]
    fn more_than_memory_holds_comes_out_in_order_and_survives_an_orderly_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("queue");
        let all = entries(3_000);
        let mut index = filled(&folder, &all);
        let mut got = Vec::new();
        index.hand_out("a", 200, 0, &mut got).expect("handed out");
        index.close(Some(all[2_999].id), MARK).expect("closed");
        let (mut index, taken_up) = Index::open(&folder, &rules(), Some(MARK));
        assert_eq!(taken_up, Found::Kept(Some(all[2_999].id)));
        let later = NOW.plus_seconds(60);
        while index.ripen(later).expect("ripe") {}
        assert_eq!(index.next_due(), None);
        let rest = index.drain().expect("drained");
        let mut expected: Vec<Entry> = all.clone();
        expected.retain(|entry| !got.contains(entry));
        expected.sort_by_key(|entry| entry.id);
        assert_eq!(rest, expected);
        let mut order: Vec<Entry> = all
            .into_iter()
            .filter(|entry| entry.queue == "a" && entry.run_at <= NOW)
            .collect();
        order.sort_by_key(|entry| (255 - entry.priority, entry.run_at, entry.id));
        assert_eq!(got, order[..200]);
    }

    #[test]
    fn a_folder_that_is_locked_for_a_moment_is_taken_up_all_the_same() {
        use std::sync::mpsc::{RecvTimeoutError, channel};

        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("queue");
        filled(&folder, &entries(1_000))
            .close(None, MARK)
            .expect("closed");
        let inner = std::fs::read_dir(&folder).expect("read").next();
        let db = inner.expect("a folder").expect("read").path().join("db");
        let held = std::fs::File::open(db).expect("opened");
        held.lock().expect("locked");
        let (done, found) = channel();
        let opener = std::thread::spawn(move || {
            done.send(Index::open(&folder, &rules(), Some(MARK)).1)
                .expect("awaited");
        });
        let early = found.recv_timeout(Duration::from_millis(100));
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "it is locked");
        held.unlock().expect("unlocked");
        assert_eq!(found.recv(), Ok(Found::Kept(None)));
        opener.join().expect("ended");
    }

    #[test]
    fn what_churn_leaves_on_disk_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut index = filled(&dir.path().join("queue"), &[]);
        index.spare_bytes = 1_048_576;
        let mut step = |count: usize| {
            for entry in entries(count) {
                index.add(NOW, &entry);
            }
            index.ripen(NOW.plus_seconds(60)).expect("ripe");
            index.settle().expect("written");
            let mut got = Vec::new();
            for queue in ["a", "b", "c"] {
                index.hand_out(queue, 20, 0, &mut got).expect("handed out");
            }
            for entry in got {
                index.over(entry.id);
            }
            index.check().expect("sound")
        };
        step(2_000);
        assert!((0..3_000).any(|_| step(60)));
        index.start_over();
        assert!(!index.check().expect("sound"));
    }

    #[test]
    fn one_of_another_moment_than_the_rows_is_not_taken_up() {
        for mark in [None, Some("of a start since then, or of a restored backup")] {
            let dir = tempfile::tempdir().expect("a directory");
            let folder = dir.path().join("queue");
            let all = entries(1_000);
            filled(&folder, &all)
                .close(Some(all[999].id), MARK)
                .expect("closed");
            let (index, found) = Index::open(&folder, &rules(), mark);
            assert_eq!(found, Found::Unusable);
            drop(index);
            let (_, found) = Index::open(&folder, &rules(), Some(MARK));
            assert_eq!(found, Found::Nothing, "it is gone");
        }
    }

    #[test]
    fn a_damaged_or_unfinished_folder_is_never_taken_up_wrong() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 5] = [
            ("deleted", |db| std::fs::remove_file(db).expect("removed")),
            ("empty", |db| std::fs::write(db, "").expect("written")),
            ("half", |db| {
                let bytes = std::fs::read(db).expect("read");
                std::fs::write(db, &bytes[..bytes.len() / 2]).expect("written");
            }),
            ("flipped", |db| {
                let mut bytes = std::fs::read(db).expect("read");
                bytes.iter_mut().step_by(61).for_each(|byte| *byte ^= 1);
                std::fs::write(db, bytes).expect("written");
            }),
            ("noise", |db| {
                std::fs::write(db, "noise".repeat(100_000)).expect("written");
            }),
        ];
        let all = entries(1_000);
        for (what, damage) in damages {
            let dir = tempfile::tempdir().expect("a directory");
            let folder = dir.path().join("queue");
            filled(&folder, &all).close(None, MARK).expect("closed");
            let inside = std::fs::read_dir(&folder).expect("a folder");
            let inside = inside.flatten().next().expect("one").path();
            damage(&inside.join("db"));
            let (mut index, taken_up) = Index::open(&folder, &rules(), Some(MARK));
            // Either it was noticed at once, or the contents are whole, or they fail when read.
            match (taken_up, index.drain()) {
                (Found::Kept(_), Ok(found)) => assert_eq!(found.len(), 1_000, "{what}"),
                (_, Ok(found)) => assert_eq!(found, [], "{what}"),
                (_, Err(_)) => {}
            }
            index.start_over();
            for entry in &all {
                index.add(NOW, entry);
            }
            index.settle().expect("written");
            assert!(index.has_disk(), "{what}: a new folder was made");
            assert_eq!(index.drain().expect("drained"), all, "{what}");
        }
    }

    #[test]
    fn what_waits_no_longer_goes_from_memory_and_from_the_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("queue");
        let all = entries(3_000);
        let mut index = filled(&folder, &all);
        let mut handed = Vec::new();
        index.hand_out("a", 1, 0, &mut handed).expect("handed out");
        // Every second one; among them are such as are on the way to the disk.
        let gone: Vec<Entry> = all.iter().step_by(2).cloned().collect();
        let late = entries(500);
        for entry in &late {
            index.add(NOW, entry);
        }
        index.forget(&gone).expect("forgotten");
        index.forget(&late).expect("forgotten");
        index.forget(&gone).expect("twice is once");
        let mut left: Vec<Entry> = all.iter().skip(1).step_by(2).cloned().collect();
        left.retain(|entry| *entry != handed[0]);
        let (queues, scheduled) = index.stats();
        let ready: u64 = queues.iter().map(|queue| queue.ready).sum();
        assert_eq!(ready + scheduled, left.len() as u64, "counted rightly");
        index.close(None, MARK).expect("closed");
        let (mut index, found) = Index::open(&folder, &rules(), Some(MARK));
        assert_eq!(found, Found::Kept(None), "the counts are those of the disk");
        left.sort_by_key(|entry| entry.id);
        assert_eq!(index.drain().expect("drained"), left);
    }

    #[test]
    fn a_disk_that_hangs_costs_its_time_limit_and_only_so_many_threads() {
        let guard = Guard::new(Duration::from_millis(20));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = std::sync::Arc::new(parking_lot::Mutex::new(hang));
        let mut hung = 0;
        for _ in 0..50 {
            let hang = Arc::clone(&hang);
            let result = guard.within(move || hang.lock().recv().is_ok());
            hung += usize::from(matches!(result, Err(DiskError::Hung)));
        }
        assert_eq!(hung, 50);
        assert_eq!(guard.threads(), disk::THREADS_MAX);
        drop(release);
        let watch = crate::clock::Stopwatch::start();
        while guard.within(|| ()).is_err() {
            assert!(watch.elapsed() < Duration::from_secs(30), "they come back");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_end_without_order_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("queue");
        drop(filled(&folder, &entries(500)));
        let (mut index, taken_up) = Index::open(&folder, &rules(), Some(MARK));
        assert_eq!(taken_up, Found::Unusable);
        assert_eq!(index.drain().expect("empty"), []);
    }

    #[test]
    fn without_a_disk_it_goes_on_with_what_memory_holds_and_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = dir.path().join("queue");
        std::fs::write(&folder, "in the way").expect("written");
        let (mut index, taken_up) = Index::open(&folder, &rules(), Some(MARK));
        assert!(taken_up == Found::Nothing && !index.has_disk());
        for entry in entries(1_000) {
            index.add(NOW, &entry);
        }
        index.settle().expect("forgotten");
        assert!(!index.is_short() && !index.has_disk());
        let mut got = Vec::new();
        for queue in ["a", "b", "c"] {
            index
                .hand_out(queue, 1_000, 0, &mut got)
                .expect("handed out");
        }
        assert!(got.len() >= 100 && index.is_short());
    }

    #[test]
    fn rate_concurrency_and_pause_bound_what_is_handed_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut index = filled(&dir.path().join("queue"), &[]);
        for _ in 0..50 {
            let entry = Entry {
                queue: "a".to_owned(),
                priority: 1,
                run_at: NOW,
                id: TaskId::next(NOW),
            };
            index.add(NOW, &entry);
        }
        let take = |index: &mut Index, now_ms| {
            let mut got = Vec::new();
            let again = index
                .hand_out("a", 100, now_ms, &mut got)
                .expect("handed out");
            (got, again)
        };
        let row = |paused: bool, most: Option<u32>, rate: Option<u32>| QueueRow {
            name: "a".to_owned(),
            paused_at: paused.then_some(NOW),
            concurrency_max: most,
            rate_limit: rate,
            rate_period_ms: rate.map(|_| 1_000),
        };
        index.set_queue(row(true, None, None));
        assert_eq!(take(&mut index, 0).0.len(), 0);
        index.set_queue(row(false, Some(3), None));
        let (three, _) = take(&mut index, 0);
        assert_eq!(three.len(), 3);
        assert_eq!(take(&mut index, 0).0.len(), 0);
        assert!(index.over(three[0].id).is_some());
        assert!(index.over(three[0].id).is_none(), "over twice is over once");
        assert_eq!(take(&mut index, 0).0.len(), 1);
        index.set_queue(row(false, None, Some(4)));
        let (burst, again) = take(&mut index, 10_000);
        assert_eq!((burst.len(), again), (4, Some(250)));
        assert_eq!(take(&mut index, 10_249).0.len(), 0);
        assert_eq!(take(&mut index, 10_250).0.len(), 1);
        assert_eq!(
            take(&mut index, 20_000).0.len(),
            4,
            "a burst is one period's worth"
        );
    }
}
