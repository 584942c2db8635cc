//! The agent's state, with the mesh block as Cilium prints it.
use super::{date, duration, heard, layer};
use crate::{admin::wire, enforcer};

pub(in crate::cli) fn status(status: &wire::Status, verbose: bool) -> String {
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
    policies(&mut text, &status.policies);
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
        remote_cluster(&mut text, cluster, status, verbose);
    }
    if !status.errors.is_empty() {
        item(&mut text, "Errors", &status.errors.len().to_string());
        for error in &status.errors {
            text.push_str(&format!("   {error}\n"));
        }
    }
    let refused: u64 = status.rejected.iter().map(|rejected| rejected.count).sum();
    if refused > 0 {
        let summary = format!("{refused} entries of peers; --verbose lists them by reason");
        item(&mut text, "Rejected", &summary);
    }
    text
}

fn item(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("{:24}{value}\n", format!("{name}:")));
}

fn policies(text: &mut String, policies: &wire::policy::Summary) {
    let wire::policy::Summary {
        files,
        cluster,
        refused,
        read_revision,
        applied_revision,
    } = policies;
    let mut value = format!(
        "{files} in files of this node, {cluster} in the cluster store, revision {applied_revision}"
    );
    if applied_revision != read_revision {
        value.push_str(&format!(" (revision {read_revision} is being applied)"));
    }
    if *refused > 0 {
        value.push_str(&format!(", {refused} refused"));
    }
    item(text, "Policies", &value);
}

fn datapath(text: &mut String, status: &enforcer::Status) {
    let enforcer::Status {
        generation: _,
        endpoints_synced,
        clusters_synced,
        enforced,
        problems,
        ipcache,
        cidrs,
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
        format!(
            "maps: ipcache={ipcache}, cidrs={cidrs}, policy={policy}, restored={restored}, epoch={epoch}"
        ),
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

fn remote_cluster(
    text: &mut String,
    cluster: &wire::RemoteCluster,
    status: &wire::Status,
    verbose: bool,
) {
    let readiness = if cluster.ready { "ready" } else { "not-ready" };
    let last = cluster.last_failure.map_or_else(
        || "never".to_owned(),
        |time| format!("{} ago", duration(status.time.saturating_sub(time))),
    );
    text.push_str(&format!(
        "   {}: {readiness}, {}, {} failures (last: {last})\n",
        cluster.name,
        counts(&cluster.counts),
        cluster.num_failures,
    ));
    let mut lines = vec![match cluster.failed_layer {
        Some(failed) if !cluster.ready => format!("{} failed: {}", layer(failed), cluster.status),
        _ => cluster.status.clone(),
    }];
    let wire::RemoteConfig {
        required,
        retrieved,
        cluster_id,
        kvstoremesh,
        sync_canaries,
        service_exports_enabled: _,
        endpoint_slices: _,
    } = cluster.config;
    let mut config = format!("remote configuration: expected={required}, retrieved={retrieved}");
    if retrieved {
        config.push_str(&format!(
            ", cluster-id={cluster_id}, kvstoremesh={kvstoremesh}, sync-canaries={sync_canaries}"
        ));
    }
    lines.push(config);
    let wire::Synced {
        nodes,
        endpoints,
        identities,
        services,
        service_exports: _,
        endpoint_slices: _,
    } = cluster.synced;
    lines.push(format!(
        "synchronization status: nodes={nodes}, endpoints={endpoints}, identities={identities}, \
         services={services}"
    ));
    let warnings = cluster.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning: {warning}")));
    if verbose {
        details(&mut lines, cluster, status);
    }
    for line in lines {
        text.push_str(&format!("   └  {line}\n"));
    }
}

/// What only `--verbose` tells of a peer.
fn details(lines: &mut Vec<String>, cluster: &wire::RemoteCluster, status: &wire::Status) {
    let endpoint = cluster.endpoint.as_deref().unwrap_or("none");
    let heard = heard(cluster, status.time);
    lines.push(format!("endpoint: {endpoint}, last heard: {heard}"));
    lines.push(format!("exported to it: {}", counts(&cluster.exported)));
    lines.push(format!("file: {}", cluster.config_path));
    for found in &cluster.certificates {
        let (role, path) = (&found.role, &found.path);
        let expiry = found.certificate.not_after;
        let left = u64::try_from(expiry).map_or(0, |expiry| expiry.saturating_sub(status.time));
        let left = match left / 86_400 {
            0 if left == 0 => "expired".to_owned(),
            0 => format!("{} left", duration(left)),
            days => format!("{days} days left"),
        };
        let subject = &found.certificate.subject;
        lines.push(format!(
            "{role} certificate {subject}: until {} ({left}), {path}",
            date(expiry)
        ));
    }
    if !cluster.restored.is_empty() {
        let kinds = cluster.restored.join(", ");
        lines.push(format!(
            "stale, from the disk: {kinds}; in force until they are listed"
        ));
    }
    claims(lines, cluster);
    let rejected = status.rejected.iter().filter(|r| r.cluster == cluster.name);
    lines.extend(rejected.map(|rejected| {
        let last = rejected.last.as_ref();
        let last = last.map(|last| format!(" (last: {}/{}: {})", last.kind, last.key, last.error));
        let wire::Rejected { reason, count, .. } = rejected;
        format!(
            "rejected keys: {reason}: {count}{}",
            last.unwrap_or_default()
        )
    }));
}

/// Which of its records wait for which addresses.
fn claims(lines: &mut Vec<String>, cluster: &wire::RemoteCluster) {
    let claims = &cluster.claims_waiting;
    lines.extend(claims.iter().map(|claim| {
        let wire::ClaimWaiting {
            kind,
            key,
            prefix,
            holder_id,
        } = claim;
        format!("waits: {kind}/{key} for {prefix}, which the cluster with id {holder_id} has")
    }));
    let more = cluster
        .num_claims_waiting
        .saturating_sub(claims.len() as u64);
    if more > 0 {
        lines.push(format!("waits: {more} more"));
    }
}

/// `OK`, or the first thing that keeps the agent from being ready.
pub(in crate::cli) fn brief(status: &wire::Status) -> String {
    match status.waiting.first() {
        None => "OK\n".to_owned(),
        Some(part) => format!("error in {part}: not ready yet\n"),
    }
}
