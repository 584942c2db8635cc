//! Writes what is owed, in an order that is right at every step.
//!
//! 1. Entries that begin to deny: what they drop, the new policy drops.
//! 2. Entries that allow, and addresses: what they let in, the new policy lets in, as its denies
//!    are there.
//! 3. Endpoints: modes and programs.
//! 4. Entries that allowed.
//! 5. Entries that denied: what they held back is judged by the new policy alone now.
//! 6. Addresses that nobody has any more, endpoints that are gone.
//! 7. The epoch, if anything was revoked.
//!
//! A level's bit is set before its first entry is written and cleared after its last is gone.
use std::collections::HashSet;

use super::{Reconciler, chain};
use crate::{
    enforcer::{
        abi,
        datapath::{Datapath, Error},
    },
    policy::{PolicyEntry, PolicyKey, Votes},
    types::{EndpointId, IdentityId, IpPrefix, LocalEndpoint},
};

/// When an entry is written; in the order of the module's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Deny,
    Allow,
    Disallow,
    Undeny,
}

impl Step {
    /// From what is there to what should be.
    fn of(old: Option<PolicyEntry>, new: Option<PolicyEntry>) -> Self {
        let has = |entry: Option<PolicyEntry>, vote| {
            entry.is_some_and(|entry| entry.votes.contains(vote))
        };
        let (denied, denies) = (has(old, Votes::DENY), has(new, Votes::DENY));
        let (allowed, allows) = (has(old, Votes::ALLOW), has(new, Votes::ALLOW));
        if denies && !denied {
            Self::Deny
        } else if denies || allows {
            Self::Allow
        } else if denied {
            Self::Undeny
        } else if allowed {
            Self::Disallow
        } else {
            // On trial only.
            Self::Allow
        }
    }
}

/// True if something that was let in may not be any more.
fn revokes(old: Option<PolicyEntry>, new: Option<PolicyEntry>) -> bool {
    let votes = |entry: Option<PolicyEntry>| entry.map_or(Votes::NONE, |entry| entry.votes);
    let (old, new) = (votes(old), votes(new));
    (new.contains(Votes::DENY) && !old.contains(Votes::DENY))
        || (old.contains(Votes::ALLOW) && !new.contains(Votes::ALLOW))
}

impl<D: Datapath> Reconciler<D> {
    pub(super) fn write(&mut self) {
        let mut policy: Vec<_> = std::mem::take(&mut self.policy).into_iter().collect();
        let ipcache = std::mem::take(&mut self.ipcache);
        let cidrs = std::mem::take(&mut self.cidrs);
        let touched = std::mem::take(&mut self.touched);
        let (known, unknown): (Vec<_>, Vec<_>) =
            ipcache.into_iter().partition(|(_, value)| value.is_some());
        let (named, unnamed): (Vec<_>, Vec<_>) =
            cidrs.into_iter().partition(|(_, value)| value.is_some());
        let (present, absent): (Vec<_>, Vec<_>) = touched
            .into_iter()
            .partition(|id| self.endpoints.contains_key(id));

        self.write_step(&mut policy, Step::Deny);
        self.write_step(&mut policy, Step::Allow);
        for (prefix, value) in named {
            self.write_cidr(prefix, value);
        }
        for (prefix, value) in known {
            self.write_ipcache(prefix, value);
        }
        for id in present {
            self.write_endpoint(id);
        }
        self.write_step(&mut policy, Step::Disallow);
        self.write_step(&mut policy, Step::Undeny);
        for (prefix, value) in unknown {
            self.write_ipcache(prefix, value);
        }
        for (prefix, value) in unnamed {
            self.write_cidr(prefix, value);
        }
        for id in absent {
            self.remove_endpoint(id);
        }
        for id in self.levels.settle() {
            self.write_levels(id);
        }
        self.write_config();
        self.note();
    }

    /// Writes, and takes out, the entries of one step.
    fn write_step(&mut self, policy: &mut Vec<(PolicyKey, Option<PolicyEntry>)>, step: Step) {
        let kernel = &self.kernel.policy;
        let due: Vec<_> = policy
            .extract_if(.., |(key, value)| {
                Step::of(kernel.get(key).copied(), *value) == step
            })
            .collect();
        for (key, value) in due {
            self.write_policy(key, value);
        }
    }

    /// Epoch and flags.
    fn write_config(&mut self) {
        let old = self.kernel.config;
        let weaker = abi::CONFIG_AUDIT | abi::CONFIG_ALLOW_LOCALHOST;
        let bump = self.bump || old.flags & !self.switches & weaker != 0;
        let config = abi::Config {
            epoch: old.epoch.wrapping_add(u32::from(bump)),
            flags: self.switches,
        };
        if config == old {
            return;
        }
        match self.datapath.set_config(config) {
            Ok(()) => {
                self.kernel.config = config;
                self.bump = false;
            }
            Err(error) => {
                self.bump = bump;
                self.failed(&error);
            }
        }
    }

    fn note(&mut self) {
        let enforced = self.kernel.endpoints.keys();
        self.status.generation += 1;
        self.status.enforced = enforced
            .filter(|ifindex| self.kernel.links.contains(ifindex))
            .count();
        self.status.ipcache = self.kernel.ipcache.len();
        self.status.cidrs = self.kernel.cidrs.len();
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
        self.status.epoch = self.kernel.config.epoch;
        self.status.pending = self.pending();
    }

    fn write_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) {
        let old = self.kernel.policy.get(&key).copied();
        if old == value {
            return;
        }
        let fresh = old.is_none() && value.is_some();
        if fresh && self.levels.add(&key) {
            self.write_levels(key.endpoint);
        }
        if let Err(error) = self.datapath.set_policy(key, value) {
            self.failed(&error);
            self.policy.insert(key, value);
            if fresh {
                self.levels.remove(&key);
            }
            return;
        }
        if value.is_none() {
            self.levels.remove(&key);
        }
        self.bump |= revokes(old, value);
        match value {
            Some(entry) => self.kernel.policy.insert(key, entry),
            None => self.kernel.policy.remove(&key),
        };
    }

    /// Tells the programs which levels an endpoint has, where it has a place already.
    fn write_levels(&mut self, id: EndpointId) {
        let levels = self.levels.masks(id);
        for ifindex in self.places(id) {
            let Some(old) = self.kernel.endpoints.get(&ifindex) else {
                continue;
            };
            let value = abi::Endpoint { levels, ..*old };
            if self.put_endpoint(ifindex, value).is_err() {
                self.touched.insert(id);
            }
        }
    }

    fn write_cidr(&mut self, prefix: IpPrefix, value: Option<IdentityId>) {
        let old = self.kernel.cidrs.get(&prefix).copied();
        if old == value {
            return;
        }
        if let Err(error) = self.datapath.set_cidr(&prefix, value) {
            self.failed(&error);
            self.cidrs.insert(prefix, value);
            return;
        }
        self.bump = true;
        match value {
            Some(value) => self.kernel.cidrs.insert(prefix, value),
            None => self.kernel.cidrs.remove(&prefix),
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
        let slot = self.slot_for(local.id).map_err(|e| chain(&e))?;
        let levels = self.levels.masks(local.id);
        self.put_endpoint(ifindex, abi::Endpoint::new(local, flags, slot, levels))
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
        if let Some(other) = old.filter(|old| old.endpoint != value.endpoint)
            && let Err(error) = self.datapath.retire_slot(other.slot)
        {
            self.failed(&error);
        }
        let before = old.map_or(0, |old| old.flags);
        let denies = abi::DENY_INGRESS | abi::DENY_EGRESS;
        self.bump |= value.flags & denies & !before != 0 || before & !value.flags & abi::AUDIT != 0;
        self.kernel.endpoints.insert(ifindex, value);
        Ok(())
    }

    /// Not among the known ones: either still restored, then only its mode and levels may change,
    /// or gone.
    fn remove_endpoint(&mut self, id: EndpointId) {
        let restored = self.restored_endpoints.contains(&id);
        for ifindex in self.places(id) {
            let (Some(old), true) = (self.kernel.endpoints.get(&ifindex), restored) else {
                self.release(ifindex);
                continue;
            };
            let flags = self.flags.get(&id).copied().unwrap_or(old.flags);
            let levels = self.levels.masks(id);
            let value = abi::Endpoint {
                flags,
                levels,
                ..*old
            };
            if self.put_endpoint(ifindex, value).is_err() {
                self.touched.insert(id);
            }
        }
        self.status.problems.remove(&id);
    }

    pub(super) fn places(&self, id: EndpointId) -> Vec<u32> {
        let own = self
            .kernel
            .endpoints
            .iter()
            .filter(|(_, e)| e.endpoint == id.0);
        own.map(|(ifindex, _)| *ifindex).collect()
    }

    /// Detaches first: without its endpoint entry the programs would drop everything.
    pub(super) fn release(&mut self, ifindex: u32) {
        let old = self.kernel.endpoints.get(&ifindex).copied();
        let moved = old.is_some_and(|old| self.places(EndpointId(old.endpoint)).len() > 1);
        let mut done = self.datapath.detach(ifindex);
        done = done.and_then(|()| self.datapath.set_endpoint(ifindex, None));
        // Of one that only moved, both go on.
        if let Some(old) = old.filter(|_| !moved) {
            done = done.and_then(|()| self.datapath.retire_slot(old.slot));
            done = done.and_then(|()| self.datapath.forget_ports(EndpointId(old.endpoint)));
        }
        if let Err(error) = done {
            self.failed(&error);
            self.touched.extend(old.map(|old| EndpointId(old.endpoint)));
            return;
        }
        self.kernel.links.remove(&ifindex);
        self.kernel.endpoints.remove(&ifindex);
    }

    /// The counter slot of an endpoint: its own, or a free one, emptied.
    fn slot_for(&mut self, id: EndpointId) -> Result<u32, Error> {
        let mut used = HashSet::new();
        for endpoint in self.kernel.endpoints.values() {
            if endpoint.endpoint == id.0 && endpoint.slot >= abi::SLOT_FIRST {
                return Ok(endpoint.slot);
            }
            used.insert(endpoint.slot);
        }
        let slot = (abi::SLOT_FIRST..)
            .find(|slot| !used.contains(slot))
            .unwrap_or(abi::SLOT_UNKNOWN);
        if let Err(error) = self.datapath.retire_slot(slot) {
            self.failed(&error);
            return Err(error);
        }
        Ok(slot)
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
