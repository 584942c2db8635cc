//! `etcdctl` over mutual TLS: the certificate's common name alone decides what it may do.
use std::{
    error::Error as StdError,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tombolo::{
    serve,
    tls::{Paths, ServerTls},
};

use super::{
    Face,
    etcdctl::{Watch, is_installed, output, txn},
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

/// How each handshake ended, oldest first: the client's common name, or why it was refused.
#[derive(Clone, Default)]
struct Handshakes(Arc<Mutex<Vec<Result<String, String>>>>);

impl Handshakes {
    fn add(&self, end: Result<String, String>) {
        self.0.lock().unwrap().push(end);
    }

    /// Those since the last call.
    fn take(&self) -> Vec<Result<String, String>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Checks that there were some, that `reason` ended all of them, and that none led to a call.
    /// One that the client broke off at the end of its time has no reason of ours.
    fn assert_refused(&self, what: &str, reason: &str) {
        let mut refusals = 0;
        for end in self.take() {
            let refused = end.expect_err(&format!("{what} was let in"));
            if !refused.contains(BROKEN_OFF) {
                assert!(refused.contains(reason), "{what}: {refused}");
                refusals += 1;
            }
        }
        assert!(refusals > 0, "{what}: no handshake to its end");
    }
}

/// An error with all its causes.
fn chain(mut error: &dyn StdError) -> String {
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text = format!("{text}: {source}");
        error = source;
    }
    text
}

/// Refused clients try again until then; one handshake is enough here.
const QUICKLY: &str = "--command-timeout=1s";
const BROKEN_OFF: &str = "accept a TLS client: closed";
const NO_CERTIFICATE: &str = "no_certificate";
const MAY_NOT_VOUCH: &str = "may_not_vouch";
/// By a CA that has the name of ours, and another key.
const IMPOSTOR: &str = "bad_signature";

async fn start(dir: &Path) -> (Face, Handshakes) {
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
    serve_tls(tls, "west").await
}

async fn serve_tls(tls: ServerTls, cluster: &'static str) -> (Face, Handshakes) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let handshakes = Handshakes::default();
    let seen = handshakes.clone();
    let accept = move |tcp: TcpStream| {
        let (tls, seen) = (tls.clone(), seen.clone());
        async move {
            let accepted = tls.accept(tcp).await;
            let name = accepted.as_ref().map(|(_, name)| name.as_str().to_owned());
            seen.add(name.map_err(|error| chain(error)));
            accepted.map(|(stream, name)| (stream, name.as_str().to_owned()))
        }
    };
    let face = Face::start_with(endpoint, |keyspaces, cancel| {
        let server = serve::Server::new(
            keyspaces,
            cluster.parse().unwrap(),
            serve::Limits::default(),
        );
        tokio::spawn(server.run(listener, accept, cancel))
    });
    (face, handshakes)
}

#[tokio::test]
async fn each_common_name_sees_its_own_store() {
    if !is_installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (face, handshakes) = start(dir.path()).await;
    let stores = &face.keyspaces;
    for (store, value) in [
        (face.cluster(), "cluster"),
        (&face.export(), "export"),
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
        assert_eq!(handshakes.take(), [Ok(name.to_owned())]);
    }
    let ca = format!("--cacert={}", dir.path().join("ca.crt").display());
    let (success, _) = output(&face, &[&ca, QUICKLY, "get", "x"]).await;
    assert!(!success, "a client without certificate was let in");
    handshakes.assert_refused("a client without certificate", NO_CERTIFICATE);
    face.stop().await;
}

/// `tombolo certs` with these arguments.
fn certs(args: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_tombolo"))
        .arg("certs")
        .args(args)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{args:?}: {stderr}");
}

/// What `tombolo certs` makes for two clusters that connect to each other.
struct Mesh(tempfile::TempDir);

impl Mesh {
    fn new() -> Self {
        let mesh = Self(tempfile::tempdir().unwrap());
        mesh.init("cluster1", "one");
        mesh.init("cluster2", "two");
        mesh.issue("one", "peer", "cluster2");
        // Cluster2's CA, misused for the users of cluster1 and of other peers.
        std::fs::create_dir(mesh.0.path().join("forged")).unwrap();
        for file in ["ca.crt", "ca.key"] {
            let [from, to] = ["two", "forged"].map(|dir| mesh.path(&format!("{dir}/{file}")));
            std::fs::copy(from, to).unwrap();
        }
        mesh.init("cluster1", "forged");
        mesh.issue("forged", "vouched", "cluster2");
        mesh.issue("forged", "third", "cluster3");
        // A CA that nobody named to cluster1.
        mesh.init("cluster1", "unknown");
        mesh.issue("unknown", "unvouched", "cluster2");
        mesh
    }

    fn path(&self, end: &str) -> String {
        self.0.path().join(end).display().to_string()
    }

    fn init(&self, cluster: &str, dir: &str) {
        certs(&["init", "--cluster-name", cluster, "--dir", &self.path(dir)]);
    }

    /// `remote-<peer>` by the CA in `dir`.
    fn issue(&self, dir: &str, out: &str, peer: &str) {
        let (dir, out) = (self.path(dir), self.path(out));
        let to = ["--peer", peer, "--endpoint", "https://localhost:2379"];
        certs(&[&["issue", "--dir", &dir, "--out", &out], &to[..]].concat());
    }

    /// Serves cluster1, to which cluster2's CA is a peer's.
    async fn serve(&self) -> (Face, Handshakes) {
        let path = |file: &str| self.0.path().join("one").join(file);
        let tls = ServerTls::load(Paths {
            cert: path("server.crt"),
            key: path("server.key"),
            ca: path("ca.crt"),
        })
        .unwrap();
        let ca = self.0.path().join("two/ca.crt");
        let pem = std::fs::read(&ca).unwrap();
        let peer = "cluster2".parse().unwrap();
        tls.trust().set_peer(&peer, &ca, &pem).unwrap();
        serve_tls(tls, "cluster1").await
    }

    /// The flags of a client with the certificate `<identity>.crt`.
    fn flags(&self, identity: &str) -> [String; 3] {
        [
            format!("--cacert={}", self.path("one/ca.crt")),
            format!("--cert={}", self.path(&format!("{identity}.crt"))),
            format!("--key={}", self.path(&format!("{identity}.key"))),
        ]
    }

    async fn output(&self, face: &Face, identity: &str, args: &[&str]) -> (bool, String) {
        let flags = self.flags(identity);
        let flags = flags.each_ref().map(String::as_str);
        output(face, &[&flags, args].concat()).await
    }
}

#[tokio::test]
async fn the_admin_does_everything_with_certificates_of_our_making() {
    if !is_installed() {
        return;
    }
    let mesh = Mesh::new();
    let (face, _) = mesh.serve().await;
    let flags = mesh.flags("one/admin");
    let flags = flags.each_ref().map(String::as_str);
    let watch = ["watch", "--prefix", "--rev=1", "a/"];
    let mut watch = Watch::start(&face, &[&flags[..], &watch].concat());
    let admin = async |args: &[&str]| {
        let (success, text) = mesh.output(&face, "one/admin", args).await;
        assert!(success, "{args:?}: {text}");
        text
    };

    assert_eq!(admin(&["put", "a/1", "x"]).await, "OK\n");
    watch.expect(["PUT", "a/1", "x"]).await;

    let granted = admin(&["lease", "grant", "60"]).await;
    let lease = granted.split(' ').nth(1).unwrap();
    let with_lease = format!("--lease={lease}");
    assert_eq!(admin(&["put", &with_lease, "a/2", "y"]).await, "OK\n");
    watch.expect(["PUT", "a/2", "y"]).await;
    assert_eq!(admin(&["get", "--prefix", "a/"]).await, "a/1\nx\na/2\ny\n");
    let revoked = admin(&["lease", "revoke", lease]).await;
    assert!(revoked.contains("revoked"), "{revoked}");
    watch.expect(["DELETE", "a/2", ""]).await;
    assert_eq!(admin(&["get", "--prefix", "a/"]).await, "a/1\nx\n");

    let script = "val(\"a/1\") = \"x\"\n\nput a/3 z\n\nget a/1\n\n";
    assert_eq!(txn(&face, &flags, script).await, "SUCCESS\n\nOK");
    watch.expect(["PUT", "a/3", "z"]).await;
    drop(watch);
    face.stop().await;
}

#[tokio::test]
async fn everyone_else_is_refused_with_certificates_of_our_making() {
    if !is_installed() {
        return;
    }
    let mesh = Mesh::new();
    let (face, handshakes) = mesh.serve().await;
    let key = "cilium/state/x";
    let stores = &face.keyspaces;
    face.export().put(key.into(), "old".into(), 0).unwrap();
    let export = face.export();
    let revisions = || [face.cluster(), &export, &stores.cache].map(|s| s.revision());
    let before = revisions();

    let state: &[&str] = &["get", "--prefix", "cilium/state/"];
    // The second by cluster2's own CA, which is therefore seen to be trusted.
    for identity in ["peer/cluster1-client", "vouched/cluster1-client"] {
        let (success, text) = mesh.output(&face, identity, state).await;
        assert!(success && text.contains("old"), "{identity}: {text}");
        assert_eq!(handshakes.take(), [Ok("remote-cluster2".to_owned())]);
    }
    let rows: [(&str, &[&str]); 6] = [
        ("peer/cluster1-client", &["put", key, "new"]),
        (
            "peer/cluster1-client",
            &["get", "--prefix", "cilium/cluster-config/"],
        ),
        (
            "peer/cluster1-client",
            &["get", "--prefix", "cilium/cache/"],
        ),
        ("peer/cluster1-client", &["get", "--prefix", ""]),
        ("one/local", &["put", key, "new"]),
        ("one/local", state),
    ];
    for (identity, args) in rows {
        let (success, text) = mesh.output(&face, identity, args).await;
        let denied = text.contains("etcdserver: permission denied");
        assert!(!success && denied, "{identity} {args:?}: {text}");
    }

    // These end in the handshake, and nothing is called.
    handshakes.take();
    let put: &[&str] = &[QUICKLY, "put", key, "new"];
    let get: &[&str] = &[QUICKLY, "get", key];
    for args in [put, get] {
        let ca = format!("--cacert={}", mesh.path("one/ca.crt"));
        let (success, text) = output(&face, &[&[ca.as_str()], args].concat()).await;
        assert!(!success, "no certificate {args:?}: {text}");
        handshakes.assert_refused("no certificate", NO_CERTIFICATE);
    }
    for (identity, args, reason) in [
        // admin-cluster1, local-cluster1, remote and remote-cluster3 by cluster2's CA
        ("forged/admin", put, MAY_NOT_VOUCH),
        ("forged/admin", get, MAY_NOT_VOUCH),
        ("forged/local", get, MAY_NOT_VOUCH),
        ("forged/remote", get, MAY_NOT_VOUCH),
        ("third/cluster1-client", get, MAY_NOT_VOUCH),
        // admin-cluster1 and remote-cluster2 by an unknown CA
        ("unknown/admin", put, IMPOSTOR),
        ("unvouched/cluster1-client", get, IMPOSTOR),
    ] {
        let (success, text) = mesh.output(&face, identity, args).await;
        assert!(!success, "{identity} {args:?}: {text}");
        handshakes.assert_refused(identity, reason);
    }
    let (_, text) = mesh
        .output(&face, "peer/cluster1-client", &["get", key])
        .await;
    assert_eq!(text, "cilium/state/x\nold\n");
    assert_eq!(revisions(), before, "something was written");
    face.stop().await;
}
