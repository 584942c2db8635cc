//! Refusals that follow from how a request looks, in etcd's codes and texts.
use tonic::{Code, Status, codegen::http::Response};

use super::Limits;

/// The trailer in which a refusal names the limit that it enforces; the text must stay etcd's, as
/// clients compare all of it.
const LIMIT: &str = "limit";

pub(super) fn too_many_ops(limits: &Limits) -> Status {
    let text = "etcdserver: too many operations in txn request";
    let limit = format!("max-txn-ops={}", limits.txn_ops);
    naming_limit(Status::invalid_argument(text), &limit)
}

pub(super) fn too_large(limits: &Limits) -> Status {
    let text = "etcdserver: request is too large";
    let limit = format!("max-request-bytes={}", limits.request_bytes);
    naming_limit(Status::invalid_argument(text), &limit)
}

/// For those whom this node's certificate check takes for the cluster's nodes, or the host's root.
/// The code is the one with which an etcd member refuses what another one must do.
pub(super) fn store_elsewhere() -> Status {
    Status::failed_precondition(
        "etcdserver: this node has no cluster store, as its agent runs with --kvstore=etcd; \
         ask the etcd that its etcd.config names",
    )
}

fn naming_limit(mut status: Status, limit: &str) -> Status {
    tracing::debug!(limit, "request refused");
    if let Ok(limit) = limit.parse() {
        status.metadata_mut().insert(LIMIT, limit);
    }
    status
}

/// True for the gRPC library's answer to a method that nobody serves; it has no text.
pub(super) fn is_unserved<B>(response: &Response<B>) -> bool {
    Status::from_header_map(response.headers())
        .is_some_and(|status| status.code() == Code::Unimplemented && status.message().is_empty())
}

pub(super) fn unserved() -> Status {
    Status::unimplemented(
        "no such method; of etcd's services KV, Watch, Lease, Cluster and Maintenance are served",
    )
}
