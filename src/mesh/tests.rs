use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Delta, Deltas, IpTarget, Mesh, Offender, Settings, Terms};
use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    store::{Options, Store},
    types::{ClusterId, ClusterName, IdentityId, MaxClusters},
};

mod cache;
mod owner;
mod ports;
mod quota;
mod records;

pub(super) struct Bench {
    pub(super) mesh: Mesh,
    cache: Store,
    deltas: Deltas,
    revision: i64,
    pub(super) now: Instant,
}

fn id(n: u32) -> ClusterId {
    ClusterId::new(n, MaxClusters::C255).unwrap()
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

pub(super) fn terms(n: u32) -> Terms {
    Terms {
        id: id(n),
        config: ClusterConfig::default(),
        allowed_cidrs: Arc::default(),
        relayed: false,
    }
}

impl Bench {
    /// `east` (id 1) with the peer `west` (id 2) connected.
    pub(super) fn new() -> Self {
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
            now: Instant::now(),
        }
    }

    pub(super) fn put(
        &mut self,
        cluster: &str,
        kind: Kind,
        suffix: &str,
        value: &str,
    ) -> Vec<Delta> {
        self.revision += 1;
        let event = KeyEvent::Upsert {
            kind,
            suffix: Bytes::copy_from_slice(suffix.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            revision: self.revision,
        };
        self.apply(cluster, vec![event])
    }

    pub(super) fn delete(&mut self, cluster: &str, kind: Kind, suffix: &str) -> Vec<Delta> {
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

    /// Lists one kind of a cluster anew.
    pub(super) fn list(
        &mut self,
        cluster: &str,
        kind: Kind,
        entries: &[(&str, &str)],
    ) -> Vec<Delta> {
        let mut all = self.apply(cluster, vec![KeyEvent::BeginList { kind }]);
        for (suffix, value) in entries {
            all.extend(self.put(cluster, kind, suffix, value));
        }
        all.extend(self.apply(cluster, vec![KeyEvent::EndList { kind }]));
        all
    }

    pub(super) fn connect(&mut self, cluster: &str, terms: Terms) -> Vec<Delta> {
        self.mesh.connected(&name(cluster), terms);
        self.taken()
    }

    pub(super) fn remove(&mut self, cluster: &str) -> Vec<Delta> {
        self.mesh.removed(&name(cluster), self.now);
        self.taken()
    }

    fn count(&self, cluster: &str, kind: Kind) -> u64 {
        let count = self.mesh.view.counts.get(&(name(cluster), kind));
        count.map_or(0, |n| *n)
    }

    fn rejected(&self, reason: &'static str) -> u64 {
        self.rejected_of("west", reason)
    }

    fn rejected_of(&self, cluster: &str, reason: &'static str) -> u64 {
        let count = self.mesh.view.rejected.get(&(name(cluster), reason));
        count.map_or(0, |n| *n)
    }

    fn offender(&self, cluster: &str, reason: &'static str) -> Offender {
        let offenders = &self.mesh.view.offenders;
        offenders.get(&(name(cluster), reason)).unwrap().clone()
    }

    pub(super) fn is_cached(&self, key: &str) -> bool {
        self.cached(key).is_some()
    }

    fn cached(&self, key: &str) -> Option<Bytes> {
        self.cache.get(key.as_bytes()).map(|kv| kv.value)
    }
}

pub(super) fn ip(address: &str, identity: u32) -> String {
    format!(
        r#"{{"IP":"{address}","Mask":null,"HostIP":"10.7.0.1","ID":{identity},"Key":0,"Metadata":""}}"#
    )
}

pub(super) fn node(
    cluster: &str,
    cluster_id: u32,
    node: &str,
    address: &str,
    cidr: &str,
) -> String {
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
