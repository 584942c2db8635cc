//! What is local, as one value, and the difference between two of them. Pure.
use std::collections::BTreeMap;

use super::{LocalEvent, LocalNode, LocalService, LocalWorkload, ServiceKey, WorkloadKey};

/// Everything local at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Nodes by name.
    pub nodes: BTreeMap<String, LocalNode>,
    /// Workloads by key.
    pub workloads: BTreeMap<WorkloadKey, LocalWorkload>,
    /// Services to be exported, by key.
    pub services: BTreeMap<ServiceKey, LocalService>,
}

impl Desired {
    /// The events that lead from `self` to `next`; none for what is equal.
    ///
    /// Workloads that are gone come before new ones, since a new one may take over an address or an
    /// interface; nodes come before the workloads on them and services last.
    #[must_use]
    pub fn diff(&self, next: &Self) -> Vec<LocalEvent> {
        let mut events = Vec::new();
        events.extend(
            upserts(&self.nodes, &next.nodes)
                .cloned()
                .map(LocalEvent::NodeUpsert),
        );
        events.extend(
            gone(&self.workloads, &next.workloads)
                .cloned()
                .map(LocalEvent::WorkloadDelete),
        );
        events.extend(
            upserts(&self.workloads, &next.workloads)
                .cloned()
                .map(LocalEvent::WorkloadUpsert),
        );
        events.extend(
            gone(&self.services, &next.services)
                .cloned()
                .map(LocalEvent::ServiceDelete),
        );
        events.extend(
            upserts(&self.services, &next.services)
                .cloned()
                .map(LocalEvent::ServiceUpsert),
        );
        events.extend(
            gone(&self.nodes, &next.nodes)
                .cloned()
                .map(LocalEvent::NodeDelete),
        );
        events
    }
}

fn upserts<'a, K: Ord, V: PartialEq>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a V> {
    to.iter()
        .filter(|(key, value)| from.get(key) != Some(value))
        .map(|(_, value)| value)
}

fn gone<'a, K: Ord, V>(
    from: &'a BTreeMap<K, V>,
    to: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    from.keys().filter(|key| !to.contains_key(key))
}
