//! The cache as this cluster's own agents need it in kvstoremesh's place: a heartbeat, without which
//! they take it for dead, and word of when all peers are in it.
//!
//! Always true: a peer holds that word back for a bounded time only, and it is never taken back.
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    keyspace::{HEARTBEAT, Kind, Layout},
    lifecycle::ReadyToken,
    limits,
    peer::{self, Relayed, Route},
    publish::Clock,
    store::Store,
    types::ClusterName,
};

/// Beats until cancelled.
pub(super) async fn beat(store: Store, clock: Clock, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(limits::HEARTBEAT_INTERVAL);
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        // Readers see that it changes and never parse it; only years past 9999 have no such text.
        let time = clock().format(&Rfc3339).unwrap_or_default();
        if let Err(error) = store.put(HEARTBEAT.into(), Bytes::from(time), 0) {
            tracing::error!(%error, "The cache has no heartbeat");
        }
    }
}

/// While this node imports: tells the cluster's other nodes how each peer is. What it said goes with
/// the first peer that comes by another node's cache.
pub(super) async fn report(
    registry: peer::Registry,
    store: Store,
    route: watch::Receiver<Route>,
    cancel: CancellationToken,
) {
    let mut tick = tokio::time::interval(limits::RELAYED_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: HashMap<ClusterName, Relayed> = HashMap::new();
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        if *route.borrow() != Route::Direct {
            told.clear();
            continue;
        }
        let statuses = registry.statuses();
        told.retain(|name, _| statuses.iter().any(|status| status.name == *name));
        for status in &statuses {
            let now = Relayed::from(status);
            if told.get(&status.name).is_some_and(|old| !now.is_news(old)) {
                continue;
            }
            let key = Relayed::key(&status.name);
            match store.put(key.into(), now.encode(), 0) {
                Ok(_) => drop(told.insert(status.name.clone(), now)),
                Err(error) => tracing::error!(%error, "Other nodes are not told how a peer is"),
            }
        }
    }
}

/// Drops `token` once all peers that are configured now are in the cache, or are not waited for.
pub(super) async fn ready(
    registry: peer::Registry,
    store: Store,
    mut waiting: Waiting,
    token: ReadyToken,
    cancel: CancellationToken,
) {
    let mut tick = tokio::time::interval(limits::CACHE_READY_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        if !registry.scanned() {
            if waiting.gives_up(Instant::now()) {
                tracing::warn!(
                    "The cache calls itself ready, but who the peers are is not known yet"
                );
                return drop(token);
            }
            continue;
        }
        let statuses = registry.statuses();
        let peers = statuses.into_iter().map(|status| Peer {
            mirrored: is_mirrored(&store, &status.name),
            connected: status.connected,
            name: status.name,
        });
        if let Some(without) = waiting.look(Instant::now(), peers) {
            if !without.is_empty() {
                let names: Vec<_> = without.iter().map(ClusterName::as_str).collect();
                let without = names.join(", ");
                tracing::warn!(
                    without,
                    "The cache calls itself ready, but some clusters are not complete in it"
                );
            }
            return drop(token);
        }
    }
}

/// The canaries are what readers go by, too.
fn is_mirrored(store: &Store, peer: &ClusterName) -> bool {
    let canary = |kind| Layout::Cache.canary(kind, peer);
    Kind::BASIC
        .into_iter()
        .all(|kind| store.get(canary(kind).as_bytes()).is_some())
}

/// A peer at one moment.
#[derive(Debug)]
struct Peer {
    name: ClusterName,
    connected: bool,
    /// Each of its kinds was in the cache completely.
    mirrored: bool,
}

/// Whom the cache still waits for. No clock: the caller tells the time.
#[derive(Debug)]
pub(super) struct Waiting {
    since: Instant,
    per_cluster: Duration,
    global: Duration,
    /// Configured at the first look; later ones are not waited for.
    peers: Option<BTreeSet<ClusterName>>,
    /// Who was connected at some time.
    seen: BTreeSet<ClusterName>,
}

impl Waiting {
    pub(super) const fn new(config: &Config, since: Instant) -> Self {
        Self {
            since,
            per_cluster: config.per_cluster_ready_timeout,
            global: config.global_ready_timeout,
            peers: None,
            seen: BTreeSet::new(),
        }
    }

    /// While nobody is known: whether that is waited for no longer, as for a peer that never answers.
    fn gives_up(&self, now: Instant) -> bool {
        now >= self.since + self.per_cluster
    }

    /// Once nobody is waited for: those that are not in the cache.
    fn look(
        &mut self,
        now: Instant,
        peers: impl Iterator<Item = Peer>,
    ) -> Option<BTreeSet<ClusterName>> {
        let peers: Vec<Peer> = peers.collect();
        let names = || peers.iter().map(|peer| peer.name.clone()).collect();
        let first = self.peers.get_or_insert_with(names);
        // Who was removed meanwhile holds up nobody.
        let known = peers.iter().filter(|peer| first.contains(&peer.name));
        let mut absent = BTreeSet::new();
        let mut all_settled = true;
        for peer in known {
            if peer.connected {
                self.seen.insert(peer.name.clone());
            }
            if !peer.mirrored {
                absent.insert(peer.name.clone());
                let given_up =
                    !self.seen.contains(&peer.name) && now >= self.since + self.per_cluster;
                all_settled &= given_up || now >= self.since + self.global;
            }
        }
        all_settled.then_some(absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    fn waiting(since: Instant) -> Waiting {
        Waiting {
            since,
            per_cluster: limits::PER_CLUSTER_READY_TIMEOUT,
            global: limits::GLOBAL_READY_TIMEOUT,
            peers: None,
            seen: BTreeSet::new(),
        }
    }

    fn peers(list: &[(&str, bool, bool)]) -> impl Iterator<Item = Peer> {
        let peer = |(text, connected, mirrored): &(&str, bool, bool)| Peer {
            name: name(text),
            connected: *connected,
            mirrored: *mirrored,
        };
        list.iter().map(peer).collect::<Vec<_>>().into_iter()
    }

    /// Goal: a directory that can't be listed holds back the cache's readers no longer than a peer
    /// that never answers. Nobody follows the directory here, which looks the same.
    #[tokio::test(start_paused = true)]
    async fn unknown_peers_are_waited_for_as_long_as_a_dead_one() {
        let options = peer::Options {
            directory: "/none".into(),
            cluster: name("own"),
            id: crate::types::ClusterId::new(1, Default::default()).unwrap(),
            max_clusters: Default::default(),
            cache_ttl: None,
            trust: None,
            clock: crate::telemetry::wall_clock,
            timing: peer::Timing::default(),
            dial: peer::Dial::default(),
            random: peer::Random::default(),
            route: watch::channel(Route::Direct).1,
        };
        let registry = peer::Registry::new(options, |_| tokio::sync::mpsc::channel(1).0);
        let store = Store::new(crate::store::Options {
            cluster_id: 7,
            history_max: 9,
        });
        let readiness = crate::lifecycle::Readiness::new();
        let (token, start) = (readiness.pending("peers"), Instant::now());
        ready(
            registry,
            store,
            waiting(start),
            token,
            CancellationToken::new(),
        )
        .await;
        assert!(readiness.waiting().is_empty());
        let took = start.elapsed();
        let longest = limits::PER_CLUSTER_READY_TIMEOUT + limits::CACHE_READY_CHECK;
        assert!(
            took >= limits::PER_CLUSTER_READY_TIMEOUT && took <= longest,
            "{took:?}"
        );
    }

    #[test]
    fn all_peers_of_the_first_look_are_waited_for_and_no_later_ones() {
        let start = Instant::now();
        let mut waiting = waiting(start);
        let one = [("a", true, true), ("b", true, false)];
        assert_eq!(waiting.look(start, peers(&one)), None);
        let later = [("a", true, true), ("b", true, true), ("c", false, false)];
        assert_eq!(waiting.look(start, peers(&later)), Some(BTreeSet::new()));
    }

    #[test]
    fn a_peer_that_never_connects_is_given_up_soon_one_that_did_late() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut waiting = waiting(start);
        let both = [("dead", false, false), ("slow", true, false)];
        assert_eq!(waiting.look(at(14), peers(&both)), None);
        let lost = [("dead", false, false), ("slow", false, false)];
        assert_eq!(waiting.look(at(15), peers(&lost)), None);
        assert_eq!(waiting.look(at(599), peers(&lost)), None);
        let without = [name("dead"), name("slow")].into();
        assert_eq!(waiting.look(at(600), peers(&lost)), Some(without));
    }

    #[test]
    fn a_dead_peer_holds_up_nothing_past_its_time_and_a_removed_one_never() {
        let start = Instant::now();
        let mut first = waiting(start);
        let dead = [("dead", false, false), ("a", true, true)];
        assert_eq!(first.look(start, peers(&dead)), None);
        let late = start + limits::PER_CLUSTER_READY_TIMEOUT;
        assert_eq!(first.look(late, peers(&dead)), Some([name("dead")].into()));
        let mut second = waiting(start);
        assert_eq!(second.look(start, peers(&dead)), None);
        assert_eq!(
            second.look(start, peers(&[("a", true, true)])),
            Some(BTreeSet::new())
        );
        assert_eq!(
            waiting(start).look(start, peers(&[])),
            Some(BTreeSet::new())
        );
    }
}
