//! Backups: a snapshot of a running store in one file, and a new store made of such a file.
//! A restored store has a cluster id of its own: its revisions go on from the backup's, and mean
//! something else than those that readers saw after it was taken.
use std::{fs, io, path::Path, sync::Arc, time::Instant};

use super::{
    Settings,
    format::{FileKind, Header},
    lock,
    log::{Cut, Log},
    recover::OpenError,
    snapshot,
    storage::{Directory, Storage as _},
};
use crate::{limits, store::Store};

/// A restored store's first segment. Not 1, with which a store without a snapshot begins: without
/// its snapshot, a restored one is no store.
const FIRST_SEGMENT: u64 = 2;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Of the store that it was taken from.
    pub cluster_id: u64,
    /// The newest.
    pub revision: i64,
    /// Present ones.
    pub keys: usize,
    /// Length of the file.
    pub bytes: u64,
}

/// Hands a backup of `store` as it is now to `emit`, piece by piece.
///
/// # Errors
/// What `emit` says.
pub fn backup(store: &Store, emit: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let header = Header {
        kind: FileKind::Snapshot,
        salt: rand::random::<u32>().max(1),
        cluster_id: store.cluster_id(),
        number: FIRST_SEGMENT,
        first_index: 0,
        history_max: limits::STORE_HISTORY_EVENTS_MAX as u64,
    };
    snapshot::encode(&header, &store.contents(), emit)
}

/// Reads a backup to its end and tells what is in it.
///
/// # Errors
/// Those of [`OpenError`] that concern reading.
pub fn check(file: &Path) -> Result<Summary, OpenError> {
    Ok(read(file, None)?.1)
}

/// Makes a store of a backup in `directory`, which holds none. The agent must not run; a crash on
/// the way leaves a store that refuses to open.
///
/// # Errors
/// [`OpenError`].
pub fn restore(file: &Path, directory: &Path) -> Result<Summary, OpenError> {
    let id = rand::random::<u64>().max(1);
    let (store, summary) = read(file, Some(id))?;
    let _lock = lock(directory)?;
    let storage = Arc::new(Directory(directory.to_owned()));
    let names = storage.list().map_err(OpenError::Directory)?;
    if let Some(name) = names.into_iter().find(|name| name != "lock") {
        return Err(OpenError::NotEmpty { name });
    }
    let history_max = limits::STORE_HISTORY_EVENTS_MAX;
    let cut = Cut {
        storage: Arc::clone(&storage) as _,
        header: Header {
            kind: FileKind::Snapshot,
            salt: rand::random::<u32>().max(1),
            cluster_id: id,
            number: FIRST_SEGMENT,
            first_index: 0,
            history_max: history_max as u64,
        },
        contents: store.contents(),
    };
    // The snapshot comes first: the segment alone would not be refused for what it lacks.
    cut.write().map_err(|source| OpenError::Write {
        name: snapshot::snapshot_name(FIRST_SEGMENT),
        source,
    })?;
    Log::create(storage, Settings::new(history_max), id, FIRST_SEGMENT)?;
    Ok(summary)
}

fn read(file: &Path, cluster_id: Option<u64>) -> Result<(Store, Summary), OpenError> {
    let name = file.display().to_string();
    let mut from = fs::File::open(file)
        .map(io::BufReader::new)
        .map_err(|source| OpenError::Read {
            name: name.clone(),
            source,
        })?;
    let (header, store, bytes) = snapshot::decode(&name, &mut from, cluster_id, Instant::now())?;
    let summary = Summary {
        cluster_id: header.cluster_id,
        revision: store.revision(),
        keys: store.len(),
        bytes,
    };
    Ok((store, summary))
}
