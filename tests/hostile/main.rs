//! Peers that do all they can, beside one that behaves: a real agent over mTLS, the hostile ones a
//! process of their own. The agent's memory stays within what its limits grant them, the neighbour
//! is as fast as before and loses nothing, and nothing that breaks a rule is visible.
//! `TOMBOLO_HOSTILE_SECONDS` makes the flood longer; from 60 s on a million keys come. How fast the
//! neighbour must be depends on the build: an unoptimized agent takes ten times as long for the flood.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of a test"
)]

mod agent;
mod neighbour;
mod peers;

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tombolo::{
    keyspace::{IpRecord, Kind, Layout, Rejection},
    limits,
    test_support::{eventually, process::Helper},
};

use self::{agent::Agent, neighbour::Neighbour};

const SECONDS: u64 = 10;
/// From here on a million keys come.
const LONG_SECONDS: u64 = 60;
/// The neighbour's writes are measured for so long before there is a flood.
const BASELINE: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);
/// What may come on top of a short run's latency, which is below a millisecond in an optimized build:
/// timers and the scheduler of a machine that flood, agent and neighbour share. Whoever waited for the
/// flood would wait for seconds.
const NOISE: Duration = if cfg!(debug_assertions) {
    Duration::from_millis(40)
} else {
    Duration::from_millis(2)
};
/// What each of these is refused for, at the least.
const REASONS: [&str; 9] = [
    "address-of-other-peer",
    "event-rate",
    "identity-out-of-range",
    "incomplete",
    "invalid-field",
    "key-mismatch",
    "oversize",
    "prefix-too-wide",
    "undecodable",
];

#[test]
fn a_flood_of_hostile_peers_costs_its_quota_and_no_neighbour() {
    let seconds = std::env::var("TOMBOLO_HOSTILE_SECONDS");
    let seconds = seconds.map_or(SECONDS, |text| text.parse().unwrap());
    let keys: usize = if seconds < LONG_SECONDS {
        200_000
    } else {
        1_000_000
    };
    let agent = Agent::start();
    let mut neighbour = Neighbour::start(&agent);
    agent.join(&neighbour.file);
    neighbour.write_for(BASELINE);
    let baseline = neighbour.p99();
    let before = agent.peak_bytes();

    let hostile = hostile(&agent, keys);
    neighbour.write_for(Duration::from_secs(seconds));
    let p99 = neighbour.p99();
    let peak = agent.peak_bytes();
    let lines = hostile.lines_now();
    let sent = lines.last().map_or("", String::as_str);
    let quota = quota(sent);
    println!(
        "p99 {baseline:?} alone, {p99:?} in the flood; resident {} MiB alone, {} MiB at most, {} MiB \
         of it by quota; {sent}",
        before >> 20,
        peak >> 20,
        quota >> 20,
    );

    assert!(
        peak <= before + quota * 105 / 100,
        "{peak} bytes are resident"
    );
    assert!(
        p99 <= baseline.mul_f64(1.2).max(baseline + NOISE),
        "p99 {p99:?} in the flood, {baseline:?} alone"
    );
    neighbour.saw_everything();
    violations_are_told(&agent);
    nothing_refused_is_visible(&agent, &neighbour);
    drop(hostile);
}

/// The process of the hostile peers; started by the test above.
#[test]
#[ignore = "is no test by itself"]
fn hostile_process() {
    let [dir, keys] = ["HOSTILE_DIR", "HOSTILE_KEYS"].map(|name| std::env::var(name).unwrap());
    peers::run(dir.as_ref(), keys.parse().unwrap());
}

/// Starts the hostile peers and tells the agent of them.
fn hostile(agent: &Agent, keys: usize) -> Helper {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hostile_process", "--ignored", "--nocapture"]);
    command
        .env("HOSTILE_DIR", agent.path("hostile"))
        .env("HOSTILE_KEYS", keys.to_string());
    for (name, _) in peers::PEERS {
        agent.certificates(name, &agent.path("hostile").join(name));
    }
    let helper = Helper::start("hostile", &mut command).unwrap();
    let line = loop {
        let line = helper
            .line(PATIENCE)
            .unwrap()
            .expect("it serves until it is killed");
        if let Some((_, ports)) = line.split_once("listening ") {
            break ports.to_owned();
        }
    };
    for ((name, _), port) in peers::PEERS.iter().zip(line.split(' ')) {
        let url = format!("https://127.0.0.1:{port}");
        let certs = agent.path("hostile").join(name);
        agent.join(&agent.issue(name, &certs, &url));
    }
    helper
}

/// What the limits grant these peers after what they `sent`: unreadable keys, which are copied, with
/// their places in all indexes and the changes of them that are kept; the notes of all keys for the
/// next connection; values held back; what waits on the way, and the largest slice on each of two
/// threads, whose allocators keep room for it.
fn quota(sent: &str) -> usize {
    const KEY_BYTES: usize = 1_024;
    const NOTE_BYTES: usize = 128;
    let number = |word: &str| word.parse::<usize>().unwrap();
    let mut words = sent.split(' ').skip(1).step_by(2);
    let [keys, pages] = [(); 2].map(|()| number(words.next().unwrap()));
    let listed = keys + pages * usize::try_from(limits::LIST_PAGE_KEYS).unwrap();
    let kept = keys / peers::SORTS * KEY_BYTES + listed * NOTE_BYTES;
    let held = limits::PEER_HELD_BYTES_MAX;
    let waiting = limits::MEMBER_PENDING_BYTES
        + limits::PEER_QUEUE_BATCHES * limits::VALUE_BYTES_MAX
        + limits::CLIENT_CONNECTION_WINDOW as usize;
    kept + held + waiting + 2 * limits::ENDPOINT_SLICE_BYTES_MAX
}

fn violations_are_told(agent: &Agent) {
    let counts = eventually(PATIENCE, || {
        let text = agent.verb(&["status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&text)?;
        let all = status["rejected"].as_array().cloned().unwrap_or_default();
        let of_flood = all.iter().filter(|rejected| rejected["cluster"] == "flood");
        let counts: BTreeMap<String, u64> = of_flood
            .filter_map(|r| Some((r["reason"].as_str()?.to_owned(), r["count"].as_u64()?)))
            .collect();
        for reason in REASONS {
            anyhow::ensure!(counts.contains_key(reason), "no {reason} in {counts:?}");
        }
        Ok(counts)
    });
    println!("rejected: {:?}", counts.unwrap());
}

/// What can't be read is copied, and nothing else of the hostile peers is anywhere.
fn nothing_refused_is_visible(agent: &Agent, neighbour: &Neighbour) {
    let list = agent.verb(&["ip", "list"]).unwrap();
    for garbage in ["10.66.", "0.0.0.0/0", "flood"] {
        assert!(!list.contains(garbage), "{garbage} is listed");
    }
    for kind in Kind::ALL {
        let prefix = Layout::Cache.prefix(kind, &"flood".parse().unwrap());
        for (key, value) in neighbour.cached(&prefix) {
            let unreadable = kind == Kind::Ips
                && matches!(IpRecord::decode(&value), Err(Rejection::Undecodable(_)));
            assert!(
                unreadable,
                "{} is in the cache",
                String::from_utf8_lossy(&key)
            );
        }
    }
}
