use super::*;

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
fn r20_an_unreadable_value_at_a_relist_leaves_the_kernel_but_not_the_cache() {
    let mut bench = Bench::new();
    let key = "cilium/cache/ip/v1/west/10.2.0.1";
    let good = ip("10.2.0.1", WEST_1);
    bench.put("west", Kind::Ips, "10.2.0.1", &good);
    bench.put("west", Kind::Ips, "10.2.0.1", "{not json");
    assert_eq!(bench.cached(key).unwrap(), "{not json");
    let bad = [("10.2.0.1", "{not json")];
    assert_eq!(bench.list("west", Kind::Ips, &bad), [gone("10.2.0.1")]);
    assert_eq!(bench.cached(key).unwrap(), "{not json");
    let again = bench.list("west", Kind::Ips, &[("10.2.0.1", &good)]);
    assert_eq!(again, [target("10.2.0.1", WEST_1, 2)]);
    assert_eq!(bench.cached(key).unwrap(), good);
    bench.put("west", Kind::Ips, "10.2.0.1", "{not json");
    let deleted = bench.delete("west", Kind::Ips, "10.2.0.1");
    assert_eq!(deleted, [gone("10.2.0.1")]);
    assert!(!bench.is_cached(key));
}

#[test]
fn r1_a_record_that_breaks_a_rule_keeps_its_predecessor_until_a_list_ends() {
    let mut bench = Bench::new();
    let key = "cilium/cache/nodes/v1/west/n1";
    let good = node("west", 2, "n1", "192.0.2.2", "10.2.0.0");
    bench.put("west", Kind::Nodes, "n1", &good);
    for (bad, reason) in [
        (
            node("other", 2, "n1", "192.0.2.3", "10.2.0.0"),
            "cluster-mismatch",
        ),
        (
            node("west", 2, "n2", "192.0.2.3", "10.2.0.0"),
            "key-mismatch",
        ),
        (
            node("west", 3, "n1", "192.0.2.3", "10.2.0.0"),
            "cluster-id-mismatch",
        ),
        (
            node("west", 0, "n1", "192.0.2.3", "10.2.0.0"),
            "cluster-id-out-of-range",
        ),
    ] {
        assert_eq!(bench.put("west", Kind::Nodes, "n1", &bad), []);
        assert_eq!(bench.rejected(reason), 1, "{reason}");
        assert_eq!(bench.cached(key).unwrap(), good);
    }
    let bad = node("other", 2, "n1", "192.0.2.3", "10.2.0.0");
    let deltas = bench.list("west", Kind::Nodes, &[("n1", &bad)]);
    assert_eq!(deltas, [gone("192.0.2.2")]);
    assert!(!bench.is_cached(key));
}

#[test]
fn r9_r10_zero_identity_is_known_and_nobody_is_told() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", 0)),
        []
    );
    assert_eq!(bench.count("west", Kind::Ips), 1);
    let named = bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    assert_eq!(named, [target("10.2.0.1", WEST_1, 2)]);
    let back = bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", 0));
    assert_eq!(back, [gone("10.2.0.1")]);
}

#[test]
fn a_range_and_an_address_of_one_prefix_are_two_records() {
    let mut bench = Bench::new();
    let masked = r#"{"IP":"10.2.0.1","Mask":"/////w==","ID":131073}"#;
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    assert_eq!(bench.put("west", Kind::Ips, "10.2.0.1/32", masked), []);
    assert_eq!(bench.delete("west", Kind::Ips, "10.2.0.1"), []);
    let last = bench.delete("west", Kind::Ips, "10.2.0.1/32");
    assert_eq!(last, [gone("10.2.0.1")]);
}

#[test]
fn a_node_that_is_renamed_never_loses_its_address() {
    let mut bench = Bench::new();
    let value = |name| node("west", 2, name, "192.0.2.2", "10.2.0.0");
    bench.put("west", Kind::Nodes, "old", &value("old"));
    assert_eq!(bench.put("west", Kind::Nodes, "new", &value("new")), []);
    assert_eq!(bench.delete("west", Kind::Nodes, "old"), []);
    let last = bench.delete("west", Kind::Nodes, "new");
    assert_eq!(last, [gone("192.0.2.2")]);
}

fn service(name: &str, shared: bool) -> String {
    format!(
        r#"{{"cluster":"west","namespace":"shop","name":"{name}","frontends":{{}},"backends":{{}},"shared":{shared},"clusterID":2}}"#
    )
}

#[test]
fn r15_a_service_that_is_not_shared_any_more_is_none() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Services, "shop/a", &service("a", true));
    assert_eq!(bench.count("west", Kind::Services), 1);
    bench.put("west", Kind::Services, "shop/a", &service("a", false));
    assert_eq!(bench.count("west", Kind::Services), 0);
    let cached = bench.cached("cilium/cache/services/v1/west/shop/a");
    assert_eq!(
        cached.unwrap(),
        service("a", false),
        "its readers judge themselves"
    );
}

#[test]
fn services_that_several_peers_share_are_counted_once() {
    let mut bench = Bench::new();
    bench.connect("north", terms(3));
    let of_north = service("a", true)
        .replace("west", "north")
        .replace("\"clusterID\":2", "\"clusterID\":3");
    let count = |bench: &Bench| bench.mesh.view().services.len();
    bench.put("west", Kind::Services, "shop/a", &service("a", true));
    bench.put("west", Kind::Services, "shop/b", &service("b", true));
    bench.put("north", Kind::Services, "shop/a", &of_north);
    assert_eq!(
        (bench.count("north", Kind::Services), count(&bench)),
        (1, 2)
    );
    bench.delete("west", Kind::Services, "shop/a");
    assert_eq!(count(&bench), 2);
    bench.remove("north");
    assert_eq!(count(&bench), 1);
    bench.list("west", Kind::Services, &[]);
    assert_eq!(count(&bench), 0);
}

#[test]
fn r16_r17_r19_services_are_taken_whole_or_not_at_all() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Services, "shop/a", &service("b", true));
    assert_eq!(bench.rejected("key-mismatch"), 1);
    let backend = service("a", true).replace(
        r#""backends":{}"#,
        r#""backends":{"10.2.0.1":{},"not-an-ip":{}}"#,
    );
    bench.put("west", Kind::Services, "shop/a", &backend);
    assert_eq!(bench.rejected("undecodable"), 1);
    assert_eq!(bench.count("west", Kind::Services), 0);
    bench.put("west", Kind::Services, "shop/a", &service("a", true));
    assert_eq!(bench.count("west", Kind::Services), 1);
}

#[test]
fn r22_service_exports_need_an_affinity_and_a_type() {
    let mut bench = Bench::new();
    let good = r#"{"cluster":"west","name":"a","namespace":"shop","Annotations":{"x":"1"},"Labels":null,"exportCreationTimestamp":"2025-05-02T09:30:00Z","ports":[{"name":"http","protocol":"TCP","appProtocol":"http","port":80}],"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}}}"#;
    let put = |bench: &mut Bench, value: &str| {
        bench.put("west", Kind::ServiceExports, "shop/a", value);
        bench.count("west", Kind::ServiceExports)
    };
    for (from, to, reason) in [
        (r#":"ClientIP""#, r#":"""#, "invalid-field"),
        ("ClusterSetIP", "X", "invalid-field"),
        ("2025-05-02T09:30:00Z", "0001-01-01T00:00:00Z", "incomplete"),
        ("2025-05-02T09:30:00Z", "yesterday", "undecodable"),
        (r#""port":80"#, r#""port":-3000000000"#, "undecodable"),
        (r#""name":"a""#, r#""name":"b""#, "key-mismatch"),
    ] {
        let before = bench.rejected(reason);
        assert_eq!(put(&mut bench, &good.replace(from, to)), 0, "{to}");
        assert_eq!(bench.rejected(reason), before + 1, "{to}");
    }
    assert_eq!(put(&mut bench, good), 1);
    let newer = r#","ipFamilies":["IPv4"],"internalTrafficPolicy":"Local","trafficDistribution":"PreferClose"}"#;
    let newer = format!("{}{newer}", &good[..good.len() - 1]);
    assert_eq!(put(&mut bench, &newer), 1);
    put(&mut bench, &newer.replace("PreferClose", "PreferFar"));
    assert_eq!(bench.rejected("invalid-field"), 3);
}

#[test]
fn r21_odd_values_are_dropped_or_read_and_never_end_us() {
    let mut bench = Bench::new();
    for value in ["null", "{}"] {
        for kind in [Kind::Nodes, Kind::Ips, Kind::Services, Kind::ServiceExports] {
            bench.put("west", kind, "a/b", value);
        }
    }
    assert_eq!(bench.rejected("incomplete"), 8);
    let long = "x".repeat(3 << 20);
    bench.put("west", Kind::Ips, "10.2.0.1", &long);
    assert_eq!(bench.rejected("oversize"), 1);
    assert!(!bench.is_cached("cilium/cache/ip/v1/west/10.2.0.1"));
    let deep = format!(r#"{{"IP":"10.2.0.1","x":{}}}"#, "[".repeat(500_000));
    bench.put("west", Kind::Ips, "10.2.0.1", &deep);
    assert_eq!(bench.rejected("undecodable"), 1);
}

#[test]
fn counts_and_offenders_tell_of_the_last_violation() {
    let mut bench = Bench::new();
    let foreign = ip("10.2.0.2", 3 << 16);
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", 3 << 16));
    bench.put("west", Kind::Ips, "10.2.0.2", &foreign);
    assert_eq!(bench.rejected("identity-out-of-range"), 2);
    let offender = bench.offender("west", "identity-out-of-range");
    assert_eq!((offender.kind, &*offender.key), (Kind::Ips, "10.2.0.2"));
    assert_eq!(offender.revision, bench.revision);
    assert!(offender.error.contains("196608"), "{offender:?}");
    bench.put("west", Kind::Ips, &"9".repeat(100_000), &foreign);
    let offender = bench.offender("west", "key-mismatch");
    assert_eq!(offender.key.len(), crate::limits::KEY_SHOWN_BYTES);
}
