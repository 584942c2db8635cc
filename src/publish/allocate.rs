//! Identity allocation in a store that several nodes write at once.
//!
//! Keys: `id/<n>` is the label set of a number, without a lease; `value/<labels>/<node>` says that
//! a node uses the number, on that node's lease; `locks/<labels>/<lease>` is the mutex under which
//! a number is chosen. Order: a number that is known is taken without the mutex, by one transaction
//! that holds only while nobody uses another number for the labels. Else the mutex, then the number
//! that some node uses, else the first candidate that is free, again by one transaction, which also
//! compares the mutex. So a label set in use has one number, and a number one label set, also if the
//! holder of a mutex stalls until it expires.
use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use futures::StreamExt as _;
use rand::Rng as _;

use crate::{
    etcd::{
        Client, Compare, CompareOp, Error, Event, GetOptions, KeyValue, PutOptions, SortOrder,
        SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
    },
    keyspace::{
        identity,
        layout::{IDENTITY_ID_PREFIX, IDENTITY_LOCKS_PREFIX},
    },
    limits,
    types::{IdentityId, Labels},
};

/// Asks for the number of a label set.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) labels: Arc<Labels>,
    /// The slave key to be written, and its lease.
    pub(super) slave: String,
    pub(super) lease: i64,
    /// The number it had, if any.
    pub(super) known: Option<IdentityId>,
    /// Numbers to try, in order, if no node uses one for these labels.
    pub(super) candidates: Vec<IdentityId>,
    /// The cluster's own.
    pub(super) range: RangeInclusive<IdentityId>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Allocation {
    /// The number exists with these labels, and the slave key holds it.
    Held(IdentityId),
    /// Every number of the range is taken.
    Full,
    /// The mutex was not to be had in time.
    Locked,
    /// Slave keys of these labels name a number that is out of range or has other labels.
    Inconsistent(String),
}

/// One answer per request, in order. Several run at once.
pub(super) async fn allocate(
    client: &Client,
    requests: &[Request],
) -> Result<Vec<Allocation>, Error> {
    let known = requests.iter().map(|request| hold_known(client, request));
    let known = run(known.collect()).await?;
    let mut open = Vec::new();
    for (request, held) in requests.iter().zip(&known) {
        if !held {
            open.push(request.clone());
        }
    }
    let mut chosen = Vec::new().into_iter();
    if !open.is_empty() {
        let lease = client.lease_grant(limits::LOCK_LEASE_TTL).await?;
        let locked = open
            .iter()
            .map(|request| under_lock(client, request, lease));
        let results = run(locked.collect()).await;
        // Frees every mutex that is still held, too.
        client.lease_revoke(lease).await?;
        chosen = results?.into_iter();
    }
    let answer = |(request, held): (&Request, bool)| match request.known {
        Some(id) if held => Allocation::Held(id),
        _ => chosen.next().unwrap_or(Allocation::Locked),
    };
    Ok(requests.iter().zip(known).map(answer).collect())
}

/// Several at once; the results in order, or the first error.
async fn run<T>(work: Vec<impl Future<Output = Result<T, Error>>>) -> Result<Vec<T>, Error> {
    let running = futures::stream::iter(work).buffered(limits::ALLOCATIONS_AT_ONCE);
    let results: Vec<Result<T, Error>> = running.collect().await;
    results.into_iter().collect()
}

async fn hold_known(client: &Client, request: &Request) -> Result<bool, Error> {
    match request.known {
        Some(id) => hold(client, request, id).await,
        None => Ok(false),
    }
}

/// Takes a known number: its master key must still have these labels, and no node may use another
/// number for them. If no node uses it, the master key is written again, so that a collector that
/// saw it unused sees a new revision.
async fn hold(client: &Client, request: &Request, id: IdentityId) -> Result<bool, Error> {
    let keys = Keys::new(request, id);
    let revive = Txn::new()
        .when([keys.is_ours(), keys.is_unused()])
        .and_then([keys.put_master(), keys.put_slave()]);
    let txn = Txn::new()
        .when([keys.is_ours(), keys.is_agreed()])
        .and_then([keys.put_slave()])
        .or_else([TxnOp::txn(revive)]);
    Ok(took_effect(&client.txn(&keys.master, txn).await?))
}

async fn under_lock(client: &Client, request: &Request, lease: i64) -> Result<Allocation, Error> {
    let choose = async {
        let lock = Lock::take(client, &request.labels, lease).await?;
        let allocation = choose(client, request, &lock).await;
        lock.release(client).await?;
        allocation
    };
    let in_time = tokio::time::timeout(limits::LOCK_LEASE_TTL, choose).await;
    in_time.unwrap_or(Ok(Allocation::Locked))
}

async fn choose(client: &Client, request: &Request, lock: &Lock) -> Result<Allocation, Error> {
    for nearly_full in [false, true] {
        if let Some(joined) = join(client, request, lock).await? {
            return Ok(joined);
        }
        let ids = if nearly_full {
            free(client, request).await?
        } else {
            request.candidates.clone()
        };
        for id in ids {
            if bind(client, request, id, lock, false).await? {
                return Ok(Allocation::Held(id));
            }
            // Taken by other labels, or a node took these labels' number without the mutex.
            if let Some(joined) = join(client, request, lock).await? {
                return Ok(joined);
            }
        }
    }
    Ok(Allocation::Full)
}

/// Uses the number that other nodes use for these labels; `None` if none does.
async fn join(
    client: &Client,
    request: &Request,
    lock: &Lock,
) -> Result<Option<Allocation>, Error> {
    let prefix = identity::slave_prefix(&request.labels);
    let options = GetOptions::new().with_prefix().with_limit(1);
    let get = TxnOp::get(prefix.clone(), Some(options));
    let response = client.txn(&prefix, Txn::new().and_then([get])).await?;
    let Some(found) = first(&response) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(found.value()).into_owned();
    let id = text.parse().ok().map(IdentityId);
    Ok(Some(match id.filter(|id| request.range.contains(id)) {
        Some(id) if bind(client, request, id, lock, true).await? => Allocation::Held(id),
        _ => Allocation::Inconsistent(text),
    }))
}

/// Makes the number these labels' own, if it is free or theirs already, and uses it. `in_use` says
/// whether other nodes use it for them; should that have changed, nothing happens.
async fn bind(
    client: &Client,
    request: &Request,
    id: IdentityId,
    lock: &Lock,
    in_use: bool,
) -> Result<bool, Error> {
    let keys = Keys::new(request, id);
    let free = Compare::version(keys.master.clone(), CompareOp::Equal, 0);
    let used = if in_use {
        keys.is_agreed()
    } else {
        keys.is_unused()
    };
    // A master key in use is not touched; one that was unused shows that it no longer is.
    let kept = [keys.put_slave(), keys.put_master()];
    let kept = if in_use { &kept[..1] } else { &kept[..] };
    let keep = Txn::new()
        .when([lock.is_held(), keys.is_ours(), used.clone()])
        .and_then(kept);
    let txn = Txn::new()
        .when([lock.is_held(), free, used])
        .and_then([keys.put_master(), keys.put_slave()])
        .or_else([TxnOp::txn(keep)]);
    Ok(took_effect(&client.txn(&keys.master, txn).await?))
}

/// Some numbers of the range without a master key.
async fn free(client: &Client, request: &Request) -> Result<Vec<IdentityId>, Error> {
    let mut taken = std::collections::HashSet::new();
    let mut list = client.list_keys_at(IDENTITY_ID_PREFIX, 0);
    while let Some(page) = list.page().await? {
        let ids = page.entries.iter().filter_map(|entry| id_of(&entry.key));
        taken.extend(ids);
    }
    let (first, last) = (request.range.start().0, request.range.end().0);
    let start = rand::rng().random_range(first..=last);
    let all = (start..=last).chain(first..start).map(IdentityId);
    let free = all.filter(|id| !taken.contains(id));
    Ok(free.take(limits::IDENTITY_PICKS_MAX).collect())
}

/// The number that a master key stands for.
pub(super) fn id_of(master: &[u8]) -> Option<IdentityId> {
    let text = master.strip_prefix(IDENTITY_ID_PREFIX.as_bytes())?;
    str::from_utf8(text).ok()?.parse().ok().map(IdentityId)
}

/// The keys of one label set under one number, and what is asked of them.
struct Keys<'r> {
    request: &'r Request,
    id: String,
    text: String,
    master: String,
    slaves: String,
}

impl<'r> Keys<'r> {
    fn new(request: &'r Request, id: IdentityId) -> Self {
        Self {
            request,
            id: id.to_string(),
            text: request.labels.to_string(),
            master: identity::master_key(id),
            slaves: identity::slave_prefix(&request.labels),
        }
    }

    /// The number stands for these labels.
    fn is_ours(&self) -> Compare {
        Compare::value(self.master.clone(), CompareOp::Equal, self.text.clone())
    }

    /// No node uses the labels: every key that exists has a version.
    fn is_unused(&self) -> Compare {
        Compare::version(self.slaves.clone(), CompareOp::Equal, 0).with_prefix()
    }

    /// Some node uses the labels, and all that do use this number.
    fn is_agreed(&self) -> Compare {
        Compare::value(self.slaves.clone(), CompareOp::Equal, self.id.clone()).with_prefix()
    }

    fn put_master(&self) -> TxnOp {
        TxnOp::put(self.master.clone(), self.text.clone(), None)
    }

    fn put_slave(&self) -> TxnOp {
        let options = PutOptions::new().with_lease(self.request.lease);
        TxnOp::put(self.request.slave.clone(), self.id.clone(), Some(options))
    }
}

/// A mutex that is held: the first created of the keys below its path.
#[derive(Debug)]
struct Lock {
    key: String,
    created: i64,
}

impl Lock {
    /// Waits its turn. Dropping the future may leave the key behind, on its lease.
    async fn take(client: &Client, labels: &Labels, lease: i64) -> Result<Self, Error> {
        let path = format!("{IDENTITY_LOCKS_PREFIX}{labels}/");
        let key = format!("{path}{lease:x}");
        let first_created = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let get = || TxnOp::get(path.clone(), Some(first_created.clone()));
        loop {
            let queue = TxnOp::put(
                key.clone(),
                Bytes::new(),
                Some(PutOptions::new().with_lease(lease)),
            );
            let txn = Txn::new()
                .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
                .and_then([queue, get()])
                .or_else([get()]);
            let response = client.txn(&path, txn).await?;
            let revision = response.header().map_or(0, |header| header.revision());
            let Some(holder) = first(&response) else {
                continue;
            };
            if holder.key() == key.as_bytes() {
                let created = holder.create_revision();
                return Ok(Self { key, created });
            }
            gone(client, &String::from_utf8_lossy(holder.key()), revision).await?;
        }
    }

    fn is_held(&self) -> Compare {
        Compare::create_revision(self.key.clone(), CompareOp::Equal, self.created)
    }

    async fn release(self, client: &Client) -> Result<(), Error> {
        let delete = TxnOp::delete(self.key.clone(), None);
        let txn = Txn::new().when([self.is_held()]).and_then([delete]);
        client.txn(&self.key, txn).await.map(drop)
    }
}

/// Waits until a key that was there at `revision` is deleted.
async fn gone(client: &Client, key: &str, revision: i64) -> Result<(), Error> {
    let mut watch = client.watch(key, revision.saturating_add(1)).await?;
    while let Some(events) = watch.recv().await? {
        let deleted = |event: &Event| matches!(event, Event::Delete { key: k } if k == key);
        if events.iter().any(deleted) {
            break;
        }
    }
    Ok(())
}

/// True if the transaction, or one inside it, held.
fn took_effect(response: &TxnResponse) -> bool {
    let inside = |response| matches!(&response, TxnOpResponse::Txn(r) if took_effect(r));
    response.succeeded() || response.op_responses().into_iter().any(inside)
}

/// The first key of the transaction's read.
fn first(response: &TxnResponse) -> Option<KeyValue> {
    let found = response.op_responses().into_iter().find_map(|op| match op {
        TxnOpResponse::Get(mut found) => Some(found.take_kvs()),
        _ => None,
    });
    found?.into_iter().next()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        serve,
        store::{self, RangeRequest, Store},
        types::Label,
    };

    const FIRST: IdentityId = IdentityId(786_432);
    const LAST: IdentityId = IdentityId(786_436);

    async fn client(store: &Store) -> Client {
        let channel = serve::in_process(store.clone(), CancellationToken::new());
        Client::in_process(channel).await.unwrap()
    }

    fn request(node: &str, app: &str, lease: i64, known: Option<IdentityId>) -> Request {
        let label = Label {
            source: "k8s".into(),
            key: "app".to_owned(),
            value: app.to_owned(),
        };
        let labels = Arc::new(Labels::new([label]).unwrap());
        Request {
            slave: identity::slave_key(&labels, node),
            labels,
            lease,
            known,
            candidates: vec![FIRST, IdentityId(FIRST.0 + 1)],
            range: FIRST..=LAST,
        }
    }

    fn store() -> Store {
        Store::new(store::Options {
            cluster_id: 1,
            history_max: 10_000,
        })
    }

    #[tokio::test]
    async fn a_crowd_gets_every_number_once_and_the_rest_is_told_that_it_is_full() {
        let store = store();
        let nodes = ["n1", "n2", "n3"].map(async |node| {
            let client = client(&store).await;
            let lease = client.lease_grant(limits::LEASE_TTL).await.unwrap();
            let apps: Vec<_> = (0..8).map(|app| format!("app-{app}")).collect();
            let apps = apps.iter().map(|app| request(node, app, lease, None));
            let requests: Vec<_> = apps.collect();
            allocate(&client, &requests).await.unwrap()
        });
        let answers = futures::future::join_all(nodes).await;
        let mut ids = BTreeMap::new();
        for answers in &answers {
            assert_eq!(answers.len(), 8);
            for (app, answer) in answers.iter().enumerate() {
                match answer {
                    Allocation::Held(id) => {
                        let other = ids.insert(*id, app);
                        assert!(
                            other.is_none_or(|other| other == app),
                            "{id} is {other:?} too"
                        );
                    }
                    other => assert_eq!(*other, Allocation::Full),
                }
            }
        }
        let all: Vec<_> = (FIRST.0..=LAST.0).map(IdentityId).collect();
        assert_eq!(ids.keys().copied().collect::<Vec<_>>(), all);
        let apps: BTreeSet<_> = ids.into_values().collect();
        assert_eq!(apps.len(), 5);
        let under = |prefix: &str| {
            let request = RangeRequest::prefix(prefix.as_bytes());
            store.range(&request).unwrap().kvs.len()
        };
        assert_eq!(under(IDENTITY_ID_PREFIX), 5);
        assert_eq!(under(IDENTITY_LOCKS_PREFIX), 0);
        assert_eq!(store.leases().len(), 3, "the mutexes' leases are gone");
    }

    #[tokio::test]
    async fn a_known_number_is_kept_unless_others_use_another() {
        let store = store();
        let client = client(&store).await;
        let lease = client.lease_grant(limits::LEASE_TTL).await.unwrap();
        let held = async |node: &str, known| {
            let answers = allocate(&client, &[request(node, "a", lease, known)]).await;
            answers.unwrap().remove(0)
        };
        // Two nodes remember different numbers, both of which still stand for the labels.
        for id in [FIRST, LAST] {
            let text = request("n1", "a", lease, None).labels.to_string();
            store
                .put(identity::master_key(id).into(), text.into(), 0)
                .unwrap();
        }
        assert_eq!(held("n1", Some(LAST)).await, Allocation::Held(LAST));
        assert_eq!(held("n2", Some(FIRST)).await, Allocation::Held(LAST));
        // A slave key that names a number of other labels is nobody's to correct.
        store.delete_prefix(b"cilium/state/identities/v1/id/");
        store
            .put(identity::master_key(LAST).into(), "k8s:b=;".into(), 0)
            .unwrap();
        let inconsistent = Allocation::Inconsistent(LAST.to_string());
        assert_eq!(held("n3", None).await, inconsistent);
    }

    #[tokio::test]
    async fn the_mutex_is_waited_for_and_freed_with_its_holders_lease() {
        let store = store();
        let client = client(&store).await;
        let lease = client.lease_grant(limits::LEASE_TTL).await.unwrap();
        let request = request("n1", "a", lease, None);
        let other = client.lease_grant(limits::LOCK_LEASE_TTL).await.unwrap();
        let lock = Lock::take(&client, &request.labels, other).await.unwrap();
        let requests = [request];
        let mut waiting = std::pin::pin!(allocate(&client, &requests));
        let pause = std::time::Duration::from_millis(100);
        let early = tokio::time::timeout(pause, &mut waiting).await;
        assert!(early.is_err(), "{early:?}");
        client.lease_revoke(other).await.unwrap();
        assert_eq!(waiting.await.unwrap(), [Allocation::Held(FIRST)]);
        // Who lost the mutex can do nothing with it.
        let late = bind(&client, &requests[0], FIRST, &lock, true)
            .await
            .unwrap();
        assert!(!late);
    }
}
