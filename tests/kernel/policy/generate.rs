//! Random worlds from small pools, so that what policies name is met by what there is: identities of
//! three clusters, addresses in and outside of the mesh, workloads, and changes from round to round.
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    aim::{self, Aim},
    model::{
        CLUSTER_KEY, Endpoint, Enforcement, Label, Load, NAMESPACE_KEY, NAMESPACE_LABELS,
        NamedPort, Net, Owner, Packet, Policy, Way, World, k8s, label,
    },
    policies,
};

/// The own cluster first; their ids are their places plus one.
pub(crate) const CLUSTERS: [&str; 3] = ["west", "east", "north"];
pub(crate) const NAMESPACES: [&str; 2] = ["shop", "bank"];
pub(crate) const APPS: [&str; 3] = ["web", "db", "api"];
/// A namespace's own label `team`.
pub(crate) const TEAMS: [&str; 2] = ["pay", "core"];
/// Where `from_container` and `to_container` are attached, one interface for each endpoint.
pub(crate) const ENDPOINTS: usize = 4;
/// The own node.
pub(crate) const HOST: [&str; 2] = ["10.1.200.1", "fd00:1:200::1"];
/// Source ports of the packets; no destination lies in between.
const SOURCES: std::ops::Range<u16> = 40_000..60_000;
const PORTS: [u16; 16] = [
    80, 80, 443, 8080, 8080, 53, 9000, 8000, 8999, 5000, 5007, 5008, 4999, 1023, 1024, 65535,
];
/// An identity whose labels nobody publishes.
const UNPUBLISHED: u32 = 3 << 16 | 999;
/// What east publishes as prefixes, one inside of the other, with identities of their own: none of
/// their addresses has names for ports.
const NETS: [(&str, u32); 3] = [
    ("10.50.0.0/16", 2 << 16 | 0x110),
    ("10.50.8.0/24", 2 << 16 | 0x111),
    ("fd00:50::/32", 2 << 16 | 0x112),
];

/// The next packet's source port.
#[derive(Debug)]
pub(crate) struct Sources(u16);

impl Sources {
    pub(crate) fn new() -> Self {
        Self(SOURCES.start)
    }

    fn take(&mut self) -> u16 {
        let source = self.0;
        self.0 += 1;
        if self.0 == SOURCES.end {
            self.0 = SOURCES.start;
        }
        source
    }
}

pub(crate) fn world(rng: &mut StdRng) -> World {
    let endpoints = endpoints(rng);
    let mut identities = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|e| e.identity >= 256) {
        identities.insert(endpoint.identity, endpoint.labels.clone());
        for address in [IpAddr::V4(endpoint.v4), IpAddr::V6(endpoint.v6)] {
            let owner = Owner {
                identity: endpoint.identity,
                ports: endpoint.ports.clone(),
            };
            addresses.insert(host(address), owner);
        }
    }
    for cluster in 1..=3 {
        for number in 0..8 {
            let identity = cluster << 16 | 0x100 | number;
            identities.insert(identity, pod_labels(rng, cluster));
            let ports = peer_ports(number);
            for address in pod_addresses(cluster, number) {
                let owner = Owner {
                    identity,
                    ports: ports.clone(),
                };
                addresses.insert(host(address), owner);
            }
        }
    }
    for identity in [2, 3, 4, 5, 6, 7, 8, 9] {
        addresses.insert(Net::of(&format!("10.2.200.{identity}")), plain(identity));
    }
    for identity in [4, 6, 7, 8, 10] {
        addresses.insert(
            Net::of(&format!("fd00:2:200::{identity:x}")),
            plain(identity),
        );
    }
    for address in HOST {
        addresses.insert(Net::of(address), plain(1));
    }
    addresses.insert(Net::of("10.3.9.9"), plain(UNPUBLISHED));
    for (place, (net, identity)) in NETS.into_iter().enumerate() {
        let mut labels = pod_labels(rng, 2);
        labels.push(k8s("place", &place.to_string()));
        identities.insert(identity, labels);
        addresses.insert(Net::of(net), plain(identity));
    }
    let enforcement = match rng.random_range(0..6) {
        0 => Enforcement::Always,
        1 => Enforcement::Never,
        _ => Enforcement::Default,
    };
    let mut world = World {
        cluster: CLUSTERS[0],
        default_local: rng.random_bool(0.4),
        enforcement,
        endpoints,
        identities,
        addresses,
        files: BTreeMap::new(),
    };
    for number in 0..6 {
        let file = policies::file(rng, number);
        world.files.insert(file_name(number), file);
    }
    world
}

/// Three pods, and one that has no labels yet.
fn endpoints(rng: &mut StdRng) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for place in 0..ENDPOINTS {
        let number = u8::try_from(place).unwrap();
        let mut labels = pod_labels(rng, 1);
        let mut identity = 1 << 16 | 0x200 | u32::from(number);
        if place == ENDPOINTS - 1 {
            labels = vec![label("reserved", "init", "")];
            identity = 5;
        }
        endpoints.push(Endpoint {
            identity,
            labels,
            v4: Ipv4Addr::new(10, 1, 1, number + 1),
            v6: Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, u16::from(number) + 1),
            ports: endpoint_ports(rng),
        });
    }
    endpoints
}

fn pod_labels(rng: &mut StdRng, cluster: u32) -> Vec<Label> {
    let place = rng.random_range(0..NAMESPACES.len());
    let mut labels = vec![
        k8s("app", APPS.choose(rng).unwrap()),
        k8s(CLUSTER_KEY, CLUSTERS[cluster as usize - 1]),
        k8s(NAMESPACE_KEY, NAMESPACES[place]),
    ];
    if rng.random_bool(0.8) {
        labels.push(k8s(&format!("{NAMESPACE_LABELS}team"), TEAMS[place]));
    }
    if rng.random_bool(0.5) {
        labels.push(k8s("tier", ["front", "back"].choose(rng).unwrap()));
    }
    if rng.random_bool(0.5) {
        let source = ["k8s", "cloud"].choose(rng).unwrap();
        labels.push(label(source, "zone", ["a", "b"].choose(rng).unwrap()));
    }
    labels
}

fn pod_addresses(cluster: u32, number: u32) -> [IpAddr; 2] {
    let [cluster, number] = [cluster, number].map(|n| u8::try_from(n).unwrap());
    [
        Ipv4Addr::new(10, cluster, 0, number + 1).into(),
        Ipv6Addr::new(0xfd00, cluster.into(), 0, 0, 0, 0, 0, u16::from(number) + 1).into(),
    ]
}

fn endpoint_ports(rng: &mut StdRng) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for port in [
        named("http", *[80, 8080].choose(rng).unwrap(), "TCP"),
        named("dns", 53, "UDP"),
    ] {
        if rng.random_bool(0.8) {
            ports.push(port);
        }
    }
    ports
}

/// Addresses of one identity agree about their names: enforcement is by identity.
fn peer_ports(number: u32) -> Vec<NamedPort> {
    match number % 4 {
        0 => vec![named("http", 8080, "TCP"), named("dns", 53, "UDP")],
        1 => vec![named("http", 80, "TCP")],
        2 => vec![named("dns", 5000, "SCTP"), named("http", 443, "TCP")],
        _ => Vec::new(),
    }
}

const fn named(name: &'static str, port: u16, protocol: &'static str) -> NamedPort {
    NamedPort {
        name,
        port,
        protocol,
    }
}

fn plain(identity: u32) -> Owner {
    Owner {
        identity,
        ports: Vec::new(),
    }
}

fn host(address: IpAddr) -> Net {
    Net {
        address,
        bits: if address.is_ipv4() { 32 } else { 128 },
    }
}

fn file_name(number: u32) -> String {
    format!("policy{number}.yaml")
}

/// What happens between two rounds.
#[derive(Debug)]
pub(crate) enum Change {
    /// A file is new, other than before, or gone.
    File(String, Option<Vec<Policy>>),
    Identity(u32, Option<Vec<Label>>),
    Address(Net, Option<Owner>),
    /// A workload has other named ports; its addresses are published with them.
    Ports(usize, Vec<NamedPort>),
}

pub(crate) fn change(rng: &mut StdRng) -> Change {
    match rng.random_range(0..10) {
        0..4 => {
            let number = rng.random_range(0..8);
            let keep = rng.random_bool(0.7);
            let file = keep.then(|| policies::file(rng, number));
            Change::File(file_name(number), file)
        }
        4..6 => {
            let cluster = rng.random_range(1..=3);
            let identity = cluster << 16 | 0x100 | rng.random_range(0..8);
            let keep = rng.random_bool(0.8);
            Change::Identity(identity, keep.then(|| pod_labels(rng, cluster)))
        }
        6..8 => {
            let cluster = rng.random_range(1..=3);
            let number = rng.random_range(0..8);
            let address = *pod_addresses(cluster, number).choose(rng).unwrap();
            // Another pod of the cluster may get it.
            let heir = rng.random_range(0..8);
            let owner = Owner {
                identity: cluster << 16 | 0x100 | heir,
                ports: peer_ports(heir),
            };
            Change::Address(host(address), rng.random_bool(0.6).then_some(owner))
        }
        8 => {
            let (net, identity) = *NETS.choose(rng).unwrap();
            let owner = rng.random_bool(0.5).then(|| plain(identity));
            Change::Address(Net::of(net), owner)
        }
        _ => Change::Ports(rng.random_range(0..3), endpoint_ports(rng)),
    }
}

/// Makes the change in the world.
pub(crate) fn apply(world: &mut World, change: &Change) {
    match change {
        Change::File(name, Some(policies)) => {
            world.files.insert(name.clone(), policies.clone());
        }
        Change::File(name, None) => {
            world.files.remove(name);
        }
        Change::Identity(identity, Some(labels)) => {
            world.identities.insert(*identity, labels.clone());
        }
        Change::Identity(identity, None) => {
            world.identities.remove(identity);
        }
        Change::Address(net, Some(owner)) => {
            world.addresses.insert(*net, owner.clone());
        }
        Change::Address(net, None) => {
            world.addresses.remove(net);
        }
        Change::Ports(place, ports) => {
            let endpoint = &mut world.endpoints[*place];
            endpoint.ports.clone_from(ports);
            for address in [IpAddr::V4(endpoint.v4), IpAddr::V6(endpoint.v6)] {
                let owner = world.addresses.get_mut(&host(address)).unwrap();
                owner.ports.clone_from(ports);
            }
        }
    }
}

/// A packet of a flow that is new; most of them are aimed at what some policy names.
pub(crate) fn packet(rng: &mut StdRng, world: &World, sources: &mut Sources) -> Packet {
    let aim = if rng.random_bool(0.7) {
        aim::aim(rng, world)
    } else {
        Aim::default()
    };
    let places = world.endpoints.len();
    let endpoint = aim.endpoint.unwrap_or_else(|| rng.random_range(0..places));
    let own = &world.endpoints[endpoint];
    let is_own = |a: &IpAddr| [IpAddr::V4(own.v4), IpAddr::V6(own.v6)].contains(a);
    let remote = aim.remote.filter(|a| !is_own(a)).unwrap_or_else(|| {
        loop {
            let remote = remote(rng, world);
            if !is_own(&remote) {
                break remote;
            }
        }
    });
    let any = *[Way::Ingress, Way::Egress].choose(rng).unwrap();
    let way = aim.way.unwrap_or(any);
    Packet {
        endpoint,
        way,
        remote,
        load: aim.load.unwrap_or_else(|| load(rng, way, remote)),
        source: sources.take(),
    }
}

fn load(rng: &mut StdRng, way: Way, remote: IpAddr) -> Load {
    let port = *PORTS.choose(rng).unwrap();
    match rng.random_range(0..100) {
        0..46 => Load::Tcp(port),
        46..68 => Load::Udp(port),
        68..82 => Load::Sctp(port),
        82..97 if remote.is_ipv4() => Load::Icmp(*[8, 8, 0, 3, 11, 13].choose(rng).unwrap()),
        82..97 => Load::Icmp(*[128, 128, 129, 1, 3].choose(rng).unwrap()),
        // Without ports an answer looks like a new flow the other way: so each way has its own.
        _ if way == Way::Ingress => Load::Other(47),
        _ => Load::Other(89),
    }
}

fn remote(rng: &mut StdRng, world: &World) -> IpAddr {
    let pool = rng.random_range(0..10);
    match pool {
        0..6 => {
            let pods: Vec<_> = world.addresses.keys().filter(|n| n.is_host()).collect();
            pods.choose(rng).unwrap().address
        }
        6 => {
            let last = rng.random_range(1..=8);
            let text = if rng.random_bool(0.5) {
                format!("10.2.200.{last}")
            } else {
                format!("fd00:2:200::{last}")
            };
            text.parse().unwrap()
        }
        _ => {
            let known = [
                "10.50.8.1",
                "10.50.9.1",
                "fd00:50::1",
                "192.0.2.1",
                "192.0.2.130",
                "192.0.2.200",
                "198.51.100.7",
                "198.51.100.8",
                "10.77.1.1",
                "2001:db8::1",
                "2001:db8:1::1",
                "2001:db8:1:2::1",
                "fd77::1",
            ];
            known.choose(rng).unwrap().parse().unwrap()
        }
    }
}
