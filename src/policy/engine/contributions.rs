//! Who is behind each entry of the policy map.
//!
//! Invariant: an entry exists exactly as long as somebody contributes to it. Contributions are
//! counted per rule and vote, so that what two rules say survives the end of one.
use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};

use super::order::EntryChange;
use crate::{
    policy::{PolicyEntry, PolicyKey, Votes},
    types::EndpointId,
};

/// What a rule wants of the packets of a key; ordered as rules are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Vote {
    Deny,
    Allow,
    AuditDeny,
    AuditAllow,
}

impl Vote {
    pub(super) const fn new(deny: bool, audit: bool) -> Self {
        match (deny, audit) {
            (true, false) => Self::Deny,
            (false, false) => Self::Allow,
            (true, true) => Self::AuditDeny,
            (false, true) => Self::AuditAllow,
        }
    }

    pub(super) const fn denies(self) -> bool {
        matches!(self, Self::Deny | Self::AuditDeny)
    }

    pub(super) const fn audited(self) -> bool {
        matches!(self, Self::AuditDeny | Self::AuditAllow)
    }

    const fn votes(self) -> Votes {
        match self {
            Self::Deny => Votes::DENY,
            Self::Allow => Votes::ALLOW,
            Self::AuditDeny => Votes::AUDIT_DENY,
            Self::AuditAllow => Votes::AUDIT_ALLOW,
        }
    }
}

/// A rule's vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Voice {
    pub(super) vote: Vote,
    pub(super) rule: u32,
}

/// A voice, and how often it is raised: once for each selector of the rule that matches.
#[derive(Debug, Clone, Copy)]
struct Counted {
    voice: Voice,
    count: u32,
}

/// Nearly every entry has one rule behind it, which then takes no allocation of its own.
#[derive(Debug)]
enum Voices {
    One(Counted),
    /// At least two, sorted by voice.
    Many(Vec<Counted>),
}

impl Voices {
    fn as_slice(&self) -> &[Counted] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    fn entry(&self) -> PolicyEntry {
        let all = self.as_slice().iter();
        let votes = all.fold(Votes::NONE, |votes, c| votes.union(c.voice.vote.votes()));
        // The first is the one to be named.
        let rule = self.as_slice().first().map_or(0, |c| c.voice.rule);
        PolicyEntry { votes, rule }
    }

    fn add(&mut self, voice: Voice) {
        let found = self.as_slice().binary_search_by_key(&voice, |c| c.voice);
        let new = Counted { voice, count: 1 };
        match (self, found) {
            (Self::One(one), Ok(_)) => one.count += 1,
            (Self::Many(many), Ok(at)) => many[at].count += 1,
            (Self::Many(many), Err(at)) => many.insert(at, new),
            (this @ Self::One(_), Err(at)) => {
                let mut many = Vec::with_capacity(2);
                many.extend_from_slice(this.as_slice());
                many.insert(at, new);
                *this = Self::Many(many);
            }
        }
    }

    /// Returns true if nobody is left.
    fn remove(&mut self, voice: Voice) -> bool {
        let Ok(at) = self.as_slice().binary_search_by_key(&voice, |c| c.voice) else {
            debug_assert!(false, "{voice:?} is taken back without having been raised");
            return false;
        };
        match self {
            Self::One(one) => {
                one.count -= 1;
                one.count == 0
            }
            Self::Many(many) => {
                many[at].count -= 1;
                if many[at].count == 0 {
                    many.remove(at);
                }
                if let [last] = many[..] {
                    *self = Self::One(last);
                }
                false
            }
        }
    }
}

/// All entries.
#[derive(Debug, Default)]
pub(super) struct Contributions(HashMap<PolicyKey, Voices>);

/// What one change touches, with the entries as they were before it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    entries: HashMap<PolicyKey, Option<PolicyEntry>>,
    /// Endpoints whose mode may be another.
    pub(super) endpoints: BTreeSet<EndpointId>,
}

impl Contributions {
    pub(super) fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.0.get(key).map(Voices::entry)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All entries, sorted by key.
    pub(super) fn all(&self) -> BTreeMap<PolicyKey, PolicyEntry> {
        let all = self.0.iter();
        all.map(|(key, voices)| (*key, voices.entry())).collect()
    }

    /// A rule raises its voice for a key, or takes that back.
    pub(super) fn change(
        &mut self,
        key: PolicyKey,
        voice: Voice,
        add: bool,
        touched: &mut Touched,
    ) {
        match self.0.entry(key) {
            hash_map::Entry::Occupied(mut voices) => {
                let before = touched.entries.entry(key);
                before.or_insert_with(|| Some(voices.get().entry()));
                if add {
                    voices.get_mut().add(voice);
                } else if voices.get_mut().remove(voice) {
                    voices.remove();
                }
            }
            hash_map::Entry::Vacant(vacant) => {
                debug_assert!(add, "{key:?} is taken back without having been contributed");
                if add {
                    touched.entries.entry(key).or_insert(None);
                    vacant.insert(Voices::One(Counted { voice, count: 1 }));
                }
            }
        }
    }

    /// The entries that are others than before, sorted by key.
    pub(super) fn changed(&self, touched: &mut Touched) -> Vec<EntryChange> {
        let touched = std::mem::take(&mut touched.entries).into_iter();
        let mut changed: Vec<EntryChange> = touched
            .map(|(key, old)| EntryChange {
                key,
                old,
                new: self.entry(&key),
            })
            .filter(|change| change.old != change.new)
            .collect();
        changed.sort_unstable_by_key(|change| change.key);
        changed
    }
}
