//! One peer's session as a state machine: which endpoint is next, how long to wait, what of the
//! peer's configuration is accepted, what the mesh is told. No I/O; time and chance are arguments.
//!
//! Invariant: what the mesh knows of a peer is withdrawn on four grounds only: its file is gone or
//! forbids it, its id became another one, or (services only) it was out of reach for the cache's time
//! to live.
//! Invariant: whoever waits for a configuration or an id stays connected, so that a change is seen
//! at once; only a connection that gets nowhere for long is built anew.
use std::sync::Arc;

use tokio::time::Instant;

use self::backoff::{Backoff, shuffle};
pub(super) use self::messages::{Effect, Failure, File, Input, Log, Retry, Rules, Seen};
use super::{Layer, MemberEvent, RemoteConfig};
use crate::{
    follower::Subject,
    keyspace::{ClusterConfig, Kind, Layout},
    types::{ClusterId, ClusterName},
};

mod backoff;
mod messages;
mod status;
#[cfg(test)]
mod tests;

/// Kinds that the cache's time to live concerns.
const SERVICES: &[Kind] = &[Kind::Services, Kind::ServiceExports, Kind::EndpointSlices];

#[derive(Debug)]
enum Phase {
    /// There is no file.
    Removed,
    Waiting {
        until: Instant,
    },
    Dialling {
        until: Instant,
    },
    /// Connected without an acceptable configuration; `wanted` waits for its id.
    Unaccepted {
        until: Instant,
        wanted: Option<ClusterConfig>,
    },
    Following(ClusterConfig),
}

/// The time that services outlive their peer.
#[derive(Debug)]
enum Ttl {
    /// The peer is in reach.
    Off,
    Until(Instant),
    Over,
}

#[derive(Debug)]
pub(super) struct Machine {
    rules: Rules,
    file: Option<File>,
    phase: Phase,
    /// Endpoints in the order of this round; the one in use stays in front.
    order: Vec<usize>,
    position: usize,
    backoff: Backoff,
    ttl: Ttl,
    /// The id that the mesh knows the peer by.
    announced: Option<ClusterId>,
    remote: Option<RemoteConfig>,
    /// In this connection.
    seen: Seen,
    beat: Instant,
    trouble: Option<(Layer, String)>,
    logged: Option<String>,
}

impl Machine {
    pub(super) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            file: None,
            phase: Phase::Removed,
            order: Vec::new(),
            position: 0,
            backoff: Backoff::default(),
            ttl: Ttl::Off,
            announced: None,
            remote: None,
            seen: Seen::default(),
            beat: now,
            trouble: None,
            logged: None,
        }
    }

    /// True if there is no file, and with it no peer.
    pub(super) const fn is_removed(&self) -> bool {
        matches!(self.phase, Phase::Removed)
    }

    /// When [`Input::Timer`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stale = self.beat + self.rules.timing.heartbeat_stale;
        let phase = match &self.phase {
            Phase::Removed => None,
            Phase::Waiting { until } | Phase::Dialling { until } => Some(*until),
            Phase::Unaccepted { until, .. } => Some(stale.min(*until)),
            Phase::Following(_) => Some(stale),
        };
        let ttl = match self.ttl {
            Ttl::Off | Ttl::Over => None,
            Ttl::Until(until) => Some(until),
        };
        phase.into_iter().chain(ttl).min()
    }

    /// Takes notice of what happened; `random` yields numbers in 0..1.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        random: impl Fn() -> f64,
        input: Input,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::File(file) => self.configure(now, file, random, &mut effects),
            Input::Removed => self.remove(&mut effects),
            Input::Timer => self.timer(now, random, &mut effects),
            Input::Opened => self.opened(now),
            // Whoever is removed has no connection; late news of one means nothing.
            Input::Failed(_) if self.is_removed() => {}
            Input::Failed(failure) => self.failed(now, failure, random, &mut effects),
            Input::Seen(seen) => self.see(now, seen, &mut effects),
            Input::Reserved(Ok(())) => self.accept(&mut effects),
            Input::Reserved(Err(holder)) => self.taken(now, &holder, &mut effects),
            Input::IdFreed => {
                if let Phase::Unaccepted {
                    wanted: Some(config),
                    ..
                } = &self.phase
                    && let Ok(id) = config.accept(self.rules.max)
                {
                    effects.push(Effect::Reserve(id));
                }
            }
        }
        effects
    }

    fn configure(
        &mut self,
        now: Instant,
        file: File,
        random: impl Fn() -> f64,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::HangUp);
        let old = self.file.as_ref();
        if old.is_some_and(|old| old.allowed_cidrs != file.allowed_cidrs) {
            // Entries that were refused may be allowed now.
            effects.push(Effect::Forget(&Kind::ALL));
        }
        if let (Some(pin), Some(id)) = (file.cluster_id, self.announced)
            && pin != id
        {
            self.withdraw(effects);
        }
        // A peer that does not answer, or refuses us, is held to it as well.
        effects.push(Effect::Tell(MemberEvent::Terms {
            name: self.rules.name.clone(),
            cluster_id: file.cluster_id,
            allowed_cidrs: Arc::clone(&file.allowed_cidrs),
        }));
        self.order = shuffle(file.endpoints, random);
        self.position = 0;
        self.backoff = Backoff::default();
        self.trouble = None;
        self.logged = None;
        self.file = Some(file);
        self.dial(now, effects);
    }

    fn dial(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(endpoint) = self.order.get(self.position) else {
            return;
        };
        effects.push(Effect::Dial(*endpoint));
        let until = now + self.rules.timing.attempt;
        self.phase = Phase::Dialling { until };
    }

    /// Withdraws everything at once, whether or not the peer is alive, and also if no id was
    /// announced: the mesh may hold entries loaded from disk.
    fn remove(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::HangUp);
        self.withdraw(effects);
        effects.push(Effect::Release);
        self.phase = Phase::Removed;
        self.file = None;
    }

    fn withdraw(&mut self, effects: &mut Vec<Effect>) {
        let name = self.rules.name.clone();
        effects.push(Effect::Tell(MemberEvent::Removed { name }));
        effects.push(Effect::Forget(&Kind::ALL));
        self.announced = None;
        self.remote = None;
        self.ttl = Ttl::Off;
    }

    fn timer(&mut self, now: Instant, random: impl Fn() -> f64, effects: &mut Vec<Effect>) {
        if let Ttl::Until(until) = self.ttl
            && until <= now
        {
            self.ttl = Ttl::Over;
            let name = self.rules.name.clone();
            effects.push(Effect::Forget(SERVICES));
            effects.push(Effect::Tell(MemberEvent::Expired { name }));
        }
        let timing = self.rules.timing;
        let stale = self.is_connected() && self.beat + timing.heartbeat_stale <= now;
        let failure = match &self.phase {
            Phase::Waiting { until } if *until <= now => {
                self.position = 0;
                return self.dial(now, effects);
            }
            Phase::Dialling { until } if *until <= now => {
                let seconds = timing.attempt.as_secs();
                (
                    Layer::Heartbeat,
                    format!("reach the peer's etcd: no answer within {seconds} s"),
                )
            }
            _ if stale => {
                let seconds = timing.heartbeat_stale.as_secs();
                (
                    Layer::Heartbeat,
                    format!("stay connected: no heartbeat for {seconds} s"),
                )
            }
            Phase::Unaccepted { until, .. } if *until <= now => {
                let waiting = (Layer::ClusterConfig, self.waiting_for_config());
                self.trouble.clone().unwrap_or(waiting)
            }
            _ => return,
        };
        let (layer, text) = failure;
        let retry = Retry::Soon;
        self.failed(now, Failure { layer, text, retry }, random, effects);
    }

    fn opened(&mut self, now: Instant) {
        let until = now + self.rules.timing.config_wait;
        self.phase = Phase::Unaccepted {
            until,
            wanted: None,
        };
        self.order.rotate_left(self.position);
        self.position = 0;
        self.seen = Seen::default();
        self.beat = now;
        self.trouble = Some((Layer::ClusterConfig, self.waiting_for_config()));
    }

    fn failed(
        &mut self,
        now: Instant,
        failure: Failure,
        random: impl Fn() -> f64,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::HangUp);
        let Failure { layer, text, retry } = failure;
        let fresh = self.logged.as_ref() != Some(&text);
        let delay = if retry == Retry::Files {
            if fresh {
                effects.push(Effect::Log(Log::WaitingForFiles(text.clone())));
            }
            self.rules.timing.files_wait
        } else {
            let dialling = matches!(self.phase, Phase::Dialling { .. });
            if dialling && self.position + 1 < self.order.len() {
                // The last word of a round counts; here another endpoint may do.
                effects.push(Effect::Log(Log::NextEndpoint(text)));
                self.position += 1;
                return self.dial(now, effects);
            }
            let lost = matches!(self.phase, Phase::Following(_));
            let text = text.clone();
            effects.push(Effect::Log(Log::Failed { text, lost, fresh }));
            self.backoff
                .delay(self.rules.timing.backoff, retry, random())
        };
        self.logged = Some(text.clone());
        self.trouble = Some((layer, text));
        self.phase = Phase::Waiting { until: now + delay };
        self.seen = Seen::default();
        if let (Ttl::Off, Some(ttl)) = (&self.ttl, self.rules.cache_ttl) {
            self.ttl = Ttl::Until(now + ttl);
        }
    }

    const fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Unaccepted { .. } | Phase::Following(_))
    }

    fn see(&mut self, now: Instant, seen: Seen, effects: &mut Vec<Effect>) {
        if !self.is_connected() {
            return;
        }
        self.beat = seen.beat.map_or(self.beat, |beat| beat.max(self.beat));
        let fresh = seen.config != self.seen.config;
        self.seen = seen;
        match self.seen.config.clone() {
            Some(Some(value)) if fresh => self.consider(now, &value, effects),
            Some(None) if fresh => {
                let gone = matches!(self.phase, Phase::Following(_));
                let text = if gone {
                    GONE.to_owned()
                } else {
                    self.waiting_for_config()
                };
                self.refuse(now, text, effects);
            }
            _ => {}
        }
        // Whoever breaks off in the middle of its lists would do so again at once.
        if let Phase::Following(config) = &self.phase
            && self.waiting(config).is_none()
        {
            self.backoff = Backoff::default();
        }
    }

    /// Checks the peer's configuration, as far as that can be done without the other peers.
    fn consider(&mut self, now: Instant, value: &[u8], effects: &mut Vec<Effect>) {
        let config = match ClusterConfig::decode(value) {
            Ok(config) => config,
            Err(rejection) => return self.refuse(now, refusal(&rejection), effects),
        };
        self.ttl = Ttl::Off;
        if matches!(&self.phase, Phase::Following(old) if *old == config) {
            return;
        }
        let id = match config.accept(self.rules.max) {
            Ok(id) => id,
            Err(rejection) => return self.refuse(now, refusal(&rejection), effects),
        };
        let pin = self.file.as_ref().and_then(|file| file.cluster_id);
        if let Some(pin) = pin.filter(|pin| *pin != id) {
            let text = format!("it says id {id}, but its file pins cluster-id {pin}");
            return self.refuse(now, refusal(&text), effects);
        }
        // Entries of the old id go first, also if the new one is refused.
        if self.announced.is_some_and(|old| old != id) {
            effects.push(Effect::Pause);
            self.withdraw(effects);
        }
        if id == self.rules.own_id {
            let text = format!("id {id} is our own");
            return self.refuse(now, refusal(&text), effects);
        }
        let until = self.config_deadline(now);
        let wanted = Some(config);
        self.phase = Phase::Unaccepted { until, wanted };
        effects.push(Effect::Reserve(id));
    }

    /// The id is ours to give to the peer.
    fn accept(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Unaccepted { wanted, .. } = &mut self.phase else {
            return;
        };
        let (Some(config), Some(file)) = (wanted.take(), &self.file) else {
            return;
        };
        let Ok(id) = config.accept(self.rules.max) else {
            return;
        };
        let capabilities = &config.capabilities;
        self.remote = Some(RemoteConfig {
            cluster_id: id,
            kvstoremesh: capabilities.cached,
            sync_canaries: capabilities.synced_canaries,
            service_exports_enabled: capabilities.service_exports_enabled,
            endpoint_slices: !capabilities.endpoint_slices_export_mode.is_empty(),
        });
        self.announced = Some(id);
        self.trouble = None;
        self.logged = None;
        self.seen.open.clear();
        self.seen.complete.clear();
        effects.push(Effect::Log(Log::Accepted(id)));
        effects.push(Effect::Tell(MemberEvent::Connected {
            name: self.rules.name.clone(),
            id,
            config: config.clone(),
            allowed_cidrs: Arc::clone(&file.allowed_cidrs),
            relayed: file.relay.is_some(),
        }));
        effects.push(Effect::Follow(self.subject(&config)));
        self.phase = Phase::Following(config);
    }

    fn taken(&mut self, now: Instant, holder: &ClusterName, effects: &mut Vec<Effect>) {
        let Phase::Unaccepted { wanted, .. } = &mut self.phase else {
            return;
        };
        let Some(config) = wanted.take() else {
            return;
        };
        let text = format!("id {} is held by peer {holder}", config.id);
        self.refuse(now, refusal(&text), effects);
        if let Phase::Unaccepted { wanted, .. } = &mut self.phase {
            *wanted = Some(config);
        }
    }

    /// Stays connected and waits for another configuration; what is known of the peer stays.
    fn refuse(&mut self, now: Instant, text: String, effects: &mut Vec<Effect>) {
        effects.push(Effect::Pause);
        self.seen.open.clear();
        self.seen.complete.clear();
        let until = self.config_deadline(now);
        self.phase = Phase::Unaccepted {
            until,
            wanted: None,
        };
        if self.logged.as_ref() != Some(&text) {
            effects.push(Effect::Log(Log::Refused(text.clone())));
        }
        self.logged = Some(text.clone());
        self.trouble = Some((Layer::ClusterConfig, text));
    }

    /// When to give up waiting for a configuration: that began now, unless it goes on.
    fn config_deadline(&self, now: Instant) -> Instant {
        match &self.phase {
            Phase::Unaccepted { until, .. } => *until,
            _ => now + self.rules.timing.config_wait,
        }
    }

    /// The node whose cache is read.
    fn relay(&self) -> Option<&str> {
        self.file.as_ref()?.relay.as_deref()
    }

    fn waiting_for_config(&self) -> String {
        match self.relay() {
            Some(node) => format!(
                "find the peer's cluster-config in the cache of node {node}, which imports: it is \
                 not there; does that node have the peer's file, and is it connected?"
            ),
            None => WAITING.to_owned(),
        }
    }

    /// What to follow of the peer. The cache of a node is followed only where that node has listed
    /// the peer itself: its entries may be older than ours otherwise.
    fn subject(&self, config: &ClusterConfig) -> Subject {
        let subject = subject(&self.rules.name, config);
        match self.relay() {
            Some(_) => Subject {
                layout: Layout::Relay,
                canaries: true,
                ..subject
            },
            None => subject,
        }
    }
}

/// What to follow of a peer with this configuration.
pub(super) fn subject(name: &ClusterName, config: &ClusterConfig) -> Subject {
    let capabilities = &config.capabilities;
    let has = |kind: &Kind| match kind {
        Kind::Nodes | Kind::Identities | Kind::Ips => true,
        Kind::Services => has_services(config),
        Kind::ServiceExports => capabilities.service_exports_enabled.is_some(),
        Kind::EndpointSlices => !capabilities.endpoint_slices_export_mode.is_empty(),
    };
    let (kinds, absent) = Kind::ALL.into_iter().partition(has);
    Subject {
        cluster: name.clone(),
        layout: if capabilities.cached {
            Layout::Cache
        } else {
            Layout::State
        },
        kinds,
        absent,
        canaries: capabilities.synced_canaries,
    }
}

fn has_services(config: &ClusterConfig) -> bool {
    config.capabilities.endpoint_slices_export_mode != SLICES_ONLY
}

fn refusal(why: &dyn std::fmt::Display) -> String {
    format!("accept the peer's cluster-config: {why}")
}

/// The mode of producers that do not write services any more.
const SLICES_ONLY: &str = "endpointslices-only";

const GONE: &str = "find the peer's cluster-config: it is gone; what is known of the peer stays as it \
                    was until it is back";

const WAITING: &str = "find the peer's cluster-config: it is not there; does the peer have this name, \
                       and does it publish yet?";
