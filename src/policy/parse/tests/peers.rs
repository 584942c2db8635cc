//! Entities and CIDRs.
use super::*;

fn cidr(text: &str, except: &[&str]) -> Peer {
    Peer::Cidr {
        cidr: text.parse().unwrap(),
        except: except.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

#[test]
fn entities_stand_for_reserved_identities_and_the_cluster() {
    let world = || {
        vec![
            reserved("world"),
            reserved("world-ipv4"),
            reserved("world-ipv6"),
        ]
    };
    let cluster = || {
        let names = [
            "host",
            "remote-node",
            "init",
            "ingress",
            "health",
            "unmanaged",
            "kube-apiserver",
        ];
        let mut peers: Vec<Peer> = names.into_iter().map(reserved).collect();
        peers.push(Peer::LocalCluster);
        peers
    };
    for (entities, peers) in [
        ("all", Peers::Any),
        ("none, all, host", Peers::Any),
        ("none", Peers::Of(vec![])),
        ("world", Peers::Of(world())),
        ("world-ipv4", Peers::Of(vec![reserved("world-ipv4")])),
        ("world-ipv6", Peers::Of(vec![reserved("world-ipv6")])),
        ("host", Peers::Of(vec![reserved("host")])),
        ("remote-node", Peers::Of(vec![reserved("remote-node")])),
        (
            "kube-apiserver",
            Peers::Of(vec![reserved("kube-apiserver")]),
        ),
        ("init", Peers::Of(vec![reserved("init")])),
        ("ingress", Peers::Of(vec![reserved("ingress")])),
        ("unmanaged", Peers::Of(vec![reserved("unmanaged")])),
        ("health", Peers::Of(vec![reserved("health")])),
        ("cluster", Peers::Of(cluster())),
        (
            "host, none, health",
            Peers::Of(vec![reserved("host"), reserved("health")]),
        ),
    ] {
        let found = grant(&format!("{{fromEntities: [{entities}]}}"));
        assert_eq!(found.peers, peers, "{entities}");
    }
}

#[test]
fn cidrs_are_prefixes_or_bare_addresses_without_host_bits() {
    for (text, expected) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::/8", "fd00::/8"),
        ("fd00::1", "fd00::1/128"),
        ("'::/0'", "::/0"),
    ] {
        let found = grant(&format!("{{fromCIDR: [{text}]}}"));
        assert_eq!(found.peers, Peers::Of(vec![cidr(expected, &[])]), "{text}");
    }
}

#[test]
fn exceptions_of_a_cidr_set_lie_inside_it() {
    for (set, expected) in [
        ("{cidr: 10.0.0.0/8}", cidr("10.0.0.0/8", &[])),
        ("{cidr: 10.0.0.0/8, except: []}", cidr("10.0.0.0/8", &[])),
        (
            "{cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16, 10.2.9.9/16]}",
            cidr("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"]),
        ),
        (
            "{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}",
            cidr("10.0.0.0/8", &["10.0.0.0/8"]),
        ),
        (
            "{cidr: 'fd00::/8', except: ['fd01::/16']}",
            cidr("fd00::/8", &["fd01::/16"]),
        ),
    ] {
        let found = grant(&format!("{{fromCIDRSet: [{set}]}}"));
        assert_eq!(found.peers, Peers::Of(vec![expected]), "{set}");
    }
    let several = grant("{fromCIDRSet: [{cidr: 10.0.0.0/8}, {cidr: 'fd00::/8'}]}");
    let expected = vec![cidr("10.0.0.0/8", &[]), cidr("fd00::/8", &[])];
    assert_eq!(several.peers, Peers::Of(expected));
    for (except, what) in [
        ("11.0.0.0/16", "beside"),
        ("10.0.0.0/7", "around"),
        ("0.0.0.0/0", "around"),
        ("'fd00::/16'", "of the other family"),
    ] {
        let entry = format!("{{fromCIDRSet: [{{cidr: 10.0.0.0/8, except: [{except}]}}]}}");
        let error = refused(&with_entry(&entry));
        assert_eq!(
            error.field, "spec.ingress[0].fromCIDRSet[0].except[0]",
            "{what}"
        );
        assert!(matches!(error.refusal, Refusal::Value { .. }), "{error}");
    }
}
