//! The two ends of the traffic that firewalls are compared with: children in network namespaces of
//! their own. The server stands behind the policy; a client asks for one thing and prints a number.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use socket2::{Domain, Socket, Type};

/// TCP: eight bytes come back; asked with [`COUNT`], how many datagrams came.
pub(crate) const ECHO: u16 = 6379;
/// TCP: what is sent is read and thrown away.
pub(crate) const SINK: u16 = 6380;
/// TCP: a connection is accepted and closed.
pub(crate) const CLOSE: u16 = 6381;
/// UDP: datagrams are counted; a single byte comes back.
pub(crate) const DATAGRAMS: u16 = 7000;
/// TCP and UDP where the server answers, but that no policy allows.
pub(crate) const FORBIDDEN: u16 = 6390;

const COUNT: [u8; 8] = *b"count\0\0\0";
/// How long a client works, and how long it waits before what it measures.
const WORK: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(100);
/// A probe without an answer counts as dropped.
const PROBE_LIMIT: Duration = Duration::from_millis(150);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// Prints which of the server's ports answer, as ones and zeros
    Probe,
    /// Prints the datagrams of 64 bytes that arrived, a second
    Packets,
    /// Prints the round trips of 8 bytes on one connection, a second
    RoundTrips,
    /// Prints the connections opened and closed, a second
    Connections,
    /// Prints the bytes sent on one connection, a second
    Bulk,
}

/// Serves all ports until its input is closed; prints a line when it is ready.
pub(crate) fn serve() -> Result<()> {
    let received = Arc::new(AtomicU64::new(0));
    for port in [DATAGRAMS, FORBIDDEN] {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("bind UDP")?;
        let received = Arc::clone(&received);
        thread::spawn(move || count(&socket, &received));
    }
    for port in [ECHO, SINK, CLOSE, FORBIDDEN] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("bind TCP")?;
        let received = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if port == ECHO {
                    let received = Arc::clone(&received);
                    thread::spawn(move || echo(stream, &received));
                } else if port == SINK {
                    thread::spawn(move || sink(stream));
                }
            }
        });
    }
    println!("ready");
    // The input closes when the parent is done, or gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn count(socket: &UdpSocket, received: &AtomicU64) {
    let mut buffer = [0; 64];
    while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
        received.fetch_add(1, Ordering::Relaxed);
        if bytes == 1 {
            // A prober that has gone needs no answer.
            drop(socket.send_to(&buffer[..1], from));
        }
    }
}

fn echo(mut stream: TcpStream, received: &AtomicU64) {
    let mut message = [0; 8];
    // Fails only on a broken connection, which the next read ends.
    drop(stream.set_nodelay(true));
    while stream.read_exact(&mut message).is_ok() {
        if message == COUNT {
            message = received.load(Ordering::Relaxed).to_le_bytes();
        }
        if stream.write_all(&message).is_err() {
            return;
        }
    }
}

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

/// Loads the server and prints one line.
pub(crate) fn load(kind: Load, server: IpAddr) -> Result<()> {
    let at = |port| SocketAddr::new(server, port);
    let line = match kind {
        Load::Probe => {
            let tcp = [ECHO, SINK, CLOSE, FORBIDDEN].map(|port| probe_tcp(at(port)));
            let udp = [DATAGRAMS, FORBIDDEN].map(|port| probe_udp(at(port)));
            let answers = tcp.into_iter().chain(udp);
            answers
                .map(|answer| Ok(if answer? { '1' } else { '0' }))
                .collect::<Result<String>>()?
        }
        Load::Packets => packets(at(ECHO), at(DATAGRAMS))?.to_string(),
        Load::RoundTrips => round_trips(at(ECHO))?.to_string(),
        Load::Connections => connections(at(CLOSE))?.to_string(),
        Load::Bulk => bulk(at(SINK))?.to_string(),
    };
    println!("{line}");
    Ok(())
}

fn probe_tcp(server: SocketAddr) -> Result<bool> {
    match TcpStream::connect_timeout(&server, PROBE_LIMIT) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).with_context(|| format!("probe {server}")),
    }
}

fn probe_udp(server: SocketAddr) -> Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
    socket.set_read_timeout(Some(PROBE_LIMIT))?;
    socket.send_to(&[0], server).context("send a probe")?;
    match socket.recv(&mut [0]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("wait for the answer to a probe"),
    }
}

/// Counts `work` until the time is over, the warm-up not included; by the second.
fn rate(mut work: impl FnMut() -> Result<u64>) -> Result<f64> {
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        work()?;
    }
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < WORK {
        done += work()?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn round_trips(server: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(server).context("connect")?;
    stream.set_nodelay(true)?;
    rate(|| exchange(&mut stream, [0; 8]).map(|_| 1))
}

fn exchange(stream: &mut TcpStream, mut message: [u8; 8]) -> Result<[u8; 8]> {
    stream.write_all(&message).context("send")?;
    stream.read_exact(&mut message).context("receive")?;
    Ok(message)
}

/// Closed by a reset, so that no port waits for its second use.
fn connections(server: SocketAddr) -> Result<f64> {
    rate(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("make a socket")?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&server.into()).context("connect")?;
        Ok(1)
    })
}

fn bulk(server: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(server).context("connect")?;
    let buffer = vec![0; 256 << 10];
    rate(|| Ok(stream.write(&buffer).context("send")? as u64))
}

/// As fast as one thread sends; what counts is what arrived.
fn packets(echo: SocketAddr, server: SocketAddr) -> Result<f64> {
    let mut control = TcpStream::connect(echo).context("connect")?;
    let mut received = || exchange(&mut control, COUNT).map(u64::from_le_bytes);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
    socket.connect(server)?;
    let send_for = |time: Duration| {
        let start = Instant::now();
        while start.elapsed() < time {
            for _ in 0..64 {
                // A full queue on the way is no error of ours: the datagram does not arrive.
                drop(socket.send(&[0; 64]));
            }
        }
        start.elapsed()
    };
    send_for(WARM_UP);
    let before = received()?;
    let elapsed = send_for(WORK);
    Ok((received()? - before) as f64 / elapsed.as_secs_f64())
}
