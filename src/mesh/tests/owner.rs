use super::*;

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

/// `Bench` with a second peer, north (id 3).
fn three() -> Bench {
    let mut bench = Bench::new();
    bench.connect("north", terms(3));
    bench
}

const NORTH_1: u32 = (3 << 16) + 1;

fn allowed(n: u32, cidrs: &[&str]) -> Terms {
    Terms {
        allowed_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        ..terms(n)
    }
}

#[test]
fn first_owner_keeps_the_address_and_the_waiting_claimant_takes_over() {
    let mut bench = three();
    let (west, north) = (ip("10.9.0.1", WEST_1), ip("10.9.0.1", NORTH_1));
    bench.put("west", Kind::Ips, "10.9.0.1", &west);
    assert_eq!(bench.put("north", Kind::Ips, "10.9.0.1", &north), []);
    assert_eq!(bench.rejected_of("north", "address-of-other-peer"), 1);
    let offender = bench.offender("north", "address-of-other-peer");
    assert_eq!(offender.key, "10.9.0.1");
    let waiting = |bench: &Bench| {
        let claimants = bench.mesh.view().claimants;
        let mut told: Vec<_> = claimants
            .iter()
            .map(|c| (c.cluster.to_string(), c.key.clone(), c.prefix.to_string()))
            .collect();
        told.sort();
        told
    };
    let claim = |cluster: &str| {
        let texts = [cluster, "10.9.0.1", "10.9.0.1"].map(str::to_owned);
        <(String, String, String)>::from(texts)
    };
    assert_eq!(waiting(&bench), [claim("north")]);
    let cached = "cilium/cache/ip/v1/north/10.9.0.1";
    assert!(!bench.is_cached(cached), "it goes nowhere");
    assert_eq!(bench.count("north", Kind::Ips), 0);
    let deltas = bench.delete("west", Kind::Ips, "10.9.0.1");
    assert_eq!(deltas, [target("10.9.0.1", NORTH_1, 3)]);
    assert_eq!(bench.cached(cached).unwrap(), north);
    assert_eq!(waiting(&bench), []);
    assert_eq!(bench.put("west", Kind::Ips, "10.9.0.1", &west), []);
    assert_eq!(bench.rejected_of("west", "address-of-other-peer"), 1);
    assert!(!bench.is_cached("cilium/cache/ip/v1/west/10.9.0.1"));
}

#[test]
fn a_claimant_that_gave_up_takes_nothing_over() {
    let mut bench = three();
    bench.put("west", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", WEST_1));
    bench.put("north", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", NORTH_1));
    bench.delete("north", Kind::Ips, "10.9.0.1");
    let deltas = bench.delete("west", Kind::Ips, "10.9.0.1");
    assert_eq!(deltas, [gone("10.9.0.1")]);
    // The same by a list that lacks it.
    bench.put("west", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", WEST_1));
    bench.put("north", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", NORTH_1));
    bench.list("north", Kind::Ips, &[]);
    let deltas = bench.delete("west", Kind::Ips, "10.9.0.1");
    assert_eq!(deltas, [gone("10.9.0.1")]);
}

#[test]
fn what_comes_free_during_a_list_is_still_swept_if_the_list_lacks_it() {
    let mut bench = three();
    bench.put("west", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", WEST_1));
    bench.put("north", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", NORTH_1));
    let kind = Kind::Ips;
    bench.apply("north", vec![KeyEvent::BeginList { kind }]);
    let deltas = bench.delete("west", Kind::Ips, "10.9.0.1");
    assert_eq!(deltas, [target("10.9.0.1", NORTH_1, 3)]);
    let ended = bench.apply("north", vec![KeyEvent::EndList { kind }]);
    assert_eq!(ended, [gone("10.9.0.1")]);
}

#[test]
fn removal_of_the_owner_hands_the_address_over() {
    let mut bench = three();
    bench.put("west", Kind::Ips, "10.9.0.1", &ip("10.9.0.1", WEST_1));
    let theirs = node("north", 3, "n1", "10.9.0.1", "10.3.0.0");
    assert_eq!(bench.put("north", Kind::Nodes, "n1", &theirs), []);
    assert_eq!(bench.rejected_of("north", "address-of-other-peer"), 1);
    let deltas = bench.remove("west");
    assert!(deltas.contains(&target("10.9.0.1", 6, 3)), "{deltas:?}");
    assert_eq!(bench.count("north", Kind::Nodes), 1);
}

#[test]
fn what_the_own_cluster_took_comes_back_when_it_lets_go() {
    let mut bench = Bench::new();
    let (value, key) = (ip("10.1.0.9", WEST_1), "cilium/cache/ip/v1/west/10.1.0.9");
    bench.put("west", Kind::Ips, "10.1.0.9", &value);
    let ours = node("east", 1, "node1", "192.0.2.1", "10.1.0.0");
    bench.put("east", Kind::Nodes, "node1", &ours);
    assert!(!bench.is_cached(key));
    assert_eq!(
        bench.offender("west", "address-of-own-cluster").key,
        "10.1.0.9"
    );
    // Another CIDR: the old one is free.
    let moved = node("east", 1, "node1", "192.0.2.1", "10.5.0.0");
    let deltas = bench.put("east", Kind::Nodes, "node1", &moved);
    assert_eq!(deltas, [target("10.1.0.9", WEST_1, 2)]);
    assert_eq!(bench.cached(key).unwrap(), value);
    // An exact claim, of the same address, by a pod of ours.
    let deltas = bench.put("east", Kind::Ips, "10.1.0.9", &ip("10.1.0.9", EAST_1));
    assert_eq!(
        deltas,
        [target("10.1.0.9", EAST_1, 1)],
        "at no time nobody's"
    );
    assert!(!bench.is_cached(key));
    let deltas = bench.delete("east", Kind::Ips, "10.1.0.9");
    assert_eq!(deltas, [target("10.1.0.9", WEST_1, 2)]);
}

const EAST_1: u32 = (1 << 16) + 1;

#[test]
fn nodes_of_peers_keep_off_our_addresses_and_pod_cidrs() {
    let mut bench = Bench::new();
    let ours = node("east", 1, "node1", "192.0.2.1", "10.1.0.0");
    bench.put("east", Kind::Nodes, "node1", &ours);
    for (name, theirs) in [
        ("a", node("west", 2, "a", "192.0.2.1", "10.2.0.0")),
        ("b", node("west", 2, "b", "192.0.2.2", "10.1.0.0")),
        ("c", node("west", 2, "c", "10.1.0.200", "10.2.0.0")),
    ] {
        assert_eq!(bench.put("west", Kind::Nodes, name, &theirs), [], "{name}");
    }
    assert_eq!(bench.rejected("address-of-own-cluster"), 3);
    // A range around our node, which came first.
    let range = r#"{"IP":"192.0.2.0","Mask":"////AA==","ID":131073}"#;
    assert_eq!(bench.put("west", Kind::Ips, "192.0.2.0/24", range), []);
    assert_eq!(bench.rejected("address-of-own-cluster"), 4);
    // The other way round: a node of ours appears in a range and a pod CIDR of theirs.
    bench.delete("east", Kind::Nodes, "node1");
    assert_eq!(bench.count("west", Kind::Nodes), 3);
    assert_eq!(bench.count("west", Kind::Ips), 1);
    bench.put("east", Kind::Nodes, "node1", &ours);
    assert_eq!(bench.count("west", Kind::Nodes), 0);
    assert_eq!(bench.count("west", Kind::Ips), 0);
}

#[test]
fn only_allowed_ranges_count_and_the_list_may_change() {
    let mut bench = Bench::new();
    let (inside, outside) = (ip("10.2.0.1", WEST_1), ip("10.3.0.1", WEST_1));
    bench.connect("west", allowed(2, &["10.2.0.0/16", "2001:db8::/32"]));
    assert_eq!(
        bench.put("west", Kind::Ips, "10.2.0.1", &inside),
        [target("10.2.0.1", WEST_1, 2)]
    );
    assert_eq!(bench.put("west", Kind::Ips, "10.3.0.1", &outside), []);
    let theirs = node("west", 2, "n1", "10.2.0.2", "10.4.0.0");
    assert_eq!(bench.put("west", Kind::Nodes, "n1", &theirs), []);
    assert_eq!(bench.rejected("address-not-allowed"), 2);
    let deltas = bench.connect("west", allowed(2, &["10.3.0.0/16"]));
    let expected = [gone("10.2.0.1"), target("10.3.0.1", WEST_1, 2)];
    assert_eq!(deltas, expected);
    let deltas = bench.connect("west", terms(2));
    assert_eq!(bench.count("west", Kind::Ips), 2);
    assert!(deltas.contains(&target("10.2.0.2", 6, 2)), "{deltas:?}");
}

/// Goal: what the operator's file forbids goes although the peer says nothing any more.
#[test]
fn file_of_a_dead_peer_holds_at_once() {
    let mut bench = three();
    for (name, identity) in [("west", WEST_1), ("north", NORTH_1)] {
        for kind in ["1", "2"] {
            let address = format!("10.{}.0.{kind}", identity >> 16);
            bench.put(name, Kind::Ips, &address, &ip(&address, identity));
        }
    }
    let only = ["10.2.0.2/32".parse().unwrap()].into();
    bench
        .mesh
        .terms(&name("west"), Some(id(2)), &only, bench.now);
    assert_eq!(bench.taken(), [gone("10.2.0.1")]);
    assert_eq!(bench.rejected("address-not-allowed"), 1);
    assert!(!bench.is_cached("cilium/cache/ip/v1/west/10.2.0.1"));
    bench
        .mesh
        .terms(&name("west"), None, &Arc::default(), bench.now);
    assert_eq!(bench.taken(), [target("10.2.0.1", WEST_1, 2)]);
    // Another id than the one that it is known by.
    bench
        .mesh
        .terms(&name("west"), Some(id(7)), &Arc::default(), bench.now);
    assert_eq!(bench.taken().len(), 3, "two addresses and the member");
    assert_eq!(bench.count("west", Kind::Ips), 0);
    assert_eq!(bench.count("north", Kind::Ips), 2);
}

#[test]
fn wide_prefixes_need_a_list() {
    let mut bench = Bench::new();
    let v4 = |ones: &str| format!(r#"{{"IP":"10.0.0.0","Mask":"{ones}","ID":131073}}"#);
    assert_eq!(
        bench.put("west", Kind::Ips, "10.0.0.0/7", &v4("/gAAAA==")),
        []
    );
    assert_eq!(bench.rejected("prefix-too-wide"), 1);
    assert_eq!(
        bench
            .put("west", Kind::Ips, "10.0.0.0/8", &v4("/wAAAA=="))
            .len(),
        1
    );
    let v6 = r#"{"IP":"2000::","Mask":"//4AAAAAAAAAAAAAAAAAAA==","ID":131073}"#;
    assert_eq!(bench.put("west", Kind::Ips, "2000::/15", v6), []);
    assert_eq!(bench.rejected("prefix-too-wide"), 2);
    let deltas = bench.connect("west", allowed(2, &["0.0.0.0/0", "2000::/3"]));
    assert_eq!(deltas.len(), 2, "{deltas:?}");
}

#[test]
fn c9_the_next_holder_of_an_id_finds_nothing_of_the_last() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1));
    // The removal of west is still on its way.
    let deltas = bench.connect("north", terms(2));
    let removed = Delta::Removed { cluster: id(2) };
    assert_eq!(deltas, [gone("10.2.0.1"), removed]);
    assert!(!bench.is_cached("cilium/cache/ip/v1/west/10.2.0.1"));
    assert_eq!(
        bench.put("west", Kind::Ips, "10.2.0.1", &ip("10.2.0.1", WEST_1)),
        []
    );
    assert_eq!(bench.remove("west"), []);
}
