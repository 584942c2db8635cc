//! A real agent whose process or disk fails under load; what it answered must be there afterwards.
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, Txn, TxnOp};
use tokio::task::JoinSet;
use tombolo::test_support::process;

use super::{
    site::{LIMIT, Site, TOMBOLO, is_root},
    within,
};

/// Clients that write at once.
const WRITERS: usize = 8;

/// Writes `n` to both keys of a pair in one transaction, if the first has the `n - 1` before.
fn step(writer: usize, n: i64) -> Txn {
    let key = format!("load/{writer}/a");
    Txn::new()
        .when([Compare::version(key.clone(), CompareOp::Equal, n - 1)])
        .and_then([
            TxnOp::put(key, n.to_string(), None),
            TxnOp::put(format!("load/{writer}/b"), n.to_string(), None),
        ])
}

/// The value of both keys of a pair: that they are equal, and counted every write.
async fn pair(client: &mut Client, writer: usize) -> i64 {
    let options = GetOptions::new().with_prefix();
    let got = client.get(format!("load/{writer}/"), Some(options)).await;
    let got = got.unwrap();
    let value = |at: usize| -> i64 {
        let kv: &etcd_client::KeyValue = &got.kvs()[at];
        let value = kv.value_str().unwrap().parse().unwrap();
        assert_eq!(kv.version(), value, "a write was lost or done twice");
        value
    };
    match got.kvs().len() {
        0 => 0,
        2 => {
            assert_eq!(value(0), value(1), "half a transaction");
            value(0)
        }
        count => panic!("half a transaction: {count} keys"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_under_load_keeps_what_it_answered() {
    if !is_root() {
        return;
    }
    let rounds = std::env::var("TOMBOLO_TEST_KILLS").map_or(20, |text| text.parse().unwrap());
    let site = Site::new();
    let mut reached = [0; WRITERS];
    let mut cluster_id = None;
    for round in 0..rounds {
        let mut agent = site.start();
        let mut client = site.client().await;
        let status = client.status().await.unwrap();
        let id = status.header().unwrap().cluster_id();
        assert_eq!(*cluster_id.get_or_insert(id), id, "it is the same store");
        for (writer, reached) in reached.iter_mut().enumerate() {
            let found = pair(&mut client, writer).await;
            let lost = *reached - found;
            assert!(lost <= 0, "round {round}: {lost} answered writes are lost");
            assert!(found <= *reached + 1, "round {round}: written twice");
            *reached = found;
        }
        let mut load = JoinSet::new();
        for (writer, from) in reached.into_iter().enumerate() {
            let mut client = client.kv_client();
            load.spawn(async move {
                let mut done = from;
                while let Ok(answer) = client.txn(step(writer, done + 1)).await {
                    assert!(answer.succeeded());
                    done += 1;
                }
                (writer, done)
            });
        }
        let pause = rand::random_range(20..250);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        agent.kill();
        while let Some(done) = within(load.join_next()).await {
            let (writer, done) = done.unwrap();
            reached[writer] = done;
        }
    }
    let total: i64 = reached.iter().sum();
    eprintln!("{rounds} kills, {total} transactions answered, none lost");
    assert!(total > i64::from(rounds) * 10, "that was no load");
}

#[tokio::test]
async fn leases_have_all_their_time_again_after_a_kill() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let mut agent = site.start();
    let mut client = site.client().await;
    let lease = client.lease_grant(30, None).await.unwrap().id();
    let options = etcd_client::PutOptions::new().with_lease(lease);
    client.put("leased", "1", Some(options)).await.unwrap();
    // Time that passes is what this is about.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(left.ttl() <= 27, "{left:?}");
    agent.kill();

    let _agent = site.start();
    let mut client = site.client().await;
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(left.ttl() >= 28 && left.granted_ttl() == 30, "{left:?}");
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(client.get("leased", None).await.unwrap().count(), 0);
}

/// A file system of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Self {
        let mut command = Command::new("mount");
        let options = format!("size={size}");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        process::run_ok(command.arg(path), LIMIT).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(process::run(
            Command::new("umount").arg("--lazy").arg(&self.0),
            LIMIT,
        ));
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let _disk = Tmpfs::mount(&site.state, "40m");
    let mut agent = site.start();
    let mut client = site.client().await;
    let filler = site.state.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 1 << 16]).is_ok() {}
    drop(file);

    let value = vec![b'v'; 400_000];
    let mut acknowledged = 0;
    let error = loop {
        match client
            .put(format!("k{acknowledged}"), value.clone(), None)
            .await
        {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(acknowledged > 10, "the first segment has its space");
    let text = "etcdserver: mvcc: database space exceeded";
    assert!(
        matches!(&error, Error::GRpcStatus(s) if s.code() as i32 == 8 && s.message() == text),
        "{error:?}"
    );
    let prefix = || Some(GetOptions::new().with_prefix().with_count_only());
    let count = client.get("k", prefix()).await.unwrap().count();
    assert_eq!(count, acknowledged, "what is there is served, no more");
    client.put("k", value.clone(), None).await.unwrap_err();

    fs::remove_file(&filler).unwrap();
    client.put("k", value.clone(), None).await.unwrap();
    agent.kill();
    let _agent = site.start();
    let count = site
        .client()
        .await
        .get("k", prefix())
        .await
        .unwrap()
        .count();
    assert_eq!(count, acknowledged + 1);
}

/// The log's segments, oldest first.
fn log_files(site: &Site) -> Vec<PathBuf> {
    let files = fs::read_dir(site.state.join("store")).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().contains("/log-"));
    files.sort();
    files
}

#[tokio::test]
async fn damage_stops_the_start_and_a_backup_ends_it() {
    if !is_root() {
        return;
    }
    let mut site = Site::new();
    let mut agent = site.start();
    let mut client = site.client().await;
    for n in 0..20 {
        client.put(format!("k{n}"), "v", None).await.unwrap();
    }
    let header = client.put("k", "v", None).await.unwrap();
    let header = header.header().unwrap().clone();
    let backup = site.path("backup");
    site.started().await;
    let mut command = site.verb(&["store", "backup"]);
    command.arg(&backup);
    let said = process::run_ok(&mut command, LIMIT).unwrap();
    assert!(said.starts_with("Saved revision "), "{said}");
    agent.kill();

    // In the middle of what was written: others follow.
    let file = log_files(&site).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[used / 2] ^= 0x10;
    fs::write(&file, bytes).unwrap();
    let refused = process::run(&mut site.command(), LIMIT).unwrap();
    let text = format!("{}{}", refused.stdout, refused.stderr);
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(!refused.status.success(), "{text}");
    for expected in [&name[..], "damaged at byte", "tombolo store restore"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    site.state = site.path("restored");
    let mut command = Command::new(TOMBOLO);
    command.args(["store", "restore"]).arg(&backup);
    command.arg("--state-dir").arg(&site.state);
    let said = process::run_ok(&mut command, LIMIT).unwrap();
    assert!(said.starts_with("Restored revision "), "{said}");
    let _agent = site.start();
    let got = site
        .client()
        .await
        .get("k", Some(GetOptions::new().with_prefix()))
        .await;
    let got = got.unwrap();
    let now = got.header().unwrap();
    assert_eq!(got.count(), 21);
    assert_ne!(
        now.cluster_id(),
        header.cluster_id(),
        "readers must list again"
    );
    assert!(now.revision() >= header.revision());
}
