//! Every selector of peers in use, once, with the identities that it matches.
//!
//! Selectors are indexed by one `key=value` that they require, or by their prefix, so that an identity
//! is tested only against those that could match it.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    policy::{cidr, selector::Selector},
    types::{IdentityId, IpPrefix, Label, Labels},
};

/// What selectors are matched against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) labels: Arc<Labels>,
    /// What it stands for, if that is a part of the world.
    pub(super) prefix: Option<IpPrefix>,
}

impl Identity {
    /// An identity that some cluster allocated. What it says of itself with labels that only
    /// reserved identities and prefixes have is not heard.
    pub(super) fn of_mesh(labels: Arc<Labels>) -> Self {
        let ours = |label: &&Label| !["reserved", "cidr"].contains(&&*label.source);
        let all = labels.as_slice();
        let labels = if all.iter().all(|label| ours(&label)) {
            labels
        } else {
            // Labels that were read hold nothing that can't be written.
            let heard = all.iter().filter(ours).cloned();
            Arc::new(Labels::new(heard).unwrap_or_default())
        };
        let prefix = None;
        Self { labels, prefix }
    }

    /// The identity of a part of the world.
    pub(super) fn of(prefix: IpPrefix) -> Self {
        Self {
            labels: Arc::new(cidr::labels(&prefix)),
            prefix: Some(prefix),
        }
    }
}

/// Whom a rule means, resolved for this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Select {
    Labels(Selector),
    /// Parts of the world inside `cidr` and not inside any of `except`.
    Cidr {
        cidr: IpPrefix,
        except: BTreeSet<IpPrefix>,
    },
}

impl Select {
    pub(super) fn matches(&self, identity: &Identity) -> bool {
        match self {
            Self::Labels(selector) => selector.matches(&identity.labels),
            Self::Cidr { cidr, except } => identity.prefix.is_some_and(|prefix| {
                let inside = |outer: &IpPrefix| cidr::covers(outer, &prefix);
                inside(cidr) && !except.iter().any(inside)
            }),
        }
    }
}

/// Where a selector is used: a rule, and the position of the grant in it.
pub(super) type User = (super::rules::RuleId, usize);

/// Names a selector held by the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SelectorId(u32);

/// A selector held by the cache.
#[derive(Debug)]
pub(super) struct Held {
    select: Arc<Select>,
    /// The identities it matches now.
    pub(super) matches: BTreeSet<IdentityId>,
    /// Who uses it; never empty.
    pub(super) users: BTreeSet<User>,
}

/// Every selector in use, once.
/// Invariant: `by_select`, `held` and the indices (`by_label`, `by_prefix` or `unindexed`) name the
/// same ones.
#[derive(Debug, Default)]
pub(super) struct SelectorCache {
    held: HashMap<SelectorId, Held>,
    by_select: HashMap<Arc<Select>, SelectorId>,
    by_label: HashMap<String, HashMap<String, BTreeSet<SelectorId>>>,
    by_prefix: HashMap<IpPrefix, BTreeSet<SelectorId>>,
    unindexed: BTreeSet<SelectorId>,
    last_id: u32,
}

impl SelectorCache {
    /// Adds a use; a selector that is new is matched against `identities` once.
    pub(super) fn acquire(
        &mut self,
        select: Select,
        user: User,
        identities: &HashMap<IdentityId, Identity>,
    ) -> SelectorId {
        if let Some(id) = self.by_select.get(&select) {
            if let Some(held) = self.held.get_mut(id) {
                held.users.insert(user);
            }
            return *id;
        }
        let id = loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.held.contains_key(&SelectorId(self.last_id)) {
                break SelectorId(self.last_id);
            }
        };
        let matching = identities.iter().filter(|(_, i)| select.matches(i));
        let matches = matching.map(|(id, _)| *id).collect();
        let (select, users) = (Arc::new(select), BTreeSet::from([user]));
        self.index(id, &select);
        self.by_select.insert(Arc::clone(&select), id);
        let held = Held {
            select,
            matches,
            users,
        };
        self.held.insert(id, held);
        id
    }

    /// Takes a use back; the last one drops the selector.
    pub(super) fn release(&mut self, id: SelectorId, user: User) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        held.users.remove(&user);
        if !held.users.is_empty() {
            return;
        }
        let select = Arc::clone(&held.select);
        self.held.remove(&id);
        self.by_select.remove(&select);
        self.unindex(id, &select);
    }

    /// One selector.
    pub(super) fn get(&self, id: SelectorId) -> Option<&Held> {
        self.held.get(&id)
    }

    /// True if one of these is like the identity.
    pub(super) fn any_matches<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a SelectorId>,
        identity: &Identity,
    ) -> bool {
        let mut held = ids.into_iter().filter_map(|id| self.held.get(id));
        held.any(|held| held.select.matches(identity))
    }

    /// An identity is another now; returns the selectors that match it now but did not, and those
    /// that did but do not.
    pub(super) fn relabel(
        &mut self,
        id: IdentityId,
        old: Option<&Identity>,
        new: Option<&Identity>,
    ) -> (Vec<SelectorId>, Vec<SelectorId>) {
        let (mut gained, mut lost) = (Vec::new(), Vec::new());
        for selector in self.candidates(old.into_iter().chain(new)) {
            let Some(held) = self.held.get_mut(&selector) else {
                continue;
            };
            if new.is_some_and(|identity| held.select.matches(identity)) {
                if held.matches.insert(id) {
                    gained.push(selector);
                }
            } else if held.matches.remove(&id) {
                lost.push(selector);
            }
        }
        (gained, lost)
    }

    /// How many distinct selectors are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    fn candidates<'a>(
        &self,
        identities: impl Iterator<Item = &'a Identity>,
    ) -> BTreeSet<SelectorId> {
        let mut candidates = self.unindexed.clone();
        for identity in identities {
            for label in identity.labels.as_slice() {
                let by_value = self.by_label.get(&label.key);
                let ids = by_value.and_then(|values| values.get(&label.value));
                candidates.extend(ids.into_iter().flatten());
            }
            let around = identity.prefix.into_iter().flat_map(cidr::around);
            let ids = around.filter_map(|prefix| self.by_prefix.get(&prefix));
            candidates.extend(ids.flatten());
        }
        candidates
    }

    fn index(&mut self, id: SelectorId, select: &Select) {
        match select {
            Select::Cidr { cidr, .. } => {
                self.by_prefix.entry(*cidr).or_default().insert(id);
            }
            Select::Labels(selector) => match selector.required() {
                Some((key, values)) => {
                    let by_value = self.by_label.entry(key.to_owned()).or_default();
                    for value in values {
                        by_value.entry(value.clone()).or_default().insert(id);
                    }
                }
                None => {
                    self.unindexed.insert(id);
                }
            },
        }
    }

    fn unindex(&mut self, id: SelectorId, select: &Select) {
        match select {
            Select::Cidr { cidr, .. } => drop_from(&mut self.by_prefix, cidr, id),
            Select::Labels(selector) => match selector.required() {
                Some((key, values)) => {
                    let Some(by_value) = self.by_label.get_mut(key) else {
                        return;
                    };
                    for value in values {
                        drop_from(by_value, value, id);
                    }
                    if by_value.is_empty() {
                        self.by_label.remove(key);
                    }
                }
                None => {
                    self.unindexed.remove(&id);
                }
            },
        }
    }
}

/// Takes `id` out of a key's set, and the key if the set is empty then.
fn drop_from<K: Eq + std::hash::Hash>(
    index: &mut HashMap<K, BTreeSet<SelectorId>>,
    key: &K,
    id: SelectorId,
) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::selector::Requirement;

    const ID: IdentityId = IdentityId(300);

    fn labelled(text: &str) -> Identity {
        Identity {
            labels: Arc::new(Labels::parse(text)),
            prefix: None,
        }
    }

    fn part_of_the_world(prefix: &str) -> Identity {
        Identity::of(prefix.parse().unwrap())
    }

    #[test]
    fn equal_selectors_are_held_once_until_the_last_release() {
        let mut cache = SelectorCache::default();
        let select = || Select::Labels(Selector::new([Requirement::k8s("app", "a")]));
        let none = HashMap::new();
        let first = cache.acquire(select(), (1, 0), &none);
        assert_eq!(cache.acquire(select(), (2, 0), &none), first);
        assert_eq!(cache.len(), 1);
        let (a, b) = (labelled("k8s:app=a;"), labelled("k8s:app=b;"));
        assert_eq!(cache.relabel(ID, None, Some(&a)), (vec![first], vec![]));
        assert_eq!(cache.relabel(ID, Some(&a), Some(&a)), (vec![], vec![]));
        assert_eq!(cache.relabel(ID, Some(&a), Some(&b)), (vec![], vec![first]));
        cache.release(first, (1, 0));
        assert_eq!(cache.len(), 1);
        cache.release(first, (2, 0));
        assert_eq!(cache.len(), 0);
        assert!(cache.by_label.is_empty() && cache.by_select.is_empty());
    }

    #[test]
    fn a_prefix_selects_what_lies_inside_it_and_in_no_exception() {
        let mut cache = SelectorCache::default();
        let select = Select::Cidr {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: ["10.1.0.0/16".parse().unwrap()].into(),
        };
        let id = cache.acquire(select, (1, 0), &HashMap::new());
        for (identity, expected) in [
            (part_of_the_world("10.0.0.0/8"), true),
            (part_of_the_world("10.2.0.1"), true),
            (part_of_the_world("10.1.0.0/16"), false),
            (part_of_the_world("10.1.2.0/24"), false),
            (part_of_the_world("10.0.0.0/7"), false),
            (part_of_the_world("fd00::/8"), false),
            (labelled("cidr:10.2.0.1/32=;"), false),
        ] {
            let (gained, _) = cache.relabel(ID, None, Some(&identity));
            assert_eq!(gained == [id], expected, "{identity:?}");
            cache.relabel(ID, Some(&identity), None);
        }
        cache.release(id, (1, 0));
        assert!(cache.by_prefix.is_empty());
    }
}
