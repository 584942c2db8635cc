//! What happens to an engine: few labels, addresses and ports, so that things meet.
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use proptest::{prelude::*, sample::select};

use super::super::tests::labels;
use crate::{
    policy::{
        Grant, Kind, Operator, Peer, Peers, PerDirection, Policy, Port, Requirement, Rule,
        Selector,
        selector::{CLUSTER_KEY, NAMESPACE_KEY},
    },
    types::{IpPrefix, Labels, NamedPort},
};

/// Addresses that the mesh may know.
pub(super) const MESH: [&str; 4] = ["10.1.2.3", "10.1.2.4", "10.2.0.1", "fd00::7"];
/// Addresses that it never knows.
pub(super) const WORLD: [&str; 4] = ["10.1.2.9", "10.9.0.1", "192.0.2.1", "fd00::9"];

/// A local endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) labels: Arc<Labels>,
    pub(super) ports: Vec<NamedPort>,
    pub(super) audit: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Identity(u32, Option<Arc<Labels>>),
    Address(IpPrefix, Option<u32>),
    Ports(IpPrefix, Vec<NamedPort>),
    Endpoint(u32, Option<Local>),
    Policies(u8, Vec<Policy>),
}

fn some_labels() -> impl Strategy<Value = Arc<Labels>> {
    let one_of = |values: &'static [&'static str]| select(values);
    (
        one_of(&["a", "b", "c"]),
        one_of(&["n1", "n2"]),
        one_of(&["cluster1", "cluster1", "cluster2"]),
    )
        .prop_map(|(app, namespace, cluster)| labels(app, namespace, cluster))
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let key = select(&[
        ("app", "a"),
        ("app", "b"),
        (NAMESPACE_KEY, "n1"),
        (CLUSTER_KEY, "cluster2"),
        ("missing", "x"),
        ("host", ""),
        ("world", ""),
    ]);
    let source = select(vec![None, Some("k8s".to_owned())]);
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

fn peer() -> impl Strategy<Value = Peer> {
    let prefix = |text: &str| text.parse::<IpPrefix>().unwrap();
    let cidr = select(vec![
        ("0.0.0.0/0", vec!["10.0.0.0/8"]),
        ("0.0.0.0/0", vec![]),
        ("10.0.0.0/8", vec![]),
        ("10.0.0.0/8", vec!["10.1.0.0/16"]),
        ("10.1.2.0/24", vec!["10.1.2.9"]),
        ("10.1.2.0/24", vec![]),
        ("::/0", vec![]),
        ("::/3", vec![]),
        ("fd00::/8", vec!["fd00::9"]),
    ]);
    let entity = select(vec!["host", "remote-node", "world", "world-ipv4", "init"]);
    prop_oneof![
        5 => selector().prop_map(Peer::Labels),
        1 => Just(Peer::LocalCluster),
        2 => entity.prop_map(|name| Peer::Labels(Selector::new([Requirement::reserved(name)]))),
        4 => cidr.prop_map(move |(cidr, except)| Peer::Cidr {
            cidr: prefix(cidr),
            except: except.into_iter().map(prefix).collect(),
        }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = || select(vec![6_u8, 17]);
    prop_oneof![
        1 => protocol().prop_map(|protocol| Port::All { protocol }),
        4 => (protocol(), select(vec![(80, 80), (80, 81), (79, 90), (1024, u16::MAX)])).prop_map(
            |(protocol, (first, last))| Port::Range { protocol, first, last }
        ),
        3 => proptest::option::of(protocol()).prop_map(|protocol| Port::Named {
            protocol,
            name: "web".into(),
        }),
        1 => select(vec![(1, 8), (58, 128)]).prop_map(|(protocol, kind)| Port::Icmp {
            protocol,
            kind,
        }),
    ]
}

fn grant() -> impl Strategy<Value = Grant> {
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => proptest::collection::vec(peer(), 0..3).prop_map(Peers::Of),
    ];
    let ports = proptest::collection::btree_set(port(), 0..3);
    (proptest::bool::weighted(0.3), peers, ports).prop_map(|(deny, peers, ports)| Grant {
        deny,
        peers,
        ports: ports.into_iter().collect(),
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let grants = || proptest::collection::vec(grant(), 0..3);
    (selector(), any::<[bool; 2]>(), grants(), grants()).prop_map(
        |(subject, [deny_ingress, deny_egress], ingress, egress)| Rule {
            subject,
            default_deny: PerDirection {
                ingress: deny_ingress,
                egress: deny_egress,
            },
            ingress,
            egress,
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let policy = (
        proptest::bool::weighted(0.2),
        proptest::collection::vec(rule(), 1..3),
    );
    proptest::collection::vec(policy, 0..3).prop_map(|policies| {
        let named = |(i, (audit, rules))| Policy {
            kind: Kind::CiliumNetworkPolicy,
            namespace: Some("n1".into()),
            // The third has the name of the first.
            name: format!("p{}", i % 2),
            audit,
            rules,
        };
        policies.into_iter().enumerate().map(named).collect()
    })
}

fn named_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let port = select(vec![
        ("web", 80, "TCP"),
        ("web", 81, "TCP"),
        ("web", 80, "UDP"),
    ]);
    let port = port.prop_map(|(name, port, protocol)| NamedPort {
        name: name.into(),
        port,
        protocol: protocol.into(),
    });
    proptest::collection::vec(port, 0..3)
}

fn local() -> impl Strategy<Value = Local> {
    let init = Arc::new(Labels::parse("reserved:init=;"));
    let labels = prop_oneof![9 => some_labels(), 1 => Just(init)];
    (labels, named_ports(), proptest::bool::weighted(0.2)).prop_map(|(labels, ports, audit)| {
        Local {
            labels,
            ports,
            audit,
        }
    })
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let prefix = || {
        let address = select(&MESH[..]).prop_map(|text| text.parse::<IpAddr>().unwrap());
        address.prop_map(IpPrefix::host)
    };
    // Few of those there are, so that addresses share one.
    let identity = prop_oneof![8 => 256..259_u32, 1 => select(vec![1_u32, 6])];
    let identity = proptest::option::weighted(0.8, identity);
    let labels = proptest::option::weighted(0.7, some_labels());
    prop_oneof![
        4 => (256..262_u32, labels).prop_map(|(id, labels)| Step::Identity(id, labels)),
        3 => (prefix(), identity).prop_map(|(prefix, id)| Step::Address(prefix, id)),
        2 => (prefix(), named_ports()).prop_map(|(prefix, ports)| Step::Ports(prefix, ports)),
        3 => (1..4_u32, proptest::option::weighted(0.8, local()))
            .prop_map(|(id, local)| Step::Endpoint(id, local)),
        5 => (0..2_u8, policies()).prop_map(|(file, policies)| Step::Policies(file, policies)),
    ]
}
