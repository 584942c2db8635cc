//! The generator's transactions: all targets and relations, ranges, both branches, nesting.
use etcd_client::proto::{PbCompare, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp};
use rand::Rng;

use super::{REQUEST_BYTES, TXN_OPS, generate::Generator};

/// Deepest transaction within a transaction.
const DEPTH: u32 = 3;

impl Generator {
    pub(super) fn txn(&mut self, depth: u32) -> PbTxnRequest {
        let compares = self.random.random_range(0..3);
        let compare = (0..compares).map(|_| self.compare()).collect();
        let mut txn = PbTxnRequest {
            compare,
            success: self.steps(depth),
            failure: self.steps(depth),
        };
        if self.random.random_ratio(1, 60) {
            txn.success = (0..=TXN_OPS).map(|_| self.step(DEPTH)).collect();
        }
        if depth == 0 && deletes_to_the_end(&txn) {
            keep_nothing(&mut txn);
        }
        txn
    }

    fn steps(&mut self, depth: u32) -> Vec<PbTxnRequestOp> {
        let count = self.random.random_range(0..4);
        (0..count).map(|_| self.step(depth)).collect()
    }

    fn step(&mut self, depth: u32) -> PbTxnRequestOp {
        let nested = if depth < DEPTH { 2 } else { 0 };
        let request = match self.random.random_range(0..12 + nested) {
            0..4 => PbTxnOpRequest::RequestRange(self.range()),
            4..10 => {
                let mut put = self.put();
                // Most transactions should pass their static checks.
                if put.key.is_empty() && !self.random.random_ratio(1, 3) {
                    put.key = self.key();
                }
                // A refused message's length is in the refusal, and lease ids differ in length.
                put.value.truncate(REQUEST_BYTES + 10_000);
                PbTxnOpRequest::RequestPut(put)
            }
            10..12 => PbTxnOpRequest::RequestDeleteRange(self.delete()),
            _ => PbTxnOpRequest::RequestTxn(self.txn(depth + 1)),
        };
        let request = (!self.random.random_ratio(1, 100)).then_some(request);
        PbTxnRequestOp { request }
    }

    fn compare(&mut self) -> PbCompare {
        let (key, range_end) = match self.random.random_range(0..4) {
            0 => self.key_range(),
            _ => (self.key(), Vec::new()),
        };
        let near = (self.revision - self.random.random_range(0..50)).max(0);
        let small = self.random.random_range(0..4);
        let target = self.random.random_range(0..5);
        let given = match target {
            0 => PbTargetUnion::Version(small),
            1 => PbTargetUnion::CreateRevision(if small == 0 { 0 } else { near }),
            2 => PbTargetUnion::ModRevision(if small == 0 { 0 } else { near }),
            3 => PbTargetUnion::Value(self.value()),
            _ if small == 0 => PbTargetUnion::Lease(0),
            _ => PbTargetUnion::Lease(self.lease_or_none()),
        };
        // Ids that servers choose are in no particular order.
        let is_ordered = !matches!(given, PbTargetUnion::Lease(id) if id < 0);
        let relations: &[i32] = if is_ordered { &[0, 1, 2, 3] } else { &[0, 3] };
        PbCompare {
            key,
            range_end,
            target,
            result: relations[self.random.random_range(0..relations.len())],
            target_union: (!self.random.random_ratio(1, 8)).then_some(given),
        }
    }
}

fn steps_of(txn: &PbTxnRequest) -> impl Iterator<Item = &PbTxnOpRequest> {
    let ops = txn.success.iter().chain(&txn.failure);
    ops.filter_map(|op| op.request.as_ref())
}

fn deletes_to_the_end(txn: &PbTxnRequest) -> bool {
    steps_of(txn).any(|step| match step {
        PbTxnOpRequest::RequestDeleteRange(delete) => delete.range_end == [0],
        PbTxnOpRequest::RequestTxn(inner) => deletes_to_the_end(inner),
        _ => false,
    })
}

/// Etcd ends with a panic when a put is to keep what an open-ended deletion before it took away,
/// as that is the one kind of deletion that it does not compare with the puts.
fn keep_nothing(txn: &mut PbTxnRequest) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(PbTxnOpRequest::RequestPut(put)) => {
                (put.ignore_value, put.ignore_lease) = (false, false);
            }
            Some(PbTxnOpRequest::RequestTxn(inner)) => keep_nothing(inner),
            _ => {}
        }
    }
}
