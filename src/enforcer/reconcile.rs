//! Makes the kernel hold what it should: changes in, ordered map writes out.
//!
//! Always true: a batch adds before it takes away, and moves the epoch last, so that no packet is
//! judged by less than the old or the new state. What a former process left in the kernel stays
//! until its cluster (for endpoints: the source) said that everything known was sent.
//! Protocol: `open` once, then `apply` batches and `tick`; both are idempotent, and what failed is
//! tried again. Absent on purpose: threads and clocks; `enforcer::run` has them.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub use self::change::{Change, Status};
use super::{
    abi,
    datapath::{Datapath, Error, Observed},
};
use crate::{
    mesh::Sample,
    policy::{MapDelta, PolicyEntry, PolicyKey, Votes},
    types::{EndpointEvent, EndpointId, IpPrefix, LocalEndpoint, MaxClusters},
};

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
    touched: HashSet<EndpointId>,
    bump: bool,
    /// Not confirmed since the start, by cluster number; 0 for what belongs to no cluster.
    restored_ipcache: HashMap<u32, HashSet<IpPrefix>>,
    restored_policy: HashMap<u32, HashSet<PolicyKey>>,
    restored_endpoints: HashSet<EndpointId>,
    endpoints: HashMap<EndpointId, Arc<LocalEndpoint>>,
    /// Default-deny bits; kept from the kernel until the policy engine says otherwise.
    flags: HashMap<EndpointId, u32>,
    /// Batches whose changes came before, and are perhaps not written yet.
    sampled: Vec<Sample>,
    status: Status,
}

impl<D: Datapath> Reconciler<D> {
    /// Reads the kernel's maps and takes over its links. Nothing is taken away here.
    ///
    /// # Errors
    /// If the maps or pins cannot be read.
    pub fn open(mut datapath: D, max_clusters: MaxClusters) -> Result<Self, Error> {
        let kernel = datapath.observe()?;
        let mut reconciler = Self {
            datapath,
            max_clusters,
            kernel,
            ipcache: HashMap::new(),
            policy: HashMap::new(),
            touched: HashSet::new(),
            // The former process may have died between a revocation and its epoch.
            bump: true,
            restored_ipcache: HashMap::new(),
            restored_policy: HashMap::new(),
            restored_endpoints: HashSet::new(),
            endpoints: HashMap::new(),
            flags: HashMap::new(),
            sampled: Vec::new(),
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

    /// Applies a batch, together with whatever is still owed.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.take(change);
        }
        self.sweep_policy();
        self.write();
        if self.ipcache.is_empty() && self.policy.is_empty() {
            self.sampled.drain(..).for_each(|sample| sample.enforced());
        }
    }

    /// To be called now and then: tries again what failed, and looks for lost interfaces.
    pub fn tick(&mut self) {
        self.touched.extend(self.status.problems.keys().copied());
        self.collect_interfaces();
        self.write();
    }

    /// Reads the maps back and owes whatever differs from what they should hold.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn verify(&mut self) -> Result<(), Error> {
        let found = self.datapath.observe()?;
        let expected = std::mem::replace(&mut self.kernel, found);
        for (prefix, value) in &expected.ipcache {
            if self.kernel.ipcache.get(prefix) != Some(value) {
                self.ipcache.entry(*prefix).or_insert(Some(*value));
            }
        }
        for prefix in self.kernel.ipcache.keys() {
            if !expected.ipcache.contains_key(prefix) {
                self.ipcache.entry(*prefix).or_insert(None);
            }
        }
        for (key, value) in &expected.policy {
            if self.kernel.policy.get(key) != Some(value) {
                self.policy.entry(*key).or_insert(Some(*value));
            }
        }
        for key in self.kernel.policy.keys() {
            if !expected.policy.contains_key(key) {
                self.policy.entry(*key).or_insert(None);
            }
        }
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
        self.ipcache.len() + self.policy.len() + self.touched.len() + usize::from(self.bump)
    }

    /// 0 for identities that mean the same in every cluster.
    const fn cluster_of(&self, key: &PolicyKey) -> u32 {
        if key.identity.is_reserved() {
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
            Change::Map(MapDelta::Cidr { .. }) => {}
            Change::Map(MapDelta::Endpoint { endpoint, mode }) => {
                let bit = |on, bit| if on { bit } else { 0 };
                let deny = mode.default_deny;
                let flags =
                    bit(deny.ingress, abi::DENY_INGRESS) | bit(deny.egress, abi::DENY_EGRESS);
                self.flags.insert(endpoint, flags);
                self.touched.insert(endpoint);
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
            identity: crate::types::IdentityId(0),
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

    fn write(&mut self) {
        let policy = std::mem::take(&mut self.policy);
        let ipcache = std::mem::take(&mut self.ipcache);
        let touched = std::mem::take(&mut self.touched);
        let (adds, takes): (Vec<_>, Vec<_>) = policy
            .into_iter()
            .partition(|(_, value)| value.is_some_and(|entry| !denies(entry)));
        let (known, unknown): (Vec<_>, Vec<_>) =
            ipcache.into_iter().partition(|(_, value)| value.is_some());

        adds.into_iter()
            .for_each(|(key, value)| self.write_policy(key, value));
        known
            .into_iter()
            .for_each(|(prefix, value)| self.write_ipcache(prefix, value));
        let (present, absent): (Vec<_>, Vec<_>) = touched
            .into_iter()
            .partition(|id| self.endpoints.contains_key(id));
        present.into_iter().for_each(|id| self.write_endpoint(id));

        takes
            .into_iter()
            .for_each(|(key, value)| self.write_policy(key, value));
        unknown
            .into_iter()
            .for_each(|(prefix, value)| self.write_ipcache(prefix, value));
        absent.into_iter().for_each(|id| self.remove_endpoint(id));

        if self.bump {
            let epoch = self.kernel.epoch.wrapping_add(1);
            match self.datapath.set_epoch(epoch) {
                Ok(()) => {
                    self.kernel.epoch = epoch;
                    self.bump = false;
                }
                Err(error) => self.failed(&error),
            }
        }
        self.status.generation += 1;
        self.status.enforced = self
            .kernel
            .endpoints
            .iter()
            .filter(|(ifindex, _)| self.kernel.links.contains(ifindex))
            .count();
        self.status.ipcache = self.kernel.ipcache.len();
        self.status.policy = self.kernel.policy.len();
        self.status.restored = self
            .restored_ipcache
            .values()
            .map(HashSet::len)
            .sum::<usize>()
            + self
                .restored_policy
                .values()
                .map(HashSet::len)
                .sum::<usize>()
            + self.restored_endpoints.len();
        self.status.epoch = self.kernel.epoch;
        self.status.pending = self.pending();
    }

    fn write_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) {
        let old = self.kernel.policy.get(&key).copied();
        if old == value {
            return;
        }
        if let Err(error) = self.datapath.set_policy(key, value) {
            self.failed(&error);
            self.policy.insert(key, value);
            return;
        }
        self.bump |= match (old, value) {
            (_, Some(entry)) => denies(entry) && old.is_none_or(|old| !denies(old)),
            (Some(old), None) => !denies(old),
            (None, None) => false,
        };
        match value {
            Some(entry) => self.kernel.policy.insert(key, entry),
            None => self.kernel.policy.remove(&key),
        };
    }

    fn write_ipcache(&mut self, prefix: IpPrefix, value: Option<abi::IpcacheValue>) {
        let old = self.kernel.ipcache.get(&prefix).copied();
        if old == value {
            return;
        }
        if let Err(error) = self.datapath.set_ipcache(&prefix, value) {
            self.failed(&error);
            self.ipcache.insert(prefix, value);
            return;
        }
        // Also when an address becomes known: until now it was judged as world, or by its CIDR.
        self.bump |= old.map(|old| old.identity) != value.map(|value| value.identity);
        match value {
            Some(value) => self.kernel.ipcache.insert(prefix, value),
            None => self.kernel.ipcache.remove(&prefix),
        };
    }

    fn write_endpoint(&mut self, id: EndpointId) {
        let Some(local) = self.endpoints.get(&id).cloned() else {
            return;
        };
        let problem = match self.place_endpoint(&local) {
            Ok(()) if local.addresses.len() > abi::ADDRESSES_MAX => Some(format!(
                "{} addresses, only the first {} can be used",
                local.addresses.len(),
                abi::ADDRESSES_MAX
            )),
            Ok(()) => None,
            Err(problem) => Some(problem),
        };
        match problem {
            Some(problem) => self.status.problems.insert(id, problem),
            None => self.status.problems.remove(&id),
        };
    }

    fn place_endpoint(&mut self, local: &LocalEndpoint) -> Result<(), String> {
        let name = local
            .interface
            .as_deref()
            .ok_or("its interface is not known")?;
        let ifindex = self
            .datapath
            .ifindex(name)
            .ok_or_else(|| format!("interface {name} does not exist"))?;
        let flags = self.flags.get(&local.id).copied().unwrap_or(0);
        self.put_endpoint(ifindex, abi::Endpoint::new(local, flags))
            .map_err(|e| chain(&e))?;
        if !self.kernel.links.contains(&ifindex) {
            if let Err(error) = self.datapath.attach(ifindex, name) {
                self.failed(&error);
                return Err(chain(&error));
            }
            self.kernel.links.insert(ifindex);
        }
        for other in self
            .places(local.id)
            .into_iter()
            .filter(|other| *other != ifindex)
        {
            self.release(other);
        }
        Ok(())
    }

    fn put_endpoint(&mut self, ifindex: u32, value: abi::Endpoint) -> Result<(), Error> {
        let old = self.kernel.endpoints.get(&ifindex).copied();
        if old == Some(value) {
            return Ok(());
        }
        if let Err(error) = self.datapath.set_endpoint(ifindex, Some(value)) {
            self.failed(&error);
            return Err(error);
        }
        let denied_before = old.map_or(0, |old| old.flags) & abi::DENY_INGRESS != 0;
        self.bump |= value.flags & abi::DENY_INGRESS != 0 && !denied_before;
        self.kernel.endpoints.insert(ifindex, value);
        Ok(())
    }

    /// Not among the known ones: either still restored, then only its flags may change, or gone.
    fn remove_endpoint(&mut self, id: EndpointId) {
        let restored = self.restored_endpoints.contains(&id);
        for ifindex in self.places(id) {
            let (Some(old), true) = (self.kernel.endpoints.get(&ifindex), restored) else {
                self.release(ifindex);
                continue;
            };
            let flags = self.flags.get(&id).copied().unwrap_or(old.flags);
            let value = abi::Endpoint { flags, ..*old };
            if self.put_endpoint(ifindex, value).is_err() {
                self.touched.insert(id);
            }
        }
        self.status.problems.remove(&id);
    }

    fn places(&self, id: EndpointId) -> Vec<u32> {
        let own = self
            .kernel
            .endpoints
            .iter()
            .filter(|(_, e)| e.endpoint == id.0);
        own.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Detaches first: without its endpoint entry the programs would drop everything.
    fn release(&mut self, ifindex: u32) {
        let done = self.datapath.detach(ifindex);
        let done = done.and_then(|()| self.datapath.set_endpoint(ifindex, None));
        if let Err(error) = done {
            self.failed(&error);
            if let Some(endpoint) = self.kernel.endpoints.get(&ifindex) {
                self.touched.insert(EndpointId(endpoint.endpoint));
            }
            return;
        }
        self.kernel.links.remove(&ifindex);
        self.kernel.endpoints.remove(&ifindex);
    }

    fn failed(&mut self, error: &Error) {
        let text = chain(error);
        // One line per different error: a full map fails the same way for each entry.
        if self.status.last_error.as_ref() != Some(&text) {
            tracing::warn!(subsys = "enforcer", error = %text, "Kernel call failed");
        }
        self.status.errors_total += 1;
        self.status.last_error = Some(text);
    }
}

const fn denies(entry: PolicyEntry) -> bool {
    entry.votes.contains(Votes::DENY)
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

mod change;
#[cfg(test)]
mod tests;
