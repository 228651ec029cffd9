//! How long a failed task waits.

use serde::{Deserialize, Serialize};

use super::TaskId;

/// Longest wait of any policy: 30 days.
const DELAY_MS_MAX: i64 = 30 * 86_400_000;

/// How long a task waits after its n-th failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RetryPolicy {
    /// attempt⁴ seconds, ± 10 %: 1 s, 16 s, 81 s, …, 25 attempts in about three weeks.
    #[default]
    Default,
    /// Always the same.
    Fixed {
        /// Milliseconds.
        delay_ms: i64,
    },
    /// Twice as long each time, ± 10 %.
    Exponential {
        /// The first wait, in milliseconds.
        first_ms: i64,
        /// The longest, in milliseconds.
        max_ms: i64,
    },
}

impl RetryPolicy {
    /// Milliseconds to wait after attempt `attempt` (from 1) of `id` failed. The same attempt always
    /// waits the same time; different tasks spread.
    pub fn delay_ms(self, id: TaskId, attempt: u32) -> i64 {
        let n = i64::from(attempt.max(1));
        let (base, is_spread) = match self {
            RetryPolicy::Default => (
                n.saturating_mul(n)
                    .saturating_mul(n)
                    .saturating_mul(n)
                    .saturating_mul(1_000),
                true,
            ),
            RetryPolicy::Fixed { delay_ms } => (delay_ms, false),
            RetryPolicy::Exponential { first_ms, max_ms } => {
                let doubled = first_ms.saturating_mul(1i64 << (attempt.saturating_sub(1)).min(40));
                (doubled.min(max_ms), true)
            }
        };
        let base = base.clamp(0, DELAY_MS_MAX);
        if is_spread {
            // From 900 to 1,100 thousandths, drawn from the id's random end and the attempt.
            let draw =
                (id.0.as_u128() as u64) ^ u64::from(attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let draw = draw.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33;
            base / 1_000 * (900 + (draw % 201) as i64)
                + base % 1_000 * (900 + (draw % 201) as i64) / 1_000
        } else {
            base
        }
    }

    /// Whether its numbers make sense.
    pub fn fault(self) -> Option<&'static str> {
        let holds = match self {
            RetryPolicy::Default => true,
            RetryPolicy::Fixed { delay_ms } => (0..=DELAY_MS_MAX).contains(&delay_ms),
            RetryPolicy::Exponential { first_ms, max_ms } => {
                (1..=DELAY_MS_MAX).contains(&first_ms)
                    && (first_ms..=DELAY_MS_MAX).contains(&max_ms)
            }
        };
        (!holds).then_some("waits must be between 0 and 30 days, the first not above the longest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn waits_grow_with_the_attempt_and_stay_within_a_tenth() {
        let now = Timestamp(1_700_000_000_000_000);
        let id = TaskId::next(now);
        for (attempt, seconds) in [(1, 1), (2, 16), (3, 81), (10, 10_000)] {
            let wait = RetryPolicy::Default.delay_ms(id, attempt);
            assert_eq!(wait, RetryPolicy::Default.delay_ms(id, attempt));
            assert!((seconds * 900..=seconds * 1_100).contains(&wait), "{wait}");
        }
        let doubling = RetryPolicy::Exponential {
            first_ms: 100,
            max_ms: 1_000,
        };
        assert!((360..=440).contains(&doubling.delay_ms(id, 3)));
        assert!(doubling.delay_ms(id, 4_000_000_000) <= 1_100);
        assert_eq!(RetryPolicy::Fixed { delay_ms: 7 }.delay_ms(id, 9), 7);
        assert!(RetryPolicy::Default.delay_ms(id, u32::MAX) <= DELAY_MS_MAX / 10 * 11);
        let spread: std::collections::BTreeSet<i64> = (0..100)
            .map(|_| RetryPolicy::Default.delay_ms(TaskId::next(now), 3))
            .collect();
        assert!(
            spread.len() > 20,
            "tasks that failed together come back apart"
        );
    }
}
