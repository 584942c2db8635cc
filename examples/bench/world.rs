//! What the groups share: certificates, records, a real etcd, our own server, clients over mTLS.
use std::{
    net::{IpAddr, Ipv4Addr, TcpListener as StdListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tombolo::{
    keyspace::{Capabilities, ClusterConfig, Kind, Layout, cluster_config_key},
    limits::STORE_HISTORY_EVENTS_MAX,
    serve::{self, Keyspaces},
    store::{Options, Store},
    test_support::process::Helper,
    tls::{self, ClientOptions, ClientTls, Paths, ServerTls},
    types::ClusterName,
};

/// The cluster whose records are read.
pub(crate) const EAST: &str = "east";
/// Its id.
pub(crate) const EAST_ID: u32 = 2;
/// The reading cluster.
pub(crate) const WEST: &str = "west";
/// Bounds every wait for a child or a server.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// etcd's default for `--max-txn-ops`.
const TXN_PUTS: usize = 128;
/// One identity for so many addresses.
const ADDRESSES_PER_IDENTITY: u32 = 10;

/// Writes a CA and, from it, the server's and every user's certificate.
pub(crate) fn certificates(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    std::fs::write(dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for name in ["server", "admin-east", "remote-west", "local-west"] {
        let sans = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(sans)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &issuer)?.pem();
        std::fs::write(dir.join(format!("{name}.crt")), pem)?;
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// The TLS options of a user.
pub(crate) fn client_options(dir: &Path, user: &str) -> ClientOptions {
    ClientOptions {
        ca: Some(dir.join("ca.crt")),
        identity: Some((
            dir.join(format!("{user}.crt")),
            dir.join(format!("{user}.key")),
        )),
        ..ClientOptions::default()
    }
}

/// A client that can write, over mTLS. The agent's own client only reads.
pub(crate) async fn connect(dir: &Path, user: &str, url: &str) -> Result<etcd_client::Client> {
    let address = url.strip_prefix("https://").context("not an https URL")?;
    let tcp = TcpStream::connect(address).await.context("dial")?;
    tcp.set_nodelay(true)?;
    let tls = ClientTls::new(client_options(dir, user));
    let stream = tls.connect(tcp, "127.0.0.1").await.context("handshake")?;
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    // The stream is encrypted already: the scheme here only keeps the channel from doing it again.
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect_with_connector(connector)
        .await?;
    let channel = etcd_client::Channel::Tonic(channel);
    Ok(etcd_client::Client::from_channel(channel, None).await?)
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
        let labels = format!(
            "k8s:app=checkout-{n};k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
             k8s:io.cilium.k8s.policy.cluster=east;k8s:io.cilium.k8s.policy.serviceaccount=default;\
             k8s:io.kubernetes.pod.namespace=shop;"
        );
        records.push((key, labels.into_bytes()));
    }
    for n in 0..addresses {
        let ip = address(n);
        let host = Ipv4Addr::from_bits(0xac10_0000 + n / 100);
        let id = identity(n / ADDRESSES_PER_IDENTITY);
        let value = format!(
            r#"{{"IP":"{ip}","Mask":null,"HostIP":"{host}","ID":{id},"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"checkout-6c9f7d5b8-{n:05x}","K8sServiceAccount":"default","NamedPorts":[{{"Name":"http","Port":8080,"Protocol":"TCP"}},{{"Name":"metrics","Port":9090,"Protocol":"TCP"}}]}}"#
        );
        let prefix = Layout::State.prefix(Kind::Ips, &east);
        records.push((format!("{prefix}{ip}"), value.into_bytes()));
    }
    for kind in Kind::ALL {
        records.push((Layout::State.canary(kind, &east), b"true".to_vec()));
    }
    Ok(records)
}

/// The address that sorts last as text, which a list in key order yields last.
pub(crate) fn last_address(addresses: u32) -> Option<String> {
    (0..addresses).map(|n| address(n).to_string()).max()
}

fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a40_0000 + n))
}

/// Identities of a cluster are its id, shifted, and a number.
fn identity(n: u32) -> u32 {
    (EAST_ID << 16) + 256 + n
}

/// Serves `keyspaces` on a free port, which is printed, until the parent ends us.
pub(crate) async fn serve_keyspaces(
    dir: &Path,
    cluster: &str,
    keyspaces: Keyspaces,
    listener: TcpListener,
) -> Result<()> {
    let tls = ServerTls::load(Paths {
        cert: dir.join("server.crt"),
        key: dir.join("server.key"),
        ca: dir.join("ca.crt"),
    })?;
    let accept = move |tcp: TcpStream| {
        let tls = tls.clone();
        async move {
            let (stream, name) = tls.accept(tcp).await?;
            Ok::<_, tls::Error>((stream, name.as_str().to_owned()))
        }
    };
    println!("https://{}", listener.local_addr()?);
    let cancel = CancellationToken::new();
    Ok(serve::run(listener, accept, keyspaces, cluster.parse()?, cancel).await?)
}

/// A store as the agent makes it.
pub(crate) fn new_store() -> Store {
    Store::new(Options {
        cluster_id: rand::random::<u64>() | 1,
        history_max: STORE_HISTORY_EVENTS_MAX,
    })
}

/// The child that serves the cluster's export.
pub(crate) async fn serve(dir: &Path, addresses: u32) -> Result<()> {
    let export = new_store();
    for (key, value) in records(addresses)? {
        export.put(key.into(), value.into(), 0)?;
    }
    let keyspaces = Keyspaces {
        cluster: new_store(),
        export,
        cache: new_store(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    serve_keyspaces(dir, EAST, keyspaces, listener).await
}

/// Starts this program as a child and returns it with its first line.
pub(crate) fn child(part: &str, dir: &Path, arguments: &[&str]) -> Result<(Helper, String)> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg(part).arg(dir).args(arguments);
    let helper = Helper::start(part, &mut command)?;
    let line = helper
        .line(LIMIT)?
        .with_context(|| format!("{part} ended early"))?;
    Ok((helper, line))
}

/// A real etcd on loopback; ended when dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    child: Child,
    pub(crate) url: String,
}

impl Etcd {
    /// Starts it with client certificates required and waits until it answers.
    pub(crate) async fn start(dir: &Path, data: &Path) -> Result<Self> {
        let url = format!("https://127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let child = Command::new("/usr/bin/etcd")
            .arg("--data-dir")
            .arg(data)
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--client-cert-auth", "--trusted-ca-file"])
            .arg(dir.join("ca.crt"))
            .arg("--cert-file")
            .arg(dir.join("server.crt"))
            .arg("--key-file")
            .arg(dir.join("server.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start /usr/bin/etcd")?;
        let etcd = Self { child, url };
        let answers = async {
            loop {
                if let Ok(mut client) = connect(dir, "admin-east", &etcd.url).await
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
    pub(crate) async fn load(&self, dir: &Path, addresses: u32) -> Result<()> {
        let mut client = connect(dir, "admin-east", &self.url).await?;
        for chunk in records(addresses)?.chunks(TXN_PUTS) {
            let puts: Vec<_> = chunk
                .iter()
                .map(|(key, value)| etcd_client::TxnOp::put(key.as_str(), value.clone(), None))
                .collect();
            client.txn(etcd_client::Txn::new().and_then(puts)).await?;
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> Result<u16> {
    let listener = StdListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
