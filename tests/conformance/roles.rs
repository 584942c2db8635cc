//! P12 to P14: what the common name `remote-<peer>` may do at our face; P15: a policy that reaches
//! deeper than packets.
use std::{path::Path, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tombolo::{
    etcd::{Class, Client, Compare, CompareOp, PutOptions, Txn, TxnOp},
    policy::{
        Delay, Enforcement, Engine, MapDelta, Options, PolicyEvent, Votes, directory::Directory,
        parse,
    },
    types::{EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint},
};

use super::{
    peer::replace,
    producer::{NODE, Producer},
    wait::eventually,
    world::{Setup, World},
};

/// West as a producer, a ready reader of it, and one more connection as that reader's user.
async fn served() -> (Producer, World, Client) {
    let producer = Producer::start(&[NODE]).await;
    let world = World::start();
    replace(&world.peers().join("west"), &producer.file());
    world.ready("west").await;
    world.targets("10.7.2.21", 6).await;
    let options = producer.reader();
    let client = Client::connect(&options, &options.endpoints[0])
        .await
        .unwrap();
    (producer, world, client)
}

/// The same clients go on as if nothing was.
async fn unharmed(producer: &Producer, world: World, revision: i64) {
    assert_eq!(producer.export().revision(), revision);
    let status = world.ready("west").await;
    assert_eq!(status["num-failures"], 0);
    assert_eq!(world.target("10.7.2.21"), Some(6));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_peer_reads_no_config_but_ours() {
    let (producer, world, client) = served().await;
    let revision = producer.export().revision();
    assert!(
        client
            .get("cilium/cluster-config/west")
            .await
            .unwrap()
            .is_some()
    );
    for key in [
        "cilium/cluster-config/north",
        "cilium/cluster-config/",
        "cilium/cache/nodes/v1/north/n",
        "x",
    ] {
        let error = client.get(key).await.unwrap_err();
        assert_eq!(error.class(), Class::Denied, "{key}: {error}");
    }
    let error = client
        .list("cilium/cluster-config/")
        .page()
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    unharmed(&producer, world, revision).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_peer_writes_nothing() {
    let (producer, world, client) = served().await;
    let revision = producer.export().revision();
    let node = "cilium/state/nodes/v1/west/n1";
    for key in [
        node,
        "cilium/.heartbeat",
        "cilium/synced/west/x",
        "cilium/state/ip/v1/default/1.1.1.1",
        "x",
    ] {
        for write in [TxnOp::put(key, "forged", None), TxnOp::delete(key, None)] {
            let error = client
                .txn(key, Txn::new().and_then([write]))
                .await
                .unwrap_err();
            assert_eq!(error.class(), Class::Denied, "{key}: {error}");
        }
    }
    assert_ne!(producer.exported(node).unwrap().value, "forged");
    unharmed(&producer, world, revision).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_sessions_of_older_readers_are_answered() {
    let (producer, world, client) = served().await;
    let revision = producer.export().revision();
    let version = client.version().await.unwrap();
    let mut numbers = version
        .split('.')
        .map(|number| number.parse::<u32>().unwrap());
    assert!(
        (numbers.next(), numbers.next()) >= (Some(3), Some(1)),
        "{version}"
    );
    let lease = client.lease_grant(Duration::from_secs(25)).await.unwrap();
    assert!(client.lease_keep_alive(lease).await.unwrap());
    // The mutex that they take; a reader is told that it may not.
    let key = format!("cilium/.initlock/5f/{lease:x}");
    let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
    let put = TxnOp::put(key.clone(), "", Some(PutOptions::new().with_lease(lease)));
    let lock = client
        .txn(&key, Txn::new().when([free]).and_then([put]))
        .await;
    assert_eq!(lock.unwrap_err().class(), Class::Denied);
    client.lease_revoke(lease).await.unwrap();
    assert!(!client.lease_keep_alive(lease).await.unwrap());
    unharmed(&producer, world, revision).await;
}

const L7: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET}]}
"#;

/// The engine with one endpoint that the policies select, fed by the directory; what it says.
async fn enforced(
    dir: &Path,
    saved: &Path,
) -> (Vec<MapDelta>, Arc<dyn Fn() -> Vec<String> + Send + Sync>) {
    let options = Options {
        cluster: "east".parse().unwrap(),
        default_local_cluster: true,
        enforcement: Enforcement::Default,
    };
    let mut engine = Engine::new(options, []);
    let out = &mut Vec::new();
    engine.apply_endpoint(
        &EndpointEvent::Upsert(Arc::new(LocalEndpoint {
            id: EndpointId(1),
            identity: IdentityId((1 << 16) + 1),
            labels: Arc::new(Labels::parse(
                "k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;",
            )),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            addresses: Vec::new(),
            interface: None,
            named_ports: Vec::new(),
            audit: false,
        })),
        out,
    );
    let (sender, mut events) = tokio::sync::mpsc::channel(1);
    let (dir, saved) = (dir.to_owned(), saved.to_owned());
    let (directory, status) = Directory::new(dir, saved, sender, Delay::default());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(directory.run(cancel.clone()));
    while let Some(event) = events.recv().await {
        match event {
            PolicyEvent::Set { origin, policies } => engine.set_policies(&origin, policies, out),
            PolicyEvent::Removed { origin } => engine.remove_origin(&origin, out),
            PolicyEvent::Mark(_) => {}
            PolicyEvent::Synced => break,
        }
    }
    cancel.cancel();
    running.await.unwrap();
    let errors = move || {
        let status = status.borrow();
        status
            .files
            .values()
            .filter_map(|file| file.error.clone())
            .collect()
    };
    (engine.desired(), Arc::new(errors))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_layer_7_rule_is_never_its_port_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (policies, saved) = (dir.path().join("policies"), dir.path().join("saved"));
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("web.yaml"), L7).unwrap();
    assert!(parse(L7, Path::new("web.yaml")).is_err());
    let (desired, errors) = enforced(&policies, &saved).await;
    let allows = |delta: &&MapDelta| matches!(delta, MapDelta::Entry { value: Some(entry), .. } if entry.votes.contains(Votes::ALLOW));
    assert_eq!(desired.iter().find(allows), None);
    let world = World::with(Setup {
        errors,
        ..Setup::default()
    });
    let status = world.status().await;
    let text = status["errors"].to_string();
    assert!(
        text.contains("toPorts[0].rules") && text.contains("web.yaml"),
        "{text}"
    );
    world.stop().await;

    // The same port without the rule is allowed: it was the rule that was refused.
    let plain: String = L7
        .lines()
        .filter(|line| !line.contains("rules:"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(policies.join("web.yaml"), plain).unwrap();
    let (desired, errors) = enforced(&policies, &saved).await;
    assert!(desired.iter().any(|delta| allows(&delta)), "{desired:?}");
    eventually("no error", async || errors().is_empty().then_some(())).await;
}
