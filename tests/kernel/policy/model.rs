//! Policies, workloads, addresses and packets as plain data, the way a person would write them down.
//! No type of the code under test is in it: the evaluator in `naive` sees nothing else.
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The label of a pod's namespace, without its source.
pub(crate) const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// What the keys of a namespace's own labels begin with.
pub(crate) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// The label of a pod's cluster.
pub(crate) const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";

/// Which way a packet goes, seen from the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Ingress,
    Egress,
}

/// `source:key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) source: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// A label of the orchestrator's.
pub(crate) fn k8s(key: &str, value: &str) -> Label {
    label("k8s", key, value)
}

pub(crate) fn label(source: &str, key: &str, value: &str) -> Label {
    Label {
        source: source.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

/// An address prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Net {
    pub(crate) address: IpAddr,
    pub(crate) bits: u8,
}

impl Net {
    /// Of `address/bits` or a bare address.
    pub(crate) fn of(text: &str) -> Self {
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().unwrap();
        let full = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse().unwrap_or(full);
        Self { address, bits }
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let bits = usize::from(self.bits);
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(one)) => digits(&net.octets())
                .zip(digits(&one.octets()))
                .take(bits)
                .all(|(a, b)| a == b),
            (IpAddr::V6(net), IpAddr::V6(one)) => digits(&net.octets())
                .zip(digits(&one.octets()))
                .take(bits)
                .all(|(a, b)| a == b),
            _ => false,
        }
    }

    /// True for a single address.
    pub(crate) fn is_host(self) -> bool {
        self.bits == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// The binary digits of an address, the first one first.
fn digits(octets: &[u8]) -> impl Iterator<Item = bool> {
    octets
        .iter()
        .flat_map(|octet| (0..8).map(move |bit| octet & (0x80 >> bit) != 0))
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Keys as they are written: `app`, `any:app`, `k8s:app`, `reserved:host`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) expressions: Vec<Expression>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) key: String,
    pub(crate) operator: Operator,
    pub(crate) values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A policy object.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    Cilium(CiliumPolicy),
    Kubernetes(NetworkPolicy),
}

/// CiliumNetworkPolicy, or CiliumClusterwideNetworkPolicy without a namespace.
#[derive(Debug, Clone)]
pub(crate) struct CiliumPolicy {
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) spec: Option<CiliumRule>,
    pub(crate) specs: Vec<CiliumRule>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct CiliumRule {
    pub(crate) subject: Selector,
    pub(crate) ingress: Option<Vec<Entry>>,
    pub(crate) ingress_deny: Option<Vec<Entry>>,
    pub(crate) egress: Option<Vec<Entry>>,
    pub(crate) egress_deny: Option<Vec<Entry>>,
    /// `enableDefaultDeny`.
    pub(crate) default_deny: [Option<bool>; 2],
}

/// One element of a section. Everything absent is the entry `{}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) peers: Option<Peers>,
    pub(crate) ports: Vec<Vec<Port>>,
    pub(crate) icmps: Vec<Vec<Icmp>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Peers {
    Endpoints(Vec<Selector>),
    Entities(Vec<&'static str>),
    Cidr(Vec<Net>),
    CidrSet(Vec<Block>),
}

/// A prefix without some of its parts.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) cidr: Net,
    pub(crate) except: Vec<Net>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Port {
    pub(crate) port: Option<PortText>,
    pub(crate) end: Option<u16>,
    pub(crate) protocol: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(crate) enum PortText {
    Number(u16),
    Name(&'static str),
}

#[derive(Debug, Clone)]
pub(crate) struct Icmp {
    pub(crate) family: Option<&'static str>,
    pub(crate) kind: IcmpText,
}

#[derive(Debug, Clone)]
pub(crate) enum IcmpText {
    Number(u8),
    Name(&'static str),
}

/// `networking.k8s.io/v1`. Its entries use [`Port`] with the meaning of that kind.
#[derive(Debug, Clone)]
pub(crate) struct NetworkPolicy {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subject: Selector,
    pub(crate) types: Option<Vec<Way>>,
    pub(crate) ingress: Option<Vec<KubernetesEntry>>,
    pub(crate) egress: Option<Vec<KubernetesEntry>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct KubernetesEntry {
    pub(crate) peers: Option<Vec<KubernetesPeer>>,
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone)]
pub(crate) enum KubernetesPeer {
    Block(Block),
    Pods {
        pods: Option<Selector>,
        namespaces: Option<Selector>,
    },
}

/// `--enable-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enforcement {
    Default,
    Always,
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
}

/// A workload of this node.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) identity: u32,
    pub(crate) labels: Vec<Label>,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) ports: Vec<NamedPort>,
}

/// What the mesh says of an address or a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) identity: u32,
    pub(crate) ports: Vec<NamedPort>,
}

/// All that a verdict depends on.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// The own cluster's name.
    pub(crate) cluster: &'static str,
    /// `policy-default-local-cluster`.
    pub(crate) default_local: bool,
    pub(crate) enforcement: Enforcement,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Labels of the identities that are published.
    pub(crate) identities: BTreeMap<u32, Vec<Label>>,
    pub(crate) addresses: BTreeMap<Net, Owner>,
    /// Policies by the file they are in.
    pub(crate) files: BTreeMap<String, Vec<Policy>>,
}

/// What a packet carries behind its IP header. Ports are the destination's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    /// The message's type; of the version that belongs to the addresses' family.
    Icmp(u8),
    /// Another IP protocol, without ports.
    Other(u8),
}

/// The first packet of a flow between an endpoint and somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Index in [`World::endpoints`].
    pub(crate) endpoint: usize,
    pub(crate) way: Way,
    pub(crate) remote: IpAddr,
    pub(crate) load: Load,
    /// Tells flows apart: the source port, or the ICMP message's identifier.
    pub(crate) source: u16,
}
