use std::sync::Arc;

use super::*;
use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    mesh::{Deltas, Settings, View},
    store::{Options, Store},
    types::{ClusterId, IdentityId, MaxClusters},
};

fn id(number: u32) -> ClusterId {
    ClusterId::new(number, MaxClusters::C255).unwrap()
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

/// The mesh of cluster `own` (id 1) behind its members' channels, and its read side.
struct World {
    work: Work,
    join: Members,
    view: View,
    cache: Store,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            cluster_name: name("own"),
            cluster_id: id(1),
            max_clusters: MaxClusters::C255,
            node_name: "n1".into(),
        };
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 100_000,
        });
        let mesh = Mesh::new(settings, cache.clone(), Deltas::new(100));
        let view = mesh.view();
        let (join, joining) = channel();
        let work = Work {
            propagation: view.propagation.clone(),
            mesh,
            joining,
            members: Vec::new(),
            turn: 0,
        };
        Self {
            work,
            join,
            view,
            cache,
        }
    }

    /// Lets the mesh work until it has nothing to do.
    fn settle(&mut self) {
        self.absorb();
        while self.work.slice() {
            self.absorb();
        }
    }

    fn absorb(&mut self) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let _ready = self.work.absorb(&mut context);
    }
}

fn connected(member: &str, number: u32) -> MemberEvent {
    MemberEvent::Connected {
        name: name(member),
        id: id(number),
        config: ClusterConfig::default(),
        allowed_cidrs: Arc::default(),
        relayed: false,
    }
}

fn addresses(member: &str, net: u8, identity: u32, count: u32) -> MemberEvent {
    let event = |host: u32| {
        let address = format!("10.{net}.{}.{}", host / 250, host % 250);
        let value = format!(r#"{{"IP":"{address}","ID":{identity}}}"#);
        KeyEvent::Upsert {
            kind: Kind::Ips,
            suffix: address.into(),
            value: value.into(),
            revision: 1,
        }
    };
    MemberEvent::Keys {
        name: name(member),
        events: (0..count).map(event).collect(),
    }
}

#[tokio::test]
async fn storm_of_one_member_does_not_delay_another_and_only_its_newest_values_are_applied() {
    let mut world = World::new();
    let (west, north) = (
        world.join.join(name("west")),
        world.join.join(name("north")),
    );
    west.send(connected("west", 2)).await.unwrap();
    north.send(connected("north", 3)).await.unwrap();
    world.settle();
    let before = world.cache.revision();
    // Ten times the same five thousand addresses; the mesh is busy elsewhere meanwhile.
    for round in 0..10 {
        west.send(addresses("west", 2, 2 << 16 | round, 5_000))
            .await
            .unwrap();
        world.absorb();
    }
    north
        .send(addresses("north", 3, 3 << 16, 10))
        .await
        .unwrap();
    world.absorb();
    let mut slices = 0;
    while world
        .view
        .addresses
        .get(&"10.3.0.9".parse().unwrap())
        .is_none()
    {
        assert!(world.work.slice());
        slices += 1;
    }
    assert!(slices <= 2, "north waited for {slices} slices");
    world.settle();
    assert_eq!(
        world.cache.revision() - before,
        5_010,
        "outdated values were applied"
    );
    let newest = world.view.addresses.get(&"10.2.0.7".parse().unwrap());
    assert_eq!(newest.unwrap().identity, IdentityId(2 << 16 | 9));
}

#[tokio::test]
async fn full_member_makes_its_own_sender_wait() {
    let mut world = World::new();
    let west = world.join.join(name("west"));
    west.send(connected("west", 2)).await.unwrap();
    let mut sent = 0;
    for net in 0..200 {
        world.absorb();
        if west
            .try_send(addresses("west", net, 2 << 16, 1_000))
            .is_err()
        {
            break;
        }
        sent += 1;
    }
    assert!((8..20).contains(&sent), "{sent} batches of 1000 were taken");
    assert!(world.work.members[0].pending.is_full());
}

#[tokio::test]
async fn removal_is_done_before_another_member_takes_the_id() {
    let mut world = World::new();
    let (north, west) = (
        world.join.join(name("north")),
        world.join.join(name("west")),
    );
    west.send(connected("west", 2)).await.unwrap();
    west.send(addresses("west", 9, 2 << 16, 5)).await.unwrap();
    world.settle();
    // The one who leaves has told so much that its removal is not even looked at yet, and the one
    // who comes has its turn first.
    world.work.turn = 0;
    west.send(addresses("west", 8, 2 << 16, 9_000))
        .await
        .unwrap();
    world.absorb();
    west.send(MemberEvent::Removed { name: name("west") })
        .await
        .unwrap();
    north.send(connected("north", 2)).await.unwrap();
    north
        .send(addresses("north", 9, 2 << 16 | 5, 5))
        .await
        .unwrap();
    world.settle();
    assert_eq!(world.view.addresses.len(), 5);
    let owner = world.view.addresses.get(&"10.9.0.0".parse().unwrap());
    assert_eq!(owner.unwrap().identity, IdentityId(2 << 16 | 5));
}
