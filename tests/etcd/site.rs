//! A real agent with directories, certificates and a mount namespace of its own, which needs root.
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use etcd_client::Client;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tombolo::{
    test_support::process,
    tls::{ClientOptions, ClientTls},
};

use super::real::own_address;

pub(crate) const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// False, with a loud word, without root; CI promises it.
pub(crate) fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt as _;
        meta.uid() == 0
    });
    assert!(root || std::env::var_os("CI").is_none(), "CI must be root");
    if !root {
        eprintln!("SKIPPED: an agent needs root");
    }
    root
}

/// What outlives an agent: its directories and certificates.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    pub(crate) state: PathBuf,
    /// An agent that starts again finds its port free.
    pub(crate) address: SocketAddr,
    node: &'static str,
}

pub(crate) struct Agent {
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Agent {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::of_node("n1")
    }

    /// Of another node of the same cluster.
    pub(crate) fn of_node(node: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        for name in ["bpf", "peers", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut certs = Command::new(TOMBOLO);
        certs.args(["certs", "init", "--cluster-name", "west", "--dir"]);
        process::run_ok(certs.arg(dir.path().join("certs")), LIMIT).unwrap();
        Self {
            dir,
            state,
            address: own_address(),
            node,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-euc"])
            .arg("mount -t bpf bpf \"$0\"; exec \"$@\"")
            .arg(self.path("bpf"))
            .args([TOMBOLO, "agent", "--cluster-name", "west"])
            .args(["--cluster-id", "12", "--node-name", self.node])
            .args(["--health-port", "off", "--prometheus-serve-addr", "off"])
            .args(["--listen", &self.address.to_string()]);
        for (flag, path) in [
            ("--state-dir", self.state.clone()),
            ("--bpf-root", self.path("bpf")),
            ("--clustermesh-config", self.path("peers")),
            ("--socket-path", self.path("sock")),
            ("--tls-cert-file", self.path("certs/server.crt")),
            ("--tls-key-file", self.path("certs/server.key")),
            ("--tls-ca-file", self.path("certs/ca.crt")),
        ] {
            command.arg(flag).arg(path);
        }
        command
    }

    pub(crate) fn start(&self) -> Agent {
        self.start_with(&mut self.command())
    }

    /// Starts [`Self::command`] with what was added to it.
    pub(crate) fn start_with(&self, command: &mut Command) -> Agent {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Agent {
            child: command.spawn().unwrap(),
        }
    }

    /// Waits until the agent answers its admin.
    pub(crate) async fn client(&self) -> Client {
        self.client_as("admin").await
    }

    /// Waits until the agent answers a client with this certificate of its cluster.
    pub(crate) async fn client_as(&self, identity: &str) -> Client {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            match self.connect(identity).await {
                Ok(client) => return client,
                Err(error) if tokio::time::Instant::now() > deadline => {
                    let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                    panic!("the agent does not answer: {error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until the agent's verbs are answered: the last thing that a start does.
    pub(crate) async fn started(&self) {
        let opened = async {
            while UnixStream::connect(self.path("sock")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, opened).await.unwrap();
    }

    /// One of the operator's verbs, ready to run.
    pub(crate) fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(TOMBOLO);
        command.arg("--socket-path").arg(self.path("sock"));
        command.args(words);
        command
    }

    async fn connect(&self, identity: &str) -> Result<Client, Box<dyn std::error::Error>> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let file = |end: &str| self.path(&format!("certs/{identity}.{end}"));
        let identity = (file("crt"), file("key"));
        let tls = ClientTls::new(ClientOptions {
            ca: Some(self.path("certs/ca.crt")),
            identity: Some(identity),
            ..ClientOptions::default()
        });
        // Its certificate names no other address.
        let stream = tls.connect(tcp, "127.0.0.1").await?;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let taken = once.lock().unwrap().take();
            async move { taken.ok_or_else(|| std::io::Error::other("connected once already")) }
        });
        let endpoint = format!("http://{}", self.address);
        let channel = tonic::transport::Endpoint::from_shared(endpoint)?
            .connect_with_connector(connector)
            .await?;
        let channel = etcd_client::Channel::Tonic(channel);
        Ok(Client::from_channel(channel, None).await?)
    }
}
