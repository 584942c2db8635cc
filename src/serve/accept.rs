//! From a listener to authenticated connections, within the limits of each client.
//! Order: an address's quota, its turn, the handshake, the common name's quota; what fails at one
//! of them is dropped and goes no further.
use std::{
    fmt,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    access::Access,
    clients::{Held, Limits, Quota, Turns, counted},
    guard::{Caller, CallerShared},
    metrics::{Limit, Metrics},
};
use crate::limits;

/// Where clients come from.
pub(super) trait Listener {
    type Stream: Send + 'static;

    /// The next client and its address. Cancel safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, IpAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (tcp, from) = self.accept().await?;
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%from, %error, "nodelay not set");
        }
        Ok((tcp, from.ip()))
    }
}

/// Accepts until cancelled.
pub(super) struct Acceptor {
    limits: Limits,
    metrics: Metrics,
    all: Arc<Semaphore>,
    by_address: Quota<IpAddr>,
    by_name: Quota<String>,
    requests: Quota<String>,
    turns: Turns,
    handshakes: Arc<Semaphore>,
}

/// What a connection holds from the first byte on.
struct Place {
    _one: OwnedSemaphorePermit,
    _of_address: Held<IpAddr>,
}

impl Acceptor {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Self {
        Self {
            limits,
            metrics,
            all: Arc::new(Semaphore::new(limits.connections)),
            by_address: Quota::new(limits.connections_per_client),
            by_name: Quota::new(limits.connections_per_client),
            requests: Quota::new(limits.requests_per_client),
            turns: Turns::new(limits::HANDSHAKES_PER_ADDRESS_MAX),
            handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES_MAX)),
        }
    }

    /// Authenticates whom `listener` yields by `accept`, and sends them to `connections`.
    pub(super) async fn run<L, F, I, E>(
        mut self,
        listener: &L,
        accept: impl Fn(L::Stream) -> F,
        access: impl Fn(&str) -> Access,
        connections: mpsc::Sender<Connection<I>>,
        cancel: &CancellationToken,
    ) where
        L: Listener,
        F: Future<Output = Result<(I, String), E>> + Send + 'static,
        I: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                Some(done) = handshakes.join_next(), if !handshakes.is_empty() => {
                    let Ok(Some((io, name, place))) = done else { continue };
                    let Some(connection) = self.connection(io, name, place, &access) else { continue };
                    if connections.send(connection).await.is_err() {
                        return;
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        let Some(place) = self.place(from) else { continue };
                        let turn = self.turns.of(counted(from));
                        let handshake = accept(stream);
                        let all = Arc::clone(&self.handshakes);
                        handshakes.spawn(async move {
                            let _turn = turn.acquire().await.ok()?;
                            let _one = all.acquire().await.ok()?;
                            match handshake.await {
                                Ok((io, name)) => Some((io, name, place)),
                                Err(error) => {
                                    tracing::debug!(%from, %error, "handshake failed");
                                    None
                                }
                            }
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: give connections time to end.
                        tracing::warn!(%error, "connection not accepted");
                        let pause = tokio::time::sleep(Duration::from_millis(100));
                        cancel.run_until_cancelled(pause).await;
                    }
                }
            }
        }
    }

    fn place(&self, from: IpAddr) -> Option<Place> {
        let Some(of_address) = self.by_address.take(&counted(from)) else {
            let max = self.by_address.max();
            self.metrics
                .limit_hit(Limit::ConnectionsPerAddress, max, &from);
            return None;
        };
        let Ok(one) = Arc::clone(&self.all).try_acquire_owned() else {
            let max = self.limits.connections;
            self.metrics.limit_hit(Limit::Connections, max, &from);
            return None;
        };
        Some(Place {
            _one: one,
            _of_address: of_address,
        })
    }

    fn connection<I>(
        &self,
        io: I,
        name: String,
        place: Place,
        access: impl Fn(&str) -> Access,
    ) -> Option<Connection<I>> {
        let Some(of_name) = self.by_name.take(&name) else {
            let max = self.by_name.max();
            self.metrics
                .limit_hit(Limit::ConnectionsPerName, max, &name);
            return None;
        };
        let access = access(&name);
        if !access.has_role() {
            tracing::warn!(cn = name, "client certificate has no role here");
        }
        self.metrics.connected();
        let shared = CallerShared {
            name,
            streams: Quota::new(self.limits.streams_per_connection),
            requests: self.requests.clone(),
            limits: self.limits,
            metrics: self.metrics.clone(),
        };
        Some(Connection {
            io,
            ended: Box::pin(access.ended.clone().cancelled_owned()),
            caller: Caller {
                access,
                shared: Arc::new(shared),
            },
            _place: place,
            _of_name: of_name,
        })
    }
}

/// An authenticated stream with its rights; counts as open until dropped.
pub(super) struct Connection<I> {
    io: I,
    /// Its end is the connection's.
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    caller: Caller,
    _place: Place,
    _of_name: Held<String>,
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        self.caller.shared.metrics.disconnected();
    }
}

impl<I> Connected for Connection<I> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
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
