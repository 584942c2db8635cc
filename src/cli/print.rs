//! Text for people, in the shapes of Cilium's command line.
use std::net::{IpAddr, SocketAddr};

use crate::{admin::wire, enforcer};

/// Blanks between columns.
const GAP: usize = 3;

/// Left-aligned columns as wide as their widest cell; no blanks at line ends.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
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

pub(super) fn monitor_line(line: &wire::MonitorLine) -> String {
    match line {
        wire::MonitorLine::Drop(drop) => drop_line(drop),
        wire::MonitorLine::Lost { count } => {
            format!("xx {count} events lost: this reader was too slow")
        }
    }
}

/// Cilium's line of today without its source file and line. There the leading `xx` is a literal
/// too: it marks drops, as `->` marks what passes.
fn drop_line(drop: &wire::Drop) -> String {
    let side = |addr: IpAddr, port: u16| match port {
        0 => addr.to_string(),
        port => SocketAddr::new(addr, port).to_string(),
    };
    // An egress drop never comes to the endpoint; it leaves it.
    let towards = if drop.direction == "egress" {
        "from"
    } else {
        "to"
    };
    format!(
        "xx drop ({}) flow {:#x} {towards} endpoint {}, ifindex {}, identity {}->{}: {} -> {} {}",
        drop.reason,
        drop.flow,
        drop.endpoint,
        drop.ifindex,
        drop.source_identity,
        drop.destination_identity,
        side(drop.source, drop.source_port),
        side(drop.destination, drop.destination_port),
        protocol(drop),
    )
}

fn protocol(drop: &wire::Drop) -> String {
    match drop.protocol {
        1 => "icmp".to_owned(),
        6 => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = |(bit, name): (usize, &'static str)| {
                (drop.tcp_flags & (1 << bit) != 0).then_some(name)
            };
            let flags: Vec<_> = names.into_iter().enumerate().filter_map(set).collect();
            format!("tcp {}", flags.join(", ")).trim_end().to_owned()
        }
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

pub(super) fn status(status: &wire::Status, verbose: bool) -> String {
    let mut text = String::new();
    let cluster = &status.cluster;
    item(
        &mut text,
        "Cluster",
        &format!(
            "{} (id {}), node {}",
            cluster.name, cluster.id, status.node_name
        ),
    );
    let uptime = duration(status.uptime_seconds);
    item(
        &mut text,
        "Agent",
        &format!("tombolo {}, up {uptime}", status.version),
    );
    let waiting = format!("no, waiting for: {}", status.waiting.join(", "));
    item(
        &mut text,
        "Ready",
        if status.ready { "yes" } else { &waiting },
    );
    datapath(&mut text, &status.datapath);
    let endpoints = status.num_local_endpoints;
    item(
        &mut text,
        "Endpoints",
        &match status.not_enforced.as_slice() {
            [] => format!("{endpoints} on this node"),
            names => format!(
                "{endpoints} on this node, {} not enforced (no interface known): {}",
                names.len(),
                names.join(", ")
            ),
        },
    );
    if verbose {
        let counts = counts(&status.local);
        item(&mut text, "Local cluster", &counts);
    }
    let clusters = &status.cluster_mesh.clusters;
    let ready = clusters.iter().filter(|cluster| cluster.ready).count();
    let services = status.cluster_mesh.num_global_services;
    item(
        &mut text,
        "ClusterMesh",
        &format!(
            "{ready}/{} clusters ready, {services} global-services",
            clusters.len()
        ),
    );
    for cluster in clusters {
        remote_cluster(&mut text, cluster, status.time);
    }
    if !status.errors.is_empty() {
        item(&mut text, "Errors", &status.errors.len().to_string());
        for error in &status.errors {
            text.push_str(&format!("   {error}\n"));
        }
    }
    let refused: u64 = status.rejected.iter().map(|rejected| rejected.count).sum();
    if refused > 0 {
        item(
            &mut text,
            "Rejected",
            &format!("{refused} entries of peers"),
        );
        for rejected in status.rejected.iter().filter(|_| verbose) {
            let wire::Rejected {
                cluster,
                reason,
                count,
            } = rejected;
            text.push_str(&format!("   {cluster}: {reason}: {count}\n"));
        }
    }
    text
}

fn item(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("{:24}{value}\n", format!("{name}:")));
}

fn datapath(text: &mut String, status: &enforcer::Status) {
    let enforcer::Status {
        generation: _,
        endpoints_synced,
        clusters_synced,
        enforced,
        problems,
        ipcache,
        policy,
        restored,
        epoch,
        pending,
        errors_total,
        last_error,
    } = status;
    let summary = format!(
        "{enforced} endpoints enforced, {} problems, {pending} writes pending, {errors_total} failures",
        problems.len()
    );
    item(text, "Datapath", &summary);
    let clusters: Vec<_> = clusters_synced.iter().map(u32::to_string).collect();
    let mut lines = vec![
        format!("maps: ipcache={ipcache}, policy={policy}, restored={restored}, epoch={epoch}"),
        format!(
            "synchronization status: endpoints={endpoints_synced}, clusters={}",
            clusters.join(",")
        ),
    ];
    let problem = |(id, problem): (_, &String)| format!("endpoint {id}: {problem}");
    lines.extend(problems.iter().map(problem));
    lines.extend(
        last_error
            .iter()
            .map(|error| format!("last failure: {error}")),
    );
    for line in lines {
        text.push_str(&format!("   └  {line}\n"));
    }
}

fn counts(counts: &wire::Counts) -> String {
    format!(
        "{} nodes, {} endpoints, {} identities, {} services",
        counts.num_nodes, counts.num_endpoints, counts.num_identities, counts.num_shared_services
    )
}

fn remote_cluster(text: &mut String, cluster: &wire::RemoteCluster, now: u64) {
    let readiness = if cluster.ready { "ready" } else { "not-ready" };
    let last = cluster.last_failure.map_or_else(
        || "never".to_owned(),
        |time| format!("{} ago", duration(now.saturating_sub(time))),
    );
    let mut lines = format!(
        "   {}: {readiness}, {}, {} failures (last: {last})\n   └  {}\n",
        cluster.name,
        counts(&cluster.counts),
        cluster.num_failures,
        cluster.status
    );
    let wire::RemoteConfig {
        required,
        retrieved,
        cluster_id,
        kvstoremesh,
        sync_canaries,
    } = cluster.config;
    lines.push_str(&format!(
        "   └  remote configuration: expected={required}, retrieved={retrieved}"
    ));
    if retrieved {
        lines.push_str(&format!(
            ", cluster-id={cluster_id}, kvstoremesh={kvstoremesh}, sync-canaries={sync_canaries}"
        ));
    }
    let wire::Synced {
        nodes,
        endpoints,
        identities,
        services,
    } = cluster.synced;
    lines.push_str(&format!(
        "\n   └  synchronization status: nodes={nodes}, endpoints={endpoints}, \
         identities={identities}, services={services}\n"
    ));
    text.push_str(&lines);
}

/// `1h2m3s`, as Go prints it.
fn duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}
