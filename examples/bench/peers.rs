//! Many peers behind one server: their records in one keyspace, each cluster below its name, as
//! kvstoremesh keeps them. So one etcd stands for all of them.
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result};
use tombolo::{
    keyspace::{Capabilities, ClusterConfig, Kind, Layout, cluster_config_key},
    types::ClusterName,
};

use crate::world::{address, address_record, labels};

/// Ids below are the reader's and the single source's.
const FIRST_ID: u32 = 3;

/// How many clusters, and what each of them has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) clusters: u32,
    pub(crate) addresses: u32,
    pub(crate) identities: u32,
    pub(crate) nodes: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            clusters,
            addresses,
            identities,
            nodes,
        } = self;
        write!(f, "{clusters},{addresses},{identities},{nodes}")
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split(',').map(str::parse::<u32>);
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let [clusters, addresses, identities, nodes] =
            numbers.try_into().ok().context("four numbers")?;
        Ok(Self {
            clusters,
            addresses,
            identities,
            nodes,
        })
    }
}

impl Shape {
    fn names(self) -> impl Iterator<Item = (u32, String)> {
        (0..self.clusters).map(|n| (n, format!("peer-{n:03}")))
    }

    /// All addresses of all peers, those of nodes included.
    pub(crate) const fn entries(self) -> u32 {
        self.clusters * (self.addresses + self.nodes)
    }

    /// All keys of all peers, the canaries of each last.
    pub(crate) fn records(self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut records = Vec::new();
        for (n, name) in self.names() {
            let cluster: ClusterName = name.parse()?;
            let id = FIRST_ID + n;
            let config = ClusterConfig {
                id,
                capabilities: Capabilities {
                    synced_canaries: true,
                    cached: true,
                    max_connected_clusters: 255,
                    ..Capabilities::default()
                },
            };
            let mut add = |key: String, value: String| records.push((key, value.into_bytes()));
            let config = String::from_utf8(config.encode())?;
            add(cluster_config_key(&cluster), config);
            let prefix = Layout::Cache.prefix(Kind::Identities, &cluster);
            for k in 0..self.identities {
                add(format!("{prefix}{}", identity(id, k)), labels(&name, k));
            }
            let prefix = Layout::Cache.prefix(Kind::Nodes, &cluster);
            for k in 0..self.nodes {
                add(
                    format!("{prefix}node-{k}"),
                    node(&name, id, k, n * self.nodes + k),
                );
            }
            let prefix = Layout::Cache.prefix(Kind::Ips, &cluster);
            for k in 0..self.addresses {
                let ip = address(n * self.addresses + k);
                let value = address_record(ip, identity(id, k % self.identities.max(1)), k);
                add(format!("{prefix}{ip}"), value);
            }
            for kind in Kind::ALL {
                add(Layout::Cache.canary(kind, &cluster), "true".to_owned());
            }
        }
        Ok(records)
    }

    /// Writes a peer file for each into `dir`, all with the same server and with the certificate that
    /// a cluster's own agents carry.
    pub(crate) fn files(self, certs: &Path, url: &str, dir: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let certs = certs.display();
        let text = format!(
            "endpoints: [\"{url}\"]\ntrusted-ca-file: {certs}/ca.crt\n\
             cert-file: {certs}/local.crt\nkey-file: {certs}/local.key\n"
        );
        let write = |(_, name)| {
            let path = dir.join(format!("{name}.config"));
            fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        self.names().map(write).collect()
    }
}

const fn identity(cluster: u32, n: u32) -> u32 {
    (cluster << 16) + 256 + n
}

fn node(cluster: &str, id: u32, n: u32, index: u32) -> String {
    let ip = Ipv4Addr::from_bits(0xac20_0000 + index);
    format!(
        r#"{{"Name":"node-{n}","Cluster":"{cluster}","IPAddresses":[{{"Type":"InternalIP","IP":"{ip}"}}],"IPv4AllocCIDR":null,"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":{id},"Source":"custom-resource","EncryptionKey":0,"Labels":null,"Annotations":null,"NodeIdentity":0,"WireguardPubKey":"","BootID":""}}"#
    )
}
