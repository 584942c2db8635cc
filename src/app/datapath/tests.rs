use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Datapath, reconciled};
use crate::{
    enforcer::{
        Change, abi,
        datapath::Memory,
        reconcile::{Reconciler, Status},
    },
    keyspace::{ClusterConfig, KeyEvent, Kind},
    lifecycle::{Readiness, Tasks},
    mesh::{Deltas, Mesh, Settings, Terms},
    policy::{
        self, Engine, Grant, MapDelta, Origin, Peers, PerDirection, Policy, PolicyEvent, Port,
        Rule, Selector,
    },
    store::{Options, Store},
    types::{
        ClusterId, ClusterName, EndpointEvent, EndpointId, IdentityId, LocalEndpoint, MaxClusters,
    },
};

fn id(n: u32) -> ClusterId {
    ClusterId::new(n, MaxClusters::C255).unwrap()
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn terms(n: u32) -> Terms {
    Terms {
        id: id(n),
        config: ClusterConfig::default(),
        allowed_cidrs: Arc::default(),
        relayed: false,
    }
}

/// A mesh with a queue of four, the datapath task's state behind it, and a kernel that still holds
/// an address of west (id 2) that nobody knows any more.
struct Street {
    mesh: Mesh,
    deltas: Deltas,
    datapath: Datapath,
    kernel: Reconciler<Memory>,
}

impl Street {
    fn new() -> Self {
        let deltas = Deltas::new(4);
        let settings = Settings {
            cluster_name: name("east"),
            cluster_id: id(1),
            max_clusters: MaxClusters::C255,
            node_name: "node1".into(),
        };
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 100,
        });
        let mut mesh = Mesh::new(settings, cache, deltas.clone());
        mesh.connected(&name("west"), terms(2));
        let options = policy::Options {
            cluster: name("east"),
            default_local_cluster: true,
            enforcement: policy::Enforcement::Default,
        };
        let engine = Engine::new(options, []);
        let datapath = Datapath {
            engine,
            deltas: deltas.clone(),
            view: mesh.view(),
            endpoint_events: mpsc::channel(1).1,
            policies: mpsc::channel(1).1,
            policy_sources: 1,
            queries: mpsc::channel(1).1,
            selectors: Arc::default(),
            changes: mpsc::channel(1).0,
            endpoints: watch::channel(Vec::new()).0,
        };
        let mut memory = Memory::default();
        let value = abi::IpcacheValue {
            identity: (2 << 16) + 9,
            cluster: 2,
            flags: 0,
        };
        memory
            .state
            .ipcache
            .insert("10.2.0.99".parse().unwrap(), value);
        let kernel = Reconciler::open(memory, &crate::enforcer::Options::default()).unwrap();
        Self {
            mesh,
            deltas,
            datapath,
            kernel,
        }
    }

    fn list(&mut self, cluster: &str, kind: Kind) {
        let events = vec![KeyEvent::BeginList { kind }, KeyEvent::EndList { kind }];
        self.mesh.apply(&name(cluster), events);
    }

    /// An address of a cluster, with more in its record.
    fn put_ip(&mut self, cluster: &str, ip: &str, identity: u32, more: &str) {
        let value = format!(r#"{{"IP":"{ip}","ID":{identity},"Key":0,"Metadata":""{more}}}"#);
        let event = KeyEvent::Upsert {
            kind: Kind::Ips,
            suffix: ip.to_owned().into(),
            value: value.into(),
            revision: 1,
        };
        self.mesh.apply(&name(cluster), vec![event]);
    }

    /// `count` addresses of a cluster, more than the queue holds.
    fn put(&mut self, cluster: &str, id: u32, count: u32) {
        for n in 1..=count {
            self.put_ip(cluster, &format!("10.{id}.0.{n}"), (id << 16) + n, "");
        }
    }

    /// A workload that may only open connections to ports called `web`.
    fn enforce_egress_to_web(&mut self) {
        let grant = Grant {
            deny: false,
            peers: Peers::Any,
            ports: vec![Port::Named {
                protocol: None,
                name: "web".into(),
            }],
        };
        let rule = Rule {
            subject: Selector::default(),
            default_deny: PerDirection::default(),
            ingress: Vec::new(),
            egress: vec![grant],
        };
        let policy = Policy {
            kind: policy::Kind::CiliumNetworkPolicy,
            namespace: None,
            name: "web".into(),
            audit: false,
            rules: vec![rule],
        };
        let (engine, out) = (&mut self.datapath.engine, &mut Vec::new());
        engine.set_policies(&Origin::File("a".into()), vec![policy], out);
        let endpoint = LocalEndpoint {
            id: EndpointId(1),
            identity: IdentityId((1 << 16) + 1),
            labels: Arc::default(),
            namespace: "default".into(),
            name: "a".into(),
            addresses: Vec::new(),
            interface: None,
            named_ports: Vec::new(),
            audit: false,
        };
        engine.apply_endpoint(&EndpointEvent::Upsert(Arc::new(endpoint)), out);
    }

    /// What is queued as changes for the kernel.
    fn follow(&mut self) -> Vec<Change> {
        let batch = self.deltas.try_pop_batch(100).unwrap();
        let mut changes = Vec::new();
        self.datapath.batch(batch, &mut changes);
        changes
    }

    /// What is queued, which is not all there was, reaches the kernel.
    fn overrun(&mut self) -> (Vec<Change>, &Status) {
        let batch = self.deltas.try_pop_batch(100).unwrap();
        assert!(batch.lost);
        let mut changes = Vec::new();
        self.datapath.batch(batch, &mut changes);
        self.kernel.apply(changes.clone());
        (changes, self.kernel.status())
    }
}

/// Goal: a `Synced` that the queue lost still sweeps, and withdraws nothing that was told.
#[test]
fn lost_synced_still_sweeps_what_its_cluster_does_not_know() {
    let mut street = Street::new();
    street.list("west", Kind::Identities);
    street.list("west", Kind::Ips);
    street.put("west", 2, 9);
    let (_, status) = street.overrun();
    assert_eq!((status.ipcache, status.restored), (9, 0));
}

#[test]
fn without_synced_the_leftover_stays() {
    let mut street = Street::new();
    street.put("west", 2, 9);
    let (_, status) = street.overrun();
    assert_eq!((status.ipcache, status.restored), (10, 1));
}

/// Goal: a `Removed` that the queue lost still sweeps, as do the withdrawals lost with it.
#[test]
fn lost_removed_still_sweeps_its_cluster() {
    let mut street = Street::new();
    street.put("west", 2, 9);
    street.overrun();
    street
        .mesh
        .removed(&name("west"), std::time::Instant::now());
    street.mesh.connected(&name("north"), terms(3));
    street.put("north", 3, 5);
    let (changes, status) = street.overrun();
    assert!(changes.contains(&Change::RemovedCluster { cluster: id(2) }));
    assert_eq!((status.ipcache, status.restored), (5, 0));
}

/// Goal: a batch counts as enforced once all that followed from it is in the maps, no sooner.
#[test]
fn a_followed_batch_is_measured_when_the_kernel_has_all_of_it() {
    let mut street = Street::new();
    let propagation = street.datapath.view.propagation.clone();
    let registry = prometheus::Registry::new();
    propagation.register(&registry).unwrap();
    let sample = propagation.received(&name("west"), Kind::Ips).unwrap();
    street.put("west", 2, 2);
    propagation.in_mesh(sample, street.mesh.deltas_end());
    street.put("west", 2, 3);
    let mut step = |count| {
        let batch = street.deltas.try_pop_batch(count).unwrap();
        let mut changes = Vec::new();
        street.datapath.batch(batch, &mut changes);
        street.kernel.apply(changes);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        let text = text.unwrap();
        let counts = text.lines().filter(|line| line.contains("_seconds_count"));
        let counts = counts.map(|line| line.rsplit_once(' ').unwrap().1.to_owned());
        counts.collect::<Vec<_>>()
    };
    assert_eq!(step(1), ["0", "1"], "enforced, mesh");
    assert_eq!(step(1), ["1", "1"]);
    assert_eq!(step(1), ["1", "1"]);
}

/// Goal: the entry for a port's name is there before the address can be judged by it, and goes
/// behind it; also when deltas were lost.
#[test]
fn entries_for_named_ports_come_before_their_address_and_go_behind_it() {
    let mut street = Street::new();
    street.enforce_egress_to_web();
    let entries = |changes: &[Change]| -> Vec<&'static str> {
        let what = changes.iter().filter_map(|change| match change {
            Change::Map(MapDelta::Entry { value: Some(_), .. }) => Some("allow"),
            Change::Map(MapDelta::Entry { value: None, .. }) => Some("withdraw"),
            Change::Ip { target, .. } => Some(target.map_or("gone", |_| "known")),
            _ => None,
        });
        what.collect()
    };
    let ports = r#","NamedPorts":[{"Name":"web","Port":80,"Protocol":"TCP"}]"#;
    street.put_ip("west", "10.2.0.1", (2 << 16) + 1, ports);
    assert_eq!(entries(&street.follow()), ["allow", "known"]);
    // Another address of the identity, which has no such port.
    street.put_ip("west", "10.2.0.2", (2 << 16) + 1, "");
    assert_eq!(entries(&street.follow()), ["withdraw", "known"]);
    let (kind, suffix) = (Kind::Ips, "10.2.0.2".into());
    let delete = vec![KeyEvent::Delete { kind, suffix }];
    street.mesh.apply(&name("west"), delete);
    assert_eq!(entries(&street.follow()), ["gone", "allow"]);
    let (kind, suffix) = (Kind::Ips, "10.2.0.1".into());
    let delete = vec![KeyEvent::Delete { kind, suffix }];
    street.mesh.apply(&name("west"), delete);
    assert_eq!(entries(&street.follow()), ["gone", "withdraw"]);

    street.put_ip("west", "10.2.0.1", (2 << 16) + 1, ports);
    street.follow();
    // Among more than the queue holds is the address, which has no port of that name any more.
    street.put("west", 2, 9);
    let (changes, _) = street.overrun();
    let told = entries(&changes);
    assert!(
        told.contains(&"withdraw") && !told.contains(&"allow"),
        "{told:?}"
    );
}

/// Goal: the token goes with the last `Synced` of the sources of policies, not before.
#[tokio::test]
async fn ready_waits_for_all_policies() {
    let (policies, events) = mpsc::channel(1);
    let (readiness, tasks) = (Readiness::new(), Tasks::new());
    let datapath = Datapath {
        policies: events,
        policy_sources: 2,
        ..Street::new().datapath
    };
    let run = datapath.run(readiness.pending("policy"), tasks.token());
    tasks.spawn("datapath", run);
    let removed = PolicyEvent::Removed {
        origin: Origin::File("a".into()),
    };
    policies.send(removed).await.unwrap();
    // One slot: whoever may send again knows that the last event was taken.
    drop(policies.reserve().await.unwrap());
    assert_eq!(readiness.waiting(), ["policy"]);
    policies.send(PolicyEvent::Synced).await.unwrap();
    drop(policies.reserve().await.unwrap());
    assert_eq!(readiness.waiting(), ["policy"]);
    policies.send(PolicyEvent::Synced).await.unwrap();
    drop(policies.reserve().await.unwrap());
    assert!(readiness.waiting().is_empty());
    tasks.shutdown();
    tasks
        .finish(std::time::Duration::from_secs(5))
        .await
        .unwrap();
}

/// Goal: neither half of what must be known is enough, nor are writes that failed; peers and
/// endpoints with a problem are not waited for.
#[tokio::test]
async fn ready_waits_for_the_kernel() {
    let (sender, receiver) = watch::channel(Status::default());
    let readiness = Readiness::new();
    let token = readiness.pending("enforcer");
    let wait = reconciled(receiver, id(1), token, CancellationToken::new());
    let tell = async {
        let mut status = Status::default();
        let mut told = async |change: &dyn Fn(&mut Status)| {
            change(&mut status);
            sender.send_replace(status.clone());
            // More than one turn, as the two halves take turns at going first.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            readiness.waiting().is_empty()
        };
        assert!(!told(&|s| s.endpoints_synced = true).await);
        assert!(!told(&|s| s.clusters_synced = [2].into()).await);
        assert!(!told(&|s| (s.pending, s.clusters_synced) = (1, [1].into())).await);
        let problem = (EndpointId(7), "interface missing".to_owned());
        assert!(told(&|s| (s.pending, s.problems) = (0, [problem.clone()].into())).await);
    };
    let (result, ()) = tokio::join!(wait, tell);
    result.unwrap();
}
