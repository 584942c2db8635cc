//! R20, R21 and R24: values that cannot be read, and very many of them.
use serde_json::json;

use super::{peer::Peer, recorder::Change, records, wait::eventually, world::World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r20_an_invalid_value_keeps_the_old_one_until_the_next_list() {
    let peer = Peer::start("west", 2).await;
    let address = peer.address(20);
    peer.put_ip(&address, peer.identity(1)).await;
    let world = World::start();
    world.import(&peer).await;
    world.targets(&address, peer.identity(1)).await;
    world.settle(&peer).await;
    let mark = world.mark();
    peer.etcd.put(&peer.key("ip", &address), "{not json").await;
    world.settle(&peer).await;
    let copied = peer.cached("ip", &address);
    world.assert_only(mark, &[&copied]);
    assert_eq!(world.target(&address), Some(peer.identity(1)));
    assert_eq!(world.rejected("west", "undecodable").await, 1);

    // Without the revisions since, the next connection has to list.
    peer.proxy.cut();
    world
        .until("west", "away", |p| p["connected"] == false)
        .await;
    peer.put_ip(&peer.address(21), peer.identity(1)).await;
    peer.etcd.compact().await;
    peer.proxy.mend();
    world.ready("west").await;
    eventually("withdrawn", async || {
        world.target(&address).is_none().then_some(())
    })
    .await;
    world.settle(&peer).await;
    let delta = format!("ip {address}");
    let changes: Vec<Change> = world
        .since(mark)
        .into_iter()
        .filter(|c| c.what == delta)
        .collect();
    assert_eq!(
        changes,
        [Change {
            what: delta,
            present: false
        }]
    );
    let other = peer.address(21);
    world.assert_only(
        mark,
        &[
            &copied,
            &format!("ip {address}"),
            &format!("ip {other}"),
            &peer.cached("ip", &other),
        ],
    );
    world.stop().await;
}

/// A document with this field nested deeper than any stack would bear.
fn nested(field: &str) -> String {
    let depth = 100_000;
    format!("{{\"{field}\":{}{}}}", "[".repeat(depth), "]".repeat(depth))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r21_hostile_values_are_dropped_and_bad_utf_8_is_replaced() {
    let large = ["--max-request-bytes", "8388608"];
    let peer = Peer::with_flags("west", 2, &large).await;
    peer.publish().await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let kinds = ["nodes", "ip", "services"];
    for kind in kinds {
        for (value, reason) in [("null", "incomplete"), ("{}", "incomplete")] {
            world.rejects(&peer, (kind, "shop/x"), value, reason).await;
        }
        world
            .rejects(&peer, (kind, "shop/x"), vec![b'x'; 3 << 20], "oversize")
            .await;
    }
    // Read by nobody, so copied to the cache, and never in force.
    let mark = world.mark();
    for (kind, field) in kinds.into_iter().zip(["Labels", "NamedPorts", "backends"]) {
        let key = peer.key(kind, "shop/deep");
        peer.etcd.put(&key, nested(field)).await;
    }
    world.settle(&peer).await;
    assert_eq!(world.rejected("west", "undecodable").await, 3);
    let copied = kinds.map(|kind| peer.cached(kind, "shop/deep"));
    world.assert_only(mark, &copied.each_ref().map(String::as_str));

    let address = peer.address(21);
    let record = records::ip(&address, peer.identity(1)).to_string();
    let (front, behind) = record.split_once("checkout").unwrap();
    let bytes = [front.as_bytes(), b"a\xffb", behind.as_bytes()].concat();
    peer.etcd
        .put(&peer.key("ip", &address), bytes.clone())
        .await;
    world.targets(&address, peer.identity(1)).await;
    let cached = world
        .cache
        .get(peer.cached("ip", &address).as_bytes())
        .unwrap();
    assert_eq!(cached.value, bytes);
    let status = world.ready("west").await;
    assert_eq!(status["num-failures"], 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r24_a_large_cluster_is_listed_in_pages() {
    const IDENTITIES: u32 = 10_000;
    const ADDRESSES: u32 = 50_000;
    /// Our client asks for this many keys at once, at most.
    const PAGE: u32 = 4_096;
    let peer = Peer::start("west", 2).await;
    let identities = (2..IDENTITIES + 2).map(|n| {
        (
            peer.identity_key(n),
            records::labels("west", &format!("a{n}")),
        )
    });
    peer.etcd.put_all(identities.collect()).await;
    let address = |n: u32| format!("10.{}.{}.{}", 64 + (n >> 16), (n >> 8) & 255, n & 255);
    let addresses = (0..ADDRESSES).map(|n| {
        let record = records::ip(&address(n), peer.identity(2 + n % IDENTITIES));
        (peer.key("ip", &address(n)), record.to_string())
    });
    peer.etcd.put_all(addresses.collect()).await;
    let world = World::start();
    let before = peer.etcd.ranges().await;
    world.import(&peer).await;
    world.settle(&peer).await;
    let pages = peer.etcd.ranges().await - before;
    assert!(
        pages >= u64::from(ADDRESSES / PAGE + IDENTITIES / PAGE),
        "{pages} ranges"
    );
    let (map, labels) = (world.map(), world.labels());
    for n in 0..ADDRESSES {
        assert_eq!(map[&address(n)], (peer.identity(2 + n % IDENTITIES), 2));
    }
    assert!((1..IDENTITIES + 2).all(|n| labels.contains_key(&peer.identity(n))));
    let status = world.peer("west").await;
    let counts = (&status["num-identities"], &status["num-endpoints"]);
    assert_eq!(counts, (&json!(IDENTITIES + 2), &json!(ADDRESSES + 2)));
    world.stop().await;
}
