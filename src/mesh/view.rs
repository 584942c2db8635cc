//! The read side of the mesh: what admin, events and metrics look into.
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Delta, IpTarget, Propagation, Terms, decode::Rejection, member::Member};
use crate::{
    keyspace::Kind,
    limits::KEY_SHOWN_BYTES,
    telemetry::Samples,
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Labels, NamedPort},
};

/// The read side: concurrent maps that admin, events and metrics look into. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// All clusters' nodes, by cluster and name.
    pub nodes: Arc<dashmap::DashMap<(ClusterName, String), NodeView>>,
    /// All clusters' identities (reserved ones are not in here).
    pub identities: Arc<dashmap::DashMap<IdentityId, IdentityView>>,
    /// All clusters' addresses.
    pub addresses: Arc<dashmap::DashMap<IpPrefix, IpTarget>>,
    /// The names of ports of those addresses that give some; never empty.
    pub ports: Arc<dashmap::DashMap<IpPrefix, Arc<[NamedPort]>>>,
    /// Entries rejected, by cluster and reason.
    pub rejected: Arc<dashmap::DashMap<(ClusterName, &'static str), u64>>,
    /// The last [`Delta::Synced`] or [`Delta::Removed`] of each cluster, set before it is queued and
    /// after the entries it speaks of: whoever lost deltas finds it here.
    pub marks: Arc<dashmap::DashMap<ClusterId, Delta>>,
    /// Entry counts by cluster and kind.
    pub counts: Arc<dashmap::DashMap<(ClusterName, Kind), u64>>,
    /// The last entry rejected, by cluster and reason.
    pub offenders: Arc<dashmap::DashMap<(ClusterName, &'static str), Offender>>,
    /// Records of peers that wait for an address or range that another cluster has, by the order in
    /// which they came.
    pub claimants: Arc<dashmap::DashMap<u64, Claimant>>,
    /// Services that peers share, as `namespace/name`, and how many peers share each.
    pub services: Arc<dashmap::DashMap<Bytes, u32>>,
    /// What each member was let in on.
    pub terms: Arc<dashmap::DashMap<ClusterName, Terms>>,
    /// How long changes take to the kernel.
    pub propagation: Propagation,
    /// Kinds of members of which entries are known from the disk only, as no list was complete
    /// since the start.
    pub restored: Arc<dashmap::DashSet<(ClusterName, Kind)>>,
    /// Addresses and pod CIDRs of the own cluster's nodes, and what is remembered of the cluster.
    pub territory: Arc<dashmap::DashSet<IpPrefix>>,
    /// The own cluster's nodes and addresses are known, from its store or from an earlier process:
    /// only then may peers be heard.
    pub own_known: watch::Sender<bool>,
}

/// An entry that was rejected.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Offender {
    /// What it is.
    pub kind: Kind,
    /// Its key behind the kind's prefix, at most [`KEY_SHOWN_BYTES`] of it.
    pub key: String,
    /// Mod revision in that cluster's store; 0 if it is not known any more.
    pub revision: i64,
    /// What is wrong with it.
    pub error: String,
}

/// A record that is not in force, as another cluster has what it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// Whose it is.
    pub cluster: ClusterName,
    /// What it is.
    pub kind: Kind,
    /// Its key behind the kind's prefix, at most [`KEY_SHOWN_BYTES`] of it.
    pub key: String,
    /// What it waits for.
    pub prefix: IpPrefix,
}

/// A node as operators list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeView {
    /// First IPv4 InternalIP, else ExternalIP, else any.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv4 pod CIDR.
    pub ipv4_cidr: Option<IpPrefix>,
    /// First IPv6 address, same order.
    pub ipv6: Option<Ipv6Addr>,
    /// Its IPv6 pod CIDR.
    pub ipv6_cidr: Option<IpPrefix>,
    /// `local` or `clustermesh`.
    pub source: &'static str,
}

/// An identity with its provenance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct IdentityView {
    /// Its labels.
    pub labels: Arc<Labels>,
    /// The cluster that allocated it.
    pub cluster: ClusterName,
    /// Mod revision in that cluster's store.
    pub revision: i64,
    /// Since when it has these labels, as far as this process knows.
    #[serde(skip)]
    pub learned: Instant,
}

/// Counts what is rejected, notes the last of each reason and logs a sample.
#[derive(Debug, Default)]
pub(super) struct Rejections(Samples<(ClusterName, &'static str)>);

impl Rejections {
    pub(super) fn note(
        &self,
        view: &View,
        member: &Member,
        (kind, suffix, revision): (Kind, &[u8], i64),
        rejection: &Rejection,
    ) {
        let of = (member.name.clone(), rejection.reason());
        *view.rejected.entry(of.clone()).or_insert(0) += 1;
        let offender = Offender {
            kind,
            key: shown(suffix),
            revision,
            error: rejection.to_string(),
        };
        if let Some(count) = self.0.take(of.clone()) {
            tracing::warn!(
                cluster = %member.name,
                ?kind,
                key = offender.key,
                reason = rejection.reason(),
                error = %rejection,
                count,
                "Entries rejected"
            );
        }
        view.offenders.insert(of, offender);
    }
}

/// A key as status shows it.
pub(super) fn shown(suffix: &[u8]) -> String {
    let shown = &suffix[..suffix.len().min(KEY_SHOWN_BYTES)];
    String::from_utf8_lossy(shown).into_owned()
}

impl View {
    /// Forgets what is told of a member besides its entries.
    pub(super) fn forget(&self, name: &ClusterName) {
        self.rejected.retain(|(cluster, _), _| cluster != name);
        self.offenders.retain(|(cluster, _), _| cluster != name);
        self.counts.retain(|(cluster, _), _| cluster != name);
        self.restored.retain(|(cluster, _)| cluster != name);
        self.terms.remove(name);
    }
}
