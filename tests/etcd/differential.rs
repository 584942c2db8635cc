//! Our etcd face beside real etcds, call by call: answers, codes, texts, revisions and watch
//! streams are equal but for the ids in `mask`.
//! Goal: no client can tell us from etcd 3.5. Method: one seeded sequence of some thousand calls
//! goes to all servers at once; after each call everything they said is compared.
//!
//! Order: what etcd promises is compared, and no more. Within a watch that is the order of all
//! events, and as long as calls come one by one, also how they are cut into messages; what a burst of
//! calls brings is joined first, as there timing decides. Between two watches, of one stream or of
//! two, etcd promises nothing: it serves the watches of an event in the order of a hash table, and
//! those whose queue was full later. The one promise about a whole stream, that its progress comes
//! behind all events up to there, needs load to be tested: see `watch.rs`.
//!
//! In these sequences 3.4.23 and 3.5.1 answer alike. Sequences leave out where etcd contradicts
//! itself or fails; there we do what its documentation says:
//!
//! | Case | etcd | Ours |
//! |---|---|---|
//! | equals in a sort of more than six keys | order of the Go release | order of keys |
//! | watch from a negative revision | skips events, of other watches too | from now on |
//! | watch from the compacted revision | both lack its deletions | has them |
//! | put that is to keep what an open-ended deletion in its transaction took | panic | value and lease as given |
//! | unknown sort order, target or comparison | either release, its own way | `InvalidArgument` |
//! | a hundred transactions within each other | runs them | refused beyond eight |
//! | keys of a lease | random order | ascending |
use tombolo::serve::Limits;

use self::{
    coverage::Coverage,
    faults::{Fault, Kind},
    generate::Generator,
    server::Server,
    wire::Call,
};
use super::{
    Face,
    real::{Etcd, Release},
};

mod coverage;
mod faults;
mod generate;
mod mask;
mod script;
mod server;
mod show;
mod transactions;
mod wire;

/// Small, so that sequences often exceed them; etcd has flags of the same names.
const REQUEST_BYTES: usize = 64 << 10;
/// See `REQUEST_BYTES`.
const TXN_OPS: usize = 16;
/// Length of the random sequence.
const CALLS: usize = 3_000;
/// Length of a sequence that a planted fault must not survive.
const CALLS_FAULT: usize = 1_500;

fn limits() -> Limits {
    Limits {
        request_bytes: REQUEST_BYTES,
        txn_ops: TXN_OPS,
        ..Limits::default()
    }
}

fn etcd(release: Release) -> Etcd {
    let flags = [
        format!("--max-request-bytes={}", REQUEST_BYTES),
        format!("--max-txn-ops={}", TXN_OPS),
    ];
    Etcd::start(release, &flags)
}

/// Plays one call on all servers; what differs from the first of them, if anything does.
async fn play(servers: &mut [Server], call: &Call) -> (server::Outcome, Option<String>) {
    let steps = servers.iter_mut().map(|server| server.step(call));
    let mut outcomes = futures::future::join_all(steps).await;
    let reference = outcomes.remove(0);
    let mut difference = String::new();
    for (server, outcome) in servers[1..].iter().zip(&outcomes) {
        if *outcome != reference || !outcome.broken.is_empty() {
            let names = [servers[0].name, server.name];
            difference += &show::difference(names, [&reference, outcome]);
        }
    }
    let difference =
        (!difference.is_empty()).then(|| format!("{}\n{difference}", show::pretty(call)));
    (reference, difference)
}

/// The first difference in a random sequence, if there is one.
async fn random_sequence(
    servers: &mut [Server],
    seed: u64,
    calls: usize,
) -> (Coverage, Option<String>) {
    let mut generator = Generator::new(seed);
    let mut coverage = Coverage::default();
    for number in 0..calls {
        let call = generator.next();
        let (outcome, difference) = play(servers, &call).await;
        coverage.add(&call, &outcome);
        generator.learn(&call, &outcome);
        if let Some(difference) = difference {
            let difference = format!("seed {seed}, call {number}: {difference}");
            return (coverage, Some(difference));
        }
    }
    (coverage, None)
}

/// `DIFFERENTIAL_SEED` tries another sequence.
fn seed() -> u64 {
    let given = std::env::var("DIFFERENTIAL_SEED").ok();
    given.map_or(1, |text| text.parse().expect("a number"))
}

async fn compare_with(release: Release) {
    if !release.is_installed() {
        return;
    }
    let etcd = etcd(release);
    let face = Face::start_limited("admin-west", limits()).await;
    let expiry = tokio::spawn(tombolo::serve::store_expiry(
        face.cluster().clone(),
        face.cancel.clone(),
    ));
    let mut servers = [
        Server::connect("etcd", &etcd.endpoint, None).await,
        Server::connect("ours", &face.endpoint, None).await,
    ];
    let seed = seed();
    eprintln!("DIFFERENTIAL_SEED={seed}");
    let (coverage, difference) = random_sequence(&mut servers, seed, CALLS).await;
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    coverage.assert_complete();
    for call in script::calls() {
        let (_, difference) = play(&mut servers, &call).await;
        assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
    drop(servers);
    face.stop().await;
    expiry.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_to_etcd_3_5() {
    compare_with(Release::V3_5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_to_etcd_3_4() {
    compare_with(Release::V3_4).await;
}

/// The comparison sees each of these faults, and nothing between two equal servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_faults_are_caught() {
    let faults = Kind::ALL.into_iter().map(Some).chain([None]);
    for kind in faults {
        let (reference, faulty) = tokio::join!(
            Face::start_limited("admin-west", limits()),
            Face::start_limited("admin-west", limits())
        );
        let mut servers = [
            Server::connect("ours", &reference.endpoint, None).await,
            Server::connect("faulty", &faulty.endpoint, kind.map(Fault::new)).await,
        ];
        let (_, difference) = random_sequence(&mut servers, 7, CALLS_FAULT).await;
        match kind {
            Some(kind) => assert!(difference.is_some(), "{kind:?} went unseen"),
            None => assert_eq!(difference, None),
        }
        drop(servers);
        reference.stop().await;
        faulty.stop().await;
    }
}
