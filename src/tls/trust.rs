//! Decides which CA may vouch for which client; can change while the server runs.
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{
    CommonName, Error, Metrics, Reason, bundle,
    bundle::{Bundle, issuer_name},
    certificates,
};
use crate::types::ClusterName;

/// The CAs whose client certificates the server takes. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct ClientTrust {
    state: Arc<ArcSwap<State>>,
    provider: Arc<CryptoProvider>,
    metrics: Metrics,
    /// What is wrong with the files of peers that are not in use.
    refused: Arc<Mutex<BTreeMap<ClusterName, String>>>,
}

/// What the server's own files say.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) bundle: Bundle,
    /// In place of `bundle` for the users of these roles.
    pub(super) roles: BTreeMap<Role, Bundle>,
    /// Raw names of the CAs in the server's own chain.
    pub(super) intermediates: Vec<Vec<u8>>,
}

/// Users by the first part of their common name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Admin,
    Local,
    Remote,
}

impl Role {
    /// As a metric's label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Admin => "admin-ca",
            Self::Local => "local-ca",
            Self::Remote => "remote-ca",
        }
    }

    fn of(name: &CommonName) -> Option<Self> {
        let (first, _) = name.as_str().split_once('-').unwrap_or((name.as_str(), ""));
        match first {
            "admin" => Some(Self::Admin),
            "local" => Some(Self::Local),
            "remote" => Some(Self::Remote),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
struct State {
    own: Own,
    peers: BTreeMap<ClusterName, Bundle>,
}

impl ClientTrust {
    pub(super) fn new(own: Own, provider: Arc<CryptoProvider>, metrics: Metrics) -> Self {
        let peers = BTreeMap::new();
        let state = Arc::new(ArcSwap::from_pointee(State { own, peers }));
        Self {
            state,
            provider,
            metrics,
            refused: Arc::default(),
        }
    }

    pub(super) fn set_own(&self, own: &Own) {
        self.state.rcu(|old| State {
            own: own.clone(),
            peers: old.peers.clone(),
        });
    }

    /// Lets the CAs in `pem` (read from `path`, which only errors name) vouch for the user
    /// `remote-<peer>` and for no other. Replaces what was set for this peer before.
    ///
    /// # Errors
    /// If `pem` holds no CA certificate that is valid now; the old setting stays then.
    pub fn set_peer(&self, peer: &ClusterName, path: &Path, pem: &[u8]) -> Result<(), Error> {
        let added = Bundle::new(path, pem, &self.provider)?;
        self.metrics.set_expiry(peer.as_str(), "ca", added.expiry);
        self.state.rcu(|old| {
            let mut new = State::clone(old);
            new.peers.insert(peer.clone(), added.clone());
            new
        });
        Ok(())
    }

    /// Reads a peer's files, to be called again and again: its CA bundle, as [`Self::set_peer`], and
    /// the certificate that we present to it, whose expiry the metrics show. Missing files are
    /// waited for; a bad bundle is told once, and the old one stays in use.
    pub fn follow_peer(&self, peer: &ClusterName, ca: Option<&Path>, cert: Option<&Path>) {
        if let Some(path) = cert
            && let Err(error) = self.show_expiry(peer, path)
        {
            tracing::debug!(clusterName = %peer, %error, "expiry of client certificate unknown");
        }
        let Some(path) = ca else { return };
        let set = super::read(path).and_then(|pem| self.set_peer(peer, path, &pem));
        let error = match set {
            Err(error) if !error.is_missing() => error,
            _ => {
                self.refused().remove(peer);
                return;
            }
        };
        self.metrics.reload_refused(error.reason());
        let line = error.line();
        if self.refused().insert(peer.clone(), line.clone()) != Some(line) {
            tracing::warn!(
                clusterName = %peer,
                reason = %error.reason(),
                error = &error as &dyn std::error::Error,
                "CA of remote cluster refused for its clients, an old one stays in use"
            );
        }
    }

    fn show_expiry(&self, peer: &ClusterName, path: &Path) -> Result<(), Error> {
        let chain = certificates(path, &super::read(path)?)?;
        let expiry = bundle::chain_expiry(path, &chain)?;
        self.metrics.set_expiry(peer.as_str(), "client", expiry);
        Ok(())
    }

    /// What is wrong with bundles of peers that are not in use, one line each.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        self.refused().values().cloned().collect()
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<ClusterName, String>> {
        // A panic elsewhere leaves single lines behind, never half of one.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the peer's CAs away. Connections that stand are not cut.
    pub fn remove_peer(&self, peer: &ClusterName) {
        self.metrics.forget_peer(peer.as_str());
        self.refused().remove(peer);
        self.state.rcu(|old| {
            let mut new = State::clone(old);
            new.peers.remove(peer);
            new
        });
    }

    /// A verifier for one handshake, which remembers what it saw.
    pub(super) fn witness(&self) -> Arc<Witness> {
        Arc::new(Witness {
            state: self.state.load_full(),
            provider: Arc::clone(&self.provider),
            claimed: OnceLock::new(),
            reason: OnceLock::new(),
        })
    }
}

impl State {
    /// The bundles that may vouch for this user.
    fn entitled(&self, name: &CommonName) -> [Option<&Bundle>; 2] {
        let role = Role::of(name).and_then(|role| self.own.roles.get(&role));
        let peer = name.as_str().strip_prefix("remote-");
        let peer = peer.and_then(|peer| peer.parse().ok());
        let peer = peer.and_then(|peer: ClusterName| self.peers.get(&peer));
        [Some(role.unwrap_or(&self.own.bundle)), peer]
    }

    /// All bundles, whomever they may vouch for.
    fn all(&self) -> impl Iterator<Item = &Bundle> {
        std::iter::once(&self.own.bundle)
            .chain(self.own.roles.values())
            .chain(self.peers.values())
    }

    /// Tells apart why no entitled CA issued the certificate.
    fn why_unknown(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Reason {
        let verifies = |bundle: &Bundle| bundle.verify(leaf, intermediates, now).is_ok();
        if self.all().any(verifies) {
            return Reason::MayNotVouch;
        }
        let last = intermediates.last().unwrap_or(leaf);
        match issuer_name(last) {
            Some(name) if self.own.intermediates.contains(&name) => Reason::MissingIntermediate,
            _ => Reason::UnknownIssuer,
        }
    }
}

/// Verifies the client of one handshake, by the trust as it was at its begin.
#[derive(Debug)]
pub(super) struct Witness {
    state: Arc<State>,
    provider: Arc<CryptoProvider>,
    claimed: OnceLock<CommonName>,
    reason: OnceLock<Reason>,
}

impl Witness {
    /// The name in the client's certificate, verified or not.
    pub(super) fn claimed(&self) -> Option<CommonName> {
        self.claimed.get().cloned()
    }

    /// Why the certificate was refused, where that is more than the library's error tells.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    fn refuse(&self, reason: Reason, error: rustls::Error) -> rustls::Error {
        // A handshake fails once, so the first reason is the only one.
        self.reason.get_or_init(|| reason);
        error
    }

    fn signature<T>(&self, verified: Result<T, rustls::Error>) -> Result<T, rustls::Error> {
        verified.map_err(|error| self.refuse(Reason::KeyMismatch, error))
    }
}

impl ClientCertVerifier for Witness {
    /// Empty: Go clients send no certificate at all if theirs is from a CA that is not listed, and
    /// the list would tell strangers who our peers are.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let name = CommonName::from_certificate(end_entity).map_err(|_cause| {
            self.refuse(Reason::CommonName, CertificateError::BadEncoding.into())
        })?;
        let name = self.claimed.get_or_init(|| name);
        let unknown = rustls::Error::from(CertificateError::UnknownIssuer);
        let mut refused = unknown.clone();
        for bundle in self.state.entitled(name).into_iter().flatten() {
            match bundle.verify(end_entity, intermediates, now) {
                Ok(verified) => return Ok(verified),
                // The one that knows the issuer says more.
                Err(error) if error != unknown => refused = error,
                Err(_) => {}
            }
        }
        if refused != unknown {
            return Err(refused);
        }
        let reason = self.state.why_unknown(end_entity, intermediates, now);
        let refused = match reason {
            Reason::MayNotVouch => CertificateError::ApplicationVerificationFailure.into(),
            _ => unknown,
        };
        Err(self.refuse(reason, refused))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.signature(verify_tls12_signature(
            message,
            certificate,
            signature,
            algorithms,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.signature(verify_tls13_signature(
            message,
            certificate,
            signature,
            algorithms,
        ))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
