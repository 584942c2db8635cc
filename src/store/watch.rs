//! Watches: cursors into the shared history. A watcher holds no events of its own, so a slow one
//! costs nothing; once the history no longer reaches back to its cursor it is told so.
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use super::{Event, KeyRange, Shared, state::Batch};
use crate::limits;

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// First revision delivered, in the past or the future; 0 for the next one.
    pub start_revision: i64,
    /// Deliver what was there before, too.
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
    changes: tokio::sync::watch::Receiver<()>,
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
        let changes = shared.changes.subscribe();
        Self {
            shared,
            request,
            changes,
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
        loop {
            // Marked before reading, so a change in between wakes the wait below.
            self.changes.mark_unchanged();
            let (batches, revision) = self.read()?;
            let mut found = WatchBatch {
                revision: 0,
                events: Vec::new(),
            };
            let mut bytes = 0;
            for batch in &batches {
                self.collect(batch, &mut found.events, &mut bytes);
                self.next = self.next.max(batch.revision + 1);
                if found.events.len() >= limits::WATCH_BATCH_EVENTS
                    || bytes >= limits::WATCH_BATCH_BYTES
                {
                    break;
                }
            }
            self.position.0.store(self.next - 1, Ordering::Release);
            if !found.events.is_empty() {
                found.revision = self.next - 1;
                return Ok(found);
            }
            if self.next > revision {
                // The sender lives in `shared`, so this fails never.
                if self.changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else {
                // A long stretch of foreign changes must not hold the executor.
                tokio::task::consume_budget().await;
            }
        }
    }

    fn read(&self) -> Result<(Vec<Arc<Batch>>, i64), WatchError> {
        let state = self.shared.read();
        if self.next < state.compacted {
            return Err(WatchError::Compacted {
                compact_revision: state.compacted,
            });
        }
        if self.next > state.revision {
            return Ok((Vec::new(), state.revision));
        }
        let batches = state.batches(self.next, limits::WATCH_SCAN_REVISIONS);
        Ok((batches.cloned().collect(), state.revision))
    }

    fn collect(&self, batch: &Batch, events: &mut Vec<Event>, bytes: &mut usize) {
        for event in &batch.events {
            let unwanted = match event {
                Event::Put { .. } => self.request.no_put,
                Event::Delete { .. } => self.request.no_delete,
            };
            if unwanted || !self.request.range.contains(event.key()) {
                continue;
            }
            let mut event = event.clone();
            if !self.request.prev_kv {
                match &mut event {
                    Event::Put { prev, .. } | Event::Delete { prev, .. } => *prev = None,
                }
            }
            *bytes += event.len_bytes();
            events.push(event);
        }
    }
}
