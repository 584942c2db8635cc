use super::*;
use crate::{
    keyspace::{Capabilities, Layout},
    limits::CACHE_GRACE,
    store::RangeRequest,
};

fn with(n: u32, capabilities: Capabilities) -> Terms {
    Terms {
        config: ClusterConfig {
            id: n,
            capabilities,
        },
        ..terms(n)
    }
}

fn keys(bench: &Bench, prefix: &str) -> Vec<String> {
    let request = RangeRequest::prefix(prefix.as_bytes());
    let found = bench.cache.range(&request).unwrap();
    let key = |kv: crate::store::KeyValue| String::from_utf8(kv.key.to_vec()).unwrap();
    found.kvs.into_iter().map(key).collect()
}

fn canary(kind: Kind) -> String {
    Layout::Cache.canary(kind, &name("west"))
}

#[test]
fn the_configuration_is_rewritten_and_comes_before_any_data() {
    let mut bench = Bench::new();
    let capabilities = Capabilities {
        max_connected_clusters: 511,
        service_exports_enabled: Some(false),
        endpoint_slices_export_mode: "services-and-endpointslices".into(),
        ..Capabilities::default()
    };
    bench.connect("north", with(3, capabilities));
    let config = bench.cached("cilium/cluster-config/north").unwrap();
    let expected = r#"{"id":3,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":511,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;
    assert_eq!(config, expected);
    assert_eq!(keys(&bench, "cilium/synced/north/"), Vec::<String>::new());
}

#[test]
fn kinds_that_a_peer_lacks_are_complete_at_once_and_drained() {
    let mut bench = Bench::new();
    let both = Capabilities {
        service_exports_enabled: Some(true),
        ..Capabilities::default()
    };
    let absent = [canary(Kind::EndpointSlices), canary(Kind::ServiceExports)];
    assert_eq!(keys(&bench, "cilium/synced/west/cilium/"), absent);
    bench.connect("west", with(2, both));
    let export = r#"{"cluster":"west","name":"a","namespace":"shop","exportCreationTimestamp":"2025-05-02T09:30:00Z","ports":[],"type":"Headless","sessionAffinity":"None"}"#;
    bench.put("west", Kind::ServiceExports, "shop/a", export);
    assert_eq!(bench.count("west", Kind::ServiceExports), 1);
    bench.connect("west", terms(2));
    assert_eq!(bench.count("west", Kind::ServiceExports), 0);
    assert_eq!(keys(&bench, "cilium/cache/"), Vec::<String>::new());
    // A producer of slices alone has no services.
    let slices = Capabilities {
        endpoint_slices_export_mode: "endpointslices-only".into(),
        ..Capabilities::default()
    };
    bench.connect("north", with(3, slices));
    let canary = Layout::Cache.canary(Kind::Services, &name("north"));
    assert!(bench.is_cached(&canary));
    assert!(!bench.is_cached(&Layout::Cache.canary(Kind::EndpointSlices, &name("north"))));
}

#[test]
fn p9_a_kind_s_canary_follows_its_first_list_and_stays() {
    let mut bench = Bench::new();
    let kind = Kind::Nodes;
    bench.apply("west", vec![KeyEvent::BeginList { kind }]);
    assert!(!bench.is_cached(&canary(kind)));
    bench.apply("west", vec![KeyEvent::EndList { kind }]);
    assert!(bench.is_cached(&canary(kind)));
    bench.connect("west", terms(2));
    bench.apply("west", vec![KeyEvent::BeginList { kind }]);
    assert!(bench.is_cached(&canary(kind)));
    assert!(!bench.is_cached(&canary(Kind::Ips)));
}

#[test]
fn what_another_node_relays_has_no_canary_for_other_nodes() {
    let mut bench = Bench::new();
    let relay = Layout::Relay.canaries(&name("west"));
    bench.list("west", Kind::Nodes, &[]);
    assert_eq!(keys(&bench, &relay).len(), 3);
    let relayed = Terms {
        relayed: true,
        ..terms(2)
    };
    bench.connect("west", relayed);
    bench.list("west", Kind::Nodes, &[]);
    assert_eq!(keys(&bench, &relay).len(), 0);
    assert!(bench.is_cached(&canary(Kind::Nodes)));
}

#[test]
fn p10_removal_takes_the_configuration_at_once_and_the_data_after_the_grace() {
    let mut bench = Bench::new();
    bench.connect("west2", terms(3));
    bench.list("west", Kind::Ips, &[("10.2.0.1", &ip("10.2.0.1", WEST_1))]);
    let foreign = ip("10.3.0.1", (3 << 16) + 1);
    bench.list("west2", Kind::Ips, &[("10.3.0.1", &foreign)]);
    let removed = Delta::Removed { cluster: id(2) };
    assert_eq!(bench.remove("west"), [gone("10.2.0.1"), removed]);
    assert!(!bench.is_cached("cilium/cluster-config/west"));
    let due = bench.mesh.expires().unwrap();
    assert_eq!(due, bench.now + CACHE_GRACE);
    bench.mesh.expire(due - Duration::from_millis(1));
    assert!(bench.is_cached("cilium/cache/ip/v1/west/10.2.0.1"));
    assert!(bench.is_cached(&canary(Kind::Ips)));
    bench.mesh.expire(due);
    assert_eq!(
        keys(&bench, "cilium/cache/"),
        ["cilium/cache/ip/v1/west2/10.3.0.1"]
    );
    assert_eq!(keys(&bench, "cilium/synced/west/"), Vec::<String>::new());
    assert!(bench.is_cached("cilium/cluster-config/west2"));
    assert_eq!(bench.mesh.expires(), None);
    assert_eq!(bench.mesh.view().addresses.len(), 1);
}

#[test]
fn a_peer_that_returns_in_time_changes_nothing_but_what_differs() {
    let mut bench = Bench::new();
    let (kept, lost) = (ip("10.2.0.1", WEST_1), ip("10.2.0.2", WEST_1));
    bench.list(
        "west",
        Kind::Ips,
        &[("10.2.0.1", &kept), ("10.2.0.2", &lost)],
    );
    bench.remove("west");
    bench.connect("west", terms(2));
    assert!(bench.is_cached("cilium/cluster-config/west"));
    bench.mesh.expire(bench.now + 2 * CACHE_GRACE);
    let before = bench.cache.revision();
    bench.list("west", Kind::Ips, &[("10.2.0.1", &kept)]);
    assert_eq!(bench.cache.revision(), before + 1, "one deletion, no write");
    assert_eq!(
        keys(&bench, "cilium/cache/"),
        ["cilium/cache/ip/v1/west/10.2.0.1"]
    );
}

#[test]
fn c10_a_peer_with_a_new_id_starts_afresh() {
    for told in [false, true] {
        let mut bench = Bench::new();
        bench.list("west", Kind::Ips, &[("10.2.0.1", &ip("10.2.0.1", WEST_1))]);
        let mut deltas = if told {
            bench.remove("west")
        } else {
            Vec::new()
        };
        deltas.extend(bench.connect("west", terms(3)));
        let removed = Delta::Removed { cluster: id(2) };
        assert_eq!(deltas, [gone("10.2.0.1"), removed]);
        let config = bench.cached("cilium/cluster-config/west").unwrap();
        assert!(config.starts_with(br#"{"id":3,"#), "{config:?}");
        assert_eq!(keys(&bench, "cilium/cache/"), Vec::<String>::new());
        assert!(!bench.is_cached(&canary(Kind::Ips)), "told: {told}");
    }
}

#[test]
fn p11_unreadable_values_are_copied_as_they_are() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Services, "shop/a", "{not json");
    let cached = bench.cached("cilium/cache/services/v1/west/shop/a");
    assert_eq!(cached.unwrap(), "{not json");
    bench.list("west", Kind::Services, &[]);
    assert_eq!(keys(&bench, "cilium/cache/"), Vec::<String>::new());
}

#[test]
fn expiry_takes_the_services_and_nothing_else() {
    let mut bench = Bench::new();
    let service = r#"{"cluster":"west","namespace":"shop","name":"a","shared":true,"clusterID":2}"#;
    bench.put("west", Kind::Services, "shop/a", service);
    bench.put("west", Kind::Services, "shop/b", "{not json");
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    bench.mesh.expire_services(&name("west"));
    assert_eq!(bench.taken(), []);
    assert_eq!(bench.count("west", Kind::Services), 0);
    assert_eq!(
        keys(&bench, "cilium/cache/"),
        ["cilium/cache/ip/v1/west/10.2.0.1"]
    );
    assert_eq!(bench.mesh.members[&name("west")].usage.keys, 1);
}

/// Goal: `Synced` speaks of entries that are sent before it, also while the removal of the cluster,
/// which has the same key, is still pending.
#[test]
fn synced_comes_behind_the_entries_also_after_a_pending_removal() {
    let mut bench = Bench::new();
    bench.mesh.removed(&name("west"), bench.now);
    bench.mesh.connected(&name("west"), terms(2));
    let value = ip("10.2.0.1", WEST_1);
    let list = |kind, suffix: &'static str, value: &str| {
        let upsert = KeyEvent::Upsert {
            kind,
            suffix: suffix.into(),
            value: value.to_owned().into(),
            revision: 1,
        };
        vec![
            KeyEvent::BeginList { kind },
            upsert,
            KeyEvent::EndList { kind },
        ]
    };
    bench
        .mesh
        .apply(&name("west"), list(Kind::Identities, "x", ""));
    bench
        .mesh
        .apply(&name("west"), list(Kind::Ips, "10.2.0.1", &value));
    let synced = Delta::Synced { cluster: id(2) };
    assert_eq!(bench.taken(), [target("10.2.0.1", WEST_1, 2), synced]);
}
