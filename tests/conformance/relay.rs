//! A gRPC relay in front of a real etcd, for what no etcd does by itself: it passes every call on and
//! can change the header of a reply, as a careless proxy in front of several stores would.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_client::proto::{PbAuthenticateRequest, PbAuthenticateResponse, PbWatchResponse};
use http_body_util::BodyExt as _;
use hyper::header::HeaderValue;
use prost::Message as _;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;
use tower::ServiceExt as _;

use super::etcd::{Etcd, ROOT, own_address};

/// Of a gRPC message: a flag and the length in front.
const FRAME_HEAD: usize = 5;

/// What the relay does wrong. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Armed>>);

#[derive(Default)]
struct Armed {
    /// Of the next message of any watch stream.
    watch: Option<Fault>,
    /// Transactions that name this key are refused so many times.
    writes: (String, usize),
}

/// What is wrong with a reply's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    OtherCluster,
    ZeroCluster,
    NoHeader,
}

/// Speaks plaintext; gone when dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) faults: Faults,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// In front of `etcd`, with all rights.
    pub(crate) async fn start(etcd: &Etcd) -> Self {
        let address = own_address();
        let channel = Endpoint::from_shared(format!("http://{}", etcd.plain)).unwrap();
        let channel = channel.connect().await.unwrap();
        let token = token(channel.clone()).await;
        let faults = Faults::default();
        let armed = faults.clone();
        let forward =
            move |request: Request| forward(channel.clone(), token.clone(), armed.clone(), request);
        let routes = Routes::from(Router::new().fallback(forward));
        let listener = TcpListener::bind(address).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_routes(routes);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            faults,
            _tasks: tasks,
        }
    }
}

impl Faults {
    /// The next message of any watch stream has this fault; those behind it are right again.
    pub(crate) fn next_watch_reply(&self, fault: Fault) {
        self.0.lock().unwrap().watch = Some(fault);
    }

    /// The next transactions that name `key` fail, as if etcd had no leader.
    pub(crate) fn refuse_writes(&self, key: &str, times: usize) {
        self.0.lock().unwrap().writes = (key.to_owned(), times);
    }

    /// How many of them are still to come.
    pub(crate) fn refusals_left(&self) -> usize {
        self.0.lock().unwrap().writes.1
    }
}

/// What etcd takes in place of a password.
async fn token(channel: Channel) -> HeaderValue {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let request = PbAuthenticateRequest {
        name: ROOT.0.to_owned(),
        password: ROOT.1.to_owned(),
    };
    let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
    let codec = ProstCodec::<PbAuthenticateRequest, PbAuthenticateResponse>::default();
    let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
    HeaderValue::from_str(&answer.unwrap().into_inner().token).unwrap()
}

async fn forward(
    channel: Channel,
    token: HeaderValue,
    faults: Faults,
    mut request: Request,
) -> Response {
    request.headers_mut().insert("token", token);
    let path = request.uri().path().to_owned();
    if path == "/etcdserverpb.KV/Txn" {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if is_refused(&faults, &body) {
            return unavailable();
        }
        request = Request::from_parts(head, Body::from(body));
    }
    let request = request.map(tonic::body::Body::new);
    let answer = channel.oneshot(request).await.unwrap();
    if path != "/etcdserverpb.Watch/Watch" {
        return answer.map(Body::new);
    }
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            frame.map_data(|data| match faults.0.lock().unwrap().watch.take() {
                Some(fault) => spoil(&data, fault),
                None => data,
            })
        }))
    })
}

fn is_refused(faults: &Faults, body: &[u8]) -> bool {
    let (key, left) = &mut faults.0.lock().unwrap().writes;
    let names = *left > 0 && body.windows(key.len()).any(|part| part == key.as_bytes());
    if names {
        *left -= 1;
    }
    names
}

fn unavailable() -> Response {
    let status = tonic::Status::unavailable("etcdserver: no leader");
    status.into_http::<Body>()
}

/// The same message with another header.
fn spoil(data: &Bytes, fault: Fault) -> Bytes {
    let mut message = PbWatchResponse::decode(&data[FRAME_HEAD..]).expect("one whole message");
    match (fault, &mut message.header) {
        (Fault::NoHeader, header) => *header = None,
        (Fault::OtherCluster, Some(header)) => header.cluster_id ^= 1,
        (Fault::ZeroCluster, Some(header)) => header.cluster_id = 0,
        (_, None) => panic!("etcd sends headers"),
    }
    let mut spoilt = BytesMut::new();
    spoilt.put_u8(0);
    spoilt.put_u32(u32::try_from(message.encoded_len()).unwrap());
    spoilt.extend_from_slice(&message.encode_to_vec());
    spoilt.freeze()
}
