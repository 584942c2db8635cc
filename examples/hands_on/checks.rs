//! What counts as right: cells of the tables, refusals against drops, what arrived at the pod.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use tombolo::test_support::process::Helper;

use crate::{
    agents::Programs,
    traffic::{Attempt, Syns},
    world::{DATABASE, REDIS_PORT, Site, Workload},
};

/// `SYN` in the flags byte of a TCP header.
const SYN: u8 = 0x02;
/// TCP's number in the IP header.
const TCP: u8 = 6;

/// A client of the database, and what it saw.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Index of its site.
    pub(crate) site: usize,
    pub(crate) cluster: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) app: &'static str,
    pub(crate) address: Ipv4Addr,
    pub(crate) allowed: bool,
    pub(crate) attempts: Vec<Attempt>,
}

/// A cell of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Pong,
    TimedOut,
    Mixed(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pong => f.write_str("PONG"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Mixed(text) => f.write_str(text),
        }
    }
}

impl Visit {
    /// Without attempts yet.
    fn new(index: usize, site: &Site, workload: &Workload) -> Self {
        Self {
            site: index,
            cluster: site.cluster,
            namespace: workload.namespace,
            app: workload.app,
            address: workload.pod.address,
            allowed: workload.allowed,
            attempts: Vec::new(),
        }
    }

    /// `cluster/namespace/app`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.namespace, self.app)
    }

    /// All attempts in one word.
    pub(crate) fn cell(&self) -> Cell {
        let failed: Vec<_> = self
            .attempts
            .iter()
            .filter_map(|a| a.error.as_deref())
            .collect();
        let all = self.attempts.len();
        if all == 0 {
            Cell::Mixed("no attempt".to_owned())
        } else if failed.is_empty() {
            Cell::Pong
        } else if failed.len() == all && failed.iter().all(|e| *e == "connect: timed out") {
            Cell::TimedOut
        } else {
            let mut kinds = BTreeMap::<_, u32>::new();
            for error in &failed {
                *kinds.entry(*error).or_default() += 1;
            }
            Cell::Mixed(format!("{} of {all} failed: {kinds:?}", failed.len()))
        }
    }

    /// Fails with both values if the cell is not as expected.
    pub(crate) fn expect(&self, expected: &Cell) -> Result<()> {
        let got = self.cell();
        ensure!(
            got == *expected,
            "{}: expected {expected}, got {got}",
            self.name()
        );
        Ok(())
    }
}

/// All clients of the database.
pub(crate) fn clients(sites: &[Site; 2]) -> Vec<Visit> {
    let of_site = |(index, site): (usize, &'_ Site)| -> Vec<Visit> {
        let clients = site.workloads.iter().filter(|w| w.app != DATABASE);
        clients.map(|w| Visit::new(index, site, w)).collect()
    };
    sites.iter().enumerate().flat_map(of_site).collect()
}

/// Every client opens `count` connections, all clients at once.
pub(crate) fn visit(
    programs: &Programs,
    sites: &[Site; 2],
    rate: u32,
    count: u32,
) -> Result<Vec<Visit>> {
    let (rate, count) = (rate.to_string(), count.to_string());
    let words = ["client", "--rate", &rate, "--count", &count];
    let mut visits = clients(sites);
    let mut helpers = Vec::new();
    for visit in &visits {
        helpers.push(programs.part(sites, (visit.site, visit.app), &words)?);
    }
    for (visit, helper) in visits.iter_mut().zip(helpers) {
        visit.attempts = attempts(helper, Duration::from_secs(30))?;
    }
    Ok(visits)
}

/// Lets a client finish, and reads its report.
pub(crate) fn attempts(helper: Helper, limit: Duration) -> Result<Vec<Attempt>> {
    let lines = helper.finish(limit)?;
    let line = lines.last().context("a client reports its attempts")?;
    serde_json::from_str(line).with_context(|| format!("read a client's report {line}"))
}

/// Lets a capture finish, and reads its report.
pub(crate) fn captured(helper: Helper) -> Result<Syns> {
    let lines = helper.finish(Duration::from_secs(20))?;
    let line = lines.last().context("a capture reports its counts")?;
    serde_json::from_str(line).with_context(|| format!("read a capture's report {line}"))
}

/// The capture agrees with the clients: every SYN of an answered attempt arrived, no other source
/// was seen, and nothing of a client that may not.
pub(crate) fn check_arrivals(visits: &[Visit], syns: &Syns) -> Result<()> {
    for visit in visits {
        let arrived: BTreeSet<u16> = syns
            .0
            .get(&visit.address)
            .into_iter()
            .flat_map(|p| p.keys().copied())
            .collect();
        if !visit.allowed {
            let count = arrived.len();
            ensure!(
                count == 0,
                "{}: expected no SYN at the pod, got {count}",
                visit.name()
            );
        }
        let answered = visit.attempts.iter().filter(|a| a.error.is_none());
        let missed = answered.filter(|a| !arrived.contains(&a.port)).count();
        ensure!(
            missed == 0,
            "{}: the capture missed {missed} answered SYNs",
            visit.name()
        );
    }
    for source in syns.0.keys() {
        ensure!(
            visits.iter().any(|v| v.address == *source),
            "a SYN came from unknown {source}"
        );
    }
    Ok(())
}

/// One line of `tombolo monitor --type drop -o json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum MonitorLine {
    Drop(Drop),
    Lost { count: u64 },
}

/// A drop event; the fields that the story judges.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Drop {
    pub(crate) reason: String,
    pub(crate) endpoint: u32,
    pub(crate) source_identity: u32,
    pub(crate) destination_identity: u32,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
}

impl Drop {
    /// Reads all lines of a monitor; one that lost events proves nothing and is an error.
    pub(crate) fn read(lines: &[String]) -> Result<Vec<Self>> {
        let read = |line: &String| match serde_json::from_str(line) {
            Ok(MonitorLine::Drop(drop)) => Ok(drop),
            Ok(MonitorLine::Lost { count }) => bail!("the monitor lost {count} events"),
            Err(error) => Err(error).with_context(|| format!("read a drop event {line}")),
        };
        lines.iter().map(read).collect()
    }

    /// Is this the drop of the SYN that `visit` sent from `port` to the database?
    pub(crate) fn is_of(&self, visit: &Visit, port: u16, database: Ipv4Addr) -> bool {
        self.source == IpAddr::V4(visit.address)
            && self.source_port == port
            && self.destination == IpAddr::V4(database)
            && self.destination_port == REDIS_PORT
            && self.protocol == TCP
    }
}

/// Every refusal is one drop event, with the right identities, while an allowed client got through.
pub(crate) fn check_refusals(
    visits: &[Visit],
    drops: &[Drop],
    sites: &[Site; 2],
    database: Ipv4Addr,
) -> Result<u64> {
    let answered: Vec<u64> = visits
        .iter()
        .filter(|v| v.allowed)
        .flat_map(|v| {
            v.attempts
                .iter()
                .filter(|a| a.error.is_none())
                .map(|a| a.at_ms)
        })
        .collect();
    let mut refusals = 0;
    for visit in visits.iter().filter(|v| !v.allowed) {
        let site = sites.get(visit.site).context("a visit's site exists")?;
        for attempt in &visit.attempts {
            let name = format!("{} port {}", visit.name(), attempt.port);
            let of_it: Vec<_> = drops
                .iter()
                .filter(|d| d.is_of(visit, attempt.port, database))
                .collect();
            let [drop] = of_it.as_slice() else {
                bail!("{name}: expected one drop event, got {}", of_it.len());
            };
            let whose = (drop.source_identity >> 16, drop.destination_identity >> 16);
            let expected = (site.id, sites[0].id);
            ensure!(
                whose == expected,
                "{name}: expected identities of clusters {expected:?}, got {whose:?} in {drop:?}"
            );
            let (chosen, got) = (site.workload(visit.app)?.identity, drop.source_identity);
            ensure!(
                chosen.is_none_or(|identity| identity == got),
                "{name}: expected identity {chosen:?}, got {got}"
            );
            ensure!(
                drop.reason == "Policy denied",
                "{name}: reason {}",
                drop.reason
            );
            ensure!(
                drop.tcp_flags & 0x12 == SYN,
                "{name}: flags {:#x}",
                drop.tcp_flags
            );
            ensure!(drop.endpoint != 0, "{name}: no endpoint");
            ensure!(
                answered.iter().any(|at| at.abs_diff(attempt.at_ms) < 1_000),
                "{name}: expected an allowed client to succeed in the same second, got none"
            );
            refusals += 1;
        }
    }
    let (expected, got) = (refusals, drops.len());
    ensure!(
        got == expected,
        "expected {expected} drop events in all, got {got}: {drops:?}"
    );
    u64::try_from(refusals).context("count refusals")
}

/// Fails if a client opened fewer than `least` connections a second in any part of the time.
pub(crate) fn check_rate(visit: &Visit, marks_ms: &[u64], least: u64) -> Result<()> {
    for part in marks_ms.windows(2) {
        let &[begin, end] = part else { continue };
        let count = visit
            .attempts
            .iter()
            .filter(|a| (begin..end).contains(&a.at_ms))
            .count();
        let rate = u64::try_from(count).context("count attempts")? * 1_000 / (end - begin).max(1);
        let name = visit.name();
        ensure!(
            rate >= least,
            "{name}: expected {least} connections a second, got {rate}"
        );
    }
    Ok(())
}

/// What the policy says: employees in, strangers out.
pub(crate) fn expect_policy(visit: &Visit) -> Result<()> {
    visit.expect(if visit.allowed {
        &Cell::Pong
    } else {
        &Cell::TimedOut
    })
}

/// Who reached the database, in one or two columns.
pub(crate) fn table(first: &[Visit], second: Option<&[Visit]>) {
    let header = second.map_or(["got", ""], |_| ["before", "after"]);
    println!("{:<34} {:<12} {}", "Client", header[0], header[1]);
    for (index, visit) in first.iter().enumerate() {
        let after = second
            .and_then(|s| s.get(index))
            .map(|v| v.cell().to_string());
        let cell = visit.cell().to_string();
        println!(
            "{:<34} {cell:<12} {}",
            visit.name(),
            after.unwrap_or_default()
        );
    }
}
