//! The publisher's hand in the cluster store: one piece of work at a time, over one connection.
//!
//! Order after each connect, and then every few minutes: leases are renewed, what should be in the
//! store is compared with what is, numbers are allocated, and what differs is written. A piece of
//! work owns all it needs, so that local events go on while it runs; if it fails, the connection is
//! given up and what it had taken is to be done again.
use std::{collections::BTreeSet, error::Error as _};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{
    allocate::{self, Allocation, Request},
    writer::{self, Found, Next, Step, transaction},
    *,
};
use crate::{
    etcd::{self, Class, Client, KeyValue, PutOptions, Txn, TxnOp},
    keyspace::identity,
    types::Labels,
};

/// A piece of work; yields how it ended.
pub(super) type Work = BoxFuture<'static, Done>;

/// How a piece of work ended.
#[derive(Debug)]
pub(super) enum Done {
    /// With the leases of this node's earlier processes.
    Connected(Result<(Arc<Client>, Vec<i64>), etcd::Error>),
    /// With the leases that are gone.
    Renewed(Result<Vec<i64>, etcd::Error>),
    Granted(Result<i64, etcd::Error>),
    Compared(Result<Vec<(Bytes, Option<KeyValue>)>, etcd::Error>),
    Allocated(Vec<Request>, Result<Vec<Allocation>, etcd::Error>),
    /// With what was found in the place of each step that was not done.
    Written(Vec<Step>, Result<Vec<Option<Found>>, etcd::Error>),
}

/// The connection, and what is owed over it.
#[derive(Debug)]
pub(super) struct Link {
    connector: Connector,
    client: Option<Arc<Client>>,
    /// While there is no client: when to try again, and how long to wait after that.
    retry_at: Instant,
    pause: Duration,
    error: Option<String>,
    renew_due: bool,
    compare_due: bool,
    /// Keys of the batch under way.
    writing: usize,
}

impl Link {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            client: None,
            retry_at: Instant::now(),
            pause: limits::STORE_BACKOFF.0,
            error: None,
            renew_due: false,
            compare_due: false,
            writing: 0,
        }
    }

    pub(super) fn connector(&self) -> Connector {
        self.connector.clone()
    }

    pub(super) const fn is_up(&self) -> bool {
        self.client.is_some()
    }

    pub(super) const fn retry_at(&self) -> Instant {
        self.retry_at
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    pub(super) const fn writing(&self) -> usize {
        self.writing
    }

    /// Renew the leases and compare everything, soon.
    pub(super) const fn check(&mut self) {
        self.renew_due = true;
        self.compare_due = true;
    }

    fn up(&mut self, client: Arc<Client>) {
        if self.error.take().is_some() {
            tracing::info!("Cluster store is back; what changed meanwhile is published");
        }
        self.client = Some(client);
        self.check();
    }

    fn down(&mut self, error: &etcd::Error) {
        let text = chain(error);
        // Once per outage: the next endpoint fails with other words.
        if self.error.is_none() {
            tracing::warn!(
                error = text,
                "Cluster store is out of reach; the last known export stays"
            );
        }
        self.error = Some(text);
        self.client = None;
        if error.class() == Class::Denied {
            self.pause = limits::STORE_BACKOFF.1;
        }
        self.retry_at = Instant::now() + self.pause.mul_f64(rand::random_range(0.5..=1.0));
        self.pause = (self.pause * 2).min(limits::STORE_BACKOFF.1);
    }
}

impl Publisher {
    /// What is to be done now, most urgent first; `None` if nothing is, or not yet.
    pub(super) fn next_work(&mut self) -> Option<Work> {
        let Some(client) = self.link.client.clone() else {
            let (connector, tags) = (self.link.connector(), self.lease_tags());
            let due = Instant::now() >= self.link.retry_at;
            return due.then(|| -> Work {
                Box::pin(async move { Done::Connected(connect(&connector, &tags).await) })
            });
        };
        if std::mem::take(&mut self.link.renew_due) {
            let leases = self.writer.leases();
            return Some(Box::pin(async move {
                Done::Renewed(renew(&client, leases).await)
            }));
        }
        if std::mem::take(&mut self.link.compare_due) {
            let mut keys = self.writer.written();
            let masters = self.held.values();
            keys.extend(masters.map(|id| Bytes::from(identity::master_key(*id))));
            return Some(Box::pin(async move {
                Done::Compared(client.get_many(keys).await)
            }));
        }
        if !self.wanted.is_empty() {
            let Some(lease) = self.writer.reserve(limits::ALLOCATIONS_BATCH) else {
                return Some(grant(client, self.lease_tags()));
            };
            let requests = self.requests(lease);
            self.writer
                .unreserve(lease, limits::ALLOCATIONS_BATCH - requests.len());
            if !requests.is_empty() {
                return Some(Box::pin(async move {
                    let answers = allocate::allocate(&client, &requests).await;
                    Done::Allocated(requests, answers)
                }));
            }
        }
        match self.writer.next() {
            Next::Idle => None,
            Next::Grant => Some(grant(client, self.lease_tags())),
            Next::Write(steps) => {
                self.link.writing = steps.len();
                Some(Box::pin(async move {
                    let what = match steps.first() {
                        Some(Step::Put { key, .. } | Step::Delete { key, .. }) => {
                            String::from_utf8_lossy(key).into_owned()
                        }
                        None => String::new(),
                    };
                    let written = client.txn(&what, transaction(&steps)).await;
                    Done::Written(steps, written.map(|response| writer::found(&response)))
                }))
            }
        }
    }

    /// One request for each label set that is still wanted, as many as go at once.
    fn requests(&mut self, lease: i64) -> Vec<Request> {
        let (first, last) = self.options.max.identities(self.options.id);
        let mut requests = Vec::new();
        while let Some(text) = self.wanted.keys().nth(requests.len()).cloned() {
            if requests.len() == limits::ALLOCATIONS_BATCH {
                break;
            }
            let asking = self.asking(&text);
            let Some(value) = asking.first().and_then(|key| self.pending.get(key)) else {
                self.wanted.remove(&text);
                continue;
            };
            let known = self.registry.identity(&text);
            let mut candidates: Vec<_> = known.into_iter().collect();
            candidates.extend(self.registry.candidates(first, last));
            requests.push(Request {
                labels: Arc::clone(&value.labels),
                slave: self.slave_key(value),
                lease,
                known,
                candidates,
                range: first..=last,
            });
        }
        requests
    }

    /// Draws the consequences of a piece of work.
    pub(super) async fn finish(&mut self, done: Done) {
        self.link.writing = 0;
        match done {
            Done::Connected(Ok((client, leases))) => {
                self.writer.inherit(leases);
                self.link.up(client);
            }
            Done::Renewed(Ok(lost)) => {
                // It answers, not only to the handshake.
                self.link.pause = limits::STORE_BACKOFF.0;
                for lease in lost {
                    self.lease_lost(lease);
                }
            }
            Done::Granted(Ok(lease)) => self.writer.granted(lease),
            Done::Compared(Ok(found)) => self.compared(&found),
            Done::Allocated(requests, Ok(answers)) => {
                for (request, answer) in requests.into_iter().zip(answers) {
                    self.allocated(request, answer).await;
                }
            }
            Done::Allocated(requests, Err(error)) => {
                for request in &requests {
                    self.writer.unreserve(request.lease, 1);
                }
                match requests.first() {
                    Some(request) if error.is_lease_lost() => self.lease_lost(request.lease),
                    _ => self.link.down(&error),
                }
            }
            Done::Written(steps, Ok(found)) => self.written(steps, found),
            Done::Written(steps, Err(error)) => self.not_written(steps, &error),
            Done::Connected(Err(error))
            | Done::Renewed(Err(error))
            | Done::Granted(Err(error))
            | Done::Compared(Err(error)) => self.link.down(&error),
        }
    }

    fn lease_lost(&mut self, lease: i64) {
        tracing::warn!(
            lease_id = lease,
            "Lease was lost; published keys are written again under a new one"
        );
        let lost = self.writer.lost(lease);
        self.take_slaves_again(lost.iter());
    }

    /// Where our leases are written down, so that our next process knows them as ours.
    fn lease_tags(&self) -> String {
        keyspace::layout::lease_tags(&self.options.node_name)
    }

    fn written(&mut self, steps: Vec<Step>, found: Vec<Option<Found>>) {
        let (held, taken) = self.writer.done(steps, found);
        for key in held {
            let key = String::from_utf8_lossy(&key);
            tracing::warn!(%key, "Another node publishes this key with another value and keeps it; ours follows when it goes");
        }
        for key in taken {
            let key = String::from_utf8_lossy(&key);
            tracing::info!(%key, "Another node gave this key up; ours is published");
        }
    }

    fn not_written(&mut self, steps: Vec<Step>, error: &etcd::Error) {
        if error.is_lease_lost() {
            let leases: BTreeSet<i64> = steps
                .iter()
                .map(|(Step::Put { lease, .. } | Step::Delete { lease, .. })| *lease)
                .collect();
            self.writer.failed(steps);
            for lease in leases {
                self.lease_lost(lease);
            }
        } else if error.class() == Class::Fatal {
            let reason = chain(error);
            if let Some(key) = self.writer.refused(steps, &reason) {
                let key = String::from_utf8_lossy(&key).into_owned();
                tracing::error!(key, error = reason, "Cluster store refuses a record");
            }
        } else {
            self.writer.failed(steps);
            self.link.down(error);
        }
    }

    fn compared(&mut self, found: &[(Bytes, Option<KeyValue>)]) {
        let masters: HashMap<Bytes, &String> = self
            .held
            .iter()
            .map(|(text, id)| (Bytes::from(identity::master_key(*id)), text))
            .collect();
        let mut again = BTreeSet::new();
        let mut differing = Vec::new();
        for (key, found) in found {
            if let Some(text) = masters.get(key) {
                let value = found.as_ref().map(KeyValue::value);
                if value != Some(text.as_bytes()) {
                    again.insert((*text).clone());
                }
            } else if self
                .writer
                .compared(key, found.as_ref().map(Found::from).as_ref())
            {
                differing.push(key);
            }
        }
        if let Some(key) = differing.first() {
            tracing::info!(
                count = differing.len(),
                key = %String::from_utf8_lossy(key),
                "Keys of ours were changed or deleted; they are written again"
            );
        }
        self.take_slaves_again(differing.into_iter());
        self.take_again(&again);
    }

    /// Slave keys that are gone may mean that the labels have another number by now: they are
    /// written by allocation only.
    fn take_slaves_again<'k>(&mut self, keys: impl Iterator<Item = &'k Bytes>) {
        let mut again = BTreeSet::new();
        for key in keys {
            if let Some(text) = identity::labels_of_slave(key) {
                self.writer.leave(key);
                again.insert(String::from_utf8_lossy(text).into_owned());
            }
        }
        self.take_again(&again);
    }

    async fn allocated(&mut self, request: Request, answer: Allocation) {
        let text = request.labels.to_string();
        match answer {
            Allocation::Held(id) => {
                self.note_change(&request.labels, request.known, id);
                let written = (request.slave, request.lease);
                self.identity_held(&request.labels, id, written).await;
                return;
            }
            Allocation::Full => {
                tracing::error!(
                    labels = text,
                    "No identity is free; workload is not published"
                );
                self.identity_refused(&text, true);
            }
            Allocation::Locked => {
                tracing::warn!(
                    labels = text,
                    "Identity is locked by another node; trying again"
                );
                self.identity_refused(&text, false);
            }
            Allocation::Inconsistent(id) => {
                tracing::error!(
                    labels = text,
                    identity = id,
                    "Other nodes use an identity that does not stand for these labels; delete its keys below cilium/state/identities/v1/value/"
                );
                self.identity_refused(&text, false);
            }
        }
        self.writer.unreserve(request.lease, 1);
    }

    fn note_change(&self, labels: &Labels, known: Option<IdentityId>, id: IdentityId) {
        if let Some(known) = known.filter(|known| *known != id) {
            tracing::warn!(%labels, %known, identity = %id, "Labels have another identity than before");
        }
    }
}

async fn connect(
    connector: &Connector,
    tags: &str,
) -> Result<(Arc<Client>, Vec<i64>), etcd::Error> {
    let client = Arc::new(connector.connect().await?);
    let mut leases = Vec::new();
    let mut list = client.list_keys_at(tags, 0);
    while let Some(page) = list.page().await? {
        let keys = page.entries.iter().map(|entry| &*entry.key);
        leases.extend(keys.filter_map(|key| keyspace::layout::tagged_lease(key, tags)));
    }
    Ok((client, leases))
}

/// Grants a lease, and writes down on it that it is ours: it may outlive this process.
fn grant(client: Arc<Client>, tags: String) -> Work {
    Box::pin(async move {
        let granted = async {
            let lease = client.lease_grant(limits::LEASE_TTL).await?;
            let key = keyspace::layout::lease_tag(&tags, lease);
            let options = PutOptions::new().with_lease(lease);
            let put = TxnOp::put(key.as_str(), "", Some(options));
            client.txn(&key, Txn::new().and_then([put])).await?;
            Ok(lease)
        };
        Done::Granted(granted.await)
    })
}

/// Yields the leases that are gone.
async fn renew(client: &Client, leases: Vec<i64>) -> Result<Vec<i64>, etcd::Error> {
    let mut lost = Vec::new();
    for lease in leases {
        if !client.lease_keep_alive(lease).await? {
            lost.push(lease);
        }
    }
    Ok(lost)
}

/// An error and its sources as one line.
fn chain(error: &etcd::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
