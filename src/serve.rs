//! The etcd v3 face of the stores: gRPC over an authenticated connection, or within the process.
//! Always true: a connection's rights follow from its certificate's CN alone and are checked for
//! each call; every answer carries a header with the served store's cluster id and revision.
//! Order: `run` accepts, hands the socket to `accept` (TLS), serves until `cancel`.
//! Absent on purpose: users, members, snapshots; rustls (the caller passes the handshake in).
use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer,
};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    body::Body,
    codegen::http,
    service::Routes,
    transport::{Server, server::Connected},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use self::access::Access;
use crate::{limits, store::Store, types::ClusterName};

mod access;
mod cluster;
mod convert;
mod kv;
mod lease;
mod watch;

/// The stores that are served, by who reads them.
#[derive(Debug, Clone)]
pub struct Keyspaces {
    /// Read and written by this cluster's nodes (`admin-<C>`).
    pub cluster: Store,
    /// Read by peers (`remote`, `remote-<peer>`).
    pub export: Store,
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

/// Serves until `cancel` fires; open streams then end, and calls get a short time to finish.
/// `accept` authenticates a socket and yields the encrypted stream with the client's CN.
///
/// # Errors
/// [`Error::Serve`]; what single connections do wrong is logged and goes no further.
pub async fn run<A, F, I, E>(
    listener: TcpListener,
    accept: A,
    keyspaces: Keyspaces,
    cluster: ClusterName,
    cancel: CancellationToken,
) -> Result<(), Error>
where
    A: Fn(TcpStream) -> F,
    F: Future<Output = Result<(I, String), E>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    E: fmt::Display + Send + 'static,
{
    let (connections, incoming) = mpsc::channel(1);
    let serving = Server::builder()
        .max_concurrent_streams(Some(limits::STREAMS_PER_CONNECTION_MAX))
        .http2_keepalive_interval(Some(limits::CONNECTION_PING_INTERVAL))
        .http2_keepalive_timeout(Some(limits::CONNECTION_PING_TIMEOUT))
        .add_routes(routes())
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming).map(Ok::<_, io::Error>),
            cancel.clone().cancelled_owned(),
        );
    tokio::pin!(serving);
    let access = |cn: &str| Access::for_common_name(cn, &keyspaces, &cluster, cancel.clone());
    tokio::select! {
        served = &mut serving => return served.map_err(Error::Serve),
        () = accept_all(&listener, accept, access, connections, &cancel) => {}
    }
    match tokio::time::timeout(limits::SERVE_DRAIN_TIMEOUT, serving).await {
        Ok(served) => served.map_err(Error::Serve),
        Err(_) => {
            tracing::info!("calls still open after the drain time are dropped");
            Ok(())
        }
    }
}

/// A channel to `store` with full rights that never leaves the process: calls are plain function
/// calls, no socket and no task is involved. Streams end when `cancel` fires.
#[must_use]
pub fn in_process(store: Store, cancel: CancellationToken) -> etcd_client::Channel {
    let access = Access::full(store, cancel);
    let service = routes()
        .map_request(move |mut request: http::Request<Body>| {
            request.extensions_mut().insert(access.clone());
            request
        })
        .map_err(tower::BoxError::from);
    etcd_client::Channel::Custom(BoxCloneSyncService::new(service))
}

/// Ends leases whose time is over, until `cancel` fires.
pub async fn store_expiry(store: Store, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(limits::LEASE_EXPIRY_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        let ended = store.expire(Instant::now());
        if ended > 0 {
            tracing::info!(count = ended, "leases expired");
        }
    }
}

/// Implements the services; all state travels in each request's [`Access`].
#[derive(Debug, Clone, Copy)]
struct Face;

fn routes() -> Routes {
    let max = limits::REQUEST_BYTES_MAX;
    Routes::new(PbKvServer::new(Face).max_decoding_message_size(max))
        .add_service(PbWatchServer::new(Face).max_decoding_message_size(max))
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

async fn accept_all<A, F, I, E>(
    listener: &TcpListener,
    accept: A,
    access: impl Fn(&str) -> Access,
    connections: mpsc::Sender<Connection<I>>,
    cancel: &CancellationToken,
) where
    A: Fn(TcpStream) -> F,
    F: Future<Output = Result<(I, String), E>> + Send + 'static,
    I: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(done) = handshakes.join_next(), if !handshakes.is_empty() => {
                let Ok(Some((io, cn, permit))) = done else { continue };
                let cn: String = cn;
                let access = access(&cn);
                if !access.has_role() {
                    tracing::warn!(cn, "client certificate has no role here");
                }
                let connection = Connection { io, access, _permit: permit };
                if connections.send(connection).await.is_err() {
                    return;
                }
            }
            accepted = listener.accept(), if handshakes.len() < limits::HANDSHAKES_MAX => {
                let (tcp, from) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: give connections time to end.
                        tracing::warn!(%error, "connection not accepted");
                        let pause = tokio::time::sleep(Duration::from_millis(100));
                        cancel.run_until_cancelled(pause).await;
                        continue;
                    }
                };
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                    tracing::warn!(%from, "connection refused: too many are open");
                    continue;
                };
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%from, %error, "nodelay not set");
                }
                let handshake = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, accept(tcp));
                handshakes.spawn(async move {
                    match handshake.await {
                        Ok(Ok((io, cn))) => Some((io, cn, permit)),
                        Ok(Err(error)) => {
                            tracing::debug!(%from, %error, "handshake failed");
                            None
                        }
                        Err(_) => {
                            tracing::debug!(%from, "handshake timed out");
                            None
                        }
                    }
                });
            }
        }
    }
}

/// An authenticated stream with its rights; counts as open until dropped.
struct Connection<I> {
    io: I,
    access: Access,
    _permit: OwnedSemaphorePermit,
}

impl<I> Connected for Connection<I> {
    type ConnectInfo = Access;

    fn connect_info(&self) -> Access {
        self.access.clone()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Connection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
