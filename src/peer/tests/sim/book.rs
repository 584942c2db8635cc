//! Who watches the meshes: each change of a cache and each delta is judged when it happens.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio_util::sync::CancellationToken;

use super::{lock, name, site::Entry};
use crate::{
    etcd::{Client, Event},
    keyspace::Layout,
    mesh::{Delta, Deltas},
    serve,
    store::Store,
    types::{ClusterName, IpPrefix},
};

/// What was seen to leave the meshes, and what may.
#[derive(Default)]
pub(super) struct Book {
    /// By reader and cache key.
    withdrawals: HashMap<(usize, String), u64>,
    /// Grounds to withdraw all of a site at a reader: its file was removed, or its id changed.
    pub(super) resets: HashMap<(usize, ClusterName), u64>,
    /// Copies of the sites' counts.
    pub(super) deaths: HashMap<String, u64>,
    pub(super) violations: Vec<String>,
}

pub(super) fn cache_key(name: &ClusterName, entry: &Entry) -> String {
    format!("{}{}", Layout::Cache.prefix(entry.0, name), entry.1)
}

/// Every change of a reader's cache, judged when it happens.
pub(super) async fn record_cache(reader: usize, cache: Store, book: Arc<Mutex<Book>>) {
    let channel = serve::in_process(cache, CancellationToken::new());
    let client = Client::in_process(channel).await.unwrap();
    let mut watch = client.watch("cilium/cache/", 1).await.unwrap();
    while let Ok(Some(events)) = watch.recv().await {
        let mut book = lock(&book);
        for event in events {
            match event {
                Event::Put(entry) => {
                    let key = String::from_utf8_lossy(&entry.key).into_owned();
                    if ["/172.", "/6488064"].iter().any(|part| key.contains(part)) {
                        book.violations.push(format!("reader{reader} caches {key}"));
                    }
                }
                Event::Delete { key } => {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    book.withdrawn(reader, key);
                }
            }
        }
    }
}

impl Book {
    fn withdrawn(&mut self, reader: usize, key: String) {
        let site = key.split('/').nth(4).map(name);
        let resets = site.and_then(|site| self.resets.get(&(reader, site)).copied());
        let may = resets.unwrap_or(0) + self.deaths.get(&key).copied().unwrap_or(0);
        let withdrawals = self.withdrawals.entry((reader, key.clone())).or_default();
        *withdrawals += 1;
        if *withdrawals > may {
            let count = *withdrawals;
            self.violations.push(format!(
                "reader{reader} withdrew {key} for the {count}th time, though it ended {may} times"
            ));
        }
    }
}

/// No forbidden address or identity leaves the mesh.
pub(super) async fn record_deltas(reader: usize, deltas: Deltas, book: Arc<Mutex<Book>>) {
    let forbidden: IpPrefix = "172.16.0.0/15".parse().unwrap();
    loop {
        for delta in deltas.pop_batch(1_000).await.items {
            let seen = match &delta {
                Delta::Ip {
                    prefix,
                    target: Some(_),
                } => forbidden.contains(prefix.addr()),
                Delta::Identity {
                    id,
                    labels: Some(_),
                } => id.0 == 99 << 16,
                _ => false,
            };
            if seen {
                lock(&book)
                    .violations
                    .push(format!("reader{reader} emits {delta:?}"));
            }
        }
    }
}
