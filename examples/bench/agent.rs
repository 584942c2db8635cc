//! The importing side: a real agent with the kernel behind it.
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tombolo::test_support::{eventually, process::run_ok};

use crate::world::{Bpffs, COMMAND_LIMIT, LIMIT, Process, WEST, free_port, tombolo};

/// The id of the agent's cluster.
const WEST_ID: &str = "1";
/// How often its status is asked for.
const POLL: Duration = Duration::from_millis(10);
/// Lines of the agent's log that an error quotes.
const LOG_LINES: usize = 10;

/// An agent with its directory and its maps. They outlive its process, which can be killed and
/// started again.
#[derive(Debug)]
pub(crate) struct Agent {
    // Before the maps that it uses are unmounted, it ends.
    process: Option<Process>,
    _bpffs: Bpffs,
    certs: PathBuf,
    dir: PathBuf,
    listen: String,
    /// Its etcd face.
    pub(crate) url: String,
}

impl Agent {
    /// Starts one in `dir`, which must not exist, with nothing that an earlier one left and without
    /// peers, and waits until it is ready.
    pub(crate) fn start(certs: &Path, dir: PathBuf) -> Result<Self> {
        let mut agent = Self::prepare(certs, dir)?;
        agent.launch()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// As [`Self::start`], but does not start it yet.
    pub(crate) fn prepare(certs: &Path, dir: PathBuf) -> Result<Self> {
        for name in ["state", "clustermesh"] {
            fs::create_dir_all(dir.join(name)).with_context(|| format!("create {name}"))?;
        }
        let listen = format!("127.0.0.1:{}", free_port()?);
        Ok(Self {
            process: None,
            _bpffs: Bpffs::mount(dir.join("bpf"))?,
            certs: certs.to_owned(),
            url: format!("https://{listen}"),
            listen,
            dir,
        })
    }

    /// Starts its process, and does not wait.
    pub(crate) fn launch(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.join(name);
        let log = fs::File::create(path("log")).context("create the agent's log")?;
        let mut command = Command::new(tombolo()?);
        command.args(["agent", "--cluster-name", WEST, "--cluster-id", WEST_ID]);
        command.args(["--node-name", "node1", "--listen", &self.listen]);
        command.args(["--prometheus-serve-addr", "off", "--health-port", "off"]);
        command.arg("--state-dir").arg(path("state"));
        command.arg("--socket-path").arg(path("socket"));
        command.arg("--clustermesh-config").arg(path("clustermesh"));
        command.arg("--bpf-root").arg(path("bpf"));
        command.arg("--tls-ca-file").arg(self.certs.join("ca.crt"));
        command
            .arg("--tls-cert-file")
            .arg(self.certs.join("server.crt"));
        command
            .arg("--tls-key-file")
            .arg(self.certs.join("server.key"));
        let copy = log.try_clone().context("open the agent's log twice")?;
        self.process = Some(Process::start(command.stdout(log).stderr(copy))?);
        Ok(())
    }

    fn wait_ready(&self) -> Result<()> {
        eventually(Duration::from_secs(20), || {
            let mut health = Command::new(tombolo()?);
            health.arg("--socket-path").arg(self.dir.join("socket"));
            run_ok(health.arg("health"), COMMAND_LIMIT).map(drop)
        })
        .with_context(|| self.log())
    }

    /// Ends its process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// What `tombolo status -o json` prints.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        let mut socket = UnixStream::connect(self.dir.join("socket")).context("dial the agent")?;
        socket.set_read_timeout(Some(COMMAND_LIMIT))?;
        socket.write_all(b"GET /v1/status HTTP/1.0\r\nHost: agent\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an odd answer")?;
        serde_json::from_str(body).context("decode the status")
    }

    /// Seconds from `since` until the status is as `reached` wants it.
    pub(crate) fn until(
        &self,
        since: Instant,
        mut reached: impl FnMut(&serde_json::Value) -> bool,
    ) -> Result<f64> {
        let mut last = None;
        let deadline = since + LIMIT;
        while Instant::now() < deadline {
            // It may not listen yet.
            if let Ok(status) = self.status() {
                if reached(&status) {
                    return Ok(since.elapsed().as_secs_f64());
                }
                last = Some(status);
            }
            std::thread::park_timeout(POLL);
        }
        let last = last.map(|status| status["datapath"].to_string());
        bail!(
            "not within {} s; the datapath said {}; {}",
            LIMIT.as_secs(),
            last.unwrap_or_default(),
            self.log()
        )
    }

    /// Its resident memory.
    pub(crate) fn resident_bytes(&self) -> Result<usize> {
        let process = self.process.as_ref().context("the agent does not run")?;
        process.resident_bytes()
    }

    /// Lines of its log with this text.
    pub(crate) fn logged(&self, text: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
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
