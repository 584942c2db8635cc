//! Tasks with names, readiness, signals, and the queue between stages.
//!
//! Always true: every task of the process was started by [`Tasks`], so that shutdown knows what it
//! waits for and the first failure is the one reported.
//! Protocol: `Tasks::new`, many `spawn`, then `stop_on_signal` or a failure cancels the token, then
//! `finish` waits.
//! Absent on purpose: no restart of failed tasks; who can go on after an error handles it itself.
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

pub mod queue;

/// The process's tasks. Cheap to clone; all clones are the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: u64,
    running: BTreeMap<u64, &'static str>,
    failure: Option<Failure>,
}

/// How the first task that failed did so.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A task returned an error.
    #[error("task {name}: {error:#}")]
    Failed {
        /// The task.
        name: &'static str,
        /// What it returned, with its whole chain.
        error: anyhow::Error,
    },
    /// A task panicked.
    #[error("task {name} panicked: {message}")]
    Panicked {
        /// The task.
        name: &'static str,
        /// The panic's text.
        message: String,
    },
    /// The deadline of [`Tasks::finish`] passed.
    #[error("tasks still running at the deadline of shutdown: {}", names.join(", "))]
    Deadline {
        /// Which, in order of their start; at least one.
        names: Vec<&'static str>,
    },
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled once shutdown begins: by a signal, by [`Self::shutdown`] or by the first failure.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Begins shutdown. Idempotent.
    pub fn shutdown(&self) {
        self.token.cancel();
    }

    /// Starts `future` in a span with its name. An error or a panic is fatal: it is logged, kept as
    /// the failure unless there is one already, and begins shutdown.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let running = self.enter(name);
        let span = tracing::info_span!("task", task = name);
        let future = async move {
            let result = AssertUnwindSafe(future).catch_unwind().await;
            running.end(result);
        };
        self.tracker.spawn(future.instrument(span));
    }

    /// Runs `work` on a thread of its own, for kernel calls and for runtimes apart from the main
    /// one. `work` must return soon after the token is cancelled. Fails as [`Self::spawn`] does.
    ///
    /// # Errors
    /// If the thread can't be started.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn_thread(
        &self,
        name: &'static str,
        work: impl FnOnce(CancellationToken) -> anyhow::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let running = self.enter(name);
        let token = self.token();
        let (done, wait) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let span = tracing::info_span!("task", task = name).entered();
                let result = std::panic::catch_unwind(AssertUnwindSafe(|| work(token)));
                running.end(result);
                drop(span);
                drop(done);
            })?;
        self.tracker.spawn(wait.map(drop));
        Ok(())
    }

    /// Waits until all tasks have ended, at most `deadline`. Call it after the token was cancelled,
    /// else it waits for tasks that have no reason to end.
    ///
    /// # Errors
    /// The first failure of any task; without one, the tasks that outlived the deadline.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Failure> {
        self.tracker.close();
        let in_time = tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok();
        let mut shared = lock(&self.shared);
        if let Some(failure) = shared.failure.take() {
            return Err(failure);
        }
        if in_time {
            return Ok(());
        }
        Err(Failure::Deadline {
            names: shared.running.values().copied().collect(),
        })
    }

    fn enter(&self, name: &'static str) -> Running {
        let mut shared = lock(&self.shared);
        let id = shared.next;
        shared.next += 1;
        shared.running.insert(id, name);
        drop(shared);
        Running {
            id,
            name,
            tasks: self.clone(),
        }
    }
}

/// One entry of the set of running tasks; leaves it when dropped, also if its task was aborted.
struct Running {
    id: u64,
    name: &'static str,
    tasks: Tasks,
}

impl Running {
    fn end(self, result: std::thread::Result<anyhow::Result<()>>) {
        let name = self.name;
        let failure = match result {
            Ok(Ok(())) if self.tasks.token.is_cancelled() => return tracing::debug!("task ended"),
            Ok(Ok(())) => return tracing::info!("task ended"),
            Ok(Err(error)) => Failure::Failed { name, error },
            Err(panic) => Failure::Panicked {
                name,
                message: panic_text(panic.as_ref()),
            },
        };
        tracing::error!(error = %failure, "Task failed, shutting down");
        lock(&self.tasks.shared).failure.get_or_insert(failure);
        self.tasks.shutdown();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.tasks.shared).running.remove(&self.id);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "?".to_owned())
}

/// Poisoning means that a holder panicked between two plain assignments; the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for SIGTERM or SIGINT, then cancels `token`; returns also when someone else cancels it.
/// Cancel safe.
///
/// # Errors
/// If the handlers can't be installed.
pub async fn stop_on_signal(token: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = token.cancelled() => return Ok(()),
    };
    tracing::info!(signal = name, "Shutting down");
    token.cancel();
    Ok(())
}

/// What must have happened before the process calls itself ready. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    names: BTreeMap<u64, String>,
}

impl Readiness {
    /// Nothing pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The process is not ready until the token is dropped. Take all tokens before the admin
    /// surface is served, else it may call itself ready for a moment.
    pub fn pending(&self, name: impl Into<String>) -> ReadyToken {
        let mut pending = lock(&self.0);
        let id = pending.next;
        pending.next += 1;
        pending.names.insert(id, name.into());
        drop(pending);
        ReadyToken {
            id,
            readiness: self.clone(),
        }
    }

    /// What is still pending, in the order of the tokens' making; empty when ready.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        lock(&self.0).names.values().cloned().collect()
    }
}

/// One condition of readiness; fulfilled when dropped.
#[must_use = "dropping the token says that the condition is fulfilled"]
pub struct ReadyToken {
    id: u64,
    readiness: Readiness,
}

impl fmt::Debug for ReadyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadyToken").field(&self.id).finish()
    }
}

impl Drop for ReadyToken {
    fn drop(&mut self) {
        lock(&self.readiness.0).names.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failure, Readiness, Tasks};

    #[test]
    fn ready_when_the_last_token_is_dropped() {
        let readiness = Readiness::new();
        let first = readiness.pending("peer/west");
        let second = readiness.pending("enforcer");
        assert_eq!(readiness.waiting(), ["peer/west", "enforcer"]);
        drop(first);
        assert_eq!(readiness.waiting(), ["enforcer"]);
        drop(second);
        assert!(readiness.waiting().is_empty());
    }

    #[tokio::test]
    async fn first_failure_cancels_all_and_is_reported() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("waits", async move {
            token.cancelled().await;
            anyhow::bail!("second")
        });
        tasks.spawn("fails", async { anyhow::bail!("first") });
        let failure = tasks.finish(Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(failure.to_string(), "task fails: first");
    }

    #[tokio::test]
    async fn panics_and_threads_are_reported_by_name() {
        let tasks = Tasks::new();
        tasks
            .spawn_thread("thread", |token| {
                assert!(token.is_cancelled(), "not yet");
                Ok(())
            })
            .unwrap();
        let failure = tasks.finish(Duration::from_secs(10)).await.unwrap_err();
        assert!(
            matches!(failure, Failure::Panicked { name: "thread", message } if message == "not yet")
        );
        assert!(tasks.token().is_cancelled());
    }

    #[tokio::test]
    async fn deadline_names_what_still_runs() {
        let tasks = Tasks::new();
        tasks.spawn("stuck", std::future::pending());
        tasks.spawn("done", async { Ok(()) });
        let failure = tasks.finish(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(failure, Failure::Deadline { names } if names == ["stuck"]));
    }
}
