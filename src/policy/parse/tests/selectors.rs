//! Label selectors, and what a policy's kind and place add to them.
use super::*;
use crate::types::Labels;

const POD: &str = "k8s:app=a;k8s:io.kubernetes.pod.namespace=shop;";

fn own() -> Requirement {
    Requirement::k8s(NAMESPACE_KEY, "shop")
}

fn exists(source: Option<&str>, key: &str) -> Requirement {
    Requirement {
        key: key.into(),
        source: source.map(Into::into),
        operator: Operator::Exists,
    }
}

/// The requirements of the only peer.
fn peer(text: &str) -> Vec<Requirement> {
    let rule = rule(text);
    match &rule.ingress[0].peers {
        Peers::Of(peers) => match &peers[..] {
            [Peer::Labels(selector)] => selector.requirements().to_vec(),
            other => panic!("{text}: {other:?}"),
        },
        Peers::Any => panic!("{text}: anybody"),
    }
}

#[test]
fn keys_name_a_source_or_mean_any() {
    for (key, source, expected) in [
        ("app", None, "app"),
        ("any:app", None, "app"),
        ("k8s:app", Some("k8s"), "app"),
        ("container:app", Some("container"), "app"),
        ("unspec:app", Some("unspec"), "app"),
        ("reserved:host", Some("reserved"), "host"),
        ("k8s.app", None, "k8s.app"),
        ("example.org/app", None, "example.org/app"),
    ] {
        for selector in [
            format!("{{matchLabels: {{'{key}': ''}}}}"),
            format!("{{matchExpressions: [{{key: '{key}', operator: In, values: ['']}}]}}"),
        ] {
            let found = peer(&with_entry(&format!("{{fromEndpoints: [{selector}]}}")));
            let expected = Requirement {
                key: expected.into(),
                source: source.map(Into::into),
                operator: Operator::In([String::new()].into()),
            };
            assert!(found.contains(&expected), "{selector}: {found:?}");
        }
    }
}

#[test]
fn labels_and_expressions_must_all_hold() {
    for (selector, expected) in [
        ("{matchLabels: {app: a}}", true),
        ("{matchLabels: {app: a, tier: x}}", false),
        (
            "{matchExpressions: [{key: app, operator: In, values: [b, a]}]}",
            true,
        ),
        (
            "{matchExpressions: [{key: app, operator: In, values: [b]}]}",
            false,
        ),
        (
            "{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}",
            false,
        ),
        (
            "{matchExpressions: [{key: tier, operator: NotIn, values: [a]}]}",
            true,
        ),
        ("{matchExpressions: [{key: app, operator: Exists}]}", true),
        (
            "{matchExpressions: [{key: tier, operator: Exists, values: []}]}",
            false,
        ),
        (
            "{matchExpressions: [{key: tier, operator: DoesNotExist}]}",
            true,
        ),
        (
            "{matchExpressions: [{key: app, operator: DoesNotExist}]}",
            false,
        ),
        (
            "{matchLabels: {app: a}, matchExpressions: [{key: app, operator: DoesNotExist}]}",
            false,
        ),
        ("{matchExpressions: []}", true),
        ("{}", true),
    ] {
        let found = peer(&with_entry(&format!("{{fromEndpoints: [{selector}]}}")));
        let matches = Selector::new(found).matches(&Labels::parse(POD));
        assert_eq!(matches, expected, "{selector}");
    }
}

#[test]
fn peers_get_the_policys_namespace_unless_they_speak_of_namespaces() {
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
            "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}",
            false,
        ),
        (
            "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}",
            false,
        ),
        (
            "{matchExpressions: [{key: io.cilium.k8s.namespace.labels.team, operator: DoesNotExist}]}",
            false,
        ),
        ("{matchLabels: {'reserved:host': ''}}", false),
        ("{matchLabels: {'reserved:host': '', app: a}}", true),
    ] {
        let found = peer(&with_entry(&format!("{{fromEndpoints: [{selector}]}}")));
        assert_eq!(found.contains(&own()), added, "{selector}");
        assert!(
            !found.contains(&exists(Some("k8s"), NAMESPACE_KEY)),
            "{selector}"
        );
    }
}

#[test]
fn clusterwide_peers_are_in_some_namespace() {
    let some = || exists(Some("k8s"), NAMESPACE_KEY);
    for (selector, added) in [
        ("{}", true),
        ("{matchLabels: {app: a}}", true),
        (
            "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}",
            true,
        ),
        ("{matchLabels: {io.kubernetes.pod.namespace: x}}", false),
        ("{matchLabels: {'reserved:host': ''}}", false),
    ] {
        for (subject, init) in [
            ("{}", false),
            ("{matchLabels: {app: b}}", false),
            ("{matchLabels: {'reserved:init': ''}}", true),
            (
                "{matchExpressions: [{key: 'reserved:init', operator: Exists}]}",
                true,
            ),
            ("{matchLabels: {init: ''}}", false),
        ] {
            let spec = format!(
                "{{endpointSelector: {subject}, ingress: [{{fromEndpoints: [{selector}]}}]}}"
            );
            let found = peer(&ccnp(&spec));
            assert_eq!(
                found.contains(&some()),
                added && !init,
                "{subject} {selector}"
            );
        }
    }
}

#[test]
fn the_subject_is_forced_into_the_namespace() {
    for selector in [
        "{}",
        "{matchLabels: {io.kubernetes.pod.namespace: other}}",
        "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: DoesNotExist}]}",
    ] {
        let spec = format!("{{endpointSelector: {selector}, ingress: [{{}}]}}");
        assert_eq!(
            rule(&cnp(&spec)).subject,
            Selector::new([own()]),
            "{selector}"
        );
    }
    let spec = |selector: &str| format!("{{endpointSelector: {selector}, ingress: [{{}}]}}");
    assert_eq!(rule(&ccnp(&spec("{}"))).subject, Selector::default());
    let named = rule(&ccnp(&spec(
        "{matchLabels: {io.kubernetes.pod.namespace: other}}",
    )));
    assert_eq!(named.subject, Selector::new([any(NAMESPACE_KEY, "other")]));
}

#[test]
fn the_cluster_is_not_added_to_subjects_and_left_to_the_engine_for_peers() {
    let spec = "{endpointSelector: {matchLabels: {app: a}}, ingress: [{fromEndpoints: [{}]}]}";
    for text in [cnp(spec), ccnp(spec)] {
        let rule = rule(&text);
        let mentions = |s: &Selector| s.requirements().iter().any(|r| r.key == CLUSTER_KEY);
        assert!(!mentions(&rule.subject));
        let Peers::Of(peers) = &rule.ingress[0].peers else {
            panic!("{text}")
        };
        let Peer::Labels(selector) = &peers[0] else {
            panic!("{text}")
        };
        assert!(!mentions(selector));
        assert!(mentions(&selector.in_local_cluster("west")));
    }
}
