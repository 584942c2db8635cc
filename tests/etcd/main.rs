//! Our etcd face under real clients: the `etcd-client` crate and, where installed, `etcdctl`.
//! Goal: what these clients print and return cannot be told from a real server's.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests may do both"
)]

mod access_pattern;
mod differential;
mod durable;
mod elsewhere;
mod engine;
mod etcdctl;
mod linearizable;
mod mtls;
mod peer;
mod policies;
mod real;
mod resume;
mod site;
mod store_face;
mod tls;
mod tls_limits;
mod tls_local;
mod tls_reload;
mod tls_roles;
mod tls_table;
mod troubleshoot;
mod views;
mod watch;

use std::{convert::Infallible, future::Future};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    publish::{ExportPolicy, Views},
    serve::{self, Keyspaces, Limits},
    store::{Options, Store},
};

/// The three stores behind a plain loopback listener; every client has the same common name.
struct Face {
    keyspaces: Keyspaces,
    endpoint: String,
    cancel: CancellationToken,
    served: JoinHandle<Result<(), serve::Error>>,
}

fn store(cluster_id: u64) -> Store {
    Store::new(Options {
        cluster_id,
        history_max: 10_000,
    })
}

/// An export that everybody sees all of.
fn whole() -> Views {
    Views::new(&ExportPolicy::default(), || store(12))
}

impl Face {
    async fn start(common_name: &'static str) -> Self {
        Self::limited(common_name, whole(), Limits::default()).await
    }

    async fn start_limited(common_name: &'static str, limits: Limits) -> Self {
        Self::limited(common_name, whole(), limits).await
    }

    /// Serves these views.
    async fn of(common_name: &'static str, views: Views) -> Self {
        Self::limited(common_name, views, Limits::default()).await
    }

    async fn limited(common_name: &'static str, views: Views, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let accept =
            move |tcp: TcpStream| async move { Ok::<_, Infallible>((tcp, common_name.to_owned())) };
        Self::spawn(endpoint, views, |keyspaces, cancel| {
            let server = serve::Server::new(keyspaces, "west".parse().unwrap(), limits);
            tokio::spawn(server.run(listener, accept, cancel))
        })
    }

    /// `spawn` runs the server that listens at `endpoint`.
    fn start_with(
        endpoint: String,
        spawn: impl FnOnce(Keyspaces, CancellationToken) -> JoinHandle<Result<(), serve::Error>>,
    ) -> Self {
        Self::spawn(endpoint, whole(), spawn)
    }

    fn spawn(
        endpoint: String,
        export: Views,
        spawn: impl FnOnce(Keyspaces, CancellationToken) -> JoinHandle<Result<(), serve::Error>>,
    ) -> Self {
        let keyspaces = Keyspaces {
            cluster: Some(store(11).into()),
            export,
            cache: store(13),
        };
        let cancel = CancellationToken::new();
        let served = spawn(keyspaces.clone(), cancel.clone());
        Self {
            keyspaces,
            endpoint,
            cancel,
            served,
        }
    }

    /// What this cluster's nodes read and write.
    fn cluster(&self) -> &Store {
        let cluster = self.keyspaces.cluster.as_ref();
        cluster.expect("tests without one do not ask").store()
    }

    /// What peers read.
    fn export(&self) -> Store {
        self.keyspaces.export.of(None).store
    }

    async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([&self.endpoint], None)
            .await
            .unwrap()
    }

    async fn stop(self) {
        self.cancel.cancel();
        within(self.served).await.unwrap().unwrap();
    }
}

/// Waits for something that must happen soon.
async fn within<T>(future: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, future)
        .await
        .expect("nothing happened within 10 s")
}
