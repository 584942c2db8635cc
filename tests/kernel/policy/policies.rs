//! Random policies of all three kinds, and what must not be among them.
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    generate::{APPS, CLUSTERS, NAMESPACES, TEAMS},
    model::{
        Block, CLUSTER_KEY, CiliumPolicy, CiliumRule, Entry, Expression, Icmp, IcmpText,
        KubernetesEntry, KubernetesPeer, NAMESPACE_KEY, NAMESPACE_LABELS, Net, NetworkPolicy,
        Operator, Peers, Policy, Port, PortText, Selector, Way,
    },
};

const CIDRS: [&str; 15] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.77.0.0/16",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "192.0.2.128/26",
    "198.51.100.0/24",
    "198.51.100.7",
    "198.51.100.8",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1:2::1",
    "fd00::/8",
    "fd77::/64",
];
const ENTITIES: [&str; 16] = [
    "all",
    "world",
    "world",
    "world-ipv4",
    "world-ipv6",
    "host",
    "remote-node",
    "kube-apiserver",
    "init",
    "ingress",
    "unmanaged",
    "unmanaged",
    "unmanaged",
    "health",
    "none",
    "cluster",
];
/// As in a pod's manifest; nobody has a port `metrics`.
const NAMES: [&str; 6] = ["http", "http", "http", "dns", "dns", "metrics"];

/// One or two policies.
pub(crate) fn file(rng: &mut StdRng, number: u32) -> Vec<Policy> {
    let count = rng.random_range(1..=2);
    (0..count)
        .map(|place| policy(rng, &format!("p{number}-{place}")))
        .collect()
}

fn policy(rng: &mut StdRng, name: &str) -> Policy {
    let name = name.to_owned();
    let namespace = (*NAMESPACES.choose(rng).unwrap()).to_owned();
    match rng.random_range(0..10) {
        0..5 => Policy::Cilium(cilium(rng, Some(namespace), name)),
        5..7 => Policy::Cilium(cilium(rng, None, name)),
        _ => Policy::Kubernetes(kubernetes(rng, namespace, name)),
    }
}

fn cilium(rng: &mut StdRng, namespace: Option<String>, name: String) -> CiliumPolicy {
    let namespaced = namespace.is_some();
    let shape = rng.random_range(0..4);
    let specs = if shape >= 2 {
        rng.random_range(1..=2)
    } else {
        0
    };
    CiliumPolicy {
        namespace,
        name,
        spec: (shape != 2).then(|| rule(rng, namespaced)),
        specs: (0..specs).map(|_| rule(rng, namespaced)).collect(),
    }
}

fn rule(rng: &mut StdRng, namespaced: bool) -> CiliumRule {
    let subject = if namespaced {
        subject(rng)
    } else {
        clusterwide_subject(rng)
    };
    let mut rule = CiliumRule {
        subject,
        ingress: section(rng, 0.65, namespaced),
        ingress_deny: section(rng, 0.2, namespaced),
        egress: section(rng, 0.65, namespaced),
        egress_deny: section(rng, 0.2, namespaced),
        default_deny: [None, None],
    };
    let sections = [
        &rule.ingress,
        &rule.ingress_deny,
        &rule.egress,
        &rule.egress_deny,
    ];
    if !sections
        .iter()
        .any(|s| s.as_ref().is_some_and(|s| !s.is_empty()))
    {
        rule.egress = Some(vec![entry(rng, namespaced)]);
    }
    for value in &mut rule.default_deny {
        *value = match rng.random_range(0..10) {
            0..2 => Some(false),
            2 => Some(true),
            _ => None,
        };
    }
    rule
}

fn section(rng: &mut StdRng, share: f64, namespaced: bool) -> Option<Vec<Entry>> {
    if !rng.random_bool(share) {
        return None;
    }
    let count = [0, 1, 1, 1, 2, 2, 3].choose(rng).unwrap();
    Some((0..*count).map(|_| entry(rng, namespaced)).collect())
}

fn entry(rng: &mut StdRng, namespaced: bool) -> Entry {
    if rng.random_bool(0.08) {
        return Entry::default();
    }
    let mut entry = Entry::default();
    match rng.random_range(0..10) {
        0..4 => entry.ports = cilium_ports(rng),
        4..6 => entry.icmps = icmps(rng),
        _ => {}
    }
    // What is left is the entry `{}`, which has its own share.
    let needed = entry.ports.is_empty() && entry.icmps.is_empty();
    if needed || rng.random_bool(0.7) {
        entry.peers = Some(peers(rng, namespaced));
    }
    entry
}

fn peers(rng: &mut StdRng, namespaced: bool) -> Peers {
    let count = *[0, 1, 1, 1, 1, 1, 2, 2, 2, 3].choose(rng).unwrap();
    match rng.random_range(0..10) {
        0..4 => Peers::Endpoints((0..count).map(|_| peer(rng, namespaced)).collect()),
        4..7 => Peers::Entities((0..count).map(|_| *ENTITIES.choose(rng).unwrap()).collect()),
        7 => Peers::Cidr((0..count).map(|_| net_or_address(rng)).collect()),
        _ => Peers::CidrSet((0..count).map(|_| block(rng)).collect()),
    }
}

fn net(rng: &mut StdRng) -> Net {
    Net::of(CIDRS.choose(rng).unwrap())
}

fn net_or_address(rng: &mut StdRng) -> Net {
    if rng.random_bool(0.5) {
        return net(rng);
    }
    let addresses = [
        "198.51.100.7",
        "198.51.100.8",
        "2001:db8:1:2::1",
        "192.0.2.1",
    ];
    Net::of(addresses.choose(rng).unwrap())
}

/// With or without parts taken out of it.
fn block(rng: &mut StdRng) -> Block {
    let cidr = net(rng);
    let inside = CIDRS.iter().map(|text| Net::of(text));
    let inside: Vec<Net> = inside
        .filter(|net| net.bits > cidr.bits && cidr.contains(net.address))
        .collect();
    let count = *[0, 1, 1, 2].choose(rng).unwrap();
    Block {
        cidr,
        except: inside.choose_multiple(rng, count).copied().collect(),
    }
}

fn one(key: &str, value: &str) -> Selector {
    Selector {
        labels: vec![(key.to_owned(), value.to_owned())],
        expressions: Vec::new(),
    }
}

fn expression(key: &str, operator: Operator, values: &[&str]) -> Expression {
    let values = values.iter().map(|v| (*v).to_owned()).collect();
    Expression {
        key: key.to_owned(),
        operator,
        values,
    }
}

fn key(rng: &mut StdRng, name: &str) -> String {
    let source = ["", "", "any:", "k8s:"].choose(rng).unwrap();
    format!("{source}{name}")
}

/// About the labels of a pod itself.
fn pods(rng: &mut StdRng) -> Selector {
    let app = *APPS.choose(rng).unwrap();
    let other = *APPS.choose(rng).unwrap();
    let zone = *["any:zone", "zone", "k8s:zone", "cloud:zone"]
        .choose(rng)
        .unwrap();
    let app_key = key(rng, "app");
    let tier_key = key(rng, "tier");
    let list = match rng.random_range(0..10) {
        0..2 => return Selector::default(),
        2..4 => return one(&app_key, app),
        4 => return one(zone, "a"),
        5 => expression(&app_key, Operator::In, &[app, other]),
        6 => expression(&app_key, Operator::NotIn, &[app]),
        7 => expression(&tier_key, Operator::NotIn, &["front"]),
        8 => expression(&tier_key, Operator::Exists, &[]),
        _ => expression(&tier_key, Operator::DoesNotExist, &[]),
    };
    Selector {
        labels: Vec::new(),
        expressions: vec![list],
    }
}

fn subject(rng: &mut StdRng) -> Selector {
    let mut selector = pods(rng);
    if rng.random_bool(0.25) {
        let namespace = (*NAMESPACES.choose(rng).unwrap()).to_owned();
        let key = format!("k8s:{NAMESPACE_KEY}");
        selector.labels.push((key, namespace));
    }
    selector
}

fn clusterwide_subject(rng: &mut StdRng) -> Selector {
    match rng.random_range(0..4) {
        0..2 => one("reserved:init", ""),
        2 => Selector::default(),
        _ => pods(rng),
    }
}

/// A peer of a Cilium policy: by its pod's labels, its namespace, its cluster, or a reserved one.
fn peer(rng: &mut StdRng, namespaced: bool) -> Selector {
    let reserved = [
        "host",
        "health",
        "remote-node",
        "kube-apiserver",
        "ingress",
        "init",
    ];
    if rng.random_bool(0.15) {
        let key = format!("reserved:{}", reserved.choose(rng).unwrap());
        return if rng.random_bool(0.5) {
            one(&key, "")
        } else {
            Selector {
                labels: Vec::new(),
                expressions: vec![expression(&key, Operator::Exists, &[])],
            }
        };
    }
    let mut selector = pods(rng);
    let namespace = *NAMESPACES.choose(rng).unwrap();
    let team = *TEAMS.choose(rng).unwrap();
    let namespace_key = key(rng, NAMESPACE_KEY);
    let team_key = key(rng, &format!("{NAMESPACE_LABELS}team"));
    match rng.random_range(0..12) {
        0..2 => selector.labels.push((namespace_key, namespace.to_owned())),
        2 => selector
            .expressions
            .push(expression(&namespace_key, Operator::In, &NAMESPACES)),
        3 => selector
            .expressions
            .push(expression(&namespace_key, Operator::Exists, &[])),
        // What a clusterwide policy adds makes another sense of these.
        4 if namespaced => {
            let other = expression(&namespace_key, Operator::NotIn, &[namespace]);
            selector.expressions.push(other);
        }
        5 => selector.labels.push((team_key, team.to_owned())),
        6 => selector
            .expressions
            .push(expression(&team_key, Operator::NotIn, &[team])),
        _ => {}
    }
    let cluster_key = key(rng, CLUSTER_KEY);
    let cluster = *CLUSTERS.choose(rng).unwrap();
    match rng.random_range(0..10) {
        0..2 => selector.labels.push((cluster_key, cluster.to_owned())),
        2..4 => selector
            .expressions
            .push(expression(&cluster_key, Operator::Exists, &[])),
        4 => selector
            .expressions
            .push(expression(&cluster_key, Operator::NotIn, &[cluster])),
        _ => {}
    }
    selector
}

fn cilium_ports(rng: &mut StdRng) -> Vec<Vec<Port>> {
    let lists = *[1, 1, 2].choose(rng).unwrap();
    (0..lists)
        .map(|_| {
            let count = rng.random_range(1..=3);
            (0..count).map(|_| cilium_port(rng)).collect()
        })
        .collect()
}

fn cilium_port(rng: &mut StdRng) -> Port {
    let protocols = [None, Some("ANY"), Some("TCP"), Some("UDP"), Some("SCTP")];
    let mut port = port(rng);
    port.protocol = *protocols.choose(rng).unwrap();
    if port.end.is_none() && rng.random_bool(0.1) {
        port.port = Some(PortText::Number(0));
    }
    if let (Some(PortText::Number(first @ 1..)), None) = (&port.port, port.end)
        && rng.random_bool(0.2)
    {
        port.end = Some(*first);
    }
    port
}

/// Without a protocol.
fn port(rng: &mut StdRng) -> Port {
    let (port, end) = match rng.random_range(0..10) {
        0 => (None, None),
        1..4 => (Some(PortText::Name(NAMES.choose(rng).unwrap())), None),
        4..7 => {
            let number = [80, 443, 8080, 53, 9000, 5000].choose(rng).unwrap();
            (Some(PortText::Number(*number)), None)
        }
        _ => {
            let (first, last) = *[(1024, 65535), (8000, 8999), (5000, 5007), (1, 1023)]
                .choose(rng)
                .unwrap();
            (Some(PortText::Number(first)), Some(last))
        }
    };
    Port {
        port,
        end,
        protocol: None,
    }
}

fn icmps(rng: &mut StdRng) -> Vec<Vec<Icmp>> {
    let count = rng.random_range(1..=3);
    let fields = (0..count).map(|_| {
        let family = *[None, Some("IPv4"), Some("IPv6"), Some("IPv6")]
            .choose(rng)
            .unwrap();
        let numbers: &[u8] = if family == Some("IPv6") {
            &[128, 129, 1, 3]
        } else {
            &[8, 0, 3, 11, 13]
        };
        let kind = if rng.random_bool(0.4) {
            let name = ["EchoRequest", "EchoRequest", "EchoReply"]
                .choose(rng)
                .unwrap();
            IcmpText::Name(name)
        } else {
            IcmpText::Number(*numbers.choose(rng).unwrap())
        };
        Icmp { family, kind }
    });
    vec![fields.collect()]
}

fn kubernetes(rng: &mut StdRng, namespace: String, name: String) -> NetworkPolicy {
    let types = rng.random_range(0..4);
    let ingress = types != 1;
    let egress = types == 1 || types == 2;
    NetworkPolicy {
        namespace,
        name,
        subject: kubernetes_pods(rng),
        types: match types {
            0 => Some(vec![Way::Ingress]),
            1 => Some(vec![Way::Egress]),
            2 => Some(vec![Way::Ingress, Way::Egress]),
            _ => None,
        },
        ingress: ingress.then(|| kubernetes_section(rng)).flatten(),
        egress: egress.then(|| kubernetes_section(rng)).flatten(),
    }
}

/// Keys without a source.
fn kubernetes_pods(rng: &mut StdRng) -> Selector {
    let mut selector = pods(rng);
    for (key, _) in &mut selector.labels {
        bare(key);
    }
    for expression in &mut selector.expressions {
        bare(&mut expression.key);
    }
    selector
}

fn bare(key: &mut String) {
    if let Some((_, name)) = key.split_once(':') {
        *key = name.to_owned();
    }
}

fn kubernetes_section(rng: &mut StdRng) -> Option<Vec<KubernetesEntry>> {
    let count = [None, Some(0), Some(1), Some(1), Some(1), Some(2)]
        .choose(rng)
        .unwrap();
    count.map(|count| (0..count).map(|_| kubernetes_entry(rng)).collect())
}

fn kubernetes_entry(rng: &mut StdRng) -> KubernetesEntry {
    let count = *[None, Some(0), Some(1), Some(1), Some(1), Some(2), Some(2)]
        .choose(rng)
        .unwrap();
    let peers = count.map(|count| (0..count).map(|_| kubernetes_peer(rng)).collect());
    let count = *[None, None, Some(0), Some(1), Some(1), Some(2)]
        .choose(rng)
        .unwrap();
    let ports = count.map(|count| (0..count).map(|_| kubernetes_port(rng)).collect());
    KubernetesEntry { peers, ports }
}

fn kubernetes_peer(rng: &mut StdRng) -> KubernetesPeer {
    let team = *TEAMS.choose(rng).unwrap();
    let namespaces = match rng.random_range(0..4) {
        0..2 => Selector::default(),
        2 => one("team", team),
        _ => Selector {
            labels: Vec::new(),
            expressions: vec![expression("team", Operator::In, &[team])],
        },
    };
    match rng.random_range(0..6) {
        0..2 => KubernetesPeer::Block(block(rng)),
        2 => KubernetesPeer::Pods {
            pods: Some(kubernetes_pods(rng)),
            namespaces: None,
        },
        3 => KubernetesPeer::Pods {
            pods: None,
            namespaces: Some(namespaces),
        },
        _ => KubernetesPeer::Pods {
            pods: Some(kubernetes_pods(rng)),
            namespaces: Some(namespaces),
        },
    }
}

fn kubernetes_port(rng: &mut StdRng) -> Port {
    let mut port = port(rng);
    port.protocol = *[None, None, Some("TCP"), Some("UDP"), Some("SCTP")]
        .choose(rng)
        .unwrap();
    if rng.random_bool(0.3) {
        (port.port, port.end) = (None, None);
    }
    port
}
