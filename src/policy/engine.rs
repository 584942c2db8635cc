//! Follows identities, local endpoints and policies, and says what the kernel's policy maps should
//! hold.
//!
//! Invariant: an entry exists exactly as long as a rule contributes to it; `contributions` counts
//! them per rule, so that what two rules allow survives the end of one.
//! Each change touches only what it concerns: an identity the selectors that match it, an endpoint
//! the rules that select it, a policy its own rules.
//! Order inside one result: new and changed entries, then default denies, then removed entries, so
//! that nothing allowed before and after is dropped in between.
//! Absent on purpose: the kernel, files, time.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    sync::Arc,
};

use super::{
    Direction, EndpointMode, MapDelta, PerDirection, PolicyEntry, PolicyKey, Votes,
    rule::{Origin, Peer, Peers, Policy, Port, Rule},
    selector::{CLUSTER_KEY, Requirement, Selector, SelectorCache, SelectorId, reserved_labels},
};
use crate::types::{ClusterName, EndpointEvent, EndpointId, IdentityId, Labels};

/// What an engine must know beforehand.
#[derive(Debug, Clone)]
pub struct Options {
    /// The own cluster.
    pub cluster: ClusterName,
    /// Whether peer selectors that do not speak of clusters select the own one only (Cilium's
    /// `policy-default-local-cluster`, true since 1.19).
    pub default_local_cluster: bool,
}

/// The state of policy on this node.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    identities: HashMap<IdentityId, Arc<Labels>>,
    selectors: SelectorCache,
    rules: HashMap<u32, RuleState>,
    /// The rules of each origin by their place in it.
    origins: BTreeMap<Origin, BTreeMap<RulePlace, u32>>,
    endpoints: BTreeMap<EndpointId, EndpointState>,
    contributions: HashMap<PolicyKey, Contributions>,
}

/// Where a rule stands in its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RulePlace {
    namespace: String,
    policy: String,
    index: usize,
}

#[derive(Debug)]
struct RuleState {
    name: String,
    rule: Rule,
    /// In the order of `rule.ingress`.
    grants: Vec<GrantState>,
    endpoints: BTreeSet<EndpointId>,
}

#[derive(Debug)]
struct GrantState {
    /// `None`: any peer.
    peers: Option<BTreeSet<SelectorId>>,
    /// Protocol, port and how many bits of it count; never empty, zeros stand for all.
    ports: Vec<(u8, u16, u8)>,
}

#[derive(Debug)]
struct EndpointState {
    labels: Arc<Labels>,
    rules: BTreeSet<u32>,
    /// As told last.
    deny_ingress: bool,
}

/// How often each rule contributes to an entry, by rule number; never empty, counts are not 0.
#[derive(Debug, Default)]
struct Contributions(BTreeMap<u32, u32>);

impl Contributions {
    fn entry(&self) -> Option<PolicyEntry> {
        self.0.first_key_value().map(|(rule, _)| PolicyEntry {
            votes: Votes::ALLOW,
            rule: *rule,
        })
    }
}

/// Entries touched by one change, with what they were before it.
#[derive(Debug, Default)]
struct Touched {
    entries: BTreeMap<PolicyKey, Option<PolicyEntry>>,
    endpoints: BTreeSet<EndpointId>,
    /// Endpoints of which nothing was told yet.
    new: BTreeSet<EndpointId>,
}

impl Engine {
    /// An engine without policies that knows the reserved identities.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let numbers = (1..=10).map(IdentityId);
        let identities = numbers
            .filter_map(|id| Some((id, reserved_labels(id)?)))
            .collect();
        Self {
            options,
            identities,
            selectors: SelectorCache::default(),
            rules: HashMap::new(),
            origins: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            contributions: HashMap::new(),
        }
    }

    /// An identity got labels, or is gone. Appends what changes to `out`.
    ///
    /// Reserved identities are left as they are: no peer may say what `host` means, and a label on
    /// identity 0 would open the entry for everybody.
    pub fn apply_identity(
        &mut self,
        id: IdentityId,
        labels: Option<Arc<Labels>>,
        out: &mut Vec<MapDelta>,
    ) {
        if id.is_reserved() || self.identities.get(&id) == labels.as_ref() {
            return;
        }
        let old = match labels.clone() {
            Some(labels) => self.identities.insert(id, labels),
            None => self.identities.remove(&id),
        };
        let (gained, lost) = self
            .selectors
            .relabel(id, old.as_deref(), labels.as_deref());
        let mut touched = Touched::default();
        for (selectors, add) in [(gained, true), (lost, false)] {
            for (key, rule) in selectors
                .iter()
                .flat_map(|s| self.uses(*s, id))
                .collect::<Vec<_>>()
            {
                self.contribute(key, rule, add, &mut touched);
            }
        }
        self.finish(touched, out);
    }

    /// A local endpoint is new, changed or gone. Appends what changes to `out`.
    ///
    /// The first result for an endpoint always says its default deny. The end of an endpoint
    /// removes its entries and says nothing about default deny: whoever detaches it clears that.
    pub fn apply_endpoint(&mut self, event: &EndpointEvent, out: &mut Vec<MapDelta>) {
        let mut touched = Touched::default();
        match event {
            EndpointEvent::Upsert(endpoint) => {
                let (id, labels) = (endpoint.id, Arc::clone(&endpoint.labels));
                if let Some(state) = self.endpoints.get_mut(&id) {
                    if state.labels == labels {
                        return;
                    }
                    state.labels = labels;
                } else {
                    let rules = BTreeSet::new();
                    let state = EndpointState {
                        labels,
                        rules,
                        deny_ingress: false,
                    };
                    self.endpoints.insert(id, state);
                    touched.new.insert(id);
                }
                touched.endpoints.insert(id);
                let numbers: Vec<u32> = self.rules.keys().copied().collect();
                for number in numbers {
                    self.join(id, number, &mut touched);
                }
            }
            EndpointEvent::Delete(id) => {
                let rules = self
                    .endpoints
                    .get(id)
                    .map(|s| s.rules.clone())
                    .unwrap_or_default();
                for number in rules {
                    self.part(*id, number, &mut touched);
                }
                self.endpoints.remove(id);
            }
            EndpointEvent::Synced => return,
        }
        self.finish(touched, out);
    }

    /// An origin holds exactly these policies now. Appends what changes to `out`.
    pub fn set_policies(
        &mut self,
        origin: &Origin,
        policies: Vec<Policy>,
        out: &mut Vec<MapDelta>,
    ) {
        let mut wanted = BTreeMap::new();
        for Policy {
            namespace,
            name,
            rules,
            ..
        } in policies
        {
            for (index, rule) in rules.into_iter().enumerate() {
                let (namespace, policy) = (namespace.clone().unwrap_or_default(), name.clone());
                wanted.insert(
                    RulePlace {
                        namespace,
                        policy,
                        index,
                    },
                    rule,
                );
            }
        }
        let mut touched = Touched::default();
        let mut present = self.origins.remove(origin).unwrap_or_default();
        let stale = |place: &RulePlace, number: &u32| {
            self.rules.get(number).map(|r| &r.rule) != wanted.get(place)
        };
        let stale: Vec<(RulePlace, u32)> = present
            .extract_if(.., |place, number| stale(place, number))
            .collect();
        for (_, number) in &stale {
            self.remove_rule(*number, &mut touched);
        }
        for (place, rule) in wanted {
            if let btree_map::Entry::Vacant(vacant) = present.entry(place) {
                let number = self.add_rule(origin, vacant.key(), rule, &mut touched);
                vacant.insert(number);
            }
        }
        if !present.is_empty() {
            self.origins.insert(origin.clone(), present);
        }
        self.finish(touched, out);
    }

    /// An origin is gone with all its policies. Appends what changes to `out`.
    pub fn remove_origin(&mut self, origin: &Origin, out: &mut Vec<MapDelta>) {
        self.set_policies(origin, Vec::new(), out);
    }

    /// Everything that the kernel should hold, entries first; for a full reconcile.
    #[must_use]
    pub fn desired(&self) -> Vec<MapDelta> {
        let mut entries: Vec<_> = self
            .contributions
            .iter()
            .map(|(key, c)| (*key, c.entry()))
            .collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        let entries = entries
            .into_iter()
            .map(|(key, value)| MapDelta::Entry { key, value });
        let denies = self
            .endpoints
            .iter()
            .map(|(endpoint, state)| MapDelta::Endpoint {
                endpoint: *endpoint,
                mode: mode(state.deny_ingress),
            });
        entries.chain(denies).collect()
    }

    /// One entry as the kernel should hold it, for [`verdict`](super::verdict).
    #[must_use]
    pub fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.contributions.get(key).and_then(Contributions::entry)
    }

    /// Whether an endpoint drops what is not allowed towards it; `None` if it is unknown.
    #[must_use]
    pub fn denies_ingress(&self, endpoint: EndpointId) -> Option<bool> {
        self.endpoints.get(&endpoint).map(|s| s.deny_ingress)
    }

    /// The file, policy and position of the rule with this number.
    #[must_use]
    pub fn rule_name(&self, number: u32) -> Option<String> {
        self.rules.get(&number).map(|r| r.name.clone())
    }

    /// How many rules are in force.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// How many distinct selectors they use.
    #[must_use]
    pub fn selector_count(&self) -> usize {
        self.selectors.len()
    }

    /// How many entries the kernel should hold.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.contributions.len()
    }

    fn add_rule(
        &mut self,
        origin: &Origin,
        place: &RulePlace,
        rule: Rule,
        touched: &mut Touched,
    ) -> u32 {
        let number = self.free_number(origin, place);
        let mut grants = Vec::with_capacity(rule.ingress.len());
        for (index, grant) in rule.ingress.iter().enumerate() {
            let peers = match &grant.peers {
                Peers::Any => None,
                Peers::Of(peers) => {
                    let selectors = peers.iter().map(|peer| self.options.resolve(peer));
                    let acquire = |s| {
                        self.selectors
                            .acquire(s, (number, index), self.identities.iter())
                    };
                    Some(
                        selectors
                            .collect::<Vec<_>>()
                            .into_iter()
                            .map(acquire)
                            .collect(),
                    )
                }
            };
            let mut ports: Vec<(u8, u16, u8)> = grant
                .ports
                .iter()
                .filter_map(|port| match port {
                    Port::Range {
                        protocol,
                        first,
                        last,
                    } if first == last => Some((*protocol, *first, 16)),
                    _ => None,
                })
                .collect();
            if grant.ports.is_empty() {
                ports.push((0, 0, 0));
            }
            grants.push(GrantState { peers, ports });
        }
        let RulePlace {
            namespace,
            policy,
            index,
        } = place;
        let name = format!("{namespace}/{policy} rule {index} in {origin}");
        self.rules.insert(
            number,
            RuleState {
                name,
                rule,
                grants,
                endpoints: BTreeSet::new(),
            },
        );
        let endpoints: Vec<EndpointId> = self.endpoints.keys().copied().collect();
        for endpoint in endpoints {
            self.join(endpoint, number, touched);
        }
        number
    }

    fn remove_rule(&mut self, number: u32, touched: &mut Touched) {
        let endpoints = self
            .rules
            .get(&number)
            .map(|r| r.endpoints.clone())
            .unwrap_or_default();
        for endpoint in endpoints {
            self.part(endpoint, number, touched);
        }
        let Some(state) = self.rules.remove(&number) else {
            return;
        };
        for (index, grant) in state.grants.iter().enumerate() {
            for selector in grant.peers.iter().flatten() {
                self.selectors.release(*selector, (number, index));
            }
        }
    }

    /// A number made from the rule's place, so that it stays the same over restarts; 0 is no rule.
    fn free_number(&self, origin: &Origin, place: &RulePlace) -> u32 {
        let index = place.index.to_string();
        let origin = origin.to_string();
        let parts = [
            origin.as_bytes(),
            place.namespace.as_bytes(),
            place.policy.as_bytes(),
            index.as_bytes(),
        ];
        let bytes = parts.iter().flat_map(|p| p.iter().chain(&[0]));
        // FNV-1a: stable by definition, unlike the standard hasher.
        let hash = bytes.fold(0x811c_9dc5_u32, |h, b| {
            (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)
        });
        let mut number = hash.max(1);
        while self.rules.contains_key(&number) {
            number = number.wrapping_add(1).max(1);
        }
        number
    }

    /// Lets a rule select an endpoint or not, as the labels say.
    fn join(&mut self, endpoint: EndpointId, number: u32, touched: &mut Touched) {
        let Some(state) = self.endpoints.get_mut(&endpoint) else {
            return;
        };
        let Some(rule) = self.rules.get_mut(&number) else {
            return;
        };
        if !rule.rule.subject.matches(&state.labels) {
            self.part(endpoint, number, touched);
            return;
        }
        if !state.rules.insert(number) {
            return;
        }
        rule.endpoints.insert(endpoint);
        touched.endpoints.insert(endpoint);
        for key in self.keys(endpoint, number) {
            self.contribute(key, number, true, touched);
        }
    }

    /// Takes an endpoint out of a rule that selects it.
    fn part(&mut self, endpoint: EndpointId, number: u32, touched: &mut Touched) {
        let Some(state) = self.endpoints.get_mut(&endpoint) else {
            return;
        };
        if !state.rules.remove(&number) {
            return;
        }
        if let Some(rule) = self.rules.get_mut(&number) {
            rule.endpoints.remove(&endpoint);
        }
        touched.endpoints.insert(endpoint);
        for key in self.keys(endpoint, number) {
            self.contribute(key, number, false, touched);
        }
    }

    /// Every contribution of a rule to an endpoint; a key occurs as often as it is contributed.
    fn keys(&self, endpoint: EndpointId, number: u32) -> Vec<PolicyKey> {
        let mut keys = Vec::new();
        for grant in self.rules.get(&number).iter().flat_map(|r| &r.grants) {
            match &grant.peers {
                None => keys.extend(grant.keys(endpoint, IdentityId::UNKNOWN)),
                Some(selectors) => {
                    let held = selectors.iter().filter_map(|s| self.selectors.get(*s));
                    for identity in held.flat_map(|h| &h.matches) {
                        keys.extend(grant.keys(endpoint, *identity));
                    }
                }
            }
        }
        keys
    }

    /// What an identity's match of a selector contributes, over all rules and endpoints.
    fn uses(&self, selector: SelectorId, identity: IdentityId) -> Vec<(PolicyKey, u32)> {
        let mut keys = Vec::new();
        let users = self
            .selectors
            .get(selector)
            .into_iter()
            .flat_map(|h| &h.users);
        for (number, index) in users {
            let Some(rule) = self.rules.get(number) else {
                continue;
            };
            let Some(grant) = rule.grants.get(*index) else {
                continue;
            };
            for endpoint in &rule.endpoints {
                keys.extend(grant.keys(*endpoint, identity).map(|key| (key, *number)));
            }
        }
        keys
    }

    fn contribute(&mut self, key: PolicyKey, rule: u32, add: bool, touched: &mut Touched) {
        let before = self.entry(&key);
        touched.entries.entry(key).or_insert(before);
        if add {
            *self
                .contributions
                .entry(key)
                .or_default()
                .0
                .entry(rule)
                .or_default() += 1;
            return;
        }
        let Some(contributions) = self.contributions.get_mut(&key) else {
            debug_assert!(
                false,
                "{key:?} is taken back without having been contributed"
            );
            return;
        };
        if let Some(count) = contributions.0.get_mut(&rule) {
            *count -= 1;
            if *count == 0 {
                contributions.0.remove(&rule);
            }
        }
        if contributions.0.is_empty() {
            self.contributions.remove(&key);
        }
    }

    /// Appends the real changes among the touched, in the order promised above.
    fn finish(&mut self, touched: Touched, out: &mut Vec<MapDelta>) {
        let mut removed = Vec::new();
        for (key, before) in touched.entries {
            let value = self.entry(&key);
            if value == before {
                continue;
            }
            let list = if value.is_some() {
                &mut *out
            } else {
                &mut removed
            };
            list.push(MapDelta::Entry { key, value });
        }
        for endpoint in touched.endpoints {
            let Some(state) = self.endpoints.get_mut(&endpoint) else {
                continue;
            };
            let denies = |n: &u32| {
                self.rules
                    .get(n)
                    .is_some_and(|r| r.rule.default_deny.ingress)
            };
            let ingress = state.rules.iter().any(denies);
            if state.deny_ingress != ingress || touched.new.contains(&endpoint) {
                state.deny_ingress = ingress;
                out.push(MapDelta::Endpoint {
                    endpoint,
                    mode: mode(ingress),
                });
            }
        }
        out.append(&mut removed);
    }
}

const fn mode(deny_ingress: bool) -> EndpointMode {
    let none = PerDirection {
        ingress: false,
        egress: false,
    };
    EndpointMode {
        default_deny: PerDirection {
            ingress: deny_ingress,
            egress: false,
        },
        audit_default_deny: none,
        audit: false,
    }
}

impl Options {
    /// The labels that a peer of a rule must have in this cluster.
    fn resolve(&self, peer: &Peer) -> Selector {
        match peer {
            Peer::LocalCluster => {
                Selector::new([Requirement::k8s(CLUSTER_KEY, self.cluster.as_str())])
            }
            Peer::Labels(selector) if self.default_local_cluster => {
                selector.in_local_cluster(self.cluster.as_str())
            }
            Peer::Labels(selector) => selector.clone(),
            Peer::Cidr { .. } => Selector::new([Requirement::reserved("none")]),
        }
    }
}

impl GrantState {
    fn keys(
        &self,
        endpoint: EndpointId,
        identity: IdentityId,
    ) -> impl Iterator<Item = PolicyKey> + '_ {
        let direction = Direction::Ingress;
        let key = move |(protocol, port, port_bits): &(u8, u16, u8)| PolicyKey {
            endpoint,
            identity,
            direction,
            protocol: *protocol,
            port: *port,
            port_bits: *port_bits,
        };
        self.ports.iter().map(key)
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
