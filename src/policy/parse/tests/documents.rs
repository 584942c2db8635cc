//! Files: documents, kinds, lists, metadata.
use super::*;

#[test]
fn the_guides_policy_parses() {
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
        ports: vec![port(6, 6379)],
    };
    let rule = Rule {
        subject,
        default_deny: both(true, false),
        ingress: vec![grant],
        egress: vec![],
    };
    let policy = Policy {
        kind: Kind::CiliumNetworkPolicy,
        namespace: Some("default".into()),
        name: "allow-employee".into(),
        audit: false,
        rules: vec![rule],
    };
    assert_eq!(policies(GUIDE), [policy]);
}

#[test]
fn several_documents_and_specs_are_united() {
    let spec = "{endpointSelector: {}, ingress: [{}]}";
    let one = cnp(spec);
    let two = one
        .replace("name: p", "name: q")
        .replace("spec: ", &format!("specs: [{spec}, {spec}], spec: "));
    let three = one
        .replace("name: p", "name: r")
        .replace("spec: ", "specs: ");
    let three = three.replace(spec, &format!("[{spec}, {spec}]"));
    let found = policies(&format!("---\n{one}\n---\n---\n{two}\n---\n{three}\n"));
    let shape: Vec<_> = found
        .iter()
        .map(|p| (p.name.as_str(), p.rules.len()))
        .collect();
    assert_eq!(shape, [("p", 1), ("q", 3), ("r", 2)]);
    let json = r#"{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy",
        "metadata":{"name":"j","creationTimestamp":null},
        "spec":{"endpointSelector":{},"ingress":[{}]},"status":{}}"#;
    assert_eq!(policies(json)[0].name, "j");
}

#[test]
fn kinds_have_their_own_namespaces_and_may_share_names() {
    let spec = "{endpointSelector: {}, ingress: [{}]}";
    let pods = "{podSelector: {}}";
    let text = [cnp(spec), ccnp(spec), netpol(pods)].join("\n---\n");
    let titles: Vec<_> = policies(&text)
        .iter()
        .map(|p| (p.kind, p.title()))
        .collect();
    assert_eq!(
        titles,
        [
            (Kind::CiliumNetworkPolicy, "shop/p".to_owned()),
            (Kind::CiliumClusterwideNetworkPolicy, "p".to_owned()),
            (Kind::NetworkPolicy, "shop/p".to_owned()),
        ]
    );
    for text in [cnp(spec), netpol(pods)] {
        let text = text.replace(", namespace: shop", "");
        assert_eq!(policies(&text)[0].namespace.as_deref(), Some("default"));
    }
}

#[test]
fn lists_are_read_as_their_items() {
    let (a, b) = (
        cnp("{endpointSelector: {}, ingress: [{}]}"),
        netpol("{podSelector: {}}"),
    );
    for (kind, version, items) in [
        ("List", "v1", format!("{a}, {b}")),
        ("CiliumNetworkPolicyList", "cilium.io/v2", a),
        ("NetworkPolicyList", "networking.k8s.io/v1", b),
        (
            "CiliumClusterwideNetworkPolicyList",
            "cilium.io/v2",
            ccnp("{endpointSelector: {}, ingress: [{}]}"),
        ),
    ] {
        let list = |items: &str| {
            format!("{{apiVersion: {version}, kind: {kind}, metadata: {{}}, items: [{items}]}}")
        };
        let expected = if kind == "List" { 2 } else { 1 };
        assert_eq!(policies(&list(&items)).len(), expected, "{kind}");
        assert_eq!(refused(&list("")).refusal, Refusal::Empty);
        let bad = items.replace("metadata: {name: p", "metadata: {name: P");
        assert_eq!(refused(&list(&bad)).field, "items[0].metadata.name");
        let nested = refused(&list(&list(&items)));
        assert_eq!(
            (nested.field.as_str(), nested.refusal),
            ("items[0]", Refusal::Kind(kind.into()))
        );
    }
}

#[test]
fn annotations_of_ours_are_read_and_others_left_alone() {
    let annotated = |annotations: &str| {
        with_entry("{}").replace(
            "{name: p",
            &format!("{{annotations: {annotations}, name: p"),
        )
    };
    for (annotations, audit) in [
        ("{}", false),
        ("{example.org/policy: [], other: null}", false),
        ("{policy.tombolo.io/audit: 'true'}", true),
        ("{policy.tombolo.io/audit: 'false'}", false),
        ("{policy.tombolo.io/unsupported: fail-closed}", false),
    ] {
        assert_eq!(
            policies(&annotated(annotations))[0].audit,
            audit,
            "{annotations}"
        );
    }
    let value = |refusal: &Refusal| matches!(refusal, Refusal::Value { .. });
    let unknown = |refusal: &Refusal| *refusal == Refusal::UnknownField;
    let wrong_type = |refusal: &Refusal| matches!(refusal, Refusal::WrongType { .. });
    type Check<'a> = &'a dyn Fn(&Refusal) -> bool;
    let cases: [(&str, &str, Check<'_>); 6] = [
        ("audit", "'yes'", &value),
        ("audit", "true", &wrong_type),
        ("audit", "''", &value),
        ("unsupported", "open", &value),
        ("unsupported", "'true'", &value),
        ("audits", "'true'", &unknown),
    ];
    for (name, text, check) in cases {
        let error = refused(&annotated(&format!("{{policy.tombolo.io/{name}: {text}}}")));
        let field = format!("metadata.annotations.\"policy.tombolo.io/{name}\"");
        assert_eq!(error.field, field);
        assert!(check(&error.refusal), "{error}");
    }
}

#[test]
fn aliases_stand_for_what_they_name_but_not_for_more_than_a_file_holds() {
    let text = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: &all {}
  ingress: &open
  - fromEndpoints: [*all]
  ingressDeny: *open
";
    let rule = rule(text);
    assert_eq!(rule.ingress[0].peers, rule.ingress[1].peers);
    let mut bomb = String::from("a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
    for level in 1..6 {
        let below = format!("*a{}", level - 1);
        let all = [below.as_str(); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{all}]\n"));
    }
    assert!(matches!(refused(&bomb).refusal, Refusal::Yaml(_)));
}
