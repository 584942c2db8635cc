//! Local endpoints: the rules that select each, and how it is judged where no entry matches.
use std::{collections::BTreeSet, sync::Arc};

use super::{
    Enforcement, Engine,
    contributions::Touched,
    order::ModeChange,
    ports::{self, Resolved},
    rules::{GrantState, RuleId},
};
use crate::{
    policy::{Direction, EndpointMode, PerDirection},
    types::{EndpointId, Labels, LocalEndpoint},
};

#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) local: Arc<LocalEndpoint>,
    /// Its own ports that have names.
    pub(super) ports: BTreeSet<Resolved>,
    /// The rules in force that select it.
    pub(super) rules: BTreeSet<RuleId>,
    /// As told last.
    pub(super) mode: Option<EndpointMode>,
}

/// True for an endpoint that has no labels yet.
fn is_init(labels: &Labels) -> bool {
    labels
        .with_key("init")
        .any(|label| label.source == "reserved")
}

impl Engine {
    /// True if rules count for an endpoint with these labels.
    pub(super) fn enforces(&self, labels: &Labels) -> bool {
        self.options.enforcement != Enforcement::Never || is_init(labels)
    }

    /// True if an endpoint with these labels drops what no rule allows, whatever the rules say.
    pub(super) fn denies_always(&self, labels: &Labels) -> bool {
        self.options.enforcement == Enforcement::Always || is_init(labels)
    }

    pub(super) fn upsert_endpoint(&mut self, local: &Arc<LocalEndpoint>, touched: &mut Touched) {
        let id = local.id;
        let ports = ports::resolved(&local.named_ports);
        let renamed = self
            .endpoints
            .get(&id)
            .is_some_and(|old| old.ports != ports);
        if renamed {
            // They take back what they contributed for the ports as they were.
            for rule in self.asking_endpoint(id) {
                self.part(id, rule, touched);
            }
        }
        let mut joined = true;
        if let Some(state) = self.endpoints.get_mut(&id) {
            joined = renamed || state.local.labels != local.labels;
            state.local = Arc::clone(local);
            state.ports = ports;
        } else {
            let state = EndpointState {
                local: Arc::clone(local),
                ports,
                rules: BTreeSet::new(),
                mode: None,
            };
            self.endpoints.insert(id, state);
        }
        touched.endpoints.insert(id);
        if joined {
            let rules: Vec<RuleId> = self.rules.keys().copied().collect();
            for rule in rules {
                self.join(id, rule, touched);
            }
        }
    }

    pub(super) fn delete_endpoint(&mut self, id: EndpointId, touched: &mut Touched) {
        let rules = self.endpoints.get(&id).map(|state| state.rules.clone());
        for rule in rules.into_iter().flatten() {
            self.part(id, rule, touched);
        }
        self.endpoints.remove(&id);
    }

    /// The rules of an endpoint whose ports depend on its names.
    fn asking_endpoint(&self, id: EndpointId) -> Vec<RuleId> {
        let rules = self.endpoints.get(&id).into_iter().flat_map(|e| &e.rules);
        let asks = |id: &&RuleId| {
            let rule = self.rules.get(id);
            rule.is_some_and(|rule| rule.grants.iter().any(GrantState::asks_endpoint))
        };
        rules.filter(asks).copied().collect()
    }

    /// Lets a rule select an endpoint or not, as the labels say.
    pub(super) fn join(&mut self, endpoint: EndpointId, id: RuleId, touched: &mut Touched) {
        let Some(state) = self.endpoints.get(&endpoint) else {
            return;
        };
        let Some(rule) = self.rules.get(&id) else {
            return;
        };
        let labels = &state.local.labels;
        let selected = rule.source.rule.subject.matches(labels) && self.enforces(labels);
        if selected != state.rules.contains(&id) {
            self.select(endpoint, id, selected, touched);
        }
    }

    /// Takes an endpoint out of a rule that selects it.
    pub(super) fn part(&mut self, endpoint: EndpointId, id: RuleId, touched: &mut Touched) {
        self.select(endpoint, id, false, touched);
    }

    fn select(&mut self, id: EndpointId, rule: RuleId, add: bool, touched: &mut Touched) {
        touched.endpoints.insert(id);
        let contributed: Vec<_> = {
            let (Some(endpoint), Some(rule)) = (self.endpoints.get(&id), self.rules.get(&rule))
            else {
                return;
            };
            let grants = rule.grants.iter();
            let of = |grant| (self.contributions_to(id, endpoint, grant), grant.voice);
            grants.map(of).collect()
        };
        for (keys, voice) in contributed {
            for key in keys {
                self.contributions.change(key, voice, add, touched);
            }
        }
        let (Some(endpoint), Some(state)) =
            (self.endpoints.get_mut(&id), self.rules.get_mut(&rule))
        else {
            return;
        };
        if add {
            endpoint.rules.insert(rule);
            state.endpoints.insert(id);
        } else {
            endpoint.rules.remove(&rule);
            state.endpoints.remove(&id);
        }
    }

    /// How an endpoint is to be judged where no entry matches.
    pub(super) fn mode(&self, endpoint: &EndpointState) -> EndpointMode {
        let always = self.denies_always(&endpoint.local.labels);
        let rules = endpoint.rules.iter().filter_map(|id| self.rules.get(id));
        let mut mode = EndpointMode {
            audit: endpoint.local.audit,
            ..EndpointMode::default()
        };
        mode.default_deny = PerDirection {
            ingress: always,
            egress: always,
        };
        for rule in rules.map(|rule| &rule.source) {
            let deny = if rule.audit {
                &mut mode.audit_default_deny
            } else {
                &mut mode.default_deny
            };
            for direction in [Direction::Ingress, Direction::Egress] {
                *deny.get_mut(direction) |= *rule.rule.default_deny.get(direction);
            }
        }
        mode
    }

    /// The modes that are others than told, which are taken for told from now on.
    pub(super) fn changed_modes(&mut self, touched: &Touched) -> Vec<ModeChange> {
        let mut changed = Vec::new();
        for id in &touched.endpoints {
            let Some(endpoint) = self.endpoints.get(id) else {
                continue;
            };
            let (old, new) = (endpoint.mode, self.mode(endpoint));
            if old == Some(new) {
                continue;
            }
            let endpoint = *id;
            changed.push(ModeChange { endpoint, old, new });
            if let Some(endpoint) = self.endpoints.get_mut(id) {
                endpoint.mode = Some(new);
            }
        }
        changed
    }
}
