//! Endpoint slices. An input that begins with a frame's magic number is a value; any other one is
//! the message in a frame, so that both layers are reached.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tombolo::keyspace::{EndpointSlice, Rejection};
use tombolo_fuzz::{entry, id, name};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fuzz_target!(|data: &[u8]| {
    let (suffix, value) = entry(data);
    let framed = value.starts_with(&MAGIC);
    let slice = if framed {
        EndpointSlice::decode(value)
    } else {
        EndpointSlice::decode(&zstd::bulk::compress(value, 1).expect("memory"))
    };
    match slice {
        Ok(slice) => {
            assert!(["IPv4", "IPv6"].contains(&&*slice.address_type));
            if slice.check(suffix, &name("west"), id(2)).is_ok() {
                let key = format!("{}/{}", slice.namespace, slice.name);
                assert_eq!((key.as_bytes(), slice.cluster_id), (suffix, 2));
            }
        }
        Err(Rejection::Undecodable(_) | Rejection::InvalidField(_)) => {}
        // A frame of a few bytes may stand for anything.
        Err(Rejection::Oversize) => assert!(framed),
        Err(other) => panic!("decoding checks no owner: {other}"),
    }
});
