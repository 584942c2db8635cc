//! Policies: what is accepted is confined to its namespace and sound in its ports and prefixes, and
//! every refusal has a place and a way out.
#![no_main]
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tombolo::policy::{Grant, Kind, Peer, Peers, Policy, Port, Requirement, parse};

fn check(policy: &Policy) {
    assert!(!policy.rules.is_empty());
    let clusterwide = policy.kind == Kind::CiliumClusterwideNetworkPolicy;
    assert_eq!(clusterwide, policy.namespace.is_none());
    for rule in &policy.rules {
        if let Some(namespace) = &policy.namespace {
            let own = Requirement::k8s("io.kubernetes.pod.namespace", namespace);
            assert!(rule.subject.requirements().contains(&own));
        }
        rule.ingress
            .iter()
            .chain(&rule.egress)
            .for_each(check_grant);
    }
}

fn check_grant(grant: &Grant) {
    for port in &grant.ports {
        match port {
            Port::All { protocol } => assert!(*protocol > 0),
            Port::Range { first, last, .. } => assert!(*first > 0 && first <= last),
            Port::Named { name, .. } => assert!(!name.is_empty()),
            Port::Icmp { protocol, .. } => assert!(matches!(protocol, 1 | 58)),
        }
    }
    let Peers::Of(peers) = &grant.peers else {
        return;
    };
    for peer in peers {
        if let Peer::Cidr { cidr, except } = peer {
            assert!(except.iter().all(|e| cidr.contains(e.addr())));
        }
    }
}

fuzz_target!(|text: &str| match parse(text, Path::new("p.yaml")) {
    Ok(policies) => {
        assert!(!policies.is_empty());
        policies.iter().for_each(check);
    }
    Err(error) => {
        assert!(!error.to_string().is_empty());
        assert!(!error.refusal.next_step().is_empty());
    }
});
