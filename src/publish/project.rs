//! The export: what peers may read of this cluster, in a store for each view.
//!
//! Order: cluster-config and heartbeat at once; then records, as a follower of the cluster store
//! delivers them; the canary of a kind only after that kind's first complete list, that of the
//! addresses after the identities' as well, because none is shown before its identity. A canary that
//! came earlier would make readers delete entries that still exist; therefore the connections that
//! are followed must not be made before everything local is in the store.
//! When the cluster store is lost, the export stays as it is, and its heartbeat goes on. A new list
//! changes what differs and nothing else.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Clock, Error, ExportPolicy, Options, Views,
    entries::{Entries, Touched},
    export_policy::Grant,
    rfc3339,
};
use crate::{
    etcd::Connector,
    follower::{Follower, Sink, Subject},
    keyspace::{self, Capabilities, ClusterConfig, KeyEvent, Kind, Layout},
    limits,
    store::Store,
};

/// Keeps the export's views equal to what they show of the own cluster's records.
#[derive(Debug)]
pub struct Projection {
    options: Options,
    connector: Connector,
    views: Views,
    /// What `views` holds.
    stores: BTreeMap<Grant, Store>,
    policy: watch::Receiver<ExportPolicy>,
    clock: Clock,
    heartbeat: Duration,
    entries: Entries,
    /// Kinds whose list was complete once.
    listed: BTreeSet<Kind>,
    /// Kinds that have their canary.
    complete: BTreeSet<Kind>,
}

impl Projection {
    /// Copies from the store that `connector` reaches to `views`, which nobody else writes to and
    /// which follow `policy`. `connector` is [`Publisher::confirmed`](super::Publisher::confirmed).
    #[must_use]
    pub fn new(
        options: Options,
        connector: Connector,
        views: Views,
        policy: watch::Receiver<ExportPolicy>,
        clock: Clock,
    ) -> Self {
        Self {
            options,
            connector,
            stores: views.stores(),
            views,
            policy,
            clock,
            heartbeat: limits::HEARTBEAT_INTERVAL,
            entries: Entries::default(),
            listed: BTreeSet::new(),
            complete: BTreeSet::new(),
        }
    }

    /// Beats at another pace than once a minute.
    #[must_use]
    pub const fn with_heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// Projects until cancelled.
    ///
    /// # Errors
    /// [`Error::Put`] if a view's store refuses.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let (sender, mut batches) = mpsc::channel(limits::PEER_QUEUE_BATCHES);
        let connector = self.connector.clone();
        let subject = Subject {
            cluster: self.options.cluster.clone(),
            layout: Layout::State,
            kinds: Kind::BASIC.to_vec(),
            absent: Vec::new(),
            canaries: false,
        };
        let sink = Sink::new(sender, |events| events);
        let follower = Follower::new(subject);
        // On the heap: the future is large and lives long.
        let follow = Box::pin(follower.run(|| connector.connect(), sink, cancel.clone()));
        let copy = async {
            // A timer that is due fires a moment later; the configuration comes first all the same.
            self.beat(Instant::now())?;
            let mut beat =
                tokio::time::interval_at(Instant::now() + self.heartbeat, self.heartbeat);
            let mut policy = self.policy.clone();
            let mut policy_lives = true;
            loop {
                tokio::select! {
                    biased;
                    changed = policy.changed(), if policy_lives => match changed {
                        Ok(()) => {
                            let policy = policy.borrow_and_update().clone();
                            self.change_views(&policy)?;
                        }
                        Err(_) => policy_lives = false,
                    },
                    now = beat.tick() => self.beat(now)?,
                    Some(events) = batches.recv() => for event in events {
                        self.apply(event)?;
                    },
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            // Only once cancelled: the receiver lives as long.
            _ = follow => Ok(()),
            result = copy => result,
        }
    }

    fn beat(&self, now: Instant) -> Result<(), Error> {
        for store in self.stores.values() {
            // Readers may grant leases; keys on them there are none.
            store.expire(now.into_std());
            self.put_config(store)?;
            self.put_always(store, keyspace::HEARTBEAT.into())?;
        }
        Ok(())
    }

    /// Goes over to the views of another policy; those that are new are filled before anybody can
    /// read them.
    fn change_views(&mut self, policy: &ExportPolicy) -> Result<(), Error> {
        let next = self.views.next(policy);
        let stores = next.stores();
        for (grant, store) in &stores {
            if !self.stores.contains_key(grant) {
                self.fill(grant, store)?;
            }
        }
        self.stores = stores;
        self.views.replace(next);
        Ok(())
    }

    fn fill(&self, grant: &Grant, store: &Store) -> Result<(), Error> {
        self.put_config(store)?;
        self.put_always(store, keyspace::HEARTBEAT.into())?;
        for touched in self.entries.all() {
            self.refresh(grant, store, &[touched])?;
        }
        let kinds = self.complete.iter();
        kinds.copied().try_for_each(|k| self.put_canaries(store, k))
    }

    fn apply(&mut self, event: KeyEvent) -> Result<(), Error> {
        let completed = match &event {
            KeyEvent::EndList { kind } => self.completed_with(*kind),
            _ => Vec::new(),
        };
        let touched = self.entries.apply(event);
        for (grant, store) in &self.stores {
            self.refresh(grant, store, &touched)?;
            for kind in &completed {
                self.put_canaries(store, *kind)?;
            }
        }
        Ok(())
    }

    /// The kinds that are whole now that this one is listed. Addresses are so only together with
    /// the identities, as they are not shown before them.
    fn completed_with(&mut self, kind: Kind) -> Vec<Kind> {
        self.listed.insert(kind);
        let mut completed = Vec::new();
        for kind in Kind::BASIC {
            let shown = kind != Kind::Ips || self.listed.contains(&Kind::Identities);
            if shown && self.listed.contains(&kind) && self.complete.insert(kind) {
                completed.push(kind);
            }
        }
        completed
    }

    /// Makes a view's keys what it shows now. What goes, goes in reverse: no address is seen without
    /// its identity.
    fn refresh(&self, grant: &Grant, store: &Store, touched: &[Touched]) -> Result<(), Error> {
        for (kind, suffix) in touched.iter().rev() {
            if self.entries.shown(grant, *kind, suffix).is_none() {
                store.delete(&self.key(*kind, suffix));
            }
        }
        for (kind, suffix) in touched {
            if let Some(value) = self.entries.shown(grant, *kind, suffix) {
                put(store, self.key(*kind, suffix), value.clone())?;
            }
        }
        Ok(())
    }

    fn key(&self, kind: Kind, suffix: &[u8]) -> Bytes {
        let prefix = Layout::State.prefix(kind, &self.options.cluster);
        [prefix.as_bytes(), suffix].concat().into()
    }

    /// Puts the time, which must be seen to change.
    fn put_always(&self, store: &Store, key: String) -> Result<(), Error> {
        let (key, time) = (Bytes::from(key), rfc3339((self.clock)()));
        let put = store.put(key.clone(), time.into(), 0);
        put.map(drop).map_err(|source| put_error(&key, source))
    }

    fn put_config(&self, store: &Store) -> Result<(), Error> {
        let config = ClusterConfig {
            id: self.options.id.get(),
            capabilities: Capabilities {
                synced_canaries: true,
                max_connected_clusters: self.options.max.max_id(),
                ..Capabilities::default()
            },
        };
        let key = keyspace::cluster_config_key(&self.options.cluster);
        put(store, key.into(), config.encode().into())
    }

    /// Also for a kind without entries. Service exports, of which we never have any, go with the
    /// services: readers that know them wait for their canary.
    fn put_canaries(&self, store: &Store, kind: Kind) -> Result<(), Error> {
        let cluster = &self.options.cluster;
        self.put_always(store, Layout::State.canary(kind, cluster))?;
        if kind == Kind::Services {
            self.put_always(store, Layout::State.canary(Kind::ServiceExports, cluster))?;
        }
        Ok(())
    }
}

fn put(store: &Store, key: Bytes, value: Bytes) -> Result<(), Error> {
    let put = store.put_if_changed(key.clone(), value, 0);
    put.map(drop).map_err(|source| put_error(&key, source))
}

fn put_error(key: &[u8], source: crate::store::Error) -> Error {
    Error::Put {
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        publish::tests::{noon, options, store},
        store::RangeRequest,
    };

    #[test]
    fn the_canary_of_addresses_waits_for_the_identities() {
        let views = Views::new(&ExportPolicy::default(), || store(2));
        let export = views.of(None).store;
        let nowhere = Connector::new(std::future::pending);
        let (_, policy) = watch::channel(ExportPolicy::default());
        let dir = std::path::Path::new("unused");
        let mut projection = Projection::new(options(dir), nowhere, views, policy, noon);
        let keys = |prefix: &str| {
            let found = export.range(&RangeRequest::prefix(prefix.as_bytes()));
            found.unwrap().kvs.len()
        };
        let upsert = |kind, suffix: &'static str, value: &'static str| KeyEvent::Upsert {
            kind,
            suffix: suffix.into(),
            value: value.into(),
            revision: 1,
        };
        let address = r#"{"IP":"10.0.0.1","ID":65537}"#;
        let lists = [
            KeyEvent::BeginList { kind: Kind::Ips },
            upsert(Kind::Ips, "10.0.0.1", address),
            KeyEvent::EndList { kind: Kind::Ips },
        ];
        lists
            .into_iter()
            .for_each(|event| projection.apply(event).unwrap());
        assert_eq!(keys("cilium/state/") + keys("cilium/synced/"), 0);
        let kind = Kind::Identities;
        let lists = [
            KeyEvent::BeginList { kind },
            upsert(kind, "65537", "k8s:a=b;"),
            KeyEvent::EndList { kind },
        ];
        lists
            .into_iter()
            .for_each(|event| projection.apply(event).unwrap());
        assert_eq!((keys("cilium/state/"), keys("cilium/synced/")), (2, 2));
    }
}
