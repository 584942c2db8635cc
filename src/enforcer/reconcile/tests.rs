use std::sync::Arc;

use super::*;
use crate::{
    enforcer::datapath::Memory,
    mesh::IpTarget,
    policy::{Direction, EndpointMode, Votes},
    types::{ClusterId, IdentityId, Labels},
};

const DB: EndpointId = EndpointId(7);

fn cluster(id: u32) -> ClusterId {
    ClusterId::new(id, MaxClusters::C255).unwrap()
}

fn identity(cluster: u32, local: u32) -> IdentityId {
    IdentityId(cluster << 16 | local)
}

fn key(identity: IdentityId) -> PolicyKey {
    let direction = Direction::Ingress;
    PolicyKey {
        endpoint: DB,
        identity,
        direction,
        protocol: 6,
        port: 6379,
        port_bits: 16,
    }
}

fn entry(identity: IdentityId, deny: Option<bool>) -> Change {
    let votes = |deny| if deny { Votes::DENY } else { Votes::ALLOW };
    let value = deny.map(|deny| PolicyEntry {
        votes: votes(deny),
        rule: 1,
    });
    Change::Map(MapDelta::Entry {
        key: key(identity),
        value,
    })
}

fn ip(text: &str, id: Option<IdentityId>) -> Change {
    let of = |id: IdentityId| IpTarget {
        identity: id,
        cluster: cluster(id.0 >> 16),
    };
    Change::Ip {
        prefix: text.parse().unwrap(),
        target: id.map(of),
    }
}

fn upsert() -> Change {
    Change::Endpoint(EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id: DB,
        identity: identity(1, 1),
        labels: Arc::new(Labels::default()),
        namespace: "default".into(),
        name: "db".into(),
        addresses: vec!["10.1.0.2".parse().unwrap()],
        interface: Some("veth-db".into()),
        named_ports: Vec::new(),
        audit: false,
    })))
}

fn default_deny(ingress: bool) -> Change {
    let mut mode = EndpointMode::default();
    mode.default_deny.ingress = ingress;
    Change::Map(MapDelta::Endpoint { endpoint: DB, mode })
}

fn memory() -> Memory {
    Memory {
        interfaces: HashMap::from([("veth-db".into(), 4)]),
        ..Memory::default()
    }
}

fn fresh() -> Reconciler<Memory> {
    let mut reconciler = Reconciler::open(memory(), &Options::default()).unwrap();
    reconciler.apply([]);
    reconciler.datapath.log.clear();
    reconciler
}

/// The same kernel, as the next process finds it.
fn restart(reconciler: Reconciler<Memory>) -> Reconciler<Memory> {
    let mut next = Reconciler::open(reconciler.datapath, &Options::default()).unwrap();
    next.apply([]);
    next.datapath.log.clear();
    next
}

fn running() -> Reconciler<Memory> {
    let mut reconciler = fresh();
    reconciler.apply([
        entry(identity(2, 5), Some(false)),
        ip("10.2.0.5", Some(identity(2, 5))),
        upsert(),
        default_deny(true),
        Change::Endpoint(EndpointEvent::Synced),
        Change::Synced {
            cluster: cluster(1),
        },
        Change::Synced {
            cluster: cluster(2),
        },
    ]);
    reconciler.datapath.log.clear();
    reconciler
}

#[test]
fn a_batch_adds_before_it_takes_away_and_moves_the_epoch_last() {
    let mut reconciler = fresh();
    reconciler.apply([
        entry(identity(2, 9), Some(false)),
        ip("10.2.0.9", Some(identity(2, 9))),
    ]);
    reconciler.datapath.log.clear();
    reconciler.apply([
        ip("10.2.0.9", None),
        entry(identity(2, 9), None),
        default_deny(true),
        upsert(),
        ip("10.2.0.5", Some(identity(2, 5))),
        entry(identity(2, 5), Some(false)),
    ]);
    let words: Vec<String> = reconciler.datapath.log;
    assert_eq!(
        words,
        [
            "policy 7 131077 Some(1)",
            "ipcache 10.2.0.5 Some(131077)",
            "retire 2",
            "endpoint 4 Some((7, 1, [65536, 0, 0, 0]))",
            "attach 4",
            "policy 7 131081 None",
            "ipcache 10.2.0.9 None",
            "epoch",
        ]
    );
}

/// Goal: a prefix changes what its addresses are under rules that say the same of both, so neither
/// with the entries before nor with those behind it; and audit ends behind what it excused.
#[test]
fn the_engines_order_of_prefixes_and_modes_outlives_a_batch() {
    let mut reconciler = running();
    let prefix = |identity| {
        let prefix = "10.9.0.0/16".parse().unwrap();
        Change::Map(MapDelta::Cidr { prefix, identity })
    };
    let part = IdentityId((1 << 24) + 3);
    let mode = |audit| {
        let mode = EndpointMode {
            audit,
            ..EndpointMode::default()
        };
        Change::Map(MapDelta::Endpoint { endpoint: DB, mode })
    };
    reconciler.apply([mode(true)]);
    reconciler.datapath.log.clear();
    reconciler.apply([
        entry(part, Some(true)),
        prefix(Some(part)),
        entry(identity(2, 6), Some(false)),
        mode(true),
        entry(identity(2, 5), None),
        mode(false),
        prefix(None),
        entry(part, None),
    ]);
    let log = &reconciler.datapath.log;
    let writes = log.iter().filter(|line| !line.starts_with("epoch"));
    let words = writes.map(|line| line.split(" Some((").next().unwrap());
    let words: Vec<&str> = words.filter(|line| !line.starts_with("retire")).collect();
    assert_eq!(
        words,
        [
            "policy 7 16777219 Some(2)",
            "cidr 10.9.0.0/16 Some(3)",
            "policy 7 131078 Some(1)",
            "policy 7 131077 None",
            "endpoint 4",
            "cidr 10.9.0.0/16 None",
            "policy 7 16777219 None",
        ]
    );
}

#[test]
fn nothing_is_written_for_what_is_already_there() {
    let mut reconciler = restart(running());
    reconciler.apply([
        upsert(),
        entry(identity(2, 5), Some(false)),
        default_deny(true),
        ip("10.2.0.5", Some(identity(2, 5))),
        Change::Endpoint(EndpointEvent::Synced),
        Change::Synced {
            cluster: cluster(2),
        },
        Change::Synced {
            cluster: cluster(1),
        },
    ]);
    assert_eq!(reconciler.datapath.log, Vec::<String>::new());
    assert_eq!(reconciler.status().restored, 0);
    assert!(!reconciler.owes());
}

#[test]
fn restored_entries_stay_until_their_cluster_is_synced() {
    let mut reconciler = restart(running());
    reconciler.apply([Change::Synced {
        cluster: cluster(1),
    }]);
    assert_eq!(reconciler.status().policy, 1);
    reconciler.apply([Change::Synced {
        cluster: cluster(2),
    }]);
    assert_eq!(reconciler.status().ipcache, 0, "swept");
    assert_eq!(
        reconciler.status().policy,
        1,
        "its endpoint may not have been sent yet"
    );
    reconciler.apply([upsert(), Change::Endpoint(EndpointEvent::Synced)]);
    assert_eq!(reconciler.status().policy, 0);
}

#[test]
fn clusters_that_are_no_members_are_swept() {
    let mut reconciler = restart(running());
    reconciler.apply([Change::Members(vec![cluster(1), cluster(2)])]);
    assert_eq!(
        (reconciler.status().ipcache, reconciler.status().policy),
        (1, 1)
    );
    reconciler.apply([Change::Members(vec![cluster(1)])]);
    assert_eq!(
        (reconciler.status().ipcache, reconciler.status().policy),
        (0, 0)
    );
}

#[test]
fn default_deny_outlives_a_restart_until_policy_says_otherwise() {
    let mut reconciler = restart(running());
    reconciler.apply([upsert()]);
    assert_eq!(
        reconciler.datapath.state.endpoints[&4].flags,
        abi::DENY_INGRESS
    );
    reconciler.apply([default_deny(false)]);
    assert_eq!(reconciler.datapath.state.endpoints[&4].flags, 0);
}

#[test]
fn endpoints_that_the_source_does_not_know_leave_with_their_links() {
    let mut reconciler = restart(running());
    reconciler.apply([Change::Endpoint(EndpointEvent::Synced)]);
    let state = &reconciler.datapath.state;
    assert!(state.endpoints.is_empty() && state.links.is_empty() && state.policy.is_empty());
    assert_eq!(
        reconciler.datapath.log[1..5],
        ["detach 4", "endpoint 4 None", "retire 2", "forget ports 7"]
    );
}

#[test]
fn only_revocations_and_identity_changes_move_the_epoch() {
    let mut reconciler = running();
    let mut moves = |change: Change| {
        let before = reconciler.status().epoch;
        reconciler.apply([change]);
        reconciler.status().epoch != before
    };
    assert!(!moves(entry(identity(2, 6), Some(false))), "allow");
    assert!(moves(entry(identity(2, 6), Some(true))), "turned deny");
    assert!(!moves(entry(identity(2, 6), None)), "deny taken back");
    assert!(moves(entry(identity(2, 5), None)), "allow taken back");
    assert!(!moves(ip("10.2.0.5", Some(identity(2, 5)))), "same");
    assert!(
        moves(ip("10.2.0.5", Some(identity(2, 6)))),
        "another identity"
    );
    assert!(moves(ip("10.2.0.5", None)), "no identity");
    assert!(!moves(default_deny(false)));
    assert!(moves(default_deny(true)));
}

#[test]
fn missing_interfaces_are_reported_and_found_later() {
    let mut reconciler = fresh();
    reconciler.datapath.interfaces.clear();
    reconciler.apply([upsert()]);
    assert_eq!(
        reconciler.status().problems[&DB],
        "interface veth-db does not exist"
    );
    assert!(reconciler.owes());
    reconciler.datapath.interfaces.insert("veth-db".into(), 9);
    reconciler.tick();
    assert_eq!(
        (
            reconciler.status().problems.len(),
            reconciler.status().enforced
        ),
        (0, 1)
    );
    // Recreated under another index.
    reconciler.datapath.interfaces.insert("veth-db".into(), 11);
    reconciler.apply([Change::InterfacesChanged]);
    assert_eq!(
        reconciler
            .datapath
            .state
            .endpoints
            .keys()
            .collect::<Vec<_>>(),
        [&11]
    );
}

#[test]
fn failed_writes_are_owed_and_tried_again() {
    let mut reconciler = running();
    reconciler.datapath.full = true;
    reconciler.apply([entry(identity(2, 6), Some(false))]);
    assert_eq!(
        (
            reconciler.status().pending,
            reconciler.status().errors_total
        ),
        (1, 1)
    );
    reconciler.datapath.full = false;
    reconciler.tick();
    assert_eq!(
        (reconciler.status().pending, reconciler.status().policy),
        (0, 2)
    );
}

#[test]
fn drift_is_repaired() {
    let mut reconciler = running();
    reconciler.datapath.state.policy.clear();
    reconciler.datapath.state.ipcache.clear();
    reconciler.datapath.state.endpoints.clear();
    reconciler.verify().unwrap();
    let state = &reconciler.datapath.state;
    assert_eq!(
        (
            state.policy.len(),
            state.ipcache.len(),
            state.endpoints.len()
        ),
        (1, 1, 1)
    );
}

/// An entry for any identity on all ports of all protocols.
fn any(votes: Votes) -> Change {
    let key = PolicyKey {
        identity: IdentityId::UNKNOWN,
        protocol: 0,
        port: 0,
        port_bits: 0,
        ..key(IdentityId::UNKNOWN)
    };
    let value = (votes != Votes::NONE).then_some(PolicyEntry { votes, rule: 2 });
    Change::Map(MapDelta::Entry { key, value })
}

/// What was written to the policy map: identity and votes.
fn policy_writes(reconciler: &mut Reconciler<Memory>) -> Vec<String> {
    let log = std::mem::take(&mut reconciler.datapath.log);
    log.iter()
        .filter_map(|line| Some(line.strip_prefix("policy 7 ")?.to_owned()))
        .collect()
}

#[test]
fn denies_come_before_allows_and_leave_after_them() {
    let mut reconciler = running();
    // Everybody but one: at no time may that one come in, whichever way the batch is told.
    reconciler.apply([
        any(Votes::ALLOW),
        entry(identity(2, 5), None),
        entry(identity(2, 6), Some(true)),
    ]);
    assert_eq!(
        policy_writes(&mut reconciler),
        ["131078 Some(2)", "0 Some(1)", "131077 None"]
    );
    reconciler.apply([
        entry(identity(2, 6), None),
        any(Votes::NONE),
        entry(identity(2, 5), Some(false)),
    ]);
    assert_eq!(
        policy_writes(&mut reconciler),
        ["131077 Some(1)", "0 None", "131078 None"]
    );
}

#[test]
fn a_level_is_asked_from_before_its_first_entry_until_after_its_last() {
    let mut reconciler = running();
    reconciler.apply([any(Votes::ALLOW)]);
    assert_eq!(
        reconciler.datapath.log,
        [
            "endpoint 4 Some((7, 1, [65536, 131072, 0, 0]))",
            "policy 7 0 Some(1)"
        ]
    );
    reconciler.datapath.log.clear();
    reconciler.apply([any(Votes::NONE)]);
    assert_eq!(
        reconciler.datapath.log,
        [
            "policy 7 0 None",
            "endpoint 4 Some((7, 1, [65536, 0, 0, 0]))",
            "epoch"
        ]
    );
    // A second entry of a level changes nothing, and a failed write leaves nothing behind.
    reconciler.datapath.log.clear();
    reconciler.apply([entry(identity(2, 6), Some(false))]);
    assert_eq!(reconciler.datapath.log, ["policy 7 131078 Some(1)"]);
    reconciler.datapath.full = true;
    reconciler.apply([any(Votes::ALLOW)]);
    assert_eq!(
        reconciler.datapath.state.endpoints[&4].levels,
        [65536, 0, 0, 0]
    );
}

#[test]
fn levels_are_counted_anew_after_a_restart() {
    let mut reconciler = restart(running());
    reconciler.apply([upsert(), entry(identity(2, 5), Some(false))]);
    assert_eq!(reconciler.datapath.log, Vec::<String>::new());
    reconciler.apply([entry(identity(2, 5), None)]);
    assert_eq!(reconciler.datapath.state.endpoints[&4].levels, [0; 4]);
}

fn named(prefix: &str, identity: Option<u32>) -> Change {
    Change::Map(MapDelta::Cidr {
        prefix: prefix.parse().unwrap(),
        identity: identity.map(|n| IdentityId(1 << 24 | n)),
    })
}

#[test]
fn a_prefix_has_its_identity_after_what_is_allowed_to_it_and_before_its_going() {
    let mut reconciler = running();
    let office = IdentityId(1 << 24 | 1);
    reconciler.apply([entry(office, Some(false)), named("192.0.2.0/24", Some(1))]);
    assert_eq!(
        reconciler.datapath.log,
        [
            "policy 7 16777217 Some(1)",
            "cidr 192.0.2.0/24 Some(1)",
            "epoch"
        ]
    );
    let mut reconciler = restart(reconciler);
    assert_eq!(
        reconciler.cidrs(),
        [("192.0.2.0/24".parse().unwrap(), office)]
    );
    reconciler.apply([
        upsert(),
        Change::Endpoint(EndpointEvent::Synced),
        named("192.0.2.0/24", None),
    ]);
    assert_eq!(
        reconciler.datapath.log,
        ["policy 7 16777217 None", "cidr 192.0.2.0/24 None", "epoch"],
        "of no cluster: confirmed by nobody, so it goes with the endpoints' Synced"
    );
}

#[test]
fn counter_slots_are_kept_and_given_out_again_empty() {
    let mut reconciler = restart(running());
    reconciler.apply([upsert()]);
    assert_eq!(reconciler.datapath.state.endpoints[&4].slot, 2);
    assert_eq!(reconciler.datapath.log, Vec::<String>::new());
    let Change::Endpoint(EndpointEvent::Upsert(db)) = upsert() else {
        unreachable!()
    };
    let other = |interface: &str| {
        let mut other = LocalEndpoint::clone(&db);
        other.id = EndpointId(8);
        other.interface = Some(interface.into());
        Change::Endpoint(EndpointEvent::Upsert(Arc::new(other)))
    };
    let interfaces = &mut reconciler.datapath.interfaces;
    interfaces.insert("veth-b".into(), 5);
    interfaces.insert("veth-c".into(), 6);
    reconciler.apply([other("veth-b")]);
    assert_eq!(reconciler.datapath.state.endpoints[&5].slot, 3);
    reconciler.apply([other("veth-c")]);
    assert_eq!(reconciler.datapath.state.endpoints[&6].slot, 3, "it moved");
    reconciler.apply([Change::Endpoint(EndpointEvent::Delete(DB))]);
    reconciler.datapath.log.clear();
    reconciler.apply([upsert()]);
    assert_eq!(reconciler.datapath.state.endpoints[&4].slot, 2);
    assert_eq!(reconciler.datapath.log[0], "retire 2");
}

#[test]
fn switches_are_written_and_only_stricter_ones_move_the_epoch() {
    let audit = Options {
        audit: true,
        ..Options::default()
    };
    let mut reconciler = Reconciler::open(running().datapath, &audit).unwrap();
    reconciler.apply([]);
    assert_eq!(reconciler.datapath.state.config.flags, abi::CONFIG_AUDIT);
    reconciler.datapath.log.clear();
    reconciler.apply([Change::Reports {
        verdicts: true,
        traces: false,
    }]);
    assert_eq!(reconciler.datapath.log, ["flags"]);
    let epoch = reconciler.datapath.state.config.epoch;
    let reconciler = restart(reconciler);
    let config = reconciler.datapath.state.config;
    assert_eq!((config.flags, config.epoch), (0, epoch + 1));
}

#[test]
fn only_modes_that_drop_more_move_the_epoch() {
    let mut reconciler = running();
    let mut moves = |change: &dyn Fn(&mut EndpointMode)| {
        let before = reconciler.status().epoch;
        let mut mode = EndpointMode::default();
        change(&mut mode);
        reconciler.apply([Change::Map(MapDelta::Endpoint { endpoint: DB, mode })]);
        reconciler.status().epoch != before
    };
    assert!(!moves(&|_| ()));
    assert!(moves(&|mode| mode.default_deny.egress = true));
    assert!(!moves(&|mode| mode.audit_default_deny.egress = true));
    assert!(!moves(&|mode| mode.audit = true));
    assert!(moves(&|_| ()), "no audit any more");
}
