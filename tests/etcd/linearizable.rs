//! Clients that race each other over the wire see one order of events.
//! Method: each call is recorded with the time it began and the time it was answered; the search of
//! Wing and Gong then looks, key by key, for an order that respects both times and in which every
//! answer is right. Keys are independent, so histories per key decide about the whole.
use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::Face;

/// Clients of one round, each with a connection of its own.
const CLIENTS: u64 = 6;
/// Calls of one client in one round; the search knows at most 64 of one key.
const CALLS: usize = 30;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const ROUNDS: u64 = 8;

/// The state of a key: its value, none if it is absent. Every write has a value of its own.
type State = Option<u64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Read {
        saw: State,
    },
    Put {
        value: u64,
        before: State,
    },
    Delete {
        before: State,
    },
    /// Writes `value` if the key has `expected`; `done` says whether it did.
    Swap {
        expected: u64,
        value: u64,
        done: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Record {
    call: Call,
    began: u64,
    ended: u64,
}

impl Call {
    /// The state afterwards, or none if the answer would be wrong in this one.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Self::Read { saw } => (saw == state).then_some(state),
            Self::Put { value, before } => (before == state).then_some(Some(value)),
            Self::Delete { before } => (before == state).then_some(None),
            Self::Swap {
                expected,
                value,
                done,
            } => {
                let holds = state == Some(expected);
                (holds == done).then_some(if holds { Some(value) } else { state })
            }
        }
    }
}

/// Whether some order of the calls explains all their answers, starting from an absent key.
fn is_linearizable(history: &[Record]) -> bool {
    assert!(history.len() <= 64, "the set of calls done is a word");
    let all = if history.len() == 64 {
        u64::MAX
    } else {
        (1 << history.len()) - 1
    };
    let mut seen = HashSet::new();
    let mut open = vec![(0_u64, None)];
    while let Some((done, state)) = open.pop() {
        if done == all {
            return true;
        }
        let left = |n: &usize| done & (1 << n) == 0;
        // A call can be next if it began before all others that are left have ended.
        let first_end = (0..history.len())
            .filter(left)
            .map(|n| history[n].ended)
            .min();
        for n in (0..history.len()).filter(left) {
            let record = history[n];
            if Some(record.began) < first_end
                && let Some(next) = record.call.apply(state)
                && seen.insert((done | 1 << n, next))
            {
                open.push((done | 1 << n, next));
            }
        }
    }
    false
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

/// One call on one key.
async fn call(
    client: &mut etcd_client::Client,
    key: &str,
    value: u64,
    random: &mut StdRng,
    known: &mut State,
) -> Call {
    let text = value.to_string();
    let call = match (random.random_range(0..10), *known) {
        (0..4, _) => {
            let got = client.get(key, None).await.unwrap();
            let saw = got.kvs().first().map(|kv| number(kv.value()));
            Call::Read { saw }
        }
        (4..6, Some(expected)) => {
            let condition = Compare::value(key, CompareOp::Equal, expected.to_string());
            let txn = Txn::new().when([condition]);
            let txn = txn.and_then([TxnOp::put(key, text, None)]);
            let done = client.txn(txn).await.unwrap().succeeded();
            Call::Swap {
                expected,
                value,
                done,
            }
        }
        (6, _) => {
            let options = DeleteOptions::new().with_prev_key();
            let gone = client.delete(key, Some(options)).await.unwrap();
            let before = gone.prev_kvs().first().map(|kv| number(kv.value()));
            Call::Delete { before }
        }
        _ => {
            let options = PutOptions::new().with_prev_key();
            let put = client.put(key, text, Some(options)).await.unwrap();
            let before = put.prev_key().map(|kv| number(kv.value()));
            Call::Put { value, before }
        }
    };
    *known = match call {
        Call::Read { saw } => saw,
        Call::Delete { .. } => None,
        Call::Put { value, .. } => Some(value),
        Call::Swap {
            expected,
            value,
            done,
        } => Some(if done { value } else { expected }),
    };
    call
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_clients_see_one_order() {
    for round in 0..ROUNDS {
        let face = Face::start("admin-west").await;
        let clock = AtomicU64::new(0);
        let tick = || clock.fetch_add(1, Ordering::SeqCst);
        let clients = (0..CLIENTS).map(|id| {
            let (face, tick) = (&face, &tick);
            async move {
                let mut client = face.client().await;
                let mut random = StdRng::seed_from_u64(round * CLIENTS + id);
                let mut known = [None; KEYS.len()];
                let mut records = Vec::new();
                for n in 0..CALLS {
                    // Most calls of one key meet, and no key gets more than the search can take.
                    let key = (n / 2 + usize::from(random.random_ratio(1, 8))) % KEYS.len();
                    let value = id * 1_000 + n as u64 + 1;
                    let began = tick();
                    let known = &mut known[key];
                    let call = call(&mut client, KEYS[key], value, &mut random, known).await;
                    let ended = tick();
                    records.push((key, Record { call, began, ended }));
                }
                records
            }
        });
        let all = futures::future::join_all(clients).await.concat();
        for key in 0..KEYS.len() {
            let of_key = all.iter().filter(|(k, _)| *k == key);
            let history: Vec<_> = of_key.map(|(_, record)| *record).collect();
            let overlap = history.iter().any(|a| {
                history
                    .iter()
                    .any(|b| a.began < b.began && b.began < a.ended)
            });
            assert!(overlap, "no two calls met, so this shows nothing");
            assert!(is_linearizable(&history), "round {round}: {history:#?}");
        }
        face.stop().await;
    }
}

/// The search finds orders that need calls to be swapped, and refuses what no order explains.
#[test]
fn the_search_tells_right_from_wrong() {
    let record = |call, began, ended| Record { call, began, ended };
    let put = |value, before| Call::Put { value, before };
    let read = |saw| Call::Read { saw };
    let swap = |expected, value, done| Call::Swap {
        expected,
        value,
        done,
    };
    let rows = [
        // A read within a write may see either side of it.
        (
            true,
            vec![record(put(1, None), 0, 3), record(read(None), 1, 2)],
        ),
        (
            true,
            vec![record(put(1, None), 0, 3), record(read(Some(1)), 1, 2)],
        ),
        // A stale read after the write was answered.
        (
            false,
            vec![record(put(1, None), 0, 1), record(read(None), 2, 3)],
        ),
        // Two reads that see a write come and go.
        (
            false,
            vec![
                record(put(1, None), 0, 9),
                record(read(Some(1)), 1, 2),
                record(read(None), 3, 4),
            ],
        ),
        // A lost update: both swaps say that they found 1.
        (
            false,
            vec![
                record(put(1, None), 0, 1),
                record(swap(1, 2, true), 2, 5),
                record(swap(1, 3, true), 3, 4),
            ],
        ),
        (
            true,
            vec![
                record(put(1, None), 0, 1),
                record(swap(1, 2, true), 2, 5),
                record(swap(1, 3, false), 3, 4),
                record(Call::Delete { before: Some(2) }, 6, 7),
                record(read(None), 8, 9),
            ],
        ),
    ];
    for (expected, history) in rows {
        assert_eq!(is_linearizable(&history), expected, "{history:#?}");
    }
}
