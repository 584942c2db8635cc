//! What each client holds of what is limited: a client is an address before the handshake and a
//! common name after it.
//! Invariant: who holds nothing takes no memory.
use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Semaphore;

/// How much one client may take. The default is that of `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all clients together.
    pub connections: usize,
    /// Connections of one address, and of one common name.
    pub connections_per_client: usize,
    /// Open calls and streams of one connection.
    pub streams_per_connection: usize,
    /// Calls of one common name in work at once.
    pub requests_per_client: usize,
    /// Bytes of one write request, as etcd's `--max-request-bytes`; its message may be
    /// `limits::MESSAGE_OVERHEAD_BYTES` longer.
    pub request_bytes: usize,
    /// Conditions or steps of one transaction, as etcd's `--max-txn-ops`.
    pub txn_ops: usize,
    /// How often a watch that asked for it hears how far it is.
    pub progress_interval: Duration,
}

impl Limits {
    /// Bytes of one message, either way.
    pub(super) const fn message_bytes(&self) -> usize {
        self.request_bytes
            .saturating_add(crate::limits::MESSAGE_OVERHEAD_BYTES)
    }
}

impl Default for Limits {
    fn default() -> Self {
        use crate::limits;
        Self {
            connections: limits::CONNECTIONS_MAX,
            connections_per_client: limits::CONNECTIONS_PER_CLIENT_MAX,
            streams_per_connection: limits::STREAMS_PER_CONNECTION_MAX,
            requests_per_client: limits::REQUESTS_PER_CLIENT_MAX,
            request_bytes: limits::REQUEST_BYTES_MAX,
            txn_ops: limits::TXN_OPS_MAX,
            progress_interval: limits::WATCH_PROGRESS_INTERVAL,
        }
    }
}

/// Counts by key, none above `max`. Clones are the same.
#[derive(Debug)]
pub(super) struct Quota<K> {
    max: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Quota<K> {
    fn clone(&self) -> Self {
        Self {
            max: self.max,
            held: Arc::clone(&self.held),
        }
    }
}

/// One of a quota; given back when dropped.
#[derive(Debug)]
pub(super) struct Held<K: Hash + Eq> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq + Clone> Quota<K> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            held: Arc::default(),
        }
    }

    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// `None` if `key` holds as many as it may.
    pub(super) fn take(&self, key: &K) -> Option<Held<K>> {
        let mut held = lock(&self.held);
        let count = held.get(key).copied().unwrap_or(0);
        if count >= self.max {
            return None;
        }
        held.insert(key.clone(), count + 1);
        drop(held);
        Some(Held {
            key: key.clone(),
            held: Arc::clone(&self.held),
        })
    }
}

impl<K: Hash + Eq> Drop for Held<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// Turns of the clients of one address, one semaphore each.
#[derive(Debug)]
pub(super) struct Turns {
    each: usize,
    by_address: HashMap<IpAddr, Arc<Semaphore>>,
}

impl Turns {
    pub(super) fn new(each: usize) -> Self {
        Self {
            each,
            by_address: HashMap::new(),
        }
    }

    /// Where the clients of `address` wait for their turn.
    pub(super) fn of(&mut self, address: IpAddr) -> Arc<Semaphore> {
        // Those that nobody waits at are forgotten; what stays is bounded by the connections.
        self.by_address
            .retain(|_, turn| Arc::strong_count(turn) > 1);
        let turn = self.by_address.entry(address);
        Arc::clone(turn.or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

/// The address that limits count: hosts own whole /64 networks of IPv6, but single IPv4 addresses.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Between the steps of each change nothing can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_quota_and_who_holds_nothing_takes_no_memory() {
        let quota = Quota::new(2);
        let first = quota.take(&"a");
        let second = quota.take(&"a");
        assert!(first.is_some() && second.is_some() && quota.take(&"a").is_none());
        assert!(quota.take(&"b").is_some(), "b is another client");
        drop(first);
        assert!(quota.take(&"a").is_some(), "one was given back");
        drop(second);
        assert!(lock(&quota.held).is_empty());
    }

    #[test]
    fn turns_of_an_address_are_shared_while_anybody_has_one() {
        let mut turns = Turns::new(1);
        let address = |text: &str| text.parse().unwrap();
        let first = turns.of(address("10.0.0.1"));
        assert!(Arc::ptr_eq(&first, &turns.of(address("10.0.0.1"))));
        let other = turns.of(address("10.0.0.2"));
        assert!(!Arc::ptr_eq(&first, &other));
        drop((first, other));
        turns.of(address("10.0.0.3"));
        assert_eq!(turns.by_address.len(), 1);
    }

    #[test]
    fn ipv6_counts_by_network_and_mapped_ipv4_as_ipv4() {
        for (address, expected) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            let counted = counted(address.parse().unwrap());
            assert_eq!(counted, expected.parse::<IpAddr>().unwrap(), "{address}");
        }
    }
}
