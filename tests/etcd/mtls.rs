//! `etcdctl` over mutual TLS: the certificate's common name alone decides what it may do.
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tombolo::{
    serve,
    tls::{Paths, ServerTls},
};

use super::{
    Face,
    etcdctl::{is_installed, output},
};

/// Writes `<name>.crt` and `<name>.key`, valid for localhost as server and client.
fn issue(dir: &Path, issuer: &Issuer<'_, KeyPair>, name: &str) {
    let sans = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(sans).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, issuer).unwrap().pem();
    std::fs::write(dir.join(format!("{name}.crt")), pem).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

async fn start(dir: &Path) -> Face {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in [
        "server",
        "admin-west",
        "local-west",
        "remote-east",
        "nobody",
    ] {
        issue(dir, &issuer, name);
    }
    let (cert, key) = (dir.join("server.crt"), dir.join("server.key"));
    let tls = ServerTls::load(Paths {
        cert,
        key,
        ca: dir.join("ca.crt"),
    })
    .unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let accept = move |tcp: TcpStream| {
        let tls = tls.clone();
        async move {
            let (stream, name) = tls.accept(tcp).await?;
            Ok::<_, tombolo::tls::Error>((stream, name.as_str().to_owned()))
        }
    };
    Face::start_with(endpoint, |keyspaces, cancel| {
        tokio::spawn(serve::run(
            listener,
            accept,
            keyspaces,
            "west".parse().unwrap(),
            cancel,
        ))
    })
}

#[tokio::test]
async fn each_common_name_sees_its_own_store() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let face = start(dir.path()).await;
    let stores = &face.keyspaces;
    for (store, value) in [
        (&stores.cluster, "cluster"),
        (&stores.export, "export"),
        (&stores.cache, "cache"),
    ] {
        store
            .put("cilium/.heartbeat".into(), value.into(), 0)
            .unwrap();
    }
    let denied = "etcdserver: permission denied";
    let get: &[&str] = &["get", "cilium/.heartbeat"];
    let put: &[&str] = &["put", "cilium/state/x", "1"];
    let rows = [
        ("admin-west", get, "cluster"),
        ("admin-west", put, "OK"),
        ("local-west", get, "cache"),
        ("local-west", put, denied),
        ("remote-east", get, "export"),
        ("remote-east", put, denied),
        ("nobody", get, denied),
    ];
    for (name, args, expected) in rows {
        let path = |end: &str| dir.path().join(end).display().to_string();
        let (ca, cert, key) = (
            path("ca.crt"),
            path(&format!("{name}.crt")),
            path(&format!("{name}.key")),
        );
        let args = [&["--cacert", &ca, "--cert", &cert, "--key", &key], args].concat();
        let (_, text) = output(&face, &args).await;
        assert!(text.contains(expected), "{name} {args:?}: {text}");
    }
    let (success, _) = output(&face, &["--insecure-skip-tls-verify", "get", "x"]).await;
    assert!(!success, "a client without certificate was let in");
    face.stop().await;
}
