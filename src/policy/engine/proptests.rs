//! The incremental engine against a model that computes everything anew.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    Engine, Options,
    tests::{endpoint, labels},
};
use crate::{
    policy::{
        Direction, Grant, Kind, MapDelta, Operator, Origin, Peer, Peers, PerDirection, Policy,
        PolicyEntry, PolicyKey, Port, Requirement, Rule, Selector, Votes,
        selector::{CLUSTER_KEY, NAMESPACE_KEY},
    },
    types::{EndpointEvent, EndpointId, IdentityId, Labels},
};

#[derive(Debug, Clone)]
enum Step {
    Identity(u32, Option<Arc<Labels>>),
    Endpoint(u32, Option<Arc<Labels>>),
    File(u8, Vec<Policy>),
}

fn some_labels() -> impl Strategy<Value = Arc<Labels>> {
    let one_of = |values: &'static [&'static str]| proptest::sample::select(values);
    (
        one_of(&["a", "b", "c"]),
        one_of(&["n1", "n2"]),
        one_of(&["cluster1", "cluster2"]),
    )
        .prop_map(|(app, namespace, cluster)| labels(app, namespace, cluster))
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let key = proptest::sample::select(&[
        ("app", "a"),
        ("app", "b"),
        (NAMESPACE_KEY, "n1"),
        (CLUSTER_KEY, "cluster2"),
        ("missing", "x"),
        ("host", ""),
    ]);
    let source = proptest::sample::select(vec![None, Some("k8s".to_owned())]);
    (key, source, 0..5_u8).prop_map(|((key, value), source, operator)| {
        let values = BTreeSet::from([value.to_owned()]);
        let more = BTreeSet::from([value.to_owned(), "c".to_owned()]);
        let operator = match operator {
            0 => Operator::In(values),
            1 => Operator::In(more),
            2 => Operator::NotIn(values),
            3 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Requirement {
            key: key.into(),
            source,
            operator,
        }
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    proptest::collection::vec(requirement(), 0..3).prop_map(Selector::new)
}

fn grant() -> impl Strategy<Value = Grant> {
    let peer = prop_oneof![
        5 => selector().prop_map(Peer::Labels),
        1 => Just(Peer::LocalCluster),
        1 => Just(Peer::Labels(Selector::new([Requirement::reserved("host")]))),
    ];
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        5 => proptest::collection::vec(peer, 0..3).prop_map(Peers::Of),
    ];
    let port =
        (proptest::sample::select(vec![6_u8, 17]), 80..82_u16).prop_map(|(protocol, port)| {
            Port::Range {
                protocol,
                first: port,
                last: port,
            }
        });
    let ports = proptest::collection::btree_set(port, 0..3);
    (peers, ports).prop_map(|(peers, ports)| Grant {
        deny: false,
        peers,
        ports: ports.into_iter().collect(),
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let rule = (
        selector(),
        any::<bool>(),
        proptest::collection::vec(grant(), 0..3),
    )
        .prop_map(|(subject, deny, ingress)| Rule {
            subject,
            default_deny: PerDirection {
                ingress: deny,
                egress: false,
            },
            ingress,
            egress: Vec::new(),
        });
    proptest::collection::vec(proptest::collection::vec(rule, 1..3), 0..3).prop_map(|policies| {
        let named = |(i, rules)| Policy {
            kind: Kind::CiliumNetworkPolicy,
            namespace: Some("n1".into()),
            name: format!("p{i}"),
            audit: false,
            rules,
        };
        policies.into_iter().enumerate().map(named).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let maybe = || proptest::option::weighted(0.7, some_labels());
    prop_oneof![
        4 => (256..264_u32, maybe()).prop_map(|(id, labels)| Step::Identity(id, labels)),
        2 => (1..4_u32, maybe()).prop_map(|(id, labels)| Step::Endpoint(id, labels)),
        2 => (0..3_u8, policies()).prop_map(|(file, policies)| Step::File(file, policies)),
    ]
}

#[derive(Debug, Default)]
struct Model {
    identities: BTreeMap<u32, Arc<Labels>>,
    endpoints: BTreeMap<u32, Arc<Labels>>,
    files: BTreeMap<u8, Vec<Policy>>,
}

type Entries = BTreeMap<PolicyKey, bool>;
type Denies = BTreeMap<EndpointId, bool>;

const fn single(port: &Port) -> (u8, u16, u8) {
    match port {
        Port::Range {
            protocol, first, ..
        } => (*protocol, *first, 16),
        _ => unreachable!(),
    }
}

impl Model {
    fn desired(&self) -> (Entries, Denies) {
        let (mut entries, mut denies) = (Entries::new(), Denies::new());
        let rules: Vec<&Rule> = self
            .files
            .values()
            .flatten()
            .flat_map(|p| &p.rules)
            .collect();
        for (id, labels) in &self.endpoints {
            let endpoint = EndpointId(*id);
            let selecting: Vec<_> = rules.iter().filter(|r| r.subject.matches(labels)).collect();
            denies.insert(endpoint, selecting.iter().any(|r| r.default_deny.ingress));
            for grant in selecting.iter().flat_map(|r| &r.ingress) {
                for identity in self.peers(&grant.peers) {
                    let mut ports: Vec<_> = grant.ports.iter().map(single).collect();
                    if ports.is_empty() {
                        ports.push((0, 0, 0));
                    }
                    for (protocol, port, port_bits) in ports {
                        let (identity, direction) = (IdentityId(identity), Direction::Ingress);
                        let key = PolicyKey {
                            endpoint,
                            identity,
                            direction,
                            protocol,
                            port,
                            port_bits,
                        };
                        entries.insert(key, false);
                    }
                }
            }
        }
        (entries, denies)
    }

    fn peers(&self, peers: &Peers) -> BTreeSet<u32> {
        let Peers::Of(peers) = peers else {
            return BTreeSet::from([0]);
        };
        let mut found = BTreeSet::new();
        let reserved = (1..=10).map(|id| {
            let name = IdentityId(id).reserved_name().unwrap();
            let more = if id == 7 {
                "reserved:remote-node=;"
            } else {
                ""
            };
            (
                id,
                Arc::new(Labels::parse(&format!("reserved:{name}=;{more}"))),
            )
        });
        let identities = self.identities.iter().map(|(id, l)| (*id, Arc::clone(l)));
        for (id, labels) in identities.chain(reserved) {
            let matches = |peer: &Peer| match peer {
                Peer::Cidr { .. } => false,
                Peer::LocalCluster => labels.with_key(CLUSTER_KEY).any(|l| l.value == "cluster1"),
                Peer::Labels(selector) => {
                    let rs = selector.requirements();
                    let of_reserved = |r: &Requirement| r.source.as_deref() == Some("reserved");
                    let speaks = rs.iter().any(|r| r.key == CLUSTER_KEY)
                        || (!rs.is_empty() && rs.iter().all(of_reserved));
                    let local = labels.with_key(CLUSTER_KEY).any(|l| l.value == "cluster1");
                    selector.matches(&labels) && (speaks || local)
                }
            };
            if peers.iter().any(matches) {
                found.insert(id);
            }
        }
        found
    }
}

/// What a kernel holds after the deltas; complains about those that change nothing.
#[derive(Debug, Default)]
struct Kernel {
    entries: BTreeMap<PolicyKey, PolicyEntry>,
    denies: Denies,
}

impl Kernel {
    fn apply(&mut self, deltas: Vec<MapDelta>) {
        let rank = |delta: &MapDelta| match delta {
            MapDelta::Entry { value: Some(_), .. } => 0,
            MapDelta::Endpoint { .. } | MapDelta::Cidr { .. } => 1,
            MapDelta::Entry { value: None, .. } => 2,
        };
        assert!(deltas.is_sorted_by_key(rank), "{deltas:?}");
        for delta in deltas {
            match delta {
                MapDelta::Entry { key, value } => {
                    let old = match value {
                        Some(value) => self.entries.insert(key, value),
                        None => self.entries.remove(&key),
                    };
                    assert_ne!(old, value, "{key:?} did not change");
                }
                MapDelta::Endpoint { endpoint, mode } => {
                    let ingress = mode.default_deny.ingress;
                    assert_ne!(self.denies.insert(endpoint, ingress), Some(ingress));
                }
                MapDelta::Cidr { .. } => panic!("no rule names a prefix"),
            }
        }
    }
}

fn origin(file: u8) -> Origin {
    Origin::File(PathBuf::from(format!("{file}.yaml")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn incremental_equals_recomputed(steps in proptest::collection::vec(step(), 1..40)) {
        let cluster = "cluster1".parse().unwrap();
        let mut engine = Engine::new(Options { cluster, default_local_cluster: true });
        let (mut model, mut kernel) = (Model::default(), Kernel::default());
        for step in steps {
            let mut out = Vec::new();
            match step {
                Step::Identity(id, labels) => {
                    engine.apply_identity(IdentityId(id), labels.clone(), &mut out);
                    match labels {
                        Some(labels) => model.identities.insert(id, labels),
                        None => model.identities.remove(&id),
                    };
                }
                Step::Endpoint(id, Some(labels)) => {
                    let event = endpoint(EndpointId(id), Arc::clone(&labels));
                    engine.apply_endpoint(&event, &mut out);
                    model.endpoints.insert(id, labels);
                }
                Step::Endpoint(id, None) => {
                    engine.apply_endpoint(&EndpointEvent::Delete(EndpointId(id)), &mut out);
                    model.endpoints.remove(&id);
                    kernel.apply(std::mem::take(&mut out));
                    kernel.denies.remove(&EndpointId(id));
                }
                Step::File(file, policies) => {
                    engine.set_policies(&origin(file), policies.clone(), &mut out);
                    model.files.insert(file, policies);
                }
            }
            kernel.apply(out);
            let (entries, denies) = model.desired();
            let held: Entries = kernel.entries.iter().map(|(k, v)| (*k, v.votes.contains(Votes::DENY))).collect();
            prop_assert_eq!(held, entries);
            prop_assert_eq!(&kernel.denies, &denies);
            let mut full = Kernel::default();
            full.apply(engine.desired());
            prop_assert_eq!(&full.entries, &kernel.entries);
            prop_assert_eq!(&full.denies, &kernel.denies);
        }
        // Taking everything away leaves nothing behind.
        let mut out = Vec::new();
        for file in 0..3 {
            engine.remove_origin(&origin(file), &mut out);
        }
        prop_assert_eq!(engine.entry_count(), 0);
        prop_assert_eq!(engine.selector_count(), 0);
        prop_assert_eq!(engine.rule_count(), 0);
    }
}
