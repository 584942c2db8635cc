//! One importer per cluster: the node that holds the lock in the cluster store dials the peers, the
//! others read its cache, as Cilium's agents read kvstoremesh's.
//!
//! The lock is a key on a short lease that its holder keeps alive; its value says where the holder's
//! cache is. When the key goes, each node that is left tries to be the next, with the entries that
//! it has. Two importers at once do no harm: each fills a cache of its own.
use std::convert::Infallible;

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::election::{Election, Holder, Importer};
use crate::{
    config::Config,
    etcd::{
        Client, Compare, CompareOp, ConnectOptions, Connector, Error, Event, PutOptions, Txn,
        TxnOp, TxnOpResponse,
    },
    keyspace::{HEARTBEAT, layout::IMPORTER_LOCK},
    limits, mesh,
    peer::Route,
    tls::ClientOptions,
    types::ClusterName,
};

mod election;

/// The lock as the store has it.
struct Lock {
    holder: Holder,
    lease: i64,
    /// Of its last change.
    revision: i64,
}

/// Stands for election, and says which way to take.
pub(super) struct Candidate {
    connector: Connector,
    tls: ClientOptions,
    node: String,
    endpoint: Box<dyn Fn() -> Option<String> + Send + Sync>,
    election: Election,
    route: watch::Sender<Route>,
    /// The lease under which this node holds the lock, as far as it knows.
    lease: Option<i64>,
}

impl Candidate {
    /// Over connections to the cluster store; nothing happens before [`Self::run`].
    pub(super) fn new(config: &Config, connector: Connector, view: mesh::View) -> Self {
        let node = config.node_name.clone();
        let patience = limits::IMPORTER_PATIENCE;
        Self {
            connector,
            tls: cache_tls(config),
            election: Election::new(node.clone(), Instant::now(), patience),
            endpoint: Box::new(endpoint(config, view)),
            node,
            route: watch::Sender::new(Route::Undecided),
            lease: None,
        }
    }

    /// Where its decisions are read.
    pub(super) fn route(&self) -> watch::Receiver<Route> {
        self.route.subscribe()
    }

    /// Runs until cancelled; then another node may import at once.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let deadline = self.election.deadline();
        let mut said = false;
        loop {
            let error = tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep_until(deadline), if *self.route.borrow() == Route::Undecided => {
                    tracing::warn!("The cluster store does not say which node imports; this one does");
                    self.say();
                    continue;
                }
                Err(error) = self.round() => error,
            };
            if !said {
                tracing::debug!(%error, "Who imports is asked again");
            }
            said = true;
            let wait = async {
                self.without_store().await;
                tokio::time::sleep(limits::IMPORTER_RETRY).await;
            };
            // On the heap: the future is large and lives long.
            Box::pin(cancel.run_until_cancelled(wait)).await;
        }
        if let Some(lease) = self.lease {
            let release = async { self.connector.connect().await?.lease_revoke(lease).await };
            let released = tokio::time::timeout(limits::COLLECTOR_STOP, release).await;
            if !matches!(released, Ok(Ok(()))) {
                tracing::debug!("The importer's lock ends by itself");
            }
        }
    }

    /// Looks whether the importer is still there when the store is not.
    async fn without_store(&mut self) {
        let route = self.route.borrow().clone();
        let Route::Via {
            cache: Some(cache), ..
        } = route
        else {
            return;
        };
        let Some(endpoint) = cache.endpoints.first() else {
            return;
        };
        let answers = async {
            let client = Client::connect(&cache, endpoint).await?;
            client.get(HEARTBEAT).await.map(drop)
        };
        let answer = tokio::time::timeout(limits::IMPORTER_RENEW, answers).await;
        let alive = matches!(answer, Ok(Ok(())));
        self.election.without_store(Instant::now(), alive);
        self.say();
    }

    /// Holds the lock, or follows who does, as long as the connection lives.
    async fn round(&mut self) -> Result<Infallible, Error> {
        let client = self.connector.connect().await?;
        loop {
            let (lock, revision) = look(&client).await?;
            match lock {
                // Without a lease nobody keeps it alive.
                Some(lock) if lock.lease != 0 && !self.election.is_this(&lock.holder) => {
                    self.held_by(lock.holder);
                    self.follow(&client, revision.saturating_add(1)).await?;
                }
                lock => {
                    if let Some(lease) = self.take(&client, lock).await? {
                        self.keep(&client, lease).await?;
                    }
                }
            }
        }
    }

    /// Takes a lock that is free or left from this node's last process; `None` if another was
    /// faster.
    async fn take(&mut self, client: &Client, lock: Option<Lock>) -> Result<Option<i64>, Error> {
        if let Some(lock) = &lock
            && self.lease == Some(lock.lease)
        {
            return Ok(self.lease);
        }
        let revision = lock.map_or(0, |lock| lock.revision);
        let lease = client.lease_grant(limits::IMPORTER_LEASE_TTL).await?;
        let same = Compare::mod_revision(IMPORTER_LOCK, CompareOp::Equal, revision);
        let put = self.put(lease);
        let taken = client.txn(IMPORTER_LOCK, Txn::new().when([same]).and_then([put]));
        if taken.await?.succeeded() {
            self.lease = Some(lease);
            return Ok(self.lease);
        }
        client.lease_revoke(lease).await?;
        Ok(None)
    }

    /// Keeps the lock until somebody else has it.
    async fn keep(&mut self, client: &Client, lease: i64) -> Result<(), Error> {
        self.held_by(self.own());
        let mut tick = tokio::time::interval(limits::IMPORTER_RENEW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let alive = client.lease_keep_alive(lease).await?;
            let lock = look(client).await?.0.filter(|lock| lock.lease == lease);
            let Some(lock) = lock.filter(|_| alive) else {
                self.lease = None;
                return Ok(());
            };
            if lock.holder != self.own() {
                let ours = Compare::lease(IMPORTER_LOCK, CompareOp::Equal, lease);
                let put = self.put(lease);
                let txn = Txn::new().when([ours]).and_then([put]);
                client.txn(IMPORTER_LOCK, txn).await?;
            }
        }
    }

    /// Reads who holds the lock until nobody does.
    async fn follow(&mut self, client: &Client, from: i64) -> Result<(), Error> {
        let mut watch = client.watch(IMPORTER_LOCK, from).await?;
        while let Some(events) = watch.recv().await? {
            for event in events {
                match event {
                    Event::Put(entry) if entry.key == IMPORTER_LOCK => {
                        self.held_by(Holder::decode(&entry.value));
                    }
                    Event::Delete { key } if key == IMPORTER_LOCK => return Ok(()),
                    Event::Put(_) | Event::Delete { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn own(&self) -> Holder {
        Holder {
            node: self.node.clone(),
            endpoint: (self.endpoint)(),
        }
    }

    fn put(&self, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease);
        TxnOp::put(IMPORTER_LOCK, self.own().encode(), Some(options))
    }

    fn held_by(&mut self, holder: Holder) {
        self.election.held_by(holder);
        self.say();
    }

    fn say(&self) {
        let route = match self.election.importer(Instant::now()) {
            Importer::Unknown => Route::Undecided,
            Importer::This => Route::Direct,
            Importer::Other(holder) => self.via(holder),
        };
        let changed = self.route.send_if_modified(|old| {
            let changed = *old != route;
            if changed {
                old.clone_from(&route);
            }
            changed
        });
        match route {
            Route::Direct if changed => tracing::info!("This node imports for its cluster"),
            Route::Via { node, cache } if changed => {
                let endpoint =
                    cache.and_then(|cache| cache.endpoints.first().map(ToString::to_string));
                tracing::info!(
                    importer = node,
                    endpoint,
                    "Another node imports; its cache is read"
                );
            }
            _ => {}
        }
    }

    fn via(&self, holder: &Holder) -> Route {
        let endpoint = holder.endpoint.as_ref().and_then(|text| text.parse().ok());
        Route::Via {
            node: holder.node.clone(),
            cache: endpoint.map(|endpoint| {
                Box::new(ConnectOptions {
                    endpoints: vec![endpoint],
                    tls: self.tls.clone(),
                    ..ConnectOptions::default()
                })
            }),
        }
    }
}

/// The lock, and the revision at which it was so.
async fn look(client: &Client) -> Result<(Option<Lock>, i64), Error> {
    let get = TxnOp::get(IMPORTER_LOCK, None);
    let response = client
        .txn(IMPORTER_LOCK, Txn::new().and_then([get]))
        .await?;
    let revision = response.header().map_or(0, |header| header.revision());
    let lock = response.op_responses().into_iter().find_map(|op| match op {
        TxnOpResponse::Get(found) => found.kvs().first().map(|kv| Lock {
            holder: Holder::decode(kv.value()),
            lease: kv.lease(),
            revision: kv.mod_revision(),
        }),
        _ => None,
    });
    Ok((lock, revision))
}

/// As whom this node reads another one's cache. All nodes of a cluster carry the cluster's name in
/// their certificates, whatever their addresses.
fn cache_tls(config: &Config) -> ClientOptions {
    let identity = (
        config.tls_local_cert_file.clone(),
        config.tls_local_key_file.clone(),
    );
    ClientOptions {
        ca: Some(config.tls_ca_file.clone()),
        identity: Some(identity),
        server_name: Some(server_name(&config.cluster_name)),
        insecure_skip_verify: false,
    }
}

fn server_name(cluster: &ClusterName) -> String {
    format!("{cluster}.mesh.cilium.io")
}

/// Where other nodes reach this one's cache: as configured, else the address that is listened on,
/// else the one that the node's own record names.
fn endpoint(config: &Config, view: mesh::View) -> impl Fn() -> Option<String> + use<> {
    let listen = config.listen;
    let specific = (!listen.ip().is_unspecified()).then(|| listen.to_string());
    let given = config.advertise_address.as_ref().map(ToString::to_string);
    let fixed = given.or(specific);
    let key = (config.cluster_name.clone(), config.node_name.clone());
    move || {
        let from_record = || {
            let node = view.nodes.get(&key)?;
            let (v4, v6) = (node.ipv4.map(Into::into), node.ipv6.map(Into::into));
            let address = std::net::SocketAddr::new(v4.or(v6)?, listen.port());
            Some(address.to_string())
        };
        let address = fixed.clone().or_else(from_record)?;
        Some(format!("https://{address}"))
    }
}

#[cfg(test)]
mod tests;
