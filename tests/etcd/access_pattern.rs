//! What a Cilium kvstore client does all day, with the `etcd-client` crate, against real etcds and
//! against us: pages of a list pinned to one revision, the watch that follows it, leases of fifteen
//! minutes with a thousand keys each, and the mutex.
use std::collections::BTreeMap;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, LeaseTimeToLiveOptions,
    PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchOptions,
};

use super::{
    Face,
    real::{Etcd, Release},
    within,
};

const PREFIX: &str = "cilium/state/ip/v1/default/";
const KEYS: usize = 2_000;
const KEYS_PER_LEASE: usize = 1_000;
const PAGE: i64 = 256;
const LEASE_SECONDS: i64 = 15 * 60;

#[tokio::test]
async fn it_works_here_as_it_works_there() {
    let face = Face::start("admin-west").await;
    let ours = Box::pin(play(&face.endpoint)).await;
    face.stop().await;
    for release in Release::ALL {
        if !release.is_installed() {
            continue;
        }
        let etcd = Etcd::start(release, &[]);
        let theirs = Box::pin(play(&etcd.endpoint)).await;
        assert_eq!(theirs, ours, "{release:?}");
    }
}

/// Everything that a client could tell the servers apart by.
async fn play(endpoint: &str) -> Vec<String> {
    let connected = async {
        loop {
            let client = Client::connect([endpoint], None).await;
            if let Ok(mut client) = client
                && client.status().await.is_ok()
            {
                return client;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let mut client = within(Box::pin(connected)).await;
    let mut seen = Vec::new();
    let leases = fill(&mut client).await;
    let (revision, mut keys) = list_while_others_write(&mut client, &mut seen).await;
    follow(&mut client, revision, &mut keys, &mut seen).await;
    lock(&mut client, &mut seen).await;
    for lease in leases {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let told = client.lease_time_to_live(lease, Some(options)).await;
        let told = told.unwrap();
        seen.push(format!("{} {}", told.granted_ttl(), told.keys().len()));
        client.lease_revoke(lease).await.unwrap();
    }
    let left = client.get(PREFIX, Some(GetOptions::new().with_prefix()));
    let left = left.await.unwrap();
    seen.push(format!(
        "{} {}",
        left.count(),
        left.header().unwrap().revision()
    ));
    seen
}

/// Keys on as many leases as they need.
async fn fill(client: &mut Client) -> Vec<i64> {
    let mut leases = Vec::new();
    for n in 0..KEYS {
        if n % KEYS_PER_LEASE == 0 {
            leases.push(client.lease_grant(LEASE_SECONDS, None).await.unwrap().id());
        }
        let on_lease = PutOptions::new().with_lease(leases[leases.len() - 1]);
        let key = format!("{PREFIX}10.1.{}.{}", n / 250, n % 250);
        client.put(key, "{}", Some(on_lease)).await.unwrap();
    }
    leases
}

/// Pages stay what they were at the first one's revision.
async fn list_while_others_write(
    client: &mut Client,
    seen: &mut Vec<String>,
) -> (i64, BTreeMap<String, i64>) {
    let mut keys = BTreeMap::new();
    let (mut from, mut revision) = (PREFIX.to_owned(), 0);
    loop {
        let options = GetOptions::new()
            .with_range("cilium/state/ip/v1/default0")
            .with_limit(PAGE)
            .with_revision(revision)
            .with_serializable();
        let page = client.get(from.clone(), Some(options)).await.unwrap();
        if revision == 0 {
            revision = page.header().unwrap().revision();
        }
        for kv in page.kvs() {
            keys.insert(kv.key_str().unwrap().to_owned(), kv.mod_revision());
        }
        seen.push(format!("{} {}", page.count(), page.more()));
        if !page.more() {
            return (revision, keys);
        }
        from = format!("{}\0", page.kvs().last().unwrap().key_str().unwrap());
        // What happens meanwhile comes by the watch.
        client
            .put(format!("{PREFIX}10.2.0.{}", seen.len()), "{}", None)
            .await
            .unwrap();
        let gone = format!("{PREFIX}10.1.7.{}", seen.len());
        client.delete(gone, None).await.unwrap();
    }
}

/// The watch leads from the list to what is there now.
async fn follow(
    client: &mut Client,
    revision: i64,
    keys: &mut BTreeMap<String, i64>,
    seen: &mut Vec<String>,
) {
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision + 1);
    let mut stream = client.watch(PREFIX, Some(options)).await.unwrap();
    let now = client
        .get(PREFIX, Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    let newest = now.header().unwrap().revision();
    let mut reached = revision;
    while reached < newest {
        let message = within(stream.message()).await.unwrap().unwrap();
        for event in message.events() {
            let kv = event.kv().unwrap();
            let key = kv.key_str().unwrap().to_owned();
            reached = kv.mod_revision();
            seen.push(format!("{:?} {key} {reached}", event.event_type()));
            match event.event_type() {
                EventType::Put => keys.insert(key, reached),
                EventType::Delete => keys.remove(&key),
            };
        }
    }
    let entries = now.kvs().iter();
    let there: BTreeMap<String, i64> = entries
        .map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision()))
        .collect();
    assert_eq!(*keys, there);
}

/// The mutex of etcd's clients: who wrote first holds it, the next waits for that key to go.
async fn lock(client: &mut Client, seen: &mut Vec<String>) {
    let prefix = "cilium/state/identities/v1/locks/a/";
    let mut mine = Vec::new();
    for _ in 0..2 {
        let lease = client.lease_grant(25, None).await.unwrap().id();
        let key = format!("{prefix}{lease:x}");
        let owner = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let txn = Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key.clone(), "", Some(PutOptions::new().with_lease(lease))),
                TxnOp::get(prefix, Some(owner)),
            ]);
        let answer = client.txn(txn).await.unwrap();
        let Some(TxnOpResponse::Get(holder)) = answer.op_responses().pop() else {
            panic!("no answer to the read");
        };
        mine.push((lease, key));
        let held_by_first = holder.kvs()[0].key_str().unwrap() == mine[0].1;
        seen.push(format!("{} {held_by_first}", answer.succeeded()));
    }
    let (first, second) = (&mine[0], &mine[1]);
    let mut waiting = client.watch(first.1.clone(), None).await.unwrap();
    client.lease_revoke(first.0).await.unwrap();
    let released = async {
        loop {
            let message = waiting.message().await.unwrap().unwrap();
            if let Some(event) = message.events().first() {
                return event.event_type();
            }
        }
    };
    assert_eq!(within(released).await, EventType::Delete);
    let unlock = DeleteOptions::new().with_prev_key();
    let gone = client.delete(second.1.clone(), Some(unlock)).await.unwrap();
    seen.push(format!("{} {}", gone.deleted(), gone.prev_kvs().len()));
    client.lease_revoke(second.0).await.unwrap();
}
