//! Between the store's words and etcd's messages, and the store's errors in etcd's texts.
use bytes::Bytes;
use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use tonic::Status;

use crate::{
    journal,
    store::{
        Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Error, KeyRange,
        KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, SortTarget, Store, Txn,
        TxnOp, TxnOpResponse, TxnResponse,
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
        Error::TooManyOps => {
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

pub(super) fn range_request(pb: PbRangeRequest) -> Result<RangeRequest, Status> {
    let invalid = || Status::invalid_argument("etcdserver: invalid sort option");
    if !(0..=2).contains(&pb.sort_order) {
        return Err(invalid());
    }
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
        descending: pb.sort_order == 2,
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

pub(super) fn put_request(pb: PbPutRequest) -> PutRequest {
    PutRequest {
        key: pb.key.into(),
        value: pb.value.into(),
        lease: pb.lease,
        prev_kv: pb.prev_kv,
        ignore_value: pb.ignore_value,
        ignore_lease: pb.ignore_lease,
    }
}

pub(super) fn put_response(store: &Store, response: &PutResponse) -> PbPutResponse {
    PbPutResponse {
        header: header(store, response.revision),
        prev_kv: response.prev_kv.as_ref().map(key_value),
    }
}

pub(super) fn delete_request(pb: PbDeleteRequest) -> DeleteRequest {
    DeleteRequest {
        range: key_range(pb.key, pb.range_end),
        prev_kv: pb.prev_kv,
    }
}

pub(super) fn delete_response(store: &Store, response: &DeleteResponse) -> PbDeleteResponse {
    PbDeleteResponse {
        header: header(store, response.revision),
        deleted: response.deleted.cast_signed(),
        prev_kvs: response.prev_kvs.iter().map(key_value).collect(),
    }
}

pub(super) fn txn_request(pb: PbTxnRequest) -> Result<Txn, Status> {
    let ops = |ops: Vec<PbTxnRequestOp>| ops.into_iter().map(txn_op).collect::<Result<_, _>>();
    Ok(Txn {
        compare: pb
            .compare
            .into_iter()
            .map(compare)
            .collect::<Result<_, _>>()?,
        success: ops(pb.success)?,
        failure: ops(pb.failure)?,
    })
}

pub(super) fn txn_response(store: &Store, response: TxnResponse) -> PbTxnResponse {
    let op = |response| {
        let response = match response {
            TxnOpResponse::Range(r) => PbTxnOpResponse::ResponseRange(range_response(store, r)),
            TxnOpResponse::Put(r) => PbTxnOpResponse::ResponsePut(put_response(store, &r)),
            TxnOpResponse::Delete(r) => {
                PbTxnOpResponse::ResponseDeleteRange(delete_response(store, &r))
            }
            TxnOpResponse::Txn(r) => PbTxnOpResponse::ResponseTxn(txn_response(store, r)),
        };
        PbResponseOp {
            response: Some(response),
        }
    };
    PbTxnResponse {
        header: header(store, response.revision),
        succeeded: response.succeeded,
        responses: response.responses.into_iter().map(op).collect(),
    }
}

fn txn_op(pb: PbTxnRequestOp) -> Result<TxnOp, Status> {
    Ok(match pb.request {
        Some(PbTxnOpRequest::RequestRange(r)) => TxnOp::Range(range_request(r)?),
        Some(PbTxnOpRequest::RequestPut(r)) => TxnOp::Put(put_request(r)),
        Some(PbTxnOpRequest::RequestDeleteRange(r)) => TxnOp::Delete(delete_request(r)),
        Some(PbTxnOpRequest::RequestTxn(r)) => TxnOp::Txn(txn_request(r)?),
        // Etcd answers this to steps without a body, too.
        None => return Err(Status::invalid_argument("etcdserver: key not found")),
    })
}

fn compare(pb: PbCompare) -> Result<Compare, Status> {
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
