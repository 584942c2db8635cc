//! Who an address belongs to when several members or records claim it.
//! Invariant: the first claim of a list is the effective one; the own cluster's claims come first,
//! else first come, first kept. A list is never empty.
use std::collections::HashMap;

use super::IpTarget;
use crate::types::{ClusterId, IpPrefix};

/// What made a claim; one member may claim an address through a node and through an ip record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Node,
    Ip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    target: IpTarget,
    origin: Origin,
}

/// All claims of all members.
#[derive(Debug)]
pub(super) struct Claims {
    own: ClusterId,
    /// Nearly every address has one claim, so the common case holds no allocation of its own.
    first: HashMap<IpPrefix, Claim>,
    /// Claims behind the first, in order.
    waiting: HashMap<IpPrefix, Vec<Claim>>,
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
    pub(super) fn new(own: ClusterId) -> Self {
        Self {
            own,
            first: HashMap::new(),
            waiting: HashMap::new(),
        }
    }

    /// Another cluster than `cluster` that holds `prefix`, if any.
    pub(super) fn held_by_other(&self, prefix: &IpPrefix, cluster: ClusterId) -> Option<ClusterId> {
        self.first
            .get(prefix)
            .map(|c| c.target.cluster)
            .filter(|c| *c != cluster)
    }

    /// Adds or replaces the claim that `target.cluster` makes by `origin`.
    pub(super) fn claim(&mut self, prefix: IpPrefix, origin: Origin, target: IpTarget) -> Change {
        let claim = Claim { target, origin };
        let Some(first) = self.first.get_mut(&prefix) else {
            self.first.insert(prefix, claim);
            return Change::Target(Some(target));
        };
        let same = |c: &Claim| c.origin == origin && c.target.cluster == target.cluster;
        if same(first) {
            let changed = first.target != target;
            *first = claim;
            return if changed {
                Change::Target(Some(target))
            } else {
                Change::None
            };
        }
        let waiting = self.waiting.entry(prefix).or_default();
        if target.cluster == self.own && first.target.cluster != self.own {
            let displaced = std::mem::replace(first, claim);
            waiting.retain(|c| !same(c));
            waiting.insert(0, displaced);
            return Change::Target(Some(target));
        }
        match waiting.iter_mut().find(|c| same(c)) {
            Some(found) => *found = claim,
            None => waiting.push(claim),
        }
        Change::None
    }

    /// Takes back the claim of `cluster` by `origin`; unknown claims change nothing.
    pub(super) fn withdraw(
        &mut self,
        prefix: IpPrefix,
        origin: Origin,
        cluster: ClusterId,
    ) -> Change {
        let same = |c: &Claim| c.origin == origin && c.target.cluster == cluster;
        let waiting = self.waiting.get_mut(&prefix);
        let Some(first) = self.first.get_mut(&prefix) else {
            return Change::None;
        };
        let change = if same(first) {
            let before = first.target;
            match waiting.and_then(|w| (!w.is_empty()).then(|| w.remove(0))) {
                Some(next) => {
                    *first = next;
                    if next.target == before {
                        Change::None
                    } else {
                        Change::Target(Some(next.target))
                    }
                }
                None => {
                    self.first.remove(&prefix);
                    Change::Target(None)
                }
            }
        } else {
            if let Some(waiting) = waiting {
                waiting.retain(|c| !same(c));
            }
            Change::None
        };
        if self.waiting.get(&prefix).is_some_and(Vec::is_empty) {
            self.waiting.remove(&prefix);
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Claims, Origin};
    use crate::{
        mesh::IpTarget,
        types::{ClusterId, IdentityId, MaxClusters},
    };

    fn target(cluster: u32, local: u32) -> IpTarget {
        let cluster = ClusterId::new(cluster, MaxClusters::C255).unwrap();
        IpTarget {
            identity: IdentityId((cluster.get() << 16) + local),
            cluster,
        }
    }

    #[test]
    fn first_owner_keeps_the_address_and_the_waiting_claimant_takes_over() {
        let (west, north) = (target(2, 1), target(3, 1));
        let mut claims = Claims::new(target(1, 0).cluster);
        let ip = "10.0.0.1".parse().unwrap();
        assert_eq!(
            claims.claim(ip, Origin::Ip, west),
            Change::Target(Some(west))
        );
        assert_eq!(claims.claim(ip, Origin::Ip, north), Change::None);
        assert_eq!(claims.held_by_other(&ip, north.cluster), Some(west.cluster));
        assert_eq!(
            claims.withdraw(ip, Origin::Ip, west.cluster),
            Change::Target(Some(north))
        );
        assert_eq!(claims.withdraw(ip, Origin::Ip, west.cluster), Change::None);
        assert_eq!(
            claims.withdraw(ip, Origin::Ip, north.cluster),
            Change::Target(None)
        );
    }

    #[test]
    fn the_own_cluster_wins_over_an_earlier_peer() {
        let (own, west) = (target(1, 7), target(2, 1));
        let mut claims = Claims::new(own.cluster);
        let ip = "10.0.0.1".parse().unwrap();
        claims.claim(ip, Origin::Ip, west);
        assert_eq!(claims.claim(ip, Origin::Ip, own), Change::Target(Some(own)));
        assert_eq!(claims.claim(ip, Origin::Ip, target(2, 9)), Change::None);
        assert_eq!(
            claims.withdraw(ip, Origin::Ip, own.cluster),
            Change::Target(Some(target(2, 9)))
        );
    }
}
