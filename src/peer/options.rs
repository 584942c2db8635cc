//! What the peers have in common, and what surrounds them.
use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::{ConfigFile, Route};
use crate::{
    etcd::{Client, Endpoint, Error},
    limits,
    tls::ClientTrust,
    types::{ClusterId, ClusterName, MaxClusters},
};

/// What the peers have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of peer files.
    pub directory: PathBuf,
    /// The own cluster, whose file is ignored.
    pub cluster: ClusterName,
    /// The own id, which no peer may have.
    pub id: ClusterId,
    /// The size of the mesh.
    pub max_clusters: MaxClusters,
    /// How long a peer's services outlive it while it is out of reach; `None` for ever.
    pub cache_ttl: Option<Duration>,
    /// Where peers' CAs go; `None` if nothing is served.
    pub trust: Option<ClientTrust>,
    /// The wall clock, for what status tells.
    pub clock: fn() -> SystemTime,
    /// How long everything takes.
    pub timing: Timing,
    /// How an endpoint is reached.
    pub dial: Dial,
    /// Chance, for backoff and the order of endpoints.
    pub random: Random,
    /// Which way leads to the peers.
    pub route: watch::Receiver<Route>,
}

/// Waits and bounds of a session; the defaults are those of `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// First and longest full delay between attempts.
    pub backoff: (Duration, Duration),
    /// Between looks for missing certificate files.
    pub files_wait: Duration,
    /// Longest attempt at one endpoint.
    pub attempt: Duration,
    /// Longest wait for an acceptable cluster-config on one connection.
    pub config_wait: Duration,
    /// Longest time between two heartbeats.
    pub heartbeat_stale: Duration,
    /// Silence after which a sign of life is asked for.
    pub probe: Duration,
    /// Silence after which the connection counts as hanging; longer than `probe`.
    pub hang: Duration,
    /// Between looks at a peer's CA and certificate files.
    pub trust_check: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff: limits::PEER_BACKOFF,
            files_wait: limits::PEER_FILES_WAIT,
            attempt: limits::PEER_ATTEMPT,
            config_wait: limits::CLUSTER_CONFIG_WAIT,
            heartbeat_stale: limits::HEARTBEAT_STALE,
            probe: limits::PEER_PROBE,
            hang: limits::PEER_HANG,
            trust_check: limits::PEER_TRUST_CHECK,
        }
    }
}

type DialFn = dyn Fn(&ClusterName, &ConfigFile, &Endpoint) -> BoxFuture<'static, Result<Client, Error>>
    + Send
    + Sync;

/// Makes a connection to one endpoint of a peer's file. The default dials what the file says.
#[derive(Clone)]
pub struct Dial(Arc<DialFn>);

impl Dial {
    /// Dials as `dial` does; what it returns must be a new connection each time.
    pub fn new(
        dial: impl Fn(&ClusterName, &ConfigFile, &Endpoint) -> BoxFuture<'static, Result<Client, Error>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(dial))
    }

    pub(super) fn connect(
        &self,
        name: &ClusterName,
        file: &ConfigFile,
        endpoint: &Endpoint,
    ) -> BoxFuture<'static, Result<Client, Error>> {
        (self.0)(name, file, endpoint)
    }
}

impl Default for Dial {
    fn default() -> Self {
        Self::new(|_, file, endpoint| {
            let (options, endpoint) = (file.connect.clone(), endpoint.clone());
            Box::pin(async move { Client::connect(&options, &endpoint).await })
        })
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dial").finish_non_exhaustive()
    }
}

/// Numbers in 0..1. The default ones cannot be foreseen.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> f64 + Send + Sync>);

impl Random {
    /// Numbers as `random` yields them.
    pub fn new(random: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(random))
    }

    pub(super) fn next(&self) -> f64 {
        (self.0)()
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new(rand::random::<f64>)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Random").finish_non_exhaustive()
    }
}
