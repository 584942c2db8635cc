//! Hosts on one network, and on each what a node of the cluster runs: an agent, an etcd member.
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tombolo::test_support::{
    lab::{Host, Lab, Namespace},
    process::run_ok,
};

const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// Beside the agents, which listen on 2379.
const ETCD_PORT: u16 = 12_379;
const ETCD_PEER_PORT: u16 = 12_380;

/// The nodes of cluster `west`, numbered from 1; all processes end when it is dropped.
pub(crate) struct Nodes {
    lab: Lab,
    hosts: Vec<Host>,
    _temp: tempfile::TempDir,
}

/// The address of a node.
pub(crate) fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, u8::try_from(node).unwrap())
}

/// The address of a pod of a node.
pub(crate) fn pod_address(node: usize, pod: usize) -> Ipv4Addr {
    let [node, pod] = [node, pod].map(|n| u8::try_from(n).unwrap());
    Ipv4Addr::new(10, 60, node, pod)
}

fn pod_cidr(node: usize) -> String {
    format!("10.60.{node}.0/24")
}

impl Nodes {
    /// Makes the hosts, their network and certificates; starts nothing.
    pub(crate) fn new(count: usize) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut lab = Lab::open(&temp.path().join("lab")).unwrap();
        let hosts: Vec<_> = (1..=count)
            .map(|node| {
                let host = lab.host(&format!("node{node}"), address(node));
                host.expect("the kernel tier needs root")
            })
            .collect();
        let cidrs: Vec<_> = (1..=count).map(pod_cidr).collect();
        let cidrs = cidrs.iter().map(String::as_str);
        lab.network(&hosts.iter().zip(cidrs).collect::<Vec<_>>())
            .unwrap();
        let nodes = Self {
            lab,
            hosts,
            _temp: temp,
        };
        let mut certs = Command::new(TOMBOLO);
        certs.args(["certs", "init", "--cluster-name", "west", "--dir"]);
        certs.arg(nodes.certs());
        for node in 1..=count {
            certs.arg("--san").arg(address(node).to_string());
            for part in ["state", "peers", "manifests"] {
                fs::create_dir_all(nodes.path(node, part)).unwrap();
            }
        }
        run_ok(&mut certs, COMMAND_LIMIT).unwrap();
        for node in 1..=count {
            nodes.write_node(node);
        }
        nodes
    }

    /// What `certs init` made.
    pub(crate) fn certs(&self) -> PathBuf {
        self.lab.dir().join("certs")
    }

    fn path(&self, node: usize, part: &str) -> PathBuf {
        self.lab.dir().join(format!("node{node}")).join(part)
    }

    pub(crate) fn namespace(&self, node: usize) -> &Namespace {
        &self.hosts[node - 1].namespace
    }

    /// An agent with the embedded store, or with what its etcd client file says.
    pub(crate) fn start_agent(&mut self, node: usize, etcd_config: Option<&str>) {
        let mut command = self.namespace(node).command(TOMBOLO);
        command.args(["agent", "--cluster-name=west", "--cluster-id=12"]);
        command.arg(format!("--node-name=node{node}"));
        command.args(["--bpf-root=/sys/fs/bpf", "--listen=0.0.0.0:2379"]);
        let certs = self.certs();
        for (flag, path) in [
            ("--state-dir", self.path(node, "state")),
            ("--clustermesh-config", self.path(node, "peers")),
            ("--manifests-dir", self.path(node, "manifests")),
            ("--socket-path", self.path(node, "sock")),
            ("--tls-cert-file", certs.join("server.crt")),
            ("--tls-key-file", certs.join("server.key")),
            ("--tls-ca-file", certs.join("ca.crt")),
            ("--tls-local-cert-file", certs.join("local.crt")),
            ("--tls-local-key-file", certs.join("local.key")),
        ] {
            command.arg(flag).arg(path);
        }
        if let Some(text) = etcd_config {
            let file = self.path(node, "etcd.config");
            fs::write(&file, text).unwrap();
            command.arg("--kvstore=etcd");
            command.arg(format!("--kvstore-opt=etcd.config={}", file.display()));
        }
        let log = self.path(node, "agent.log");
        self.lab
            .daemon(&format!("agent{node}"), &mut command, &log)
            .unwrap();
    }

    /// The member of this node, new or with the data that it has.
    pub(crate) fn start_etcd(&mut self, node: usize) {
        let peers = (1..=self.hosts.len())
            .map(|n| format!("m{n}=http://{}:{ETCD_PEER_PORT}", address(n)))
            .collect::<Vec<_>>()
            .join(",");
        let client = format!("http://{}:{ETCD_PORT}", address(node));
        let peer = format!("http://{}:{ETCD_PEER_PORT}", address(node));
        let mut command = self.namespace(node).command("etcd");
        command.args(["--name", &format!("m{node}")]);
        command.arg("--data-dir").arg(self.path(node, "etcd"));
        command.args(["--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer]);
        command.args(["--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers]);
        let log = self.path(node, "etcd.log");
        self.lab
            .daemon(&format!("etcd{node}"), &mut command, &log)
            .unwrap();
    }

    /// The client file that names the members of all nodes.
    pub(crate) fn etcd_config(&self) -> String {
        let endpoints = (1..=self.hosts.len())
            .map(|node| format!("\"http://{}:{ETCD_PORT}\"", address(node)))
            .collect::<Vec<_>>()
            .join(", ");
        format!("endpoints: [{endpoints}]\n")
    }

    /// The client file with which a node uses another one's store.
    pub(crate) fn tombolo_config(&self, of: usize) -> String {
        let certs = self.certs();
        let certs = certs.display();
        format!(
            "endpoints: [\"https://{}:2379\"]\ntrusted-ca-file: {certs}/ca.crt\n\
             cert-file: {certs}/admin.crt\nkey-file: {certs}/admin.key\n",
            address(of)
        )
    }

    /// Makes the store forget its history, so that whoever comes back to it has to list again:
    /// `etcdctl` on the first host, with the flags of [`Self::etcd_flags`] or
    /// [`Self::tombolo_flags`].
    pub(crate) fn compact(&self, flags: &[String]) {
        let etcdctl = |words: &[&str]| {
            let mut command = self.namespace(1).command("etcdctl");
            command.env("ETCDCTL_API", "3").args(flags).args(words);
            run_ok(&mut command, COMMAND_LIMIT).unwrap()
        };
        etcdctl(&["put", "unrelated", "1"]);
        let answer = etcdctl(&["put", "unrelated", "2", "--write-out=json"]);
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let revision = answer["header"]["revision"].to_string();
        etcdctl(&["compaction", &revision]);
    }

    /// How `etcdctl` reaches the first member.
    pub(crate) fn etcd_flags(&self) -> Vec<String> {
        vec![format!("--endpoints=http://{}:{ETCD_PORT}", address(1))]
    }

    /// How `etcdctl` reaches the first agent's store.
    pub(crate) fn tombolo_flags(&self) -> Vec<String> {
        let certs = self.certs();
        let certs = certs.display();
        vec![
            format!("--endpoints=https://{}:2379", address(1)),
            format!("--cacert={certs}/ca.crt"),
            format!("--cert={certs}/admin.crt"),
            format!("--key={certs}/admin.key"),
        ]
    }

    /// Kills `agent<n>` or `etcd<n>` by SIGKILL; it must have run until now.
    pub(crate) fn kill(&mut self, daemon: &str) {
        self.lab.kill(daemon).unwrap();
    }

    /// The logs of all daemons, for a failed test.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for node in 1..=self.hosts.len() {
            let log = fs::read_to_string(self.path(node, "agent.log")).unwrap_or_default();
            text += &format!("--- agent{node}\n{log}");
        }
        text
    }

    fn write_node(&self, node: usize) {
        let (cidr, address) = (pod_cidr(node), address(node));
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: node{node}\nspec:\n  \
             podCIDR: {cidr}\n  podCIDRs:\n  - {cidr}\nstatus:\n  addresses:\n  \
             - type: InternalIP\n    address: {address}\n"
        );
        drop_file(&self.path(node, "manifests/node.yaml"), &text);
    }

    /// A pod with this label appears on a node.
    pub(crate) fn write_pod(&self, node: usize, pod: usize, app: &str) {
        let (host, ip) = (address(node), pod_address(node, pod));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{node}-{pod}\n  namespace: shop\n  \
             labels:\n    app: {app}\nspec:\n  nodeName: node{node}\nstatus:\n  phase: Running\n  \
             hostIP: {host}\n  podIP: {ip}\n  podIPs:\n  - ip: {ip}\n"
        );
        let file = format!("manifests/pod-{node}-{pod}.yaml");
        drop_file(&self.path(node, &file), &text);
    }
}

/// Puts a file into a watched directory, whole.
fn drop_file(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::rename(&draft, path).unwrap();
}
