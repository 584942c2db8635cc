//! Policies as parsed: complete, validated, not yet resolved against identities.
use std::{fmt, path::PathBuf};

use super::{PerDirection, Selector};
use crate::types::IpPrefix;

/// Where a policy comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A file in this node's policy directory.
    File(PathBuf),
    /// The cluster store: `<kind>/<namespace>/<name>`, with `_` for the namespace of a clusterwide
    /// policy.
    Cluster(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Cluster(name) => write!(f, "cluster store {name}"),
        }
    }
}

/// The kinds of object that are policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Kind {
    /// `cilium.io/v2`, confined to its namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, for endpoints of all namespaces.
    CiliumClusterwideNetworkPolicy,
    /// `networking.k8s.io/v1`, confined to its namespace.
    NetworkPolicy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
        })
    }
}

/// One policy object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What kind of object.
    pub kind: Kind,
    /// Its namespace, `default` if the object names none; `None` if it is clusterwide.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Whether what it would drop is only reported.
    pub audit: bool,
    /// The rules of `spec` and `specs`, in this order; at least one.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// `namespace/name`, or the name alone if it is clusterwide.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// One rule: whom it protects, and who may talk to these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which local endpoints; already confined to the policy's namespace.
    pub subject: Selector,
    /// Whether selecting an endpoint drops everything that is not allowed.
    pub default_deny: PerDirection<bool>,
    /// What is allowed or denied towards the endpoint; entries are alternatives.
    pub ingress: Vec<Grant>,
    /// What is allowed or denied away from it.
    pub egress: Vec<Grant>,
}

/// Peers that may, or may not, use ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whether it forbids instead of allowing.
    pub deny: bool,
    /// Who.
    pub peers: Peers,
    /// On which ports, sorted and unique; empty means all ports of all protocols.
    pub ports: Vec<Port>,
}

/// The L3 side of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Everybody, known or not.
    Any,
    /// Whom one of these selects; an empty list selects nobody.
    Of(Vec<Peer>),
}

/// One alternative of a grant's peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// By labels; confined to the namespace where the policy says nothing else, but not yet to
    /// the local cluster.
    Labels(Selector),
    /// All workloads of the own cluster.
    LocalCluster,
    /// By address, for what is no member of the mesh.
    Cidr {
        /// Addresses in it.
        cidr: IpPrefix,
        /// But not those in these, which lie inside it; sorted and unique.
        except: Vec<IpPrefix>,
    },
}

/// Destination ports of one protocol, or ICMP types.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Every port.
    All {
        /// IP protocol number, never 0.
        protocol: u8,
    },
    /// These and all between.
    Range {
        /// IP protocol number, never 0.
        protocol: u8,
        /// Host byte order, never 0.
        first: u16,
        /// Not below `first`.
        last: u16,
    },
    /// By name: of the endpoint itself for ingress, of the peer for egress.
    Named {
        /// IP protocol number; `None` for whichever the name has.
        protocol: Option<u8>,
        /// In lower case: the case of names of ports does not count.
        name: String,
    },
    /// An ICMP type.
    Icmp {
        /// 1 for IPv4, 58 for IPv6.
        protocol: u8,
        /// The type.
        kind: u8,
    },
}
