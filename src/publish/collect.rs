//! Deletes the master keys of numbers that nobody uses, so that they may mean something else.
//!
//! One node of a cluster does it: the one whose key is the store's collector lock, on a lease that
//! outlives three rounds. A number goes once no node used it for `keep`, as this process saw it: a
//! number found unused with another revision than in the round before was used in between, and its
//! wait begins again, as it does when another node takes the lock over.
use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Options, allocate::id_of};
use crate::{
    etcd::{
        Client, Compare, CompareOp, Connector, Entry, Error, PutOptions, Txn, TxnOp, TxnOpResponse,
    },
    keyspace::{
        identity,
        layout::{COLLECTOR_LOCK, IDENTITY_ID_PREFIX, IDENTITY_VALUE_PREFIX},
    },
    limits,
    types::{IdentityId, Labels},
};

/// Looks for unused identities of the own cluster.
#[derive(Debug)]
pub struct Collector {
    connector: Connector,
    node_name: String,
    range: RangeInclusive<IdentityId>,
    interval: Duration,
    keep: Duration,
    lock: Option<Lock>,
    unused: HashMap<IdentityId, Unused>,
}

/// Our lock key, as the store has it.
#[derive(Debug, Clone, Copy)]
struct Lock {
    lease: i64,
    created: i64,
}

/// A number without a slave key.
#[derive(Debug, Clone, Copy)]
struct Unused {
    revision: i64,
    since: Instant,
}

impl Collector {
    /// Deletes what was unused for 30 minutes; looks every five.
    #[must_use]
    pub fn new(options: &Options, connector: Connector) -> Self {
        let timing = (limits::IDENTITY_GC_INTERVAL, limits::ID_REUSE_AFTER);
        Self::with_timing(options, connector, timing)
    }

    /// Looks in the first interval, and deletes what was unused for the second.
    #[must_use]
    pub fn with_timing(
        options: &Options,
        connector: Connector,
        (interval, keep): (Duration, Duration),
    ) -> Self {
        let (first, last) = options.max.identities(options.id);
        Self {
            connector,
            node_name: options.node_name.clone(),
            range: first..=last,
            interval,
            keep,
            lock: None,
            unused: HashMap::new(),
        }
    }

    /// Collects until cancelled; then another node may at once. A round that fails is repeated at
    /// its next time.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut rounds = tokio::time::interval(self.interval);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(rounds.tick()).await.is_some() {
            let round = cancel.run_until_cancelled(self.round());
            if let Some(Err(error)) = round.await {
                tracing::debug!(%error, "Unused identities are looked for at the next time");
            }
        }
        if let Some(lock) = self.lock {
            let release = async {
                self.connector
                    .connect()
                    .await?
                    .lease_revoke(lock.lease)
                    .await
            };
            if let Err(error) = tokio::time::timeout(limits::COLLECTOR_STOP, release)
                .await
                .unwrap_or(Ok(()))
            {
                tracing::debug!(%error, "The collector's lock ends by itself");
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        let client = self.connector.connect().await?;
        let held = self.lock(&client).await?;
        let Some(lock) = held else {
            self.unused.clear();
            return Ok(());
        };
        let used = used(&client).await?;
        let mut unused = HashMap::new();
        let mut list = client.list(IDENTITY_ID_PREFIX);
        while let Some(page) = list.page().await? {
            for master in page.entries {
                let id = id_of(&master.key).filter(|id| self.range.contains(id));
                let Some(id) = id.filter(|_| !used.contains(&master.value)) else {
                    continue;
                };
                let seen = self.unused.get(&id);
                let seen = seen.filter(|seen| seen.revision == master.revision);
                let since = seen.map_or_else(Instant::now, |seen| seen.since);
                if since.elapsed() < self.keep || !delete(&client, &master, lock).await? {
                    let revision = master.revision;
                    unused.insert(id, Unused { revision, since });
                }
            }
        }
        self.unused = unused;
        Ok(())
    }

    /// Takes the lock or keeps it; `None` if another node has it.
    async fn lock(&mut self, client: &Client) -> Result<Option<Lock>, Error> {
        if let Some(lock) = self.lock.take()
            && client.lease_keep_alive(lock.lease).await?
        {
            let ours = Compare::create_revision(COLLECTOR_LOCK, CompareOp::Equal, lock.created);
            let check = client.txn(COLLECTOR_LOCK, Txn::new().when([ours])).await?;
            if check.succeeded() {
                self.lock = Some(lock);
                return Ok(self.lock);
            }
            client.lease_revoke(lock.lease).await?;
        }
        let free = || Compare::version(COLLECTOR_LOCK, CompareOp::Equal, 0);
        let look = client.txn(COLLECTOR_LOCK, Txn::new().when([free()]));
        if !look.await?.succeeded() {
            return Ok(None);
        }
        let lease = client.lease_grant(self.interval * 3).await?;
        let options = PutOptions::new().with_lease(lease);
        let put = TxnOp::put(COLLECTOR_LOCK, self.node_name.as_str(), Some(options));
        let get = TxnOp::get(COLLECTOR_LOCK, None);
        let take = Txn::new().when([free()]).and_then([put, get]);
        let taken = client.txn(COLLECTOR_LOCK, take).await?;
        let created = taken.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(found) => Some(found.kvs().first()?.create_revision()),
            _ => None,
        });
        match created {
            Some(created) => self.lock = Some(Lock { lease, created }),
            None => client.lease_revoke(lease).await?,
        }
        Ok(self.lock)
    }
}

/// The label texts that slave keys hold.
async fn used(client: &Client) -> Result<HashSet<Bytes>, Error> {
    let mut used = HashSet::new();
    let mut list = client.list_keys_at(IDENTITY_VALUE_PREFIX, 0);
    while let Some(page) = list.page().await? {
        for slave in page.entries {
            if let Some(labels) = identity::labels_of_slave(&slave.key)
                && !used.contains(labels)
            {
                used.insert(Bytes::copy_from_slice(labels));
            }
        }
    }
    Ok(used)
}

/// Deletes a master key, if it is as it was listed, still unused, and the lock still ours.
async fn delete(client: &Client, master: &Entry, lock: Lock) -> Result<bool, Error> {
    let labels = Labels::parse(&String::from_utf8_lossy(&master.value));
    let conditions = [
        Compare::create_revision(COLLECTOR_LOCK, CompareOp::Equal, lock.created),
        Compare::mod_revision(master.key.to_vec(), CompareOp::Equal, master.revision),
        Compare::version(identity::slave_prefix(&labels), CompareOp::Equal, 0).with_prefix(),
    ];
    let delete = TxnOp::delete(master.key.to_vec(), None);
    let what = String::from_utf8_lossy(&master.key);
    let txn = Txn::new().when(conditions).and_then([delete]);
    let deleted = client.txn(&what, txn).await?.succeeded();
    if deleted {
        tracing::info!(key = %what, %labels, "Unused identity is deleted");
    }
    Ok(deleted)
}
