//! A client that leaves answers as bytes, so that the load generator costs little beside the server
//! that it shares two cores with. The same for both servers.
use std::path::Path;

use anyhow::{Context as _, Result};
use bytes::{Buf, Bytes};
use etcd_client::proto::{PbPutRequest, PbRangeRequest, PbWatchRequest};
use prost::Message;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::world;

/// Above an answer with all keys.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// One connection.
#[derive(Debug)]
pub(crate) struct Raw(Grpc<Channel>);

impl Raw {
    pub(crate) async fn connect(certs: &Path, url: &str) -> Result<Self> {
        let channel = world::channel(certs, url).await?;
        Ok(Self(
            Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
        ))
    }

    pub(crate) async fn put(&mut self, request: PbPutRequest) -> Result<()> {
        self.0.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let request = Request::new(request.encode_to_vec());
        self.0.unary(request, path, AsBytes).await?;
        Ok(())
    }

    /// The encoded answer.
    pub(crate) async fn range(&mut self, request: PbRangeRequest) -> Result<Bytes> {
        self.0.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let request = Request::new(request.encode_to_vec());
        Ok(self.0.unary(request, path, AsBytes).await?.into_inner())
    }

    /// A stream with one watch, which stays open; yields encoded answers.
    pub(crate) async fn watch(&mut self, request: PbWatchRequest) -> Result<Streaming<Bytes>> {
        self.0.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let open = futures::stream::pending();
        let requests = futures::stream::iter([request.encode_to_vec()]);
        let request = Request::new(futures::StreamExt::chain(requests, open));
        let mut answers = self.0.streaming(request, path, AsBytes).await?.into_inner();
        answers.message().await?.context("the watch ended")?;
        Ok(answers)
    }
}

/// A field of an encoded message: a number, or bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, as far as it is well formed. Of the wire types only
/// the two that etcd uses.
pub(crate) fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut rest)?;
        let number = varint(&mut rest)?;
        if tag & 7 == 0 {
            return Some((tag >> 3, Field::Number(number)));
        }
        let (bytes, after) = rest.split_at_checked(usize::try_from(number).ok()?)?;
        rest = after;
        Some((tag >> 3, Field::Bytes(bytes)))
    })
}

/// The bytes of a field of a message.
pub(crate) fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find_map(|(found, field)| match field {
        Field::Bytes(bytes) if found == number => Some(bytes),
        _ => None,
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[derive(Debug, Clone, Copy)]
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsBytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &message);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
