//! The publisher's hand in the cluster store: leased writes, and identity allocation.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Error;
use crate::{
    keyspace::identity,
    limits,
    store::{
        Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, PutRequest, RangeRequest,
        Store, Txn, TxnOp,
    },
    types::{IdentityId, Labels},
};

/// Writes with a lease of its own, and remembers what it wrote.
#[derive(Debug)]
pub(super) struct Writer {
    store: Store,
    lease: i64,
    /// Every leased key; rewritten should the lease be lost.
    leased: BTreeMap<Bytes, Bytes>,
}

/// What became of an attempt to take a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The master key is there with these labels.
    Ours,
    /// The number stands for other labels.
    Foreign,
}

impl Writer {
    pub(super) fn new(store: Store, now: Instant) -> Result<Self, Error> {
        let lease = grant(&store, now)?;
        Ok(Self {
            store,
            lease,
            leased: BTreeMap::new(),
        })
    }

    /// Puts a leased key unless it is there with this value and lease.
    pub(super) fn put(&mut self, key: String, value: Vec<u8>, now: Instant) -> Result<(), Error> {
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        self.leased.insert(key.clone(), value.clone());
        match self.store.put_if_changed(key.clone(), value, self.lease) {
            Ok(_) => Ok(()),
            Err(crate::store::Error::LeaseNotFound { .. }) => self.renew(now),
            Err(source) => Err(Error::Put {
                key: lossy(&key),
                source,
            }),
        }
    }

    /// Puts a leased key that must be seen to change.
    pub(super) fn put_always(
        &mut self,
        key: &'static str,
        value: Vec<u8>,
        now: Instant,
    ) -> Result<(), Error> {
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        self.leased.insert(key.clone(), value.clone());
        match self.store.put(key.clone(), value, self.lease) {
            Ok(_) => Ok(()),
            Err(crate::store::Error::LeaseNotFound { .. }) => self.renew(now),
            Err(source) => Err(Error::Put {
                key: lossy(&key),
                source,
            }),
        }
    }

    /// Deletes a key that was put by us; other keys are left alone.
    pub(super) fn delete(&mut self, key: &str) {
        if self.leased.remove(key.as_bytes()).is_some() {
            self.store.delete(key.as_bytes());
        }
    }

    /// Renews the lease, or everything under a new one if it is lost.
    pub(super) fn keep_alive(&mut self, now: Instant) -> Result<(), Error> {
        match self.store.lease_keep_alive(self.lease, now) {
            Ok(_) => Ok(()),
            Err(crate::store::Error::LeaseNotFound { .. }) => self.renew(now),
            Err(source) => Err(Error::Lease(source)),
        }
    }

    fn renew(&mut self, now: Instant) -> Result<(), Error> {
        self.lease = grant(&self.store, now)?;
        tracing::warn!(
            lease_id = self.lease,
            count = self.leased.len(),
            "Lease was lost; published keys are written again under a new one"
        );
        for (key, value) in &self.leased {
            self.store
                .put_if_changed(key.clone(), value.clone(), self.lease)
                .map_err(|source| Error::Put {
                    key: lossy(key),
                    source,
                })?;
        }
        Ok(())
    }

    /// Makes sure that `id` stands for `labels`: creates the master key, which has no lease, or
    /// finds it with the same labels.
    pub(super) fn take(&self, id: IdentityId, labels: &Labels) -> Result<Taken, Error> {
        let key = Bytes::from(identity::master_key(id));
        let text = Bytes::from(labels.to_string());
        let create = Compare {
            range: KeyRange::single(key.clone()),
            op: CompareOp::Equal,
            target: CompareTarget::Create(0),
        };
        let put = PutRequest {
            key: key.clone(),
            value: text.clone(),
            ..PutRequest::default()
        };
        let transaction = Txn {
            compare: vec![create],
            success: vec![TxnOp::Put(put)],
            failure: Vec::new(),
        };
        let created = self
            .store
            .txn(&transaction)
            .map_err(|source| Error::Allocate { id, source })?
            .succeeded;
        let same = || self.store.get(&key).is_some_and(|kv| kv.value == text);
        Ok(if created || same() {
            Taken::Ours
        } else {
            Taken::Foreign
        })
    }

    /// The number under which another process holds these labels, by its slave key.
    pub(super) fn lookup(&self, labels: &Labels) -> Option<IdentityId> {
        let range = KeyRange::prefix(identity::slave_prefix(labels).as_bytes());
        let request = RangeRequest {
            range,
            limit: 1,
            ..RangeRequest::default()
        };
        let found = self.store.range(&request).ok()?;
        str::from_utf8(&found.kvs.first()?.value)
            .ok()?
            .parse()
            .ok()
            .map(IdentityId)
    }

    /// Deletes the master key of a number that no slave key holds any more.
    pub(super) fn retire(&self, id: IdentityId, labels: &Labels) -> Result<(), Error> {
        let master = KeyRange::single(identity::master_key(id));
        let ours = Compare {
            range: master.clone(),
            op: CompareOp::Equal,
            target: CompareTarget::Value(labels.to_string().into()),
        };
        // Holds only if the range is empty: every key that exists has a version.
        let unheld = Compare {
            range: KeyRange::prefix(identity::slave_prefix(labels).as_bytes()),
            op: CompareOp::Equal,
            target: CompareTarget::Version(0),
        };
        let delete = TxnOp::Delete(DeleteRequest {
            range: master,
            prev_kv: false,
        });
        let transaction = Txn {
            compare: vec![ours, unheld],
            success: vec![delete],
            failure: Vec::new(),
        };
        self.store
            .txn(&transaction)
            .map_err(|source| Error::Allocate { id, source })?;
        Ok(())
    }
}

fn grant(store: &Store, now: Instant) -> Result<i64, Error> {
    let ttl: Duration = limits::LEASE_TTL;
    store.lease_grant(0, ttl, now).map_err(Error::Lease)
}

fn lossy(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    #[test]
    fn a_lost_lease_is_replaced_and_its_keys_are_written_again() {
        let (store, start) = (
            Store::new(Options {
                cluster_id: 1,
                history_max: 100,
            }),
            Instant::now(),
        );
        let mut writer = Writer::new(store.clone(), start).unwrap();
        writer.put("a".to_owned(), b"1".to_vec(), start).unwrap();
        writer.put("b".to_owned(), b"2".to_vec(), start).unwrap();
        writer.delete("b");
        // Kept alive past its life.
        for minutes in (5..60).step_by(5) {
            let then = start + Duration::from_secs(minutes * 60);
            writer.keep_alive(then).unwrap();
            assert_eq!(store.expire(then), 0);
        }
        let lease = store.get(b"a").unwrap().lease;
        store.lease_revoke(lease).unwrap();
        assert!(store.get(b"a").is_none());
        writer.keep_alive(start).unwrap();
        let again = store.get(b"a").unwrap();
        assert!(again.value == "1" && again.lease != lease && store.get(b"b").is_none());
        // A write notices the loss as well.
        store.lease_revoke(again.lease).unwrap();
        writer.put("c".to_owned(), b"3".to_vec(), start).unwrap();
        assert!(store.get(b"a").is_some() && store.get(b"c").is_some());
        // Keys of others are left alone.
        store.put("z".into(), "9".into(), 0).unwrap();
        writer.delete("z");
        assert!(store.get(b"z").is_some());
    }
}
