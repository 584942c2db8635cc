//! From a peer's write to the event at a watcher of our cache, open loop: each write starts on its
//! own schedule, and its latency counts from when it was due. Source and agent are processes of
//! their own; all connections are mTLS.
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tombolo::{
    etcd::{Client, ConnectOptions, Event},
    keyspace::{Kind, Layout},
    types::ClusterName,
};

use crate::{
    agent::Agent,
    figure::{Figure, Runs, alternate},
    world::{self, Certificates, EAST, LIMIT, Server},
};

/// Addresses written in turn, all of them known before.
const ADDRESSES: u32 = 10_000;
/// Writes that are not counted, in seconds of load.
const WARM_UP: u32 = 1;
/// How long late events are waited for.
const DRAIN: Duration = Duration::from_secs(5);
/// Comes before the number of the write in a record.
const NUMBER: &str = "checkout-6c9f7d5b8-";
/// Numbers of a run; those below are in the records that were there before.
const NUMBERS: u32 = 1 << 20;
/// Of runs. A record that is written once more with the same bytes is no change, and no event.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// What one run found.
#[derive(Debug)]
struct Run {
    /// Milliseconds, ascending.
    latencies: Vec<f64>,
    merged_per_cent: f64,
}

/// The same load with ourselves and with etcd as the source, in turn.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, seconds) = if quick { (1, 3) } else { (5, 10) };
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?;
    let servers = Server::both(runtime, &certs.east, &dir.path().join("etcd"))?;
    let mut agents = Vec::new();
    for (server, name) in servers.iter().zip(["from-us", "from-etcd"]) {
        let records = world::records(ADDRESSES)?;
        runtime.block_on(world::load(&certs.east, server.url(), &records))?;
        let file = certs.issue(&dir.path().join(name), server.url())?;
        let agent = Agent::start(&certs.west, dir.path().join(format!("agent-{name}")))?;
        agent.join(&file)?;
        let all = u64::from(ADDRESSES);
        agent.until(Instant::now(), |status| {
            status["datapath"]["ipcache"].as_u64() >= Some(all)
        })?;
        agents.push(agent);
    }
    let mut figures = Vec::new();
    for rate in [100, 1_000, 5_000] {
        let run = |server: &Server, agent: &Agent| {
            runtime
                .block_on(run(&certs, server.url(), &agent.url, rate, seconds))
                .with_context(|| agent.log())
        };
        let (ours, theirs) = alternate(
            runs,
            |_| run(&servers[0], &agents[0]),
            |_| run(&servers[1], &agents[1]),
        )?;
        let add = |row: &str, unit, of: &dyn Fn(&Run) -> f64| {
            let [ours, theirs] = [&ours, &theirs].map(|r| Runs::new(r.iter().map(of).collect()));
            let name = format!("mesh/propagation-{rate}-{row}");
            Figure::beside("etcd", name, unit, &ours, &theirs)
        };
        let p50 = add("p50", "ms", &|run| percentile(&run.latencies, 50));
        let p99 = add("p99", "ms", &|run| percentile(&run.latencies, 99));
        let merged = add("merged", "%", &|run| run.merged_per_cent);
        // At 5 000 writes a second both sides may merge what they can't deliver.
        let aimed = rate < 5_000;
        figures.push(p50);
        figures.push(if aimed { p99.at_most(5.0) } else { p99 });
        figures.push(if aimed { merged.at_most(0.0) } else { merged });
    }
    Ok(figures)
}

async fn run(
    certs: &Certificates,
    source: &str,
    cache: &str,
    rate: u32,
    seconds: u32,
) -> Result<Run> {
    let period = Duration::from_secs(1) / rate;
    let first = NUMBERS * (RUNS.fetch_add(1, Ordering::Relaxed) + 1);
    let warm_up = WARM_UP * rate;
    let total = warm_up + seconds * rate;
    let options = ConnectOptions {
        tls: world::client_options(&certs.west, "local"),
        ..ConnectOptions::default()
    };
    let reader = Client::connect(&options, &cache.parse()?).await?;
    let east: ClusterName = EAST.parse()?;
    let mut events = reader
        .watch(&Layout::Cache.prefix(Kind::Ips, &east), 0)
        .await?;
    let start = Instant::now() + Duration::from_millis(200);
    let mut load = write(&certs.east, source, start, period, first..first + total).await?;
    let mut latencies = Vec::new();
    let end = start + period * total + DRAIN;
    let collect = async {
        loop {
            let batch = events.recv().await?.context("the watch ended")?;
            let now = Instant::now();
            for event in &batch {
                let Event::Put(entry) = event else { continue };
                let number = number(&entry.value).and_then(|n| n.checked_sub(first));
                let Some(n) = number else { continue };
                if n >= warm_up {
                    let due = start + period * n;
                    latencies.push(now.saturating_duration_since(due).as_secs_f64() * 1e3);
                }
                if n + 1 == total {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        }
    };
    // The last event may be late: what has not come by then counts as merged.
    if let Ok(collected) = tokio::time::timeout_at(end.into(), collect).await {
        collected?;
    }
    tokio::time::timeout(LIMIT, async { while load.join_next().await.is_some() {} })
        .await
        .context("finish the writes")?;
    latencies.sort_by(f64::total_cmp);
    let counted = f64::from(total - warm_up);
    Ok(Run {
        merged_per_cent: (counted - latencies.len() as f64) / counted * 1e2,
        latencies,
    })
}

/// Starts the writes; they go on by themselves.
async fn write(
    certs: &Path,
    source: &str,
    start: Instant,
    period: Duration,
    numbers: std::ops::Range<u32>,
) -> Result<tokio::task::JoinSet<()>> {
    let writer = world::connect(certs, source).await?;
    let mut load = tokio::task::JoinSet::new();
    let prefix = Layout::State.prefix(Kind::Ips, &EAST.parse()?);
    load.spawn(async move {
        let mut answers = tokio::task::JoinSet::new();
        for (n, number) in (0..).zip(numbers) {
            tokio::time::sleep_until((start + period * n).into()).await;
            let mut writer = writer.kv_client();
            let k = n % ADDRESSES;
            let identity = world::identity(k / world::ADDRESSES_PER_IDENTITY);
            let value = world::address_record(world::address(k), identity, number);
            let key = format!("{prefix}{}", world::address(k));
            answers.spawn(async move { writer.put(key, value, None).await });
            // Answers that are there already; a refused write is an event that does not come.
            while answers.try_join_next().is_some() {}
        }
        answers.join_all().await;
    });
    Ok(load)
}

/// The number of the write that made a record.
fn number(value: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(value).ok()?;
    let (_, rest) = text.split_once(NUMBER)?;
    u32::from_str_radix(rest.get(..8)?, 16).ok()
}

fn percentile(sorted: &[f64], per_cent: usize) -> f64 {
    let at = (sorted.len() * per_cent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
