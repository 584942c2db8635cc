//! From files to a store: the newest snapshot, then every frame after it.
//! A crash can leave exactly one thing behind: a last frame that is not whole, in the last segment.
//! That is cut off, with a warning. Anything else that does not fit is damage and ends the start.
use std::{io, sync::Arc, time::Instant};

use super::{
    codec,
    format::{self, FileKind, FrameKind, HEADER_BYTES, Header, HeaderError},
    log::{Log, Resume, Segment, Settings, segment_name, zero},
    snapshot::{self, snapshot_name},
    storage::Storage,
};
use crate::store::{Inconsistent, Options, Store};

/// Why a store can't be opened, restored or checked. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory can't be made or listed.
    #[error("use the directory")]
    Directory(#[source] io::Error),
    /// Somebody has it open.
    #[error("lock the directory: another process has this store open")]
    InUse,
    /// The lock file can't be used.
    #[error("lock the directory")]
    Lock(#[source] io::Error),
    /// There is something where a store shall be restored.
    #[error("restore over {name}: move the old store away first")]
    NotEmpty {
        /// One of the files there.
        name: String,
    },
    /// A file can't be read.
    #[error("read {name}")]
    Read {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A file can't be written.
    #[error("write {name}")]
    Write {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Not one of the versions that this program knows.
    #[error(
        "read {name}: its format version {found} is not {}, the one known here; \
             use the program that wrote it",
        format::VERSION
    )]
    Version {
        /// Which file.
        name: String,
        /// Its version.
        found: u32,
    },
    /// The bytes are not those that were written.
    #[error(
        "read {name}: it is damaged at byte {offset}; \
             move the directory away and restore a backup with tombolo store restore"
    )]
    Damaged {
        /// Which file.
        name: String,
        /// Where the damaged part begins.
        offset: u64,
    },
    /// The log has a gap, or files of another store are among these.
    #[error(
        "read {name}: it is not the file that belongs here ({reason}); \
             move the directory away and restore a backup with tombolo store restore"
    )]
    Foreign {
        /// Which file is missing or foreign.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// Undamaged, and yet not a store.
    #[error("read {name}; it was written by a faulty program, restore a backup")]
    Inconsistent {
        /// Which file.
        name: String,
        /// What does not fit.
        source: Inconsistent,
    },
    /// The log, done again, does not lead where it led when it was written.
    #[error(
        "replay {name} at byte {offset}: revision {found} instead of {expected}; \
             use the program that wrote it, whose clean stop leaves a log that any version reads"
    )]
    Diverged {
        /// Which segment.
        name: String,
        /// Of the frame.
        offset: u64,
        /// Now.
        found: i64,
        /// When it was written.
        expected: i64,
    },
}

impl OpenError {
    pub(super) fn inconsistent(name: &str, source: Inconsistent) -> Self {
        Self::Inconsistent {
            name: name.to_owned(),
            source,
        }
    }
}

/// An open store with its log.
pub(super) struct Recovered {
    pub(super) store: Store,
    pub(super) log: Log,
    /// Frames done again.
    pub(super) frames: u64,
    pub(super) torn: Option<Torn>,
}

/// A last frame that was not whole and is cut off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) name: String,
    pub(super) offset: u64,
    /// From there to the last byte that is not zero.
    pub(super) bytes: u64,
}

/// Opens the store in `storage`, or makes an empty one with the id given if there is none.
/// Every lease has its full time to live from `now`.
pub(super) fn recover(
    storage: Arc<dyn Storage>,
    settings: Settings,
    new_cluster_id: u64,
    now: Instant,
) -> Result<Recovered, OpenError> {
    let files = Files::list(storage.as_ref())?;
    let Some(first) = files.first() else {
        let log = Log::create(storage, settings, new_cluster_id, 1)?;
        let store = Store::new(Options {
            cluster_id: new_cluster_id,
            history_max: settings.history_max,
        });
        return Ok(Recovered {
            store,
            log,
            frames: 0,
            torn: None,
        });
    };
    files.check_gaps(first)?;
    let mut replay = Replay {
        storage: storage.as_ref(),
        store: None,
        index: 0,
        bytes: 0,
        frames: 0,
        now,
    };
    let snapshot_bytes = match files.snapshot {
        Some(number) => replay.snapshot(number)?,
        None => 0,
    };
    let last = files.segments.len() - 1;
    let (mut end, mut torn) = (None, None);
    for (at, number) in files.segments.iter().enumerate() {
        let read = replay.segment(*number, at == last)?;
        torn = read.torn;
        end = Some((*number, read.header, read.offset, read.len));
    }
    let (index, bytes, frames) = (replay.index, replay.bytes, replay.frames);
    let Some((store, (number, header, offset, len))) = replay.store.zip(end) else {
        return Err(files.missing(first));
    };
    let segment = reopen(storage.as_ref(), number, header.salt, (offset, len), &torn)?;
    let resume = Resume {
        cluster_id: store.cluster_id(),
        index,
        bytes,
        snapshot_bytes,
    };
    remove_before(storage.as_ref(), first).map_err(OpenError::Directory)?;
    remove_temporary(storage.as_ref()).map_err(OpenError::Directory)?;
    store.restart_leases(now);
    let mut log = Log::resume(storage, settings, segment, resume);
    if header.history_max != settings.history_max as u64 {
        // From here on another past can be read; the frames after a new header say which.
        store.set_history_max(settings.history_max);
        log.begin_segment().map_err(|error| OpenError::Write {
            name: segment_name(number + 1),
            source: io::Error::other(error),
        })?;
    }
    Ok(Recovered {
        store,
        log,
        frames,
        torn,
    })
}

/// The files that matter.
struct Files {
    /// The newest.
    snapshot: Option<u64>,
    /// From the snapshot's number on, ascending.
    segments: Vec<u64>,
}

impl Files {
    fn list(storage: &dyn Storage) -> Result<Self, OpenError> {
        let names = storage.list().map_err(OpenError::Directory)?;
        let snapshots = names.iter().filter_map(|name| number(name, "snapshot-"));
        let snapshot = snapshots.max();
        let segments = names.iter().filter_map(|name| number(name, "log-"));
        let mut segments: Vec<_> = segments.filter(|n| Some(*n) >= snapshot).collect();
        segments.sort_unstable();
        Ok(Self { snapshot, segments })
    }

    /// The number with which the store begins; `None` if there is no store.
    fn first(&self) -> Option<u64> {
        // Without a snapshot only the first segment of all is a beginning.
        self.snapshot
            .or_else(|| (!self.segments.is_empty()).then_some(1))
    }

    fn check_gaps(&self, first: u64) -> Result<(), OpenError> {
        let count = self.segments.len() as u64;
        let expected = (first..).take(self.segments.len());
        match expected.zip(&self.segments).find(|(n, found)| n != *found) {
            Some((number, _)) => Err(self.missing(number)),
            None if count == 0 => Err(self.missing(first)),
            None => Ok(()),
        }
    }

    fn missing(&self, number: u64) -> OpenError {
        OpenError::Foreign {
            name: segment_name(number),
            reason: "it is missing".to_owned(),
        }
    }
}

fn number(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix).filter(|d| d.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A store on its way from the files.
struct Replay<'a> {
    storage: &'a dyn Storage,
    store: Option<Store>,
    /// Of the next frame.
    index: u64,
    bytes: u64,
    frames: u64,
    now: Instant,
}

/// How far a segment was read.
struct ReadSegment {
    header: Header,
    /// After the last frame.
    offset: u64,
    len: u64,
    torn: Option<Torn>,
}

impl Replay<'_> {
    /// Returns the snapshot's length in bytes.
    fn snapshot(&mut self, number: u64) -> Result<u64, OpenError> {
        let name = snapshot_name(number);
        let mut from = self.storage.read(&name).map_err(|source| OpenError::Read {
            name: name.clone(),
            source,
        })?;
        let (header, store, len) = snapshot::decode(&name, from.as_mut(), None, self.now)?;
        if header.number != number {
            return Err(OpenError::Foreign {
                name,
                reason: format!("it has number {:x} inside", header.number),
            });
        }
        self.index = header.first_index;
        self.store = Some(store);
        Ok(len)
    }

    fn segment(&mut self, number: u64, is_last: bool) -> Result<ReadSegment, OpenError> {
        let name = segment_name(number);
        let mut bytes = Vec::new();
        self.storage
            .read(&name)
            .and_then(|mut from| from.read_to_end(&mut bytes))
            .map_err(|source| OpenError::Read {
                name: name.clone(),
                source,
            })?;
        let header = self.header(&name, number, &bytes)?;
        let mut offset = HEADER_BYTES;
        while let Some(frame) = format::frame(&bytes[offset..], header.salt) {
            self.batch(&name, offset as u64, &frame)?;
            offset += frame.len;
        }
        let rest = &bytes[offset..];
        let used = rest
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let mut torn = None;
        if used > 0 {
            let whole = |at: usize| format::frame(&rest[at..], header.salt).is_some();
            if !is_last || (0..used).step_by(8).any(whole) {
                return Err(OpenError::Damaged {
                    name,
                    offset: offset as u64,
                });
            }
            torn = Some(Torn {
                name,
                offset: offset as u64,
                bytes: used as u64,
            });
        }
        Ok(ReadSegment {
            header,
            offset: offset as u64,
            len: bytes.len() as u64,
            torn,
        })
    }

    fn header(&mut self, name: &str, number: u64, bytes: &[u8]) -> Result<Header, OpenError> {
        let name = || name.to_owned();
        let header = Header::decode(FileKind::Segment, bytes).map_err(|error| match error {
            HeaderError::Damaged => OpenError::Damaged {
                name: name(),
                offset: 0,
            },
            HeaderError::Version(found) => OpenError::Version {
                name: name(),
                found,
            },
        })?;
        let history_max = usize::try_from(header.history_max).unwrap_or(usize::MAX);
        let store = self.store.get_or_insert_with(|| {
            Store::new(Options {
                cluster_id: header.cluster_id,
                history_max,
            })
        });
        store.set_history_max(history_max);
        let foreign = |reason| {
            Err(OpenError::Foreign {
                name: name(),
                reason,
            })
        };
        if header.cluster_id != store.cluster_id() {
            return foreign("it belongs to another store".to_owned());
        }
        if header.number != number {
            return foreign(format!("it has number {:x} inside", header.number));
        }
        if header.first_index != self.index {
            let (found, expected) = (header.first_index, self.index);
            return foreign(format!(
                "it begins with frame {found} instead of {expected}"
            ));
        }
        Ok(header)
    }

    fn batch(
        &mut self,
        name: &str,
        offset: u64,
        frame: &format::Frame<'_>,
    ) -> Result<(), OpenError> {
        let damaged = || OpenError::Damaged {
            name: name.to_owned(),
            offset,
        };
        let store = self.store.as_ref().ok_or_else(damaged)?;
        if frame.kind != FrameKind::Batch || frame.index != self.index {
            return Err(damaged());
        }
        let found = store.revision();
        if found != frame.revision {
            return Err(OpenError::Diverged {
                name: name.to_owned(),
                offset,
                found,
                expected: frame.revision,
            });
        }
        for command in codec::commands(frame.payload).ok_or_else(damaged)? {
            // What was refused then is refused again.
            drop(command.apply(store, self.now));
        }
        self.index += 1;
        self.frames += 1;
        self.bytes += frame.len as u64;
        Ok(())
    }
}

/// Opens the last segment for writing, cuts off what is torn, and makes the rest durable.
fn reopen(
    storage: &dyn Storage,
    number: u64,
    salt: u32,
    (offset, len): (u64, u64),
    torn: &Option<Torn>,
) -> Result<Segment, OpenError> {
    let name = segment_name(number);
    let open = || {
        let file = storage.open(&name)?;
        if let Some(torn) = torn {
            zero(file.as_ref(), offset, offset + torn.bytes)?;
        }
        // What was read may be in memory only, if the last process was killed before its sync.
        file.sync()?;
        storage.sync()?;
        Ok(file)
    };
    Ok(Segment {
        number,
        salt,
        file: open().map_err(|source| OpenError::Write {
            name: name.clone(),
            source,
        })?,
        offset,
        len,
    })
}

/// Removes what the snapshot of this number stands for.
pub(super) fn remove_before(storage: &dyn Storage, first: u64) -> io::Result<()> {
    for name in storage.list()? {
        let of = |prefix| number(&name, prefix).is_some_and(|number| number < first);
        if of("log-") || of("snapshot-") {
            storage.remove(&name)?;
        }
    }
    Ok(())
}

/// Removes files that were not finished.
fn remove_temporary(storage: &dyn Storage) -> io::Result<()> {
    for name in storage.list()? {
        if name.ends_with(".tmp") {
            storage.remove(&name)?;
        }
    }
    Ok(())
}
