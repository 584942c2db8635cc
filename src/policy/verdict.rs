//! What the entries of the policy map say about a packet. The datapath program asks the same levels.
use super::{PolicyEntry, PolicyKey, Votes};
use crate::types::IdentityId;

/// What all levels say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Verdict {
    /// The votes of every entry that matches.
    pub votes: Votes,
    /// The rule that decides: of the most specific entry that denies, else of the most specific that
    /// allows; those of enforced policies first. 0 if no entry matches.
    pub rule: u32,
}

impl Verdict {
    /// True if the packet passes an endpoint with or without default deny.
    #[must_use]
    pub const fn passes(self, default_deny: bool) -> bool {
        !self.votes.contains(Votes::DENY) && (self.votes.contains(Votes::ALLOW) || !default_deny)
    }

    /// True if it would pass if the policies that are only audited counted too, `default_deny`
    /// included.
    #[must_use]
    pub const fn passes_audited(self, default_deny: bool) -> bool {
        let deny = self.votes.contains(Votes::DENY) || self.votes.contains(Votes::AUDIT_DENY);
        let allow = self.votes.contains(Votes::ALLOW) || self.votes.contains(Votes::AUDIT_ALLOW);
        !deny && (allow || !default_deny)
    }
}

/// Judges one packet: `key` has the packet's identity, protocol and port (`port_bits` is not read),
/// `lookup` reads entries.
///
/// Levels, the most specific first: the identity with port and protocol, with ever larger blocks of
/// ports, with the protocol alone, with nothing else; then the same for any identity.
pub fn verdict(lookup: impl Fn(&PolicyKey) -> Option<PolicyEntry>, key: &PolicyKey) -> Verdict {
    let mut verdict = Verdict::default();
    let mut rank = u8::MAX;
    for identity in [key.identity, IdentityId::UNKNOWN] {
        for level in levels(identity, key) {
            let Some(entry) = lookup(&level) else {
                continue;
            };
            verdict.votes = verdict.votes.union(entry.votes);
            if weight(entry.votes) < rank {
                rank = weight(entry.votes);
                verdict.rule = entry.rule;
            }
        }
    }
    verdict
}

/// The keys that match a packet, the most specific first.
fn levels(identity: IdentityId, key: &PolicyKey) -> impl Iterator<Item = PolicyKey> {
    let of = *key;
    let blocks = (0..=16_u8).rev().map(move |port_bits| {
        let mask = u16::MAX.checked_shl(16 - u32::from(port_bits)).unwrap_or(0);
        PolicyKey {
            identity,
            port: of.port & mask,
            port_bits,
            ..of
        }
    });
    let all = PolicyKey {
        identity,
        protocol: 0,
        port: 0,
        port_bits: 0,
        ..of
    };
    blocks.chain([all])
}

/// Whose rule is named: the lowest wins.
const fn weight(votes: Votes) -> u8 {
    if votes.contains(Votes::DENY) {
        0
    } else if votes.contains(Votes::ALLOW) {
        1
    } else if votes.contains(Votes::AUDIT_DENY) {
        2
    } else {
        3
    }
}
