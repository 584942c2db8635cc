//! Policies in the cluster store, with two real agents of one cluster: what one node's operator
//! applies, both nodes' kernels follow, and no peer and no reader of a cache ever sees.
//! The pods have no interfaces: what their policies put into the kernel's map is what is looked at.
use std::{
    fs,
    time::{Duration, Instant},
};

use etcd_client::{GetOptions, PutOptions};
use serde_json::Value;
use tombolo::test_support::process;

use super::{
    real::{Etcd, Release},
    site::{Agent, LIMIT, Site, is_root},
};

const MARK: &str = "for-nobody-elses-eyes";
const KEY: &str = "tombolo/policies/v1/CiliumNetworkPolicy/shop/web";

/// Selects the pods, with an entry for each port.
fn policy(name: &str, ports: &[u16]) -> String {
    let ports: Vec<_> = ports
        .iter()
        .map(|p| format!("{{port: \"{p}\", protocol: TCP}}"))
        .collect();
    format!(
        "# {MARK}\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  endpointSelector: {{}}\n  ingress:\n  \
         - toPorts: [{{ports: [{}]}}]\n",
        ports.join(", ")
    )
}

struct Node {
    site: Site,
    agent: Agent,
    flags: Vec<String>,
}

impl Node {
    /// `number` is 1 or 2.
    async fn start(number: u8, flags: Vec<String>) -> Self {
        let site = Site::of_node(if number == 1 { "n1" } else { "n2" });
        Self::on(site, number, flags).await
    }

    async fn on(site: Site, number: u8, mut flags: Vec<String>) -> Self {
        let manifests = site.path("manifests");
        fs::create_dir(&manifests).unwrap();
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, namespace: shop, labels: {{app: \
             web}}}}\nspec: {{nodeName: n{number}}}\nstatus: {{phase: Running, podIPs: [{{ip: \
             10.60.{number}.2}}]}}\n"
        );
        fs::write(manifests.join("pod.yaml"), pod).unwrap();
        flags.push(format!("--manifests-dir={}", manifests.display()));
        let agent = site.start_with(site.command().args(&flags));
        site.started().await;
        Self { site, agent, flags }
    }

    async fn restart(&mut self) {
        self.agent.kill();
        self.agent = self.site.start_with(self.site.command().args(&self.flags));
        // The socket's file of before is still there.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.site.started().await;
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = process::run(self.site.verb(words).args(["-o", "json"]), LIMIT).unwrap();
        serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{}", output.stderr))
    }

    /// Entries in the kernel's policy map.
    fn entries(&self) -> u64 {
        self.json(&["status"])["datapath"]["policy"]
            .as_u64()
            .unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds(self) {
            let log = || fs::read_to_string(self.site.path("log")).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "{what}: {}\n{}",
                self.json(&["status"]),
                log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Applies a policy; both kernels have it when this returns.
    fn apply(&self, text: &str, patience: &str) -> process::Output {
        let file = self.site.path("policy.yaml");
        fs::write(&file, text).unwrap();
        let mut apply = self
            .site
            .verb(&["policy", "apply", "--wait", patience, "-f"]);
        process::run(apply.arg(&file), LIMIT).unwrap()
    }
}

/// What both kinds of cluster store have in common.
async fn both_follow(first: &Node, second: &Node) {
    for node in [first, second] {
        node.until("its pod is known", |node| {
            node.json(&["endpoint", "list"]).as_array().unwrap().len() == 1
        })
        .await;
    }
    first
        .until("both nodes say how far they are", |node| {
            let listing = node.json(&["policy", "get"]);
            let applied = listing["cluster"][0]["applied"].as_array().map(Vec::len);
            if applied.is_none() {
                let said = node.apply(&policy("other", &[1]), "10s");
                assert!(said.status.success(), "{}", said.stderr);
            }
            applied == Some(2)
        })
        .await;
    // A second is the promise, for machines that have one to spare.
    let mut fastest = LIMIT;
    for ports in [[80, 81, 82].as_slice(), &[80, 82], &[80, 81]] {
        let start = Instant::now();
        let said = first.apply(&policy("web", ports), "10s");
        fastest = fastest.min(start.elapsed());
        assert!(said.status.success(), "{}", said.stderr);
        let expected = ports.len() as u64 + 1;
        assert_eq!((first.entries(), second.entries()), (expected, expected));
        // As the kernel has them.
        let rows = second.json(&["bpf", "policy", "get", "--all"]);
        assert_eq!(
            rows.as_array().map(Vec::len),
            Some(ports.len() + 1),
            "{rows}"
        );
        assert!(
            rows[0]["rule_name"]
                .as_str()
                .unwrap()
                .contains("in cluster store"),
            "{rows}"
        );
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    // What another node wrote is seen and deleted here.
    let shown = process::run_ok(
        &mut second.site.verb(&["policy", "get", "web", "-o", "yaml"]),
        LIMIT,
    );
    assert_eq!(shown.unwrap(), format!("---\n{}", policy("web", &[80, 81])));
    let mut delete = second.site.verb(&["policy", "delete", "cnp/shop/other"]);
    process::run_ok(&mut delete, LIMIT).unwrap();
    for node in [first, second] {
        node.until("the deleted policy is gone", |node| node.entries() == 2)
            .await;
    }
}

/// All that peers and this cluster's agents can read.
async fn nobody_else_sees(node: &Node) {
    let readable = [
        (
            "remote",
            ["cilium/.heartbeat", "cilium/state/", "cilium/synced/west/"],
        ),
        (
            "local",
            ["cilium/.heartbeat", "cilium/cache/", "cilium/synced/"],
        ),
    ];
    for (reader, prefixes) in readable {
        let mut client = node.site.client_as(reader).await;
        let mut found = 0;
        for prefix in prefixes {
            let all = client
                .get(prefix, Some(GetOptions::new().with_prefix()))
                .await;
            for entry in all.unwrap().kvs() {
                found += 1;
                let (key, value) = (entry.key_str().unwrap(), entry.value());
                assert!(!key.contains("tombolo/polic"), "{reader} reads {key}");
                let value = String::from_utf8_lossy(value);
                assert!(!value.contains(MARK), "{reader} reads {key}");
            }
        }
        assert!(found > 0, "{reader} sees at least a heartbeat");
        for prefix in ["tombolo/", ""] {
            let options = GetOptions::new().with_prefix();
            let refused = client.get(prefix, Some(options)).await.unwrap_err();
            assert!(
                refused.to_string().contains("permission denied"),
                "{refused}"
            );
        }
    }
}

#[tokio::test]
async fn nodes_of_one_etcd_enforce_its_policies_and_keep_them_when_it_is_lost() {
    if !is_root() || !Release::V3_4.is_installed() {
        return;
    }
    let etcd = Etcd::start(Release::V3_4, &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.yaml");
    fs::write(
        &file,
        format!("endpoints: [\"http://{}\"]\n", etcd.endpoint),
    )
    .unwrap();
    let flags = || {
        let config = format!("--kvstore-opt=etcd.config={}", file.display());
        vec!["--kvstore=etcd".to_owned(), config]
    };
    let first = Node::start(1, flags()).await;
    let mut second = Node::start(2, flags()).await;
    both_follow(&first, &second).await;
    nobody_else_sees(&first).await;

    // Something else writes what can't be used: the last good version stays, and is told.
    let mut client = etcd_client::Client::connect([&etcd.endpoint], None)
        .await
        .unwrap();
    client
        .put(KEY, "kind: [", None::<PutOptions>)
        .await
        .unwrap();
    first
        .until("both nodes refuse it", |node| {
            let refused = &node.json(&["policy", "get", "web"])["cluster"][0]["refused"];
            refused == &serde_json::json!(["n1", "n2"])
        })
        .await;
    let said = first.json(&["status"])["errors"].to_string();
    assert!(
        said.contains("policy CiliumNetworkPolicy/shop/web of the cluster store: line 1"),
        "{said}"
    );
    assert_eq!((first.entries(), second.entries()), (2, 2));

    // The store is lost; the policies are not, over a kill either.
    drop(etcd);
    first
        .until("the store is missed", |node| {
            node.json(&["status"])["errors"]
                .to_string()
                .contains("policies: ")
        })
        .await;
    assert_eq!(first.entries(), 2);
    second.restart().await;
    // Its maps went with the mount namespace: what counts is what the new process knows.
    second
        .until("policies are in force again", |node| {
            let status = node.json(&["status"]);
            let waiting = status["waiting"].as_array().unwrap();
            !waiting.contains(&"policy".into()) && status["policies"]["cluster"] == 1
        })
        .await;
}

#[tokio::test]
async fn nodes_of_another_nodes_store_enforce_its_policies() {
    if !is_root() {
        return;
    }
    let first = Node::start(1, Vec::new()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etcd.yaml");
    let certs = first.site.path("certs");
    let address = first.site.address;
    let text = format!(
        "endpoints: [\"https://west.mesh.cilium.io:{}\"]\n\
         cilium-host-aliases: [{{hostname: west.mesh.cilium.io, ips: [\"{}\"]}}]\n\
         trusted-ca-file: {certs}/ca.crt\ncert-file: {certs}/admin.crt\nkey-file: {certs}/admin.key\n",
        address.port(),
        address.ip(),
        certs = certs.display()
    );
    fs::write(&file, text).unwrap();
    let config = format!("--kvstore-opt=etcd.config={}", file.display());
    let second = Node::start(2, vec!["--kvstore=etcd".to_owned(), config]).await;
    both_follow(&first, &second).await;
    nobody_else_sees(&second).await;
}
