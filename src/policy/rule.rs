//! Policies as parsed: complete, validated, not yet resolved against identities.
use super::Selector;

/// One policy object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its namespace, `default` if the object names none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The rules of `spec` and `specs`, in this order; at least one.
    pub rules: Vec<Rule>,
}

/// One rule: whom it protects, and who may reach these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which local endpoints; already confined to the policy's namespace.
    pub subject: Selector,
    /// Whether selecting an endpoint drops everything towards it that is not allowed.
    pub deny_ingress_by_default: bool,
    /// What is allowed towards the endpoint; entries are alternatives.
    pub ingress: Vec<Grant>,
}

/// Peers that may use ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub peers: Peers,
    /// On which ports; empty means all ports of all protocols.
    pub ports: Vec<PortProtocol>,
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
}

/// A port of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortProtocol {
    /// IP protocol number, never 0.
    pub protocol: u8,
    /// Host byte order, never 0.
    pub port: u16,
}
