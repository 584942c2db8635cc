//! The contract of records and keys, with values as Cilium writes them.
use std::net::IpAddr;

use super::*;
use crate::types::{ClusterId, ClusterName, IdentityId, MaxClusters};

const MAX: MaxClusters = MaxClusters::C255;

const CONFIG: &str = r#"{"id":12,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}}"#;
const CONFIG_CACHED: &str = r#"{"id":12,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,"serviceExportsEnabled":false}}"#;
const NODE: &str = concat!(
    r#"{"Name":"ip-10-7-0-21","Cluster":"west","#,
    r#""IPAddresses":[{"Type":"InternalIP","IP":"10.7.0.21"},{"Type":"InternalIP","IP":"2001:db8:7::21"},"#,
    r#"{"Type":"ExternalIP","IP":"198.51.100.21"},{"Type":"CiliumInternalIP","IP":"10.112.3.87"}],"#,
    r#""IPv4AllocCIDR":{"IP":"10.112.3.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"#,
    r#""IPv6AllocCIDR":{"IP":"2001:db8:112:3::","Mask":"//////////8AAAAAAAAAAA=="},"IPv6SecondaryAllocCIDRs":null,"#,
    r#""IPv4HealthIP":"10.112.3.201","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","#,
    r#""ClusterID":12,"Source":"custom-resource","EncryptionKey":3,"#,
    r#""Labels":{"topology.kubernetes.io/zone":"us-west-2b"},"Annotations":null,"#,
    r#""NodeIdentity":0,"WireguardPubKey":"q1Vb0mQeYt3mYQm7b1c8m8n8c2m1c8t8Qm1b0mQeYt8=","BootID":"0b3c1e52-5f0e-4c55-9d36-70a3f4f5a3b9"}"#,
);
const IP: &str = concat!(
    r#"{"IP":"10.112.3.44","Mask":null,"HostIP":"10.7.0.21","ID":789505,"Key":3,"Metadata":"","#,
    r#""K8sNamespace":"shop","K8sPodName":"checkout-6c9f7d-xz2lm","NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"}]}"#,
);
// Port names in the order in which Go's encoder writes map keys.
const SERVICE: &str = concat!(
    r#"{"cluster":"west","namespace":"shop","name":"checkout","#,
    r#""frontends":{"10.96.44.10":{"grpc":{"Protocol":"TCP","Port":9000},"http":{"Protocol":"TCP","Port":80}}},"#,
    r#""backends":{"10.112.3.44":{"grpc":{"Protocol":"TCP","Port":9000},"http":{"Protocol":"TCP","Port":8080}},"#,
    r#""10.112.8.12":{"http":{"Protocol":"TCP","Port":8080}}},"#,
    r#""hostnames":{"10.112.3.44":"checkout-0"},"labels":{"team":"pay"},"selector":{"app":"checkout"},"#,
    r#""includeExternal":true,"shared":true,"clusterID":12}"#,
);

fn west() -> (ClusterName, ClusterId) {
    ("west".parse().unwrap(), ClusterId::new(12, MAX).unwrap())
}

fn reason<T: std::fmt::Debug>(result: Result<T, Rejection>) -> &'static str {
    result.unwrap_err().reason()
}

#[test]
fn golden_values_round_trip_to_the_same_bytes() {
    for text in [CONFIG, CONFIG_CACHED] {
        assert_eq!(
            ClusterConfig::decode(text.as_bytes()).unwrap().encode(),
            text.as_bytes()
        );
    }
    assert_eq!(
        NodeRecord::decode(NODE.as_bytes()).unwrap().encode(),
        NODE.as_bytes()
    );
    assert_eq!(
        IpRecord::decode(IP.as_bytes()).unwrap().encode(),
        IP.as_bytes()
    );
    assert_eq!(
        ServiceRecord::decode(SERVICE.as_bytes()).unwrap().encode(),
        SERVICE.as_bytes()
    );
}

#[test]
fn golden_values_mean_what_they_say() {
    let (name, id) = west();
    let node = NodeRecord::decode(NODE.as_bytes()).unwrap();
    node.check(b"ip-10-7-0-21", &name, id).unwrap();
    let cidr = |cidr: &Option<Cidr>| cidr.as_ref().unwrap().prefix().unwrap().to_string();
    assert_eq!(cidr(&node.ipv4_alloc_cidr), "10.112.3.0/24");
    assert_eq!(cidr(&node.ipv6_alloc_cidr), "2001:db8:112:3::/64");
    assert_eq!(
        node.ip_addresses.unwrap()[1].ip,
        Some("2001:db8:7::21".parse().unwrap())
    );
    let ip = IpRecord::decode(IP.as_bytes()).unwrap();
    assert_eq!(
        ip.prefix(b"10.112.3.44").unwrap().to_string(),
        "10.112.3.44"
    );
    assert_eq!(ip.identity(id, MAX), Ok(IdentityId(789_505)));
    let service = ServiceRecord::decode(SERVICE.as_bytes()).unwrap();
    service.check(b"shop/checkout", &name, id).unwrap();
    let backend: IpAddr = "10.112.3.44".parse().unwrap();
    assert_eq!(service.backends[&backend]["grpc"].port, 9000);
}

#[test]
fn empty_records_write_every_field_that_go_writes() {
    assert_eq!(ClusterConfig::default().encode(), br#"{"capabilities":{}}"#);
    let ip = r#"{"IP":"","Mask":null,"HostIP":"","ID":0,"Key":0,"Metadata":""}"#;
    assert_eq!(IpRecord::default().encode(), ip.as_bytes());
    let service = concat!(
        r#"{"cluster":"","namespace":"","name":"","frontends":{},"backends":{},"hostnames":{},"#,
        r#""labels":{},"selector":{},"includeExternal":false,"shared":false,"clusterID":0}"#
    );
    assert_eq!(ServiceRecord::default().encode(), service.as_bytes());
    let node = String::from_utf8(NodeRecord::default().encode()).unwrap();
    assert!(
        node.contains(r#""IPAddresses":null,"IPv4AllocCIDR":null,"#),
        "{node}"
    );
    let empty = NodeRecord {
        ip_addresses: Some(Vec::new()),
        labels: Some(std::collections::BTreeMap::new()),
        ..NodeRecord::default()
    };
    let empty = String::from_utf8(empty.encode()).unwrap();
    assert!(empty.contains(r#""IPAddresses":[],"#) && empty.contains(r#""Labels":{},"#));
}

#[test]
fn names_match_in_any_case_and_unknown_fields_are_skipped() {
    let config = ClusterConfig::decode(
        br#"{"ID":2,"Capabilities":{"SYNCEDCANARIES":true},"future":{"x":[1,{"y":null}]}}"#,
    );
    let config = config.unwrap();
    assert_eq!((config.id, config.capabilities.synced_canaries), (2, true));
    let node = NodeRecord::decode(br#"{"name":"a","clusterid":3}"#).unwrap();
    assert_eq!((node.name.as_str(), node.cluster_id), ("a", 3));
    // Go folds the long s and the Kelvin sign into ASCII.
    let service = ServiceRecord::decode("{\"\u{17f}hared\":true}".as_bytes()).unwrap();
    assert!(service.shared);
}

#[test]
fn null_missing_and_duplicate_fields_follow_go() {
    let null = br#"{"IP":null,"Mask":null,"ID":null,"K8sNamespace":null,"NamedPorts":null}"#;
    assert_eq!(IpRecord::decode(null).unwrap(), IpRecord::default());
    assert_eq!(IpRecord::decode(b"{}").unwrap(), IpRecord::default());
    assert_eq!(IpRecord::decode(b" null ").unwrap(), IpRecord::default());
    assert_eq!(IpRecord::decode(br#"{"ID":7,"id":8}"#).unwrap().id, 8);
    let nulls = NodeRecord::decode(br#"{"IPAddresses":[null],"IPv4AllocCIDR":null}"#).unwrap();
    assert_eq!(nulls.ip_addresses.unwrap(), [NodeAddress::default()]);
}

#[test]
fn wrong_types_ranges_and_trailing_text_are_refused() {
    for bad in [
        r#"{"id":"7"}"#,
        r#"{"id":-2}"#,
        r#"{"id":4294967296}"#,
        r#"{"id":2.0}"#,
        r#"{"id":true}"#,
        r#"{"id":2}x"#,
        r#"{"id":2}{}"#,
        r#"{"capabilities":[]}"#,
        r#"{"capabilities":{"cached":1}}"#,
        "{not json",
        "[]",
        "7",
        "",
    ] {
        assert_eq!(
            reason(ClusterConfig::decode(bad.as_bytes())),
            "undecodable",
            "{bad}"
        );
    }
    for bad in [
        r#"{"Key":300}"#,
        r#"{"IP":"10.0.0"}"#,
        r#"{"IP":"010.0.0.1"}"#,
        r#"{"IP":1}"#,
        r#"{"IP":"fe80::1%eth0"}"#,
        r#"{"Mask":"!!"}"#,
        r#"{"Mask":"////AA"}"#,
        r#"{"Metadata":7}"#,
        r#"{"NamedPorts":{}}"#,
        r#"{"NamedPorts":[{"Port":65536}]}"#,
        "{\"Metadata\":\"a\nb\"}",
    ] {
        assert_eq!(
            reason(IpRecord::decode(bad.as_bytes())),
            "undecodable",
            "{bad}"
        );
    }
}

#[test]
fn a_refusal_does_not_quote_the_value() {
    let error = ClusterConfig::decode(br#"{"id":"secret"}"#).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("wrong type or range at line 1") && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn broken_text_is_replaced_as_go_does() {
    let bad = b"{\"K8sPodName\":\"a\xff\xfeb\",\"ID\":5}";
    let record = IpRecord::decode(bad).unwrap();
    assert_eq!(
        (record.k8s_pod_name.as_str(), record.id),
        ("a\u{fffd}\u{fffd}b", 5)
    );
    let lone = br#"{"K8sPodName":"\ud800x\uDC00\\ud800 \ud83d\ude00"}"#;
    let record = IpRecord::decode(lone).unwrap();
    assert_eq!(record.k8s_pod_name, "\u{fffd}x\u{fffd}\\ud800 \u{1f600}");
    assert_eq!(reason(IpRecord::decode(b"\xff{}")), "undecodable");
}

#[test]
fn html_characters_are_escaped_as_go_does() {
    let record = IpRecord {
        k8s_pod_name: "<a>&\u{2028}\u{1}\"\\\u{7f}é".to_owned(),
        ..IpRecord::default()
    };
    let text = String::from_utf8(record.encode()).unwrap();
    let escaped = r#""\u003ca\u003e\u0026\u2028\u0001\"\\"#.to_owned() + "\u{7f}é\"";
    assert!(text.contains(&escaped), "{text}");
    assert_eq!(IpRecord::decode(text.as_bytes()).unwrap(), record);
}

#[test]
fn size_and_nesting_are_bounded() {
    let big = vec![b' '; crate::limits::VALUE_BYTES_MAX + 1];
    assert_eq!(reason(NodeRecord::decode(&big)), "oversize");
    let deep = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
    NodeRecord::decode(deep(100_000).as_bytes()).unwrap();
    let known = format!("{{\"IPAddresses\":{}", "[".repeat(500_000));
    assert_eq!(reason(NodeRecord::decode(known.as_bytes())), "undecodable");
}

#[test]
fn addresses_are_canonical_text() {
    let record = IpRecord::decode(br#"{"IP":"::ffff:10.0.0.1","HostIP":"2001:DB8:0:0::1"}"#);
    let text = String::from_utf8(record.unwrap().encode()).unwrap();
    assert!(
        text.starts_with(r#"{"IP":"10.0.0.1","Mask":null,"HostIP":"2001:db8::1""#),
        "{text}"
    );
}

#[test]
fn nodes_must_agree_with_key_and_cluster() {
    let (name, id) = west();
    let check = |text: &str| {
        NodeRecord::decode(text.as_bytes())
            .unwrap()
            .check(b"a", &name, id)
    };
    let good = r#"{"Name":"a","Cluster":"west","ClusterID":12,"Labels":null,"X":1,"IPAddresses":[{"Type":"Odd","IP":"10.0.0.1"}]}"#;
    assert_eq!(check(good), Ok(()));
    assert_eq!(reason(check("null")), "incomplete");
    assert_eq!(
        reason(check(r#"{"Cluster":"west","ClusterID":12}"#)),
        "incomplete"
    );
    let other = r#"{"Name":"a","Cluster":"other","ClusterID":12}"#;
    assert_eq!(reason(check(other)), "cluster-mismatch");
    let name = r#"{"Name":"b","Cluster":"west","ClusterID":12}"#;
    assert_eq!(reason(check(name)), "key-mismatch");
    let id = r#"{"Name":"a","Cluster":"west","ClusterID":13}"#;
    assert_eq!(reason(check(id)), "cluster-id-mismatch");
    let zero = r#"{"Name":"a","Cluster":"west","ClusterID":0}"#;
    assert_eq!(reason(check(zero)), "cluster-id-out-of-range");
}

#[test]
fn addresses_must_agree_with_their_key() {
    let prefix = |text: &str, key: &str| {
        let record = IpRecord::decode(text.as_bytes()).unwrap();
        record
            .prefix(key.as_bytes())
            .map(|prefix| prefix.to_string())
    };
    assert_eq!(
        reason(prefix(r#"{"IP":"10.0.0.2"}"#, "10.0.0.1")),
        "key-mismatch"
    );
    assert_eq!(reason(prefix("{}", "10.0.0.1")), "incomplete");
    let cidr = r#"{"IP":"10.50.0.0","Mask":"//8AAA=="}"#;
    assert_eq!(prefix(cidr, "10.50.0.0/16").unwrap(), "10.50.0.0/16");
    assert_eq!(reason(prefix(cidr, "10.50.0.0")), "key-mismatch");
    // A full mask makes the key carry its length too.
    let full = r#"{"IP":"10.0.0.7","Mask":"/////w=="}"#;
    assert_eq!(prefix(full, "10.0.0.7/32").unwrap(), "10.0.0.7");
    assert_eq!(reason(prefix(full, "10.0.0.7")), "key-mismatch");
    // Host bits, holes and foreign sizes.
    let host_bits = r#"{"IP":"10.50.0.1","Mask":"//8AAA=="}"#;
    assert_eq!(reason(prefix(host_bits, "10.50.0.1/16")), "key-mismatch");
    assert_eq!(
        reason(prefix(
            r#"{"IP":"10.0.0.0","Mask":"/wD/AA=="}"#,
            "10.0.0.0/0"
        )),
        "key-mismatch"
    );
    assert_eq!(
        reason(prefix(r#"{"IP":"10.0.0.0","Mask":"//8="}"#, "10.0.0.0/16")),
        "key-mismatch"
    );
}

#[test]
fn address_identities_are_the_clusters_or_reserved() {
    let (_, id) = west();
    let identity = |id_: u32| {
        IpRecord {
            id: id_,
            ..IpRecord::default()
        }
        .identity(id, MAX)
    };
    assert_eq!(identity(1), Ok(IdentityId::REMOTE_NODE));
    for good in [0, 104, 255, 12 << 16, (13 << 16) - 1] {
        assert_eq!(identity(good), Ok(IdentityId(good)));
    }
    for bad in [
        256,
        (12 << 16) - 1,
        13 << 16,
        1 << 24,
        (1 << 24) | (12 << 16),
        u32::MAX,
    ] {
        assert_eq!(reason(identity(bad)), "identity-out-of-range", "{bad}");
    }
}

#[test]
fn identities_must_carry_their_clusters_label() {
    let (name, id) = west();
    let own = (12 << 16) + 1;
    let decode = |key: &str, value: &str| {
        decode_identity(key.as_bytes(), value.as_bytes(), &name, id, MAX).map(|(id, _)| id.0)
    };
    let good = "k8s:app=a;k8s:io.cilium.k8s.policy.cluster=west;";
    assert_eq!(decode(&own.to_string(), good), Ok(own));
    assert_eq!(
        decode(&own.to_string(), good.trim_end_matches(';')),
        Ok(own)
    );
    for bad in [
        "k8s:app=a;",
        "k8s:io.cilium.k8s.policy.cluster=north;",
        "cilium:io.cilium.k8s.policy.cluster=west;",
        "k8s:io.cilium.k8s.policy.cluster=west;k8s:io.cilium.k8s.policy.cluster=north;",
    ] {
        assert_eq!(
            reason(decode(&own.to_string(), bad)),
            "cluster-label",
            "{bad}"
        );
    }
    for label in ["reserved:host=", "$host", "reserved.host", "reserved:x=y"] {
        let text = format!("{good}{label};");
        let refused = decode(&own.to_string(), &text);
        assert_eq!(reason(refused), "reserved-label", "{label}");
    }
    assert_eq!(reason(decode(&own.to_string(), "")), "empty-value");
    for key in ["abc", "", "+5", "-1", "007", "1 ", "99999999999999999999"] {
        assert_eq!(reason(decode(key, good)), "malformed-key", "{key}");
    }
    for key in ["104", "0", "851968", "4295753729"] {
        assert_eq!(reason(decode(key, good)), "identity-out-of-range", "{key}");
    }
}

#[test]
fn services_must_agree_with_key_and_cluster() {
    let (name, id) = west();
    let service = |n: &str, cluster: &str, number: u32| ServiceRecord {
        cluster: cluster.to_owned(),
        namespace: "shop".to_owned(),
        name: n.to_owned(),
        cluster_id: number,
        ..ServiceRecord::default()
    };
    assert_eq!(service("a", "west", 12).check(b"shop/a", &name, id), Ok(()));
    let check = |record: ServiceRecord| reason(record.check(b"shop/a", &name, id));
    assert_eq!(check(service("b", "west", 12)), "key-mismatch");
    assert_eq!(check(service("a", "east", 12)), "cluster-mismatch");
    assert_eq!(check(service("a", "west", 13)), "cluster-id-mismatch");
    assert_eq!(check(ServiceRecord::default()), "incomplete");
    // One bad address rejects the record; a port without a name does not.
    let bad = br#"{"backends":{"10.0.0.1":{},"not-an-ip":{}}}"#;
    assert_eq!(reason(ServiceRecord::decode(bad)), "undecodable");
    let unnamed = br#"{"backends":{"10.0.0.1":{"":{"Protocol":"TCP","Port":80}}},"frontends":{}}"#;
    let unnamed = ServiceRecord::decode(unnamed).unwrap();
    assert_eq!(unnamed.backends.values().next().unwrap()[""].port, 80);
}

#[test]
fn cluster_configs_are_accepted_by_size_of_the_mesh() {
    let config = |text: &str| ClusterConfig::decode(text.as_bytes()).unwrap();
    let accept = |text: &str, max| config(text).accept(max).map(ClusterId::get);
    assert_eq!(accept(r#"{"id":255}"#, MAX), Ok(255));
    assert_eq!(
        reason(accept(r#"{"id":256}"#, MAX)),
        "cluster-id-out-of-range"
    );
    assert_eq!(
        reason(accept(r#"{"capabilities":{}}"#, MAX)),
        "cluster-id-out-of-range"
    );
    let big = r#"{"id":7,"capabilities":{"maxConnectedClusters":511}}"#;
    assert_eq!(accept(big, MAX), Ok(7));
    assert_eq!(accept(big, MaxClusters::C511), Ok(7));
    let small = r#"{"id":7,"capabilities":{"maxConnectedClusters":255}}"#;
    assert_eq!(
        reason(accept(small, MaxClusters::C511)),
        "max-clusters-mismatch"
    );
    assert_eq!(
        reason(accept(r#"{"id":7}"#, MaxClusters::C511)),
        "max-clusters-mismatch"
    );
}

#[test]
fn keys_follow_the_table() {
    let (west, _) = west();
    let prefixes = |layout: Layout| Kind::ALL.map(|kind| layout.prefix(kind, &west));
    assert_eq!(
        prefixes(Layout::State),
        [
            "cilium/state/nodes/v1/west/",
            "cilium/state/identities/v1/id/",
            "cilium/state/ip/v1/default/",
            "cilium/state/services/v1/west/",
            "cilium/state/serviceexports/v1/west/",
            "cilium/state/endpointslices/v1/west/",
        ]
    );
    assert_eq!(
        prefixes(Layout::Cache),
        [
            "cilium/cache/nodes/v1/west/",
            "cilium/cache/identities/v1/west/id/",
            "cilium/cache/ip/v1/west/",
            "cilium/cache/services/v1/west/",
            "cilium/cache/serviceexports/v1/west/",
            "cilium/cache/endpointslices/v1/west/",
        ]
    );
    assert_eq!(
        Layout::Cache.canary(Kind::Ips, &west),
        "cilium/synced/west/cilium/cache/ip/v1"
    );
    for layout in [Layout::State, Layout::Cache] {
        for kind in Kind::ALL {
            let canary = layout.canary(kind, &west);
            assert_eq!(parse_canary(canary.as_bytes(), &west), Some((layout, kind)));
            let key = layout.prefix(kind, &west) + "a/b";
            assert_eq!(
                layout.parse(key.as_bytes(), &west),
                Some((kind, &b"a/b"[..]))
            );
        }
    }
    assert_eq!(
        parse_canary(b"cilium/synced/west/cilium/state/foo/v1", &west),
        None
    );
    assert_eq!(
        Layout::State.parse(b"cilium/state/nodes/v1/west2/a", &west),
        None
    );
    assert_eq!(
        Layout::State.parse(b"cilium/state/identities/v1/value/x", &west),
        None
    );
    assert_eq!(cluster_config_key(&west), "cilium/cluster-config/west");
}

mod properties {
    use proptest::prelude::*;

    use super::super::*;
    use crate::types::{IpPrefix, NamedPort};

    fn address() -> impl Strategy<Value = std::net::IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| std::net::Ipv4Addr::from(bits).into()),
            any::<u128>().prop_map(|bits| {
                std::net::IpAddr::from(std::net::Ipv6Addr::from(bits)).to_canonical()
            }),
        ]
    }

    fn cidr() -> impl Strategy<Value = Cidr> {
        (address(), 0_u8..=128).prop_map(|(ip, len)| {
            let len = if ip.is_ipv4() { len % 33 } else { len };
            Cidr::from(IpPrefix::new(ip, len).unwrap())
        })
    }

    proptest! {
        #[test]
        fn any_address_record_round_trips(
            ip in proptest::option::of(address()), range in proptest::option::of(cidr()),
            id: u32, key: u8, name in ".*", port: u16,
        ) {
            let named_ports = vec![NamedPort { name: name.clone(), port, protocol: "TCP".into() }];
            let mask = range.map(|cidr| cidr.mask).unwrap_or_default();
            let record = IpRecord {
                ip, mask, id, key, named_ports, k8s_pod_name: name, ..IpRecord::default()
            };
            let bytes = record.encode();
            let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&parsed["ID"], &serde_json::json!(id));
            prop_assert_eq!(IpRecord::decode(&bytes).unwrap(), record);
        }

        #[test]
        fn any_node_round_trips(
            name in ".*", cidrs in proptest::option::of(proptest::collection::vec(cidr(), 0..4)),
            labels in proptest::option::of(proptest::collection::btree_map(".*", ".*", 0..4)),
        ) {
            let node = NodeRecord {
                name, labels, ipv4_alloc_cidr: cidrs.as_ref().and_then(|c| c.first().cloned()),
                ipv6_secondary_alloc_cidrs: cidrs, ..NodeRecord::default()
            };
            prop_assert_eq!(NodeRecord::decode(&node.encode()).unwrap(), node);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in r#"[{}\[\]":,0-9a-zA-Z\\u]{0,60}"#) {
            for value in [&bytes[..], text.as_bytes()] {
                drop(NodeRecord::decode(value));
                drop(ServiceRecord::decode(value));
                drop(IpRecord::decode(value));
            }
        }

        #[test]
        fn prefixes_survive_their_mask(cidr in cidr()) {
            prop_assert_eq!(Cidr::from(cidr.prefix().unwrap()), cidr);
        }
    }
}

#[test]
fn a_lease_has_one_tag() {
    let tags = layout::lease_tags("node1");
    let lease = |key: &str| layout::tagged_lease(key.as_bytes(), &tags);
    assert_eq!(lease(&layout::lease_tag(&tags, 0x694d)), Some(0x694d));
    for text in ["-f0", "+f0", "0f0", "F0", "", "f0/"] {
        assert_eq!(lease(&format!("{tags}{text}")), None, "{text:?}");
    }
}
