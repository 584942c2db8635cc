//! What Prometheus is told of peers and mesh. A peer that is removed has no series any more.
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Family, GAUGE, Sample, Statuses, as_float};
use crate::{
    admin::{State, status},
    keyspace::Kind,
    peer::PeerStatus,
};
use prometheus::proto::MetricType;

const NODE: &[&str] = &["source_cluster", "source_node_name"];
const PEER: &[&str] = &["source_cluster", "source_node_name", "target_cluster"];
const CACHE: &[&str] = &["source_cluster"];
const CACHED_PEER: &[&str] = &["source_cluster", "target_cluster"];

/// One look at everything.
struct Scrape<'a> {
    state: &'a State,
    peers: Vec<PeerStatus>,
    /// Unix milliseconds.
    now: u64,
}

type OfAll = (Family, fn(&Scrape<'_>) -> u64);
type OfPeer = (Family, fn(&Scrape<'_>, &PeerStatus) -> Option<f64>);

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Family {
    let kind = GAUGE;
    Family {
        name,
        help,
        kind,
        labels,
    }
}

/// Of the whole mesh.
const ALL: &[OfAll] = &[
    (
        gauge(
            "tombolo_clustermesh_remote_clusters",
            "Peers configured on this node. Must equal the number of peer files.",
            NODE,
        ),
        |scrape| scrape.peers.len() as u64,
    ),
    (
        gauge(
            "tombolo_clustermesh_global_services",
            "Services that peers share; those of several peers under one name are one.",
            NODE,
        ),
        |scrape| status::global_services(scrape.state),
    ),
    (
        gauge(
            "tombolo_kvstoremesh_remote_clusters",
            "Peers whose entries the cache is to hold.",
            CACHE,
        ),
        |scrape| scrape.peers.len() as u64,
    ),
];

/// Of each peer.
const OF_PEER: &[OfPeer] = &[
    (
        gauge(
            "tombolo_clustermesh_peer_configured",
            "1 for each peer that has a file. Tells a peer that is down from one that was removed.",
            PEER,
        ),
        |_, _| Some(1.0),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_readiness_status",
            "1 if the peer is connected and synced. If 0: tombolo troubleshoot names the failed layer.",
            PEER,
        ),
        |_, peer| Some(as_float(u64::from(peer.ready))),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_failures",
            "Failed attempts to reach the peer. If it keeps rising: tombolo troubleshoot.",
            PEER,
        ),
        |_, peer| Some(as_float(peer.num_failures)),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_last_failure_ts",
            "Unix time of the last failed attempt, 0 if there was none.",
            PEER,
        ),
        |_, peer| Some(as_float(peer.last_failure.unwrap_or(0))),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_nodes",
            "Nodes held of the peer. If 0 while ready, look at the peer.",
            PEER,
        ),
        |scrape, peer| scrape.count(peer, Kind::Nodes),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_endpoints",
            "Addresses held of the peer.",
            PEER,
        ),
        |scrape, peer| scrape.count(peer, Kind::Ips),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_identities",
            "Identities held of the peer.",
            PEER,
        ),
        |scrape, peer| scrape.count(peer, Kind::Identities),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_services",
            "Services that the peer shares.",
            PEER,
        ),
        |scrape, peer| scrape.count(peer, Kind::Services),
    ),
    (
        gauge(
            "tombolo_clustermesh_remote_cluster_cache_age_seconds",
            "Time since the server that the peer's entries come by last sent something: the peer's, \
             or the importing node's. Of what is known from the disk only, since the agent's start; \
             none where nothing is known. Above a minute what is enforced may be outdated: \
             tombolo troubleshoot.",
            PEER,
        ),
        |scrape, peer| match peer.last_heard {
            Some(heard) => Some(as_float(scrape.now.saturating_sub(heard)) / 1000.0),
            None => scrape.restored_age(peer),
        },
    ),
];

/// Of each peer, as the readers of the cache know them.
const OF_CACHED_PEER: &[OfPeer] = &[
    (
        gauge(
            "tombolo_kvstoremesh_remote_cluster_readiness_status",
            "1 if the peer is connected and all of it is in the cache.",
            CACHED_PEER,
        ),
        |_, peer| Some(as_float(u64::from(peer.ready))),
    ),
    (
        gauge(
            "tombolo_kvstoremesh_remote_cluster_failures",
            "Failed attempts to reach the peer. If it keeps rising: tombolo troubleshoot.",
            CACHED_PEER,
        ),
        |_, peer| Some(as_float(peer.num_failures)),
    ),
    (
        gauge(
            "tombolo_kvstoremesh_remote_cluster_last_failure_ts",
            "Unix time of the last failed attempt, 0 if there was none.",
            CACHED_PEER,
        ),
        |_, peer| Some(as_float(peer.last_failure.unwrap_or(0))),
    ),
];

/// Those with labels of their own.
const OTHERS: [Family; 3] = [
    gauge(
        "tombolo_kvstoremesh_kvstore_initial_sync_completed",
        "1 if a kind of a peer's entries was read completely in the present connection.",
        &["scope", "source_cluster", "action"],
    ),
    gauge(
        "tombolo_mesh_entries",
        "Entries held of each cluster, the own one included.",
        &["target_cluster", "kind"],
    ),
    Family {
        name: "tombolo_rejected_keys_total",
        help: "Entries of a peer that were refused; with event-rate, how often its changes had to \
               wait. If it rises: tombolo status --verbose.",
        kind: MetricType::COUNTER,
        labels: &["target_cluster", "reason"],
    },
];

/// Registers what is read from the peers and the mesh.
///
/// # Errors
/// If they are registered already.
pub fn register_mesh(state: &State) -> Result<(), prometheus::Error> {
    state.view.propagation.register(&state.registry)?;
    let all = ALL.iter().map(|(family, _)| *family);
    let of_peer = OF_PEER.iter().chain(OF_CACHED_PEER);
    let families = all.chain(of_peer.map(|(family, _)| *family)).chain(OTHERS);
    let mut read = state.clone();
    // The registry must not own itself.
    read.registry = prometheus::Registry::new();
    let read = Arc::new(move || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        let scrape = Scrape {
            state: &read,
            peers: (read.peers)(),
            now: u64::try_from(now).unwrap_or(u64::MAX),
        };
        scrape.samples()
    });
    let statuses = Statuses::new(families.collect(), read)?;
    state.registry.register(Box::new(statuses))
}

impl Scrape<'_> {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "it is a reader of a table of those that may fail"
    )]
    fn count(&self, peer: &PeerStatus, kind: Kind) -> Option<f64> {
        Some(as_float(status::count(self.state, &peer.name, kind)))
    }

    /// How old what the disk told of a peer is, at the least.
    fn restored_age(&self, peer: &PeerStatus) -> Option<f64> {
        let mut restored = self.state.view.restored.iter();
        let known = restored.any(|entry| entry.key().0 == peer.name);
        known.then(|| self.state.started.elapsed().as_secs_f64())
    }

    /// In the order in which the families are registered.
    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (family, (table, value)) in ALL.iter().enumerate() {
            samples.push(Sample {
                family,
                labels: self.labels(table.labels, None),
                value: as_float(value(self)),
            });
        }
        let tables = OF_PEER.iter().chain(OF_CACHED_PEER);
        for (index, (table, value)) in tables.enumerate() {
            for peer in &self.peers {
                samples.extend(value(self, peer).map(|value| Sample {
                    family: ALL.len() + index,
                    labels: self.labels(table.labels, Some(peer.name.as_str())),
                    value,
                }));
            }
        }
        self.others(&mut samples);
        samples
    }

    fn labels(&self, names: &[&str], peer: Option<&str>) -> Vec<String> {
        let value = |name: &&str| match *name {
            "source_cluster" => self.state.cluster_name.to_string(),
            "source_node_name" => self.state.node_name.clone(),
            _ => peer.unwrap_or_default().to_owned(),
        };
        names.iter().map(value).collect()
    }

    fn others(&self, samples: &mut Vec<Sample>) {
        let first = ALL.len() + OF_PEER.len() + OF_CACHED_PEER.len();
        for peer in &self.peers {
            for kind in Kind::ALL {
                let scope = format!("{}/v1", kind.segment());
                samples.push(Sample {
                    family: first,
                    labels: vec![scope, peer.name.to_string(), "read".to_owned()],
                    value: as_float(u64::from(peer.synced.has(kind))),
                });
            }
        }
        for entry in self.state.view.counts.iter() {
            let (cluster, kind) = entry.key();
            let kind = match kind {
                Kind::Ips => "ips",
                Kind::ServiceExports => "service-exports",
                Kind::EndpointSlices => "endpoint-slices",
                kind => kind.segment(),
            };
            samples.push(Sample {
                family: first + 1,
                labels: vec![cluster.to_string(), kind.to_owned()],
                value: as_float(*entry.value()),
            });
        }
        for entry in self.state.view.rejected.iter() {
            let (cluster, reason) = entry.key();
            samples.push(Sample {
                family: first + 2,
                labels: vec![cluster.to_string(), (*reason).to_owned()],
                value: as_float(*entry.value()),
            });
        }
    }
}
