//! Hosts and pods as Linux namespaces, each held by a keeper process.
//!
//! A host is a network and a mount namespace with a bpffs of its own; a pod is a network namespace
//! behind a veth. Nothing is ever created in the namespace of the caller, no host has a default
//! route, and all of it vanishes with the keepers.
//! Invariant: a process is written to `DIR/processes` (pid, start time, name) before it is used, so
//! that a later run in the same directory ends exactly what an earlier one left behind.
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    eventually,
    process::{Output, run, run_ok},
};

/// Pods reach their host under this address, the same on every host.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Where started processes are written down.
const PROCESSES: &str = "processes";
/// An `ip` or mount command takes milliseconds; this bounds a hung one.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// The longest interface name that Linux takes (`IFNAMSIZ` − 1).
const INTERFACE_CHARS_MAX: usize = 15;

/// Says `ready` once its namespaces are set up, then holds them.
const HOST_KEEPER: &str = "mount -t bpf bpf /sys/fs/bpf && exec 3>&1 >/dev/null \
    && ip link set lo up && ip addr add 169.254.1.1/32 dev lo scope link \
    && echo 1 > /proc/sys/net/ipv4/ip_forward && echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter \
    && echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter \
    && { echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true; } 2>/dev/null \
    && echo ready >&3 && exec sleep infinity 3>&- 2>&1";
const POD_KEEPER: &str = "exec 3>&1 >/dev/null; ip link set lo up \
    && { echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true; } 2>/dev/null \
    && echo ready >&3 && exec sleep infinity 3>&- 2>&1";

/// A set of namespaces, and everything that was started in them.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    children: Vec<(String, Child)>,
    keep: bool,
}

/// The namespaces of one keeper.
#[derive(Debug, Clone)]
pub struct Namespace {
    pid: u32,
    mount: bool,
}

/// A machine of the lab.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name, unique in the lab.
    pub name: String,
    /// Its address on the link to the other host.
    pub address: Ipv4Addr,
    /// Network and mount namespace.
    pub namespace: Namespace,
}

/// A workload of the lab.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, unique on its host.
    pub name: String,
    /// Its only address.
    pub address: Ipv4Addr,
    /// The veth's end on the host; the pod's end is `eth0`.
    pub interface: String,
    /// Network namespace.
    pub namespace: Namespace,
}

impl Namespace {
    /// The network namespace that the process `pid` lives in.
    #[must_use]
    pub const fn network_of(pid: u32) -> Self {
        Self { pid, mount: false }
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.pid.to_string()).arg("-n");
        if self.mount {
            command.arg("-m");
        }
        command.arg("--").arg(program);
        command
    }

    /// The process that holds the namespaces.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Runs a shell line inside.
    ///
    /// # Errors
    /// If it fails or hangs.
    pub fn shell(&self, script: &str) -> Result<String> {
        run_ok(self.command("sh").args(["-euc", script]), COMMAND_LIMIT)
    }
}

impl Lab {
    /// Takes the directory over: ends what an earlier run left in it, and empties it.
    ///
    /// # Errors
    /// If the directory is not ours, or an old process can't be ended.
    pub fn open(dir: &Path) -> Result<Self> {
        end_leftovers(dir).with_context(|| format!("clean up {}", dir.display()))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("create {}", dir.display()))?;
        fs::write(dir.join(PROCESSES), "")
            .with_context(|| format!("create {}/{PROCESSES}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            children: Vec::new(),
            keep: false,
        })
    }

    /// The work directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves everything running when dropped; the next [`Lab::open`] ends it.
    pub const fn keep(&mut self) {
        self.keep = true;
    }

    /// Makes a host.
    ///
    /// # Errors
    /// If the namespaces can't be made (needs root).
    pub fn host(&mut self, name: &str, address: Ipv4Addr) -> Result<Host> {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-euc",
        ]);
        command.arg(HOST_KEEPER);
        let pid = self.keeper(&format!("host-{name}"), &mut command)?;
        let namespace = Namespace { pid, mount: true };
        Ok(Host {
            name: name.to_owned(),
            address,
            namespace,
        })
    }

    /// Joins two hosts by one veth pair; each routes the other's pod CIDR over it.
    ///
    /// # Errors
    /// If a link or route can't be made.
    pub fn join(&self, one: (&Host, &str), two: (&Host, &str)) -> Result<()> {
        let peer = two.0.namespace.pid;
        one.0.namespace.shell(&format!(
            "ip link add uplink type veth peer name uplink netns {peer}"
        ))?;
        for ((host, _), (other, cidr)) in [(one, two), (two, one)] {
            host.namespace.shell(&format!(
                "ip addr add {}/24 dev uplink; ip link set uplink up; \
                 ip route add {cidr} via {} src {}",
                host.address, other.address, host.address
            ))?;
        }
        Ok(())
    }

    /// Joins any number of hosts, each with its pod CIDR, by a bridge in a namespace of its own; each
    /// routes the others' pods over it.
    ///
    /// # Errors
    /// If the namespace, a link or a route can't be made.
    pub fn network(&mut self, hosts: &[(&Host, &str)]) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-euc", POD_KEEPER]);
        let pid = self.keeper("network", &mut command)?;
        let bridge = Namespace { pid, mount: false };
        bridge.shell("ip link add bridge type bridge; ip link set bridge up")?;
        for (index, (host, _)) in hosts.iter().enumerate() {
            host.namespace.shell(&format!(
                "ip link add uplink type veth peer name port{index} netns {pid}; \
                 ip addr add {}/24 dev uplink; ip link set uplink up",
                host.address
            ))?;
            bridge.shell(&format!("ip link set port{index} master bridge up"))?;
        }
        for (index, (host, _)) in hosts.iter().enumerate() {
            for (_, (other, cidr)) in hosts.iter().enumerate().filter(|(at, _)| *at != index) {
                let (via, src) = (other.address, host.address);
                let route = format!("ip route add {cidr} via {via} src {src}");
                host.namespace.shell(&route)?;
            }
        }
        Ok(())
    }

    /// Makes a pod on a joined host, behind a veth with a /32 route.
    ///
    /// # Errors
    /// If the namespace, link or routes can't be made.
    pub fn pod(&mut self, host: &Host, name: &str, address: Ipv4Addr) -> Result<Pod> {
        let interface = format!("lxc{name}");
        ensure!(
            interface.len() <= INTERFACE_CHARS_MAX,
            "pod name {name} is too long"
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-euc", POD_KEEPER]);
        let pid = self.keeper(&format!("pod-{}-{name}", host.name), &mut command)?;
        let namespace = Namespace { pid, mount: false };
        host.namespace.shell(&format!(
            "ip link add {interface} type veth peer name eth0 netns {pid}; \
             ip link set {interface} up; \
             ip route add {address}/32 dev {interface} src {}",
            host.address
        ))?;
        namespace.shell(&format!(
            "ip addr add {address}/32 dev eth0; ip link set eth0 up; \
             ip route add {GATEWAY} dev eth0 scope link src {address}; \
             ip route add default via {GATEWAY} src {address}"
        ))?;
        Ok(Pod {
            name: name.to_owned(),
            address,
            interface,
            namespace,
        })
    }

    /// Starts a long-running program; its output is appended to `log`.
    ///
    /// # Errors
    /// If it can't be started or written down.
    pub fn daemon(&mut self, name: &str, command: &mut Command, log: &Path) -> Result<u32> {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let copy = file
            .try_clone()
            .with_context(|| format!("open {} twice", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let pid = child.id();
        self.children.push((name.to_owned(), child));
        self.write_down(pid, name)?;
        Ok(pid)
    }

    /// Kills a daemon by SIGKILL and waits for its end.
    ///
    /// # Errors
    /// If there is no such daemon, or it had ended before.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let place = self.children.iter().position(|(n, _)| n == name);
        let place = place.with_context(|| format!("no daemon {name}"))?;
        let (_, mut child) = self.children.remove(place);
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("look after {name}"))?
        {
            bail!("{name} had ended before, with {status}");
        }
        child.kill().with_context(|| format!("kill {name}"))?;
        child.wait().with_context(|| format!("wait for {name}"))?;
        Ok(())
    }

    /// Checks that a daemon still runs.
    ///
    /// # Errors
    /// If it ended, with its exit status.
    pub fn alive(&mut self, name: &str) -> Result<()> {
        let child = self.children.iter_mut().find(|(n, _)| n == name);
        let (_, child) = child.with_context(|| format!("no daemon {name}"))?;
        match child
            .try_wait()
            .with_context(|| format!("look after {name}"))?
        {
            Some(status) => bail!("{name} ended with {status}"),
            None => Ok(()),
        }
    }

    fn keeper(&mut self, name: &str, command: &mut Command) -> Result<u32> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the keeper of {name}"))?;
        let pid = child.id();
        let stdout = child.stdout.take();
        self.children.push((name.to_owned(), child));
        self.write_down(pid, name)?;
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.with_context(|| format!("read from the keeper of {name}"))?;
        }
        ensure!(
            line.trim() == "ready",
            "the keeper of {name} could not set up its namespaces"
        );
        Ok(pid)
    }

    fn write_down(&self, pid: u32, name: &str) -> Result<()> {
        let path = self.dir.join(PROCESSES);
        let started = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        writeln!(file, "{pid} {started} {name}")
            .with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Newest first: agents and servers before the keepers of their namespaces.
        for (_, child) in self.children.iter_mut().rev() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Ends what an earlier run in `dir` left, and removes the directory.
///
/// # Errors
/// If the directory is not one of ours, or a process outlives SIGKILL for seconds.
pub fn end_leftovers(dir: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(dir) else {
        return Ok(());
    };
    let own = fs::metadata("/proc/self")
        .context("read our own user id")?
        .uid();
    ensure!(
        meta.is_dir() && meta.uid() == own,
        "not a directory of this user"
    );
    let text = fs::read_to_string(dir.join(PROCESSES))
        .with_context(|| format!("no list of processes in it ({PROCESSES}), so it is not ours"))?;
    let mut left = Vec::new();
    for line in text.lines().rev() {
        let mut words = line.split(' ');
        let (Some(pid), Some(started)) = (words.next(), words.next()) else {
            continue;
        };
        let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else {
            continue;
        };
        // The start time tells our process from a later one with the same number.
        if start_time(pid) == Some(started) {
            // Fails only if it ended in between.
            let _: Output = run(
                Command::new("sh").args(["-c", &format!("kill -9 {pid}")]),
                COMMAND_LIMIT,
            )?;
            left.push((pid, started));
        }
    }
    for (pid, started) in left {
        eventually(Duration::from_secs(5), || {
            ensure!(
                start_time(pid) != Some(started),
                "process {pid} does not end"
            );
            Ok(())
        })?;
    }
    fs::remove_dir_all(dir).context("remove the directory")
}

/// Field 22 of `/proc/PID/stat` (proc(5)), in clock ticks since boot; `None` for no such process,
/// or one that has ended and is only waited for.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses and may hold blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_ours_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("thesis.tex"), "years of work").unwrap();
        end_leftovers(temp.path()).unwrap_err();
        assert!(temp.path().join("thesis.tex").exists());
    }

    #[test]
    fn leftovers_are_ended_by_pid_and_start_time() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("lab");
        fs::create_dir(&dir).unwrap();
        let sleep = || Command::new("sleep").arg("60").spawn().unwrap();
        let (mut ours, mut reused) = (sleep(), sleep());
        let (one, two) = (ours.id(), reused.id());
        let started = start_time(one).unwrap();
        // The second entry tells of an older process that had the same number.
        fs::write(
            dir.join(PROCESSES),
            format!("{one} {started} a\n{two} 1 b\n"),
        )
        .unwrap();
        end_leftovers(&dir).unwrap();
        assert!(!ours.wait().unwrap().success());
        assert!(
            reused.try_wait().unwrap().is_none(),
            "a stranger's process was killed"
        );
        assert!(!dir.exists());
        reused.kill().unwrap();
        reused.wait().unwrap();
    }

    #[test]
    fn a_hung_command_is_killed() {
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(
            format!("{error:#}").contains("did not end in time"),
            "{error:#}"
        );
    }
}
