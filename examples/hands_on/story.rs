//! The steps of the story, in order. The first wrong cell ends it and names its step.
use std::{fs, net::Ipv4Addr, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tombolo::test_support::{
    eventually,
    lab::{Lab, end_leftovers},
    pause,
    process::{Helper, run_ok},
    unix_ms,
};

use crate::{
    Fault, Options, Peer,
    agents::{Programs, agent, log, socket, tail},
    checks::{
        Cell, Drop, Visit, attempts, captured, check_arrivals, check_rate, check_refusals, clients,
        expect_policy, table, visit,
    },
    etcd,
    traffic::Held,
    world::{DATABASE, Invitation, Site, build, policy},
};

/// For everything that an agent does on its own after a file changed or it was started.
const SETTLE: Duration = Duration::from_secs(20);
/// For one line of a helper that is known to come.
const LINE: Duration = Duration::from_secs(10);
/// Connections a second and client while the agent dies and comes back.
const LOAD_RATE: u32 = 150;
/// What of it must have been opened, also on a busy machine.
const LOAD_RATE_LEAST: u64 = 100;
/// How long the killed agent stays dead.
const DEAD: Duration = Duration::from_secs(10);
/// A removed peer must be cut off within this time; the aim is 100 ms.
const CUT_OFF_MS_MAX: u64 = 2_000;
/// The policy's file.
const POLICY: &str = "policies/protect-the-database.yaml";
/// Lines of each agent's log that a failed story shows.
const LOG_LINES: usize = 25;

/// Plays the story; on failure the last line names the step.
pub(crate) fn play(options: &Options) -> ExitCode {
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join("tombolo-demo"));
    let mut step = "clean up".to_owned();
    let result = match options.clean {
        true => end_leftovers(&dir),
        false => prepare(options, &dir, &mut step).and_then(|mut story| {
            let result = story.tell();
            step.clone_from(&story.step);
            if result.is_err() {
                story.show_logs();
            }
            if options.keep {
                story.how_to_look_around();
            }
            result
        }),
    };
    // After a failure the logs stay, for whoever looks for its cause.
    let result = result.and_then(|()| match options.keep || options.clean {
        true => Ok(()),
        false => {
            "clean up".clone_into(&mut step);
            end_leftovers(&dir)
        }
    });
    match result {
        Ok(()) if options.clean => ExitCode::SUCCESS,
        Ok(()) => {
            println!("\nOK: every cell is as it should be");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\n{error:#}\nFAILED at step: {step}");
            ExitCode::FAILURE
        }
    }
}

struct Story {
    lab: Lab,
    sites: [Site; 2],
    programs: Programs,
    peer: Peer,
    fault: Option<Fault>,
    step: String,
}

fn prepare(options: &Options, dir: &Path, step: &mut String) -> Result<Story> {
    let own = std::env::current_exe().context("find this program")?;
    let beside = own
        .parent()
        .and_then(|p| p.parent())
        .map(|p| p.join("tombolo"));
    let tombolo = options
        .tombolo
        .clone()
        .or(beside)
        .context("find the agent's binary")?;
    let tombolo = fs::canonicalize(&tombolo)
        .with_context(|| format!("find the agent's binary {}", tombolo.display()))?;
    let mut lab = Lab::open(dir)?;
    if options.keep {
        lab.keep();
    }
    "hosts and pods".clone_into(step);
    println!("\n== hosts and pods");
    let sites = build(&mut lab)?;
    let programs = Programs { tombolo, own };
    Ok(Story {
        lab,
        sites,
        programs,
        peer: options.peer,
        fault: options.fault,
        step: step.clone(),
    })
}

impl Story {
    fn begin(&mut self, step: &str) {
        println!("\n== {step}");
        step.clone_into(&mut self.step);
    }

    fn tell(&mut self) -> Result<()> {
        self.begin("no way out of the lab");
        self.check_seclusion()?;
        self.begin("certificates");
        let invitations = self.certificates()?;
        self.begin("redis answers in its pod");
        self.database_starts()?;
        if self.peer == Peer::Etcd {
            self.begin("the second cluster's etcd has its keys");
            etcd::start(&mut self.lab, &mut self.sites[1])?;
        }
        self.begin("agents become ready");
        self.agents_start()?;
        self.begin("peers meet through dropped files");
        self.peers_meet(&invitations)?;
        self.begin("before the policy everybody gets PONG");
        let before = visit(&self.programs, &self.sites, 20, 10)?;
        table(&before, None);
        before.iter().try_for_each(|v| v.expect(&Cell::Pong))?;

        self.begin("the policy is dropped in");
        let right = self.fault != Some(Fault::WrongLabel);
        let employee = if right { "employee" } else { "employe" };
        let settled = self.policy_settles(&policy(false, employee))?;
        if self.fault == Some(Fault::DetachLinks) {
            self.detach_links()?;
        }
        self.begin("with the policy both employees get PONG");
        let after = visit(&self.programs, &self.sites, 20, 10)?;
        table(&before, Some(&after));
        let (may, may_not): (Vec<_>, Vec<_>) = after.iter().partition(|v| v.allowed);
        may.iter().try_for_each(|v| v.expect(&Cell::Pong))?;
        self.begin("with the policy both strangers time out");
        may_not.iter().try_for_each(|v| v.expect(&Cell::TimedOut))?;
        ensure!(
            settled,
            "the verdicts came only after {} s",
            SETTLE.as_secs()
        );

        self.begin("each refusal is one drop with both identities");
        self.refusals_match_drops()?;
        self.begin("with cluster1 in the local rule the verdicts are the same");
        let settled = self.policy_settles(&policy(true, employee))?;
        let again = visit(&self.programs, &self.sites, 20, 10)?;
        table(&after, Some(&again));
        again.iter().try_for_each(expect_policy)?;
        ensure!(
            settled,
            "the verdicts came only after {} s",
            SETTLE.as_secs()
        );

        if self.peer == Peer::Etcd {
            self.address_goes_and_returns()?;
        }
        self.begin("the agent is killed, and comes back, under load");
        self.survives_kill()?;
        self.begin("a removed peer is cut off");
        let path = invitations[1].path(&self.sites[0]);
        self.cut_off(|| {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
        })?;
        self.begin("a peer that is put back works again");
        invitations[1].write(&self.sites[0], true)?;
        self.all_back()?;
        self.begin("nothing in the root namespace");
        self.check_seclusion()
    }

    /// No route out of any host, and nothing of ours where this program runs.
    fn check_seclusion(&self) -> Result<()> {
        self.sites.iter().try_for_each(Site::check_no_way_out)?;
        let mut command = std::process::Command::new("ip");
        let links = run_ok(command.args(["-o", "link", "show"]), LINE)?;
        for site in &self.sites {
            for w in &site.workloads {
                let name = &w.pod.interface;
                ensure!(!links.contains(name), "{name} is in the root namespace");
            }
        }
        Ok(())
    }

    /// For the second cluster what the first one issued, and the other way round.
    fn certificates(&self) -> Result<[Invitation; 2]> {
        let [one, two] = &self.sites;
        self.programs.certs_init(one)?;
        self.programs.certs_init(two)?;
        Ok([
            self.programs.certs_issue(one, two)?,
            self.programs.certs_issue(two, one)?,
        ])
    }

    fn database_starts(&mut self) -> Result<()> {
        self.programs.start_database(&mut self.lab, &self.sites)?;
        eventually(SETTLE, || {
            self.lab.alive("redis")?;
            let words = ["client", "--count", "1"];
            let helper = self.programs.part(&self.sites, (0, "employee"), &words)?;
            let tried = attempts(helper, LINE)?;
            ensure!(tried.iter().all(|a| a.error.is_none()), "{tried:?}");
            Ok(())
        })
    }

    fn agents_start(&mut self) -> Result<()> {
        for site in self.peer.agents(&self.sites) {
            site.write_manifests()?;
            self.programs.start_agent(&mut self.lab, site)?;
        }
        for site in self.peer.agents(&self.sites) {
            eventually(SETTLE, || {
                self.lab.alive(&agent(site))?;
                self.programs.ready(site)
            })?;
        }
        Ok(())
    }

    /// Files and certificates in two orders: half a file, the file, the certificates; and the other
    /// way round. An etcd reads nobody.
    fn peers_meet(&self, [for_two, for_one]: &[Invitation; 2]) -> Result<()> {
        let [one, two] = &self.sites;
        if self.peer == Peer::Tombolo {
            for_two.write(two, false)?;
            pause(Duration::from_millis(300));
            for_two.write(two, true)?;
            pause(Duration::from_millis(300));
            for_two.hand_over_secrets(two)?;
        }
        for_one.hand_over_secrets(one)?;
        for_one.write(one, true)?;
        for site in self.peer.agents(&self.sites) {
            eventually(SETTLE, || self.check_lists(site))?;
        }
        for words in [&["node", "list"][..], &["identity", "list"], &["status"]] {
            println!("\ncluster1$ tombolo {}", words.join(" "));
            println!("{}", self.programs.verb(one, words)?.trim_end());
        }
        Ok(())
    }

    /// A site knows nodes, addresses and identities of both clusters.
    fn check_lists(&self, site: &Site) -> Result<()> {
        let nodes = self.programs.verb(site, &["node", "list"])?;
        let identities = self.programs.verb(site, &["identity", "list"])?;
        for other in &self.sites {
            let (node, cidr) = (format!("{}/{}", other.cluster, other.node), other.cidr);
            for part in [&node, cidr] {
                ensure!(
                    nodes.contains(part),
                    "expected {part} in the node list, got\n{nodes}"
                );
            }
            let label = format!("io.cilium.k8s.policy.cluster={}", other.cluster);
            let (expected, got) = (
                other.workloads.len(),
                identities
                    .lines()
                    .filter(|line| line.contains(&label))
                    .count(),
            );
            ensure!(
                got == expected,
                "expected {expected} identities of {}, got {got}:\n{identities}",
                other.cluster
            );
        }
        Ok(())
    }

    /// Drops the policy and waits until the verdicts are as they should be; `false` if that never
    /// happens: the next step shows the cell.
    fn policy_settles(&self, text: &str) -> Result<bool> {
        self.sites[0].drop_file(POLICY, text)?;
        let settled = eventually(SETTLE, || {
            visit(&self.programs, &self.sites, 20, 2)?
                .iter()
                .try_for_each(expect_policy)
        });
        if let Err(error) = &settled {
            println!("the policy does not settle: {error:#}");
        }
        Ok(settled.is_ok())
    }

    fn refusals_match_drops(&self) -> Result<()> {
        let site = &self.sites[0];
        let database = site.workload(DATABASE)?.pod.address;
        let monitor =
            |words: &[&str]| Helper::start("monitor", &mut self.programs.verb_command(site, words));
        let json = monitor(&["monitor", "--type", "drop", "-o", "json"])?;
        let text = monitor(&["monitor", "--type", "drop"])?;
        self.monitors_listen(&json, &text, database)?;
        let before = self.programs.policy_drops(site)?;
        let visits = visit(&self.programs, &self.sites, 10, 20)?;
        visits.iter().try_for_each(expect_policy)?;
        let mut lines = Vec::new();
        let refusals = eventually(Duration::from_secs(5), || {
            lines.extend(json.lines_now());
            check_refusals(&visits, &Drop::read(&lines)?, &self.sites, database)
        })?;
        let counted = || {
            self.programs
                .policy_drops(site)
                .map(|now| now.saturating_sub(before))
        };
        eventually(Duration::from_secs(5), || {
            let got = counted()?;
            ensure!(
                got == refusals,
                "expected the counter to rise by {refusals}, got {got}"
            );
            Ok(())
        })?;
        // Neither grows any further once each refusal has its own.
        pause(Duration::from_millis(500));
        lines.extend(json.lines_now());
        check_refusals(&visits, &Drop::read(&lines)?, &self.sites, database)?;
        let got = counted()?;
        ensure!(
            got == refusals,
            "expected the counter to rise by {refusals}, got {got}"
        );
        self.check_drop_lines(&text.lines_now(), &Drop::read(&lines)?, &visits)?;
        println!("{refusals} refusals, {refusals} drop events, counter + {got}");
        Ok(())
    }

    /// Both monitors show the drop of a SYN that was sent for this; then what they showed is thrown
    /// away, and no more of it is on its way.
    fn monitors_listen(&self, json: &Helper, text: &Helper, database: Ipv4Addr) -> Result<()> {
        let (mut seen, mut seen_text) = (Vec::new(), Vec::new());
        let mut stranger = clients(&self.sites).into_iter().find(|v| !v.allowed);
        let stranger = stranger.as_mut().context("there is a stranger")?;
        eventually(SETTLE, || {
            let words = ["client", "--count", "1"];
            let at = (stranger.site, stranger.app);
            let helper = self.programs.part(&self.sites, at, &words)?;
            stranger.attempts = attempts(helper, LINE)?;
            let port = stranger.attempts.first().context("one attempt")?.port;
            eventually(Duration::from_secs(1), || {
                seen.extend(json.lines_now());
                seen_text.extend(text.lines_now());
                let shown = Drop::read(&seen)?
                    .iter()
                    .any(|d| d.is_of(stranger, port, database));
                ensure!(
                    shown,
                    "no drop event for port {port} of {}",
                    stranger.name()
                );
                let mark = format!("{}:{port}", stranger.address);
                ensure!(
                    seen_text.iter().any(|l| l.contains(&mark)),
                    "no drop line with {mark}"
                );
                Ok(())
            })
        })?;
        pause(Duration::from_millis(300));
        drop((json.lines_now(), text.lines_now()));
        Ok(())
    }

    /// The lines for people say the same as the events; one of each stranger is printed.
    fn check_drop_lines(&self, lines: &[String], drops: &[Drop], visits: &[Visit]) -> Result<()> {
        println!("\ncluster1$ tombolo monitor --type drop");
        for visit in visits.iter().filter(|v| !v.allowed) {
            let port = visit.attempts.first().context("a stranger tried")?.port;
            let database = self.sites[0].workload(DATABASE)?.pod.address;
            let event = drops.iter().find(|d| d.is_of(visit, port, database));
            let event = event.context("each refusal has its event")?;
            let mark = format!("{}:{port}", visit.address);
            let line = lines.iter().find(|line| line.contains(&mark));
            let line = line.with_context(|| format!("no drop line with {mark}"))?;
            let identities = format!("{}->{}", event.source_identity, event.destination_identity);
            let endpoint = format!("to endpoint {}", event.endpoint);
            for part in ["Policy denied", &identities, &endpoint, "tcp SYN"] {
                ensure!(
                    line.contains(part),
                    "expected {part:?} in the drop line, got {line}"
                );
            }
            println!("{line}");
        }
        Ok(())
    }

    fn survives_kill(&mut self) -> Result<()> {
        let capture = self
            .programs
            .part(&self.sites, (0, DATABASE), &["capture"])?;
        let ready = capture.line(LINE)?;
        ensure!(
            ready.as_deref() == Some("ready"),
            "the capture does not listen: {ready:?}"
        );
        let mut visits = clients(&self.sites);
        let mut helpers = Vec::new();
        let rate = LOAD_RATE.to_string();
        for visit in &visits {
            let at = (visit.site, visit.app);
            helpers.push(
                self.programs
                    .part(&self.sites, at, &["client", "--rate", &rate])?,
            );
        }
        pause(Duration::from_secs(1));
        let mut marks = vec![unix_ms()];
        pause(Duration::from_secs(2));
        marks.push(unix_ms());
        self.lab.kill(&agent(&self.sites[0]))?;
        pause(DEAD);
        marks.push(unix_ms());
        self.programs.start_agent(&mut self.lab, &self.sites[0])?;
        let site = &self.sites[0];
        eventually(SETTLE, || self.programs.ready(site))?;
        eventually(SETTLE, || self.check_lists(site))?;
        let back = unix_ms() - marks.last().copied().unwrap_or_default();
        // What a reconcile would still get wrong shows within this time.
        pause(Duration::from_secs(3));
        marks.push(unix_ms());
        for (visit, helper) in visits.iter_mut().zip(helpers) {
            visit.attempts = attempts(helper, Duration::from_secs(30))?;
        }
        let syns = captured(capture)?;
        for visit in &visits {
            let arrived = syns
                .0
                .get(&visit.address)
                .map_or(0, std::collections::BTreeMap::len);
            let (name, count, cell) = (visit.name(), visit.attempts.len(), visit.cell());
            println!("{name:<32} {count:>6} attempts: {cell}; {arrived} SYNs arrived at the pod");
        }
        println!(
            "killed, dead for {} s, reconciled {back} ms after its start",
            DEAD.as_secs()
        );
        visits.iter().try_for_each(expect_policy)?;
        check_arrivals(&visits, &syns)?;
        visits
            .iter()
            .try_for_each(|v| check_rate(v, &marks, LOAD_RATE_LEAST))
    }

    /// In etcd alone: no agent of the second cluster takes part.
    fn address_goes_and_returns(&mut self) -> Result<()> {
        self.begin("an address that is deleted in etcd is cut off");
        let two = &self.sites[1];
        etcd::beat(two)?;
        let employee = two.workload("employee")?;
        self.cut_off(|| etcd::delete_address(two, employee))?;
        self.begin("an address that is put back in etcd works again");
        let two = &self.sites[1];
        etcd::put_address(two, two.workload("employee")?)?;
        self.all_back()
    }

    /// After `cut` the second cluster's employee is out, and so is what it had open.
    fn cut_off(&self, cut: impl FnOnce() -> Result<()>) -> Result<()> {
        let held = self
            .programs
            .part(&self.sites, (1, "employee"), &["hold"])?;
        let report = || -> Result<Held> {
            let line = held
                .line(LINE)?
                .context("the held connection ended without a report")?;
            serde_json::from_str(&line).with_context(|| format!("read {line}"))
        };
        let opened = report()?;
        ensure!(
            matches!(opened, Held::Open { .. }),
            "expected an open connection, got {opened:?}"
        );
        pause(Duration::from_millis(500));
        let removed = unix_ms();
        cut()?;
        let Held::Silent { last_ms, pongs } = report()? else {
            bail!("expected the held connection to fall silent, got its end");
        };
        let took = last_ms.saturating_sub(removed);
        println!("the held connection fell silent {took} ms after that ({pongs} PONGs)");
        ensure!(
            took <= CUT_OFF_MS_MAX,
            "expected the cut within {CUT_OFF_MS_MAX} ms, got {took} ms"
        );
        ensure!(
            last_ms + 200 >= removed,
            "the connection fell silent before that"
        );
        let visits = visit(&self.programs, &self.sites, 20, 5)?;
        table(&visits, None);
        visits.iter().try_for_each(|v| {
            v.expect(if v.allowed && v.site == 0 {
                &Cell::Pong
            } else {
                &Cell::TimedOut
            })
        })
    }

    fn all_back(&self) -> Result<()> {
        let visits = eventually(SETTLE, || {
            let visits = visit(&self.programs, &self.sites, 20, 5)?;
            visits.iter().try_for_each(expect_policy)?;
            Ok(visits)
        })?;
        table(&visits, None);
        Ok(())
    }

    /// The fault: without its links the policy only fills maps. The agent is killed, too, so that it
    /// neither holds the links open nor makes new ones; that alone would leave all enforced.
    fn detach_links(&mut self) -> Result<()> {
        let site = &self.sites[0];
        let interface = &site.workload(DATABASE)?.pod.interface;
        let index = site
            .host
            .namespace
            .shell(&format!("ip -o link show {interface} | cut -d: -f1"))?;
        let found = site
            .host
            .namespace
            .shell("find /sys/fs/bpf -path '*/links/*'")?;
        // A link is pinned as INTERFACE_INDEX-DIRECTION.
        let prefix = format!("/{}-", index.trim());
        let pins: Vec<_> = found
            .lines()
            .filter(|path| path.contains(&prefix))
            .collect();
        ensure!(
            !pins.is_empty(),
            "no pinned link of {interface} ({prefix}) among\n{found}"
        );
        println!("fault: removing {}", pins.join(" "));
        site.host
            .namespace
            .shell(&format!("rm -f {}", pins.join(" ")))?;
        self.lab.kill(&agent(site))
    }

    fn show_logs(&self) {
        let logs = self.sites.iter().flat_map(|s| [log(s), etcd::log(s)]);
        for path in logs {
            let lines = tail(&path, LOG_LINES);
            if !lines.is_empty() {
                println!("\n-- the end of {}", path.display());
                lines.iter().for_each(|line| println!("{line}"));
            }
        }
    }

    fn how_to_look_around(&self) {
        println!("\nEverything is left running. To look around:");
        for site in &self.sites {
            let (pid, tombolo) = (site.host.namespace.pid(), self.programs.tombolo.display());
            let (cluster, node, dir) = (site.cluster, site.node, site.dir.display());
            println!("  # {cluster} ({node}), its logs: {dir}/*.log");
            println!("  nsenter -t {pid} -n -m -- ip route");
            if site.cluster == "cluster1" || self.peer == Peer::Tombolo {
                let socket = socket(site);
                println!("  {tombolo} status --socket-path {}", socket.display());
            }
            for w in &site.workloads {
                let (pid, name) = (w.pod.namespace.pid(), &w.pod.name);
                println!("  nsenter -t {pid} -n -- sh   # pod {}/{name}", w.namespace);
            }
        }
        println!("To end it: the same command with --clean, or any new run.");
    }
}
