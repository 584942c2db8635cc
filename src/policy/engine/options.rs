//! What an engine must know beforehand, and what follows from it for whom rules mean.
use std::str::FromStr;

use super::selectors::Select;
use crate::{
    policy::{Peer, Requirement, Selector, selector::CLUSTER_KEY},
    types::ClusterName,
};

/// What an engine must know beforehand.
#[derive(Debug, Clone)]
pub struct Options {
    /// The own cluster.
    pub cluster: ClusterName,
    /// Whether peer selectors that do not speak of clusters select the own one only (Cilium's
    /// `policy-default-local-cluster`, true since 1.19).
    pub default_local_cluster: bool,
    /// Which endpoints are enforced.
    pub enforcement: Enforcement,
}

/// Which endpoints are enforced (Cilium's `enable-policy`). Those that have no labels yet
/// (`reserved:init`) always are, and drop what no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Those that some rule selects.
    #[default]
    Default,
    /// All of them: what no rule allows is dropped, whatever rules say of default deny.
    Always,
    /// None of them.
    Never,
}

impl FromStr for Enforcement {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self::Default),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err("must be default, always or never"),
        }
    }
}

impl Options {
    /// Whom a peer of a rule means in this cluster.
    pub(super) fn select(&self, peer: &Peer) -> Select {
        match peer {
            Peer::LocalCluster => {
                let cluster = Requirement::k8s(CLUSTER_KEY, self.cluster.as_str());
                Select::Labels(Selector::new([cluster]))
            }
            Peer::Labels(selector) if self.default_local_cluster => {
                Select::Labels(selector.in_local_cluster(self.cluster.as_str()))
            }
            Peer::Labels(selector) => Select::Labels(selector.clone()),
            Peer::Cidr { cidr, except } => Select::Cidr {
                cidr: *cidr,
                except: except.iter().copied().collect(),
            },
        }
    }
}
