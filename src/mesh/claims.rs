//! Which records claim an address, and whose claim is the effective one.
//! Invariant: all claims of a prefix are of one cluster, as records of others wait; `first` is the
//! effective one. Within a cluster nodes come before ip records, else first come, first kept, so
//! that the outcome does not depend on the order of kinds.
use std::{cmp::Reverse, collections::HashMap};

use super::{IpTarget, ip_map::IpMap};
use crate::types::{ClusterId, IdentityId, IpPrefix};

/// Which record of a cluster makes a claim: several may claim one address, as when a node is
/// renamed. Ordered by precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin(u32);

impl Origin {
    /// The ip record whose key is a plain address.
    pub(super) const ADDRESS: Self = Self(0);
    /// The ip record whose key has a length.
    pub(super) const MASKED: Self = Self(1);

    /// The node with this number within its cluster.
    pub(super) const fn node(number: u32) -> Self {
        Self(number.saturating_add(2))
    }

    /// The number of the node, if it is one.
    pub(super) const fn node_number(self) -> Option<u32> {
        self.0.checked_sub(2)
    }
}

/// Kept small: there is one for each address of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) identity: IdentityId,
    pub(super) cluster: ClusterId,
    pub(super) origin: Origin,
}

impl Claim {
    const fn target(&self) -> IpTarget {
        IpTarget {
            identity: self.identity,
            cluster: self.cluster,
        }
    }

    fn is_of(&self, cluster: ClusterId, origin: Origin) -> bool {
        self.cluster == cluster && self.origin == origin
    }
}

/// All claims of all members.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Nearly every address has one claim, so the common case holds no allocation of its own.
    first: IpMap<Claim>,
    /// Claims behind the first, never empty.
    more: HashMap<IpPrefix, Vec<Claim>>,
}

/// What a claim or its withdrawal changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The effective target is as before.
    None,
    /// The effective target is this now.
    Target(Option<IpTarget>),
}

impl Claims {
    /// The effective claim.
    pub(super) fn first(&self, prefix: &IpPrefix) -> Option<&Claim> {
        self.first.get(prefix)
    }

    /// The cluster that has the prefix.
    pub(super) fn holder(&self, prefix: &IpPrefix) -> Option<ClusterId> {
        self.first.get(prefix).map(|claim| claim.cluster)
    }

    /// Adds or replaces the claim of one record. The prefix is free or held by the same cluster.
    pub(super) fn claim(&mut self, prefix: IpPrefix, claim: Claim) -> Change {
        let Some(first) = self.first.get_mut(&prefix) else {
            self.first.insert(prefix, claim);
            return Change::Target(Some(claim.target()));
        };
        debug_assert_eq!(first.cluster, claim.cluster, "others were displaced");
        let before = first.target();
        if first.is_of(claim.cluster, claim.origin) {
            *first = claim;
        } else {
            let mut all = self.take(&prefix);
            all.retain(|c| !c.is_of(claim.cluster, claim.origin));
            let at = all.partition_point(|c| rank(c) <= rank(&claim));
            all.insert(at, claim);
            self.put(prefix, all);
        }
        self.change(&prefix, before)
    }

    /// Takes back the claim of one record; unknown ones change nothing.
    pub(super) fn withdraw(
        &mut self,
        prefix: IpPrefix,
        cluster: ClusterId,
        origin: Origin,
    ) -> Change {
        let Some(first) = self.first.get(&prefix) else {
            return Change::None;
        };
        let before = first.target();
        let mut all = self.take(&prefix);
        all.retain(|c| !c.is_of(cluster, origin));
        self.put(prefix, all);
        self.change(&prefix, before)
    }

    /// Takes all claims of a prefix away, for another cluster to claim it.
    pub(super) fn displace(&mut self, prefix: &IpPrefix) -> Vec<Claim> {
        self.take(prefix)
    }

    fn change(&self, prefix: &IpPrefix, before: IpTarget) -> Change {
        let now = self.first.get(prefix).map(Claim::target);
        if now == Some(before) {
            Change::None
        } else {
            Change::Target(now)
        }
    }

    fn take(&mut self, prefix: &IpPrefix) -> Vec<Claim> {
        let first = self.first.remove(prefix);
        let more = if first.is_some() && !self.more.is_empty() {
            self.more.remove(prefix).unwrap_or_default()
        } else {
            Vec::new()
        };
        first.into_iter().chain(more).collect()
    }

    fn put(&mut self, prefix: IpPrefix, claims: Vec<Claim>) {
        let mut claims = claims.into_iter();
        if let Some(first) = claims.next() {
            self.first.insert(prefix, first);
        }
        let more: Vec<Claim> = claims.collect();
        if !more.is_empty() {
            self.more.insert(prefix, more);
        }
    }
}

fn rank(claim: &Claim) -> Reverse<bool> {
    Reverse(claim.origin.node_number().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MaxClusters;

    fn claim(cluster: u32, identity: u32, origin: Origin) -> Claim {
        Claim {
            identity: IdentityId(identity),
            cluster: ClusterId::new(cluster, MaxClusters::C255).unwrap(),
            origin,
        }
    }

    #[test]
    fn an_address_stays_while_any_record_claims_it() {
        let mut claims = Claims::default();
        let ip = "10.0.0.1".parse().unwrap();
        let (old, new) = (claim(2, 6, Origin::node(1)), claim(2, 6, Origin::node(2)));
        assert_eq!(claims.claim(ip, old), Change::Target(Some(old.target())));
        assert_eq!(claims.claim(ip, new), Change::None);
        assert_eq!(claims.withdraw(ip, old.cluster, old.origin), Change::None);
        assert_eq!(claims.holder(&ip), Some(old.cluster));
        assert_eq!(
            claims.withdraw(ip, new.cluster, new.origin),
            Change::Target(None)
        );
        assert_eq!(claims.withdraw(ip, new.cluster, new.origin), Change::None);
    }

    #[test]
    fn nodes_come_before_ip_records_in_either_order() {
        let ip = "10.0.0.1".parse().unwrap();
        let (node, record) = (claim(1, 1, Origin::node(0)), claim(1, 6, Origin::ADDRESS));
        for order in [[node, record], [record, node]] {
            let mut claims = Claims::default();
            claims.claim(ip, order[0]);
            claims.claim(ip, order[1]);
            assert_eq!(
                claims.withdraw(ip, record.cluster, record.origin),
                Change::None
            );
            assert_eq!(claims.displace(&ip), [node]);
            assert_eq!(claims.holder(&ip), None);
        }
    }
}
