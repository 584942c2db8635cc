//! Real agents of one cluster that share its store, each on a host of its own, while what they share
//! is killed. Goal: what peers read in any node's export is never less, never twice, never flaps.
//! Method: every event of every export is recorded over mTLS from the first revision on, and judged
//! at the end. An agent's heart beats once a minute, so each test lasts a little longer than that.
mod nodes;
pub(crate) mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tombolo::{
    keyspace::{Kind, Layout},
    limits::HEARTBEAT_INTERVAL,
    test_support::{eventually, unix_ms},
};

use self::{
    nodes::{Nodes, pod_address},
    record::{Event, Recorder, Session},
};

const HEARTBEAT: &str = "cilium/.heartbeat";
const CANARIES: &str = "cilium/synced/west/";
const IPS: &str = "cilium/state/ip/v1/default/";
const IDENTITIES: &str = "cilium/state/identities/v1/id/";
const NODES: &str = "cilium/state/nodes/v1/west/";
/// Pods of a node at the start; every other one has labels that all nodes share.
const PODS: usize = 8;
/// How long a change may take to every export; a store that is back is noticed within 10 s.
const PATIENCE: Duration = Duration::from_secs(45);
/// How late a beat may be on a busy machine.
const BEAT_SLACK: Duration = Duration::from_secs(10);

/// Agents, what watches their exports, and what these must hold.
struct Cluster {
    nodes: Nodes,
    recorders: Vec<Recorder>,
    /// The label of each pod by its address.
    pods: BTreeMap<Ipv4Addr, String>,
}

impl Cluster {
    /// Starts an agent on each host, with the client file of its store if it has one.
    fn start(nodes: Nodes, configs: &[Option<String>]) -> Self {
        let mut cluster = Self {
            nodes,
            recorders: Vec::new(),
            pods: BTreeMap::new(),
        };
        for (node, config) in (1..).zip(configs) {
            for pod in 1..=PODS {
                let own = format!("own-{node}-{pod}");
                let shared = format!("shared-{pod}");
                cluster.add_pod(node, pod, if pod % 2 == 0 { shared } else { own });
            }
            cluster.nodes.start_agent(node, config.as_deref());
            let namespace = cluster.nodes.namespace(node);
            let recorder = Recorder::start(namespace, &cluster.nodes.certs());
            cluster.recorders.push(recorder);
        }
        cluster.wait_complete();
        cluster
    }

    fn add_pod(&mut self, node: usize, pod: usize, app: String) {
        self.nodes.write_pod(node, pod, &app);
        self.pods.insert(pod_address(node, pod), app);
    }

    /// Waits until every export holds exactly what it must.
    fn wait_complete(&mut self) {
        let (pods, count) = (&self.pods, self.recorders.len());
        for (node, recorder) in (1..).zip(&mut self.recorders) {
            let complete = eventually(PATIENCE, || {
                let sessions = recorder.sessions();
                let last = sessions.last().context("nothing came yet")?;
                check_complete(&state(last), pods, count)
            });
            let complete = complete.with_context(|| format!("the export of node{node}"));
            complete.unwrap_or_else(|error| panic!("{error:#}\n{}", self.nodes.logs()));
        }
    }

    /// Waits until the hearts of these nodes have beaten after `since`.
    fn wait_beats(&mut self, nodes: &[usize], since: u64) {
        for node in nodes {
            let beaten = eventually(HEARTBEAT_INTERVAL + BEAT_SLACK, || {
                let sessions = self.recorders[node - 1].sessions();
                let last = sessions.last().context("nothing came")?;
                let beat = last.iter().rfind(|event| event.key == HEARTBEAT);
                let beat = beat.context("no heartbeat at all")?;
                ensure!(beat.at_ms > since, "node{node} has no heartbeat");
                Ok(())
            });
            beaten.unwrap_or_else(|error| panic!("{error:#}\n{}", self.nodes.logs()));
        }
    }
}

/// Keys and values at the end of a session.
fn state(session: &Session) -> BTreeMap<&str, &str> {
    let mut state = BTreeMap::new();
    for Event { key, value, .. } in session {
        match value {
            Some(value) => state.insert(key.as_str(), value.as_str()),
            None => state.remove(key.as_str()),
        };
    }
    state
}

/// Those below `prefix`, without it.
fn below<'a>(
    state: &'a BTreeMap<&str, &str>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let entries = state.iter();
    entries.filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, *value)))
}

/// Every pod has one address with the identity of its label, every label one identity, every node
/// its record, every kind its canary; and there is nothing else of pods and identities.
fn check_complete(
    state: &BTreeMap<&str, &str>,
    pods: &BTreeMap<Ipv4Addr, String>,
    nodes: usize,
) -> Result<()> {
    let labels: BTreeMap<_, _> = below(state, IDENTITIES).collect();
    let apps: BTreeSet<_> = pods.values().collect();
    let (found, wanted) = (labels.len(), apps.len());
    ensure!(found == wanted, "{found} identities of {wanted}");
    let mut seen = BTreeSet::new();
    for (address, record) in below(state, IPS) {
        let address: Ipv4Addr = address.parse()?;
        let Some(app) = pods.get(&address) else {
            ensure!(address.octets()[1] != 60, "{address} is no pod");
            continue;
        };
        let record: serde_json::Value = serde_json::from_str(record)?;
        let labels = labels.get(record["ID"].to_string().as_str());
        let labels = labels.with_context(|| format!("{record} has no identity"))?;
        ensure!(
            labels.contains(&format!("k8s:app={app};")),
            "{record}: {labels}"
        );
        seen.insert(address);
    }
    let (found, wanted) = (seen.len(), pods.len());
    ensure!(found == wanted, "{found} pods of {wanted}");
    let found = below(state, NODES).count();
    ensure!(found == nodes, "{found} nodes of {nodes}");
    for kind in [Kind::Nodes, Kind::Identities, Kind::Ips, Kind::Services] {
        let canary = Layout::State.canary(kind, &"west".parse()?);
        ensure!(state.contains_key(canary.as_str()), "no {canary}");
    }
    Ok(())
}

/// Each key came once and never went; only the heart beats again, and in time.
fn check_steady(node: usize, session: &Session) {
    let mut seen = BTreeSet::new();
    let mut last_beat = None;
    for event in session {
        let Event {
            at_ms, key, value, ..
        } = event;
        assert!(value.is_some(), "node{node}: {key} went");
        if key != HEARTBEAT {
            assert!(seen.insert(key), "node{node}: {key} came twice");
            continue;
        }
        let beats_on = HEARTBEAT_INTERVAL + BEAT_SLACK;
        let pause = last_beat.map_or(0, |last| at_ms - last);
        assert!(
            u128::from(pause) <= beats_on.as_millis(),
            "node{node}: no beat for {pause} ms"
        );
        last_beat = Some(*at_ms);
    }
}

/// No canary of `later` says that its kind is complete before all that `earlier` had is there.
fn check_canaries(earlier: &Session, later: &Session) {
    let revision = |key: &str| {
        let event = later.iter().find(|event| event.key == key);
        event
            .unwrap_or_else(|| panic!("{key} did not come back"))
            .revision
    };
    let mut compared = 0;
    for canary in later.iter().filter(|event| event.key.starts_with(CANARIES)) {
        let kind = format!("{}/", &canary.key[CANARIES.len()..]);
        for event in earlier.iter().filter(|event| event.key.starts_with(&kind)) {
            let (key, told) = (&event.key, canary.revision);
            assert!(revision(key) < told, "{key} came after its canary");
            compared += 1;
        }
    }
    assert!(compared > 2 * PODS, "{compared} records had a canary");
}

#[test]
fn nodes_that_share_an_etcd_lose_nothing_when_its_members_are_killed() {
    let mut nodes = Nodes::new(3);
    let all = [1, 2, 3];
    for node in all {
        nodes.start_etcd(node);
    }
    let config = nodes.etcd_config();
    let mut cluster = Cluster::start(nodes, &all.map(|_| Some(config.clone())));

    // One member less: writes of every node go on.
    cluster.nodes.kill("etcd1");
    for node in all {
        cluster.add_pod(node, PODS + 1, format!("late-{node}"));
    }
    cluster.wait_complete();
    cluster.nodes.start_etcd(1);

    let flags = cluster.nodes.etcd_flags();
    cluster.nodes.compact(&flags);

    // None at all: the hearts beat on, what comes meanwhile is in every export once they are back.
    for node in all {
        cluster.nodes.kill(&format!("etcd{node}"));
    }
    let down = unix_ms();
    cluster.add_pod(3, PODS + 2, "shared-2".to_owned());
    cluster.wait_beats(&all, down);
    for node in all {
        cluster.nodes.start_etcd(node);
    }
    cluster.wait_complete();

    let mut exports = Vec::new();
    for (node, recorder) in (1..).zip(&mut cluster.recorders) {
        let mut sessions = recorder.sessions();
        assert_eq!(
            sessions.len(),
            1,
            "node{node}: its watchers lost their connection"
        );
        check_steady(node, &sessions[0]);
        exports.push(sessions.remove(0));
    }
    // Times are each node's own: those of the heartbeat and of the canaries.
    let records = |session| {
        let mut state = state(session);
        state.retain(|key, _| key.starts_with("cilium/state/"));
        state
    };
    for export in &exports[1..] {
        assert_eq!(records(export), records(&exports[0]));
    }
}

#[test]
fn a_node_that_uses_the_store_of_another_loses_nothing_when_that_one_is_killed() {
    let nodes = Nodes::new(2);
    let of_first = nodes.tombolo_config(1);
    let mut cluster = Cluster::start(nodes, &[None, Some(of_first)]);
    let flags = cluster.nodes.tombolo_flags();
    cluster.nodes.compact(&flags);

    cluster.nodes.kill("agent1");
    let down = unix_ms();
    cluster.add_pod(2, PODS + 1, "shared-2".to_owned());
    cluster.wait_beats(&[2], down);
    cluster.nodes.start_agent(1, None);
    cluster.wait_complete();
    cluster.wait_beats(&[1], down);

    let other = cluster.recorders[1].sessions();
    assert_eq!(other.len(), 1, "nobody touched node2");
    check_steady(2, &other[0]);
    // An export lives as long as its agent: node1's began anew.
    let killed = cluster.recorders[0].sessions();
    assert_eq!(killed.len(), 2);
    for session in &killed {
        check_steady(1, session);
    }
    check_canaries(&killed[0], &killed[1]);
}
