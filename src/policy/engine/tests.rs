use std::{collections::HashMap, path::Path, sync::Arc};

use super::{Enforcement, Engine, Options};
use crate::{
    policy::{
        Direction, EndpointMode, MapDelta, Origin, PerDirection, PolicyEntry, PolicyKey, Votes,
        parse, verdict,
    },
    types::{EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint},
};

mod grants;
mod trace;

const DB: EndpointId = EndpointId(9);
const LOCAL: u32 = 101 << 16;
const REMOTE: u32 = 102 << 16;

const GUIDE: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: allow-employee}
spec:
  endpointSelector:
    matchLabels: {app: protected-db, io.cilium.k8s.policy.cluster: cluster1}
  ingress:
  - toPorts: [{ports: [{port: "6379", protocol: TCP}]}]
    fromEndpoints:
    - matchLabels: {app: employee}
    - matchLabels:
        app: employee
        io.cilium.k8s.policy.cluster: cluster2
        k8s:io.kubernetes.pod.namespace: istio-space
"#;

pub(super) fn labels(app: &str, namespace: &str, cluster: &str) -> Arc<Labels> {
    Arc::new(Labels::parse(&format!(
        "k8s:app={app};k8s:io.cilium.k8s.policy.cluster={cluster};\
         k8s:io.kubernetes.pod.namespace={namespace};"
    )))
}

pub(super) fn endpoint(id: EndpointId, labels: Arc<Labels>) -> EndpointEvent {
    EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id,
        identity: IdentityId(LOCAL + id.0),
        labels,
        namespace: "default".into(),
        name: "pod".into(),
        addresses: vec![],
        interface: None,
        named_ports: vec![],
        audit: false,
    }))
}

pub(super) fn engine(default_local_cluster: bool) -> Engine {
    let options = Options {
        cluster: "cluster1".parse().unwrap(),
        default_local_cluster,
        enforcement: Enforcement::Default,
    };
    Engine::new(options, [])
}

const fn denying(ingress: bool) -> EndpointMode {
    let egress = false;
    EndpointMode {
        default_deny: PerDirection { ingress, egress },
        audit_default_deny: PerDirection {
            ingress: false,
            egress,
        },
        audit: false,
    }
}

fn denies(engine: &Engine) -> bool {
    engine.mode_of(DB).unwrap().default_deny.ingress
}

fn from(file: &Path) -> Origin {
    Origin::File(file.to_owned())
}

/// The street of the guide, with the policy `text`.
fn street(text: &str, default_local_cluster: bool) -> Engine {
    let mut engine = engine(default_local_cluster);
    let out = &mut Vec::new();
    for (id, app, namespace, cluster) in [
        (LOCAL + 1, "employee", "default", "cluster1"),
        (LOCAL + 2, "stranger", "default", "cluster1"),
        (LOCAL + 3, "employee", "other", "cluster1"),
        (REMOTE + 1, "employee", "istio-space", "cluster2"),
        (REMOTE + 2, "stranger", "istio-space", "cluster2"),
        (REMOTE + 3, "employee", "default", "cluster2"),
    ] {
        engine.apply_identity(IdentityId(id), Some(labels(app, namespace, cluster)), out);
    }
    engine.apply_endpoint(
        &endpoint(DB, labels("protected-db", "default", "cluster1")),
        out,
    );
    let file = Path::new("guide.yaml");
    engine.set_policies(&from(file), parse(text, file).unwrap(), out);
    engine
}

fn key(identity: u32, port: u16) -> PolicyKey {
    let (identity, direction) = (IdentityId(identity), Direction::Ingress);
    PolicyKey {
        endpoint: DB,
        identity,
        direction,
        protocol: 6,
        port,
        port_bits: 16,
    }
}

fn allowed(engine: &Engine, port: u16) -> Vec<u32> {
    let ids = [
        1,
        2,
        LOCAL + 1,
        LOCAL + 2,
        LOCAL + 3,
        REMOTE + 1,
        REMOTE + 2,
        REMOTE + 3,
    ];
    let deny = denies(engine);
    let passes = |id: &u32| verdict(|k| engine.entry(k), &key(*id, port)).passes(deny);
    ids.into_iter().filter(passes).collect()
}

#[test]
fn the_guides_policy_admits_both_employees_and_nobody_else() {
    let with_cluster = GUIDE.replace(
        "{app: employee}",
        "{app: employee, io.cilium.k8s.policy.cluster: cluster1}",
    );
    for text in [GUIDE, &with_cluster] {
        let engine = street(text, true);
        assert_eq!(allowed(&engine, 6379), [LOCAL + 1, REMOTE + 1]);
        assert_eq!(allowed(&engine, 22), [0; 0]);
    }
    // Without the option a selector that says nothing of clusters reaches into all of them.
    assert_eq!(
        allowed(&street(GUIDE, false), 6379),
        [LOCAL + 1, REMOTE + 1, REMOTE + 3]
    );
}

#[test]
fn entities_select_what_the_reference_says() {
    let entity = |name: &str| {
        let (head, _) = GUIDE.split_once("  - toPorts").unwrap();
        allowed(
            &street(&format!("{head}  - fromEntities: [{name}]\n"), true),
            1,
        )
    };
    assert_eq!(entity("all").len(), 8);
    assert_eq!(entity("world"), [2]);
    assert_eq!(entity("host"), [1]);
    assert_eq!(entity("cluster"), [1, LOCAL + 1, LOCAL + 2, LOCAL + 3]);
    assert_eq!(entity("none"), [0; 0]);
}

#[test]
fn a_peers_end_takes_only_its_entry_and_default_deny_comes_after_allows() {
    let mut engine = street(
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: x}, \
         spec: {endpointSelector: {matchLabels: {app: other}}, ingress: [{}]}}",
        true,
    );
    assert!(!denies(&engine));
    let file = Path::new("guide.yaml");
    let mut out = Vec::new();
    engine.set_policies(&from(file), parse(GUIDE, file).unwrap(), &mut out);
    let [
        MapDelta::Entry {
            key: first,
            value:
                Some(PolicyEntry {
                    votes: Votes::ALLOW,
                    rule,
                }),
        },
        MapDelta::Entry {
            key: second,
            value: Some(_),
        },
        MapDelta::Endpoint { endpoint: DB, mode },
    ] = &out[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!(*mode, denying(true));
    assert_eq!(
        (*first, *second),
        (key(LOCAL + 1, 6379), key(REMOTE + 1, 6379))
    );
    let name = engine.names().get(*rule).map(|name| name.to_string());
    let expected = "default/allow-employee rule 0 ingress[0] in guide.yaml";
    assert_eq!(name.as_deref(), Some(expected));
    let number = *rule;

    out.clear();
    engine.apply_identity(IdentityId(REMOTE + 1), None, &mut out);
    assert_eq!(
        out,
        [MapDelta::Entry {
            key: key(REMOTE + 1, 6379),
            value: None
        }]
    );

    out.clear();
    engine.set_policies(&from(file), parse(GUIDE, file).unwrap(), &mut out);
    assert_eq!(out, [], "the same policies change nothing");
    engine.remove_origin(&from(file), &mut out);
    assert_eq!(
        out,
        [
            MapDelta::Endpoint {
                endpoint: DB,
                mode: denying(false)
            },
            MapDelta::Entry {
                key: key(LOCAL + 1, 6379),
                value: None
            },
        ]
    );
    assert_eq!(
        (
            engine.rule_count(),
            engine.selector_count(),
            engine.entry_count()
        ),
        (0, 0, 0)
    );
    engine.set_policies(&from(file), parse(GUIDE, file).unwrap(), &mut out);
    assert!(
        engine.names().get(number).is_some(),
        "a rule that comes back has its old number"
    );
}

#[test]
fn an_entry_of_two_rules_survives_the_end_of_one() {
    let mut engine = street(GUIDE, true);
    let (other, out) = (Path::new("other.yaml"), &mut Vec::new());
    engine.set_policies(&from(other), parse(GUIDE, other).unwrap(), out);
    let before = engine.entry(&key(LOCAL + 1, 6379)).unwrap();
    engine.remove_origin(&from(Path::new("guide.yaml")), out);
    let after = engine.entry(&key(LOCAL + 1, 6379)).unwrap();
    assert!(
        before.rule <= after.rule,
        "the lowest number of several is shown"
    );
    assert_eq!(allowed(&engine, 6379), [LOCAL + 1, REMOTE + 1]);
}

#[test]
fn reserved_identities_cannot_be_relabelled() {
    let mut engine = street(GUIDE, true);
    let mut out = Vec::new();
    for id in [0, 1, 2, 104, 255] {
        let employee = labels("employee", "default", "cluster1");
        engine.apply_identity(IdentityId(id), Some(employee), &mut out);
    }
    assert_eq!(out, []);
}

#[test]
fn default_deny_can_be_left_out_per_rule() {
    let lenient = GUIDE.replace("spec:\n", "spec:\n  enableDefaultDeny: {ingress: false}\n");
    let engine = street(&lenient, true);
    assert!(!denies(&engine));
    assert_eq!(allowed(&engine, 22).len(), 8);
    let strict = verdict(|k| engine.entry(k), &key(LOCAL + 2, 6379));
    assert!(strict.votes.is_empty());
}

#[test]
fn a_new_endpoint_always_hears_its_default_deny() {
    let mut engine = street(GUIDE, true);
    let mut out = Vec::new();
    let free = EndpointId(10);
    engine.apply_endpoint(
        &endpoint(free, labels("x", "default", "cluster1")),
        &mut out,
    );
    assert_eq!(
        out,
        [MapDelta::Endpoint {
            endpoint: free,
            mode: denying(false)
        }]
    );
    out.clear();
    engine.apply_endpoint(&EndpointEvent::Delete(DB), &mut out);
    assert_eq!(out.len(), 2);
    assert!(
        out.iter()
            .all(|d| matches!(d, MapDelta::Entry { value: None, .. }))
    );
    let desired: HashMap<_, _> = engine
        .desired()
        .into_iter()
        .filter_map(|d| match d {
            MapDelta::Endpoint { endpoint, mode } => Some((endpoint, mode.default_deny.ingress)),
            MapDelta::Entry { .. } | MapDelta::Cidr { .. } => None,
        })
        .collect();
    assert_eq!(desired, HashMap::from([(free, false)]));
}
