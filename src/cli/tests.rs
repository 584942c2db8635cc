//! Goal: what operators read is right to the letter. Method: a real agent socket over a made-up
//! state, and the verbs as typed.
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Parser as _;
use tokio::sync::{broadcast, mpsc, watch};

use super::*;
use crate::{
    admin::{self, Listen, State, metrics::DropCount},
    enforcer::{self, Event},
    etcd::{Client, Connector},
    keyspace::Kind,
    lifecycle::{Readiness, ReadyToken, Tasks},
    mesh::{Claimant, IdentityView, IpTarget, NodeView, Offender, View},
    peer::{Layer, PeerStatus, RemoteConfig, SyncedKinds},
    policy::{
        Direction, Query, RuleNames,
        store::{self as policies, Policies},
    },
    publish::{ExportPolicy, Views},
    socket,
    store::{Options, Store},
    types::{
        ClusterId, ClusterName, EndpointId, IdentityId, Labels, LocalEndpoint, MaxClusters,
        NamedPort,
    },
};

mod check;
mod cleanup;
mod metrics;
mod monitor;
mod policy;
mod status;
mod validate;

struct Agent {
    runtime: tokio::runtime::Runtime,
    tasks: Tasks,
    dir: tempfile::TempDir,
    bound: admin::Bound,
    events: admin::monitor::Events,
    peers: Peers,
    registry: prometheus::Registry,
    pending: Option<ReadyToken>,
    _senders: Senders,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.shutdown();
        self.runtime
            .block_on(self.tasks.finish(Duration::from_secs(10)))
            .unwrap();
    }
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn view() -> View {
    let view = View::default();
    let node = |cluster: &str, node: &str, third: u8, source| {
        let ipv4 = Some([10, 0, third, 1].into());
        let ipv4_cidr = Some(format!("10.6{third}.0.0/24").parse().unwrap());
        let node_view = NodeView {
            ipv4,
            ipv4_cidr,
            ipv6: None,
            ipv6_cidr: None,
            source,
        };
        view.nodes
            .insert((name(cluster), node.to_owned()), node_view);
        view.counts.insert((name(cluster), Kind::Nodes), 1);
    };
    node("cluster2", "node2", 2, "clustermesh");
    node("cluster1", "node1", 1, "local");
    for (id, cluster, ns) in [
        (6_684_673, "cluster2", "istio-space"),
        (6_619_136, "cluster1", "default"),
    ] {
        let labels = format!(
            "k8s:app=employee;k8s:io.cilium.k8s.policy.cluster={cluster};k8s:io.kubernetes.pod.namespace={ns};"
        );
        let labels = Arc::new(Labels::parse(&labels));
        view.identities.insert(
            IdentityId(id),
            IdentityView {
                labels,
                cluster: name(cluster),
                revision: 7,
                learned: Instant::now(),
            },
        );
    }
    let cluster = ClusterId::new(102, MaxClusters::C255).unwrap();
    let target = IpTarget {
        identity: IdentityId(6_684_673),
        cluster,
    };
    view.addresses.insert("10.62.0.9".parse().unwrap(), target);
    view.counts.insert((name("cluster2"), Kind::Services), 3);
    for service in ["shop/a", "shop/b", "shop/c"] {
        view.services.insert(service.into(), 2);
    }
    for number in (0..20).rev() {
        let claimant = Claimant {
            cluster: name("cluster2"),
            kind: Kind::Ips,
            key: format!("10.62.0.{number}"),
            prefix: format!("10.62.0.{number}/32").parse().unwrap(),
        };
        view.claimants.insert(number, claimant);
    }
    let rejected = (name("cluster2"), "identity-range");
    view.rejected.insert(rejected.clone(), 2);
    let offender = Offender {
        kind: Kind::Identities,
        key: "70000".to_owned(),
        revision: 9,
        error: "identity 70000 is outside of the producer's range".to_owned(),
    };
    view.offenders.insert(rejected, offender);
    view.restored.insert((name("cluster3"), Kind::Nodes));
    view
}

fn peers() -> Vec<PeerStatus> {
    let cluster_id = ClusterId::new(102, MaxClusters::C255).unwrap();
    let config = RemoteConfig {
        cluster_id,
        kvstoremesh: false,
        sync_canaries: true,
        service_exports_enabled: Some(false),
        endpoint_slices: false,
    };
    let synced = SyncedKinds {
        nodes: true,
        endpoints: true,
        identities: true,
        services: true,
        service_exports: true,
        endpoint_slices: true,
    };
    let ready = PeerStatus {
        name: name("cluster2"),
        config_path: "/var/lib/clustermesh/cluster2.config".into(),
        ready: true,
        connected: true,
        status: "etcd: 1/1 connected, ID: cdbc8223a1135072".to_owned(),
        layer: None,
        endpoint: Some("cluster2.mesh.cilium.io:2379".to_owned()),
        warnings: Vec::new(),
        last_heard: Some(1_000),
        certificate_expiry: None,
        etcd_cluster_id: Some(0xcdbc_8223_a113_5072),
        config: Some(config),
        synced,
        num_failures: 0,
        last_failure: None,
    };
    let waiting = PeerStatus {
        name: name("cluster3"),
        ready: false,
        connected: false,
        status: "dial 192.0.2.3:2379: Connection refused (os error 111)".to_owned(),
        layer: Some(Layer::Tcp),
        endpoint: Some("192.0.2.3:2379".to_owned()),
        warnings: vec!["unknown key endpoint".to_owned()],
        last_heard: None,
        etcd_cluster_id: None,
        config: None,
        synced: SyncedKinds::default(),
        num_failures: 4,
        last_failure: Some(1),
        ..ready.clone()
    };
    vec![waiting, ready]
}

fn endpoint() -> LocalEndpoint {
    LocalEndpoint {
        id: EndpointId(3833),
        identity: IdentityId(6_619_136),
        labels: Arc::new(Labels::parse(
            "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=cluster1;",
        )),
        namespace: "default".to_owned(),
        name: "protected-db".to_owned(),
        addresses: vec!["10.61.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        interface: None,
        named_ports: vec![NamedPort {
            name: "redis".into(),
            port: 6379,
            protocol: "TCP".into(),
        }],
        audit: false,
    }
}

fn drop_event() -> Event {
    Event {
        kind: enforcer::events::Kind::Drop,
        action: enforcer::events::Action::Deny,
        rule: 0,
        time_ns: 1,
        flow: 0x28c6_44b8,
        reason: "Policy denied",
        direction: Direction::Ingress,
        endpoint: EndpointId(3833),
        ifindex: 5,
        source_identity: IdentityId(38354),
        destination_identity: IdentityId(6_587_186),
        source: "10.1.0.3".parse().unwrap(),
        destination: "10.1.0.2".parse().unwrap(),
        source_port: 42728,
        destination_port: 6379,
        protocol: 6,
        tcp_flags: 2,
        icmp_type: 0,
        bytes: 74,
    }
}

type Senders = (
    watch::Sender<Vec<Arc<LocalEndpoint>>>,
    watch::Sender<enforcer::Status>,
);

fn store() -> Store {
    let store = Store::new(Options {
        cluster_id: 7,
        history_max: 100,
    });
    store.put("a".into(), "1".into(), 0).unwrap();
    store
}

/// What peers see: a node and an address.
fn export() -> Views {
    let views = Views::new(&ExportPolicy::default(), store);
    let view = views.of(None).store;
    for key in ["nodes/v1/cluster1/node1", "ip/v1/default/10.61.0.2"] {
        let key = format!("cilium/state/{key}");
        view.put(key.into(), "{}".into(), 0).unwrap();
    }
    views
}

fn enforced() -> enforcer::Status {
    enforcer::Status {
        endpoints_synced: true,
        clusters_synced: [101, 102].into(),
        enforced: 2,
        problems: [(EndpointId(3834), "open lxc7: no such device".to_owned())].into(),
        ipcache: 12,
        policy: 8,
        epoch: 4,
        errors_total: 1,
        last_error: Some("write the policy map: out of memory".to_owned()),
        ..enforcer::Status::default()
    }
}

/// A cluster store with a policy that two nodes follow, and how this one stands.
fn policies() -> (Policies, watch::Receiver<Arc<policies::Status>>) {
    let store = store();
    for (node, revision) in [("node1", 9), ("node2", 1)] {
        let (key, value) = (
            format!("tombolo/policy-status/v1/{node}"),
            format!("{{\"revision\":{revision}}}"),
        );
        store.put(key.into(), value.into(), 0).unwrap();
    }
    let key = "tombolo/policies/v1/CiliumNetworkPolicy/default/db";
    store.put(key.into(), "kind: [".into(), 0).unwrap();
    let connector = Connector::new(move || {
        let cancel = tokio_util::sync::CancellationToken::new();
        Client::in_process(crate::serve::in_process(store.clone(), cancel))
    });
    let status = policies::Status {
        read: 9,
        applied: 8,
        ..policies::Status::default()
    };
    (Policies::new(connector), watch::channel(Arc::new(status)).1)
}

/// Answers as an engine with one policy does.
fn engine() -> mpsc::Sender<Query> {
    let options = crate::policy::Options {
        cluster: name("cluster1"),
        default_local_cluster: true,
        enforcement: crate::policy::Enforcement::Default,
    };
    let mut engine = crate::policy::Engine::new(options, []);
    let text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: db}\nspec:\n  \
                endpointSelector: {matchLabels: {app: db}}\n  ingress:\n  - fromEndpoints: [{matchLabels: \
                {app: employee}}]\n    toPorts: [{ports: [{port: \"6379\", protocol: TCP}]}]\n";
    let policies = crate::policy::parse(text, Path::new("db.yaml")).unwrap();
    let origin = crate::policy::Origin::File("db.yaml".into());
    let out = &mut Vec::new();
    engine.set_policies(&origin, policies, out);
    for entry in view().identities.iter() {
        engine.apply_identity(*entry.key(), Some(Arc::clone(&entry.labels)), out);
    }
    let (sender, mut queries) = mpsc::channel::<Query>(1);
    // Its own thread: the tests' runtime stands still while a verb runs.
    std::thread::spawn(move || {
        while let Some(Query { question, answer }) = queries.blocking_recv() {
            drop(answer.send(engine.trace(&question)));
        }
    });
    sender
}

type Peers = Arc<Mutex<Vec<PeerStatus>>>;

fn state(readiness: Readiness, peers: &Peers) -> (State, Senders) {
    let (endpoints, endpoints_rx) = watch::channel(vec![Arc::new(endpoint())]);
    let (datapath, datapath_rx) = watch::channel(enforced());
    let peers = Arc::clone(peers);
    let (policies, policy_status) = policies();
    let state = State {
        cluster_name: name("cluster1"),
        cluster_id: ClusterId::new(101, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        node_name: "node1".to_owned(),
        view: view(),
        export: export(),
        store: Some(store()),
        peers: Arc::new(move || peers.lock().unwrap().clone()),
        endpoints: endpoints_rx,
        enforcer: None,
        events: admin::monitor::Events {
            source: broadcast::channel(4).0,
            listeners: admin::monitor::Listeners::default(),
            rules: RuleNames::default(),
        },
        readiness,
        cache_readiness: Readiness::new(),
        registry: crate::telemetry::registry().unwrap(),
        started: Instant::now(),
        errors: Arc::new(|| vec!["policy /p/a.yaml: spec.ingress: unknown field".to_owned()]),
        policies: admin::policy::Sources {
            store: policies,
            cluster: policy_status,
            files: None,
            queries: engine(),
            selectors: Arc::default(),
        },
        datapath: datapath_rx,
    };
    admin::metrics::register_mesh(&state).unwrap();
    admin::metrics::register_policies(&state).unwrap();
    admin::metrics::register_drops(&state.registry, || {
        let (reason, direction) = ("Policy denied", Direction::Ingress);
        vec![DropCount {
            reason,
            direction,
            packets: 7,
        }]
    })
    .unwrap();
    (state, (endpoints, datapath))
}

impl Agent {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.enter();
        let dir = tempfile::tempdir().unwrap();
        let readiness = Readiness::new();
        let pending = Some(readiness.pending("peer/cluster3"));
        let peers = Arc::new(Mutex::new(peers()));
        let (state, senders) = state(readiness, &peers);
        let events = state.events.clone();
        let registry = state.registry.clone();
        let any = "127.0.0.1:0".parse().ok();
        let path = dir.path().join("a.sock");
        let listen = Listen {
            socket_path: path.clone(),
            prometheus: any,
            health: any,
        };
        let tasks = Tasks::new();
        // A stale socket: its listener is gone, its file is not.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = admin::start(&tasks, &listen, state).unwrap();
        drop(guard);
        Self {
            runtime,
            tasks,
            dir,
            bound,
            events,
            peers,
            registry,
            pending,
            _senders: senders,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a.sock")
    }

    /// What the command prints.
    fn says(&self, words: &str) -> String {
        let (result, output) = run_words(words, &self.path());
        assert_eq!(result.unwrap(), ExitCode::SUCCESS, "{words}");
        output
    }

    /// The same for words that end with a failure.
    fn fails(&self, words: &str) -> String {
        let (result, output) = run_words(words, &self.path());
        assert_eq!(result.unwrap(), ExitCode::FAILURE, "{words}");
        output
    }
}

fn run_words(words: &str, socket: &Path) -> (Result<ExitCode, Error>, String) {
    let socket = format!("--socket-path={}", socket.display());
    let args = ["tombolo"]
        .into_iter()
        .chain(words.split(' '))
        .chain([socket.as_str()]);
    let mut out = Vec::new();
    let result = run(Cli::try_parse_from(args).unwrap(), &mut out);
    (result, String::from_utf8(out).unwrap())
}

#[test]
fn command_line_is_well_formed() {
    <Cli as clap::CommandFactory>::command().debug_assert();
    let help = <Cli as clap::CommandFactory>::command()
        .render_help()
        .to_string();
    assert!(help.starts_with("Joins clusters"), "{help}");
}

#[test]
fn tables_are_as_in_cilium() {
    let agent = Agent::start();
    assert_eq!(
        agent.says("node list"),
        "\
Name             IPv4 Address   Endpoint CIDR   IPv6 Address   Endpoint CIDR   Source
cluster1/node1   10.0.1.1       10.61.0.0/24                                   local
cluster2/node2   10.0.2.1       10.62.0.0/24                                   clustermesh
"
    );
    assert_eq!(
        agent.says("identity list app=employee k8s:io.cilium.k8s.policy.cluster=cluster1"),
        "\
ID        LABELS
6619136   k8s:app=employee
          k8s:io.cilium.k8s.policy.cluster=cluster1
          k8s:io.kubernetes.pod.namespace=default
"
    );
    let all = agent.says("identity ls");
    assert!(
        all.starts_with("ID        LABELS\n1         reserved:host\n"),
        "{all}"
    );
    assert!(all.find("6619136").unwrap() < all.find("6684673").unwrap());
    assert!(!all.contains("\n0 "), "0 is nobody's identity");
    assert_eq!(
        agent.says("identity get 2"),
        "ID   LABELS\n2    reserved:world\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&agent.says("identity get 6684673 -o json")).unwrap();
    assert_eq!(json["cluster"], "cluster2");
    assert_eq!(
        agent.says("ip list"),
        "\
IP PREFIX/ADDRESS   IDENTITY   CLUSTER ID
10.62.0.9           6684673    102
"
    );
    assert_eq!(
        agent.says("endpoint list"),
        "\
ENDPOINT   IDENTITY   POD                    LABELS (source:key[=value])                 IPv6      IPv4        INTERFACE
3833       6619136    default/protected-db   k8s:app=db                                  fd00::2   10.61.0.2   not enforced
                                             k8s:io.cilium.k8s.policy.cluster=cluster1
"
    );
}

#[test]
fn troubleshoot_tells_what_a_running_agent_sees() {
    let agent = Agent::start();
    let dir = agent.dir.path().display().to_string();
    let text = agent.fails(&format!("troubleshoot cluster3 --clustermesh-config={dir}"));
    assert_eq!(
        text,
        format!(
            "\
Peer cluster3
  ❌ File: find a file of this peer in {dir}
     💡 on cluster3: tombolo certs issue --peer cluster1; copy its files to {dir}
ℹ️  The agent says: not-ready, dial 192.0.2.3:2379: Connection refused (os error 111)
"
        )
    );
    let none = agent.says(&format!("troubleshoot --clustermesh-config={dir}"));
    assert_eq!(none, format!("🔌 No peer is configured in {dir}\n"));
    let text = agent.fails("troubleshoot --clustermesh-config=/nowhere");
    assert!(
        text.contains("❌ File: list /nowhere: No such file"),
        "{text}"
    );
}

#[test]
fn health_follows_readiness() {
    let mut agent = Agent::start();
    let (result, text) = run_words("health", &agent.path());
    assert_eq!(result.unwrap(), ExitCode::FAILURE);
    assert_eq!(text, "NotReady\nwaiting for: peer/cluster3\n");
    agent.pending = None;
    assert_eq!(agent.says("health"), "Ready\n");
}

#[test]
fn socket_is_private_and_never_taken_from_a_living_agent() {
    use std::os::unix::fs::PermissionsExt as _;
    let agent = Agent::start();
    let mode = std::fs::metadata(agent.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let start = |socket_path: PathBuf| {
        let _guard = agent.runtime.enter();
        let listen = Listen {
            socket_path,
            prometheus: None,
            health: None,
        };
        admin::start(
            &Tasks::new(),
            &listen,
            state(Readiness::new(), &Arc::default()).0,
        )
        .unwrap_err()
    };
    assert!(matches!(
        start(agent.path()),
        admin::Error::Socket(socket::Error::InUse { .. })
    ));
    let file = agent.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        start(file.clone()),
        admin::Error::Socket(socket::Error::NotASocket { .. })
    ));
    assert!(matches!(
        start(file.join("below")),
        admin::Error::Socket(socket::Error::Directory { .. })
    ));
    assert!(matches!(
        start(agent.dir.path().join("x".repeat(300))),
        admin::Error::Socket(socket::Error::Bind { .. })
    ));
    assert_eq!(agent.says("version"), "tombolo 0.1.0\n");
}

#[test]
fn errors_name_the_next_step() {
    let (result, _) = run_words("status", Path::new("/nowhere/a.sock"));
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("connect to the agent at /nowhere/a.sock: No such file"),
        "{text}"
    );
    assert!(text.contains("--socket-path"), "{text}");
    assert_eq!(error.exit_code(), ExitCode::FAILURE);
    let agent = Agent::start();
    let (result, _) = run_words("identity get 77", &agent.path());
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("tombolo identity list")
    );
    let (result, _) = run_words("agent --cluster-id=0 --cluster-name=a", &agent.path());
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::from(2));
}
