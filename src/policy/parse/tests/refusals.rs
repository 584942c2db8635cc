//! Every refusal: what is wrong, and where.
use super::*;

type Check = fn(&Refusal) -> bool;

fn unsupported(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Unsupported { .. })
}

fn misplaced(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Misplaced { .. })
}

fn null(refusal: &Refusal) -> bool {
    *refusal == Refusal::Null
}

fn unknown(refusal: &Refusal) -> bool {
    *refusal == Refusal::UnknownField
}

fn value(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Value { .. })
}

fn wrong_type(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::WrongType { .. })
}

fn missing(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Missing { .. })
}

fn conflict(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Conflict { .. })
}

fn yaml(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Yaml(_))
}

fn kind(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Kind(_))
}

fn check(cases: Vec<(String, &str, Check)>) {
    for (text, field, check) in cases {
        let error = refused(&text);
        assert_eq!(error.field, field, "{text}: {error}");
        assert!(check(&error.refusal), "{text}: {error}");
        assert!(!error.refusal.next_step().is_empty());
    }
}

#[test]
fn of_files_and_objects() {
    let doc = with_entry("{}");
    let empty: Check = |r| *r == Refusal::Empty;
    let twice: Check = |r| *r == Refusal::Duplicate;
    let list = "{apiVersion: v1, kind: List, items: [";
    check(vec![
        ("a: [".into(), "", yaml),
        ("a: 1\na: 2".into(), "", yaml),
        (String::new(), "", empty),
        ("# comment\n---\n".into(), "", empty),
        ("[]".into(), "", wrong_type),
        ("text".into(), "", wrong_type),
        (format!("{doc}\n---\n{doc}"), "", twice),
        (format!("{list}{doc}, {doc}]}}"), "items[1]", twice),
        (list.replace("v1", "v2") + "]}", "apiVersion", value),
        (list.replace("items", "item") + "]}", "item", unknown),
        ("{apiVersion: v1, kind: List}".into(), "", missing),
        (
            doc.replace("cilium.io/v2", "cilium.io/v3"),
            "apiVersion",
            value,
        ),
        (doc.replace("apiVersion: cilium.io/v2, ", ""), "", missing),
        (
            doc.replace("CiliumNetworkPolicy", "AdminNetworkPolicy"),
            "",
            kind,
        ),
        (
            doc.replace("CiliumNetworkPolicy", "NetworkPolicy"),
            "apiVersion",
            value,
        ),
        (doc.replace("kind: CiliumNetworkPolicy, ", ""), "", missing),
        (doc.replace("name: p, ", ""), "metadata", missing),
        (doc.replace("name: p", "name: P/x"), "metadata.name", value),
        (doc.replace("name: p", "name: ''"), "metadata.name", value),
        (doc.replace("name: p", "nam: p"), "metadata.nam", unknown),
        (
            doc.replace("namespace: shop", "namespace: "),
            "metadata.namespace",
            null,
        ),
        (
            doc.replace("metadata: {name: p, namespace: shop}, ", ""),
            "",
            missing,
        ),
        (doc.replace("spec:", "spek:"), "spek", unknown),
        (doc.replace("spec:", "status:"), "", missing),
        (
            doc.replace("spec:", "status: {}, specs: [], x:"),
            "x",
            unknown,
        ),
        (
            ccnp("{}").replace("name: p", "name: p, namespace: shop"),
            "metadata.namespace",
            misplaced,
        ),
        (
            netpol("{podSelector: {}}").replace("spec:", "specs: [], spec:"),
            "specs",
            unknown,
        ),
    ]);
}

#[test]
fn of_rules() {
    let spec = |rest: &str| {
        cnp(&format!(
            "{{endpointSelector: {{}}, ingress: [{{}}], {rest}}}"
        ))
    };
    check(vec![
        (cnp("{ingress: [{}]}"), "spec", missing),
        (cnp("[]"), "spec", wrong_type),
        (cnp("{endpointSelector: {}}"), "spec", misplaced),
        (
            cnp("{endpointSelector: null, ingress: [{}]}"),
            "spec.endpointSelector",
            null,
        ),
        (
            cnp("{nodeSelector: {}, ingress: [{}]}"),
            "spec.nodeSelector",
            misplaced,
        ),
        (
            cnp("{nodeSelector: {}, endpointSelector: {}, ingress: [{}]}"),
            "spec.nodeSelector",
            misplaced,
        ),
        (spec("log: {value: x}"), "spec.log", unsupported),
        (spec("ingres: [{}]"), "spec.ingres", unknown),
        (spec("egress: {}"), "spec.egress", wrong_type),
        (spec("egressDeny: "), "spec.egressDeny", null),
        (
            spec("enableDefaultDeny: {ingress: 'no'}"),
            "spec.enableDefaultDeny.ingress",
            wrong_type,
        ),
        (
            spec("enableDefaultDeny: {both: true}"),
            "spec.enableDefaultDeny.both",
            unknown,
        ),
    ]);
}

#[test]
fn of_entries_and_peers() {
    let field = "spec.ingress[0]";
    let cases: &[(&str, &str, Check)] = &[
        ("null", "", null),
        ("{toFQDNs: []}", ".toFQDNs", unknown),
        ("{toServices: []}", ".toServices", unknown),
        ("{toEndpoints: []}", ".toEndpoints", unknown),
        ("{fromEndpoints: }", ".fromEndpoints", null),
        ("{fromEndpoints: {}}", ".fromEndpoints", wrong_type),
        ("{fromEndpoints: [null]}", ".fromEndpoints[0]", null),
        (
            "{fromEndpoints: [{}], fromEntities: [all]}",
            ".fromEntities",
            conflict,
        ),
        ("{fromCIDR: [], fromEntities: []}", ".fromCIDR", conflict),
        (
            "{fromCIDR: [10.0.0.1], fromCIDRSet: []}",
            ".fromCIDRSet",
            conflict,
        ),
        ("{fromEntities: [everyone]}", ".fromEntities[0]", value),
        ("{fromEntities: [World]}", ".fromEntities[0]", value),
        ("{fromCIDR: [10.0.0.0/33]}", ".fromCIDR[0]", value),
        ("{fromCIDR: [10.0.0.0/+8]}", ".fromCIDR[0]", value),
        ("{fromCIDR: [10.0.0/8]}", ".fromCIDR[0]", value),
        ("{fromCIDR: ['::ffff:10.0.0.0/104']}", ".fromCIDR[0]", value),
        ("{fromCIDR: [example.org]}", ".fromCIDR[0]", value),
        ("{fromCIDR: ['']}", ".fromCIDR[0]", value),
        (
            "{fromCIDRSet: [{cidr: 10.0.0.1}]}",
            ".fromCIDRSet[0].cidr",
            value,
        ),
        ("{fromCIDRSet: [{}]}", ".fromCIDRSet[0]", missing),
        ("{fromCIDRSet: [{except: []}]}", ".fromCIDRSet[0]", missing),
        (
            "{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.1]}]}",
            ".fromCIDRSet[0].except[0]",
            value,
        ),
        (
            "{fromCIDRSet: [{cidr: 10.0.0.0/8, excepts: []}]}",
            ".fromCIDRSet[0].excepts",
            unknown,
        ),
    ];
    let cases = cases.iter();
    let cases =
        cases.map(|(entry, rest, check)| (with_entry(entry), format!("{field}{rest}"), *check));
    for (text, field, of) in cases {
        check(vec![(text, &field, of)]);
    }
}

#[test]
fn of_ports() {
    let cases: &[(&str, &str, Check)] = &[
        ("toPorts: []", "toPorts", misplaced),
        ("toPorts: ", "toPorts", null),
        ("toPorts: [{}]", "toPorts[0]", missing),
        ("toPorts: [{ports: []}]", "toPorts[0].ports", misplaced),
        (
            "toPorts: [{ports: [80]}]",
            "toPorts[0].ports[0]",
            wrong_type,
        ),
        (
            "toPorts: [{ports: [{port: ''}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: ht--tp}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: -http}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: longer-than-15-c}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: 65536}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: '+80'}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: -1}]}]",
            "toPorts[0].ports[0].port",
            value,
        ),
        (
            "toPorts: [{ports: [{port: 8.5}]}]",
            "toPorts[0].ports[0].port",
            wrong_type,
        ),
        (
            "toPorts: [{ports: [{port: 0, endPort: 9}]}]",
            "toPorts[0].ports[0].endPort",
            misplaced,
        ),
        (
            "toPorts: [{ports: [{endPort: 9}]}]",
            "toPorts[0].ports[0].endPort",
            misplaced,
        ),
        (
            "toPorts: [{ports: [{port: a, endPort: 9}]}]",
            "toPorts[0].ports[0].endPort",
            misplaced,
        ),
        (
            "toPorts: [{ports: [{port: 1, endPort: '9'}]}]",
            "toPorts[0].ports[0].endPort",
            wrong_type,
        ),
        (
            "toPorts: [{ports: [{port: 1, endPort: 65536}]}]",
            "toPorts[0].ports[0].endPort",
            value,
        ),
        (
            "toPorts: [{ports: [{port: 1, endPort: -1}]}]",
            "toPorts[0].ports[0].endPort",
            value,
        ),
        (
            "toPorts: [{ports: [{protocol: tcp}]}]",
            "toPorts[0].ports[0].protocol",
            value,
        ),
        (
            "toPorts: [{ports: [{protocol: ICMP}]}]",
            "toPorts[0].ports[0].protocol",
            misplaced,
        ),
        (
            "toPorts: [{ports: [{protocol: ICMPv6}]}]",
            "toPorts[0].ports[0].protocol",
            misplaced,
        ),
        ("icmps: []", "icmps", misplaced),
        ("icmps: [{}]", "icmps[0]", missing),
        ("icmps: [{fields: []}]", "icmps[0].fields", misplaced),
        ("icmps: [{fields: [{}]}]", "icmps[0].fields[0]", missing),
        (
            "icmps: [{fields: [{type: 8, code: 0}]}]",
            "icmps[0].fields[0].code",
            unknown,
        ),
        (
            "icmps: [{fields: [{type: 8, family: IPv5}]}]",
            "icmps[0].fields[0].family",
            value,
        ),
        (
            "icmps: [{fields: [{type: Ping}]}]",
            "icmps[0].fields[0].type",
            value,
        ),
        (
            "icmps: [{fields: [{type: ''}]}]",
            "icmps[0].fields[0].type",
            value,
        ),
        (
            "icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{}]}]",
            "icmps",
            conflict,
        ),
    ];
    for (entry, field, of) in cases {
        let field = format!("spec.ingress[0].{field}");
        check(vec![(with_entry(&format!("{{{entry}}}")), &field, *of)]);
    }
}

#[test]
fn of_selectors() {
    let long = format!("matchLabels: {{app: {}}}", "a".repeat(64));
    let cases: &[(&str, &str, Check)] = &[
        ("matchLabel: {}", "matchLabel", unknown),
        ("matchLabels: ", "matchLabels", null),
        ("matchLabels: []", "matchLabels", wrong_type),
        ("matchLabels: {app: 1}", "matchLabels.app", wrong_type),
        ("matchLabels: {app: 'a;b'}", "matchLabels.app", value),
        (&long, "matchLabels.app", value),
        ("matchLabels: {'': a}", "matchLabels.", value),
        ("matchLabels: {'k8s:': a}", "matchLabels.k8s:", value),
        (
            "matchLabels: {'any:k8s:app': a}",
            "matchLabels.any:k8s:app",
            value,
        ),
        (
            "matchLabels: {'cidr:10.0.0.0/8': ''}",
            "matchLabels.\"cidr:10.0.0.0/8\"",
            value,
        ),
        (
            "matchLabels: {'reserved:all': ''}",
            "matchLabels.reserved:all",
            value,
        ),
        ("matchExpressions: {}", "matchExpressions", wrong_type),
        (
            "matchExpressions: [{operator: Exists}]",
            "matchExpressions[0]",
            missing,
        ),
        (
            "matchExpressions: [{key: app}]",
            "matchExpressions[0]",
            missing,
        ),
        (
            "matchExpressions: [{key: app, operator: In}]",
            "matchExpressions[0]",
            missing,
        ),
        (
            "matchExpressions: [{key: app, operator: NotIn, values: []}]",
            "matchExpressions[0]",
            missing,
        ),
        (
            "matchExpressions: [{key: app, operator: In, values: [1]}]",
            "matchExpressions[0].values[0]",
            wrong_type,
        ),
        (
            "matchExpressions: [{key: app, operator: Exists, values: [a]}]",
            "matchExpressions[0].values",
            misplaced,
        ),
        (
            "matchExpressions: [{key: app, operator: DoesNotExist, values: [a]}]",
            "matchExpressions[0].values",
            misplaced,
        ),
        (
            "matchExpressions: [{key: app, operator: Like, values: [a]}]",
            "matchExpressions[0].operator",
            value,
        ),
        (
            "matchExpressions: [{key: 'k8s:', operator: Exists}]",
            "matchExpressions[0].key",
            value,
        ),
    ];
    for (selector, field, of) in cases {
        let peer = with_entry(&format!("{{fromEndpoints: [{{{selector}}}]}}"));
        let subject = cnp(&format!(
            "{{endpointSelector: {{{selector}}}, ingress: [{{}}]}}"
        ));
        check(vec![
            (
                peer,
                &format!("spec.ingress[0].fromEndpoints[0].{field}"),
                *of,
            ),
            (subject, &format!("spec.endpointSelector.{field}"), *of),
        ]);
    }
}

#[test]
fn of_network_policies() {
    let cases: &[(&str, &str, Check)] = &[
        ("ingress: [{}]", "spec", missing),
        (
            "podSelector: {}, endpointSelector: {}",
            "spec.endpointSelector",
            unknown,
        ),
        (
            "podSelector: {}, ingressDeny: []",
            "spec.ingressDeny",
            unknown,
        ),
        (
            "podSelector: {matchLabels: {'k8s:app': a}}",
            "spec.podSelector.matchLabels.k8s:app",
            value,
        ),
        (
            "podSelector: {}, policyTypes: [Both]",
            "spec.policyTypes[0]",
            value,
        ),
        (
            "podSelector: {}, policyTypes: Ingress",
            "spec.policyTypes",
            wrong_type,
        ),
        (
            "podSelector: {}, ingress: [{to: []}]",
            "spec.ingress[0].to",
            unknown,
        ),
        (
            "podSelector: {}, egress: [{from: []}]",
            "spec.egress[0].from",
            unknown,
        ),
        (
            "podSelector: {}, ingress: [{from: }]",
            "spec.ingress[0].from",
            null,
        ),
        (
            "podSelector: {}, ingress: [{from: [{}]}]",
            "spec.ingress[0].from[0]",
            misplaced,
        ),
        (
            "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]",
            "spec.ingress[0].from[0].ipBlock",
            conflict,
        ),
        (
            "podSelector: {}, ingress: [{from: [{ipBlock: {}}]}]",
            "spec.ingress[0].from[0].ipBlock",
            missing,
        ),
        (
            "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]",
            value,
        ),
        (
            "podSelector: {}, ingress: [{ports: [{protocol: ANY}]}]",
            "spec.ingress[0].ports[0].protocol",
            value,
        ),
        (
            "podSelector: {}, ingress: [{ports: [{port: a b}]}]",
            "spec.ingress[0].ports[0].port",
            value,
        ),
    ];
    for (spec, field, of) in cases {
        check(vec![(netpol(&format!("{{{spec}}}")), *field, *of)]);
    }
}

#[test]
fn a_refusal_names_file_line_field_reason_and_way_out() {
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
    assert_eq!(refused(&second).line, Some(26));
    // The parser's own complaints, too; here a key given twice.
    assert_eq!(refused("a: 1\nb: 2\na: 3\n").line, Some(3));
}

#[test]
fn what_a_file_says_is_quoted_in_part() {
    let long = "x".repeat(100_000);
    for text in [
        with_entry(&format!("{{fromEntities: [{long}]}}")),
        with_entry("{}").replace("CiliumNetworkPolicy", &long),
        with_entry(&format!(
            "{{fromEndpoints: [{{matchLabels: {{? {long} : a}}}}]}}"
        )),
        with_entry(&format!("{{? {long} : a}}")),
    ] {
        assert!(refused(&text).to_string().len() < 1_000);
    }
}
