//! A disk that loses what was not synced: every sector of every write, and every name, on its own.
use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read},
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::super::storage::{File, Storage};

const SECTOR: usize = 64;

#[derive(Clone, Default)]
pub(in crate::journal) struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes left until the power goes; `None` for many.
    fuse: Option<u64>,
    /// Nothing can grow.
    full: bool,
    /// The next write ends half done for lack of space.
    half: bool,
    sync_fails: bool,
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// End of the last synced write that was not all zeros: a crash truncates behind it only.
    kept: usize,
    pending: Vec<(usize, Vec<u8>)>,
}

struct Handle {
    disk: Disk,
    file: usize,
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(in crate::journal) fn set_fuse(&self, fuse: u64) {
        self.lock().fuse = Some(fuse);
    }

    pub(in crate::journal) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    pub(in crate::journal) fn fail_half_way(&self) {
        self.lock().half = true;
    }

    pub(in crate::journal) fn fail_sync(&self) {
        self.lock().sync_fails = true;
    }

    /// What a machine finds after its power was lost, as `seed` has it.
    pub(in crate::journal) fn after_crash(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.lock();
        let mut after = State::default();
        for content in &state.files {
            let bytes = content.after_crash(&mut rng);
            // Whatever came through is on the disk, synced or not.
            let kept = content.end_of_writes().min(bytes.len());
            after.files.push(Content {
                now: bytes.clone(),
                durable: bytes,
                kept: content.kept.max(kept),
                pending: Vec::new(),
            });
        }
        let mut names = state.durable_names.clone();
        let all = state.durable_names.keys().chain(state.names.keys());
        for name in all.collect::<std::collections::BTreeSet<_>>() {
            if rng.random() {
                match state.names.get(name) {
                    Some(file) => names.insert(name.clone(), *file),
                    None => names.remove(name),
                };
            }
        }
        (after.names, after.durable_names) = (names.clone(), names);
        Self(Arc::new(Mutex::new(after)))
    }

    /// What the next process finds after this one was killed: nothing is lost, and nothing more is
    /// durable than before.
    pub(in crate::journal) fn after_kill(&self) {
        let mut state = self.lock();
        (state.fuse, state.full, state.half, state.sync_fails) = (None, false, false, false);
    }

    pub(in crate::journal) fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Changes a file behind everybody's back.
    pub(in crate::journal) fn edit<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> T {
        let mut state = self.lock();
        let file = state.names[name];
        change(&mut state.files[file].now)
    }

    /// The same files, independent from now on.
    pub(in crate::journal) fn copy(&self) -> Self {
        let state = self.lock();
        let file = |content: &Content| Content {
            now: content.now.clone(),
            durable: content.now.clone(),
            kept: content.now.len(),
            pending: Vec::new(),
        };
        Self(Arc::new(Mutex::new(State {
            files: state.files.iter().map(file).collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            ..State::default()
        })))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.lock();
        if let Some(fuse) = &mut state.fuse {
            let left = fuse.checked_sub(1);
            *fuse = left.ok_or_else(|| io::Error::other("the power is gone"))?;
        }
        change(&mut state)
    }
}

impl Content {
    /// The end of the last write that is not synced and not all zeros.
    fn end_of_writes(&self) -> usize {
        let written = self.pending.iter();
        let written = written.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        let ends = written.map(|(offset, bytes)| offset + bytes.len());
        ends.max().unwrap_or(0)
    }

    fn after_crash(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut sectors = Vec::new();
        for (offset, written) in &self.pending {
            let mut at = 0;
            while at < written.len() {
                // Sectors are aligned to the file, not to the write.
                let len = (SECTOR - (offset + at) % SECTOR).min(written.len() - at);
                sectors.push((offset + at, &written[at..at + len]));
                at += len;
            }
        }
        sectors.shuffle(rng);
        let chance = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        for (offset, sector) in sectors {
            if rng.random_bool(chance) {
                bytes.resize(bytes.len().max(offset + sector.len()), 0);
                bytes[offset..offset + sector.len()].copy_from_slice(sector);
            }
        }
        if rng.random_bool(0.25) {
            bytes.truncate(rng.random_range(self.kept..=bytes.len().max(self.kept)));
        }
        bytes
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let state = self.lock();
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(state.files[*file].now.clone())))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.change(|state| {
            state.files.push(Content::default());
            let file = state.files.len() - 1;
            state.names.insert(name.to_owned(), file);
            Ok(file)
        })?;
        let disk = self.clone();
        Ok(Box::new(Handle { disk, file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = *self.lock().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Box::new(Handle { disk, file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), file);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|state| {
            state.durable_names = state.names.clone();
            Ok(())
        })
    }
}

impl File for Handle {
    fn reserve(&self, _: u64) -> io::Result<()> {
        if self.disk.lock().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        // The write during which the power goes may have begun.
        let gone = self.disk.lock().fuse == Some(0);
        let half = std::mem::take(&mut self.disk.lock().half);
        let end = offset + bytes.len();
        let put = |state: &mut State, bytes: &[u8]| {
            let content = &mut state.files[self.file];
            let end = offset + bytes.len();
            content.now.resize(content.now.len().max(end), 0);
            content.now[offset..end].copy_from_slice(bytes);
            content.pending.push((offset, bytes.to_vec()));
        };
        if gone {
            put(&mut self.disk.lock(), bytes);
        }
        self.disk.change(|state| {
            if half {
                put(state, &bytes[..bytes.len() / 2]);
                return Err(io::ErrorKind::StorageFull.into());
            }
            if state.full && end > state.files[self.file].now.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            put(state, bytes);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(|state| {
            if std::mem::take(&mut state.sync_fails) {
                // What Linux does: the pages count as clean, whatever became of them.
                return Err(io::Error::other("the sync failed"));
            }
            let content = &mut state.files[self.file];
            content.durable = content.now.clone();
            content.kept = content.kept.max(content.end_of_writes());
            content.pending.clear();
            Ok(())
        })
    }
}
