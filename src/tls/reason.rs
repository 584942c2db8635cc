//! Why certificates or handshakes are refused, in words that metrics, logs and errors share.
use std::io::ErrorKind;

use rustls::{CertificateError, InconsistentKeys, InvalidMessage, PeerIncompatible};

/// Why a certificate, a file or a handshake was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A file is missing, cannot be read or holds no PEM block of the expected sort.
    Unreadable,
    /// A certificate's time is over.
    Expired,
    /// A certificate's time has not begun.
    NotYetValid,
    /// A certificate is for something else: not for clients, not for servers, not for a CA.
    WrongUsage,
    /// The private key does not belong to the certificate.
    KeyMismatch,
    /// No CA that we know issued the certificate.
    UnknownIssuer,
    /// A CA that we know issued it, through an intermediate that was not sent along.
    MissingIntermediate,
    /// A CA that we know issued it, but that one may not vouch for this name.
    MayNotVouch,
    /// The certificate was changed after it was signed, or another CA of the same name signed it.
    BadSignature,
    /// The certificate has no common name or several.
    CommonName,
    /// The client sent no certificate.
    NoCertificate,
    /// The client speaks no version of TLS from 1.2 on.
    Version,
    /// What the client sent is no TLS.
    NotTls,
    /// The client did not finish the handshake in time.
    Timeout,
    /// The client closed the connection before the end of the handshake.
    Closed,
    /// The client broke it off, mostly because it does not trust the server's certificate.
    ByClient,
    /// Anything else: no common cipher, no HTTP/2, a malformed message.
    Protocol,
}

impl Reason {
    /// As a metric's label and a log field.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongUsage => "wrong_key_usage",
            Self::KeyMismatch => "key_mismatch",
            Self::UnknownIssuer => "unknown_issuer",
            Self::MissingIntermediate => "missing_intermediate",
            Self::MayNotVouch => "may_not_vouch",
            Self::BadSignature => "bad_signature",
            Self::CommonName => "common_name",
            Self::NoCertificate => "no_certificate",
            Self::Version => "version",
            Self::NotTls => "not_tls",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::ByClient => "by_client",
            Self::Protocol => "protocol",
        }
    }

    /// What to do about it; a sentence without a full stop.
    #[must_use]
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::Unreadable => "check that the file exists, is PEM and may be read by the agent",
            Self::Expired => "issue a new certificate",
            Self::NotYetValid => "compare the clocks, or wait until the certificate is valid",
            Self::WrongUsage => {
                "issue it with the extended key usage of its side (clientAuth, serverAuth), or as a CA"
            }
            Self::KeyMismatch => "put the certificate beside the key that it was issued for",
            Self::UnknownIssuer => {
                "use a certificate of a CA in the bundle, or add its CA; if an intermediate CA \
                 issued it, put that one behind the certificate in the same file"
            }
            Self::MissingIntermediate => {
                "put the intermediate CA's certificate behind the client's in the same file"
            }
            Self::MayNotVouch => {
                "use a certificate of the CA for this name; a peer's CA vouches for remote-<peer> only"
            }
            Self::BadSignature => "use a CA bundle that holds the CA which really signed it",
            Self::CommonName => "issue a certificate with exactly one common name",
            Self::NoCertificate => "give the client a certificate and its key",
            Self::Version => "let the client use TLS 1.2 or 1.3",
            Self::NotTls => "use https in the client's endpoint",
            Self::Timeout => "look for a slow network or a client that only opens connections",
            Self::Closed => "look at the client's log; port scans and TCP probes do this too",
            Self::ByClient => "give the client the CA that issued this server's certificate",
            Self::Protocol => "compare the client's TLS settings: ciphers, curves, HTTP/2 (h2)",
        }
    }

    /// Of an error of the TLS library.
    pub(super) fn of(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error),
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Self::KeyMismatch,
            // The last is how the library sees a real TLS 1.1 client, before it looks at the version.
            rustls::Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
            ) => Self::Version,
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            rustls::Error::AlertReceived(_) => Self::ByClient,
            _ => Self::Protocol,
        }
    }

    /// Of an error of a connection, which wraps the library's.
    pub(super) fn of_io(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|e| e.downcast_ref());
        match (inner, error.kind()) {
            (Some(error), _) => Self::of(error),
            (
                None,
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe,
            ) => Self::Closed,
            (None, _) => Self::Protocol,
        }
    }

    const fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongUsage
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::BadSignature => Self::BadSignature,
            _ => Self::Protocol,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}
