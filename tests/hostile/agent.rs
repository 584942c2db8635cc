//! The agent under test, cluster `east`, with directories and a mount namespace of its own.
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Result;
use tombolo::test_support::{eventually, process::run_ok};

use super::PATIENCE;

const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");

pub(crate) struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
}

impl Agent {
    /// Needs root; waits until the agent answers its verbs.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bpf", "peers", "state", "hostile"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        make_certificates("east", &dir.path().join("certs"));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-euc"])
            .arg("mount -t bpf bpf \"$0\"; exec \"$@\"")
            .arg(dir.path().join("bpf"))
            .args([
                TOMBOLO,
                "agent",
                "--cluster-name",
                "east",
                "--cluster-id",
                "1",
            ])
            .args(["--node-name", "n1", "--listen", &address.to_string()])
            .args(["--health-port", "off", "--prometheus-serve-addr", "off"]);
        for (flag, path) in [
            ("--state-dir", "state"),
            ("--bpf-root", "bpf"),
            ("--clustermesh-config", "peers"),
            ("--socket-path", "sock"),
            ("--tls-cert-file", "certs/server.crt"),
            ("--tls-key-file", "certs/server.key"),
            ("--tls-ca-file", "certs/ca.crt"),
        ] {
            command.arg(flag).arg(dir.path().join(path));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let agent = Self {
            child: command.spawn().unwrap(),
            dir,
            address,
        };
        let started = eventually(PATIENCE, || agent.verb(&["health"]));
        started.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
        agent
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The output of one of the operator's verbs.
    pub(crate) fn verb(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(TOMBOLO);
        command
            .arg("--socket-path")
            .arg(self.path("sock"))
            .args(words);
        run_ok(&mut command, PATIENCE)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The most that was resident since its start.
    pub(crate) fn peak_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let line = line.unwrap_or_else(|| panic!("the agent ended:\n{}", self.log()));
        let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib << 10
    }

    /// Certificates of a cluster.
    pub(crate) fn certificates(&self, cluster: &str, dir: &Path) {
        assert!(dir.starts_with(self.dir.path()), "they go with the agent");
        make_certificates(cluster, dir);
    }

    /// What the agent needs to reach a peer with these certificates; the peer file.
    pub(crate) fn issue(&self, cluster: &str, certs: &Path, url: &str) -> PathBuf {
        let out = certs.join("for-east");
        let mut command = Command::new(TOMBOLO);
        command.args(["certs", "issue", "--peer", "east", "--endpoint", url]);
        command.arg("--dir").arg(certs).arg("--out").arg(&out);
        command.arg("--config-path-prefix").arg(&out);
        run_ok(&mut command, PATIENCE).unwrap();
        out.join(format!("{cluster}.config"))
    }

    /// Drops a peer file into the watched directory, whole.
    pub(crate) fn join(&self, file: &Path) {
        let draft = self.path("draft");
        fs::copy(file, &draft).unwrap();
        fs::rename(draft, self.path("peers").join(file.file_name().unwrap())).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn make_certificates(cluster: &str, dir: &Path) {
    let mut command = Command::new(TOMBOLO);
    command.args(["certs", "init", "--cluster-name", cluster, "--dir"]);
    run_ok(command.arg(dir), PATIENCE).unwrap();
}
