//! `etcdserverpb.KV`.
use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbTxnRequest, PbTxnResponse,
};
use tonic::{Request, Response, Status};

use super::{
    Face, convert,
    convert::{status, write_status},
    open,
    wire::RangeAnswer,
};
use crate::store::TxnOp;

/// `Range`, which `wire` serves.
pub(super) fn range(request: Request<PbRangeRequest>) -> Result<RangeAnswer, Status> {
    let (access, pb) = open(request)?;
    let request = convert::range_request(pb)?;
    access.check_read(&request.range)?;
    let found = access.store.range_records(&request);
    let found = found.map_err(|e| status(&e))?;
    let header = convert::header(&access.store, found.revision);
    Ok(RangeAnswer { header, found })
}

#[tonic::async_trait]
impl PbKvService for Face {
    type RangeStreamStream = tokio_stream::Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, _: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        Err(Status::internal("Range is routed to `wire`"))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented(
            "RangeStream is not served; use Range with a limit",
        ))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_write()?;
        let size = access.check_bytes(&pb);
        let request = convert::put_request(pb)?;
        size?;
        let put = access.writer.put(request).await;
        let response = put.map_err(|e| write_status(&e))?;
        Ok(Response::new(convert::put_response(
            &access.store,
            &response,
        )))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_write()?;
        let size = access.check_bytes(&pb);
        let request = convert::delete_request(pb)?;
        size?;
        let delete = access.writer.delete(request).await;
        let response = delete.map_err(|e| write_status(&e))?;
        Ok(Response::new(convert::delete_response(
            &access.store,
            &response,
        )))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let (access, pb) = open(request)?;
        let size = access.check_bytes(&pb);
        let txn = convert::txn_request(pb, &access.limits)?;
        access.check_txn(&txn)?;
        // Etcd limits what goes through its log, and mere reads do not.
        let mut steps = txn.success.iter().chain(&txn.failure);
        if size.is_err() && !steps.all(|op| matches!(op, TxnOp::Range(_))) {
            txn.check().map_err(|e| status(&e))?;
            size?;
        }
        let response = access.writer.txn(txn).await.map_err(|e| write_status(&e))?;
        Ok(Response::new(convert::txn_response(
            &access.store,
            response,
        )))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_write()?;
        let compact = access.writer.compact(pb.revision).await;
        compact.map_err(|e| write_status(&e))?;
        let header = convert::header(&access.store, access.store.revision());
        Ok(Response::new(PbCompactionResponse { header }))
    }
}
