//! What rules beyond the guide's lead to: prefixes, audit, enforcement.
use super::*;
use crate::policy::{Grant, Kind, Peer, Peers, Policy, Port, Requirement, Rule, Selector};

/// One policy of one rule for [`DB`], default deny in both directions.
fn policy(name: &str, audit: bool, ingress: Vec<Grant>, egress: Vec<Grant>) -> Policy {
    Policy {
        kind: Kind::CiliumNetworkPolicy,
        namespace: Some("default".into()),
        name: name.into(),
        audit,
        rules: vec![Rule {
            subject: Selector::new([Requirement::k8s("app", "protected-db")]),
            default_deny: PerDirection {
                ingress: true,
                egress: true,
            },
            ingress,
            egress,
        }],
    }
}

fn grant(deny: bool, peers: Peers, ports: &[Port]) -> Grant {
    Grant {
        deny,
        peers,
        ports: ports.to_vec(),
    }
}

fn cidr(cidr: &str, except: &[&str]) -> Peers {
    Peers::Of(vec![Peer::Cidr {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|text| text.parse().unwrap()).collect(),
    }])
}

fn cidr_deltas(deltas: &[MapDelta]) -> Vec<(String, bool)> {
    let cidrs = deltas.iter().filter_map(|delta| match delta {
        MapDelta::Cidr { prefix, identity } => Some((prefix.to_string(), identity.is_some())),
        MapDelta::Entry { .. } | MapDelta::Endpoint { .. } => None,
    });
    cidrs.collect()
}

#[test]
fn prefixes_are_told_with_the_first_endpoint_and_those_unnamed_given_back_when_all_are_known() {
    let held = |text: &str, id: u32| (text.parse().unwrap(), IdentityId((1 << 24) + id));
    let options = engine(true).options;
    let mut engine = Engine::new(options, [held("10.0.0.0/8", 5), held("192.0.2.0/24", 6)]);
    let (origin, mut out) = (Origin::Cluster("x".into()), Vec::new());
    let egress = grant(false, cidr("10.0.0.0/8", &["10.1.0.0/16"]), &[]);
    engine.set_policies(
        &origin,
        vec![policy("p", false, vec![], vec![egress])],
        &mut out,
    );
    assert_eq!(out, [], "the kernel has the entries of a former process");
    let event = endpoint(DB, labels("protected-db", "default", "cluster1"));
    engine.apply_endpoint(&event, &mut out);
    let all = |id| PolicyKey {
        identity: IdentityId(id),
        direction: Direction::Egress,
        protocol: 0,
        port_bits: 0,
        ..key(0, 0)
    };
    assert!(
        engine.entry(&all((1 << 24) + 5)).is_some(),
        "it kept its number"
    );
    assert!(engine.entry(&all((1 << 24) + 7)).is_none(), "excepted");
    assert_eq!(cidr_deltas(&out), [("10.1.0.0/16".to_owned(), true)]);
    assert!(matches!(out.last(), Some(MapDelta::Cidr { .. })));
    out.clear();
    engine.apply_endpoint(&EndpointEvent::Synced, &mut out);
    assert_eq!(cidr_deltas(&out), [("192.0.2.0/24".to_owned(), false)]);
    out.clear();
    engine.remove_origin(&origin, &mut out);
    let gone = ["10.0.0.0/8", "10.1.0.0/16"].map(|text| (text.to_owned(), false));
    assert_eq!(cidr_deltas(&out), gone);
}

#[test]
fn an_audited_policy_only_votes_to_be_reported() {
    let mut engine = street(GUIDE, true);
    let (origin, out) = (Origin::Cluster("x".into()), &mut Vec::new());
    let deny = grant(true, Peers::Any, &[]);
    engine.set_policies(&origin, vec![policy("p", true, vec![deny], vec![])], out);
    let found = verdict(|k| engine.entry(k), &key(LOCAL + 1, 6379));
    assert!(found.passes(true) && !found.passes_audited(true));
    let mode = engine.mode_of(DB).unwrap();
    assert!(!mode.default_deny.egress && mode.audit_default_deny.egress);
    // The one that is enforced is named, though the other has the wider say.
    let name = engine.names().get(found.rule).unwrap();
    assert_eq!(name.policy, "allow-employee");
}

#[test]
fn enforcement_is_for_all_for_none_or_for_those_selected() {
    let mut options = engine(true).options;
    let init = EndpointId(11);
    for (enforcement, selected, free) in [
        (Enforcement::Default, true, false),
        (Enforcement::Always, true, true),
        (Enforcement::Never, false, false),
    ] {
        options.enforcement = enforcement;
        let (mut engine, out) = (Engine::new(options.clone(), []), &mut Vec::new());
        let origin = Origin::Cluster("x".into());
        let allow = grant(false, Peers::Any, &[]);
        engine.set_policies(&origin, vec![policy("p", false, vec![allow], vec![])], out);
        let mut denies = |id, labels| {
            engine.apply_endpoint(&endpoint(id, labels), out);
            engine.mode_of(id).unwrap().default_deny.egress
        };
        let db = labels("protected-db", "default", "cluster1");
        assert_eq!(denies(DB, db), selected, "{enforcement:?}");
        let other = labels("x", "default", "cluster1");
        assert_eq!(denies(EndpointId(10), other), free, "{enforcement:?}");
        let nothing_yet = Arc::new(Labels::parse("reserved:init=;"));
        assert!(denies(init, nothing_yet), "{enforcement:?}");
        assert_eq!(
            engine.entry_count(),
            usize::from(selected),
            "{enforcement:?}"
        );
    }
}

#[test]
fn an_identity_that_nobody_selects_changes_nothing() {
    let mut engine = street(GUIDE, true);
    let mut out = Vec::new();
    engine.apply_identity(
        IdentityId(LOCAL + 9),
        Some(labels("z", "z", "cluster1")),
        &mut out,
    );
    engine.apply_address(
        "10.0.0.1".parse().unwrap(),
        Some(IdentityId(LOCAL + 9)),
        &mut out,
    );
    assert_eq!(out, []);
}

#[test]
fn an_identity_of_the_mesh_is_not_heard_when_it_calls_itself_reserved() {
    let mut engine = street(GUIDE, true);
    let (origin, out) = (Origin::Cluster("x".into()), &mut Vec::new());
    let host = Peer::Labels(Selector::new([Requirement::reserved("host")]));
    let allow = grant(false, Peers::Of(vec![host]), &[]);
    let all = vec![policy("p", false, vec![allow], vec![])];
    engine.set_policies(&origin, all, out);
    out.clear();
    let text = "k8s:app=x;k8s:io.cilium.k8s.policy.cluster=cluster2;reserved:host=;";
    let id = IdentityId(REMOTE + 9);
    engine.apply_identity(id, Some(Arc::new(Labels::parse(text))), out);
    assert_eq!(*out, []);
}

#[test]
fn entities_are_those_of_the_reference() {
    let (head, _) = GUIDE.split_once("  - toPorts").unwrap();
    let reserved = 1..=10_u32;
    let part = (1 << 24) + 1;
    let all = || reserved.clone().chain([part, LOCAL + 1, REMOTE + 1]);
    let of = |entity: &str| -> Vec<u32> {
        let mut engine = street(&format!("{head}  - fromEntities: [{entity}]\n"), true);
        let part = grant(false, cidr("192.0.2.0/24", &[]), &[]);
        let mut other = policy("p", false, vec![part], vec![]);
        other.rules[0].subject = Selector::new([Requirement::k8s("app", "nobody")]);
        engine.set_policies(&Origin::Cluster("x".into()), vec![other], &mut Vec::new());
        let passes = |id: &u32| verdict(|k| engine.entry(k), &key(*id, 1)).passes(true);
        all().filter(passes).collect()
    };
    for (entity, expected) in [
        ("all", all().collect()),
        ("world", vec![2, 9, 10, part]),
        ("world-ipv4", vec![9, part]),
        ("world-ipv6", vec![10]),
        ("host", vec![1]),
        ("unmanaged", vec![3]),
        ("health", vec![4]),
        ("init", vec![5]),
        ("remote-node", vec![6, 7]),
        ("kube-apiserver", vec![7]),
        ("ingress", vec![8]),
        ("none", vec![]),
        ("cluster", vec![1, 3, 4, 5, 6, 7, 8, LOCAL + 1]),
    ] {
        assert_eq!(of(entity), expected, "{entity}");
    }
}
