//! Writes policies of the model as the YAML that an operator would apply.
use serde_json::{Value, json};

use super::model::{
    Block, CiliumPolicy, CiliumRule, Entry, Icmp, IcmpText, KubernetesEntry, KubernetesPeer,
    NetworkPolicy, Operator, Peers, Policy, Port, PortText, Selector, Way,
};

/// A file with these policies, one document each.
pub(crate) fn file(policies: &[Policy]) -> String {
    policies.iter().map(|p| text(&object(p))).collect()
}

/// One document.
pub(crate) fn text(object: &Value) -> String {
    let mut text = "---\n".to_owned();
    block(object, 0, &mut text);
    text
}

/// What the document says.
pub(crate) fn object(policy: &Policy) -> Value {
    match policy {
        Policy::Cilium(policy) => cilium(policy),
        Policy::Kubernetes(policy) => kubernetes(policy),
    }
}

fn cilium(policy: &CiliumPolicy) -> Value {
    let mut object = match &policy.namespace {
        Some(namespace) => json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": policy.name, "namespace": namespace},
        }),
        None => json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumClusterwideNetworkPolicy",
            "metadata": {"name": policy.name},
        }),
    };
    if let Some(spec) = &policy.spec {
        object["spec"] = rule(spec);
    }
    if !policy.specs.is_empty() {
        object["specs"] = policy.specs.iter().map(rule).collect();
    }
    object
}

fn rule(rule: &CiliumRule) -> Value {
    let mut out = json!({"endpointSelector": selector(&rule.subject)});
    for (name, way, section) in [
        ("ingress", Way::Ingress, &rule.ingress),
        ("ingressDeny", Way::Ingress, &rule.ingress_deny),
        ("egress", Way::Egress, &rule.egress),
        ("egressDeny", Way::Egress, &rule.egress_deny),
    ] {
        if let Some(entries) = section {
            out[name] = entries.iter().map(|e| entry(e, way)).collect();
        }
    }
    for (name, value) in ["ingress", "egress"].into_iter().zip(rule.default_deny) {
        if let Some(value) = value {
            out["enableDefaultDeny"][name] = json!(value);
        }
    }
    out
}

fn entry(entry: &Entry, way: Way) -> Value {
    let side = match way {
        Way::Ingress => "from",
        Way::Egress => "to",
    };
    let mut out = json!({});
    if let Some(peers) = &entry.peers {
        let (name, list): (_, Value) = match peers {
            Peers::Endpoints(list) => ("Endpoints", list.iter().map(selector).collect()),
            Peers::Entities(list) => ("Entities", json!(list)),
            Peers::Cidr(list) => ("CIDR", list.iter().map(ToString::to_string).collect()),
            Peers::CidrSet(list) => ("CIDRSet", list.iter().map(cidr_block).collect()),
        };
        out[format!("{side}{name}")] = list;
    }
    let ports =
        |list: &Vec<Port>| json!({"ports": list.iter().map(cilium_port).collect::<Value>()});
    if !entry.ports.is_empty() {
        out["toPorts"] = entry.ports.iter().map(ports).collect();
    }
    let fields = |list: &Vec<Icmp>| json!({"fields": list.iter().map(icmp).collect::<Value>()});
    if !entry.icmps.is_empty() {
        out["icmps"] = entry.icmps.iter().map(fields).collect();
    }
    out
}

/// A block always has a length, also for a single address.
fn cidr_block(block: &Block) -> Value {
    let mut out = json!({"cidr": format!("{}/{}", block.cidr.address, block.cidr.bits)});
    if !block.except.is_empty() {
        let except = block.except.iter();
        out["except"] = except
            .map(|net| format!("{}/{}", net.address, net.bits))
            .collect();
    }
    out
}

/// Cilium writes a port as a string.
fn cilium_port(port: &Port) -> Value {
    let mut out = json!({});
    match port.port {
        Some(PortText::Number(number)) => out["port"] = json!(number.to_string()),
        Some(PortText::Name(name)) => out["port"] = json!(name),
        None => {}
    }
    rest_of_port(port, out)
}

/// Kubernetes writes a number as a number.
fn kubernetes_port(port: &Port) -> Value {
    let mut out = json!({});
    match port.port {
        Some(PortText::Number(number)) => out["port"] = json!(number),
        Some(PortText::Name(name)) => out["port"] = json!(name),
        None => {}
    }
    rest_of_port(port, out)
}

fn rest_of_port(port: &Port, mut out: Value) -> Value {
    if let Some(end) = port.end {
        out["endPort"] = json!(end);
    }
    if let Some(protocol) = port.protocol {
        out["protocol"] = json!(protocol);
    }
    out
}

fn icmp(icmp: &Icmp) -> Value {
    let mut out = match icmp.kind {
        IcmpText::Number(kind) => json!({"type": kind}),
        IcmpText::Name(name) => json!({"type": name}),
    };
    if let Some(family) = icmp.family {
        out["family"] = json!(family);
    }
    out
}

fn selector(selector: &Selector) -> Value {
    let mut out = json!({});
    for (key, value) in &selector.labels {
        out["matchLabels"][key] = json!(value);
    }
    let expressions = selector.expressions.iter().map(|expression| {
        let operator = match expression.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
        };
        let mut out = json!({"key": expression.key, "operator": operator});
        if !expression.values.is_empty() {
            out["values"] = json!(expression.values);
        }
        out
    });
    if expressions.len() > 0 {
        out["matchExpressions"] = expressions.collect();
    }
    out
}

fn kubernetes(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({"podSelector": selector(&policy.subject)});
    if let Some(types) = &policy.types {
        let name = |way: &Way| format!("{way:?}");
        spec["policyTypes"] = types.iter().map(name).collect();
    }
    for (name, side, section) in [
        ("ingress", "from", &policy.ingress),
        ("egress", "to", &policy.egress),
    ] {
        if let Some(entries) = section {
            spec[name] = entries.iter().map(|e| kubernetes_entry(e, side)).collect();
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": policy.name, "namespace": policy.namespace},
        "spec": spec,
    })
}

fn kubernetes_entry(entry: &KubernetesEntry, side: &str) -> Value {
    let mut out = json!({});
    if let Some(peers) = &entry.peers {
        out[side] = peers.iter().map(kubernetes_peer).collect();
    }
    if let Some(ports) = &entry.ports {
        out["ports"] = ports.iter().map(kubernetes_port).collect();
    }
    out
}

fn kubernetes_peer(peer: &KubernetesPeer) -> Value {
    match peer {
        KubernetesPeer::Block(block) => json!({"ipBlock": cidr_block(block)}),
        KubernetesPeer::Pods { pods, namespaces } => {
            let mut out = json!({});
            if let Some(pods) = pods {
                out["podSelector"] = selector(pods);
            }
            if let Some(namespaces) = namespaces {
                out["namespaceSelector"] = selector(namespaces);
            }
            out
        }
    }
}

/// Writes in block style, strings in quotes; an empty list or mapping as `[]` or `{}`.
fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                *out += &format!("{pad}{}:", Value::from(key.as_str()));
                nested(value, indent, out);
            }
        }
        Value::Array(list) => {
            for value in list {
                *out += &format!("{pad}-");
                nested(value, indent, out);
            }
        }
        scalar => *out += &format!("{pad}{scalar}\n"),
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    let empty = match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    if empty {
        *out += &format!(" {value}\n");
    } else {
        *out += "\n";
        block(value, indent + 2, out);
    }
}
