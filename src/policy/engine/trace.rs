//! Answers what policy makes of a connection, by the rules themselves: also for sides that do not
//! exist, or are elsewhere.
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    Engine,
    contributions::{Contributions, Touched},
    endpoints::EndpointState,
    ports::Block,
    rules::{GrantState, RuleState},
    selectors::Identity,
};
use crate::{
    limits::TRACE_IDENTITIES_MAX,
    policy::{
        Admits, Admitted, Basis, Direction, EndpointMode, Half, Judgement, Match, Outcome, Party,
        PolicyKey, Question, Side, Trace, Verdict, selector::CLUSTER_KEY, verdict,
    },
    types::{EndpointId, IdentityId, Label, Labels, LocalEndpoint},
};

/// Stands for a side that has no number; no endpoint and no identity does.
const NOBODY: u32 = u32::MAX;

/// A side with what only the engine needs of it.
struct Known {
    party: Party,
    /// `None`: its labels are not known, so no selector matches it.
    identity: Option<Identity>,
}

impl Engine {
    /// Says what policy makes of a new connection. `None` if a side is an identity or endpoint that
    /// is not known here.
    ///
    /// Whatever the datapath passes before it asks policy, such as traffic of the host where that is
    /// configured so, is not known here.
    #[must_use]
    pub fn trace(&self, question: &Question) -> Option<Trace> {
        let source = self.side(&question.source)?;
        let destination = self.side(&question.destination)?;
        let egress = self.half(&source, &destination, Direction::Egress, question);
        let ingress = self.half(&destination, &source, Direction::Ingress, question);
        Some(Trace {
            verdict: together(&egress, &ingress),
            source: source.party,
            destination: destination.party,
            protocol: question.protocol,
            port: question.port,
            egress,
            ingress,
        })
    }

    fn side(&self, side: &Side) -> Option<Known> {
        match side {
            Side::Endpoint(id) => {
                let local = &self.endpoints.get(id)?.local;
                Some(self.of_endpoint(local, None))
            }
            Side::Identity(id) => self.of_identity(*id, None),
            Side::Address(address) => Some(self.of_address(*address)),
            Side::Labels(labels) => Some(self.of_labels(labels)),
        }
    }

    fn of_address(&self, address: IpAddr) -> Known {
        let mut locals = self.endpoints.values().map(|endpoint| &endpoint.local);
        if let Some(local) = locals.find(|local| local.addresses.contains(&address)) {
            return self.of_endpoint(local, Some(address));
        }
        let id = self.addresses.find(address);
        let id = id.unwrap_or_else(|| self.cidrs.find(address));
        // An address may be known before the labels of its identity.
        self.of_identity(id, Some(address))
            .unwrap_or_else(|| Known {
                party: Party {
                    identity: Some(id),
                    labels: Arc::default(),
                    endpoint: None,
                    address: Some(address),
                    cluster: None,
                },
                identity: None,
            })
    }

    fn of_endpoint(&self, local: &LocalEndpoint, address: Option<IpAddr>) -> Known {
        let identity = Identity {
            labels: Arc::clone(&local.labels),
            prefix: None,
        };
        let mut party = self.party(Some(local.identity), &identity, address);
        party.endpoint = Some(local.id);
        party.cluster = Some(self.options.cluster.to_string());
        let identity = Some(identity);
        Known { party, identity }
    }

    fn of_identity(&self, id: IdentityId, address: Option<IpAddr>) -> Option<Known> {
        let identity = self.identities.get(&id)?.clone();
        let party = self.party(Some(id), &identity, address);
        let identity = Some(identity);
        Some(Known { party, identity })
    }

    fn of_labels(&self, labels: &Arc<Labels>) -> Known {
        let all = labels.as_slice();
        let placed = all
            .iter()
            .any(|l| l.key == CLUSTER_KEY || l.source == "reserved");
        let labels = if placed {
            Arc::clone(labels)
        } else {
            let cluster = Label {
                source: "k8s".into(),
                key: CLUSTER_KEY.to_owned(),
                value: self.options.cluster.to_string(),
            };
            let with = Labels::new(all.iter().cloned().chain([cluster]));
            with.map_or_else(|_semicolon| Arc::clone(labels), Arc::new)
        };
        let same = self.identities.iter().filter(|(_, i)| i.labels == labels);
        let id = same.map(|(id, _)| *id).min();
        let known = id.and_then(|id| self.identities.get(&id));
        let prefix = known.and_then(|identity| identity.prefix);
        let identity = Identity { labels, prefix };
        let party = self.party(id, &identity, None);
        let identity = Some(identity);
        Known { party, identity }
    }

    fn party(&self, id: Option<IdentityId>, identity: &Identity, address: Option<IpAddr>) -> Party {
        let labels = &identity.labels;
        let cluster = labels.with_key(CLUSTER_KEY).next().map(|l| l.value.clone());
        // By an address it is that endpoint or none.
        let locals = self.endpoints.values().filter(|_| address.is_none());
        let mut locals = locals.filter(|endpoint| endpoint.local.labels == *labels);
        Party {
            identity: id,
            labels: Arc::clone(labels),
            endpoint: locals.next().map(|endpoint| endpoint.local.id),
            address,
            cluster,
        }
    }

    fn half(
        &self,
        subject: &Known,
        peer: &Known,
        direction: Direction,
        question: &Question,
    ) -> Half {
        match &subject.party.cluster {
            None => Half::Nobody,
            Some(name) if *name != self.options.cluster.as_str() => {
                Half::Cluster { name: name.clone() }
            }
            Some(_) => Half::Policy(Box::new(self.judge(subject, peer, direction, question))),
        }
    }

    fn judge(
        &self,
        subject: &Known,
        peer: &Known,
        direction: Direction,
        question: &Question,
    ) -> Judgement {
        let (id, endpoint) = self.subject(subject);
        let rules = self.rules.iter();
        let selecting = rules.filter(|(_, rule)| self.selects(rule, &endpoint.local.labels));
        let (rule_ids, selecting): (BTreeSet<_>, Vec<&RuleState>) = selecting.unzip();
        let endpoint = EndpointState {
            rules: rule_ids.into_iter().copied().collect(),
            ..endpoint
        };
        let key = PolicyKey {
            endpoint: id,
            identity: peer.party.identity.unwrap_or(IdentityId(NOBODY)),
            direction,
            protocol: question.protocol,
            port: question.port,
            port_bits: 16,
        };
        let (mut entries, mut matches) = (Contributions::default(), Vec::new());
        for rule in &selecting {
            for grant in rule.grants.iter().filter(|g| g.direction == direction) {
                if self.vote(&endpoint, grant, peer, &key, &mut entries) {
                    matches.extend(self.matched(grant));
                }
            }
        }
        matches.sort_by_key(|m| m.number);
        let found = verdict(|key| entries.entry(key), &key);
        let mode = self.mode(&endpoint);
        let basis = enforced(found, direction, &mode);
        let audited = audited(found, direction, &mode);
        Judgement {
            direction,
            outcome: outcome(basis, audited, mode.audit),
            basis,
            rule: self.names.get(found.rule).filter(|_| decided(basis)),
            audited: (audited != basis).then_some(audited),
            audited_endpoint: mode.audit,
            selecting: selecting.len(),
            default_deny: self.default_denies(&endpoint, direction),
            matches,
        }
    }

    /// The endpoint that is judged, or what it would be like.
    fn subject(&self, subject: &Known) -> (EndpointId, EndpointState) {
        let id = subject.party.endpoint;
        let known = id.and_then(|id| Some((id, self.endpoints.get(&id)?)));
        let (id, local, ports) = match known {
            Some((id, known)) => (id, Arc::clone(&known.local), known.ports.clone()),
            None => {
                let id = EndpointId(NOBODY);
                let labels = Arc::clone(&subject.party.labels);
                let local = LocalEndpoint {
                    id,
                    identity: subject.party.identity.unwrap_or(IdentityId(NOBODY)),
                    labels,
                    namespace: String::new(),
                    name: String::new(),
                    addresses: Vec::new(),
                    interface: None,
                    named_ports: Vec::new(),
                    audit: false,
                };
                (id, Arc::new(local), BTreeSet::new())
            }
        };
        let endpoint = EndpointState {
            local,
            ports,
            rules: BTreeSet::new(),
            mode: None,
        };
        (id, endpoint)
    }

    fn selects(&self, rule: &RuleState, labels: &Labels) -> bool {
        self.enforces(labels) && rule.source.rule.subject.matches(labels)
    }

    /// Makes the entries of a grant that the packet could meet; false if there is none.
    fn vote(
        &self,
        endpoint: &EndpointState,
        grant: &GrantState,
        peer: &Known,
        key: &PolicyKey,
        entries: &mut Contributions,
    ) -> bool {
        let (anybody, meant) = match &grant.peers {
            None => (true, true),
            Some(ids) => {
                let matches = |identity| self.selectors.any_matches(ids, identity);
                (false, peer.identity.as_ref().is_some_and(matches))
            }
        };
        if !meant {
            return false;
        }
        let blocks = grant.ports.blocks.iter().copied();
        let named = self.named(endpoint, grant, key.identity);
        let about = |block: &Block| block.contains(key.protocol, key.port);
        let blocks: BTreeSet<Block> = blocks.chain(named).filter(about).collect();
        let identity = if anybody {
            IdentityId::UNKNOWN
        } else {
            key.identity
        };
        let mut touched = Touched::default();
        for block in &blocks {
            let key = grant.key(key.endpoint, identity, *block);
            entries.change(key, grant.voice, true, &mut touched);
        }
        !blocks.is_empty()
    }

    fn matched(&self, grant: &GrantState) -> Option<Match> {
        let number = grant.voice.rule;
        Some(Match {
            number,
            rule: self.names.get(number)?,
            audited: grant.voice.vote.audited(),
            admits: self.admits(grant),
        })
    }

    fn admits(&self, grant: &GrantState) -> Admits {
        let ids = grant.peers.iter().flatten();
        let held = ids.filter_map(|id| self.selectors.get(*id));
        let all: BTreeSet<IdentityId> = held.flat_map(|h| h.matches.iter().copied()).collect();
        let listed = all.iter().take(TRACE_IDENTITIES_MAX);
        let admitted = listed.filter_map(|id| {
            let labels = Arc::clone(&self.identities.get(id)?.labels);
            let identity = *id;
            Some(Admitted { identity, labels })
        });
        Admits {
            anybody: grant.peers.is_none(),
            identities: admitted.collect(),
            count: all.len(),
        }
    }

    /// The rules that turn default deny on, by name.
    fn default_denies(&self, endpoint: &EndpointState, direction: Direction) -> Vec<String> {
        let mut denying = Vec::new();
        for (origin, places) in &self.origins {
            for (place, id) in places {
                let rule = self.rules.get(id).filter(|_| endpoint.rules.contains(id));
                let denies = |rule: &RuleState| *rule.source.rule.default_deny.get(direction);
                if rule.is_some_and(denies) {
                    denying.push(format!("{place} in {origin}"));
                }
            }
        }
        denying
    }
}

fn enforced(found: Verdict, direction: Direction, mode: &EndpointMode) -> Basis {
    let deny = *mode.default_deny.get(direction);
    let allowed = found.passes(true);
    basis(allowed, found.passes(false), deny)
}

fn audited(found: Verdict, direction: Direction, mode: &EndpointMode) -> Basis {
    let deny = *mode.default_deny.get(direction) || *mode.audit_default_deny.get(direction);
    let allowed = found.passes_audited(true);
    basis(allowed, found.passes_audited(false), deny)
}

/// `allowed` with default deny, `undenied` without.
const fn basis(allowed: bool, undenied: bool, default_deny: bool) -> Basis {
    match (allowed, undenied, default_deny) {
        (true, ..) => Basis::Allowed,
        (false, false, _) => Basis::Denied,
        (false, true, true) => Basis::DefaultDeny,
        (false, true, false) => Basis::NoDefaultDeny,
    }
}

pub(super) const fn decided(basis: Basis) -> bool {
    matches!(basis, Basis::Allowed | Basis::Denied)
}

const fn outcome(basis: Basis, audited: Basis, audited_endpoint: bool) -> Outcome {
    match (basis.passes(), audited.passes(), audited_endpoint) {
        (true, true, _) => Outcome::Allowed,
        (false, _, false) => Outcome::Denied,
        _ => Outcome::Audited,
    }
}

/// What both halves make of a packet.
fn together(egress: &Half, ingress: &Half) -> Outcome {
    let outcomes = [egress, ingress].into_iter().filter_map(|half| match half {
        Half::Policy(judgement) => Some(judgement.outcome),
        Half::Cluster { .. } | Half::Nobody => None,
    });
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Denied => 0,
        Outcome::Audited => 1,
        Outcome::Allowed => 2,
        Outcome::Unknown => 3,
    };
    outcomes.min_by_key(rank).unwrap_or(Outcome::Unknown)
}
