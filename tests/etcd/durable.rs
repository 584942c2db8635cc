//! A real agent whose process or disk fails under load; what it answered must be there afterwards.
//! Each agent has a mount namespace with a BPF file system of its own, so these need root.
use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, Txn, TxnOp};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
};
use tombolo::{
    test_support::process,
    tls::{ClientOptions, ClientTls},
};

use super::within;

const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");
const LIMIT: Duration = Duration::from_secs(20);
/// Clients that write at once.
const WRITERS: usize = 8;

/// False, with a loud word, without root; CI promises it.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt as _;
        meta.uid() == 0
    });
    assert!(root || std::env::var_os("CI").is_none(), "CI must be root");
    if !root {
        eprintln!("SKIPPED: an agent needs root");
    }
    root
}

/// What outlives an agent: its directories and certificates.
struct Site {
    dir: tempfile::TempDir,
    state: PathBuf,
    port: u16,
}

struct Agent {
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        for name in ["bpf", "peers", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut certs = Command::new(TOMBOLO);
        certs.args(["certs", "init", "--cluster-name", "west", "--dir"]);
        process::run_ok(certs.arg(dir.path().join("certs")), LIMIT).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { dir, state, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-euc"])
            .arg("mount -t bpf bpf \"$0\"; exec \"$@\"")
            .arg(self.path("bpf"))
            .args([TOMBOLO, "agent", "--cluster-name", "west"])
            .args(["--cluster-id", "12", "--node-name", "n1"])
            .args(["--health-port", "off", "--prometheus-serve-addr", "off"])
            .args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        for (flag, path) in [
            ("--state-dir", self.state.clone()),
            ("--bpf-root", self.path("bpf")),
            ("--clustermesh-config", self.path("peers")),
            ("--socket-path", self.path("sock")),
            ("--tls-cert-file", self.path("certs/server.crt")),
            ("--tls-key-file", self.path("certs/server.key")),
            ("--tls-ca-file", self.path("certs/ca.crt")),
        ] {
            command.arg(flag).arg(path);
        }
        command
    }

    fn start(&self) -> Agent {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Agent {
            child: command.spawn().unwrap(),
        }
    }

    /// Waits until the agent answers.
    async fn client(&self) -> Client {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            match self.connect().await {
                Ok(client) => return client,
                Err(error) if tokio::time::Instant::now() > deadline => {
                    let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                    panic!("the agent does not answer: {error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn connect(&self) -> Result<Client, Box<dyn std::error::Error>> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        let tls = ClientTls::new(ClientOptions {
            ca: Some(self.path("certs/ca.crt")),
            identity: Some((self.path("certs/admin.crt"), self.path("certs/admin.key"))),
            ..ClientOptions::default()
        });
        let stream = tls.connect(tcp, "127.0.0.1").await?;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let taken = once.lock().unwrap().take();
            async move { taken.ok_or_else(|| std::io::Error::other("connected once already")) }
        });
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let channel = tonic::transport::Endpoint::from_shared(endpoint)?
            .connect_with_connector(connector)
            .await?;
        let channel = etcd_client::Channel::Tonic(channel);
        Ok(Client::from_channel(channel, None).await?)
    }

    fn log_files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.state.join("store")).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.to_string_lossy().contains("/log-"));
        files.sort();
        files
    }
}

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
        agent.child.kill().unwrap();
        agent.child.wait().unwrap();
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
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();

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
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
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
    // The admin socket is the last thing that a start opens.
    let opened = async {
        while UnixStream::connect(site.path("sock")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, opened).await.unwrap();
    let mut command = Command::new(TOMBOLO);
    command.arg("--socket-path").arg(site.path("sock"));
    command.args(["store", "backup"]).arg(&backup);
    let said = process::run_ok(&mut command, LIMIT).unwrap();
    assert!(said.starts_with("Saved revision "), "{said}");
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();

    // In the middle of what was written: others follow.
    let file = site.log_files().remove(0);
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
