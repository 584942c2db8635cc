//! Which labels make an identity. Pure.
//!
//! The set is that of Cilium's agent with its default filter: what a workload says of itself, minus
//! what differs from replica to replica, plus namespace, service account and cluster, which nobody
//! may set for themselves.
use std::{collections::BTreeMap, iter};

use crate::types::{ClusterName, Label, LabelError, Labels};

/// Key of the label that names the home cluster.
pub const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";
/// Key of the label that names the service account.
pub const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
/// Key of the label that names the namespace.
pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// Start of the keys that carry the namespace's labels; a dot and the label's own key follow.
pub const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels";
/// The label that Kubernetes sets on each namespace.
const NAMESPACE_NAME_KEY: &str = "kubernetes.io/metadata.name";

/// Starts of keys and whether they are relevant; the longest that matches decides.
const FILTER: &[(&str, bool)] = &[
    (NAMESPACE_KEY, true),
    (NAMESPACE_LABELS_PREFIX, true),
    (CLUSTER_KEY, true),
    (SERVICE_ACCOUNT_KEY, true),
    ("app.kubernetes.io", true),
    ("io.kubernetes", false),
    ("kubernetes.io", false),
    ("k8s.io", false),
    ("pod-template-hash", false),
    ("pod-template-generation", false),
    ("controller-revision-hash", false),
    ("controller-uid", false),
    ("statefulset.kubernetes.io/pod-name", false),
    ("apps.kubernetes.io/pod-index", false),
    ("batch.kubernetes.io/job-completion-index", false),
    ("batch.kubernetes.io/controller-uid", false),
    ("etcd_node", false),
];

/// Excluded wherever in the key it stands; its match reaches from the key's start to its end.
const FILTER_ANYWHERE: &str = "beta.kubernetes.io";
/// Excluded with all that follows, so its match is as long as the key.
const FILTER_WHOLE: &str = "annotation";

/// True if a label with this key counts towards the identity.
#[must_use]
pub fn is_relevant(key: &str) -> bool {
    if key.starts_with(FILTER_WHOLE) {
        return false;
    }
    let anywhere = key
        .rfind(FILTER_ANYWHERE)
        .map(|at| (at + FILTER_ANYWHERE.len(), false));
    FILTER
        .iter()
        .filter(|(start, _)| key.starts_with(start))
        .map(|&(start, relevant)| (start.len(), relevant))
        .chain(anywhere)
        .max_by_key(|&(len, _)| len)
        .is_none_or(|(_, relevant)| relevant)
}

/// What a workload's identity labels are made of.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The own cluster.
    pub cluster: &'a ClusterName,
    /// The workload's namespace.
    pub namespace: &'a str,
    /// Labels of that namespace, if it is known.
    pub namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// The service account it runs as.
    pub service_account: &'a str,
    /// Its own labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// The identity labels of `subject`, filtered. Own labels cannot stand in for those that the
/// cluster sets: such keys are skipped.
///
/// # Errors
/// If a key or value contains `;`.
pub fn identity_labels(subject: Subject<'_>) -> Result<Labels, LabelError> {
    let own = subject
        .labels
        .iter()
        .filter(|(key, _)| !is_set_by_cluster(key))
        .map(|(key, value)| (key.clone(), value.clone()));
    let namespace_label =
        |key: &str, value: &str| (format!("{NAMESPACE_LABELS_PREFIX}.{key}"), value.to_owned());
    let of_namespace = subject
        .namespace_labels
        .into_iter()
        .flatten()
        .map(|(key, value)| namespace_label(key, value));
    // Kubernetes puts it on every namespace, so policies may count on it. Last, as it wins.
    let namespace_name = iter::once(namespace_label(NAMESPACE_NAME_KEY, subject.namespace));
    let set_by_cluster = [
        (NAMESPACE_KEY, subject.namespace),
        (SERVICE_ACCOUNT_KEY, subject.service_account),
        (CLUSTER_KEY, subject.cluster.as_str()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    Labels::new(
        own.chain(of_namespace)
            .chain(namespace_name)
            .chain(set_by_cluster)
            .filter(|(key, _)| is_relevant(key))
            .map(|(key, value)| Label {
                source: "k8s".into(),
                key,
                value,
            }),
    )
}

fn is_set_by_cluster(key: &str) -> bool {
    [NAMESPACE_KEY, CLUSTER_KEY, SERVICE_ACCOUNT_KEY].contains(&key)
        || key.starts_with(NAMESPACE_LABELS_PREFIX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Subject, identity_labels, is_relevant};

    #[test]
    fn default_filter_decides_by_longest_match() {
        let table = [
            ("app", true),
            ("io.kubernetes.pod.namespace", true),
            ("io.kubernetes.pod.uid", false),
            ("io.cilium.k8s.policy.cluster", true),
            ("io.cilium.k8s.policy.serviceaccount", true),
            (
                "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
                true,
            ),
            (
                "io.cilium.k8s.namespace.labels.beta.kubernetes.io/os",
                false,
            ),
            ("app.kubernetes.io/name", true),
            ("kubernetes.io/hostname", false),
            ("k8s.io/cluster", false),
            ("topology.kubernetes.io/zone", true),
            ("beta.kubernetes.io/arch", false),
            ("node.beta.kubernetes.io/arch", false),
            ("pod-template-hash", false),
            ("pod-template-generation", false),
            ("controller-revision-hash", false),
            ("controller-uid", false),
            ("statefulset.kubernetes.io/pod-name", false),
            ("apps.kubernetes.io/pod-index", false),
            ("batch.kubernetes.io/job-completion-index", false),
            ("batch.kubernetes.io/controller-uid", false),
            ("batch.kubernetes.io/job-name", true),
            ("annotation.checksum", false),
            ("etcd_node", false),
            ("my-pod-template-hash", true),
        ];
        for (key, relevant) in table {
            assert_eq!(is_relevant(key), relevant, "{key}");
        }
    }

    #[test]
    fn labels_set_by_the_cluster_cannot_be_forged() {
        let own = BTreeMap::from(
            [
                ("app", "employee"),
                ("io.cilium.k8s.policy.cluster", "other"),
                ("io.kubernetes.pod.namespace", "kube-system"),
                ("io.cilium.k8s.namespace.labels.team", "admin"),
                ("io.cilium.k8s.policy.serviceaccount", "root"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let of_namespace = BTreeMap::from([("mesh".to_owned(), "on".to_owned())]);
        let cluster = "cluster2".parse().unwrap();
        let labels = identity_labels(Subject {
            cluster: &cluster,
            namespace: "istio-space",
            namespace_labels: Some(&of_namespace),
            service_account: "default",
            labels: &own,
        });
        assert_eq!(
            labels.unwrap().to_string(),
            "k8s:app=employee;\
             k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=istio-space;\
             k8s:io.cilium.k8s.namespace.labels.mesh=on;\
             k8s:io.cilium.k8s.policy.cluster=cluster2;\
             k8s:io.cilium.k8s.policy.serviceaccount=default;\
             k8s:io.kubernetes.pod.namespace=istio-space;"
        );
    }
}
