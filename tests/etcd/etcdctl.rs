//! The real `etcdctl` against our face.
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{Face, within};

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
