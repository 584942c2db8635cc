//! NetworkPolicy.
use super::*;
use crate::policy::selector::NAMESPACE_LABELS;

fn labels(requirements: impl IntoIterator<Item = Requirement>) -> Peers {
    Peers::Of(vec![Peer::Labels(Selector::new(requirements))])
}

fn requirement(key: &str, operator: Operator) -> Requirement {
    Requirement {
        key: key.into(),
        source: Some("k8s".into()),
        operator,
    }
}

fn shop() -> Requirement {
    Requirement::k8s(NAMESPACE_KEY, "shop")
}

/// What the only entry allows, the same in both directions.
fn entry(peers: &str, ports: &str) -> Grant {
    let read = |direction: &str, of_peers: &str| {
        let peers = if peers.is_empty() {
            String::new()
        } else {
            format!("{of_peers}: {peers}, ")
        };
        let spec = format!("{{podSelector: {{}}, {direction}: [{{{peers}{ports}}}]}}");
        rule(&netpol(&spec))
    };
    let (mut ingress, mut egress) = (read("ingress", "from"), read("egress", "to"));
    assert_eq!(ingress.ingress, egress.egress);
    assert_eq!((ingress.egress, egress.ingress.len()), (vec![], 0));
    egress.egress.clear();
    ingress.ingress.remove(0)
}

#[test]
fn pods_are_selected_in_the_policys_namespace_by_labels_of_kubernetes() {
    let spec = "{podSelector: {matchLabels: {app: a}, \
                matchExpressions: [{key: tier, operator: Exists}]}}";
    let expected = [
        Requirement::k8s("app", "a"),
        requirement("tier", Operator::Exists),
        shop(),
    ];
    assert_eq!(rule(&netpol(spec)).subject, Selector::new(expected));
    let all = rule(&netpol("{podSelector: {}}")).subject;
    assert_eq!(all, Selector::new([shop()]));
}

#[test]
fn peers_are_pods_namespaces_both_or_blocks() {
    let team = |operator| requirement(&format!("{NAMESPACE_LABELS}team"), operator);
    let pod = || requirement(NAMESPACE_KEY, Operator::Exists);
    let red = || [String::from("red")].into();
    for (peer, expected) in [
        ("podSelector: {}", labels([shop()])),
        (
            "podSelector: {matchLabels: {app: a}}",
            labels([Requirement::k8s("app", "a"), shop()]),
        ),
        // All namespaces, but pods only.
        ("namespaceSelector: {}", labels([pod()])),
        (
            "namespaceSelector: {matchLabels: {team: red}}",
            labels([team(Operator::In(red()))]),
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}",
            labels([team(Operator::Exists)]),
        ),
        // What is in no namespace has no label of one, and is not meant.
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}",
            labels([team(Operator::NotIn(red())), pod()]),
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}",
            labels([team(Operator::DoesNotExist), pod()]),
        ),
        (
            "namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: a}}",
            labels([team(Operator::In(red())), Requirement::k8s("app", "a")]),
        ),
        (
            "namespaceSelector: {}, podSelector: {matchLabels: {app: a}}",
            labels([Requirement::k8s("app", "a"), pod()]),
        ),
        (
            "ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}",
            Peers::Of(vec![Peer::Cidr {
                cidr: "10.0.0.0/8".parse().unwrap(),
                except: vec!["10.1.0.0/16".parse().unwrap()],
            }]),
        ),
    ] {
        assert_eq!(
            entry(&format!("[{{{peer}}}]"), "").peers,
            expected,
            "{peer}"
        );
    }
    let two = entry("[{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]", "");
    let Peers::Of(peers) = two.peers else {
        panic!("anybody")
    };
    assert_eq!(peers.len(), 2);
}

#[test]
fn no_peers_are_all_and_no_ports_are_all() {
    let everything = Grant {
        deny: false,
        peers: Peers::Any,
        ports: vec![],
    };
    for (peers, ports) in [("", ""), ("[]", ""), ("", "ports: []"), ("[]", "ports: []")] {
        assert_eq!(entry(peers, ports), everything, "{peers} {ports}");
    }
}

#[test]
fn ports_are_tcp_unless_they_say_otherwise() {
    let http = Port::Named {
        protocol: Some(6),
        name: "http".into(),
    };
    for (ports, expected) in [
        ("{port: 80}", vec![port(6, 80)]),
        ("{port: 80, protocol: UDP}", vec![port(17, 80)]),
        ("{port: 80, endPort: 90}", vec![range(6, 80, 90)]),
        ("{port: http}", vec![http]),
        ("{protocol: SCTP}", vec![Port::All { protocol: 132 }]),
        ("{}", vec![Port::All { protocol: 6 }]),
        (
            "{port: 81}, {port: 80}, {port: 81}",
            vec![port(6, 80), port(6, 81)],
        ),
    ] {
        assert_eq!(
            entry("", &format!("ports: [{ports}]")).ports,
            expected,
            "{ports}"
        );
    }
}

#[test]
fn policy_types_are_said_or_implied() {
    for (spec, expected) in [
        ("", both(true, false)),
        (", ingress: []", both(true, false)),
        (", ingress: [{}]", both(true, false)),
        (", egress: []", both(true, false)),
        (", egress: [{}]", both(true, true)),
        (", policyTypes: []", both(true, false)),
        (", policyTypes: [Ingress]", both(true, false)),
        (", policyTypes: [Egress]", both(false, true)),
        (", policyTypes: [Ingress, Egress]", both(true, true)),
        (", policyTypes: [Egress], ingress: [{}]", both(false, true)),
        (", policyTypes: [Ingress], egress: [{}]", both(true, false)),
    ] {
        let found = rule(&netpol(&format!("{{podSelector: {{}}{spec}}}")));
        assert_eq!(found.default_deny, expected, "{spec}");
    }
}
