//! Certificates and handshakes as an operator asks about them: who issued what, until when, and
//! what a server says to a client before anything is read from it.
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{
    ClientStream, ClientTls, CommonName, Error, Reason, bundle, certificates, provider, read,
};

/// The public parts of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Certificate {
    /// In hexadecimal, bytes parted by colons.
    pub serial: String,
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Host names and addresses that it is valid for.
    pub names: Vec<String>,
    /// First moment of its life, Unix seconds.
    pub not_before: i64,
    /// Last moment of its life, Unix seconds.
    pub not_after: i64,
}

/// A handshake that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// `TLS 1.2` or `TLS 1.3`.
    pub version: String,
    /// The cipher suite, as IANA names it.
    pub suite: String,
    /// What the server presented, its own certificate first.
    pub chain: Vec<Certificate>,
}

impl Certificate {
    fn new(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.iter().filter_map(name));
        Some(Self {
            serial: parsed.raw_serial_as_string(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names: names.map(Iterator::collect).unwrap_or_default(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }

    /// The certificates of a PEM file, in its order; what is no certificate is left out.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`], or [`Error::Pem`] without any.
    pub fn all_of(path: &Path) -> Result<Vec<Self>, Error> {
        let found = certificates(path, &read(path)?)?;
        Ok(found.iter().filter_map(Self::new).collect())
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => {
                let v6 = <[u8; 16]>::try_from(*bytes).ok()?;
                Some(std::net::Ipv6Addr::from(v6).to_string())
            }
        },
        _ => None,
    }
}

/// Reads a CA bundle as it would be used: every certificate may issue others, and one at least is
/// valid now.
///
/// # Errors
/// What is wrong with the file.
pub fn check_ca(path: &Path) -> Result<(), Error> {
    bundle::Bundle::new(path, &read(path)?, &provider()).map(drop)
}

/// Reads a client's certificate and key as they would be used: they belong together, the certificate
/// has one common name, is for clients, and valid now. Returns the common name.
///
/// # Errors
/// What is wrong with which file.
pub fn check_client(cert: &Path, key: &Path) -> Result<CommonName, Error> {
    let (cert_pem, key_pem) = (read(cert)?, read(key)?);
    let certified = bundle::certified_key((cert, &cert_pem), (key, &key_pem), &provider())?;
    let [leaf, ..] = certified.cert.as_slice() else {
        return Err(Error::Pem {
            path: cert.to_owned(),
            what: "certificate",
        });
    };
    bundle::check_client(cert, leaf)?;
    CommonName::from_certificate(leaf).map_err(|_cause| Error::Unusable {
        path: cert.to_owned(),
        reason: Reason::CommonName,
        subject: Certificate::new(leaf).map_or_else(String::new, |c| c.subject),
    })
}

/// Whether a CA of the bundle `ca` issued the certificate in `cert`, valid at `now`.
///
/// # Errors
/// The reason why not, or what is wrong with a file.
pub fn check_issuer(cert: &Path, ca: &Path, now: SystemTime) -> Result<(), Error> {
    let chain = certificates(cert, &read(cert)?)?;
    let bundle = bundle::Bundle::new(ca, &read(ca)?, &provider())?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let now = UnixTime::since_unix_epoch(now.unwrap_or_default());
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Ok(());
    };
    let verified = bundle.verify(leaf, intermediates, now);
    verified.map(drop).map_err(|source| Error::Setup {
        path: cert.to_owned(),
        source,
    })
}

impl Session {
    fn of(stream: &ClientStream) -> Self {
        let (_, connection) = stream.get_ref();
        let version = connection.protocol_version();
        let version = version.and_then(|v| v.as_str().map(|text| text.replace("TLSv1_", "TLS 1.")));
        let suite = connection.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str().map(str::to_owned));
        let chain = connection.peer_certificates().unwrap_or_default();
        Self {
            version: version.unwrap_or_default(),
            suite: suite.unwrap_or_default(),
            chain: chain.iter().filter_map(Certificate::new).collect(),
        }
    }
}

impl ClientTls {
    /// Shakes hands, and waits at most `patience` for the server's first byte: in TLS 1.3 it refuses
    /// a client's certificate only after the client is done. An HTTP/2 server speaks first, so the
    /// connection can't be used for anything else then.
    ///
    /// # Errors
    /// As [`Self::connect`]; [`Error::Connect`] also for what the server says afterwards.
    pub async fn probe(
        &self,
        tcp: TcpStream,
        host: &str,
        patience: Duration,
    ) -> Result<Session, Error> {
        let mut stream = self.connect(tcp, host).await?;
        let session = Session::of(&stream);
        match tokio::time::timeout(patience, stream.read_u8()).await {
            Ok(Err(source)) => Err(Error::Connect {
                host: host.to_owned(),
                source,
            }),
            Ok(Ok(_)) | Err(_) => Ok(session),
        }
    }

    /// The certificates that the server presents, whoever issued them; empty if there is no
    /// handshake.
    pub async fn presented(&self, tcp: TcpStream, host: &str) -> Vec<Certificate> {
        let mut options = self.options().clone();
        options.insecure_skip_verify = true;
        let stream = Self::new(options).connect(tcp, host).await;
        stream.map_or_else(|_| Vec::new(), |stream| Session::of(&stream).chain)
    }
}

impl Error {
    /// The server's own word for why it broke the handshake off, if it did.
    #[must_use]
    pub fn alert(&self) -> Option<String> {
        let Self::Connect { source, .. } = self else {
            return None;
        };
        match source.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(
                alert
                    .as_str()
                    .map_or_else(|| format!("{alert:?}"), str::to_owned),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use time::{Duration as Days, OffsetDateTime};

    struct Files {
        dir: tempfile::TempDir,
        issuer: rcgen::Issuer<'static, KeyPair>,
    }

    impl Files {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            std::fs::write(dir.path().join("ca.crt"), pem).unwrap();
            let issuer = rcgen::Issuer::new(params, key);
            Self { dir, issuer }
        }

        fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<String, Error> {
            let mut params = CertificateParams::new(vec!["west.example".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let common = rcgen::DnType::CommonName;
            params.distinguished_name.push(common, "remote-east");
            change(&mut params);
            let key = KeyPair::generate().unwrap();
            let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
            let (cert, key_path) = (self.path("c.crt"), self.path("c.key"));
            std::fs::write(&cert, pem).unwrap();
            std::fs::write(&key_path, key.serialize_pem()).unwrap();
            check_client(&cert, &key_path).map(|name| name.to_string())
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join(name)
        }
    }

    #[test]
    fn a_clients_certificate_is_held_to_what_the_server_will_ask() {
        let files = Files::new();
        let now = OffsetDateTime::now_utc();
        assert_eq!(files.client(|_| {}).unwrap(), "remote-east");
        let usage = |usage| {
            files
                .client(|params| params.extended_key_usages = vec![usage])
                .map_err(|e| e.reason())
        };
        assert!(usage(ExtendedKeyUsagePurpose::ClientAuth).is_ok());
        assert_eq!(
            usage(ExtendedKeyUsagePurpose::ServerAuth),
            Err(Reason::WrongUsage)
        );
        let reason = |result: Result<String, Error>| result.unwrap_err().reason();
        let expired = files.client(|params| params.not_after = now - Days::days(1));
        assert_eq!(reason(expired), Reason::Expired);
        let early = files.client(|params| params.not_before = now + Days::days(1));
        assert_eq!(reason(early), Reason::NotYetValid);
        let nameless = files.client(|p| p.distinguished_name = rcgen::DistinguishedName::new());
        assert_eq!(reason(nameless), Reason::CommonName);
        files.client(|_| {}).unwrap();
        std::fs::write(
            files.path("c.key"),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        let mismatch = check_client(&files.path("c.crt"), &files.path("c.key"));
        assert_eq!(mismatch.unwrap_err().reason(), Reason::KeyMismatch);
    }

    #[test]
    fn issuers_and_public_parts_are_told() {
        let files = Files::new();
        files.client(|_| {}).unwrap();
        let (cert, ca) = (files.path("c.crt"), files.path("ca.crt"));
        check_ca(&ca).unwrap();
        assert_eq!(check_ca(&cert).unwrap_err().reason(), Reason::WrongUsage);
        let now = SystemTime::now();
        check_issuer(&cert, &ca, now).unwrap();
        let other = Files::new().path("ca.crt");
        assert!(
            check_issuer(&cert, &other, now).is_err(),
            "its directory is gone"
        );
        let other = Files::new();
        let error = check_issuer(&cert, &other.path("ca.crt"), now).unwrap_err();
        assert!(matches!(
            error.reason(),
            Reason::BadSignature | Reason::UnknownIssuer
        ));
        let [told] = Certificate::all_of(&cert).unwrap().try_into().unwrap();
        assert_eq!(
            (told.subject.as_str(), told.names.len()),
            ("CN=remote-east", 1)
        );
        assert!(told.serial.contains(':') && told.not_before < told.not_after);
    }
}
