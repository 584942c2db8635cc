//! CA bundles and certificate chains: parsed, checked against the clock and their purpose.
use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, Reason, certificates, private_key};

/// The CAs of one bundle that were valid when it was read.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    /// One each, as the library does not look at the time of a CA.
    authorities: Vec<Authority>,
    pub(super) roots: Arc<RootCertStore>,
    /// Unix seconds at which the first of its CAs expires.
    pub(super) expiry: i64,
}

#[derive(Debug, Clone)]
struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Unix seconds.
    expiry: i64,
}

impl Bundle {
    /// Takes every CA in `pem` that is valid now.
    ///
    /// # Errors
    /// [`Error::Pem`] without a certificate; [`Error::Unusable`] if one is no CA, or if none is
    /// valid now; [`Error::Setup`] if one cannot be parsed.
    pub(super) fn new(
        path: &Path,
        pem: &[u8],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let setup = |source| Error::Setup {
            path: path.to_owned(),
            source,
        };
        let mut roots = RootCertStore::empty();
        let mut authorities = Vec::new();
        let mut invalid = None;
        for certificate in certificates(path, pem)? {
            let parsed = parse(path, &certificate)?;
            if !may_issue(&parsed) {
                return Err(unusable(path, Reason::WrongUsage, &parsed));
            }
            if let Some(reason) = outside_validity(&parsed) {
                invalid = Some(unusable(path, reason, &parsed));
                continue;
            }
            let expiry = parsed.validity().not_after.timestamp();
            roots.add(certificate.clone()).map_err(setup)?;
            let verifier = verifier(certificate, provider).map_err(setup)?;
            authorities.push(Authority { verifier, expiry });
        }
        if let (true, Some(error)) = (roots.is_empty(), invalid) {
            return Err(error);
        }
        let expiry = authorities.iter().map(|a| a.expiry).min();
        Ok(Self {
            authorities,
            roots: Arc::new(roots),
            expiry: expiry.unwrap_or(i64::MAX),
        })
    }

    /// Verifies a client by any CA that is valid at `now`.
    ///
    /// # Errors
    /// `UnknownIssuer` if none of them issued it, else why it is refused by the one that did.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let unknown = rustls::Error::from(CertificateError::UnknownIssuer);
        let mut refused = unknown.clone();
        for Authority { verifier, expiry } in &self.authorities {
            match verifier.verify_client_cert(leaf, intermediates, now) {
                Ok(verified) if unix_seconds(now) <= *expiry => return Ok(verified),
                Ok(_) => refused = CertificateError::Expired.into(),
                Err(error) if error != unknown => refused = error,
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

/// Verifies clients by one CA.
fn verifier(
    authority: CertificateDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// The server's chain with its key.
///
/// # Errors
/// [`Error::Pem`], or [`Error::Setup`] if they do not belong together.
pub(super) fn certified_key(
    (cert_path, cert): (&Path, &[u8]),
    (key_path, key): (&Path, &[u8]),
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let chain = certificates(cert_path, cert)?;
    let key = private_key(key_path, key)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| Error::Setup {
        path: cert_path.to_owned(),
        source,
    })
}

/// Checks a server's chain as its clients will: issued by `roots`, for a server, valid now.
///
/// # Errors
/// [`Error::Setup`] with the library's reason.
pub(super) fn check_server(
    path: &Path,
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let check = || {
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            roots,
            intermediates,
            UnixTime::now(),
            provider.signature_verification_algorithms.all,
        )
    };
    check().map_err(|source| Error::Setup {
        path: path.to_owned(),
        source,
    })
}

/// Checks a client's certificate as its servers will, but for its issuer: for clients, valid now.
///
/// # Errors
/// [`Error::Unusable`] with the reason; [`Error::Setup`] if it cannot be parsed.
pub(super) fn check_client(path: &Path, leaf: &CertificateDer<'_>) -> Result<(), Error> {
    let leaf = parse(path, leaf)?;
    let usage = leaf.extended_key_usage().ok().flatten();
    let for_clients = usage.is_none_or(|usage| usage.value.client_auth || usage.value.any);
    let reason = if for_clients {
        outside_validity(&leaf)
    } else {
        Some(Reason::WrongUsage)
    };
    reason.map_or(Ok(()), |reason| Err(unusable(path, reason, &leaf)))
}

/// Unix seconds at which the first certificate of a chain expires.
///
/// # Errors
/// [`Error::Setup`] if one cannot be parsed.
pub(super) fn chain_expiry(path: &Path, chain: &[CertificateDer<'_>]) -> Result<i64, Error> {
    chain.iter().try_fold(i64::MAX, |first, certificate| {
        let expiry = parse(path, certificate)?.validity().not_after.timestamp();
        Ok(first.min(expiry))
    })
}

/// The raw subject names of the CAs in a chain, which name the issuers of other certificates.
pub(super) fn intermediate_names(chain: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    let names = chain.iter().skip(1).filter_map(|certificate| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(parsed.subject().as_raw().to_vec())
    });
    names.collect()
}

/// The raw name of a certificate's issuer.
pub(super) fn issuer_name(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.issuer().as_raw().to_vec())
}

fn parse<'a>(
    path: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|_cause| Error::Setup {
            path: path.to_owned(),
            source: CertificateError::BadEncoding.into(),
        })
}

/// CAs from before X.509 v3 say nothing, and are taken.
fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    let basic = certificate.basic_constraints().ok().flatten();
    let usage = certificate.key_usage().ok().flatten();
    let v1 = certificate.version() != x509_parser::x509::X509Version::V3;
    (v1 || basic.is_some_and(|basic| basic.value.ca))
        && usage.is_none_or(|usage| usage.value.key_cert_sign())
}

fn outside_validity(certificate: &X509Certificate<'_>) -> Option<Reason> {
    let now = unix_seconds(UnixTime::now());
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() {
        Some(Reason::Expired)
    } else if now < validity.not_before.timestamp() {
        Some(Reason::NotYetValid)
    } else {
        None
    }
}

fn unix_seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn unusable(path: &Path, reason: Reason, certificate: &X509Certificate<'_>) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason,
        subject: certificate.subject().to_string(),
    }
}
