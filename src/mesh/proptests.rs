//! Whatever members say and in whatever order, an address has the owner that a plain reading of the
//! rules gives it, the cache holds what is in force, and nothing is left when all is gone.
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    tests::{Bench, ip, node, terms},
    *,
};

/// What one of three members does; `slot` picks one of a few addresses or nodes.
#[derive(Debug, Clone)]
enum Op {
    Put { member: u32, slot: u32 },
    Delete { member: u32, slot: u32 },
    Node { member: u32, slot: u32 },
    DeleteNode { member: u32, slot: u32 },
    Relist { member: u32, slots: Vec<u32> },
    Remove { member: u32 },
}

const NAMES: [&str; 3] = ["east", "west", "north"];

fn op() -> impl Strategy<Value = Op> {
    let who = || (0_u32..3, 0_u32..4);
    prop_oneof![
        6 => who().prop_map(|(member, slot)| Op::Put { member, slot }),
        3 => who().prop_map(|(member, slot)| Op::Delete { member, slot }),
        2 => who().prop_map(|(member, slot)| Op::Node { member, slot }),
        2 => who().prop_map(|(member, slot)| Op::DeleteNode { member, slot }),
        1 => (0_u32..3, prop::collection::vec(0_u32..4, 0..4))
            .prop_map(|(member, slots)| Op::Relist { member, slots }),
        1 => (1_u32..3).prop_map(|member| Op::Remove { member }),
    ]
}

fn of(member: u32) -> &'static str {
    NAMES[member as usize]
}

fn address(slot: u32) -> String {
    format!("10.0.0.{slot}")
}

fn identity(member: u32) -> u32 {
    ((member + 1) << 16) + 1
}

/// What each member says at present, in the order in which it was first said.
#[derive(Debug, Default)]
struct Model {
    said: Vec<(u32, Kind, u32)>,
}

impl Model {
    fn say(&mut self, member: u32, kind: Kind, slot: u32) {
        if !self.said.contains(&(member, kind, slot)) {
            self.said.push((member, kind, slot));
        }
    }

    fn unsay(&mut self, gone: impl Fn(&(u32, Kind, u32)) -> bool) {
        self.said.retain(|said| !gone(said));
    }

    /// Clusters that claim each address.
    fn claimants(&self) -> BTreeMap<u32, Vec<u32>> {
        let mut claimants: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (member, _, slot) in &self.said {
            claimants.entry(*slot).or_default().push(*member);
        }
        claimants
    }
}

fn run(bench: &mut Bench, model: &mut Model, op: &Op) -> Vec<Delta> {
    match op {
        Op::Put { member, slot } => {
            model.say(*member, Kind::Ips, *slot);
            let (address, value) = (address(*slot), ip(&address(*slot), identity(*member)));
            bench.put(of(*member), Kind::Ips, &address, &value)
        }
        Op::Delete { member, slot } => {
            model.unsay(|said| *said == (*member, Kind::Ips, *slot));
            bench.delete(of(*member), Kind::Ips, &address(*slot))
        }
        Op::Node { member, slot } => {
            model.say(*member, Kind::Nodes, *slot);
            let (of, n) = (of(*member), format!("n{slot}"));
            let cidr = format!("10.{}.0.0", member + 1);
            let value = node(of, *member + 1, &n, &address(*slot), &cidr);
            bench.put(of, Kind::Nodes, &n, &value)
        }
        Op::DeleteNode { member, slot } => {
            model.unsay(|said| *said == (*member, Kind::Nodes, *slot));
            bench.delete(of(*member), Kind::Nodes, &format!("n{slot}"))
        }
        Op::Relist { member, slots } => {
            model.unsay(|(m, kind, slot)| {
                m == member && *kind == Kind::Ips && !slots.contains(slot)
            });
            slots.iter().for_each(|s| model.say(*member, Kind::Ips, *s));
            let value = |s: &u32| (address(*s), ip(&address(*s), identity(*member)));
            let entries: Vec<_> = slots.iter().map(value).collect();
            let entries: Vec<_> = entries.iter().map(|(k, v)| (&**k, &**v)).collect();
            bench.list(of(*member), Kind::Ips, &entries)
        }
        Op::Remove { member } => {
            model.unsay(|(m, ..)| m == member);
            let mut deltas = bench.remove(of(*member));
            bench.mesh.expire(bench.now + limits::CACHE_GRACE);
            deltas.extend(bench.connect(of(*member), terms(*member + 1)));
            deltas
        }
    }
}

proptest! {
    #[test]
    fn owners_are_those_of_a_naive_model(ops in prop::collection::vec(op(), 1..60)) {
        let mut bench = Bench::new();
        bench.connect("north", terms(3));
        let mut model = Model::default();
        let mut told: BTreeMap<IpPrefix, IpTarget> = BTreeMap::new();
        for op in ops {
            let before = told.clone();
            for delta in run(&mut bench, &mut model, &op) {
                match delta {
                    Delta::Ip { prefix, target: Some(target) } => drop(told.insert(prefix, target)),
                    Delta::Ip { prefix, target: None } => drop(told.remove(&prefix)),
                    _ => {}
                }
            }
            let claimants = model.claimants();
            for slot in 0..4 {
                let prefix: IpPrefix = address(slot).parse().unwrap();
                let owner = told.get(&prefix).map(|target| target.cluster);
                let claimed = claimants.get(&slot).cloned().unwrap_or_default();
                // Claimed is the same as owned, and by one of those who claim it.
                prop_assert_eq!(owner.is_some(), !claimed.is_empty(), "{} after {:?}", prefix, op);
                if let Some(owner) = owner {
                    let member = owner.get() - 1;
                    prop_assert!(claimed.contains(&member));
                    prop_assert!(member == 0 || !claimed.contains(&0), "the own cluster first");
                    // Who had it and still claims it keeps it, but for the own cluster.
                    if let Some(before) = before.get(&prefix) {
                        let had = before.cluster.get() - 1;
                        let keeps = claimed.contains(&had) && !claimed.contains(&0);
                        let removed = matches!(op, Op::Remove { member } if member == had);
                        prop_assert!(!keeps || removed || had == member);
                    }
                }
                let view = bench.mesh.view.addresses.get(&prefix).map(|target| *target);
                prop_assert_eq!(view.as_ref(), told.get(&prefix));
                for (member, of) in (0..).zip(NAMES).skip(1) {
                    let cached = bench.is_cached(&format!("cilium/cache/ip/v1/{of}/{}", address(slot)));
                    let said = model.said.contains(&(member, Kind::Ips, slot));
                    let owns = owner.is_some_and(|owner| owner.get() == member + 1);
                    prop_assert_eq!(cached, said && owns, "{} of {} after {:?}", prefix, of, op);
                }
            }
        }
        for of in NAMES {
            for kind in [Kind::Ips, Kind::Nodes] {
                bench.list(of, kind, &[]);
            }
        }
        prop_assert!(bench.mesh.view.addresses.is_empty());
        prop_assert!(bench.mesh.territory.is_empty());
        for member in bench.mesh.members.values().filter(|member| !member.own) {
            let usage = member.usage;
            prop_assert_eq!((usage.keys, usage.bytes, usage.held_keys, usage.held_bytes), (0, 0, 0, 0));
        }
        prop_assert_eq!(bench.mesh.waiting.len(), 0);
    }
}
