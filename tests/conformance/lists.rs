//! S8 to S11: lists, what changes meanwhile, and what changed while nobody looked.
use std::collections::BTreeMap;

use serde_json::json;

use super::{
    peer::{KINDS, Peer},
    recorder::Change,
    records,
    wait::eventually,
    world::World,
};

/// Addresses of the first large list; more than a page of our client.
const MANY: u32 = 9_000;
/// Those of them that change while they are listed.
const BUSY: u32 = 60;

fn many(number: u32) -> String {
    format!("10.64.{}.{}", number >> 8, number & 255)
}

/// Writes and deletes the busy ones until the world has listed everything.
async fn churn(peer: &Peer, world: &World) {
    let mut client = peer.etcd.client().await;
    let mut round = 0;
    while world.peer("west").await["ready"] != true {
        round += 1;
        for number in 0..BUSY {
            let address = many(number * (MANY / BUSY));
            let key = peer.key("ip", &address);
            if (number + round) % 3 == 0 {
                client.delete(key, None).await.unwrap();
            } else {
                let record = records::ip(&address, peer.identity(1 + (number + round) % 7));
                client.put(key, record.to_string(), None).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s08_a_list_in_pages_is_one_snapshot_and_changes_follow_in_order() {
    let peer = Peer::start("west", 2).await;
    let records = (0..MANY).map(|number| {
        let address = many(number);
        let record = records::ip(&address, peer.identity(1));
        (peer.key("ip", &address), record.to_string())
    });
    peer.etcd.put_all(records.collect()).await;
    let world = World::start();
    let mark = world.mark();
    world.join(&peer);
    churn(&peer, &world).await;
    world.settle(&peer).await;

    // Nothing lost: what the peer has now is what came out, byte by byte.
    let prefix = peer.key("ip", "");
    let theirs = peer.etcd.list(&prefix).await;
    let theirs: BTreeMap<String, String> = theirs
        .iter()
        .map(|kv| {
            (
                kv.key_str().unwrap()[prefix.len()..].to_owned(),
                kv.value_str().unwrap().to_owned(),
            )
        })
        .collect();
    let ours = world.cached_keys("cilium/cache/ip/v1/west/");
    assert_eq!(ours.len(), theirs.len());
    let map = world.map();
    for (address, record) in &theirs {
        assert_eq!(
            world.cached(&peer.cached("ip", address)).as_ref(),
            Some(record)
        );
        let record: serde_json::Value = serde_json::from_str(record).unwrap();
        assert_eq!(json!(map[address].0), record["ID"], "{address}");
    }
    // Nothing doubled: who did not change came once.
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    let changes = world.since(mark);
    for change in &changes {
        *times.entry(&change.what).or_default() += 1;
    }
    for number in (0..MANY).filter(|number| number % (MANY / BUSY) != 0) {
        assert_eq!(times[format!("ip {}", many(number)).as_str()], 1);
    }
    let status = world.peer("west").await;
    assert_eq!(
        (&status["num-endpoints"], &status["num-failures"]),
        (&json!(theirs.len()), &json!(0))
    );
    world.stop().await;
}

/// Cut off as the reader sees it.
async fn cut(world: &World, peer: &Peer) {
    peer.proxy.cut();
    let away = world
        .until("west", "away", |p| p["connected"] == false)
        .await;
    assert_eq!(
        (&away["ready"], &away["synced"]["nodes"]),
        (&json!(false), &json!(false))
    );
    assert!(away["num-failures"].as_u64() > Some(0));
    // Stale, not empty.
    assert_eq!(
        away["num-endpoints"].as_u64(),
        world.peer("west").await["num-endpoints"].as_u64()
    );
    assert_eq!(world.target(&peer.pod()), Some(peer.identity(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_compacted_watch_is_listed_anew_and_nothing_flaps() {
    let peer = Peer::start("west", 2).await;
    let (gone, new) = (peer.address(1), peer.address(2));
    peer.put_ip(&gone, peer.identity(1)).await;
    let world = World::start();
    world.import(&peer).await;
    world.targets(&gone, peer.identity(1)).await;
    world.settle(&peer).await;
    let mark = world.mark();
    cut(&world, &peer).await;
    peer.etcd.delete(&peer.key("ip", &gone)).await;
    peer.put_ip(&new, peer.identity(1)).await;
    peer.etcd.compact().await;
    world.assert_nothing(mark);
    peer.proxy.mend();
    world.ready("west").await;
    world.settle(&peer).await;
    let touched = [gone.clone(), new.clone()];
    let allowed = touched
        .iter()
        .flat_map(|a| [format!("ip {a}"), peer.cached("ip", a)]);
    let allowed: Vec<String> = allowed.collect();
    world.assert_only(
        mark,
        &allowed.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_eq!(
        (world.target(&gone), world.target(&new)),
        (None, Some(peer.identity(1)))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_an_outage_without_changes_leaves_no_trace() {
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let mark = world.mark();
    for _ in 0..2 {
        cut(&world, &peer).await;
        world.assert_nothing(mark);
        peer.proxy.mend();
        world.ready("west").await;
    }
    world.settle(&peer).await;
    world.assert_nothing(mark);
    world.has(&peer).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_changes_while_away_come_once_and_behind_the_canaries() {
    let mut peer = Peer::start("west", 2).await;
    let [gone, new, changed] = [1, 2, 3].map(|last| peer.address(last));
    for address in [&gone, &changed] {
        peer.put_ip(address, peer.identity(1)).await;
    }
    let world = World::start();
    world.import(&peer).await;
    world.targets(&changed, peer.identity(1)).await;
    world.settle(&peer).await;
    let mark = world.mark();
    cut(&world, &peer).await;
    // With another etcd in its place, as when the peer's pod was replaced: nothing can be resumed.
    peer.etcd.wipe().await;
    peer.publish_data().await;
    peer.publish_config(&records::config(2)).await;
    peer.put_ip(&new, peer.identity(1)).await;
    peer.put_ip(&changed, peer.identity(2)).await;
    peer.proxy.mend();
    world
        .until("west", "back", |p| {
            p["connected"] == true && p["config"]["retrieved"] == true
        })
        .await;
    let north = Peer::start("north", 3).await;
    world.import(&north).await;
    let since: Vec<Change> = world.since(mark);
    let of_west =
        |change: &Change| change.what.contains("west") || change.what.contains("10.112.2.");
    assert!(!since.iter().any(of_west), "before the canary: {since:?}");
    assert_eq!(world.target(&gone), Some(peer.identity(1)));
    for kind in KINDS {
        peer.etcd.put(&peer.canary(kind), "now").await;
    }
    world.ready("west").await;
    world.targets(&new, peer.identity(1)).await;
    world.targets(&changed, peer.identity(2)).await;
    eventually("the deletion", async || {
        world.target(&gone).is_none().then_some(())
    })
    .await;
    world.settle(&peer).await;
    let since = world.since(mark);
    let times = |what: &str, present: bool| {
        let is = |change: &&Change| change.what == what && change.present == present;
        since.iter().filter(is).count()
    };
    for (address, present) in [(&gone, false), (&new, true), (&changed, true)] {
        let (delta, cached) = (format!("ip {address}"), peer.cached("ip", address));
        assert_eq!(
            (times(&delta, present), times(&delta, !present)),
            (1, 0),
            "{delta}"
        );
        assert_eq!(
            (times(&cached, present), times(&cached, !present)),
            (1, 0),
            "{cached}"
        );
    }
    let survivors = [
        format!("ip {}", peer.pod()),
        format!("ip {}", peer.node()),
        format!("identity {}", peer.identity(1)),
        peer.cached("services", "shop/checkout"),
    ];
    for what in survivors {
        assert_eq!((times(&what, true), times(&what, false)), (0, 0), "{what}");
    }
    world.stop().await;
}
