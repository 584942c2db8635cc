//! The order in which one change reaches the maps, so that no packet in between is judged as
//! neither the old nor the new policy would.
//!
//! A packet passes if no entry that matches it denies, and one allows or there is no default deny.
//! Changes come as: (1) entries begin to deny, (2) entries begin to allow, (3) modes, (4) entries
//! cease to allow, (5) entries cease to deny. Let a packet have the same verdict before and after.
//!
//! - Dropped by a deny before: that entry stays until (5), and then everything else is as after.
//! - Dropped by a deny after: that entry is there from (1) on, and until then everything else is as
//!   before.
//! - Dropped by default both times: no allow before or after, so there is none in between, and the
//!   mode denies all the time.
//! - Passed both times: no deny before or after, so there is none in between. An allow after is there
//!   from (2), one before stays until (4), and the mode changes between: if nothing allowed it
//!   before or nothing does after, the mode of that side is the one that let it pass.
//!
//! The same holds for the verdict that counts audited policies, as its steps are the same ones. One
//! write is enough for most entries: beside a vote to deny, what else an entry says can't be seen, so
//! an entry that denies after takes its final form in (1), and one that denied before in (5).
//!
//! An endpoint under audit passes everything: so audit begins before all this, and ends after it.
use crate::{
    policy::{EndpointMode, MapDelta, PolicyEntry, PolicyKey, Votes},
    types::EndpointId,
};

/// An entry before and after; never equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryChange {
    pub(super) key: PolicyKey,
    pub(super) old: Option<PolicyEntry>,
    pub(super) new: Option<PolicyEntry>,
}

/// A mode before and after; never equal. Without an old one nothing was told of the endpoint yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModeChange {
    pub(super) endpoint: EndpointId,
    pub(super) old: Option<EndpointMode>,
    pub(super) new: EndpointMode,
}

const ALLOWS: u8 = Votes::ALLOW.bits() | Votes::AUDIT_ALLOW.bits();

/// Appends the changes in the order that the module promises.
pub(super) fn push(entries: &[EntryChange], modes: &[ModeChange], out: &mut Vec<MapDelta>) {
    let [begin, change, end] = [0, 1, 2].map(|step| {
        let deltas = modes.iter().filter_map(move |mode| mode.step(step));
        deltas.collect::<Vec<_>>()
    });
    out.extend(begin);
    let steps: Vec<Steps> = entries.iter().map(EntryChange::steps).collect();
    for step in 0..4 {
        if step == 2 {
            out.extend(change.iter().cloned());
        }
        let deltas = entries.iter().zip(&steps);
        out.extend(deltas.filter_map(|(entry, steps)| entry.step(steps, step)));
    }
    out.extend(end);
}

/// The votes of an entry after steps (1), (2), (4) and (5).
type Steps = [Votes; 4];

impl EntryChange {
    fn steps(&self) -> Steps {
        let votes = |entry: Option<PolicyEntry>| entry.map_or(Votes::NONE, |entry| entry.votes);
        let (old, new) = (votes(self.old), votes(self.new));
        if new.contains(Votes::DENY) {
            return [new; 4];
        }
        if old.contains(Votes::DENY) {
            return [old, old, old, new];
        }
        let denying = old.bits() | (new.bits() & !ALLOWS);
        let allowing = denying | new.bits();
        let disallowing = allowing & (new.bits() | !ALLOWS);
        [denying, allowing, disallowing, new.bits()].map(Votes::from_bits)
    }

    fn step(&self, steps: &Steps, step: usize) -> Option<MapDelta> {
        let old = self.old.map_or(Votes::NONE, |old| old.votes);
        let before = step.checked_sub(1).map_or(old, |before| steps[before]);
        let votes = steps[step];
        // Where only another rule is named, any step will do.
        let renamed = step == 1 && *steps == [old; 4];
        if votes == before && !renamed {
            return None;
        }
        let rule = self.new.or(self.old).map_or(0, |entry| entry.rule);
        let value = (!votes.is_empty()).then_some(PolicyEntry { votes, rule });
        let key = self.key;
        Some(MapDelta::Entry { key, value })
    }
}

impl ModeChange {
    /// What is told before, amid and after the entries.
    fn step(&self, step: usize) -> Option<MapDelta> {
        let (old, new) = (self.old, self.new);
        let begins = old.is_some_and(|old| new.audit && !old.audit);
        let ends = old.is_some_and(|old| old.audit && !new.audit);
        let of = |mode, audit| EndpointMode { audit, ..mode };
        let amid = old.is_none_or(|old| of(old, false) != of(new, false));
        let mode = match step {
            0 => old.filter(|_| begins).map(|old| of(old, true)),
            1 => amid.then(|| of(new, new.audit || ends)),
            _ => ends.then_some(new),
        };
        let endpoint = self.endpoint;
        mode.map(|mode| MapDelta::Endpoint { endpoint, mode })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        policy::{Direction, PerDirection, verdict},
        types::IdentityId,
    };

    const ENDPOINT: EndpointId = EndpointId(1);

    fn key(identity: u32, port_bits: u8) -> PolicyKey {
        PolicyKey {
            endpoint: ENDPOINT,
            identity: IdentityId(identity),
            direction: Direction::Egress,
            protocol: 6,
            port: 0,
            port_bits,
        }
    }

    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct Maps {
        entries: BTreeMap<PolicyKey, PolicyEntry>,
        mode: EndpointMode,
    }

    impl Maps {
        fn apply(&mut self, delta: &MapDelta) {
            match delta {
                MapDelta::Entry { key, value } => {
                    let old = match value {
                        Some(value) => self.entries.insert(*key, *value),
                        None => self.entries.remove(key),
                    };
                    assert_ne!(old, *value, "a write for nothing");
                }
                MapDelta::Endpoint { mode, .. } => {
                    assert_ne!(self.mode, *mode, "a write for nothing");
                    self.mode = *mode;
                }
                MapDelta::Cidr { .. } => unreachable!("not from here"),
            }
        }

        /// Whether a packet passes, and whether it would if audited policies counted.
        fn judge(&self, packet: &PolicyKey) -> (bool, bool) {
            let verdict = verdict(|key| self.entries.get(key).copied(), packet);
            let (deny, audit) = (self.mode.default_deny, self.mode.audit_default_deny);
            let passes = verdict.passes(deny.egress) || self.mode.audit;
            (passes, verdict.passes_audited(deny.egress || audit.egress))
        }
    }

    fn maps() -> impl Strategy<Value = Maps> {
        let keys = [key(7, 16), key(7, 0), key(0, 16), key(0, 0)];
        let entry = (0..16_u8, 1..3_u32);
        let entries = proptest::collection::vec(entry, keys.len());
        (entries, any::<[bool; 3]>()).prop_map(move |(entries, [deny, audit_deny, audit])| {
            let entries = keys.into_iter().zip(entries);
            let entries = entries.filter(|(_, (bits, _))| *bits != 0);
            let egress = |egress| PerDirection {
                ingress: false,
                egress,
            };
            Maps {
                entries: entries
                    .map(|(key, (bits, rule))| {
                        let votes = Votes::from_bits(bits);
                        (key, PolicyEntry { votes, rule })
                    })
                    .collect(),
                mode: EndpointMode {
                    default_deny: egress(deny),
                    audit_default_deny: egress(audit_deny),
                    audit,
                },
            }
        })
    }

    fn between(old: &Maps, new: &Maps) -> Vec<MapDelta> {
        let keys: std::collections::BTreeSet<_> =
            old.entries.keys().chain(new.entries.keys()).collect();
        let entries: Vec<EntryChange> = keys
            .into_iter()
            .map(|key| EntryChange {
                key: *key,
                old: old.entries.get(key).copied(),
                new: new.entries.get(key).copied(),
            })
            .filter(|change| change.old != change.new)
            .collect();
        let mode = ModeChange {
            endpoint: ENDPOINT,
            old: Some(old.mode),
            new: new.mode,
        };
        let modes = if old.mode == new.mode {
            vec![]
        } else {
            vec![mode]
        };
        let mut out = Vec::new();
        push(&entries, &modes, &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn no_packet_meets_what_neither_old_nor_new_says(old in maps(), new in maps()) {
            let packets = [key(7, 16), key(8, 16), PolicyKey { port: 1, ..key(7, 16) }];
            let mut maps = old.clone();
            for delta in between(&old, &new) {
                maps.apply(&delta);
                for packet in &packets {
                    let (before, after) = (old.judge(packet), new.judge(packet));
                    let now = maps.judge(packet);
                    prop_assert!(now.0 == before.0 || now.0 == after.0, "{:?}", delta);
                    prop_assert!(now.1 == before.1 || now.1 == after.1, "{:?}", delta);
                }
            }
            prop_assert_eq!(maps, new);
        }
    }

    #[test]
    fn most_entries_take_one_write() {
        let all = [
            Votes::NONE,
            Votes::ALLOW,
            Votes::DENY,
            Votes::ALLOW.union(Votes::DENY),
        ];
        let with = |votes: Votes| {
            let entry = PolicyEntry { votes, rule: 1 };
            let entries = (!votes.is_empty()).then_some((key(7, 16), entry));
            Maps {
                entries: entries.into_iter().collect(),
                mode: EndpointMode::default(),
            }
        };
        for (old, new) in all.iter().flat_map(|old| all.map(|new| (*old, new))) {
            let count = between(&with(old), &with(new)).len();
            assert_eq!(count, usize::from(old != new), "{old:?} to {new:?}");
        }
    }
}
