//! One connection to one peer: opening it, and what runs on it side by side.
use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    ConfigFile, Layer, MemberEvent, Options, Relayed,
    machine::{Failure, Retry, Seen},
    shared::Shared,
};
use crate::{
    etcd::{self, Class, Client, Event},
    follower::{self, Follower, Progress, Sink},
    keyspace, limits,
    types::ClusterName,
};

/// What a session needs to know besides the peer's file.
pub(super) struct Context {
    pub(super) name: ClusterName,
    pub(super) options: Arc<Options>,
    pub(super) shared: Arc<Shared>,
    pub(super) sink: Sink<MemberEvent>,
}

/// Why a connection ended or did not come to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("reach the peer's etcd")]
    Etcd(#[from] etcd::Error),
    #[error("import the peer")]
    Follow(#[source] follower::Error),
    #[error("reach node {0}, which imports: it names no address; give it --advertise-address")]
    NoAddress(String),
    #[error("reach the cache of node {node}, which imports")]
    Cache {
        node: String,
        #[source]
        source: etcd::Error,
    },
    #[error("stay connected: no answer for {0} s")]
    Hang(u64),
}

impl Error {
    /// The failure as status and machine want it. `heard` if the server ever answered.
    pub(super) fn failure(&self, tls: bool, heard: bool) -> Failure {
        let error = match self {
            Self::Etcd(error) | Self::Cache { source: error, .. } => Some(error),
            Self::Follow(error) => error.etcd(),
            Self::NoAddress(_) | Self::Hang(_) => None,
        };
        let retry = match error {
            Some(error) if error.is_missing_file() => Retry::Files,
            Some(error) if error.class() == Class::Denied => Retry::Seldom,
            _ => Retry::Soon,
        };
        Failure {
            layer: match (self, error) {
                (Self::NoAddress(_), _) => Layer::File,
                (_, Some(error)) => layer(error, tls, heard),
                (_, None) => Layer::Heartbeat,
            },
            text: chain(self),
            retry,
        }
    }

    /// True if the mesh is gone, which happens at shutdown only.
    const fn is_closed(&self) -> bool {
        matches!(self, Self::Follow(follower::Error::Closed))
    }
}

/// The layer that an error belongs to.
fn layer(error: &etcd::Error, tls: bool, heard: bool) -> Layer {
    match error {
        etcd::Error::File { .. } | etcd::Error::NoEndpoint => Layer::File,
        error if error.is_missing_file() => Layer::File,
        etcd::Error::Resolve { .. } => Layer::Resolve,
        etcd::Error::Dial { .. } | etcd::Error::Http { tls: false, .. } => Layer::Tcp,
        etcd::Error::Tls { .. } | etcd::Error::Http { .. } => Layer::Tls,
        etcd::Error::Call { op, .. } if *op == etcd::LOG_IN => Layer::Authorization,
        error if error.class() == Class::Denied => Layer::Authorization,
        // In TLS 1.3 a server refuses a client's certificate after the handshake.
        etcd::Error::Call { .. } if tls && !heard => Layer::Tls,
        etcd::Error::Call { .. } if error.class() == Class::Transient => Layer::Tcp,
        _ => Layer::Heartbeat,
    }
}

/// An error and its sources as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// A connection whose heartbeat was listed.
pub(super) struct Opened {
    client: Client,
    /// From where a watch sees every later heartbeat.
    after: i64,
    /// It is the cache of another node, which has a word of its own to say.
    relayed: bool,
}

/// Dials one of the file's endpoints, or of those of the cache of the node `relay`, and reads the
/// heartbeat, which pins the etcd cluster.
pub(super) async fn open(
    context: Arc<Context>,
    file: Arc<ConfigFile>,
    endpoint: usize,
    relay: Option<String>,
) -> Result<Opened, Failure> {
    let Some(endpoint) = file.connect.endpoints.get(endpoint) else {
        let error = relay.map_or(Error::Etcd(etcd::Error::NoEndpoint), Error::NoAddress);
        return Err(error.failure(false, false));
    };
    let failed = |source| match relay.clone() {
        Some(node) => Error::Cache { node, source },
        None => Error::Etcd(source),
    };
    let tls = file.connect.uses_tls(endpoint);
    let dial = context.options.dial.connect(&context.name, &file, endpoint);
    let client = dial.await;
    let client = client.map_err(|error| failed(error).failure(tls, false))?;
    let after = establish(&context.name, client.clone()).await;
    let after = after.map_err(|error| failed(error).failure(tls, client.heard().any()))?;
    Ok(Opened {
        client,
        after,
        relayed: relay.is_some(),
    })
}

/// Returns from where to watch the heartbeat.
async fn establish(name: &ClusterName, client: Client) -> Result<i64, etcd::Error> {
    let mut list = client.list(keyspace::HEARTBEAT);
    let mut after = 0;
    while let Some(page) = list.page().await? {
        after = page.revision.saturating_add(1);
    }
    match client.version().await {
        Ok(version) => tracing::info!(
            clusterName = %name,
            version,
            "Successfully verified version of etcd endpoint"
        ),
        // The role of a peer may not ask in every etcd, and nothing depends on the answer.
        Err(error) if matches!(error.class(), Class::Denied | Class::Fatal) => {
            tracing::debug!(clusterName = %name, error = %error, "version of etcd not told");
        }
        Err(error) => return Err(error),
    }
    drop(list);
    Ok(after)
}

/// A connection in use.
pub(super) struct Link {
    client: Client,
    tls: bool,
    sender: Arc<watch::Sender<Seen>>,
    seen: watch::Receiver<Seen>,
    /// Heartbeat, cluster-config and probes; ends with what broke.
    work: BoxFuture<'static, Error>,
    follow: Option<BoxFuture<'static, Error>>,
}

impl Link {
    pub(super) fn new(context: Arc<Context>, file: &ConfigFile, opened: Opened) -> Self {
        let Opened {
            client,
            after,
            relayed,
        } = opened;
        let tls = file
            .connect
            .endpoints
            .iter()
            .any(|e| file.connect.uses_tls(e));
        let (sender, seen) = watch::channel(Seen::default());
        let sender = Arc::new(sender);
        let of_link = (after, relayed);
        let work = work(context, client.clone(), of_link, Arc::clone(&sender));
        let work = Box::pin(work);
        Self {
            client,
            tls,
            sender,
            seen,
            work,
            follow: None,
        }
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Follows what `follower` is aimed at, in place of what is followed now.
    pub(super) fn follow(&mut self, follower: Arc<Mutex<Follower>>, sink: Sink<MemberEvent>) {
        self.pause();
        let (client, sender) = (self.client.clone(), Arc::clone(&self.sender));
        self.follow = Some(Box::pin(async move {
            let mut follower = follower.lock().await;
            let progress = |progress| {
                sender.send_modify(|seen| match progress {
                    Progress::Canary(kind) => seen.open.push(kind),
                    Progress::Complete(kind) if seen.complete.contains(&kind) => {}
                    Progress::Complete(kind) => seen.complete.push(kind),
                });
            };
            let Err(error) = follower.follow(&client, &sink, progress).await;
            Error::Follow(error)
        }));
    }

    /// Follows nothing; the follower is free again.
    pub(super) fn pause(&mut self) {
        self.follow = None;
        self.sender.send_modify(|seen| {
            seen.open.clear();
            seen.complete.clear();
        });
    }

    /// What was seen, each time that it changed. Cancel safe.
    ///
    /// # Errors
    /// Why the connection ended; `None` if the mesh is gone.
    pub(super) async fn next(&mut self) -> Result<Seen, Option<Failure>> {
        let follow = async {
            match &mut self.follow {
                Some(follow) => follow.await,
                None => std::future::pending().await,
            }
        };
        let error = tokio::select! {
            biased;
            error = &mut self.work => error,
            error = follow => error,
            // The sender lives as long as this does.
            Ok(()) = self.seen.changed() => return Ok(self.seen.borrow_and_update().clone()),
        };
        let heard = self.client.heard().any();
        Err((!error.is_closed()).then(|| error.failure(self.tls, heard)))
    }
}

async fn work(
    context: Arc<Context>,
    client: Client,
    (after, relayed): (i64, bool),
    seen: Arc<watch::Sender<Seen>>,
) -> Error {
    let config = keyspace::cluster_config_key(&context.name);
    let configured = |value| seen.send_modify(|seen| seen.config = Some(value));
    let result: Result<Infallible, Error> = tokio::select! {
        biased;
        result = heartbeat(&client, after, &seen) => result,
        result = follow_key(&client, &config, configured) => result,
        result = relayed_state(&client, &context), if relayed => result,
        result = probe(&client, &context.options) => result,
    };
    let Err(error) = result;
    error
}

/// Notes each heartbeat. Its text is not looked at: only our own clock counts.
async fn heartbeat(
    client: &Client,
    mut from: i64,
    seen: &watch::Sender<Seen>,
) -> Result<Infallible, Error> {
    loop {
        let mut watch = client.watch(keyspace::HEARTBEAT, from).await?;
        let ended = loop {
            match watch.recv().await {
                Ok(Some(events)) => {
                    if events.iter().any(|event| matches!(event, Event::Put(_))) {
                        let now = Instant::now();
                        seen.send_modify(|seen| seen.beat = Some(now));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        from = match ended {
            Ok(()) => watch.next_revision(),
            // From now on is enough: missed beats are only beats.
            Err(error) if error.class() == Class::Relist => 0,
            Err(error) => return Err(error.into()),
        };
        sleep(limits::PEER_REWATCH).await;
    }
}

/// Notes what the importing node says of the peer.
async fn relayed_state(client: &Client, context: &Context) -> Result<Infallible, Error> {
    follow_key(client, &Relayed::key(&context.name), |value| {
        let told = value.as_deref().and_then(Relayed::decode);
        context.shared.relayed(&context.name, told);
    })
    .await
}

/// Tells the value of a key as it is now, and each change.
async fn follow_key(
    client: &Client,
    key: &str,
    tell: impl Fn(Option<Bytes>),
) -> Result<Infallible, Error> {
    loop {
        let (value, from) = client.get_from(key).await?;
        tell(value);
        let mut watch = client.watch_key(key, from).await?;
        let ended = loop {
            match watch.recv().await {
                Ok(Some(events)) => {
                    let newest = events
                        .into_iter()
                        .next_back()
                        .and_then(|event| match event {
                            Event::Put(entry) => Some(entry.value),
                            Event::Delete { .. } => None,
                        });
                    tell(newest);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match ended {
            Err(error) if error.class() != Class::Relist => return Err(error.into()),
            _ => sleep(limits::PEER_REWATCH).await,
        }
    }
}

/// Asks a silent server for a sign of life, and fails if none comes.
async fn probe(client: &Client, options: &Options) -> Result<Infallible, Error> {
    let (timing, heard) = (options.timing, client.heard());
    loop {
        sleep_until(heard.at() + timing.probe).await;
        let last = heard.at();
        if last + timing.probe > Instant::now() {
            continue;
        }
        match timeout_at(last + timing.hang, client.probe(keyspace::HEARTBEAT)).await {
            Ok(answer) => answer?,
            Err(_) if heard.at() > last => {}
            Err(_) => return Err(Error::Hang(timing.hang.as_secs())),
        }
    }
}

impl Context {
    /// Reads the CA and the certificate that the file names.
    pub(super) fn trust(&self, file: &ConfigFile) {
        if let Some(trust) = &self.options.trust {
            let cert = file.connect.tls.identity.as_ref().map(|(cert, _)| cert);
            let ca = file.ca_file();
            trust.follow_peer(&self.name, ca.map(|p| &**p), cert.map(|p| &**p));
        }
    }
}
