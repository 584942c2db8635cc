//! Goal: each row of the language means what the reference says, whichever direction and kind it
//! stands in. Method: small objects as text, one detail changed for each case.
use std::path::Path;

use super::{ParseError, Refusal, parse, parse_noting};
use crate::policy::{
    Grant, Kind, Operator, Peer, Peers, PerDirection, Policy, Port, Requirement, Rule, Selector,
    selector::{CLUSTER_KEY, NAMESPACE_KEY},
};

mod documents;
mod fail_closed;
mod kubernetes;
mod peers;
mod ports;
mod proptests;
mod refusals;
mod selectors;
mod shapes;

/// The policy of the guide.
const GUIDE: &str = r#"
apiVersion: "cilium.io/v2"
kind: CiliumNetworkPolicy
metadata:
  name: "allow-employee"
spec:
  description: "Only employees"
  endpointSelector:
    matchLabels:
      app: protected-db
      io.cilium.k8s.policy.cluster: cluster1
  ingress:
  - toPorts:
    - ports:
      - port: "6379"
        protocol: TCP
    fromEndpoints:
    - matchLabels:
        app: employee
    - matchLabels:
        app: employee
        io.cilium.k8s.policy.cluster: cluster2
        k8s:io.kubernetes.pod.namespace: istio-space
"#;

/// A CiliumNetworkPolicy `shop/p`.
fn cnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, \
         metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

/// A CiliumClusterwideNetworkPolicy `p`.
fn ccnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, \
         metadata: {{name: p}}, spec: {spec}}}"
    )
}

/// A NetworkPolicy `shop/p`.
fn netpol(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

/// A CiliumNetworkPolicy with this one ingress entry.
fn with_entry(entry: &str) -> String {
    cnp(&format!("{{endpointSelector: {{}}, ingress: [{entry}]}}"))
}

fn policies(text: &str) -> Vec<Policy> {
    parse(text, Path::new("p.yaml")).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// The first rule of the first policy.
fn rule(text: &str) -> Rule {
    policies(text).remove(0).rules.remove(0)
}

/// What the only ingress entry allows.
fn grant(entry: &str) -> Grant {
    let rule = rule(&with_entry(entry));
    assert_eq!(rule.ingress.len(), 1, "{entry}");
    rule.ingress.into_iter().next().unwrap()
}

fn refused(text: &str) -> ParseError {
    parse(text, Path::new("p.yaml")).expect_err(text)
}

/// A requirement on a label of any source.
fn any(key: &str, value: &str) -> Requirement {
    let operator = Operator::In([value.to_owned()].into());
    Requirement {
        key: key.into(),
        source: None,
        operator,
    }
}

fn reserved(name: &str) -> Peer {
    Peer::Labels(Selector::new([Requirement::reserved(name)]))
}

fn port(protocol: u8, number: u16) -> Port {
    range(protocol, number, number)
}

fn range(protocol: u8, first: u16, last: u16) -> Port {
    Port::Range {
        protocol,
        first,
        last,
    }
}

const fn both(ingress: bool, egress: bool) -> PerDirection<bool> {
    PerDirection { ingress, egress }
}
