//! The routes and how their answers are put together.
use std::{convert::Infallible, io, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{State, maps, monitor, policy, status, wire};
use crate::{journal, lifecycle::Readiness, types::IdentityId};

/// Pieces of a backup that wait for its reader, each about `limits::SNAPSHOT_CHUNK_BYTES`.
const BACKUP_CHUNKS: usize = 4;
/// Why there is no backup of an agent with an external cluster store.
const NO_STORE: &str = "this agent has no cluster store of its own, as it runs with --kvstore=etcd; \
    back up the etcd that its etcd.config names (`etcdctl snapshot save`, or `tombolo store backup` \
    on the node that is named there)";

type Shared = Extract<Arc<State>>;

/// Everything, for the unix socket. Streams end when `token` is cancelled.
pub(super) fn all(state: Arc<State>, token: CancellationToken) -> Router {
    let stopped = token.clone();
    let monitor = move |state: Shared, query: Query<Vec<(String, String)>>| {
        let token = token.clone();
        async move { monitor::monitor(&state, &query, token) }
    };
    let backup = move |state: Shared| {
        let token = stopped.clone();
        async move { backup(&state, token) }
    };
    Router::new()
        .route(
            "/v1/status",
            get(async |state: Shared| Json(status::status(&state))),
        )
        .route(
            "/v1/cluster",
            get(async |state: Shared| Json(status::mesh(&state))),
        )
        .route("/v1/nodes", get(async |state: Shared| Json(nodes(&state))))
        .route(
            "/v1/identities",
            get(async |state: Shared| Json(identities(&state))),
        )
        .route(
            "/v1/endpoints",
            get(async |state: Shared| Json(endpoints(&state))),
        )
        .route("/v1/ip", get(async |state: Shared| Json(ips(&state))))
        .route("/v1/monitor", get(monitor))
        .route("/v1/store/backup", get(backup))
        .merge(policy::routes())
        .merge(maps::routes())
        .with_state(Arc::clone(&state))
        .merge(health(Arc::clone(&state)))
        .merge(metrics(state))
}

/// `/healthz`, `/readyz`, and `/readyz/cache` for the agents that read the cache.
pub(super) fn health(state: Arc<State>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async |state: Shared| readyz(&state.readiness)),
        )
        .route(
            "/readyz/cache",
            get(async |state: Shared| readyz(&state.cache_readiness)),
        )
        .with_state(state)
}

/// `/metrics`.
pub(super) fn metrics(state: Arc<State>) -> Router {
    Router::new()
        .route("/metrics", get(async |state: Shared| metrics_text(&state)))
        .with_state(state)
}

fn readyz(readiness: &Readiness) -> Response {
    let waiting = readiness.waiting();
    if waiting.is_empty() {
        return "Ready\n".into_response();
    }
    let text = format!("NotReady\nwaiting for: {}\n", waiting.join(", "));
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

fn metrics_text(state: &State) -> Response {
    let families = state.registry.gather();
    match prometheus::TextEncoder::new().encode_to_string(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The cluster store in one piece. Whoever reads it checks that its end came.
fn backup(state: &State, token: CancellationToken) -> Response {
    let Some(store) = state.store.clone() else {
        return (StatusCode::CONFLICT, NO_STORE).into_response();
    };
    let (sender, receiver) = mpsc::channel(BACKUP_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let mut emit = |chunk: &[u8]| {
            let chunk = Ok::<_, Infallible>(Bytes::copy_from_slice(chunk));
            sender.blocking_send(chunk).map_err(gone)
        };
        if let Err(error) = journal::backup(&store, &mut emit) {
            tracing::info!(%error, "Backup was broken off by its reader");
        }
    });
    let chunks = ReceiverStream::new(receiver).take_until(token.cancelled_owned());
    let body = Body::from_stream(chunks);
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

fn nodes(state: &State) -> Vec<wire::Node> {
    let nodes = state.view.nodes.iter().map(|entry| {
        let (cluster, name) = entry.key();
        let node = entry.value();
        wire::Node {
            cluster: cluster.to_string(),
            name: name.clone(),
            ipv4: node.ipv4,
            ipv4_cidr: node.ipv4_cidr.map(|cidr| cidr.to_string()),
            ipv6: node.ipv6,
            ipv6_cidr: node.ipv6_cidr.map(|cidr| cidr.to_string()),
            source: node.source.to_owned(),
        }
    });
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by(|a, b| (&a.cluster, &a.name).cmp(&(&b.cluster, &b.name)));
    nodes
}

fn identities(state: &State) -> Vec<wire::Identity> {
    // 0 means that none is known; it is nobody's identity.
    let reserved = (1..256).filter_map(|id| {
        let name = IdentityId(id).reserved_name()?;
        let labels = vec![format!("reserved:{name}")];
        Some(wire::Identity {
            id,
            labels,
            cluster: None,
            revision: None,
        })
    });
    let known = state.view.identities.iter().map(|entry| wire::Identity {
        id: entry.key().0,
        labels: wire::label_texts(&entry.value().labels),
        cluster: Some(entry.value().cluster.to_string()),
        revision: Some(entry.value().revision),
    });
    let mut identities: Vec<_> = reserved.chain(known).collect();
    identities.sort_by_key(|identity| identity.id);
    identities
}

fn endpoints(state: &State) -> Vec<wire::Endpoint> {
    let known = state.endpoints.borrow().clone();
    let endpoints = known.iter().map(|endpoint| wire::Endpoint {
        id: endpoint.id.0,
        identity: endpoint.identity.0,
        labels: wire::label_texts(&endpoint.labels),
        namespace: endpoint.namespace.clone(),
        name: endpoint.name.clone(),
        addresses: endpoint.addresses.clone(),
        interface: endpoint.interface.clone(),
        named_ports: endpoint
            .named_ports
            .iter()
            .map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol))
            .collect(),
    });
    let mut endpoints: Vec<_> = endpoints.collect();
    endpoints.sort_by_key(|endpoint| endpoint.id);
    endpoints
}

fn ips(state: &State) -> Vec<wire::Ip> {
    let mut known: Vec<_> = state
        .view
        .addresses
        .iter()
        .map(|e| (*e.key(), *e.value()))
        .collect();
    known.sort_by_key(|(prefix, _)| *prefix);
    let ips = known.into_iter().map(|(prefix, target)| wire::Ip {
        prefix: prefix.to_string(),
        identity: target.identity.0,
        cluster_id: target.cluster.get(),
    });
    ips.collect()
}
