//! The real `etcdctl` against our face.
use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::{Face, within};

const ETCDCTL: &str = "/usr/bin/etcdctl";

/// False, with a loud word, where the binary is missing; CI promises it.
fn is_installed() -> bool {
    let found = std::path::Path::new(ETCDCTL).exists();
    assert!(found || std::env::var_os("CI").is_none(), "CI must have {ETCDCTL}");
    if !found {
        eprintln!("SKIPPED: {ETCDCTL} is not installed");
    }
    found
}

fn etcdctl(face: &Face, args: &[&str]) -> Command {
    let mut command = Command::new(ETCDCTL);
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("http://{}", face.endpoint));
    command.args(args).kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Exit success and what it printed, both streams.
async fn output(face: &Face, args: &[&str]) -> (bool, String) {
    let output = within(etcdctl(face, args).output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
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
        (&["get", "--prefix", "--keys-only", "--limit=1", "a/"], "a/1\n\n"),
        (&["get", "--rev=2", "--prefix", "--print-value-only", "a/"], "x\n"),
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
    assert!(!success && text.contains("required revision has been compacted"), "{text}");
    face.stop().await;
}

#[tokio::test]
async fn watches_and_runs_transactions() {
    if !is_installed() {
        return;
    }
    let face = Face::start("admin-west").await;
    let mut watch = etcdctl(&face, &["watch", "--prefix", "--rev=1", "k"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();

    let mut txn = etcdctl(&face, &["txn"]);
    let mut txn = txn.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let script = b"ver(\"k\") = \"0\"\n\nput k v\n\nget k\n\n";
    let mut stdin = txn.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, script).await.unwrap();
    drop(stdin);
    let done = within(txn.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "SUCCESS\n\nOK");
    for expected in ["PUT", "k", "v"] {
        assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), expected);
    }
    assert_eq!(output(&face, &["del", "k"]).await.1, "1\n");
    for expected in ["DELETE", "k", ""] {
        assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), expected);
    }
    watch.kill().await.unwrap();
    face.stop().await;
}

#[tokio::test]
async fn readers_hear_etcds_own_refusal() {
    if !is_installed() {
        return;
    }
    let face = Face::start("remote").await;
    face.keyspaces.export.put("cilium/.heartbeat".into(), "now".into(), 0).unwrap();
    assert!(output(&face, &["get", "cilium/.heartbeat"]).await.1.contains("now"));
    let rows: [&[&str]; 3] =
        [&["put", "cilium/state/x", "1"], &["get", "--prefix", ""], &["watch", "--prefix", "x"]];
    for args in rows {
        let (success, text) = output(&face, args).await;
        assert!(!success && text.contains("etcdserver: permission denied"), "{args:?}: {text}");
    }
    face.stop().await;
}
