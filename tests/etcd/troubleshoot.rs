//! Goal: `tombolo troubleshoot` names the layer that is broken, and calls nothing above it good.
//! Method: the binary, as an operator runs it, against a real etcd over mTLS whose users are common
//! names; each fault is produced where it would be: in the file, the network, the certificates or
//! the keyspace.
use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rcgen::SanType;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tombolo::test_support::eventually;

use super::{
    real::{Etcd, Release, own_address},
    tls::{Ca, Leaf},
};

/// All layers, lowest first, as the output names them.
const LAYERS: [&str; 8] = [
    "File",
    "Name resolution",
    "TCP",
    "TLS",
    "Authorization",
    "Cluster-config",
    "Canaries",
    "Heartbeat",
];

/// An etcd that asks for certificates, and the directory of peer files of cluster `own`.
struct World {
    dir: tempfile::TempDir,
    ca: Ca,
    address: SocketAddr,
    child: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn write(dir: &Path, name: &str, leaf: &Leaf) {
    std::fs::write(dir.join(format!("{name}.crt")), &leaf.chain).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), &leaf.key).unwrap();
}

impl World {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("peer");
        let address = own_address();
        let server = ca.issue("server", |params| {
            params
                .subject_alt_names
                .push(SanType::IpAddress(address.ip()));
        });
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("peers")).unwrap();
        std::fs::write(at("ca.crt"), &ca.pem).unwrap();
        write(dir.path(), "server", &server);
        write(dir.path(), "root", &ca.client("root"));
        write(dir.path(), "remote-own", &ca.client("remote-own"));
        let url = format!("https://{address}");
        let peer_url = format!("http://{}", own_address());
        let child = Command::new(Release::V3_4.etcd())
            .args(["--data-dir".as_ref(), at("data").as_os_str()])
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(["--cert-file".as_ref(), at("server.crt").as_os_str()])
            .args(["--key-file".as_ref(), at("server.key").as_os_str()])
            .args(["--trusted-ca-file".as_ref(), at("ca.crt").as_os_str()])
            .arg("--client-cert-auth")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let world = Self {
            dir,
            ca,
            address,
            child,
        };
        world.fill();
        world
    }

    /// Users as Cilium makes them, and the keys of clusters `good`, `west` and `silent`.
    fn fill(&self) {
        eventually(Duration::from_secs(20), || {
            anyhow::ensure!(
                self.etcdctl(&["endpoint", "health"]),
                "etcd does not answer"
            );
            Ok(())
        })
        .unwrap();
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
        self.put("cilium/.heartbeat", &now);
        for cluster in ["good", "silent"] {
            let config = r#"{"id":7,"capabilities":{"syncedCanaries":true}}"#;
            self.put(&format!("cilium/cluster-config/{cluster}"), config);
            for kind in ["nodes", "identities", "services"] {
                self.put(
                    &format!("cilium/synced/{cluster}/cilium/state/{kind}/v1"),
                    &now,
                );
            }
        }
        self.put("cilium/synced/good/cilium/state/ip/v1", &now);
        for words in [
            &["user", "add", "root", "--no-password"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "remote"],
            &[
                "role",
                "grant-permission",
                "--prefix",
                "remote",
                "read",
                "cilium/",
            ],
            &["user", "add", "remote-own", "--no-password"],
            &["user", "grant-role", "remote-own", "remote"],
            &["auth", "enable"],
        ] {
            assert!(self.etcdctl(words), "{words:?}");
        }
    }

    fn etcdctl(&self, words: &[&str]) -> bool {
        let at = |name: &str| self.dir.path().join(name);
        let status = Command::new(Release::V3_4.etcdctl())
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &format!("https://{}", self.address)])
            .args(["--cacert".as_ref(), at("ca.crt").as_os_str()])
            .args(["--cert".as_ref(), at("root.crt").as_os_str()])
            .args(["--key".as_ref(), at("root.key").as_os_str()])
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    }

    fn put(&self, key: &str, value: &str) {
        assert!(self.etcdctl(&["put", key, value]), "{key}");
    }

    /// A good file for this peer.
    fn file(&self) -> String {
        self.file_as(&format!("https://{}", self.address), "ca.crt", "remote-own")
    }

    fn file_as(&self, endpoint: &str, ca: &str, user: &str) -> String {
        let dir = self.dir.path().display();
        format!(
            "endpoints: [\"{endpoint}\"]\ntrusted-ca-file: {dir}/{ca}\n\
             cert-file: {dir}/{user}.crt\nkey-file: {dir}/{user}.key\n"
        )
    }

    fn configure(&self, peer: &str, text: &str) {
        std::fs::write(self.dir.path().join("peers").join(peer), text).unwrap();
    }

    /// Exit code and output.
    fn troubleshoot(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_tombolo"))
            .args(["--socket-path", "/nowhere/tombolo.sock", "troubleshoot"])
            .args([
                "--cluster-name",
                "own",
                "--cluster-id",
                "1",
                "--timeout",
                "2",
            ])
            .args([
                "--clustermesh-config".as_ref(),
                self.dir.path().join("peers").as_os_str(),
            ])
            .args(words)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.code(), text)
    }

    /// The first bad layer is this one, for this reason; all below it are good and none above.
    fn assert_fails(&self, peer: &str, layer: &str, reason: &str) {
        let (code, text) = self.troubleshoot(&[peer]);
        assert_eq!(code, Some(1), "{text}");
        let place = LAYERS.iter().position(|known| *known == layer).unwrap();
        let steps = text.lines().filter_map(|line| {
            let (mark, rest) = line.strip_prefix("  ")?.split_once(' ')?;
            let (layer, rest) = rest.split_once(": ")?;
            ["✅", "❌", "➖"]
                .contains(&mark)
                .then_some((mark, layer, rest))
        });
        let steps: Vec<_> = steps.collect();
        for (index, known) in LAYERS.iter().enumerate() {
            let found = steps.iter().find(|(_, layer, _)| layer == known);
            let expected = match index.cmp(&place) {
                std::cmp::Ordering::Less => "✅",
                std::cmp::Ordering::Equal => "❌",
                // Without a file there is no endpoint whose layers could be listed.
                std::cmp::Ordering::Greater if place == 0 => {
                    assert_eq!(found, None, "{text}");
                    continue;
                }
                std::cmp::Ordering::Greater => "➖",
            };
            assert_eq!(
                found.map(|(mark, ..)| *mark),
                Some(expected),
                "{known}: {text}"
            );
        }
        let bad = steps.iter().find(|(mark, ..)| *mark == "❌").unwrap();
        assert!(bad.2.contains(reason), "{reason}: {text}");
        let next = text.lines().skip_while(|line| !line.contains('❌'));
        assert!(
            next.into_iter().any(|line| line.trim().starts_with("💡 ")),
            "{text}"
        );
        let (_, below) = text.split_once('❌').unwrap();
        assert!(!below.contains('✅'), "{text}");
    }
}

#[test]
fn a_good_peer_is_good_in_all_layers() {
    if !Release::V3_4.is_installed() {
        return;
    }
    let world = World::start();
    world.configure(
        "good.config",
        &format!("{}cluster-id: 7\nfoo: 1\n", world.file()),
    );
    let (code, text) = world.troubleshoot(&[]);
    assert_eq!(code, Some(0), "{text}");
    for layer in LAYERS {
        assert!(text.contains(&format!("  ✅ {layer}: ")), "{layer}: {text}");
    }
    assert!(!text.contains('❌'), "{text}");
    for part in [
        "unknown keys, ignored: foo",
        "TLS 1.3, ciphersuite TLS13_",
        "🔑 server: subject CN=server, for 127.0.0.1 ",
        "🔑 client: subject CN=remote-own",
        "🔑 trusted CA: subject CN=peer",
        "ℹ️  Etcd cluster ID: ",
        "ℹ️  Etcd server version: 3.4.",
        "✅ Canaries: nodes, identities, ip, services\n",
        "ℹ️  No agent answers here",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = world.troubleshoot(&["good", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(json[0]["endpoints"][0]["steps"][6]["layer"], "heartbeat");
    assert_eq!(json[0]["endpoints"][0]["steps"][6]["state"], "ok");
}

#[test]
fn each_fault_is_named_by_its_layer() {
    if !Release::V3_4.is_installed() {
        return;
    }
    let world = World::start();
    world.assert_fails("ghost", "File", "find a file of this peer");
    world.configure("good", "endpoints: [");
    world.assert_fails("good", "File", "parse as YAML");
    world.configure("good", &world.file());
    world.configure("good.config", &world.file());
    world.assert_fails("good", "File", "several name this peer");
    std::fs::remove_file(world.dir.path().join("peers/good.config")).unwrap();
    world.configure(
        "good",
        &world.file_as("https://127.0.0.1:1", "ca.crt", "nobody"),
    );
    world.assert_fails("good", "File", "nobody.crt: no such file");

    let as_own = |endpoint: &str| world.file_as(endpoint, "ca.crt", "remote-own");
    world.configure("good", &as_own("https://nowhere.invalid:2379"));
    world.assert_fails("good", "Name resolution", "nowhere.invalid");
    world.configure("good", &as_own(&format!("https://{}", own_address())));
    world.assert_fails("good", "TCP", "Connection refused");

    // It accepts by its backlog and never speaks.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hanging.local_addr().unwrap();
    world.configure("good", &as_own(&format!("https://{address}")));
    world.assert_fails("good", "TLS", "no answer within 2 s");
    world.configure("good", &as_own(&format!("http://{address}")));
    world.assert_fails("good", "TLS", "no answer within 2 s");
    let plaintext = Etcd::start(Release::V3_4, &[]);
    world.configure("good", &as_own(&format!("https://{}", plaintext.endpoint)));
    let listens = || Ok(std::net::TcpStream::connect(&plaintext.endpoint).map(drop)?);
    eventually(Duration::from_secs(20), listens).unwrap();
    world.assert_fails("good", "TLS", "does this port speak TLS");
    let stranger = Ca::new("stranger");
    std::fs::write(world.dir.path().join("stranger.crt"), &stranger.pem).unwrap();
    let url = format!("https://{}", world.address);
    world.configure("good", &world.file_as(&url, "stranger.crt", "remote-own"));
    world.assert_fails("good", "TLS", "UnknownIssuer");
    let yesterday = OffsetDateTime::now_utc() - Duration::from_secs(86_400);
    let expired = world
        .ca
        .issue("remote-own", |params| params.not_after = yesterday);
    write(world.dir.path(), "expired", &expired);
    world.configure("good", &world.file_as(&url, "ca.crt", "expired"));
    world.assert_fails("good", "TLS", "CN=remote-own");
    write(world.dir.path(), "foreign", &stranger.client("remote-own"));
    world.configure("good", &world.file_as(&url, "ca.crt", "foreign"));
    world.assert_fails("good", "TLS", "alert");

    write(world.dir.path(), "nobody", &world.ca.client("nobody"));
    world.configure("good", &world.file_as(&url, "ca.crt", "nobody"));
    world.assert_fails("good", "Authorization", "permission denied");
    world.configure("west", &world.file());
    world.assert_fails(
        "west",
        "Cluster-config",
        "cilium/cluster-config/west is not there",
    );
    world.configure("good", &format!("{}cluster-id: 9\n", world.file()));
    world.assert_fails("good", "Cluster-config", "the peer's id is 7");
    world.configure("silent", &world.file());
    world.assert_fails("silent", "Canaries", "missing: ip");
    world.configure("good", &world.file());
    world.put("cilium/.heartbeat", "2020-01-01T00:00:00Z");
    world.assert_fails("good", "Heartbeat", "old");
    assert!(world.etcdctl(&["del", "cilium/.heartbeat"]));
    world.assert_fails("good", "Heartbeat", "cilium/.heartbeat is not there");
}
