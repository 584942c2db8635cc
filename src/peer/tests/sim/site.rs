//! A cluster as its peers see it: what it holds, the store that shows it, and what can happen to both.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Lots;
use crate::{
    keyspace::{self, Kind, Layout},
    store::{Options, Store},
    types::ClusterName,
};

/// An entry: its kind, and its key behind the kind's prefix.
pub(super) type Entry = (Kind, String);

/// One write of a store, kept so that a replica can repeat it.
#[derive(Clone)]
enum Write {
    Put(String, String),
    PutOnLease(String, String),
    Delete(String),
    Grant,
    Revoke,
}

pub(super) struct Site {
    pub(super) name: ClusterName,
    /// Which of the addresses `10.<net>.0.0/16` are its own.
    net: u32,
    id: u32,
    /// What peers may be told, and what they must not see.
    pub(super) truth: BTreeMap<Entry, String>,
    pub(super) forbidden: BTreeMap<Entry, String>,
    /// How often each entry came to its end.
    pub(super) deaths: BTreeMap<Entry, u64>,
    leased: BTreeSet<Entry>,
    store: Store,
    writes: Vec<Write>,
    lease: i64,
    /// All of the truth is in the store, and the canaries say so.
    complete: bool,
    config_gone: bool,
    variant: u32,
    lots: Lots,
}

const HISTORY: usize = 400;
/// Entries of an index below this never end.
const IMMORTAL: u64 = 4;
const ADDRESSES: u64 = 12;
const IDENTITIES: u32 = 5;

impl Site {
    pub(super) fn new(name: &str, net: u32, lots: Lots) -> Self {
        let mut site = Self {
            name: name.parse().unwrap(),
            net,
            id: net,
            truth: BTreeMap::new(),
            forbidden: BTreeMap::new(),
            deaths: BTreeMap::new(),
            leased: BTreeSet::new(),
            store: store(1),
            writes: Vec::new(),
            lease: 0,
            complete: false,
            config_gone: false,
            variant: 0,
            lots,
        };
        site.fill();
        site.begin(lots_id(&site.lots));
        site.finish();
        site
    }

    pub(super) fn store(&self) -> Store {
        self.store.clone()
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    fn identity(&self, number: u32) -> u32 {
        (self.id << 16) + number % IDENTITIES
    }

    fn fill(&mut self) {
        let name = self.name.clone();
        for number in 0..IDENTITIES {
            let labels = format!("k8s:app=a{number};k8s:io.cilium.k8s.policy.cluster={name};");
            let entry = (Kind::Identities, self.identity(number).to_string());
            self.truth.insert(entry, labels);
        }
        for index in 0..IMMORTAL {
            let (entry, value) = self.address(index, self.variant);
            self.truth.insert(entry, value);
            let node = format!("n{index}");
            let value = self.node(&node);
            self.truth.insert((Kind::Nodes, node), value);
        }
        // An address in the pods' range of the readers, and an identity of another cluster.
        let foreign = (Kind::Identities, (99 << 16).to_string());
        let labels = format!("k8s:app=x;k8s:io.cilium.k8s.policy.cluster={name};");
        self.forbidden.insert(foreign, labels);
        let address = format!("172.16.{}.1", self.net);
        let value = ip(&address, self.identity(0));
        self.forbidden.insert((Kind::Ips, address), value);
        let address = format!("172.17.{}.1", self.net);
        let value = ip(&address, 99 << 16);
        self.forbidden.insert((Kind::Ips, address), value);
    }

    fn address(&self, index: u64, variant: u32) -> (Entry, String) {
        let address = format!("10.{}.0.{index}", self.net);
        let number = u32::try_from(index).unwrap() + variant;
        let value = ip(&address, self.identity(number));
        ((Kind::Ips, address), value)
    }

    fn node(&self, node: &str) -> String {
        let (name, id, net) = (&self.name, self.id, self.net);
        let last = &node[1..];
        format!(
            r#"{{"Name":"{node}","Cluster":"{name}","ClusterID":{id},"IPAddresses":[{{"Type":"InternalIP","IP":"10.{net}.200.{last}"}}]}}"#
        )
    }

    fn key(&self, entry: &Entry) -> String {
        let prefix = Layout::State.prefix(entry.0, &self.name);
        format!("{prefix}{}", entry.1)
    }

    /// Something of its own changes, comes or goes.
    pub(super) fn mutate(&mut self) {
        let index = self.lots.below(ADDRESSES);
        self.variant += 1;
        let (entry, value) = self.address(index, self.variant);
        let present = self.truth.contains_key(&entry);
        if index >= IMMORTAL && present && self.lots.below(2) == 0 {
            self.die(&entry);
            self.write(Write::Delete(self.key(&entry)));
            return;
        }
        let key = self.key(&entry);
        self.truth.insert(entry.clone(), value.clone());
        if index >= IMMORTAL && self.lots.below(3) == 0 {
            if self.leased.is_empty() {
                self.write(Write::Grant);
            }
            self.leased.insert(entry);
            self.write(Write::PutOnLease(key, value));
        } else {
            self.leased.remove(&entry);
            self.write(Write::Put(key, value));
        }
        // Other keys change too, so that the revisions of the kinds differ.
        if self.lots.below(4) == 0 {
            self.write(Write::Put("cilium/other".to_owned(), "1".to_owned()));
        }
    }

    fn die(&mut self, entry: &Entry) {
        if self.truth.remove(entry).is_some() {
            *self.deaths.entry(entry.clone()).or_default() += 1;
        }
        self.leased.remove(entry);
    }

    /// The lease's keys go at once.
    pub(super) fn expire(&mut self) {
        let leased = std::mem::take(&mut self.leased);
        if !leased.is_empty() {
            leased.iter().for_each(|entry| self.die(entry));
            self.write(Write::Revoke);
        }
    }

    pub(super) fn beat(&mut self) {
        let heartbeat = Write::Put(keyspace::HEARTBEAT.to_owned(), "now".to_owned());
        self.put_through(heartbeat);
    }

    /// Everything before the last few revisions is forgotten.
    pub(super) fn compact(&self) {
        let newest = self.store.revision();
        let keep = i64::try_from(self.lots.below(4)).unwrap();
        // Nothing to compact is no matter.
        self.store.compact((newest - keep).max(1)).ok();
    }

    pub(super) fn config(&mut self, text: Option<&str>) {
        let key = keyspace::cluster_config_key(&self.name);
        self.config_gone = text != Some(&*self.good_config());
        self.put_through(match text {
            Some(text) => Write::Put(key, text.to_owned()),
            None => Write::Delete(key),
        });
    }

    pub(super) fn good_config(&self) -> String {
        let id = self.id;
        format!(r#"{{"id":{id},"capabilities":{{"syncedCanaries":true}}}}"#)
    }

    /// The store loses everything; its producer starts to write again, and is done at `finish`.
    pub(super) fn wipe(&mut self, same_id: bool) {
        let id = if same_id {
            self.store.cluster_id()
        } else {
            lots_id(&self.lots)
        };
        self.begin(id);
    }

    fn begin(&mut self, cluster_id: u64) {
        self.store = store(cluster_id);
        self.writes.clear();
        self.leased.clear();
        self.complete = false;
        self.beat();
        let config = self.good_config();
        self.config(Some(&config));
    }

    pub(super) fn finish(&mut self) {
        if self.complete {
            return;
        }
        self.complete = true;
        let mut entries: Vec<_> = self.truth.iter().chain(&self.forbidden).collect();
        // In some order.
        entries.sort_by_cached_key(|_| self.lots.below(1 << 30));
        let puts: Vec<_> = entries
            .into_iter()
            .map(|(entry, value)| Write::Put(self.key(entry), value.clone()))
            .collect();
        puts.into_iter().for_each(|put| self.write(put));
        // Sometimes it gets ahead of what readers saw before.
        for _ in 0..self.lots.below(40) {
            self.write(Write::Put("cilium/other".to_owned(), "2".to_owned()));
        }
        for kind in Kind::BASIC {
            let canary = Layout::State.canary(kind, &self.name);
            self.write(Write::Put(canary, "now".to_owned()));
        }
    }

    /// Another replica takes over: the same keys by the same revisions, under another cluster id,
    /// but some of the values are its own.
    pub(super) fn swap(&mut self) {
        self.variant += 1;
        let mut changed = BTreeMap::new();
        for index in 0..IMMORTAL {
            let (entry, value) = self.address(index, self.variant);
            changed.insert(self.key(&entry), value.clone());
            self.truth.insert(entry, value);
        }
        self.store = store(lots_id(&self.lots));
        for write in std::mem::take(&mut self.writes) {
            self.put_through(match write {
                Write::Put(key, value) => {
                    let value = changed.get(&key).cloned().unwrap_or(value);
                    Write::Put(key, value)
                }
                other => other,
            });
        }
    }

    /// The cluster gets another id, and with it a new store.
    pub(super) fn renumber(&mut self) {
        self.id = if self.id == self.net {
            self.net + 10
        } else {
            self.net
        };
        let entries: Vec<Entry> = self.truth.keys().cloned().collect();
        entries.iter().for_each(|entry| self.die(entry));
        self.forbidden.clear();
        self.fill();
        self.wipe(false);
    }

    /// A store that is being filled gets it all in the end.
    fn write(&mut self, write: Write) {
        if self.complete {
            self.put_through(write);
        } else if matches!(write, Write::Grant | Write::PutOnLease(..) | Write::Revoke) {
            self.leased.clear();
        }
    }

    fn put_through(&mut self, write: Write) {
        let store = &self.store;
        let put = |key: &str, value: &str, lease| {
            store
                .put(key.to_owned().into(), value.to_owned().into(), lease)
                .unwrap();
        };
        match &write {
            Write::Put(key, value) => put(key, value, 0),
            Write::PutOnLease(key, value) => put(key, value, self.lease),
            Write::Delete(key) => drop(store.delete(key.as_bytes())),
            Write::Grant => {
                self.lease += 1;
                let ttl = Duration::from_secs(900);
                store.lease_grant(self.lease, ttl, Instant::now()).unwrap();
            }
            Write::Revoke => drop(store.lease_revoke(self.lease).unwrap()),
        }
        self.writes.push(write);
    }

    pub(super) const fn has_config(&self) -> bool {
        !self.config_gone
    }
}

fn ip(address: &str, identity: u32) -> String {
    format!(r#"{{"IP":"{address}","Mask":null,"HostIP":"","ID":{identity},"Key":0,"Metadata":""}}"#)
}

fn lots_id(lots: &Lots) -> u64 {
    lots.below(u64::MAX - 1) + 1
}

fn store(cluster_id: u64) -> Store {
    Store::new(Options {
        cluster_id,
        history_max: HISTORY,
    })
}
