//! Certificates: the server that asks every client for one, the client that presents one, and who
//! may vouch for whom.
//!
//! The subject's common name is the user, as in Cilium's etcd. The own CA may vouch for any name; a
//! CA taken from a peer may vouch for `remote-<that peer>` and for nothing else; a role with a
//! bundle of its own takes that one in place of the own CA.
//! Invariant: a handshake uses files as they are at that moment (client), or as the last successful
//! load found them (server); a bad new file never replaces a good one that is in use; every refusal
//! has a [`Reason`], which is counted.
//! Absent on purpose: revocation lists, and any crypto provider but ring.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

pub use self::{
    client::{ClientOptions, ClientStream, ClientTls},
    metrics::Metrics,
    reason::Reason,
    server::{Paths, RolePaths, ServerStream, ServerTls},
    trust::ClientTrust,
};

mod bundle;
mod client;
pub mod inspect;
mod metrics;
mod reason;
mod server;
#[cfg(test)]
mod tests;
mod trust;

/// The common name of an authenticated client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommonName(Arc<str>);

impl CommonName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the name from a certificate; it must have exactly one, so that no two readers of the
    /// same certificate can see different users.
    ///
    /// # Errors
    /// [`Error::CommonName`] if the certificate cannot be parsed or has none or several.
    pub fn from_certificate(certificate: &[u8]) -> Result<Self, Error> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_cause| Error::CommonName)?;
        let mut names = parsed.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else {
            return Err(Error::CommonName);
        };
        match name.as_str() {
            Ok(text) if !text.is_empty() => Ok(Self(text.into())),
            _ => Err(Error::CommonName),
        }
    }
}

impl From<&str> for CommonName {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for CommonName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why certificates could not be loaded or a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configured file does not exist (yet); waiting for it makes sense.
    #[error("open {path}: no such file")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A configured file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no usable PEM block of the expected sort.
    #[error("find a {what} in {path}; the file must be complete PEM")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Certificates and keys are readable but do not make a configuration.
    #[error("set up TLS from {path}: {}; {}", Reason::of(source), Reason::of(source).next_step())]
    Setup {
        /// The file that is most likely the cause.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A certificate in a configured file cannot be used.
    #[error("use the certificate of {subject} in {path}: {reason}; {}", reason.next_step())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Reason,
        /// The certificate's subject.
        subject: String,
    },
    /// No bundle of system roots was found, and no CA file is configured.
    #[error("find the system's CA certificates; name a CA file instead")]
    NoSystemRoots,
    /// The host part of an endpoint can be in no certificate.
    #[error("use {host:?} as the server's name")]
    ServerName {
        /// The host.
        host: String,
    },
    /// The certificate does not have exactly one common name.
    #[error("read the common name of a client certificate")]
    CommonName,
    /// The handshake as a server failed: no certificate, one that nobody vouches for, or no TLS.
    #[error("accept a TLS client: {reason}; {}", reason.next_step())]
    Accept {
        /// Why, in one word.
        reason: Reason,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The handshake as a client failed.
    #[error("shake hands with {host}")]
    Connect {
        /// The server.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other side did not finish the handshake in time.
    #[error("finish the TLS handshake in time")]
    Timeout,
}

impl Error {
    /// True if a file is missing, so that waiting for it can help.
    #[must_use]
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// With its source, as one line.
    fn line(&self) -> String {
        let source = std::error::Error::source(self);
        source.map_or_else(|| self.to_string(), |source| format!("{self}: {source}"))
    }

    /// The reason in one word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } | Self::Read { .. } | Self::Pem { .. } => Reason::Unreadable,
            Self::Unusable { reason, .. } | Self::Accept { reason, .. } => *reason,
            Self::Setup { source, .. } => Reason::of(source),
            Self::CommonName => Reason::CommonName,
            Self::Timeout => Reason::Timeout,
            Self::Connect { source, .. } => Reason::of_io(source),
            Self::NoSystemRoots | Self::ServerName { .. } => Reason::Protocol,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            path: path.to_owned(),
        },
        _ => Error::Read {
            path: path.to_owned(),
            source,
        },
    })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |_| Error::Pem {
        path: path.to_owned(),
        what: "certificate",
    };
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(error)?;
    if found.is_empty() {
        return Err(Error::Pem {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(found)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_cause| Error::Pem {
        path: path.to_owned(),
        what: "private key",
    })
}

fn roots(path: &Path, pem: &[u8]) -> Result<Arc<rustls::RootCertStore>, Error> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        store.add(certificate).map_err(|source| Error::Setup {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(Arc::new(store))
}
