//! The policy engine at the sizes that the design aims at: what one change costs beside a
//! recomputation of everything, until all that follows for the maps is known.
use std::{
    hint::black_box,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tombolo::{
    policy::{
        Enforcement, Engine, Grant, Kind, MapDelta, Options, Origin, Peer, Peers, PerDirection,
        Policy, Port, Requirement, Rule, Selector,
    },
    test_support::process::run_ok,
    types::{EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint},
};

use crate::{
    figure::{Figure, Runs},
    world::{COMMAND_LIMIT, WEST},
};

const POLICIES: u32 = 250;
const ENDPOINTS: u32 = 100;
const IDENTITIES: u32 = 10_000;
/// Of endpoints; each policy selects those of one application.
const LOCAL_APPS: u32 = 25;
/// Of identities; each policy admits those of one application.
const REMOTE_APPS: u32 = 100;
/// Design aims, in milliseconds.
const EDIT_MS_MAX: f64 = 50.0;
const IDENTITY_MS_MAX: f64 = 1.0;
/// Key and value of an entry in the kernel's map.
const KERNEL_ENTRY_BYTES: f64 = 20.0;

/// Measures all cases.
pub(crate) fn measure(quick: bool) -> Result<Vec<Figure>> {
    let rounds = if quick { 5 } else { 31 };
    let mut engine = full()?;
    let mut scratch = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        let start = Instant::now();
        engine = black_box(full()?);
        scratch.push(ms(start.elapsed()));
    }
    let scratch = Runs::new(scratch);
    let beside = |name, ours: &Runs| Figure::beside("from scratch", name, "ms", ours, &scratch);
    let edit = edits(
        &mut engine,
        rounds,
        &policy(7, &[80, 443]),
        &policy(7, &[80, 444]),
    )?;
    let (wide, other) = (wide_policy(8443), wide_policy(8444));
    let wide = edits(&mut engine, rounds, &wide, &other)?;
    let identity = changes(rounds, |add| {
        let id = IdentityId(identity(IDENTITIES + 1));
        let labels = add.then(|| remote_labels(7));
        let mut out = Vec::new();
        engine.apply_identity(id, labels, &mut out);
        out
    })?;
    let endpoint = changes(rounds, |add| {
        let id = EndpointId(ENDPOINTS + 1);
        let event = if add {
            endpoint(id.0)
        } else {
            EndpointEvent::Delete(id)
        };
        let mut out = Vec::new();
        engine.apply_endpoint(&event, &mut out);
        out
    })?;
    let bytes = Runs::new(vec![bytes_in_a_process_of_its_own()?]);
    let kernel = Runs::new(vec![KERNEL_ENTRY_BYTES]);
    Ok(vec![
        beside("policy/edit", &edit).at_most(EDIT_MS_MAX),
        beside("policy/edit-of-all-endpoints", &wide).at_most(EDIT_MS_MAX),
        beside("policy/identity", &identity).at_most(IDENTITY_MS_MAX),
        beside("policy/endpoint", &endpoint),
        Figure::beside("kernel's map", "policy/entry-memory", "B", &bytes, &kernel),
    ])
}

/// Prints what an entry takes in this process, which does nothing else.
pub(crate) fn memory() -> Result<()> {
    let mut engine = without_endpoints()?;
    let before = resident_bytes()?;
    add_endpoints(&mut engine);
    let after = resident_bytes()?;
    let entries = u32::try_from(engine.entry_count())?;
    let bytes = u32::try_from(after - before)?;
    println!("{}", f64::from(bytes) / f64::from(entries));
    Ok(())
}

fn bytes_in_a_process_of_its_own() -> Result<f64> {
    let program = std::env::current_exe().context("find this program")?;
    let output = run_ok(Command::new(program).arg("policy-memory"), COMMAND_LIMIT)?;
    let bytes = output.trim().parse();
    bytes.with_context(|| format!("read {output:?}"))
}

fn resident_bytes() -> Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("read statm")?;
    let pages = statm.split(' ').nth(1).context("read statm")?;
    Ok(pages.parse::<usize>().context("read statm")? * 4096)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Changes a policy to and fro; each way is a run.
fn edits(engine: &mut Engine, rounds: usize, one: &Policy, other: &Policy) -> Result<Runs> {
    let origin = Origin::Cluster(one.name.clone());
    engine.set_policies(&origin, vec![other.clone()], &mut Vec::new());
    let runs = changes(rounds, |first| {
        let policy = if first { one } else { other };
        let mut out = Vec::new();
        engine.set_policies(&origin, vec![policy.clone()], &mut out);
        out
    });
    engine.set_policies(&origin, vec![one.clone()], &mut Vec::new());
    runs
}

fn changes(rounds: usize, mut change: impl FnMut(bool) -> Vec<MapDelta>) -> Result<Runs> {
    let mut runs = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        let deltas = black_box(change(round % 2 == 0));
        runs.push(ms(start.elapsed()));
        ensure!(!deltas.is_empty(), "a change had no effect");
    }
    Ok(Runs::new(runs))
}

/// Everything, from nothing.
fn full() -> Result<Engine> {
    let mut engine = without_endpoints()?;
    add_endpoints(&mut engine);
    Ok(engine)
}

fn without_endpoints() -> Result<Engine> {
    let options = Options {
        cluster: WEST.parse()?,
        default_local_cluster: false,
        enforcement: Enforcement::Default,
    };
    let (mut engine, out) = (Engine::new(options, []), &mut Vec::new());
    for n in 0..IDENTITIES {
        let labels = Some(remote_labels(n % REMOTE_APPS));
        engine.apply_identity(IdentityId(identity(n)), labels, out);
    }
    for n in 0..POLICIES {
        let policy = policy(n, &[80, 443]);
        engine.set_policies(&Origin::Cluster(policy.name.clone()), vec![policy], out);
    }
    Ok(engine)
}

fn add_endpoints(engine: &mut Engine) {
    for id in 1..=ENDPOINTS {
        engine.apply_endpoint(&endpoint(id), &mut Vec::new());
    }
    engine.apply_endpoint(&EndpointEvent::Synced, &mut Vec::new());
}

const fn identity(n: u32) -> u32 {
    (2 << 16) + n
}

fn remote_labels(app: u32) -> Arc<Labels> {
    Arc::new(Labels::parse(&format!(
        "k8s:app=remote{app};k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
         k8s:io.cilium.k8s.policy.cluster=east;k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=shop;"
    )))
}

fn endpoint(id: u32) -> EndpointEvent {
    let app = id % LOCAL_APPS;
    EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id: EndpointId(id),
        identity: IdentityId((1 << 16) + 256 + app),
        labels: Arc::new(Labels::parse(&format!(
            "k8s:app=local{app};k8s:io.cilium.k8s.policy.cluster=west;\
             k8s:io.kubernetes.pod.namespace=shop;k8s:tier=back;"
        ))),
        namespace: "shop".into(),
        name: format!("local{id}"),
        addresses: Vec::new(),
        interface: None,
        named_ports: Vec::new(),
        audit: false,
    }))
}

/// Endpoints of one application admit identities of another on some ports.
fn policy(n: u32, ports: &[u16]) -> Policy {
    let subject = Requirement::k8s("app", &format!("local{}", n % LOCAL_APPS));
    let app = format!("remote{}", n % REMOTE_APPS);
    rule(format!("policy{n}"), subject, &app, ports)
}

/// All endpoints admit the identities of one application.
fn wide_policy(port: u16) -> Policy {
    let subject = Requirement::k8s("tier", "back");
    rule("wide".to_owned(), subject, "remote9", &[port])
}

fn rule(name: String, subject: Requirement, app: &str, ports: &[u16]) -> Policy {
    let port = |port: &u16| Port::Range {
        protocol: 6,
        first: *port,
        last: *port,
    };
    let peer = Selector::new([
        Requirement::k8s("app", app),
        Requirement::k8s("io.kubernetes.pod.namespace", "shop"),
    ]);
    let grant = Grant {
        deny: false,
        peers: Peers::Of(vec![Peer::Labels(peer)]),
        ports: ports.iter().map(port).collect(),
    };
    let rule = Rule {
        subject: Selector::new([subject]),
        default_deny: PerDirection {
            ingress: true,
            egress: false,
        },
        ingress: vec![grant],
        egress: Vec::new(),
    };
    Policy {
        kind: Kind::CiliumNetworkPolicy,
        namespace: Some("shop".to_owned()),
        name,
        audit: false,
        rules: vec![rule],
    }
}
