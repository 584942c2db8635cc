//! The parts that run inside a pod or host: they print JSON lines and stop when their input closes.
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tombolo::test_support::unix_ms;

/// Below the kernel's first SYN retransmission (1 s), so that an attempt sends exactly one SYN.
const CONNECT_LIMIT: Duration = Duration::from_millis(900);
/// For the answer of a server that took the connection.
const ANSWER_LIMIT: Duration = Duration::from_millis(2_000);
/// Attempts that may be open at once; at 900 ms each this allows 1 000 a second.
const OPEN_MAX: usize = 1_000;
/// A held connection counts as cut off after this long without an answer.
const SILENCE: Duration = Duration::from_millis(1_000);
/// `ETH_P_IP` of linux/if_ether.h.
const ETHERTYPE_IPV4: u16 = 0x0800;

/// One connection attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// Local port.
    pub(crate) port: u16,
    /// Unix time of the SYN.
    pub(crate) at_ms: u64,
    /// How long it took, to the answer or the failure.
    pub(crate) took_us: u64,
    /// `None` for PONG.
    pub(crate) error: Option<String>,
}

/// What `hold` reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Held {
    /// The first answer came.
    Open { port: u16 },
    /// No answer since `last_ms`.
    Silent { last_ms: u64, pongs: u64 },
    /// It was told to finish, and the connection worked to the end.
    Closed { pongs: u64 },
}

/// SYNs that arrived, by source address and port.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Syns(pub(crate) BTreeMap<Ipv4Addr, BTreeMap<u16, u32>>);

/// Opens `rate` connections a second until the input closes, or `count` of them.
/// Prints the list of attempts as one JSON line.
pub(crate) fn client(target: SocketAddr, rate: u32, count: Option<usize>) -> Result<()> {
    runtime()?.block_on(async {
        let stop = if count.is_none() {
            Some(input_closed())
        } else {
            None
        };
        let stopped = || {
            stop.as_ref()
                .is_some_and(|stop| stop.load(Ordering::Relaxed))
        };
        let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut open = JoinSet::new();
        let mut attempts = Vec::new();
        let mut started = 0;
        while !stopped() && count.is_none_or(|count| started < count) {
            ticks.tick().await;
            open.spawn(attempt(target));
            started += 1;
            while let Some(done) = open.try_join_next() {
                attempts.push(done.context("join an attempt")??);
            }
            ensure!(
                open.len() < OPEN_MAX,
                "{OPEN_MAX} attempts are open at once"
            );
        }
        while let Some(done) = open.join_next().await {
            attempts.push(done.context("join an attempt")??);
        }
        attempts.sort_by_key(|a| a.at_ms);
        print(&attempts)
    })
}

/// One connection: PING, expect PONG, close. Only a missing local port is an error.
async fn attempt(target: SocketAddr) -> Result<Attempt> {
    let socket = TcpSocket::new_v4().context("make a socket")?;
    // Bound first, so that the port is known also if no connection comes about.
    socket
        .bind((Ipv4Addr::UNSPECIFIED, 0).into())
        .context("bind a local port")?;
    let port = socket.local_addr().context("read the local port")?.port();
    let (at_ms, begin) = (unix_ms(), Instant::now());
    let error = match timeout(CONNECT_LIMIT, socket.connect(target)).await {
        Err(_) => Some("connect: timed out".to_owned()),
        Ok(Err(error)) => Some(format!("connect: {error}")),
        Ok(Ok(mut stream)) => match timeout(ANSWER_LIMIT, ping(&mut stream)).await {
            Err(_) => Some("answer: timed out".to_owned()),
            Ok(result) => result.err().map(|error| format!("answer: {error:#}")),
        },
    };
    let took_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(Attempt {
        port,
        at_ms,
        took_us,
        error,
    })
}

/// One PING on an open connection.
async fn ping(stream: &mut tokio::net::TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n").await.context("write")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.context("read")?;
    ensure!(&answer == b"+PONG\r\n", "unexpected bytes {answer:?}");
    Ok(())
}

/// Keeps one connection busy with a PING every 5 ms, until it falls silent or the input closes.
pub(crate) fn hold(target: SocketAddr) -> Result<()> {
    runtime()?.block_on(async {
        let connect = timeout(CONNECT_LIMIT, tokio::net::TcpStream::connect(target));
        let mut stream = connect
            .await
            .context("connect in time")?
            .context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let stop = input_closed();
        let mut ticks = interval(Duration::from_millis(5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pongs, mut last_ms) = (0, unix_ms());
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            if !matches!(timeout(SILENCE, ping(&mut stream)).await, Ok(Ok(()))) {
                return print(&Held::Silent { last_ms, pongs });
            }
            last_ms = unix_ms();
            pongs += 1;
            if pongs == 1 {
                let port = stream.local_addr().context("read the local port")?.port();
                print(&Held::Open { port })?;
            }
        }
        print(&Held::Closed { pongs })
    })
}

/// Counts the TCP SYNs that come in for `own` on any interface, until the input closes.
/// Prints `ready` once it listens, and the counts at the end.
pub(crate) fn capture(own: Ipv4Addr) -> Result<()> {
    // A packet socket for one protocol sees incoming packets only; cooked, they begin at the IP header.
    let protocol = Protocol::from(i32::from(ETHERTYPE_IPV4.to_be()));
    let mut socket =
        Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).context("open a packet socket")?;
    socket
        .set_recv_buffer_size(8 << 20)
        .context("set the receive buffer")?;
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .context("set the read time-out")?;
    let stop = input_closed();
    say("ready")?;
    let mut syns = Syns::default();
    let mut packet = vec![0; 65_536];
    // One more silent read after the end, so that packets already queued are counted.
    loop {
        let ending = stop.load(Ordering::Relaxed);
        match socket.read(&mut packet) {
            Ok(len) => {
                if let Some((source, port)) = packet.get(..len).and_then(|p| syn_to(own, p)) {
                    *syns.0.entry(source).or_default().entry(port).or_default() += 1;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if ending {
                    return print(&syns);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("read a packet"),
        }
    }
}

/// Source of a packet that opens a TCP connection to `own`: SYN without ACK, first fragment.
fn syn_to(own: Ipv4Addr, packet: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let header = packet.first_chunk::<20>()?;
    let tcp = packet.get(usize::from(header[0] & 0x0f) * 4..)?;
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let flags = *tcp.get(13)?;
    let opens = flags & 0x12 == 0x02;
    let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    if header[0] >> 4 != 4 || header[9] != 6 || !first || !opens || to != own {
        return None;
    }
    let from = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    Some((from, u16::from_be_bytes([*tcp.first()?, *tcp.get(1)?])))
}

/// Fetches a page by HTTP/1.0 and prints its body; an error for another status than 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<()> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).context("connect")?;
    stream
        .set_read_timeout(Some(limit))
        .context("set the read time-out")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").context("send the request")?;
    let mut answer = String::new();
    stream
        .take(64 << 20)
        .read_to_string(&mut answer)
        .context("read the answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the headers")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{path}: {status}: {}", body.trim());
    }
    say(body)
}

/// True once standard input has ended; then the process should finish.
fn input_closed() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    thread::spawn(move || {
        // An error ends the input, too.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        flag.store(true, Ordering::Relaxed);
    });
    closed
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")
}

fn print(value: &impl Serialize) -> Result<()> {
    say(&serde_json::to_string(value).context("encode a report")?)
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("write to standard output")
}
