//! Addresses: what decodes is written so that it decodes to the same, one address has one key, and
//! its identity is one that the peer may name.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::{keyspace::IpRecord, types::IpPrefix};
use tombolo_fuzz::{MAX, entry, id};

fuzz_target!(|data: &[u8]| {
    let (suffix, value) = entry(data);
    let Ok(record) = IpRecord::decode(value) else {
        return;
    };
    assert_eq!(IpRecord::decode(&record.encode()).as_ref(), Ok(&record));
    if let Ok(prefix) = record.prefix(suffix) {
        assert_eq!(
            str::from_utf8(suffix)
                .ok()
                .and_then(|text| text.parse().ok()),
            Some(prefix)
        );
        assert_eq!(record.mask.0.is_some(), suffix.contains(&b'/'));
        assert_eq!(
            IpPrefix::new(prefix.addr(), prefix.prefix_len()),
            Some(prefix)
        );
    }
    if let Ok(identity) = record.identity(id(2), MAX) {
        assert!(identity.is_reserved() || MAX.owns(id(2), identity));
    }
});
