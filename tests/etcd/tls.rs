//! Certificates of every sort, a server that takes them, and a client that sends what it is told.
use std::{net::SocketAddr, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa};
use rcgen::{Issuer, KeyPair};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tombolo::{
    serve,
    tls::{Paths, ServerTls},
};

use super::Face;

/// A certificate authority, of its own or below another one.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with what belongs behind it, and its key; PEM.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    pub(crate) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = ca_params(name);
        change(&mut params);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// An intermediate CA that this one signs.
    pub(crate) fn below(&self, name: &str) -> Self {
        let (params, key) = ca_params(name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A client's certificate.
    pub(crate) fn client(&self, name: &str) -> Leaf {
        self.issue(name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// The certificate of a server on the loopback.
    pub(crate) fn server(&self) -> Leaf {
        self.issue("server", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    pub(crate) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Leaf {
            chain: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Leaf {
    /// With the certificate of the CA that issued it behind it.
    pub(crate) fn behind(mut self, intermediate: &Ca) -> Self {
        self.chain.push_str(&intermediate.pem);
        self
    }

    /// With somebody else's key.
    pub(crate) fn with_key_of(mut self, other: &Self) -> Self {
        self.key.clone_from(&other.key);
        self
    }
}

fn ca_params(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, KeyPair::generate().unwrap())
}

/// Writes what a server needs to `dir`.
pub(crate) fn write_server(dir: &Path, server: &Leaf, ca_pem: &str) -> Paths {
    let paths = Paths {
        cert: dir.join("server.crt"),
        key: dir.join("server.key"),
        ca: dir.join("ca.crt"),
    };
    std::fs::write(&paths.cert, &server.chain).unwrap();
    std::fs::write(&paths.key, &server.key).unwrap();
    std::fs::write(&paths.ca, ca_pem).unwrap();
    paths
}

/// A face over mTLS on a port of its own.
pub(crate) struct TlsFace {
    pub(crate) face: Face,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: serve::Metrics,
}

impl TlsFace {
    pub(crate) async fn start(tls: &ServerTls, limits: serve::Limits) -> Self {
        let tls = tls.clone();
        let accept = move |tcp: TcpStream| {
            let tls = tls.clone();
            async move {
                let (stream, name) = tls.accept(tcp).await?;
                Ok::<_, tombolo::tls::Error>((stream, name.as_str().to_owned()))
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut metrics = None;
        let face = Face::start_with(address.to_string(), |keyspaces, cancel| {
            let server = serve::Server::new(keyspaces, "west".parse().unwrap(), limits);
            metrics = Some(server.metrics().clone());
            tokio::spawn(server.run(listener, accept, cancel))
        });
        Self {
            face,
            address,
            metrics: metrics.unwrap(),
        }
    }
}

/// How a client shakes hands.
#[derive(Clone)]
pub(crate) struct Hello {
    pub(crate) identity: Option<Leaf>,
    pub(crate) versions: &'static [&'static rustls::SupportedProtocolVersion],
    pub(crate) alpn: &'static [u8],
    /// Whom it trusts.
    pub(crate) ca_pem: String,
}

impl Hello {
    pub(crate) fn new(ca: &Ca, identity: Option<Leaf>) -> Self {
        Self {
            identity,
            versions: rustls::DEFAULT_VERSIONS,
            alpn: b"h2",
            ca_pem: ca.pem.clone(),
        }
    }

    fn config(&self) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(
            CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()).map(Result::unwrap),
        );
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(leaf) => {
                let chain = CertificateDer::pem_slice_iter(leaf.chain.as_bytes());
                let chain = chain.map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
                let key = provider.key_provider.load_private_key(key).unwrap();
                // Unlike `with_client_auth_cert`, this also takes a key that does not fit.
                let certified = CertifiedKey::new(chain, key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        config
    }

    /// The encrypted stream, as far as the client can tell.
    pub(crate) async fn shake(
        &self,
        address: SocketAddr,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.config()));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        connector.connect(name, tcp).await
    }

    /// A client over one such stream.
    pub(crate) async fn client(&self, address: SocketAddr) -> Result<etcd_client::Client, String> {
        let stream = self.shake(address).await.map_err(|e| e.to_string())?;
        client_over(stream).await
    }
}

/// An etcd client over one stream.
pub(crate) async fn client_over<S>(stream: S) -> Result<etcd_client::Client, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let channel = etcd_client::Channel::Tonic(channel_over(stream).await?);
    let client = etcd_client::Client::from_channel(channel, None).await;
    client.map_err(|e| e.to_string())
}

pub(crate) async fn channel_over<S>(stream: S) -> Result<tonic::transport::Channel, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let taken = once.take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    tonic::transport::Endpoint::from_static("http://127.0.0.1")
        .connect_with_connector(connector)
        .await
        .map_err(|e| e.to_string())
}

/// The value of each line of a counter in a registry, by the value of its one label.
pub(crate) fn counts(registry: &prometheus::Registry, name: &str) -> Vec<(String, String)> {
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    let lines = text.lines().filter_map(|line| {
        let (labels, value) = line
            .strip_prefix(name)?
            .strip_prefix('{')?
            .split_once("} ")?;
        let label = labels.split('"').nth(1)?;
        Some((label.to_owned(), value.to_owned()))
    });
    lines.collect()
}
