//! How long a client may keep us waiting: for a piece of what it sends, or until it takes what it asked for.
//!
//! Invariant: a client that moves less than [`ClientPace::bytes_per_second_min`] is given up once it is a
//! whole wait behind, however it spreads its bytes; a wait that no byte follows ends it as well.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The patience that is left with one client.
pub(super) struct ClientPace {
    wait: Duration,
    bytes_per_second_min: u64,
    /// What it may still keep us waiting; moving earns it back.
    left: Duration,
    /// Runs only while the client keeps us waiting.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl ClientPace {
    /// With patience for one whole `wait`.
    pub(super) fn new(wait: Duration, bytes_per_second_min: u64) -> Self {
        Self {
            wait,
            bytes_per_second_min: bytes_per_second_min.max(1),
            left: wait,
            waiting: None,
        }
    }

    /// The longest wait.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// The client moved: so many bytes came or went.
    pub(super) fn moved(&mut self, bytes: usize) {
        match self.waiting.take() {
            Some((since, _)) => self.note(since.elapsed(), bytes),
            None if self.left < self.wait => self.note(Duration::ZERO, bytes),
            None => {}
        }
    }

    fn note(&mut self, waited: Duration, bytes: usize) {
        self.left = self.left.saturating_sub(waited);
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.bytes_per_second_min;
        self.left = (self.left + Duration::from_micros(micros)).min(self.wait);
    }

    /// Whether the patience is over. To be called whenever the client keeps us waiting; it wakes the
    /// task when that has become so.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, timer) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + left)))
        });
        timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How long a client is borne with that moves `bytes` after each `pause`, within an hour.
    fn borne(bytes: usize, pause: Duration) -> Duration {
        let mut pace = ClientPace::new(10 * SECOND, 1_000);
        let mut passed = Duration::ZERO;
        while passed < 3_600 * SECOND {
            if pause >= pace.left {
                return passed + pace.left;
            }
            passed += pause;
            pace.note(pause, bytes);
        }
        passed
    }

    #[test]
    fn a_client_that_drips_is_given_up_and_one_that_is_slow_is_not() {
        assert_eq!(borne(0, 60 * SECOND), 10 * SECOND);
        let dripped = borne(1, 9 * SECOND);
        assert!(dripped < 11 * SECOND, "{dripped:?}");
        let often = borne(1, SECOND / 100);
        assert!(often < 12 * SECOND, "{often:?}");
        assert!(borne(9_000, 9 * SECOND) >= 3_600 * SECOND, "the least rate");
        let slower = borne(500, SECOND);
        assert!(slower > 18 * SECOND && slower < 22 * SECOND, "{slower:?}");
    }

    #[test]
    fn no_haste_earns_more_than_one_wait() {
        let mut pace = ClientPace::new(10 * SECOND, 1_000);
        pace.moved(1 << 30);
        pace.note(SECOND, 1 << 30);
        assert_eq!(pace.left, 10 * SECOND);
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_waits_when_it_is_over() {
        let mut pace = ClientPace::new(Duration::from_millis(5), 1);
        std::future::poll_fn(|cx| pace.poll_over(cx)).await;
    }
}
