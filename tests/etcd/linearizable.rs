//! Clients that race each other over the wire see one order of events.
//! Method: each call is recorded with the time it began and the time it was answered; the search of
//! Wing and Gong then looks, key by key, for an order that respects both times and in which every
//! answer is right. Keys are independent, so histories per key decide about the whole. That the search
//! finds what a server gets wrong is shown by faults planted between the two.
use std::{
    collections::HashSet,
    convert::Infallible,
    path::Path,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::net::{TcpListener, TcpStream};
use tombolo::{
    journal,
    serve::{Keyspaces, Limits, Server},
};

use super::Face;

/// Clients of one round, each with a connection of its own.
const CLIENTS: u64 = 6;
/// Calls of one client in one round; the search knows at most 64 of one key.
const CALLS: usize = 30;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const ROUNDS: u64 = 16;

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

/// What a server could get wrong, planted between it and the record of its answers. Each strikes one
/// of ten calls that it can spoil.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A read is answered from the state before the last write that anybody was told of.
    StaleRead,
    /// A put is answered before it is done.
    EarlyAnswer,
    /// A put is answered and never done.
    LostWrite,
    /// A swap says that it was done when it was not, or the reverse.
    WrongBranch,
}

impl Fault {
    const ALL: [Self; 4] = [
        Self::StaleRead,
        Self::EarlyAnswer,
        Self::LostWrite,
        Self::WrongBranch,
    ];
}

/// What the clients of a round share.
#[derive(Default)]
struct Round {
    clock: AtomicU64,
    /// The newest revision that any of them was told.
    newest: AtomicI64,
    fault: Option<Fault>,
}

impl Round {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn told(&self, header: Option<&ResponseHeader>) {
        let revision = header.unwrap().revision();
        self.newest.fetch_max(revision, Ordering::SeqCst);
    }
}

/// One client of a round.
struct Caller<'a> {
    round: &'a Round,
    client: etcd_client::Client,
    random: StdRng,
    /// What it knows of each key.
    known: [State; KEYS.len()],
}

impl Caller<'_> {
    /// One call on one key.
    async fn call(&mut self, key: usize, value: u64) -> Record {
        let began = self.round.tick();
        let mut early = None;
        let call = match (self.random.random_range(0..10), self.known[key]) {
            (0..4, _) => self.read(key).await,
            (4..6, Some(expected)) => self.swap(key, expected, value).await,
            (6, _) => self.delete(key).await,
            _ => {
                if self.strikes(Fault::EarlyAnswer) {
                    early = Some(self.round.tick());
                    // As long as a write may wait for the disk.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                self.put(key, value).await
            }
        };
        let ended = early.unwrap_or_else(|| self.round.tick());
        self.known[key] = match call {
            Call::Read { saw } => saw,
            Call::Delete { .. } => None,
            Call::Put { value, .. } => Some(value),
            Call::Swap {
                expected,
                value,
                done,
            } => Some(if done { value } else { expected }),
        };
        Record { call, began, ended }
    }

    fn strikes(&mut self, fault: Fault) -> bool {
        self.round.fault == Some(fault) && self.random.random_ratio(1, 10)
    }

    async fn read(&mut self, key: usize) -> Call {
        let stale = self.strikes(Fault::StaleRead);
        let before = self.round.newest.load(Ordering::SeqCst) - 1;
        let options = GetOptions::new().with_revision(if stale { before.max(1) } else { 0 });
        let got = self.client.get(KEYS[key], Some(options)).await.unwrap();
        self.round.told(got.header());
        let saw = got.kvs().first().map(|kv| number(kv.value()));
        Call::Read { saw }
    }

    async fn swap(&mut self, key: usize, expected: u64, value: u64) -> Call {
        let condition = Compare::value(KEYS[key], CompareOp::Equal, expected.to_string());
        let put = TxnOp::put(KEYS[key], value.to_string(), None);
        let txn = Txn::new().when([condition]).and_then([put]);
        let swapped = self.client.txn(txn).await.unwrap();
        self.round.told(swapped.header());
        let done = swapped.succeeded() != self.strikes(Fault::WrongBranch);
        Call::Swap {
            expected,
            value,
            done,
        }
    }

    async fn delete(&mut self, key: usize) -> Call {
        let options = DeleteOptions::new().with_prev_key();
        let gone = self.client.delete(KEYS[key], Some(options)).await.unwrap();
        self.round.told(gone.header());
        let before = gone.prev_kvs().first().map(|kv| number(kv.value()));
        Call::Delete { before }
    }

    async fn put(&mut self, key: usize, value: u64) -> Call {
        if self.strikes(Fault::LostWrite) {
            let Call::Read { saw: before } = self.read(key).await else {
                unreachable!("a read is a read")
            };
            return Call::Put { value, before };
        }
        let options = PutOptions::new().with_prev_key();
        let put = self.client.put(KEYS[key], value.to_string(), Some(options));
        let put = put.await.unwrap();
        self.round.told(put.header());
        let before = put.prev_key().map(|kv| number(kv.value()));
        Call::Put { value, before }
    }
}

/// A face whose cluster store is the durable one that an agent has: in memory, a write is applied
/// when it is asked for, and there is little to get wrong.
async fn start(directory: &Path) -> Face {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let (journal, runner) = journal::open(directory, 10_000, Instant::now()).unwrap();
    Face::start_with(endpoint, |keyspaces, cancel| {
        let stopped = cancel.clone();
        std::thread::spawn(move || runner.run(&stopped));
        let keyspaces = Keyspaces {
            cluster: Some(journal.into()),
            ..keyspaces
        };
        let server = Server::new(keyspaces, "west".parse().unwrap(), Limits::default());
        let accept = async |tcp: TcpStream| Ok::<_, Infallible>((tcp, "admin-west".to_owned()));
        tokio::spawn(server.run(listener, accept, cancel))
    })
}

/// The history of each key with all clients at work.
async fn histories(seed: u64, fault: Option<Fault>) -> [Vec<Record>; KEYS.len()] {
    let directory = tempfile::tempdir().unwrap();
    let face = start(directory.path()).await;
    let round = Round {
        fault,
        ..Round::default()
    };
    let clients = (0..CLIENTS).map(async |id| {
        let mut caller = Caller {
            round: &round,
            client: face.client().await,
            random: StdRng::seed_from_u64(seed * CLIENTS + id),
            known: [None; KEYS.len()],
        };
        let mut records = Vec::new();
        for n in 0..CALLS {
            // Most calls of one key meet, and no key gets more than the search can take.
            let astray = usize::from(caller.random.random_ratio(1, 8));
            let key = (n / 2 + astray) % KEYS.len();
            let value = id * 1_000 + n as u64 + 1;
            records.push((key, caller.call(key, value).await));
        }
        records
    });
    let all = futures::future::join_all(clients).await.concat();
    face.stop().await;
    std::array::from_fn(|key| {
        let of_key = all.iter().filter(|(k, _)| *k == key);
        of_key.map(|(_, record)| *record).collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_clients_see_one_order() {
    for round in 0..ROUNDS {
        for history in histories(round, None).await {
            let overlap = history.iter().any(|a| {
                history
                    .iter()
                    .any(|b| a.began < b.began && b.began < a.ended)
            });
            assert!(overlap, "no two calls met, so this shows nothing");
            assert!(is_linearizable(&history), "round {round}: {history:#?}");
        }
    }
}

/// Each fault is seen in as many rounds as the test above has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_faults_are_caught() {
    for fault in Fault::ALL {
        let mut caught = false;
        for round in 0..ROUNDS {
            let histories = histories(round, Some(fault)).await;
            caught = !histories.iter().all(|history| is_linearizable(history));
            if caught {
                break;
            }
        }
        assert!(caught, "{fault:?} went unseen");
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
