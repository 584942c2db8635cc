//! The ports of a grant as keys of the policy map: blocks, and names to be resolved.
use std::collections::BTreeSet;

use crate::{policy::Port, types::NamedPort};

/// The protocols that have ports with names, by what an endpoint calls them.
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

/// Ports that one key can stand for: those that begin with the first `bits` bits of `port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    /// 0 for all of all protocols.
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) bits: u8,
}

impl Block {
    const ALL: Self = Self::all_of(0);

    const fn all_of(protocol: u8) -> Self {
        Self {
            protocol,
            port: 0,
            bits: 0,
        }
    }

    /// A single port, or ICMP type.
    pub(super) const fn one(protocol: u8, port: u16) -> Self {
        Self {
            protocol,
            port,
            bits: 16,
        }
    }

    /// True if a packet of this protocol to this port is meant.
    pub(super) fn contains(&self, protocol: u8, port: u16) -> bool {
        let mask = u16::MAX.checked_shl(16 - u32::from(self.bits)).unwrap_or(0);
        self.protocol == 0 || (self.protocol == protocol && self.port == port & mask)
    }
}

/// A port by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    protocol: Option<u8>,
    name: String,
}

impl Name {
    /// True if a port that some workload names so is meant.
    pub(super) fn is(&self, port: &Resolved) -> bool {
        self.name == port.name
            && self
                .protocol
                .is_none_or(|protocol| protocol == port.protocol)
    }
}

/// A port that a workload gives a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resolved {
    /// Lower case, as in rules.
    name: String,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// The named ports of a workload that mean something, sorted, each once.
pub(super) fn resolved(ports: &[NamedPort]) -> BTreeSet<Resolved> {
    let resolve = |named: &NamedPort| {
        let spelled = |(name, _): &&(&str, u8)| named.protocol.eq_ignore_ascii_case(name);
        let (_, protocol) = *PROTOCOLS.iter().find(spelled)?;
        (named.port != 0).then(|| Resolved {
            name: named.name.to_lowercase(),
            protocol,
            port: named.port,
        })
    };
    ports.iter().filter_map(resolve).collect()
}

/// The ports of a grant; blocks and names are sorted, each once.
#[derive(Debug, Default)]
pub(super) struct Ports {
    pub(super) blocks: Vec<Block>,
    pub(super) names: Vec<Name>,
}

impl Ports {
    /// None stand for all.
    pub(super) fn new(ports: &[Port]) -> Self {
        let (mut all, mut names) = (BTreeSet::new(), BTreeSet::new());
        if ports.is_empty() {
            all.insert(Block::ALL);
        }
        for port in ports {
            match port {
                Port::All { protocol } => drop(all.insert(Block::all_of(*protocol))),
                Port::Range {
                    protocol,
                    first,
                    last,
                } => all.extend(blocks(*protocol, *first, *last)),
                Port::Icmp { protocol, kind } => {
                    all.insert(Block::one(*protocol, u16::from(*kind)));
                }
                Port::Named { protocol, name } => drop(names.insert(Name {
                    protocol: *protocol,
                    name: name.to_lowercase(),
                })),
            }
        }
        Self {
            blocks: all.into_iter().collect(),
            names: names.into_iter().collect(),
        }
    }
}

/// The fewest aligned blocks that make up `first..=last`, in order; none if it is empty.
fn blocks(protocol: u8, first: u16, last: u16) -> impl Iterator<Item = Block> {
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    std::iter::from_fn(move || {
        let left = end.checked_sub(next).filter(|left| *left > 0)?;
        // As large as its start is aligned to, and as what is left.
        let shift = next.trailing_zeros().min(left.ilog2()).min(16);
        let block = Block {
            protocol,
            port: u16::try_from(next).ok()?,
            bits: u8::try_from(16 - shift).ok()?,
        };
        next += 1 << shift;
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_unprivileged_ports_are_six_blocks() {
        let all: Vec<_> = blocks(6, 1024, 65_535).map(|b| (b.port, b.bits)).collect();
        let expected = [
            (1024, 6),
            (2048, 5),
            (4096, 4),
            (8192, 3),
            (16_384, 2),
            (32_768, 1),
        ];
        assert_eq!(all, expected);
        assert_eq!(blocks(6, 0, 65_535).count(), 1);
        assert_eq!(blocks(6, 1, 65_535).count(), 16);
        assert_eq!(blocks(6, 80, 79).count(), 0);
    }

    proptest! {
        #[test]
        fn blocks_hold_exactly_the_range(first in 1..=u16::MAX, len in 0..2_000_u16, port: u16) {
            let last = first.saturating_add(len);
            let all: Vec<Block> = blocks(6, first, last).collect();
            for port in [port, first - 1, first, last, last.saturating_add(1)] {
                let inside = (first..=last).contains(&port);
                let holding = all.iter().filter(|block| block.contains(6, port)).count();
                prop_assert_eq!(holding, usize::from(inside), "{} in {:?}", port, &all);
            }
            prop_assert!(all.len() <= 30);
        }
    }

    #[test]
    fn names_are_compared_in_lower_case_and_by_protocol() {
        let port = |name: &str, port, protocol: &str| NamedPort {
            name: name.into(),
            port,
            protocol: protocol.into(),
        };
        let all = resolved(&[
            port("Web", 80, "TCP"),
            port("web", 80, "tcp"),
            port("web", 81, "UDP"),
            port("odd", 1, "GRE"),
            port("none", 0, "TCP"),
        ]);
        assert_eq!(all.len(), 2, "{all:?}");
        let numbers = |protocol| {
            let name = Port::Named {
                protocol,
                name: "web".into(),
            };
            let ports = Ports::new(&[name]);
            assert!(ports.blocks.is_empty());
            let meant = all.iter().filter(|port| ports.names[0].is(port));
            meant.map(|port| port.port).collect::<Vec<_>>()
        };
        assert_eq!(numbers(None), [80, 81]);
        assert_eq!(numbers(Some(17)), [81]);
        assert_eq!(numbers(Some(132)), [0; 0]);
    }
}
