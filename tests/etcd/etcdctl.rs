//! The real `etcdctl` against our face.
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Face,
    real::{Etcd, Release},
    within,
};

pub(crate) const ETCDCTL: &str = "/usr/bin/etcdctl";

/// False, with a loud word, where the binary is missing; CI promises it.
pub(crate) fn is_installed() -> bool {
    let found = std::path::Path::new(ETCDCTL).exists();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "CI must have {ETCDCTL}"
    );
    if !found {
        eprintln!("SKIPPED: {ETCDCTL} is not installed");
    }
    found
}

// Without a scheme, as etcdctl 3.4 otherwise puts it into `endpoint status`'s `:authority`, which
// the HTTP/2 library refuses.
fn etcdctl(face: &Face, args: &[&str]) -> Command {
    let mut command = Command::new(ETCDCTL);
    command
        .env("ETCDCTL_API", "3")
        .arg("--endpoints")
        .arg(&face.endpoint);
    command.args(args).stdin(Stdio::null());
    command
}

async fn run(mut command: Command, input: &'static str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = spawn_blocking(move || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    });
    within(done).await.unwrap().unwrap()
}

/// Exit success and what it printed, both streams.
pub(crate) async fn output(face: &Face, args: &[&str]) -> (bool, String) {
    let output = run(etcdctl(face, args), "").await;
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// What a transaction printed; `script` has its conditions and both branches.
pub(crate) async fn txn(face: &Face, flags: &[&str], script: &'static str) -> String {
    let done = run(etcdctl(face, &[flags, &["txn"]].concat()), script).await;
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// A running `etcdctl watch`; ends when dropped, also by a failed test.
pub(crate) struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    pub(crate) fn start(face: &Face, args: &[&str]) -> Self {
        let mut command = etcdctl(face, args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel(16);
        spawn_blocking(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    pub(crate) async fn expect(&mut self, lines: [&str; 3]) {
        for expected in lines {
            assert_eq!(within(self.lines.recv()).await.unwrap(), expected);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn puts_gets_leases_and_shows_the_endpoint() {
    if !is_installed() {
        return;
    }
    let face = Face::start("admin-west").await;
    let rows: [(&[&str], &str); 11] = [
        (&["put", "a/1", "x"], "OK\n"),
        (&["put", "a/2", "y"], "OK\n"),
        (&["get", "--prefix", "a/"], "a/1\nx\na/2\ny\n"),
        (
            &["get", "--prefix", "--keys-only", "--limit=1", "a/"],
            "a/1\n\n",
        ),
        (
            &["get", "--rev=2", "--prefix", "--print-value-only", "a/"],
            "x\n",
        ),
        (&["lease", "grant", "60"], "granted with TTL(60s)"),
        (&["endpoint", "health"], "is healthy"),
        (&["endpoint", "status"], "3.5.0"),
        (&["member", "list"], "tombolo"),
        (&["del", "--prefix", "a/"], "2\n"),
        (&["compaction", "4"], "compacted revision 4\n"),
    ];
    for (args, expected) in rows {
        let (success, text) = output(&face, args).await;
        assert!(success && text.contains(expected), "{args:?}: {text}");
    }
    let (success, text) = output(&face, &["get", "--rev=2", "a/1"]).await;
    assert!(
        !success && text.contains("required revision has been compacted"),
        "{text}"
    );
    face.stop().await;
}

#[tokio::test]
async fn watches_and_runs_transactions() {
    if !is_installed() {
        return;
    }
    let face = Face::start("admin-west").await;
    let mut watch = Watch::start(&face, &["watch", "--prefix", "--rev=1", "k"]);

    let script = "ver(\"k\") = \"0\"\n\nput k v\n\nget k\n\n";
    assert_eq!(txn(&face, &[], script).await, "SUCCESS\n\nOK");
    watch.expect(["PUT", "k", "v"]).await;
    assert_eq!(output(&face, &["del", "k"]).await.1, "1\n");
    watch.expect(["DELETE", "k", ""]).await;
    drop(watch);
    face.stop().await;
}

#[tokio::test]
async fn readers_hear_etcds_own_refusal() {
    if !is_installed() {
        return;
    }
    let face = Face::start("remote").await;
    face.export()
        .put("cilium/.heartbeat".into(), "now".into(), 0)
        .unwrap();
    assert!(
        output(&face, &["get", "cilium/.heartbeat"])
            .await
            .1
            .contains("now")
    );
    let rows: [&[&str]; 3] = [
        &["put", "cilium/state/x", "1"],
        &["get", "--prefix", ""],
        &["watch", "--prefix", "x"],
    ];
    for args in rows {
        let (success, text) = output(&face, args).await;
        assert!(
            !success && text.contains("etcdserver: permission denied"),
            "{args:?}: {text}"
        );
    }
    face.stop().await;
}

/// One verb with each release of the client: its arguments, and what it must print.
async fn verbs(release: Release, endpoint: &str, rows: &[(&str, bool, &str)]) {
    for (line, succeeds, expected) in rows {
        let mut command = Command::new(release.etcdctl());
        command.env("ETCDCTL_API", "3");
        command.args(["--endpoints", endpoint]);
        command.args(line.split_whitespace());
        let done = run(command, "").await;
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let as_expected = done.status.success() == *succeeds && text.contains(expected);
        assert!(as_expected, "{release:?} {line}: {text}");
    }
}

#[tokio::test]
async fn every_verb_of_both_releases() {
    for release in Release::ALL {
        if !release.is_installed() {
            continue;
        }
        let face = Face::start("admin-west").await;
        let rows = [
            ("put a/1 x", true, "OK"),
            ("put a/2 y", true, "OK"),
            ("put --prev-kv a/2 z", true, "OK\na/2\ny"),
            ("put --ignore-value a/2", true, "OK"),
            ("put --ignore-lease a/3 n", false, "key not found"),
            ("get --prefix a/", true, "a/1\nx\na/2\nz\n"),
            ("get --from-key a/2", true, "a/2\nz\n"),
            ("get a/1 a/2", true, "a/1\nx\n"),
            (
                "get --prefix --order=DESCEND --sort-by=MODIFY a/",
                true,
                "a/2\nz\na/1\nx\n",
            ),
            ("get --prefix --write-out=fields a/", true, "\"Count\" : 2"),
            (
                "get --rev=9 a/1",
                false,
                "required revision is a future revision",
            ),
            ("lease grant 300", true, "granted with TTL(300s)"),
            ("lease list", true, "found 1 leases"),
            ("lease revoke 404", false, "requested lease not found"),
            ("lease timetolive 404", true, "already expired"),
            ("lock --ttl=5 l echo got", true, "got"),
            ("endpoint health", true, "is healthy"),
            (
                "endpoint status --write-out=json",
                true,
                "\"version\":\"3.5.0\"",
            ),
            ("endpoint status --write-out=table", true, "3.5.0"),
            ("member list", true, "started, tombolo"),
            ("alarm list", true, ""),
            ("del --prev-kv a/1", true, "1\na/1\nx"),
            ("compaction 3", true, "compacted revision 3"),
            (
                "compaction 3",
                false,
                "required revision has been compacted",
            ),
            (
                "get --rev=2 a/1",
                false,
                "required revision has been compacted",
            ),
            (
                "member add x --peer-urls=http://127.0.0.1:1",
                false,
                "one fixed member",
            ),
            ("user list", false, "come from the client certificate"),
            ("defrag", false, "gives disk space back by itself"),
        ];
        verbs(release, &face.endpoint, &rows).await;
        face.stop().await;
    }
}

#[tokio::test]
async fn leases_are_kept_alive_and_take_their_keys_along() {
    for release in Release::ALL {
        if !release.is_installed() {
            continue;
        }
        let face = Face::start("admin-west").await;
        let store = face.cluster();
        let mut client = face.client().await;
        let lease = client.lease_grant(300, None).await.unwrap().id();
        let hex = format!("{lease:x}");
        let put = format!("put --lease={hex} k v");
        let keys = format!("lease timetolive --keys {hex}");
        let keep = format!("lease keep-alive --once {hex}");
        let revoke = format!("lease revoke {hex}");
        let rows: [(&str, bool, &str); 4] = [
            (&put, true, "OK"),
            (&keys, true, "attached keys([k])"),
            (&keep, true, "keepalived with TTL(300)"),
            (&revoke, true, "revoked"),
        ];
        verbs(release, &face.endpoint, &rows).await;
        assert!(store.get(b"k").is_none());
        face.stop().await;
    }
}

/// Both ways: from us to an etcd, and from an etcd to us.
#[tokio::test]
async fn mirrors_follow_in_both_directions() {
    for release in Release::ALL {
        if !release.is_installed() {
            continue;
        }
        let etcd = Etcd::start(release, &[]);
        let face = Face::start("admin-west").await;
        let (ours, theirs) = (face.endpoint.as_str(), etcd.endpoint.as_str());
        for (from, to, prefix) in [(theirs, ours, "in/"), (ours, theirs, "out/")] {
            let old = format!("put {prefix}old 1");
            eventually(release, from, &old, "OK").await;
            let mut command = Command::new(release.etcdctl());
            command.env("ETCDCTL_API", "3").stdout(Stdio::null());
            command.args(["--endpoints", from, "make-mirror", "--prefix", prefix, to]);
            let _mirror = Killed(command.spawn().unwrap());
            eventually(release, to, &format!("get {prefix}old"), "old\n1").await;
            let new = format!("put {prefix}new 2");
            eventually(release, from, &new, "OK").await;
            eventually(release, to, &format!("get {prefix}new"), "new\n2").await;
        }
        face.stop().await;
    }
}

/// Repeats a verb until it prints what it should.
async fn eventually(release: Release, endpoint: &str, line: &str, expected: &str) {
    let look = async {
        loop {
            let mut command = Command::new(release.etcdctl());
            command
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", endpoint]);
            command.args(line.split_whitespace());
            let done = run(command, "").await;
            if String::from_utf8_lossy(&done.stdout).contains(expected) {
                return;
            }
        }
    };
    within(look).await;
}

/// A child that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
