//! What the routes of policies take and answer.
use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::policy::store::{Done, NodeStatus, Outcome};

/// Part of `/v1/status`: what this node enforces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Policies in force that come from files of this node.
    pub files: usize,
    /// Policies in force that come from the cluster store.
    pub cluster: usize,
    /// Policies of the store, and files, whose present version is not in force.
    pub refused: usize,
    /// The store's revision up to which this node read its policies.
    pub read_revision: i64,
    /// The one up to which its kernel follows.
    pub applied_revision: i64,
}

/// Asks `POST /v1/policies` to write policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// In this order.
    pub files: Vec<File>,
}

/// A file of policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// For complaints.
    pub name: PathBuf,
    /// YAML or JSON.
    pub text: String,
}

/// Asks `POST /v1/policies/delete` to delete policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// `kind/namespace/name`, or `kind/name` for clusterwide ones.
    pub names: Vec<String>,
    /// Policies of these are deleted, too.
    pub files: Vec<File>,
}

/// What became of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `kind/namespace/name`, with `_` for the namespace of a clusterwide policy.
    pub name: String,
    /// What.
    pub outcome: Outcome,
    /// The store's revision that has it so; 0 if it was missing.
    pub revision: i64,
}

impl From<Done> for Changed {
    fn from(done: Done) -> Self {
        Self {
            name: done.name.to_string(),
            outcome: done.outcome,
            revision: done.revision,
        }
    }
}

/// `/v1/policies`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Those of the cluster store, by name.
    pub cluster: Vec<Policy>,
    /// Those of this node's files, by file.
    pub files: Vec<FilePolicies>,
}

/// A policy of the cluster store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `kind/namespace/name`, with `_` for the namespace of a clusterwide policy.
    pub name: String,
    /// The store's revision of its last change.
    pub revision: i64,
    /// Nodes whose kernels follow this version.
    pub applied: Vec<String>,
    /// Nodes that do not yet.
    pub behind: Vec<String>,
    /// Nodes that can't use this version.
    pub refused: Vec<String>,
    /// Why this node can't, if it can't.
    pub error: Option<String>,
    /// The document as it was given.
    pub document: String,
}

/// The policies of a file on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePolicies {
    /// The file.
    pub file: PathBuf,
    /// Those in force, as `namespace/name`.
    pub policies: Vec<String>,
    /// Why its present version is not in force, if so.
    pub error: Option<String>,
}

/// `/v1/policies/nodes`: what each node that lives says of itself.
pub type Nodes = BTreeMap<String, NodeStatus>;
