//! The thread that owns the log: takes what is queued, makes it durable with one sync, does it,
//! answers. Snapshots are written beside it, on a thread of their own.
use std::{fs, io, thread::JoinHandle, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Command, Error, Response, log::Log};
use crate::{limits, store::Store};

/// A write that waits for its turn.
pub(super) struct Request {
    pub(super) command: Command,
    /// The command as it goes into the log.
    pub(super) bytes: Vec<u8>,
    pub(super) reply: oneshot::Sender<Result<Response, Error>>,
    /// Its share of the bytes that may wait.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// Does the writes of a [`super::Journal`]; without it they wait.
pub struct Runner {
    pub(super) store: Store,
    pub(super) log: Log,
    pub(super) queue: mpsc::Receiver<Request>,
    pub(super) health: watch::Sender<Option<Error>>,
    pub(super) snapshot: Option<JoinHandle<io::Result<u64>>>,
    /// Held for as long as the files may change.
    pub(super) _lock: fs::File,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Runner {
    /// Runs until `cancel` fires; what is queued then is still done. Blocks its thread.
    pub fn run(mut self, cancel: &CancellationToken) {
        let mut requests = Vec::new();
        while self.receive(&mut requests, cancel) {
            self.commit_all(&mut requests);
            self.care_for_snapshots();
        }
        self.queue.close();
        while let Ok(request) = self.queue.try_recv() {
            requests.push(request);
        }
        self.commit_all(&mut requests);
        self.finish();
    }

    /// Waits for requests; false once cancelled.
    fn receive(&mut self, requests: &mut Vec<Request>, cancel: &CancellationToken) -> bool {
        let received = self
            .queue
            .recv_many(requests, limits::JOURNAL_BATCH_COMMANDS);
        let received = futures::executor::block_on(cancel.run_until_cancelled(received));
        // Without senders there is nothing to wait for but the end.
        received.is_some_and(|count| count > 0)
    }

    fn commit_all(&mut self, requests: &mut Vec<Request>) {
        while !requests.is_empty() {
            let mut bytes = 0;
            let fits = requests.iter().take_while(|request| {
                bytes += request.bytes.len();
                bytes <= limits::JOURNAL_BATCH_BYTES
            });
            let count = fits.count().max(1);
            self.commit(requests.drain(..count).collect());
        }
    }

    /// One frame, one sync, then every effect in order.
    fn commit(&mut self, batch: Vec<Request>) {
        let commands = batch.iter().map(|request| &request.bytes[..]);
        let durable = self.log.append(self.store.revision(), commands);
        self.tell_health(durable.as_ref().err());
        let now = Instant::now();
        for request in batch {
            let answer = match &durable {
                Ok(()) => Ok(request.command.apply(&self.store, now)),
                Err(error) => Err(error.clone()),
            };
            // Who asked may have gone; what is in the log is done all the same.
            drop(request.reply.send(answer.and_then(|a| Ok(a?))));
        }
    }

    fn tell_health(&self, error: Option<&Error>) {
        self.health.send_if_modified(|health| {
            let changed = health.as_ref() != error;
            if changed {
                match error {
                    Some(error) => tracing::error!(%error, "Store takes no writes"),
                    None => tracing::info!("Store takes writes again"),
                }
                *health = error.cloned();
            }
            changed
        });
    }

    fn care_for_snapshots(&mut self) {
        if self.snapshot.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join_snapshot();
        }
        if self.snapshot.is_none() && self.log.is_long() {
            self.begin_snapshot();
        }
    }

    fn begin_snapshot(&mut self) {
        let begun = self.log.cut(&self.store).map(|cut| {
            let thread = std::thread::Builder::new().name("snapshot".to_owned());
            thread.spawn(move || cut.write())
        });
        match begun {
            Ok(Ok(thread)) => self.snapshot = Some(thread),
            Ok(Err(error)) => self.note_snapshot(Err(error)),
            Err(error) => self.note_snapshot(Err(io::Error::other(error))),
        }
    }

    fn join_snapshot(&mut self) {
        if let Some(thread) = self.snapshot.take() {
            let panicked = || Err(io::Error::other("the thread panicked"));
            let written = thread.join().unwrap_or_else(|_| panicked());
            self.note_snapshot(written);
        }
    }

    /// Without a snapshot the log only gets longer; the next one is tried when it has.
    fn note_snapshot(&mut self, written: io::Result<u64>) {
        match &written {
            Ok(bytes) => tracing::info!(count = bytes, "Store's snapshot written"),
            Err(error) => tracing::warn!(%error, "Store's snapshot not written, its log stays"),
        }
        self.log.snapshot_written(written.ok());
    }

    /// A clean stop leaves nothing to be done again, unless that takes too long.
    fn finish(&mut self) {
        self.join_snapshot();
        let small = self.store.len_bytes() <= limits::JOURNAL_FINAL_SNAPSHOT_BYTES_MAX;
        if small && self.log.is_worth_a_snapshot() {
            self.begin_snapshot();
            self.join_snapshot();
        }
    }
}
