//! One element of a CiliumNetworkPolicy's four sections.
use super::{
    ParseError,
    import::{Import, Unsupported},
    peers, ports,
    selector::Scope,
};
use crate::policy::{
    Direction,
    rule::{Grant, Peers},
    yaml::At,
};

const NODES: &str = "nodes are not selected by labels";
const GROUPS: &str = "groups of a cloud provider are not resolved";
const REQUIRES: &str = "requirements on other entries are not enforced";
const AUTHENTICATION: Unsupported = Unsupported {
    name: "authentication",
    reason: "mutual authentication is not done",
    instead: "remove it if the identity in the packet is proof enough",
};

/// What is not enforced of who the peers are, besides `requires`.
const INGRESS_PEERS: &[Unsupported] = &[
    Unsupported {
        name: "fromNodes",
        reason: NODES,
        instead: "write fromEntities: [remote-node]",
    },
    Unsupported {
        name: "fromGroups",
        reason: GROUPS,
        instead: "write their prefixes as fromCIDR",
    },
    Unsupported {
        name: "fromRequires",
        reason: REQUIRES,
        instead: "write the requirement into each selector of fromEndpoints",
    },
];
const EGRESS_PEERS: &[Unsupported] = &[
    Unsupported {
        name: "toNodes",
        reason: NODES,
        instead: "write toEntities: [remote-node]",
    },
    Unsupported {
        name: "toGroups",
        reason: GROUPS,
        instead: "write their prefixes as toCIDR",
    },
    Unsupported {
        name: "toRequires",
        reason: REQUIRES,
        instead: "write the requirement into each selector of toEndpoints",
    },
    Unsupported {
        name: "toServices",
        reason: "services are not resolved to their backends",
        instead: "select the backends with toEndpoints",
    },
    Unsupported {
        name: "toFQDNs",
        reason: "DNS names are not resolved",
        instead: "write the addresses as toCIDR",
    },
];

/// What an entry allows or denies; `None` if it says nothing, or if it allows something under a
/// condition that is not enforced.
///
/// An entry that denies under such a condition denies without it. One that puts a requirement on
/// other entries denies everything, because those may be in any other policy.
pub(super) fn parse(
    at: &At<'_>,
    direction: Direction,
    deny: bool,
    scope: Scope<'_>,
    import: &mut Import<'_>,
) -> Result<Option<Grant>, ParseError> {
    let (unsupported, requires) = match direction {
        Direction::Ingress => (INGRESS_PEERS, "fromRequires"),
        Direction::Egress => (EGRESS_PEERS, "toRequires"),
    };
    let read = |import: &mut Import<'_>| {
        let known: Vec<_> = peers::names(direction)
            .chain(["toPorts", "icmps"])
            .collect();
        let all: Vec<_> = unsupported
            .iter()
            .chain([&AUTHENTICATION])
            .copied()
            .collect();
        let fields = import.fields(at, &known, &all)?;
        let mut peers = peers::of_entry(&fields, direction, scope, import)?;
        if unsupported.iter().any(|u| fields.has(u.name)) {
            peers = Peers::Any;
        }
        let ports = ports::of_entry(&fields, import)?;
        Ok((fields, Grant { deny, peers, ports }))
    };
    let ((fields, grant), understood) = import.understood(read)?;
    Ok(if fields.is_empty() {
        None
    } else if fields.has(requires) {
        Some(Grant {
            deny: true,
            peers: Peers::Any,
            ports: Vec::new(),
        })
    } else if deny || understood {
        Some(grant)
    } else {
        None
    })
}
