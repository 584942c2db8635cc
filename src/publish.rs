//! Local events become the cluster's records.
//!
//! [`Publisher`] owns what this process wants in the cluster store: nodes, addresses and services
//! on its leases, identities (master key without, slave key with lease). It allocates identities and
//! endpoint ids, saves them before it uses them, and tells `policy` and `enforcer` of this node's
//! workloads. [`Projection`] copies the cluster's own records to the export's views
//! that peers read, and writes what an export needs besides. [`Collector`] deletes identities that nobody uses.
//!
//! The cluster store is always reached through an etcd client, also the one in this process. While
//! it is out of reach, local changes go on: what was wanted is written once it is back.
//!
//! Always true: the own cluster's name, id and label are in every record, whatever a source said;
//! an address has one record, of its first claimant on this node, and any key that of the node which
//! wrote it first, until that one gives it up or its lease ends; unchanged bytes are not written again; a number
//! is used once the store has it, and stays in use while the store is lost; on shutdown nothing is
//! withdrawn, so that a quick restart deletes nothing.
//! Absent on purpose: no clock (it is an argument) and no reading of peers.
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::{
    collect::Collector,
    export_policy::{ExportPolicy, ExportPolicyError, ExportPolicyFile, ExportPolicyFileError},
    project::Projection,
    views::{View, Views},
};
use self::{
    link::{Link, Work},
    registry::{Claims, FileError, Registry},
    workloads::Workload,
    writer::Writer,
};
use crate::{
    etcd::Connector,
    keyspace::{self, Capabilities, ClusterConfig, Kind, Layout},
    limits,
    source::{LocalEvent, LocalNode, LocalService, LocalWorkload, WorkloadKey},
    store,
    types::{ClusterId, ClusterName, EndpointEvent, IdentityId, MaxClusters},
};

mod allocate;
mod collect;
mod entries;
mod export_policy;
mod link;
mod project;
mod records;
mod registry;
#[cfg(test)]
mod tests;
mod views;
mod workloads;
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
    /// This node, for what no address names; without `/`.
    pub node_name: String,
    /// `identities.json` is kept here.
    pub state_dir: PathBuf,
}

/// Why publishing ends. None of these is the fault of an event, nor of the cluster store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state file can't be read or set aside.
    #[error("load identities")]
    Load(#[source] StateError),
    /// The export refuses a record.
    #[error("put {key}")]
    Put {
        /// Which key.
        key: String,
        /// Why.
        source: store::Error,
    },
    /// The export can't be listed.
    #[error("list the export")]
    List(#[source] store::Error),
    /// Nobody takes endpoint events any more.
    #[error("send an endpoint event: its receiver is gone")]
    EndpointsClosed,
}

/// What went wrong with the state file.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StateError(FileError);

/// How publishing goes; only status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The cluster store answers.
    pub connected: bool,
    /// Why it does not, and what is done meanwhile.
    pub error: Option<String>,
    /// Keys that it does not have yet as they are wanted.
    pub unwritten: usize,
    /// Workloads that have no number yet, for which reason ever.
    pub waiting: usize,
    /// The first keys that it does not take, with its words.
    pub refused: Vec<String>,
    /// The first keys that another node publishes with another value.
    pub contended: Vec<String>,
}

impl Status {
    /// What somebody should look at, if anything.
    pub fn errors(&self) -> impl Iterator<Item = String> {
        let lost = self.error.as_ref().map(|error| {
            format!("cluster store: {error}; the last known export stays, {} keys and {} workloads wait", self.unwritten, self.waiting)
        });
        let refused = self.refused.iter();
        let refused = refused.map(|refused| format!("cluster store refuses {refused}"));
        let contended = self.contended.iter().map(|key| {
            format!("{key} is published by another node with another value, which stays until that node gives it up")
        });
        lost.into_iter().chain(refused).chain(contended)
    }
}

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
    /// As they shall be once their labels have a number.
    pending: HashMap<WorkloadKey, LocalWorkload>,
    /// Could get no number; tried again each minute.
    refused: HashMap<WorkloadKey, LocalWorkload>,
    /// Label sets that need a number, by text, with the pending workloads that asked.
    wanted: BTreeMap<String, Vec<WorkloadKey>>,
    /// Numbers that the store has, and that our slave keys hold, by label text.
    held: HashMap<String, IdentityId>,
    /// Workloads per slave key: one key stands for all of a node with the same labels.
    slaves: BTreeMap<String, usize>,
    link: Link,
    /// The source has said everything that it knew at its start.
    source_synced: bool,
    /// `policy` and `enforcer` know all of that.
    endpoints_synced: bool,
    synced: watch::Sender<bool>,
    status: watch::Sender<Status>,
    /// Asks whether everything is in the store; answered once it is.
    confirm: mpsc::Sender<oneshot::Sender<()>>,
    confirms: mpsc::Receiver<oneshot::Sender<()>>,
    confirming: Vec<oneshot::Sender<()>>,
    /// Endpoint events of the step in work.
    outbox: Vec<EndpointEvent>,
}

impl Publisher {
    /// Loads `identities.json`. The store may be empty or hold records of an earlier process; it is
    /// not looked at yet. A corrupt file is set aside with an error log; numbers are then looked up
    /// in the store or chosen anew.
    ///
    /// # Errors
    /// [`Error::Load`] if the file exists and can't be read.
    pub async fn open(options: Options, connector: Connector, clock: Clock) -> Result<Self, Error> {
        let path = options.state_dir.join("identities.json");
        let (first, last) = options.max.identities(options.id);
        let range = (options.id.get(), first, last);
        let registry = Registry::load(&path, options.cluster.as_str(), range)
            .await
            .map_err(|error| Error::Load(StateError(error)))?;
        let mut writer = Writer::default();
        let config = ClusterConfig {
            id: options.id.get(),
            capabilities: Capabilities {
                max_connected_clusters: options.max.max_id(),
                ..Capabilities::default()
            },
        };
        let key = keyspace::cluster_config_key(&options.cluster);
        writer.put(key, config.encode());
        let (confirm, confirms) = mpsc::channel(limits::CONFIRMS_MAX);
        Ok(Self {
            options,
            clock,
            path,
            registry,
            writer,
            claims: Claims::default(),
            workloads: HashMap::new(),
            pending: HashMap::new(),
            refused: HashMap::new(),
            wanted: BTreeMap::new(),
            held: HashMap::new(),
            slaves: BTreeMap::new(),
            link: Link::new(connector),
            source_synced: false,
            endpoints_synced: false,
            synced: watch::Sender::new(false),
            status: watch::Sender::new(Status::default()),
            confirm,
            confirms,
            confirming: Vec::new(),
            outbox: Vec::new(),
        })
    }

    /// Turns true once everything that the source knew at its start is in the store.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// How it goes, from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Connects to the cluster store once it has everything that is to be published, checked after
    /// the call: who lists over such a connection does not miss, and sweep, what only we can write.
    /// Waits as long as that takes, and forever once the publisher has ended.
    #[must_use]
    pub fn confirmed(&self) -> Connector {
        let (confirm, connector) = (self.confirm.clone(), self.link.connector());
        Connector::new(move || {
            let (confirm, connector) = (confirm.clone(), connector.clone());
            async move {
                let (reply, answer) = oneshot::channel();
                if confirm.send(reply).await.is_err() || answer.await.is_err() {
                    std::future::pending::<()>().await;
                }
                connector.connect().await
            }
        })
    }

    /// Publishes until cancelled; `endpoints` gets this node's workloads as soon as they have a
    /// number, whether or not their records could be written. When the source ends, what it said
    /// stays published.
    ///
    /// # Errors
    /// [`Error::EndpointsClosed`]. A store that is lost, or a state file that can't be written, is
    /// logged and tried again.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<LocalEvent>,
        endpoints: mpsc::Sender<EndpointEvent>,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let mut renew = tokio::time::interval(limits::LEASE_KEEP_ALIVE);
        let mut minute = tokio::time::interval(limits::HEARTBEAT_INTERVAL);
        let mut try_held = tokio::time::interval(limits::HELD_RETRY);
        let mut batch = Vec::with_capacity(limits::LOCAL_EVENTS_BATCH);
        let mut source_lives = true;
        let mut work: Option<Work> = None;
        loop {
            if work.is_none() {
                work = self.next_work();
                if work.is_none() {
                    self.settled();
                }
            }
            let retry = self.link.retry_at();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                done = async { match &mut work {
                    Some(work) => work.await,
                    None => std::future::pending().await,
                } } => {
                    work = None;
                    self.finish(done).await;
                }
                () = tokio::time::sleep_until(retry), if work.is_none() && !self.link.is_up() => {}
                _ = renew.tick() => self.link.check(),
                _ = minute.tick() => self.each_minute().await,
                _ = try_held.tick(), if self.link.is_up() => self.writer.try_held(),
                Some(reply) = self.confirms.recv() => {
                    self.confirming.push(reply);
                    self.link.check();
                }
                count = events.recv_many(&mut batch, limits::LOCAL_EVENTS_BATCH), if source_lives => {
                    source_lives = count > 0;
                    self.apply(&mut batch).await;
                }
            }
            self.endpoints_synced();
            self.tell();
            for event in self.outbox.drain(..) {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(()),
                    sent = endpoints.send(event) => sent.or(Err(Error::EndpointsClosed))?,
                }
            }
        }
    }

    async fn each_minute(&mut self) {
        let time = (self.clock)();
        self.writer
            .touch(keyspace::HEARTBEAT.to_owned(), rfc3339(time).into_bytes());
        for (_, workload) in std::mem::take(&mut self.refused) {
            self.want(workload);
        }
        self.registry.purge(time.unix_timestamp());
        self.save().await;
    }

    async fn apply(&mut self, batch: &mut Vec<LocalEvent>) {
        for event in batch.iter_mut() {
            if let LocalEvent::WorkloadUpsert(workload) = event {
                self.prepare(workload);
            }
        }
        // A number must not be used before the disk has it: after a crash it would mean another.
        self.save().await;
        for event in batch.drain(..) {
            self.apply_one(event);
        }
        self.save().await;
    }

    fn apply_one(&mut self, event: LocalEvent) {
        match event {
            LocalEvent::NodeUpsert(node) => self.upsert_node(&node),
            LocalEvent::NodeDelete(name) => {
                if let Some(key) = records::node_key(&name, &self.options.cluster) {
                    self.writer.delete(&key);
                }
            }
            LocalEvent::WorkloadUpsert(workload) => self.upsert_workload(workload),
            LocalEvent::WorkloadDelete(key) => self.delete_workload(&key),
            LocalEvent::ServiceUpsert(service) => self.upsert_service(&service),
            LocalEvent::ServiceDelete(key) => {
                if let Some(key) = records::service_key(&key, &self.options.cluster) {
                    self.writer.delete(&key);
                }
            }
            LocalEvent::RecordUpsert(record) => {
                let key = self.record_key(record.kind, &record.suffix);
                self.writer.put(key, record.value);
            }
            LocalEvent::RecordDelete { kind, suffix } => {
                let key = self.record_key(kind, &suffix);
                self.writer.delete(&key);
            }
            LocalEvent::Synced => self.source_synced = true,
        }
    }

    fn record_key(&self, kind: Kind, suffix: &[u8]) -> String {
        let prefix = Layout::State.prefix(kind, &self.options.cluster);
        // Keys that are no text were refused as malformed.
        prefix + &String::from_utf8_lossy(suffix)
    }

    fn upsert_node(&mut self, node: &LocalNode) {
        let Some(key) = records::node_key(&node.name, &self.options.cluster) else {
            tracing::warn!(key = %node.name, "Node name can't stand in a key; not published");
            return;
        };
        let record = records::node(node, &self.options.cluster, self.options.id);
        self.writer.put(key, record.encode());
    }

    fn upsert_service(&mut self, service: &LocalService) {
        let Some(key) = records::service_key(&service.key, &self.options.cluster) else {
            tracing::warn!(key = ?service.key, "Service name can't stand in a key; not published");
            return;
        };
        match records::service(service, &self.options.cluster, self.options.id) {
            Some(record) => self.writer.put(key, record.encode()),
            None => self.writer.delete(&key),
        }
    }

    /// Tells `policy` and `enforcer` once that they know all workloads. One that still waits for
    /// its number would else be taken for gone.
    fn endpoints_synced(&mut self) {
        let waiting = !self.pending.is_empty() || !self.refused.is_empty();
        if self.source_synced && !self.endpoints_synced && !waiting {
            self.endpoints_synced = true;
            self.registry
                .release_unused((self.clock)().unix_timestamp());
            self.outbox.push(EndpointEvent::Synced);
        }
    }

    /// There is nothing to do. If the store is in reach, it has everything; a workload that can get
    /// no number holds up no other.
    fn settled(&mut self) {
        if !self.link.is_up() || !self.source_synced {
            return;
        }
        if !self.synced.send_replace(true) {
            tracing::info!(count = self.workloads.len(), "Local state is published");
        }
        for reply in self.confirming.drain(..) {
            // Who asked may have given up.
            reply.send(()).ok();
        }
    }

    fn tell(&self) {
        let refused = self.writer.refusals().take(limits::REFUSALS_SHOWN_MAX);
        let refused =
            refused.map(|(key, reason)| format!("{}: {reason}", String::from_utf8_lossy(key)));
        let contended = self.writer.contended().take(limits::REFUSALS_SHOWN_MAX);
        let contended = contended.map(|key| String::from_utf8_lossy(key).into_owned());
        let status = Status {
            connected: self.link.is_up(),
            error: self.link.error().map(ToOwned::to_owned),
            unwritten: self.writer.unwritten() + self.link.writing(),
            waiting: self.pending.len() + self.refused.len(),
            refused: refused.collect(),
            contended: contended.collect(),
        };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
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

/// To the second, as Cilium's heartbeats are.
fn rfc3339(time: OffsetDateTime) -> String {
    let whole = time - Duration::from_nanos(time.nanosecond().into());
    // Only years past 9999 have no such text; readers never parse it.
    whole
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}
