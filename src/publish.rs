//! Local events become the cluster's records.
//!
//! [`Publisher`] owns what this process writes into the cluster store: nodes, addresses and
//! services under a lease, identities (master key without, slave key with lease). It allocates
//! identities and endpoint ids, saves them before it uses them, and tells `policy` and `enforcer`
//! of this node's workloads. [`Projection`] copies the cluster's own records to the export that
//! peers read, and writes what an export needs besides.
//!
//! Always true: the own cluster's name, id and label are in every record, whatever a source said;
//! an address has one record, of its first claimant; unchanged bytes are not written again; on
//! shutdown nothing is withdrawn, so that a quick restart deletes nothing.
//! Absent on purpose: no clock (it is an argument) and no reading of peers.
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::project::Projection;
use self::{
    registry::{Claims, FileError, Registry},
    writer::{Taken, Writer},
};
use crate::{
    keyspace::{self, Capabilities, ClusterConfig, identity},
    limits,
    source::{LocalEvent, LocalNode, LocalService, LocalWorkload, WorkloadKey},
    store::{self, Store},
    types::{
        ClusterId, ClusterName, EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint,
        MaxClusters,
    },
};

mod project;
mod records;
mod registry;
#[cfg(test)]
mod tests;
mod writer;

/// What says the time of day.
pub type Clock = fn() -> OffsetDateTime;

/// Who publishes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the own cluster.
    pub cluster: ClusterName,
    /// Its id.
    pub id: ClusterId,
    /// Size of the mesh: decides the identity range.
    pub max: MaxClusters,
    /// `identities.json` is kept here.
    pub state_dir: PathBuf,
}

/// Why publishing ends. None of these is the fault of an event.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file can't be read or set aside.
    #[error("load identities")]
    Load(#[source] StateError),
    /// The store grants or renews no lease.
    #[error("hold a lease in the cluster store")]
    Lease(#[source] store::Error),
    /// The store refuses a record.
    #[error("put {key}")]
    Put {
        /// Which key.
        key: String,
        /// Why.
        source: store::Error,
    },
    /// The store refuses an identity transaction.
    #[error("allocate or retire identity {id}")]
    Allocate {
        /// Which number.
        id: IdentityId,
        /// Why.
        source: store::Error,
    },
    /// The cluster store can't be listed.
    #[error("list the cluster store")]
    List(#[source] store::Error),
    /// Nobody takes endpoint events any more.
    #[error("send an endpoint event: its receiver is gone")]
    EndpointsClosed,
}

/// What went wrong with the state file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StateError(FileError);

/// Writes local events into the cluster store.
#[derive(Debug)]
pub struct Publisher {
    options: Options,
    clock: Clock,
    path: PathBuf,
    registry: Registry,
    writer: Writer,
    claims: Claims,
    workloads: HashMap<WorkloadKey, Workload>,
    /// Workloads per slave key: one key stands for all of a node with the same labels.
    slaves: HashMap<String, usize>,
    synced: watch::Sender<bool>,
    /// Endpoint events of the batch in work, sent once its records are written.
    outbox: Vec<EndpointEvent>,
}

/// A published workload.
#[derive(Debug)]
struct Workload {
    value: LocalWorkload,
    /// Its labels as text: the registry's key.
    labels: String,
    identity: IdentityId,
    slave: Option<String>,
    /// Its number on this node.
    endpoint: Option<EndpointId>,
    /// As last sent.
    sent: Option<Arc<LocalEndpoint>>,
}

impl Publisher {
    /// Loads `identities.json` and takes a lease. The store may be empty or hold records of an
    /// earlier process. A corrupt file is set aside with an error log; everything is numbered anew.
    ///
    /// # Errors
    /// [`Error::Load`] if the file exists and can't be read, [`Error::Lease`].
    pub async fn open(options: Options, store: Store, clock: Clock) -> Result<Self, Error> {
        let path = options.state_dir.join("identities.json");
        let (first, last) = options.max.identities(options.id);
        let range = (options.id.get(), first, last);
        let registry = Registry::load(&path, options.cluster.as_str(), range)
            .await
            .map_err(|error| Error::Load(StateError(error)))?;
        let mut writer = Writer::new(store, now())?;
        let config = ClusterConfig {
            id: options.id.get(),
            capabilities: Capabilities {
                max_connected_clusters: options.max.max_id(),
                ..Capabilities::default()
            },
        };
        writer.put(
            keyspace::cluster_config_key(&options.cluster),
            config.encode(),
            now(),
        )?;
        Ok(Self {
            options,
            clock,
            path,
            registry,
            writer,
            claims: Claims::default(),
            workloads: HashMap::new(),
            slaves: HashMap::new(),
            synced: watch::Sender::new(false),
            outbox: Vec::new(),
        })
    }

    /// Turns true once everything that the source knew at its start is in the store.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Publishes until cancelled; `endpoints` gets this node's workloads after their records are
    /// written. When the source ends, what it said stays published.
    ///
    /// # Errors
    /// Those of the store, and [`Error::EndpointsClosed`]. A state file that can't be written is
    /// logged and tried again.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<LocalEvent>,
        endpoints: mpsc::Sender<EndpointEvent>,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let mut keep_alive = tokio::time::interval(limits::LEASE_KEEP_ALIVE);
        let mut minute = tokio::time::interval(limits::HEARTBEAT_INTERVAL);
        let mut batch = Vec::with_capacity(limits::LOCAL_EVENTS_BATCH);
        let mut source_lives = true;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = keep_alive.tick() => self.writer.keep_alive(now())?,
                _ = minute.tick() => self.each_minute().await?,
                count = events.recv_many(&mut batch, limits::LOCAL_EVENTS_BATCH), if source_lives => {
                    source_lives = count > 0;
                    self.apply(&mut batch).await?;
                }
            }
            for event in self.outbox.drain(..) {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(()),
                    sent = endpoints.send(event) => sent.or(Err(Error::EndpointsClosed))?,
                }
            }
        }
    }

    async fn each_minute(&mut self) -> Result<(), Error> {
        let time = (self.clock)();
        self.writer
            .put_always(keyspace::HEARTBEAT, rfc3339(time).into_bytes(), now())?;
        for identity in self.registry.purge(time.unix_timestamp()) {
            self.writer.retire(identity.id, &identity.labels)?;
        }
        self.save().await;
        Ok(())
    }

    async fn apply(&mut self, batch: &mut Vec<LocalEvent>) -> Result<(), Error> {
        for event in batch.iter_mut() {
            if let LocalEvent::WorkloadUpsert(workload) = event {
                self.prepare(workload);
            }
        }
        // A number must not be used before the disk has it: after a crash it would mean another.
        self.save().await;
        for event in batch.drain(..) {
            self.apply_one(event)?;
        }
        self.save().await;
        Ok(())
    }

    /// Forces the own cluster's label, tidies addresses, and chooses numbers.
    fn prepare(&mut self, workload: &mut LocalWorkload) {
        workload.addresses = workload
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .collect();
        workload.addresses.sort_unstable();
        workload.addresses.dedup();
        match records::own_labels(&workload.labels, &self.options.cluster) {
            Ok(labels) if labels == *workload.labels => {}
            Ok(labels) => workload.labels = Arc::new(labels),
            Err(error) => {
                tracing::warn!(endpoint = %records::text(&workload.key), %error, "Workload is not published");
                workload.addresses.clear();
            }
        }
        if workload.addresses.is_empty() {
            return;
        }
        self.choose_identity(&workload.labels);
        if workload.this_node {
            self.registry.endpoint(&workload.key);
        }
    }

    /// The number of a label set: as before, else as another process holds it, else a free one.
    fn choose_identity(&mut self, labels: &Arc<Labels>) -> Option<IdentityId> {
        if let Some(id) = self.registry.identity(&labels.to_string()) {
            return Some(id);
        }
        let (first, last) = self.options.max.identities(self.options.id);
        let held = self
            .writer
            .lookup(labels)
            .filter(|id| (first..=last).contains(id));
        let id = held.or_else(|| self.registry.free_identity(first, last))?;
        self.registry.insert_identity(id, Arc::clone(labels));
        Some(id)
    }

    fn apply_one(&mut self, event: LocalEvent) -> Result<(), Error> {
        match event {
            LocalEvent::NodeUpsert(node) => self.upsert_node(&node)?,
            LocalEvent::NodeDelete(name) => {
                if let Some(key) = records::node_key(&name, &self.options.cluster) {
                    self.writer.delete(&key);
                }
            }
            LocalEvent::WorkloadUpsert(workload) => self.upsert_workload(workload)?,
            LocalEvent::WorkloadDelete(key) => self.delete_workload(&key)?,
            LocalEvent::ServiceUpsert(service) => self.upsert_service(&service)?,
            LocalEvent::ServiceDelete(key) => {
                if let Some(key) = records::service_key(&key, &self.options.cluster) {
                    self.writer.delete(&key);
                }
            }
            LocalEvent::Synced => {
                self.registry
                    .release_unused((self.clock)().unix_timestamp());
                self.outbox.push(EndpointEvent::Synced);
                self.synced.send_replace(true);
                tracing::info!(count = self.workloads.len(), "Local state is published");
            }
        }
        Ok(())
    }

    fn upsert_node(&mut self, node: &LocalNode) -> Result<(), Error> {
        let Some(key) = records::node_key(&node.name, &self.options.cluster) else {
            tracing::warn!(key = %node.name, "Node name can't stand in a key; not published");
            return Ok(());
        };
        let record = records::node(node, &self.options.cluster, self.options.id);
        self.writer.put(key, record.encode(), now())
    }

    fn upsert_service(&mut self, service: &LocalService) -> Result<(), Error> {
        let Some(key) = records::service_key(&service.key, &self.options.cluster) else {
            tracing::warn!(key = ?service.key, "Service name can't stand in a key; not published");
            return Ok(());
        };
        match records::service(service, &self.options.cluster, self.options.id) {
            Some(record) => self.writer.put(key, record.encode(), now()),
            None => {
                self.writer.delete(&key);
                Ok(())
            }
        }
    }

    fn upsert_workload(&mut self, value: LocalWorkload) -> Result<(), Error> {
        let key = value.key.clone();
        if value.addresses.is_empty() {
            return self.delete_workload(&key);
        }
        let Some(identity) = self.allocate(&value.labels)? else {
            tracing::error!(endpoint = %records::text(&key), "No identity is free; workload is not published");
            return self.delete_workload(&key);
        };
        let labels = value.labels.to_string();
        self.registry.retain_identity(&labels);
        let slave = value
            .host_ip
            .and_then(|ip| identity::slave_key(&value.labels, ip));
        self.hold(slave.as_deref(), identity)?;
        let endpoint = if value.this_node {
            self.registry.endpoint(&key)
        } else {
            None
        };
        for address in &value.addresses {
            if !self.claims.claim(*address, &key) {
                tracing::warn!(endpoint = %records::text(&key), %address, "Address belongs to another workload");
            }
        }
        let sent = self.workloads.get_mut(&key).and_then(|old| old.sent.take());
        let new = Workload {
            value,
            labels,
            identity,
            slave,
            endpoint,
            sent,
        };
        if let Some(old) = self.workloads.insert(key.clone(), new) {
            self.drop_holds(&old);
            if endpoint.is_none() && old.endpoint.is_some() {
                self.registry
                    .release_endpoint(&key, (self.clock)().unix_timestamp());
            }
            for address in old.value.addresses {
                let kept = self.workloads.get(&key).map(|new| &new.value.addresses);
                if kept.is_some_and(|kept| !kept.contains(&address)) {
                    self.release_address(address, &key)?;
                }
            }
        }
        self.announce(&key)
    }

    fn delete_workload(&mut self, key: &WorkloadKey) -> Result<(), Error> {
        let Some(old) = self.workloads.remove(key) else {
            return Ok(());
        };
        for address in &old.value.addresses {
            self.release_address(*address, key)?;
        }
        self.drop_holds(&old);
        if old.endpoint.is_some() {
            self.registry
                .release_endpoint(key, (self.clock)().unix_timestamp());
        }
        self.outbox
            .extend(old.sent.map(|sent| EndpointEvent::Delete(sent.id)));
        Ok(())
    }

    /// Makes the number of a label set exist in the store; `None` if none is free.
    fn allocate(&mut self, labels: &Arc<Labels>) -> Result<Option<IdentityId>, Error> {
        for _ in 0..limits::IDENTITY_PICKS_MAX {
            let Some(id) = self.choose_identity(labels) else {
                return Ok(None);
            };
            match self.writer.take(id, labels)? {
                Taken::Ours => return Ok(Some(id)),
                Taken::Foreign => {
                    // Rare: another process took the number since, or the file is older than the
                    // store. The number chosen instead is saved at the end of the batch.
                    tracing::warn!(identity = %id, "Identity stands for other labels; choosing another");
                    self.registry.forget_identity(&labels.to_string());
                }
            }
        }
        Ok(None)
    }

    fn hold(&mut self, slave: Option<&str>, identity: IdentityId) -> Result<(), Error> {
        let Some(slave) = slave else { return Ok(()) };
        *self.slaves.entry(slave.to_owned()).or_default() += 1;
        self.writer
            .put(slave.to_owned(), identity.to_string().into_bytes(), now())
    }

    /// Takes back a workload's part in its identity.
    fn drop_holds(&mut self, old: &Workload) {
        self.registry
            .release_identity(&old.labels, (self.clock)().unix_timestamp());
        let Some(slave) = &old.slave else { return };
        let Entry::Occupied(mut entry) = self.slaves.entry(slave.clone()) else {
            return;
        };
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
            self.writer.delete(slave);
        }
    }

    /// Gives an address up: to the next claimant, else its record goes.
    fn release_address(&mut self, address: IpAddr, key: &WorkloadKey) -> Result<(), Error> {
        match self.claims.release(address, key) {
            None => Ok(()),
            Some(Some(next)) => self.announce(&next),
            Some(None) => {
                self.writer
                    .delete(&records::ip_key(address, &self.options.cluster));
                Ok(())
            }
        }
    }

    /// Writes the records of the addresses that a workload owns, and tells of it as an endpoint.
    fn announce(&mut self, key: &WorkloadKey) -> Result<(), Error> {
        let Some(workload) = self.workloads.get_mut(key) else {
            return Ok(());
        };
        let value = &workload.value;
        let owned = value
            .addresses
            .iter()
            .filter(|address| self.claims.owns(**address, key));
        let owned: Vec<IpAddr> = owned.copied().collect();
        for address in &owned {
            let record = records::ip(*address, value, workload.identity);
            let key = records::ip_key(*address, &self.options.cluster);
            self.writer.put(key, record.encode(), now())?;
        }
        let endpoint = workload.endpoint.filter(|_| !owned.is_empty()).map(|id| {
            Arc::new(LocalEndpoint {
                id,
                identity: workload.identity,
                labels: Arc::clone(&value.labels),
                namespace: value.key.namespace.clone(),
                name: value.key.name.clone(),
                addresses: owned,
                interface: value.interface.clone(),
                named_ports: value.named_ports.clone(),
            })
        });
        if endpoint == workload.sent {
            return Ok(());
        }
        let sent = std::mem::replace(&mut workload.sent, endpoint.clone());
        match (endpoint, sent) {
            (Some(endpoint), _) => self.outbox.push(EndpointEvent::Upsert(endpoint)),
            (None, Some(sent)) => self.outbox.push(EndpointEvent::Delete(sent.id)),
            (None, None) => {}
        }
        Ok(())
    }

    async fn save(&mut self) {
        let (name, id) = (self.options.cluster.as_str(), self.options.id.get());
        if let Err(error) = self.registry.save(&self.path, name, id).await {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(
                error = format!("{error}: {}", source.unwrap_or_default()),
                "Identities are not saved; after a restart they may be renumbered"
            );
        }
    }
}

/// The monotonic clock that the executor's timers follow.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// To the second, as Cilium's heartbeats are.
fn rfc3339(time: OffsetDateTime) -> String {
    let whole = time - Duration::from_nanos(time.nanosecond().into());
    // Only years past 9999 have no such text; readers never parse it.
    whole
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
