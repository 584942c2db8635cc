//! Policies that must be refused: valid ones with a part that is not enforced, or that makes no
//! sense. Which other parts surround it must not matter.
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

/// A policy of a namespace with one section that must not pass, and the row that says so.
pub(crate) fn spoil(rng: &mut StdRng, policy: &Value) -> (&'static str, Value) {
    let mut spoiled = policy.clone();
    let rule = if spoiled["spec"].is_object() {
        &mut spoiled["spec"]
    } else {
        let rules = spoiled["specs"].as_array().map_or(0, Vec::len);
        &mut spoiled["specs"][rng.random_range(0..rules)]
    };
    if rng.random_bool(0.25) {
        let (name, value) = rules().choose(rng).unwrap().clone();
        rule[name] = value;
        if name == "ingress" {
            for section in ["ingressDeny", "egress", "egressDeny"] {
                rule.as_object_mut().unwrap().remove(section);
            }
        }
        return ("6.1 refused", spoiled);
    }
    let (row, section, entry) = entries().choose(rng).unwrap().clone();
    if !rule[section].is_array() {
        rule[section] = json!([]);
    }
    let list = rule[section].as_array_mut().unwrap();
    let place = rng.random_range(0..=list.len());
    list.insert(place, entry);
    (row, spoiled)
}

/// Fields of a rule.
fn rules() -> Vec<(&'static str, Value)> {
    vec![
        ("nodeSelector", json!({"matchLabels": {"role": "edge"}})),
        ("endpointSelector", Value::Null),
        // Alone: no section has anything in it.
        ("ingress", json!([])),
        ("ingres", json!([{}])),
        (
            "endpointSelector",
            json!({"matchExpressions": [{"key": "app", "operator": "In"}]}),
        ),
        (
            "endpointSelector",
            json!({"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["a"]}]}),
        ),
        (
            "endpointSelector",
            json!({"matchExpressions": [{"key": "app", "operator": "Has", "values": ["a"]}]}),
        ),
    ]
}

/// The row, the section that it goes into, and the entry.
fn entries() -> Vec<(&'static str, &'static str, Value)> {
    let to_port = |port: Value| json!({"toPorts": [{"ports": [port]}]});
    let port = json!({"port": "80", "protocol": "TCP"});
    let ports = vec![port.clone(); 41];
    let fields = vec![json!({"type": 8}); 41];
    let layer_7 = |rules: Value| json!({"toPorts": [{"ports": [port.clone()], "rules": rules}]});
    vec![
        (
            "6.1 refused",
            "ingress",
            json!({"fromEntities": ["all"], "fromEndpoints": [{}]}),
        ),
        (
            "6.1 refused",
            "egress",
            json!({"toCIDR": ["10.0.0.0/8"], "toEntities": ["host"]}),
        ),
        (
            "6.1 refused",
            "ingress",
            json!({"fromEntities": ["everybody"]}),
        ),
        ("6.1 refused", "ingress", json!({"toEndpoints": [{}]})),
        ("6.1 refused", "egress", json!({"fromEntities": ["all"]})),
        (
            "6.1 refused",
            "ingressDeny",
            json!({"fromEntites": ["all"]}),
        ),
        ("6.1 refused", "ingress", json!({"fromRequires": [{}]})),
        ("6.1 refused", "ingress", json!({"fromNodes": [{}]})),
        (
            "6.1 refused",
            "ingress",
            json!({"fromCIDR": ["10.0.0.0/33"]}),
        ),
        (
            "6.1 refused",
            "egress",
            json!({"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["192.0.2.0/24"]}]}),
        ),
        (
            "6.6 refused",
            "ingress",
            json!({"toPorts": [{"ports": ports}]}),
        ),
        (
            "6.6 refused",
            "ingress",
            json!({"icmps": [{"fields": fields}]}),
        ),
        (
            "6.6 refused",
            "ingress",
            to_port(json!({"port": "http", "endPort": 90})),
        ),
        (
            "6.6 refused",
            "egress",
            to_port(json!({"port": "8", "protocol": "ICMP"})),
        ),
        ("6.6 refused", "egress", to_port(json!({"port": "70000"}))),
        (
            "6.6 refused",
            "egress",
            to_port(json!({"port": "80", "protocol": "QUIC"})),
        ),
        (
            "6.6 refused",
            "ingress",
            json!({"icmps": [{"fields": [{"type": "Ping"}]}]}),
        ),
        (
            "6.6 refused",
            "egressDeny",
            json!({"toPorts": [{"ports": [port]}], "icmps": [{"fields": [{"type": 8}]}]}),
        ),
        (
            "6.9 refused",
            "ingress",
            layer_7(json!({"http": [{"method": "GET"}]})),
        ),
        (
            "6.9 refused",
            "egress",
            layer_7(json!({"dns": [{"matchPattern": "*"}]})),
        ),
        (
            "6.9 refused",
            "ingress",
            layer_7(json!({"kafka": [{"role": "produce"}]})),
        ),
        ("6.9 refused", "ingressDeny", layer_7(json!({"http": [{}]}))),
        (
            "6.9 refused",
            "egress",
            json!({"toFQDNs": [{"matchName": "example.org"}]}),
        ),
        (
            "6.9 refused",
            "egress",
            json!({"toServices": [{"k8sService": {"serviceName": "a", "namespace": "b"}}]}),
        ),
        (
            "6.9 refused",
            "ingress",
            json!({"fromGroups": [{"aws": {"region": "west"}}]}),
        ),
    ]
}
