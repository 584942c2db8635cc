//! Keys of every shape, in both trees: what parses is written as it was read.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::{
    keyspace::{self, Kind, Layout, identity, layout},
    types::{ClusterName, IpPrefix},
};
use tombolo_fuzz::{MAX, id, name};

fuzz_target!(|key: &[u8]| {
    for cluster in ["west", "w"].map(name) {
        for tree in [Layout::State, Layout::Cache, Layout::Relay] {
            if let Some((kind, suffix)) = tree.parse(key, &cluster) {
                assert!(!suffix.is_empty());
                let prefix = tree.prefix(kind, &cluster);
                assert_eq!([prefix.as_bytes(), suffix].concat(), key);
                suffixes(kind, suffix);
            }
        }
        if let Some((tree, kind)) = keyspace::parse_canary(key, &cluster) {
            assert_eq!(tree.canary(kind, &cluster).as_bytes(), key);
        }
    }
    if let Some(lease) = layout::tagged_lease(key, "tombolo/leases/node1/") {
        let tag = layout::lease_tag("tombolo/leases/node1/", lease);
        assert_eq!(
            layout::tagged_lease(tag.as_bytes(), "tombolo/leases/node1/"),
            Some(lease)
        );
    }
    if let Some(labels) = identity::labels_of_slave(key) {
        assert!(key.starts_with(layout::IDENTITY_VALUE_PREFIX.as_bytes()));
        assert!(labels.len() < key.len());
    }
    if let Ok(text) = str::from_utf8(key) {
        texts(text);
    }
});

fn suffixes(kind: Kind, suffix: &[u8]) {
    if kind == Kind::Identities {
        if let Ok(number) = keyspace::parse_identity_id(suffix) {
            assert_eq!(
                number.to_string().as_bytes(),
                suffix,
                "one key per identity"
            );
        }
        if let Ok(identity) = keyspace::identity_of_key(suffix, id(2), MAX) {
            assert!(MAX.owns(id(2), identity));
        }
    }
}

fn texts(text: &str) {
    if let Ok(prefix) = text.parse::<IpPrefix>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
        assert!(prefix.contains(prefix.addr()));
    }
    if let Ok(cluster) = text.parse::<ClusterName>() {
        assert_eq!(cluster.as_str(), text);
        assert!(
            keyspace::is_component(text),
            "a cluster's name is a component of keys"
        );
    }
}
