//! The server's half: its certificate from files, and client certificates required.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ResolvesServerCert},
    sign::SingleCertAndKey,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    ClientTrust, CommonName, Error, Metrics, Reason,
    bundle::{Bundle, certified_key, chain_expiry, check_server, intermediate_names},
    provider, read,
    trust::{Own, Role, Witness},
};
use crate::{limits, telemetry::Samples};

/// An authenticated connection of a client.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Where the server's certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Certificate chain of the server, PEM: its own certificate first, then intermediates.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The own cluster's CA bundle, PEM.
    pub ca: PathBuf,
}

/// CA bundles that vouch for the users of one role in place of [`Paths::ca`]; PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolePaths {
    /// For `admin-<cluster>`.
    pub admin: Option<PathBuf>,
    /// For `local-<cluster>`.
    pub local: Option<PathBuf>,
    /// For `remote` and `remote-<peer>`; a peer's own CA vouches for the latter too.
    pub remote: Option<PathBuf>,
}

/// What an acceptor needs; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub struct ServerTls {
    paths: Arc<AllPaths>,
    provider: Arc<CryptoProvider>,
    trust: ClientTrust,
    current: Arc<ArcSwap<Loaded>>,
    refused: Arc<Mutex<Option<String>>>,
    metrics: Metrics,
    samples: Arc<Samples<Reason>>,
}

#[derive(Debug)]
struct AllPaths {
    server: Paths,
    roles: BTreeMap<Role, PathBuf>,
}

struct Loaded {
    resolver: Arc<dyn ResolvesServerCert>,
    files: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

/// Files that were read, parsed and found good.
struct Checked {
    loaded: Loaded,
    own: Own,
    server_expiry: i64,
    /// The server's certificate is used for want of a better one.
    outside_validity: Option<Error>,
}

impl ServerTls {
    /// Reads the files and checks that they fit together; the own CA vouches for all roles.
    ///
    /// # Errors
    /// [`Error::Missing`] if a file does not exist yet, else what is wrong with which file.
    pub fn load(paths: Paths) -> Result<Self, Error> {
        Self::load_with_roles(paths, RolePaths::default())
    }

    /// As [`Self::load`], with CA bundles for single roles. A server certificate that is expired or
    /// not yet valid is taken with a warning, as refusing to start would end more than TLS.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_roles(paths: Paths, roles: RolePaths) -> Result<Self, Error> {
        let roles = [
            (Role::Admin, roles.admin),
            (Role::Local, roles.local),
            (Role::Remote, roles.remote),
        ];
        let roles = roles.into_iter().filter_map(|(r, path)| Some((r, path?)));
        let paths = AllPaths {
            server: paths,
            roles: roles.collect(),
        };
        let (provider, metrics) = (provider(), Metrics::new());
        let checked = check(&paths, paths.read()?, &provider)?;
        if let Some(error) = &checked.outside_validity {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "The server's certificate is not valid now, clients will refuse it"
            );
        }
        checked.show_expiry(&metrics);
        Ok(Self {
            paths: Arc::new(paths),
            trust: ClientTrust::new(checked.own, Arc::clone(&provider), metrics.clone()),
            provider,
            current: Arc::new(ArcSwap::from_pointee(checked.loaded)),
            refused: Arc::default(),
            metrics,
            samples: Arc::default(),
        })
    }

    /// Who may vouch for clients; peers' CAs are added and removed here.
    #[must_use]
    pub fn trust(&self) -> ClientTrust {
        self.trust.clone()
    }

    /// Expiry, refused handshakes and reloads.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Why the files as they are now are not in use; `None` if they are.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        lock(&self.refused).clone()
    }

    /// Reads the files again. True if something changed. On an error the old ones stay in use.
    ///
    /// # Errors
    /// As [`Self::load`], and also for a server certificate that is not valid now.
    pub fn reload(&self) -> Result<bool, Error> {
        let result = self.try_reload();
        match &result {
            Ok(true) => self.metrics.reloaded(),
            Ok(false) => {}
            Err(error) => self.metrics.reload_refused(error.reason()),
        }
        *lock(&self.refused) = result.as_ref().err().map(Error::line);
        result
    }

    fn try_reload(&self) -> Result<bool, Error> {
        let files = self.paths.read()?;
        if self.current.load().files == files {
            return Ok(false);
        }
        let checked = check(&self.paths, files, &self.provider)?;
        if let Some(error) = checked.outside_validity {
            return Err(error);
        }
        checked.show_expiry(&self.metrics);
        self.trust.set_own(&checked.own);
        self.current.store(Arc::new(checked.loaded));
        Ok(true)
    }

    /// Reloads changed files until cancelled; standing connections go on. Contents are compared, so
    /// that swapped symbolic links of mounted secrets count as any other change.
    pub async fn watch(self, cancel: CancellationToken) {
        let mut said = None;
        let mut tick = tokio::time::interval(limits::TLS_RELOAD_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    tracing::info!(path = %self.paths.server.cert.display(), "Server certificates reloaded");
                }
                Ok(false) => {}
                Err(error) if self.refused() != said => {
                    tracing::warn!(
                        reason = %error.reason(),
                        error = &error as &dyn std::error::Error,
                        "New server certificates refused, the old ones stay in use"
                    );
                }
                Err(_) => {}
            }
            said = self.refused();
        }
    }

    /// Shakes hands with a client and tells who it is; at most `HANDSHAKE_TIMEOUT`. A refusal is
    /// counted, and logged as one of a sample. Not cancel safe: dropping it drops the connection,
    /// which is what a server wants.
    ///
    /// # Errors
    /// [`Error::Accept`] if the client has no certificate or one that nobody vouches for;
    /// [`Error::Timeout`] if it dawdles.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(ServerStream, CommonName), Error> {
        let from = tcp.peer_addr().ok();
        let witness = self.trust.witness();
        let result = self.handshake(tcp, Arc::clone(&witness)).await;
        if let Err(error) = &result {
            let reason = error.reason();
            self.metrics.handshake_refused(reason);
            if let Some(count) = self.samples.take(reason) {
                tracing::warn!(
                    reason = %reason,
                    from = from.map(tracing::field::display),
                    cn = witness.claimed().map(tracing::field::display),
                    count,
                    error = error as &dyn std::error::Error,
                    "TLS client refused"
                );
            }
        }
        result
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        witness: Arc<Witness>,
    ) -> Result<(ServerStream, CommonName), Error> {
        let config = self.config(Arc::clone(&witness))?;
        let handshake = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp);
        let stream = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_elapsed| Error::Timeout)?
            .map_err(|source| Error::Accept {
                reason: witness.reason().unwrap_or_else(|| Reason::of_io(&source)),
                source,
            })?;
        let name = witness.claimed().ok_or(Error::CommonName)?;
        Ok((stream, name))
    }

    /// One per handshake: its verifier remembers what it saw.
    fn config(&self, witness: Arc<Witness>) -> Result<rustls::ServerConfig, Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Setup {
                path: self.paths.server.cert.clone(),
                source,
            })?
            .with_client_cert_verifier(witness)
            .with_cert_resolver(Arc::clone(&self.current.load().resolver));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep the user that a meanwhile removed CA vouched for.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl AllPaths {
    /// In the order of `check`. Read twice, as a set of files may be replaced between two of them.
    fn read(&self) -> Result<Vec<Vec<u8>>, Error> {
        let Paths { cert, key, ca } = &self.server;
        let all = || {
            let paths = [cert, key, ca].into_iter().chain(self.roles.values());
            paths.map(|path| read(path)).collect::<Result<Vec<_>, _>>()
        };
        let mut files = all()?;
        for _ in 0..limits::TLS_READS_MAX {
            let again = all()?;
            if again == files {
                break;
            }
            files = again;
        }
        Ok(files)
    }
}

impl Checked {
    fn show_expiry(&self, metrics: &Metrics) {
        metrics.set_expiry("", "server", self.server_expiry);
        metrics.set_expiry("", "ca", self.own.bundle.expiry);
        for (role, bundle) in &self.own.roles {
            metrics.set_expiry("", role.label(), bundle.expiry);
        }
    }
}

fn check(
    paths: &AllPaths,
    files: Vec<Vec<u8>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Checked, Error> {
    let Paths { cert, key, ca } = &paths.server;
    let certified = certified_key((cert, &files[0]), (key, &files[1]), provider)?;
    let bundle = Bundle::new(ca, &files[2], provider)?;
    let mut roles = BTreeMap::new();
    for ((role, path), pem) in paths.roles.iter().zip(&files[3..]) {
        roles.insert(*role, Bundle::new(path, pem, provider)?);
    }
    let outside_validity = match check_server(cert, &certified.cert, &bundle.roots, provider) {
        Ok(()) => None,
        Err(error) => match error.reason() {
            Reason::Expired | Reason::NotYetValid => Some(error),
            _ => return Err(error),
        },
    };
    let own = Own {
        bundle,
        roles,
        intermediates: intermediate_names(&certified.cert),
    };
    Ok(Checked {
        server_expiry: chain_expiry(cert, &certified.cert)?,
        loaded: Loaded {
            resolver: Arc::new(SingleCertAndKey::from(certified)),
            files,
        },
        own,
        outside_validity,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere leaves an old text or a new one, never half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
