//! Address prefixes that rules name, and the identities that stand for them on this node.
//!
//! Always true: a prefix has one number and a number one prefix, as long as a rule names it. The
//! widest prefix of each family has none of its own: it is the world of that family.
//! Absent on purpose: who is matched by a prefix; the engine's selectors say that.
use std::{
    collections::{HashMap, hash_map},
    net::IpAddr,
};

use crate::types::{IdentityId, IpPrefix, Label, Labels};

/// The bits above it say where an identity is meant: 0 everywhere, 1 on this node.
const SCOPE_SHIFT: u32 = 24;
/// Numbers of this node's own identities, without the scope.
const NUMBER_MAX: u32 = (1 << SCOPE_SHIFT) - 1;

/// The prefixes in use.
#[derive(Debug, Default)]
pub(super) struct Cidrs {
    numbers: HashMap<IpPrefix, Number>,
    prefixes: HashMap<IdentityId, IpPrefix>,
    /// Given out last, without the scope. Numbers go round, so that one that was given back means
    /// nothing else for as long as possible.
    last: u32,
}

#[derive(Debug)]
struct Number {
    identity: IdentityId,
    /// How often rules name it; 0 only for what the kernel held at the start.
    users: u32,
}

impl Cidrs {
    /// What the kernel holds, so that a number means the same before and after a restart; pairs that
    /// cannot be ours are left out.
    pub(super) fn new(held: impl IntoIterator<Item = (IpPrefix, IdentityId)>) -> Self {
        let mut cidrs = Self::default();
        for (prefix, identity) in held {
            let known = cidrs.prefixes.contains_key(&identity);
            let ours = identity.0 >> SCOPE_SHIFT == 1 && identity.0 & NUMBER_MAX != 0;
            if known || !ours || world(&prefix).is_some() {
                continue;
            }
            if let hash_map::Entry::Vacant(vacant) = cidrs.numbers.entry(prefix) {
                vacant.insert(Number { identity, users: 0 });
                cidrs.prefixes.insert(identity, prefix);
                cidrs.last = cidrs.last.max(identity.0 & NUMBER_MAX);
            }
        }
        cidrs
    }

    /// How many more prefixes there are numbers for.
    pub(super) fn room(&self) -> usize {
        NUMBER_MAX as usize - self.numbers.len()
    }

    /// A rule names the prefix, for which there is room; gives its identity if it is a new one.
    pub(super) fn acquire(&mut self, prefix: IpPrefix) -> Option<IdentityId> {
        if let Some(number) = self.numbers.get_mut(&prefix) {
            number.users += 1;
            return None;
        }
        let identity = loop {
            self.last = self.last % NUMBER_MAX + 1;
            let identity = IdentityId((1 << SCOPE_SHIFT) | self.last);
            if !self.prefixes.contains_key(&identity) {
                break identity;
            }
        };
        self.numbers.insert(prefix, Number { identity, users: 1 });
        self.prefixes.insert(identity, prefix);
        Some(identity)
    }

    /// A rule does not name it any more; gives its identity if none does.
    pub(super) fn release(&mut self, prefix: &IpPrefix) -> Option<IdentityId> {
        let number = self.numbers.get_mut(prefix)?;
        number.users = number.users.saturating_sub(1);
        let (identity, unused) = (number.identity, number.users == 0);
        if !unused {
            return None;
        }
        self.numbers.remove(prefix);
        self.prefixes.remove(&identity);
        Some(identity)
    }

    /// Those that no rule names; they are to be released.
    pub(super) fn unnamed(&self) -> Vec<IpPrefix> {
        let unnamed = self.numbers.iter().filter(|(_, number)| number.users == 0);
        let mut unnamed: Vec<IpPrefix> = unnamed.map(|(prefix, _)| *prefix).collect();
        unnamed.sort_unstable();
        unnamed
    }

    /// All with their identities, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpPrefix, IdentityId)> {
        let numbers = self.numbers.iter();
        numbers.map(|(prefix, number)| (*prefix, number.identity))
    }

    /// The identity of one.
    pub(super) fn identity(&self, prefix: &IpPrefix) -> Option<IdentityId> {
        self.numbers.get(prefix).map(|number| number.identity)
    }

    /// What an address is that no cluster of the mesh knows: the longest prefix around it, else the
    /// world of its family.
    pub(super) fn find(&self, address: IpAddr) -> IdentityId {
        let world = if address.is_ipv4() {
            IdentityId::WORLD_IPV4
        } else {
            IdentityId::WORLD_IPV6
        };
        let mut around = around(IpPrefix::host(address));
        let found = around.find_map(|prefix| self.identity(&prefix));
        found.unwrap_or(world)
    }
}

/// The identity of the widest prefix of a family.
pub(super) fn world(prefix: &IpPrefix) -> Option<IdentityId> {
    match (prefix.prefix_len(), prefix.addr()) {
        (0, IpAddr::V4(_)) => Some(IdentityId::WORLD_IPV4),
        (0, IpAddr::V6(_)) => Some(IdentityId::WORLD_IPV6),
        _ => None,
    }
}

/// True if every address of `inner` lies in `outer`.
pub(super) fn covers(outer: &IpPrefix, inner: &IpPrefix) -> bool {
    outer.prefix_len() <= inner.prefix_len() && outer.contains(inner.addr())
}

/// A prefix and all that cover it, the longest first.
pub(super) fn around(prefix: IpPrefix) -> impl Iterator<Item = IpPrefix> {
    let lengths = (0..=prefix.prefix_len()).rev();
    lengths.filter_map(move |len| IpPrefix::new(prefix.addr(), len))
}

/// The labels of a prefix's identity: it is a part of the world.
pub(super) fn labels(prefix: &IpPrefix) -> Labels {
    let label = |source: &'static str, key: String| Label {
        source: source.into(),
        key,
        value: String::new(),
    };
    let family = if prefix.addr().is_ipv4() { 4 } else { 6 };
    let text = format!("{}/{}", prefix.addr(), prefix.prefix_len());
    let labels = [
        label("reserved", "world".to_owned()),
        label("reserved", format!("world-ipv{family}")),
        label("cidr", text),
    ];
    // No part of it can hold the one character that labels may not have.
    Labels::new(labels).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> IpPrefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_number_lasts_from_the_first_to_the_last_use_and_is_not_reused_soon() {
        let mut cidrs = Cidrs::default();
        let first = cidrs.acquire(prefix("10.0.0.0/8")).unwrap();
        assert_eq!(first, IdentityId((1 << 24) + 1));
        assert_eq!(cidrs.acquire(prefix("10.0.0.0/8")), None);
        assert_eq!(cidrs.release(&prefix("10.0.0.0/8")), None);
        assert_eq!(cidrs.release(&prefix("10.0.0.0/8")), Some(first));
        assert_eq!(cidrs.release(&prefix("10.0.0.0/8")), None);
        let second = cidrs.acquire(prefix("10.0.0.0/8")).unwrap();
        assert_ne!(second, first);
    }

    #[test]
    fn what_the_kernel_held_keeps_its_number() {
        let held = |text, id| (prefix(text), IdentityId(id));
        let mut cidrs = Cidrs::new([
            held("10.0.0.0/8", (1 << 24) + 7),
            held("10.0.0.0/9", (1 << 24) + 7),
            held("fd00::/8", 7),
            held("::/0", (1 << 24) + 8),
        ]);
        assert_eq!(cidrs.iter().count(), 1, "{cidrs:?}");
        assert_eq!(cidrs.unnamed(), [prefix("10.0.0.0/8")]);
        assert_eq!(cidrs.acquire(prefix("10.0.0.0/8")), None);
        assert_eq!(cidrs.unnamed(), []);
        let next = cidrs.acquire(prefix("fd00::/8"));
        assert_eq!(next, Some(IdentityId((1 << 24) + 8)));
    }

    #[test]
    fn numbers_go_round_and_pass_over_those_in_use() {
        let last = IdentityId((2 << 24) - 1);
        let mut cidrs = Cidrs::new([(prefix("10.0.0.0/8"), last)]);
        let next = cidrs.acquire(prefix("10.1.0.0/16"));
        assert_eq!(next, Some(IdentityId((1 << 24) + 1)));
        cidrs.last = NUMBER_MAX;
        let next = cidrs.acquire(prefix("10.2.0.0/16"));
        assert_eq!(next, Some(IdentityId((1 << 24) + 2)));
    }

    #[test]
    fn the_longest_prefix_around_an_address_is_its_own() {
        let mut cidrs = Cidrs::default();
        let wide = cidrs.acquire(prefix("10.0.0.0/8")).unwrap();
        let narrow = cidrs.acquire(prefix("10.1.0.0/16")).unwrap();
        cidrs.acquire(prefix("::/3"));
        for (address, expected) in [
            ("10.1.2.3", narrow),
            ("10.2.2.3", wide),
            ("11.1.2.3", IdentityId::WORLD_IPV4),
            ("fd00::1", IdentityId::WORLD_IPV6),
        ] {
            assert_eq!(cidrs.find(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn covering_is_within_a_family() {
        assert!(covers(&prefix("10.0.0.0/8"), &prefix("10.1.0.0/16")));
        assert!(covers(&prefix("10.0.0.0/8"), &prefix("10.0.0.0/8")));
        assert!(!covers(&prefix("10.1.0.0/16"), &prefix("10.0.0.0/8")));
        assert!(!covers(&prefix("::/0"), &prefix("10.0.0.0/8")));
    }
}
