//! Calls in a fixed order, for what random ones reach too seldom or too slowly: a revision beyond
//! the size of a message, and a lease that ends by itself.
use etcd_client::proto::{PbDeleteRequest, PbLeaseGrantRequest, PbPutRequest};

use super::{
    REQUEST_BYTES,
    wire::{Call, WatchCall, WatchCreate},
};

/// One watch id for each script; random ones are smaller.
const WATCH_IDS: std::ops::Range<i64> = 1_000..1_003;

pub(super) fn calls() -> Vec<Call> {
    let mut calls = large_revision();
    calls.extend(expiring_lease());
    calls
}

fn watch(id: i64, prefix: u8, fragment: bool) -> Call {
    let create = WatchCreate {
        key: vec![prefix, b'/'],
        range_end: vec![prefix, b'0'],
        watch_id: id,
        prev_kv: true,
        fragment,
        ..WatchCreate::default()
    };
    Call::Watch(0, WatchCall::Create(create))
}

/// Deleting these keys makes a revision above etcd's limit of a message, which is that of a
/// request plus 512 KiB; a watch that can take fragments gets more than one message.
fn large_revision() -> Vec<Call> {
    let value = vec![b'#'; REQUEST_BYTES - 1_000];
    let count = (REQUEST_BYTES + (512 << 10)) / value.len() * 2 + 3;
    let mut calls = vec![
        watch(WATCH_IDS.start, b'p', true),
        watch(WATCH_IDS.start + 1, b'p', false),
    ];
    calls.extend((0..count).map(|index| {
        Call::Put(PbPutRequest {
            key: format!("p/{index:03}").into_bytes(),
            value: value.clone(),
            ..PbPutRequest::default()
        })
    }));
    calls.push(Call::Delete(PbDeleteRequest {
        key: b"p/".to_vec(),
        range_end: b"p0".to_vec(),
        prev_kv: true,
    }));
    calls
}

/// The shortest lease takes all its keys along in one revision. The server decides when, so this
/// waits for a lease of the same length that was granted after it.
fn expiring_lease() -> Vec<Call> {
    let grant = |id| Call::Grant(PbLeaseGrantRequest { id, ttl: 1 });
    let mut calls = vec![watch(WATCH_IDS.start + 2, b'q', false), grant(500)];
    calls.extend(["q/2", "q/1", "q/3"].map(|key| {
        Call::Put(PbPutRequest {
            key: key.into(),
            lease: 500,
            ..PbPutRequest::default()
        })
    }));
    calls.push(Call::AwaitExpiry);
    calls
}
