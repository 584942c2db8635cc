//! What the groups share: certificates, records, a real etcd, our own server, clients over mTLS.
use std::{
    fs,
    net::{Ipv4Addr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tombolo::{
    journal::{self, Writer},
    keyspace::{Capabilities, ClusterConfig, Kind, Layout, cluster_config_key},
    limits::STORE_HISTORY_EVENTS_MAX,
    publish::{ExportPolicy, Views},
    serve::{self, Keyspaces},
    store::{Options, Store},
    test_support::process::{Helper, describe, run_ok},
    tls::{self, ClientOptions, ClientTls, Paths, ServerTls},
    types::ClusterName,
};

use crate::peers::Shape;

/// The cluster whose records are read.
pub(crate) const EAST: &str = "east";
/// Its id.
pub(crate) const EAST_ID: u32 = 2;
/// The reading cluster.
pub(crate) const WEST: &str = "west";
/// Bounds every wait for a child or a server.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// One-shot commands take milliseconds; this bounds a hung one.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// What a server may send unasked, so that a large answer does not wait for its reader.
const WINDOW_BYTES: u32 = 8 << 20;
/// etcd's default for `--max-txn-ops`.
const TXN_PUTS: usize = 128;
/// One identity for so many addresses.
pub(crate) const ADDRESSES_PER_IDENTITY: u32 = 10;

/// Files of each cluster, made by the operator's own verb.
#[derive(Debug)]
pub(crate) struct Certificates {
    /// The read cluster's.
    pub(crate) east: PathBuf,
    /// The reading cluster's.
    pub(crate) west: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let init = |name: &str| {
            let path = dir.join(name);
            let mut command = Command::new(tombolo()?);
            command.args(["certs", "init", "--cluster-name", name, "--dir"]);
            run_ok(command.arg(&path), COMMAND_LIMIT)?;
            Ok::<_, anyhow::Error>(path)
        };
        Ok(Self {
            east: init(EAST)?,
            west: init(WEST)?,
        })
    }

    /// Makes what the reading cluster needs to reach the read one at `url`, and returns the peer
    /// file. `out` must not exist.
    pub(crate) fn issue(&self, out: &Path, url: &str) -> Result<PathBuf> {
        let mut command = Command::new(tombolo()?);
        command.args(["certs", "issue", "--peer", WEST, "--endpoint", url]);
        command.arg("--dir").arg(&self.east).arg("--out").arg(out);
        command.arg("--config-path-prefix").arg(out);
        run_ok(&mut command, COMMAND_LIMIT)?;
        Ok(out.join(format!("{EAST}.config")))
    }
}

/// The agent's binary, built beside this program.
pub(crate) fn tombolo() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let path = own
        .ancestors()
        .nth(2)
        .context("find the build directory")?
        .join("tombolo");
    ensure!(
        path.exists(),
        "there is no {}; scripts/bench.sh builds it",
        path.display()
    );
    Ok(path)
}

/// The TLS options of a user, by the name that `tombolo certs init` gave its files.
pub(crate) fn client_options(certs: &Path, user: &str) -> ClientOptions {
    ClientOptions {
        ca: Some(certs.join("ca.crt")),
        identity: Some((
            certs.join(format!("{user}.crt")),
            certs.join(format!("{user}.key")),
        )),
        ..ClientOptions::default()
    }
}

/// A client of the administrator, who can write, over mTLS. The agent's own client only reads.
pub(crate) async fn connect(certs: &Path, url: &str) -> Result<etcd_client::Client> {
    let channel = etcd_client::Channel::Tonic(channel(certs, url).await?);
    Ok(etcd_client::Client::from_channel(channel, None).await?)
}

/// The connection of such a client.
pub(crate) async fn channel(certs: &Path, url: &str) -> Result<tonic::transport::Channel> {
    let address = url.strip_prefix("https://").context("not an https URL")?;
    let tcp = TcpStream::connect(address).await.context("dial")?;
    tcp.set_nodelay(true)?;
    let tls = ClientTls::new(client_options(certs, "admin"));
    let stream = tls.connect(tcp, "127.0.0.1").await.context("handshake")?;
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    // The stream is encrypted already: the scheme here only keeps the channel from doing it again.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// All keys of the cluster: configuration, addresses, identities, canaries.
pub(crate) fn records(addresses: u32) -> Result<Vec<(String, Vec<u8>)>> {
    let east: ClusterName = EAST.parse()?;
    let config = ClusterConfig {
        id: EAST_ID,
        capabilities: Capabilities {
            synced_canaries: true,
            max_connected_clusters: 255,
            ..Capabilities::default()
        },
    };
    let mut records = vec![(cluster_config_key(&east), config.encode())];
    for n in 0..addresses / ADDRESSES_PER_IDENTITY {
        let key = format!(
            "{}{}",
            Layout::State.prefix(Kind::Identities, &east),
            identity(n)
        );
        records.push((key, labels(EAST, n).into_bytes()));
    }
    let prefix = Layout::State.prefix(Kind::Ips, &east);
    for n in 0..addresses {
        let value = address_record(address(n), identity(n / ADDRESSES_PER_IDENTITY), n);
        records.push((format!("{prefix}{}", address(n)), value.into_bytes()));
    }
    for kind in Kind::ALL {
        records.push((Layout::State.canary(kind, &east), b"true".to_vec()));
    }
    Ok(records)
}

/// The labels of a cluster's identity.
pub(crate) fn labels(cluster: &str, n: u32) -> String {
    format!(
        "k8s:app=checkout-{n};k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
         k8s:io.cilium.k8s.policy.cluster={cluster};k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=shop;"
    )
}

/// An address with all its fields; `n` makes it differ from others.
pub(crate) fn address_record(ip: Ipv4Addr, identity: u32, n: u32) -> String {
    let host = Ipv4Addr::from_bits(0xac10_0000 + n / 100 % 0x1_0000);
    format!(
        r#"{{"IP":"{ip}","Mask":null,"HostIP":"{host}","ID":{identity},"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"checkout-6c9f7d5b8-{n:08x}","K8sServiceAccount":"default","NamedPorts":[{{"Name":"http","Port":8080,"Protocol":"TCP"}},{{"Name":"metrics","Port":9090,"Protocol":"TCP"}}]}}"#
    )
}

/// The address that sorts last as text, which a list in key order yields last.
pub(crate) fn last_address(addresses: u32) -> Option<String> {
    (0..addresses).map(|n| address(n).to_string()).max()
}

/// The address of a number.
pub(crate) fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a40_0000 + n)
}

/// Identities of a cluster are its id, shifted, and a number.
pub(crate) fn identity(n: u32) -> u32 {
    (EAST_ID << 16) + 256 + n
}

/// The child that serves the cluster's export, and its own store from `directory` if there is one,
/// on a free port that it prints.
pub(crate) async fn serve(
    certs: &Path,
    addresses: u32,
    directory: Option<&Path>,
    peers: Option<Shape>,
) -> Result<()> {
    // As the agent makes them.
    fn new_store() -> Store {
        Store::new(Options {
            cluster_id: rand::random::<u64>() | 1,
            history_max: STORE_HISTORY_EVENTS_MAX,
        })
    }
    let cancel = CancellationToken::new();
    let views = Views::new(&ExportPolicy::default(), new_store);
    let export = views.of(None).store;
    let keyspaces = Keyspaces {
        // In memory, the administrator writes what the peers read.
        cluster: Some(match directory {
            Some(directory) => open_durable(directory, cancel.clone())?,
            None => export.clone().into(),
        }),
        export: views,
        cache: new_store(),
    };
    for (key, value) in records(addresses)? {
        export.put(key.into(), value.into(), 0)?;
    }
    if let Some(shape) = peers {
        for (key, value) in shape.records()? {
            keyspaces.cache.put(key.into(), value.into(), 0)?;
        }
    }
    let tls = ServerTls::load(Paths {
        cert: certs.join("server.crt"),
        key: certs.join("server.key"),
        ca: certs.join("ca.crt"),
    })?;
    let accept = move |tcp: TcpStream| {
        let tls = tls.clone();
        async move {
            let (stream, name) = tls.accept(tcp).await?;
            Ok::<_, tls::Error>((stream, name.as_str().to_owned()))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("https://{}", listener.local_addr()?);
    let server = serve::Server::new(keyspaces, EAST.parse()?, serve::Limits::default());
    Ok(server.run(listener, accept, cancel).await?)
}

fn open_durable(directory: &Path, cancel: CancellationToken) -> Result<Writer> {
    let (journal, runner) = journal::open(directory, STORE_HISTORY_EVENTS_MAX, Instant::now())?;
    // It ends with the process: whoever measures kills that.
    std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || runner.run(&cancel))
        .context("start the thread of the store")?;
    Ok(journal.into())
}

/// Starts this program as a child and returns it with its first line.
pub(crate) fn child(part: &str, certs: &Path, arguments: &[&str]) -> Result<(Helper, String)> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg(part).arg(certs).args(arguments);
    let helper = Helper::start(part, &mut command)?;
    let line = helper
        .line(LIMIT)?
        .with_context(|| format!("{part} ended early"))?;
    Ok((helper, line))
}

/// A child that is ended when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(
            child.with_context(|| format!("start {}", describe(command)))?,
        ))
    }

    pub(crate) fn resident_bytes(&self) -> Result<usize> {
        let path = format!("/proc/{}/statm", self.0.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        resident_bytes(&text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A bpf filesystem in the private mount namespace; its maps and links go with it.
#[derive(Debug)]
pub(crate) struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts one on `path`, which is made.
    pub(crate) fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let mut command = Command::new("mount");
        run_ok(command.args(["-t", "bpf", "bpf"]).arg(&path), COMMAND_LIMIT)?;
        Ok(Self(path))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // What is still mounted goes with the namespace.
        drop(run_ok(Command::new("umount").arg(&self.0), COMMAND_LIMIT));
    }
}

/// A real etcd on loopback; ended when dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Process,
    pub(crate) url: String,
}

impl Etcd {
    /// Starts it with client certificates required and waits until it answers.
    pub(crate) async fn start(certs: &Path, data: &Path) -> Result<Self> {
        let url = format!("https://127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let mut command = Command::new("/usr/bin/etcd");
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &url]);
        command.args(["--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer]);
        command.args(["--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.arg("--client-cert-auth");
        command.arg("--trusted-ca-file").arg(certs.join("ca.crt"));
        command.arg("--cert-file").arg(certs.join("server.crt"));
        command.arg("--key-file").arg(certs.join("server.key"));
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let etcd = Self { process, url };
        let answers = async {
            loop {
                if let Ok(mut client) = connect(certs, &etcd.url).await
                    && client.get("x", None).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, answers)
            .await
            .context("wait for etcd")?;
        Ok(etcd)
    }

    /// Writes all records, the canaries last.
    pub(crate) async fn load(&self, certs: &Path, addresses: u32) -> Result<()> {
        load(certs, &self.url, &records(addresses)?).await
    }
}

/// Writes records to a server, as many in a transaction as fit.
pub(crate) async fn load(certs: &Path, url: &str, records: &[(String, Vec<u8>)]) -> Result<()> {
    let mut client = connect(certs, url).await?;
    for chunk in records.chunks(TXN_PUTS) {
        let puts: Vec<_> = chunk
            .iter()
            .map(|(key, value)| etcd_client::TxnOp::put(key.as_str(), value.clone(), None))
            .collect();
        client.txn(etcd_client::Txn::new().and_then(puts)).await?;
    }
    Ok(())
}

/// A server under load, ended when dropped, with what the kernel says of its process.
#[derive(Debug)]
pub(crate) enum Server {
    Ours { process: Helper, url: String },
    Etcd(Etcd),
}

impl Server {
    /// Ours, empty; it syncs its writes if there is a directory.
    pub(crate) fn ours(certs: &Path, directory: Option<&Path>) -> Result<Self> {
        let directory = directory.map(|path| path.display().to_string());
        let arguments: Vec<&str> = std::iter::once("0").chain(directory.as_deref()).collect();
        let (process, url) = child("serve", certs, &arguments)?;
        Ok(Self::Ours { process, url })
    }

    /// An etcd, empty.
    pub(crate) fn etcd(
        runtime: &tokio::runtime::Runtime,
        certs: &Path,
        data: &Path,
    ) -> Result<Self> {
        Ok(Self::Etcd(runtime.block_on(Etcd::start(certs, data))?))
    }

    /// Ours and etcd, both empty.
    pub(crate) fn both(
        runtime: &tokio::runtime::Runtime,
        certs: &Path,
        data: &Path,
    ) -> Result<[Self; 2]> {
        Ok([Self::ours(certs, None)?, Self::etcd(runtime, certs, data)?])
    }

    /// As [`Self::both`], and ours syncs its writes as well; in directories within `data`.
    pub(crate) fn both_durable(
        runtime: &tokio::runtime::Runtime,
        certs: &Path,
        data: &Path,
    ) -> Result<[Self; 2]> {
        let ours = Self::ours(certs, Some(&data.join("store")))?;
        Ok([ours, Self::etcd(runtime, certs, &data.join("etcd"))?])
    }

    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Ours { url, .. } => url,
            Self::Etcd(etcd) => &etcd.url,
        }
    }

    /// User and system time since its start; resolution 10 ms.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let text = self.proc("stat")?;
        // The second field may hold anything, in parentheses; utime and stime are 14th and 15th.
        let (_, rest) = text.rsplit_once(')').context("an odd stat file")?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        Ok(ticks as f64 / 100.0)
    }

    pub(crate) fn resident_bytes(&self) -> Result<usize> {
        resident_bytes(&self.proc("statm")?)
    }

    fn proc(&self, file: &str) -> Result<String> {
        let id = match self {
            Self::Ours { process, .. } => process.id(),
            Self::Etcd(etcd) => etcd.process.0.id(),
        };
        let path = format!("/proc/{id}/{file}");
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }
}

/// Of a process, by its statm file.
fn resident_bytes(statm: &str) -> Result<usize> {
    let pages = statm.split_whitespace().nth(1);
    Ok(pages.context("an odd statm file")?.parse::<usize>()? * 4_096)
}

/// A port on loopback that nobody has.
pub(crate) fn free_port() -> Result<u16> {
    let listener = StdListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
