//! Import of a peer's keyspace: a source, a real agent that imports it and serves its cache, and a
//! reader of that cache, each a process, all connections mTLS. Time runs from the moment the agent
//! is told of the peer until the reader holds the last address and the canaries.
use std::{path::Path, time::Duration, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tombolo::{
    etcd::{Client, ConnectOptions},
    keyspace::{Kind, Layout},
    types::ClusterName,
};

use crate::{
    agent::Agent,
    figure::{Figure, Runs, alternate},
    propagation, scale,
    world::{self, Certificates, EAST, Etcd, LIMIT},
};

/// How often the reader asks.
const POLL: Duration = Duration::from_millis(5);
/// So few that what remains is the agent's way to any peer: file, handshake, lists, canaries.
const FEW: u32 = 10;

/// All figures of the import side.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let (runs, sizes): (_, &[u32]) = if quick {
        (3, &[FEW, 10_000])
    } else {
        (5, &[FEW, 10_000, 100_000])
    };
    let mut figures = Vec::new();
    for addresses in sizes {
        let name = match addresses {
            0..1_000 => format!("mesh/import-{addresses}"),
            _ => format!("mesh/import-{}k", addresses / 1_000),
        };
        let figure = compare(runtime, name, runs, *addresses)?;
        figures.push(if *addresses == 100_000 {
            figure.at_most(1.0)
        } else {
            figure
        });
    }
    figures.extend(scale::measure(runtime, quick)?);
    figures.extend(propagation::measure(runtime, quick)?);
    Ok(figures)
}

fn compare(
    runtime: &tokio::runtime::Runtime,
    name: String,
    runs: usize,
    addresses: u32,
) -> Result<Figure> {
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?;
    let (_server, url) = world::child("serve", &certs.east, &[&addresses.to_string()])?;
    let etcd = runtime.block_on(Etcd::start(&certs.east, &dir.path().join("etcd")))?;
    runtime.block_on(etcd.load(&certs.east, addresses))?;
    let from_us = certs.issue(&dir.path().join("from-us"), &url)?;
    let from_etcd = certs.issue(&dir.path().join("from-etcd"), &etcd.url)?;
    let seconds = |run: usize, peer_file: &Path, source: &str| {
        let agent = dir.path().join(format!("agent-{source}-{run}"));
        let agent = Agent::start(&certs.west, agent)?;
        import(&certs.west, &agent, peer_file, addresses).with_context(|| agent.log())
    };
    let (ours, theirs) = alternate(
        runs,
        |run| seconds(run, &from_us, "us"),
        |run| seconds(run, &from_etcd, "etcd"),
    )?;
    let (ours, theirs) = (Runs::new(ours), Runs::new(theirs));
    Ok(Figure::beside("etcd", name, "s", &ours, &theirs))
}

/// Seconds of one import into a fresh agent.
fn import(certs: &Path, agent: &Agent, peer_file: &Path, addresses: u32) -> Result<f64> {
    let (reader, ready) = world::child("read", certs, &[&agent.url, &addresses.to_string()])?;
    ensure!(ready == "ready", "the reader said {ready:?}");
    let start = Instant::now();
    agent.join(peer_file)?;
    let done = reader.line(LIMIT)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        done.as_deref() == Some("done"),
        "the reader ended with {done:?}"
    );
    // It still counts what arrived, and fails if something is missing.
    reader.finish(LIMIT)?;
    Ok(seconds)
}

/// The reader: asks the cache for the last key of each kind that holds any.
pub(crate) async fn read(certs: &Path, cache: &str, addresses: u32) -> Result<()> {
    let east: ClusterName = EAST.parse()?;
    let last = world::last_address(addresses).context("no addresses")?;
    let keys = [
        format!("{}{last}", Layout::Cache.prefix(Kind::Ips, &east)),
        Layout::Cache.canary(Kind::Ips, &east),
        Layout::Cache.canary(Kind::Identities, &east),
    ];
    let options = ConnectOptions {
        tls: world::client_options(certs, "local"),
        ..ConnectOptions::default()
    };
    let client = Client::connect(&options, &cache.parse()?).await?;
    println!("ready");
    let deadline = Instant::now() + LIMIT;
    for key in &keys {
        while client.get(key).await?.is_none() {
            if Instant::now() >= deadline {
                bail!("{key} did not appear");
            }
            tokio::time::sleep(POLL).await;
        }
    }
    println!("done");
    // A cache that dropped records would be fast: count what arrived.
    let mut list = client.list(&Layout::Cache.prefix(Kind::Ips, &east));
    let mut count = 0;
    while let Some(page) = list.page().await? {
        count += page.entries.len();
    }
    ensure!(
        u32::try_from(count)? == addresses,
        "{count} of {addresses} addresses arrived"
    );
    Ok(())
}
