//! The export policy file: which peer may see what. Text to [`Grant`]s, nothing else.
//!
//! The file is a YAML list of rules. A rule names one peer, or `*` for every peer, and what it may
//! see; rules for one peer add up. A field that is left out restricts nothing, an empty list names
//! nothing:
//!
//! ```yaml
//! - peer: cluster2
//!   namespaces: [shop]            # of workloads and services
//!   labels: {app: checkout}       # workloads carry all of them; `k8s:app` also names the source
//!   services: [shop/checkout]     # namespace/name, each may be `*`
//! ```
//!
//! A peer without a rule sees no record at all. CN `remote`, which is shared by all peers that hold
//! it, sees what the rules for `*` show.
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{
    limits,
    types::{ClusterName, ClusterNameError, Label, Labels},
};

mod file;

pub use self::file::{ExportPolicyFile, ExportPolicyFileError};

/// The label key of a workload's namespace.
const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";

/// What the file says. The default, without a file, shows everything to everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportPolicy(Option<Vec<(Peer, Rule)>>);

/// Why the file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExportPolicyError {
    /// Not YAML, or not of the shape above; the text has line and column.
    #[error("not readable as a list of rules: {0}")]
    Yaml(String),
    /// Larger than any policy.
    #[error("{bytes} bytes, more than {max}; name namespaces instead of services")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// More rules than are kept.
    #[error("{count} rules, more than {max}; join rules of one peer")]
    TooManyRules {
        /// How many there are.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A peer that is neither `*` nor a cluster name.
    #[error("rule {rule}: peer {name:?}: use the peer's cluster name, or \"*\" for every peer")]
    Peer {
        /// Which rule, from 1.
        rule: usize,
        /// As written.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ClusterNameError,
    },
    /// A service that is not `namespace/name`.
    #[error("rule {rule}: service {text:?}: write namespace/name, with * for either")]
    Service {
        /// Which rule, from 1.
        rule: usize,
        /// As written.
        text: String,
    },
}

/// What one view shows. Equal grants show the same, whoever holds them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grant {
    /// Everything.
    All,
    /// What at least one of these shows.
    Rules(BTreeSet<Rule>),
}

/// Whom a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Peer {
    Every,
    Named(ClusterName),
}

/// One rule, without its peer; `None` restricts nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    namespaces: Option<BTreeSet<String>>,
    labels: BTreeMap<String, String>,
    services: Option<BTreeSet<ServicePattern>>,
}

/// `None` stands for `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ServicePattern {
    namespace: Option<String>,
    name: Option<String>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    peer: String,
    namespaces: Option<BTreeSet<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    services: Option<Vec<String>>,
}

impl ExportPolicy {
    /// Reads the file's text.
    ///
    /// # Errors
    /// The first thing that is wrong; nothing is left out or widened.
    pub fn parse(text: &str) -> Result<Self, ExportPolicyError> {
        let (bytes, max) = (text.len(), limits::EXPORT_POLICY_BYTES_MAX);
        if bytes > max {
            return Err(ExportPolicyError::TooLarge { bytes, max });
        }
        let written: Vec<Written> =
            serde_saphyr::from_str(text).map_err(|e| ExportPolicyError::Yaml(e.to_string()))?;
        let (count, max) = (written.len(), limits::EXPORT_POLICY_RULES_MAX);
        if count > max {
            return Err(ExportPolicyError::TooManyRules { count, max });
        }
        let rules = (1..).zip(written).map(|(n, written)| rule(n, written));
        Ok(Self(Some(rules.collect::<Result<_, _>>()?)))
    }

    /// The peers that have a rule of their own.
    pub(super) fn named(&self) -> impl Iterator<Item = &ClusterName> {
        let rules = self.0.iter().flatten();
        rules.filter_map(|(peer, _)| match peer {
            Peer::Every => None,
            Peer::Named(name) => Some(name),
        })
    }

    /// What `peer` may see; `None` is whoever holds CN `remote`.
    pub(super) fn grant(&self, peer: Option<&str>) -> Grant {
        let Some(rules) = &self.0 else {
            return Grant::All;
        };
        let concerns = |to: &Peer| match to {
            Peer::Every => true,
            Peer::Named(name) => peer == Some(name.as_str()),
        };
        let rules = rules.iter().filter(|(to, _)| concerns(to));
        Grant::Rules(rules.map(|(_, rule)| rule.clone()).collect())
    }
}

impl Grant {
    /// Whether nodes are shown: to whoever is shown anything, as workloads are reached through them.
    pub(super) fn shows_nodes(&self) -> bool {
        match self {
            Self::All => true,
            Self::Rules(rules) => !rules.is_empty(),
        }
    }

    /// Whether workloads with these labels are shown: their identity and their addresses.
    pub(super) fn shows_identity(&self, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::Rules(rules) => rules.iter().any(|rule| rule.shows_identity(labels)),
        }
    }

    /// Whether a service is shown.
    pub(super) fn shows_service(&self, namespace: &str, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Rules(rules) => rules.iter().any(|rule| rule.shows_service(namespace, name)),
        }
    }
}

impl Rule {
    fn shows_identity(&self, labels: &Labels) -> bool {
        let in_namespace = self.namespaces.as_ref().is_none_or(|namespaces| {
            let mut found = labels.with_key(NAMESPACE_KEY);
            found.any(|label| namespaces.contains(&label.value))
        });
        in_namespace
            && self.labels.iter().all(|(key, value)| {
                let (source, key) = split_source(key);
                let same = |label: &Label| {
                    label.value == *value && source.is_none_or(|source| source == label.source)
                };
                labels.with_key(key).any(same)
            })
    }

    fn shows_service(&self, namespace: &str, name: &str) -> bool {
        let of = |namespaces: &BTreeSet<String>| namespaces.contains(namespace);
        let named = |patterns: &BTreeSet<ServicePattern>| {
            patterns.iter().any(|pattern| {
                pattern.namespace.as_deref().is_none_or(|n| n == namespace)
                    && pattern.name.as_deref().is_none_or(|n| n == name)
            })
        };
        self.namespaces.as_ref().is_none_or(of) && self.services.as_ref().is_none_or(named)
    }
}

fn rule(number: usize, written: Written) -> Result<(Peer, Rule), ExportPolicyError> {
    let peer = match written.peer.as_str() {
        "*" => Peer::Every,
        name => Peer::Named(name.parse().map_err(|source| ExportPolicyError::Peer {
            rule: number,
            name: name.to_owned(),
            source,
        })?),
    };
    let services = written.services.map(|list| {
        let pattern = |text: String| {
            service_pattern(&text).ok_or(ExportPolicyError::Service { rule: number, text })
        };
        list.into_iter().map(pattern).collect()
    });
    let rule = Rule {
        namespaces: written.namespaces,
        labels: written.labels,
        services: services.transpose()?,
    };
    Ok((peer, rule))
}

fn service_pattern(text: &str) -> Option<ServicePattern> {
    let part = |part: &str| match part {
        "" => None,
        "*" => Some(None),
        name => Some(Some(name.to_owned())),
    };
    let (namespace, name) = text.split_once('/')?;
    if name.contains('/') {
        return None;
    }
    Some(ServicePattern {
        namespace: part(namespace)?,
        name: part(name)?,
    })
}

/// `k8s:app` is the key `app` of source `k8s`; a key without a colon is of any source.
fn split_source(key: &str) -> (Option<&str>, &str) {
    match key.split_once(':') {
        Some((source, key)) if source != "any" => (Some(source), key),
        Some((_, key)) => (None, key),
        None => (None, key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        Labels::parse(text)
    }

    fn shop(app: &str) -> Labels {
        labels(&format!(
            "k8s:app={app};k8s:io.kubernetes.pod.namespace=shop;"
        ))
    }

    fn grant(text: &str, peer: &str) -> Grant {
        ExportPolicy::parse(text).unwrap().grant(Some(peer))
    }

    #[test]
    fn without_a_file_everybody_sees_everything() {
        let grant = ExportPolicy::default().grant(Some("west"));
        assert_eq!(grant, Grant::All);
        assert_eq!(ExportPolicy::default().grant(None), Grant::All);
    }

    #[test]
    fn a_peer_without_a_rule_sees_nothing() {
        let grant = grant("- peer: west", "east");
        assert!(!grant.shows_nodes());
        assert!(!grant.shows_identity(&shop("cart")));
        assert!(!grant.shows_service("shop", "cart"));
        let nothing = ExportPolicy::parse("[]").unwrap().grant(Some("west"));
        assert!(!nothing.shows_nodes());
    }

    #[test]
    fn fields_restrict_and_rules_add_up() {
        let text = "\
- peer: west
  namespaces: [shop]
  labels: {app: cart}
  services: [shop/cart, 'pay/*']
- peer: west
  labels: {'k8s:tier': edge}
  services: []
";
        let grant = grant(text, "west");
        assert!(grant.shows_nodes());
        assert!(grant.shows_identity(&shop("cart")));
        assert!(!grant.shows_identity(&shop("pay")));
        assert!(!grant.shows_identity(&labels("k8s:app=cart;")));
        assert!(grant.shows_identity(&labels("k8s:tier=edge;")));
        assert!(!grant.shows_identity(&labels("container:tier=edge;")));
        assert!(grant.shows_service("shop", "cart"));
        assert!(!grant.shows_service("shop", "other"));
        // The pattern names it, but the rule's namespaces do not.
        assert!(!grant.shows_service("pay", "any"));
    }

    #[test]
    fn every_peer_gets_the_rules_of_the_star_and_remote_only_those() {
        let text = "[{peer: '*', namespaces: [shop]}, {peer: west, namespaces: [ops]}]";
        let policy = ExportPolicy::parse(text).unwrap();
        let ops = labels("k8s:io.kubernetes.pod.namespace=ops;");
        for (peer, sees_ops) in [(Some("west"), true), (Some("east"), false), (None, false)] {
            let grant = policy.grant(peer);
            assert!(grant.shows_identity(&shop("cart")), "{peer:?}");
            assert_eq!(grant.shows_identity(&ops), sees_ops, "{peer:?}");
        }
        assert_eq!(policy.grant(Some("east")), policy.grant(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rows = [
            ("peer: west", "not readable as a list of rules"),
            ("- {peer: west, namespace: [a]}", "namespace"),
            ("- {namespaces: [a]}", "peer"),
            ("- {peer: 'no/name'}", "rule 1: peer \"no/name\""),
            (
                "[{peer: a}, {peer: b, services: [cart]}]",
                "rule 2: service \"cart\"",
            ),
            ("- {peer: b, services: [a/b/c]}", "service \"a/b/c\""),
            ("- {peer: b, services: [/c]}", "service \"/c\""),
        ];
        for (text, expected) in rows {
            let error = ExportPolicy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = "- peer: a\n".repeat(limits::EXPORT_POLICY_RULES_MAX + 1);
        let error = ExportPolicy::parse(&many).unwrap_err().to_string();
        assert!(error.contains("more than 1024"), "{error}");
        let large = " ".repeat(limits::EXPORT_POLICY_BYTES_MAX + 1);
        let error = ExportPolicy::parse(&large).unwrap_err().to_string();
        assert!(error.contains("more than 1048576"), "{error}");
    }
}
