//! Bounds how many fields a server's message may have before it is decoded: a key without a name
//! takes two bytes of a message and a hundred of memory.
use futures::StreamExt as _;
use http_body_util::{BodyStream, StreamBody};
use hyper::body::Frame;
use tonic::{Status, body::Body, codegen::http::Response, transport::Channel};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::limits::MESSAGE_PARTS_MAX;

/// Of a gRPC message: a flag and the length in front.
const FRAME_HEAD: usize = 5;

/// The channel, its answers bounded.
pub(super) fn bounded(channel: Channel) -> etcd_client::Channel {
    let service = channel
        .map_response(|response: Response<Body>| response.map(bounded_body))
        .map_err(tower::BoxError::from);
    etcd_client::Channel::Custom(BoxCloneSyncService::new(service))
}

fn bounded_body(body: Body) -> Body {
    let mut scan = Scan::default();
    let frames = BodyStream::new(body).map(move |frame: Result<Frame<_>, Status>| {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            scan.feed(data)?;
        }
        Ok::<_, Status>(frame)
    });
    Body::new(StreamBody::new(frames))
}

/// Walks over messages as their bytes come in and counts the fields of each; what is in the fields is
/// skipped.
#[derive(Debug, Default)]
struct Scan {
    head: [u8; FRAME_HEAD],
    /// How much of `head` is there.
    filled: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Bytes of the field that are still to come.
    skip: usize,
    next: Next,
    /// The number that is being read, and how far.
    number: u64,
    shift: u32,
    parts: usize,
}

/// What the number that is being read means.
#[derive(Debug, Default)]
enum Next {
    #[default]
    Key,
    Length,
    Value,
}

impl Scan {
    fn feed(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while let Some(first) = data.first() {
            let taken = if self.left == 0 {
                self.head(*first);
                1
            } else {
                let taken = self.skip.min(self.left).min(data.len());
                self.skip -= taken;
                if taken == 0 {
                    self.digit(*first)?;
                }
                self.left -= taken.max(1);
                taken.max(1)
            };
            data = &data[taken..];
        }
        Ok(())
    }

    fn head(&mut self, byte: u8) {
        self.head[self.filled] = byte;
        self.filled += 1;
        if self.filled == FRAME_HEAD {
            let [_, length @ ..] = self.head;
            *self = Self {
                left: u32::from_be_bytes(length) as usize,
                ..Self::default()
            };
        }
    }

    fn digit(&mut self, byte: u8) -> Result<(), Status> {
        let bits = u64::from(byte & 0x7f);
        self.number |= bits.checked_shl(self.shift).unwrap_or_default();
        self.shift += 7;
        if byte & 0x80 != 0 {
            return Ok(());
        }
        self.shift = 0;
        let number = std::mem::take(&mut self.number);
        match std::mem::take(&mut self.next) {
            Next::Key => {
                self.parts += 1;
                if self.parts > MESSAGE_PARTS_MAX {
                    return Err(Status::resource_exhausted(format!(
                        "message of more than {MESSAGE_PARTS_MAX} fields is larger than allowed"
                    )));
                }
                match number & 7 {
                    0 => self.next = Next::Value,
                    1 => self.skip = 8,
                    2 => self.next = Next::Length,
                    5 => self.skip = 4,
                    // No message: that is for the decoder to say.
                    _ => self.skip = usize::MAX,
                }
            }
            Next::Length => self.skip = usize::try_from(number).unwrap_or(usize::MAX),
            Next::Value => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with `count` empty fields, and one that holds as many bytes that look like some.
    fn frame(count: usize) -> Vec<u8> {
        let mut message = [0x12, 0].repeat(count);
        message.extend_from_slice(&[0x22, 0x80, 0x01]);
        message.extend_from_slice(&[0x12, 0].repeat(64));
        message.extend_from_slice(&[0x18, 0xff, 0x01, 0x0d, 0, 0, 0, 0]);
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), &message].concat()
    }

    fn scan(bytes: &[u8], chunk: usize) -> Result<(), tonic::Code> {
        let mut scan = Scan::default();
        let mut chunks = bytes.chunks(chunk);
        chunks
            .try_for_each(|chunk| scan.feed(chunk))
            .map_err(|status| status.code())
    }

    #[test]
    fn fields_are_counted_however_a_message_is_cut() {
        let fits = frame(MESSAGE_PARTS_MAX - 3);
        let more = frame(MESSAGE_PARTS_MAX - 2);
        for chunk in [1, 7, 4_096, usize::MAX] {
            // Each message counts for itself.
            assert_eq!(scan(&[&fits[..], &[0; 5], &fits].concat(), chunk), Ok(()));
            let refused = scan(&[&fits[..], &more].concat(), chunk);
            assert_eq!(refused, Err(tonic::Code::ResourceExhausted));
        }
    }

    #[test]
    fn what_is_no_message_is_passed_on() {
        let bytes = [
            0, 0, 0, 0, 2, 0xff, 0xff, 0, 0, 0, 0, 1, 0x07, 0, 0, 0, 0, 0,
        ];
        assert_eq!(scan(&bytes, 3), Ok(()));
    }
}
