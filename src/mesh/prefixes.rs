//! A set of address prefixes that is asked for overlaps, at the price of a few look-ups.
use std::collections::BTreeMap;

use crate::types::IpPrefix;

/// Prefixes, each as often as it was added.
#[derive(Debug, Default)]
pub(super) struct PrefixSet {
    prefixes: BTreeMap<IpPrefix, u32>,
    /// How many prefixes of each length there are, for IPv4 and IPv6: only lengths in use are
    /// looked up.
    lengths: [BTreeMap<u8, u32>; 2],
}

impl PrefixSet {
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// True if it was not there before.
    pub(super) fn insert(&mut self, prefix: IpPrefix) -> bool {
        let count = self.prefixes.entry(prefix).or_insert(0);
        *count += 1;
        let fresh = *count == 1;
        if fresh {
            let lengths = &mut self.lengths[family(&prefix)];
            *lengths.entry(prefix.prefix_len()).or_insert(0) += 1;
        }
        fresh
    }

    /// True if it is not there any more.
    pub(super) fn remove(&mut self, prefix: &IpPrefix) -> bool {
        let Some(count) = self.prefixes.get_mut(prefix) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.prefixes.remove(prefix);
        let lengths = &mut self.lengths[family(prefix)];
        if let Some(count) = lengths.get_mut(&prefix.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.prefix_len());
            }
        }
        true
    }

    /// One that shares addresses with `prefix`.
    pub(super) fn overlapping(&self, prefix: &IpPrefix) -> Option<IpPrefix> {
        let lengths = self.lengths[family(prefix)].range(..=prefix.prefix_len());
        let mut around = lengths.filter_map(|(len, _)| IpPrefix::new(prefix.addr(), *len));
        around
            .find(|around| self.prefixes.contains_key(around))
            .or_else(|| {
                // Ordered by address, those inside follow.
                let (next, _) = self.prefixes.range(*prefix..).next()?;
                prefix.contains(next.addr()).then_some(*next)
            })
    }
}

fn family(prefix: &IpPrefix) -> usize {
    usize::from(!prefix.addr().is_ipv4())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpPrefix> {
        let v4 = (0_u8..4, 0_u8..8, 0_u8..=32)
            .prop_map(|(a, d, len)| IpPrefix::new([10, a, 0, d].into(), len));
        let v6 = (0_u16..4, 0_u8..=128)
            .prop_map(|(a, len)| IpPrefix::new([0xfd00, a, 0, 0, 0, 0, 0, a].into(), len));
        prop_oneof![v4, v6].prop_map(|p| p.expect("the length fits"))
    }

    proptest! {
        #[test]
        fn overlaps_are_those_of_a_plain_list(
            inserted in prop::collection::vec(prefix(), 0..12),
            removed in 0_usize..12,
            asked in prefix(),
        ) {
            let mut set = PrefixSet::default();
            for prefix in &inserted {
                set.insert(*prefix);
            }
            let (gone, left) = inserted.split_at(removed.min(inserted.len()));
            for prefix in gone {
                set.remove(prefix);
            }
            let overlap = |p: &IpPrefix| p.contains(asked.addr()) || asked.contains(p.addr());
            match set.overlapping(&asked) {
                Some(found) => prop_assert!(left.contains(&found) && overlap(&found)),
                None => prop_assert!(!left.iter().any(overlap)),
            }
            prop_assert_eq!(set.is_empty(), left.is_empty());
        }
    }
}
