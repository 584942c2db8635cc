//! From a write to a watcher's event, open loop: each write starts on its own schedule whether the
//! ones before are answered or not, and its latency counts from when it was due. One generator
//! process, one connection for writes and one for the watch, both mTLS.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etcd_client::WatchOptions;

use crate::{
    figure::{Figure, Runs, alternate},
    world::{self, Certificates, Etcd, LIMIT},
};

/// Time between two writes: 1 000 a second.
const PERIOD: Duration = Duration::from_millis(1);
/// Where the writes go.
const PREFIX: &str = "cilium/state/ip/v1/default/";
/// Keys written in turn.
const KEYS: u32 = 1_000;
/// Writes before the clock counts.
const WARM_UP: u32 = 1_000;
/// As long as a full-size address record.
const VALUE_BYTES: usize = 300;

/// The same load on our server and on etcd, in turn.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, writes) = if quick { (3, 3_000) } else { (5, 10_000) };
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?.east;
    let (_server, url) = world::child("serve", &certs, &["0"])?;
    let etcd = runtime.block_on(Etcd::start(&certs, &dir.path().join("etcd")))?;
    let (ours, theirs) = alternate(
        runs,
        |_| runtime.block_on(latencies(&certs, &url, writes)),
        |_| runtime.block_on(latencies(&certs, &etcd.url, writes)),
    )?;
    let row = |name: &str, per_cent| {
        let of = |runs: &[Vec<f64>]| {
            Runs::new(runs.iter().map(|run| percentile(run, per_cent)).collect())
        };
        let name = format!("store/write-to-watch-{name}");
        Figure::beside("etcd", name, "ms", &of(&ours), &of(&theirs))
    };
    Ok(vec![row("p50", 50), row("p99", 99)])
}

/// Milliseconds, ascending.
async fn latencies(certs: &Path, url: &str, writes: u32) -> Result<Vec<f64>> {
    let total = WARM_UP + writes;
    let mut reader = world::connect(certs, url).await?;
    let writer = world::connect(certs, url).await?;
    let options = WatchOptions::new().with_prefix();
    let mut events = reader.watch(PREFIX, Some(options)).await?;
    let start = Instant::now() + Duration::from_millis(100);
    let load = tokio::spawn(async move {
        let mut answers = tokio::task::JoinSet::new();
        for n in 0..total {
            tokio::time::sleep_until((start + PERIOD * n).into()).await;
            let mut writer = writer.kv_client();
            answers.spawn(async move {
                let mut value = format!("{n:08}").into_bytes();
                value.resize(VALUE_BYTES, b'.');
                writer
                    .put(format!("{PREFIX}{}", n % KEYS), value, None)
                    .await
            });
        }
        while let Some(answer) = answers.join_next().await {
            answer??;
        }
        Ok::<_, anyhow::Error>(())
    });
    let mut found = Vec::new();
    let mut seen = 0;
    let collect = async {
        while seen < total {
            let response = events.message().await?.context("the watch ended")?;
            let now = Instant::now();
            for event in response.events() {
                let kv = event.kv().context("an event without key")?;
                let n: u32 = std::str::from_utf8(kv.value().get(..8).context("short value")?)?
                    .parse()
                    .context("a foreign value")?;
                seen += 1;
                if n >= WARM_UP {
                    let due = start + PERIOD * n;
                    found.push(now.saturating_duration_since(due).as_secs_f64() * 1e3);
                }
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(LIMIT, collect)
        .await
        .context("collect events")??;
    load.await??;
    ensure!(
        found.len() == usize::try_from(writes)?,
        "events were lost or came twice"
    );
    found.sort_by(f64::total_cmp);
    Ok(found)
}

fn percentile(sorted: &[f64], per_cent: usize) -> f64 {
    let at = (sorted.len() * per_cent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}
