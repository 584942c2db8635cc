//! Import of a peer's keyspace: a source, a process that imports and serves its cache, and a reader
//! of that cache, each a process, all connections mTLS. Time runs from the moment the importer may
//! dial until the reader holds the last address and the canaries.
use std::{path::Path, time::Duration, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{net::TcpListener, sync::mpsc};
use tombolo::{
    etcd::{Client, ConnectOptions},
    follower::{self, Sink, Subject},
    keyspace::{Kind, Layout},
    limits::{DELTA_QUEUE_MAX, PEER_QUEUE_BATCHES},
    mesh::{Deltas, Mesh, Settings},
    peer::MemberEvent,
    serve::Keyspaces,
    types::{ClusterId, ClusterName, MaxClusters},
};

use crate::{
    Figure,
    world::{self, EAST, EAST_ID, Etcd, LIMIT, WEST},
};

/// How often the reader asks.
const POLL: Duration = Duration::from_millis(5);
/// Deltas taken at once.
const DELTA_BATCH: usize = 1_024;

/// Imports from ourselves and from etcd; the median of three runs of each.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, quick: bool) -> Result<Vec<Figure>> {
    let addresses = if quick { 10_000 } else { 100_000 };
    let dir = tempfile::tempdir()?;
    world::certificates(dir.path())?;
    let ours = {
        let (_server, url) = world::child("serve", dir.path(), &[&addresses.to_string()])?;
        median(dir.path(), &url, addresses)?
    };
    let etcd = runtime.block_on(Etcd::start(dir.path(), &dir.path().join("etcd")))?;
    runtime.block_on(etcd.load(dir.path(), addresses))?;
    let theirs = median(dir.path(), &etcd.url, addresses)?;
    let name = format!("mesh/import-{}k", addresses / 1_000);
    Ok(vec![Figure::beside_etcd(name, "s", ours, theirs)])
}

fn median(dir: &Path, source: &str, addresses: u32) -> Result<f64> {
    let mut seconds = [0.0; 3];
    for slot in &mut seconds {
        *slot = import(dir, source, addresses)?;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[1])
}

/// One import with a fresh importer and reader.
fn import(dir: &Path, source: &str, addresses: u32) -> Result<f64> {
    let (mut cache, url) = world::child("cache", dir, &[source])?;
    let (reader, ready) = world::child("read", dir, &[&url, &addresses.to_string()])?;
    ensure!(ready == "ready", "the reader said {ready:?}");
    let start = Instant::now();
    cache.send("go")?;
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

/// The importer: serves its cache at once, imports after a line on standard input.
pub(crate) async fn cache(dir: &Path, source: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let keyspaces = Keyspaces {
        cluster: world::new_store(),
        export: world::new_store(),
        cache: world::new_store(),
    };
    let store = keyspaces.cache.clone();
    tokio::select! {
        served = world::serve_keyspaces(dir, WEST, keyspaces, listener) => served,
        imported = run_import(dir, source, store) => imported,
    }
}

async fn run_import(dir: &Path, source: &str, cache: tombolo::store::Store) -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await?
        .context("wait for the parent")?;
    let max = MaxClusters::C255;
    let id = |n| ClusterId::new(n, max).context("cluster id");
    let east: ClusterName = EAST.parse()?;
    let deltas = Deltas::new(DELTA_QUEUE_MAX);
    let settings = Settings {
        cluster_name: WEST.parse()?,
        cluster_id: id(1)?,
        max_clusters: max,
        node_name: "node1".to_owned(),
    };
    let mut mesh = Mesh::new(settings, cache, deltas.clone());
    let (sender, mut events) = mpsc::channel(PEER_QUEUE_BATCHES);
    let apply = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                MemberEvent::Connected { name, id } => mesh.connected(&name, id),
                MemberEvent::Keys { name, events } => mesh.apply(&name, events),
                MemberEvent::Removed { name } => mesh.removed(&name),
            }
        }
    });
    let drain = tokio::spawn(drain(deltas));
    let member = east.clone();
    let sink = Sink::new(sender, move |events| MemberEvent::Keys {
        name: member.clone(),
        events,
    });
    let options = ConnectOptions {
        endpoints: vec![source.parse()?],
        tls: world::client_options(dir, "remote-west"),
        ..ConnectOptions::default()
    };
    let client = Client::connect(&options).await?;
    sink.send(MemberEvent::Connected {
        name: east.clone(),
        id: id(EAST_ID)?,
    })
    .await?;
    let subject = Subject {
        cluster: east,
        layout: Layout::State,
        kinds: Kind::ALL.to_vec(),
        canaries: true,
    };
    tokio::select! {
        followed = follower::follow(&client, &subject, &sink, |_| ()) => {
            let Err(error) = followed;
            Err(error.into())
        }
        ended = apply => Ok(ended?),
        ended = drain => Ok(ended?),
    }
}

/// Nobody enforces here, but the queue must not grow as it never does in an agent.
async fn drain(deltas: Deltas) {
    loop {
        drop(deltas.pop_batch(DELTA_BATCH).await);
    }
}

/// The reader: asks the cache for the last key of each kind that holds any.
pub(crate) async fn read(dir: &Path, cache: &str, addresses: u32) -> Result<()> {
    let east: ClusterName = EAST.parse()?;
    let last = world::last_address(addresses).context("no addresses")?;
    let keys = [
        format!("{}{last}", Layout::Cache.prefix(Kind::Ips, &east)),
        Layout::Cache.canary(Kind::Ips, &east),
        Layout::Cache.canary(Kind::Identities, &east),
    ];
    let options = ConnectOptions {
        endpoints: vec![cache.parse()?],
        tls: world::client_options(dir, "local-west"),
        ..ConnectOptions::default()
    };
    let client = Client::connect(&options).await?;
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
    // A cache that dropped records would be fast: count what arrived.
    let mut list = client.list(&Layout::Cache.prefix(Kind::Ips, &east));
    println!("done");
    let mut count = 0;
    while let Some(page) = list.page().await? {
        count += page.entries.len();
    }
    ensure!(
        u32::try_from(count)? == addresses,
        "{count} of {addresses} addresses arrived"
    );
    println!("{count}");
    Ok(())
}
