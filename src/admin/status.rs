//! `/v1/status` and `/v1/cluster`: what others keep, put together at the time of the question.
use std::{path::Path, time::SystemTime};

use super::{State, wire};
use crate::{
    keyspace::{Kind, Layout},
    limits::CLAIMS_SHOWN_MAX,
    peer::{PeerStatus, inspect},
    store::{KeyRange, RangeRequest},
    tls::inspect::Certificate,
    types::ClusterName,
};

pub(super) fn status(state: &State) -> wire::Status {
    let waiting = state.readiness.waiting();
    let endpoints = state.endpoints.borrow().clone();
    let not_enforced = endpoints.iter().filter(|e| e.interface.is_none());
    let mut not_enforced: Vec<_> = not_enforced
        .map(|e| format!("{}/{}", e.namespace, e.name))
        .collect();
    not_enforced.sort();
    wire::Status {
        cluster: wire::Cluster {
            name: state.cluster_name.to_string(),
            id: state.cluster_id.get(),
            max_connected_clusters: state.max_clusters.max_id(),
        },
        node_name: state.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: unix_seconds(),
        uptime_seconds: state.started.elapsed().as_secs(),
        ready: waiting.is_empty(),
        waiting,
        cluster_mesh: mesh(state),
        local: counts(state, &state.cluster_name),
        num_local_endpoints: endpoints.len(),
        not_enforced,
        errors: (state.errors)(),
        rejected: rejected(state),
        policies: state.policies.summary(),
        datapath: state.datapath.borrow().clone(),
    }
}

/// The mesh block alone, as kvstoremesh answers it.
pub(super) fn mesh(state: &State) -> wire::ClusterMesh {
    let mut peers = (state.peers)();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let clusters: Vec<_> = peers
        .iter()
        .map(|peer| remote_cluster(state, peer))
        .collect();
    wire::ClusterMesh {
        num_global_services: global_services(state),
        clusters,
    }
}

/// Services that several peers share under one name are one.
pub(super) fn global_services(state: &State) -> u64 {
    state.view.services.len() as u64
}

pub(super) fn count(state: &State, cluster: &ClusterName, kind: Kind) -> u64 {
    let count = state.view.counts.get(&(cluster.clone(), kind));
    count.map(|count| *count).unwrap_or_default()
}

fn rejected(state: &State) -> Vec<wire::Rejected> {
    let rejected = state.view.rejected.iter().map(|entry| {
        let (cluster, reason) = entry.key();
        wire::Rejected {
            cluster: cluster.to_string(),
            reason: (*reason).to_owned(),
            count: *entry.value(),
            last: state
                .view
                .offenders
                .get(entry.key())
                .map(|last| wire::Offender {
                    kind: last.kind.segment().to_owned(),
                    key: last.key.clone(),
                    error: last.error.clone(),
                }),
        }
    });
    let mut rejected: Vec<_> = rejected.collect();
    rejected.sort_by(|a, b| (&a.cluster, &a.reason).cmp(&(&b.cluster, &b.reason)));
    rejected
}

fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map(|time| time.as_secs()).unwrap_or_default()
}

fn counts_by(count: impl Fn(Kind) -> u64) -> wire::Counts {
    wire::Counts {
        num_nodes: count(Kind::Nodes),
        num_endpoints: count(Kind::Ips),
        num_identities: count(Kind::Identities),
        num_shared_services: count(Kind::Services),
        num_service_exports: count(Kind::ServiceExports),
        num_endpoint_slices: count(Kind::EndpointSlices),
    }
}

fn counts(state: &State, cluster: &ClusterName) -> wire::Counts {
    counts_by(|kind| count(state, cluster, kind))
}

/// What is in the peer's view of this cluster.
fn exported(state: &State, peer: &ClusterName) -> wire::Counts {
    let view = state.export.of(Some(peer.as_str()));
    counts_by(|kind| {
        let prefix = Layout::State.prefix(kind, &state.cluster_name);
        let request = RangeRequest {
            range: KeyRange::prefix(prefix.as_bytes()),
            count_only: true,
            ..RangeRequest::default()
        };
        let found = view.store.range(&request);
        found.map_or(0, |found| u64::try_from(found.count).unwrap_or(0))
    })
}

fn remote_cluster(state: &State, peer: &PeerStatus) -> wire::RemoteCluster {
    let config = peer.config.as_ref();
    let synced = peer.synced;
    let (num_claims_waiting, claims_waiting) = claims_waiting(state, &peer.name);
    wire::RemoteCluster {
        name: peer.name.to_string(),
        config_path: peer.config_path.display().to_string(),
        ready: peer.ready,
        connected: peer.connected,
        status: peer.status.clone(),
        failed_layer: peer.layer,
        endpoint: peer.endpoint.clone(),
        last_heard: peer.last_heard,
        counts: counts(state, &peer.name),
        exported: exported(state, &peer.name),
        num_failures: peer.num_failures,
        last_failure: peer.last_failure,
        config: wire::RemoteConfig {
            required: true,
            retrieved: config.is_some(),
            cluster_id: config.map(|c| c.cluster_id.get()).unwrap_or_default(),
            kvstoremesh: config.is_some_and(|c| c.kvstoremesh),
            sync_canaries: config.is_some_and(|c| c.sync_canaries),
            service_exports_enabled: config.and_then(|c| c.service_exports_enabled),
            endpoint_slices: config.is_some_and(|c| c.endpoint_slices),
        },
        synced: wire::Synced {
            nodes: synced.nodes,
            endpoints: synced.endpoints,
            identities: synced.identities,
            services: synced.services,
            service_exports: synced.service_exports,
            endpoint_slices: synced.endpoint_slices,
        },
        restored: restored(state, &peer.name),
        num_claims_waiting,
        claims_waiting,
        warnings: peer.warnings.clone(),
        certificates: certificates(&peer.config_path),
    }
}

/// How many records of the peer wait for an address, and those that wait longest.
fn claims_waiting(state: &State, peer: &ClusterName) -> (u64, Vec<wire::ClaimWaiting>) {
    let all = state.view.claimants.iter();
    let all = all.filter(|claimant| claimant.cluster == *peer);
    let mut all: Vec<_> = all.map(|c| (*c.key(), c.value().clone())).collect();
    all.sort_unstable_by_key(|(number, _)| *number);
    let count = all.len() as u64;
    all.truncate(CLAIMS_SHOWN_MAX);
    let told = all.into_iter().map(|(_, claimant)| wire::ClaimWaiting {
        kind: claimant.kind.segment().to_owned(),
        key: claimant.key,
        prefix: claimant.prefix.to_string(),
        // What is no address of another peer is within a range of the own cluster.
        holder_id: match state.view.addresses.get(&claimant.prefix) {
            Some(target) => target.cluster.get(),
            None => state.cluster_id.get(),
        },
    });
    (count, told.collect())
}

fn restored(state: &State, peer: &ClusterName) -> Vec<String> {
    let kinds = Kind::ALL.into_iter();
    let kinds = kinds.filter(|kind| state.view.restored.contains(&(peer.clone(), *kind)));
    kinds.map(|kind| kind.segment().to_owned()).collect()
}

/// What a peer's file names, read now. Files that can't be read have their error in the status line.
fn certificates(config_path: &Path) -> Vec<wire::PeerCertificate> {
    let Ok(file) = inspect::load(config_path) else {
        return Vec::new();
    };
    let tls = &file.connect.tls;
    let client = tls.identity.iter().map(|(cert, _)| ("client", cert));
    let ca = file.ca_file().into_iter().map(|ca| ("ca", ca));
    let all = client.chain(ca).flat_map(|(role, path)| {
        let found = Certificate::all_of(path).unwrap_or_default();
        found
            .into_iter()
            .map(move |certificate| wire::PeerCertificate {
                role: role.to_owned(),
                path: path.display().to_string(),
                certificate,
            })
    });
    all.collect()
}
