//! Every handshake that must fail, with its own reason, and those that must not.
//! Method: each row has a server of its own, tries a call that would read a store, and looks at the
//! counters, the log and the number of calls that got through.
use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose};
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tombolo::{serve, tls::ServerTls};
use tracing_subscriber::layer::SubscriberExt as _;

use super::{
    tls::{Ca, Hello, Leaf, TlsFace, counts, write_server},
    within,
};

const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What a client does.
enum Act {
    /// A handshake, and a call if it succeeds.
    Call(Hello),
    /// Sends these bytes and waits for the end.
    Send(Vec<u8>),
    /// Connects and hangs up.
    HangUp,
}

/// All who sign anything here. The server trusts `own` for everything, `east` and `north` as peers.
struct World {
    dir: tempfile::TempDir,
    own: Ca,
    /// Below `own`; signs the server's certificate.
    intermediate: Ca,
    east: Ca,
    north: Ca,
    stranger: Ca,
}

impl World {
    fn new() -> Self {
        let own = Ca::new("own");
        Self {
            dir: tempfile::tempdir().unwrap(),
            intermediate: own.below("own intermediate"),
            own,
            east: Ca::new("east"),
            north: Ca::new("north"),
            stranger: Ca::new("stranger"),
        }
    }

    fn server(&self) -> ServerTls {
        let server = self.intermediate.server().behind(&self.intermediate);
        let tls = ServerTls::load(write_server(self.dir.path(), &server, &self.own.pem)).unwrap();
        for (peer, ca) in [("east", &self.east), ("north", &self.north)] {
            let name = peer.parse().unwrap();
            tls.trust()
                .set_peer(&name, self.dir.path(), ca.pem.as_bytes())
                .unwrap();
        }
        tls
    }

    fn call(&self, leaf: Leaf) -> Act {
        Act::Call(Hello::new(&self.own, Some(leaf)))
    }

    fn call_with(&self, leaf: Option<Leaf>, change: impl FnOnce(&mut Hello)) -> Act {
        let mut hello = Hello::new(&self.own, leaf);
        change(&mut hello);
        Act::Call(hello)
    }

    fn admin(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.own.issue("admin-west", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    }

    fn refused(&self) -> Vec<(&'static str, Act, &'static str)> {
        let day = Duration::days(1);
        let now = OffsetDateTime::now_utc();
        let expired = self.admin(|params| params.not_after = now - day);
        let early = self.admin(|params| params.not_before = now + day);
        let for_servers = self.admin(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let two_names = self.admin(|params| {
            let name = rcgen::DnValue::from("root");
            params
                .distinguished_name
                .push(DnType::CustomDnType(vec![2, 5, 4, 3]), name);
        });
        let no_name = self.admin(|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
        });
        let admin = self.own.client("admin-west");
        let namesake = Ca::new("own").client("admin-west");
        let mut rows = vec![
            ("none", self.call_with(None, |_| {}), "no_certificate"),
            (
                "none, TLS 1.2",
                self.call_with(None, |hello| hello.versions = TLS12),
                "no_certificate",
            ),
            ("expired", self.call(expired.clone()), "expired"),
            (
                "expired, TLS 1.2",
                self.call_with(Some(expired), |hello| hello.versions = TLS12),
                "expired",
            ),
            ("not yet valid", self.call(early), "not_yet_valid"),
            (
                "for servers only",
                self.call(for_servers),
                "wrong_key_usage",
            ),
            (
                "unknown CA",
                self.call(self.stranger.client("admin-west")),
                "unknown_issuer",
            ),
            (
                "unknown CA, a peer's name",
                self.call(self.stranger.client("remote-east")),
                "unknown_issuer",
            ),
            ("CA of the same name", self.call(namesake), "bad_signature"),
            (
                "intermediate left out",
                self.call(self.intermediate.client("admin-west")),
                "missing_intermediate",
            ),
            (
                "key of another",
                self.call(admin.clone().with_key_of(&self.own.client("other"))),
                "key_mismatch",
            ),
            (
                "key of another, TLS 1.2",
                self.call_with(
                    Some(admin.clone().with_key_of(&self.own.client("other"))),
                    |hello| hello.versions = TLS12,
                ),
                "key_mismatch",
            ),
            ("two names", self.call(two_names), "common_name"),
            ("no name", self.call(no_name), "common_name"),
            (
                "HTTP/1.1",
                self.call_with(Some(admin.clone()), |hello| hello.alpn = b"http/1.1"),
                "protocol",
            ),
            (
                "does not trust us",
                self.call_with(Some(admin), |hello| {
                    hello.ca_pem.clone_from(&self.stranger.pem);
                }),
                "by_client",
            ),
            ("TLS 1.1", Act::Send(client_hello_of_tls11()), "version"),
            (
                "plaintext",
                Act::Send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
                "not_tls",
            ),
            ("hangs up", Act::HangUp, "closed"),
            (
                "half a hello, then nothing",
                Act::Send(client_hello_of_tls11()[..20].to_vec()),
                "timeout",
            ),
        ];
        // The right name, from a CA that may not vouch for it.
        for name in ["admin-west", "local-west", "remote", "remote-north"] {
            rows.push((name, self.call(self.east.client(name)), "may_not_vouch"));
        }
        rows
    }

    fn welcome(&self) -> Vec<(&'static str, Act)> {
        let admin = || Some(self.own.client("admin-west"));
        let chain = |name: &str| self.intermediate.client(name).behind(&self.intermediate);
        let below_east = self.east.below("east intermediate");
        vec![
            ("1.2", self.call_with(admin(), |h| h.versions = TLS12)),
            ("1.3", self.call_with(admin(), |h| h.versions = TLS13)),
            ("chain", self.call(chain("admin-west"))),
            (
                "chain, 1.2",
                self.call_with(Some(chain("local-west")), |h| h.versions = TLS12),
            ),
            ("peer by us", self.call(self.own.client("remote-east"))),
            ("peer by itself", self.call(self.east.client("remote-east"))),
            (
                "peer by itself, chain",
                self.call(below_east.client("remote-east").behind(&below_east)),
            ),
        ]
    }
}

/// As OpenSSL sends it: version 3.2, without a list of versions or signature algorithms.
fn client_hello_of_tls11() -> Vec<u8> {
    let mut body = vec![0x03, 0x02];
    body.extend([7; 32]);
    body.extend([
        0x00, // no session
        0x00, 0x04, 0xc0, 0x14, 0x00, 0x35, // two ciphers
        0x01, 0x00, // no compression
        0x00, 0x08, 0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, // one curve
    ]);
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![0x16, 0x03, 0x01, 0x00, length + 4, 0x01, 0x00, 0x00, length];
    record.extend(body);
    record
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What one row left behind: reasons counted, lines logged, calls let through, the client's answer.
struct Outcome {
    reasons: Vec<(String, String)>,
    log: String,
    calls: u64,
    answered: bool,
}

async fn play(world: &World, act: Act) -> Outcome {
    let log = Log::default();
    let writer = log.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    // The test's runtime has one thread, so that its server logs here too.
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let tls = world.server();
    let registry = prometheus::Registry::new();
    tls.metrics().register(&registry).unwrap();
    let TlsFace {
        face,
        address,
        metrics,
    } = TlsFace::start(&tls, serve::Limits::default()).await;
    for store in [face.cluster(), &face.export()] {
        store
            .put("cilium/.heartbeat".into(), "x".into(), 0)
            .unwrap();
    }

    let answered = match act {
        Act::Call(hello) => match hello.client(address).await {
            Ok(mut client) => within(client.get("cilium/.heartbeat", None)).await.is_ok(),
            Err(_) => false,
        },
        Act::Send(bytes) => {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(&bytes).await.unwrap();
            // Ends when the server gives up; an error is an end too.
            drop(within(tcp.read_to_end(&mut Vec::new())).await);
            false
        }
        Act::HangUp => {
            drop(TcpStream::connect(address).await.unwrap());
            false
        }
    };
    let name = "tombolo_tls_handshakes_refused_total";
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    while !answered && counts(&registry, name).is_empty() && tokio::time::Instant::now() < deadline
    {
        tokio::task::yield_now().await;
    }
    let reasons = counts(&registry, name);
    let calls = metrics.requests();
    face.stop().await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    Outcome {
        reasons,
        log,
        calls,
        answered,
    }
}

#[tokio::test]
async fn each_bad_handshake_is_refused_with_its_own_reason() {
    let world = World::new();
    let rows = world.refused();
    assert!(rows.len() >= 12);
    for (row, act, reason) in rows {
        let Outcome {
            reasons,
            log,
            calls,
            answered,
        } = play(&world, act).await;
        assert!(!answered, "{row}: let in");
        assert_eq!(
            reasons,
            [(reason.to_owned(), "1".to_owned())],
            "{row}: {log}"
        );
        assert_eq!(calls, 0, "{row}: a call got through");
        let line = log.lines().find(|line| line.contains("TLS client refused"));
        let line = line.unwrap_or_else(|| panic!("{row}: not logged: {log}"));
        assert!(line.contains(&format!("reason={reason} ")), "{row}: {line}");
        assert!(line.contains("from=127.0.0.1:"), "{row}: {line}");
    }
}

#[tokio::test]
async fn good_handshakes_reach_a_store() {
    let world = World::new();
    for (row, act) in world.welcome() {
        let outcome = play(&world, act).await;
        assert!(outcome.answered, "{row}: {}", outcome.log);
        assert_eq!(outcome.reasons, [], "{row}");
        assert_eq!(outcome.calls, 1, "{row}");
    }
}

/// A bundle for a role takes the place of the cluster's own CA, for that role only.
#[tokio::test]
async fn a_role_with_a_bundle_of_its_own_listens_to_nobody_else() {
    let world = World::new();
    let shared = Ca::new("shared");
    let bundle = world.dir.path().join("remote-ca.crt");
    std::fs::write(&bundle, &shared.pem).unwrap();
    let server = world.own.server();
    let paths = write_server(world.dir.path(), &server, &world.own.pem);
    let roles = tombolo::tls::RolePaths {
        remote: Some(bundle),
        ..Default::default()
    };
    let tls = ServerTls::load_with_roles(paths, roles).unwrap();
    let (peer, pem) = ("east".parse().unwrap(), world.east.pem.as_bytes());
    tls.trust().set_peer(&peer, world.dir.path(), pem).unwrap();
    let face = TlsFace::start(&tls, serve::Limits::default()).await;
    let rows = [
        (&shared, "remote", true),
        (&shared, "remote-north", true),
        (&shared, "admin-west", false),
        (&shared, "local-west", false),
        (&world.own, "admin-west", true),
        (&world.own, "local-west", true),
        (&world.own, "remote", false),
        (&world.own, "remote-north", false),
        (&world.east, "remote-east", true),
        (&world.east, "remote", false),
    ];
    for (row, (ca, name, expected)) in (0..).zip(rows) {
        let hello = Hello::new(&world.own, Some(ca.client(name)));
        let answered = match hello.client(face.address).await {
            Ok(mut client) => within(client.get("cilium/.heartbeat", None)).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(answered, expected, "row {row}: {name}");
    }
    face.face.stop().await;
}
