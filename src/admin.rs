//! The agent's face for operators: status, listings, drop stream, health and metrics over HTTP.
//!
//! Always true: it only reads, but for the policies that an operator writes to the cluster store
//! through it. Everything it shows is a status that others keep; nothing upstream waits for it, and a
//! reader of the drop stream who is too slow loses events and is told how many.
//! The unix socket (mode 0600) has all routes; the TCP addresses have health or metrics only.
//! It runs on a current-thread runtime of its own, so that a scrape can't delay a watch.
//! Absent on purpose: any route that changes this process.
use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    enforcer,
    lifecycle::{Readiness, Tasks},
    mesh::View,
    peer::PeerStatus,
    publish::Views,
    socket,
    store::Store,
    types::{ClusterId, ClusterName, LocalEndpoint, MaxClusters},
};

mod maps;
pub mod metrics;
pub mod monitor;
pub mod policy;
mod routes;
mod status;
pub mod wire;

/// What admin reads. Built once by the wiring.
#[derive(Clone)]
pub struct State {
    /// This cluster's name.
    pub cluster_name: ClusterName,
    /// This cluster's number.
    pub cluster_id: ClusterId,
    /// How identities are split.
    pub max_clusters: MaxClusters,
    /// This node's name.
    pub node_name: String,
    /// State of all clusters.
    pub view: View,
    /// What peers see of this cluster.
    pub export: Views,
    /// The cluster store, for backups; `None` if it is an etcd elsewhere.
    pub store: Option<Store>,
    /// The sessions, one per configured peer; any order.
    pub peers: Arc<dyn Fn() -> Vec<PeerStatus> + Send + Sync>,
    /// The workloads of this node; any order.
    pub endpoints: watch::Receiver<Vec<Arc<LocalEndpoint>>>,
    /// To look into the kernel's maps; `None` where there are none.
    pub enforcer: Option<enforcer::Handle>,
    /// What the datapath reports of packets.
    pub events: monitor::Events,
    /// What is not ready yet.
    pub readiness: Readiness,
    /// Why this cluster's own agents should not read the cache yet.
    pub cache_readiness: Readiness,
    /// All metrics.
    pub registry: prometheus::Registry,
    /// When the process started.
    pub started: Instant,
    /// Standing errors that an operator must repair (manifest and policy files, …), one line each.
    pub errors: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Policies and how they stand.
    pub policies: policy::Sources,
    /// The datapath's own status.
    pub datapath: watch::Receiver<enforcer::Status>,
}

/// Where admin listens.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The unix socket with all routes.
    pub socket_path: PathBuf,
    /// TCP address of `/metrics`.
    pub prometheus: Option<SocketAddr>,
    /// TCP address of `/healthz` and `/readyz`.
    pub health: Option<SocketAddr>,
}

/// The addresses really bound, which matters for port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Of `/metrics`.
    pub prometheus: Option<SocketAddr>,
    /// Of `/healthz` and `/readyz`.
    pub health: Option<SocketAddr>,
}

/// Why admin can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin socket can't be bound.
    #[error("serve on --socket-path")]
    Socket(#[source] socket::Error),
    /// A TCP address can't be bound.
    #[error("bind {addr} for {what}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// `health` or `metrics`.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The thread can't be started.
    #[error("start the admin thread")]
    Thread(#[source] std::io::Error),
}

/// Binds everything, then serves as task `admin` until shutdown.
///
/// # Errors
/// If an address can't be bound; nothing is served then.
pub fn start(tasks: &Tasks, listen: &Listen, state: State) -> Result<Bound, Error> {
    let metrics = bind_tcp(listen.prometheus, "metrics")?;
    let health = bind_tcp(listen.health, "health")?;
    let socket = socket::bind(&listen.socket_path).map_err(Error::Socket)?;
    let addr = |tcp: &Option<TcpListener>| tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
    let bound = Bound {
        prometheus: addr(&metrics),
        health: addr(&health),
    };
    let listeners = Listeners {
        socket,
        metrics,
        health,
    };
    tasks
        .spawn_thread("admin", move |token| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            // The socket's file stays: removing it could hit that of an agent started meanwhile.
            Ok(runtime.block_on(serve(listeners, Arc::new(state), token))?)
        })
        .map_err(Error::Thread)?;
    Ok(bound)
}

struct Listeners {
    socket: UnixListener,
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

async fn serve(
    listeners: Listeners,
    state: Arc<State>,
    token: CancellationToken,
) -> std::io::Result<()> {
    let shutdown = || token.clone().cancelled_owned();
    let socket = tokio::net::UnixListener::from_std(listeners.socket)?;
    let all = routes::all(Arc::clone(&state), token.clone());
    let tcp = |listener: Option<TcpListener>, router: axum::Router| async {
        let Some(listener) = listener else {
            return Ok(());
        };
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, router)
            .with_graceful_shutdown(shutdown())
            .await
    };
    tokio::try_join!(
        async {
            axum::serve(socket, all)
                .with_graceful_shutdown(shutdown())
                .await
        },
        tcp(listeners.metrics, routes::metrics(Arc::clone(&state))),
        tcp(listeners.health, routes::health(state)),
    )?;
    Ok(())
}

fn bind_tcp(addr: Option<SocketAddr>, what: &'static str) -> Result<Option<TcpListener>, Error> {
    let Some(addr) = addr else { return Ok(None) };
    let bind = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind()
        .map(Some)
        .map_err(|source| Error::Tcp { addr, what, source })
}
