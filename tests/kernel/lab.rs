//! Namespaces for a test, and pods in them: processes that open connections on command.
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const INSIDE: &str = "TOMBOLO_LAB";
const ROLE: &str = "TOMBOLO_LAB_ROLE";
/// Longer than a SYN's first retransmission, so that a lost packet is not taken for a verdict.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs `body` in fresh namespaces with a fresh bpffs: starts this binary again for `test`.
pub(crate) fn isolated(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        for command in [
            "mount -t bpf bpf /sys/fs/bpf",
            "mkdir -p /run/netns",
            "mount -t tmpfs tmpfs /run/netns",
            "ip link set lo up",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ] {
            run(command);
        }
        return body();
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare is needed");
    assert!(
        status.success(),
        "{test} failed in its namespaces (the kernel tier needs root)"
    );
}

/// Runs a command, words split at blanks.
pub(crate) fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap())
        .args(words)
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
}

/// Waits until `check` holds.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !check() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A process on command: `role` decides what it understands.
pub(crate) struct Helper {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// In the network namespace `netns`, or in ours.
    pub(crate) fn start(role: &str, netns: Option<&str>) -> Self {
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{netns}"));
                command.arg(std::env::current_exe().unwrap());
                command
            }
            None => Command::new(std::env::current_exe().unwrap()),
        };
        let mut child = command
            .args(["lab::helper", "--exact", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            commands,
            answers,
        }
    }

    /// Sends a line, gives back the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.commands, "{line}").unwrap();
        loop {
            let mut answer = String::new();
            assert_ne!(
                self.answers.read_line(&mut answer).unwrap(),
                0,
                "helper died: {line}"
            );
            // The test harness of the helper writes lines of its own.
            if let Some((_, answer)) = answer.split_once('@') {
                return answer.trim().to_owned();
            }
        }
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A pod: a network namespace behind a veth, and a process in it.
pub(crate) struct Pod {
    helper: Helper,
}

impl Pod {
    /// With `address` and its [`v6`] twin, behind the host-side interface `veth-<name>`.
    pub(crate) fn start(name: &str, address: &str) -> Self {
        let twin = v6(address);
        for command in [
            format!("ip netns add {name}"),
            format!("ip link add veth-{name} type veth peer name eth0 netns {name}"),
            format!("ip addr add 169.254.1.1/32 dev veth-{name}"),
            format!("ip link set veth-{name} up"),
            format!("ip route add {address}/32 dev veth-{name}"),
            format!("ip addr add fe80::1/64 dev veth-{name} nodad"),
            format!("ip route add {twin}/128 dev veth-{name}"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {name} addr add {twin}/128 dev eth0 nodad"),
            format!("ip -n {name} addr add {address}/32 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} route add 169.254.1.1 dev eth0"),
            format!("ip -n {name} route add default via 169.254.1.1 src {address}"),
            format!("ip -n {name} route add default via fe80::1 dev eth0 src {twin}"),
        ] {
            run(&command);
        }
        Self {
            helper: Helper::start("pod", Some(name)),
        }
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
                let mut byte = [0];
                while let Ok((_, from)) = socket.recv_from(&mut byte) {
                    *last.lock().unwrap() = Some(from);
                    drop(socket.send_to(&byte, from));
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
        ["udp-pull"] => word(udp_socket.as_ref().unwrap().recv(&mut [0]).is_ok()),
        ["datagram", from, to] => {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            word(socket.send_to(b"z", to).is_ok())
        }
        _ => panic!("{words:?}"),
    });
}
