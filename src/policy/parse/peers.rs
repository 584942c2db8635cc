//! The L3 side of an entry: selectors, entities and CIDRs.
use std::net::IpAddr;

use super::{
    ParseError, Refusal,
    import::{Import, Unsupported},
    selector::{self, Scope},
};
use crate::{
    policy::{
        Direction,
        rule::{Peer, Peers},
        selector::{Requirement, Selector},
        yaml::{At, Fields},
    },
    types::IpPrefix,
};

/// A member that says who the peers are, with its reader. An entry has one at most.
type Member = (
    &'static str,
    fn(&At<'_>, Scope<'_>, &mut Import<'_>) -> Result<Peers, ParseError>,
);

const INGRESS: [Member; 4] = [
    ("fromEndpoints", endpoints),
    ("fromEntities", entities),
    ("fromCIDR", cidrs),
    ("fromCIDRSet", cidr_set),
];
const EGRESS: [Member; 4] = [
    ("toEndpoints", endpoints),
    ("toEntities", entities),
    ("toCIDR", cidrs),
    ("toCIDRSet", cidr_set),
];

const GROUP: &str = "CIDR groups are not resolved";
const GROUP_INSTEAD: &str = "write the group's prefixes";
const CIDR_UNSUPPORTED: &[Unsupported] = &[
    Unsupported {
        name: "cidrGroupRef",
        reason: GROUP,
        instead: GROUP_INSTEAD,
    },
    Unsupported {
        name: "cidrGroupSelector",
        reason: GROUP,
        instead: GROUP_INSTEAD,
    },
];

const fn members(direction: Direction) -> &'static [Member; 4] {
    match direction {
        Direction::Ingress => &INGRESS,
        Direction::Egress => &EGRESS,
    }
}

/// The names of the members that say who the peers are.
pub(super) fn names(direction: Direction) -> impl Iterator<Item = &'static str> {
    members(direction).iter().map(|(name, _)| *name)
}

/// An entry's peers; [`Peers::Any`] if it says nothing about them.
pub(super) fn of_entry(
    fields: &Fields<'_>,
    direction: Direction,
    scope: Scope<'_>,
    import: &mut Import<'_>,
) -> Result<Peers, ParseError> {
    let given = |(name, read): &Member| Some((*name, *read, fields.get(name)?));
    let mut given = members(direction).iter().filter_map(given);
    let Some((name, read, at)) = given.next() else {
        return Ok(Peers::Any);
    };
    if let Some((_, _, second)) = given.next() {
        return Err(second.refuse(Refusal::Conflict { other: name }));
    }
    read(at, scope, import)
}

fn endpoints(at: &At<'_>, scope: Scope<'_>, _: &mut Import<'_>) -> Result<Peers, ParseError> {
    let peer = |at: &At<'_>| Ok(Peer::Labels(scope.peer(selector::cilium(at)?)));
    at.list()?
        .iter()
        .map(peer)
        .collect::<Result<_, _>>()
        .map(Peers::Of)
}

fn entities(at: &At<'_>, _: Scope<'_>, _: &mut Import<'_>) -> Result<Peers, ParseError> {
    let mut peers = Vec::new();
    let mut any = false;
    for at in at.list()? {
        match entity(&at)? {
            Some(of) => peers.extend(of),
            None => any = true,
        }
    }
    Ok(if any { Peers::Any } else { Peers::Of(peers) })
}

/// The peers of an entity; `None` for everybody.
fn entity(at: &At<'_>) -> Result<Option<Vec<Peer>>, ParseError> {
    let text = at.text()?;
    let reserved: &[&str] = match text {
        "all" => return Ok(None),
        "none" => &[],
        "world" => &["world", "world-ipv4", "world-ipv6"],
        "world-ipv4" => &["world-ipv4"],
        "world-ipv6" => &["world-ipv6"],
        "host" => &["host"],
        "remote-node" => &["remote-node"],
        "kube-apiserver" => &["kube-apiserver"],
        "init" => &["init"],
        "ingress" => &["ingress"],
        "unmanaged" => &["unmanaged"],
        "health" => &["health"],
        "cluster" => &[
            "host",
            "remote-node",
            "init",
            "ingress",
            "health",
            "unmanaged",
            "kube-apiserver",
        ],
        other => return Err(at.refuse(Refusal::value(other, "an entity"))),
    };
    let labels = |name: &&str| Peer::Labels(Selector::new([Requirement::reserved(name)]));
    let mut peers: Vec<Peer> = reserved.iter().map(labels).collect();
    if text == "cluster" {
        peers.push(Peer::LocalCluster);
    }
    Ok(Some(peers))
}

fn cidrs(at: &At<'_>, _: Scope<'_>, _: &mut Import<'_>) -> Result<Peers, ParseError> {
    let mut peers = Vec::new();
    for at in at.list()? {
        let cidr = prefix(&at, "an address or a CIDR prefix")?;
        peers.push(Peer::Cidr {
            cidr,
            except: Vec::new(),
        });
    }
    Ok(Peers::Of(peers))
}

/// Everybody, if an element names a group, as nobody knows whom that means.
fn cidr_set(at: &At<'_>, _: Scope<'_>, import: &mut Import<'_>) -> Result<Peers, ParseError> {
    let read = |import: &mut Import<'_>| {
        let mut peers = Vec::new();
        for at in at.list()? {
            let fields = import.fields(&at, &["cidr", "except"], CIDR_UNSUPPORTED)?;
            let group = CIDR_UNSUPPORTED.iter().any(|u| fields.has(u.name));
            if fields.has("cidr") || !group {
                peers.push(cidr_rule(&fields)?);
            }
        }
        Ok(Peers::Of(peers))
    };
    let (peers, understood) = import.understood(read)?;
    Ok(if understood { peers } else { Peers::Any })
}

/// `cidr` with `except`, of a CIDRSet or of a NetworkPolicy's `ipBlock`.
pub(super) fn cidr_rule(fields: &Fields<'_>) -> Result<Peer, ParseError> {
    let cidr = block(fields.require("cidr")?)?;
    let mut except = Vec::new();
    if let Some(section) = fields.get("except") {
        for at in section.list()? {
            let prefix = block(&at)?;
            if !cidr.contains(prefix.addr()) || prefix.prefix_len() < cidr.prefix_len() {
                let expected = "inside the prefix that it is an exception to";
                return Err(at.refuse(Refusal::value(at.text()?, expected)));
            }
            except.push(prefix);
        }
    }
    except.sort_unstable();
    except.dedup();
    Ok(Peer::Cidr { cidr, except })
}

fn block(at: &At<'_>) -> Result<IpPrefix, ParseError> {
    let expected = "a CIDR prefix (address/length)";
    let text = at.text()?;
    if !text.contains('/') {
        return Err(at.refuse(Refusal::value(text, expected)));
    }
    prefix(at, expected)
}

/// Host bits don't count.
fn prefix(at: &At<'_>, expected: &'static str) -> Result<IpPrefix, ParseError> {
    let text = at.text()?;
    let refused = || at.refuse(Refusal::value(text, expected));
    let length = text.split_once('/').map_or("0", |(_, length)| length);
    if !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refused());
    }
    let prefix: IpPrefix = text.parse().map_err(|_error| refused())?;
    match prefix.addr() {
        // It would stand where the prefix of IPv4 does.
        IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => {
            let expected = "a prefix of IPv4 or IPv6 (write ::ffff:192.0.2.0/120 as 192.0.2.0/24)";
            Err(at.refuse(Refusal::value(text, expected)))
        }
        _ => Ok(prefix),
    }
}
