//! The importing half of an agent, for tests: peers, the members' loop, the own cluster as a member,
//! mesh, cache and admin socket are the shipped ones; the deltas are the caller's, not the kernel's.
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::{broadcast, mpsc, watch};

use super::{members, new_store, own};
use crate::{
    admin, enforcer,
    etcd::Connector,
    lifecycle::{Readiness, Tasks},
    limits::{DELTA_QUEUE_MAX, DROP_EVENTS_MAX},
    mesh::{self, Deltas, Mesh},
    peer,
    policy::{RuleNames, store::Policies},
    publish::{ExportPolicy, Views},
    store::Store,
    telemetry,
};

/// What the half is made of.
pub struct Parts {
    /// Who it is.
    pub settings: mesh::Settings,
    /// Its peers.
    pub peers: peer::Options,
    /// Where the own cluster's records are.
    pub own: Connector,
    /// Where peers' entries are copied to.
    pub cache: Store,
    /// How long the entries of a removed peer stay there.
    pub cache_grace: Duration,
    /// Where the admin routes are served.
    pub socket_path: PathBuf,
    /// Standing errors for the status.
    pub errors: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Starts it as tasks of `tasks`; what the mesh says comes out of the queue.
///
/// # Errors
/// If the admin socket can't be served.
pub fn import(tasks: &Tasks, parts: Parts) -> anyhow::Result<Deltas> {
    let Parts {
        settings,
        peers,
        own,
        cache,
        cache_grace,
        socket_path,
        errors,
    } = parts;
    let deltas = Deltas::new(DELTA_QUEUE_MAX);
    let mesh = Mesh::new(settings.clone(), cache, deltas.clone()).with_cache_grace(cache_grace);
    let view = mesh.view();
    let (join, joining) = members::channel();
    let cancel = tasks.token();
    tasks.spawn("mesh", async move {
        members::run(mesh, joining, cancel).await;
        Ok(())
    });
    let (name, id) = (settings.cluster_name.clone(), settings.cluster_id);
    let (sender, cancel) = (join.join(name.clone()), tasks.token());
    let policies = admin::policy::Sources {
        store: Policies::new(own.clone()),
        cluster: watch::channel(Arc::default()).1,
        files: None,
        queries: mpsc::channel(1).0,
        selectors: Arc::default(),
    };
    tasks.spawn("own-cluster", async move {
        own::run(own, name, id, sender, cancel).await
    });
    let registry = peer::Registry::new(peers, move |name| join.join(name.clone()));
    let (running, cancel) = (registry.clone(), tasks.token());
    tasks.spawn("peers", async move {
        running.run(cancel).await;
        Ok(())
    });
    let state = admin::State {
        cluster_name: settings.cluster_name,
        cluster_id: settings.cluster_id,
        max_clusters: settings.max_clusters,
        node_name: settings.node_name,
        view,
        export: Views::new(&ExportPolicy::default(), new_store),
        store: None,
        peers: Arc::new(move || registry.statuses()),
        endpoints: watch::channel(Vec::new()).1,
        enforcer: None,
        events: admin::monitor::Events {
            source: broadcast::channel(DROP_EVENTS_MAX).0,
            listeners: admin::monitor::Listeners::default(),
            rules: RuleNames::default(),
        },
        readiness: Readiness::new(),
        cache_readiness: Readiness::new(),
        registry: telemetry::registry().context("register metrics")?,
        started: Instant::now(),
        errors,
        policies,
        datapath: watch::channel(enforcer::Status::default()).1,
    };
    admin::metrics::register_mesh(&state).context("register metrics")?;
    let listen = admin::Listen {
        socket_path,
        prometheus: None,
        health: None,
    };
    admin::start(tasks, &listen, state).context("serve status")?;
    Ok(deltas)
}

/// Ends the tasks, and reports the first that failed or panicked.
///
/// # Errors
/// That failure, or that some did not end in time.
pub async fn finish(tasks: &Tasks) -> anyhow::Result<()> {
    tasks.shutdown();
    Ok(tasks.finish(Duration::from_secs(10)).await?)
}
