//! The importing side: a real agent with the kernel behind it, started afresh for each run.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tombolo::test_support::{eventually, process::run_ok};

use crate::world::{Bpffs, COMMAND_LIMIT, Process, WEST, free_port, tombolo};

/// The id of the agent's cluster.
const WEST_ID: &str = "1";
/// Lines of the agent's log that an error quotes.
const LOG_LINES: usize = 10;

/// A running agent without peers, until [`Agent::join`].
#[derive(Debug)]
pub(crate) struct Agent {
    // Before the maps that it uses are unmounted, it ends.
    _process: Process,
    _bpffs: Bpffs,
    dir: PathBuf,
    /// Its etcd face.
    pub(crate) url: String,
}

impl Agent {
    /// Starts one in `dir`, which must not exist, with nothing that an earlier one left, and waits
    /// until it is ready.
    pub(crate) fn start(certs: &Path, dir: PathBuf) -> Result<Self> {
        let path = |name: &str| dir.join(name);
        for name in ["state", "clustermesh"] {
            fs::create_dir_all(path(name)).with_context(|| format!("create {name}"))?;
        }
        let bpffs = Bpffs::mount(path("bpf"))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let log = fs::File::create(path("log")).context("create the agent's log")?;
        let mut command = Command::new(tombolo()?);
        command.args(["agent", "--cluster-name", WEST, "--cluster-id", WEST_ID]);
        command.args(["--node-name", "node1", "--listen", &listen]);
        command.args(["--prometheus-serve-addr", "off", "--health-port", "off"]);
        command.arg("--state-dir").arg(path("state"));
        command.arg("--socket-path").arg(path("socket"));
        command.arg("--clustermesh-config").arg(path("clustermesh"));
        command.arg("--bpf-root").arg(path("bpf"));
        command.arg("--tls-ca-file").arg(certs.join("ca.crt"));
        command.arg("--tls-cert-file").arg(certs.join("server.crt"));
        command.arg("--tls-key-file").arg(certs.join("server.key"));
        let copy = log.try_clone().context("open the agent's log twice")?;
        let process = Process::start(command.stdout(log).stderr(copy))?;
        let agent = Self {
            _process: process,
            _bpffs: bpffs,
            url: format!("https://{listen}"),
            dir,
        };
        eventually(Duration::from_secs(20), || {
            let mut health = Command::new(tombolo()?);
            health.arg("--socket-path").arg(agent.dir.join("socket"));
            run_ok(health.arg("health"), COMMAND_LIMIT).map(drop)
        })
        .with_context(|| agent.log())?;
        Ok(agent)
    }

    /// Drops the peer's file into the watched directory, whole.
    pub(crate) fn join(&self, peer_file: &Path) -> Result<()> {
        let name = peer_file.file_name().context("a peer file has a name")?;
        let draft = self.dir.join("draft");
        fs::copy(peer_file, &draft).context("copy the peer's file")?;
        fs::rename(&draft, self.dir.join("clustermesh").join(name)).context("place the peer's file")
    }

    /// The end of its log, for errors.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..);
        format!(
            "the agent's log ends with:\n{}",
            tail.unwrap_or_default().join("\n")
        )
    }
}
