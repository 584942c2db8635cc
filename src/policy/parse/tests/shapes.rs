//! Rules and entries: what is there, what is empty, what is absent.
use super::*;

/// The same entry in all four sections, with the names of the members of each.
fn everywhere(entry: &str) -> [(String, bool); 4] {
    let egress = entry.replace("{from", "{to").replace(", from", ", to");
    let spec = |section: &str, entry: &str| {
        cnp(&format!("{{endpointSelector: {{}}, {section}: [{entry}]}}"))
    };
    [
        (spec("ingress", entry), false),
        (spec("ingressDeny", entry), true),
        (spec("egress", &egress), false),
        (spec("egressDeny", &egress), true),
    ]
}

#[test]
fn an_entry_means_the_same_in_all_sections() {
    let shop = || Peer::Labels(Selector::new([Requirement::k8s(NAMESPACE_KEY, "shop")]));
    let http = || vec![port(6, 80)];
    let cidr = || Peer::Cidr {
        cidr: "10.0.0.0/8".parse().unwrap(),
        except: vec![],
    };
    let tcp80 = "toPorts: [{ports: [{port: '80', protocol: TCP}]}]";
    let echo = vec![Port::Icmp {
        protocol: 1,
        kind: 8,
    }];
    for (entry, peers, ports) in [
        // No L3 at all is everybody.
        (format!("{{{tcp80}}}"), Peers::Any, http()),
        (
            "{icmps: [{fields: [{type: 8}]}]}".to_owned(),
            Peers::Any,
            echo,
        ),
        // An empty list is nobody.
        (
            format!("{{fromEndpoints: [], {tcp80}}}"),
            Peers::Of(vec![]),
            http(),
        ),
        ("{fromEntities: []}".to_owned(), Peers::Of(vec![]), vec![]),
        ("{fromCIDR: []}".to_owned(), Peers::Of(vec![]), vec![]),
        ("{fromCIDRSet: []}".to_owned(), Peers::Of(vec![]), vec![]),
        // An empty selector is the namespace.
        (
            "{fromEndpoints: [{}]}".to_owned(),
            Peers::Of(vec![shop()]),
            vec![],
        ),
        // Elements are alternatives; ports and peers must both match.
        (
            format!("{{fromEntities: [host, health], {tcp80}}}"),
            Peers::Of(vec![reserved("host"), reserved("health")]),
            http(),
        ),
        (
            "{fromCIDR: [10.0.0.0/8]}".to_owned(),
            Peers::Of(vec![cidr()]),
            vec![],
        ),
    ] {
        for (text, deny) in everywhere(&entry) {
            let rule = rule(&text);
            let (peers, ports) = (peers.clone(), ports.clone());
            let expected = vec![Grant { deny, peers, ports }];
            let (of, other) = match text.contains("egress") {
                false => (&rule.ingress, &rule.egress),
                true => (&rule.egress, &rule.ingress),
            };
            assert_eq!((of, other), (&expected, &vec![]), "{text}");
        }
    }
}

#[test]
fn an_empty_entry_only_turns_default_deny_on() {
    for (text, _) in everywhere("{}") {
        let egress = text.contains("egress");
        let rule = rule(&text);
        assert_eq!((rule.ingress, rule.egress), (vec![], vec![]), "{text}");
        assert_eq!(rule.default_deny, both(!egress, egress), "{text}");
    }
}

#[test]
fn an_empty_section_is_no_section_and_a_rule_without_any_is_refused() {
    let spec = |sections: &str| cnp(&format!("{{endpointSelector: {{}}{sections}}}"));
    let found = rule(&spec(", ingress: [], ingressDeny: [], egress: [{}]"));
    assert_eq!(found.default_deny, both(false, true));
    for sections in [
        "",
        ", ingress: []",
        ", ingress: [], ingressDeny: [], egress: [], egressDeny: []",
        ", ingress: [], enableDefaultDeny: {ingress: true}",
    ] {
        let error = refused(&spec(sections));
        assert_eq!(error.field, "spec", "{sections}");
        assert!(
            matches!(error.refusal, Refusal::Misplaced { .. }),
            "{error}"
        );
    }
}

#[test]
fn default_deny_follows_the_sections_unless_the_rule_says_otherwise() {
    for (sections, enable, expected) in [
        ("ingress: [{}]", "{}", both(true, false)),
        ("ingressDeny: [{}]", "{}", both(true, false)),
        ("egress: [{}]", "{}", both(false, true)),
        ("egressDeny: [{}], ingress: [{}]", "{}", both(true, true)),
        ("ingress: [{}]", "{ingress: false}", both(false, false)),
        ("ingress: [{}]", "{egress: false}", both(true, false)),
        ("ingress: [{}]", "{egress: true}", both(true, true)),
        (
            "ingress: [{}], egress: [{}]",
            "{egress: false}",
            both(true, false),
        ),
        (
            "egressDeny: [{}]",
            "{ingress: true, egress: false}",
            both(true, false),
        ),
    ] {
        let spec = format!("{{endpointSelector: {{}}, {sections}, enableDefaultDeny: {enable}}}");
        let found = rule(&cnp(&spec)).default_deny;
        assert_eq!(found, expected, "{sections} {enable}");
    }
}

#[test]
fn allowing_and_denying_entries_of_a_direction_stand_side_by_side() {
    let spec = "{endpointSelector: {}, labels: [{key: a}], description: d, \
                ingressDeny: [{fromEntities: [world]}, {}], ingress: [{fromEntities: [all]}]}";
    let rule = rule(&cnp(spec));
    let shape: Vec<_> = rule
        .ingress
        .iter()
        .map(|g| (g.deny, g.peers == Peers::Any))
        .collect();
    assert_eq!(shape, [(false, true), (true, false)]);
}
