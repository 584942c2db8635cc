//! Text for people, in the shapes of Cilium's command line.
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{admin::wire, keyspace::ClusterConfig, peer::Layer, tls::inspect::Certificate};

pub(super) use self::status::{brief, status};

pub(super) mod monitor;
mod status;

/// Blanks between columns.
const GAP: usize = 3;

/// Left-aligned columns as wide as their widest cell; no blanks at line ends.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let header = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column| {
        rows.iter()
            .map(|row| cell(row, column).chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0) + GAP).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(row, column);
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cell(row: &[String], column: usize) -> &str {
    row.get(column).map_or("", String::as_str)
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

pub(super) fn nodes(nodes: &[wire::Node]) -> String {
    let header = [
        "Name",
        "IPv4 Address",
        "Endpoint CIDR",
        "IPv6 Address",
        "Endpoint CIDR",
        "Source",
    ];
    let rows = nodes.iter().map(|node| {
        vec![
            format!("{}/{}", node.cluster, node.name),
            text(node.ipv4),
            text(node.ipv4_cidr.as_ref()),
            text(node.ipv6),
            text(node.ipv6_cidr.as_ref()),
            node.source.clone(),
        ]
    });
    table(&header, rows)
}

pub(super) fn identities(identities: &[wire::Identity]) -> String {
    let rows = identities.iter().flat_map(|identity| {
        let labels = if identity.labels.is_empty() {
            &[String::new()][..]
        } else {
            &identity.labels
        };
        let row = |(index, label): (usize, &String)| {
            let id = if index == 0 {
                identity.id.to_string()
            } else {
                String::new()
            };
            vec![id, label.clone()]
        };
        labels.iter().enumerate().map(row).collect::<Vec<_>>()
    });
    table(&["ID", "LABELS"], rows)
}

pub(super) fn endpoints(endpoints: &[wire::Endpoint]) -> String {
    let header = [
        "ENDPOINT",
        "IDENTITY",
        "POD",
        "LABELS (source:key[=value])",
        "IPv6",
        "IPv4",
        "INTERFACE",
    ];
    let rows = endpoints.iter().flat_map(|endpoint| {
        let of_family = |v6| {
            endpoint
                .addresses
                .iter()
                .filter(move |a| a.is_ipv6() == v6)
                .copied()
        };
        let (v6, v4): (Vec<_>, Vec<_>) = (of_family(true).collect(), of_family(false).collect());
        let lines = endpoint.labels.len().max(v6.len()).max(v4.len()).max(1);
        let row = |line: usize| {
            let first = |value: String| if line == 0 { value } else { String::new() };
            vec![
                first(endpoint.id.to_string()),
                first(endpoint.identity.to_string()),
                first(format!("{}/{}", endpoint.namespace, endpoint.name)),
                text(endpoint.labels.get(line)),
                text(v6.get(line)),
                text(v4.get(line)),
                first(
                    endpoint
                        .interface
                        .clone()
                        .unwrap_or_else(|| "not enforced".to_owned()),
                ),
            ]
        };
        (0..lines).map(row).collect::<Vec<_>>()
    });
    table(&header, rows)
}

pub(super) fn ips(ips: &[wire::Ip]) -> String {
    let row = |ip: &wire::Ip| {
        vec![
            ip.prefix.clone(),
            ip.identity.to_string(),
            ip.cluster_id.to_string(),
        ]
    };
    table(
        &["IP PREFIX/ADDRESS", "IDENTITY", "CLUSTER ID"],
        ips.iter().map(row),
    )
}

/// `1h2m3s`, as Go prints it.
pub(super) fn duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// The layer in words.
pub(super) const fn layer(layer: Layer) -> &'static str {
    match layer {
        Layer::File => "File",
        Layer::Resolve => "Name resolution",
        Layer::Tcp => "TCP",
        Layer::Tls => "TLS",
        Layer::Authorization => "Authorization",
        Layer::ClusterConfig => "Cluster-config",
        Layer::Canaries => "Canaries",
        Layer::Heartbeat => "Heartbeat",
    }
}

/// A certificate in one line.
pub(super) fn certificate(certificate: &Certificate) -> String {
    let Certificate {
        serial,
        subject,
        issuer,
        names,
        not_before,
        not_after,
    } = certificate;
    let names = match names.as_slice() {
        [] => String::new(),
        names => format!(", for {}", names.join(" ")),
    };
    format!(
        "subject {subject}{names}, issuer {issuer}, serial {serial}, valid from {} to {}",
        date(*not_before),
        date(*not_after)
    )
}

/// Unix seconds in UTC.
pub(super) fn date(unix_seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_seconds).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| unix_seconds.to_string())
}

/// What a peer says of itself, in the words of the status.
pub(super) fn remote_config(config: &ClusterConfig) -> String {
    let capabilities = &config.capabilities;
    format!(
        "cluster-id={}, kvstoremesh={}, sync-canaries={}",
        config.id, capabilities.cached, capabilities.synced_canaries
    )
}

/// All peers, and how much goes each way.
pub(super) fn peers(clusters: &[wire::RemoteCluster], now: u64) -> String {
    let header = [
        "NAME",
        "ID",
        "STATE",
        "ENDPOINT",
        "IMPORTED",
        "EXPORTED",
        "LAST HEARD",
        "FILE",
    ];
    let row = |peer: &wire::RemoteCluster| {
        let state = match (peer.ready, peer.failed_layer) {
            (true, _) => "ready".to_owned(),
            (false, Some(failed)) => format!("not-ready ({})", layer(failed)),
            (false, None) => "not-ready".to_owned(),
        };
        let id = peer.config.retrieved.then_some(peer.config.cluster_id);
        vec![
            peer.name.clone(),
            text(id),
            state,
            text(peer.endpoint.as_ref()),
            total(&peer.counts).to_string(),
            total(&peer.exported).to_string(),
            heard(peer, now),
            peer.config_path.clone(),
        ]
    };
    table(&header, clusters.iter().map(row))
}

fn total(counts: &wire::Counts) -> u64 {
    let wire::Counts {
        num_nodes,
        num_endpoints,
        num_identities,
        num_shared_services,
        num_service_exports,
        num_endpoint_slices,
    } = counts;
    num_nodes
        + num_endpoints
        + num_identities
        + num_shared_services
        + num_service_exports
        + num_endpoint_slices
}

/// How long ago the peer was last heard from; `now` in Unix seconds.
fn heard(peer: &wire::RemoteCluster, now: u64) -> String {
    match peer.last_heard {
        Some(millis) => format!("{} ago", duration(now.saturating_sub(millis / 1000))),
        None => "never".to_owned(),
    }
}
