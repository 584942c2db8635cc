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
    let mut reconciler = Reconciler::open(memory(), MaxClusters::C255).unwrap();
    reconciler.apply([]);
    reconciler.datapath.log.clear();
    reconciler
}

/// The same kernel, as the next process finds it.
fn restart(reconciler: Reconciler<Memory>) -> Reconciler<Memory> {
    let mut next = Reconciler::open(reconciler.datapath, MaxClusters::C255).unwrap();
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
            "policy 7 131077 Some(false)",
            "ipcache 10.2.0.5 Some(131077)",
            "endpoint 4 Some((7, 1))",
            "attach 4",
            "policy 7 131081 None",
            "ipcache 10.2.0.9 None",
            "epoch",
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
        reconciler.datapath.log[1..3],
        ["detach 4", "endpoint 4 None"]
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
