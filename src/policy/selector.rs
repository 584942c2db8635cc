//! Label selectors, and the labels of reserved identities.
use std::{collections::BTreeSet, sync::Arc};

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
    pub(super) fn required(&self) -> Option<(&str, &BTreeSet<String>)> {
        let required = self.0.iter().filter_map(|r| match &r.operator {
            Operator::In(values) => Some((r.key.as_str(), values)),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        required
            .min_by_key(|(key, values)| (*key == CLUSTER_KEY, *key == NAMESPACE_KEY, values.len()))
    }
}

/// The labels of a reserved identity; the API server's is a remote node as well, and what has an
/// address of one family is of the world.
pub(super) fn reserved_labels(id: IdentityId) -> Option<Arc<Labels>> {
    let label = |key: &str| Label {
        source: "reserved".into(),
        key: key.to_owned(),
        value: String::new(),
    };
    let name = id.reserved_name()?;
    let mut labels = vec![label(name)];
    match name {
        "kube-apiserver" => labels.push(label("remote-node")),
        "world-ipv4" | "world-ipv6" => labels.push(label("world")),
        _ => {}
    }
    Labels::new(labels).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER_KEY, Operator, Requirement, Selector};
    use crate::types::Labels;

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
}
