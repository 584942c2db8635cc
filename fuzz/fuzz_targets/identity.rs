//! Identities: an accepted one lies in the peer's range and carries its cluster's label and none
//! of the reserved ones; its labels are written as they are read.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::{
    keyspace::{decode_identity, identity::CLUSTER_LABEL},
    types::Labels,
};
use tombolo_fuzz::{MAX, entry, id, name};

fuzz_target!(|data: &[u8]| {
    let (suffix, value) = entry(data);
    let text = String::from_utf8_lossy(value);
    let labels = Labels::parse(&text);
    assert_eq!(Labels::parse(&labels.to_string()), labels);
    if let Ok((identity, labels)) = decode_identity(suffix, value, &name("west"), id(2), MAX) {
        assert!(MAX.owns(id(2), identity));
        assert_eq!(identity.to_string().as_bytes(), suffix);
        let mut clusters = labels.with_key(CLUSTER_LABEL);
        assert!(clusters.all(|label| label.value == "west"));
        let mut all = labels.as_slice().iter();
        assert!(all.all(|label| label.source != "reserved"));
    }
});
