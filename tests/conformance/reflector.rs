//! P9 to P11: the cache that this cluster's own agents read.
use serde_json::{Value, json};

use super::{
    peer::{KINDS, Peer},
    recorder::Change,
    wait::eventually,
    world::{Setup, World},
};

/// Three minutes, in a case's time.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

fn canary(peer: &Peer, kind: &str) -> String {
    format!("cilium/synced/{}/cilium/cache/{kind}/v1", peer.name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p09_the_cache_stays_while_its_peer_is_out_of_reach() {
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let config: Value = serde_json::from_str(&world.cached(&peer.config_key()).unwrap()).unwrap();
    let capabilities = json!({"syncedCanaries": true, "cached": true, "maxConnectedClusters": 255});
    assert_eq!(config, json!({"id": 2, "capabilities": capabilities}));
    let mark = world.mark();
    peer.proxy.cut();
    let away = world
        .until("west", "away", |p| p["num-failures"].as_u64() >= Some(2))
        .await;
    assert_eq!(
        (&away["connected"], &away["ready"]),
        (&json!(false), &json!(false))
    );
    world.assert_nothing(mark);
    // What never comes from this peer has its canary too.
    for kind in KINDS.into_iter().chain(["serviceexports"]) {
        assert!(world.cached(&canary(&peer, kind)).is_some(), "{kind}");
    }
    for (key, value) in peer.basic() {
        let cached = key
            .replace("/state/", "/cache/")
            .replace("/default/", "/west/");
        let cached = cached.replace("/v1/id/", "/v1/west/id/");
        assert_eq!(world.cached(&cached), Some(value), "{cached}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_removed_peers_config_goes_first_and_its_data_after_a_while() {
    let (foo, foobar) = tokio::join!(Peer::start("foo", 2), Peer::start("foobar", 3));
    let setup = Setup {
        cache_grace: GRACE,
        ..Setup::default()
    };
    let world = World::with(setup);
    world.import(&foo).await;
    world.import(&foobar).await;
    world.settle(&foobar).await;
    world.settle(&foo).await;
    let mark = world.mark();
    let data = || {
        let mut all = world.cached_keys("cilium/cache/");
        all.extend(world.cached_keys("cilium/synced/foo/"));
        all.retain(|key| key.contains("/foo/"));
        all
    };
    let before = data();
    for kind in KINDS {
        assert!(before.contains(&canary(&foo, kind)), "{kind}: {before:?}");
    }
    assert!(before.contains(&foo.cached("ip", &foo.pod())), "{before:?}");
    world.leave(&foo);
    let removed = std::time::Instant::now();
    eventually("config gone", async || {
        world.cached(&foo.config_key()).is_none().then_some(())
    })
    .await;
    // Nothing is enforced any more, but readers that did not notice yet lose nothing.
    eventually("withdrawn", async || {
        world.target(&foo.pod()).is_none().then_some(())
    })
    .await;
    assert_eq!(data(), before);
    assert_eq!(world.peer("foo").await, Value::Null);
    eventually("data gone", async || data().is_empty().then_some(())).await;
    assert!(removed.elapsed() >= GRACE);
    world.settle(&foobar).await;
    let changes = world.since(mark);
    let config = changes.iter().position(|c| c.what == foo.config_key());
    let first = changes.iter().position(|c| before.contains(&c.what));
    assert!(config < first, "{changes:?}");
    let of_foobar = |change: &&Change| {
        let parts = [
            foobar.pod(),
            foobar.node(),
            format!("identity {}", foobar.identity(1)),
            "/foobar".to_owned(),
        ];
        parts.iter().any(|part| change.what.contains(part))
    };
    assert_eq!(changes.iter().find(of_foobar), None);
    world.has(&foobar).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_what_cannot_be_decoded_is_copied_unchanged() {
    let peer = Peer::start("west", 2).await;
    let world = World::start();
    world.import(&peer).await;
    world.settle(&peer).await;
    let bytes = [b"{not json \xff\x00".as_slice(), b"over an old one"];
    for (value, suffix) in bytes.into_iter().zip(["10.9.9.9", &peer.pod()]) {
        let mark = world.mark();
        peer.etcd.put(&peer.key("ip", suffix), value).await;
        let key = peer.cached("ip", suffix);
        eventually("copied", async || {
            let cached = world.cache.get(key.as_bytes());
            cached.is_some_and(|kv| kv.value == value).then_some(())
        })
        .await;
        world.settle(&peer).await;
        world.assert_only(mark, &[&key]);
    }
    assert_eq!(
        (world.target("10.9.9.9"), world.target(&peer.pod())),
        (None, Some(peer.identity(1)))
    );
    assert_eq!(world.rejected("west", "undecodable").await, 2);
    world.stop().await;
}
