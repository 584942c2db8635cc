//! Watches: cursors into the shared history. A watcher holds no events of its own, so a slow one
//! costs nothing; once the history no longer reaches back to its cursor it is told so.
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use super::{Change, Event, KeyRange, Shared};
use crate::limits;

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// First revision delivered, in the past or the future; 0 for the next one.
    pub start_revision: i64,
    /// Deliver what was there before, too; as in etcd, not for a revision that is compacted up to.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
}

/// Changes in order of revision; a revision is never split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Every change of the watched keys up to this revision was delivered.
    pub revision: i64,
    /// Never empty.
    pub events: Vec<Event>,
}

/// The same with keys and values still encoded, for those who pass them on.
#[derive(Debug, Clone)]
pub struct WatchChanges {
    /// Every change of the watched keys up to this revision was delivered.
    pub revision: i64,
    /// Never empty.
    pub changes: Vec<Change>,
}

/// Why a watch ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The reader must list again.
    #[error("watch from a revision below {compact_revision}, which is compacted")]
    Compacted {
        /// The oldest revision a watch can start from.
        compact_revision: i64,
    },
}

/// One watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    request: WatchRequest,
    wake: tokio::sync::watch::Receiver<()>,
    next: i64,
    position: Position,
}

/// The revision up to which a watcher delivered everything; readable while it waits.
#[derive(Debug, Clone)]
pub struct Position(Arc<AtomicI64>);

impl Position {
    /// The revision.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Watcher {
    /// `revision` is the store's as read under the lock, with `next` not compacted then.
    pub(super) fn new(shared: Arc<Shared>, request: WatchRequest, next: i64) -> Self {
        let wake = shared.changes.subscribe();
        Self {
            shared,
            request,
            wake,
            next,
            position: Position(Arc::new((next - 1).into())),
        }
    }

    /// A handle that tells how far the watch got.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position.clone()
    }

    /// The next changes. Cancel safe: nothing is taken until it returns.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when the watcher fell behind the history; it stays so.
    pub async fn recv(&mut self) -> Result<WatchBatch, WatchError> {
        let WatchChanges { revision, changes } = self.recv_changes().await?;
        let events = changes.iter().map(Event::from).collect();
        Ok(WatchBatch { revision, events })
    }

    /// As [`Watcher::recv`]; cancel safe in the same way.
    ///
    /// # Errors
    /// As [`Watcher::recv`].
    pub async fn recv_changes(&mut self) -> Result<WatchChanges, WatchError> {
        loop {
            // Marked before reading, so a change in between wakes the wait below.
            self.wake.mark_unchanged();
            let (changes, caught_up) = self.read()?;
            self.position.0.store(self.next - 1, Ordering::Release);
            if !changes.is_empty() {
                let revision = self.next - 1;
                return Ok(WatchChanges { revision, changes });
            }
            if caught_up {
                // The sender lives in `shared`, so this fails never.
                if self.wake.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else {
                // A long stretch of foreign changes must not hold the executor.
                tokio::task::consume_budget().await;
            }
        }
    }

    /// Takes whole revisions until a message is full or many were looked at. The second value is
    /// true if none are left.
    fn read(&mut self) -> Result<(Vec<Change>, bool), WatchError> {
        let state = self.shared.read();
        if self.next < state.compacted {
            return Err(WatchError::Compacted {
                compact_revision: state.compacted,
            });
        }
        let mut found = Vec::new();
        let (mut bytes, mut revisions, mut last) = (0, 0, 0);
        for change in state.changes(self.next) {
            let revision = change.record.mod_revision();
            if revision != last {
                if found.len() >= limits::WATCH_BATCH_EVENTS
                    || bytes >= limits::WATCH_BATCH_BYTES
                    || revisions == limits::WATCH_SCAN_REVISIONS
                {
                    break;
                }
                (last, revisions) = (revision, revisions + 1);
            }
            if let Some(change) = self.wanted(change, state.compacted) {
                bytes += change.len_bytes();
                found.push(change);
            }
        }
        self.next = self.next.max(last + 1);
        Ok((found, self.next > state.revision))
    }

    fn wanted(&self, change: &Change, compacted: i64) -> Option<Change> {
        let unwanted = if change.record.is_tombstone() {
            self.request.no_delete
        } else {
            self.request.no_put
        };
        if unwanted || !self.request.range.contains(change.record.key()) {
            return None;
        }
        let with_prev = self.request.prev_kv && change.record.mod_revision() > compacted;
        let prev = change.prev.as_ref().filter(|_| with_prev);
        Some(Change {
            record: change.record.clone(),
            prev: prev.cloned(),
        })
    }
}
