//! Between the store's words and etcd's messages, and the store's errors in etcd's texts.
use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use tonic::Status;

use super::{Limits, refusal};
use crate::{
    journal,
    store::{
        Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Error, KeyRange,
        KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, SortOrder, SortTarget,
        Store, Txn, TxnOp, TxnOpResponse, TxnResponse,
    },
};

/// There is one member and no election; etcd clients only want the term to be set.
pub(super) const RAFT_TERM: u64 = 1;

/// The one member's id, derived so that it differs from the cluster's and is never 0.
pub(super) fn member_id(store: &Store) -> u64 {
    (store.cluster_id().rotate_left(32) ^ 0x746f_6d62_6f6c_6f00).max(1)
}

pub(super) fn header(store: &Store, revision: i64) -> Option<PbResponseHeader> {
    let (cluster_id, member_id) = (store.cluster_id(), member_id(store));
    Some(PbResponseHeader {
        cluster_id,
        member_id,
        revision,
        raft_term: RAFT_TERM,
    })
}

/// Etcd's `rpctypes` codes and texts; clients compare both.
pub(super) fn status(error: &Error) -> Status {
    match error {
        Error::EmptyKey => Status::invalid_argument("etcdserver: key is not provided"),
        Error::KeyNotFound => Status::invalid_argument("etcdserver: key not found"),
        Error::ValueProvided => Status::invalid_argument("etcdserver: value is provided"),
        Error::LeaseProvided => Status::invalid_argument("etcdserver: lease is provided"),
        Error::TooDeep => {
            Status::invalid_argument("etcdserver: too many operations in txn request")
        }
        Error::DuplicateKey => {
            Status::invalid_argument("etcdserver: duplicate key given in txn request")
        }
        Error::Compacted { .. } => {
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
        }
        Error::FutureRevision { .. } => {
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
        }
        Error::LeaseNotFound { .. } => Status::not_found("etcdserver: requested lease not found"),
        Error::LeaseExists { .. } => {
            Status::failed_precondition("etcdserver: lease already exists")
        }
        Error::LeaseTtlTooLarge => Status::out_of_range("etcdserver: too large lease TTL"),
        Error::TooManyLeases => Status::resource_exhausted("etcdserver: too many leases"),
    }
}

/// As [`status`], for what a write may meet besides.
pub(super) fn write_status(error: &journal::Error) -> Status {
    match error {
        journal::Error::Refused(error) => status(error),
        journal::Error::NoSpace => {
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
        }
        journal::Error::Failed(_) => Status::unavailable(format!("etcdserver: {error}")),
        journal::Error::Stopped => Status::unavailable("etcdserver: server stopped"),
    }
}

pub(super) fn key_range(key: Vec<u8>, range_end: Vec<u8>) -> KeyRange {
    KeyRange {
        key: key.into(),
        range_end: range_end.into(),
    }
}

/// Checks what etcd checks before it looks at any key.
pub(super) fn range_request(pb: PbRangeRequest) -> Result<RangeRequest, Status> {
    has_key(&pb.key)?;
    let invalid = || Status::invalid_argument("etcdserver: invalid sort option");
    Ok(RangeRequest {
        range: key_range(pb.key, pb.range_end),
        limit: pb.limit,
        revision: pb.revision,
        sort: match pb.sort_target {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            _ => return Err(invalid()),
        },
        order: match pb.sort_order {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            _ => return Err(invalid()),
        },
        keys_only: pb.keys_only,
        count_only: pb.count_only,
        min_mod_revision: pb.min_mod_revision,
        max_mod_revision: pb.max_mod_revision,
        min_create_revision: pb.min_create_revision,
        max_create_revision: pb.max_create_revision,
    })
}

pub(super) fn range_response(store: &Store, response: RangeResponse) -> PbRangeResponse {
    PbRangeResponse {
        header: header(store, response.revision),
        kvs: response.kvs.iter().map(key_value).collect(),
        more: response.more,
        count: response.count,
    }
}

/// See `range_request`.
pub(super) fn put_request(pb: PbPutRequest) -> Result<PutRequest, Status> {
    has_key(&pb.key)?;
    if pb.ignore_value && !pb.value.is_empty() {
        return Err(status(&Error::ValueProvided));
    }
    if pb.ignore_lease && pb.lease != 0 {
        return Err(status(&Error::LeaseProvided));
    }
    Ok(PutRequest {
        key: pb.key.into(),
        value: pb.value.into(),
        lease: pb.lease,
        prev_kv: pb.prev_kv,
        ignore_value: pb.ignore_value,
        ignore_lease: pb.ignore_lease,
    })
}

pub(super) fn put_response(store: &Store, response: &PutResponse) -> PbPutResponse {
    PbPutResponse {
        header: header(store, response.revision),
        prev_kv: response.prev_kv.as_ref().map(key_value),
    }
}

/// See `range_request`.
pub(super) fn delete_request(pb: PbDeleteRequest) -> Result<DeleteRequest, Status> {
    has_key(&pb.key)?;
    Ok(DeleteRequest {
        range: key_range(pb.key, pb.range_end),
        prev_kv: pb.prev_kv,
    })
}

fn has_key(key: &[u8]) -> Result<(), Status> {
    if key.is_empty() {
        return Err(status(&Error::EmptyKey));
    }
    Ok(())
}

pub(super) fn delete_response(store: &Store, response: &DeleteResponse) -> PbDeleteResponse {
    PbDeleteResponse {
        header: header(store, response.revision),
        deleted: response.deleted.cast_signed(),
        prev_kvs: response.prev_kvs.iter().map(key_value).collect(),
    }
}

/// See `range_request`; both branches are checked. As in etcd, a transaction inside another may
/// have as many operations as that one left of the limit.
pub(super) fn txn_request(pb: PbTxnRequest, limits: &Limits) -> Result<Txn, Status> {
    txn_within(pb, limits.txn_ops, limits)
}

fn txn_within(pb: PbTxnRequest, left: usize, limits: &Limits) -> Result<Txn, Status> {
    let ops = pb.compare.len().max(pb.success.len()).max(pb.failure.len());
    let Some(left) = left.checked_sub(ops) else {
        return Err(refusal::too_many_ops(limits));
    };
    let compare = pb.compare.into_iter().map(compare);
    let compare = compare.collect::<Result<_, _>>()?;
    let steps = |ops: Vec<PbTxnRequestOp>| {
        let steps = ops.into_iter().map(|op| txn_op(op, left, limits));
        steps.collect::<Result<_, _>>()
    };
    Ok(Txn {
        compare,
        success: steps(pb.success)?,
        failure: steps(pb.failure)?,
    })
}

pub(super) fn txn_response(store: &Store, response: TxnResponse) -> PbTxnResponse {
    PbTxnResponse {
        header: header(store, response.revision),
        succeeded: response.succeeded,
        responses: step_responses(store, response.responses),
    }
}

/// As etcd's, the headers within a transaction say nothing but the revision; that of a transaction
/// not even this.
fn step_responses(store: &Store, responses: Vec<TxnOpResponse>) -> Vec<PbResponseOp> {
    let bare = |revision| {
        Some(PbResponseHeader {
            revision,
            ..PbResponseHeader::default()
        })
    };
    let step = |response| {
        let response = match response {
            TxnOpResponse::Range(r) => PbTxnOpResponse::ResponseRange(PbRangeResponse {
                header: bare(r.revision),
                ..range_response(store, r)
            }),
            TxnOpResponse::Put(r) => PbTxnOpResponse::ResponsePut(PbPutResponse {
                header: bare(r.revision),
                ..put_response(store, &r)
            }),
            TxnOpResponse::Delete(r) => PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse {
                header: bare(r.revision),
                ..delete_response(store, &r)
            }),
            TxnOpResponse::Txn(r) => PbTxnOpResponse::ResponseTxn(PbTxnResponse {
                header: bare(0),
                succeeded: r.succeeded,
                responses: step_responses(store, r.responses),
            }),
        };
        PbResponseOp {
            response: Some(response),
        }
    };
    responses.into_iter().map(step).collect()
}

fn txn_op(pb: PbTxnRequestOp, left: usize, limits: &Limits) -> Result<TxnOp, Status> {
    Ok(match pb.request {
        Some(PbTxnOpRequest::RequestRange(r)) => TxnOp::Range(range_request(r)?),
        Some(PbTxnOpRequest::RequestPut(r)) => TxnOp::Put(put_request(r)?),
        Some(PbTxnOpRequest::RequestDeleteRange(r)) => TxnOp::Delete(delete_request(r)?),
        Some(PbTxnOpRequest::RequestTxn(r)) => TxnOp::Txn(txn_within(r, left, limits)?),
        // Etcd answers this to steps without a body, too.
        None => return Err(Status::invalid_argument("etcdserver: key not found")),
    })
}

fn compare(pb: PbCompare) -> Result<Compare, Status> {
    has_key(&pb.key)?;
    let invalid = || Status::invalid_argument("etcdserver: invalid comparison");
    let op = match pb.result {
        0 => CompareOp::Equal,
        1 => CompareOp::Greater,
        2 => CompareOp::Less,
        3 => CompareOp::NotEqual,
        _ => return Err(invalid()),
    };
    // A missing given side means zero, as protobuf leaves zeros out.
    let target = match (pb.target, pb.target_union) {
        (0, Some(PbTargetUnion::Version(v))) => CompareTarget::Version(v),
        (0, _) => CompareTarget::Version(0),
        (1, Some(PbTargetUnion::CreateRevision(v))) => CompareTarget::Create(v),
        (1, _) => CompareTarget::Create(0),
        (2, Some(PbTargetUnion::ModRevision(v))) => CompareTarget::Mod(v),
        (2, _) => CompareTarget::Mod(0),
        (3, Some(PbTargetUnion::Value(v))) => CompareTarget::Value(v.into()),
        (3, _) => CompareTarget::Value(Bytes::new()),
        (4, Some(PbTargetUnion::Lease(v))) => CompareTarget::Lease(v),
        (4, _) => CompareTarget::Lease(0),
        _ => return Err(invalid()),
    };
    Ok(Compare {
        range: key_range(pb.key, pb.range_end),
        op,
        target,
    })
}

/// Copies: the generated messages own their bytes.
pub(super) fn key_value(kv: &KeyValue) -> PbKeyValue {
    PbKeyValue {
        key: kv.key.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.to_vec(),
        lease: kv.lease,
    }
}
