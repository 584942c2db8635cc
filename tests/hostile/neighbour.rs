//! The peer that behaves, cluster `north`: writes addresses at a steady rate to a store that this
//! process serves, and watches the agent's cache for them.
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    keyspace::{Capabilities, ClusterConfig, HEARTBEAT, Kind, Layout, cluster_config_key},
    publish::{ExportPolicy, Views},
    serve::{self, Keyspaces},
    store::{Options, Store},
    tls::{self, ClientOptions, ClientTls, Paths, ServerTls},
    types::ClusterName,
};

use super::{PATIENCE, agent::Agent, eventually};

const WRITE_EVERY: Duration = Duration::from_millis(10);
const IDENTITY: u32 = (2 << 16) + 300;

pub(crate) struct Neighbour {
    runtime: Runtime,
    store: Store,
    /// Its peer file for the agent.
    pub(crate) file: PathBuf,
    client: etcd_client::Client,
    /// When each address was written.
    written: Vec<Instant>,
    /// When the watcher saw it.
    seen: Arc<Mutex<BTreeMap<Ipv4Addr, Instant>>>,
    /// The first write of the current measurement.
    from: usize,
}

/// The address of a write.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a28_0000 + u32::try_from(number).unwrap())
}

fn store() -> Store {
    Store::new(Options {
        cluster_id: rand::random::<u64>() | 1,
        history_max: 100_000,
    })
}

impl Neighbour {
    pub(crate) fn start(agent: &Agent) -> Self {
        let runtime = Runtime::new().unwrap();
        let certs = agent.path("north");
        agent.certificates("north", &certs);
        let keyspaces = Keyspaces {
            cluster: None,
            export: Views::new(&ExportPolicy::default(), store),
            cache: store(),
        };
        let export = keyspaces.export.of(None).store;
        publish(&export);
        let tls = ServerTls::load(Paths {
            cert: certs.join("server.crt"),
            key: certs.join("server.key"),
            ca: certs.join("ca.crt"),
        });
        let tls = tls.unwrap();
        let accept = move |tcp: TcpStream| {
            let tls = tls.clone();
            async move {
                let (stream, name) = tls.accept(tcp).await?;
                Ok::<_, tls::Error>((stream, name.as_str().to_owned()))
            }
        };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let name = "north".parse().unwrap();
        let server = serve::Server::new(keyspaces, name, serve::Limits::default());
        runtime.spawn(server.run(listener, accept, CancellationToken::new()));
        let client = runtime.block_on(connect(agent));
        let neighbour = Self {
            file: agent.issue("north", &certs, &url),
            runtime,
            store: export,
            client,
            written: Vec::new(),
            seen: Arc::default(),
            from: 0,
        };
        neighbour.watch();
        neighbour
    }

    fn watch(&self) {
        let (mut client, seen) = (self.client.clone(), Arc::clone(&self.seen));
        let prefix = Layout::Cache.prefix(Kind::Ips, &"north".parse().unwrap());
        let options = etcd_client::WatchOptions::new().with_prefix();
        let watch = client.watch(prefix.clone(), Some(options));
        let mut stream = self.runtime.block_on(watch).unwrap();
        self.runtime.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                let now = Instant::now();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                for kv in message.events().iter().filter_map(|event| event.kv()) {
                    let key = kv.key_str().unwrap().strip_prefix(&prefix).unwrap();
                    seen.entry(key.parse().unwrap()).or_insert(now);
                }
            }
        });
    }

    /// Writes a new address every 10 ms, whatever becomes of those before.
    pub(crate) fn write_for(&mut self, duration: Duration) {
        let count = duration.as_millis() / WRITE_EVERY.as_millis();
        self.runtime.block_on(async {
            let mut tick = tokio::time::interval(WRITE_EVERY);
            for _ in 0..count {
                tick.tick().await;
                let ip = address(self.written.len());
                let value = format!(r#"{{"IP":"{ip}","Mask":null,"HostIP":"","ID":{IDENTITY}}}"#);
                self.written.push(Instant::now());
                let key = format!("cilium/state/ip/v1/default/{ip}");
                self.store.put(key.into(), value.into(), 0).unwrap();
            }
        });
    }

    /// Of all writes since the last call, until the watcher saw them.
    pub(crate) fn p99(&mut self) -> Duration {
        self.saw_everything();
        let seen = self.seen.lock().unwrap();
        let of_write = |number: usize| seen[&address(number)].duration_since(self.written[number]);
        // The first ones wait for the connection.
        let first = if self.from == 0 { 100 } else { self.from };
        let mut all: Vec<Duration> = (first..self.written.len()).map(of_write).collect();
        all.sort_unstable();
        self.from = self.written.len();
        all[all.len() * 99 / 100]
    }

    /// Waits until the watcher has seen every write.
    pub(crate) fn saw_everything(&self) {
        let look = || {
            let seen = self.seen.lock().unwrap();
            let lost = (0..self.written.len()).find(|n| !seen.contains_key(&address(*n)));
            anyhow::ensure!(lost.is_none(), "{:?} was not seen", lost.map(address));
            Ok(())
        };
        eventually(PATIENCE, look).unwrap();
    }

    /// Keys and values of the agent's cache.
    pub(crate) fn cached(&self, prefix: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut client = self.client.clone();
        let options = etcd_client::GetOptions::new().with_prefix();
        let list = client.get(prefix, Some(options));
        let mut response = self.runtime.block_on(list).unwrap();
        let kvs = response.take_kvs().into_iter();
        kvs.map(|kv| (kv.key().to_vec(), kv.value().to_vec()))
            .collect()
    }
}

/// All that the agent needs to know of `north`, but addresses.
fn publish(export: &Store) {
    let north: ClusterName = "north".parse().unwrap();
    let config = ClusterConfig {
        id: 2,
        capabilities: Capabilities {
            synced_canaries: true,
            max_connected_clusters: 255,
            ..Capabilities::default()
        },
    };
    let put = |key: String, value: Vec<u8>| {
        export.put(key.into(), value.into(), 0).unwrap();
    };
    put(cluster_config_key(&north), config.encode());
    put(HEARTBEAT.to_owned(), b"now".to_vec());
    let labels = "k8s:app=a;k8s:io.cilium.k8s.policy.cluster=north;";
    put(
        format!("cilium/state/identities/v1/id/{IDENTITY}"),
        labels.into(),
    );
    for kind in Kind::ALL {
        put(Layout::State.canary(kind, &north), b"now".to_vec());
    }
}

/// A client of the cache, as this cluster's own agents are.
async fn connect(agent: &Agent) -> etcd_client::Client {
    let tcp = TcpStream::connect(agent.address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let file = |name: &str| agent.path("certs").join(name);
    let tls = ClientTls::new(ClientOptions {
        ca: Some(file("ca.crt")),
        identity: Some((file("local.crt"), file("local.key"))),
        ..ClientOptions::default()
    });
    let stream = tls.connect(tcp, "127.0.0.1").await.unwrap();
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let taken = once.lock().unwrap().take();
        async move { taken.ok_or_else(|| std::io::Error::other("connected once already")) }
    });
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", agent.address));
    let channel = endpoint
        .unwrap()
        .connect_with_connector(connector)
        .await
        .unwrap();
    let channel = etcd_client::Channel::Tonic(channel);
    etcd_client::Client::from_channel(channel, None)
        .await
        .unwrap()
}
