//! The parts of Kubernetes objects that we use, in Kubernetes spelling. Unknown fields are ignored.
//!
//! A null list, map or text is an empty one, as the API server treats it. Addresses, names and
//! labels are checked while they are read, so that an error names the place.
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};

use crate::types::{IpPrefix, NamedPort};

/// One document of a manifest that we understand.
#[derive(Debug, Clone)]
pub(super) enum Object {
    Namespace(Namespace),
    Node(Node),
    CiliumNode(CiliumNode),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
}

/// What tells objects apart; the order of the fields is the order of reports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub(super) kind: &'static str,
    /// Empty for kinds without a namespace.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        if namespace.is_empty() {
            write!(f, "{kind} {name}")
        } else {
            write!(f, "{kind} {namespace}/{name}")
        }
    }
}

impl Object {
    pub(super) fn key(&self) -> ObjectKey {
        let (kind, metadata, namespaced) = match self {
            Self::Namespace(o) => ("Namespace", &o.metadata, false),
            Self::Node(o) => ("Node", &o.metadata, false),
            Self::CiliumNode(o) => ("CiliumNode", &o.metadata, false),
            Self::Pod(o) => ("Pod", &o.metadata, true),
            Self::Service(o) => ("Service", &o.metadata, true),
            Self::EndpointSlice(o) => ("EndpointSlice", &o.metadata, true),
        };
        let namespace = if namespaced {
            metadata.namespace().to_owned()
        } else {
            String::new()
        };
        ObjectKey {
            kind,
            namespace,
            name: metadata.name.0.clone(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Header {
    pub(super) kind: String,
    #[serde(rename = "apiVersion", default)]
    pub(super) api_version: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Metadata {
    pub(super) name: Name,
    #[serde(default, deserialize_with = "nullable")]
    namespace: Option<Name>,
    #[serde(default, deserialize_with = "labels")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The namespace, `default` if none is written.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_ref().map_or("default", |name| &name.0)
    }
}

/// A name fit to be a component of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(pub(super) String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        // 253 characters is what Kubernetes allows at most.
        if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
            return Err(D::Error::custom(format_args!("{text:?} is not a name")));
        }
        Ok(Self(text))
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Namespace {
    pub(super) metadata: Metadata,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: NodeSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR", default, deserialize_with = "text")]
    pub(super) pod_cidr: Option<IpPrefix>,
    #[serde(rename = "podCIDRs", default, deserialize_with = "texts")]
    pub(super) pod_cidrs: Vec<IpPrefix>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NodeStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<NodeAddress>,
}

/// An address of a node; `ip` is `None` for host names.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawNodeAddress")]
pub(super) struct NodeAddress {
    pub(super) kind: String,
    pub(super) ip: Option<IpAddr>,
}

#[derive(Deserialize)]
struct RawNodeAddress {
    #[serde(rename = "type")]
    kind: String,
    // A Node says `address`, a CiliumNode `ip`.
    #[serde(alias = "ip")]
    address: String,
}

impl TryFrom<RawNodeAddress> for NodeAddress {
    type Error = String;

    fn try_from(RawNodeAddress { kind, address }: RawNodeAddress) -> Result<Self, String> {
        let ip = match address.parse() {
            Ok(ip) => Some(ip),
            Err(_) if !kind.ends_with("IP") => None,
            Err(error) => return Err(format!("{kind} address {address:?}: {error}")),
        };
        Ok(Self { kind, ip })
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct CiliumNode {
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: CiliumNodeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct CiliumNodeSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<NodeAddress>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ipam: Ipam,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) health: Health,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Ipam {
    #[serde(rename = "podCIDRs", default, deserialize_with = "texts")]
    pub(super) pod_cidrs: Vec<IpPrefix>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Health {
    #[serde(default, deserialize_with = "text")]
    pub(super) ipv4: Option<IpAddr>,
    #[serde(default, deserialize_with = "text")]
    pub(super) ipv6: Option<IpAddr>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: PodSpec,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) node_name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) host_network: bool,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) service_account_name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Container {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    container_port: u16,
    #[serde(default)]
    protocol: Protocol,
}

impl ContainerPort {
    /// The port, if it has a name.
    pub(super) fn named(&self) -> Option<NamedPort> {
        let Self {
            name,
            container_port,
            protocol,
        } = self;
        (!name.is_empty()).then(|| NamedPort {
            name: name.clone(),
            port: *container_port,
            protocol: protocol.as_str().to_owned(),
        })
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct PodStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) phase: String,
    #[serde(rename = "hostIP", default, deserialize_with = "text")]
    pub(super) host_ip: Option<IpAddr>,
    #[serde(rename = "podIP", default, deserialize_with = "text")]
    pub(super) pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs", default, deserialize_with = "nullable")]
    pub(super) pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodIp {
    #[serde(default, deserialize_with = "text")]
    pub(super) ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(rename = "clusterIP", default, deserialize_with = "text")]
    pub(super) cluster_ip: Option<ClusterIp>,
    #[serde(rename = "clusterIPs", default, deserialize_with = "texts")]
    pub(super) cluster_ips: Vec<ClusterIp>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<Port>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) selector: BTreeMap<String, String>,
}

/// A service's address, or the word that it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClusterIp {
    Headless,
    Ip(IpAddr),
}

impl FromStr for ClusterIp {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "None" {
            Ok(Self::Headless)
        } else {
            text.parse().map(Self::Ip)
        }
    }
}

/// A port of a service or slice.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Port {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) name: String,
    /// `None` means any, in a slice.
    #[serde(default)]
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) protocol: Protocol,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) endpoints: Vec<SliceEndpoint>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<Port>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct SliceEndpoint {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<SliceAddress>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) conditions: Conditions,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) hostname: String,
}

/// An address of a slice; `None` for a domain name (slices of type `FQDN`).
#[derive(Debug, Clone, Copy)]
pub(super) struct SliceAddress(pub(super) Option<IpAddr>);

impl<'de> Deserialize<'de> for SliceAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(ip) => Ok(Self(Some(ip))),
            // A top-level domain never begins with a digit, nor does a domain name hold a colon.
            Err(_)
                if !text.contains(':')
                    && text
                        .rsplit('.')
                        .find(|part| !part.is_empty())
                        .is_some_and(|part| {
                            part.starts_with(|c: char| c.is_ascii_alphabetic())
                        }) =>
            {
                Ok(Self(None))
            }
            Err(error) => Err(D::Error::custom(format_args!("{text:?}: {error}"))),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Conditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

impl Conditions {
    /// Ready (the default), or still serving while it goes away.
    pub(super) fn usable(self) -> bool {
        self.ready.unwrap_or(true)
            || (self.terminating.unwrap_or(false) && self.serving.unwrap_or(false))
    }
}

/// Reads null as the default.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a value from its text; null or nothing is `None`.
fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text: String = nullable(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    Text::parse(&text)
        .map(|value| Some(value.0))
        .map_err(D::Error::custom)
}

/// Reads values from their texts; null is the empty list.
fn texts<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
    Text<T>: DeserializeOwned,
{
    let values: Vec<Text<T>> = nullable(deserializer)?;
    Ok(values.into_iter().map(|value| value.0).collect())
}

/// A value that is written as text.
struct Text<T>(T);

impl<T: FromStr<Err: fmt::Display>> Text<T> {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error| format!("{text:?}: {error}"))
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Reads labels, which the keyspace joins by `;` and splits at the first `=`.
fn labels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let labels: BTreeMap<String, String> = nullable(deserializer)?;
    let bad = labels.iter().find(|(key, value)| {
        key.is_empty() || key.contains([';', '=', ':']) || value.contains(';')
    });
    match bad {
        Some((key, value)) => Err(D::Error::custom(format_args!(
            "{key:?}: {value:?} is not a label"
        ))),
        None => Ok(labels),
    }
}
