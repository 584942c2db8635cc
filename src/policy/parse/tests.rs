use std::path::Path;

use super::{Refusal, parse};
use crate::policy::{
    Grant, Kind, Operator, Peer, Peers, PerDirection, Policy, Port, Requirement, Rule, Selector,
    selector::{CLUSTER_KEY, NAMESPACE_KEY},
};

/// The policy of the guide.
pub(crate) const GUIDE: &str = r#"
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

fn any(key: &str, value: &str) -> Requirement {
    let operator = Operator::In([value.to_owned()].into());
    Requirement {
        key: key.into(),
        source: None,
        operator,
    }
}

#[test]
fn the_guides_policy_parses() {
    let policies = parse(GUIDE, Path::new("guide.yaml")).unwrap();
    let local = Selector::new([
        any("app", "employee"),
        Requirement::k8s(NAMESPACE_KEY, "default"),
    ]);
    let remote = Selector::new([
        any("app", "employee"),
        any(CLUSTER_KEY, "cluster2"),
        Requirement::k8s(NAMESPACE_KEY, "istio-space"),
    ]);
    let subject = Selector::new([
        any("app", "protected-db"),
        any(CLUSTER_KEY, "cluster1"),
        Requirement::k8s(NAMESPACE_KEY, "default"),
    ]);
    let grant = Grant {
        deny: false,
        peers: Peers::Of(vec![Peer::Labels(local), Peer::Labels(remote)]),
        ports: vec![Port::Range {
            protocol: 6,
            first: 6379,
            last: 6379,
        }],
    };
    let rule = Rule {
        subject,
        default_deny: PerDirection {
            ingress: true,
            egress: false,
        },
        ingress: vec![grant],
        egress: Vec::new(),
    };
    let (namespace, name) = (Some("default".to_owned()), "allow-employee".to_owned());
    assert_eq!(
        policies,
        [Policy {
            kind: Kind::CiliumNetworkPolicy,
            namespace,
            name,
            audit: false,
            rules: vec![rule]
        }]
    );
}

fn with_spec(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

fn with_entry(entry: &str) -> String {
    with_spec(&format!("{{endpointSelector: {{}}, ingress: [{entry}]}}"))
}

fn rule(text: &str) -> Rule {
    let mut policies = parse(text, Path::new("p.yaml")).unwrap_or_else(|e| panic!("{text}: {e}"));
    policies.remove(0).rules.remove(0)
}

#[test]
fn peers_get_the_policys_namespace_as_the_reference_says() {
    let own = || Requirement::k8s(NAMESPACE_KEY, "shop");
    for (selector, added) in [
        ("{}", true),
        ("{matchLabels: {app: a}}", true),
        (
            "{matchLabels: {'any:io.kubernetes.pod.namespace': x}}",
            false,
        ),
        (
            "{matchLabels: {'k8s:io.kubernetes.pod.namespace': x}}",
            false,
        ),
        ("{matchLabels: {io.kubernetes.pod.namespace: x}}", false),
        (
            "{matchLabels: {'container:io.kubernetes.pod.namespace': x}}",
            true,
        ),
        (
            "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}",
            false,
        ),
        (
            "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: NotIn, values: [x]}]}",
            false,
        ),
        (
            "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}",
            false,
        ),
        ("{matchLabels: {'reserved:host': ''}}", false),
        ("{matchLabels: {'reserved:host': '', app: a}}", true),
    ] {
        let rule = rule(&with_entry(&format!("{{fromEndpoints: [{selector}]}}")));
        let Peers::Of(peers) = &rule.ingress[0].peers else {
            panic!("{selector}")
        };
        let Peer::Labels(found) = &peers[0] else {
            panic!("{selector}")
        };
        assert_eq!(found.requirements().contains(&own()), added, "{selector}");
    }
}

#[test]
fn the_subject_is_forced_into_the_namespace() {
    for selector in [
        "{}",
        "{matchLabels: {io.kubernetes.pod.namespace: other}}",
        "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: DoesNotExist}]}",
    ] {
        let rule = rule(&with_spec(&format!(
            "{{endpointSelector: {selector}, ingress: [{{}}]}}"
        )));
        assert_eq!(
            rule.subject,
            Selector::new([Requirement::k8s(NAMESPACE_KEY, "shop")])
        );
    }
}

#[test]
fn absent_empty_and_full_sections_mean_what_the_reference_says() {
    let ports = |protocols: &[u8]| -> Vec<Port> {
        protocols
            .iter()
            .map(|p| Port::Range {
                protocol: *p,
                first: 80,
                last: 80,
            })
            .collect()
    };
    assert_eq!(rule(&with_entry("{}")).ingress, []);
    for (entry, peers, expected) in [
        (
            "{toPorts: [{ports: [{port: '80', protocol: UDP}]}]}",
            Peers::Any,
            ports(&[17]),
        ),
        (
            "{toPorts: [{ports: [{port: 80}]}]}",
            Peers::Any,
            ports(&[6, 17, 132]),
        ),
        (
            "{toPorts: [{ports: [{port: 80, protocol: SCTP}]}, {ports: [{port: '80', protocol: TCP}]}]}",
            Peers::Any,
            ports(&[6, 132]),
        ),
        (
            "{fromEndpoints: [], toPorts: [{ports: [{port: '80', protocol: ANY}]}]}",
            Peers::Of(vec![]),
            ports(&[6, 17, 132]),
        ),
        ("{fromEntities: []}", Peers::Of(vec![]), vec![]),
        ("{fromEntities: [none]}", Peers::Of(vec![]), vec![]),
        ("{fromEntities: [host, all]}", Peers::Any, vec![]),
        (
            "{fromEntities: [host]}",
            Peers::Of(vec![Peer::Labels(Selector::new([Requirement::reserved(
                "host",
            )]))]),
            vec![],
        ),
    ] {
        let rule = rule(&with_entry(entry));
        assert_eq!(
            rule.ingress,
            [Grant {
                deny: false,
                peers,
                ports: expected
            }],
            "{entry}"
        );
    }
    for (deny, expected) in [
        ("{ingress: false}", false),
        ("{egress: false}", true),
        ("{}", true),
    ] {
        let spec =
            format!("{{endpointSelector: {{}}, ingress: [{{}}], enableDefaultDeny: {deny}}}");
        assert_eq!(rule(&with_spec(&spec)).default_deny.ingress, expected);
    }
}

#[test]
fn several_documents_and_specs_are_united() {
    let spec = "{endpointSelector: {}, ingress: [{}]}";
    let one = with_spec(spec);
    let two = one
        .replace("name: p", "name: q")
        .replace("spec: ", &format!("specs: [{spec}], spec: "));
    let policies = parse(
        &format!("---\n{one}\n---\n---\n{two}\n"),
        Path::new("p.yaml"),
    )
    .unwrap();
    let shape: Vec<_> = policies
        .iter()
        .map(|p| (p.name.as_str(), p.rules.len()))
        .collect();
    assert_eq!(shape, [("p", 1), ("q", 2)]);
    let json = r#"{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"j"},
        "spec":{"endpointSelector":{},"ingress":[{}]}}"#;
    assert_eq!(parse(json, Path::new("p.json")).unwrap()[0].name, "j");
}

#[test]
fn everything_that_is_not_enforced_is_refused_with_its_place() {
    use Refusal as R;
    let unsupported = |r: &R| matches!(r, R::Unsupported { .. });
    let null = |r: &R| *r == R::Null;
    let unknown = |r: &R| *r == R::UnknownField;
    let value = |r: &R| matches!(r, R::Value { .. });
    let wrong_type = |r: &R| matches!(r, R::WrongType { .. });
    let missing = |r: &R| matches!(r, R::Missing { .. });
    let misplaced = |r: &R| matches!(r, R::Misplaced { .. });
    let spec = |rest: &str| {
        with_spec(&format!(
            "{{endpointSelector: {{}}, ingress: [{{}}], {rest}}}"
        ))
    };
    let ports = |ports: &str| with_entry(&format!("{{toPorts: [{ports}]}}"));
    let peer = |selector: &str| with_entry(&format!("{{fromEndpoints: [{selector}]}}"));
    let doc = with_entry("{}");
    let many = vec!["{port: '1'}"; 41].join(", ");
    type Check<'a> = &'a dyn Fn(&R) -> bool;
    let cases: Vec<(String, &str, Check<'_>)> = vec![
        ("a: [".into(), "", &|r| matches!(r, R::Yaml(_))),
        (String::new(), "", &|r| *r == R::Empty),
        ("# comment\n---\n".into(), "", &|r| *r == R::Empty),
        (format!("{doc}\n---\n{doc}"), "", &|r| *r == R::Duplicate),
        (
            doc.replace("cilium.io/v2", "cilium.io/v3"),
            "apiVersion",
            &value,
        ),
        (
            doc.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
            "metadata.namespace",
            &misplaced,
        ),
        (
            doc.replace("CiliumNetworkPolicy", "AdminNetworkPolicy"),
            "",
            &|r| *r == R::Kind("AdminNetworkPolicy".into()),
        ),
        (doc.replace("kind: CiliumNetworkPolicy, ", ""), "", &missing),
        (doc.replace("name: p, ", ""), "metadata", &missing),
        (doc.replace("name: p", "name: P/x"), "metadata.name", &value),
        (doc.replace("name: p", "nam: p"), "metadata.nam", &unknown),
        (doc.replace("spec:", "spek:"), "spek", &unknown),
        (doc.replace("spec:", "status:"), "", &missing),
        (with_spec("{ingress: [{}]}"), "spec", &missing),
        (with_spec("{endpointSelector: {}}"), "spec", &misplaced),
        (
            with_spec("{endpointSelector: {}, ingress: []}"),
            "spec",
            &misplaced,
        ),
        (
            with_spec("{endpointSelector: null, ingress: [{}]}"),
            "spec.endpointSelector",
            &null,
        ),
        (
            with_spec("{nodeSelector: {}, ingress: [{}]}"),
            "spec.nodeSelector",
            &misplaced,
        ),
        (spec("ingres: [{}]"), "spec.ingres", &unknown),
        (
            spec("enableDefaultDeny: {ingress: 'no'}"),
            "spec.enableDefaultDeny.ingress",
            &wrong_type,
        ),
        (
            with_entry("{fromCIDR: [10.0.0.0/33]}"),
            "spec.ingress[0].fromCIDR[0]",
            &value,
        ),
        (
            with_entry("{fromCIDRSet: [{cidrGroupRef: g}]}"),
            "spec.ingress[0].fromCIDRSet[0].cidrGroupRef",
            &unsupported,
        ),
        (
            with_entry("{fromNodes: [{}]}"),
            "spec.ingress[0].fromNodes",
            &unsupported,
        ),
        (
            with_entry("{fromGroups: []}"),
            "spec.ingress[0].fromGroups",
            &unsupported,
        ),
        (
            with_entry("{fromRequires: []}"),
            "spec.ingress[0].fromRequires",
            &unsupported,
        ),
        (
            with_entry("{icmps: []}"),
            "spec.ingress[0].icmps",
            &misplaced,
        ),
        (
            with_entry("{authentication: {}}"),
            "spec.ingress[0].authentication",
            &unsupported,
        ),
        (
            with_entry("{toFQDNs: []}"),
            "spec.ingress[0].toFQDNs",
            &unknown,
        ),
        (
            with_entry("{toServices: []}"),
            "spec.ingress[0].toServices",
            &unknown,
        ),
        (
            with_entry("{fromEndpoints: }"),
            "spec.ingress[0].fromEndpoints",
            &null,
        ),
        (
            with_entry("{fromEndpoints: {}}"),
            "spec.ingress[0].fromEndpoints",
            &wrong_type,
        ),
        (with_entry("null"), "spec.ingress[0]", &null),
        (
            with_entry("{fromEndpoints: [{}], fromEntities: [all]}"),
            "spec.ingress[0].fromEntities",
            &|r| matches!(r, R::Conflict { .. }),
        ),
        (
            with_entry("{fromEntities: [everyone]}"),
            "spec.ingress[0].fromEntities[0]",
            &value,
        ),
        (
            with_entry("{toPorts: []}"),
            "spec.ingress[0].toPorts",
            &misplaced,
        ),
        (with_entry("{toPorts: }"), "spec.ingress[0].toPorts", &null),
        (ports("{}"), "spec.ingress[0].toPorts[0]", &missing),
        (
            ports("{ports: []}"),
            "spec.ingress[0].toPorts[0].ports",
            &misplaced,
        ),
        (
            ports("{ports: [{port: '80'}], rules: {http: [{}]}}"),
            "spec.ingress[0].toPorts[0].rules",
            &unsupported,
        ),
        (
            ports("{ports: [{port: ht--tp}]}"),
            "spec.ingress[0].toPorts[0].ports[0].port",
            &value,
        ),
        (
            ports("{ports: [{port: 65536}]}"),
            "spec.ingress[0].toPorts[0].ports[0].port",
            &value,
        ),
        (
            ports("{ports: [{port: '+80'}]}"),
            "spec.ingress[0].toPorts[0].ports[0].port",
            &value,
        ),
        (
            ports("{ports: [{port: -1}]}"),
            "spec.ingress[0].toPorts[0].ports[0].port",
            &value,
        ),
        (
            ports("{ports: [{port: '0', endPort: 90}]}"),
            "spec.ingress[0].toPorts[0].ports[0].endPort",
            &misplaced,
        ),
        (
            ports("{ports: [{port: '80', protocol: ICMP}]}"),
            "spec.ingress[0].toPorts[0].ports[0].protocol",
            &misplaced,
        ),
        (
            ports(&format!("{{ports: [{many}]}}")),
            "spec.ingress[0].toPorts[0].ports",
            &|r| *r == R::TooMany { count: 41, max: 40 },
        ),
        (
            peer("{matchLabel: {}}"),
            "spec.ingress[0].fromEndpoints[0].matchLabel",
            &unknown,
        ),
        (
            peer("{matchLabels: }"),
            "spec.ingress[0].fromEndpoints[0].matchLabels",
            &null,
        ),
        (
            peer("{matchLabels: {app: 1}}"),
            "spec.ingress[0].fromEndpoints[0].matchLabels.app",
            &wrong_type,
        ),
        (
            peer("{matchLabels: {app: 'a;b'}}"),
            "spec.ingress[0].fromEndpoints[0].matchLabels.app",
            &value,
        ),
        (
            peer("{matchLabels: {'cidr:10.0.0.0/8': ''}}"),
            "spec.ingress[0].fromEndpoints[0].matchLabels.\"cidr:10.0.0.0/8\"",
            &value,
        ),
        (
            peer("{matchExpressions: [{key: app, operator: In}]}"),
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0]",
            &missing,
        ),
        (
            peer("{matchExpressions: [{key: app, operator: NotIn, values: []}]}"),
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0]",
            &missing,
        ),
        (
            peer("{matchExpressions: [{key: app, operator: Exists, values: [a]}]}"),
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0].values",
            &misplaced,
        ),
        (
            peer("{matchExpressions: [{key: app, operator: Like, values: [a]}]}"),
            "spec.ingress[0].fromEndpoints[0].matchExpressions[0].operator",
            &value,
        ),
    ];
    for (text, field, check) in cases {
        let error = parse(&text, Path::new("p.yaml")).expect_err(&text);
        assert_eq!(error.field, field, "{text}: {error}");
        assert!(check(&error.refusal), "{text}: {error}");
        assert!(!error.refusal.next_step().is_empty());
    }
}

#[test]
fn a_refusal_names_file_line_field_and_way_out() {
    let text = GUIDE.replace(
        "        protocol: TCP\n",
        "        protocol: TCP\n      rules:\n        http: [{}]\n",
    );
    let error = parse(&text, Path::new("dir/guide.yaml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy file dir/guide.yaml:17: spec.ingress[0].toPorts[0].rules: requests are not looked \
         into (layer 7); remove it if the whole port may be allowed, or annotate the policy with \
         policy.tombolo.io/unsupported: fail-closed"
    );
    let second = format!("{GUIDE}---\n{GUIDE}");
    assert_eq!(
        parse(&second, Path::new("x.yaml")).unwrap_err().line,
        Some(26)
    );
    // The parser's own complaints, too; here a key given twice.
    let twice = parse("a: 1\nb: 2\na: 3\n", Path::new("x.yaml")).unwrap_err();
    assert!(matches!(twice.refusal, Refusal::Yaml(_)), "{twice}");
    assert_eq!(twice.line, Some(3), "{twice}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let refused = parse(&text, Path::new("p.yaml")).is_err();
        proptest::prop_assert!(refused || !text.is_empty());
    }
}
