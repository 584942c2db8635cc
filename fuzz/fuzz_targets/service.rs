//! Services: what decodes is written so that it decodes to the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::keyspace::ServiceRecord;
use tombolo_fuzz::{entry, id, name};

fuzz_target!(|data: &[u8]| {
    let (suffix, value) = entry(data);
    if let Ok(record) = ServiceRecord::decode(value) {
        assert_eq!(
            ServiceRecord::decode(&record.encode()).as_ref(),
            Ok(&record)
        );
        if record.check(suffix, &name("west"), id(2)).is_ok() {
            assert_eq!((&*record.cluster, record.cluster_id), ("west", 2));
        }
    }
});
