//! What traces tell of the guide's street.
use super::*;
use crate::policy::{Basis, Half, Judgement, Outcome, Question, Side, Trace};

fn ask(engine: &Engine, source: Side, destination: Side) -> Trace {
    let question = Question {
        source,
        destination,
        protocol: 6,
        port: 6379,
    };
    engine.trace(&question).unwrap()
}

fn judged(half: &Half) -> &Judgement {
    let Half::Policy(judgement) = half else {
        panic!("{half:?}")
    };
    judgement
}

#[test]
fn an_employee_elsewhere_is_let_in_by_the_guides_rule_and_let_out_by_its_cluster() {
    let engine = street(GUIDE, true);
    let employee = Side::Identity(IdentityId(REMOTE + 1));
    let trace = ask(&engine, employee, Side::Endpoint(DB));
    let name = "cluster2".to_owned();
    assert_eq!(trace.egress, Half::Cluster { name });
    assert_eq!(trace.verdict, Outcome::Allowed);
    let ingress = judged(&trace.ingress);
    assert_eq!((ingress.basis, ingress.audited), (Basis::Allowed, None));
    let rule = ingress.rule.as_ref().unwrap().to_string();
    assert_eq!(
        rule,
        "default/allow-employee rule 0 ingress[0] in guide.yaml"
    );
    assert_eq!(
        ingress.default_deny,
        ["default/allow-employee rule 0 in guide.yaml"]
    );
    let [only] = &ingress.matches[..] else {
        panic!("{:?}", ingress.matches)
    };
    let admitted: Vec<u32> = only
        .admits
        .identities
        .iter()
        .map(|i| i.identity.0)
        .collect();
    assert_eq!(
        (only.admits.count, admitted),
        (2, vec![LOCAL + 1, REMOTE + 1])
    );
    let json = serde_json::to_value(&trace).unwrap();
    assert_eq!(json["ingress"]["by"], "policy");
    assert_eq!(json["ingress"]["rule"]["origin"], "guide.yaml");
    assert_eq!(json["source"]["cluster"], "cluster2");
}

#[test]
fn nobody_judges_the_world_and_default_deny_needs_no_rule() {
    let engine = street(GUIDE, true);
    let world = Side::Address("192.0.2.1".parse().unwrap());
    let trace = ask(&engine, world, Side::Endpoint(DB));
    assert_eq!(trace.source.identity, Some(IdentityId::WORLD_IPV4));
    assert_eq!(
        (&trace.egress, trace.verdict),
        (&Half::Nobody, Outcome::Denied)
    );
    let ingress = judged(&trace.ingress);
    assert_eq!((ingress.basis, &ingress.rule), (Basis::DefaultDeny, &None));
    assert!(ingress.matches.is_empty() && ingress.selecting == 1);
}

#[test]
fn labels_mean_the_own_cluster_unless_they_say_otherwise() {
    let engine = street(GUIDE, true);
    let side = |text: &str| Side::Labels(Arc::new(Labels::parse(text)));
    let employee = "k8s:app=employee;k8s:io.kubernetes.pod.namespace=default;";
    let elsewhere = format!("{employee}k8s:io.cilium.k8s.policy.cluster=cluster2;");
    let database = "k8s:app=protected-db;k8s:io.kubernetes.pod.namespace=default;";
    let trace = ask(&engine, side(employee), side(database));
    assert_eq!(trace.source.identity, Some(IdentityId(LOCAL + 1)));
    assert_eq!(trace.destination.endpoint, Some(DB));
    assert_eq!(trace.verdict, Outcome::Allowed);
    assert_eq!(judged(&trace.egress).basis, Basis::NoDefaultDeny);
    let trace = ask(&engine, side(&elsewhere), side(database));
    assert_eq!(trace.source.identity, Some(IdentityId(REMOTE + 3)));
    assert_eq!(trace.verdict, Outcome::Denied);
    // One that does not exist, at both ends.
    let trace = ask(&engine, side("k8s:app=new;"), side("k8s:app=new;"));
    assert_eq!(
        (trace.source.identity, trace.destination.endpoint),
        (None, None)
    );
    assert_eq!(trace.verdict, Outcome::Allowed);
}

#[test]
fn what_is_not_known_has_no_trace() {
    let engine = street(GUIDE, true);
    for side in [
        Side::Endpoint(EndpointId(77)),
        Side::Identity(IdentityId(LOCAL + 77)),
    ] {
        let question = Question {
            source: side,
            destination: Side::Endpoint(DB),
            protocol: 6,
            port: 1,
        };
        assert_eq!(engine.trace(&question), None);
    }
}
