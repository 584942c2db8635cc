//! Builds everything from a `Config`, joins it, and runs it until told to stop.
//!
//! Order at start: addresses are bound first, so that a clash is a start-up error; then the
//! datapath takes over what the kernel holds; then the source fills the cluster store; only when
//! that is complete does the own cluster join the mesh, so that nothing known is swept early.
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    admin,
    config::Config,
    enforcer::{self, Change},
    journal::{self, Journal},
    lifecycle::{Readiness, Tasks, stop_on_signal},
    limits::{
        self, DELTA_QUEUE_MAX, ENDPOINT_EVENTS_MAX, LOCAL_EVENTS_MAX, POLICY_QUERIES_MAX,
        STORE_HISTORY_EVENTS_MAX,
    },
    mesh::{self, Mesh},
    peer, policy,
    publish::{self, Collector, ExportPolicy, ExportPolicyFile, Projection, Publisher, Views},
    serve,
    store::{self, Store},
    telemetry, tls,
};

use self::{datapath::Datapath, sources::SourceStatus};

mod cache;
mod counts;
mod datapath;
mod engine;
mod files;
mod importer;
pub(crate) mod members;
mod own;
mod policies;
mod reports;
mod sources;
mod territory;
#[cfg(feature = "testing")]
pub mod testing;
mod warm;

/// How long tasks may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be started, with its reason; or the first task that failed.
pub fn run(config: Config) -> anyhow::Result<()> {
    telemetry::init(config.log_format, config.debug).context("set up logging")?;
    files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(limits::TASKS_BETWEEN_SOCKETS)
        .build()
        .context("start the runtime")?;
    let tasks = Tasks::new();
    runtime.block_on(async {
        let started = start(&tasks, config).await;
        match started {
            Ok(()) => stop_on_signal(tasks.token())
                .await
                .context("listen for signals")?,
            Err(_) => tasks.shutdown(),
        }
        let finished = tasks.finish(STOP_DEADLINE).await;
        started?;
        finished.context("stop")
    })
}

/// Builds and spawns everything. The order is the module's promise.
async fn start(tasks: &Tasks, config: Config) -> anyhow::Result<()> {
    tracing::info!(
        clusterName = %config.cluster_name,
        clusterID = %config.cluster_id,
        nodeName = config.node_name,
        version = env!("CARGO_PKG_VERSION"),
        "Tombolo agent is starting"
    );
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("create --state-dir {}", config.state_dir.display()))?;
    let peers = &config.clustermesh_config;
    std::fs::create_dir_all(peers)
        .with_context(|| format!("create --clustermesh-config {}", peers.display()))?;
    let readiness = Readiness::new();
    let server_tls = load_tls(&config)
        .context("load the server's certificates; make them with `tombolo certs init`")?;
    let listener = bind(config.listen).await?;
    let local = bind_local(&config).await?;

    let (policy, policy_error) = export_policy(tasks, &config).context("start the export")?;
    let journal = engine::open(tasks, &config).await?;
    let health = journal.as_ref().map(Journal::health);
    let keyspaces = serve::Keyspaces {
        cluster: journal.map(Into::into),
        export: Views::new(&policy.borrow(), new_store),
        cache: new_store(),
    };
    let face = serve::Server::new(
        keyspaces.clone(),
        config.cluster_name.clone(),
        serve::Limits {
            request_bytes: config.max_request_bytes,
            txn_ops: config.max_txn_ops,
            ..serve::Limits::default()
        },
    );
    spawn_serve(tasks, listener, &server_tls, &face);
    if let Some(local) = local {
        let (face, cancel) = (face.clone(), tasks.token());
        tasks.spawn("serve-local", async move {
            Ok(face.run_local(local, cancel).await?)
        });
    }
    spawn_expiry(tasks, &keyspaces);

    let options = enforcer::Options {
        bpf_root: config.bpf_root.clone(),
        max_clusters: config.max_clusters,
        attach_mode: config.datapath.attach_mode,
        sizes: config.datapath.sizes,
        audit: config.datapath.audit,
        allow_localhost: config.datapath.allow_localhost,
    };
    let (kernel, handle) = tokio::task::spawn_blocking(move || enforcer::open(&options))
        .await
        .context("open the datapath")?
        .context("open the datapath")?;
    let cidrs = kernel.cidrs();
    let cancel = tasks.token();
    tasks.spawn("enforcer", async move { Ok(kernel.run(cancel).await?) });

    let deltas = mesh::Deltas::new(DELTA_QUEUE_MAX);
    let settings = mesh::Settings {
        cluster_name: config.cluster_name.clone(),
        cluster_id: config.cluster_id,
        max_clusters: config.max_clusters,
        node_name: config.node_name.clone(),
    };
    let mut mesh = Mesh::new(settings, keyspaces.cache.clone(), deltas.clone());
    let view = mesh.view();
    let territory = territory::Territory::new(&config.state_dir, config.cluster_id);
    territory.restore(&mut mesh).await;
    let (own, cancel) = (view.clone(), tasks.token());
    tasks.spawn("own-addresses", async move {
        territory.keep(own, cancel).await;
        Ok(())
    });
    let (join, joining) = members::channel();
    let cancel = tasks.token();
    tasks.spawn("mesh", async move {
        members::run(mesh, joining, cancel).await;
        Ok(())
    });

    let (endpoint_events, endpoint_receiver) = mpsc::channel(ENDPOINT_EVENTS_MAX);
    let (source_status, published) = spawn_source(
        tasks,
        &config,
        &keyspaces,
        policy,
        &readiness,
        &join,
        endpoint_events,
    )
    .await?;
    let embedded = keyspaces.cluster.as_ref();
    let store = engine::connector(&config.kvstore, embedded, tasks.token())?;
    let policy_store = policy::store::Policies::new(store.clone());
    let policies = policies::spawn(tasks, &config, &store);
    let (policy_status, policy_delay) = (policies.status, policies.delay);
    let (endpoints, endpoints_view) = watch::channel(Vec::new());
    let policy_engine = datapath::engine(&config, cidrs);
    let (queries, asked) = mpsc::channel(POLICY_QUERIES_MAX);
    let selectors = Arc::default();
    let events = reports::spawn(tasks, &handle, policy_engine.names());
    let datapath = Datapath {
        engine: policy_engine,
        deltas,
        view: view.clone(),
        endpoint_events: endpoint_receiver,
        policies: policies.events,
        policy_sources: policies.sources,
        queries: asked,
        selectors: Arc::clone(&selectors),
        changes: handle.changes.clone(),
        endpoints,
    };
    let (cancel, policies_read) = (tasks.token(), readiness.pending("policy"));
    tasks.spawn("datapath", datapath.run(policies_read, cancel));
    let (cancel, written) = (tasks.token(), readiness.pending("enforcer"));
    let (status, own) = (handle.status.clone(), config.cluster_id);
    tasks.spawn(
        "enforcer-ready",
        datapath::reconciled(status, own, written, cancel),
    );

    let candidate = importer::Candidate::new(&config, store, view.clone());
    let place = warm::Place {
        directory: config.state_dir.join("mesh"),
        own: config.cluster_name.clone(),
        max_clusters: config.max_clusters,
    };
    let warm = warm::Warm::new(place, view.clone(), keyspaces.cache.clone());
    let registry = spawn_peers(tasks, &config, &server_tls, warm, &join, candidate.route());
    let (reported, cache) = (registry.clone(), keyspaces.cache.clone());
    let (route, cancel) = (candidate.route(), tasks.token());
    tasks.spawn("cache-report", async move {
        cache::report(reported, cache, route, cancel).await;
        Ok(())
    });
    let cancel = tasks.token();
    tasks.spawn("importer", async move {
        candidate.run(cancel).await;
        Ok(())
    });
    let statuses = registry.clone();
    let cache_readiness = spawn_cache(tasks, &config, &keyspaces.cache, &registry);
    spawn_members_known(tasks, &config, registry, handle.changes.clone());

    let source = source_status.clone();
    let rejected_by_source = move || {
        source
            .as_ref()
            .map_or_else(Vec::new, |s| s.borrow().rejected.clone())
    };
    let state = admin::State {
        cluster_name: config.cluster_name.clone(),
        cluster_id: config.cluster_id,
        max_clusters: config.max_clusters,
        node_name: config.node_name.clone(),
        view,
        export: keyspaces.export.clone(),
        store: keyspaces.cluster.as_ref().map(|w| w.store().clone()),
        peers: Arc::new(move || statuses.statuses()),
        endpoints: endpoints_view,
        enforcer: Some(handle.clone()),
        events,
        readiness,
        cache_readiness,
        registry: telemetry::registry().context("register metrics")?,
        started: Instant::now(),
        errors: Arc::new({
            let (server_tls, published) = (server_tls.clone(), published.clone());
            let policy_errors = policy_status.clone();
            move || {
                let mut errors = standing_errors(&source_status, &health);
                errors.extend(policy_errors.errors());
                errors.extend(server_tls.refused());
                errors.extend(server_tls.trust().refusals());
                errors.extend(published.borrow().errors());
                errors.extend(
                    policy_error
                        .as_ref()
                        .and_then(|error| error.borrow().clone()),
                );
                errors
            }
        }),
        policies: policy_status.sources(policy_store, queries, selectors),
        datapath: handle.status.clone(),
    };
    admin::metrics::register_mesh(&state).context("register metrics")?;
    admin::metrics::register_source(&state.registry, rejected_by_source)
        .context("register metrics")?;
    admin::metrics::register_kvstore(&state.registry, move || {
        let status = published.borrow();
        (status.connected, status.unwritten + status.waiting)
    })
    .context("register metrics")?;
    policy_delay
        .register(&state.registry)
        .context("register metrics")?;
    let (tls, face) = (server_tls.metrics(), face.metrics());
    tls.register(&state.registry).context("register metrics")?;
    face.register(&state.registry).context("register metrics")?;
    admin::metrics::register_policies(&state).context("register metrics")?;
    counts::register(&state, handle).context("register metrics")?;
    let listen = admin::Listen {
        socket_path: config.socket_path.clone(),
        prometheus: config.prometheus_serve_addr,
        health: config.health_addr,
    };
    admin::start(tasks, &listen, state).context("serve status")?;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("bind --listen {address}"))
}

fn load_tls(config: &Config) -> Result<tls::ServerTls, tls::Error> {
    let paths = tls::Paths {
        cert: config.tls_cert_file.clone(),
        key: config.tls_key_file.clone(),
        ca: config.tls_ca_file.clone(),
    };
    let roles = tls::RolePaths {
        admin: config.tls_admin_ca_file.clone(),
        local: config.tls_local_ca_file.clone(),
        remote: config.tls_remote_ca_file.clone(),
    };
    tls::ServerTls::load_with_roles(paths, roles)
}

async fn bind_local(config: &Config) -> anyhow::Result<Option<serve::LocalListener>> {
    match &config.local_listen {
        Some(listen) => Ok(Some(serve::LocalListener::bind(listen).await?)),
        None => Ok(None),
    }
}

/// Revisions mean something only together with the store's id, so each start has a new one.
fn new_store() -> Store {
    let cluster_id = rand::random::<u64>() | 1;
    Store::new(store::Options {
        cluster_id,
        history_max: STORE_HISTORY_EVENTS_MAX,
    })
}

fn spawn_serve(
    tasks: &Tasks,
    listener: TcpListener,
    server_tls: &tls::ServerTls,
    face: &serve::Server,
) {
    let cancel = tasks.token();
    let watching = server_tls.clone();
    tasks.spawn("tls-reload", async move {
        watching.watch(cancel).await;
        Ok(())
    });
    let (cancel, acceptor) = (tasks.token(), server_tls.clone());
    let face = face.clone();
    tasks.spawn("serve", async move {
        let accept = move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                let (stream, name) = acceptor.accept(tcp).await?;
                Ok::<_, tls::Error>((stream, name.as_str().to_owned()))
            }
        };
        Ok(face.run(listener, accept, cancel).await?)
    });
}

/// Why the export policy's present version is not in force.
type ExportPolicyError = watch::Receiver<Option<String>>;

/// What the export shows, kept up with its file; without a file, everything.
fn export_policy(
    tasks: &Tasks,
    config: &Config,
) -> anyhow::Result<(watch::Receiver<ExportPolicy>, Option<ExportPolicyError>)> {
    let Some(path) = &config.export_policy else {
        return Ok((watch::channel(ExportPolicy::default()).1, None));
    };
    let file = ExportPolicyFile::open(path.clone())?;
    let (policy, error) = (file.policy(), file.error());
    let cancel = tasks.token();
    tasks.spawn("export-policy", async move {
        file.run(cancel).await;
        Ok(())
    });
    Ok((policy, Some(error)))
}

fn spawn_expiry(tasks: &Tasks, keyspaces: &serve::Keyspaces) {
    let cache = keyspaces.cache.clone().into();
    for writer in keyspaces.cluster.iter().cloned().chain([cache]) {
        let cancel = tasks.token();
        tasks.spawn("lease-expiry", async move {
            serve::store_expiry(writer, cancel).await;
            Ok(())
        });
    }
}

/// Source, publisher, export, and then the own cluster as a member of the mesh.
async fn spawn_source(
    tasks: &Tasks,
    config: &Config,
    keyspaces: &serve::Keyspaces,
    policy: watch::Receiver<ExportPolicy>,
    readiness: &Readiness,
    join: &members::Members,
    endpoint_events: mpsc::Sender<crate::types::EndpointEvent>,
) -> anyhow::Result<(SourceStatus, watch::Receiver<publish::Status>)> {
    let options = publish::Options {
        cluster: config.cluster_name.clone(),
        id: config.cluster_id,
        max: config.max_clusters,
        node_name: config.node_name.clone(),
        state_dir: config.state_dir.clone(),
    };
    let clock = telemetry::now_utc;
    let embedded = keyspaces.cluster.as_ref();
    let connector = engine::connector(&config.kvstore, embedded, tasks.token())?;
    let publisher = Publisher::open(options.clone(), connector.clone(), clock)
        .await
        .context("publish")?;
    let (synced, confirmed) = (publisher.synced(), publisher.confirmed());
    let published = publisher.status();
    // Identities that others give are theirs to take back.
    if config.kvstore_source.is_none() {
        let collector = Collector::new(&options, connector.clone());
        let cancel = tasks.token();
        tasks.spawn("identity-collector", async move {
            // On the heap: the future is large and lives long.
            Box::pin(collector.run(cancel)).await;
            Ok(())
        });
    }
    let (events, receiver) = mpsc::channel(LOCAL_EVENTS_MAX);
    let status = sources::spawn(tasks, config, &connector, events).await?;
    let cancel = tasks.token();
    tasks.spawn("publish", async move {
        Ok(publisher.run(receiver, endpoint_events, cancel).await?)
    });
    let views = keyspaces.export.clone();
    let projection = Projection::new(options, confirmed.clone(), views, policy, clock);
    let cancel = tasks.token();
    tasks.spawn("export", async move { Ok(projection.run(cancel).await?) });

    let token = readiness.pending("source");
    let (name, id) = (config.cluster_name.clone(), config.cluster_id);
    let (cancel, join, mut synced) = (tasks.token(), join.clone(), synced);
    tasks.spawn("own-cluster", async move {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            synced = synced.wait_for(|synced| *synced) => drop(synced?),
        }
        drop(token);
        let sender = join.join(name.clone());
        own::run(confirmed, name, id, sender, cancel).await
    });
    Ok((status, published))
}

fn spawn_peers(
    tasks: &Tasks,
    config: &Config,
    server_tls: &tls::ServerTls,
    warm: warm::Warm,
    join: &members::Members,
    route: watch::Receiver<peer::Route>,
) -> peer::Registry {
    let options = peer::Options {
        directory: config.clustermesh_config.clone(),
        cluster: config.cluster_name.clone(),
        id: config.cluster_id,
        max_clusters: config.max_clusters,
        cache_ttl: config.clustermesh_cache_ttl,
        trust: Some(server_tls.trust()),
        clock: telemetry::wall_clock,
        timing: peer::Timing::default(),
        dial: peer::Dial::default(),
        random: peer::Random::default(),
        route,
    };
    let (restored, channels) = (warm.restored(), join.clone());
    let registry = peer::Registry::new(options, move |name| {
        let restored = restored.take(name);
        restored.unwrap_or_else(|| channels.join(name.clone()))
    });
    let (running, join, cancel) = (registry.clone(), join.clone(), tasks.token());
    tasks.spawn("peers", async move {
        territory::known(warm.view(), &cancel).await;
        warm.run(&join, running, cancel).await;
        Ok(())
    });
    registry
}

/// What the cache's readers need besides the peers' entries.
fn spawn_cache(
    tasks: &Tasks,
    config: &Config,
    store: &Store,
    registry: &peer::Registry,
) -> Readiness {
    let (cancel, beating) = (tasks.token(), store.clone());
    tasks.spawn("cache-heartbeat", async move {
        cache::beat(beating, telemetry::now_utc, cancel).await;
        Ok(())
    });
    let readiness = Readiness::new();
    let (token, cancel) = (readiness.pending("peers"), tasks.token());
    let waiting = cache::Waiting::new(config, tokio::time::Instant::now());
    let (registry, store) = (registry.clone(), store.clone());
    tasks.spawn("cache-ready", async move {
        cache::ready(registry, store, waiting, token, cancel).await;
        Ok(())
    });
    readiness
}

/// Once the id of every configured peer is known, what the kernel still holds of any other cluster is
/// left over from a peer that was removed while no agent ran.
fn spawn_members_known(
    tasks: &Tasks,
    config: &Config,
    registry: peer::Registry,
    changes: mpsc::Sender<Change>,
) {
    let (own, cancel) = (config.cluster_id, tasks.token());
    tasks.spawn("members", async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            if let Some(mut ids) = registry.ids() {
                ids.push(own);
                changes.send(Change::Members(ids)).await?;
                return Ok(());
            }
        }
    });
}

fn standing_errors(
    source: &SourceStatus,
    store: &Option<watch::Receiver<Option<journal::Error>>>,
) -> Vec<String> {
    let mut errors = Vec::new();
    if let Some(store) = store {
        errors.extend(store.borrow().as_ref().map(ToString::to_string));
    }
    if let Some(source) = source {
        let status = source.borrow();
        errors.extend(
            status
                .errors
                .iter()
                .map(|e| format!("{}:{}: {}", e.file, e.line, e.message)),
        );
    }
    errors
}
