//! Packets at what a policy names, so that its rarer parts are met as well: an entry of a random
//! policy, one of its peers and one of its ports.
use std::net::IpAddr;

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    generate::HOST,
    model::{
        CiliumPolicy, Entry, Icmp, IcmpText, KubernetesPeer, Load, NAMESPACE_KEY, Net,
        NetworkPolicy, Peers, Policy, Port, PortText, Way, World, k8s,
    },
};

/// What to send; `None` leaves it to chance.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Aim {
    pub(crate) endpoint: Option<usize>,
    pub(crate) way: Option<Way>,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) load: Option<Load>,
}

pub(crate) fn aim(rng: &mut StdRng, world: &World) -> Aim {
    let mut policies: Vec<_> = world.files.values().flatten().collect();
    if rng.random_bool(0.5) && policies.iter().any(|policy| is_rare(policy)) {
        policies.retain(|policy| is_rare(policy));
    }
    let mut aim = match policies.choose(rng) {
        Some(Policy::Cilium(policy)) => cilium(rng, world, policy),
        Some(Policy::Kubernetes(policy)) => kubernetes(rng, world, policy),
        None => return Aim::default(),
    };
    // An entry is most interesting where only a part of it holds.
    if rng.random_bool(0.15) {
        aim.remote = None;
    } else if rng.random_bool(0.15) {
        aim.load = None;
    }
    aim
}

/// The entities that few policies name, and the kind that few policies are of.
fn is_rare(policy: &Policy) -> bool {
    let Policy::Cilium(policy) = policy else {
        return true;
    };
    let mut rules = policy.spec.iter().chain(&policy.specs);
    rules.any(|rule| {
        let allows = [&rule.ingress, &rule.egress].into_iter();
        let sections = allows.chain([&rule.ingress_deny, &rule.egress_deny]);
        sections.flatten().flatten().any(names_a_node)
    })
}

fn names_a_node(entry: &Entry) -> bool {
    let Some(Peers::Entities(list)) = &entry.peers else {
        return false;
    };
    let of_nodes = ["host", "remote-node", "kube-apiserver", "ingress", "health"];
    list.iter().any(|entity| of_nodes.contains(entity))
}

fn cilium(rng: &mut StdRng, world: &World, policy: &CiliumPolicy) -> Aim {
    let rules: Vec<_> = policy.spec.iter().chain(&policy.specs).collect();
    let rule = *rules.choose(rng).unwrap();
    let init = rule
        .subject
        .labels
        .iter()
        .any(|(key, _)| key == "reserved:init");
    let endpoint = match &policy.namespace {
        Some(namespace) => in_namespace(rng, world, namespace),
        None if init => world.endpoints.iter().position(|e| e.identity == 5),
        None => None,
    };
    let sections = [
        (Way::Ingress, &rule.ingress),
        (Way::Ingress, &rule.ingress_deny),
        (Way::Egress, &rule.egress),
        (Way::Egress, &rule.egress_deny),
    ];
    let entries = |(way, section): (Way, &'_ Option<Vec<Entry>>)| {
        let entries = section.clone().unwrap_or_default();
        entries.into_iter().map(move |entry| (way, entry))
    };
    let mut entries: Vec<_> = sections.into_iter().flat_map(entries).collect();
    if rng.random_bool(0.5) && entries.iter().any(|(_, entry)| names_a_node(entry)) {
        entries.retain(|(_, entry)| names_a_node(entry));
    }
    let Some((way, entry)) = entries.choose(rng) else {
        return Aim::default();
    };
    let remote = entry.peers.as_ref().and_then(|peers| peer(rng, peers));
    let ports: Vec<_> = entry.ports.iter().flatten().collect();
    let icmps: Vec<_> = entry.icmps.iter().flatten().collect();
    let target = Aim {
        endpoint,
        way: Some(*way),
        remote,
        load: None,
    };
    match (ports.choose(rng), icmps.choose(rng)) {
        (Some(port), _) => at_port(rng, world, target, port, &["TCP", "UDP", "SCTP"]),
        (None, Some(icmp)) => at_icmp(rng, world, target, icmp),
        (None, None) => target,
    }
}

fn kubernetes(rng: &mut StdRng, world: &World, policy: &NetworkPolicy) -> Aim {
    let mut entries = Vec::new();
    for (way, section) in [
        (Way::Ingress, &policy.ingress),
        (Way::Egress, &policy.egress),
    ] {
        entries.extend(section.iter().flatten().map(|entry| (way, entry)));
    }
    let endpoint = in_namespace(rng, world, &policy.namespace);
    let Some((way, entry)) = entries.choose(rng) else {
        return Aim {
            endpoint,
            ..Aim::default()
        };
    };
    let peers = entry.peers.as_deref().unwrap_or_default();
    let remote = match peers.choose(rng) {
        Some(KubernetesPeer::Block(block)) => {
            let nets: Vec<_> = block.except.iter().chain([&block.cidr]).collect();
            nets.choose(rng).map(|net| inside(**net))
        }
        _ => None,
    };
    let target = Aim {
        endpoint,
        way: Some(*way),
        remote,
        load: None,
    };
    let ports = entry.ports.as_deref().unwrap_or_default();
    let absent = ports.iter().find(|port| port.port.is_none());
    let absent = absent.filter(|_| rng.random_bool(0.7));
    let any = ports.choose(rng);
    match absent.or(any) {
        Some(port) => at_port(rng, world, target, port, &["TCP"]),
        None => target,
    }
}

fn in_namespace(rng: &mut StdRng, world: &World, namespace: &str) -> Option<usize> {
    let wanted = k8s(NAMESPACE_KEY, namespace);
    let places = 0..world.endpoints.len();
    let places: Vec<_> = places
        .filter(|place| world.endpoints[*place].labels.contains(&wanted))
        .collect();
    places.choose(rng).copied()
}

/// Selectors are met by chance well enough.
fn peer(rng: &mut StdRng, peers: &Peers) -> Option<IpAddr> {
    match peers {
        Peers::Endpoints(_) => None,
        Peers::Entities(list) => match *list.choose(rng)? {
            "host" => HOST.choose(rng)?.parse().ok(),
            "world-ipv6" => "fd77::1".parse().ok(),
            entity => {
                let names = [
                    "unmanaged",
                    "health",
                    "init",
                    "remote-node",
                    "kube-apiserver",
                    "ingress",
                ];
                let place = names.iter().position(|name| *name == entity)?;
                format!("10.2.200.{}", place + 3).parse().ok()
            }
        },
        Peers::Cidr(list) => Some(inside(*list.choose(rng)?)),
        Peers::CidrSet(list) => {
            let block = list.choose(rng)?;
            let nets: Vec<_> = block.except.iter().chain([&block.cidr]).collect();
            Some(inside(**nets.choose(rng)?))
        }
    }
}

/// An address of the prefix: its first one, if that is one that can be talked to.
fn inside(net: Net) -> IpAddr {
    match net.to_string().as_str() {
        "0.0.0.0/0" => IpAddr::from([203, 0, 113, 1]),
        "::/0" => IpAddr::from([0x2001, 0xdb9, 0, 0, 0, 0, 0, 1]),
        _ => net.address,
    }
}

fn at_port(rng: &mut StdRng, world: &World, aim: Aim, port: &Port, protocols: &[&str]) -> Aim {
    let protocol = match port.protocol {
        None | Some("ANY") => *protocols.choose(rng).unwrap(),
        Some(protocol) => protocol,
    };
    let of = |protocol: &str, number| match protocol {
        "TCP" => Load::Tcp(number),
        "UDP" => Load::Udp(number),
        _ => Load::Sctp(number),
    };
    match port.port {
        None | Some(PortText::Number(0)) => Aim {
            load: Some(of(protocol, 8080)),
            ..aim
        },
        Some(PortText::Number(first)) => {
            let last = port.end.unwrap_or(first);
            let numbers = [first, last, first - 1, last.saturating_add(1)];
            let number = numbers[rng.random_range(0..7) % 4];
            let number = if (40_000..60_000).contains(&number) {
                80
            } else {
                number
            };
            Aim {
                load: Some(of(protocol, number)),
                ..aim
            }
        }
        Some(PortText::Name(name)) if aim.way == Some(Way::Egress) => {
            // Its own peer is left alone: only pods have names for ports.
            let owners = world.addresses.iter().filter(|(net, _)| net.is_host());
            let named = owners.flat_map(|(net, owner)| {
                let ports = owner.ports.iter().filter(|port| port.name == name);
                ports.map(|port| (net.address, of(port.protocol, port.port)))
            });
            let named: Vec<_> = named.collect();
            match named.choose(rng) {
                Some((address, load)) => Aim {
                    remote: aim.remote.or(Some(*address)),
                    load: Some(*load),
                    ..aim
                },
                None => aim,
            }
        }
        Some(PortText::Name(name)) => {
            let endpoint = aim.endpoint.map(|place| &world.endpoints[place]);
            let mut ports = endpoint.iter().flat_map(|e| &e.ports);
            let port = ports.find(|port| port.name == name);
            Aim {
                load: port.map(|port| of(port.protocol, port.port)),
                ..aim
            }
        }
    }
}

fn at_icmp(rng: &mut StdRng, world: &World, aim: Aim, icmp: &Icmp) -> Aim {
    let v6 = icmp.family == Some("IPv6");
    let kind = match icmp.kind {
        IcmpText::Number(kind) => kind,
        IcmpText::Name("EchoRequest") => [8, 128][usize::from(v6)],
        IcmpText::Name(_) => [0, 129][usize::from(v6)],
    };
    let hosts = world.addresses.keys().filter(|net| net.is_host());
    let hosts: Vec<_> = hosts
        .map(|net| net.address)
        .filter(|address| address.is_ipv6() == v6)
        .collect();
    let named = aim.remote.filter(|address| address.is_ipv6() == v6);
    Aim {
        remote: named.or_else(|| hosts.choose(rng).copied()),
        load: Some(Load::Icmp(kind)),
        ..aim
    }
}
