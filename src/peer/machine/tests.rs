use std::{cell::RefCell, time::Duration};

use super::*;
use crate::{
    peer::{PeerStatus, Timing},
    types::{IpPrefix, MaxClusters},
};

const MAX: MaxClusters = MaxClusters::C255;

fn id(number: u32) -> ClusterId {
    ClusterId::new(number, MAX).unwrap()
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

/// A machine of the peer `west` in cluster 1, its time, and the ids that others hold.
struct World {
    machine: Machine,
    now: Instant,
    held: Vec<(u32, &'static str)>,
    /// What is followed now, and what the mesh was told.
    following: Option<Subject>,
    connected: bool,
    told: Vec<&'static str>,
    /// The ranges that the mesh was told last.
    allowed: Arc<[IpPrefix]>,
    dialled: Vec<usize>,
    forgotten: Vec<Kind>,
    failures: usize,
}

impl World {
    fn new() -> Self {
        Self::with(MAX, None)
    }

    fn with(max: MaxClusters, cache_ttl: Option<Duration>) -> Self {
        let now = Instant::now();
        let rules = Rules {
            name: name("west"),
            own_id: id(1),
            max,
            cache_ttl,
            timing: Timing::default(),
        };
        Self {
            machine: Machine::new(rules, now),
            now,
            held: Vec::new(),
            following: None,
            connected: false,
            told: Vec::new(),
            allowed: Arc::default(),
            dialled: Vec::new(),
            forgotten: Vec::new(),
            failures: 0,
        }
    }

    /// With a file of one endpoint, connected.
    fn connected() -> Self {
        let mut world = Self::new();
        world.file(1, None);
        world.input(Input::Opened);
        world
    }

    fn file(&mut self, endpoints: usize, cluster_id: Option<u32>) {
        self.input(Input::File(File {
            endpoints,
            relay: None,
            cluster_id: cluster_id.map(id),
            allowed_cidrs: Arc::default(),
            warnings: Vec::new(),
        }));
    }

    fn input(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            // Lots in falling order: endpoints come in reverse.
            let lot = RefCell::new(1.0);
            let random = || {
                *lot.borrow_mut() -= 0.1;
                *lot.borrow()
            };
            for effect in self.machine.handle(self.now, random, input) {
                match effect {
                    Effect::HangUp => (self.connected, self.following) = (false, None),
                    Effect::Dial(endpoint) => self.dialled.push(endpoint),
                    Effect::Reserve(id) => {
                        let mut held = self.held.iter();
                        let holder = held.find(|(held, _)| *held == id.get());
                        let answer = holder.map_or(Ok(()), |(_, holder)| Err(name(holder)));
                        inputs.push(Input::Reserved(answer));
                        break;
                    }
                    Effect::Tell(MemberEvent::Connected { .. }) => self.told.push("connected"),
                    Effect::Tell(MemberEvent::Terms { allowed_cidrs, .. }) => {
                        self.allowed = allowed_cidrs;
                    }
                    Effect::Tell(MemberEvent::Removed { .. }) => {
                        assert!(self.following.is_none(), "withdrawn while it is followed");
                        self.told.push("removed");
                    }
                    Effect::Tell(MemberEvent::Expired { .. }) => self.told.push("expired"),
                    Effect::Tell(MemberEvent::Keys { .. }) => panic!("the machine knows no keys"),
                    Effect::Follow(subject) => self.following = Some(subject),
                    Effect::Pause => self.following = None,
                    Effect::Forget(kinds) => self.forgotten.extend(kinds),
                    Effect::Log(Log::Failed { .. }) => self.failures += 1,
                    Effect::Release | Effect::Log(_) => {}
                }
            }
        }
    }

    fn config(&mut self, text: &str) {
        let config = Some((!text.is_empty()).then(|| text.to_owned().into()));
        let seen = Seen {
            config,
            ..self.machine.seen.clone()
        };
        self.input(Input::Seen(seen));
    }

    fn fail(&mut self, text: &str) {
        self.input(Input::Failed(Failure {
            layer: Layer::Tcp,
            text: text.to_owned(),
            retry: Retry::Soon,
        }));
    }

    /// Lets time pass, with the timer whenever it is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.machine.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(deadline);
            self.input(Input::Timer);
            assert!(
                self.machine.deadline().is_none_or(|next| next > deadline),
                "the timer must lead on"
            );
        }
        self.now = end;
    }

    fn status(&self) -> PeerStatus {
        let shared = super::super::shared::Shared::default();
        shared.update(&name("west"), |status| self.machine.describe(status));
        let mut status = None;
        shared.update(&name("west"), |found| status = Some(found.clone()));
        status.unwrap()
    }

    fn take_told(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.told)
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn endpoints_are_tried_one_at_a_time_and_only_a_whole_round_is_a_failure() {
    let mut world = World::new();
    world.file(3, None);
    assert_eq!(world.dialled, [2]);
    world.fail("refused");
    assert_eq!((&world.dialled[..], world.failures), (&[2, 1][..], 0));
    world.input(Input::Opened);
    assert_eq!(world.status().layer, Some(Layer::ClusterConfig));
    // The one that worked is first again, the others follow.
    world.fail("reset");
    world.pass(SECOND);
    assert_eq!((&world.dialled[2..], world.failures), (&[1][..], 1));
    for _ in 0..3 {
        world.fail("refused");
    }
    assert_eq!((&world.dialled[3..], world.failures), (&[0, 2][..], 2));
    let status = world.status();
    assert_eq!(
        (status.layer, &*status.status),
        (Some(Layer::Tcp), "refused")
    );
}

#[test]
fn attempt_that_hangs_is_given_up() {
    let mut world = World::new();
    world.file(2, None);
    world.pass(Timing::default().attempt);
    assert_eq!(world.dialled, [1, 0]);
    world.pass(Timing::default().attempt);
    assert_eq!(
        (world.failures, world.status().layer),
        (1, Some(Layer::Heartbeat))
    );
}

#[test]
fn missing_files_are_waited_for_and_are_no_failure() {
    let mut world = World::new();
    world.file(2, None);
    world.input(Input::Failed(Failure {
        layer: Layer::File,
        text: "no ca.crt".to_owned(),
        retry: Retry::Files,
    }));
    assert_eq!((world.dialled.len(), world.failures), (1, 0));
    world.pass(Timing::default().files_wait);
    assert_eq!((world.dialled.len(), world.failures), (2, 0));
    assert_eq!(world.status().layer, Some(Layer::File));
}

#[test]
fn configuration_that_comes_late_is_accepted_on_the_same_connection() {
    let mut world = World::connected();
    world.config("");
    assert!(
        world
            .status()
            .status
            .contains("does the peer have this name")
    );
    world.pass(10 * SECOND);
    world.config(r#"{"id":2}"#);
    assert_eq!((world.take_told(), world.failures), (vec!["connected"], 0));
    assert!(world.following.is_some());
}

#[test]
fn connection_without_configuration_is_built_anew_with_growing_delay() {
    let mut world = World::connected();
    world.config("");
    let wait = Timing::default().config_wait;
    // Heartbeats go on.
    for _ in 0..2 {
        world.pass(wait / 2);
        let beat = Some(world.now);
        let seen = Seen {
            beat,
            ..world.machine.seen.clone()
        };
        world.input(Input::Seen(seen));
    }
    world.pass(SECOND);
    assert_eq!((world.failures, world.dialled.len()), (1, 2));
    let status = world.status();
    assert!(!status.ready && status.layer == Some(Layer::ClusterConfig));
}

#[test]
fn configurations_are_refused_for_what_they_say() {
    for (max, text, reason) in [
        (MAX, "{not json", "accept the peer's cluster-config"),
        (MAX, r#"{"capabilities":{}}"#, "0"),
        (MAX, r#"{"id":0}"#, "0"),
        (MAX, r#"{"id":256}"#, "256"),
        (MAX, r#"{"id":1}"#, "id 1 is our own"),
        (MAX, r#"{"id":"2"}"#, "accept"),
        (MAX, r#"{"id":-2}"#, "accept"),
        (MAX, r#"{"id":2}x"#, "accept"),
        (MAX, r#"{"id":9}"#, "id 9 is held by peer north"),
        (MaxClusters::C511, r#"{"id":7}"#, "maximum of 0"),
        (
            MaxClusters::C511,
            r#"{"id":7,"capabilities":{"maxConnectedClusters":255}}"#,
            "maximum of 255",
        ),
    ] {
        let mut world = World::with(max, None);
        world.held.push((9, "north"));
        world.file(1, None);
        world.input(Input::Opened);
        world.config(text);
        let status = world.status();
        assert!(world.told.is_empty() && world.following.is_none(), "{text}");
        assert!(status.connected && !status.ready, "{text}");
        assert!(status.status.contains(reason), "{text}: {}", status.status);
        assert_eq!(status.layer, Some(Layer::ClusterConfig), "{text}");
        // Put right, it is accepted without a new connection.
        world.config(r#"{"id":5,"capabilities":{"maxConnectedClusters":511}}"#);
        assert_eq!((&*world.told, world.dialled.len()), (&["connected"][..], 1));
    }
}

#[test]
fn configurations_are_accepted_as_leniently_as_go_reads_them() {
    for (max, text) in [
        (MAX, r#"{"id":255}"#),
        (
            MAX,
            r#"{"id":7,"capabilities":{"maxConnectedClusters":511}}"#,
        ),
        (
            MaxClusters::C511,
            r#"{"id":500,"capabilities":{"maxConnectedClusters":511}}"#,
        ),
        (
            MAX,
            r#"{"ID":2,"Capabilities":{"SYNCEDCANARIES":true},"future":{"x":[1]}}"#,
        ),
    ] {
        let mut world = World::with(max, None);
        world.file(1, None);
        world.input(Input::Opened);
        world.config(text);
        assert_eq!(world.told, ["connected"], "{text}");
        let canaries = text.contains("CANARIES");
        assert_eq!(world.following.unwrap().canaries, canaries);
    }
}

#[test]
fn pinned_id_refuses_another_and_withdraws_nothing() {
    let mut world = World::new();
    world.file(1, Some(2));
    world.input(Input::Opened);
    world.config(r#"{"id":2}"#);
    world.config(r#"{"id":3}"#);
    assert_eq!(world.told, ["connected"]);
    assert!(world.following.is_none());
    assert!(
        world
            .status()
            .status
            .contains("it says id 3, but its file pins cluster-id 2")
    );
}

#[test]
fn file_that_pins_another_id_withdraws_a_peer_that_is_dead() {
    let mut world = World::connected();
    world.config(r#"{"id":2}"#);
    world.fail("reset");
    world.file(1, Some(2));
    assert_eq!(world.told, ["connected"]);
    world.file(1, Some(3));
    assert_eq!(world.told, ["connected", "removed"]);
    assert_eq!(world.forgotten, Kind::ALL);
}

#[test]
fn id_that_another_peer_holds_is_taken_as_soon_as_it_is_free() {
    let mut world = World::connected();
    world.held.push((2, "north"));
    world.config(r#"{"id":2}"#);
    world.input(Input::IdFreed);
    assert!(world.told.is_empty());
    world.held.clear();
    world.input(Input::IdFreed);
    assert_eq!((&*world.told, world.dialled.len()), (&["connected"][..], 1));
    // Nobody who has an id is bothered.
    world.input(Input::IdFreed);
    assert_eq!(world.told, ["connected"]);
}

#[test]
fn other_id_withdraws_first_also_if_it_is_refused_then() {
    let mut world = World::connected();
    world.config(r#"{"id":2}"#);
    world.config(r#"{"id":3}"#);
    assert_eq!(world.take_told(), ["connected", "removed", "connected"]);
    assert_eq!(world.forgotten, Kind::ALL);
    assert!(world.following.is_some());
    world.held.push((4, "north"));
    world.config(r#"{"id":4}"#);
    assert_eq!(world.take_told(), ["removed"]);
    assert!(world.following.is_none() && world.status().config.is_none());
    // The same over a new connection.
    let mut world = World::connected();
    world.config(r#"{"id":2}"#);
    world.fail("reset");
    world.pass(SECOND);
    world.input(Input::Opened);
    world.config(r#"{"id":3}"#);
    assert_eq!(world.take_told(), ["connected", "removed", "connected"]);
}

#[test]
fn configuration_that_is_lost_or_spoilt_freezes_and_comes_back() {
    for spoilt in ["", "{not json"] {
        let mut world = World::connected();
        world.config(r#"{"id":2}"#);
        world.config(spoilt);
        assert!(world.following.is_none() && world.told == ["connected"]);
        let status = world.status();
        assert!(status.connected && !status.ready);
        assert_eq!(status.layer, Some(Layer::ClusterConfig));
        world.config(r#"{"id":2}"#);
        assert!(world.following.is_some());
        assert_eq!(
            (world.told.as_slice(), world.dialled.len()),
            (&["connected", "connected"][..], 1)
        );
    }
}

#[test]
fn capabilities_say_which_kinds_there_are_also_while_connected() {
    let mut world = World::connected();
    let config = |capabilities: &str| format!(r#"{{"id":2,"capabilities":{{{capabilities}}}}}"#);
    world.config(&config(""));
    let followed = |world: &World| world.following.clone().unwrap();
    assert_eq!(followed(&world).kinds, Kind::BASIC);
    let others = [Kind::ServiceExports, Kind::EndpointSlices];
    assert_eq!(followed(&world).absent, others);
    world.config(&config(r#""serviceExportsEnabled":false"#));
    assert_eq!(followed(&world).absent, [Kind::EndpointSlices]);
    world.config(&config(
        r#""endpointSlicesExportMode":"services-and-endpointslices""#,
    ));
    assert_eq!(followed(&world).absent, [Kind::ServiceExports]);
    world.config(&config(
        r#""endpointSlicesExportMode":"endpointslices-only""#,
    ));
    assert_eq!(
        followed(&world).absent,
        [Kind::Services, Kind::ServiceExports]
    );
    assert!(world.status().warnings[0].contains("endpoint slices only"));
    world.config(&config(r#""cached":true,"syncedCanaries":true"#));
    assert_eq!(followed(&world).layout, Layout::Cache);
    assert!(world.told.iter().all(|told| *told == "connected"));
    assert_eq!((world.dialled.len(), world.failures), (1, 0));
    // The same again is no change.
    let before = world.told.len();
    world.config(&config(r#""cached":true,"syncedCanaries":true"#));
    assert_eq!(world.told.len(), before);
}

#[test]
fn heartbeat_is_the_last_sign_of_life_whatever_else_is_seen() {
    let stale = Timing::default().heartbeat_stale;
    let mut world = World::connected();
    world.config(r#"{"id":2}"#);
    world.pass(stale - SECOND);
    let beat = Some(world.now);
    let seen = Seen {
        beat,
        ..world.machine.seen.clone()
    };
    world.input(Input::Seen(seen));
    world.pass(stale - SECOND);
    assert!(world.following.is_some() && world.failures == 0);
    world.pass(SECOND);
    assert_eq!((world.following, world.failures), (None, 1));
    assert_eq!(world.told, ["connected"]);
}

#[test]
fn ready_when_every_kind_is_complete_and_canaries_are_named_until_then() {
    let mut world = World::connected();
    world.config(r#"{"id":2,"capabilities":{"syncedCanaries":true}}"#);
    let status = world.status();
    assert!(status.connected && !status.ready && status.layer == Some(Layer::Canaries));
    assert!(
        status
            .status
            .ends_with("waiting for the canaries of nodes, identities, ip, services")
    );
    let seen = Seen {
        open: Kind::BASIC.to_vec(),
        complete: vec![Kind::Nodes, Kind::Ips],
        ..world.machine.seen.clone()
    };
    world.input(Input::Seen(seen.clone()));
    let status = world.status();
    assert!(status.status.ends_with("listing identities, services") && status.layer.is_none());
    assert!(status.synced.nodes && !status.synced.services && !status.ready);
    let complete = Kind::ALL.to_vec();
    world.input(Input::Seen(Seen { complete, ..seen }));
    assert!(world.status().ready);
    world.fail("reset");
    let status = world.status();
    assert!(!status.ready && !status.synced.nodes && status.config.is_some());
}

#[test]
fn delay_grows_for_whoever_breaks_off_before_its_lists_are_complete() {
    let mut world = World::new();
    world.file(1, None);
    let seen = |complete: &[Kind]| Seen {
        config: Some(Some(r#"{"id":2}"#.into())),
        complete: complete.to_vec(),
        ..Seen::default()
    };
    let mut delay_after = |complete: &[Kind]| {
        world.input(Input::Opened);
        world.input(Input::Seen(seen(&[])));
        world.input(Input::Seen(seen(complete)));
        world.fail("reset");
        let delay = world.machine.deadline().unwrap() - world.now;
        world.pass(delay);
        delay
    };
    let delays = [(); 5].map(|()| delay_after(&[Kind::Nodes]));
    assert!(delays.is_sorted_by(|a, b| a < b), "{delays:?}");
    assert_eq!(delay_after(&Kind::ALL), delays[0]);
}

#[test]
fn cache_ttl_runs_from_the_first_failure_to_the_next_configuration() {
    let ttl = 30 * SECOND;
    let mut world = World::with(MAX, Some(ttl));
    world.file(1, None);
    world.input(Input::Opened);
    world.config(r#"{"id":2}"#);
    world.fail("reset");
    let lost = world.now;
    world.pass(SECOND);
    world.input(Input::Opened);
    world.config(r#"{"id":2}"#);
    world.pass(ttl);
    assert_eq!(world.take_told(), ["connected", "connected"]);
    // Now it stays away, attempt after attempt: once, after the time.
    world.fail("reset");
    let lost_again = world.now;
    assert!(lost_again > lost + ttl);
    while world.now < lost_again + 2 * ttl {
        world.pass(SECOND);
        world.fail("refused");
        let expected = usize::from(world.now >= lost_again + ttl);
        assert_eq!(world.told.len(), expected);
    }
    assert_eq!(world.take_told(), ["expired"]);
    assert_eq!(world.forgotten, SERVICES);
    world.pass(20 * SECOND);
    world.input(Input::Opened);
    world.config(r#"{"id":2}"#);
    world.fail("reset");
    world.pass(ttl);
    assert_eq!(world.take_told(), ["connected", "expired"]);
}

#[test]
fn removal_withdraws_in_any_phase_and_once() {
    let mut world = World::new();
    world.file(1, None);
    world.input(Input::Removed);
    assert_eq!(world.take_told(), ["removed"]);
    assert!(world.machine.deadline().is_none());
    world.file(1, None);
    world.input(Input::Opened);
    world.config(r#"{"id":2}"#);
    world.input(Input::Removed);
    assert_eq!(world.take_told(), ["connected", "removed"]);
    world.fail("late news");
    world.input(Input::Timer);
    assert!(world.told.is_empty() && world.machine.is_removed());
}

#[test]
fn new_file_dials_anew_and_keeps_what_is_known() {
    let mut world = World::connected();
    world.config(r#"{"id":2}"#);
    world.file(2, None);
    assert!(world.following.is_none() && world.forgotten.is_empty());
    assert_eq!(
        (&*world.told, &*world.dialled),
        (&["connected"][..], &[0, 1][..])
    );
    // Ranges that changed may let in what was kept out: all is wanted again.
    world.input(Input::File(File {
        endpoints: 1,
        relay: None,
        cluster_id: None,
        allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap()].into(),
        warnings: vec!["unknown".to_owned()],
    }));
    assert_eq!(world.forgotten, Kind::ALL);
    // And what they forbid goes before the peer says anything.
    assert_eq!(*world.allowed, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(world.status().warnings, ["unknown"]);
}

#[test]
fn another_nodes_cache_is_followed_behind_canaries_of_its_own() {
    let mut world = World::new();
    world.input(Input::File(File {
        endpoints: 1,
        relay: Some("n2".to_owned()),
        cluster_id: None,
        allowed_cidrs: Arc::default(),
        warnings: Vec::new(),
    }));
    world.input(Input::Opened);
    world.config("");
    let text = world.status().status;
    assert!(text.contains("cache of node n2"), "{text}");
    world.config(r#"{"id":2,"capabilities":{"cached":true,"syncedCanaries":true}}"#);
    let subject = world.following.clone().unwrap();
    assert_eq!((subject.layout, subject.canaries), (Layout::Relay, true));
    assert!(world.status().status.contains("cache of n2: 1/1 connected"));
    // Now this node imports: the same peer as its file says, whatever it was listed by before.
    world.file(1, None);
    world.input(Input::Opened);
    world.config(r#"{"id":2,"capabilities":{}}"#);
    let subject = world.following.clone().unwrap();
    assert_eq!((subject.layout, subject.canaries), (Layout::State, false));
    assert_eq!(world.take_told(), ["connected", "connected"]);
}
