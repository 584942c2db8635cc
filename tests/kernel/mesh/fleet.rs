//! Five hosts on one network: two nodes each of cluster1 and cluster2, one of cluster3.
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tombolo::test_support::{
    eventually,
    lab::{Host, Lab, Pod},
    process::{run, run_ok},
};

/// A verb takes milliseconds; this bounds a hung one.
const VERB_LIMIT: Duration = Duration::from_secs(20);
/// Whatever is waited for takes a second or two, on a busy machine a few.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Where cluster1's etcd listens, on its first node.
const ETCD: &str = "http://10.200.0.1:12379";

/// Cluster, its id, node; the place in this list gives the addresses.
const NODES: [(&str, u32, &str); 5] = [
    ("cluster1", 101, "node1"),
    ("cluster1", 101, "node2"),
    ("cluster2", 102, "node1"),
    ("cluster2", 102, "node2"),
    ("cluster3", 103, "node1"),
];
pub(super) const A1: usize = 0;
pub(super) const A2: usize = 1;
pub(super) const B1: usize = 2;
pub(super) const B2: usize = 3;
pub(super) const C1: usize = 4;

/// A node with its directories; those of one cluster share their certificates.
pub(super) struct Node {
    pub(super) cluster: &'static str,
    id: u32,
    pub(super) name: &'static str,
    pub(super) host: Host,
    cidr: String,
    pub(super) dir: PathBuf,
    pub(super) certs: PathBuf,
}

pub(super) struct Fleet {
    pub(super) lab: Lab,
    pub(super) nodes: Vec<Node>,
    temp: tempfile::TempDir,
}

impl Fleet {
    /// Hosts, certificates, manifests, and cluster1's etcd; no agent runs yet.
    pub(super) fn build() -> Result<Self> {
        let temp = tempfile::tempdir()?;
        let mut lab = Lab::open(&temp.path().join("lab"))?;
        let mut nodes = Vec::new();
        for (number, (cluster, id, name)) in (1..).zip(NODES) {
            let host_name = format!("{cluster}-{name}");
            let host = lab.host(&host_name, Ipv4Addr::new(10, 200, 0, number))?;
            let dir = lab.dir().join(&host_name);
            for part in ["state", "clustermesh", "manifests", "policies"] {
                fs::create_dir_all(dir.join(part))?;
            }
            nodes.push(Node {
                cluster,
                id,
                name,
                host,
                cidr: format!("10.60.{number}.0/24"),
                dir,
                certs: lab.dir().join(format!("{cluster}-certs")),
            });
        }
        let hosts: Vec<_> = nodes.iter().map(|n| (&n.host, n.cidr.as_str())).collect();
        lab.network(&hosts)?;
        let fleet = Self { lab, nodes, temp };
        for index in [A1, B1, C1] {
            fleet.certs_init(index)?;
        }
        for index in 0..NODES.len() {
            fleet.write_node(index)?;
        }
        Ok(fleet)
    }

    pub(super) fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    fn of_cluster(&self, cluster: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |n| n.cluster == cluster)
    }

    fn certs_init(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        let mut command = Command::new(TOMBOLO);
        command.args(["certs", "init", "--cluster-name", node.cluster]);
        command.arg("--dir").arg(&node.certs);
        for member in self.of_cluster(node.cluster) {
            command.args(["--san", &member.host.address.to_string()]);
        }
        run_ok(&mut command, VERB_LIMIT).map(drop)
    }

    fn write_node(&self, index: usize) -> Result<()> {
        let Node {
            name, cidr, host, ..
        } = self.node(index);
        let address = host.address;
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
             spec: {{podCIDR: {cidr}, podCIDRs: [{cidr}]}}\n\
             status:\n  addresses: [{{type: InternalIP, address: {address}}}]\n\
             ---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default}}\n"
        );
        self.write(index, "manifests/node.yaml", &text)
    }

    /// Puts a file into one of a node's watched directories, whole.
    pub(super) fn write(&self, index: usize, name: &str, text: &str) -> Result<()> {
        let path = self.node(index).dir.join(name);
        let draft = path.with_extension("draft");
        fs::write(&draft, text)?;
        fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))
    }

    /// A pod's manifest; without an interface nothing is enforced for it.
    pub(super) fn write_pod(
        &self,
        index: usize,
        app: &str,
        last: u8,
        pod: Option<&Pod>,
    ) -> Result<()> {
        let (node, host) = (self.node(index).name, self.node(index).host.address);
        let address = self.pod_address(index, last);
        let interface = pod.map_or("none0", |pod| &pod.interface);
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {app}\n  namespace: default\n  \
             labels: {{app: {app}}}\n  annotations: {{tombolo.io/interface: {interface}}}\n\
             spec: {{nodeName: {node}}}\n\
             status: {{phase: Running, hostIP: {host}, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
        );
        self.write(index, &format!("manifests/pod-{app}.yaml"), &text)
    }

    pub(super) fn pod_address(&self, index: usize, last: u8) -> Ipv4Addr {
        let [.., number] = self.node(index).host.address.octets();
        Ipv4Addr::new(10, 60, number, last)
    }

    /// A pod with its namespace and manifest.
    pub(super) fn pod(&mut self, index: usize, app: &str, last: u8) -> Result<Pod> {
        let address = self.pod_address(index, last);
        let host = self.nodes[index].host.clone();
        let pod = self.lab.pod(&host, app, address)?;
        self.write_pod(index, app, last, Some(&pod))?;
        Ok(pod)
    }

    /// Starts cluster1's etcd anew; its data stay.
    pub(super) fn start_etcd(&mut self) -> Result<()> {
        let mut command = self.nodes[A1].host.namespace.command("etcd");
        command.arg("--data-dir").arg(self.temp.path().join("etcd"));
        command.args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
        ]);
        let log = self.lab.dir().join("etcd.log");
        self.lab.daemon("etcd", &mut command, &log)?;
        Ok(())
    }

    /// Starts a node's agent. cluster1 shares an etcd; cluster2's second node uses the store of its
    /// first; cluster3 has one node.
    pub(super) fn start_agent(&mut self, index: usize) -> Result<u32> {
        let (name, log) = (self.agent(index), self.log(index));
        let node = &self.nodes[index];
        let dir = |name: &str| node.dir.join(name);
        let mut command = node.host.namespace.command(TOMBOLO);
        command.args(["agent", "--cluster-name", node.cluster]);
        command.args([
            "--cluster-id",
            &node.id.to_string(),
            "--node-name",
            node.name,
        ]);
        command.arg("--clustermesh-config").arg(dir("clustermesh"));
        command.arg("--state-dir").arg(dir("state"));
        command.arg("--socket-path").arg(dir("tombolo.sock"));
        command.arg("--manifests-dir").arg(dir("manifests"));
        command.arg("--policy-dir").arg(dir("policies"));
        command.args(["--prometheus-serve-addr", "off", "--health-port", "9880"]);
        for (flag, file) in [
            ("--tls-cert-file", "server.crt"),
            ("--tls-key-file", "server.key"),
            ("--tls-ca-file", "ca.crt"),
            ("--tls-local-cert-file", "local.crt"),
            ("--tls-local-key-file", "local.key"),
        ] {
            command.arg(flag).arg(node.certs.join(file));
        }
        if let Some(text) = self.store_file(index) {
            let file = dir("store.yaml");
            fs::write(&file, text)?;
            let opt = format!("--kvstore-opt=etcd.config={}", file.display());
            command.args(["--kvstore=etcd", &opt]);
        }
        self.lab.daemon(&name, &mut command, &log)
    }

    fn store_file(&self, index: usize) -> Option<String> {
        let certs = self.node(index).certs.display();
        match index {
            A1 | A2 => Some(format!("endpoints: ['{ETCD}']\n")),
            B2 => Some(format!(
                "endpoints: ['https://{}:2379']\ntrusted-ca-file: {certs}/ca.crt\n\
                 cert-file: {certs}/admin.crt\nkey-file: {certs}/admin.key\n",
                self.node(B1).host.address
            )),
            _ => None,
        }
    }

    /// The daemon's name in the lab.
    pub(super) fn agent(&self, index: usize) -> String {
        let node = self.node(index);
        format!("agent-{}-{}", node.cluster, node.name)
    }

    fn log(&self, index: usize) -> PathBuf {
        self.node(index).dir.join("agent.log")
    }

    /// Lets `from` issue what `to` needs, and gives each node of `to` the files: one peer file with
    /// all of `from`'s nodes.
    pub(super) fn invite(&self, from: &str, to: &str) -> Result<()> {
        let issuer = self
            .of_cluster(from)
            .next()
            .context("a cluster has a node")?;
        let out = self.lab.dir().join(format!("{from}-for-{to}"));
        let secrets = self.lab.dir().join(format!("{to}-peers"));
        let mut command = Command::new(TOMBOLO);
        command.args(["certs", "issue", "--peer", to]);
        command
            .arg("--dir")
            .arg(&issuer.certs)
            .arg("--out")
            .arg(&out);
        command.arg("--config-path-prefix").arg(&secrets);
        for node in self.of_cluster(from) {
            command.args(["--endpoint", &format!("https://{}:2379", node.host.address)]);
        }
        run_ok(&mut command, VERB_LIMIT)?;
        fs::create_dir_all(&secrets)?;
        for entry in fs::read_dir(&out)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .context("a listed file has a name")?
                .to_owned();
            if path
                .extension()
                .is_some_and(|extension| extension == "config")
            {
                for (index, node) in self.nodes.iter().enumerate() {
                    if node.cluster == to {
                        let name = Path::new("clustermesh").join(&name);
                        self.write(index, &name.to_string_lossy(), &fs::read_to_string(&path)?)?;
                    }
                }
            } else {
                fs::copy(&path, secrets.join(&name))?;
            }
        }
        Ok(())
    }

    /// The output of one of the operator's verbs.
    pub(super) fn verb(&self, index: usize, words: &[&str]) -> Result<String> {
        let node = self.node(index);
        let mut command = node.host.namespace.command(TOMBOLO);
        command.args(words);
        command
            .arg("--socket-path")
            .arg(node.dir.join("tombolo.sock"));
        run_ok(&mut command, VERB_LIMIT)
    }

    /// Waits until a verb prints each of `wanted`.
    pub(super) fn shows(&self, index: usize, words: &[&str], wanted: &[&str]) {
        let look = || {
            let text = self.verb(index, words)?;
            for wanted in wanted {
                ensure!(text.contains(wanted), "no {wanted} in:\n{text}");
            }
            Ok(())
        };
        if let Err(error) = eventually(PATIENCE, look) {
            panic!(
                "{words:?} of {}: {error:#}\n{}",
                self.agent(index),
                self.tail(index)
            );
        }
    }

    /// Waits until an agent has written a line with this text.
    pub(super) fn logs(&self, index: usize, text: &str) {
        let look = || {
            let log = fs::read_to_string(self.log(index))?;
            ensure!(log.contains(text), "no line {text:?}");
            Ok(())
        };
        eventually(PATIENCE, look).unwrap();
    }

    /// The end of an agent's log.
    pub(super) fn tail(&self, index: usize) -> String {
        let text = fs::read_to_string(self.log(index)).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(25).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Established connections to a node's etcd face, by where they come from.
    pub(super) fn clients(&self, index: usize) -> Vec<Ipv4Addr> {
        let script = "ss -Htn state established '( sport = :2379 )'";
        let text = self.node(index).host.namespace.shell(script).unwrap();
        let peer = |line: &str| {
            line.split_whitespace()
                .nth(3)?
                .rsplit_once(':')?
                .0
                .parse()
                .ok()
        };
        text.lines().filter_map(peer).collect()
    }

    /// The connections that `from`'s nodes hold to `to`'s servers.
    pub(super) fn connections(&self, from: &str, to: &str) -> Vec<Ipv4Addr> {
        let sources: Vec<_> = self.of_cluster(from).map(|n| n.host.address).collect();
        let servers = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.cluster == to);
        let clients = servers.flat_map(|(index, _)| self.clients(index));
        clients.filter(|client| sources.contains(client)).collect()
    }

    /// Runs etcdctl against cluster1's etcd.
    pub(super) fn etcdctl(&self, words: &[&str]) -> Result<String> {
        let mut command = self.node(A2).host.namespace.command("etcdctl");
        run_ok(command.args(["--endpoints", ETCD]).args(words), VERB_LIMIT)
    }

    /// Writes every change of a node's cache from now on to a file.
    pub(super) fn record(&mut self, index: usize, file: &str) -> Result<PathBuf> {
        let path = self.lab.dir().join(file);
        let node = &self.nodes[index];
        let mut command = node.host.namespace.command("etcdctl");
        command.arg(format!("--endpoints=https://{}:2379", node.host.address));
        for (flag, name) in [
            ("--cacert", "ca.crt"),
            ("--cert", "local.crt"),
            ("--key", "local.key"),
        ] {
            command.arg(flag).arg(node.certs.join(name));
        }
        command.args(["watch", "--prefix", "cilium/cache/", "--rev", "1"]);
        self.lab.daemon(file, &mut command, &path)?;
        Ok(path)
    }

    /// Sends a signal to a process of the lab.
    pub(super) fn signal(pid: u32, signal: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("kill -{signal} {pid}")]);
        assert!(run(&mut command, VERB_LIMIT).unwrap().status.success());
    }
}

/// The agent under test.
const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");
