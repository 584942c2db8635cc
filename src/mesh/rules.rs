//! What a peer may say of addresses: none that are the own cluster's, none that another peer has,
//! and only what the operator allows it.
//!
//! An address is another peer's if that one has a record in force of exactly this address or range,
//! or a node with it. Of two overlapping ranges, the kernel follows the narrower one; whoever wants
//! to keep peers apart by ranges lists them in the peers' files.
use super::{
    Mesh, Terms,
    decode::Rejection,
    member::{IpKey, Member, Node, Record},
    waiting::Blocker,
};
use crate::types::{ClusterId, IpPrefix};

/// Why a record may not be in force, and what that waits for.
pub(super) type Blocked = (Rejection, Blocker);

impl Terms {
    /// Whether a peer may speak of this range at all.
    pub(super) fn allow(&self, prefix: &IpPrefix) -> Result<(), Rejection> {
        let covers = |wide: &IpPrefix| {
            wide.prefix_len() <= prefix.prefix_len() && wide.contains(prefix.addr())
        };
        if self.allowed_cidrs.is_empty() {
            let least = if prefix.addr().is_ipv4() { 8 } else { 16 };
            if prefix.prefix_len() < least {
                return Err(Rejection::PrefixTooWide);
            }
        } else if !self.allowed_cidrs.iter().any(covers) {
            return Err(Rejection::AddressNotAllowed);
        }
        Ok(())
    }
}

impl Record {
    /// All ranges that it speaks of, and whether it claims them for itself.
    pub(super) fn prefixes(&self) -> Vec<(IpPrefix, bool)> {
        match self {
            Self::Ip { key, .. } => key.prefixes(),
            Self::Node(node) => node.prefixes(),
            Self::Identity { .. } | Self::Named(_) => Vec::new(),
        }
    }
}

impl IpKey {
    pub(super) fn prefixes(&self) -> Vec<(IpPrefix, bool)> {
        vec![(self.prefix, true)]
    }
}

impl Node {
    /// Pod CIDRs are routed to the node, but the addresses in them are claimed one by one.
    pub(super) fn prefixes(&self) -> Vec<(IpPrefix, bool)> {
        let addresses = self.addresses.iter().map(|ip| (IpPrefix::host(*ip), true));
        let cidrs = self.cidrs.iter().map(|cidr| (*cidr, false));
        addresses.chain(cidrs).collect()
    }
}

impl Mesh {
    /// Whether this peer may have this record in force now.
    pub(super) fn permit(&self, member: &Member, record: &Record) -> Result<(), Blocked> {
        let prefixes = record.prefixes();
        prefixes.iter().try_for_each(|(prefix, claimed)| {
            let terms = |rejection| (rejection, Blocker::Terms(member.id));
            member.terms.allow(prefix).map_err(terms)?;
            if let Some(ours) = self.territory.overlapping(prefix) {
                return Err((Rejection::AddressOfOwnCluster, Blocker::Prefix(ours)));
            }
            match self.claims.holder(prefix) {
                Some(holder) if *claimed && holder != member.id => {
                    Err((self.held_by(holder), Blocker::Prefix(*prefix)))
                }
                _ => Ok(()),
            }
        })
    }

    fn held_by(&self, holder: ClusterId) -> Rejection {
        if holder == self.settings.cluster_id {
            Rejection::AddressOfOwnCluster
        } else {
            Rejection::AddressOfOtherPeer(holder)
        }
    }
}
