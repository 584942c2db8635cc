//! A producer: cluster `west`, id 2, whose node `n1` publishes manifests into a real etcd and serves
//! the export over mutual TLS, as the agent joins these parts.
use std::{net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tombolo::{
    app::testing,
    etcd::{Client, ConnectOptions, Connector},
    lifecycle::Tasks,
    peer::ConfigFile,
    publish::{self, ExportPolicy, Projection, Publisher, Views},
    serve::{self, Keyspaces},
    source::manifests::{Manifests, Place},
    store::{KeyValue, RangeRequest, Store},
    telemetry,
    tls::{Paths, ServerTls},
    types::{ClusterId, MaxClusters},
};

use super::{
    etcd::{Etcd, own_address},
    peer::replace,
    pki::Pki,
    relay::Relay,
    wait::eventually,
    world::store,
};

/// Events between the parts; nothing here has more at once.
const EVENTS: usize = 1_024;

pub(crate) struct Producer {
    /// Its cluster store.
    pub(crate) etcd: Etcd,
    /// Where it serves the export.
    pub(crate) address: SocketAddr,
    pki: Pki,
    manifests: tempfile::TempDir,
    state: tempfile::TempDir,
    /// In front of the etcd, if there is one.
    pub(crate) relay: Option<Relay>,
    running: Option<Running>,
}

struct Running {
    tasks: Tasks,
    export: Views,
    status: watch::Receiver<publish::Status>,
}

impl Producer {
    /// Publishes these manifests, each a document.
    pub(crate) async fn start(manifests: &[&str]) -> Self {
        let mut producer = Self::stopped().await;
        producer.write("cluster.yaml", manifests);
        producer.run().await;
        producer
    }

    /// Not running yet.
    pub(crate) async fn stopped() -> Self {
        let address = own_address();
        Self {
            etcd: Etcd::start("west", &[]).await,
            address,
            pki: Pki::new(address.ip(), &["remote-east"]),
            manifests: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir().unwrap(),
            relay: None,
            running: None,
        }
    }

    /// A manifest file with these documents.
    pub(crate) fn write(&self, file: &str, documents: &[&str]) {
        replace(
            &self.manifests.path().join(file),
            &documents.join("\n---\n"),
        );
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests.path().join(file)).unwrap();
    }

    /// Starts its process, so to say; returns once the face listens.
    pub(crate) async fn run(&mut self) {
        let tasks = Tasks::new();
        let export = Views::new(&ExportPolicy::default(), || {
            store(rand::random::<u64>() | 1)
        });
        let options = publish::Options {
            cluster: "west".parse().unwrap(),
            id: ClusterId::new(2, MaxClusters::C255).unwrap(),
            max: MaxClusters::C255,
            node_name: "n1".to_owned(),
            state_dir: self.state.path().to_owned(),
        };
        let connector = self.connector();
        let publisher = Publisher::open(options.clone(), connector, telemetry::now_utc).await;
        let publisher = publisher.unwrap();
        let (status, confirmed) = (publisher.status(), publisher.confirmed());
        let events = self.source(&tasks);
        let cancel = tasks.token();
        tasks.spawn("publish", async move {
            let (endpoints, mut told) = mpsc::channel(EVENTS);
            let told = async { while told.recv().await.is_some() {} };
            let run = Box::pin(publisher.run(events, endpoints, cancel));
            Ok(tokio::join!(run, told).0?)
        });
        let (_, policy) = watch::channel(ExportPolicy::default());
        let clock = telemetry::now_utc;
        let projection = Projection::new(options, confirmed, export.clone(), policy, clock);
        let cancel = tasks.token();
        tasks.spawn("export", async move { Ok(projection.run(cancel).await?) });
        self.serve(&tasks, export.clone()).await;
        self.running = Some(Running {
            tasks,
            export,
            status,
        });
    }

    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        testing::finish(&running.tasks).await.unwrap();
    }

    /// As the etcd's user `admin`.
    fn connector(&self) -> Connector {
        let path = |end: &str| self.etcd.pki.path(end).display().to_string();
        let text = match &self.relay {
            Some(relay) => format!("endpoints: [\"http://{}\"]\n", relay.address),
            None => format!(
                "endpoints: [\"https://{}\"]\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
                self.etcd.address,
                path("ca.crt"),
                path("admin.crt"),
                path("admin.key"),
            ),
        };
        let file = ConfigFile::parse(&text, self.state.path()).unwrap();
        let options = Arc::new(file.connect);
        Connector::new(move || {
            let options = Arc::clone(&options);
            async move { Client::connect_to_store(&options).await }
        })
    }

    fn source(&self, tasks: &Tasks) -> mpsc::Receiver<tombolo::source::LocalEvent> {
        let place = Place {
            cluster: "west".parse().unwrap(),
            node_name: "n1".to_owned(),
        };
        let saved = self.state.path().join("manifests");
        let (events, receiver) = mpsc::channel(EVENTS);
        let source = Manifests::new(self.manifests.path(), saved, place, None, events);
        let cancel = tasks.token();
        tasks.spawn("manifests", async move { Ok(source.run(cancel).await?) });
        receiver
    }

    async fn serve(&self, tasks: &Tasks, export: Views) {
        let tls = ServerTls::load(Paths {
            cert: self.pki.path("server.crt"),
            key: self.pki.path("server.key"),
            ca: self.pki.path("ca.crt"),
        });
        let tls = tls.unwrap();
        let keyspaces = Keyspaces {
            // That is the etcd.
            cluster: None,
            export,
            cache: store(23),
        };
        let server =
            serve::Server::new(keyspaces, "west".parse().unwrap(), serve::Limits::default());
        let accept = move |tcp: TcpStream| {
            let tls = tls.clone();
            async move {
                let (stream, name) = tls.accept(tcp).await?;
                Ok::<_, tombolo::tls::Error>((stream, name.as_str().to_owned()))
            }
        };
        let listener = TcpListener::bind(self.address).await.unwrap();
        let cancel = tasks.token();
        tasks.spawn("serve", async move {
            Ok(server.run(listener, accept, cancel).await?)
        });
    }

    /// The peer file of a reader, whose cluster is `east`.
    pub(crate) fn file(&self) -> String {
        let path = |end: &str| self.pki.path(end).display().to_string();
        format!(
            "endpoints: [\"https://{}\"]\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            self.address,
            path("ca.crt"),
            path("remote-east.crt"),
            path("remote-east.key"),
        )
    }

    /// How `east` connects.
    pub(crate) fn reader(&self) -> ConnectOptions {
        ConfigFile::parse(&self.file(), self.state.path())
            .unwrap()
            .connect
    }

    /// What peers read.
    pub(crate) fn export(&self) -> Store {
        self.running
            .as_ref()
            .expect("it runs")
            .export
            .of(None)
            .store
    }

    pub(crate) fn exported(&self, key: &str) -> Option<KeyValue> {
        self.export().get(key.as_bytes())
    }

    pub(crate) fn exported_keys(&self, prefix: &str) -> Vec<String> {
        let found = self
            .export()
            .range(&RangeRequest::prefix(prefix.as_bytes()))
            .unwrap();
        let key = |kv: &KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
        found.kvs.iter().map(key).collect()
    }

    pub(crate) fn status(&self) -> publish::Status {
        self.running
            .as_ref()
            .expect("it runs")
            .status
            .borrow()
            .clone()
    }

    /// Waits until the export has this key.
    pub(crate) async fn exports(&self, key: &str) -> KeyValue {
        eventually(key, async || self.exported(key)).await
    }

    /// Waits until the export lacks this key.
    pub(crate) async fn withdraws(&self, key: &str) {
        eventually(&format!("{key} goes"), async || {
            self.exported(key).is_none().then_some(())
        })
        .await;
    }
}

/// A pod of this node.
pub(crate) fn pod(name: &str, app: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: n1}}\nstatus: {{phase: Running, podIPs: [{{ip: {address}}}]}}\n"
    )
}

pub(crate) const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
    spec: {podCIDR: 10.112.2.0/24}\nstatus: {addresses: [{type: InternalIP, address: 10.7.2.21}]}\n";

/// The service `shop/<name>` with these annotations, as JSON, and its only slice.
pub(crate) fn service(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, annotations: {annotations}}}\n\
         spec: {{clusterIP: 10.96.0.10, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.112.2.44]}}]\n"
    )
}
