//! How writes reach a store, and how a store outlives its process.
//!
//! [`Writer`] is what `serve` and the own process write through. In memory a write takes effect at
//! once. A [`Journal`] first appends it to a log: its [`Runner`] takes what is queued, appends it as
//! one frame, syncs once, does it in order, and answers. The log holds commands, so doing them again
//! leads to the same store. Snapshots of the whole store keep the log short.
//!
//! Always true: nothing is visible to readers or watchers before it is durable; after a crash the
//! store is what every answered write, and perhaps some that were not, lead to, each whole; a
//! failed write changed nothing; damaged files are an error and never an emptier store.
//! A log of our own, since the keys and their order are in memory anyway: of an embedded store only
//! its log would be of use, and redb, whose trees are copied on write, has none. Ours writes one
//! frame and syncs once per batch, and the crash tests put their own disk below it.
use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub use self::{
    backup::{Summary, backup, check, restore},
    command::{Command, Response},
    recover::OpenError,
    run::Runner,
};
use self::{
    log::Settings,
    recover::{Recovered, recover},
    run::Request,
    storage::Directory,
};
use crate::{
    limits,
    store::{
        self, DeleteRequest, DeleteResponse, PutRequest, PutResponse, Store, Txn, TxnOp,
        TxnResponse,
    },
};

mod backup;
mod codec;
mod command;
mod format;
mod log;
#[cfg(test)]
mod proptests;
mod recover;
mod run;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;

/// The writing end of a durable store. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Journal {
    store: Store,
    queue: mpsc::Sender<Request>,
    /// Bytes that may wait.
    budget: Arc<Semaphore>,
    health: watch::Receiver<Option<Error>>,
}

/// A store with the way its writes take. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub enum Writer {
    /// In memory: a write takes effect at once and is lost with the process.
    Memory(Store),
    /// Durable: a write takes effect once it is on the disk.
    Durable(Journal),
}

/// Why a write was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The store refuses it.
    #[error(transparent)]
    Refused(#[from] store::Error),
    /// The disk is full; the next write succeeds once it is not.
    #[error("write to the store's log: the disk of --state-dir is full; make room on it")]
    NoSpace,
    /// The disk failed in a way that leaves unknown what it holds. The write may be there after a
    /// restart, which is the only way out.
    #[error("write to the store's log: {0}; check the disk and restart the agent")]
    Failed(Arc<str>),
    /// The process ends. The write may have been done.
    #[error("write to the store's log: the agent is stopping")]
    Stopped,
}

/// Opens the store in `directory`, which is made if it is missing, and locks it until the
/// [`Runner`] is dropped. At most `history_max` events are kept; every lease has its full time to
/// live from `now`.
///
/// # Errors
/// [`OpenError`]; nothing was changed then.
pub fn open(
    directory: &Path,
    history_max: usize,
    now: Instant,
) -> Result<(Journal, Runner), OpenError> {
    let lock = lock(directory)?;
    let storage = Arc::new(Directory(directory.to_owned()));
    let id = rand::random::<u64>().max(1);
    let recovered = recover(storage, Settings::new(history_max), id, now)?;
    if let Some(torn) = &recovered.torn {
        tracing::warn!(
            file = torn.name,
            offset = torn.offset,
            bytes = torn.bytes,
            "Store's log ended in a write that was not complete; it is cut off"
        );
    }
    tracing::info!(
        revision = recovered.store.revision(),
        count = recovered.store.len(),
        frames = recovered.frames,
        "Store opened"
    );
    Ok(start(recovered, lock))
}

fn start(recovered: Recovered, lock: fs::File) -> (Journal, Runner) {
    let Recovered { store, log, .. } = recovered;
    let (sender, queue) = mpsc::channel(limits::JOURNAL_QUEUE_COMMANDS);
    let (health, healthy) = watch::channel(None);
    let journal = Journal {
        store: store.clone(),
        queue: sender,
        budget: Arc::new(Semaphore::new(limits::JOURNAL_QUEUE_BYTES)),
        health: healthy,
    };
    let runner = Runner {
        store,
        log,
        queue,
        health,
        snapshot: None,
        _lock: lock,
    };
    (journal, runner)
}

/// Makes the directory, durably, and sees to it that nobody else has it open.
fn lock(directory: &Path) -> Result<fs::File, OpenError> {
    if !directory.is_dir() {
        let mut builder = fs::DirBuilder::new();
        let parent = directory.parent().unwrap_or_else(|| Path::new("/"));
        builder
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| fs::File::open(parent)?.sync_all())
            .map_err(OpenError::Directory)?;
    }
    let lock = fs::File::create(directory.join("lock")).map_err(OpenError::Lock)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(fs::TryLockError::Error(error)) => Err(OpenError::Lock(error)),
    }
}

impl Journal {
    /// Why the last write failed on the disk; `None` while all is well.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<Error>> {
        self.health.clone()
    }

    async fn submit(&self, command: Command) -> Result<Response, Error> {
        let mut bytes = Vec::new();
        codec::put_command(&mut bytes, &command);
        let share = bytes.len().min(limits::JOURNAL_QUEUE_BYTES);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget).acquire_many_owned(share).await;
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            bytes,
            reply,
            _permit: budget.or(Err(Error::Stopped))?,
        };
        let queued = self.queue.send(request).await;
        queued.or(Err(Error::Stopped))?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

impl From<Journal> for Writer {
    fn from(journal: Journal) -> Self {
        Self::Durable(journal)
    }
}

impl From<Store> for Writer {
    fn from(store: Store) -> Self {
        Self::Memory(store)
    }
}

impl Writer {
    /// The store, to read from. Writes that go to it directly are in memory only.
    #[must_use]
    pub const fn store(&self) -> &Store {
        match self {
            Self::Memory(store) => store,
            Self::Durable(journal) => &journal.store,
        }
    }

    /// Writes one key.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::put_with`].
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, Error> {
        match self.submit(Command::Put(request)).await? {
            Response::Put(response) => Ok(response),
            other => unreachable!("a put answered {other:?}"),
        }
    }

    /// Deletes keys in one revision.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::delete_range`].
    pub async fn delete(&self, request: DeleteRequest) -> Result<DeleteResponse, Error> {
        match self.submit(Command::Delete(request)).await? {
            Response::Delete(response) => Ok(response),
            other => unreachable!("a deletion answered {other:?}"),
        }
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::txn`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        if !writes(&txn) {
            // What the store holds is durable: there is nothing to wait for.
            return Ok(self.store().txn(&txn)?);
        }
        match self.submit(Command::Txn(txn)).await? {
            Response::Txn(response) => Ok(response),
            other => unreachable!("a transaction answered {other:?}"),
        }
    }

    /// Forgets history below `revision`.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::compact`].
    pub async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.submit(Command::Compact(revision)).await.map(drop)
    }

    /// Creates a lease; id 0 means any free id, which is chosen here. Returns the id.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::lease_grant`].
    pub async fn lease_grant(&self, id: i64, ttl: Duration) -> Result<i64, Error> {
        loop {
            let chosen = if id == 0 { any_lease_id() } else { id };
            let command = Command::LeaseGrant { id: chosen, ttl };
            match self.submit(command).await {
                Ok(_) => return Ok(chosen),
                Err(Error::Refused(store::Error::LeaseExists { .. })) if id == 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As the journal's, and [`Error::Refused`] as [`Store::lease_revoke`].
    pub async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        self.submit(Command::LeaseRevoke(id)).await.map(drop)
    }

    /// Ends all leases whose time is over at `now`; returns how many. One that was renewed
    /// or revoked meanwhile can't be among them: past its deadline nobody renews a lease.
    ///
    /// # Errors
    /// The first failure that is not a lease already gone; the rest is tried all the same.
    pub async fn expire(&self, now: Instant) -> Result<usize, Error> {
        let due = self.store().leases_due(now);
        let revoked = futures::future::join_all(due.into_iter().map(|id| self.lease_revoke(id)));
        let mut ended = 0;
        let mut failed = None;
        for result in revoked.await {
            match result {
                Ok(()) => ended += 1,
                Err(Error::Refused(store::Error::LeaseNotFound { .. })) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(ended), Err)
    }

    /// Not cancel safe: a dropped call may still take effect.
    async fn submit(&self, command: Command) -> Result<Response, Error> {
        match self {
            Self::Memory(store) => Ok(command.apply(store, Instant::now())?),
            Self::Durable(journal) => journal.submit(command).await,
        }
    }
}

/// Whether a step of any branch could change something.
fn writes(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Range(_) => false,
        TxnOp::Put(_) | TxnOp::Delete(_) => true,
        TxnOp::Txn(inner) => writes(inner),
    })
}

/// Etcd's ids are positive as well; 63 random bits meet a taken one hardly ever.
fn any_lease_id() -> i64 {
    (rand::random::<i64>() & i64::MAX).max(1)
}
