//! `--local-listen`: a plaintext listener with full rights on the cluster store, for tools on the
//! same host. What guards it is the socket's mode, or that nobody else reaches the loopback.
use std::net::{IpAddr, Ipv4Addr};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::{config::LocalListen, socket};

/// The name under which these clients are counted and logged.
pub(super) const NAME: &str = "local-listen";

/// A bound local listener.
#[derive(Debug)]
pub enum LocalListener {
    /// On the loopback interface.
    Tcp(TcpListener),
    /// On a socket of mode 0600.
    Unix(UnixListener),
}

/// Why the local listener can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The unix socket can't be made.
    #[error("bind --local-listen")]
    Unix(#[source] socket::Error),
    /// The address can't be bound.
    #[error("bind --local-listen {address}")]
    Tcp {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl LocalListener {
    /// Binds; inside a runtime. The socket of an agent that has ended is replaced.
    ///
    /// # Errors
    /// If the address is taken or cannot be bound.
    pub async fn bind(listen: &LocalListen) -> Result<Self, LocalError> {
        match listen {
            LocalListen::Unix(path) => socket::bind(path)
                .and_then(|listener| {
                    UnixListener::from_std(listener).map_err(|source| socket::Error::Bind {
                        path: path.clone(),
                        source,
                    })
                })
                .map(Self::Unix)
                .map_err(LocalError::Unix),
            LocalListen::Loopback(address) => TcpListener::bind(address)
                .await
                .map(Self::Tcp)
                .map_err(|source| LocalError::Tcp {
                    address: *address,
                    source,
                }),
        }
    }
}

impl super::accept::Listener for LocalListener {
    type Stream = Either<TcpStream, UnixStream>;

    async fn accept(&self) -> std::io::Result<(Self::Stream, IpAddr)> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match self {
            Self::Tcp(listener) => {
                let (tcp, _) = listener.accept().await?;
                tcp.set_nodelay(true)?;
                Ok((Either::Left(tcp), here))
            }
            Self::Unix(listener) => {
                let (unix, _) = listener.accept().await?;
                Ok((Either::Right(unix), here))
            }
        }
    }
}
