//! A peer cluster: its etcd, the line to it, and what it publishes.
use std::path::Path;

use serde_json::Value;

use super::{
    etcd::{Etcd, own_address},
    proxy::Proxy,
    records,
};

/// The kinds that every producer writes, as their canaries name them.
pub(crate) const KINDS: [&str; 4] = ["nodes", "identities", "ip", "services"];

/// Which of the two trees a peer's data is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tree {
    State,
    Cache,
}

pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// What its records say; its etcd says so too once published.
    pub(crate) id: u32,
    /// Bits of an identity below the cluster's id: 16, or 15 in a mesh of 511.
    pub(crate) shift: u32,
    pub(crate) tree: Tree,
    pub(crate) etcd: Etcd,
    pub(crate) proxy: Proxy,
}

impl Peer {
    /// Nothing is in its etcd.
    pub(crate) async fn empty(name: &'static str, id: u32) -> Self {
        Self::with_flags(name, id, &[]).await
    }

    pub(crate) async fn with_flags(name: &'static str, id: u32, flags: &[&str]) -> Self {
        let etcd = Etcd::start(name, flags).await;
        let proxy = Proxy::start(etcd.address).await;
        Self {
            name,
            id,
            shift: 16,
            tree: Tree::State,
            etcd,
            proxy,
        }
    }

    /// One record of each kind, and all that belongs to them.
    pub(crate) async fn start(name: &'static str, id: u32) -> Self {
        let peer = Self::empty(name, id).await;
        peer.publish().await;
        peer
    }

    pub(crate) async fn publish(&self) {
        self.publish_config(&records::config(self.id)).await;
        self.publish_data().await;
        self.publish_canaries().await;
    }

    pub(crate) async fn publish_config(&self, config: &Value) {
        self.etcd.put(&self.config_key(), config.to_string()).await;
    }

    pub(crate) async fn publish_canaries(&self) {
        let canaries = KINDS
            .iter()
            .map(|kind| (self.canary(kind), "now".to_owned()));
        self.etcd.put_all(canaries.collect()).await;
    }

    pub(crate) async fn publish_data(&self) {
        let mut entries = vec![("cilium/.heartbeat".to_owned(), "now".to_owned())];
        entries.extend(self.basic());
        self.etcd.put_all(entries).await;
    }

    /// One record of each kind.
    pub(crate) fn basic(&self) -> Vec<(String, String)> {
        let service = records::service(self.name, self.id, "checkout", &[&self.pod()]);
        vec![
            (
                self.key("nodes", "n1"),
                self.node_record("n1", &self.node()).to_string(),
            ),
            (self.identity_key(1), records::labels(self.name, "checkout")),
            (
                self.key("ip", &self.pod()),
                records::ip(&self.pod(), self.identity(1)).to_string(),
            ),
            (self.key("services", "shop/checkout"), service.to_string()),
        ]
    }

    pub(crate) fn node_record(&self, name: &str, address: &str) -> Value {
        records::node(self.name, self.id, name, address)
    }

    /// The address of its node `n1`.
    pub(crate) fn node(&self) -> String {
        format!("10.7.{}.21", self.id & 255)
    }

    /// The address of its pod.
    pub(crate) fn pod(&self) -> String {
        self.address(44)
    }

    /// Another address of its pods.
    pub(crate) fn address(&self, last: u8) -> String {
        format!("10.112.{}.{last}", self.id & 255)
    }

    /// One of its identities.
    pub(crate) fn identity(&self, number: u32) -> u32 {
        (self.id << self.shift) + number
    }

    pub(crate) fn identity_key(&self, number: u32) -> String {
        self.key("identities", &self.identity(number).to_string())
    }

    pub(crate) fn config_key(&self) -> String {
        format!("cilium/cluster-config/{}", self.name)
    }

    pub(crate) fn canary(&self, kind: &str) -> String {
        let tree = self.tree.root();
        format!("cilium/synced/{}/cilium/{tree}/{kind}/v1", self.name)
    }

    /// Where it writes a record of this kind.
    pub(crate) fn key(&self, kind: &str, suffix: &str) -> String {
        self.tree.key(kind, self.name, suffix)
    }

    /// Where a reader's cache has it.
    pub(crate) fn cached(&self, kind: &str, suffix: &str) -> String {
        Tree::Cache.key(kind, self.name, suffix)
    }

    /// A new address of this record.
    pub(crate) async fn put_ip(&self, address: &str, identity: u32) {
        let record = records::ip(address, identity).to_string();
        self.etcd.put(&self.key("ip", address), record).await;
    }

    /// The peer file that leads to it through its line.
    pub(crate) fn file(&self) -> String {
        self.file_through(&[format!("https://{}", self.proxy.address)])
    }

    pub(crate) fn file_through(&self, endpoints: &[String]) -> String {
        let user = match self.tree {
            Tree::State => "remote",
            Tree::Cache => "local",
        };
        let path = |file: &str| self.etcd.pki.path(file).display().to_string();
        format!(
            "endpoints: {endpoints:?}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            path("ca.crt"),
            path(&format!("{user}.crt")),
            path(&format!("{user}.key")),
        )
    }

    /// An endpoint where nobody listens.
    pub(crate) fn dead_endpoint() -> String {
        format!("https://{}", own_address())
    }

    pub(crate) fn write_file(&self, directory: &Path) {
        replace(&directory.join(self.name), &self.file());
    }
}

/// Writes a file at once, as whoever reads it should see it. It is made outside of its directory,
/// where nobody looks.
pub(crate) fn replace(path: &Path, text: &str) {
    let outside = path.parent().and_then(Path::parent).unwrap();
    let file = tempfile::NamedTempFile::new_in(outside).unwrap();
    std::fs::write(file.path(), text).unwrap();
    file.persist(path).unwrap();
}

impl Tree {
    const fn root(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Cache => "cache",
        }
    }

    pub(crate) fn key(self, kind: &str, cluster: &str, suffix: &str) -> String {
        let middle = match (self, kind) {
            (Self::State, "identities") => "id".to_owned(),
            (Self::State, "ip") => "default".to_owned(),
            (Self::Cache, "identities") => format!("{cluster}/id"),
            _ => cluster.to_owned(),
        };
        format!("cilium/{}/{kind}/v1/{middle}/{suffix}", self.root())
    }
}
