//! What the sources of policies tell the datapath, and how they learn that the kernel follows.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{Histogram, HistogramOpts, HistogramVec};
use tokio::sync::watch;

use super::{Origin, Policy};

/// From an edit that touches one endpoint to one that rewrites a node with all its policies.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// A change of the policies of one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyEvent {
    /// The origin holds exactly these policies now.
    Set {
        /// Where from.
        origin: Origin,
        /// Its policies; at least one.
        policies: Vec<Policy>,
    },
    /// The origin is gone, and its policies with it.
    Removed {
        /// Where from.
        origin: Origin,
    },
    /// Behind events whose way to the kernel is followed.
    Mark(Mark),
    /// Everything that this source had at the start was sent; each source says so once.
    Synced,
}

/// Which of the two ways in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `--policy-dir`
    Files,
    /// The cluster store.
    Cluster,
}

impl Source {
    const fn label(self) -> &'static str {
        match self {
            Self::Files => "file",
            Self::Cluster => "cluster",
        }
    }
}

/// How long policies take to the kernel; clones are the same.
#[derive(Debug, Clone)]
pub struct Delay(HistogramVec);

impl Default for Delay {
    fn default() -> Self {
        let help = "Time from a policy change's arrival at this node until the kernel's maps follow. \
                    If it rises: tombolo status shows what the datapath can't write.";
        let options = HistogramOpts::new("tombolo_policy_implementation_delay", help);
        let seconds = HistogramVec::new(options.buckets(BUCKETS.to_vec()), &["source"]);
        Self(seconds.expect("name and labels are constants of the right form"))
    }
}

impl Delay {
    /// Makes the histogram part of `registry`.
    ///
    /// # Errors
    /// If it is registered already.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.0.clone()))
    }

    /// A mark behind events of `source` that came in at `came`. Once the kernel follows, `applied`
    /// is raised to its revision.
    #[must_use]
    pub fn mark(
        &self,
        source: Source,
        came: Instant,
        applied: Option<(watch::Sender<i64>, i64)>,
    ) -> Mark {
        Mark(Arc::new(Inner {
            came,
            delay: self.0.with_label_values(&[source.label()]),
            applied,
        }))
    }
}

/// Goes behind policy events through engine and enforcer; see [`PolicyEvent::Mark`].
#[derive(Debug, Clone)]
pub struct Mark(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    came: Instant,
    delay: Histogram,
    applied: Option<(watch::Sender<i64>, i64)>,
}

impl PartialEq for Mark {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Mark {}

impl Mark {
    /// The kernel's maps have all that followed from the events before it.
    pub fn enforced(&self) {
        let took: Duration = self.0.came.elapsed();
        self.0.delay.observe(took.as_secs_f64());
        if let Some((applied, revision)) = &self.0.applied {
            applied.send_if_modified(|old| {
                let rises = *old < *revision;
                *old = (*old).max(*revision);
                rises
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_never_goes_back() {
        let delay = Delay::default();
        let (applied, seen) = watch::channel(0);
        let mark = |revision| {
            let to = Some((applied.clone(), revision));
            delay.mark(Source::Cluster, Instant::now(), to)
        };
        let (first, second) = (mark(7), mark(9));
        second.enforced();
        assert_eq!(*seen.borrow(), 9);
        first.enforced();
        assert_eq!(*seen.borrow(), 9);
        let registry = prometheus::Registry::new();
        delay.register(&registry).unwrap();
        let count = registry.gather()[0].get_metric()[0]
            .get_histogram()
            .get_sample_count();
        assert_eq!(count, 2);
    }
}
