//! Client of an etcd: get, list, watch, transactions and leases over one connection that never
//! silently becomes another.
//!
//! Invariant: all replies of a [`Client`] come from one etcd cluster; the first `cluster_id` is
//! pinned, and a reply without header, with id 0 or with another id is an error (several servers
//! with unrelated revisions may hide behind one address).
//! Invariant: a client has one TCP connection; when that breaks, every call fails and the owner
//! builds a new client.
//! Absent on purpose: any reconnecting; [`Connector`] says how to, its owner when.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
pub use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use futures::future::BoxFuture;

pub use self::{
    connect::{ConnectOptions, Endpoint, EndpointError, HostAliases},
    error::{Class, Error},
    list::{Entry, List, Page},
    watch::{Event, Watch},
};

mod connect;
mod error;
mod list;
mod watch;
mod write;

/// Among the errors of a store's status: its keys are lost with its process. Our own face says so.
pub const IN_MEMORY: &str = "this store keeps its keys in memory";

/// Makes connections to one keyspace, wherever that is. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> BoxFuture<'static, Result<Client, Error>> + Send + Sync>);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Connects as `connect` does, which is called for each connection.
    pub fn new<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Client, Error>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(connect())))
    }

    /// A new connection. Cancel safe.
    ///
    /// # Errors
    /// Whatever hinders it.
    pub async fn connect(&self) -> Result<Client, Error> {
        (self.0)().await
    }
}

/// One connection to one etcd. Cheap to clone; all clones share connection and pin.
#[derive(Clone)]
pub struct Client {
    kv: etcd_client::KvClient,
    watch: etcd_client::WatchClient,
    lease: etcd_client::LeaseClient,
    maintenance: etcd_client::MaintenanceClient,
    pin: Pin,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The pinned cluster id; `None` before the first reply.
    #[must_use]
    pub fn cluster_id(&self) -> Option<u64> {
        match self.pin.0.load(Ordering::Relaxed) {
            0 => None,
            id => Some(id),
        }
    }

    /// One key's value, read linearizably; `None` if there is no such key. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], or a broken pin.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let mut kv = self.kv.clone();
        let call = kv.get(key, None);
        let mut response = call_within("get", key, call).await?;
        self.pin.check(response.header())?;
        let entry = response.take_kvs().into_iter().next();
        Ok(entry.map(|entry| Bytes::from(entry.into_key_value().1)))
    }

    /// Each of these keys as it is now, read linearizably, a hundred at a time: together they are no
    /// snapshot. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], or a broken pin.
    pub async fn get_many(
        &self,
        keys: Vec<Bytes>,
    ) -> Result<Vec<(Bytes, Option<KeyValue>)>, Error> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(crate::limits::STORE_BATCH_KEYS) {
            let gets = keys.iter().map(|key| TxnOp::get(key.to_vec(), None));
            let txn = Txn::new().and_then(gets.collect::<Vec<_>>());
            let what = keys.first().map(|key| String::from_utf8_lossy(key));
            let response = self.txn(&what.unwrap_or_default(), txn).await?;
            for (key, response) in keys.iter().zip(response.op_responses()) {
                let entry = match response {
                    TxnOpResponse::Get(mut entry) => entry.take_kvs().into_iter().next(),
                    _ => None,
                };
                found.push((key.clone(), entry));
            }
        }
        Ok(found)
    }

    /// The server's version text. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], for instance `Denied` where the user may not ask; or a broken pin.
    pub async fn version(&self) -> Result<String, Error> {
        let mut maintenance = self.maintenance.clone();
        let response = call_within("ask for the version", "", maintenance.status()).await?;
        self.pin.check(response.header())?;
        Ok(response.version().to_owned())
    }

    /// False if the server says that it keeps its keys in memory only.
    ///
    /// # Errors
    /// [`Error::Call`] or a broken pin.
    pub async fn is_durable(&self) -> Result<bool, Error> {
        let mut maintenance = self.maintenance.clone();
        let response = call_within("ask for the status", "", maintenance.status()).await?;
        self.pin.check(response.header())?;
        Ok(!response.errors().iter().any(|error| error == IN_MEMORY))
    }
}

/// The first cluster id seen; 0 until then.
#[derive(Debug, Clone, Default)]
struct Pin(Arc<AtomicU64>);

impl Pin {
    /// Checks a reply's header and returns its revision.
    fn check(&self, header: Option<&etcd_client::ResponseHeader>) -> Result<i64, Error> {
        let header = header.ok_or(Error::NoHeader)?;
        self.check_id(header.cluster_id())?;
        Ok(header.revision())
    }

    fn check_id(&self, found: u64) -> Result<(), Error> {
        if found == 0 {
            return Err(Error::NoHeader);
        }
        match self
            .0
            .compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => Ok(()),
            Err(pinned) if pinned == found => Ok(()),
            Err(pinned) => Err(Error::OtherCluster { pinned, found }),
        }
    }
}

async fn call_within<T>(
    op: &'static str,
    key: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(crate::limits::CALL_TIMEOUT, call).await {
        Ok(result) => result.map_err(|e| Error::call(op, key, e)),
        Err(_) => Err(Error::Timeout {
            op,
            key: key.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_takes_the_first_id_and_refuses_zero_and_others() {
        let pin = Pin::default();
        assert!(matches!(pin.check_id(0), Err(Error::NoHeader)));
        pin.check_id(7).unwrap();
        pin.check_id(7).unwrap();
        assert!(matches!(
            pin.check_id(8),
            Err(Error::OtherCluster {
                pinned: 7,
                found: 8
            })
        ));
        assert!(matches!(pin.check_id(0), Err(Error::NoHeader)));
        assert!(matches!(pin.check(None), Err(Error::NoHeader)));
    }
}
