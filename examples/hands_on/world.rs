//! What the story plays on: two hosts, five pods, and the texts of manifests and policies.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use tombolo::test_support::lab::{Host, Lab, Pod};

/// Where the database listens.
pub(crate) const REDIS_PORT: u16 = 6379;
/// The database's pod.
pub(crate) const DATABASE: &str = "protected-db";

/// One cluster: a host, its pods, its directories.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) cluster: &'static str,
    pub(crate) id: u32,
    pub(crate) node: &'static str,
    pub(crate) cidr: &'static str,
    pub(crate) host: Host,
    pub(crate) dir: PathBuf,
    pub(crate) workloads: Vec<Workload>,
}

/// A pod with what its manifest says.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) app: &'static str,
    pub(crate) namespace: &'static str,
    /// May it reach the database once the policy is there?
    pub(crate) allowed: bool,
    /// Its security identity, if the story chose it; else an agent does.
    pub(crate) identity: Option<u32>,
    pub(crate) pod: Pod,
}

/// Name, id, node, pod CIDR, host address, and pods as app, namespace, address, allowed.
type Plan = (
    &'static str,
    u32,
    &'static str,
    &'static str,
    Ipv4Addr,
    &'static [(&'static str, &'static str, Ipv4Addr, bool)],
);

const PLANS: [Plan; 2] = [
    (
        "cluster1",
        101,
        "node1",
        "10.60.1.0/24",
        Ipv4Addr::new(10, 200, 0, 1),
        &[
            (DATABASE, "default", Ipv4Addr::new(10, 60, 1, 10), true),
            ("employee", "default", Ipv4Addr::new(10, 60, 1, 11), true),
            ("stranger", "default", Ipv4Addr::new(10, 60, 1, 12), false),
        ],
    ),
    (
        "cluster2",
        102,
        "node2",
        "10.60.2.0/24",
        Ipv4Addr::new(10, 200, 0, 2),
        &[
            (
                "employee",
                "istio-space",
                Ipv4Addr::new(10, 60, 2, 11),
                true,
            ),
            (
                "stranger",
                "istio-space",
                Ipv4Addr::new(10, 60, 2, 12),
                false,
            ),
        ],
    ),
];

/// Makes hosts, pods and directories; starts nothing.
pub(crate) fn build(lab: &mut Lab) -> Result<[Site; 2]> {
    let mut sites = Vec::new();
    for (cluster, id, node, cidr, address, _) in PLANS {
        let host = lab.host(node, address)?;
        let dir = lab.dir().join(cluster);
        for part in [
            "state",
            "clustermesh",
            "etcd-secrets",
            "manifests",
            "policies",
        ] {
            let path = dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        sites.push(Site {
            cluster,
            id,
            node,
            cidr,
            host,
            dir,
            workloads: Vec::new(),
        });
    }
    let mut sites: [Site; 2] = sites
        .try_into()
        .ok()
        .context("there are two plans, so there are two sites")?;
    let [one, two] = &sites;
    // First of all, because the pods' routes name the hosts' addresses.
    lab.join((&one.host, one.cidr), (&two.host, two.cidr))?;
    for (site, (.., pods)) in sites.iter_mut().zip(PLANS) {
        for &(app, namespace, address, allowed) in pods {
            let pod = lab.pod(&site.host, app, address)?;
            site.workloads.push(Workload {
                app,
                namespace,
                allowed,
                identity: None,
                pod,
            });
        }
    }
    Ok(sites)
}

impl Site {
    /// The workload with this `app` label.
    pub(crate) fn workload(&self, app: &str) -> Result<&Workload> {
        let found = self.workloads.iter().find(|w| w.app == app);
        found.with_context(|| format!("no workload {app} in {}", self.cluster))
    }

    /// Fails if the host has any way out of the lab.
    pub(crate) fn check_no_way_out(&self) -> Result<()> {
        let routes = self
            .host
            .namespace
            .shell("ip -4 route show; ip -6 route show default")?;
        ensure!(
            !routes.contains("default"),
            "{} has a default route: {routes}",
            self.node
        );
        for line in self.host.namespace.shell("ip -o link show")?.lines() {
            let name = line.split(": ").nth(1).unwrap_or_default();
            let name = name.split('@').next().unwrap_or_default();
            let known = name == "lo"
                || name == "uplink"
                || self.workloads.iter().any(|w| w.pod.interface == name)
                // Fallback tunnels that some kernels make in every namespace are down.
                || line.contains("state DOWN");
            ensure!(known, "{} has an unknown interface: {line}", self.node);
        }
        Ok(())
    }

    /// Writes the cluster's manifests.
    pub(crate) fn write_manifests(&self) -> Result<()> {
        let (node, cidr, host) = (self.node, self.cidr, self.host.address);
        let mut namespaces: Vec<_> = self.workloads.iter().map(|w| w.namespace).collect();
        namespaces.dedup();
        for name in namespaces {
            let text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
            self.drop_file(&format!("manifests/namespace-{name}.yaml"), &text)?;
        }
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\nspec:\n  podCIDR: {cidr}\n  \
             podCIDRs:\n  - {cidr}\nstatus:\n  addresses:\n  - type: InternalIP\n    \
             address: {host}\n"
        );
        self.drop_file("manifests/node.yaml", &text)?;
        for w in &self.workloads {
            let (app, namespace, address) = (w.app, w.namespace, w.pod.address);
            let interface = &w.pod.interface;
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {app}\n  namespace: {namespace}\n  \
                 labels:\n    app: {app}\n  annotations:\n    tombolo.io/interface: {interface}\n\
                 spec:\n  nodeName: {node}\nstatus:\n  phase: Running\n  hostIP: {host}\n  \
                 podIP: {address}\n  podIPs:\n  - ip: {address}\n"
            );
            self.drop_file(&format!("manifests/pod-{app}.yaml"), &text)?;
        }
        Ok(())
    }

    /// Puts a file into one of the watched directories, whole.
    pub(crate) fn drop_file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        let draft = path.with_extension("draft");
        fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("rename to {}", path.display()))
    }
}

impl crate::Peer {
    /// The sites that have an agent.
    pub(crate) fn agents(self, sites: &[Site; 2]) -> &[Site] {
        match self {
            Self::Tombolo => sites,
            Self::Etcd => std::slice::from_ref(&sites[0]),
        }
    }
}

/// The database's address.
pub(crate) fn database(sites: &[Site; 2]) -> Result<SocketAddr> {
    Ok((sites[0].workload(DATABASE)?.pod.address, REDIS_PORT).into())
}

/// The guide's policy. `local_cluster`: name cluster1 in the rule for local clients, too.
/// `employee`: the label of those who may.
pub(crate) fn policy(local_cluster: bool, employee: &str) -> String {
    let local = if local_cluster {
        "\n        io.cilium.k8s.policy.cluster: cluster1"
    } else {
        ""
    };
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: protect-the-database
  namespace: default
spec:
  description: only employees reach the database
  endpointSelector:
    matchLabels:
      app: {DATABASE}
      io.cilium.k8s.policy.cluster: cluster1
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: {employee}{local}
    toPorts:
    - ports:
      - port: \"{REDIS_PORT}\"
        protocol: TCP
  - fromEndpoints:
    - matchLabels:
        app: {employee}
        io.cilium.k8s.policy.cluster: cluster2
        k8s:io.kubernetes.pod.namespace: istio-space
    toPorts:
    - ports:
      - port: \"{REDIS_PORT}\"
        protocol: TCP
"
    )
}

/// A peer file and the certificates that it names, as `tombolo certs issue` made them.
#[derive(Debug)]
pub(crate) struct Invitation {
    /// Name and text of the peer file.
    pub(crate) peer_file: (String, String),
    /// Certificates and key.
    pub(crate) secrets: Vec<PathBuf>,
}

impl Invitation {
    /// Reads what was issued into `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let (mut peer_file, mut secrets) = (None, Vec::new());
        for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry
                .with_context(|| format!("list {}", dir.display()))?
                .path();
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            if text.contains("endpoints:") {
                let name = path.file_name().context("a listed file has a name")?;
                peer_file = Some((name.to_string_lossy().into_owned(), text));
            } else {
                secrets.push(path);
            }
        }
        let peer_file = peer_file.with_context(|| format!("no peer file in {}", dir.display()))?;
        ensure!(
            secrets.len() >= 3,
            "expected CA, certificate and key in {}",
            dir.display()
        );
        Ok(Self { peer_file, secrets })
    }

    /// Where the peer file goes.
    pub(crate) fn path(&self, site: &Site) -> PathBuf {
        site.dir.join("clustermesh").join(&self.peer_file.0)
    }

    /// Copies the certificates to where the peer file says that they are.
    pub(crate) fn hand_over_secrets(&self, site: &Site) -> Result<()> {
        for path in &self.secrets {
            let name = path.file_name().context("a listed file has a name")?;
            let to = site.dir.join("etcd-secrets").join(name);
            fs::copy(path, &to).with_context(|| format!("copy to {}", to.display()))?;
        }
        Ok(())
    }

    /// Writes the peer file in place, or only the first half of it, as a slow copy would.
    pub(crate) fn write(&self, site: &Site, whole: bool) -> Result<()> {
        let (path, text) = (self.path(site), &self.peer_file.1);
        let end = if whole { text.len() } else { text.len() / 2 };
        let part = text
            .as_bytes()
            .get(..end)
            .context("half of a text is within it")?;
        fs::write(&path, part).with_context(|| format!("write {}", path.display()))
    }
}
