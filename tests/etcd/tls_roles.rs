//! Reading roles: what lies outside a grant is refused by every call that could show it.
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, LeaseTimeToLiveOptions, Txn, TxnOp, WatchOptions,
};
use tombolo::store::Store;

use super::{Face, within};

/// What one role may read, with the first key behind it.
struct Grant {
    name: &'static str,
    /// Prefix and its end.
    range: [&'static str; 2],
    /// Keys that the store holds and the role may not see.
    outside: &'static [&'static str],
}

const GRANTS: [Grant; 3] = [
    Grant {
        name: "remote",
        range: ["cilium/state/", "cilium/state0"],
        outside: &["cilium/cache/x", "cilium/cluster-config/east", "tombolo/x"],
    },
    Grant {
        name: "remote-east",
        range: ["cilium/synced/west/", "cilium/synced/west0"],
        outside: &["cilium/synced/east/x", "cilium/cluster-config/west2"],
    },
    Grant {
        name: "local-west",
        range: ["cilium/cache/", "cilium/cache0"],
        outside: &["cilium/state/x", "cilium/.initlock/x", "tombolo/x"],
    },
];

fn denied<T>(answer: Result<T, Error>, what: &str) {
    match answer {
        Err(Error::GRpcStatus(status)) => {
            let expected = (
                tonic::Code::PermissionDenied,
                "etcdserver: permission denied",
            );
            assert_eq!((status.code(), status.message()), expected, "{what}");
        }
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what}: answered"),
    }
}

fn until(end: &str) -> Option<GetOptions> {
    Some(GetOptions::new().with_range(end))
}

/// Ranges that begin inside the grant and end outside it, or hold it.
fn too_wide(range: [&'static str; 2]) -> Vec<(String, Vec<u8>)> {
    let [start, end] = range;
    vec![
        (start.to_owned(), [end.as_bytes(), &[0]].concat()),
        (start.to_owned(), vec![0]),
        ("cilium/".to_owned(), end.as_bytes().to_vec()),
        ("\0".to_owned(), vec![0]),
        (
            start.trim_end_matches('/').to_owned(),
            end.as_bytes().to_vec(),
        ),
    ]
}

async fn ranges(client: &mut Client, grant: &Grant) {
    let [start, end] = grant.range;
    let got = client.get(start, until(end)).await.unwrap();
    assert_eq!(got.count(), 1, "{}", grant.name);
    for (key, end) in too_wide(grant.range) {
        let options = GetOptions::new().with_range(end.clone());
        denied(client.get(key.as_str(), Some(options)).await, &key);
        let options = GetOptions::new().with_range(end).with_count_only();
        denied(client.get(key.as_str(), Some(options)).await, &key);
    }
    for key in grant.outside {
        denied(client.get(*key, None).await, key);
    }
}

async fn transactions(client: &mut Client, grant: &Grant) {
    let [start, end] = grant.range;
    let inside = || TxnOp::get(start, until(end));
    let txn = Txn::new().and_then([inside()]).or_else([inside()]);
    client.txn(txn).await.unwrap();
    for key in grant.outside {
        let get = || TxnOp::get(*key, None);
        let exists = || Compare::version(*key, CompareOp::Greater, 0);
        // An empty list of conditions holds, so that `or_else` is the branch not taken.
        for txn in [
            Txn::new().and_then([get()]),
            Txn::new().and_then([inside(), get()]),
            Txn::new().or_else([get()]),
            Txn::new().when([exists()]),
            Txn::new().when([exists()]).and_then([inside()]),
            Txn::new().and_then([TxnOp::txn(Txn::new().or_else([get()]))]),
            Txn::new().or_else([TxnOp::txn(Txn::new().when([exists()]))]),
            Txn::new().or_else([TxnOp::put(start, "", None)]),
            Txn::new().or_else([TxnOp::delete(start, None)]),
            Txn::new().or_else([TxnOp::txn(
                Txn::new().and_then([TxnOp::put(start, "", None)]),
            )]),
        ] {
            denied(client.txn(txn.clone()).await, &format!("{key} {txn:?}"));
        }
    }
    let wide = Compare::version(start, CompareOp::Greater, -1).with_range(vec![0]);
    denied(client.txn(Txn::new().when([wide])).await, "condition");
}

async fn watches(client: &mut Client, grant: &Grant) {
    let [start, end] = grant.range;
    let options = WatchOptions::new().with_range(end).with_start_revision(1);
    let mut stream = within(client.watch(start, Some(options))).await.unwrap();
    assert!(within(stream.message()).await.unwrap().unwrap().created());
    let seen = within(stream.message()).await.unwrap().unwrap();
    assert_eq!(seen.events().len(), 1, "{}", grant.name);
    let keys = grant.outside.iter().map(|key| ((*key).to_owned(), vec![]));
    for (key, end) in too_wide(grant.range).into_iter().chain(keys) {
        let options = WatchOptions::new().with_start_revision(1);
        let options = if end.is_empty() {
            options
        } else {
            options.with_range(end)
        };
        stream.watch(key.as_str(), Some(options)).await.unwrap();
        let refused = within(stream.message()).await.unwrap().unwrap();
        assert!(refused.created() && refused.canceled(), "{key}");
        assert!(
            refused.cancel_reason().contains("permission denied"),
            "{key}"
        );
        assert!(refused.events().is_empty());
    }
}

/// `lease` holds the keys outside the grant.
async fn leases(client: &mut Client, store: &Store, lease: i64) {
    let keys = || Some(LeaseTimeToLiveOptions::new().with_keys());
    let told = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(told.keys().is_empty());
    denied(client.lease_time_to_live(lease, keys()).await, "keys");
    let before = store.revision();
    denied(client.lease_revoke(lease).await, "revoke");
    assert_eq!(store.revision(), before, "keys are still there");
    let own = client.lease_grant(60, None).await.unwrap().id();
    let told = client.lease_time_to_live(own, keys()).await.unwrap();
    assert!(told.keys().is_empty());
    client.lease_revoke(own).await.unwrap();
}

#[tokio::test]
async fn reading_roles_see_their_ranges_by_no_call_more() {
    for grant in GRANTS {
        let face = Face::start(grant.name).await;
        let store = match grant.name {
            "local-west" => face.keyspaces.cache.clone(),
            _ => face.export(),
        };
        let ttl = Duration::from_secs(600);
        let lease = 7;
        store.lease_grant(lease, ttl, Instant::now()).unwrap();
        for key in grant.outside {
            store.put((*key).into(), "secret".into(), lease).unwrap();
        }
        let inside = format!("{}x", grant.range[0]);
        store.put(inside.clone().into(), "1".into(), 0).unwrap();

        let mut client = face.client().await;
        ranges(&mut client, &grant).await;
        transactions(&mut client, &grant).await;
        watches(&mut client, &grant).await;
        leases(&mut client, &store, lease).await;
        let before = store.revision();
        denied(client.put(inside.as_str(), "", None).await, "put");
        denied(client.delete(inside.as_str(), None).await, "delete");
        denied(client.compact(1, None).await, "compact");
        assert_eq!(store.revision(), before);
        face.stop().await;
    }
}
