//! `--local-listen`: tools on this host work with the cluster store without a certificate.
use std::{os::unix::fs::PermissionsExt as _, process::Command};

use tokio::{
    net::UnixStream,
    task::{JoinHandle, spawn_blocking},
};
use tombolo::{
    config::LocalListen,
    serve::{Limits, LocalListener, Server},
};

use super::{Face, etcdctl, real::own_address, tls::client_over, within};

async fn start(listen: &LocalListen, endpoint: String) -> Face {
    let listener = LocalListener::bind(listen).await.unwrap();
    Face::start_with(endpoint, |keyspaces, cancel| -> JoinHandle<_> {
        let server = Server::new(keyspaces, "west".parse().unwrap(), Limits::default());
        tokio::spawn(server.run_local(listener, cancel))
    })
}

/// `etcdctl` 3.4 puts what follows `unix://` into the HTTP/2 authority, which may hold no slash, so
/// it is started in the socket's directory.
#[tokio::test]
async fn a_private_socket_gives_full_rights_on_the_cluster_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.sock");
    let listen: LocalListen = format!("unix:{}", path.display()).parse().unwrap();
    let face = start(&listen, format!("unix://{}", path.display())).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing else is left: {left:?}");

    let stream = UnixStream::connect(&path).await.unwrap();
    let mut client = client_over(stream).await.unwrap();
    client.put("cilium/state/x", "1", None).await.unwrap();
    let store = face.cluster();
    assert_eq!(store.revision(), 2, "written to the cluster store");

    if etcdctl::is_installed() {
        for (args, expected) in [
            (&["get", "cilium/state/x"][..], "cilium/state/x\n1\n"),
            (&["put", "any", "2"], "OK\n"),
            (&["del", "--prefix", "cilium/"], "1\n"),
            (&["endpoint", "health"], "is healthy"),
        ] {
            let mut command = Command::new(etcdctl::ETCDCTL);
            command.env("ETCDCTL_API", "3").current_dir(dir.path());
            command.args(["--endpoints", "unix://etcd.sock"]).args(args);
            let done = within(spawn_blocking(move || command.output()));
            let done = done.await.unwrap().unwrap();
            let text = [done.stdout, done.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(text.contains(expected), "{args:?}: {text}");
        }
    }
    let error = LocalListener::bind(&listen).await.unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.contains("another agent uses it"), "{error}");
    face.stop().await;
    LocalListener::bind(&listen)
        .await
        .expect("the socket of an agent that has ended is replaced");
}

#[test]
fn an_address_of_other_hosts_is_refused_at_start() {
    let done = Command::new(env!("CARGO_BIN_EXE_tombolo"))
        .args(["agent", "--cluster-name=west", "--cluster-id=1"])
        .arg("--local-listen=0.0.0.0:2378")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{text}");
    let reason = "local-listen: \"0.0.0.0:2378\": can be reached from other hosts";
    let next_step = "write unix:/run/tombolo/etcd.sock or 127.0.0.1:2378";
    assert!(text.contains(reason) && text.contains(next_step), "{text}");
}

#[tokio::test]
async fn a_loopback_address_does_the_same() {
    let address = own_address();
    let listen: LocalListen = address.to_string().parse().unwrap();
    let face = start(&listen, address.to_string()).await;
    let mut client = face.client().await;
    within(client.put("any", "1", None)).await.unwrap();
    within(client.compact(2, None)).await.unwrap();
    if etcdctl::is_installed() {
        let (success, text) = etcdctl::output(&face, &["get", "any"]).await;
        assert!(success && text == "any\n1\n", "{text}");
    }
    face.stop().await;
}
