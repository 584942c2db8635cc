//! The code under test, from what is written to what is judged: policies as YAML text through the
//! parser, identities and addresses as keys through the mesh, both through the engine and the
//! reconciler into maps, and frames through the programs. Beside the kernel it keeps what the engine
//! said, for the verdict function.
use std::{collections::HashMap, net::IpAddr, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde_json::json;
use tombolo::{
    enforcer::{
        self, Change,
        datapath::Datapath as _,
        kernel::{
            Kernel,
            test_run::{Program, Programs},
        },
        reconcile::Reconciler,
    },
    keyspace::{ClusterConfig, KeyEvent, Kind},
    mesh::{Delta, Deltas, Mesh, Settings, Terms},
    policy::{
        self, Direction, EndpointMode, Enforcement, Engine, MapDelta, Origin, PolicyEntry,
        PolicyKey, parse, verdict,
    },
    store::{self, Store},
    types::{
        ClusterId, EndpointEvent, EndpointId, IdentityId, IpPrefix, Labels, LocalEndpoint,
        MaxClusters,
    },
};

use super::{
    generate::{CLUSTERS, HOST},
    model::{self, Endpoint, Label, Load, Net, Owner, Packet, Policy, Way, World},
    yaml,
};
use crate::{
    lab::run,
    packets::frame::{ACK, Frame, ICMP, ICMPV6, SCTP, SYN, TCP, UDP},
};

const MAX: MaxClusters = MaxClusters::C255;
/// Changes of the mesh that wait to be taken; more than a world has.
const DELTAS: usize = 10_000;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// Which packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    First,
    /// Goes the same way, and does not look like a first one.
    Later,
    /// Comes back.
    Answer,
}

/// Everything between the texts and the verdicts.
pub(crate) struct Street {
    options: enforcer::Options,
    mesh: Mesh,
    deltas: Deltas,
    revision: i64,
    engine: Engine,
    said: Said,
    reconciler: Reconciler<Kernel>,
    programs: Programs,
    ifindexes: Vec<u32>,
}

/// What the engine and the mesh said that the kernel should hold.
#[derive(Default)]
struct Said {
    entries: HashMap<PolicyKey, PolicyEntry>,
    modes: HashMap<EndpointId, EndpointMode>,
    cidrs: HashMap<IpPrefix, IdentityId>,
    addresses: HashMap<IpPrefix, IdentityId>,
}

/// The interface of an endpoint; [`interfaces`] makes them.
fn interface(place: usize) -> String {
    format!("lxct{place}")
}

/// Makes an interface for each of so many endpoints.
pub(crate) fn interfaces(count: usize) {
    for place in 0..count {
        let name = interface(place);
        run(&format!(
            "ip link add {name} type veth peer name p{name}; ip link set {name} up; \
             ip link set p{name} up"
        ));
    }
}

impl Street {
    /// Has everything of `world` in maps below `root`, which is a directory of a bpffs.
    pub(crate) fn new(root: &Path, world: &World) -> Self {
        let options = enforcer::Options {
            bpf_root: root.to_owned(),
            max_clusters: MAX,
            ..enforcer::Options::default()
        };
        let (kernel, _, _) = Kernel::open(&options).unwrap();
        let places = 0..world.endpoints.len();
        let ifindexes = places.map(|place| kernel.ifindex(&interface(place)).unwrap());
        let ifindexes = ifindexes.collect();
        let deltas = Deltas::new(DELTAS);
        let cache = Store::new(store::Options {
            cluster_id: 7,
            history_max: 1_000,
        });
        let settings = Settings {
            cluster_name: world.cluster.parse().unwrap(),
            cluster_id: ClusterId::new(1, MAX).unwrap(),
            max_clusters: MAX,
            node_name: "node1".into(),
        };
        let mut street = Self {
            mesh: Mesh::new(settings, cache, deltas.clone()),
            deltas,
            revision: 0,
            engine: engine(world),
            said: Said::default(),
            reconciler: Reconciler::open(kernel, &options).unwrap(),
            programs: Programs::open(&options).unwrap(),
            options,
            ifindexes,
        };
        street.fill(world);
        street
    }

    fn fill(&mut self, world: &World) {
        for (place, name) in CLUSTERS.into_iter().enumerate() {
            let terms = Terms {
                id: ClusterId::new(u32::try_from(place).unwrap() + 1, MAX).unwrap(),
                config: ClusterConfig::default(),
                allowed_cidrs: Arc::default(),
                relayed: false,
            };
            self.mesh.connected(&name.parse().unwrap(), terms);
        }
        self.host(world);
        for (identity, labels) in &world.identities {
            self.identity(*identity, Some(labels));
        }
        for (net, owner) in &world.addresses {
            // The own node's addresses come with the node.
            if owner.identity != 1 {
                self.address(*net, Some(owner));
            }
        }
        for (name, policies) in &world.files {
            self.file(name, Some(policies));
        }
        for (place, endpoint) in world.endpoints.iter().enumerate() {
            self.endpoint(place, endpoint);
        }
        let mut out = Vec::new();
        self.engine.apply_endpoint(&EndpointEvent::Synced, &mut out);
        self.map(out);
        self.apply(vec![Change::Endpoint(EndpointEvent::Synced)]);
    }

    fn host(&mut self, world: &World) {
        let address = |ip| json!({"Type": "InternalIP", "IP": ip});
        let node = json!({
            "Name": "node1",
            "Cluster": world.cluster,
            "ClusterID": 1,
            "IPAddresses": HOST.map(address),
        });
        self.put(world.cluster, Kind::Nodes, "node1", Some(node.to_string()));
    }

    /// Follows a change that the world has gone through already.
    pub(crate) fn follow(&mut self, world: &World, change: &super::generate::Change) {
        use super::generate::Change;
        match change {
            Change::File(name, policies) => self.file(name, policies.as_deref()),
            Change::Identity(identity, labels) => self.identity(*identity, labels.as_deref()),
            Change::Address(net, owner) => self.address(*net, owner.as_ref()),
            Change::Ports(place, _) => {
                let endpoint = &world.endpoints[*place];
                for address in [IpAddr::V4(endpoint.v4), IpAddr::V6(endpoint.v6)] {
                    let net = Net::of(&address.to_string());
                    self.address(net, world.addresses.get(&net));
                }
                self.endpoint(*place, endpoint);
            }
        }
    }

    fn file(&mut self, name: &str, policies: Option<&[Policy]>) {
        let path = Path::new(name);
        let origin = Origin::File(path.to_owned());
        let mut out = Vec::new();
        match policies {
            Some(policies) => {
                let text = yaml::file(policies);
                let parsed = parse(&text, path).unwrap_or_else(|e| panic!("{e}\n{text}"));
                self.engine.set_policies(&origin, parsed, &mut out);
            }
            None => self.engine.remove_origin(&origin, &mut out),
        }
        self.map(out);
    }

    /// Publishes an identity, in its own cluster.
    fn identity(&mut self, identity: u32, labels: Option<&[Label]>) {
        let cluster = CLUSTERS[(identity >> 16) as usize - 1];
        let value = labels.map(text);
        self.put(cluster, Kind::Identities, &identity.to_string(), value);
    }

    /// Publishes an address; reserved ones are east's.
    fn address(&mut self, net: Net, owner: Option<&Owner>) {
        let cluster = cluster(net);
        let full = if net.address.is_ipv4() { 4 } else { 16 };
        let value = owner.map(|owner| {
            let mask: Vec<u8> = (0..full).map(|byte| mask_byte(net.bits, byte)).collect();
            let mask = (!net.is_host()).then(|| BASE64.encode(mask));
            let port = |port: &model::NamedPort| {
                json!({"Name": port.name, "Port": port.port, "Protocol": port.protocol})
            };
            json!({
                "IP": net.address,
                "Mask": mask,
                "HostIP": "10.7.0.1",
                "ID": owner.identity,
                "Key": 0,
                "Metadata": "",
                "NamedPorts": owner.ports.iter().map(port).collect::<Vec<_>>(),
            })
            .to_string()
        });
        self.put(cluster, Kind::Ips, &net.to_string(), value);
    }

    fn put(&mut self, cluster: &str, kind: Kind, suffix: &str, value: Option<String>) {
        self.revision += 1;
        let suffix = Bytes::copy_from_slice(suffix.as_bytes());
        let event = match value {
            Some(value) => KeyEvent::Upsert {
                kind,
                suffix,
                value: value.into(),
                revision: self.revision,
            },
            None => KeyEvent::Delete { kind, suffix },
        };
        self.mesh.apply(&cluster.parse().unwrap(), [event]);
        let batch = self.deltas.try_pop_batch(DELTAS);
        let mut changes = Vec::new();
        for delta in batch.into_iter().flat_map(|batch| batch.items) {
            self.delta(delta, &mut changes);
        }
        self.apply(changes);
    }

    /// What the agent makes of a delta of the mesh.
    fn delta(&mut self, delta: Delta, changes: &mut Vec<Change>) {
        let mut out = Vec::new();
        match delta {
            Delta::Identity { id, labels } => self.engine.apply_identity(id, labels, &mut out),
            Delta::Ip { prefix, target } => {
                match target {
                    Some(target) => self.said.addresses.insert(prefix, target.identity),
                    None => self.said.addresses.remove(&prefix),
                };
                let identity = target.map(|target| target.identity);
                self.engine.apply_address(prefix, identity, &mut out);
                changes.push(Change::Ip { prefix, target });
            }
            Delta::NamedPorts { prefix, ports } => {
                self.engine.apply_named_ports(prefix, &ports, &mut out);
            }
            Delta::Synced { cluster } => changes.push(Change::Synced { cluster }),
            Delta::Removed { cluster } => changes.push(Change::RemovedCluster { cluster }),
        }
        self.map(out);
    }

    fn endpoint(&mut self, place: usize, endpoint: &Endpoint) {
        let named = |port: &model::NamedPort| tombolo::types::NamedPort {
            name: port.name.to_owned(),
            port: port.port,
            protocol: port.protocol.to_owned(),
        };
        let event = EndpointEvent::Upsert(Arc::new(LocalEndpoint {
            id: id(place),
            identity: IdentityId(endpoint.identity),
            labels: Arc::new(Labels::parse(&text(&endpoint.labels))),
            namespace: "default".into(),
            name: format!("pod{place}"),
            addresses: vec![endpoint.v4.into(), endpoint.v6.into()],
            interface: Some(interface(place)),
            named_ports: endpoint.ports.iter().map(named).collect(),
            audit: false,
        }));
        let mut out = Vec::new();
        self.engine.apply_endpoint(&event, &mut out);
        self.map(out);
        self.apply(vec![Change::Endpoint(event)]);
    }

    fn map(&mut self, deltas: Vec<MapDelta>) {
        for delta in &deltas {
            self.said.take(delta);
        }
        self.apply(deltas.into_iter().map(Change::Map).collect());
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.reconciler.apply(changes);
        let status = self.reconciler.status();
        assert_eq!(status.last_error, None);
        assert!(status.problems.is_empty(), "{:?}", status.problems);
    }

    /// What the verdict function makes of what the engine said.
    pub(crate) fn verdict(&self, packet: &Packet) -> bool {
        self.said.passes(packet)
    }

    /// What the programs make of what is in the maps.
    pub(crate) fn kernel(&mut self, world: &World, packet: &Packet, moment: Moment) -> bool {
        let towards = (packet.way == Way::Ingress) != (moment == Moment::Answer);
        let program = if towards {
            Program::ToContainer
        } else {
            Program::FromContainer
        };
        let frame = frame(world, packet, moment).bytes();
        let ifindex = self.ifindexes[packet.endpoint];
        let outcome = self.programs.run(program, &frame, ifindex, 1).unwrap();
        !outcome.dropped
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        // Its maps are large, and the next world needs the room.
        drop(std::fs::remove_dir_all(&self.options.bpf_root));
    }
}

impl Said {
    fn take(&mut self, delta: &MapDelta) {
        match *delta {
            MapDelta::Entry {
                key,
                value: Some(value),
            } => {
                self.entries.insert(key, value);
            }
            MapDelta::Entry { key, value: None } => {
                self.entries.remove(&key);
            }
            MapDelta::Endpoint { endpoint, mode } => {
                self.modes.insert(endpoint, mode);
            }
            MapDelta::Cidr {
                prefix,
                identity: Some(identity),
            } => {
                self.cidrs.insert(prefix, identity);
            }
            MapDelta::Cidr {
                prefix,
                identity: None,
            } => {
                self.cidrs.remove(&prefix);
            }
        }
    }

    fn passes(&self, packet: &Packet) -> bool {
        let direction = match packet.way {
            Way::Ingress => Direction::Ingress,
            Way::Egress => Direction::Egress,
        };
        let (protocol, port) = match packet.load {
            Load::Tcp(port) => (TCP, port),
            Load::Udp(port) => (UDP, port),
            Load::Sctp(port) => (SCTP, port),
            Load::Icmp(kind) if packet.remote.is_ipv4() => (ICMP, kind.into()),
            Load::Icmp(kind) => (ICMPV6, kind.into()),
            Load::Other(protocol) => (protocol, 0),
        };
        let endpoint = id(packet.endpoint);
        let key = PolicyKey {
            endpoint,
            identity: self.identity(packet.remote),
            direction,
            protocol,
            port,
            port_bits: 16,
        };
        let verdict = verdict(|key| self.entries.get(key).copied(), &key);
        let mode = self.modes.get(&endpoint).copied().unwrap_or_default();
        verdict.passes(*mode.default_deny.get(direction))
    }

    /// Who an address is: of the mesh, of a rule's prefix, or of the world.
    fn identity(&self, address: IpAddr) -> IdentityId {
        let longest = |map: &HashMap<IpPrefix, IdentityId>| {
            let matching = map.iter().filter(|(prefix, _)| prefix.contains(address));
            let longest = matching.max_by_key(|(prefix, _)| prefix.prefix_len());
            longest.map(|(_, identity)| *identity)
        };
        let world = IdentityId(if address.is_ipv4() { 9 } else { 10 });
        longest(&self.addresses)
            .or_else(|| longest(&self.cidrs))
            .unwrap_or(world)
    }
}

fn engine(world: &World) -> Engine {
    let options = policy::Options {
        cluster: world.cluster.parse().unwrap(),
        default_local_cluster: world.default_local,
        enforcement: match world.enforcement {
            model::Enforcement::Default => Enforcement::Default,
            model::Enforcement::Always => Enforcement::Always,
            model::Enforcement::Never => Enforcement::Never,
        },
    };
    Engine::new(options, [])
}

fn id(place: usize) -> EndpointId {
    EndpointId(u32::try_from(place).unwrap() + 1)
}

/// Sorted by key, as they are published.
fn text(labels: &[Label]) -> String {
    let mut labels: Vec<_> = labels.iter().collect();
    labels.sort_by(|a, b| a.key.cmp(&b.key));
    let each = labels.iter();
    each.map(|l| format!("{}:{}={};", l.source, l.key, l.value))
        .collect()
}

/// Which cluster says whose an address is, by its second part.
fn cluster(net: Net) -> &'static str {
    let number = match net.address {
        IpAddr::V4(v4) => v4.octets()[1].into(),
        IpAddr::V6(v6) => v6.segments()[1],
    };
    match number {
        1 => CLUSTERS[0],
        3 => CLUSTERS[2],
        _ => CLUSTERS[1],
    }
}

fn mask_byte(bits: u8, byte: u8) -> u8 {
    let ones = bits.saturating_sub(byte * 8).min(8);
    u8::try_from(0xff00_u32 >> ones & 0xff).unwrap()
}

/// The packet as it is on the endpoint's interface.
fn frame(world: &World, packet: &Packet, moment: Moment) -> Frame {
    let endpoint = &world.endpoints[packet.endpoint];
    let own = match packet.remote {
        IpAddr::V4(_) => IpAddr::V4(endpoint.v4),
        IpAddr::V6(_) => IpAddr::V6(endpoint.v6),
    };
    let answer = moment == Moment::Answer;
    let towards = (packet.way == Way::Ingress) != answer;
    let (from, to) = if towards {
        (packet.remote, own)
    } else {
        (own, packet.remote)
    };
    let frame = Frame::new(from, to);
    let source = packet.source;
    let ports = |port| {
        if answer {
            (port, source)
        } else {
            (source, port)
        }
    };
    match packet.load {
        Load::Tcp(port) => {
            let (from, to) = ports(port);
            let flags = match moment {
                Moment::First => SYN,
                Moment::Later => ACK,
                Moment::Answer => SYN | ACK,
            };
            frame.tcp(from, to, flags)
        }
        Load::Udp(port) => {
            let (from, to) = ports(port);
            frame.udp(from, to)
        }
        Load::Sctp(port) => {
            let (from, to) = ports(port);
            let chunk = match moment {
                Moment::First => INIT,
                Moment::Later => 0,
                Moment::Answer => INIT_ACK,
            };
            frame.sctp(from, to, chunk)
        }
        Load::Icmp(kind) => {
            let kind = match (kind, answer) {
                (8, true) => 0,
                (128, true) => 129,
                _ => kind,
            };
            frame.icmp(kind, 0, source, &[0; 40])
        }
        Load::Other(protocol) => frame.other(protocol, &[0; 8]),
    }
}
