//! `etcdserverpb.Cluster`, `Maintenance` and `Auth`: what `etcdctl` needs to show one member.
//! Everything that would change members, users or disks is refused with a sentence.
use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use tonic::{Request, Response, Status, body::Body, codegen::http, server::NamedService};

use super::{Face, access::Access, convert, open};
use crate::{etcd::IN_MEMORY, journal::Writer};

/// The etcd release whose behaviour is served; clients choose features by it.
const VERSION: &str = "3.5.0";

const ONE_MEMBER: &str = "this store has one fixed member";
const ONE_COPY: &str = "this store has one copy, with nothing to compare it to";
const NO_DEFRAGMENTATION: &str = "this store gives disk space back by itself";
const NO_SNAPSHOT: &str = "this store is not bbolt's file; use `tombolo store backup FILE`";
const NO_DOWNGRADE: &str = "this store has one version; restore a backup into an older agent";

#[tonic::async_trait]
impl PbClusterService for Face {
    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(Status::unimplemented(ONE_MEMBER))
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(Status::unimplemented(ONE_MEMBER))
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(Status::unimplemented(ONE_MEMBER))
    }

    async fn member_list(
        &self,
        request: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let (access, _) = open(request)?;
        access.check_role()?;
        let store = &access.store;
        // No client URLs: a client that syncs its endpoints must keep those it was given.
        let member = PbMember {
            id: convert::member_id(store),
            name: "tombolo".to_owned(),
            ..Default::default()
        };
        let header = convert::header(store, store.revision());
        Ok(Response::new(PbMemberListResponse {
            header,
            members: vec![member],
        }))
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(Status::unimplemented(ONE_MEMBER))
    }
}

#[tonic::async_trait]
impl PbMaintenanceService for Face {
    type SnapshotStream = tokio_stream::Empty<Result<PbSnapshotResponse, Status>>;

    async fn alarm(
        &self,
        request: Request<PbAlarmRequest>,
    ) -> Result<Response<PbAlarmResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_role()?;
        if pb.action != 0 {
            return Err(Status::unimplemented("this store raises no alarms"));
        }
        let header = convert::header(&access.store, access.store.revision());
        Ok(Response::new(PbAlarmResponse {
            header,
            ..Default::default()
        }))
    }

    async fn status(
        &self,
        request: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        let (access, _) = open(request)?;
        access.check_role()?;
        let store = &access.store;
        let revision = store.revision();
        let db_size = i64::try_from(store.len_bytes()).unwrap_or(i64::MAX);
        Ok(Response::new(PbStatusResponse {
            header: convert::header(store, revision),
            version: VERSION.to_owned(),
            db_size,
            db_size_in_use: db_size,
            leader: convert::member_id(store),
            raft_index: revision.unsigned_abs(),
            raft_applied_index: revision.unsigned_abs(),
            raft_term: convert::RAFT_TERM,
            errors: errors(&access),
            ..Default::default()
        }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(Status::unimplemented(NO_DEFRAGMENTATION))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(Status::unimplemented(ONE_COPY))
    }

    async fn hash_kv(
        &self,
        _: Request<PbHashKvRequest>,
    ) -> Result<Response<PbHashKvResponse>, Status> {
        Err(Status::unimplemented(ONE_COPY))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(NO_SNAPSHOT))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::unimplemented(ONE_MEMBER))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented(NO_DOWNGRADE))
    }
}

/// Those who may write must know if what they write does not outlive this process.
fn errors(access: &Access) -> Vec<String> {
    let lost = access.may_write() && matches!(access.writer, Writer::Memory(_));
    lost.then(|| IN_MEMORY.to_owned()).into_iter().collect()
}

/// Answers all of `etcdserverpb.Auth`: the user is the certificate, there is nothing to manage.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoAuth;

impl NamedService for NoAuth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl tower::Service<http::Request<Body>> for NoAuth {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let status = Status::unimplemented("users and roles come from the client certificate");
        ready(Ok(status.into_http()))
    }
}
