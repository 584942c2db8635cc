use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use super::*;

fn http(addr: std::net::SocketAddr, route: &str) -> String {
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    write!(
        stream,
        "GET {route} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

impl Agent {
    fn metrics(&self) -> String {
        let answer = http(self.bound.prometheus.unwrap(), "/metrics");
        let (_, text) = answer.split_once("\r\n\r\n").unwrap();
        text.to_owned()
    }
}

#[test]
fn tcp_has_health_or_metrics_only() {
    let agent = Agent::start();
    let (health, metrics) = (agent.bound.health.unwrap(), agent.bound.prometheus.unwrap());
    assert!(http(health, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(http(health, "/readyz").starts_with("HTTP/1.1 500"));
    for (addr, route) in [
        (health, "/v1/status"),
        (health, "/metrics"),
        (metrics, "/v1/status"),
        (metrics, "/v1/cluster"),
    ] {
        assert!(http(addr, route).starts_with("HTTP/1.1 404"), "{route}");
    }
}

#[test]
fn series_have_the_names_and_labels_of_ciliums() {
    let text = Agent::start().metrics();
    let node = "source_cluster=\"cluster1\",source_node_name=\"node1\"";
    let of = |peer: &str| format!("{node},target_cluster=\"{peer}\"");
    let (two, three) = (of("cluster2"), of("cluster3"));
    let cached = "source_cluster=\"cluster1\",target_cluster=\"cluster3\"";
    for line in [
        "# TYPE tombolo_drop_count_total counter".to_owned(),
        "tombolo_drop_count_total{direction=\"INGRESS\",reason=\"Policy denied\"} 7".to_owned(),
        format!("tombolo_clustermesh_remote_clusters{{{node}}} 2"),
        format!("tombolo_clustermesh_global_services{{{node}}} 3"),
        format!("tombolo_clustermesh_peer_configured{{{three}}} 1"),
        format!("tombolo_clustermesh_remote_cluster_readiness_status{{{two}}} 1"),
        format!("tombolo_clustermesh_remote_cluster_readiness_status{{{three}}} 0"),
        format!("tombolo_clustermesh_remote_cluster_failures{{{three}}} 4"),
        format!("tombolo_clustermesh_remote_cluster_last_failure_ts{{{three}}} 1"),
        format!("tombolo_clustermesh_remote_cluster_nodes{{{two}}} 1"),
        format!("tombolo_clustermesh_remote_cluster_endpoints{{{two}}} 0"),
        format!("tombolo_clustermesh_remote_cluster_services{{{two}}} 3"),
        "tombolo_kvstoremesh_remote_clusters{source_cluster=\"cluster1\"} 2".to_owned(),
        format!("tombolo_kvstoremesh_remote_cluster_failures{{{cached}}} 4"),
        format!("tombolo_kvstoremesh_remote_cluster_readiness_status{{{cached}}} 0"),
        "tombolo_kvstoremesh_kvstore_initial_sync_completed{action=\"read\",scope=\"nodes/v1\",\
         source_cluster=\"cluster2\"} 1"
            .to_owned(),
        "tombolo_rejected_keys_total{reason=\"identity-range\",target_cluster=\"cluster2\"} 2"
            .to_owned(),
        "tombolo_mesh_entries{kind=\"services\",target_cluster=\"cluster2\"} 3".to_owned(),
    ] {
        assert!(
            text.contains(&format!("{line}\n")) || text.contains(&line),
            "{line}\n{text}"
        );
    }
    let age = "tombolo_clustermesh_remote_cluster_cache_age_seconds";
    let ages = text.lines().filter(|line| line.starts_with(age));
    let ages: Vec<&str> = ages.collect();
    assert_eq!(ages.len(), 2, "{ages:?}");
    // Never heard from, but known from the disk: as old as the agent at the least.
    let restored = ages.iter().find(|line| line.contains("cluster3")).unwrap();
    let (_, seconds) = restored.rsplit_once(' ').unwrap();
    let seconds: f64 = seconds.parse().unwrap();
    assert!(seconds > 0.0 && seconds < 600.0, "{restored}");
}

#[test]
fn series_of_a_removed_peer_disappear() {
    let agent = Agent::start();
    assert!(agent.metrics().contains("cluster3"));
    agent
        .peers
        .lock()
        .unwrap()
        .retain(|peer| peer.name.as_str() != "cluster3");
    let text = agent.metrics();
    assert!(!text.contains("cluster3"), "{text}");
    assert!(text.contains("target_cluster=\"cluster2\""));
}

/// Names, types and help texts of everything that the agent registers, as Prometheus wants them.
#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    let mut agent = Agent::start();
    let registry = &agent.registry;
    admin::metrics::register_kvstore(registry, || (true, 3)).unwrap();
    let delay = crate::policy::Delay::default();
    delay.register(registry).unwrap();
    let came = Instant::now();
    let mark = delay.mark(crate::policy::Source::Files, came, None);
    mark.enforced();
    admin::metrics::register_datapath(registry, || {
        let count = DropCount {
            reason: "Policy denied",
            direction: Direction::Egress,
            packets: 5,
        };
        let endpoint = EndpointId(7);
        let drops = admin::metrics::EndpointDrops { endpoint, count };
        let hits = admin::metrics::RuleHits {
            policy: "shop/db".to_owned(),
            rule: "shop/db rule 0 ingress[0] in db.yaml".to_owned(),
            flows: 3,
        };
        (vec![drops], vec![hits])
    })
    .unwrap();
    admin::metrics::register_maps(registry, || {
        let map = |name: &str, entries, capacity| enforcer::MapUse {
            name: name.to_owned(),
            entries,
            capacity,
        };
        vec![map("policy", 768, 1024), map("cidr", 0, 65_536)]
    })
    .unwrap();
    admin::metrics::register_source(registry, || vec![("oversize", 2)]).unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let at = |name: &str| agent.dir.path().join(name);
    std::fs::write(at("s.key"), own.signing_key.serialize_pem()).unwrap();
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&own.signing_key).unwrap().pem();
    std::fs::write(at("ca.crt"), &pem).unwrap();
    let issuer = rcgen::Issuer::new(params, &own.signing_key);
    let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&own.signing_key, &issuer).unwrap().pem();
    std::fs::write(at("s.crt"), leaf).unwrap();
    let tls = crate::tls::ServerTls::load(crate::tls::Paths {
        cert: at("s.crt"),
        key: at("s.key"),
        ca: at("ca.crt"),
    });
    tls.unwrap().metrics().register(registry).unwrap();
    let keyspaces = crate::serve::Keyspaces {
        cluster: None,
        export: export(),
        cache: store(),
    };
    let limits = crate::serve::Limits::default();
    let face = crate::serve::Server::new(keyspaces, name("cluster1"), limits);
    face.metrics().register(registry).unwrap();
    agent.pending = None;
    let text = agent.metrics();
    for part in [
        "tombolo_certificate_expiry",
        "tombolo_serve_",
        "tombolo_kvstore_connected",
        "tombolo_bpf_map_pressure{map_name=\"policy\"} 0.75\n",
        "tombolo_bpf_map_pressure{map_name=\"cidr\"} 0\n",
        "tombolo_policy_implementation_delay_count{source=\"file\"} 1",
        "tombolo_policy_max_revision 8",
        "tombolo_policies{source=\"cluster\"} 0",
        "tombolo_policy_selectors 0",
        "tombolo_endpoint_drop_count_total{direction=\"EGRESS\",endpoint=\"7\",reason=\"Policy denied\"} 5",
        "tombolo_policy_rule_hits_total{policy=\"shop/db\",rule=\"shop/db rule 0 ingress[0] in db.yaml\"} 3",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let Ok(mut child) = promtool
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        let text = "promtool is missing; scripts/test.sh installs it";
        assert!(std::env::var_os("CI").is_none(), "{text}");
        drop(writeln!(io::stderr(), "SKIPPED: {text}"));
        return;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
