use std::sync::Arc;

use bytes::Bytes;

use super::{Delta, Deltas, IpTarget, Mesh, Settings, Terms};
use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    store::{Options, Store},
    types::{ClusterId, ClusterName, IdentityId, MaxClusters},
};

struct Bench {
    mesh: Mesh,
    cache: Store,
    deltas: Deltas,
    revision: i64,
}

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

impl Bench {
    /// `east` (id 1) with the peer `west` (id 2) connected.
    fn new() -> Self {
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 1_000,
        });
        let deltas = Deltas::new(1_000);
        let settings = Settings {
            cluster_name: name("east"),
            cluster_id: id(1),
            max_clusters: MaxClusters::C255,
            node_name: "node1".into(),
        };
        let mut mesh = Mesh::new(settings, cache.clone(), deltas.clone());
        mesh.connected(&name("east"), terms(1));
        mesh.connected(&name("west"), terms(2));
        Self {
            mesh,
            cache,
            deltas,
            revision: 0,
        }
    }

    fn put(&mut self, cluster: &str, kind: Kind, suffix: &str, value: &str) -> Vec<Delta> {
        self.revision += 1;
        let event = KeyEvent::Upsert {
            kind,
            suffix: Bytes::copy_from_slice(suffix.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            revision: self.revision,
        };
        self.apply(cluster, vec![event])
    }

    fn delete(&mut self, cluster: &str, kind: Kind, suffix: &str) -> Vec<Delta> {
        let suffix = Bytes::copy_from_slice(suffix.as_bytes());
        self.apply(cluster, vec![KeyEvent::Delete { kind, suffix }])
    }

    fn apply(&mut self, cluster: &str, events: Vec<KeyEvent>) -> Vec<Delta> {
        self.mesh.apply(&name(cluster), events);
        self.taken()
    }

    fn taken(&self) -> Vec<Delta> {
        self.deltas
            .try_pop_batch(usize::MAX)
            .map_or_else(Vec::new, |b| b.items)
    }

    fn rejected(&self, reason: &'static str) -> u64 {
        self.mesh
            .view()
            .rejected
            .get(&(name("west"), reason))
            .map_or(0, |n| *n)
    }

    fn cached(&self, key: &str) -> Option<Bytes> {
        self.cache.get(key.as_bytes()).map(|kv| kv.value)
    }
}

fn ip(address: &str, identity: u32) -> String {
    format!(
        r#"{{"IP":"{address}","Mask":null,"HostIP":"10.7.0.1","ID":{identity},"Key":0,"Metadata":""}}"#
    )
}

fn node(cluster: &str, cluster_id: u32, node: &str, address: &str, cidr: &str) -> String {
    format!(
        r#"{{"Name":"{node}","Cluster":"{cluster}","ClusterID":{cluster_id},"IPAddresses":[{{"Type":"InternalIP","IP":"{address}"}}],"IPv4AllocCIDR":{{"IP":"{cidr}","Mask":"////AA=="}}}}"#
    )
}

fn target(address: &str, identity: u32, cluster: u32) -> Delta {
    let target = IpTarget {
        identity: IdentityId(identity),
        cluster: id(cluster),
    };
    Delta::Ip {
        prefix: address.parse().unwrap(),
        target: Some(target),
    }
}

fn gone(address: &str) -> Delta {
    Delta::Ip {
        prefix: address.parse().unwrap(),
        target: None,
    }
}

const WEST_1: u32 = (2 << 16) + 1;

#[test]
fn an_address_maps_to_its_identity_and_is_copied_to_the_cache() {
    let mut bench = Bench::new();
    let value = ip("10.2.0.1", WEST_1);
    let deltas = bench.put("west", Kind::Ips, "10.2.0.1", &value);
    assert_eq!(deltas, [target("10.2.0.1", WEST_1, 2)]);
    assert_eq!(
        bench.cached("cilium/cache/ip/v1/west/10.2.0.1").unwrap(),
        value.as_bytes()
    );
    assert_eq!(bench.put("west", Kind::Ips, "10.2.0.1", &value), []);
    assert_eq!(
        bench.delete("west", Kind::Ips, "10.2.0.1"),
        [gone("10.2.0.1")]
    );
    assert_eq!(bench.cached("cilium/cache/ip/v1/west/10.2.0.1"), None);
}

#[test]
fn r7_host_identity_of_a_peer_reads_as_remote_node() {
    let mut bench = Bench::new();
    let deltas = bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", 1));
    assert_eq!(deltas, [target("10.2.0.1", 6, 2)]);
}

#[test]
fn r8_foreign_identities_go_nowhere() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.put(
            "west",
            Kind::Ips,
            "10.2.0.1",
            &ip("10.2.0.1", (3 << 16) + 1)
        ),
        []
    );
    assert_eq!(bench.rejected("identity-out-of-range"), 1);
    assert_eq!(bench.cached("cilium/cache/ip/v1/west/10.2.0.1"), None);
}

#[test]
fn r20_a_bad_value_keeps_the_good_one_until_the_next_list_ends() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    assert_eq!(bench.put("west", Kind::Ips, "10.2.0.1", "{not json"), []);
    assert_eq!(bench.rejected("undecodable"), 1);
    let kind = Kind::Ips;
    assert_eq!(bench.apply("west", vec![KeyEvent::BeginList { kind }]), []);
    assert_eq!(bench.put("west", Kind::Ips, "10.2.0.1", "{not json"), []);
    assert_eq!(
        bench.apply("west", vec![KeyEvent::EndList { kind }]),
        [gone("10.2.0.1")]
    );
}

#[test]
fn a_relist_withdraws_only_what_vanished_and_says_synced_once() {
    let mut bench = Bench::new();
    let list = |bench: &mut Bench, addresses: &[&str]| {
        let mut all = Vec::new();
        for kind in [Kind::Identities, Kind::Ips] {
            all.extend(bench.apply("west", vec![KeyEvent::BeginList { kind }]));
            if kind == Kind::Ips {
                for a in addresses {
                    all.extend(bench.put("west", kind, a, &ip(a, WEST_1)));
                }
            }
            all.extend(bench.apply("west", vec![KeyEvent::EndList { kind }]));
        }
        all
    };
    let first = list(&mut bench, &["10.2.0.1", "10.2.0.2"]);
    assert!(first.contains(&Delta::Synced { cluster: id(2) }));
    assert_eq!(list(&mut bench, &["10.2.0.1"]), [gone("10.2.0.2")]);
}

#[test]
fn a_peer_may_not_claim_what_is_ours_whichever_came_first() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, "10.1.0.9", &ip("10.1.0.9", WEST_1));
    let ours = node("east", 1, "node1", "192.0.2.1", "10.1.0.0");
    let deltas = bench.put("east", Kind::Nodes, "node1", &ours);
    assert!(deltas.contains(&gone("10.1.0.9")), "{deltas:?}");
    assert!(deltas.contains(&target("192.0.2.1", 1, 1)), "{deltas:?}");
    assert_eq!(
        bench.put("west", Kind::Ips, "10.1.0.9", &ip("10.1.0.9", WEST_1)),
        []
    );
    assert_eq!(
        bench.put("west", Kind::Ips, "192.0.2.1", &ip("192.0.2.1", WEST_1)),
        []
    );
    assert_eq!(bench.rejected("address-of-own-cluster"), 3);
}

#[test]
fn a_node_of_a_peer_is_a_remote_node_and_is_listed() {
    let mut bench = Bench::new();
    let theirs = node("west", 2, "node2", "192.0.2.2", "10.2.0.0");
    let deltas = bench.put("west", Kind::Nodes, "node2", &theirs);
    assert_eq!(deltas, [target("192.0.2.2", 6, 2)]);
    let view = bench.mesh.view();
    let listed = view.nodes.get(&(name("west"), "node2".into())).unwrap();
    assert_eq!(listed.ipv4_cidr.unwrap().to_string(), "10.2.0.0/24");
    assert_eq!(listed.source, "clustermesh");
}

#[test]
fn r12_identities_need_their_own_cluster_label() {
    let mut bench = Bench::new();
    let suffix = WEST_1.to_string();
    for labels in ["k8s:app=x;", "k8s:io.cilium.k8s.policy.cluster=north;"] {
        assert_eq!(bench.put("west", Kind::Identities, &suffix, labels), []);
    }
    assert_eq!(bench.rejected("cluster-label"), 2);
    let good = "k8s:app=x;k8s:io.cilium.k8s.policy.cluster=west;";
    let deltas = bench.put("west", Kind::Identities, &suffix, good);
    let labels = Some(Arc::new(crate::types::Labels::parse(good)));
    assert_eq!(
        deltas,
        [Delta::Identity {
            id: IdentityId(WEST_1),
            labels
        }]
    );
}

#[test]
fn removal_withdraws_everything_of_the_peer_and_nothing_else() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    bench.put(
        "east",
        Kind::Ips,
        "10.1.0.1",
        &ip("10.1.0.1", (1 << 16) + 1),
    );
    bench.mesh.removed(&name("west"));
    let deltas = bench.taken();
    assert_eq!(
        deltas,
        [gone("10.2.0.1"), Delta::Removed { cluster: id(2) }]
    );
    assert!(
        bench
            .cache
            .range(&crate::store::RangeRequest::prefix(b"cilium/"))
            .unwrap()
            .kvs
            .is_empty()
    );
    assert_eq!(bench.mesh.view().addresses.len(), 1);
}

#[test]
fn c10_a_peer_with_a_new_id_starts_afresh() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    bench.mesh.connected(&name("west"), terms(3));
    assert_eq!(
        bench.taken(),
        [gone("10.2.0.1"), Delta::Removed { cluster: id(2) }]
    );
    let config = bench.cached("cilium/cluster-config/west").unwrap();
    assert!(config.starts_with(br#"{"id":3,"#), "{config:?}");
}

#[test]
fn pending_deltas_hold_the_newest_value_per_key() {
    let mut bench = Bench::new();
    for identity in [WEST_1, WEST_1 + 1] {
        let value = ip("10.2.0.1", identity);
        let event = KeyEvent::Upsert {
            kind: Kind::Ips,
            suffix: "10.2.0.1".into(),
            value: value.into(),
            revision: 1,
        };
        bench.mesh.apply(&name("west"), vec![event]);
    }
    assert_eq!(bench.taken(), [target("10.2.0.1", WEST_1 + 1, 2)]);
}
