//! Follows identities, addresses, local endpoints and policies, and says what the kernel's policy
//! maps should hold.
//!
//! Each change touches only what it concerns: an identity the selectors that match it, an endpoint
//! the rules that select it, a policy its own rules.
//! The order inside one result is argued in `order`, and for prefixes in `prefixes`.
//! Absent on purpose: the kernel, files, time.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    sync::Arc,
};

pub use self::options::{Enforcement, Options};
use self::{
    addresses::Addresses,
    contributions::{Contributions, Touched},
    endpoints::EndpointState,
    rules::{RuleId, RulePlace, RuleState, Source},
    selectors::{Identity, SelectorCache},
};
use super::{
    EndpointMode, MapDelta, PolicyEntry, PolicyKey,
    cidr::{self, Cidrs},
    names::RuleNames,
    rule::{Origin, Policy},
    selector::reserved_labels,
};
use crate::types::{EndpointEvent, EndpointId, IdentityId, IpPrefix, Labels, NamedPort};

mod addresses;
mod contributions;
mod endpoints;
mod options;
mod order;
mod ports;
mod prefixes;
mod rules;
mod selectors;
mod trace;

/// The state of policy on this node.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    identities: HashMap<IdentityId, Identity>,
    addresses: Addresses,
    selectors: SelectorCache,
    rules: HashMap<RuleId, RuleState>,
    last_rule: RuleId,
    /// Rules whose ports depend on the peer.
    asking: BTreeSet<RuleId>,
    /// The rules of each origin by their place in it.
    origins: BTreeMap<Origin, BTreeMap<RulePlace, RuleId>>,
    names: RuleNames,
    endpoints: BTreeMap<EndpointId, EndpointState>,
    contributions: Contributions,
    cidrs: Cidrs,
    /// Prefixes that have an identity which is still to be told.
    untold: BTreeSet<IpPrefix>,
    /// All endpoints of the start are known.
    synced: bool,
}

impl Engine {
    /// An engine without policies that knows the reserved identities, and those that the kernel
    /// holds for prefixes: these keep their numbers, and are given back once all endpoints of the
    /// start are known and no rule names them.
    #[must_use]
    pub fn new(options: Options, held: impl IntoIterator<Item = (IpPrefix, IdentityId)>) -> Self {
        let cidrs = Cidrs::new(held);
        let prefixes = cidrs.iter().map(|(prefix, id)| (id, Identity::of(prefix)));
        let reserved = (1..=10).map(IdentityId).filter_map(|id| {
            let prefix = [IpPrefix::ALL_IPV4, IpPrefix::ALL_IPV6];
            let prefix = prefix.into_iter().find(|p| cidr::world(p) == Some(id));
            let labels = reserved_labels(id)?;
            Some((id, Identity { labels, prefix }))
        });
        let identities = reserved.chain(prefixes).collect();
        Self {
            options,
            identities,
            addresses: Addresses::default(),
            selectors: SelectorCache::default(),
            rules: HashMap::new(),
            last_rule: 0,
            asking: BTreeSet::new(),
            origins: BTreeMap::new(),
            names: RuleNames::default(),
            endpoints: BTreeMap::new(),
            contributions: Contributions::default(),
            cidrs,
            untold: BTreeSet::new(),
            synced: false,
        }
    }

    /// An identity got labels, or is gone. Appends what changes to `out`.
    ///
    /// Reserved identities and those of this node are left as they are: no peer may say what `host`
    /// means, and a label on identity 0 would open the entry for everybody. Labels that only such
    /// identities have are not taken for those of others.
    pub fn apply_identity(
        &mut self,
        id: IdentityId,
        labels: Option<Arc<Labels>>,
        out: &mut Vec<MapDelta>,
    ) {
        if id.is_reserved() || id.is_local() {
            return;
        }
        let identity = labels.map(Identity::of_mesh);
        let mut touched = Touched::default();
        self.relabel(id, identity, &mut touched);
        self.finish(touched, out);
    }

    /// An address belongs to an identity now, or to nobody known. Appends what changes to `out`.
    pub fn apply_address(
        &mut self,
        prefix: IpPrefix,
        identity: Option<IdentityId>,
        out: &mut Vec<MapDelta>,
    ) {
        if self.addresses.identity(&prefix) != identity {
            self.rename(prefix, identity, out, |addresses| {
                addresses.set_identity(prefix, identity);
            });
        }
    }

    /// The ports of an address have these names now. Appends what changes to `out`.
    pub fn apply_named_ports(
        &mut self,
        prefix: IpPrefix,
        ports: &[NamedPort],
        out: &mut Vec<MapDelta>,
    ) {
        let ports = ports::resolved(ports);
        self.rename(prefix, None, out, |addresses| {
            addresses.set_ports(prefix, ports)
        });
    }

    /// A local endpoint is new, changed or gone, or all of the start are known. Appends what changes
    /// to `out`.
    ///
    /// The first result for an endpoint always says its mode. The end of an endpoint removes its
    /// entries and says nothing about its mode: whoever detaches it clears that.
    pub fn apply_endpoint(&mut self, event: &EndpointEvent, out: &mut Vec<MapDelta>) {
        let mut touched = Touched::default();
        match event {
            EndpointEvent::Upsert(local) => self.upsert_endpoint(local, &mut touched),
            EndpointEvent::Delete(id) => self.delete_endpoint(*id, &mut touched),
            EndpointEvent::Synced => self.synced = true,
        }
        self.finish(touched, out);
        self.tell_prefixes(out);
        if *event == EndpointEvent::Synced {
            let unnamed = self.cidrs.unnamed();
            self.release_prefixes(unnamed, out);
        }
    }

    /// An origin holds exactly these policies now. Appends what changes to `out`.
    ///
    /// The only limit is on distinct prefixes, of which there are as many as a number of a local
    /// identity can tell apart: where they would be more, the origin keeps its former policies.
    pub fn set_policies(
        &mut self,
        origin: &Origin,
        policies: Vec<Policy>,
        out: &mut Vec<MapDelta>,
    ) {
        let mut wanted = rules::placed(policies);
        let mut present = self.origins.remove(origin).unwrap_or_default();
        let in_force = |id: &RuleId| self.rules.get(id).map(|rule| &rule.source);
        let stale = present.extract_if(.., |place, id| in_force(id) != wanted.get(place));
        let stale: Vec<(RulePlace, RuleId)> = stale.collect();
        wanted.retain(|place, _| !present.contains_key(place));
        if !self.acquire_prefixes(wanted.values(), out) {
            tracing::error!(%origin, "Policies name too many prefixes; the former ones stay");
            present.extend(stale);
            if !present.is_empty() {
                self.origins.insert(origin.clone(), present);
            }
            return;
        }
        let mut touched = Touched::default();
        let mut released = Vec::new();
        for (_, id) in stale {
            let source = self.remove_rule(id, &mut touched);
            released.extend(source.iter().flat_map(Source::prefixes));
        }
        for (place, source) in wanted {
            if let btree_map::Entry::Vacant(vacant) = present.entry(place) {
                let id = self.add_rule(origin, vacant.key(), source, &mut touched);
                vacant.insert(id);
            }
        }
        if !present.is_empty() {
            self.origins.insert(origin.clone(), present);
        }
        self.finish(touched, out);
        self.release_prefixes(released, out);
    }

    /// An origin is gone with all its policies. Appends what changes to `out`.
    pub fn remove_origin(&mut self, origin: &Origin, out: &mut Vec<MapDelta>) {
        self.set_policies(origin, Vec::new(), out);
    }

    /// Everything that the kernel should hold: entries, then modes, then prefixes; for a full
    /// reconcile.
    #[must_use]
    pub fn desired(&self) -> Vec<MapDelta> {
        let entries = self.contributions.all().into_iter();
        let entries = entries.map(|(key, entry)| MapDelta::Entry {
            key,
            value: Some(entry),
        });
        let modes = self.endpoints.iter().filter_map(|(endpoint, state)| {
            let (endpoint, mode) = (*endpoint, state.mode?);
            Some(MapDelta::Endpoint { endpoint, mode })
        });
        let mut prefixes: Vec<_> = self.cidrs.iter().collect();
        prefixes.sort_unstable();
        let prefixes = prefixes.into_iter().map(|(prefix, id)| MapDelta::Cidr {
            prefix,
            identity: Some(id),
        });
        entries.chain(modes).chain(prefixes).collect()
    }

    /// One entry as the kernel should hold it, for [`verdict`](super::verdict).
    #[must_use]
    pub fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.contributions.entry(key)
    }

    /// How an endpoint is judged where no entry matches; `None` if it is unknown.
    #[must_use]
    pub fn mode_of(&self, endpoint: EndpointId) -> Option<EndpointMode> {
        self.endpoints.get(&endpoint).and_then(|state| state.mode)
    }

    /// What the numbers of rules stand for; stays valid for the life of the engine.
    #[must_use]
    pub fn names(&self) -> RuleNames {
        self.names.clone()
    }

    /// The identities that were told and not taken back, reserved and own ones left out.
    pub fn identities(&self) -> impl Iterator<Item = IdentityId> + '_ {
        let told = |id: &IdentityId| !id.is_reserved() && !id.is_local();
        self.identities.keys().copied().filter(move |id| told(id))
    }

    /// The addresses that were told to belong to somebody.
    pub fn addresses(&self) -> impl Iterator<Item = IpPrefix> + '_ {
        self.addresses.prefixes().copied()
    }

    /// The addresses that were told to have ports with names.
    pub fn naming_addresses(&self) -> impl Iterator<Item = IpPrefix> + '_ {
        self.addresses.prefixes_with_ports().copied()
    }

    /// How many rules are in force.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// How many distinct selectors the rules use.
    #[must_use]
    pub fn selector_count(&self) -> usize {
        self.selectors.len()
    }

    /// How many entries the kernel should hold.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.contributions.len()
    }

    fn relabel(&mut self, id: IdentityId, new: Option<Identity>, touched: &mut Touched) {
        if self.identities.get(&id) == new.as_ref() {
            return;
        }
        let old = match new.clone() {
            Some(new) => self.identities.insert(id, new),
            None => self.identities.remove(&id),
        };
        let (gained, lost) = self.selectors.relabel(id, old.as_ref(), new.as_ref());
        for (selectors, add) in [(gained, true), (lost, false)] {
            let uses = selectors.iter().flat_map(|s| self.uses(*s, id));
            for (key, voice) in uses.collect::<Vec<_>>() {
                self.contributions.change(key, voice, add, touched);
            }
        }
    }

    /// Changes what an address or its ports are, with all that follows for ports with names.
    fn rename(
        &mut self,
        prefix: IpPrefix,
        identity: Option<IdentityId>,
        out: &mut Vec<MapDelta>,
        change: impl FnOnce(&mut Addresses),
    ) {
        let mut concerned = self.addresses.concerned(&prefix, identity);
        let mut touched = Touched::default();
        self.use_names(&concerned, false, &mut touched);
        change(&mut self.addresses);
        // Names that it has from now on only concern those that had none before as well.
        let after = self.addresses.concerned(&prefix, identity);
        concerned.extend(after);
        self.use_names(&concerned, true, &mut touched);
        self.finish(touched, out);
    }

    fn use_names<'a>(
        &mut self,
        identities: impl IntoIterator<Item = &'a IdentityId>,
        add: bool,
        touched: &mut Touched,
    ) {
        if self.asking.is_empty() {
            return;
        }
        for identity in identities {
            for (key, voice) in self.uses_of_names(*identity) {
                self.contributions.change(key, voice, add, touched);
            }
        }
    }

    /// Appends the real changes among the touched, in the order promised above.
    fn finish(&mut self, mut touched: Touched, out: &mut Vec<MapDelta>) {
        let entries = self.contributions.changed(&mut touched);
        let modes = self.changed_modes(&touched);
        order::push(&entries, &modes, out);
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
