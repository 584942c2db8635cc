//! An etcd of several members on loopback ports, each killed and started again at will.
use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::node::eventually;
use crate::real::own_address;

/// The members; killed when dropped.
pub(super) struct Members {
    dir: tempfile::TempDir,
    /// Client and peer URL.
    urls: Vec<(String, String)>,
    children: Vec<Child>,
}

impl Members {
    pub(super) fn start(count: usize) -> Self {
        let url = || format!("http://{}", own_address());
        let mut members = Self {
            dir: tempfile::tempdir().unwrap(),
            urls: (0..count).map(|_| (url(), url())).collect(),
            children: Vec::new(),
        };
        members.children = (0..count).map(|index| members.spawn(index)).collect();
        members
    }

    fn spawn(&self, index: usize) -> Child {
        let (client, peer) = &self.urls[index];
        let all = self.urls.iter().enumerate();
        let all: Vec<_> = all.map(|(i, (_, peer))| format!("m{i}={peer}")).collect();
        Command::new("etcd")
            .args(["--name", &format!("m{index}")])
            .arg("--data-dir")
            .arg(self.dir.path().join(index.to_string()))
            .args(["--listen-client-urls", client])
            .args(["--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer])
            .args(["--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-token", &self.urls[0].1])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(super) fn kill(&mut self, index: usize) {
        self.children[index].kill().unwrap();
        self.children[index].wait().unwrap();
    }

    pub(super) fn restart(&mut self, index: usize) {
        self.children[index] = self.spawn(index);
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.urls.iter().map(|(client, _)| client.clone()).collect()
    }

    /// Waits until each member answers reads through a leader.
    pub(super) async fn ready(&self) {
        for (url, _) in &self.urls {
            eventually(url, async || {
                let mut client = etcd_client::Client::connect([url], None).await.ok()?;
                let get = tokio::time::timeout(Duration::from_secs(1), client.get("x", None));
                get.await.ok()?.ok()
            })
            .await;
        }
    }

    pub(super) async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect(self.urls(), None)
            .await
            .unwrap()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
