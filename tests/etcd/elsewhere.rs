//! A node whose cluster store is an etcd elsewhere: it has none of its own, and says so.
use std::{convert::Infallible, error::Error as _, fs, time::Duration};

use etcd_client::{Client, Compare, CompareOp, Error, Txn};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tombolo::{
    etcd::{self, ConnectOptions},
    serve::{Keyspaces, Limits, LocalListener, Server},
    test_support::process,
};

use super::{
    Face, etcdctl,
    real::{Etcd, Release, own_address},
    site::{LIMIT, Site, is_root},
    tls::client_over,
    within,
};

/// Checks that a call is refused with reason and next step.
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Error>) {
    let Err(Error::GRpcStatus(status)) = answer else {
        panic!("{what}: {answer:?}");
    };
    // `FailedPrecondition`, which no client takes for a moment's outage.
    assert_eq!(status.code() as i32, 9, "{what}: {status:?}");
    let text = status.message();
    for part in [
        "etcdserver: ",
        "--kvstore=etcd",
        "ask the etcd that its etcd.config names",
    ] {
        assert!(text.contains(part), "{what}: {text}");
    }
}

async fn all_refused(client: &mut Client) {
    refused("get", within(client.get("x", None)).await);
    refused("put", within(client.put("x", "1", None)).await);
    refused("delete", within(client.delete("x", None)).await);
    let txn = Txn::new().when([Compare::version("x", CompareOp::Equal, 0)]);
    refused("txn", within(client.txn(txn)).await);
    refused("compact", within(client.compact(1, None)).await);
    refused("watch", within(client.watch("x", None)).await);
    refused("grant", within(client.lease_grant(60, None)).await);
    refused("revoke", within(client.lease_revoke(1)).await);
    refused("keep alive", within(client.lease_keep_alive(1)).await);
    refused("leases", within(client.leases()).await);
    refused("status", within(client.status()).await);
    refused("members", within(client.member_list()).await);
}

/// A server without a cluster store at `endpoint`.
fn without_store(
    endpoint: String,
    run: impl FnOnce(
        Server,
        tokio_util::sync::CancellationToken,
    ) -> tokio::task::JoinHandle<Result<(), tombolo::serve::Error>>,
) -> Face {
    Face::start_with(endpoint, |keyspaces, cancel| {
        let keyspaces = Keyspaces {
            cluster: None,
            ..keyspaces
        };
        let server = Server::new(keyspaces, "west".parse().unwrap(), Limits::default());
        run(server, cancel)
    })
}

#[tokio::test]
async fn every_call_for_the_cluster_store_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let accept = async |tcp: TcpStream| Ok::<_, Infallible>((tcp, "admin-west".to_owned()));
    let admin = without_store(endpoint, |server, cancel| {
        tokio::spawn(server.run(listener, accept, cancel))
    });
    let address = own_address().to_string();
    let local = LocalListener::bind(&address.parse().unwrap())
        .await
        .unwrap();
    let local = without_store(address, |server, cancel| {
        tokio::spawn(server.run_local(local, cancel))
    });
    for face in [admin, local] {
        let cache = face.keyspaces.cache.revision();
        all_refused(&mut face.client().await).await;
        if etcdctl::is_installed() {
            let (success, text) = etcdctl::output(&face, &["endpoint", "health"]).await;
            assert!(!success && text.contains("has no cluster store"), "{text}");
        }
        // Nor is it anybody's cluster store, and that node's status says why.
        let options = ConnectOptions {
            endpoints: vec![format!("http://{}", face.endpoint).parse().unwrap()],
            ..ConnectOptions::default()
        };
        let error = etcd::Client::connect_to_store(&options).await.unwrap_err();
        let reason = error.source().unwrap().to_string();
        assert!(reason.contains("has no cluster store"), "{error}: {reason}");
        assert_eq!(face.keyspaces.cache.revision(), cache);
        assert!(face.keyspaces.cache.leases().is_empty());
        face.stop().await;
    }
}

#[tokio::test]
async fn an_agent_with_an_etcd_keeps_no_store_of_its_own() {
    if !is_root() || !Release::V3_4.is_installed() {
        return;
    }
    let etcd = Etcd::start(Release::V3_4, &[]);
    let site = Site::new();
    let file = site.path("etcd.yaml");
    fs::write(
        &file,
        format!("endpoints: [\"http://{}\"]\n", etcd.endpoint),
    )
    .unwrap();
    let socket = site.path("etcd.sock");
    let mut command = site.command();
    command.arg("--kvstore=etcd");
    command.arg(format!("--kvstore-opt=etcd.config={}", file.display()));
    command.arg(format!("--local-listen=unix:{}", socket.display()));
    let _agent = site.start_with(&mut command);
    all_refused(&mut site.client().await).await;
    let local = UnixStream::connect(&socket).await.unwrap();
    all_refused(&mut client_over(local).await.unwrap()).await;

    // It is the etcd that it publishes to, and what peers read comes from there.
    let mut peer = site.client_as("remote").await;
    let published = async {
        let key = "cilium/synced/west/cilium/state/nodes/v1";
        while peer.get(key, None).await.unwrap().count() == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, published).await.unwrap();

    site.started().await;
    let backup = site.path("backup");
    let said = process::run(site.verb(&["store", "backup"]).arg(&backup), LIMIT).unwrap();
    assert!(!said.status.success(), "{}", said.stdout);
    for part in [
        "--kvstore=etcd",
        "back up the etcd that its etcd.config names",
    ] {
        assert!(said.stderr.contains(part), "{}", said.stderr);
    }
    for path in [
        backup.clone(),
        backup.with_extension("part"),
        site.state.join("store"),
    ] {
        assert!(!path.exists(), "{} was made", path.display());
    }
}
