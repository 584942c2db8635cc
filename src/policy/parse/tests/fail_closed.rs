//! Goal: a policy that is imported fail-closed never allows more than it says, nor denies less.
//! Method: each part of the language that is not enforced, in an entry that allows and in one that
//! denies; refused without the annotation, narrowed with it.
use super::*;

/// Field, the entry that has it in terms of ingress or egress, and what a deny comes to.
struct Case {
    section: &'static str,
    entry: &'static str,
    /// Path of the field within the entry.
    field: &'static str,
    denies: Peers,
    ports: Vec<Port>,
}

fn case(
    section: &'static str,
    entry: &'static str,
    field: &'static str,
    denies: Peers,
    ports: Vec<Port>,
) -> Case {
    Case {
        section,
        entry,
        field,
        denies,
        ports,
    }
}

fn cases() -> Vec<Case> {
    let host = || Peers::Of(vec![reserved("host")]);
    let web = || vec![port(6, 80)];
    vec![
        // Who the peers are is not known: everybody, on the ports that are.
        case(
            "ingress",
            "{fromNodes: [{}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}",
            "fromNodes",
            Peers::Any,
            web(),
        ),
        case(
            "ingress",
            "{fromGroups: [{aws: {}}]}",
            "fromGroups",
            Peers::Any,
            vec![],
        ),
        case("egress", "{toNodes: [{}]}", "toNodes", Peers::Any, vec![]),
        case("egress", "{toGroups: []}", "toGroups", Peers::Any, vec![]),
        case(
            "egress",
            "{toServices: [{k8sService: {}}]}",
            "toServices",
            Peers::Any,
            vec![],
        ),
        case(
            "egress",
            "{toFQDNs: [{matchName: a.example}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}",
            "toFQDNs",
            Peers::Any,
            web(),
        ),
        case(
            "ingress",
            "{fromCIDRSet: [{cidr: 10.0.0.0/8}, {cidrGroupRef: g}]}",
            "fromCIDRSet[1].cidrGroupRef",
            Peers::Any,
            vec![],
        ),
        case(
            "egress",
            "{toCIDRSet: [{cidrGroupSelector: {}, except: [10.0.0.0/8]}]}",
            "toCIDRSet[0].cidrGroupSelector",
            Peers::Any,
            vec![],
        ),
        // A condition on the connection is not enforced: whoever and whatever the rest says.
        case(
            "ingress",
            "{fromEntities: [host], authentication: {mode: required}}",
            "authentication",
            host(),
            vec![],
        ),
        case(
            "ingress",
            "{fromEntities: [host], toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{}]}}]}",
            "toPorts[0].rules",
            host(),
            web(),
        ),
        case(
            "egress",
            "{toEntities: [host], toPorts: [{ports: [{port: 80, protocol: TCP}], listener: {}}]}",
            "toPorts[0].listener",
            host(),
            web(),
        ),
        case(
            "egress",
            "{toEntities: [host], toPorts: [{ports: [{port: 80, protocol: TCP}], serverNames: [a]}]}",
            "toPorts[0].serverNames",
            host(),
            web(),
        ),
        case(
            "egress",
            "{toEntities: [host], toPorts: [{ports: [{port: 80, protocol: TCP}], terminatingTLS: {}}]}",
            "toPorts[0].terminatingTLS",
            host(),
            web(),
        ),
        case(
            "egress",
            "{toEntities: [host], toPorts: [{ports: [{port: 80, protocol: TCP}], originatingTLS: {}}]}",
            "toPorts[0].originatingTLS",
            host(),
            web(),
        ),
    ]
}

fn annotated(text: &str) -> String {
    text.replace(
        "metadata: {",
        "metadata: {annotations: {policy.tombolo.io/unsupported: fail-closed}, ",
    )
}

/// The first rule as it is imported, and the fields that narrowed it.
fn imported(text: &str) -> (Rule, Vec<String>) {
    let mut narrowed = Vec::new();
    let text = annotated(text);
    let mut policies = parse_noting(&text, Path::new("p.yaml"), &mut narrowed)
        .unwrap_or_else(|e| panic!("{text}: {e}"));
    let unsupported = |e: &ParseError| matches!(e.refusal, Refusal::Unsupported { .. });
    assert!(narrowed.iter().all(unsupported));
    let fields = narrowed.into_iter().map(|e| e.field).collect();
    (policies.remove(0).rules.remove(0), fields)
}

#[test]
fn what_is_not_enforced_is_refused_or_narrows() {
    for case in cases() {
        let Case { section, entry, .. } = case;
        // A second entry is not touched by the first.
        let other = "{toPorts: [{ports: [{port: 443, protocol: TCP}]}]}";
        let spec = |section: &str| {
            cnp(&format!(
                "{{endpointSelector: {{}}, {section}: [{entry}, {other}]}}"
            ))
        };
        let allow = spec(section);
        let error = refused(&allow);
        assert_eq!(
            error.field,
            format!("spec.{section}[0].{}", case.field),
            "{entry}"
        );
        assert!(
            matches!(error.refusal, Refusal::Unsupported { .. }),
            "{error}"
        );

        let (rule, narrowed) = imported(&allow);
        assert_eq!(narrowed, [error.field], "{entry}");
        let egress = section == "egress";
        assert_eq!(rule.default_deny, both(!egress, egress), "{entry}");
        let kept = |deny| Grant {
            deny,
            peers: Peers::Any,
            ports: vec![port(6, 443)],
        };
        let grants = |rule: Rule| if egress { rule.egress } else { rule.ingress };
        assert_eq!(grants(rule), [kept(false)], "{entry}");

        let denying = format!("{section}Deny");
        let (rule, narrowed) = imported(&spec(&denying));
        assert_eq!(narrowed, [format!("spec.{denying}[0].{}", case.field)]);
        let whole = Grant {
            deny: true,
            peers: case.denies,
            ports: case.ports,
        };
        assert_eq!(grants(rule), [whole, kept(true)], "{entry}");
    }
}

#[test]
fn a_requirement_on_other_entries_denies_everything() {
    for (section, entry, field) in [
        (
            "ingress",
            "{fromRequires: [{}], fromEntities: [host]}",
            "fromRequires",
        ),
        (
            "egress",
            "{toRequires: [{matchLabels: {a: b}}]}",
            "toRequires",
        ),
        (
            "egressDeny",
            "{toRequires: [], toPorts: [{ports: [{port: 80}]}]}",
            "toRequires",
        ),
    ] {
        let text = cnp(&format!("{{endpointSelector: {{}}, {section}: [{entry}]}}"));
        let field = format!("spec.{section}[0].{field}");
        assert_eq!(refused(&text).field, field);
        let (rule, narrowed) = imported(&text);
        assert_eq!(narrowed, [field]);
        let everything = Grant {
            deny: true,
            peers: Peers::Any,
            ports: vec![],
        };
        let grants = [rule.ingress, rule.egress].concat();
        assert_eq!(grants, [everything], "{entry}");
    }
}

#[test]
fn a_value_for_the_log_changes_no_verdict() {
    let text = cnp("{endpointSelector: {}, ingress: [{fromEntities: [host]}], log: {value: x}}");
    assert_eq!(refused(&text).field, "spec.log");
    let (rule, narrowed) = imported(&text);
    assert_eq!(narrowed, ["spec.log"]);
    assert_eq!(rule.ingress.len(), 1);
}

#[test]
fn nothing_else_is_let_through_by_the_annotation() {
    for (text, field) in [
        (
            ccnp("{nodeSelector: {}, ingressDeny: [{}]}"),
            "spec.nodeSelector",
        ),
        (with_entry("{fromNode: [{}]}"), "spec.ingress[0].fromNode"),
        (
            with_entry("{fromNodes: [{}], toPorts: []}"),
            "spec.ingress[0].toPorts",
        ),
        (
            with_entry("{toPorts: [{rules: {http: [{}]}}]}"),
            "spec.ingress[0].toPorts[0]",
        ),
        (
            with_entry("{fromCIDRSet: [{cidrGroupRef: g, cidr: 10.0.0.0}]}"),
            "spec.ingress[0].fromCIDRSet[0].cidr",
        ),
        (
            with_entry("{fromEndpoints: [{matchLabels: {'reserved:nobody': ''}}]}"),
            "spec.ingress[0].fromEndpoints[0].matchLabels.reserved:nobody",
        ),
        (
            netpol("{podSelector: {}, ingress: [{rules: []}]}"),
            "spec.ingress[0].rules",
        ),
    ] {
        assert_eq!(refused(&annotated(&text)).field, field, "{text}");
    }
}
