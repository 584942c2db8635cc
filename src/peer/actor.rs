//! One peer's life: sessions with backoff while its file is there, withdrawal when it goes.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    MemberEvent, SyncedKinds,
    config_file::ConfigFile,
    session::{Context, Error, Told},
};
use crate::limits;

/// What the registry wants; the last word counts.
#[derive(Debug, Clone)]
pub(super) enum Desired {
    /// Be connected as this file says.
    Running(Arc<(PathBuf, ConfigFile)>),
    /// Be withdrawn.
    Removed,
}

/// Runs until the registry drops its end or the mesh is gone.
pub(super) async fn run(context: Context, mut desired: watch::Receiver<Desired>) {
    let mut told = Told::default();
    loop {
        let wanted = desired.borrow_and_update().clone();
        match wanted {
            Desired::Removed => {
                remove(&context, &mut told).await;
                if desired.changed().await.is_err() {
                    return;
                }
            }
            Desired::Running(file) => {
                let (path, file) = &*file;
                context.shared.update(&context.name, |status| {
                    path.clone_into(&mut status.config_path)
                });
                tokio::select! {
                    biased;
                    changed = desired.changed() => {
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = sessions(&context, &mut told, path, file) => return,
                }
                disconnected(&context, |_| {});
            }
        }
    }
}

/// Withdraws everything at once; entries leave the mesh whether or not the peer is alive.
async fn remove(context: &Context, told: &mut Told) {
    let name = context.name.clone();
    if let Some(trust) = &context.options.trust {
        trust.remove_peer(&name);
    }
    // Also without an announced id: the mesh may hold entries loaded from disk.
    *told = Told::default();
    if context
        .sink
        .send(MemberEvent::Removed { name: name.clone() })
        .await
        .is_err()
    {
        tracing::debug!(clusterName = %name, "mesh is gone");
    }
    // Only now may another peer take the id.
    context.shared.remove(&name);
    tracing::info!(clusterName = %name, "Remote cluster disconnected");
}

/// Session after session; ends only if the mesh is gone.
async fn sessions(context: &Context, told: &mut Told, path: &Path, file: &ConfigFile) {
    let mut backoff = Backoff::default();
    let mut said = None;
    loop {
        let mut accepted = false;
        // On the heap: a session's future is large and lives long.
        let result = Box::pin(context.session(told, path, file, || accepted = true)).await;
        let Err(error) = result;
        if error.is_closed() {
            return;
        }
        if accepted {
            backoff = Backoff::default();
            said = None;
        }
        let delay = if error.is_missing_file() {
            missing(context, &error, &mut said);
            limits::PEER_FILES_WAIT
        } else {
            failed(context, path, &error, accepted, &mut said);
            let random = rand::random::<f64>();
            if error.is_denied() {
                backoff.longest(random)
            } else {
                backoff.next(random)
            }
        };
        tokio::time::sleep(delay).await;
    }
}

/// Tells once that files are waited for; that is no failure.
fn missing(context: &Context, error: &Error, said: &mut Option<String>) {
    let text = chain(error);
    disconnected(context, |status| {
        status.status = format!("Waiting for all etcd configuration files to be available: {text}");
    });
    if said.as_ref() != Some(&text) {
        tracing::info!(
            clusterName = %context.name,
            error = text,
            "Waiting for all etcd configuration files to be available"
        );
        *said = Some(text);
    }
}

/// Counts a failure; logs it only if it is another one than the last.
fn failed(
    context: &Context,
    path: &Path,
    error: &Error,
    accepted: bool,
    said: &mut Option<String>,
) {
    let text = chain(error);
    let now = (context.options.clock)();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut connected = false;
    disconnected(context, |status| {
        connected = status.connected;
        status.num_failures = status.num_failures.saturating_add(1);
        status.last_failure = Some(now);
        status.status.clone_from(&text);
    });
    if said.as_ref() == Some(&text) {
        return;
    }
    let (name, config) = (&context.name, path.display());
    if accepted {
        tracing::warn!(clusterName = %name, config = %config, error = text, "Error observed on etcd connection, reconnecting etcd");
    } else if connected {
        tracing::warn!(clusterName = %name, config = %config, error = text, "Connection to remote cluster failed");
    } else {
        tracing::warn!(clusterName = %name, config = %config, error = text, "Unable to establish etcd connection to remote cluster");
    }
    *said = Some(text);
}

/// Entries stay; only what is true of a connection ends.
fn disconnected(context: &Context, more: impl FnOnce(&mut super::PeerStatus)) {
    context.shared.update(&context.name, |status| {
        more(status);
        status.connected = false;
        status.ready = false;
        status.synced = SyncedKinds::default();
    });
}

/// An error and its sources as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// Doubling delays with jitter in the upper half, so that peers of a failed cluster spread out.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay; `random` lies in 0..1.
    fn next(&mut self, random: f64) -> Duration {
        let (first, longest) = limits::PEER_BACKOFF;
        let full = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures = self.failures.saturating_add(1);
        jitter(full, random)
    }

    /// The longest delay, for what will hardly be better soon.
    fn longest(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        jitter(limits::PEER_BACKOFF.1, random)
    }
}

fn jitter(full: Duration, random: f64) -> Duration {
    full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound_and_stays_in_the_upper_half() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        backoff.failures = u32::MAX;
        assert_eq!(backoff.next(0.0).as_millis(), 5000);
        assert_eq!(Backoff::default().longest(0.0).as_millis(), 5000);
    }
}
