//! Transactions and leases.
use std::time::Duration;

use etcd_client::{Txn, TxnResponse};

use super::{Client, Error, call_within};

impl Client {
    /// Runs a transaction of at most 128 steps and 1.5 MiB, etcd's own limits. `what` is the key or
    /// prefix that errors name. Not cancel safe: a dropped call may still take effect.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Timeout`] or a broken pin; it may have taken effect then. Nothing
    /// was done if [`Error::is_lease_lost`], or if the class is `Fatal` or `Denied`.
    pub async fn txn(&self, what: &str, txn: Txn) -> Result<TxnResponse, Error> {
        let mut kv = self.kv.clone();
        let response = call_within("write", what, kv.txn(txn)).await?;
        self.pin.check(response.header())?;
        Ok(response)
    }

    /// Grants a lease and returns its id.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Timeout`] or a broken pin; a lease may have been granted then.
    pub async fn lease_grant(&self, ttl: Duration) -> Result<i64, Error> {
        let mut lease = self.lease.clone();
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let response = call_within("grant a lease", "", lease.grant(seconds, None)).await?;
        self.pin.check(response.header())?;
        Ok(response.id())
    }

    /// Starts a lease's time anew; false if there is no such lease any more.
    ///
    /// # Errors
    /// [`Error::Call`] or [`Error::Timeout`].
    pub async fn lease_keep_alive(&self, id: i64) -> Result<bool, Error> {
        let mut lease = self.lease.clone();
        // One answer is all that is needed; dropping both ends closes the stream.
        match call_within("keep a lease", "", lease.keep_alive(id)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_lease_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is no error.
    ///
    /// # Errors
    /// [`Error::Call`] or [`Error::Timeout`].
    pub async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        let mut lease = self.lease.clone();
        match call_within("revoke a lease", "", lease.revoke(id)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_lease_lost() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
