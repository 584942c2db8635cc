//! Durable writes: how many a second, closed loop, and what one costs the server. Both servers sync
//! every write before they answer it, in directories beside each other.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etcd_client::{PutOptions, Txn, TxnOp, proto::PbPutRequest};
use futures::{StreamExt, TryStreamExt};

use crate::{
    figure::{Figure, Runs, alternate},
    raw::Raw,
    world::{Certificates, Server, connect},
};

/// Where the writes go.
const PREFIX: &str = "cilium/state/ip/v1/default/";
/// Keys written in turn.
const KEYS: usize = 1_000;
/// As long as a full-size address record.
const VALUE_BYTES: usize = 300;
/// Handshakes at once.
const CONNECTING: usize = 8;
/// Clients that write to keys on a lease.
const LEASE_CLIENTS: usize = 16;
/// Keys on a full lease, and in a `--quick` run.
const LEASE_KEYS: (u32, u32) = (100_000, 10_000);
/// Etcd's limit of operations.
const TXN_OPS: usize = 128;
/// Longer than any run.
const LEASE_TTL_S: i64 = 24 * 3_600;
/// Before the clock counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// What one run found.
#[derive(Debug)]
struct Run {
    puts_per_second: f64,
    cpu_us_per_put: f64,
}

pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, seconds) = if quick { (3, 2) } else { (5, 5) };
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?.east;
    let [ours, theirs] = Server::both_durable(runtime, &certs, dir.path())?;
    let mut figures = Vec::new();
    for (clients, aim) in [(1, 1.0), (16, 3.0), (256, 3.0)] {
        let time = Duration::from_secs(seconds);
        let run = |server: &Server| runtime.block_on(run(&certs, server, clients, time, 0));
        let (ours, theirs) = alternate(runs, |_| run(&ours), |_| run(&theirs))?;
        let row = |name: &str, unit, of: fn(&Run) -> f64| {
            let [ours, theirs] = [&ours, &theirs].map(|r| Runs::new(r.iter().map(of).collect()));
            let name = format!("store/puts-{clients}{name}");
            Figure::beside("etcd", name, unit, &ours, &theirs)
        };
        let rate = row("", "k/s", |run| run.puts_per_second / 1e3);
        figures.push(rate.ratio_at_least(aim));
        figures.push(row("-cpu", "µs", |run| run.cpu_us_per_put));
    }
    figures.push(full_lease(runtime, &certs, [&ours, &theirs], quick)?);
    Ok(figures)
}

/// How many times as long a put takes because its lease holds many other keys.
fn full_lease(
    runtime: &tokio::runtime::Runtime,
    certs: &Path,
    [ours, theirs]: [&Server; 2],
    quick: bool,
) -> Result<Figure> {
    let (runs, seconds, keys) = if quick {
        (3, 1, LEASE_KEYS.1)
    } else {
        (5, 2, LEASE_KEYS.0)
    };
    let time = Duration::from_secs(seconds);
    let leases = |server: &Server| runtime.block_on(leases(certs, server, keys));
    let (of_ours, of_theirs) = (leases(ours)?, leases(theirs)?);
    let slowdown = |server: &Server, [empty, full]: [i64; 2]| {
        let rate = |lease| {
            let run = run(certs, server, LEASE_CLIENTS, time, lease);
            anyhow::Ok(runtime.block_on(run)?.puts_per_second)
        };
        Ok(rate(empty)? / rate(full)?)
    };
    let (ours, theirs) = alternate(
        runs,
        |_| slowdown(ours, of_ours),
        |_| slowdown(theirs, of_theirs),
    )?;
    let [ours, theirs] = [ours, theirs].map(Runs::new);
    let figure = Figure::beside("etcd", "store/puts-full-lease", "×", &ours, &theirs);
    Ok(figure.at_most(1.1))
}

/// A lease without keys, and one that holds as many.
async fn leases(certs: &Path, server: &Server, keys: u32) -> Result<[i64; 2]> {
    let mut client = connect(certs, server.url()).await?;
    let empty = client.lease_grant(LEASE_TTL_S, None).await?.id();
    let full = client.lease_grant(LEASE_TTL_S, None).await?.id();
    let put = |n| {
        let options = PutOptions::new().with_lease(full);
        TxnOp::put(format!("leased/{n}"), "x", Some(options))
    };
    let mut left = 0..keys;
    while !left.is_empty() {
        let puts: Vec<_> = left.by_ref().take(TXN_OPS).map(put).collect();
        let txn = client.txn(Txn::new().and_then(puts)).await;
        txn.context("fill a lease")?;
    }
    Ok([empty, full])
}

/// Clients with a connection each, of which each writes again once it is answered, to keys on this
/// lease, 0 for none.
async fn run(
    certs: &Path,
    server: &Server,
    clients: usize,
    time: Duration,
    lease: i64,
) -> Result<Run> {
    let connected: Vec<Raw> = futures::stream::iter(0..clients)
        .map(|_| Raw::connect(certs, server.url()))
        .buffer_unordered(CONNECTING)
        .try_collect()
        .await?;
    let start = Instant::now() + WARM_UP;
    let end = start + time;
    let mut writing = tokio::task::JoinSet::new();
    for (number, client) in connected.into_iter().enumerate() {
        writing.spawn(write(client, (number, clients), lease, start..end));
    }
    tokio::time::sleep_until(start.into()).await;
    let before = server.cpu_seconds()?;
    tokio::time::sleep_until(end.into()).await;
    let cpu_seconds = server.cpu_seconds()? - before;
    let mut puts = 0;
    while let Some(written) = writing.join_next().await {
        puts += written.context("a client panicked")??;
    }
    Ok(Run {
        puts_per_second: f64::from(puts) / time.as_secs_f64(),
        cpu_us_per_put: cpu_seconds * 1e6 / f64::from(puts),
    })
}

/// Writes until the end of `counted`; returns how many writes were answered within it.
async fn write(
    mut client: Raw,
    (number, clients): (usize, usize),
    lease: i64,
    counted: std::ops::Range<Instant>,
) -> Result<u32> {
    let mut puts = 0;
    for n in (number..).step_by(clients) {
        let request = PbPutRequest {
            key: format!("{PREFIX}{}", n % KEYS).into_bytes(),
            value: vec![b'.'; VALUE_BYTES],
            lease,
            ..PbPutRequest::default()
        };
        client.put(request).await?;
        let now = Instant::now();
        if now >= counted.end {
            break;
        }
        puts += u32::from(now >= counted.start);
    }
    Ok(puts)
}
