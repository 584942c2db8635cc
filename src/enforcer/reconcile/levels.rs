//! Which levels of the policy map have entries, by endpoint: the programs ask no others.
use std::collections::{HashMap, HashSet};

use crate::{enforcer::abi, policy::PolicyKey, types::EndpointId};

/// Bits of a level mask.
const BITS: usize = 18;

/// Entries of one endpoint by mask and bit.
type Counts = [[u32; BITS]; abi::LEVELS];

/// Counts entries.
#[derive(Debug, Default)]
pub(super) struct Levels {
    counts: HashMap<EndpointId, Counts>,
    /// Whose masks may have lost a bit that the programs still ask for.
    loose: HashSet<EndpointId>,
}

impl Levels {
    /// Of all entries that there are.
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a PolicyKey>) -> Self {
        let mut levels = Self::default();
        for key in keys {
            levels.add(key);
        }
        levels
    }

    /// One more entry; true if it is the first of its level.
    pub(super) fn add(&mut self, key: &PolicyKey) -> bool {
        let counts = self.counts.entry(key.endpoint).or_default();
        let count = &mut counts[abi::level_index(key)][bit(key)];
        *count += 1;
        *count == 1
    }

    /// One entry less.
    pub(super) fn remove(&mut self, key: &PolicyKey) {
        let Some(counts) = self.counts.get_mut(&key.endpoint) else {
            return;
        };
        let count = &mut counts[abi::level_index(key)][bit(key)];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.loose.insert(key.endpoint);
        }
        if counts.iter().flatten().all(|count| *count == 0) {
            self.counts.remove(&key.endpoint);
        }
    }

    /// The masks as the endpoint's row should have them.
    pub(super) fn masks(&self, endpoint: EndpointId) -> [u32; abi::LEVELS] {
        let Some(counts) = self.counts.get(&endpoint) else {
            return [0; abi::LEVELS];
        };
        counts.map(|mask| {
            let bits = mask.iter().enumerate().filter(|(_, count)| **count > 0);
            bits.fold(0, |mask, (bit, _)| mask | 1 << bit)
        })
    }

    /// Endpoints whose rows are to be written now that entries are gone.
    pub(super) fn settle(&mut self) -> HashSet<EndpointId> {
        std::mem::take(&mut self.loose)
    }
}

fn bit(key: &PolicyKey) -> usize {
    usize::try_from(abi::level(key)).unwrap_or(BITS - 1)
}
