//! Makes the kernel hold what it should: changes in, ordered map writes out.
//!
//! Always true: a batch is written in the order of `write`, so that no packet is let in that
//! neither the old nor the new state allows, none dropped that both allow, and the epoch moves last.
//! What a former process left in the kernel stays until its cluster (for endpoints: the source) said
//! that everything known was sent; identities of prefixes stay until the policy engine gives them
//! back.
//! Protocol: `open` once, then `apply` batches and `tick`; both are idempotent, and what failed is
//! tried again. Absent on purpose: threads and clocks; `enforcer::run` has them.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub use self::change::{Change, Status};
use self::{barrier::Barrier, levels::Levels};
use super::{
    Options, abi,
    datapath::{Datapath, Error, Observed},
};
use crate::{
    mesh::Sample,
    policy::{MapDelta, Mark, PolicyEntry, PolicyKey},
    types::{EndpointEvent, EndpointId, IdentityId, IpPrefix, LocalEndpoint, MaxClusters},
};

/// Bits of an identity that means the same on every node; above them is its scope.
const IDENTITY_BITS: u32 = 24;

/// The state machine; see the module.
#[derive(Debug)]
pub struct Reconciler<D> {
    datapath: D,
    max_clusters: MaxClusters,
    /// What the kernel holds: observed at the start, then every write that succeeded.
    kernel: Observed,
    /// Writes that are owed.
    ipcache: HashMap<IpPrefix, Option<abi::IpcacheValue>>,
    policy: HashMap<PolicyKey, Option<PolicyEntry>>,
    cidrs: HashMap<IpPrefix, Option<IdentityId>>,
    touched: HashSet<EndpointId>,
    bump: bool,
    /// What the flags of the config row should be.
    switches: u32,
    /// Which levels of the policy map have entries.
    levels: Levels,
    /// Not confirmed since the start, by cluster number; 0 for what belongs to no cluster.
    restored_ipcache: HashMap<u32, HashSet<IpPrefix>>,
    restored_policy: HashMap<u32, HashSet<PolicyKey>>,
    restored_endpoints: HashSet<EndpointId>,
    endpoints: HashMap<EndpointId, Arc<LocalEndpoint>>,
    /// Modes of endpoints; kept from the kernel until the policy engine says otherwise.
    flags: HashMap<EndpointId, u32>,
    /// Batches whose changes came before, and are perhaps not written yet.
    sampled: Vec<Sample>,
    /// The same for policies.
    marks: Vec<Mark>,
    status: Status,
}

impl<D: Datapath> Reconciler<D> {
    /// Reads the kernel's maps and takes over its links. Nothing is taken away here.
    ///
    /// # Errors
    /// If the maps or pins cannot be read.
    pub fn open(mut datapath: D, options: &Options) -> Result<Self, Error> {
        let kernel = datapath.observe()?;
        let flag = |on, flag| if on { flag } else { 0 };
        let mut reconciler = Self {
            datapath,
            max_clusters: options.max_clusters,
            levels: Levels::of(kernel.policy.keys()),
            kernel,
            ipcache: HashMap::new(),
            policy: HashMap::new(),
            cidrs: HashMap::new(),
            touched: HashSet::new(),
            // The former process may have died between a revocation and its epoch.
            bump: true,
            switches: flag(options.audit, abi::CONFIG_AUDIT)
                | flag(options.allow_localhost, abi::CONFIG_ALLOW_LOCALHOST),
            restored_ipcache: HashMap::new(),
            restored_policy: HashMap::new(),
            restored_endpoints: HashSet::new(),
            endpoints: HashMap::new(),
            flags: HashMap::new(),
            sampled: Vec::new(),
            marks: Vec::new(),
            status: Status::default(),
        };
        for endpoint in reconciler.kernel.endpoints.values() {
            reconciler
                .flags
                .insert(EndpointId(endpoint.endpoint), endpoint.flags);
        }
        reconciler.mark_restored();
        Ok(reconciler)
    }

    /// The identities of prefixes that the kernel holds: the policy engine must go on with them.
    #[must_use]
    pub fn cidrs(&self) -> Vec<(IpPrefix, IdentityId)> {
        let held = self.kernel.cidrs.iter();
        held.map(|(prefix, identity)| (*prefix, *identity))
            .collect()
    }

    /// Applies a batch, together with whatever is still owed. Where the policy engine's order counts
    /// for more than one kind of map, what came before is written first.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut barrier = Barrier::default();
        for change in changes {
            if barrier.stands_before(&change) {
                self.write();
            }
            self.take(change);
        }
        self.sweep_policy();
        self.write();
        self.tell_enforced();
    }

    /// To be called now and then: tries again what failed, and looks for lost interfaces.
    pub fn tick(&mut self) {
        self.touched.extend(self.status.problems.keys().copied());
        self.collect_interfaces();
        self.write();
        self.tell_enforced();
    }

    fn tell_enforced(&mut self) {
        if self.ipcache.is_empty() && self.policy.is_empty() && self.cidrs.is_empty() {
            self.sampled.drain(..).for_each(|sample| sample.enforced());
            self.marks.drain(..).for_each(|mark| mark.enforced());
        }
    }

    /// Reads the maps back and owes whatever differs from what they should hold.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn verify(&mut self) -> Result<(), Error> {
        let found = self.datapath.observe()?;
        let expected = std::mem::replace(&mut self.kernel, found);
        self.levels = Levels::of(self.kernel.policy.keys());
        owe(&mut self.ipcache, &expected.ipcache, &self.kernel.ipcache);
        owe(&mut self.cidrs, &expected.cidrs, &self.kernel.cidrs);
        owe(&mut self.policy, &expected.policy, &self.kernel.policy);
        self.touched.extend(self.endpoints.keys().copied());
        self.touched.extend(
            self.kernel
                .endpoints
                .values()
                .map(|e| EndpointId(e.endpoint)),
        );
        self.write();
        Ok(())
    }

    /// As of the last call.
    #[must_use]
    pub const fn status(&self) -> &Status {
        &self.status
    }

    /// True if `tick` has something to try again.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.pending() > 0 || !self.status.problems.is_empty()
    }

    fn pending(&self) -> usize {
        self.ipcache.len()
            + self.policy.len()
            + self.cidrs.len()
            + self.touched.len()
            + usize::from(self.bump || self.kernel.config.flags != self.switches)
    }

    /// 0 for identities that mean the same in every cluster, or something on this node only.
    const fn cluster_of(&self, key: &PolicyKey) -> u32 {
        if key.identity.is_reserved() || key.identity.0 >> IDENTITY_BITS != 0 {
            0
        } else {
            key.identity.0 >> self.max_clusters.shift()
        }
    }

    fn mark_restored(&mut self) {
        for (prefix, value) in &self.kernel.ipcache {
            let of_cluster = self
                .restored_ipcache
                .entry(u32::from(value.cluster))
                .or_default();
            of_cluster.insert(*prefix);
        }
        for key in self.kernel.policy.keys() {
            self.restored_policy
                .entry(self.cluster_of(key))
                .or_default()
                .insert(*key);
        }
        self.restored_endpoints = self
            .kernel
            .endpoints
            .values()
            .map(|e| EndpointId(e.endpoint))
            .collect();
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Map(MapDelta::Entry { key, value }) => {
                let cluster = self.cluster_of(&key);
                confirm(&mut self.restored_policy, cluster, &key);
                self.policy.insert(key, value);
            }
            Change::Map(MapDelta::Cidr { prefix, identity }) => {
                self.cidrs.insert(prefix, identity);
            }
            Change::Map(MapDelta::Endpoint { endpoint, mode }) => {
                self.flags.insert(endpoint, abi::mode_flags(&mode));
                self.touched.insert(endpoint);
            }
            Change::Reports { verdicts, traces } => {
                for (on, flag) in [
                    (verdicts, abi::CONFIG_REPORT_VERDICTS),
                    (traces, abi::CONFIG_REPORT_TRACES),
                ] {
                    self.switches = if on {
                        self.switches | flag
                    } else {
                        self.switches & !flag
                    };
                }
            }
            Change::Ip { prefix, target } => {
                if let Some(old) = self.kernel.ipcache.get(&prefix) {
                    confirm(&mut self.restored_ipcache, u32::from(old.cluster), &prefix);
                }
                let value = target.map(|target| abi::IpcacheValue {
                    identity: target.identity.0,
                    // Cluster ids end at 511.
                    cluster: u16::try_from(target.cluster.get()).unwrap_or(u16::MAX),
                    flags: 0,
                });
                self.ipcache.insert(prefix, value);
            }
            Change::Endpoint(EndpointEvent::Upsert(local)) => {
                self.restored_endpoints.remove(&local.id);
                self.touched.insert(local.id);
                self.endpoints.insert(local.id, local);
            }
            Change::Endpoint(EndpointEvent::Delete(id)) => self.forget(id),
            Change::Endpoint(EndpointEvent::Synced) => {
                self.status.endpoints_synced = true;
                for id in std::mem::take(&mut self.restored_endpoints) {
                    self.endpoints.remove(&id);
                    self.forget(id);
                }
            }
            Change::Synced { cluster } => {
                self.status.clusters_synced.insert(cluster.get());
                self.sweep_ipcache(cluster.get());
            }
            Change::RemovedCluster { cluster } => {
                self.sweep_ipcache(cluster.get());
                self.sweep_policy_of(cluster.get());
                self.status.clusters_synced.remove(&cluster.get());
            }
            Change::Members(members) => {
                let gone =
                    |cluster: &u32| *cluster != 0 && !members.iter().any(|m| m.get() == *cluster);
                let clusters: HashSet<u32> = self.restored_ipcache.keys().copied().collect();
                clusters
                    .into_iter()
                    .filter(gone)
                    .for_each(|cluster| self.sweep_ipcache(cluster));
                let clusters: HashSet<u32> = self.restored_policy.keys().copied().collect();
                clusters
                    .into_iter()
                    .filter(gone)
                    .for_each(|cluster| self.sweep_policy_of(cluster));
            }
            Change::Sampled(sample) => self.sampled.push(sample),
            Change::Mark(mark) => self.marks.push(mark),
            Change::InterfacesChanged => {
                // An index may have been given out again: whatever is attached is attached anew.
                self.kernel.links.clear();
                self.touched.extend(self.endpoints.keys().copied());
                self.collect_interfaces();
            }
        }
    }

    fn forget(&mut self, id: EndpointId) {
        self.endpoints.remove(&id);
        self.restored_endpoints.remove(&id);
        self.flags.remove(&id);
        self.touched.insert(id);
        self.policy.retain(|key, _| key.endpoint != id);
        let first = PolicyKey {
            endpoint: id,
            identity: IdentityId::UNKNOWN,
            direction: crate::policy::Direction::Ingress,
            protocol: 0,
            port: 0,
            port_bits: 0,
        };
        let own = self
            .kernel
            .policy
            .range(first..)
            .take_while(|(key, _)| key.endpoint == id);
        for (key, _) in own {
            self.policy.insert(*key, None);
        }
    }

    fn sweep_ipcache(&mut self, cluster: u32) {
        for prefix in self.restored_ipcache.remove(&cluster).unwrap_or_default() {
            self.ipcache.insert(prefix, None);
        }
    }

    fn sweep_policy_of(&mut self, cluster: u32) {
        for key in self.restored_policy.remove(&cluster).unwrap_or_default() {
            self.policy.insert(key, None);
        }
    }

    /// An entry needs both sides known: an endpoint that was not sent yet has no entries yet.
    fn sweep_policy(&mut self) {
        if !self.status.endpoints_synced || self.restored_policy.is_empty() {
            return;
        }
        self.sweep_policy_of(0);
        for cluster in self.status.clusters_synced.clone() {
            self.sweep_policy_of(cluster);
        }
    }

    fn collect_interfaces(&mut self) {
        let gone: Vec<u32> = self
            .kernel
            .endpoints
            .keys()
            .copied()
            .filter(|i| !self.datapath.exists(*i))
            .collect();
        for ifindex in gone {
            if let Some(endpoint) = self.kernel.endpoints.get(&ifindex) {
                self.touched.insert(EndpointId(endpoint.endpoint));
            }
            self.release(ifindex);
        }
    }
}

/// Notes what differs from what is expected, unless something newer is owed.
fn owe<'a, K: Copy + Eq + std::hash::Hash + 'a, V: Copy + PartialEq + 'a>(
    owed: &mut HashMap<K, Option<V>>,
    expected: impl IntoIterator<Item = (&'a K, &'a V)>,
    found: impl IntoIterator<Item = (&'a K, &'a V)>,
) {
    let mut surplus: HashMap<K, V> = found.into_iter().map(|(k, v)| (*k, *v)).collect();
    for (key, value) in expected {
        if surplus.remove(key) != Some(*value) {
            owed.entry(*key).or_insert(Some(*value));
        }
    }
    for key in surplus.into_keys() {
        owed.entry(key).or_insert(None);
    }
}

fn confirm<K: Eq + std::hash::Hash>(
    restored: &mut HashMap<u32, HashSet<K>>,
    cluster: u32,
    key: &K,
) {
    if let Some(of_cluster) = restored.get_mut(&cluster) {
        of_cluster.remove(key);
        if of_cluster.is_empty() {
            restored.remove(&cluster);
        }
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

mod barrier;
mod change;
mod levels;
#[cfg(test)]
mod tests;
mod write;
