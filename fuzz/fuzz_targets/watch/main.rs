//! Sequences of lists and watch events of three members, applied to the mesh. After each step: what
//! it shows has an owner who said it and may say it, nothing refused is visible, deltas tell what is
//! shown, and the cache has keys of living members only. In the end nothing is left.
#![no_main]
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use tombolo::{
    keyspace::{self, ClusterConfig, KeyEvent, Kind, Layout},
    mesh::{Delta, Deltas, IpTarget, Mesh, Settings, Terms, View},
    store::{Options, RangeRequest, Store},
    types::{ClusterName, IdentityId, IpPrefix, Labels},
};
use tombolo_fuzz::{MAX, id, name};

use self::{
    input::{Input, Op},
    model::{Member, Verdict},
};

mod input;
mod model;

/// The own cluster and two peers.
const CLUSTERS: [&str; 3] = ["east", "west", "north"];
/// Bytes that are played; more only make a run slower.
const INPUT_BYTES_MAX: usize = 256;
/// What a bounded peer may claim.
static ALLOWED: LazyLock<IpPrefix> = LazyLock::new(|| "10.0.0.0/24".parse().expect("a prefix"));

fuzz_target!(|data: &[u8]| {
    let mut bench = Bench::new();
    let mut input = Input(&data[..data.len().min(INPUT_BYTES_MAX)]);
    while let Some(op) = input.op(bench.ids) {
        bench.play(op);
        bench.check();
    }
    bench.end();
});

struct Bench {
    mesh: Mesh,
    view: View,
    cache: Store,
    deltas: Deltas,
    /// Those that are in the mesh.
    members: [Option<Member>; 3],
    /// The id that each has or had last.
    ids: [u32; 3],
    /// What the deltas told.
    addresses: BTreeMap<IpPrefix, IpTarget>,
    identities: BTreeMap<IdentityId, Arc<Labels>>,
}

impl Bench {
    fn new() -> Self {
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 100,
        });
        let deltas = Deltas::new(100_000);
        let settings = Settings {
            cluster_name: name(CLUSTERS[0]),
            cluster_id: id(1),
            max_clusters: MAX,
            node_name: "n0".into(),
        };
        let mesh =
            Mesh::new(settings, cache.clone(), deltas.clone()).with_cache_grace(Duration::ZERO);
        let mut bench = Self {
            view: mesh.view(),
            mesh,
            cache,
            deltas,
            members: [None, None, None],
            ids: [1, 2, 3],
            addresses: BTreeMap::new(),
            identities: BTreeMap::new(),
        };
        for (member, id) in [(0, 1), (1, 2), (2, 3)] {
            bench.connect(member, id, false, true);
        }
        bench
    }

    fn play(&mut self, op: Op) {
        match op {
            Op::Events { member, events } => {
                if let Some(member) = &mut self.members[member] {
                    events.iter().for_each(|event| member.apply(event));
                }
                self.mesh.apply(&name(CLUSTERS[member]), events);
            }
            Op::Connect {
                member,
                id,
                bounded,
                offers_all,
            } => {
                self.connect(member, id, bounded, offers_all);
            }
            Op::Remove { member } => self.remove(member),
        }
        let batch = self.deltas.try_pop_batch(usize::MAX);
        for delta in batch.map(|batch| batch.items).unwrap_or_default() {
            match delta {
                Delta::Ip {
                    prefix,
                    target: Some(target),
                } => {
                    self.addresses.insert(prefix, target);
                }
                Delta::Ip {
                    prefix,
                    target: None,
                } => {
                    self.addresses.remove(&prefix);
                }
                Delta::Identity {
                    id,
                    labels: Some(labels),
                } => {
                    self.identities.insert(id, labels);
                }
                Delta::Identity { id, labels: None } => {
                    self.identities.remove(&id);
                }
                Delta::NamedPorts { .. } | Delta::Synced { .. } | Delta::Removed { .. } => {}
            }
        }
    }

    fn connect(&mut self, member: usize, number: u32, bounded: bool, offers_all: bool) {
        let mut config = ClusterConfig {
            id: number,
            ..ClusterConfig::default()
        };
        if offers_all {
            config.capabilities.service_exports_enabled = Some(true);
            config.capabilities.endpoint_slices_export_mode = "services-and-endpointslices".into();
        }
        for other in (1..3).filter(|other| *other != member) {
            if self.members[other]
                .as_ref()
                .is_some_and(|m| m.id == id(number))
            {
                // Who has an id gives it back first: the registry of peers sees to that.
                self.remove(other);
            }
        }
        let fresh = || Member::new(name(CLUSTERS[member]), id(number), member == 0);
        let known = self.members[member].take().filter(|m| m.id == id(number));
        let mut known = known.unwrap_or_else(fresh);
        known.bounded = bounded;
        known
            .entries
            .retain(|(kind, _), _| config.capabilities.offers(*kind));
        self.members[member] = Some(known);
        self.ids[member] = number;
        let terms = Terms {
            id: id(number),
            config,
            allowed_cidrs: bounded.then_some(*ALLOWED).into_iter().collect(),
            relayed: false,
        };
        self.mesh.connected(&name(CLUSTERS[member]), terms);
    }

    fn remove(&mut self, member: usize) {
        self.members[member] = None;
        let now = Instant::now();
        self.mesh.removed(&name(CLUSTERS[member]), now);
        self.mesh.expire(now);
    }

    fn check(&self) {
        self.check_owners();
        self.check_addresses_of_peers();
        self.check_identities();
        self.check_counts();
        self.check_cache();
        let shown: BTreeMap<_, _> = self
            .view
            .addresses
            .iter()
            .map(|e| (*e.key(), *e.value()))
            .collect();
        assert_eq!(shown, self.addresses, "deltas tell what is shown");
    }

    fn live(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flatten()
    }

    fn owns(&self, member: &Member, prefix: IpPrefix) -> impl Iterator<Item = Option<IdentityId>> {
        let claims = member.records().flat_map(|(_, verdict)| verdict.claims());
        let of_prefix: Vec<_> = claims
            .filter(|(p, _)| *p == prefix)
            .map(|(_, id)| id)
            .collect();
        of_prefix.into_iter()
    }

    /// Every address shown was said by its owner, and is not the own cluster's if that is a peer.
    fn check_owners(&self) {
        for shown in self.view.addresses.iter() {
            let (prefix, target) = (*shown.key(), *shown.value());
            let owner = self.live().find(|member| member.id == target.cluster);
            let owner = owner.unwrap_or_else(|| panic!("{prefix} of no member: {target:?}"));
            let node = [IdentityId::HOST, IdentityId::REMOTE_NODE].contains(&target.identity);
            let said = self.owns(owner, prefix).any(|id| match id {
                Some(id) => id == target.identity,
                None => node,
            });
            assert!(said, "{prefix} is shown as {target:?}, which nobody said");
            if !owner.own {
                assert!(
                    self.permits(owner, prefix),
                    "{prefix} is not for {:?}",
                    owner.name
                );
            }
        }
    }

    /// Whether terms and the own cluster's territory leave a peer this range.
    fn permits(&self, peer: &Member, prefix: IpPrefix) -> bool {
        let least = if prefix.addr().is_ipv4() { 8 } else { 16 };
        let allowed = if peer.bounded {
            covers(*ALLOWED, prefix)
        } else {
            prefix.prefix_len() >= least
        };
        let own = self.live().filter(|member| member.own);
        let mut territory = own
            .flat_map(Member::records)
            .flat_map(|(_, verdict)| match verdict {
                Verdict::Node { addresses, cidrs } => {
                    let hosts = addresses.iter().map(|ip| IpPrefix::host(*ip));
                    hosts.chain(cidrs.iter().copied()).collect()
                }
                _ => Vec::new(),
            });
        allowed && !territory.any(|range| covers(range, prefix) || covers(prefix, range))
    }

    /// An address that a peer may have, and that it claims by its last word, is somebody's.
    fn check_addresses_of_peers(&self) {
        for peer in self.live().filter(|member| !member.own) {
            for said in peer.entries.values().filter_map(|all| all.last()) {
                let Verdict::Ip { prefix, .. } = said.verdict else {
                    continue;
                };
                // Whoever has no identity yet has its address, but is not shown.
                let unknown = |m: &Member| {
                    self.owns(m, prefix)
                        .any(|id| id == Some(IdentityId::UNKNOWN))
                };
                if self.permits(peer, prefix) && !self.live().any(unknown) {
                    assert!(
                        self.view.addresses.contains_key(&prefix),
                        "{prefix} is nobody's"
                    );
                }
            }
        }
    }

    fn check_identities(&self) {
        let records = self.live().flat_map(Member::records);
        let said = records.filter_map(|(_, verdict)| match verdict {
            Verdict::Identity { id, labels } => Some((*id, labels.to_string())),
            _ => None,
        });
        // The last word of each counts, and comes last here.
        let said: BTreeMap<_, _> = said.collect();
        let identities = self.view.identities.iter();
        let shown: BTreeMap<_, _> = identities
            .map(|e| (*e.key(), e.labels.to_string()))
            .collect();
        assert_eq!(shown, said);
        let told: BTreeMap<_, _> = self
            .identities
            .iter()
            .map(|(id, l)| (*id, l.to_string()))
            .collect();
        assert_eq!(told, said, "deltas tell what is shown");
    }

    fn check_counts(&self) {
        for member in self.live() {
            for kind in Kind::ALL {
                let counted = self.view.counts.get(&(member.name.clone(), kind));
                let counted = counted.map_or(0, |count| *count) as usize;
                let addressed = !member.own && [Kind::Ips, Kind::Nodes].contains(&kind);
                if addressed {
                    assert!(counted <= member.count(kind), "{kind:?} of {}", member.name);
                } else {
                    assert_eq!(counted, member.count(kind), "{kind:?} of {}", member.name);
                }
            }
        }
        for counted in self.view.counts.iter() {
            let (of, _) = counted.key();
            assert!(
                self.live().any(|member| member.name == *of),
                "counts of {of}, which is gone"
            );
        }
        for node in self.view.nodes.iter() {
            let (of, node) = node.key();
            let key = (Kind::Nodes, node.clone().into_bytes());
            let said = self.live().find(|member| member.name == *of);
            assert!(
                said.is_some_and(|member| member.entries.contains_key(&key)),
                "{of}/{node}"
            );
        }
    }

    /// Each key of the cache is a living peer's configuration or canary, or an entry with a value
    /// that it said and that breaks no rule of the keyspace.
    fn check_cache(&self) {
        let all = self
            .cache
            .range(&RangeRequest::prefix(b""))
            .expect("a range");
        for kv in &all.kvs {
            let known = self
                .live()
                .filter(|m| !m.own)
                .any(|peer| is_of(peer, &kv.key, &kv.value));
            assert!(known, "{} is nobody's", String::from_utf8_lossy(&kv.key));
        }
    }

    fn end(mut self) {
        for member in [1, 2] {
            self.remove(member);
        }
        let clear = Kind::ALL
            .into_iter()
            .flat_map(|kind| [KeyEvent::BeginList { kind }, KeyEvent::EndList { kind }]);
        self.play(Op::Events {
            member: 0,
            events: clear.collect(),
        });
        self.check();
        assert!(self.addresses.is_empty() && self.identities.is_empty());
        assert!(self.view.nodes.is_empty());
        assert!(
            self.cache.is_empty(),
            "the cache has no more than its peers"
        );
    }
}

fn covers(wide: IpPrefix, narrow: IpPrefix) -> bool {
    wide.prefix_len() <= narrow.prefix_len() && wide.contains(narrow.addr())
}

fn is_of(peer: &Member, key: &[u8], value: &[u8]) -> bool {
    let of: &ClusterName = &peer.name;
    if let Some((kind, suffix)) = Layout::Cache.parse(key, of) {
        let said = peer.entries.get(&(kind, suffix.to_vec()));
        return said.is_some_and(|all| all.iter().any(|said| said.value == value));
    }
    key == keyspace::cluster_config_key(of).as_bytes() || keyspace::parse_canary(key, of).is_some()
}
