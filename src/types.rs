//! Newtypes shared by all layers: names, ids, labels, address prefixes. No I/O.
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

pub use self::labels::{Label, LabelError, Labels};

mod labels;

/// The name of a cluster: 1–32 lower-case alphanumerics or `-`, first and last alphanumeric.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

/// Why a text is not a cluster name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cluster name {0:?} must be 1-32 lower-case letters, digits or '-', and begin and end with a letter or digit"
)]
pub struct ClusterNameError(String);

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = ClusterNameError;

    fn from_str(text: &str) -> Result<Self, ClusterNameError> {
        let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends_ok = bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum);
        if bytes.len() <= 32 && ends_ok && bytes.iter().all(|b| alnum(b) || *b == b'-') {
            Ok(Self(text.into()))
        } else {
            Err(ClusterNameError(text.chars().take(64).collect()))
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl serde::Serialize for ClusterName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for ClusterName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How many clusters a mesh may have; decides how an identity's bits are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxClusters {
    /// 255 clusters with 65 536 identities each.
    #[default]
    C255,
    /// 511 clusters with 32 768 identities each.
    C511,
}

impl MaxClusters {
    /// The largest cluster id.
    #[must_use]
    pub const fn max_id(self) -> u32 {
        match self {
            Self::C255 => 255,
            Self::C511 => 511,
        }
    }

    /// The position of the cluster id within an identity.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::C255 => 16,
            Self::C511 => 15,
        }
    }

    /// First and last identity of a cluster, both inclusive.
    #[must_use]
    pub const fn identities(self, cluster: ClusterId) -> (IdentityId, IdentityId) {
        let first = cluster.0 << self.shift();
        (
            IdentityId(first),
            IdentityId(first + (1 << self.shift()) - 1),
        )
    }

    /// True if `identity` lies in the range of `cluster`.
    #[must_use]
    pub const fn owns(self, cluster: ClusterId, identity: IdentityId) -> bool {
        identity.0 >> self.shift() == cluster.0
    }
}

/// A cluster's number, `1..=max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct ClusterId(u32);

/// Why a number is not a cluster id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cluster id {id} must lie in 1..={max}")]
pub struct ClusterIdError {
    id: u32,
    max: u32,
}

impl ClusterId {
    /// Checks `id` against the mesh's maximum.
    ///
    /// # Errors
    /// If `id` is 0 (which means "no mesh") or above the maximum.
    pub const fn new(id: u32, max: MaxClusters) -> Result<Self, ClusterIdError> {
        if id == 0 || id > max.max_id() {
            return Err(ClusterIdError {
                id,
                max: max.max_id(),
            });
        }
        Ok(Self(id))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A numeric security identity. Below 256 reserved, else `cluster id << shift | local part`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct IdentityId(pub u32);

impl IdentityId {
    /// No identity known; in a policy map it stands for "any".
    pub const UNKNOWN: Self = Self(0);
    /// The node itself.
    pub const HOST: Self = Self(1);
    /// Everything outside the mesh.
    pub const WORLD: Self = Self(2);
    /// Any other node, of this or another cluster.
    pub const REMOTE_NODE: Self = Self(6);
    /// Everything outside the mesh that has an IPv4 address.
    pub const WORLD_IPV4: Self = Self(9);
    /// Everything outside the mesh that has an IPv6 address.
    pub const WORLD_IPV6: Self = Self(10);

    /// True for identities that mean the same in every cluster.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0 < 256
    }

    /// True for identities that mean something on this node only, and are never published.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 >> 24 != 0
    }

    /// The name of a reserved identity, as in its label `reserved:<name>`.
    #[must_use]
    pub const fn reserved_name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            1 => "host",
            2 => "world",
            3 => "unmanaged",
            4 => "health",
            5 => "init",
            6 => "remote-node",
            7 => "kube-apiserver",
            8 => "ingress",
            9 => "world-ipv4",
            10 => "world-ipv6",
            _ => return None,
        })
    }
}

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number for a local endpoint, unique on this node, kept across restarts; never 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address with a prefix length; host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    addr: IpAddr,
    len: u8,
}

/// Why something is not an address prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP address or CIDR prefix")]
pub struct IpPrefixError(String);

impl IpPrefix {
    /// All IPv4 addresses.
    pub const ALL_IPV4: Self = Self {
        addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        len: 0,
    };
    /// All IPv6 addresses.
    pub const ALL_IPV6: Self = Self {
        addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        len: 0,
    };

    /// A single address.
    #[must_use]
    pub const fn host(addr: IpAddr) -> Self {
        let len = if addr.is_ipv4() { 32 } else { 128 };
        Self { addr, len }
    }

    /// `addr/len` with host bits cleared; `None` if `len` is too long for the family.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(a) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6((u128::from(a) & mask).into())
            }
            _ => return None,
        };
        Some(Self { addr, len })
    }

    /// The address, host bits zero.
    #[must_use]
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits of the address's own family.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.len
    }

    /// True for a single address.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        self.len == if self.addr.is_ipv4() { 32 } else { 128 }
    }

    /// True if `addr` lies inside.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4()
            && Self::new(addr, self.len).is_some_and(|p| p.addr == self.addr)
    }
}

impl FromStr for IpPrefix {
    type Err = IpPrefixError;

    fn from_str(text: &str) -> Result<Self, IpPrefixError> {
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(Self::host),
            Some((addr, len)) => match (addr.parse(), len.parse()) {
                (Ok(addr), Ok(len)) => Self::new(addr, len),
                _ => None,
            },
        };
        parsed.ok_or_else(|| IpPrefixError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            self.addr.fmt(f)
        } else {
            write!(f, "{}/{}", self.addr, self.len)
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for IpPrefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A named port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize)]
pub struct NamedPort {
    /// The name that policies and services refer to.
    pub name: String,
    /// The number, host byte order.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A workload on this node, with everything that only this node knows of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LocalEndpoint {
    /// Stable number on this node.
    pub id: EndpointId,
    /// The identity allocated for `labels`.
    pub identity: IdentityId,
    /// Identity-relevant labels, the cluster label included.
    pub labels: Arc<Labels>,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod or container name.
    pub name: String,
    /// Own addresses; at least one, at most four are enforced.
    pub addresses: Vec<IpAddr>,
    /// Host-side interface; `None` if unknown: then nothing is enforced, and status says so.
    pub interface: Option<String>,
    /// Ports with names.
    pub named_ports: Vec<NamedPort>,
    /// Nothing of it is dropped by policy, only reported.
    pub audit: bool,
}

/// A change of this node's workloads, after identity allocation; what `policy` and `enforcer` see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointEvent {
    /// New or changed, whole value.
    Upsert(Arc<LocalEndpoint>),
    /// Gone.
    Delete(EndpointId),
    /// All endpoints that the source knew at its start were sent.
    Synced,
}
