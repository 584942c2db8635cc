//! CA bundles and certificate chains: parsed, checked against the clock and their purpose.
use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, Reason, certificates, private_key};

/// The CAs of one bundle that are valid now, as a verifier of clients.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) roots: Arc<RootCertStore>,
    /// Unix seconds at which the first of its CAs expires.
    pub(super) expiry: i64,
}

impl Bundle {
    /// Takes every CA in `pem` that is valid now; the library would not look at their time again.
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
        let mut expiry = i64::MAX;
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
            expiry = expiry.min(parsed.validity().not_after.timestamp());
            roots.add(certificate).map_err(setup)?;
        }
        if let (true, Some(error)) = (roots.is_empty(), invalid) {
            return Err(error);
        }
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
                .build()
                .map_err(|error| setup(rustls::Error::General(error.to_string())))?;
        Ok(Self {
            verifier,
            roots,
            expiry,
        })
    }
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
            source: rustls::CertificateError::BadEncoding.into(),
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
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() {
        Some(Reason::Expired)
    } else if now < validity.not_before.timestamp() {
        Some(Reason::NotYetValid)
    } else {
        None
    }
}

fn unusable(path: &Path, reason: Reason, certificate: &X509Certificate<'_>) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason,
        subject: certificate.subject().to_string(),
    }
}
