//! Endpoint text, dialling, and the single connection below a client.
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{Client, Error, Pin, parts};
use crate::{
    limits,
    tls::{ClientOptions, ClientTls},
};

/// Where a client connects to, and as whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Tried in random order, one at a time; each is a store of its own.
    pub endpoints: Vec<Endpoint>,
    /// For the endpoints that use TLS.
    pub tls: ClientOptions,
    /// User name and password; certificates need none.
    pub user: Option<(String, String)>,
    /// Addresses of host names that no resolver knows.
    pub host_aliases: HostAliases,
}

/// Addresses by host name.
pub type HostAliases = BTreeMap<String, Vec<IpAddr>>;

/// One server of an etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS or plain text; `None` if the text had no scheme.
    pub tls: Option<bool>,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {0:?} is not of the form https://host:port")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError(text.chars().take(200).collect());
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(true), rest),
            Some(("http", rest)) => (Some(false), rest),
            Some(_) => return Err(error()),
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let valid = match bracketed {
            Some(inner) => inner.parse::<IpAddr>().is_ok(),
            None => !host.is_empty() && host.chars().all(plain),
        };
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(error)?;
        if valid {
            Ok(Self {
                host: host.to_owned(),
                port,
                tls,
            })
        } else {
            Err(error())
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

impl Client {
    /// Connects to one of the options' endpoints. Cancel safe.
    ///
    /// # Errors
    /// What hindered it, from the resolver to HTTP/2.
    pub async fn connect(options: &ConnectOptions, endpoint: &Endpoint) -> Result<Self, Error> {
        connect_one(options, endpoint).await
    }

    /// Connects to a member of a cluster store, which must keep what it is told, and must have
    /// caught up with its leader: a read through the leader waits for that, so that lists served
    /// by the member alone hold all that was acknowledged before. Cancel safe.
    ///
    /// # Errors
    /// That of the last endpoint tried; [`Error::NotDurable`], and [`Error::Timeout`] for a member
    /// that has no leader.
    pub async fn connect_to_store(options: &ConnectOptions) -> Result<Self, Error> {
        let mut endpoints: Vec<&Endpoint> = options.endpoints.iter().collect();
        endpoints.shuffle(&mut rand::rng());
        let mut last = Error::NoEndpoint;
        for endpoint in endpoints {
            let member = async {
                let client = connect_one(options, endpoint).await?;
                if !client.is_durable().await? {
                    let address = endpoint.to_string();
                    return Err(Error::NotDurable { address });
                }
                client.get(crate::keyspace::HEARTBEAT).await?;
                Ok(client)
            };
            match tokio::time::timeout(limits::STORE_PROBE_TIMEOUT, member).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => last = error,
                Err(_) => {
                    last = Error::Timeout {
                        op: "reach the cluster store at",
                        key: endpoint.to_string(),
                    }
                }
            }
        }
        Err(last)
    }

    /// A client of a store in this process, see `serve::in_process`. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], in practice never.
    pub async fn in_process(channel: etcd_client::Channel) -> Result<Self, Error> {
        client(channel, "localhost", None).await
    }
}

async fn connect_one(options: &ConnectOptions, endpoint: &Endpoint) -> Result<Client, Error> {
    let address = endpoint.to_string();
    let addresses = resolve(options, endpoint).await?;
    let tcp = dial(&addresses).await.map_err(|source| Error::Dial {
        address: address.clone(),
        source,
    })?;
    let user = options.user.clone();
    if options.uses_tls(endpoint) {
        let tls = ClientTls::new(options.tls.clone());
        let stream = tls
            .connect(tcp, &endpoint.host)
            .await
            .map_err(|source| Error::Tls {
                address: address.clone(),
                source,
            })?;
        over(stream, &address, true, user).await
    } else {
        over(tcp, &address, false, user).await
    }
}

impl ConnectOptions {
    /// True if this endpoint is spoken to over TLS: it says so, or says nothing and there is a CA.
    #[must_use]
    pub fn uses_tls(&self, endpoint: &Endpoint) -> bool {
        endpoint.tls.unwrap_or_else(|| self.tls.ca.is_some())
    }
}

/// The endpoint's addresses: those that the options give its host, else the resolver's.
pub(crate) async fn resolve(
    options: &ConnectOptions,
    endpoint: &Endpoint,
) -> Result<Vec<SocketAddr>, Error> {
    let Endpoint { host, port, .. } = endpoint;
    if let Some(addresses) = options.host_aliases.get(host) {
        return Ok(addresses.iter().map(|a| (*a, *port).into()).collect());
    }
    let failed = |source| Error::Resolve {
        host: host.clone(),
        source,
    };
    let found = tokio::net::lookup_host((host.as_str(), *port));
    let found = tokio::time::timeout(limits::DIAL_TIMEOUT, found).await;
    match found.unwrap_or_else(|elapsed| Err(elapsed.into())) {
        Ok(addresses) => Ok(addresses.collect()),
        Err(source) => Err(failed(source)),
    }
}

/// Connects to the first address that answers. They are tried in their order, each a moment after
/// the one before, as a host may be lost for one address family or at one of its addresses.
pub(crate) async fn dial(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let addresses = addresses.iter().take(limits::DIAL_ADDRESSES_MAX);
    let attempt = |(address, begin): (&SocketAddr, Duration)| {
        let address = *address;
        async move {
            tokio::time::sleep(begin).await;
            tokio::time::timeout(limits::DIAL_TIMEOUT, TcpStream::connect(address)).await?
        }
    };
    let begins = (0..).map(|place| limits::DIAL_STAGGER * place);
    let mut attempts: FuturesUnordered<_> = addresses.zip(begins).map(attempt).collect();
    let mut last = std::io::ErrorKind::AddrNotAvailable.into();
    while let Some(tcp) = attempts.next().await {
        match tcp {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn over<S>(
    stream: S,
    address: &str,
    tls: bool,
    user: Option<(String, String)>,
) -> Result<Client, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = |source| Error::Http {
        address: address.to_owned(),
        tls,
        source,
    };
    let scheme = if tls { "https" } else { "http" };
    // tonic refuses to connect to https without its own TLS, so only the origin says it.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .map_err(http)?
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW)
        .http2_keep_alive_interval(limits::KEEP_ALIVE.0)
        .keep_alive_timeout(limits::KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    let endpoint = match format!("{scheme}://{address}").parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    };
    // One stream only: tonic would reconnect by itself, but then nobody relists.
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(http)?;

    client(parts::bounded(channel), address, user).await
}

async fn client(
    channel: etcd_client::Channel,
    address: &str,
    user: Option<(String, String)>,
) -> Result<Client, Error> {
    let mut options = etcd_client::ConnectOptions::new().with_require_leader(true);
    if let Some((name, password)) = user {
        options = options.with_user(name, password);
    }
    let from = etcd_client::Client::from_channel(channel, Some(options));
    let client = super::call_within(super::LOG_IN, address, from).await?;
    Ok(Client {
        kv: client
            .kv_client()
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX),
        watch: client
            .watch_client()
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX),
        lease: client.lease_client(),
        maintenance: client.maintenance_client(),
        pin: Pin::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an address that swallows what it is sent, as behind a firewall, holds up no other.
    #[tokio::test]
    async fn first_address_that_answers_is_taken() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let hole = full.local_addr().unwrap();
        let mut queue = Vec::new();
        // Whatever comes once its queue is full is dropped without a word.
        while let Ok(tcp) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(hole)).await
        {
            queue.push(tcp.unwrap());
        }
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = good.local_addr().map(|address| (good, address)).unwrap();
        let tcp = tokio::time::timeout(limits::DIAL_TIMEOUT / 2, dial(&[hole, good.1])).await;
        assert_eq!(tcp.unwrap().unwrap().peer_addr().unwrap(), good.1);
        let refused = "127.0.0.1:1".parse().unwrap();
        let error = dial(&[refused]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(dial(&[]).await.is_err());
    }

    #[test]
    fn endpoints_parse_and_print() {
        let ok = [
            (
                "https://west.mesh.cilium.io:32379",
                "west.mesh.cilium.io:32379",
                Some(true),
            ),
            ("http://127.0.0.1:2379/", "127.0.0.1:2379", Some(false)),
            (
                "https://[2001:db8::1]:2379",
                "[2001:db8::1]:2379",
                Some(true),
            ),
            ("west:2379", "west:2379", None),
        ];
        for (text, printed, tls) in ok {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(
                (endpoint.to_string().as_str(), endpoint.tls),
                (printed, tls)
            );
        }
        for text in [
            "",
            "west",
            "https://west",
            "unix://x:1",
            "https://:1",
            "https://a b:1",
            "https://west:0",
            "https://west:70000",
            "https://2001:db8::1:2379",
            "https://u@h:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
