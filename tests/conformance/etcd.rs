//! A real etcd as a Cilium cluster runs it: client certificates required, the common name is the
//! user, and the roles `remote` and `local` may read what Cilium grants them.
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use etcd_client::{
    Client, CompactionOptions, ConnectOptions, DeleteOptions, EventType, GetOptions, KeyValue,
    LeaseStatus, Permission, Txn, TxnOp, UserAddOptions, WatchOptions,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{pki::Pki, wait::eventually};

/// The cluster's own user, who may do everything, and those who read.
const CLIENTS: [&str; 3] = ["admin", "remote", "local"];
/// Steps of one transaction that etcd takes.
const BATCH: usize = 128;
/// Of the test's own client, which comes over the plain listener.
pub(crate) const ROOT: (&str, &str) = ("root", "root");

/// Killed when dropped.
pub(crate) struct Etcd {
    pub(crate) pki: Pki,
    /// Where it serves TLS.
    pub(crate) address: SocketAddr,
    /// Where the test reaches it, by password.
    pub(crate) plain: SocketAddr,
    peer: SocketAddr,
    cluster: String,
    data: tempfile::TempDir,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Empty, for the cluster `cluster`.
    pub(crate) async fn start(cluster: &str, flags: &[&str]) -> Self {
        let memory = Path::new("/dev/shm");
        let data = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let address = own_address();
        let mut etcd = Self {
            pki: Pki::new(address.ip(), &CLIENTS),
            address,
            plain: own_address(),
            peer: own_address(),
            cluster: cluster.to_owned(),
            data,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            child: None,
        };
        etcd.restart();
        etcd.grant().await;
        etcd
    }

    /// Runs it on what it has on disk.
    pub(crate) fn restart(&mut self) {
        let (secure, plain) = (
            format!("https://{}", self.address),
            format!("http://{}", self.plain),
        );
        let peer = format!("http://{}", self.peer);
        let listen = format!("{secure},{plain}");
        let child = Command::new("/usr/bin/etcd")
            .arg("--data-dir")
            .arg(self.data.path())
            .arg("--trusted-ca-file")
            .arg(self.pki.path("ca.crt"))
            .arg("--cert-file")
            .arg(self.pki.path("server.crt"))
            .arg("--key-file")
            .arg(self.pki.path("server.key"))
            .args(["--client-cert-auth", "--bcrypt-cost", "4"])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(["--listen-client-urls", &listen])
            .args(["--advertise-client-urls", &secure])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this tier needs /usr/bin/etcd; scripts/test.sh installs it");
        self.child = Some(child);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Comes back empty: the same address, and the same cluster id.
    pub(crate) async fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data.path()).unwrap();
        std::fs::create_dir(self.data.path()).unwrap();
        self.restart();
        self.grant().await;
    }

    /// Users, roles and their grants as Cilium makes them; authentication is enabled last.
    async fn grant(&self) {
        let mut client = eventually("etcd answers", async || {
            let mut client = Client::connect([self.plain.to_string()], None).await.ok()?;
            client.get("x", None).await.ok()?;
            Some(client)
        })
        .await;
        let config = format!("cilium/cluster-config/{}", self.cluster);
        let synced = format!("cilium/synced/{}/", self.cluster);
        let prefix = |text: &str| Permission::read(text).with_prefix();
        let remote = [
            prefix("cilium/.heartbeat"),
            prefix("cilium/state/"),
            Permission::read(config),
            prefix(&synced),
        ];
        let local = [
            "cilium/.heartbeat",
            "cilium/cache/",
            "cilium/cluster-config/",
            "cilium/synced/",
        ];
        let roles = [("remote", remote), ("local", local.map(prefix))];
        let without_password = || Some(UserAddOptions::new().with_no_pwd());
        client.user_add(ROOT.0, ROOT.1, None).await.unwrap();
        client.user_grant_role(ROOT.0, "root").await.unwrap();
        client
            .user_add("admin", "", without_password())
            .await
            .unwrap();
        client.user_grant_role("admin", "root").await.unwrap();
        for (role, permissions) in roles {
            client.role_add(role).await.unwrap();
            for permission in permissions {
                client
                    .role_grant_permission(role, permission)
                    .await
                    .unwrap();
            }
            client.user_add(role, "", without_password()).await.unwrap();
            client.user_grant_role(role, role).await.unwrap();
        }
        client.auth_enable().await.unwrap();
    }

    /// With all rights.
    pub(crate) async fn client(&self) -> Client {
        eventually("etcd answers", async || {
            let options = ConnectOptions::new().with_user(ROOT.0, ROOT.1);
            let client = Client::connect([self.plain.to_string()], Some(options)).await;
            let mut client = client.ok()?;
            client.get("x", None).await.ok()?;
            Some(client)
        })
        .await
    }

    pub(crate) async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.client().await.put(key, value, None).await.unwrap();
    }

    /// As few transactions as it takes.
    pub(crate) async fn put_all(&self, entries: Vec<(String, String)>) {
        let mut client = self.client().await;
        for batch in entries.chunks(BATCH) {
            let puts = batch.iter();
            let puts = puts.map(|(key, value)| TxnOp::put(key.clone(), value.clone(), None));
            let txn = Txn::new().and_then(puts.collect::<Vec<_>>());
            client.txn(txn).await.unwrap();
        }
    }

    pub(crate) async fn delete(&self, key: &str) {
        let done = self.client().await.delete(key, None).await.unwrap();
        assert_eq!(done.deleted(), 1, "{key} was not there");
    }

    pub(crate) async fn delete_prefix(&self, prefix: &str) {
        let options = DeleteOptions::new().with_prefix();
        self.client()
            .await
            .delete(prefix, Some(options))
            .await
            .unwrap();
    }

    pub(crate) async fn list(&self, prefix: &str) -> Vec<KeyValue> {
        let options = GetOptions::new().with_prefix();
        let found = self
            .client()
            .await
            .get(prefix, Some(options))
            .await
            .unwrap();
        found.kvs().to_vec()
    }

    /// Ends all leases; returns which there were.
    pub(crate) async fn end_leases(&self) -> Vec<i64> {
        let mut client = self.client().await;
        let leases = client.leases().await.unwrap();
        let leases: Vec<i64> = leases.leases().iter().map(LeaseStatus::id).collect();
        for lease in &leases {
            client.lease_revoke(*lease).await.unwrap();
        }
        leases
    }

    /// From now on.
    pub(crate) async fn history(&self) -> History {
        let mut client = self.client().await;
        let now = client.get("x", None).await.unwrap();
        let from = now.header().unwrap().revision() + 1;
        History { client, from }
    }

    /// How many ranges it has answered.
    pub(crate) async fn ranges(&self) -> u64 {
        let mut stream = TcpStream::connect(self.plain).await.unwrap();
        let request = "GET /metrics HTTP/1.0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let words = ["\"Range\"", "\"OK\""];
        let mut lines = text
            .lines()
            .filter(|line| line.starts_with("grpc_server_handled_total"));
        let line = lines.find(|line| words.iter().all(|word| line.contains(*word)));
        let count = line.and_then(|line| line.rsplit(' ').next());
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// Forgets everything in front of now.
    pub(crate) async fn compact(&self) {
        let mut client = self.client().await;
        let now = client
            .get("x", None)
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
        let physical = CompactionOptions::new().with_physical();
        client.compact(now, Some(physical)).await.unwrap();
    }
}

/// What happens in an etcd from a moment on.
pub(crate) struct History {
    client: Client,
    from: i64,
}

impl History {
    /// Keys that changed so far, each once, sorted.
    pub(crate) async fn changes(&self) -> Vec<String> {
        self.keys(|_| true).await
    }

    /// Keys that were deleted so far.
    pub(crate) async fn deletions(&self) -> Vec<String> {
        self.keys(|kind| kind == EventType::Delete).await
    }

    async fn keys(&self, of: impl Fn(EventType) -> bool) -> Vec<String> {
        const END: &str = "cilium/end-of-history";
        let mut client = self.client.clone();
        client.put(END, "", None).await.unwrap();
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.from);
        let mut stream = client.watch("cilium/", Some(options)).await.unwrap();
        let mut keys = BTreeSet::new();
        while let Some(message) = stream.message().await.unwrap() {
            for event in message.events() {
                let key = event.kv().unwrap().key_str().unwrap().to_owned();
                if key == END {
                    return keys.into_iter().collect();
                }
                if of(event.event_type()) {
                    keys.insert(key);
                }
            }
        }
        panic!("the watch ended");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback address for a server that is started, or started again, later. Nobody else takes it
/// in between: the host part is this process's number, and ports are counted, below those that the
/// kernel gives to clients.
pub(crate) fn own_address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    // Process numbers have 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 0x40 | high, middle, low);
    SocketAddr::from((host, PORT.fetch_add(1, Ordering::Relaxed)))
}
