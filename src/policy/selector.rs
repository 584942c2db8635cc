//! Label selectors, and the cache that holds each distinct one once with whom it matches.
//!
//! The cache indexes a selector by one `key=value` that it requires, so that an identity is tested
//! only against selectors that could match it.
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::types::{IdentityId, Label, Labels};

/// The label key of a workload's namespace.
pub(super) const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// The start of the label keys made from a namespace's own labels.
pub(super) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// The label key of a workload's cluster.
pub(super) const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";

/// A conjunction of requirements, sorted and unique; without any it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Selector(Vec<Requirement>);

/// What one label key must be like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The label's source; `None` for any.
    pub source: Option<String>,
    /// What about it.
    pub operator: Operator,
}

/// The operators of Kubernetes' `matchExpressions`; the value lists are not empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values.
    In(BTreeSet<String>),
    /// The key is missing, or has none of these values.
    NotIn(BTreeSet<String>),
    /// The key is there.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

impl Requirement {
    /// Requires a label of source `k8s`.
    #[must_use]
    pub fn k8s(key: &str, value: &str) -> Self {
        Self {
            key: key.to_owned(),
            source: Some("k8s".to_owned()),
            operator: Operator::In(BTreeSet::from([value.to_owned()])),
        }
    }

    /// Requires a label of source `reserved`, such as `reserved:host`.
    #[must_use]
    pub fn reserved(name: &str) -> Self {
        Self {
            key: name.to_owned(),
            source: Some("reserved".to_owned()),
            operator: Operator::Exists,
        }
    }

    /// True if it speaks about labels that Kubernetes or any source set under a matching key.
    pub(super) fn concerns(&self, key: impl Fn(&str) -> bool) -> bool {
        self.source.as_deref().is_none_or(|s| s == "k8s") && key(&self.key)
    }

    fn matches(&self, labels: &Labels) -> bool {
        let of_source = |l: &&Label| self.source.as_ref().is_none_or(|s| *s == l.source);
        let mut labels = labels.with_key(&self.key).filter(of_source);
        match &self.operator {
            Operator::In(values) => labels.any(|l| values.contains(&l.value)),
            Operator::NotIn(values) => !labels.any(|l| values.contains(&l.value)),
            Operator::Exists => labels.next().is_some(),
            Operator::DoesNotExist => labels.next().is_none(),
        }
    }
}

impl Selector {
    /// Brings the requirements into their canonical order.
    #[must_use]
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self(
            requirements
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        )
    }

    /// The requirements, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// True if all requirements hold.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// The selector confined to `cluster`, unless it speaks about clusters itself or selects
    /// reserved identities only, which belong to no cluster.
    #[must_use]
    pub fn in_local_cluster(&self, cluster: &str) -> Self {
        if self.is_reserved() || self.0.iter().any(|r| r.concerns(|k| k == CLUSTER_KEY)) {
            return self.clone();
        }
        let mut requirements = self.0.clone();
        requirements.push(Requirement::k8s(CLUSTER_KEY, cluster));
        Self::new(requirements)
    }

    /// True if there are requirements and all are about reserved labels.
    pub(super) fn is_reserved(&self) -> bool {
        let reserved = |r: &Requirement| r.source.as_deref() == Some("reserved");
        !self.0.is_empty() && self.0.iter().all(reserved)
    }

    /// A key with values, one of which every match must have. Namespace and cluster come last:
    /// many identities share those.
    fn required(&self) -> Option<(&str, &BTreeSet<String>)> {
        let required = self.0.iter().filter_map(|r| match &r.operator {
            Operator::In(values) => Some((r.key.as_str(), values)),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        required
            .min_by_key(|(key, values)| (*key == CLUSTER_KEY, *key == NAMESPACE_KEY, values.len()))
    }
}

/// Where a selector is used: a rule's number and the position of the grant in it.
pub(super) type User = (u32, usize);

/// Names a selector held by the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SelectorId(u32);

/// A selector held by the cache.
#[derive(Debug)]
pub(super) struct Held {
    selector: Arc<Selector>,
    /// The identities it matches now.
    pub(super) matches: BTreeSet<IdentityId>,
    /// Who uses it; never empty.
    pub(super) users: BTreeSet<User>,
}

/// Every selector in use, once.
/// Invariant: `by_selector`, `held` and the index (`by_label` or `unindexed`) name the same ones.
#[derive(Debug, Default)]
pub(super) struct SelectorCache {
    held: HashMap<SelectorId, Held>,
    by_selector: HashMap<Arc<Selector>, SelectorId>,
    by_label: HashMap<String, HashMap<String, BTreeSet<SelectorId>>>,
    unindexed: BTreeSet<SelectorId>,
    last_id: u32,
}

impl SelectorCache {
    /// Adds a use; a selector that is new is matched against `identities` once.
    pub(super) fn acquire<'a>(
        &mut self,
        selector: Selector,
        user: User,
        identities: impl Iterator<Item = (&'a IdentityId, &'a Arc<Labels>)>,
    ) -> SelectorId {
        if let Some(id) = self.by_selector.get(&selector) {
            if let Some(held) = self.held.get_mut(id) {
                held.users.insert(user);
            }
            return *id;
        }
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.held.contains_key(&SelectorId(self.last_id)) {
                break;
            }
        }
        let id = SelectorId(self.last_id);
        let selector = Arc::new(selector);
        if let Some((key, values)) = selector.required() {
            let by_value = self.by_label.entry(key.to_owned()).or_default();
            for value in values {
                by_value.entry(value.clone()).or_default().insert(id);
            }
        } else {
            self.unindexed.insert(id);
        }
        let matches = identities
            .filter(|(_, l)| selector.matches(l))
            .map(|(i, _)| *i)
            .collect();
        self.by_selector.insert(Arc::clone(&selector), id);
        self.held.insert(
            id,
            Held {
                selector,
                matches,
                users: BTreeSet::from([user]),
            },
        );
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
        let selector = Arc::clone(&held.selector);
        self.held.remove(&id);
        self.by_selector.remove(&selector);
        self.unindexed.remove(&id);
        let Some((key, values)) = selector.required() else {
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else {
            return;
        };
        for value in values {
            if let Some(ids) = by_value.get_mut(value) {
                ids.remove(&id);
                if ids.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
    }

    /// One selector.
    pub(super) fn get(&self, id: SelectorId) -> Option<&Held> {
        self.held.get(&id)
    }

    /// Gives an identity other labels; returns the selectors that match it now but did not, and
    /// those that did but do not.
    pub(super) fn relabel(
        &mut self,
        identity: IdentityId,
        old: Option<&Labels>,
        new: Option<&Labels>,
    ) -> (Vec<SelectorId>, Vec<SelectorId>) {
        let mut candidates = self.unindexed.clone();
        for label in old.into_iter().chain(new).flat_map(Labels::as_slice) {
            let ids = self
                .by_label
                .get(&label.key)
                .and_then(|v| v.get(&label.value));
            candidates.extend(ids.into_iter().flatten());
        }
        let (mut gained, mut lost) = (Vec::new(), Vec::new());
        for id in candidates {
            let Some(held) = self.held.get_mut(&id) else {
                continue;
            };
            if new.is_some_and(|labels| held.selector.matches(labels)) {
                if held.matches.insert(identity) {
                    gained.push(id);
                }
            } else if held.matches.remove(&identity) {
                lost.push(id);
            }
        }
        (gained, lost)
    }

    /// How many distinct selectors are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

/// The labels of a reserved identity; the API server's is a remote node as well.
pub(super) fn reserved_labels(id: IdentityId) -> Option<Arc<Labels>> {
    let label = |key: &str| Label {
        source: "reserved".into(),
        key: key.to_owned(),
        value: String::new(),
    };
    let name = id.reserved_name()?;
    let mut labels = vec![label(name)];
    if name == "kube-apiserver" {
        labels.push(label("remote-node"));
    }
    Labels::new(labels).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER_KEY, Operator, Requirement, Selector, SelectorCache};
    use crate::types::{IdentityId, Labels};

    fn requirement(source: Option<&str>, key: &str, operator: Operator) -> Requirement {
        Requirement {
            key: key.into(),
            source: source.map(Into::into),
            operator,
        }
    }

    #[test]
    fn operators_match_as_kubernetes_says() {
        let labels = Labels::parse("k8s:app=a;container:role=r;reserved:host=;");
        let values = |v: &str| [v.to_owned()].into();
        for (source, key, operator, expected) in [
            (None, "app", Operator::In(values("a")), true),
            (Some("k8s"), "app", Operator::In(values("a")), true),
            (Some("container"), "app", Operator::In(values("a")), false),
            (None, "app", Operator::In(values("b")), false),
            (None, "app", Operator::NotIn(values("b")), true),
            (None, "app", Operator::NotIn(values("a")), false),
            (None, "missing", Operator::NotIn(values("a")), true),
            (Some("k8s"), "role", Operator::NotIn(values("r")), true),
            (None, "role", Operator::Exists, true),
            (None, "missing", Operator::Exists, false),
            (None, "missing", Operator::DoesNotExist, true),
            (None, "role", Operator::DoesNotExist, false),
            (Some("reserved"), "host", Operator::Exists, true),
        ] {
            let selector = Selector::new([requirement(source, key, operator)]);
            assert_eq!(selector.matches(&labels), expected, "{selector:?}");
        }
        assert!(Selector::default().matches(&labels));
    }

    #[test]
    fn cluster_restriction_spares_selectors_that_speak_of_it() {
        let app = Requirement::k8s("app", "a");
        let restricted = Selector::new([app.clone()]).in_local_cluster("west");
        assert_eq!(
            restricted,
            Selector::new([app.clone(), Requirement::k8s(CLUSTER_KEY, "west")])
        );
        let exists = requirement(None, CLUSTER_KEY, Operator::Exists);
        for untouched in [
            Selector::new([app.clone(), exists]),
            Selector::new([app, Requirement::k8s(CLUSTER_KEY, "east")]),
            Selector::new([Requirement::reserved("host")]),
        ] {
            assert_eq!(untouched.in_local_cluster("west"), untouched);
        }
    }

    #[test]
    fn equal_selectors_are_held_once_until_the_last_release() {
        let mut cache = SelectorCache::default();
        let selector = || Selector::new([Requirement::k8s("app", "a")]);
        let first = cache.acquire(selector(), (1, 0), [].into_iter());
        assert_eq!(cache.acquire(selector(), (2, 0), [].into_iter()), first);
        assert_eq!(cache.len(), 1);
        let labels = Labels::parse("k8s:app=a;");
        let id = IdentityId(300);
        assert_eq!(
            cache.relabel(id, None, Some(&labels)),
            (vec![first], vec![])
        );
        assert_eq!(
            cache.relabel(id, Some(&labels), Some(&labels)),
            (vec![], vec![])
        );
        let other = Labels::parse("k8s:app=b;");
        assert_eq!(
            cache.relabel(id, Some(&labels), Some(&other)),
            (vec![], vec![first])
        );
        cache.release(first, (1, 0));
        assert_eq!(cache.len(), 1);
        cache.release(first, (2, 0));
        assert_eq!(cache.len(), 0);
        assert!(cache.by_label.is_empty() && cache.by_selector.is_empty());
    }
}
