//! Policies in the cluster store: every node of the cluster enforces them, beside its own files.
//!
//! A policy is one key, `tombolo/policies/v1/<kind>/<namespace or _>/<name>`, whose value is its
//! document as it was given. Both ways in are united and none comes first: every rule counts, a deny
//! beats an allow. Each node says under `tombolo/policy-status/v1/<node>`, on a lease, up to which
//! revision of the store its kernel follows. Exports and caches are made of records and never hold
//! any of these keys.
//! [`Policies`] reads and writes for an operator; [`Follower`] is what a node does all the time.
use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;

use self::documents::Document;
pub use self::{
    follow::{Follower, PolicyStatus, Status},
    name::{BadName, Name},
};
use super::ParseError;
use crate::{
    etcd::{self, Client, Connector, ResponseHeader, Txn, TxnOp, TxnOpResponse},
    keyspace::layout::{POLICIES_PREFIX, POLICY_STATUS_PREFIX},
    limits,
};

mod documents;
mod follow;
mod name;
#[cfg(test)]
mod tests;

/// Why an operator's wish was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is refused.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A document is a list.
    #[error(
        "policy file {file}:{line}: holds {count} policies in one document; write each as a document of \
         its own, with a line of --- between them",
        file = file.display()
    )]
    NotOne {
        /// The file.
        file: PathBuf,
        /// Where the document begins, counted from 1.
        line: usize,
        /// How many it has.
        count: usize,
    },
    /// One policy twice in one request.
    #[error("policy {name} is given twice; leave one out")]
    Twice {
        /// Which.
        name: Name,
    },
    /// A document is longer than a file may be.
    #[error("policy {name} has {bytes} bytes, more than {max}; split it")]
    TooLarge {
        /// Which.
        name: Name,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: u64,
    },
    /// The store would hold more policies than the nodes take.
    #[error(
        "the cluster store would hold {count} policies, more than {max}; join some or delete others"
    )]
    TooMany {
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The cluster store does not do it.
    #[error("{op} policies in the cluster store; tombolo status says how it stands")]
    Store {
        /// What was tried.
        op: &'static str,
        /// Why not.
        #[source]
        source: Box<etcd::Error>,
    },
}

impl Error {
    fn store(op: &'static str, source: etcd::Error) -> Self {
        let source = Box::new(source);
        Self::Store { op, source }
    }
}

/// What became of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It said something else before.
    Configured,
    /// It is what it was; nothing was written.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It could not be deleted, for it was not there.
    Missing,
}

/// What became of one policy of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub name: Name,
    /// What.
    pub outcome: Outcome,
    /// The store's revision that has it so; 0 if it was missing.
    pub revision: i64,
}

/// A policy as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The key behind the prefix; a [`Name`] unless something else wrote it.
    pub name: String,
    /// Of its last change.
    pub revision: i64,
    /// The value, as far as it is text.
    pub text: String,
}

/// What a node says of itself; its key's value, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeStatus {
    /// The kernel follows the policies as of this revision of the store, except for the refused.
    pub revision: i64,
    /// Policies that the node keeps in an older version, or lacks, because it can't use them; at
    /// most `limits::POLICIES_REFUSED_TOLD_MAX`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

impl NodeStatus {
    /// Whether the node enforces `policy` as of `revision`.
    #[must_use]
    pub fn applies(&self, policy: &str, revision: i64) -> bool {
        self.revision >= revision && !self.refused.iter().any(|refused| refused == policy)
    }
}

/// The operator's hand in the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    connector: Connector,
}

impl Policies {
    /// Over connections to the cluster store, one for each call.
    #[must_use]
    pub const fn new(connector: Connector) -> Self {
        Self { connector }
    }

    /// Writes the policies of `files` (name for errors, and text). Nothing is written unless all are
    /// good; then they are written a hundred at a time, in the order given.
    ///
    /// # Errors
    /// What is refused, with file, line and field; or what the store did not do. A request of more
    /// than a hundred policies may then be written in part; it can be repeated.
    pub async fn apply(&self, files: &[(PathBuf, String)]) -> Result<Vec<Done>, Error> {
        let documents = check(files)?;
        let client = self.connect("write").await?;
        let keys = documents.iter().map(|document| document.name.key().into());
        let keys: Vec<Bytes> = keys.collect();
        let failed = |source| Error::store("write", source);
        let found = client.get_many(keys).await.map_err(failed)?;
        let new = found.iter().filter(|(_, entry)| entry.is_none()).count();
        if new > 0 {
            let count = count(&client).await.map_err(failed)? + new;
            let max = limits::POLICIES_MAX;
            if count > max {
                return Err(Error::TooMany { count, max });
            }
        }
        let mut done = Vec::with_capacity(documents.len());
        let mut batch = Batch::default();
        for (document, (_, entry)) in documents.into_iter().zip(found) {
            let (outcome, revision) = match entry {
                None => (Outcome::Created, 0),
                Some(entry) if entry.value() == document.text.as_bytes() => {
                    (Outcome::Unchanged, entry.mod_revision())
                }
                Some(_) => (Outcome::Configured, 0),
            };
            if outcome != Outcome::Unchanged {
                if batch.is_full(&document) {
                    let revision = std::mem::take(&mut batch).put(&client).await;
                    settle(&mut done, revision.map_err(failed)?);
                }
                batch.add(&document);
            }
            done.push(Done {
                name: document.name,
                outcome,
                revision,
            });
        }
        if !batch.steps.is_empty() {
            settle(&mut done, batch.put(&client).await.map_err(failed)?);
        }
        Ok(done)
    }

    /// Deletes policies; those that are not there are told.
    ///
    /// # Errors
    /// What the store did not do; of more than a hundred names a part may be done then.
    pub async fn delete(&self, names: &[Name]) -> Result<Vec<Done>, Error> {
        let failed = |source| Error::store("delete", source);
        let client = self.connect("delete").await?;
        let mut done = Vec::with_capacity(names.len());
        for names in names.chunks(limits::STORE_BATCH_KEYS) {
            let steps = names.iter().map(|name| TxnOp::delete(name.key(), None));
            let txn = Txn::new().and_then(steps.collect::<Vec<_>>());
            let response = client.txn(POLICIES_PREFIX, txn).await.map_err(failed)?;
            let revision = response.header().map_or(0, ResponseHeader::revision);
            for (name, step) in names.iter().zip(response.op_responses()) {
                let gone = matches!(step, TxnOpResponse::Delete(step) if step.deleted() > 0);
                done.push(Done {
                    name: name.clone(),
                    outcome: match gone {
                        true => Outcome::Deleted,
                        false => Outcome::Missing,
                    },
                    revision: if gone { revision } else { 0 },
                });
            }
        }
        Ok(done)
    }

    /// All policies, in the order of their keys.
    ///
    /// # Errors
    /// If the store can't be read.
    pub async fn list(&self) -> Result<Vec<Stored>, Error> {
        let client = self.connect("read").await?;
        let read = entries(&client, POLICIES_PREFIX).await;
        let (entries, _) = read.map_err(|source| Error::store("read", source))?;
        let stored = entries.into_iter().map(|(name, entry)| Stored {
            name,
            revision: entry.revision,
            text: String::from_utf8_lossy(&entry.value).into_owned(),
        });
        Ok(stored.collect())
    }

    /// What the nodes that live say of themselves, by name.
    ///
    /// # Errors
    /// If the store can't be read.
    pub async fn nodes(&self) -> Result<BTreeMap<String, NodeStatus>, Error> {
        let client = self.connect("read").await?;
        let read = entries(&client, POLICY_STATUS_PREFIX).await;
        let (entries, _) = read.map_err(|source| Error::store("read", source))?;
        let status = |(node, entry): (String, etcd::Entry)| {
            // What is none of ours stands for a node that applied nothing.
            let status = serde_json::from_slice(&entry.value).unwrap_or_default();
            (node, status)
        };
        Ok(entries.into_iter().map(status).collect())
    }

    async fn connect(&self, op: &'static str) -> Result<Client, Error> {
        let client = self.connector.connect().await;
        client.map_err(|source| Error::store(op, source))
    }
}

/// What the policies of `files` (name for errors, and text) are called.
///
/// # Errors
/// What is refused, as when they are applied.
pub fn names(files: &[(PathBuf, String)]) -> Result<Vec<Name>, Error> {
    let documents = check(files)?.into_iter();
    Ok(documents.map(|document| document.name).collect())
}

/// All documents of a request, each policy once.
fn check(files: &[(PathBuf, String)]) -> Result<Vec<Document>, Error> {
    let mut all: Vec<Document> = Vec::new();
    for (file, text) in files {
        all.extend(documents::read(file, text)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    for document in &all {
        let (name, bytes) = (document.name.clone(), document.text.len());
        let max = limits::POLICY_FILE_BYTES_MAX;
        if bytes as u64 > max {
            return Err(Error::TooLarge { name, bytes, max });
        }
        if !seen.insert(name.clone()) {
            return Err(Error::Twice { name });
        }
    }
    Ok(all)
}

/// What goes into one transaction.
#[derive(Debug, Default)]
struct Batch {
    steps: Vec<TxnOp>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self, next: &Document) -> bool {
        let bytes = self.bytes + next.text.len();
        let long = !self.steps.is_empty() && bytes > limits::STORE_BATCH_BYTES;
        long || self.steps.len() == limits::STORE_BATCH_KEYS
    }

    fn add(&mut self, document: &Document) {
        self.bytes += document.text.len();
        let put = TxnOp::put(document.name.key(), document.text.as_str(), None);
        self.steps.push(put);
    }

    /// Writes it and returns the store's revision that has it.
    async fn put(self, client: &Client) -> Result<i64, etcd::Error> {
        let txn = Txn::new().and_then(self.steps);
        let response = client.txn(POLICIES_PREFIX, txn).await?;
        Ok(response.header().map_or(0, ResponseHeader::revision))
    }
}

/// What was written last is as of `revision`.
fn settle(done: &mut [Done], revision: i64) {
    for done in done.iter_mut().filter(|done| done.revision == 0) {
        done.revision = revision;
    }
}

async fn count(client: &Client) -> Result<usize, etcd::Error> {
    let mut list = client.list_keys_at(POLICIES_PREFIX, 0);
    let mut count = 0;
    while let Some(page) = list.page().await? {
        count += page.entries.len();
    }
    Ok(count)
}

/// All entries with `prefix`, by what follows it, and the store's revision that has them so.
async fn entries(
    client: &Client,
    prefix: &str,
) -> Result<(Vec<(String, etcd::Entry)>, i64), etcd::Error> {
    let mut list = client.list(prefix);
    let mut all = Vec::new();
    let mut revision = 0;
    while let Some(page) = list.page().await? {
        revision = page.revision;
        all.extend(page.entries.into_iter().filter_map(|entry| {
            let suffix = entry.key.strip_prefix(prefix.as_bytes())?;
            Some((String::from_utf8_lossy(suffix).into_owned(), entry))
        }));
    }
    Ok((all, revision))
}
