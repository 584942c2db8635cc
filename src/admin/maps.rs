//! What the kernel's maps hold, told as it is read: no more than a few batches are in memory.
use std::{convert::Infallible, net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    State,
    wire::{label_texts, maps as wire},
};
use crate::{
    enforcer::{
        self, MapUse, abi, kernel,
        rows::{Flow, Row, Table},
    },
    limits::{MAP_ROWS_CHUNK_BYTES, MAP_ROWS_CHUNKS},
    policy::{Direction, PolicyEntry, PolicyKey, Votes},
    types::{IdentityId, IpPrefix},
};

type Shared = Extract<Arc<State>>;

/// Restricts what is told.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// Only rows of this endpoint.
    endpoint: Option<u32>,
    /// Only the row that a packet of this address would meet.
    address: Option<IpAddr>,
}

pub(super) fn routes() -> Router<Arc<State>> {
    let stream = |table| {
        async move |state: Shared, Query(filter): Query<Filter>| rows(state.0, table, filter)
    };
    Router::new()
        .route("/v1/bpf/policy", get(stream(Table::Policy)))
        .route("/v1/bpf/ipcache", get(stream(Table::Ipcache)))
        .route("/v1/bpf/ct", get(stream(Table::Conntrack)))
        .route("/v1/maps", get(usage))
}

async fn usage(state: Shared) -> Result<Json<Vec<MapUse>>, (StatusCode, String)> {
    let Some(handle) = state.enforcer.clone() else {
        return Ok(Json(Vec::new()));
    };
    let read = tokio::task::spawn_blocking(move || handle.map_usage()).await;
    let failed = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, error);
    let read = read.map_err(|error| failed(error.to_string()))?;
    read.map(Json).map_err(|error| failed(error.to_string()))
}

/// A line for each row. A reader that goes away ends the reading.
fn rows(state: Arc<State>, table: Table, filter: Filter) -> Response {
    let (sender, receiver) = mpsc::channel(MAP_ROWS_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut lines = Lines {
            sender,
            chunk: Vec::new(),
        };
        if let Err(error) = tell(&state, table, filter, &mut lines) {
            tracing::warn!(%error, ?table, "A map could not be read to its end");
        }
        lines.flush();
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

struct Lines {
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    chunk: Vec<u8>,
}

impl Lines {
    /// False once nobody reads.
    fn push(&mut self, row: &impl serde::Serialize) -> bool {
        // Plain numbers and text: there is nothing in it that JSON can't express.
        self.chunk
            .extend(serde_json::to_vec(row).unwrap_or_default());
        self.chunk.push(b'\n');
        self.chunk.len() < MAP_ROWS_CHUNK_BYTES || self.flush()
    }

    fn flush(&mut self) -> bool {
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        chunk.is_empty() || self.sender.blocking_send(Ok(chunk)).is_ok()
    }
}

fn tell(
    state: &State,
    table: Table,
    filter: Filter,
    lines: &mut Lines,
) -> Result<(), enforcer::Error> {
    let Some(handle) = &state.enforcer else {
        return Ok(());
    };
    let of = |endpoint: u32| filter.endpoint.is_none_or(|id| id == endpoint);
    let now = kernel::monotonic_ns();
    let mut best: Option<(IpPrefix, wire::Address)> = None;
    handle.rows(table, |row| match row {
        Row::Policy { key, entry } if of(key.endpoint.0) => lines.push(&policy(state, &key, entry)),
        Row::Flow(flow) if of(flow.endpoint.0) => lines.push(&tracked(state, &flow, now)),
        Row::Address {
            prefix,
            identity,
            cluster,
        } => {
            let row = wire::Address {
                prefix: prefix.to_string(),
                identity: identity.0,
                cluster_id: cluster,
            };
            let Some(address) = filter.address else {
                return lines.push(&row);
            };
            if prefix.contains(address)
                && best.as_ref().is_none_or(|known| beats(&row, prefix, known))
            {
                best = Some((prefix, row));
            }
            true
        }
        Row::Policy { .. } | Row::Flow(_) => true,
    })?;
    if let Some((_, row)) = best {
        lines.push(&row);
    }
    Ok(())
}

/// As the programs decide: the mesh first, then the longest prefix.
fn beats(row: &wire::Address, prefix: IpPrefix, (known, best): &(IpPrefix, wire::Address)) -> bool {
    let of_mesh = |row: &wire::Address| row.cluster_id.is_some();
    match (of_mesh(row), of_mesh(best)) {
        (true, false) => true,
        (false, true) => false,
        _ => prefix.prefix_len() > known.prefix_len(),
    }
}

fn policy(state: &State, key: &PolicyKey, entry: PolicyEntry) -> wire::Policy {
    let votes = [
        (Votes::ALLOW, "allow"),
        (Votes::DENY, "deny"),
        (Votes::AUDIT_ALLOW, "audit-allow"),
        (Votes::AUDIT_DENY, "audit-deny"),
    ];
    let votes = votes.into_iter();
    let votes = votes.filter(|(vote, _)| entry.votes.contains(*vote));
    let behind = u16::MAX.checked_shr(u32::from(key.port_bits)).unwrap_or(0);
    wire::Policy {
        endpoint: key.endpoint.0,
        direction: match key.direction {
            Direction::Ingress => "ingress".to_owned(),
            Direction::Egress => "egress".to_owned(),
        },
        identity: key.identity.0,
        labels: labels(state, key.identity),
        protocol: key.protocol,
        port: key.port,
        last_port: key.port | behind,
        votes: votes.map(|(_, name)| name.to_owned()).collect(),
        rule: entry.rule,
        rule_name: rule_name(state, entry.rule),
    }
}

fn labels(state: &State, id: IdentityId) -> Vec<String> {
    match (id.reserved_name(), state.view.identities.get(&id)) {
        (Some(_), _) if id == IdentityId::UNKNOWN => Vec::new(),
        (Some(name), _) => vec![format!("reserved:{name}")],
        (None, Some(known)) => label_texts(&known.labels),
        (None, None) => Vec::new(),
    }
}

fn rule_name(state: &State, number: u32) -> Option<String> {
    let name = state.events.rules.get(number)?;
    Some(name.to_string())
}

fn tracked(state: &State, flow: &Flow, now: u64) -> wire::Flow {
    let names = [
        (abi::FLOW_REPLIED, "replied"),
        (abi::FLOW_OPENER_CLOSED, "opener-closed"),
        (abi::FLOW_ANSWERER_CLOSED, "answerer-closed"),
        (abi::FLOW_DENIED, "denied"),
    ];
    let flags = names.into_iter().filter(|(flag, _)| flow.flags & flag != 0);
    let (local, remote) = (
        (flow.local, flow.local_port),
        (flow.remote, flow.remote_port),
    );
    let (direction, source, destination) = if flow.outgoing {
        ("out", local, remote)
    } else {
        ("in", remote, local)
    };
    wire::Flow {
        endpoint: flow.endpoint.0,
        direction: direction.to_owned(),
        protocol: flow.protocol,
        source: source.0,
        source_port: source.1,
        destination: destination.0,
        destination_port: destination.1,
        identity: flow.identity.0,
        rule: flow.rule,
        rule_name: rule_name(state, flow.rule),
        flags: flags.map(|(_, name)| name.to_owned()).collect(),
        idle_ms: now.saturating_sub(flow.seen_ns) / 1_000_000,
    }
}
