//! Open connections: which clients hold how many, and which are closed when there are too many.
//!
//! Invariants: there are never more than [`Connections::max`] seats, nor more of one client
//! ([`network_of`]) than its own limit; where seats run short a newcomer gets the seat of the connection
//! that did least for longest: first from clients that hold more than an equal part of all seats, then
//! from those that have shown no credentials, and of these from the one whose last answer lies furthest
//! back; a client that holds its equal part finds room among its own, so many times a second
//! ([`swaps_max`]), because each costs all others a little; a request that was received
//! whole and is being worked on is never cut off for a newcomer; the connections of trusted proxies and
//! of unix sockets stand for many clients, so no equal part is held against them.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use poem::Request;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::request::network_of;
use crate::clock::coarse_ms;

/// Seats that are freed in one look at all of them.
const FREED_AT_ONCE: usize = 16;
/// Seats of a client that are looked at for the one that it gives up to itself.
const OWN_LOOKED_AT: usize = 32;
/// See [`swaps_max`].
const SWAPS_MIN: u32 = 2;
/// Connections that have lost their seat and are still open, at most; they have descriptors.
pub(super) const LEAVING_MAX: usize = 256;
/// [`Seat::work`] of a seat that was taken away.
const TAKEN: usize = usize::MAX;

/// Why a newcomer gets no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSeat {
    /// Its client holds as many as one may.
    Client,
    /// All seats are at work.
    Everyone,
}

/// One connection, as its seat sees it.
#[derive(Debug)]
pub struct Seat {
    client: Option<IpAddr>,
    /// Requests that were received whole and are not answered, or [`TAKEN`].
    work: AtomicUsize,
    /// When it was last answered, or came, by [`coarse_ms`].
    moved_ms: AtomicU64,
    is_known: AtomicBool,
    task: OnceLock<AbortHandle>,
}

impl Seat {
    /// What ends the connection when its seat is taken.
    pub fn ends_with(&self, task: AbortHandle) {
        let task = self.task.get_or_init(|| task);
        if self.work.load(Ordering::Acquire) == TAKEN {
            task.abort();
        }
    }

    /// The client of this connection has shown valid credentials.
    pub fn note_known(&self) {
        if !self.is_known.load(Ordering::Relaxed) {
            self.is_known.store(true, Ordering::Relaxed);
        }
    }

    /// A request was received whole. `None` where the seat was taken a moment before.
    fn begin(&self) -> Option<()> {
        let more = |work: usize| (work != TAKEN).then(|| work + 1);
        self.work
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()
            .map(drop)
    }

    fn end(&self) {
        let less = |work: usize| (work != TAKEN).then(|| work.saturating_sub(1));
        // It can't be taken while there is work.
        let _before = self
            .work
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    fn answered(&self) {
        self.moved_ms.store(coarse_ms(), Ordering::Relaxed);
    }

    /// Takes the seat unless there is work on it.
    fn take(&self) -> bool {
        let taken = self
            .work
            .compare_exchange(0, TAKEN, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if taken && let Some(task) = self.task.get() {
            task.abort();
        }
        taken
    }
}

/// One request on its way: work from when it was received whole until it is answered.
#[derive(Debug)]
pub struct RequestTurn {
    seat: Arc<Seat>,
    is_work: AtomicBool,
}

impl RequestTurn {
    /// A request of the connection that has this seat.
    pub fn new(seat: &Arc<Seat>) -> Self {
        Self {
            seat: Arc::clone(seat),
            is_work: AtomicBool::new(false),
        }
    }

    /// It has been received whole.
    pub fn received(&self) {
        if !self.is_work.swap(true, Ordering::AcqRel) && self.seat.begin().is_none() {
            self.is_work.store(false, Ordering::Release);
        }
    }

    /// It came with valid credentials.
    pub fn note_known(&self) {
        self.seat.note_known();
    }
}

impl Drop for RequestTurn {
    fn drop(&mut self) {
        if self.is_work.load(Ordering::Acquire) {
            self.seat.end();
        }
        self.seat.answered();
    }
}

/// Notes that the request came with valid credentials: where connections run short, its own is not
/// among the first that go.
pub fn note_known(request: &Request) {
    if let Some(turn) = request.data::<Arc<RequestTurn>>() {
        turn.note_known();
    }
}

/// All seats.
#[derive(Debug)]
pub struct Connections {
    table: Mutex<SeatTable>,
    max: usize,
    client_max: usize,
    /// Told when a connection that lost its seat has closed.
    left: Notify,
}

/// How often in a second a client may take a seat from itself.
fn swaps_max(equal_part: usize) -> u32 {
    u32::try_from(equal_part / 4).map_or(u32::MAX, |swaps| swaps.max(SWAPS_MIN))
}

/// What one client has.
#[derive(Debug, Default)]
struct ClientSeats {
    /// Seats.
    count: usize,
    /// Their keys, those that came or were looked at last behind the others; also some of seats that
    /// are gone.
    order: VecDeque<u64>,
    /// Seats that it took from itself in [`Self::second`].
    swaps: u32,
    second: u64,
}

#[derive(Debug, Default)]
struct SeatTable {
    seats: HashMap<u64, Arc<Seat>>,
    clients: HashMap<IpAddr, ClientSeats>,
    last_id: u64,
    /// Connections that lost their seat and are still open.
    leaving: usize,
}

impl SeatTable {
    fn count(&self, client: IpAddr) -> usize {
        self.clients.get(&client).map_or(0, |own| own.count)
    }

    fn add(&mut self, id: u64, seat: Arc<Seat>) {
        if let Some(client) = seat.client {
            let own = self.clients.entry(client).or_default();
            own.count += 1;
            own.order.push_back(id);
            if own.order.len() > 2 * own.count + OWN_LOOKED_AT {
                let seats = &self.seats;
                own.order
                    .retain(|other| *other == id || seats.contains_key(other));
            }
        }
        self.seats.insert(id, seat);
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(seat) = self.seats.remove(&id) else {
            return false;
        };
        if let Some(client) = seat.client
            && let Some(own) = self.clients.get_mut(&client)
        {
            own.count -= 1;
            if own.count == 0 {
                self.clients.remove(&client);
            }
        }
        true
    }

    /// Frees the seat that did least for longest of some that `client` has, unless it has had enough of
    /// that within this second. It costs the same however many there are.
    fn free_own(&mut self, client: IpAddr, equal_part: usize, now_ms: u64) -> usize {
        let Some(own) = self.clients.get_mut(&client) else {
            return 0;
        };
        let second = now_ms / 1_000;
        if own.second != second {
            (own.second, own.swaps) = (second, 0);
        }
        if own.swaps >= swaps_max(equal_part) {
            return 0;
        }
        own.swaps += 1;
        let mut least: Option<(bool, u64, u64)> = None;
        for _ in 0..OWN_LOOKED_AT.min(own.order.len()) {
            let Some(id) = own.order.pop_front() else {
                break;
            };
            let Some(seat) = self.seats.get(&id) else {
                continue;
            };
            own.order.push_back(id);
            if seat.work.load(Ordering::Relaxed) == 0 {
                let known = seat.is_known.load(Ordering::Relaxed);
                let this = (known, seat.moved_ms.load(Ordering::Relaxed), id);
                least = Some(least.map_or(this, |least| least.min(this)));
            }
        }
        let Some((_, _, id)) = least else {
            return 0;
        };
        let is_taken = self.seats.get(&id).is_some_and(|seat| seat.take());
        if is_taken {
            self.remove(id);
            self.leaving += 1;
        }
        usize::from(is_taken)
    }

    /// Frees up to `most` seats; answers how many.
    fn free(&mut self, most: usize, equal_part: usize) -> usize {
        let mut candidates: Vec<(bool, bool, u64, u64)> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.work.load(Ordering::Relaxed) == 0)
            .map(|(id, seat)| {
                let is_over = seat
                    .client
                    .is_some_and(|client| self.count(client) > equal_part);
                let is_known = seat.is_known.load(Ordering::Relaxed);
                (
                    !is_over,
                    is_known,
                    seat.moved_ms.load(Ordering::Relaxed),
                    *id,
                )
            })
            .collect();
        if candidates.len() > most {
            candidates.select_nth_unstable(most);
            candidates.truncate(most);
        }
        candidates.sort_unstable();
        let mut freed = 0;
        for (is_fair, _, _, id) in candidates {
            // Of clients that hold no more than their part, only the first loses a seat.
            if is_fair && freed > 0 {
                break;
            }
            if self.seats.get(&id).is_some_and(|seat| seat.take()) {
                self.remove(id);
                self.leaving += 1;
                freed += 1;
            }
        }
        freed
    }
}

/// The seat of an open connection; given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    connections: Arc<Connections>,
    /// See [`Seat`].
    pub seat: Arc<Seat>,
    id: u64,
}

impl Connections {
    /// With so many seats, and so many for each client.
    pub fn new(max: usize, client_max: usize) -> Self {
        Self {
            table: Mutex::default(),
            max,
            client_max,
            left: Notify::new(),
        }
    }

    /// Waits until not too many that lost their seats are still open.
    pub async fn may_accept(&self) {
        loop {
            let left = self.left.notified();
            if self.table.lock().leaving < LEAVING_MAX {
                return;
            }
            left.await;
        }
    }

    /// A seat for a newcomer: with `None` for one that stands for many clients. Answers as well how
    /// many others were sent away for it.
    pub fn admit(
        this: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<(ConnectionSlot, usize), NoSeat> {
        Self::admit_at(this, address, coarse_ms())
    }

    fn admit_at(
        this: &Arc<Self>,
        address: Option<IpAddr>,
        now_ms: u64,
    ) -> Result<(ConnectionSlot, usize), NoSeat> {
        let client = address.map(network_of);
        let mut table = this.table.lock();
        let held = client.map_or(0, |client| table.count(client));
        if held >= this.client_max {
            return Err(NoSeat::Client);
        }
        let mut freed = 0;
        if table.seats.len() >= this.max {
            let clients = table.clients.len() + usize::from(held == 0);
            let equal_part = (this.max / clients.max(1)).max(1);
            freed = match client {
                Some(own) if held >= equal_part => table.free_own(own, equal_part, now_ms),
                _ => table.free(FREED_AT_ONCE, equal_part),
            };
            if freed == 0 {
                let has_share = client.is_some() && held >= equal_part;
                return Err(if has_share {
                    NoSeat::Client
                } else {
                    NoSeat::Everyone
                });
            }
        }
        let seat = Arc::new(Seat {
            client,
            work: AtomicUsize::new(0),
            moved_ms: AtomicU64::new(now_ms),
            is_known: AtomicBool::new(false),
            task: OnceLock::new(),
        });
        table.last_id += 1;
        let id = table.last_id;
        table.add(id, Arc::clone(&seat));
        drop(table);
        let slot = ConnectionSlot {
            connections: Arc::clone(this),
            seat,
            id,
        };
        Ok((slot, freed))
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        if !table.remove(self.id) {
            table.leaving -= 1;
            drop(table);
            self.connections.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> Option<IpAddr> {
        let [.., a, b] = number.to_be_bytes();
        Some(IpAddr::from([10, 0, a, b]))
    }

    fn table(max: usize) -> Arc<Connections> {
        Arc::new(Connections::new(max, 1_000))
    }

    fn sit(table: &Arc<Connections>, number: usize) -> ConnectionSlot {
        Connections::admit(table, client(number)).expect("a seat").0
    }

    fn is_taken(slot: &ConnectionSlot) -> bool {
        slot.seat.work.load(Ordering::Acquire) == TAKEN
    }

    #[test]
    fn a_newcomer_gets_a_seat_from_a_client_that_holds_too_many() {
        let table = table(100);
        let modest: Vec<ConnectionSlot> = (0..5).map(|number| sit(&table, 100 + number)).collect();
        let greedy: Vec<ConnectionSlot> = (0..95).map(|at| sit(&table, at % 5)).collect();
        let newcomers: Vec<ConnectionSlot> =
            (0..20).map(|number| sit(&table, 200 + number)).collect();
        assert!(modest.iter().chain(&newcomers).all(|slot| !is_taken(slot)));
        let taken = greedy.iter().filter(|slot| is_taken(slot)).count();
        assert!((20..=36).contains(&taken), "{taken}");
        // Of theirs, those went that came first.
        assert!(greedy[..taken].iter().all(is_taken));
    }

    #[test]
    fn a_client_with_its_part_finds_room_among_its_own_only() {
        let table = table(10);
        let mine: Vec<ConnectionSlot> = (0..5).map(|_| sit(&table, 1)).collect();
        let others: Vec<ConnectionSlot> = (0..5).map(|_| sit(&table, 2)).collect();
        let _more: Vec<ConnectionSlot> = (0..SWAPS_MIN).map(|_| sit(&table, 1)).collect();
        assert!(mine[..2].iter().all(is_taken) && !is_taken(&mine[2]));
        assert!(others.iter().all(|slot| !is_taken(slot)));
    }

    #[test]
    fn a_client_takes_seats_from_itself_so_many_times_a_second() {
        let table = Arc::new(Connections::new(100, 1_000));
        let _mine: Vec<ConnectionSlot> = (0..100).map(|_| sit(&table, 1)).collect();
        let second = |at_ms: u64| {
            let tried = (0..1_000).map(|_| Connections::admit_at(&table, client(1), at_ms));
            let (mut slots, mut refused) = (Vec::new(), 0);
            for tried in tried {
                match tried {
                    Ok((slot, _)) => slots.push(slot),
                    Err(why) => {
                        assert_eq!(why, NoSeat::Client);
                        refused += 1;
                    }
                }
            }
            let order = table.table.lock().clients[&client(1).expect("one")]
                .order
                .len();
            assert!(order <= 2 * 100 + OWN_LOOKED_AT, "{order}");
            (slots, refused)
        };
        let far_ms = 1_000_000;
        let (first, refused) = second(far_ms);
        assert_eq!((first.len(), refused), (25, 975));
        let (next, _) = second(far_ms + 999);
        assert!(next.is_empty());
        let (next, _) = second(far_ms + 1_000);
        assert_eq!(next.len(), 25);
        // Another client still gets a seat.
        assert!(Connections::admit_at(&table, client(2), far_ms + 1_000).is_ok());
    }

    #[test]
    fn of_its_own_what_did_least_for_longest_goes() {
        let table = table(10);
        let mut mine: Vec<ConnectionSlot> = (0..10).map(|_| sit(&table, 1)).collect();
        mine[0].seat.note_known();
        let turn = RequestTurn::new(&mine[1].seat);
        turn.received();
        mine[2].seat.moved_ms.store(u64::MAX, Ordering::Relaxed);
        mine.push(sit(&table, 1));
        assert!(is_taken(&mine[3]));
        assert!(mine.iter().filter(|slot| is_taken(slot)).count() == 1);
    }

    #[test]
    fn what_is_being_worked_on_and_what_is_known_stays() {
        let table = table(4);
        let working = sit(&table, 1);
        let turn = RequestTurn::new(&working.seat);
        turn.received();
        let known = sit(&table, 2);
        known.seat.note_known();
        let (idle, fresh) = (sit(&table, 3), sit(&table, 4));
        let newcomer = sit(&table, 5);
        assert!(is_taken(&idle) && !is_taken(&fresh) && !is_taken(&known));
        for slot in [&known, &fresh, &newcomer] {
            slot.seat.begin().expect("its own");
        }
        let refused = Connections::admit(&table, client(6)).err();
        assert_eq!(refused, Some(NoSeat::Everyone));
        drop(turn);
        assert!(Connections::admit(&table, client(6)).is_ok());
        assert!(is_taken(&working), "its work is done");
    }

    #[test]
    fn a_seat_that_was_taken_does_no_more_work() {
        let table = table(1);
        let first = sit(&table, 1);
        let late = RequestTurn::new(&first.seat);
        let _second = sit(&table, 2);
        assert!(first.seat.begin().is_none());
        late.received();
        drop(late);
        assert!(is_taken(&first));
    }

    #[test]
    fn what_stands_for_many_is_not_held_to_one_part() {
        let table = table(10);
        let proxy: Vec<ConnectionSlot> = (0..9)
            .map(|_| Connections::admit(&table, None).expect("a seat").0)
            .collect();
        let _alone = sit(&table, 1);
        let (next, _) = Connections::admit(&table, None).expect("a seat");
        assert!(!is_taken(&next));
        assert_eq!(proxy.iter().filter(|slot| is_taken(slot)).count(), 1);
    }

    #[tokio::test]
    async fn seats_come_back_and_those_that_leave_are_counted() {
        let table = Arc::new(Connections::new(2, 2));
        let both: Vec<ConnectionSlot> = (0..2).map(|_| sit(&table, 1)).collect();
        let refused = Connections::admit(&table, client(1)).err();
        assert_eq!(refused, Some(NoSeat::Client));
        let more: Vec<ConnectionSlot> = (0..LEAVING_MAX)
            .map(|number| sit(&table, 2 + number))
            .collect();
        assert_eq!(table.table.lock().leaving, LEAVING_MAX);
        let waits = tokio::spawn({
            let table = Arc::clone(&table);
            async move { table.may_accept().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(both);
        waits.await.expect("woken");
        drop(more);
        let state = table.table.lock();
        assert!(state.seats.is_empty() && state.clients.is_empty());
        assert_eq!(state.leaving, 0);
    }

    #[test]
    fn an_ipv6_client_is_counted_by_its_network() {
        let seats = Arc::new(Connections::new(10, 1));
        let admit = |text: &str| {
            let address = text.parse().expect("address");
            Connections::admit(&seats, Some(address)).map(|(slot, _)| slot)
        };
        let first = admit("2001:db8::1");
        assert!(first.is_ok());
        assert_eq!(admit("2001:db8::ffff:2").err(), Some(NoSeat::Client));
        assert!(admit("2001:db8:0:1::1").is_ok());
        drop(first);
        assert!(admit("2001:db8::2").is_ok());
    }
}
