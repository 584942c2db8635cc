//! What a node does with the policies in the cluster store: reads them, keeps up with them, hands
//! them to the datapath, and says how far it came.
//!
//! Always true: a policy that can't be used leaves its last good version in force; so does a store
//! that is out of reach, over restarts too. Only a store that was listed, or that says so, takes a
//! policy away.
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    ffi::OsString,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Name, NodeStatus, documents, entries};
use crate::{
    etcd::{Client, Connector, Error, Event, PutOptions, Txn, TxnOp},
    keyspace::layout::{POLICIES_PREFIX, POLICY_STATUS_PREFIX},
    limits,
    policy::{Delay, Origin, PolicyEvent, Source, parse},
    saved::Saved,
};

/// How the store's policies stand on this node; only the latest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Why the store does not tell of policies now, or leaves some out.
    pub error: Option<String>,
    /// The store's revision up to which they were read; 0 before the first time.
    pub read: i64,
    /// The one up to which the kernel follows.
    pub applied: i64,
    /// The policies by their key behind the prefix.
    pub policies: BTreeMap<String, PolicyStatus>,
}

/// How one of them stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Of its last change; 0 if it is known from this node's disk only.
    pub revision: i64,
    /// Some good version of it is in force.
    pub in_force: bool,
    /// Why its present version is not, if so.
    pub error: Option<String>,
}

/// Follows the store's policies into the datapath.
#[derive(Debug)]
pub struct Follower {
    connector: Connector,
    node: String,
    saved: Saved,
    events: mpsc::Sender<PolicyEvent>,
    delay: Delay,
    status: watch::Sender<Arc<Status>>,
    held: BTreeMap<String, Held>,
    /// The first policy beyond the limit.
    surplus: Option<String>,
    error: Option<String>,
    /// Of which store `read` and `applied` are.
    cluster_id: Option<u64>,
    read: i64,
    /// Raised by marks that reached the kernel.
    applied: watch::Sender<i64>,
    synced: bool,
    /// Of this node's status in the store.
    lease: Option<i64>,
}

#[derive(Debug)]
struct Held {
    /// Of the version seen last, good or bad.
    digest: [u8; 32],
    status: PolicyStatus,
}

/// Why a round of following ended.
enum End {
    Store(Error),
    /// The receiver of the events is gone.
    Unwanted,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

struct Unwanted;

impl From<Unwanted> for End {
    fn from(_: Unwanted) -> Self {
        Self::Unwanted
    }
}

impl Follower {
    /// Of the node named `node`, over connections to the cluster store. Last good versions are kept
    /// in the directory `saved`, which nobody else writes to.
    #[must_use]
    pub fn new(
        connector: Connector,
        node: String,
        saved: PathBuf,
        events: mpsc::Sender<PolicyEvent>,
        delay: Delay,
    ) -> (Self, watch::Receiver<Arc<Status>>) {
        let (status, receiver) = watch::channel(Arc::default());
        let follower = Self {
            connector,
            node,
            saved: Saved::new(saved),
            events,
            delay,
            status,
            held: BTreeMap::new(),
            surplus: None,
            error: None,
            cluster_id: None,
            read: 0,
            applied: watch::Sender::new(0),
            synced: false,
            lease: None,
        };
        (follower, receiver)
    }

    /// Hands on what was known at the end of the last process, then what the store says, until
    /// `cancel` or until nobody takes events any more.
    pub async fn run(mut self, cancel: CancellationToken) {
        // On the heap: the future is large and lives long.
        let work = Box::pin(self.follow());
        cancel.run_until_cancelled(work).await;
        if let Some(lease) = self.lease {
            let release = async { self.connector.connect().await?.lease_revoke(lease).await };
            let released = tokio::time::timeout(limits::COLLECTOR_STOP, release).await;
            if !matches!(released, Ok(Ok(()))) {
                tracing::debug!("This node's policy status ends with its lease");
            }
        }
    }

    async fn follow(&mut self) {
        if self.restore().await.is_err() {
            return;
        }
        let deadline = Instant::now() + limits::POLICY_STORE_PATIENCE;
        let mut pause = limits::STORE_BACKOFF.0;
        loop {
            let read = self.read;
            let end = tokio::select! {
                Err(end) = self.round() => end,
                () = tokio::time::sleep_until(deadline), if !self.synced => {
                    tracing::warn!("The cluster store does not tell of its policies; going on without them");
                    if self.told_all().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let End::Store(error) = end else { return };
            self.lost(&error);
            if self.read != read {
                pause = limits::STORE_BACKOFF.0;
            }
            let next = Instant::now() + pause.mul_f64(rand::random_range(0.5..=1.0));
            let patient = !self.synced && next > deadline;
            tokio::time::sleep_until(if patient { deadline } else { next }).await;
            pause = (pause * 2).min(limits::STORE_BACKOFF.1);
        }
    }

    /// What the last process had. Without it, this node knows nothing before the store says so.
    async fn restore(&mut self) -> Result<(), Unwanted> {
        let Some(texts) = self.saved.all().await else {
            return Ok(());
        };
        for text in texts {
            let known = parse(&text, std::path::Path::new("saved policy"));
            let Some([policy]) = known.as_deref().ok() else {
                continue;
            };
            let name = Name::from(policy).to_string();
            self.accept(name, &text, 0).await?;
        }
        self.told_all().await
    }

    async fn told_all(&mut self) -> Result<(), Unwanted> {
        self.publish();
        if std::mem::replace(&mut self.synced, true) {
            return Ok(());
        }
        self.send(PolicyEvent::Synced).await
    }

    /// Reads and follows as long as the connection lives.
    async fn round(&mut self) -> Result<Infallible, End> {
        let client = self.connector.connect().await?;
        let mut next = self.list(&client).await?;
        // Before the first word of it, so that no later one is missed.
        let mut applied = self.applied.subscribe();
        self.grant(&client).await?;
        let mut watch = client.watch(POLICIES_PREFIX, next).await?;
        let mut renew = ticks(limits::POLICY_STATUS_RENEW);
        let mut compare = ticks(limits::POLICY_STORE_COMPARE);
        loop {
            tokio::select! {
                events = watch.recv() => match events? {
                    Some(events) => self.take(events, watch.next_revision() - 1).await?,
                    None => watch = client.watch(POLICIES_PREFIX, watch.next_revision()).await?,
                },
                _ = applied.changed() => {
                    self.publish();
                    self.tell(&client).await?;
                }
                _ = renew.tick() => self.renew(&client).await?,
                // A watch may fall silent without an error.
                _ = compare.tick() => if !self.agrees(&client).await? {
                    next = self.list(&client).await?;
                    applied = self.applied.subscribe();
                    watch = client.watch(POLICIES_PREFIX, next).await?;
                    self.tell(&client).await?;
                },
            }
        }
    }

    /// Takes over a whole list; returns where to watch from.
    async fn list(&mut self, client: &Client) -> Result<i64, End> {
        let came = std::time::Instant::now();
        let (entries, revision) = entries(client, POLICIES_PREFIX).await?;
        if self.cluster_id != client.cluster_id() {
            // Its revisions have nothing to do with those of before.
            self.cluster_id = client.cluster_id();
            self.applied = watch::Sender::new(0);
        }
        if self.error.take().is_some() {
            tracing::info!("The cluster store tells of its policies again");
        }
        self.surplus = None;
        let mut names = BTreeSet::new();
        // What is new comes before what is gone, so that a renamed policy leaves no gap.
        for (name, entry) in entries {
            self.look_at(name.clone(), &entry.value, entry.revision)
                .await?;
            names.insert(name);
        }
        let gone = self.held.keys().filter(|name| !names.contains(*name));
        let gone: Vec<String> = gone.cloned().collect();
        self.forget(gone).await?;
        self.saved.make().await;
        self.mark(came, revision).await?;
        self.told_all().await?;
        Ok(revision.saturating_add(1))
    }

    /// Changes behind the list, up to `revision`.
    async fn take(&mut self, events: Vec<Event>, revision: i64) -> Result<(), Unwanted> {
        let came = std::time::Instant::now();
        // Within one batch too, what is new comes first.
        let mut gone = BTreeSet::new();
        for event in events {
            match event {
                Event::Put(entry) => {
                    let Some(name) = name_of(&entry.key) else {
                        continue;
                    };
                    gone.remove(&name);
                    self.look_at(name, &entry.value, entry.revision).await?;
                }
                Event::Delete { key } => gone.extend(name_of(&key)),
            }
        }
        self.forget(gone.into_iter().collect()).await?;
        self.mark(came, revision).await?;
        self.publish();
        Ok(())
    }

    async fn look_at(&mut self, name: String, value: &[u8], revision: i64) -> Result<(), Unwanted> {
        let digest: [u8; 32] = Sha256::digest(value).into();
        if let Some(held) = self.held.get_mut(&name).filter(|h| h.digest == digest) {
            held.status.revision = revision;
            return Ok(());
        }
        if self.held.len() >= limits::POLICIES_MAX && !self.held.contains_key(&name) {
            self.surplus.get_or_insert(name);
            return Ok(());
        }
        match str::from_utf8(value) {
            Ok(text) => self.accept(name, text, revision).await,
            Err(_) => {
                self.refuse(name, digest, revision, "not UTF-8 text".to_owned());
                Ok(())
            }
        }
    }

    /// Hands on a policy, or notes why not.
    async fn accept(&mut self, name: String, text: &str, revision: i64) -> Result<(), Unwanted> {
        let digest = Sha256::digest(text).into();
        let known = name.parse::<Name>().map_err(|error| error.to_string());
        // Only the way in which we write it: another spelling would be the same policy twice.
        let known = known.and_then(|known| match known.to_string() == name {
            true => Ok(known),
            false => Err(format!("write it under the key {}", known.key())),
        });
        let policy = match known.and_then(|known| documents::stored(&known, text)) {
            Ok(policy) => policy,
            Err(error) => {
                self.refuse(name, digest, revision, error);
                return Ok(());
            }
        };
        self.saved.keep(&copy(&name), text).await;
        tracing::info!(
            policy = name,
            revision,
            "policy of the cluster store applied"
        );
        let origin = Origin::Cluster(name.clone());
        let held = Held {
            digest,
            status: PolicyStatus {
                revision,
                in_force: true,
                error: None,
            },
        };
        self.held.insert(name, held);
        let policies = vec![policy];
        self.send(PolicyEvent::Set { origin, policies }).await
    }

    fn refuse(&mut self, name: String, digest: [u8; 32], revision: i64, error: String) {
        let known = self.held.get(&name);
        let in_force = known.is_some_and(|held| held.status.in_force);
        tracing::error!(
            policy = name,
            revision,
            kept = in_force,
            error,
            "policy of the cluster store refused"
        );
        let status = PolicyStatus {
            revision,
            in_force,
            error: Some(error),
        };
        let held = Held { digest, status };
        self.held.insert(name, held);
    }

    async fn forget(&mut self, gone: Vec<String>) -> Result<(), Unwanted> {
        if gone.is_empty() {
            return Ok(());
        }
        for name in gone {
            let held = self.held.remove(&name);
            if held.is_some_and(|held| held.status.in_force) {
                tracing::info!(policy = name, "policy of the cluster store removed");
                let origin = Origin::Cluster(name);
                self.send(PolicyEvent::Removed { origin }).await?;
            }
        }
        let kept: BTreeSet<OsString> = self
            .held
            .keys()
            .map(|name| copy(name).into_os_string())
            .collect();
        self.saved.retain(|name| kept.contains(name)).await;
        Ok(())
    }

    /// Everything up to `revision` was handed on.
    async fn mark(&mut self, came: std::time::Instant, revision: i64) -> Result<(), Unwanted> {
        self.read = revision;
        let applied = Some((self.applied.clone(), revision));
        let mark = self.delay.mark(Source::Cluster, came, applied);
        self.send(PolicyEvent::Mark(mark)).await
    }

    /// Whether the store's keys are those that were read.
    async fn agrees(&self, client: &Client) -> Result<bool, Error> {
        let mut list = client.list_keys_at(POLICIES_PREFIX, 0);
        let mut found = 0;
        let mut equal = true;
        while let Some(page) = list.page().await? {
            for entry in &page.entries {
                let held = name_of(&entry.key).and_then(|name| self.held.get(&name));
                // Those beyond the limit are not held.
                if let Some(held) = held {
                    equal &= held.status.revision == entry.revision;
                    found += 1;
                } else {
                    equal &= self.surplus.is_some();
                }
            }
        }
        Ok(equal && found == self.held.len())
    }

    async fn grant(&mut self, client: &Client) -> Result<(), Error> {
        self.lease = Some(client.lease_grant(limits::POLICY_STATUS_TTL).await?);
        self.tell(client).await
    }

    async fn renew(&mut self, client: &Client) -> Result<(), Error> {
        let alive = match self.lease {
            Some(lease) => client.lease_keep_alive(lease).await?,
            None => false,
        };
        if alive {
            return Ok(());
        }
        self.grant(client).await
    }

    /// Writes this node's status.
    async fn tell(&self, client: &Client) -> Result<(), Error> {
        let key = format!("{POLICY_STATUS_PREFIX}{}", self.node);
        let refused = self.held.iter();
        let refused = refused.filter(|(_, held)| held.status.error.is_some());
        let status = NodeStatus {
            revision: *self.applied.borrow(),
            refused: refused
                .map(|(name, _)| name.clone())
                .take(limits::POLICIES_REFUSED_TOLD_MAX)
                .collect(),
        };
        // Numbers and texts always have a JSON form.
        let value = serde_json::to_vec(&status).unwrap_or_default();
        let lease = self.lease.unwrap_or_default();
        let put = TxnOp::put(
            key.as_str(),
            value,
            Some(PutOptions::new().with_lease(lease)),
        );
        client.txn(&key, Txn::new().and_then([put])).await.map(drop)
    }

    fn lost(&mut self, error: &Error) {
        let text = chain(error);
        // Once per outage: the next attempt fails with other words.
        if self.error.is_none() {
            tracing::warn!(
                error = text,
                "The cluster store does not tell of its policies; those known stay in force"
            );
        }
        self.error = Some(text);
        self.publish();
    }

    fn publish(&self) {
        let surplus = self.surplus.as_ref().map(|name| {
            let max = limits::POLICIES_MAX;
            format!(
                "the cluster store holds more than {max} policies; {name} and others are left out"
            )
        });
        let status = Status {
            error: self.error.clone().or(surplus),
            read: self.read,
            applied: *self.applied.borrow(),
            policies: self
                .held
                .iter()
                .map(|(name, held)| (name.clone(), held.status.clone()))
                .collect(),
        };
        self.status.send_replace(Arc::new(status));
    }

    async fn send(&self, event: PolicyEvent) -> Result<(), Unwanted> {
        self.events.send(event).await.map_err(|_closed| Unwanted)
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

fn name_of(key: &[u8]) -> Option<String> {
    let name = key.strip_prefix(POLICIES_PREFIX.as_bytes())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// The file of a policy's last good version; a name may be longer than a file's may be.
fn copy(name: &str) -> PathBuf {
    let digest = Sha256::digest(name);
    let hex: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{hex}.yaml").into()
}

/// The error with its sources, on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
