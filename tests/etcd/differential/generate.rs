//! A seeded random sequence of calls that stays interesting: it sees the answers, so that it can
//! name revisions, leases and watches that exist, and some that do not.
//! Keys are `a/0` to `f/5`. Sorted reads stay within one letter, as etcd's order among equals is
//! arbitrary beyond six keys.
use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseRevokeRequest,
    PbLeaseTimeToLiveRequest, PbPutRequest, PbRangeRequest,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    REQUEST_BYTES,
    server::{Outcome, STREAMS},
    wire::{Call, Reply, WatchCall, WatchCreate},
};

/// Most watches that live on one stream.
const WATCHES_PER_STREAM: usize = 6;
/// A lease lives longer than the test, and a multiple of this, so that the order of two leases by
/// the time they have left is that of their times to live.
const TTL_STEP: i64 = 10_000;

pub(super) struct Generator {
    pub(super) random: StdRng,
    pub(super) revision: i64,
    pub(super) compacted: i64,
    pub(super) leases: Vec<i64>,
    watches: Vec<(usize, i64)>,
    /// Some that were compacted.
    compacted_watches: Vec<(usize, i64)>,
    values: u64,
    /// A lease that would expire soon.
    short_lease: Option<i64>,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            revision: 1,
            compacted: 0,
            leases: Vec::new(),
            watches: Vec::new(),
            compacted_watches: Vec::new(),
            values: 0,
            short_lease: None,
        }
    }

    pub(super) fn next(&mut self) -> Call {
        if let Some(id) = self.short_lease.take() {
            return Call::Revoke(PbLeaseRevokeRequest { id });
        }
        match self.random.random_range(0..100) {
            0..22 => Call::Put(self.put()),
            22..27 => Call::Delete(self.delete()),
            27..47 => Call::Range(self.range()),
            47..69 => Call::Txn(self.txn(0)),
            69..72 => self.compact(),
            72..76 => self.grant(),
            76..78 => {
                let id = self.lease_or_none();
                Call::Revoke(PbLeaseRevokeRequest { id })
            }
            78..80 => Call::KeepAlive(self.lease_or_none()),
            80..83 => {
                let (id, keys) = (self.lease_or_none(), self.one_in(2));
                Call::TimeToLive(PbLeaseTimeToLiveRequest { id, keys })
            }
            83..85 => Call::Leases,
            85..93 => self.watch(),
            93..96 => self.cancel(),
            96..98 => self.burst(),
            _ => Call::Watch(self.random.random_range(0..STREAMS), WatchCall::Progress),
        }
    }

    /// Takes over what the reference answered.
    pub(super) fn learn(&mut self, call: &Call, outcome: &Outcome) {
        for ((stream, id), responses) in &outcome.watched {
            if *stream == STREAMS || *id < 0 {
                continue;
            }
            let watch = (*stream, *id);
            for response in responses {
                if response.created && !response.canceled {
                    self.watches.push(watch);
                } else if response.canceled {
                    self.watches.retain(|w| *w != watch);
                    if response.compact_revision != 0 {
                        self.compacted_watches.push(watch);
                    }
                }
            }
        }
        self.revision = outcome.revision;
        match (call, &outcome.reply) {
            (Call::Compact(request), Ok(_)) => self.compacted = request.revision,
            (Call::Revoke(request), Ok(_)) => self.leases.retain(|id| *id != request.id),
            (_, Ok(Reply::Grant(granted))) if granted.ttl < TTL_STEP => {
                self.short_lease = Some(granted.id);
            }
            (_, Ok(Reply::Grant(granted))) => self.leases.push(granted.id),
            _ => {}
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    pub(super) fn key(&mut self) -> Vec<u8> {
        let letter = self.random.random_range(b'a'..=b'f');
        let digit = self.random.random_range(b'0'..=b'5');
        vec![letter, b'/', digit]
    }

    pub(super) fn value(&mut self) -> Vec<u8> {
        self.values += 1;
        match self.random.random_range(0..12) {
            0 => Vec::new(),
            // Equal values, for sorts and comparisons.
            1..4 => vec![self.random.random_range(b'x'..=b'z')],
            4 => vec![b'.'; 3_000],
            _ => self.values.to_string().into_bytes(),
        }
    }

    pub(super) fn lease_or_none(&mut self) -> i64 {
        if self.one_in(6) {
            return 404;
        }
        self.leases.choose(&mut self.random).copied().unwrap_or(405)
    }

    /// A key range that may be empty, inverted or everything.
    pub(super) fn key_range(&mut self) -> (Vec<u8>, Vec<u8>) {
        match self.random.random_range(0..24) {
            0..8 => (self.key(), Vec::new()),
            8..13 => self.letter(),
            13..18 => {
                let (a, b) = (self.key(), self.key());
                if a <= b || self.one_in(8) {
                    (a, b)
                } else {
                    (b, a)
                }
            }
            18..20 => (vec![0], vec![0]),
            20..23 => (self.key(), vec![0]),
            _ => (Vec::new(), self.key()),
        }
    }

    /// All keys of one letter.
    pub(super) fn letter(&mut self) -> (Vec<u8>, Vec<u8>) {
        let letter = self.random.random_range(b'a'..=b'f');
        (vec![letter, b'/'], vec![letter, b'0'])
    }

    /// A revision near one of the borders, or zero.
    pub(super) fn some_revision(&mut self) -> i64 {
        match self.random.random_range(0..16) {
            0..6 => self
                .random
                .random_range(self.compacted.max(1)..=self.revision),
            6..11 => self.revision - self.random.random_range(0..4),
            11 => self.compacted,
            12 => self.compacted - 1,
            13 => self.revision + self.random.random_range(1..4),
            14 => -1,
            _ => 0,
        }
    }

    pub(super) fn range(&mut self) -> PbRangeRequest {
        let mut request = PbRangeRequest::default();
        if self.one_in(3) {
            request.sort_target = self.random.random_range(0..5);
            request.sort_order = self.random.random_range(0..3);
        }
        (request.key, request.range_end) = match request.sort_target {
            0 => self.key_range(),
            _ => self.letter(),
        };
        if self.one_in(3) {
            request.limit = self.random.random_range(-1..6);
        }
        if self.one_in(3) {
            request.revision = self.some_revision();
        }
        request.serializable = self.one_in(4);
        request.keys_only = self.one_in(6);
        request.count_only = self.one_in(8);
        for bound in [
            &mut request.min_mod_revision,
            &mut request.max_mod_revision,
            &mut request.min_create_revision,
            &mut request.max_create_revision,
        ] {
            if self.random.random_ratio(1, 10) {
                *bound = (self.revision - self.random.random_range(0..60)).max(1);
            }
        }
        request
    }

    pub(super) fn put(&mut self) -> PbPutRequest {
        let mut request = PbPutRequest {
            key: self.key(),
            value: self.value(),
            prev_kv: self.one_in(3),
            ignore_value: self.one_in(8),
            ignore_lease: self.one_in(8),
            ..PbPutRequest::default()
        };
        if self.one_in(25) {
            request.key.clear();
        }
        if self.one_in(60) {
            request.value = vec![b'-'; REQUEST_BYTES + 10_000];
        }
        // Beyond the limit of a message, which etcd sets 512 KiB above that of a request.
        if self.one_in(120) {
            request.value = vec![b'-'; REQUEST_BYTES + (512 << 10) + 1];
        }
        if request.ignore_value && !self.one_in(4) {
            request.value.clear();
        }
        if self.one_in(3) && (!request.ignore_lease || self.one_in(4)) {
            request.lease = self.lease_or_none();
        }
        request
    }

    pub(super) fn delete(&mut self) -> PbDeleteRequest {
        let (mut key, mut range_end) = self.key_range();
        if range_end == [0] {
            // Most of the keyspace should outlive most calls.
            key = vec![b'f', b'/', self.random.random_range(b'0'..=b'5')];
        } else if range_end.len() > 2 && key.len() > 2 && !self.one_in(4) {
            (key, range_end) = self.letter();
        }
        PbDeleteRequest {
            key,
            range_end,
            prev_kv: self.one_in(2),
        }
    }

    fn burst(&mut self) -> Call {
        let calls = self.random.random_range(3..12);
        let write = |_| match self.random.random_range(0..4) {
            0 => Call::Delete(self.delete()),
            1 => Call::Txn(self.txn(0)),
            _ => Call::Put(self.put()),
        };
        Call::Burst((0..calls).map(write).collect())
    }

    fn compact(&mut self) -> Call {
        let revision = match self.random.random_range(0..8) {
            0 => self.compacted,
            1 => self.revision + 1,
            2 => self.revision,
            3 => -1,
            _ => self
                .random
                .random_range(self.compacted..=self.revision)
                .max(1),
        };
        Call::Compact(PbCompactionRequest {
            revision: if revision == 0 { 1 } else { revision },
            physical: self.one_in(2),
        })
    }

    fn grant(&mut self) -> Call {
        let mut request = PbLeaseGrantRequest {
            ttl: TTL_STEP * self.random.random_range(1..20),
            id: 0,
        };
        match self.random.random_range(0..10) {
            0..2 => request.ttl = self.random.random_range(-1..4),
            2 => request.ttl = 9_000_000_000 + self.random.random_range(1..3),
            3..7 => request.id = self.random.random_range(1..300),
            7 => request.id = self.lease_or_none(),
            _ => {}
        }
        Call::Grant(request)
    }

    fn watch(&mut self) -> Call {
        let stream = self.random.random_range(0..STREAMS);
        let on_stream = self.watches.iter().filter(|(s, _)| *s == stream);
        if on_stream.count() >= WATCHES_PER_STREAM {
            return self.cancel();
        }
        let (key, range_end) = self.key_range();
        let start_revision = match self.random.random_range(0..10) {
            0..5 => 0,
            5..9 => self.watchable_revision(),
            _ => self.revision + self.random.random_range(1..6),
        };
        let filters = match self.random.random_range(0..6) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            _ => Vec::new(),
        };
        let watch_id = match self.random.random_range(0..6) {
            0..2 => self.random.random_range(0..12),
            2 => 100,
            _ => 0,
        };
        let create = WatchCreate {
            key,
            range_end,
            start_revision,
            filters,
            watch_id,
            progress_notify: self.one_in(4),
            prev_kv: self.one_in(2),
            fragment: self.one_in(3),
        };
        Call::Watch(stream, WatchCall::Create(create))
    }

    /// Not a negative one, for which etcd skips what its next look at the history would have found,
    /// and not the compacted one, of which old etcds forget the deletions.
    fn watchable_revision(&mut self) -> i64 {
        if self.compacted > 1 && self.one_in(2) {
            return self.random.random_range(1..self.compacted);
        }
        match self.some_revision() {
            revision if revision == self.compacted => revision + 1,
            revision => revision.max(0),
        }
    }

    fn cancel(&mut self) -> Call {
        if let Some((stream, id)) = self.compacted_watches.pop()
            && self.one_in(3)
        {
            return Call::Watch(stream, WatchCall::Cancel(id));
        }
        let known = self.watches.choose(&mut self.random).copied();
        let (stream, id) = known.unwrap_or((0, 404));
        let id = if self.one_in(5) { 404 } else { id };
        Call::Watch(stream, WatchCall::Cancel(id))
    }
}
