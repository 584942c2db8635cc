//! The hostile peers: `flood` speaks the protocol and says whatever it likes, `frames` sends
//! messages larger than anybody takes, `empties` such that hold nothing but keys without a name,
//! `silent` never answers, `noise` is no HTTP/2.
use std::{
    convert::Infallible,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_client::proto::{
    PbEvent, PbKeyValue, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbWatchResponse,
};
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{HeaderMap, body::Frame, header::HeaderValue};
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_stream::wrappers::TcpListenerStream;
use tombolo::{
    keyspace::{Capabilities, ClusterConfig, HEARTBEAT, Kind, Layout, cluster_config_key},
    limits,
    tls::{Paths, ServerTls},
    types::ClusterName,
};
use tonic::{service::Routes, transport::Server};

use super::neighbour;

/// Names and ids.
pub(crate) const PEERS: [(&str, u32); 5] = [
    ("flood", 3),
    ("frames", 4),
    ("silent", 5),
    ("noise", 6),
    ("empties", 7),
];
/// Of a gRPC message: a flag and the length in front.
const FRAME_HEAD: usize = 5;
/// Keys that the storm goes over again and again.
const STORM_KEYS: u64 = 5_000;
const STORM_EVENTS: u64 = 1_000;
/// Slices that expand, in a list and in each message of a watch.
const BOMBS: usize = 64;

/// Keys, pages and events that the flood sent.
static SENT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Serves until killed; prints the ports, then what was sent.
pub(crate) fn run(dir: &Path, keys: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let mut ports = Vec::new();
        for (name, id) in PEERS {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push(listener.local_addr().unwrap().port().to_string());
            let plain = plain(&mut tasks, name, id, keys as u64).await;
            tasks.spawn(serve(name, dir.join(name), listener, plain));
        }
        println!("\nlistening {}", ports.join(" "));
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            let [keys, pages, events] = [0, 1, 2].map(|i: usize| SENT[i].load(Ordering::Relaxed));
            println!("sent {keys} keys, {pages} endless pages, {events} events");
        }
    });
}

/// The HTTP/2 of a peer behind its TLS.
async fn plain(
    tasks: &mut JoinSet<()>,
    name: &'static str,
    id: u32,
    keys: u64,
) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |request: Request| answer(name, id, keys, request);
    let routes = Routes::from(Router::new().fallback(answer));
    tasks.spawn(async move {
        let server = Server::builder().add_routes(routes);
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    address
}

async fn serve(
    name: &'static str,
    certs: std::path::PathBuf,
    listener: TcpListener,
    plain: std::net::SocketAddr,
) {
    let tls = ServerTls::load(Paths {
        cert: certs.join("server.crt"),
        key: certs.join("server.key"),
        ca: certs.join("ca.crt"),
    });
    let tls = tls.unwrap();
    let mut tasks = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        tasks.spawn(async move {
            let Ok((mut stream, _)) = tls.accept(tcp).await else {
                return;
            };
            match name {
                "silent" => std::future::pending().await,
                "noise" => {
                    let noise: Vec<u8> = (0..65_536).map(|_| rand::random()).collect();
                    while stream.write_all(&noise).await.is_ok() {}
                }
                _ => {
                    let mut onward = TcpStream::connect(plain).await.unwrap();
                    // Either side may end it.
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut onward).await);
                }
            }
        });
    }
}

/// Answers a call; whatever is no list and no watch gets a header, which is the first field of every
/// answer.
async fn answer(name: &'static str, id: u32, keys: u64, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    // The first message only: the stream of a watch does not end.
    let first = match body.frame().await {
        Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    };
    let message = first.get(FRAME_HEAD..).unwrap_or_default();
    if path.ends_with("/Range") {
        let range = PbRangeRequest::decode(message).unwrap_or_default();
        if name == "frames" && range.key.starts_with(b"cilium/state/nodes/") {
            return respond(oversized().boxed(), body);
        }
        if name == "empties" && range.key.starts_with(b"cilium/state/services/") {
            // Two bytes for each of so many keys.
            let keys = framed(&[0x12, 0].repeat(limits::MESSAGE_BYTES_MAX / 2 - 1));
            return respond(stream::iter([keys]).boxed(), body);
        }
        let found = list(name, id, keys, &range).encode_to_vec();
        return respond(stream::iter([framed(&found)]).boxed(), body);
    }
    if path.ends_with("/Watch") {
        // A watch request holds one create request, which begins with its key.
        let key = String::from_utf8_lossy(message).into_owned();
        return respond(watch(name, key), body);
    }
    let nothing = PbRangeResponse {
        header: header(),
        ..PbRangeResponse::default()
    };
    respond(
        stream::iter([framed(&nothing.encode_to_vec())]).boxed(),
        body,
    )
}

fn respond(messages: stream::BoxStream<'static, Bytes>, request: Body) -> Response {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // The request's stream stays open as long as the answer.
    let frames = messages.map(move |message| {
        let _open = &request;
        Ok::<_, Infallible>(Frame::data(message))
    });
    let frames = frames.chain(stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", grpc);
    response
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// A message of twice the length that is taken.
fn oversized() -> impl futures::Stream<Item = Bytes> {
    let length = 2 * limits::MESSAGE_BYTES_MAX;
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(u32::try_from(length).unwrap());
    let part = Bytes::from(vec![0; 1 << 16]);
    stream::iter([head.freeze()]).chain(stream::iter(std::iter::repeat_n(part, length >> 16)))
}

fn header() -> Option<PbResponseHeader> {
    Some(PbResponseHeader {
        cluster_id: 66,
        member_id: 1,
        revision: 1,
        raft_term: 1,
    })
}

fn kv(key: String, value: Vec<u8>) -> PbKeyValue {
    PbKeyValue {
        key: key.into_bytes(),
        value,
        mod_revision: 1,
        create_revision: 1,
        version: 1,
        ..PbKeyValue::default()
    }
}

fn list(name: &'static str, id: u32, keys: u64, range: &PbRangeRequest) -> PbRangeResponse {
    let cluster: ClusterName = name.parse().unwrap();
    let from = String::from_utf8_lossy(&range.key).into_owned();
    let limit = u64::try_from(range.limit).unwrap_or_default().max(1);
    let mut more = false;
    let kvs = if from == cluster_config_key(&cluster) {
        vec![kv(from, config(id))]
    } else if from == HEARTBEAT {
        vec![kv(from, b"now".to_vec())]
    } else if from.starts_with("cilium/synced/") {
        let canaries = Kind::ALL.map(|kind| kv(Layout::State.canary(kind, &cluster), Vec::new()));
        canaries.to_vec()
    } else if name == "flood" && from.starts_with("cilium/state/ip/") {
        let first = SENT[0].fetch_add(limit, Ordering::Relaxed);
        more = first + limit < keys;
        (first..first + limit).map(garbage).collect()
    } else if name == "flood" && from.starts_with("cilium/state/endpointslices/") {
        bombs()
    } else if name == "flood" && from.starts_with("cilium/state/identities/") {
        more = true;
        let page = SENT[1].fetch_add(1, Ordering::Relaxed);
        let key = |n| format!("cilium/state/identities/v1/id/{}", page * limit + n);
        (0..limit)
            .map(|n| kv(key(n), b"k8s:a=b;".to_vec()))
            .collect()
    } else {
        Vec::new()
    };
    PbRangeResponse {
        header: header(),
        count: i64::try_from(kvs.len()).unwrap_or_default(),
        kvs,
        more,
    }
}

fn config(id: u32) -> Vec<u8> {
    let config = ClusterConfig {
        id,
        capabilities: Capabilities {
            synced_canaries: true,
            max_connected_clusters: 255,
            service_exports_enabled: Some(true),
            endpoint_slices_export_mode: "services-and-endpointslices".to_owned(),
            ..Capabilities::default()
        },
    };
    config.encode()
}

/// Sorts of garbage; one of them is copied to the cache, as nobody can tell what is wrong with it.
pub(crate) const SORTS: usize = 6;

/// One of several sorts of records that nobody may say.
fn garbage(number: u64) -> PbKeyValue {
    let own = (3 << 16) + 300;
    let taken = neighbour::address(usize::try_from(number % 16).unwrap());
    let address = format!("10.66.{}.{}", (number >> 8) & 255, number & 255);
    let record = |ip: &str, mask: &str, id: u32| {
        format!(r#"{{"IP":"{ip}","Mask":{mask},"HostIP":"","ID":{id},"Metadata":"{number}"}}"#)
    };
    let (suffix, value) = match number % SORTS as u64 {
        0 => (format!("garbage-{number}"), record(&address, "null", own)),
        1 => (address.clone(), record(&address, "null", (2 << 16) + 300)),
        2 => (format!("unreadable-{number}"), "{".to_owned()),
        3 => (taken.to_string(), record(&taken.to_string(), "null", own)),
        4 => (
            "0.0.0.0/0".to_owned(),
            record("0.0.0.0", "\"AAAAAA==\"", own),
        ),
        _ => (format!("empty-{number}"), "{}".to_owned()),
    };
    kv(
        format!("cilium/state/ip/v1/default/{suffix}"),
        value.into_bytes(),
    )
}

/// Endpoint slices of a few hundred bytes that expand to as much as is read, and to more.
fn bombs() -> Vec<PbKeyValue> {
    static VALUES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
        [-64, 64].map(|more: isize| {
            let length = limits::ENDPOINT_SLICE_BYTES_MAX.saturating_add_signed(more);
            // One field of bytes that no reader knows, and nothing that every slice has.
            let mut message = BytesMut::new();
            prost::encoding::bytes::encode(99, &vec![0_u8; length - 16], &mut message);
            zstd::encode_all(&*message, 3).unwrap()
        })
    });
    let key = |n| format!("cilium/state/endpointslices/v1/flood/shop/bomb-{n}");
    (0..BOMBS)
        .map(|n| kv(key(n), VALUES[n % 2].clone()))
        .collect()
}

/// Changes without an end, as fast as they are taken.
fn watch(name: &'static str, request: String) -> stream::BoxStream<'static, Bytes> {
    let created = PbWatchResponse {
        header: header(),
        created: true,
        ..PbWatchResponse::default()
    };
    let created = stream::iter([framed(&created.encode_to_vec())]);
    let changes = move |round: u64| {
        let events: Vec<PbKeyValue> = if request.contains("cilium/state/ip/") {
            let numbers = (0..STORM_EVENTS).map(|n| (round * STORM_EVENTS + n) % STORM_KEYS);
            numbers.map(garbage).collect()
        } else if request.contains("cilium/state/endpointslices/") {
            bombs()
        } else if request.contains("cilium/state/services/") {
            let value = vec![b' '; limits::VALUE_BYTES_MAX + 1];
            vec![kv(
                format!("cilium/state/services/v1/flood/shop/s{}", round % 64),
                value,
            )]
        } else {
            return None;
        };
        SENT[2].fetch_add(events.len() as u64, Ordering::Relaxed);
        let event = |kv| PbEvent {
            kv: Some(kv),
            ..PbEvent::default()
        };
        let message = PbWatchResponse {
            header: header(),
            events: events.into_iter().map(event).collect(),
            ..PbWatchResponse::default()
        };
        Some(framed(&message.encode_to_vec()))
    };
    let flood = stream::iter((0..u64::MAX).map_while(changes));
    let storm = if name == "flood" {
        flood.boxed()
    } else {
        stream::empty().boxed()
    };
    created.chain(storm).chain(stream::pending()).boxed()
}
