//! Writes as values, so that they can wait in a queue, lie in a log, and be done again.
//! Invariant: a command's effect follows from the store's content alone: no clock, no chance. Time
//! only sets lease deadlines, which no command reads.
use std::time::{Duration, Instant};

use crate::store::{
    self, DeleteRequest, DeleteResponse, PutRequest, PutResponse, Store, Txn, TxnResponse,
};

/// One write.
#[derive(Debug, Clone)]
pub enum Command {
    /// Write one key.
    Put(PutRequest),
    /// Delete keys.
    Delete(DeleteRequest),
    /// Conditions and steps.
    Txn(Txn),
    /// Forget history below this revision.
    Compact(i64),
    /// Create a lease.
    LeaseGrant {
        /// Chosen by the caller, not 0.
        id: i64,
        /// Time to live.
        ttl: Duration,
    },
    /// End a lease, because somebody asked or its time is over.
    LeaseRevoke(i64),
}

/// What a [`Command`] yields, by the variant of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Of a put.
    Put(PutResponse),
    /// Of a deletion.
    Delete(DeleteResponse),
    /// Of a transaction.
    Txn(TxnResponse),
    /// Of a compaction and of what concerns leases.
    Done,
}

impl Command {
    /// Does it; a refusal changes nothing. `now` is when a lease granted here begins to live.
    ///
    /// # Errors
    /// Those of the store's method for it.
    pub fn apply(&self, store: &Store, now: Instant) -> Result<Response, store::Error> {
        Ok(match self {
            Self::Put(request) => Response::Put(store.put_with(request)?),
            Self::Delete(request) => Response::Delete(store.delete_range(request)?),
            Self::Txn(txn) => Response::Txn(store.txn(txn)?),
            Self::Compact(revision) => {
                store.compact(*revision)?;
                Response::Done
            }
            Self::LeaseGrant { id, ttl } => {
                store.lease_grant(*id, *ttl, now)?;
                Response::Done
            }
            Self::LeaseRevoke(id) => {
                store.lease_revoke(*id)?;
                Response::Done
            }
        })
    }
}
