//! Service exports: what decodes is written so that it decodes to the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::keyspace::ServiceExportRecord;
use tombolo_fuzz::{entry, name};

fuzz_target!(|data: &[u8]| {
    let (suffix, value) = entry(data);
    if let Ok(record) = ServiceExportRecord::decode(value) {
        assert_eq!(
            ServiceExportRecord::decode(&record.encode()).as_ref(),
            Ok(&record)
        );
        if record.check(suffix, &name("west")).is_ok() {
            assert_eq!(record.cluster, "west");
        }
    }
});
