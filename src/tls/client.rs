//! The client's half: files are read anew for each handshake, so that renewed certificates are used
//! without a restart.
use std::{path::PathBuf, sync::Arc};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;

use super::{Error, bundle::chain_expiry, certificates, private_key, provider, read, roots};
use crate::limits;

/// An encrypted connection to a server.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Where common distributions keep their CA bundle; the first that exists is used.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How to verify a server and what to present to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// CA bundle; `None` means the system's.
    pub ca: Option<PathBuf>,
    /// Own certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name that the server's certificate must hold instead of the host that was dialled.
    pub server_name: Option<String>,
    /// Take any server certificate.
    pub insecure_skip_verify: bool,
}

/// A connector; holds paths only, never keys.
#[derive(Debug, Clone)]
pub struct ClientTls {
    options: ClientOptions,
}

impl ClientTls {
    /// Reads nothing yet.
    #[must_use]
    pub const fn new(options: ClientOptions) -> Self {
        Self { options }
    }

    pub(super) const fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Checks that all files are there and fit together, without connecting.
    ///
    /// # Errors
    /// [`Error::Missing`] if a file does not exist yet, else what is wrong with which file.
    pub fn check(&self) -> Result<(), Error> {
        self.config().map(|_| ())
    }

    /// Shakes hands over `tcp` with the server that `host` names (a host name or an address).
    ///
    /// # Errors
    /// [`Error::Missing`] if a file does not exist yet; [`Error::Connect`] if the handshake fails.
    pub async fn connect(&self, tcp: TcpStream, host: &str) -> Result<ClientStream, Error> {
        let name = self.options.server_name.as_deref().unwrap_or(host);
        let server_name =
            ServerName::try_from(name.to_owned()).map_err(|_cause| Error::ServerName {
                host: name.to_owned(),
            })?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.config()?));
        let handshake = connector.connect(server_name, tcp);
        tokio::time::timeout(limits::TLS_HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_elapsed| Error::Timeout)?
            .map_err(|source| Error::Connect {
                host: host.to_owned(),
                source,
            })
    }

    /// When the first certificate of the own chain expires, Unix seconds; `None` without one.
    ///
    /// # Errors
    /// What is wrong with the certificate file.
    pub fn expiry(&self) -> Result<Option<i64>, Error> {
        let Some((cert, _)) = &self.options.identity else {
            return Ok(None);
        };
        let chain = certificates(cert, &read(cert)?)?;
        chain_expiry(cert, &chain).map(Some)
    }

    fn config(&self) -> Result<rustls::ClientConfig, Error> {
        let options = &self.options;
        let provider = provider();
        let ca = match &options.ca {
            Some(path) => path.clone(),
            None => SYSTEM_ROOTS
                .iter()
                .map(PathBuf::from)
                .find(|p| p.exists())
                .unwrap_or_default(),
        };
        let setup = |source| Error::Setup {
            path: ca.clone(),
            source,
        };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(setup)?;
        let builder = if options.insecure_skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(TakeAny(provider)))
        } else if ca.as_os_str().is_empty() {
            return Err(Error::NoSystemRoots);
        } else {
            builder.with_root_certificates(roots(&ca, &read(&ca)?)?)
        };
        let mut config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    certificates(cert, &read(cert)?)?,
                    private_key(key, &read(key)?)?,
                )
                .map_err(|source| Error::Setup {
                    path: cert.clone(),
                    source,
                })?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Verifies that the server holds the key of its certificate, but not whose certificate it is.
#[derive(Debug)]
struct TakeAny(Arc<CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
