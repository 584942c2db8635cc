//! Delays between attempts, and the order of endpoints.
use std::time::Duration;

use super::Retry;

/// Doubling delays with jitter in the upper half, so that peers of a failed cluster spread out.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay between `first` and `longest`; `random` lies in 0..1.
    pub(super) fn delay(
        &mut self,
        (first, longest): (Duration, Duration),
        retry: Retry,
        random: f64,
    ) -> Duration {
        let full = match retry {
            Retry::Seldom => longest,
            Retry::Soon | Retry::Files => first
                .saturating_mul(1 << self.failures.min(16))
                .min(longest),
        };
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// The numbers below `count` in an order drawn from `random`, which yields numbers in 0..1.
pub(super) fn shuffle(count: usize, random: impl Fn() -> f64) -> Vec<usize> {
    // Sorted by lot; lots that are equal keep their order.
    let mut drawn: Vec<(f64, usize)> = (0..count).map(|index| (random(), index)).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    drawn.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PEER_BACKOFF;

    #[test]
    fn backoff_doubles_up_to_its_bound_and_stays_in_the_upper_half() {
        let mut backoff = Backoff::default();
        let mut next = |random| backoff.delay(PEER_BACKOFF, Retry::Soon, random).as_millis();
        let delays: Vec<u128> = (0..9).map(|_| next(1.0)).collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        backoff.failures = u32::MAX;
        let next = |backoff: &mut Backoff, retry| backoff.delay(PEER_BACKOFF, retry, 0.0);
        assert_eq!(next(&mut backoff, Retry::Soon).as_millis(), 5000);
        let seldom = next(&mut Backoff::default(), Retry::Seldom);
        assert_eq!(seldom.as_millis(), 5000);
    }

    #[test]
    fn every_endpoint_is_drawn_once() {
        let lots = std::cell::RefCell::new(vec![0.1, 0.9, 0.5]);
        assert_eq!(shuffle(3, || lots.borrow_mut().pop().unwrap()), [2, 0, 1]);
        assert_eq!(shuffle(3, || 0.5), [0, 1, 2]);
    }
}
