//! Goal: no text makes the parser panic, and none that differs from a policy by an accident makes
//! it wider unnoticed. Method: policies that use the whole language, cut and spliced at random.
use proptest::{collection::vec, prelude::*};

use super::*;

const WHOLE: &str = "\
apiVersion: v1
kind: List
items:
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: a, namespace: shop, annotations: {policy.tombolo.io/audit: 'true'}}
  spec:
    endpointSelector: {matchLabels: {app: a}}
    ingress:
    - fromEndpoints: [{matchExpressions: [{key: 'k8s:app', operator: NotIn, values: [a, b]}]}]
      toPorts: [{ports: [{port: '80', endPort: 90, protocol: TCP}, {port: http}]}]
    - fromEntities: [cluster, world]
      icmps: [{fields: [{type: EchoRequest}, {family: IPv6, type: 128}]}]
    egress:
    - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
    egressDeny:
    - toCIDR: ['fd00::/8', 192.0.2.1]
    enableDefaultDeny: {egress: false}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: a, namespace: shop}
  spec:
    podSelector: {}
    policyTypes: [Ingress, Egress]
    ingress:
    - from: [{podSelector: {}, namespaceSelector: {matchLabels: {team: red}}}]
      ports: [{port: 80, protocol: UDP}]
    egress:
    - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: a, annotations: {policy.tombolo.io/unsupported: fail-closed}}
specs:
- endpointSelector: {matchLabels: {'reserved:init': ''}}
  egress:
  - toFQDNs: [{matchName: a.example}]
  - toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{}]}}]
";

/// Pieces that tend to mean something.
const PIECES: &[&str] = &[
    "",
    " ",
    "\n",
    "- ",
    ": ",
    "{}",
    "[]",
    "[{}]",
    "null",
    "~",
    "''",
    "\"",
    "0",
    "-1",
    "65536",
    "1e9",
    "*a",
    "&a ",
    "!!str ",
    "<<: ",
    "---\n",
    "#",
    "\t",
    "\u{feff}",
    "\u{0}",
    "ingress",
    "egressDeny",
    "fromEndpoints",
    "toFQDNs",
    "any:",
    "reserved:",
    "all",
    "::/0",
    "/129",
    "true",
];

/// Replaces the characters from `at` on, `len` of them, by a piece.
fn splice(text: &str, at: usize, len: usize, piece: &str) -> String {
    let before: String = text.chars().take(at).collect();
    let after: String = text.chars().skip(at + len).collect();
    format!("{before}{piece}{after}")
}

/// What holds of every policy that is let through.
fn check(policy: &Policy) -> Result<(), TestCaseError> {
    prop_assert!(!policy.rules.is_empty());
    let clusterwide = policy.kind == Kind::CiliumClusterwideNetworkPolicy;
    prop_assert_eq!(clusterwide, policy.namespace.is_none());
    for rule in &policy.rules {
        if let Some(namespace) = &policy.namespace {
            let own = Requirement::k8s(NAMESPACE_KEY, namespace);
            prop_assert!(rule.subject.requirements().contains(&own));
        }
        for grant in rule.ingress.iter().chain(&rule.egress) {
            prop_assert!(grant.ports.is_sorted_by(|a, b| a < b));
            for port in &grant.ports {
                prop_assert!(is_sound(port), "{port:?}");
            }
            let Peers::Of(peers) = &grant.peers else {
                continue;
            };
            for peer in peers {
                prop_assert!(confined(peer), "{peer:?}");
            }
        }
    }
    Ok(())
}

fn is_sound(port: &Port) -> bool {
    match port {
        Port::All { protocol } => matches!(protocol, 6 | 17 | 132),
        Port::Range {
            protocol,
            first,
            last,
        } => matches!(protocol, 6 | 17 | 132) && *first > 0 && last >= first,
        Port::Named { protocol, name } => {
            matches!(protocol, None | Some(6 | 17 | 132)) && !name.is_empty()
        }
        Port::Icmp { protocol, .. } => matches!(protocol, 1 | 58),
    }
}

/// No peer selector is without any bound; exceptions lie inside.
fn confined(peer: &Peer) -> bool {
    match peer {
        Peer::Labels(selector) => !selector.requirements().is_empty(),
        Peer::LocalCluster => true,
        Peer::Cidr { cidr, except } => except
            .iter()
            .all(|e| cidr.contains(e.addr()) && e.prefix_len() >= cidr.prefix_len()),
    }
}

#[test]
fn the_whole_language_parses() {
    let found = policies(WHOLE);
    assert_eq!(found.len(), 3);
    for policy in &found {
        check(policy).unwrap();
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let refused = parse(&text, Path::new("p.yaml")).is_err();
        prop_assert!(refused || !text.is_empty());
    }

    #[test]
    fn no_spliced_policy_panics_or_gets_out_of_its_bounds(
        splices in vec((0..WHOLE.len(), 0..24_usize, 0..PIECES.len()), 1..6)
    ) {
        let mut text = WHOLE.to_owned();
        for (at, len, piece) in splices {
            text = splice(&text, at, len, PIECES[piece]);
        }
        match parse(&text, Path::new("p.yaml")) {
            Ok(policies) => {
                for policy in &policies {
                    // Of a clusterwide policy for endpoints without labels, peers have no bounds.
                    if policy.namespace.is_some() {
                        check(policy)?;
                    }
                }
            }
            Err(error) => {
                prop_assert!(!error.to_string().is_empty());
                prop_assert!(!error.refusal.next_step().is_empty());
            }
        }
    }
}
