//! How long a change takes from a peer's session to the kernel, sampled: a batch is followed through
//! the stages while not too many are under way, and costs one clock reading at each.
//! Always true: a sample passes a stage no sooner than everything that was received with it.
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use prometheus::{Histogram, HistogramOpts, HistogramVec};

use crate::{keyspace::Kind, limits::PROPAGATION_SAMPLES_MAX, types::ClusterName};

/// The stages after `received`, as the label says them.
const MESH: &str = "mesh";
const ENFORCED: &str = "enforced";

/// From a change that nobody waits for behind it, to a full list of a large peer.
const BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0, 60.0,
];

/// The histogram and the samples between mesh and datapath; clones are the same.
#[derive(Debug, Clone)]
pub struct Propagation {
    seconds: HistogramVec,
    queued: Arc<Mutex<VecDeque<(u64, Sample)>>>,
    /// Counts the samples under way by its clones.
    under_way: Arc<()>,
}

/// A batch that is followed.
#[derive(Debug, Clone)]
pub struct Sample(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    received: Instant,
    mesh: Histogram,
    enforced: Histogram,
    _under_way: Arc<()>,
}

impl PartialEq for Sample {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Sample {}

impl Default for Propagation {
    fn default() -> Self {
        let help = "Time from a batch's arrival in its session until the mesh has it (mesh) and \
                    until the kernel's maps do (enforced), of a sample of batches.";
        let options = HistogramOpts::new("tombolo_clustermesh_propagation_seconds", help);
        let labels = ["target_cluster", "kind", "stage"];
        let seconds = HistogramVec::new(options.buckets(BUCKETS.to_vec()), &labels);
        Self {
            seconds: seconds.expect("name and labels are constants of the right form"),
            queued: Arc::default(),
            under_way: Arc::default(),
        }
    }
}

impl Propagation {
    /// Makes the histogram part of `registry`.
    ///
    /// # Errors
    /// If it is registered already.
    pub fn register(&self, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.seconds.clone()))
    }

    /// Follows a batch that arrived just now; `None` if enough are under way.
    #[must_use]
    pub fn received(&self, cluster: &ClusterName, kind: Kind) -> Option<Sample> {
        if Arc::strong_count(&self.under_way) > PROPAGATION_SAMPLES_MAX {
            return None;
        }
        let stage = |stage| {
            let labels = [cluster.as_str(), kind.segment(), stage];
            self.seconds.with_label_values(&labels)
        };
        Some(Sample(Arc::new(Inner {
            received: Instant::now(),
            mesh: stage(MESH),
            enforced: stage(ENFORCED),
            _under_way: Arc::clone(&self.under_way),
        })))
    }

    /// The mesh has all of the batch; what followed from it ends before `end` in the queue of deltas.
    pub fn in_mesh(&self, sample: Sample, end: u64) {
        sample
            .0
            .mesh
            .observe(sample.0.received.elapsed().as_secs_f64());
        self.queued().push_back((end, sample));
    }

    /// The samples of which everything before `taken` left the queue of deltas.
    #[must_use]
    pub fn taken(&self, taken: u64) -> Vec<Sample> {
        let mut queued = self.queued();
        let passed = queued.iter().take_while(|(end, _)| *end <= taken).count();
        queued.drain(..passed).map(|(_, sample)| sample).collect()
    }

    /// A removed cluster has no series.
    pub fn forget(&self, cluster: &ClusterName) {
        for kind in Kind::ALL {
            for stage in [MESH, ENFORCED] {
                let labels = [cluster.as_str(), kind.segment(), stage];
                // An error says that there was none.
                drop(self.seconds.remove_label_values(&labels));
            }
        }
    }

    fn queued(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Sample)>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    /// The kernel's maps have all that followed from the batch.
    pub fn enforced(&self) {
        self.0
            .enforced
            .observe(self.0.received.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_pass_the_queue_in_order_and_are_bounded() {
        let (propagation, west) = (Propagation::default(), "west".parse().unwrap());
        let take = || propagation.received(&west, Kind::Ips);
        let (first, second) = (take().unwrap(), take().unwrap());
        propagation.in_mesh(first.clone(), 3);
        propagation.in_mesh(second.clone(), 5);
        assert!(propagation.taken(2).is_empty());
        assert_eq!(propagation.taken(4), std::slice::from_ref(&first));
        first.enforced();
        let count = |stage| {
            let series = propagation
                .seconds
                .with_label_values(&["west", "ip", stage]);
            series.get_sample_count()
        };
        assert_eq!((count(MESH), count(ENFORCED)), (2, 1));
        let more: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(more.len() + 2, PROPAGATION_SAMPLES_MAX);
        drop(more);
        assert!(take().is_some());
        propagation.forget(&west);
        // A sample that is still under way does not bring the series back.
        second.enforced();
        let registry = prometheus::Registry::new();
        propagation.register(&registry).unwrap();
        assert!(registry.gather().is_empty());
    }
}
