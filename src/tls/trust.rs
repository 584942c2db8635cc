//! Decides which CA may vouch for which client; can change while the server runs.
use std::{collections::BTreeMap, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{CommonName, Error, provider, roots};
use crate::types::ClusterName;

/// The CAs whose client certificates the server takes. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct ClientTrust {
    state: Arc<ArcSwap<State>>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, Clone)]
struct State {
    own: Arc<dyn ClientCertVerifier>,
    peers: BTreeMap<ClusterName, Arc<dyn ClientCertVerifier>>,
}

impl ClientTrust {
    pub(super) fn new(path: &Path, own_pem: &[u8]) -> Result<Self, Error> {
        let provider = provider();
        let own = verifier(path, own_pem, &provider)?;
        let state = State {
            own,
            peers: BTreeMap::new(),
        };
        Ok(Self {
            state: Arc::new(ArcSwap::from_pointee(state)),
            provider,
        })
    }

    pub(super) fn set_own(&self, path: &Path, pem: &[u8]) -> Result<(), Error> {
        let own = verifier(path, pem, &self.provider)?;
        self.state.rcu(|old| State {
            own: Arc::clone(&own),
            peers: old.peers.clone(),
        });
        Ok(())
    }

    /// Lets the CAs in `pem` (read from `path`, which only errors name) vouch for the user
    /// `remote-<peer>` and for no other. Replaces what was set for this peer before.
    ///
    /// # Errors
    /// If `pem` holds no usable CA certificate; the old setting stays then.
    pub fn set_peer(&self, peer: &ClusterName, path: &Path, pem: &[u8]) -> Result<(), Error> {
        let added = verifier(path, pem, &self.provider)?;
        self.state.rcu(|old| {
            let mut new = State::clone(old);
            new.peers.insert(peer.clone(), Arc::clone(&added));
            new
        });
        Ok(())
    }

    /// As [`Self::set_peer`], from a file.
    ///
    /// # Errors
    /// If the file is missing, unreadable or without a CA certificate; the old setting stays then.
    pub fn set_peer_file(&self, peer: &ClusterName, path: &Path) -> Result<(), Error> {
        self.set_peer(peer, path, &super::read(path)?)
    }

    /// Takes the peer's CAs away. Connections that stand are not cut.
    pub fn remove_peer(&self, peer: &ClusterName) {
        self.state.rcu(|old| {
            let mut new = State::clone(old);
            new.peers.remove(peer);
            new
        });
    }
}

fn verifier(
    path: &Path,
    pem: &[u8],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(roots(path, pem)?, Arc::clone(provider))
        .build()
        .map_err(|e| Error::Setup {
            path: path.to_owned(),
            source: rustls::Error::General(e.to_string()),
        })
}

impl ClientCertVerifier for ClientTrust {
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
            rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding)
        })?;
        let state = self.state.load();
        let by_own = state.own.verify_client_cert(end_entity, intermediates, now);
        if by_own.is_ok() {
            return by_own;
        }
        let peer = name
            .as_str()
            .strip_prefix("remote-")
            .and_then(|peer| peer.parse().ok());
        match peer.and_then(|peer: ClusterName| state.peers.get(&peer)) {
            Some(verifier) => verifier.verify_client_cert(end_entity, intermediates, now),
            None => by_own,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
