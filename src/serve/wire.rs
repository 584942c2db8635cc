//! The two answers that carry load, Range and Watch, written to the wire from the store's encoded
//! records: no message is built for a key. All else stays with the generated services.
//! Always true: the bytes are what the generated messages would give (tested against them).
use std::{
    convert::Infallible,
    future::{Ready, ready},
    iter,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes};
use etcd_client::proto::{
    PbKvServer, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbWatchRequest, PbWatchResponse,
};
use futures::{
    future::{BoxFuture, FutureExt},
    stream,
};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::{
        self,
        header::{CONTENT_TYPE, HeaderMap, HeaderValue},
    },
    server::{Grpc, NamedService, StreamingService},
};

use super::{Face, kv, metrics::Metrics, pace::Pace, watch};
use crate::store::{Change, RangeRecords, Record};

/// Field tags of messages within messages, `number << 3 | 2`.
const RANGE_KVS: u8 = 0x12;
const WATCH_EVENTS: u8 = 0x5a;
const EVENT_KV: u8 = 0x12;
const EVENT_PREV_KV: u8 = 0x1a;
/// Field `type` of an event with value `DELETE`; `PUT` is 0 and left out.
const EVENT_IS_DELETE: [u8; 2] = [0x08, 1];
/// A stream's buffer grows with its messages; idle watches are many and should be small.
const BUFFER_BYTES: usize = 1_024;
/// An answer's header and counts take at most this much; a cancel reason makes the buffer grow.
const HEAD_BYTES: usize = 96;
/// Ready messages are joined up to this size before they are sent.
const YIELD_BYTES: usize = 32 * 1_024;

/// Bytes of an answer to Range that are made and sent at a time, so that the largest answer takes
/// no more memory than its reader's window, and is on its way while the rest is made.
const PIECE_BYTES: usize = 64 * 1_024;

/// `etcdserverpb.RangeResponse`.
#[derive(Debug)]
pub(super) struct RangeAnswer {
    pub(super) header: Option<PbResponseHeader>,
    pub(super) found: RangeRecords,
}

impl RangeAnswer {
    /// The gRPC response, whose body is made as it is sent.
    fn into_response(self) -> Result<http::Response<Body>, Status> {
        let pieces = self.pieces()?.map(Frame::data);
        let status = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
        let frames = pieces.chain([Frame::trailers(status)]);
        let frames = stream::iter(frames.map(Ok::<_, Infallible>));
        let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        Ok(response)
    }

    /// The message behind its gRPC prefix: not compressed, and its length.
    fn pieces(self) -> Result<impl Iterator<Item = Bytes> + Send + 'static, Status> {
        let (front, back) = self.ends();
        let RangeRecords {
            records, keys_only, ..
        } = self.found;
        let lens = records.iter().map(|r| nested_len(split(r, keys_only)));
        let len = front.len() + lens.sum::<usize>() + back.len();
        let Ok(len) = u32::try_from(len) else {
            let reason = "the answer has more than 4 GiB; use a limit";
            return Err(Status::resource_exhausted(reason));
        };
        let mut first = vec![0];
        first.put_u32(len);
        first.put_slice(&front);
        let mut records = records.into_iter().peekable();
        let (mut piece, mut back) = (first, Some(back));
        // A small answer is one piece: readers count frames that carry next to nothing.
        Ok(iter::from_fn(move || {
            back.as_ref()?;
            while let Some(record) = records.peek()
                && let parts = split(record, keys_only)
                && (piece.is_empty() || piece.len() + nested_len(parts) <= PIECE_BYTES)
            {
                put_nested(&mut piece, RANGE_KVS, parts);
                records.next();
            }
            if records.peek().is_none() {
                piece.extend(back.take()?);
                return Some(Bytes::from(std::mem::take(&mut piece)));
            }
            let next = Vec::with_capacity(PIECE_BYTES);
            Some(Bytes::from(std::mem::replace(&mut piece, next)))
        }))
    }

    /// What precedes the keys and what follows them. A message may come in parts, each with some of
    /// its fields.
    fn ends(&self) -> (Vec<u8>, Vec<u8>) {
        let front = PbRangeResponse {
            header: self.header,
            ..PbRangeResponse::default()
        };
        let back = PbRangeResponse {
            more: self.found.more,
            count: self.found.count,
            ..PbRangeResponse::default()
        };
        (front.encode_to_vec(), back.encode_to_vec())
    }
}

/// `etcdserverpb.WatchResponse`; `head` has no events.
#[derive(Debug)]
pub(super) struct WatchAnswer {
    pub(super) head: PbWatchResponse,
    pub(super) changes: Vec<Change>,
}

impl WatchAnswer {
    /// Bytes of the events.
    fn len_bytes(&self) -> usize {
        self.changes.iter().map(event_len).sum()
    }

    fn encode(&self, buffer: &mut impl BufMut) {
        // Fails for full buffers only, and this one grows.
        let encoded = self.head.encode(buffer);
        debug_assert!(encoded.is_ok(), "{encoded:?}");
        for change in &self.changes {
            buffer.put_u8(WATCH_EVENTS);
            encode_varint(event_body_len(change) as u64, buffer);
            if change.record.is_tombstone() {
                buffer.put_slice(&EVENT_IS_DELETE);
            }
            put_nested(buffer, EVENT_KV, (change.record.encoded(), &[]));
            if let Some(prev) = &change.prev {
                put_nested(buffer, EVENT_PREV_KV, (prev.encoded(), &[]));
            }
        }
    }
}

/// Bytes that an event takes in its message.
pub(super) fn event_len(change: &Change) -> usize {
    let body = event_body_len(change);
    1 + encoded_len_varint(body as u64) + body
}

fn event_body_len(change: &Change) -> usize {
    let kind = if change.record.is_tombstone() {
        EVENT_IS_DELETE.len()
    } else {
        0
    };
    let prev = change.prev.as_ref();
    let prev = prev.map_or(0, |prev| nested_len((prev.encoded(), &[])));
    kind + nested_len((change.record.encoded(), &[])) + prev
}

/// A record's bytes in two pieces, between which its value may be left out.
fn split(record: &Record, keys_only: bool) -> (&[u8], &[u8]) {
    if keys_only {
        record.encoded_without_value()
    } else {
        (record.encoded(), &[])
    }
}

fn nested_len((front, back): (&[u8], &[u8])) -> usize {
    let len = front.len() + back.len();
    1 + encoded_len_varint(len as u64) + len
}

fn put_nested(buffer: &mut impl BufMut, tag: u8, (front, back): (&[u8], &[u8])) {
    buffer.put_u8(tag);
    encode_varint((front.len() + back.len()) as u64, buffer);
    buffer.put_slice(front);
    buffer.put_slice(back);
}

/// Takes generated requests, gives answers of ours.
#[derive(Debug)]
struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = WatchAnswer;
    type Decode = PbWatchRequest;
    type Encoder = Self;
    type Decoder = Generated<PbWatchRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        Generated(PhantomData)
    }
}

impl Encoder for WatchCodec {
    type Item = WatchAnswer;
    type Error = Status;

    fn encode(&mut self, answer: WatchAnswer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(answer.len_bytes() + HEAD_BYTES);
        answer.encode(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// Decodes a generated message.
#[derive(Debug)]
struct Generated<T>(PhantomData<fn() -> T>);

impl<T: Message + Default> Decoder for Generated<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        let message = T::decode(buffer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(message))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// `etcdserverpb.KV`: Range by us, the rest by the generated service.
#[derive(Debug, Clone)]
pub(super) struct Kv {
    pub(super) generated: PbKvServer<Face>,
    pub(super) request_bytes_max: usize,
}

impl NamedService for Kv {
    const NAME: &'static str = <PbKvServer<Face> as NamedService>::NAME;
}

impl tower::Service<http::Request<Body>> for Kv {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != "/etcdserverpb.KV/Range" {
            return self.generated.call(request);
        }
        let answer = range(request, self.request_bytes_max);
        async { Ok(answer.await.unwrap_or_else(Status::into_http)) }.boxed()
    }
}

async fn range(
    request: http::Request<Body>,
    bytes_max: usize,
) -> Result<http::Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let decoder = Generated::<PbRangeRequest>(PhantomData);
    let mut messages = Streaming::new_request(decoder, body, None, Some(bytes_max));
    let message = messages.message().await?;
    let message = message.ok_or_else(|| Status::internal("Range without a request message"))?;
    // A request that is not read to its end is reset, and a client with a thousand resets cut off.
    messages.trailers().await?;
    let mut request = Request::new(message);
    *request.extensions_mut() = parts.extensions;
    kv::range(request)?.into_response()
}

/// `etcdserverpb.Watch`.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    pub(super) pace: Arc<Pace>,
    pub(super) metrics: Metrics,
    pub(super) request_bytes_max: usize,
}

impl NamedService for Watch {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl tower::Service<http::Request<Body>> for Watch {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != "/etcdserverpb.Watch/Watch" {
            let status = Status::unimplemented("etcdserverpb.Watch has one method, Watch");
            return ready(Ok(status.into_http())).boxed();
        }
        let method = WatchMethod(Arc::clone(&self.pace), self.metrics.clone());
        let grpc = Grpc::new(WatchCodec).max_decoding_message_size(self.request_bytes_max);
        async move { Ok({ grpc }.streaming(method, request).await) }.boxed()
    }
}

struct WatchMethod(Arc<Pace>, Metrics);

impl StreamingService<PbWatchRequest> for WatchMethod {
    type Response = WatchAnswer;
    type ResponseStream = watch::Answers;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<PbWatchRequest>>) -> Self::Future {
        let answers = watch::watch(request, Arc::clone(&self.0), self.1.clone());
        ready(answers.map(Response::new))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use etcd_client::proto::PbEvent;

    use super::{super::convert, *};
    use crate::store::{
        Event, KeyRange, Options, RangeRequest, RangeResponse, Store, WatchRequest,
    };

    /// Keys with and without value, lease and predecessor, and deletions.
    fn store() -> Store {
        let store = Store::new(Options {
            cluster_id: u64::MAX,
            history_max: 1_000,
        });
        let ttl = Duration::from_secs(9);
        let lease = i64::MAX;
        store.lease_grant(lease, ttl, Instant::now()).unwrap();
        let long = "v".repeat(20_000);
        for (key, value, lease) in [("a", "", 0), ("b", &long, lease), ("c", "", lease)] {
            store
                .put(key.into(), value.to_owned().into(), lease)
                .unwrap();
        }
        store.put("b".into(), "short".into(), 0).unwrap();
        store.delete_prefix(b"c");
        store
    }

    #[test]
    fn a_range_answer_is_what_the_generated_message_is() {
        let store = store();
        for (limit, keys_only) in [(0, false), (1, false), (0, true)] {
            let request = RangeRequest {
                limit,
                keys_only,
                ..RangeRequest::prefix(b"")
            };
            let found = store.range_records(&request).unwrap();
            let expected = convert::range_response(&store, RangeResponse::from(found.clone()));
            let header = convert::header(&store, found.revision);
            let answer = RangeAnswer { header, found };
            let pieces: Vec<Bytes> = answer.pieces().unwrap().collect();
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
            let expected = expected.encode_to_vec();
            let len = u32::try_from(expected.len()).unwrap().to_be_bytes();
            let expected = [&[0][..], &len, &expected].concat();
            assert_eq!(pieces.concat(), expected, "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_answer_is_what_the_generated_message_is() {
        let store = store();
        for prev_kv in [false, true] {
            let request = WatchRequest {
                range: KeyRange::prefix(b""),
                start_revision: 2,
                prev_kv,
                ..WatchRequest::default()
            };
            let events = store.watch(request.clone()).unwrap().recv().await.unwrap();
            let found = store.watch(request).unwrap().recv_changes().await.unwrap();
            let head = PbWatchResponse {
                header: convert::header(&store, found.revision),
                watch_id: 7,
                ..PbWatchResponse::default()
            };
            let expected = PbWatchResponse {
                events: events.events.iter().map(event).collect(),
                ..head.clone()
            };
            let changes = found.changes;
            let answer = WatchAnswer { head, changes };
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            assert!(answer.len_bytes() + HEAD_BYTES >= bytes.len());
            assert_eq!(bytes, expected.encode_to_vec());
        }
    }

    fn event(event: &Event) -> PbEvent {
        let prev_kv = event.prev().map(convert::key_value);
        match event {
            Event::Put { kv, .. } => PbEvent {
                r#type: 0,
                kv: Some(convert::key_value(kv)),
                prev_kv,
            },
            Event::Delete { key, revision, .. } => {
                let mut kv = etcd_client::proto::PbKeyValue::default();
                (kv.key, kv.mod_revision) = (key.to_vec(), *revision);
                PbEvent {
                    r#type: 1,
                    kv: Some(kv),
                    prev_kv,
                }
            }
        }
    }
}
