//! Rounds of changes and packets in one world: kernel, verdict function and evaluator must agree on
//! each packet, on flows that go on from earlier rounds, and on the answers of those that pass.
use std::path::PathBuf;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tombolo::policy::parse;

use super::{
    coverage::Rows,
    generate::{self, ENDPOINTS, Sources},
    model::{Load, Packet, Policy, World},
    naive, refusals,
    street::{Moment, Street, interfaces},
    yaml,
};
use crate::lab::isolated;

/// Worlds of a run, by default.
const WORLDS: u64 = 26;
const ROUNDS: usize = 5;
/// New flows of a round.
const PACKETS: usize = 450;
/// Flows of earlier rounds that are looked at again.
const OLD_FLOWS: usize = 60;
/// Policies of a round that must be refused.
const REFUSALS: usize = 12;
/// Each row of the policy language, in packets.
const ROW_LEAST: u64 = 100;
/// Of the packets of new flows, in percent, those that pass and those that do not.
const SHARE_LEAST: u64 = 30;

/// Plays one world alone.
const SEED: &str = "TOMBOLO_POLICY_SEED";
/// Plays so many.
const COUNT: &str = "TOMBOLO_POLICY_WORLDS";

#[test]
fn kernel_and_verdict_and_evaluator_agree() {
    let name = "policy::differential::kernel_and_verdict_and_evaluator_agree";
    isolated(name, || {
        interfaces(ENDPOINTS);
        let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
        let seeds = match (number(SEED), number(COUNT)) {
            (Some(seed), _) => seed..seed + 1,
            (None, count) => 0..count.unwrap_or(WORLDS),
        };
        let whole = seeds.end >= WORLDS;
        let mut tally = Tally::default();
        for seed in seeds {
            play(seed, &mut tally);
        }
        tally.report();
        if whole {
            tally.check();
        }
    });
}

/// What a run has seen.
#[derive(Default)]
struct Tally {
    rows: Rows,
    passed: u64,
    dropped: u64,
    again: u64,
    answers: u64,
}

impl Tally {
    #[expect(clippy::print_stderr, reason = "the counts are a part of the proof")]
    fn report(&self) {
        let Self {
            passed,
            dropped,
            again,
            answers,
            ..
        } = self;
        eprintln!(
            "new flows: {passed} pass, {dropped} do not; {again} later packets, {answers} answers"
        );
    }

    fn check(&self) {
        let rare = self.rows.rare(ROW_LEAST);
        assert!(rare.is_empty(), "rows that are hardly met:\n{rare}");
        let all = self.passed + self.dropped;
        for count in [self.passed, self.dropped] {
            assert!(count * 100 >= all * SHARE_LEAST, "{count} of {all}");
        }
    }
}

fn play(seed: u64, tally: &mut Tally) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = generate::world(&mut rng);
    let root = PathBuf::from(format!("/sys/fs/bpf/world{seed}"));
    std::fs::create_dir(&root).unwrap();
    let mut street = Street::new(&root, &world);
    let mut sources = Sources::new();
    let mut flows: Vec<(Packet, bool)> = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 {
            for _ in 0..rng.random_range(1..=6) {
                let change = generate::change(&mut rng);
                generate::apply(&mut world, &change);
                street.follow(&world, &change);
            }
        }
        let mut look = Look {
            seed,
            round,
            world: &world,
            street: &mut street,
            tally,
        };
        for _ in 0..OLD_FLOWS.min(flows.len()) {
            let place = rng.random_range(0..flows.len());
            let (flow, passed) = &mut flows[place];
            *passed = look.again(flow, *passed);
        }
        for _ in 0..PACKETS {
            let packet = generate::packet(&mut rng, look.world, &mut sources);
            let passed = look.new_flow(&packet);
            flows.push((packet, passed));
        }
        look.refuse(&mut rng);
    }
}

/// A round.
struct Look<'a> {
    seed: u64,
    round: usize,
    world: &'a World,
    street: &'a mut Street,
    tally: &'a mut Tally,
}

impl Look<'_> {
    /// The first packet of a flow, and its answer if it passes; true if it does.
    fn new_flow(&mut self, packet: &Packet) -> bool {
        let passes = naive::passes(self.world, packet, &mut self.tally.rows);
        let verdict = self.street.verdict(packet);
        let kernel = self.street.kernel(self.world, packet, Moment::First);
        if verdict != passes || kernel != passes {
            self.fail(packet, "a new flow", passes, verdict, kernel);
        }
        if passes {
            self.tally.passed += 1;
            self.answer(packet);
        } else {
            self.tally.dropped += 1;
        }
        passes
    }

    /// Whatever the policy says about its direction, as it belongs to a flow that passes.
    fn answer(&mut self, packet: &Packet) {
        let answered = match packet.load {
            Load::Tcp(_) | Load::Udp(_) | Load::Sctp(_) => true,
            Load::Icmp(kind) => kind == if packet.remote.is_ipv6() { 128 } else { 8 },
            Load::Other(_) => false,
        };
        if !answered {
            return;
        }
        let passed = self.street.kernel(self.world, packet, Moment::Answer);
        if !passed {
            self.fail(packet, "an answer", true, true, false);
        }
        self.tally.answers += 1;
        self.tally.rows.hit("6.7 answer of an allowed flow");
        self.tally.rows.next_packet();
    }

    /// A later packet of a flow that has `passed` when it was seen last.
    fn again(&mut self, packet: &Packet, passed: bool) -> bool {
        let passes = naive::passes(self.world, packet, &mut Rows::default());
        let verdict = self.street.verdict(packet);
        let kernel = self.street.kernel(self.world, packet, Moment::Later);
        if verdict != passes || kernel != passes {
            self.fail(packet, "a later packet", passes, verdict, kernel);
        }
        self.tally.again += 1;
        let rows = &mut self.tally.rows;
        rows.hit_if(passed && passes, "6.7 flow goes on");
        rows.hit_if(passed && !passes, "6.7 flow is cut");
        rows.next_packet();
        passes
    }

    fn refuse(&mut self, rng: &mut StdRng) {
        let policies = self.world.files.values().flatten();
        let cilium = policies.filter(|p| matches!(p, Policy::Cilium(_)));
        let texts: Vec<_> = cilium.map(yaml::object).collect();
        for _ in 0..REFUSALS.min(texts.len() * REFUSALS) {
            let whole = &texts[rng.random_range(0..texts.len())];
            let (row, spoiled) = refusals::spoil(rng, whole);
            let text = yaml::text(&spoiled);
            let parsed = parse(&text, "spoiled.yaml".as_ref());
            assert!(parsed.is_err(), "seed {}: taken:\n{text}", self.seed);
            self.tally.rows.hit(row);
            self.tally.rows.next_packet();
        }
    }

    fn fail(&self, packet: &Packet, what: &str, passes: bool, verdict: bool, kernel: bool) -> ! {
        let word = |passes| if passes { "passes" } else { "is dropped" };
        let endpoint = &self.world.endpoints[packet.endpoint];
        let known = self.world.addresses.iter();
        let known = known.filter(|(net, _)| net.contains(packet.remote));
        let owner = known
            .max_by_key(|(net, _)| net.bits)
            .map(|(_, owner)| owner);
        let labels = owner.and_then(|owner| self.world.identities.get(&owner.identity));
        panic!(
            "{SEED}={} round {}: {what} {}, verdict function: {}, kernel: {}\n{packet:?}\n\
             endpoint {}\nremote {owner:?} {}\n{:?}, local cluster by default: {}\n{}",
            self.seed,
            self.round,
            word(passes),
            word(verdict),
            word(kernel),
            short(&endpoint.labels),
            labels.map(|labels| short(labels)).unwrap_or_default(),
            self.world.enforcement,
            self.world.default_local,
            decisive(self.world, packet, passes),
        );
    }
}

fn short(labels: &[super::model::Label]) -> String {
    let each = labels.iter();
    each.map(|l| format!("{}:{}={} ", l.source, l.key, l.value))
        .collect()
}

/// The policies without any of which the evaluator would say otherwise; all of them if there is no
/// such one.
fn decisive(world: &World, packet: &Packet, passes: bool) -> String {
    let all: Vec<&Policy> = world.files.values().flatten().collect();
    let mut text = String::new();
    for left_out in 0..all.len() {
        let mut without = world.clone();
        let rest = all
            .iter()
            .enumerate()
            .filter(|(place, _)| *place != left_out);
        let rest = rest.map(|(_, policy)| (*policy).clone()).collect();
        without.files = [("rest.yaml".to_owned(), rest)].into();
        if naive::passes(&without, packet, &mut Rows::default()) != passes {
            text += &yaml::file(&[all[left_out].clone()]);
        }
    }
    if text.is_empty() {
        let count = all.len();
        text = format!("none of the {count} policies decides alone");
    }
    text
}
