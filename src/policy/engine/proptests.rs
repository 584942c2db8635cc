//! The incremental engine against one built from scratch, against a model of the rules, and against
//! itself: what packets meet while a change is on its way.
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use proptest::prelude::*;

use self::{
    generate::{Local, Step, step},
    model::{Model, Packet, Passes},
};
use super::{Enforcement, Engine, Options, tests::endpoint};
use crate::{
    policy::{
        EndpointMode, Half, MapDelta, Origin, PolicyEntry, PolicyKey, Question, Side, cidr, verdict,
    },
    types::{EndpointEvent, EndpointId, IdentityId, IpPrefix, LocalEndpoint},
};

mod generate;
mod model;

fn file(number: u8) -> Origin {
    Origin::File(PathBuf::from(format!("{number}.yaml")))
}

fn upsert(id: u32, local: &Local) -> EndpointEvent {
    let EndpointEvent::Upsert(plain) = endpoint(EndpointId(id), Arc::clone(&local.labels)) else {
        unreachable!()
    };
    EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        named_ports: local.ports.clone(),
        audit: local.audit,
        ..LocalEndpoint::clone(&plain)
    }))
}

fn apply(engine: &mut Engine, step: &Step) -> Vec<MapDelta> {
    let mut out = Vec::new();
    match step.clone() {
        Step::Identity(id, labels) => engine.apply_identity(IdentityId(id), labels, &mut out),
        Step::Address(prefix, id) => engine.apply_address(prefix, id.map(IdentityId), &mut out),
        Step::Ports(prefix, ports) => engine.apply_named_ports(prefix, &ports, &mut out),
        Step::Endpoint(id, Some(local)) => engine.apply_endpoint(&upsert(id, &local), &mut out),
        Step::Endpoint(id, None) => {
            engine.apply_endpoint(&EndpointEvent::Delete(EndpointId(id)), &mut out);
        }
        Step::Policies(number, policies) => {
            engine.set_policies(&file(number), policies, &mut out);
        }
    }
    out
}

/// What a kernel holds after the deltas; complains about those that change nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kernel {
    entries: HashMap<PolicyKey, PolicyEntry>,
    modes: BTreeMap<EndpointId, EndpointMode>,
    cidrs: BTreeMap<IpPrefix, IdentityId>,
}

impl Kernel {
    fn of(deltas: &[MapDelta]) -> Self {
        let mut kernel = Self::default();
        deltas.iter().for_each(|delta| kernel.apply(delta));
        kernel
    }

    fn apply(&mut self, delta: &MapDelta) {
        match *delta {
            MapDelta::Entry { key, value } => {
                let old = match value {
                    Some(value) => self.entries.insert(key, value),
                    None => self.entries.remove(&key),
                };
                assert_ne!(old, value, "{key:?} did not change");
            }
            MapDelta::Endpoint { endpoint, mode } => {
                assert_ne!(self.modes.insert(endpoint, mode), Some(mode));
            }
            MapDelta::Cidr { prefix, identity } => {
                let old = match identity {
                    Some(identity) => self.cidrs.insert(prefix, identity),
                    None => self.cidrs.remove(&prefix),
                };
                assert_ne!(old, identity, "{prefix} did not change");
            }
        }
    }

    /// The mesh first, then the longest prefix, then the world.
    fn identity(&self, mesh: &BTreeMap<IpPrefix, u32>, address: IpAddr) -> IdentityId {
        let host = IpPrefix::host(address);
        if let Some(id) = mesh.get(&host) {
            return IdentityId(*id);
        }
        let world = if address.is_ipv4() {
            IdentityId::WORLD_IPV4
        } else {
            IdentityId::WORLD_IPV6
        };
        let mut around = cidr::around(host);
        let known = around.find_map(|prefix| self.cidrs.get(&prefix).copied());
        known.unwrap_or(world)
    }

    fn key(&self, mesh: &BTreeMap<IpPrefix, u32>, packet: &Packet) -> PolicyKey {
        PolicyKey {
            endpoint: EndpointId(packet.endpoint),
            identity: self.identity(mesh, packet.peer),
            direction: packet.direction,
            protocol: packet.protocol,
            port: packet.port,
            port_bits: 16,
        }
    }

    fn judge(&self, key: &PolicyKey) -> Passes {
        let found = verdict(|key| self.entries.get(key).copied(), key);
        let mode = &self.modes[&key.endpoint];
        let deny = *mode.default_deny.get(key.direction);
        let audited = deny || *mode.audit_default_deny.get(key.direction);
        let passes = found.passes(deny) || mode.audit;
        (passes, found.passes_audited(audited))
    }
}

/// True if a delta could change what becomes of a packet.
fn concerns(delta: &MapDelta, packet: &Packet, identity: IdentityId) -> bool {
    match delta {
        MapDelta::Entry { key, .. } => {
            (key.endpoint.0, key.direction) == (packet.endpoint, packet.direction)
                && [identity, IdentityId::UNKNOWN].contains(&key.identity)
                && [packet.protocol, 0].contains(&key.protocol)
        }
        MapDelta::Endpoint { endpoint, .. } => endpoint.0 == packet.endpoint,
        MapDelta::Cidr { prefix, .. } => prefix.contains(packet.peer),
    }
}

/// An engine that learnt at once what another learnt step by step.
fn from_scratch(model: &Model, kernel: &Kernel) -> Engine {
    let held = kernel.cidrs.iter().map(|(prefix, id)| (*prefix, *id));
    let mut engine = Engine::new(model.options.clone(), held);
    let endpoints = model.endpoints.iter();
    let mut steps: Vec<Step> = endpoints
        .map(|(id, local)| Step::Endpoint(*id, Some(local.clone())))
        .collect();
    let policies = model.files.iter();
    steps.extend(policies.map(|(number, all)| Step::Policies(*number, all.clone())));
    let ports = model.ports.iter();
    steps.extend(ports.map(|(prefix, ports)| Step::Ports(*prefix, ports.clone())));
    let addresses = model.addresses.iter();
    steps.extend(addresses.map(|(prefix, id)| Step::Address(*prefix, Some(*id))));
    let identities = model.identities.iter();
    steps.extend(identities.map(|(id, labels)| Step::Identity(*id, Some(Arc::clone(labels)))));
    for step in &steps {
        apply(&mut engine, step);
    }
    engine.apply_endpoint(&EndpointEvent::Synced, &mut Vec::new());
    engine
}

/// What a trace says of a packet.
fn traced(engine: &Engine, packet: &Packet) -> Passes {
    let (here, there) = (
        Side::Endpoint(EndpointId(packet.endpoint)),
        Side::Address(packet.peer),
    );
    let ingress = packet.direction == crate::policy::Direction::Ingress;
    let (source, destination) = if ingress {
        (there, here)
    } else {
        (here, there)
    };
    let question = Question {
        source,
        destination,
        protocol: packet.protocol,
        port: packet.port,
    };
    let trace = engine.trace(&question).unwrap();
    let half = if ingress { trace.ingress } else { trace.egress };
    let Half::Policy(judgement) = half else {
        panic!("{half:?}")
    };
    let audited = judgement.audited.unwrap_or(judgement.basis);
    let passes = judgement.basis.passes() || judgement.audited_endpoint;
    assert_eq!(
        judgement.rule.is_some(),
        super::trace::decided(judgement.basis)
    );
    (passes, audited.passes())
}

fn options() -> impl Strategy<Value = Options> {
    let modes = vec![
        Enforcement::Default,
        Enforcement::Default,
        Enforcement::Default,
        Enforcement::Always,
        Enforcement::Never,
    ];
    (any::<bool>(), proptest::sample::select(modes)).prop_map(
        |(default_local_cluster, enforcement)| Options {
            cluster: "cluster1".parse().unwrap(),
            default_local_cluster,
            enforcement,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_step_leads_where_all_at_once_leads_and_no_packet_falls_between(
        options in options(),
        steps in proptest::collection::vec(step(), 1..24),
    ) {
        let mut engine = Engine::new(options.clone(), []);
        engine.apply_endpoint(&EndpointEvent::Synced, &mut Vec::new());
        let (mut model, mut kernel) = (Model::new(options), Kernel::default());
        for step in steps {
            let before = model.addresses.clone();
            let old: Vec<_> = model.packets().into_iter().map(|p| (p, model.judge(&p))).collect();
            model.apply(&step);
            let deltas = apply(&mut engine, &step);
            let mut now = kernel.clone();
            deltas.iter().for_each(|delta| now.apply(delta));
            if let Step::Endpoint(id, None) = step {
                now.modes.remove(&EndpointId(id));
            }
            // An address that is another's now is so by a write of its own.
            let moving = matches!(step, Step::Address(..));
            let stays = |packet: &Packet| model.endpoints.contains_key(&packet.endpoint);
            let watched: Vec<_> = old.into_iter().filter(|(p, _)| stays(p) && !moving).collect();
            for delta in &deltas {
                kernel.apply(delta);
                for (packet, old) in &watched {
                    let key = kernel.key(&before, packet);
                    if concerns(delta, packet, key.identity) {
                        let (seen, new) = (kernel.judge(&key), model.judge(packet));
                        prop_assert!(seen.0 == old.0 || seen.0 == new.0, "{:?}", packet);
                        prop_assert!(seen.1 == old.1 || seen.1 == new.1, "{:?}", packet);
                    }
                }
            }
            kernel = now;
            prop_assert_eq!(&Kernel::of(&engine.desired()), &kernel);
            prop_assert_eq!(from_scratch(&model, &kernel).desired(), engine.desired());
            for packet in model.packets() {
                let key = kernel.key(&model.addresses, &packet);
                prop_assert_eq!(kernel.judge(&key), model.judge(&packet), "{:?}", packet);
            }
            for packet in model.packets().iter().step_by(13) {
                prop_assert_eq!(traced(&engine, packet), model.judge(packet), "{:?}", packet);
            }
        }
        // Taking everything away leaves nothing behind.
        let mut out = Vec::new();
        for number in 0..2 {
            engine.remove_origin(&file(number), &mut out);
        }
        out.iter().for_each(|delta| kernel.apply(delta));
        prop_assert!(kernel.entries.is_empty() && kernel.cidrs.is_empty());
        prop_assert_eq!(engine.entry_count() + engine.selector_count() + engine.rule_count(), 0);
        prop_assert!(engine.names().is_empty());
    }
}
