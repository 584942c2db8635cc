//! One peer's life: asks the state machine what to do, and does it.
use std::{collections::VecDeque, convert::Infallible, path::PathBuf, sync::Arc, time::UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Route,
    config_file::ConfigFile,
    link::{self, Context, Link, Opened},
    machine::{Effect, Failure, File, Input, Log, Machine, Rules},
};
use crate::{
    follower::{Error, Follower, Subject},
    tls::ClientTls,
};

/// What the registry wants; the last word counts.
#[derive(Debug, Clone)]
pub(super) enum Desired {
    /// Be connected as this file says.
    Running(Arc<(PathBuf, ConfigFile)>),
    /// Be withdrawn.
    Removed,
}

/// Runs until the registry drops its end or the mesh is gone.
pub(super) async fn run(context: Context, desired: watch::Receiver<Desired>) {
    let context = Arc::new(context);
    tokio::select! {
        () = session(Arc::clone(&context), desired.clone()) => {}
        never = keep_trust(&context, &desired) => match never {},
    }
}

/// Lets the CA in the peer's file vouch for the peer as our client, also after its files changed, and
/// whether or not the peer is in reach: it may need that to reach us, before it lets us reach it.
async fn keep_trust(context: &Context, desired: &watch::Receiver<Desired>) -> Infallible {
    loop {
        if let Desired::Running(file) = &*desired.borrow() {
            context.trust(&file.1);
        }
        sleep(context.options.timing.trust_check).await;
    }
}

async fn session(context: Arc<Context>, mut desired: watch::Receiver<Desired>) {
    let mut actor = Actor::new(context);
    // At the end of the process nobody decides any more, and nobody dials.
    if actor
        .route
        .wait_for(|r| *r != Route::Undecided)
        .await
        .is_err()
    {
        return;
    }
    let wanted = desired.borrow_and_update().clone();
    let mut next = Some(actor.desired(&wanted));
    let mut freed = actor.context.shared.freed();
    while let Some(input) = next {
        if actor.handle(input).await.is_err() {
            return;
        }
        next = actor.wait(&mut desired, &mut freed).await;
    }
}

enum Connection {
    None,
    Dialling(BoxFuture<'static, Result<Opened, Failure>>),
    Linked(Box<Link>),
}

struct Actor {
    context: Arc<Context>,
    machine: Machine,
    file: Option<Arc<(PathBuf, ConfigFile)>>,
    connection: Connection,
    /// Which way leads to the peer.
    route: watch::Receiver<Route>,
    /// How far the peer's keyspace was handed on; outlives connections.
    follower: Option<Arc<Mutex<Follower>>>,
}

impl Actor {
    fn new(context: Arc<Context>) -> Self {
        let options = &context.options;
        let rules = Rules {
            name: context.name.clone(),
            own_id: options.id,
            max: options.max_clusters,
            cache_ttl: options.cache_ttl,
            timing: options.timing,
        };
        Self {
            machine: Machine::new(rules, Instant::now()),
            file: None,
            connection: Connection::None,
            route: options.route.clone(),
            follower: None,
            context,
        }
    }

    fn desired(&mut self, desired: &Desired) -> Input {
        let Desired::Running(file) = desired else {
            self.file = None;
            return Input::Removed;
        };
        self.file = Some(Arc::clone(file));
        let (endpoints, relay) = match &*self.route.borrow_and_update() {
            // One that is not known is still one to fail at.
            Route::Via { node, .. } => (1, Some(node.clone())),
            Route::Direct | Route::Undecided => (file.1.connect.endpoints.len(), None),
        };
        let parsed = &file.1;
        // It may be new, or have been removed a moment ago.
        self.context.trust(parsed);
        let mut warnings = Vec::new();
        if !parsed.unknown.is_empty() {
            warnings.push(format!(
                "unknown keys ignored: {}",
                parsed.unknown.join(", ")
            ));
        }
        if parsed.connect.tls.insecure_skip_verify {
            warnings.push("the server is not verified: insecure-skip-tls-verify is set".to_owned());
        }
        Input::File(File {
            endpoints,
            relay,
            cluster_id: parsed.cluster_id,
            allowed_cidrs: Arc::clone(&parsed.allowed_cidrs),
            warnings,
        })
    }

    /// Waits for what happens next; `None` at the end. Cancel safe.
    async fn wait(
        &mut self,
        desired: &mut watch::Receiver<Desired>,
        freed: &mut watch::Receiver<()>,
    ) -> Option<Input> {
        let deadline = self.machine.deadline();
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = desired.changed() => {
                changed.ok()?;
                let wanted = desired.borrow_and_update().clone();
                Some(self.desired(&wanted))
            }
            Ok(()) = self.route.changed() => {
                let wanted = desired.borrow().clone();
                Some(self.desired(&wanted))
            }
            () = timer => Some(Input::Timer),
            // The sender lives as long as the context.
            Ok(()) = freed.changed() => Some(Input::IdFreed),
            input = Self::connection(&mut self.connection) => match input {
                Progress::Opened(opened) => Some(self.opened(*opened)),
                Progress::Input(input) => Some(input),
                Progress::Closed => None,
            },
        }
    }

    async fn connection(connection: &mut Connection) -> Progress {
        match connection {
            Connection::None => std::future::pending().await,
            Connection::Dialling(dial) => match dial.await {
                Ok(opened) => Progress::Opened(Box::new(opened)),
                Err(failure) => Progress::Input(Input::Failed(failure)),
            },
            Connection::Linked(link) => match link.next().await {
                Ok(seen) => Progress::Input(Input::Seen(seen)),
                Err(Some(failure)) => Progress::Input(Input::Failed(failure)),
                Err(None) => Progress::Closed,
            },
        }
    }

    fn opened(&mut self, opened: Opened) -> Input {
        let Some(file) = &self.file else {
            return Input::Removed;
        };
        let link = Link::new(Arc::clone(&self.context), &file.1, opened);
        let id = link.client().cluster_id();
        tracing::info!(
            clusterName = %self.context.name,
            config = %file.0.display(),
            etcdClusterID = format!("{:x}", id.unwrap_or_default()),
            "Connection to remote cluster established"
        );
        let (shared, name) = (&self.context.shared, &self.context.name);
        shared.update(name, |status| status.etcd_cluster_id = id);
        shared.heard(name, link.client().heard());
        shared.relayed(name, None);
        self.connection = Connection::Linked(Box::new(link));
        Input::Opened
    }

    /// Does what follows from `input`.
    ///
    /// # Errors
    /// [`Error::Closed`] if the mesh is gone.
    async fn handle(&mut self, input: Input) -> Result<(), Error> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let random = || self.context.options.random.next();
            let effects = self.machine.handle(Instant::now(), random, input);
            for effect in effects {
                inputs.extend(self.apply(effect).await?);
            }
        }
        if !self.machine.is_removed() {
            let file = self.file.as_ref();
            self.context.shared.update(&self.context.name, |status| {
                if let Some(file) = file {
                    file.0.clone_into(&mut status.config_path);
                }
                self.machine.describe(status);
            });
        }
        Ok(())
    }

    async fn apply(&mut self, effect: Effect) -> Result<Option<Input>, Error> {
        let context = Arc::clone(&self.context);
        match effect {
            Effect::HangUp => self.connection = Connection::None,
            Effect::Dial(endpoint) => self.dial(endpoint),
            Effect::Reserve(id) => {
                let answer = context.shared.reserve(&context.name, id);
                return Ok(Some(Input::Reserved(answer)));
            }
            Effect::Tell(event) => context.sink.send(event).await?,
            Effect::Follow(subject) => self.follow(subject).await,
            Effect::Pause => self.pause(),
            Effect::Forget(kinds) => {
                self.pause();
                if let Some(follower) = &self.follower {
                    follower.lock().await.forget(kinds);
                }
            }
            Effect::Release => {
                if let Some(trust) = &context.options.trust {
                    trust.remove_peer(&context.name);
                }
                // Only now may another peer take the id.
                context.shared.remove(&context.name);
                tracing::info!(clusterName = %context.name, "Remote cluster disconnected");
            }
            Effect::Log(log) => self.log(&log),
        }
        Ok(None)
    }

    fn dial(&mut self, endpoint: usize) {
        let Some(file) = &self.file else { return };
        let mut parsed = file.1.clone();
        let mut relay = None;
        if let Route::Via { node, cache } = &*self.route.borrow() {
            parsed.connect = cache.as_deref().cloned().unwrap_or_default();
            relay = Some(node.clone());
        }
        let parsed = Arc::new(parsed);
        let context = &self.context;
        let address = parsed.connect.endpoints.get(endpoint);
        let address = address.map(ToString::to_string);
        // What is wrong with the file, the attempt will say.
        let tls = ClientTls::new(parsed.connect.tls.clone());
        let expiry = tls.expiry().unwrap_or_default();
        context.shared.update(&context.name, |status| {
            status.endpoint = address;
            status.certificate_expiry = expiry;
        });
        let open = link::open(Arc::clone(context), parsed, endpoint, relay);
        self.connection = Connection::Dialling(Box::pin(open));
    }

    async fn follow(&mut self, subject: Subject) {
        self.pause();
        let follower = match &self.follower {
            Some(follower) => {
                follower.lock().await.retarget(subject);
                Arc::clone(follower)
            }
            None => Arc::new(Mutex::new(Follower::new(subject))),
        };
        self.follower = Some(Arc::clone(&follower));
        if let Connection::Linked(link) = &mut self.connection {
            link.follow(follower, self.context.sink.clone());
        }
    }

    /// Afterwards nobody else holds the follower.
    fn pause(&mut self) {
        if let Connection::Linked(link) = &mut self.connection {
            link.pause();
        }
    }

    fn log(&self, log: &Log) {
        let name = &self.context.name;
        let config = self.file.as_ref().map(|file| file.0.display().to_string());
        let config = config.unwrap_or_default();
        match log {
            Log::WaitingForFiles(error) => tracing::info!(
                clusterName = %name,
                error,
                "Waiting for all etcd configuration files to be available"
            ),
            Log::NextEndpoint(error) => {
                tracing::debug!(clusterName = %name, error, "Endpoint failed, trying the next one");
            }
            Log::Refused(error) => tracing::warn!(
                clusterName = %name,
                config,
                error,
                "Unable to get remote cluster configuration"
            ),
            Log::Accepted(id) => tracing::info!(
                clusterName = %name,
                clusterID = %id,
                "Found remote cluster configuration"
            ),
            Log::Failed { text, lost, fresh } => {
                self.count_failure();
                match (lost, fresh) {
                    (_, false) => {}
                    (true, true) => {
                        tracing::warn!(clusterName = %name, config, error = text, "Error observed on etcd connection, reconnecting etcd");
                    }
                    (false, true) => {
                        tracing::warn!(clusterName = %name, config, error = text, "Unable to establish etcd connection to remote cluster");
                    }
                }
            }
        }
    }

    fn count_failure(&self) {
        let now = (self.context.options.clock)();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.context.shared.update(&self.context.name, |status| {
            status.num_failures = status.num_failures.saturating_add(1);
            status.last_failure = Some(now.as_secs());
        });
    }
}

/// What a connection came up with.
enum Progress {
    Opened(Box<Opened>),
    Input(Input),
    /// The mesh is gone.
    Closed,
}
