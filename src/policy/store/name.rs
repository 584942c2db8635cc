//! What a policy in the cluster store is called.
use std::{fmt, str::FromStr};

use crate::{
    keyspace::layout::{POLICIES_PREFIX, is_component},
    policy::{Kind, Policy},
};

/// Stands for the namespace of what has none.
const CLUSTERWIDE: &str = "_";

/// Kind, namespace and name; written as `<kind>/<namespace or _>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    kind: Kind,
    /// `None` for clusterwide policies, and for them only.
    namespace: Option<String>,
    name: String,
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no policy; write KIND/NAMESPACE/NAME or, clusterwide, KIND/NAME, with the kind \
     CiliumNetworkPolicy (cnp), CiliumClusterwideNetworkPolicy (ccnp) or NetworkPolicy (netpol)"
)]
pub struct BadName(String);

impl Name {
    /// Its key in the cluster store.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{POLICIES_PREFIX}{self}")
    }
}

impl From<&Policy> for Name {
    fn from(policy: &Policy) -> Self {
        Self {
            kind: policy.kind,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_deref().unwrap_or(CLUSTERWIDE);
        write!(f, "{}/{namespace}/{}", self.kind, self.name)
    }
}

impl FromStr for Name {
    type Err = BadName;

    /// Kinds in any case, or by kubectl's short names.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = || BadName(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let (kind, namespace, name) = match parts.as_slice() {
            [kind, name] => (kind, CLUSTERWIDE, name),
            [kind, namespace, name] => (kind, *namespace, name),
            _ => return Err(bad()),
        };
        let kind = match kind.to_ascii_lowercase().as_str() {
            "ciliumnetworkpolicy" | "cnp" => Kind::CiliumNetworkPolicy,
            "ciliumclusterwidenetworkpolicy" | "ccnp" => Kind::CiliumClusterwideNetworkPolicy,
            "networkpolicy" | "netpol" => Kind::NetworkPolicy,
            _ => return Err(bad()),
        };
        let clusterwide = kind == Kind::CiliumClusterwideNetworkPolicy;
        let complete = is_component(name) && is_component(namespace);
        if !complete || clusterwide != (namespace == CLUSTERWIDE) {
            return Err(bad());
        }
        Ok(Self {
            kind,
            namespace: (!clusterwide).then(|| namespace.to_owned()),
            name: (*name).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_kubectl_users_type_them_and_written_in_full() {
        for (text, full) in [
            ("cnp/shop/web", "CiliumNetworkPolicy/shop/web"),
            ("NetworkPolicy/shop/web", "NetworkPolicy/shop/web"),
            ("ccnp/all", "CiliumClusterwideNetworkPolicy/_/all"),
            ("CCNP/_/all", "CiliumClusterwideNetworkPolicy/_/all"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(full.parse(), Ok(name));
        }
        for text in [
            "",
            "web",
            "cnp/web",
            "cnp/_/web",
            "ccnp/shop/all",
            "pod/shop/web",
            "cnp/shop/",
            "cnp//web",
            "cnp/../web",
            "cnp/a/b/c",
        ] {
            assert_eq!(text.parse::<Name>(), Err(BadName(text.to_owned())));
        }
    }
}
