//! Snapshot files, which are also what a backup is: a store's whole content, complete only with
//! its end. Written under another name, synced, renamed; only then is anything older removed.
use std::{
    io::{self, Read},
    time::Instant,
};

use super::{
    codec::{self, End, Record},
    format::{
        FRAME_HEADER_BYTES, FileKind, FrameKind, HEADER_BYTES, Header, HeaderError, begin_frame,
        end_frame, frame, frame_len,
    },
    log::Cut,
    recover::{OpenError, remove_before},
};
use crate::{
    limits,
    store::{Builder, Contents, KeyValue, Store},
};

pub(super) fn snapshot_name(number: u64) -> String {
    format!("snapshot-{number:016x}")
}

impl Cut {
    /// Writes the snapshot and removes what it stands for; returns its length.
    pub(super) fn write(self) -> io::Result<u64> {
        let name = snapshot_name(self.header.number);
        let temporary = format!("{name}.tmp");
        let create = || {
            let file = self.storage.create(&temporary)?;
            let mut len = 0;
            encode(&self.header, &self.contents, &mut |bytes| {
                file.write_at(bytes, len)?;
                len += bytes.len() as u64;
                Ok(())
            })?;
            file.sync()?;
            Ok(len)
        };
        let len = create().inspect_err(|_: &io::Error| {
            // What is left of it is removed at the next start.
            drop(self.storage.remove(&temporary));
        })?;
        self.storage.rename(&temporary, &name)?;
        self.storage.sync()?;
        remove_before(self.storage.as_ref(), self.header.number)?;
        Ok(len)
    }
}

/// Hands the bytes of a snapshot to `emit`, in pieces of about `SNAPSHOT_CHUNK_BYTES`.
pub(super) fn encode(
    header: &Header,
    contents: &Contents,
    emit: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    emit(&header.encode())?;
    let mut frames = Frames {
        salt: header.salt,
        revision: contents.revision,
        index: 0,
        records: 0,
        buffer: Vec::new(),
        emit,
    };
    frames.begin();
    for record in contents.keys_before() {
        let kv = KeyValue::from(record);
        frames.record(|out| codec::put_key_record(out, &kv))?;
    }
    for (revision, changes) in contents.changes() {
        frames.record(|out| codec::put_change_record(out, revision, changes))?;
    }
    for (id, ttl) in &contents.leases {
        frames.record(|out| codec::put_lease_record(out, *id, *ttl))?;
    }
    frames.end(FrameKind::Records)?;
    let end = End {
        revision: contents.revision,
        compacted: contents.compacted,
        records: frames.records,
    };
    frames.begin();
    codec::put_end(&mut frames.buffer, end);
    frames.end(FrameKind::End)
}

/// The frame being filled.
struct Frames<'a> {
    salt: u32,
    revision: i64,
    index: u64,
    records: u64,
    buffer: Vec<u8>,
    emit: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
}

impl Frames<'_> {
    fn begin(&mut self) {
        self.buffer.clear();
        begin_frame(&mut self.buffer);
    }

    fn record(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.buffer.len() >= limits::SNAPSHOT_CHUNK_BYTES {
            self.end(FrameKind::Records)?;
            self.begin();
        }
        put(&mut self.buffer);
        self.records += 1;
        Ok(())
    }

    fn end(&mut self, kind: FrameKind) -> io::Result<()> {
        let what = (kind, self.index, self.revision);
        end_frame(&mut self.buffer, 0, self.salt, what);
        self.index += 1;
        (self.emit)(&self.buffer)
    }
}

/// Reads a snapshot to its end and makes its store, under the snapshot's own cluster id unless
/// another is given. Returns its header and length, too.
pub(super) fn decode(
    name: &str,
    from: &mut dyn Read,
    cluster_id: Option<u64>,
    now: Instant,
) -> Result<(Header, Store, u64), OpenError> {
    let mut source = Source {
        name,
        from,
        offset: 0,
        buffer: Vec::new(),
    };
    let header = source.header()?;
    let history_max = usize::try_from(header.history_max).unwrap_or(usize::MAX);
    let mut builder = Builder::new(history_max);
    let (mut index, mut records) = (0, 0);
    let end = loop {
        let start = source.offset;
        let damaged = || OpenError::Damaged {
            name: name.to_owned(),
            offset: start,
        };
        let (kind, payload) = source.frame(header.salt, index)?;
        index += 1;
        match kind {
            FrameKind::End => break codec::end(payload).ok_or_else(damaged)?,
            FrameKind::Records => {
                let found = codec::records(payload).ok_or_else(damaged)?;
                records += found.len() as u64;
                for record in found {
                    let added = match record {
                        Record::Key(kv) => {
                            builder.key(&kv);
                            Ok(())
                        }
                        Record::Change(revision, kvs) => builder.change(revision, &kvs),
                        Record::Lease(id, ttl) => builder.lease(id, ttl, now),
                    };
                    added.map_err(|source| OpenError::inconsistent(name, source))?;
                }
            }
            FrameKind::Batch => return Err(damaged()),
        }
    };
    source.finish()?;
    let len = source.offset;
    if end.records != records {
        return Err(OpenError::Damaged {
            name: name.to_owned(),
            offset: len,
        });
    }
    let cluster_id = cluster_id.unwrap_or(header.cluster_id);
    let store = builder
        .finish(end.revision, end.compacted, cluster_id)
        .map_err(|source| OpenError::inconsistent(name, source))?;
    Ok((header, store, len))
}

/// A snapshot's bytes, read once.
struct Source<'a> {
    name: &'a str,
    from: &'a mut dyn Read,
    offset: u64,
    buffer: Vec<u8>,
}

impl Source<'_> {
    fn header(&mut self) -> Result<Header, OpenError> {
        self.fill(HEADER_BYTES)?;
        let header = Header::decode(FileKind::Snapshot, &self.buffer);
        self.offset = HEADER_BYTES as u64;
        header.map_err(|error| match error {
            HeaderError::Damaged => OpenError::Damaged {
                name: self.name.to_owned(),
                offset: 0,
            },
            HeaderError::Version(found) => OpenError::Version {
                name: self.name.to_owned(),
                found,
            },
        })
    }

    fn frame(&mut self, salt: u32, index: u64) -> Result<(FrameKind, &[u8]), OpenError> {
        let start = self.offset;
        let damaged = || OpenError::Damaged {
            name: self.name.to_owned(),
            offset: start,
        };
        let undamaged = damaged();
        self.buffer.clear();
        self.fill(FRAME_HEADER_BYTES)?;
        let len = frame_len(&self.buffer, salt).ok_or_else(damaged)?;
        self.fill(len)?;
        self.offset += len as u64;
        match frame(&self.buffer, salt) {
            Some(frame) if frame.index == index => Ok((frame.kind, frame.payload)),
            _ => Err(undamaged),
        }
    }

    /// Reads until the buffer has `len` bytes. What a damaged length asks for is read only as far
    /// as there is something.
    fn fill(&mut self, len: usize) -> Result<(), OpenError> {
        let missing = (len - self.buffer.len()) as u64;
        let read = Read::take(&mut *self.from, missing).read_to_end(&mut self.buffer);
        read.map_err(|source| OpenError::Read {
            name: self.name.to_owned(),
            source,
        })?;
        if self.buffer.len() < len {
            return Err(OpenError::Damaged {
                name: self.name.to_owned(),
                offset: self.offset + self.buffer.len() as u64,
            });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), OpenError> {
        self.buffer.clear();
        match self.fill(1) {
            Err(OpenError::Damaged { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(OpenError::Damaged {
                name: self.name.to_owned(),
                offset: self.offset,
            }),
        }
    }
}
