//! Commands and snapshot records as bytes: a tag, then fields in order; numbers are little-endian,
//! byte strings have their length before them. `format::VERSION` stands for this layout.
//! Decoding copies: a key-value must not keep a whole segment in memory.
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};

use super::Command;
use crate::store::{
    Change, Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, PutRequest,
    RangeRequest, SortTarget, Txn, TxnOp,
};

/// One piece of a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Key(KeyValue),
    /// Deletions have version 0.
    Change(i64, Vec<KeyValue>),
    Lease(i64, Duration),
}

/// What the end of a snapshot says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) revision: i64,
    pub(super) compacted: i64,
    /// How many records came before.
    pub(super) records: u64,
}

/// Deeper transactions are refused before they are logged by every decoder of requests.
const DEPTH_MAX: usize = 128;

pub(super) fn put_command(out: &mut Vec<u8>, command: &Command) {
    match command {
        Command::Put(request) => {
            out.put_u8(1);
            put_put(out, request);
        }
        Command::Delete(request) => {
            out.put_u8(2);
            put_delete(out, request);
        }
        Command::Txn(txn) => {
            out.put_u8(3);
            put_txn(out, txn);
        }
        Command::Compact(revision) => {
            out.put_u8(4);
            out.put_i64_le(*revision);
        }
        Command::LeaseGrant { id, ttl } => {
            out.put_u8(5);
            put_lease(out, *id, *ttl);
        }
        Command::LeaseRevoke(id) => {
            out.put_u8(6);
            out.put_i64_le(*id);
        }
    }
}

/// The commands of a batch; `None` if these bytes are none.
pub(super) fn commands(payload: &[u8]) -> Option<Vec<Command>> {
    let mut from = Reader(payload);
    let mut commands = Vec::new();
    loop {
        commands.push(match from.0.try_get_u8().ok() {
            // Padding, or the end.
            None | Some(0) => break,
            Some(1) => Command::Put(from.put()?),
            Some(2) => Command::Delete(from.delete()?),
            Some(3) => Command::Txn(from.txn(0)?),
            Some(4) => Command::Compact(from.i64()?),
            Some(5) => {
                let (id, ttl) = from.lease()?;
                Command::LeaseGrant { id, ttl }
            }
            Some(6) => Command::LeaseRevoke(from.i64()?),
            Some(_) => return None,
        });
    }
    Some(commands)
}

pub(super) fn put_key_record(out: &mut Vec<u8>, kv: &KeyValue) {
    out.put_u8(1);
    put_kv(out, kv);
}

pub(super) fn put_change_record(out: &mut Vec<u8>, revision: i64, changes: &[Change]) {
    out.put_u8(2);
    out.put_i64_le(revision);
    put_len(out, changes.len());
    for change in changes {
        put_kv(out, &KeyValue::from(&change.record));
    }
}

pub(super) fn put_lease_record(out: &mut Vec<u8>, id: i64, ttl: Duration) {
    out.put_u8(3);
    put_lease(out, id, ttl);
}

/// The records of a snapshot's frame; `None` if these bytes are none.
pub(super) fn records(payload: &[u8]) -> Option<Vec<Record>> {
    let mut from = Reader(payload);
    let mut records = Vec::new();
    loop {
        records.push(match from.0.try_get_u8().ok() {
            None | Some(0) => break,
            Some(1) => Record::Key(from.kv()?),
            Some(2) => {
                let revision = from.i64()?;
                let count = from.len()?;
                let kvs = (0..count).map(|_| from.kv()).collect::<Option<_>>();
                Record::Change(revision, kvs?)
            }
            Some(3) => {
                let (id, ttl) = from.lease()?;
                Record::Lease(id, ttl)
            }
            Some(_) => return None,
        });
    }
    Some(records)
}

pub(super) fn put_end(out: &mut Vec<u8>, end: End) {
    out.put_i64_le(end.revision);
    out.put_i64_le(end.compacted);
    out.put_u64_le(end.records);
}

pub(super) fn end(mut payload: &[u8]) -> Option<End> {
    Some(End {
        revision: payload.try_get_i64_le().ok()?,
        compacted: payload.try_get_i64_le().ok()?,
        records: payload.try_get_u64_le().ok()?,
    })
}

/// # Panics
/// If a list or byte string has 4 GiB or more; requests are bounded far below.
fn put_len(out: &mut Vec<u8>, len: usize) {
    out.put_u32_le(u32::try_from(len).expect("requests are bounded far below 4 GiB"));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    put_bytes(out, &range.key);
    put_bytes(out, &range.range_end);
}

fn put_kv(out: &mut Vec<u8>, kv: &KeyValue) {
    put_bytes(out, &kv.key);
    put_bytes(out, &kv.value);
    for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
        out.put_i64_le(number);
    }
}

fn put_lease(out: &mut Vec<u8>, id: i64, ttl: Duration) {
    out.put_i64_le(id);
    out.put_u64_le(ttl.as_secs());
    out.put_u32_le(ttl.subsec_nanos());
}

fn put_put(out: &mut Vec<u8>, request: &PutRequest) {
    put_bytes(out, &request.key);
    put_bytes(out, &request.value);
    out.put_i64_le(request.lease);
    put_flags(
        out,
        [request.prev_kv, request.ignore_value, request.ignore_lease],
    );
}

fn put_delete(out: &mut Vec<u8>, request: &DeleteRequest) {
    put_range(out, &request.range);
    put_flags(out, [request.prev_kv]);
}

fn put_flags<const N: usize>(out: &mut Vec<u8>, flags: [bool; N]) {
    let bits = flags.iter().rev();
    out.put_u8(bits.fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
}

/// A step that reads changes nothing, but whether it can be answered decides over the others.
fn put_read(out: &mut Vec<u8>, request: &RangeRequest) {
    put_range(out, &request.range);
    out.put_i64_le(request.revision);
}

fn put_txn(out: &mut Vec<u8>, txn: &Txn) {
    put_len(out, txn.compare.len());
    for compare in &txn.compare {
        put_compare(out, compare);
    }
    for ops in [&txn.success, &txn.failure] {
        put_len(out, ops.len());
        for op in ops {
            put_op(out, op);
        }
    }
}

fn put_op(out: &mut Vec<u8>, op: &TxnOp) {
    match op {
        TxnOp::Range(request) => {
            out.put_u8(1);
            put_read(out, request);
        }
        TxnOp::Put(request) => {
            out.put_u8(2);
            put_put(out, request);
        }
        TxnOp::Delete(request) => {
            out.put_u8(3);
            put_delete(out, request);
        }
        TxnOp::Txn(txn) => {
            out.put_u8(4);
            put_txn(out, txn);
        }
    }
}

fn put_compare(out: &mut Vec<u8>, compare: &Compare) {
    put_range(out, &compare.range);
    out.put_u8(match compare.op {
        CompareOp::Equal => 0,
        CompareOp::Greater => 1,
        CompareOp::Less => 2,
        CompareOp::NotEqual => 3,
    });
    let (tag, number) = match &compare.target {
        CompareTarget::Version(n) => (0, *n),
        CompareTarget::Create(n) => (1, *n),
        CompareTarget::Mod(n) => (2, *n),
        CompareTarget::Lease(n) => (4, *n),
        CompareTarget::Value(value) => {
            out.put_u8(3);
            return put_bytes(out, value);
        }
    };
    out.put_u8(tag);
    out.put_i64_le(number);
}

/// Bytes not read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn i64(&mut self) -> Option<i64> {
        self.0.try_get_i64_le().ok()
    }

    /// A length that the rest can hold: every item takes a byte at least.
    fn len(&mut self) -> Option<usize> {
        let len = usize::try_from(self.0.try_get_u32_le().ok()?).ok()?;
        (len <= self.0.len()).then_some(len)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let len = self.len()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(Bytes::copy_from_slice(bytes))
    }

    fn flag(bits: u8, bit: u8) -> bool {
        bits >> bit & 1 == 1
    }

    fn range(&mut self) -> Option<KeyRange> {
        Some(KeyRange {
            key: self.bytes()?,
            range_end: self.bytes()?,
        })
    }

    fn kv(&mut self) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.bytes()?,
            value: self.bytes()?,
            create_revision: self.i64()?,
            mod_revision: self.i64()?,
            version: self.i64()?,
            lease: self.i64()?,
        })
    }

    fn lease(&mut self) -> Option<(i64, Duration)> {
        let id = self.i64()?;
        let seconds = self.0.try_get_u64_le().ok()?;
        let nanos = self.0.try_get_u32_le().ok()?;
        let ttl = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanos.into()))?;
        Some((id, ttl))
    }

    fn put(&mut self) -> Option<PutRequest> {
        let (key, value, lease) = (self.bytes()?, self.bytes()?, self.i64()?);
        let bits = self.u8()?;
        Some(PutRequest {
            key,
            value,
            lease,
            prev_kv: Self::flag(bits, 0),
            ignore_value: Self::flag(bits, 1),
            ignore_lease: Self::flag(bits, 2),
        })
    }

    fn delete(&mut self) -> Option<DeleteRequest> {
        Some(DeleteRequest {
            range: self.range()?,
            prev_kv: Self::flag(self.u8()?, 0),
        })
    }

    fn txn(&mut self, depth: usize) -> Option<Txn> {
        if depth > DEPTH_MAX {
            return None;
        }
        let count = self.len()?;
        let compare = (0..count).map(|_| self.compare()).collect::<Option<_>>()?;
        Some(Txn {
            compare,
            success: self.ops(depth)?,
            failure: self.ops(depth)?,
        })
    }

    fn ops(&mut self, depth: usize) -> Option<Vec<TxnOp>> {
        let count = self.len()?;
        (0..count).map(|_| self.op(depth)).collect()
    }

    fn op(&mut self, depth: usize) -> Option<TxnOp> {
        Some(match self.u8()? {
            1 => TxnOp::Range(RangeRequest {
                range: self.range()?,
                revision: self.i64()?,
                count_only: true,
                sort: SortTarget::Key,
                ..RangeRequest::default()
            }),
            2 => TxnOp::Put(self.put()?),
            3 => TxnOp::Delete(self.delete()?),
            4 => TxnOp::Txn(self.txn(depth + 1)?),
            _ => return None,
        })
    }

    fn compare(&mut self) -> Option<Compare> {
        let range = self.range()?;
        let op = match self.u8()? {
            0 => CompareOp::Equal,
            1 => CompareOp::Greater,
            2 => CompareOp::Less,
            3 => CompareOp::NotEqual,
            _ => return None,
        };
        let target = match self.u8()? {
            0 => CompareTarget::Version(self.i64()?),
            1 => CompareTarget::Create(self.i64()?),
            2 => CompareTarget::Mod(self.i64()?),
            3 => CompareTarget::Value(self.bytes()?),
            4 => CompareTarget::Lease(self.i64()?),
            _ => return None,
        };
        Some(Compare { range, op, target })
    }
}
