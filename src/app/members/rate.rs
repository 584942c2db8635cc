//! How fast a peer may go on changing what it says. A peer that is faster waits, while its changes
//! merge by key; nothing of it is dropped, and what it says last is what is known of it in the end.
use std::time::{Duration, Instant};

use crate::{limits, mesh::Cost};

/// A token bucket. It may be overdrawn; then it takes as much longer until it has any again.
#[derive(Debug)]
struct Bucket {
    /// In which one token comes.
    period: Duration,
    /// In which all come.
    whole: Duration,
    /// When it is full.
    full: Instant,
}

impl Bucket {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let period = Duration::from_secs(1) / per_second;
        Self {
            period,
            whole: period * burst,
            full: now,
        }
    }

    fn take(&mut self, count: u32, now: Instant) {
        self.full = self.full.max(now) + self.period * count;
    }

    /// When there are `count` tokens; `None` if there always were.
    fn has(&self, count: u32) -> Option<Instant> {
        self.full.checked_sub(self.whole - self.period * count)
    }
}

/// What one peer may have applied.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Of changes, entries of lists, those of both that are refused, and kilobytes expanded to.
    buckets: [Bucket; 4],
    /// Until there are some of each again.
    waits: Option<Instant>,
}

impl Allowance {
    /// All of it.
    pub(super) fn new(now: Instant) -> Self {
        let limits = [
            limits::PEER_CHANGES,
            limits::PEER_LISTED,
            limits::PEER_REFUSED,
            limits::PEER_EXPANDED,
        ];
        Self {
            buckets: limits.map(|(per_second, burst)| Bucket::new(per_second, burst, now)),
            waits: None,
        }
    }

    /// Until when the peer's entries wait.
    pub(super) const fn waits(&self) -> Option<Instant> {
        self.waits
    }

    /// Notes what was applied: changes, entries of lists, and what they took. True if the next ones
    /// must wait.
    pub(super) fn applied(
        &mut self,
        changes: usize,
        listed: usize,
        cost: Cost,
        now: Instant,
    ) -> bool {
        let weight = cost.bytes / limits::PEER_CHANGE_BYTES;
        let more = weight.saturating_sub(changes + listed);
        let (changes, listed) = if changes > 0 {
            (changes + more, listed)
        } else {
            (changes, listed + more)
        };
        let counts = [changes, listed, cost.refused, cost.expanded >> 10];
        let mut empty = false;
        for (bucket, count) in self.buckets.iter_mut().zip(counts) {
            bucket.take(u32::try_from(count).unwrap_or(u32::MAX), now);
            empty |= bucket.has(1).is_some_and(|at| at > now);
        }
        // For more than one, so that there is something to merge meanwhile.
        let some = |bucket: &Bucket| bucket.has(limits::PEER_RATE_STEP);
        self.waits = if empty {
            self.buckets.iter().filter_map(some).max()
        } else {
            None
        };
        empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_comes_at_once_and_then_the_rate_holds() {
        let (per_second, burst) = limits::PEER_CHANGES;
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let (mut now, mut applied) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match allowance.waits() {
                Some(until) if until > now => now = until,
                _ => {
                    allowance.applied(16, 0, Cost::default(), now);
                    applied += 16;
                }
            }
        }
        let allowed = i64::from(burst + 10 * per_second);
        let step = i64::from(limits::PEER_RATE_STEP);
        assert!((applied - allowed).abs() <= step, "{applied} of {allowed}");
    }

    #[test]
    fn lists_and_what_is_refused_have_allowances_of_their_own() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        let cost = |refused| Cost {
            refused,
            ..Cost::default()
        };
        let (listed, refused) = (limits::PEER_LISTED.1, limits::PEER_REFUSED.1);
        assert!(!allowance.applied(0, listed as usize - 1, cost(0), now));
        assert!(!allowance.applied(9, 0, cost(refused as usize - 1), now));
        assert!(allowance.applied(0, 2, cost(0), now));
        let listed = allowance.waits().unwrap();
        assert!(listed > now && listed < now + Duration::from_secs(1));
        assert!(allowance.applied(0, 0, cost(100), now));
        assert!(allowance.waits().unwrap() > listed);
    }

    #[test]
    fn what_expands_counts_as_what_it_is() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        let cost = Cost {
            expanded: limits::ENDPOINT_SLICE_BYTES_MAX,
            ..Cost::default()
        };
        for _ in 0..10 {
            allowance.applied(0, 1, cost, now);
            now = allowance.waits().unwrap_or(now);
        }
        let took = now - start;
        assert!(took > Duration::from_secs(10), "{took:?}");
    }
}
