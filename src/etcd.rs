//! Client of an etcd: get, list, watch, transactions and leases over one connection that never
//! silently becomes another.
//!
//! Invariant: all replies of a [`Client`] come from one etcd cluster; the first `cluster_id` is
//! pinned, and a reply without header, with id 0 or with another id is an error (several servers
//! with unrelated revisions may hide behind one address).
//! Invariant: a client has one TCP connection; when that breaks, every call fails and the owner
//! builds a new client.
//! Absent on purpose: any reconnecting; [`Connector`] says how to, its owner when.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
pub use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures::future::BoxFuture;
use tokio::time::Instant;

pub(crate) use self::connect::{dial, resolve};
pub use self::{
    connect::{ConnectOptions, Endpoint, EndpointError, HostAliases},
    error::{Class, Error},
    list::{Entry, List, Page},
    watch::{Event, Watch},
};

mod connect;
mod error;
mod list;
mod parts;
mod watch;
mod write;

/// Among the errors of a store's status: its keys are lost with its process. Our own face says so.
pub const IN_MEMORY: &str = "this store keeps its keys in memory";

/// What is tried, in errors, when a user and its password are given.
pub const LOG_IN: &str = "log in to";

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
        match self.pin.id.load(Ordering::Relaxed) {
            0 => None,
            id => Some(id),
        }
    }

    /// When the server was last heard from; stays readable after the client is gone.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.pin.heard.clone()
    }

    /// One key's value, read linearizably; `None` if there is no such key. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], or a broken pin.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.get_from(key).await?.0)
    }

    /// As [`Self::get`], with the revision from which a watch sees every later change. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_from(&self, key: &str) -> Result<(Option<Bytes>, i64), Error> {
        let mut kv = self.kv.clone();
        let call = kv.get(key, None);
        let mut response = call_within("get", key, call).await?;
        let revision = self.pin.check(response.header())?;
        let entry = response.take_kvs().into_iter().next();
        let value = entry.map(|entry| Bytes::from(entry.into_key_value().1));
        Ok((value, revision.saturating_add(1)))
    }

    /// Asks for a key that need not exist, only to hear from the server. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Call`], or a broken pin.
    pub async fn probe(&self, key: &str) -> Result<(), Error> {
        let mut kv = self.kv.clone();
        let options = GetOptions::new().with_serializable().with_keys_only();
        let response = call_within("probe", key, kv.get(key, Some(options))).await?;
        self.pin.check(response.header()).map(drop)
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

/// When a server was last heard from. Cheap to clone; keeps no connection.
#[derive(Debug, Clone)]
pub struct Heard {
    opened: Instant,
    /// Milliseconds between `opened` and the last message.
    millis: Arc<AtomicU64>,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            millis: Arc::default(),
        }
    }
}

impl Heard {
    /// The time of the last message, of the connection's making if there was none.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.opened + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    /// True if there was a message at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.millis.load(Ordering::Relaxed) != 0
    }

    fn now(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis.max(1), Ordering::Relaxed);
    }
}

/// What is known of the server behind a connection.
#[derive(Debug, Clone, Default)]
struct Pin {
    /// The first cluster id seen; 0 until then.
    id: Arc<AtomicU64>,
    heard: Heard,
}

impl Pin {
    /// Checks a reply's header and returns its revision.
    fn check(&self, header: Option<&ResponseHeader>) -> Result<i64, Error> {
        self.heard.now();
        let header = header.ok_or(Error::NoHeader)?;
        self.check_id(header.cluster_id())?;
        Ok(header.revision())
    }

    fn check_id(&self, found: u64) -> Result<(), Error> {
        if found == 0 {
            return Err(Error::NoHeader);
        }
        match self
            .id
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
