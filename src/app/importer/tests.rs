//! Candidates that share a store whose leases expire as everywhere.
use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;

use super::*;
use crate::{
    serve,
    store::{self, Store},
};

struct Node {
    route: watch::Receiver<Route>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

fn store() -> Store {
    Store::new(store::Options {
        cluster_id: 11,
        history_max: 1000,
    })
}

fn connector(store: &Store) -> Connector {
    let store = store.clone();
    Connector::new(move || {
        Client::in_process(serve::in_process(store.clone(), CancellationToken::new()))
    })
}

fn candidate(node: &'static str, connector: Connector, patience: Duration) -> Candidate {
    Candidate {
        connector,
        tls: ClientOptions::default(),
        node: node.to_owned(),
        endpoint: Box::new(move || Some(format!("https://{node}:2379"))),
        election: Election::new(node.to_owned(), Instant::now(), patience),
        route: watch::Sender::new(Route::Undecided),
        lease: None,
    }
}

impl Node {
    fn start(node: &'static str, connector: Connector) -> Self {
        Self::spawn(candidate(node, connector, Duration::from_secs(60)))
    }

    fn spawn(candidate: Candidate) -> Self {
        let (route, cancel) = (candidate.route(), CancellationToken::new());
        let task = tokio::task::spawn(candidate.run(cancel.clone()));
        Self {
            route,
            cancel,
            task,
        }
    }

    async fn imports(&mut self) {
        let imports = self.route.wait_for(|route| *route == Route::Direct);
        within(imports).await.unwrap();
    }

    /// Waits until it reads the cache of `node`.
    async fn reads(&mut self, node: &str) {
        let reads = |route: &Route| {
            let Route::Via { node: at, cache } = route else {
                return false;
            };
            let endpoint = cache.as_ref().map(|cache| cache.endpoints[0].to_string());
            at == node && endpoint == Some(format!("{node}:2379"))
        };
        within(self.route.wait_for(reads)).await.unwrap();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, future)
        .await
        .expect("nothing happened in time")
}

#[tokio::test]
async fn one_imports_and_the_next_follows_it_when_it_goes() {
    let store = store();
    let expiry = tokio::task::spawn(serve::store_expiry(store.clone(), CancellationToken::new()));
    let mut one = Node::start("n1", connector(&store));
    one.imports().await;
    let mut two = Node::start("n2", connector(&store));
    two.reads("n1").await;
    // Who stops gives the lock up at once.
    let since = Instant::now();
    one.cancel.cancel();
    two.imports().await;
    assert!(since.elapsed() < limits::IMPORTER_RENEW);
    within(one.task).await.unwrap();
    let mut one = Node::start("n1", connector(&store));
    one.reads("n2").await;
    // Who is killed does not; its lease ends by itself.
    let since = Instant::now();
    two.task.abort();
    one.imports().await;
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    assert!(
        since.elapsed() > Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
    expiry.abort();
}

#[tokio::test]
async fn a_node_takes_the_lock_of_its_last_process_and_one_that_nobody_keeps_alive() {
    let store = store();
    let mut first = Node::start("n1", connector(&store));
    first.imports().await;
    first.task.abort();
    let mut again = Node::start("n1", connector(&store));
    again.imports().await;
    again.cancel.cancel();
    within(again.task).await.unwrap();
    assert!(store.get(IMPORTER_LOCK.as_bytes()).is_none());
    store.put(IMPORTER_LOCK.into(), "left".into(), 0).unwrap();
    let mut other = Node::start("n2", connector(&store));
    other.imports().await;
}

#[tokio::test]
async fn who_loses_the_lock_reads_the_cache_of_who_has_it() {
    let store = store();
    let mut one = Node::start("n1", connector(&store));
    one.imports().await;
    let lock = store.get(IMPORTER_LOCK.as_bytes()).unwrap();
    store.lease_revoke(lock.lease).unwrap();
    store
        .lease_grant(9, Duration::from_secs(60), std::time::Instant::now())
        .unwrap();
    let two = Holder {
        node: "n2".to_owned(),
        endpoint: Some("https://n2:2379".to_owned()),
    };
    store
        .put(IMPORTER_LOCK.into(), two.encode().into(), 9)
        .unwrap();
    one.reads("n2").await;
}

#[tokio::test]
async fn a_node_that_cannot_ask_imports_for_itself_after_a_while() {
    let nowhere = Connector::new(|| async { Err(Error::NoEndpoint) });
    let patience = Duration::from_millis(300);
    let mut node = Node::spawn(candidate("n1", nowhere, patience));
    assert_eq!(*node.route.borrow(), Route::Undecided);
    node.imports().await;
}
