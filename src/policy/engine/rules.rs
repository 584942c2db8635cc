//! Rules in force: their numbers, selectors and ports, and what each contributes.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    Engine,
    contributions::{Touched, Voice, Vote},
    endpoints::EndpointState,
    ports::{Block, Ports},
    selectors::SelectorId,
};
use crate::{
    policy::{
        Direction, Grant, Kind, Origin, Peer, Peers, Policy, PolicyKey, Rule, cidr, names::RuleName,
    },
    types::{EndpointId, IdentityId, IpPrefix},
};

/// Names a rule while it is in force.
pub(super) type RuleId = u64;

/// Where a rule stands in its origin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RulePlace {
    kind: Kind,
    namespace: Option<String>,
    policy: String,
    /// Counts on where an origin holds two policies of one name.
    index: usize,
}

impl fmt::Display for RulePlace {
    /// `shop/db rule 0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{} rule {}", self.policy, self.index)
    }
}

/// What a policy says of one of its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) rule: Rule,
    pub(super) audit: bool,
}

impl Source {
    /// The prefixes that stand for something of their own, each as often as it is named.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = IpPrefix> + '_ {
        let peers = self.rule.ingress.iter().chain(&self.rule.egress);
        let peers = peers.flat_map(|grant| match &grant.peers {
            Peers::Any => [].iter(),
            Peers::Of(peers) => peers.iter(),
        });
        let prefixes = peers.flat_map(|peer| {
            let (cidr, except) = match peer {
                Peer::Cidr { cidr, except } => (Some(*cidr), except.as_slice()),
                Peer::Labels(_) | Peer::LocalCluster => (None, [].as_slice()),
            };
            cidr.into_iter().chain(except.iter().copied())
        });
        prefixes.filter(|prefix| cidr::world(prefix).is_none())
    }
}

#[derive(Debug)]
pub(super) struct RuleState {
    pub(super) source: Source,
    /// Those of ingress, then those of egress, in the order of the rule.
    pub(super) grants: Vec<GrantState>,
    /// Whom it selects.
    pub(super) endpoints: BTreeSet<EndpointId>,
}

#[derive(Debug)]
pub(super) struct GrantState {
    pub(super) direction: Direction,
    pub(super) voice: Voice,
    /// `None`: any peer.
    pub(super) peers: Option<BTreeSet<SelectorId>>,
    pub(super) ports: Ports,
}

impl GrantState {
    /// True if its ports depend on the peer.
    pub(super) fn asks_peers(&self) -> bool {
        self.direction == Direction::Egress && !self.ports.names.is_empty()
    }

    /// True if its ports depend on the endpoint.
    pub(super) fn asks_endpoint(&self) -> bool {
        self.direction == Direction::Ingress && !self.ports.names.is_empty()
    }

    pub(super) const fn key(
        &self,
        endpoint: EndpointId,
        identity: IdentityId,
        block: Block,
    ) -> PolicyKey {
        PolicyKey {
            endpoint,
            identity,
            direction: self.direction,
            protocol: block.protocol,
            port: block.port,
            port_bits: block.bits,
        }
    }
}

/// All rules of an origin by their place.
pub(super) fn placed(policies: Vec<Policy>) -> BTreeMap<RulePlace, Source> {
    let mut placed = BTreeMap::new();
    for policy in policies {
        let mut place = RulePlace {
            kind: policy.kind,
            namespace: policy.namespace,
            policy: policy.name,
            index: 0,
        };
        for rule in policy.rules {
            while placed.contains_key(&place) {
                place.index += 1;
            }
            let audit = policy.audit;
            placed.insert(place.clone(), Source { rule, audit });
        }
    }
    placed
}

impl Engine {
    /// Puts a rule in force. The identities of its prefixes are there already.
    pub(super) fn add_rule(
        &mut self,
        origin: &Origin,
        place: &RulePlace,
        source: Source,
        touched: &mut Touched,
    ) -> RuleId {
        self.last_rule += 1;
        let id = self.last_rule;
        let mut grants = Vec::new();
        let Rule {
            ingress, egress, ..
        } = &source.rule;
        for (direction, section) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            let mut entries = [0, 0];
            for grant in section {
                let entry = &mut entries[usize::from(grant.deny)];
                let number = self.names.add(RuleName {
                    origin: origin.clone(),
                    kind: place.kind,
                    namespace: place.namespace.clone(),
                    policy: place.policy.clone(),
                    rule: place.index,
                    direction,
                    deny: grant.deny,
                    entry: *entry,
                });
                *entry += 1;
                let voice = Voice {
                    vote: Vote::new(grant.deny, source.audit),
                    rule: number,
                };
                grants.push(GrantState {
                    direction,
                    voice,
                    peers: self.acquire(grant, (id, grants.len())),
                    ports: Ports::new(&grant.ports),
                });
            }
        }
        if grants.iter().any(GrantState::asks_peers) {
            self.asking.insert(id);
        }
        let state = RuleState {
            source,
            grants,
            endpoints: BTreeSet::new(),
        };
        self.rules.insert(id, state);
        let endpoints: Vec<EndpointId> = self.endpoints.keys().copied().collect();
        for endpoint in endpoints {
            self.join(endpoint, id, touched);
        }
        id
    }

    fn acquire(&mut self, grant: &Grant, user: (RuleId, usize)) -> Option<BTreeSet<SelectorId>> {
        let Peers::Of(peers) = &grant.peers else {
            return None;
        };
        let acquire = |peer| {
            let select = self.options.select(peer);
            self.selectors.acquire(select, user, &self.identities)
        };
        Some(peers.iter().map(acquire).collect())
    }

    /// Takes a rule out of force. Its prefixes are left to be released.
    pub(super) fn remove_rule(&mut self, id: RuleId, touched: &mut Touched) -> Option<Source> {
        let endpoints = self.rules.get(&id).map(|rule| rule.endpoints.clone());
        for endpoint in endpoints.into_iter().flatten() {
            self.part(endpoint, id, touched);
        }
        let state = self.rules.remove(&id)?;
        self.asking.remove(&id);
        for (index, grant) in state.grants.iter().enumerate() {
            self.names.remove(grant.voice.rule);
            for selector in grant.peers.iter().flatten() {
                self.selectors.release(*selector, (id, index));
            }
        }
        Some(state.source)
    }

    /// Everything that a rule contributes to an endpoint; a key occurs as often as that is.
    pub(super) fn contributions_to(
        &self,
        id: EndpointId,
        endpoint: &EndpointState,
        grant: &GrantState,
    ) -> Vec<PolicyKey> {
        let mut keys = Vec::new();
        match &grant.peers {
            None => {
                let any = IdentityId::UNKNOWN;
                let blocks = grant.ports.blocks.iter();
                keys.extend(blocks.map(|block| grant.key(id, any, *block)));
                let own = grant.asks_endpoint().then_some(any);
                let peers = self.addresses.naming().filter(|_| grant.asks_peers());
                for identity in own.into_iter().chain(peers) {
                    let named = self.named(endpoint, grant, identity);
                    keys.extend(named.map(|block| grant.key(id, identity, block)));
                }
            }
            Some(selectors) => {
                let held = selectors.iter().filter_map(|s| self.selectors.get(*s));
                for identity in held.flat_map(|held| &held.matches) {
                    keys.extend(self.contributions_of(id, endpoint, grant, *identity));
                }
            }
        }
        keys
    }

    /// What one match of one peer contributes to an endpoint.
    pub(super) fn contributions_of<'a>(
        &'a self,
        id: EndpointId,
        endpoint: &'a EndpointState,
        grant: &'a GrantState,
        identity: IdentityId,
    ) -> impl Iterator<Item = PolicyKey> + 'a {
        let blocks = grant.ports.blocks.iter().copied();
        let all = blocks.chain(self.named(endpoint, grant, identity));
        all.map(move |block| grant.key(id, identity, block))
    }

    /// The ports of a grant that have names, for one pair.
    pub(super) fn named<'a>(
        &'a self,
        endpoint: &'a EndpointState,
        grant: &'a GrantState,
        identity: IdentityId,
    ) -> impl Iterator<Item = Block> + 'a {
        let deny = grant.voice.vote.denies();
        grant.ports.names.iter().flat_map(move |name| {
            let of_endpoint = endpoint
                .ports
                .iter()
                .filter(|port| grant.direction == Direction::Ingress && name.is(port));
            let of_endpoint = of_endpoint.map(|port| (port.protocol, port.port));
            let of_peer = self.addresses.resolve(identity, name, deny);
            let of_peer = of_peer.filter(|_| grant.direction == Direction::Egress);
            let both = of_endpoint.chain(of_peer);
            both.map(|(protocol, port)| Block::one(protocol, port))
        })
    }

    /// What an identity's match of a selector contributes, over all rules and endpoints.
    pub(super) fn uses(
        &self,
        selector: SelectorId,
        identity: IdentityId,
    ) -> Vec<(PolicyKey, Voice)> {
        let mut uses = Vec::new();
        let held = self.selectors.get(selector).into_iter();
        for (rule, index) in held.flat_map(|held| &held.users) {
            let Some(rule) = self.rules.get(rule) else {
                continue;
            };
            let Some(grant) = rule.grants.get(*index) else {
                continue;
            };
            for id in &rule.endpoints {
                if let Some(endpoint) = self.endpoints.get(id) {
                    let keys = self.contributions_of(*id, endpoint, grant, identity);
                    uses.extend(keys.map(|key| (key, grant.voice)));
                }
            }
        }
        uses
    }

    /// What rules contribute that depends on the names which an identity's addresses give.
    pub(super) fn uses_of_names(&self, identity: IdentityId) -> Vec<(PolicyKey, Voice)> {
        let mut uses = Vec::new();
        for rule in self.asking.iter().filter_map(|id| self.rules.get(id)) {
            for grant in rule.grants.iter().filter(|grant| grant.asks_peers()) {
                let matching = |selector: &&SelectorId| {
                    let held = self.selectors.get(**selector);
                    held.is_some_and(|held| held.matches.contains(&identity))
                };
                let times = match &grant.peers {
                    None => 1,
                    Some(selectors) => selectors.iter().filter(matching).count(),
                };
                for id in &rule.endpoints {
                    let Some(endpoint) = self.endpoints.get(id) else {
                        continue;
                    };
                    for block in self.named(endpoint, grant, identity) {
                        let key = grant.key(*id, identity, block);
                        uses.extend(std::iter::repeat_n((key, grant.voice), times));
                    }
                }
            }
        }
        uses
    }
}
