//! The server's half: its certificate from files, and client certificates required.
use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{ClientTrust, CommonName, Error, certificates, private_key, provider, read};
use crate::limits;

/// An authenticated connection of a client.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Where the server's certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Certificate chain of the server, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The own cluster's CA bundle, PEM.
    pub ca: PathBuf,
}

/// What an acceptor needs; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub struct ServerTls {
    paths: Arc<Paths>,
    trust: ClientTrust,
    current: Arc<ArcSwap<Loaded>>,
}

struct Loaded {
    config: Arc<rustls::ServerConfig>,
    files: [Vec<u8>; 3],
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files and checks that they fit together.
    ///
    /// # Errors
    /// [`Error::Missing`] if a file does not exist yet, else what is wrong with which file.
    pub fn load(paths: Paths) -> Result<Self, Error> {
        let files = read_all(&paths)?;
        let trust = ClientTrust::new(&paths.ca, &files[2])?;
        let config = build(&paths, &files, &trust)?;
        let current = Arc::new(ArcSwap::from_pointee(Loaded { config, files }));
        Ok(Self {
            paths: Arc::new(paths),
            trust,
            current,
        })
    }

    /// Who may vouch for clients; peers' CAs are added and removed here.
    #[must_use]
    pub fn trust(&self) -> ClientTrust {
        self.trust.clone()
    }

    /// Reads the files again. True if something changed. On an error the old ones stay in use.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&self) -> Result<bool, Error> {
        let files = read_all(&self.paths)?;
        if self.current.load().files == files {
            return Ok(false);
        }
        let config = build(&self.paths, &files, &self.trust)?;
        self.trust.set_own(&self.paths.ca, &files[2])?;
        self.current.store(Arc::new(Loaded { config, files }));
        Ok(true)
    }

    /// Reloads changed files until cancelled; standing connections go on.
    pub async fn watch(self, cancel: CancellationToken) {
        let mut failing = false;
        let mut tick = tokio::time::interval(limits::TLS_RELOAD_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            match self.reload() {
                Ok(changed) => {
                    failing = false;
                    if changed {
                        tracing::info!(path = %self.paths.cert.display(), "Server certificates reloaded");
                    }
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "New server certificates refused, the old ones stay in use"
                    );
                }
                Err(_) => {}
            }
        }
    }

    /// Shakes hands with a client and tells who it is. Not cancel safe: dropping it drops the
    /// connection, which is what a server wants.
    ///
    /// # Errors
    /// [`Error::Accept`] if the client has no certificate or one that nobody vouches for;
    /// [`Error::Timeout`] if it dawdles.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(ServerStream, CommonName), Error> {
        let config = Arc::clone(&self.current.load().config);
        let handshake = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
        let stream = within(limits::TLS_HANDSHAKE_TIMEOUT, handshake)
            .await?
            .map_err(|source| Error::Accept { source })?;
        let chain = stream.get_ref().1.peer_certificates();
        let leaf = chain
            .and_then(|chain| chain.first())
            .ok_or(Error::CommonName)?;
        let name = CommonName::from_certificate(leaf)?;
        Ok((stream, name))
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_elapsed| Error::Timeout)
}

fn read_all(paths: &Paths) -> Result<[Vec<u8>; 3], Error> {
    Ok([read(&paths.cert)?, read(&paths.key)?, read(&paths.ca)?])
}

fn build(
    paths: &Paths,
    [cert, key, _]: &[Vec<u8>; 3],
    trust: &ClientTrust,
) -> Result<Arc<rustls::ServerConfig>, Error> {
    let setup = |source| Error::Setup {
        path: paths.cert.clone(),
        source,
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .with_client_cert_verifier(Arc::new(trust.clone()))
        .with_single_cert(
            certificates(&paths.cert, cert)?,
            private_key(&paths.key, key)?,
        )
        .map_err(setup)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would keep the user that a meanwhile removed CA vouched for.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
