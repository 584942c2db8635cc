//! One request of the etcd API as a value, and how it goes over the wire to any server.
use std::{collections::HashMap, time::Duration};

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse,
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbStatusRequest, PbStatusResponse, PbTxnRequest,
    PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::server::Refusal;

/// Largest answer that is taken; a whole keyspace of large values fits.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long a server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A call, as both servers get it.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    KeepAlive(i64),
    /// The lease is renewed first, as the answer counts whole seconds.
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases,
    Watch(usize, WatchCall),
    /// Nothing is sent; a lease with keys ends by itself.
    AwaitExpiry,
    /// Writes in a row, and nobody looks at the watches in between.
    Burst(Vec<Self>),
}

/// What goes up a watch stream.
#[derive(Debug, Clone)]
pub(super) enum WatchCall {
    Create(WatchCreate),
    Cancel(i64),
    Progress,
}

/// `etcdserverpb.WatchCreateRequest`.
#[derive(Debug, Clone, Default)]
pub(super) struct WatchCreate {
    pub(super) key: Vec<u8>,
    pub(super) range_end: Vec<u8>,
    pub(super) start_revision: i64,
    pub(super) progress_notify: bool,
    pub(super) filters: Vec<i32>,
    pub(super) prev_kv: bool,
    pub(super) watch_id: i64,
    pub(super) fragment: bool,
}

/// The answer to a [`Call`]; one that goes up a watch stream is answered there.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Range(PbRangeResponse),
    Put(PbPutResponse),
    Delete(PbDeleteResponse),
    Txn(PbTxnResponse),
    Compact(PbCompactionResponse),
    Grant(PbLeaseGrantResponse),
    Revoke(PbLeaseRevokeResponse),
    KeepAlive(PbLeaseKeepAliveResponse),
    TimeToLive(PbLeaseTimeToLiveResponse),
    Leases(PbLeaseLeasesResponse),
    Sent,
    Burst(Vec<Result<Self, Refusal>>),
}

impl WatchCall {
    pub(super) fn into_message(self) -> PbWatchRequest {
        let mut union = match &self {
            Self::Create(_) => PbWatchRequestUnion::CreateRequest(Default::default()),
            Self::Cancel(_) => PbWatchRequestUnion::CancelRequest(Default::default()),
            Self::Progress => PbWatchRequestUnion::ProgressRequest(Default::default()),
        };
        match (&mut union, self) {
            (PbWatchRequestUnion::CreateRequest(to), Self::Create(from)) => {
                to.key = from.key;
                to.range_end = from.range_end;
                to.start_revision = from.start_revision;
                to.progress_notify = from.progress_notify;
                to.filters = from.filters;
                to.prev_kv = from.prev_kv;
                to.watch_id = from.watch_id;
                to.fragment = from.fragment;
            }
            (PbWatchRequestUnion::CancelRequest(to), Self::Cancel(id)) => to.watch_id = id,
            _ => {}
        }
        PbWatchRequest {
            request_union: Some(union),
        }
    }
}

/// A connection that sends exactly what it is given.
pub(super) struct Wire {
    channel: Channel,
    keep_alive: Option<Duplex<PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse>>,
}

/// An open stream in both directions.
pub(super) struct Duplex<Q, A> {
    pub(super) requests: mpsc::Sender<Q>,
    pub(super) answers: Streaming<A>,
}

impl Wire {
    /// Waits until the server answers.
    pub(super) async fn connect(endpoint: &str) -> Self {
        let uri = format!("http://{endpoint}");
        let endpoint = Endpoint::from_shared(uri).unwrap();
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            if let Ok(channel) = endpoint.connect().await {
                let wire = Self {
                    channel,
                    keep_alive: None,
                };
                if wire.status().await.is_ok_and(|status| status.leader != 0) {
                    return wire;
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "no server in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn status(&self) -> Result<PbStatusResponse, Status> {
        let method = "/etcdserverpb.Maintenance/Status";
        self.unary(method, PbStatusRequest::default()).await
    }

    /// Any call but those of a watch stream.
    pub(super) async fn call(&mut self, call: Call) -> Result<Reply, Status> {
        const KV: [&str; 5] = [
            "/etcdserverpb.KV/Range",
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/DeleteRange",
            "/etcdserverpb.KV/Txn",
            "/etcdserverpb.KV/Compact",
        ];
        Ok(match call {
            Call::Range(request) => Reply::Range(self.unary(KV[0], request).await?),
            Call::Put(request) => Reply::Put(self.unary(KV[1], request).await?),
            Call::Delete(request) => Reply::Delete(self.unary(KV[2], request).await?),
            Call::Txn(request) => Reply::Txn(self.unary(KV[3], request).await?),
            Call::Compact(request) => Reply::Compact(self.unary(KV[4], request).await?),
            Call::Grant(request) => {
                let method = "/etcdserverpb.Lease/LeaseGrant";
                Reply::Grant(self.unary(method, request).await?)
            }
            Call::Revoke(request) => {
                let method = "/etcdserverpb.Lease/LeaseRevoke";
                Reply::Revoke(self.unary(method, request).await?)
            }
            Call::KeepAlive(id) => Reply::KeepAlive(self.keep_alive(id).await?),
            Call::TimeToLive(request) => {
                self.keep_alive(request.id).await?;
                let method = "/etcdserverpb.Lease/LeaseTimeToLive";
                Reply::TimeToLive(self.unary(method, request).await?)
            }
            Call::Leases => {
                let method = "/etcdserverpb.Lease/LeaseLeases";
                Reply::Leases(self.unary(method, PbLeaseLeasesRequest::default()).await?)
            }
            Call::Watch(..) | Call::AwaitExpiry | Call::Burst(_) => Reply::Sent,
        })
    }

    /// Opens a watch stream. Etcd says nothing before its first answer, so there is a first watch,
    /// of the key `~`, whose creation is taken off the stream; its id is 0.
    pub(super) async fn watch(&self) -> Duplex<PbWatchRequest, PbWatchResponse> {
        let create = WatchCreate {
            key: b"~".to_vec(),
            ..WatchCreate::default()
        };
        let first = WatchCall::Create(create).into_message();
        let method = "/etcdserverpb.Watch/Watch";
        let mut stream: Duplex<_, PbWatchResponse> = self.duplex(method, first).await.unwrap();
        let created = stream.answers.message().await.unwrap().unwrap();
        assert!(created.created && created.watch_id == 0, "{created:?}");
        stream
    }

    async fn keep_alive(&mut self, id: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
        let request = PbLeaseKeepAliveRequest { id };
        let stream = match &mut self.keep_alive {
            Some(stream) => {
                stream.requests.send(request).await.unwrap();
                stream
            }
            None => {
                let method = "/etcdserverpb.Lease/LeaseKeepAlive";
                let stream = self.duplex(method, request).await?;
                self.keep_alive.insert(stream)
            }
        };
        let answer = stream.answers.message().await?;
        answer.ok_or_else(|| Status::unknown("the keep-alive stream ended"))
    }

    async fn duplex<Q, A>(&self, method: &'static str, first: Q) -> Result<Duplex<Q, A>, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut grpc = self.grpc().await?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, A>::default();
        let request = Request::new(ReceiverStream::new(outgoing));
        let answers = grpc.streaming(request, path, codec).await?.into_inner();
        Ok(Duplex { requests, answers })
    }

    async fn unary<Q, A>(&self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc().await?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(Request::new(message), path, codec).await?;
        Ok(answer.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let grpc = Grpc::new(self.channel.clone());
        let mut grpc = grpc.max_decoding_message_size(ANSWER_BYTES_MAX);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(format!("not connected: {error}")))?;
        Ok(grpc)
    }
}

/// Which lease of one server is which of another, where servers chose the ids: requests and
/// answers name them alike, from `FIRST` on in the order they were granted.
#[derive(Debug, Default)]
pub(super) struct LeaseNames {
    actual: Vec<i64>,
    named: HashMap<i64, i64>,
}

impl LeaseNames {
    /// No server and no generator chooses ids there.
    pub(super) const FIRST: i64 = i64::MIN;

    pub(super) fn add(&mut self, actual: i64) {
        let count = i64::try_from(self.actual.len()).unwrap();
        self.named.insert(actual, Self::FIRST + count);
        self.actual.push(actual);
    }

    pub(super) fn named(&self, actual: i64) -> i64 {
        self.named.get(&actual).copied().unwrap_or(actual)
    }

    pub(super) fn actual(&self, named: i64) -> i64 {
        let index = usize::try_from(named.wrapping_sub(Self::FIRST)).ok();
        let known = index.and_then(|index| self.actual.get(index));
        known.copied().unwrap_or(named)
    }
}
