//! `etcdserverpb.Lease`. As in etcd, granting and keeping alive need a role but no key range;
//! revoking needs write rights once keys are attached.
use std::time::{Duration, Instant};

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Face,
    access::Access,
    convert,
    convert::{status, write_status},
    open,
};
use crate::{
    limits,
    store::{Error, KeyRange},
};

#[tonic::async_trait]
impl PbLeaseService for Face {
    type LeaseKeepAliveStream = BoxStream<'static, Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_role()?;
        let ttl =
            Duration::from_secs(u64::try_from(pb.ttl).unwrap_or(0)).max(limits::LEASE_TTL_MIN);
        let grant = access.writer.lease_grant(pb.id, ttl).await;
        let id = grant.map_err(|e| write_status(&e))?;
        let header = convert::header(&access.store, access.store.revision());
        Ok(Response::new(PbLeaseGrantResponse {
            header,
            id,
            ttl: seconds(ttl),
            ..Default::default()
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_role()?;
        let lease = access
            .store
            .lease_time_to_live(pb.id, Instant::now())
            .map_err(|e| status(&e))?;
        if !lease.keys.is_empty() {
            access.check_write()?;
        }
        let revoke = access.writer.lease_revoke(pb.id).await;
        revoke.map_err(|e| write_status(&e))?;
        let header = convert::header(&access.store, access.store.revision());
        Ok(Response::new(PbLeaseRevokeResponse { header }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (access, incoming) = open(request)?;
        access.check_role()?;
        let stopped = access.cancel.clone().cancelled_owned();
        let answers = incoming.map(move |request| Ok(keep_alive(&access, request?.id)));
        Ok(Response::new(answers.take_until(stopped).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let (access, pb) = open(request)?;
        access.check_role()?;
        let store = &access.store;
        let mut response = PbLeaseTimeToLiveResponse {
            header: convert::header(store, store.revision()),
            id: pb.id,
            ttl: -1,
            ..Default::default()
        };
        match store.lease_time_to_live(pb.id, Instant::now()) {
            Ok(lease) => {
                response.ttl = seconds(lease.remaining);
                response.granted_ttl = seconds(lease.granted);
                if pb.keys {
                    for key in lease.keys {
                        access.check_read(&KeyRange::single(key.clone()))?;
                        response.keys.push(key.to_vec());
                    }
                }
            }
            // Etcd says so in the time, not by an error.
            Err(Error::LeaseNotFound { .. }) => {}
            Err(error) => return Err(status(&error)),
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let (access, _) = open(request)?;
        access.check_role()?;
        let leases = access
            .store
            .leases()
            .into_iter()
            .map(|id| PbLeaseStatus { id })
            .collect();
        let header = convert::header(&access.store, access.store.revision());
        Ok(Response::new(PbLeaseLeasesResponse { header, leases }))
    }
}

/// A time of 0 tells the client that the lease is gone.
fn keep_alive(access: &Access, id: i64) -> PbLeaseKeepAliveResponse {
    let ttl = access
        .store
        .lease_keep_alive(id, Instant::now())
        .map_or(0, seconds);
    let header = convert::header(&access.store, access.store.revision());
    PbLeaseKeepAliveResponse { header, id, ttl }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
