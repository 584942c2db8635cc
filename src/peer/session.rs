//! One connection to one peer, from dialling to its end.
use std::{convert::Infallible, path::Path, sync::Arc};

use tokio::time::{Instant, sleep};

use super::{
    MemberEvent, Options, RemoteConfig, SyncedKinds, config_file::ConfigFile, shared::Shared,
};
use crate::{
    etcd::{self, Class, Client, Event},
    follower::{self, Follower, Sink, Subject},
    keyspace::{self, ClusterConfig, Kind, Layout, Rejection},
    limits,
    types::{ClusterId, ClusterName},
};

/// What a session needs to know besides the peer's file.
pub(super) struct Context {
    pub(super) name: ClusterName,
    pub(super) options: Arc<Options>,
    pub(super) shared: Arc<Shared>,
    pub(super) sink: Sink<MemberEvent>,
}

/// What the mesh was told of the peer. It outlives sessions; `Removed` ends it.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The id that the mesh knows the peer by.
    announced: Option<ClusterId>,
    /// How far the peer's keyspace was handed on.
    follower: Option<Follower>,
}

impl Told {
    /// The one that goes on with `subject`, or a new one if none followed that.
    fn follower(&mut self, subject: Subject) -> &mut Follower {
        self.follower = self.follower.take().filter(|f| *f.subject() == subject);
        self.follower.get_or_insert_with(|| Follower::new(subject))
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("reach the peer's etcd")]
    Etcd(#[source] etcd::Error),
    #[error("import the peer")]
    Follow(#[source] follower::Error),
    #[error("find the peer's cluster-config: it is not there; does the peer have this name?")]
    NoConfig,
    #[error("accept the peer's cluster-config")]
    Config(#[source] Rejection),
    #[error("accept the peer's cluster-config: id {0} is our own")]
    OwnId(ClusterId),
    #[error("accept the peer's cluster-config: id {id} is held by peer {holder}")]
    IdTaken { id: ClusterId, holder: ClusterName },
    #[error("stay connected: the peer's cluster-config changed")]
    ConfigChanged,
    #[error("stay connected: no heartbeat for {} s", limits::HEARTBEAT_STALE.as_secs())]
    Stale,
}

impl Error {
    /// True if a certificate file does not exist (yet).
    pub(super) const fn is_missing_file(&self) -> bool {
        matches!(self, Self::Etcd(error) if error.is_missing_file())
    }

    /// True if trying again soon is useless.
    pub(super) fn is_denied(&self) -> bool {
        match self {
            Self::Etcd(error) => error.class() == Class::Denied,
            Self::Follow(error) => error.class() == Class::Denied,
            Self::NoConfig
            | Self::Config(_)
            | Self::OwnId(_)
            | Self::IdTaken { .. }
            | Self::ConfigChanged
            | Self::Stale => false,
        }
    }

    /// True if the mesh is gone, which happens at shutdown only.
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self, Self::Follow(follower::Error::Closed))
    }
}

impl Context {
    /// Runs until the connection fails. Calls `accepted` once the peer's configuration is accepted.
    pub(super) async fn session(
        &self,
        told: &mut Told,
        path: &Path,
        file: &ConfigFile,
        accepted: impl FnOnce(),
    ) -> Result<Infallible, Error> {
        tracing::debug!(clusterName = %self.name, config = %path.display(), "Connecting to remote cluster");
        self.trust(file);
        let client = Client::connect(&file.connect).await.map_err(Error::Etcd)?;
        let after_beat = self.establish(&client, path).await?;
        let config = self.cluster_config(&client).await?;
        self.accept(told, &config).await?;
        accepted();
        let follower = told.follower(self.subject(&config));
        tokio::select! {
            result = self.liveness(&client, file, after_beat) => result,
            result = self.unchanged(&client, &config) => result,
            result = self.import(&client, follower) => result,
        }
    }

    /// Lets the peer's CA vouch for the peer as our client.
    fn trust(&self, file: &ConfigFile) {
        if let Some(trust) = &self.options.trust {
            let cert = file.connect.tls.identity.as_ref().map(|(cert, _)| cert);
            let ca = file.ca_file();
            trust.follow_peer(&self.name, ca.map(|p| &**p), cert.map(|p| &**p));
        }
    }

    /// Reads the heartbeat, which pins the etcd cluster; returns the revision behind it.
    async fn establish(&self, client: &Client, path: &Path) -> Result<i64, Error> {
        let mut list = client.list(keyspace::HEARTBEAT);
        let mut after = 0;
        while let Some(page) = list.page().await.map_err(Error::Etcd)? {
            after = page.revision.saturating_add(1);
        }
        match client.version().await {
            Ok(version) => tracing::info!(
                clusterName = %self.name,
                version,
                "Successfully verified version of etcd endpoint"
            ),
            // The role of a peer may not ask in every etcd, and nothing depends on the answer.
            Err(error) if matches!(error.class(), Class::Denied | Class::Fatal) => {
                tracing::debug!(clusterName = %self.name, error = %error, "version of etcd not told");
            }
            Err(error) => return Err(Error::Etcd(error)),
        }
        let id = client.cluster_id();
        let hex = format!("{:x}", id.unwrap_or_default());
        tracing::info!(
            clusterName = %self.name,
            config = %path.display(),
            etcdClusterID = hex,
            "Connection to remote cluster established"
        );
        self.shared.update(&self.name, |status| {
            status.connected = true;
            status.etcd_cluster_id = id;
            status.status = format!("etcd: 1/1 connected, ID: {hex}");
        });
        Ok(after)
    }

    /// Waits for the peer's configuration.
    async fn cluster_config(&self, client: &Client) -> Result<ClusterConfig, Error> {
        let key = keyspace::cluster_config_key(&self.name);
        let since = Instant::now();
        let mut warned = false;
        let config = loop {
            if let Some(value) = client.get(&key).await.map_err(Error::Etcd)? {
                break ClusterConfig::decode(&value).map_err(Error::Config)?;
            }
            if since.elapsed() > limits::CLUSTER_CONFIG_WAIT {
                return Err(Error::NoConfig);
            }
            if !warned {
                warned = true;
                tracing::warn!(
                    clusterName = %self.name,
                    hint = "the remote cluster has another name, or does not publish yet",
                    "Unable to get remote cluster configuration"
                );
            }
            sleep(limits::PEER_FILES_WAIT).await;
        };
        tracing::info!(clusterName = %self.name, clusterID = config.id, "Found remote cluster configuration");
        Ok(config)
    }

    /// Checks and reserves the peer's id and tells the mesh.
    async fn accept(&self, told: &mut Told, config: &ClusterConfig) -> Result<(), Error> {
        let id = config
            .accept(self.options.max_clusters)
            .map_err(Error::Config)?;
        // Entries of the old id go first, also if the new one is refused.
        if told.announced.is_some_and(|old| old != id) {
            *told = Told::default();
            let name = self.name.clone();
            self.sink
                .send(MemberEvent::Removed { name })
                .await
                .map_err(Error::Follow)?;
        }
        if id == self.options.id {
            return Err(Error::OwnId(id));
        }
        self.shared
            .reserve(&self.name, id)
            .map_err(|holder| Error::IdTaken { id, holder })?;
        self.shared.update(&self.name, |status| {
            status.config = Some(RemoteConfig {
                cluster_id: id,
                kvstoremesh: config.capabilities.cached,
                sync_canaries: config.capabilities.synced_canaries,
            });
        });
        told.announced = Some(id);
        let name = self.name.clone();
        self.sink
            .send(MemberEvent::Connected {
                name,
                id,
                config: config.clone(),
                allowed_cidrs: Arc::default(),
            })
            .await
            .map_err(Error::Follow)
    }

    fn subject(&self, config: &ClusterConfig) -> Subject {
        let cached = config.capabilities.cached;
        Subject {
            cluster: self.name.clone(),
            layout: if cached { Layout::Cache } else { Layout::State },
            kinds: Kind::BASIC.to_vec(),
            canaries: config.capabilities.synced_canaries,
        }
    }

    async fn import(&self, client: &Client, follower: &mut Follower) -> Result<Infallible, Error> {
        let complete = |kind| {
            self.shared.update(&self.name, |status| {
                status.synced.set(kind);
                status.ready = status.synced.all();
            });
        };
        follower
            .follow(client, &self.sink, complete)
            .await
            .map_err(Error::Follow)
    }

    /// Fails if the heartbeat stops. Its text is not looked at: only our own clock counts.
    async fn liveness(
        &self,
        client: &Client,
        file: &ConfigFile,
        from: i64,
    ) -> Result<Infallible, Error> {
        let mut last = Instant::now();
        let mut tick = tokio::time::interval(limits::LIVENESS_INTERVAL);
        let mut watch = client
            .watch(keyspace::HEARTBEAT, from)
            .await
            .map_err(Error::Etcd)?;
        loop {
            tokio::select! {
                events = watch.recv() => match events {
                    Ok(Some(events)) => {
                        if events.iter().any(|event| matches!(event, Event::Put(_))) {
                            last = Instant::now();
                        }
                    }
                    Ok(None) => {
                        sleep(limits::PEER_BACKOFF.0).await;
                        let next = watch.next_revision();
                        watch = client.watch(keyspace::HEARTBEAT, next).await.map_err(Error::Etcd)?;
                    }
                    // From now on is enough: missed beats are only beats.
                    Err(error) if error.class() == Class::Relist => {
                        sleep(limits::PEER_BACKOFF.0).await;
                        watch = client.watch(keyspace::HEARTBEAT, 0).await.map_err(Error::Etcd)?;
                    }
                    Err(error) => return Err(Error::Etcd(error)),
                },
                _ = tick.tick() => {
                    if last.elapsed() > limits::HEARTBEAT_STALE {
                        return Err(Error::Stale);
                    }
                    self.trust(file);
                }
            }
        }
    }

    /// Fails if the peer's configuration becomes another one: id and tree are decided by it.
    async fn unchanged(&self, client: &Client, old: &ClusterConfig) -> Result<Infallible, Error> {
        let key = keyspace::cluster_config_key(&self.name);
        loop {
            sleep(limits::CLUSTER_CONFIG_CHECK).await;
            // A key that is gone or undecodable says nothing new; what runs goes on.
            let value = client.get(&key).await.map_err(Error::Etcd)?;
            if value
                .and_then(|value| ClusterConfig::decode(&value).ok())
                .is_some_and(|new| new != *old)
            {
                return Err(Error::ConfigChanged);
            }
        }
    }
}

impl SyncedKinds {
    const fn set(&mut self, kind: Kind) {
        match kind {
            Kind::Nodes => self.nodes = true,
            Kind::Identities => self.identities = true,
            Kind::Ips => self.endpoints = true,
            Kind::Services => self.services = true,
            Kind::ServiceExports | Kind::EndpointSlices => {}
        }
    }

    const fn all(self) -> bool {
        self.nodes && self.identities && self.endpoints && self.services
    }
}
