//! The etcd v3 face of the stores: gRPC over an authenticated connection, or within the process.
//! Always true: a connection's rights follow from its certificate's CN alone and are checked for
//! each call; every answer carries a header with the served store's cluster id and revision.
//! Order: a `Server` accepts, hands the socket to `accept` (TLS), serves until `cancel`; before each
//! call stands a `guard` with the limits of its client.
//! Absent on purpose: users, members, snapshots; rustls (the caller passes the handshake in).
use std::{fmt, future::Future, io, sync::Arc, time::Instant};

use etcd_client::proto::{PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, body::Body, codegen::http, service::Routes};
use tower::{ServiceExt, util::BoxCloneSyncService};

use self::{accept::Acceptor, access::Access, guard::GuardLayer, pace::Pace};
pub use self::{
    clients::Limits,
    local::{LocalError, LocalListener},
    metrics::Metrics,
};
use crate::{journal::Writer, limits, publish::Views, store::Store, types::ClusterName};

mod accept;
mod access;
mod clients;
mod cluster;
mod convert;
mod guard;
mod kv;
mod lease;
mod local;
mod metrics;
mod pace;
mod refusal;
mod watch;
mod wire;

/// The stores that are served, by who reads them.
#[derive(Debug, Clone)]
pub struct Keyspaces {
    /// Read and written by this cluster's nodes (`admin-<C>`). `None` if they share an etcd: then
    /// this node has no such store, and refuses the calls that are for it.
    pub cluster: Option<Writer>,
    /// Read by peers (`remote`, `remote-<peer>`), each its view.
    pub export: Views,
    /// Read by this cluster's agents (`local-<C>`).
    pub cache: Store,
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The gRPC server failed.
    #[error("serve gRPC")]
    Serve(#[source] tonic::transport::Error),
}

/// The etcd v3 face, on any number of listeners. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Server {
    keyspaces: Keyspaces,
    cluster: ClusterName,
    limits: Limits,
    metrics: Metrics,
}

impl Server {
    /// Serves nothing yet. The limits hold for each listener by itself.
    #[must_use]
    pub fn new(keyspaces: Keyspaces, cluster: ClusterName, limits: Limits) -> Self {
        let metrics = Metrics::default();
        Self {
            keyspaces,
            cluster,
            limits,
            metrics,
        }
    }

    /// Connections, calls and refusals.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Serves until `cancel` fires; open streams then end, and calls get a short time to finish.
    /// `accept` authenticates a socket, in bounded time, and yields the encrypted stream with the
    /// client's CN.
    ///
    /// # Errors
    /// [`Error::Serve`]; what single connections do wrong is logged and goes no further.
    pub async fn run<A, F, I, E>(
        self,
        listener: TcpListener,
        accept: A,
        cancel: CancellationToken,
    ) -> Result<(), Error>
    where
        A: Fn(TcpStream) -> F,
        F: Future<Output = Result<(I, String), E>> + Send + 'static,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: fmt::Display + Send + 'static,
    {
        let access = |cn: &str| {
            let (keyspaces, cluster) = (&self.keyspaces, &self.cluster);
            Access::for_common_name(cn, keyspaces, cluster, self.limits, cancel.clone())
        };
        self.serve(&listener, accept, access, &cancel).await
    }

    /// As [`Self::run`], for clients on this host: without a handshake, with full rights on the
    /// cluster store.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_local(
        self,
        listener: LocalListener,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let accept = |stream| async move {
            Ok::<_, std::convert::Infallible>((stream, local::NAME.to_owned()))
        };
        let access = |_: &str| Access::admin(&self.keyspaces, self.limits, cancel.clone());
        self.serve(&listener, accept, access, &cancel).await
    }

    async fn serve<L, F, I, E>(
        &self,
        listener: &L,
        accept: impl Fn(L::Stream) -> F,
        access: impl Fn(&str) -> Access,
        cancel: &CancellationToken,
    ) -> Result<(), Error>
    where
        L: accept::Listener,
        F: Future<Output = Result<(I, String), E>> + Send + 'static,
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: fmt::Display + Send + 'static,
    {
        let (connections, incoming) = mpsc::channel(1);
        let streams = self.limits.streams_per_connection + limits::STREAMS_SPARE;
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(u32::try_from(streams).ok())
            .http2_keepalive_interval(Some(limits::CONNECTION_PING_INTERVAL))
            .http2_keepalive_timeout(Some(limits::CONNECTION_PING_TIMEOUT))
            .layer(GuardLayer)
            .add_routes(routes(self.limits.message_bytes(), self.metrics.clone()))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming).map(Ok::<_, io::Error>),
                cancel.clone().cancelled_owned(),
            );
        tokio::pin!(serving);
        let acceptor = Acceptor::new(self.limits, self.metrics.clone());
        tokio::select! {
            served = &mut serving => return served.map_err(Error::Serve),
            () = acceptor.run(listener, accept, access, connections, cancel) => {}
        }
        match tokio::time::timeout(limits::SERVE_DRAIN_TIMEOUT, serving).await {
            Ok(served) => served.map_err(Error::Serve),
            Err(_) => {
                tracing::info!("calls still open after the drain time are dropped");
                Ok(())
            }
        }
    }
}

/// A channel to a store with full rights that never leaves the process: calls are plain function
/// calls, no socket and no task is involved. Streams end when `cancel` fires.
#[must_use]
pub fn in_process(writer: impl Into<Writer>, cancel: CancellationToken) -> etcd_client::Channel {
    let limits = Limits::default();
    let access = Access::full(writer.into(), limits, cancel);
    let service = routes(limits.message_bytes(), Metrics::default())
        .map_request(move |mut request: http::Request<Body>| {
            request.extensions_mut().insert(access.clone());
            request
        })
        .map_err(tower::BoxError::from);
    etcd_client::Channel::Custom(BoxCloneSyncService::new(service))
}

/// Ends leases whose time is over, until `cancel` fires.
pub async fn store_expiry(writer: impl Into<Writer>, cancel: CancellationToken) {
    let writer = writer.into();
    let mut tick = tokio::time::interval(limits::LEASE_EXPIRY_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        match writer.expire(Instant::now()).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(count = ended, "leases expired"),
            Err(error) => tracing::warn!(%error, "leases outlive their time"),
        }
    }
}

/// Implements the services; all state travels in each request's [`Access`].
#[derive(Debug, Clone, Copy)]
struct Face;

fn routes(max: usize, metrics: Metrics) -> Routes {
    let kv = wire::Kv {
        generated: PbKvServer::new(Face).max_decoding_message_size(max),
        request_bytes_max: max,
    };
    let watch = wire::Watch {
        pace: Arc::new(Pace::default()),
        metrics,
        request_bytes_max: max,
    };
    Routes::new(kv)
        .add_service(watch)
        .add_service(PbLeaseServer::new(Face).max_decoding_message_size(max))
        .add_service(PbClusterServer::new(Face).max_decoding_message_size(max))
        .add_service(PbMaintenanceServer::new(Face).max_decoding_message_size(max))
        .add_service(cluster::NoAuth)
}

/// Splits a request into the connection's rights and the message.
fn open<T>(request: Request<T>) -> Result<(Access, T), Status> {
    let (_, mut extensions, message) = request.into_parts();
    let access = extensions
        .remove::<Access>()
        .ok_or_else(access::permission_denied)?;
    Ok((access, message))
}
