use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Ca {
        pem,
        issuer: Issuer::new(params, key),
    }
}

impl Ca {
    /// Writes `<file>.crt` and `<file>.key` for the common names `names`.
    fn issue(&self, dir: &Path, file: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(dir.join(format!("{file}.crt")), pem).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn client(&self, dir: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
        self.issue(dir, name, &[name], ExtendedKeyUsagePurpose::ClientAuth);
        Some((
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        ))
    }
}

fn server(dir: &Path, own: &Ca) -> ServerTls {
    own.issue(
        dir,
        "server",
        &["server"],
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    std::fs::write(dir.join("ca.crt"), &own.pem).unwrap();
    ServerTls::load(paths(dir)).unwrap()
}

fn paths(dir: &Path) -> Paths {
    Paths {
        cert: dir.join("server.crt"),
        key: dir.join("server.key"),
        ca: dir.join("ca.crt"),
    }
}

/// One handshake and one byte; the user the server saw, or `None` if it refused.
async fn user(server: &ServerTls, options: ClientOptions) -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let (mut stream, name) = server.accept(tcp).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.shutdown().await.ok()?;
        Some(name.as_str().to_owned())
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        // In TLS 1.3 a refusal of the client's certificate shows at the first read only.
        if let Ok(mut stream) = ClientTls::new(options).connect(tcp, "localhost").await {
            drop(stream.read(&mut [0; 1]).await);
        }
    };
    tokio::join!(accept, connect).0
}

#[tokio::test]
async fn own_ca_vouches_for_all_and_a_peers_ca_for_its_remote_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let (own, east, stranger) = (ca("own"), ca("east"), ca("stranger"));
    let server = server(dir.path(), &own);
    let east_name = "east".parse().unwrap();
    server
        .trust()
        .set_peer(&east_name, Path::new("east"), east.pem.as_bytes())
        .unwrap();

    let cases = [
        (None, None),
        (own.client(dir.path(), "admin-here"), Some("admin-here")),
        (own.client(dir.path(), "remote"), Some("remote")),
        (own.client(dir.path(), "remote-east"), Some("remote-east")),
        (east.client(dir.path(), "remote-east"), Some("remote-east")),
        (east.client(dir.path(), "remote-west"), None),
        (east.client(dir.path(), "remote"), None),
        (east.client(dir.path(), "admin-here"), None),
        (east.client(dir.path(), "local-here"), None),
        (stranger.client(dir.path(), "remote-east"), None),
    ];
    for (index, (identity, expected)) in cases.into_iter().enumerate() {
        // Later cases overwrite files of the same name, so each is issued and used at once.
        let identity = identity.map(|(cert, key)| {
            let name = cert.file_stem().unwrap().to_str().unwrap().to_owned();
            let signer = match index {
                ..=3 => &own,
                4..=8 => &east,
                _ => &stranger,
            };
            signer.issue(
                dir.path(),
                &name,
                &[&name],
                ExtendedKeyUsagePurpose::ClientAuth,
            );
            (cert, key)
        });
        let options = ClientOptions {
            ca: Some(dir.path().join("ca.crt")),
            identity,
            ..Default::default()
        };
        assert_eq!(
            user(&server, options).await.as_deref(),
            expected,
            "case {index}"
        );
    }

    server.trust().remove_peer(&east_name);
    let options = ClientOptions {
        ca: Some(dir.path().join("ca.crt")),
        identity: east.client(dir.path(), "remote-east"),
        ..Default::default()
    };
    assert_eq!(user(&server, options).await, None);
}

#[tokio::test]
async fn certificates_for_servers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let own = ca("own");
    let server = server(dir.path(), &own);
    own.issue(
        dir.path(),
        "s",
        &["remote"],
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    let identity = Some((dir.path().join("s.crt"), dir.path().join("s.key")));
    let options = ClientOptions {
        ca: Some(dir.path().join("ca.crt")),
        identity,
        ..Default::default()
    };
    assert_eq!(user(&server, options).await, None);
}

#[tokio::test]
async fn client_verifies_the_server_unless_told_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (ca("own"), ca("other"));
    let server = server(dir.path(), &own);
    std::fs::write(dir.path().join("other.crt"), &other.pem).unwrap();
    let mut options = ClientOptions {
        ca: Some(dir.path().join("other.crt")),
        identity: own.client(dir.path(), "remote"),
        ..Default::default()
    };
    assert_eq!(user(&server, options.clone()).await, None);
    options.insecure_skip_verify = true;
    assert_eq!(
        user(&server, options.clone()).await.as_deref(),
        Some("remote")
    );
    options.insecure_skip_verify = false;
    options.ca = Some(dir.path().join("ca.crt"));
    options.server_name = Some("elsewhere".to_owned());
    assert_eq!(user(&server, options).await, None);
}

#[test]
fn missing_files_are_told_from_bad_ones_and_a_bad_reload_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let own = ca("own");
    let error = ServerTls::load(paths(dir.path())).unwrap_err();
    assert!(error.is_missing(), "{error}");
    let server = server(dir.path(), &own);
    assert!(!server.reload().unwrap());
    std::fs::write(dir.path().join("server.crt"), "half").unwrap();
    assert!(matches!(
        server.reload(),
        Err(Error::Pem {
            what: "certificate",
            ..
        })
    ));
    own.issue(
        dir.path(),
        "server",
        &["server"],
        ExtendedKeyUsagePurpose::ServerAuth,
    );
    assert!(server.reload().unwrap());
}

/// Each bad new file is refused with its reason, counted, and the old ones stay in use.
#[tokio::test]
async fn bad_new_files_are_refused_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (ca("own"), ca("other"));
    let server = server(dir.path(), &own);
    let registry = prometheus::Registry::new();
    server.metrics().register(&registry).unwrap();
    let day = time::Duration::days(1);
    let now = time::OffsetDateTime::now_utc();
    let made = |issuer: &Ca, change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &issuer.issuer).unwrap().pem();
        (pem, key.serialize_pem())
    };
    let good = made(&own, &|_| {});
    let old_ca = {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = now - day;
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
    };
    let with = |pair: (String, String)| (pair.0, pair.1, own.pem.clone());
    let for_clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let rows = [
        (with(("half".into(), good.1.clone())), Reason::Unreadable),
        (with((good.0.clone(), "half".into())), Reason::Unreadable),
        (
            (good.0.clone(), good.1.clone(), String::new()),
            Reason::Unreadable,
        ),
        (
            with(made(&own, &|p| p.not_after = now - day)),
            Reason::Expired,
        ),
        (
            with(made(&own, &|p| p.not_before = now + day)),
            Reason::NotYetValid,
        ),
        (with(made(&own, &for_clients)), Reason::WrongUsage),
        (with(made(&other, &|_| {})), Reason::UnknownIssuer),
        (
            with((good.0.clone(), made(&own, &|_| {}).1)),
            Reason::KeyMismatch,
        ),
        ((good.0.clone(), good.1.clone(), old_ca), Reason::Expired),
        (
            (good.0.clone(), good.1.clone(), good.0.clone()),
            Reason::WrongUsage,
        ),
    ];
    let client = own.client(dir.path(), "admin-here");
    std::fs::write(dir.path().join("trusted.crt"), &own.pem).unwrap();
    let options = ClientOptions {
        ca: Some(dir.path().join("trusted.crt")),
        identity: client,
        ..Default::default()
    };
    for ((cert, key, ca), reason) in rows {
        std::fs::write(dir.path().join("server.crt"), cert).unwrap();
        std::fs::write(dir.path().join("server.key"), key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), ca).unwrap();
        let error = server.reload().unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        let said = server.refused().unwrap();
        let file = dir.path().display().to_string();
        assert!(said.contains(&file), "names the file: {said}");
        assert_eq!(
            user(&server, options.clone()).await.as_deref(),
            Some("admin-here")
        );
    }
    std::fs::remove_file(dir.path().join("server.key")).unwrap();
    assert_eq!(server.reload().unwrap_err().reason(), Reason::Unreadable);

    let text = || {
        let families = registry.gather();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .unwrap()
    };
    let refused = "tombolo_tls_reloads_refused_total{reason=\"unreadable\"} 4";
    assert!(text().contains(refused), "{}", text());
    let (cert, key) = made(&own, &|p| p.not_after = now + day);
    std::fs::write(dir.path().join("server.crt"), cert).unwrap();
    std::fs::write(dir.path().join("server.key"), key).unwrap();
    std::fs::write(dir.path().join("ca.crt"), &own.pem).unwrap();
    assert!(server.reload().unwrap());
    assert_eq!(server.refused(), None);
    let expiry = (now + day).unix_timestamp();
    let line = format!(
        "tombolo_certificate_expiry_timestamp_seconds{{peer=\"\",role=\"server\"}} {expiry}\n"
    );
    assert!(text().contains(&line), "{line} in {}", text());
}

#[tokio::test]
async fn a_peers_expiry_is_shown_while_it_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let (own, east) = (ca("own"), ca("east"));
    let server = server(dir.path(), &own);
    let registry = prometheus::Registry::new();
    server.metrics().register(&registry).unwrap();
    let name = "east".parse().unwrap();
    let trust = server.trust();
    trust
        .set_peer(&name, Path::new("east"), east.pem.as_bytes())
        .unwrap();
    let (cert, _) = east.client(dir.path(), "remote-own").unwrap();
    trust.follow_peer(&name, None, Some(&cert));
    let shown = || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        text.unwrap().matches("{peer=\"east\",role=").count()
    };
    assert_eq!(shown(), 2);
    trust.remove_peer(&name);
    assert_eq!(shown(), 0);
}

#[test]
fn a_bad_bundle_of_a_peer_is_told_and_the_old_one_stays_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (own, east) = (ca("own"), ca("east"));
    let server = server(dir.path(), &own);
    let (trust, name) = (server.trust(), "east".parse().unwrap());
    let path = dir.path().join("east-ca.crt");
    let (cert, _) = east.client(dir.path(), "remote-east").unwrap();
    let leaf = certificates(&cert, &read(&cert).unwrap()).unwrap();
    let vouched = || {
        let verified = verify(&trust, &leaf[0], rustls::pki_types::UnixTime::now());
        verified.is_ok()
    };
    trust.follow_peer(&name, Some(&path), None);
    assert!(
        !vouched() && trust.refusals().is_empty(),
        "waits for the file"
    );
    std::fs::write(&path, &east.pem).unwrap();
    trust.follow_peer(&name, Some(&path), None);
    assert!(vouched());
    std::fs::write(&path, "half").unwrap();
    trust.follow_peer(&name, Some(&path), None);
    assert!(vouched());
    let refusals = trust.refusals();
    assert!(
        refusals.len() == 1 && refusals[0].contains("east-ca.crt"),
        "{refusals:?}"
    );
    std::fs::write(&path, &east.pem).unwrap();
    trust.follow_peer(&name, Some(&path), None);
    assert!(vouched() && trust.refusals().is_empty());
}

/// The library would let a CA vouch for ever.
#[test]
fn a_ca_vouches_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = time::OffsetDateTime::now_utc() + hour;
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let own = Ca { pem, issuer };
    let trust = server(dir.path(), &own).trust();
    let (cert, _) = own.client(dir.path(), "admin-here").unwrap();
    let leaf = certificates(&cert, &read(&cert).unwrap()).unwrap();
    let at = |ahead: std::time::Duration| {
        let now = std::time::SystemTime::now() + ahead;
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        rustls::pki_types::UnixTime::since_unix_epoch(since)
    };
    verify(&trust, &leaf[0], at(hour / 2)).unwrap();
    let error = verify(&trust, &leaf[0], at(hour * 2)).unwrap_err();
    assert_eq!(Reason::of(&error), Reason::Expired);
}

fn verify(
    trust: &ClientTrust,
    leaf: &CertificateDer<'_>,
    now: rustls::pki_types::UnixTime,
) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
    use rustls::server::danger::ClientCertVerifier as _;
    trust.witness().verify_client_cert(leaf, &[], now)
}
