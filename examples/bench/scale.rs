//! Large and many peers, up to the last entry in the kernel's map: what a join, a reconnection and a
//! restart take, and what an entry costs in memory. The agent tells how far it is; it is asked every
//! 10 ms.
use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    agent::Agent,
    figure::{Figure, Runs, alternate},
    peers::Shape,
    world::{self, Certificates, EAST, Etcd},
};

/// A line of the agent's log for each session that begins.
const SESSION: &str = "Found remote cluster configuration";

pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let runs = if quick { 1 } else { 3 };
    let mut figures = one_peer(runtime, runs, if quick { 10_000 } else { 500_000 })?;
    let (many, most) = if quick { (8, 10) } else { (64, 250) };
    let peers = |clusters, addresses, identities, nodes| Shape {
        clusters,
        addresses,
        identities,
        nodes,
    };
    let figure = many_peers(runtime, runs, peers(many, 2_000, 200, 0))?;
    figures.push(figure.at_most(2.0));
    let figure = many_peers(runtime, runs, peers(most, 1_000, 100, 100))?;
    figures.push(figure.at_most(10.0));
    Ok(figures)
}

/// What one agent and one large peer took.
#[derive(Debug)]
struct OnePeer {
    import: f64,
    reconnect: f64,
    restart: f64,
    bytes_per_entry: f64,
}

fn one_peer(runtime: &tokio::runtime::Runtime, runs: usize, addresses: u32) -> Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?;
    let (_server, url) = world::child("serve", &certs.east, &[&addresses.to_string()])?;
    let etcd = runtime.block_on(Etcd::start(&certs.east, &dir.path().join("etcd")))?;
    runtime.block_on(etcd.load(&certs.east, addresses))?;
    let from_us = certs.issue(&dir.path().join("from-us"), &url)?;
    let from_etcd = certs.issue(&dir.path().join("from-etcd"), &etcd.url)?;
    let life = |file: &Path, run: usize, source: &str| {
        let agent = dir.path().join(format!("agent-{source}-{run}"));
        let mut agent = Agent::start(&certs.west, agent)?;
        life(&mut agent, file, addresses).with_context(|| agent.log())
    };
    let (ours, theirs) = alternate(
        runs,
        |run| life(&from_us, run, "us"),
        |run| life(&from_etcd, run, "etcd"),
    )?;
    let figure = |name: &str, unit, of: fn(&OnePeer) -> f64| {
        let [ours, theirs] = [&ours, &theirs].map(|r| Runs::new(r.iter().map(of).collect()));
        let name = format!("mesh/{name}-{}k", addresses / 1_000);
        Figure::beside("etcd", name, unit, &ours, &theirs)
    };
    Ok(vec![
        figure("enforced", "s", |one| one.import).at_most(10.0),
        figure("reconnect", "s", |one| one.reconnect),
        figure("restart", "s", |one| one.restart),
        figure("memory", "B", |one| one.bytes_per_entry).at_most(512.0),
    ])
}

/// Join, connect anew with nothing changed, be killed and start again.
fn life(agent: &mut Agent, file: &Path, addresses: u32) -> Result<OnePeer> {
    let all = u64::from(addresses);
    let before = agent.resident_bytes()?;
    let start = Instant::now();
    agent.join(file)?;
    let import = agent.until(start, |status| complete(status, all))?;
    let more = agent.resident_bytes()?.saturating_sub(before);

    // Other bytes with the same meaning: the agent connects anew.
    let sessions = agent.logged(SESSION);
    let text = fs::read_to_string(file).context("read the peer's file")?;
    let again = file.with_file_name("again").join(format!("{EAST}.config"));
    fs::create_dir_all(again.parent().context("a directory")?)?;
    fs::write(&again, format!("# once more\n{text}"))?;
    let start = Instant::now();
    agent.join(&again)?;
    let reconnect = agent.until(start, |status| {
        agent.logged(SESSION) > sessions && complete(status, all)
    })?;

    agent.kill();
    let start = Instant::now();
    agent.launch()?;
    let restart = agent.until(start, |status| complete(status, all))?;
    Ok(OnePeer {
        import,
        reconnect,
        restart,
        bytes_per_entry: more as f64 / f64::from(addresses),
    })
}

/// A fresh agent that finds all peers' files when it starts.
fn many_peers(runtime: &tokio::runtime::Runtime, runs: usize, shape: Shape) -> Result<Figure> {
    let dir = tempfile::tempdir()?;
    let certs = Certificates::make(dir.path())?;
    let peers = shape.to_string();
    let (_server, url) = world::child("serve", &certs.east, &["0", "--peers", &peers])?;
    let etcd = runtime.block_on(Etcd::start(&certs.east, &dir.path().join("etcd")))?;
    runtime.block_on(world::load(&certs.east, &etcd.url, &shape.records()?))?;
    let from_us = shape.files(&certs.east, &url, &dir.path().join("from-us"))?;
    let from_etcd = shape.files(&certs.east, &etcd.url, &dir.path().join("from-etcd"))?;
    let start = |files: &[std::path::PathBuf], run: usize, source: &str| {
        let mut agent = Agent::prepare(
            &certs.west,
            dir.path().join(format!("agent-{source}-{run}")),
        )?;
        for file in files {
            agent.join(file)?;
        }
        let start = Instant::now();
        agent.launch()?;
        let all = u64::from(shape.entries());
        agent.until(start, |status| complete(status, all))
    };
    let (ours, theirs) = alternate(
        runs,
        |run| start(&from_us, run, "us"),
        |run| start(&from_etcd, run, "etcd"),
    )?;
    let entries = shape.clusters * (shape.addresses + shape.nodes + shape.identities);
    let name = format!("mesh/peers-{}x{}", shape.clusters, entries / shape.clusters);
    let (ours, theirs) = (Runs::new(ours), Runs::new(theirs));
    Ok(Figure::beside("etcd", name, "s", &ours, &theirs))
}

/// Every peer is ready, and every entry is in the kernel and confirmed.
fn complete(status: &serde_json::Value, entries: u64) -> bool {
    let ready = status["cluster-mesh"]["clusters"].as_array();
    let ready = ready.is_some_and(|c| !c.is_empty() && c.iter().all(|c| c["ready"] == true));
    let number = |name: &str| status["datapath"][name].as_u64();
    ready
        && number("ipcache") >= Some(entries)
        && number("pending") == Some(0)
        && number("restored") == Some(0)
}
