use super::*;

#[test]
fn status_has_the_mesh_block_of_cilium() {
    let agent = Agent::start();
    let text = agent.fails("status");
    let block = "\
ClusterMesh:            1/2 clusters ready, 3 global-services
   cluster2: ready, 1 nodes, 0 endpoints, 0 identities, 3 services, 0 failures (last: never)
   └  etcd: 1/1 connected, ID: cdbc8223a1135072
   └  remote configuration: expected=true, retrieved=true, cluster-id=102, kvstoremesh=false, sync-canaries=true
   └  synchronization status: nodes=true, endpoints=true, identities=true, services=true
   cluster3: not-ready, 0 nodes, 0 endpoints, 0 identities, 0 services, 4 failures (last: ";
    assert!(text.contains(block), "{text}");
    let rest = " ago)
   └  TCP failed: dial 192.0.2.3:2379: Connection refused (os error 111)
   └  remote configuration: expected=true, retrieved=false
   └  synchronization status: nodes=false, endpoints=false, identities=false, services=false
   └  warning: unknown key endpoint
Errors:                 1
   policy /p/a.yaml: spec.ingress: unknown field
Rejected:               2 entries of peers; --verbose lists them by reason
";
    assert!(text.ends_with(rest), "{text}");
    let head = "Cluster:                cluster1 (id 101), node node1\n";
    assert!(text.starts_with(head), "{text}");
    assert!(
        text.contains("Ready:                  no, waiting for: peer/cluster3\n"),
        "{text}"
    );
    let datapath = "\
Datapath:               2 endpoints enforced, 1 problems, 0 writes pending, 1 failures
   └  maps: ipcache=12, cidrs=0, policy=8, restored=0, epoch=4
   └  synchronization status: endpoints=true, clusters=101,102
   └  endpoint 3834: open lxc7: no such device
   └  last failure: write the policy map: out of memory
Endpoints: ";
    assert!(text.contains(datapath), "{text}");
    let not_enforced = "1 not enforced (no interface known): default/protected-db\n";
    assert!(text.contains(not_enforced), "{text}");
}

#[test]
fn verbose_status_tells_file_freshness_certificates_and_rejections() {
    let mut agent = Agent::start();
    agent.pending = None;
    let dir = agent.dir.path().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = time::macros::datetime!(2200-01-01 0:00 UTC);
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::write(dir.join("ca.crt"), pem).unwrap();
    let config = dir.join("cluster2.config");
    let file = "endpoints: [\"https://cluster2.mesh.cilium.io:2379\"]\ntrusted-ca-file: ca.crt\n";
    std::fs::write(&config, file).unwrap();
    for peer in agent.peers.lock().unwrap().iter_mut() {
        peer.config_path.clone_from(&config);
    }
    let text = agent.says("status --verbose");
    let (_, rest) = text.split_once("   └  endpoint: cluster2").unwrap();
    let (heard, rest) = rest.split_once(" ago\n").unwrap();
    assert!(
        heard.starts_with(".mesh.cilium.io:2379, last heard: "),
        "{heard}"
    );
    let lines: Vec<&str> = rest.lines().collect();
    assert_eq!(
        lines[0],
        "   └  exported to it: 1 nodes, 1 endpoints, 0 identities, 0 services"
    );
    assert_eq!(lines[1], format!("   └  file: {}", config.display()));
    let ca = "   └  ca certificate CN=rcgen self signed cert: until 2200-01-01T00:00:00Z (";
    assert!(
        lines[2].starts_with(ca) && lines[2].contains(" days left), "),
        "{}",
        lines[2]
    );
    let waits = |last: u8, id: u32| {
        format!(
            "   └  waits: ip/10.62.0.{last} for 10.62.0.{last}, which the cluster with id {id} has"
        )
    };
    assert_eq!([lines[3], lines[12]], [waits(0, 101), waits(9, 102)]);
    assert_eq!(lines[19], "   └  waits: 4 more");
    let lines = &lines[17..];
    assert_eq!(
        lines[3],
        "   └  rejected keys: identity-range: 2 (last: identities/70000: identity 70000 is outside of the producer's range)"
    );
    assert!(
        lines[4].starts_with("   cluster3: not-ready"),
        "{}",
        lines[4]
    );
    assert!(
        text.contains("192.0.2.3:2379, last heard: never\n"),
        "{text}"
    );
}

#[test]
fn json_has_the_fields_of_cilium_and_ours() {
    let agent = Agent::start();
    let json: serde_json::Value = serde_json::from_str(&agent.fails("status -o json")).unwrap();
    assert_eq!(json["datapath"]["enforced"], 2);
    let mesh = &json["cluster-mesh"];
    assert_eq!(mesh["num-global-services"], 3);
    let [ready, waiting] = mesh["clusters"].as_array().unwrap().as_slice() else {
        panic!("two peers: {mesh}");
    };
    let claims = (0..16).map(|last| {
        serde_json::json!({
            "kind": "ip",
            "key": format!("10.62.0.{last}"),
            "prefix": format!("10.62.0.{last}"),
            "holder-id": if last == 9 { 102 } else { 101 },
        })
    });
    let expected = serde_json::json!({
        "name": "cluster2",
        "config-path": "/var/lib/clustermesh/cluster2.config",
        "ready": true,
        "connected": true,
        "status": "etcd: 1/1 connected, ID: cdbc8223a1135072",
        "failed-layer": null,
        "endpoint": "cluster2.mesh.cilium.io:2379",
        "last-heard": 1000,
        "num-nodes": 1,
        "num-endpoints": 0,
        "num-identities": 0,
        "num-shared-services": 3,
        "num-service-exports": 0,
        "num-endpoint-slices": 0,
        "exported": {
            "num-nodes": 1,
            "num-endpoints": 1,
            "num-identities": 0,
            "num-shared-services": 0,
            "num-service-exports": 0,
            "num-endpoint-slices": 0,
        },
        "num-failures": 0,
        "last-failure": null,
        "config": {
            "required": true,
            "retrieved": true,
            "cluster-id": 102,
            "kvstoremesh": false,
            "sync-canaries": true,
            "service-exports-enabled": false,
            "endpoint-slices": false,
        },
        "synced": {
            "nodes": true,
            "endpoints": true,
            "identities": true,
            "services": true,
            "service-exports": true,
            "endpoint-slices": true,
        },
        "restored": [],
        "num-claims-waiting": 20,
        "claims-waiting": claims.collect::<Vec<_>>(),
        "warnings": [],
        "certificates": [],
    });
    assert_eq!(*ready, expected);
    assert_eq!(waiting["failed-layer"], "tcp");
    let alone: serde_json::Value = agent.runtime.block_on(async {
        let client = client::Client::new(agent.path());
        client.json("/v1/cluster").await.unwrap()
    });
    assert_eq!(alone, *mesh, "as kvstoremesh answers it");
}

#[test]
fn brief_status_is_one_line_and_an_exit_code() {
    let mut agent = Agent::start();
    let waiting = "error in peer/cluster3: not ready yet\n";
    assert_eq!(agent.fails("status --brief"), waiting);
    agent.pending = None;
    assert_eq!(agent.says("status --brief"), "OK\n");
}

#[test]
fn peers_are_listed_with_what_goes_each_way() {
    let agent = Agent::start();
    agent.peers.lock().unwrap()[1].last_heard = None;
    assert_eq!(
        agent.says("peer list"),
        "\
NAME       ID    STATE             ENDPOINT                       IMPORTED   EXPORTED   LAST HEARD   FILE
cluster2   102   ready             cluster2.mesh.cilium.io:2379   4          2          never        /var/lib/clustermesh/cluster2.config
cluster3         not-ready (TCP)   192.0.2.3:2379                 0          2          never        /var/lib/clustermesh/cluster2.config
"
    );
    let json: serde_json::Value = serde_json::from_str(&agent.says("peer ls -o json")).unwrap();
    assert_eq!(json[0]["name"], "cluster2");
    assert_eq!(json[1]["num-failures"], 4);
}
