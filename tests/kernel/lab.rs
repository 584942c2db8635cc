//! One host of the shared lab with three pods for each test, and processes in them that open
//! connections on command.
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::ensure;
use tombolo::{
    config::AttachMode,
    enforcer::Options,
    test_support::{
        self,
        lab::{Host, Lab, Namespace},
        process,
    },
};

use crate::cluster;

/// The process ids of the pods' keepers, in the order of [`PODS`]; set inside the host.
const INSIDE: &str = "TOMBOLO_LAB";
const ROLE: &str = "TOMBOLO_LAB_ROLE";
/// Longer than a SYN's first retransmission, so that a lost packet is not taken for a verdict.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A helper's answer takes two times `PATIENCE` at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

const HOST: &str = "10.1.0.1";
pub(crate) const DB: &str = "10.1.0.2";
pub(crate) const EMPLOYEE: &str = "10.1.0.3";
pub(crate) const STRANGER: &str = "10.1.0.4";
const PODS: [(&str, &str); 3] = [("db", DB), ("employee", EMPLOYEE), ("stranger", STRANGER)];

/// Runs `body` on a fresh host with the three pods: starts this binary there for `test`.
pub(crate) fn isolated(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let temp = tempfile::tempdir().unwrap();
    let mut lab = Lab::open(&temp.path().join("lab")).unwrap();
    let host = lab.host("node1", HOST.parse().unwrap());
    let host = host.expect("the kernel tier needs root");
    let setup = "ip addr add 10.1.0.1/32 dev lo; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    host.namespace.shell(setup).unwrap();
    let keepers = PODS.map(|(name, address)| pod_keeper(&mut lab, &host, name, address));
    let status = host
        .namespace
        .command(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, keepers.join(" "))
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed on its host");
}

/// Makes a pod with `address` and its [`v6`] twin; the process that holds it.
fn pod_keeper(lab: &mut Lab, host: &Host, name: &str, address: &str) -> String {
    let pod = lab.pod(host, name, address.parse().unwrap()).unwrap();
    let twin = v6(address);
    for (namespace, script) in [
        (
            &host.namespace,
            format!(
                "echo 0 > /proc/sys/net/ipv6/conf/lxc{name}/disable_ipv6; \
                 ip addr add fe80::1/64 dev lxc{name} nodad; ip route add {twin}/128 dev lxc{name}"
            ),
        ),
        (
            &pod.namespace,
            format!(
                "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; \
                 ip addr add {twin}/128 dev eth0 nodad; \
                 ip route add default via fe80::1 dev eth0 src {twin}"
            ),
        ),
    ] {
        namespace.shell(&script).unwrap();
    }
    pod.namespace.pid().to_string()
}

/// How programs are attached in this run of the tier: `TOMBOLO_ATTACH_MODE`, else as the agent
/// chooses.
pub(crate) fn attach_mode() -> AttachMode {
    match std::env::var("TOMBOLO_ATTACH_MODE").as_deref() {
        Ok("clsact") => AttachMode::Clsact,
        Ok("tcx") => AttachMode::Tcx,
        Ok("auto") | Err(_) => AttachMode::Auto,
        Ok(other) => panic!("TOMBOLO_ATTACH_MODE={other}"),
    }
}

/// An enforcer's options, with this run's attach mode.
pub(crate) fn options() -> Options {
    Options {
        attach_mode: attach_mode(),
        ..Options::default()
    }
}

/// What is recorded as attached, `<ifindex>-<direction>`, in both modes.
pub(crate) fn attached() -> Vec<String> {
    let list = |directory: &str| {
        let entries = std::fs::read_dir(format!("/sys/fs/bpf/tombolo/v2/{directory}"));
        let names = entries.unwrap().map(|e| e.unwrap().file_name());
        names.map(|n| n.to_string_lossy().into_owned())
    };
    list("links").chain(list("filters")).collect()
}

/// Runs a shell line.
pub(crate) fn run(script: &str) {
    process::run_ok(Command::new("sh").args(["-euc", script]), COMMAND_LIMIT).unwrap();
}

/// Waits until `check` holds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let look = || {
        ensure!(check(), "{what}");
        Ok(())
    };
    test_support::eventually(Duration::from_secs(5), look).unwrap();
}

/// A process on command: `role` decides what it understands. Killed when dropped.
pub(crate) struct Helper(process::Helper);

impl Helper {
    /// In the namespace of a pod, or in ours.
    pub(crate) fn start(role: &str, namespace: Option<&Namespace>) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut command = match namespace {
            Some(namespace) => namespace.command(own),
            None => Command::new(own),
        };
        command
            .args(["lab::helper", "--exact", "--nocapture"])
            .env(ROLE, role);
        Self(process::Helper::start(role, &mut command).unwrap())
    }

    /// Sends a line, gives back the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.0.send(line).unwrap();
        loop {
            let answer = self.0.line(ANSWER_LIMIT).unwrap();
            let answer = answer.unwrap_or_else(|| panic!("helper died: {line}"));
            // The test harness of the helper writes lines of its own.
            if let Some((_, answer)) = answer.split_once('@') {
                return answer.trim().to_owned();
            }
        }
    }
}

/// A pod of the host, and a process in it.
pub(crate) struct Pod {
    namespace: Namespace,
    helper: Helper,
}

impl Pod {
    /// The pod with this name in [`PODS`]; its interface on the host is `lxc<name>`.
    pub(crate) fn start(name: &str) -> Self {
        let keepers = std::env::var(INSIDE).unwrap();
        let place = PODS.iter().position(|(pod, _)| *pod == name).unwrap();
        let keeper = keepers.split(' ').nth(place).unwrap();
        let namespace = Namespace::network_of(keeper.parse().unwrap());
        let helper = Helper::start("pod", Some(&namespace));
        Self { namespace, helper }
    }

    /// Runs a shell line inside.
    pub(crate) fn shell(&self, script: &str) {
        self.namespace.shell(script).unwrap();
    }

    /// Ends all its processes, and with them its namespace and link.
    pub(crate) fn end(self) {
        run(&format!("kill -9 {}", self.namespace.pid()));
    }

    /// Echo server on `port`.
    pub(crate) fn listen(&mut self, port: u16) {
        assert_eq!(self.helper.ask(&format!("listen {port}")), "ok");
    }

    /// True if a connection came about; it is kept for `echo`.
    pub(crate) fn connect(&mut self, to: &str) -> bool {
        self.helper.ask(&format!("connect {to}")) == "ok"
    }

    /// True if a byte sent on the kept connection came back.
    pub(crate) fn echo(&mut self) -> bool {
        self.helper.ask("echo") == "ok"
    }

    /// Sends a byte from the server on its newest connection, unasked.
    pub(crate) fn push(&mut self) {
        assert_eq!(self.helper.ask("push"), "ok");
    }

    /// True if a byte arrives unasked on the kept connection.
    pub(crate) fn pull(&mut self) -> bool {
        self.helper.ask("pull") == "ok"
    }

    /// For the commands without a method of their own.
    pub(crate) fn ask(&mut self, line: &str) -> bool {
        self.helper.ask(line) == "ok"
    }

    /// Sends a datagram from an address of the sender's choice.
    pub(crate) fn datagram(&mut self, from: &str, to: &str) {
        assert_eq!(self.helper.ask(&format!("datagram {from} {to}")), "ok");
    }
}

/// The IPv6 address of the pod with this IPv4 address.
pub(crate) fn v6(address: &str) -> String {
    format!("fd00::{}", address.rsplit('.').next().unwrap())
}

/// Not a test: what this binary does when it is started as a helper.
#[test]
fn helper() {
    match std::env::var(ROLE).as_deref() {
        Ok("pod") => pod(),
        Ok("enforcer") => crate::enforcer::helper(),
        Ok(cluster::record::ROLE) => cluster::record::helper(),
        _ => {}
    }
}

/// Answers each line on stdin by one on stdout.
#[expect(clippy::print_stdout, reason = "stdout is how a helper answers")]
pub(crate) fn serve(mut answer: impl FnMut(&[&str]) -> String) {
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("@{}", answer(&words));
    }
}

fn pod() {
    let mut stream: Option<TcpStream> = None;
    let mut udp_server: Option<UdpSocket> = None;
    let mut udp_socket: Option<UdpSocket> = None;
    let udp_client: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let accepted: Arc<Mutex<HashMap<u16, TcpStream>>> = Arc::default();
    let word = |ok: bool| if ok { "ok".to_owned() } else { "no".to_owned() };
    serve(|words| match *words {
        ["listen", port] => {
            let port: u16 = port.parse().unwrap();
            let listener = TcpListener::bind(("::", port)).unwrap();
            let accepted = Arc::clone(&accepted);
            std::thread::spawn(move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    accepted
                        .lock()
                        .unwrap()
                        .insert(port, stream.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).is_ok() {
                            if stream.write_all(&byte).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            word(true)
        }
        ["connect", to] => {
            let to: SocketAddr = to.parse().unwrap();
            let result = TcpStream::connect_timeout(&to, PATIENCE);
            let ok = result.is_ok();
            stream = result.ok().or_else(|| stream.take());
            word(ok)
        }
        ["echo"] => {
            let stream = stream.as_mut().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            word(stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok())
        }
        ["push"] => {
            let mut accepted = accepted.lock().unwrap();
            word(
                accepted
                    .values_mut()
                    .all(|stream| stream.write_all(b"y").is_ok()),
            )
        }
        ["pull"] => {
            let stream = stream.as_mut().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            word(stream.read_exact(&mut [0]).is_ok())
        }
        ["udp-listen", port] => {
            let port: u16 = port.parse().unwrap();
            let socket = UdpSocket::bind(("::", port)).unwrap();
            udp_server = Some(socket.try_clone().unwrap());
            let last = Arc::clone(&udp_client);
            std::thread::spawn(move || {
                let mut datagram = vec![0; 1 << 16];
                while let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
                    *last.lock().unwrap() = Some(from);
                    drop(socket.send_to(&datagram[..bytes], from));
                }
            });
            word(true)
        }
        ["udp-push"] => {
            let to = udp_client.lock().unwrap().unwrap();
            // EPERM would say that it was dropped on the way out; nobody tells a pod that.
            word(udp_server.as_ref().unwrap().send_to(b"y", to).is_ok())
        }
        ["udp-echo", to] => {
            let to: SocketAddr = to.parse().unwrap();
            let socket = udp_socket.get_or_insert_with(|| UdpSocket::bind(("::", 0)).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            word(socket.send_to(b"x", to).is_ok() && socket.recv(&mut [0]).is_ok())
        }
        ["udp-large", bytes, to] => {
            let to: SocketAddr = to.parse().unwrap();
            let mut datagram = vec![7; bytes.parse().unwrap()];
            let socket = UdpSocket::bind(("::", 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent = socket.send_to(&datagram, to).is_ok();
            word(sent && socket.recv(&mut datagram).ok() == Some(datagram.len()))
        }
        ["udp-refused", to] => {
            let to: SocketAddr = to.parse().unwrap();
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent = socket.send(b"x").is_ok();
            let answer = socket.recv(&mut [0]).map_err(|error| error.kind());
            word(sent && answer == Err(std::io::ErrorKind::ConnectionRefused))
        }
        ["udp-heard"] => word(udp_client.lock().unwrap().is_some()),
        ["udp-pull"] => word(udp_socket.as_ref().unwrap().recv(&mut [0]).is_ok()),
        ["datagram", from, to] => {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            word(socket.send_to(b"z", to).is_ok())
        }
        _ => panic!("{words:?}"),
    });
}
