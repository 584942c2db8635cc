//! Bytes of the files: a header, then frames, each with its length and checksum.
//! Segments and snapshots share the format. A segment is as long as it was made and zero after its
//! last frame; a snapshot ends with its `End` frame. All numbers are little-endian.
//! Each file has a random salt, which begins every frame and enters every checksum: bytes that a
//! client chose, or that another file left on the disk, are never taken for a frame.
use bytes::{Buf as _, BufMut as _};

/// Of the files and of the commands in them. Raise it with any change of what bytes mean, and with
/// any change of what a command does to a store: a log is done again, not read back.
pub(super) const VERSION: u32 = 1;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const FRAME_HEADER_BYTES: usize = 32;

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment,
    Snapshot,
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Commands.
    Batch,
    /// Records of a snapshot.
    Records,
    /// The end of a snapshot.
    End,
}

/// The first bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FileKind,
    pub(super) salt: u32,
    /// Of the store; files of two stores never mix.
    pub(super) cluster_id: u64,
    /// Of the segment, from 1; of a snapshot the segment that goes on where it ends.
    pub(super) number: u64,
    /// Of the segment's first frame, counted over all segments from 0.
    pub(super) first_index: u64,
    /// The store's limit while these commands were done: it decides which past they could read.
    pub(super) history_max: u64,
}

/// Why a header is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Version(u32),
}

/// A frame within a file's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: FrameKind,
    /// Counts frames over all segments; within a snapshot from 0.
    pub(super) index: u64,
    /// The store's before this batch.
    pub(super) revision: i64,
    /// With up to seven zeros after its end.
    pub(super) payload: &'a [u8],
    /// Where the next one begins, from where this one does.
    pub(super) len: usize,
}

impl FileKind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"tbl-log\n",
            Self::Snapshot => b"tbl-snp\n",
        }
    }
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.put_slice(self.kind.magic());
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(self.salt);
        bytes.put_u64_le(self.cluster_id);
        bytes.put_u64_le(self.number);
        bytes.put_u64_le(self.first_index);
        bytes.put_u64_le(self.history_max);
        bytes.resize(HEADER_BYTES - 4, 0);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    pub(super) fn decode(kind: FileKind, bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Damaged)?;
        let Some(mut fields) = header.strip_prefix(kind.magic()) else {
            return Err(HeaderError::Damaged);
        };
        // Told before the checksum is looked at: another version may have another one.
        let version = fields.get_u32_le();
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let (content, mut checksum) = header.split_at(HEADER_BYTES - 4);
        if checksum.get_u32_le() != crc32c::crc32c(content) {
            return Err(HeaderError::Damaged);
        }
        Ok(Self {
            kind,
            salt: fields.get_u32_le(),
            cluster_id: fields.get_u64_le(),
            number: fields.get_u64_le(),
            first_index: fields.get_u64_le(),
            history_max: fields.get_u64_le(),
        })
    }
}

/// Begins a frame at the end of `out`; the payload is appended next, then `end_frame` closes it.
pub(super) fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + FRAME_HEADER_BYTES, 0);
    start
}

/// Pads the payload and fills in the header of the frame that began at `start`.
///
/// # Panics
/// If the payload has 4 GiB or more; batches and records are bounded far below.
pub(super) fn end_frame(
    out: &mut Vec<u8>,
    start: usize,
    salt: u32,
    (kind, index, revision): (FrameKind, u64, i64),
) {
    out.resize(start + (out.len() - start).next_multiple_of(8), 0);
    let len = out.len() - start - FRAME_HEADER_BYTES;
    let len = u32::try_from(len).expect("frames are bounded far below 4 GiB");
    let kind: u32 = match kind {
        FrameKind::Batch => 1,
        FrameKind::Records => 2,
        FrameKind::End => 3,
    };
    let mut header = &mut out[start..start + FRAME_HEADER_BYTES];
    header.put_u32_le(salt);
    header.put_u32_le(len);
    header.put_u32_le(0);
    header.put_u32_le(kind);
    header.put_u64_le(index);
    header.put_i64_le(revision);
    let checksum = checksum(&out[start..]);
    (&mut out[start + 8..start + 12]).put_u32_le(checksum);
}

/// The length of the whole frame, as its header claims; `None` if this is no header.
pub(super) fn frame_len(header: &[u8], salt: u32) -> Option<usize> {
    let mut fields = header.get(..FRAME_HEADER_BYTES)?;
    if fields.get_u32_le() != salt {
        return None;
    }
    FRAME_HEADER_BYTES.checked_add(usize::try_from(fields.get_u32_le()).ok()?)
}

/// The frame at the beginning of `bytes`; `None` if there is no undamaged one.
pub(super) fn frame(bytes: &[u8], salt: u32) -> Option<Frame<'_>> {
    let len = frame_len(bytes, salt)?;
    let bytes = bytes.get(..len)?;
    let mut fields = &bytes[8..FRAME_HEADER_BYTES];
    if !len.is_multiple_of(8) || fields.get_u32_le() != checksum(bytes) {
        return None;
    }
    let kind = match fields.get_u32_le() {
        1 => FrameKind::Batch,
        2 => FrameKind::Records,
        3 => FrameKind::End,
        _ => return None,
    };
    Some(Frame {
        kind,
        index: fields.get_u64_le(),
        revision: fields.get_i64_le(),
        payload: &bytes[FRAME_HEADER_BYTES..],
        len,
    })
}

/// Of everything but the checksum's own four bytes.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..8]), &frame[12..])
}
