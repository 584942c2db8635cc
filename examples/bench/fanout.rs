//! One writer, many watchers with a connection each: what the server spends, how late events are,
//! and what a watcher costs in memory. Open loop: each write starts on its own schedule.
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion};
use futures::{StreamExt, TryStreamExt};
use tonic::Streaming;

use crate::{
    figure::{Figure, Runs, alternate},
    raw::{Field, Raw, field, fields},
    world::{self, Certificates, Server},
};

/// Time between two writes: 500 a second.
const PERIOD: Duration = Duration::from_millis(2);
/// Where the writes go.
const PREFIX: &str = "cilium/state/ip/v1/default/";
/// Keys written in turn.
const KEYS: u32 = 1_000;
/// As long as a full-size address record.
const VALUE_BYTES: usize = 300;
/// Handshakes at once.
const CONNECTING: usize = 8;
/// How long late events are waited for after the last write.
const DRAIN: Duration = Duration::from_secs(10);
/// Width and number of the histogram's steps: 100 µs, 40 s.
const STEP_US: u32 = 100;
const STEPS: usize = 400_000;

/// What one run found.
#[derive(Debug)]
struct Run {
    cpu_seconds: f64,
    events_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    missed_per_cent: f64,
    bytes_per_watcher: f64,
}

pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, writes) = if quick { (1, 1_500) } else { (3, 5_000) };
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?.east;
    let mut figures = Vec::new();
    for watchers in [1, 100, 1_000] {
        // A server for each run: what is left of an overload would be measured with the next.
        let run = |server: &Server| runtime.block_on(run(&certs, server, watchers, writes));
        let data = |n| dir.path().join(format!("etcd-{watchers}-{n}"));
        let (ours, theirs) = alternate(
            runs,
            |_| run(&Server::ours(&certs, None)?),
            |n| run(&Server::etcd(runtime, &certs, &data(n))?),
        )?;
        let mut add = |row: &str, unit, of: fn(&Run) -> f64| {
            let [ours, theirs] = [&ours, &theirs].map(|r| Runs::new(r.iter().map(of).collect()));
            let name = format!("store/fanout-{watchers}-{row}");
            let figure = Figure::beside("etcd", name, unit, &ours, &theirs);
            figures.push(aimed(figure, watchers, row));
        };
        add("cpu", "s", |run| run.cpu_seconds);
        add("events", "k/s", |run| run.events_per_second / 1e3);
        add("p50", "ms", |run| run.p50_ms);
        add("p99", "ms", |run| run.p99_ms);
        add("missed", "%", |run| run.missed_per_cent);
        add("memory", "KiB", |run| run.bytes_per_watcher / 1_024.0);
    }
    Ok(figures)
}

/// With the aim that there is for some rows.
fn aimed(figure: Figure, watchers: usize, row: &str) -> Figure {
    match (watchers, row) {
        (100, "cpu") => figure.ratio_at_most(0.2),
        (100, "p99") => figure.at_most(10.0),
        (1_000, "events") => figure.ratio_at_least(2.5),
        _ => figure,
    }
}

/// What all watchers count into.
#[derive(Debug)]
struct Seen {
    start: Instant,
    events: AtomicU64,
    lateness: Vec<AtomicU32>,
}

impl Seen {
    /// Counts the events of an answer.
    fn count(&self, answer: &[u8]) {
        let now = self.start.elapsed();
        let mut events = 0;
        for (number, event) in fields(answer) {
            let (11, Field::Bytes(event)) = (number, event) else {
                continue;
            };
            // Event, then key-value, then value, which begins with the write's number.
            let value = field(event, 2).and_then(|kv| field(kv, 5));
            let digits = value.and_then(|value| std::str::from_utf8(value.get(..8)?).ok());
            let Some(n) = digits.and_then(|digits| digits.parse::<u32>().ok()) else {
                continue;
            };
            let late = now.saturating_sub(PERIOD * n).as_micros() / u128::from(STEP_US);
            let step = usize::try_from(late).unwrap_or(usize::MAX);
            self.lateness[step.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
            events += 1;
        }
        self.events.fetch_add(events, Ordering::Relaxed);
    }

    fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Milliseconds below which that part of the events came.
    fn percentile(&self, per_cent: u64) -> f64 {
        let rank = (self.events() * per_cent).div_ceil(100);
        let mut sum = 0;
        let step = self.lateness.iter().position(|step| {
            sum += u64::from(step.load(Ordering::Relaxed));
            sum >= rank
        });
        step.map_or(f64::NAN, |step| {
            (step + 1) as f64 * f64::from(STEP_US) / 1e3
        })
    }
}

async fn run(certs: &Path, server: &Server, watchers: usize, writes: u32) -> Result<Run> {
    let before = server.resident_bytes()?;
    let streams: Vec<Streaming<_>> = futures::stream::iter(0..watchers)
        .map(|_| watch(certs, server.url()))
        .buffer_unordered(CONNECTING)
        .try_collect()
        .await?;
    let more = server.resident_bytes()?.saturating_sub(before);
    let writer = world::connect(certs, server.url()).await?;
    let start = Instant::now() + Duration::from_millis(200);
    let seen = Arc::new(Seen {
        start,
        events: AtomicU64::new(0),
        lateness: (0..STEPS).map(|_| AtomicU32::new(0)).collect(),
    });
    let mut reading = tokio::task::JoinSet::new();
    for mut stream in streams {
        let seen = Arc::clone(&seen);
        reading.spawn(async move {
            while let Ok(Some(answer)) = stream.message().await {
                seen.count(&answer);
            }
        });
    }
    let cpu_before = server.cpu_seconds()?;
    let mut answers = tokio::task::JoinSet::new();
    for n in 0..writes {
        tokio::time::sleep_until((start + PERIOD * n).into()).await;
        let mut writer = writer.kv_client();
        let mut value = format!("{n:08}").into_bytes();
        value.resize(VALUE_BYTES, b'.');
        let key = format!("{PREFIX}{}", n % KEYS);
        answers.spawn(async move { writer.put(key, value, None).await });
    }
    let end = start + PERIOD * writes;
    tokio::time::sleep_until(end.into()).await;
    let (events, cpu) = (seen.events(), server.cpu_seconds()? - cpu_before);
    let due = u64::from(writes) * watchers as u64;
    while seen.events() < due && end.elapsed() < DRAIN {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let missed = due.saturating_sub(seen.events());
    reading.shutdown().await;
    // A server that is too busy refuses writes; their events count as missed.
    answers.shutdown().await;
    Ok(Run {
        cpu_seconds: cpu,
        events_per_second: events as f64 / (end - start).as_secs_f64(),
        p50_ms: seen.percentile(50),
        p99_ms: seen.percentile(99),
        missed_per_cent: missed as f64 / due as f64 * 1e2,
        bytes_per_watcher: more as f64 / watchers as f64,
    })
}

async fn watch(certs: &Path, url: &str) -> Result<Streaming<bytes::Bytes>> {
    // The library gives the message within no name.
    let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
    if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
        create.key = PREFIX.as_bytes().to_vec();
        create.range_end = tombolo::store::prefix_end(PREFIX.as_bytes()).to_vec();
    }
    let request_union = Some(union);
    let mut client = Raw::connect(certs, url).await?;
    client.watch(PbWatchRequest { request_union }).await
}
