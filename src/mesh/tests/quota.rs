use super::*;
use crate::mesh::quota::Quota;

fn few() -> Bench {
    let mut bench = Bench::new();
    bench.mesh.quota = Quota {
        keys: 3,
        bytes: 1_000,
        held_keys: 2,
        held_bytes: 1_000,
    };
    bench
}

fn put(bench: &mut Bench, n: u32) -> usize {
    let address = format!("10.2.0.{n}");
    bench
        .put("west", Kind::Ips, &address, &ip(&address, WEST_1))
        .len()
}

#[test]
fn keys_past_the_quota_wait_and_come_in_when_others_go() {
    let mut bench = few();
    let told: usize = (1..=6).map(|n| put(&mut bench, n)).sum();
    assert_eq!((told, bench.rejected("too-many-keys")), (3, 3));
    assert!(!bench.is_cached("cilium/cache/ip/v1/west/10.2.0.4"));
    assert_eq!(bench.offender("west", "too-many-keys").key, "10.2.0.6");
    // Those that are in may change.
    let changed = ip("10.2.0.1", WEST_1 + 1);
    let deltas = bench.put("west", Kind::Ips, "10.2.0.1", &changed);
    assert_eq!(deltas.len(), 1);
    let deltas = bench.delete("west", Kind::Ips, "10.2.0.1");
    assert_eq!(deltas, [gone("10.2.0.1"), target("10.2.0.4", WEST_1, 2)]);
    let deltas = bench.delete("west", Kind::Ips, "10.2.0.2");
    assert_eq!(deltas, [gone("10.2.0.2"), target("10.2.0.5", WEST_1, 2)]);
    // The sixth found no place to wait either: it comes with the next list.
    let deltas = bench.delete("west", Kind::Ips, "10.2.0.3");
    assert_eq!(deltas, [gone("10.2.0.3")]);
    assert_eq!(bench.mesh.members[&name("west")].usage.held_keys, 0);
}

#[test]
fn bytes_count_and_what_nobody_can_read_counts_too() {
    let mut bench = few();
    bench.put("west", Kind::Services, "a/b", &"x".repeat(950));
    assert_eq!(bench.rejected("undecodable"), 1);
    put(&mut bench, 1);
    assert_eq!(bench.rejected("too-many-bytes"), 1);
    bench.put("west", Kind::Services, "a/c", &"x".repeat(950));
    assert_eq!(bench.rejected("too-many-bytes"), 2);
    assert!(!bench.is_cached("cilium/cache/services/v1/west/a/c"));
    let deltas = bench.delete("west", Kind::Services, "a/b");
    assert_eq!(deltas, [target("10.2.0.1", WEST_1, 2)]);
    let usage = bench.mesh.members[&name("west")].usage;
    assert_eq!((usage.keys, usage.held_keys, usage.held_bytes), (1, 0, 0));
}

#[test]
fn one_peer_s_quota_is_not_another_s() {
    let mut bench = few();
    for n in 1..=9 {
        put(&mut bench, n);
    }
    bench.connect("north", terms(3));
    let value = ip("10.3.0.1", (3 << 16) + 1);
    assert_eq!(bench.put("north", Kind::Ips, "10.3.0.1", &value).len(), 1);
    for n in 1..9 {
        let address = format!("10.1.0.{n}");
        let value = ip(&address, (1 << 16) + 1);
        assert_eq!(bench.put("east", Kind::Ips, &address, &value).len(), 1);
    }
}

/// Goal: whatever a peer does, what is counted is what is there.
#[test]
fn usage_returns_to_nothing() {
    let mut bench = few();
    for n in 1..=7 {
        put(&mut bench, n);
        put(&mut bench, n);
        bench.put("west", Kind::Ips, &format!("10.2.0.{n}"), "{");
    }
    bench.list("west", Kind::Ips, &[("10.2.0.3", "{")]);
    bench.delete("west", Kind::Ips, "10.2.0.3");
    let usage = bench.mesh.members[&name("west")].usage;
    let all = [usage.keys, usage.bytes, usage.held_keys, usage.held_bytes];
    assert_eq!(all, [0; 4]);
}
