//! Log lines about what strangers do: all are counted, a sample is written.
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::limits;

/// Lets one line of each kind through per [`limits::LOG_SAMPLE_INTERVAL`]. `K` has few values.
#[derive(Debug)]
pub struct Samples<K>(Mutex<BTreeMap<K, Sample>>);

#[derive(Debug)]
struct Sample {
    written: Instant,
    /// Since then.
    held_back: u64,
}

impl<K> Default for Samples<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> Samples<K> {
    /// If a line of this kind is to be written: how many it stands for, itself included.
    pub fn take(&self, kind: K) -> Option<u64> {
        self.take_at(kind, Instant::now())
    }

    fn take_at(&self, kind: K, now: Instant) -> Option<u64> {
        // A panic elsewhere leaves counts behind that are right or one off.
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sample) = samples.get_mut(&kind) else {
            let (written, held_back) = (now, 0);
            samples.insert(kind, Sample { written, held_back });
            return Some(1);
        };
        if now.duration_since(sample.written) < limits::LOG_SAMPLE_INTERVAL {
            sample.held_back = sample.held_back.saturating_add(1);
            return None;
        }
        let count = sample.held_back.saturating_add(1);
        (sample.written, sample.held_back) = (now, 0);
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_each_kind_stands_for_those_held_back() {
        let (samples, start) = (Samples::default(), Instant::now());
        assert_eq!(samples.take_at("a", start), Some(1));
        assert_eq!(samples.take_at("b", start), Some(1));
        for _ in 0..5 {
            assert_eq!(samples.take_at("a", start), None);
        }
        let later = start + limits::LOG_SAMPLE_INTERVAL;
        assert_eq!(samples.take_at("a", later), Some(6));
        assert_eq!(samples.take_at("a", later), None);
        assert_eq!(samples.take_at("b", later), Some(1));
    }
}
