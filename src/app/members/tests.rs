use std::sync::Arc;

use super::*;
use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind},
    limits::PEER_CHANGES,
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
        let work = Work::new(mesh, joining);
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

/// Values of `round` for so many addresses, in batches that fit.
async fn tell(world: &mut World, sender: &mpsc::Sender<MemberEvent>, round: u32, count: u32) {
    for net in 0..count.div_ceil(5_000) {
        let net = u8::try_from(10 + net).unwrap();
        let event = addresses("west", net, 2 << 16 | round, 5_000);
        sender.send(event).await.unwrap();
        world.settle();
    }
}

#[tokio::test(start_paused = true)]
async fn peer_that_changes_too_much_waits_and_its_newest_values_win() {
    let mut world = World::new();
    let west = world.join.join(name("west"));
    let north = world.join.join(name("north"));
    west.send(connected("west", 2)).await.unwrap();
    north.send(connected("north", 3)).await.unwrap();
    tell(&mut world, &west, 0, PEER_CHANGES.1).await;
    let slow = (name("west"), "event-rate");
    assert!(world.view.rejected.get(&slow).is_some());
    let offender = world.view.offenders.get(&slow).unwrap().clone();
    assert!(offender.key.starts_with("10."), "{offender:?}");

    // While it waits its values merge, and nobody waits with it.
    let before = world.cache.revision();
    for round in 1..=9 {
        west.send(addresses("west", 10, 2 << 16 | round, 5))
            .await
            .unwrap();
        world.absorb();
    }
    north
        .send(addresses("north", 3, 3 << 16, 10))
        .await
        .unwrap();
    world.settle();
    let north = world.view.addresses.get(&"10.3.0.9".parse().unwrap());
    assert_eq!(north.unwrap().identity, IdentityId(3 << 16));
    let after = |seconds| tokio::time::advance(std::time::Duration::from_secs(seconds));
    after(1).await;
    world.settle();
    let newest = world.view.addresses.get(&"10.10.0.4".parse().unwrap());
    assert_eq!(newest.unwrap().identity, IdentityId(2 << 16 | 9));
    let applied = world.cache.revision() - before;
    assert!(applied <= 10 + 5 + 5_000, "{applied} changes were applied");
    assert!(world.work.members.iter().all(|m| m.pending.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn lists_do_not_wait_for_the_rate_of_changes_nor_does_the_own_cluster() {
    let mut world = World::new();
    let west = world.join.join(name("west"));
    west.send(connected("west", 2)).await.unwrap();
    let ips = |event: fn(Kind) -> KeyEvent| MemberEvent::Keys {
        name: name("west"),
        events: vec![event(Kind::Ips)],
    };
    west.send(ips(|kind| KeyEvent::BeginList { kind }))
        .await
        .unwrap();
    tell(&mut world, &west, 0, PEER_CHANGES.1 + 5_000).await;
    west.send(ips(|kind| KeyEvent::EndList { kind }))
        .await
        .unwrap();
    world.settle();
    assert!(world.work.members[0].pending.is_empty());
    assert!(world.view.addresses.len() > PEER_CHANGES.1 as usize);

    let own = world.join.join(name("own"));
    own.send(connected("own", 1)).await.unwrap();
    for round in 0..=PEER_CHANGES.1 / 1_000 {
        own.send(addresses("own", 1, 1 << 16 | round, 1_000))
            .await
            .unwrap();
        world.settle();
    }
    assert!(world.work.members[1].pending.is_empty());
    assert!(world.view.rejected.is_empty(), "{:?}", world.view.rejected);
}
