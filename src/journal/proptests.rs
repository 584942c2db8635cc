//! Goal: whatever the disk loses, a start finds every answered write, and none by half.
//! Method: random histories on a disk that loses what was not synced, stopped at any of its steps,
//! several times in a row, by a crash or a kill; and single flipped bits in what a history left.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};

use super::{
    Command, Error, Settings, codec,
    log::{Cut, Log},
    recover::{OpenError, Recovered, recover},
    tests::{disk::Disk, image},
};
use crate::store::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, Options, PutRequest, RangeRequest,
    Store, Txn, TxnOp,
};

const SETTINGS: Settings = Settings {
    segment_bytes: 2048,
    snapshot_after_bytes: 3000,
    history_max: 20,
};

#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<Command>),
    BeginSnapshot,
    EndSnapshot,
    Full(bool),
    HalfWrite,
    FailSync,
}

fn key() -> impl Strategy<Value = bytes::Bytes> {
    "[a-f]{1,2}".prop_map(Into::into)
}

fn put() -> impl Strategy<Value = PutRequest> {
    let value = prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..700)];
    let lease = prop_oneof![3 => Just(0), 1 => 1..4_i64];
    (key(), value, lease, any::<bool>()).prop_map(|(key, value, lease, prev_kv)| PutRequest {
        key,
        value: value.into(),
        lease,
        prev_kv,
        ..PutRequest::default()
    })
}

fn delete() -> impl Strategy<Value = DeleteRequest> {
    key().prop_map(|key| DeleteRequest {
        range: KeyRange::prefix(&key),
        prev_kv: true,
    })
}

fn txn() -> impl Strategy<Value = Txn> {
    let compare = (key(), 0..4_i64).prop_map(|(key, version)| Compare {
        range: KeyRange::single(key),
        op: CompareOp::Less,
        target: CompareTarget::Version(version),
    });
    let past = || {
        (key(), 0..30_i64).prop_map(|(key, revision)| {
            TxnOp::Range(RangeRequest {
                range: KeyRange::single(key),
                revision,
                ..RangeRequest::default()
            })
        })
    };
    let op = || {
        prop_oneof![
            3 => put().prop_map(TxnOp::Put),
            1 => delete().prop_map(TxnOp::Delete),
            1 => past(),
        ]
    };
    (vec(compare, 0..3), vec(op(), 0..4), vec(op(), 0..3)).prop_map(
        |(compare, success, failure)| Txn {
            compare,
            success,
            failure,
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => put().prop_map(Command::Put),
        1 => delete().prop_map(Command::Delete),
        3 => txn().prop_map(Command::Txn),
        1 => (1..60_i64).prop_map(Command::Compact),
        1 => (1..4_i64).prop_map(|id| Command::LeaseGrant { id, ttl: Duration::from_secs(9) }),
        1 => (1..4_i64).prop_map(Command::LeaseRevoke),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => vec(command(), 1..5).prop_map(Step::Batch),
        2 => Just(Step::BeginSnapshot),
        3 => Just(Step::EndSnapshot),
        1 => any::<bool>().prop_map(Step::Full),
        1 => Just(Step::HalfWrite),
        1 => prop_oneof![9 => Just(Step::EndSnapshot), 1 => Just(Step::FailSync)],
    ]
}

fn open(disk: &Disk) -> Result<Recovered, OpenError> {
    recover(Arc::new(disk.clone()), SETTINGS, 77, Instant::now())
}

fn apply(store: &Store, commands: &[Command]) {
    for command in commands {
        drop(command.apply(store, Instant::now()));
    }
}

/// What answered writes lead to, and the batch that was not answered, if any.
struct Model {
    batches: Vec<Vec<Command>>,
    unanswered: Option<Vec<Command>>,
}

impl Model {
    fn store(&self) -> Store {
        let store = Store::new(Options {
            cluster_id: 77,
            history_max: SETTINGS.history_max,
        });
        self.batches.iter().for_each(|batch| apply(&store, batch));
        store
    }

    /// Takes the unanswered batch for done if the disk has it; anything else is a failure.
    fn check(&mut self, recovered: &Recovered) {
        let found = image(&recovered.store);
        let store = self.store();
        if found == image(&store) {
            self.unanswered = None;
            return;
        }
        let unanswered = self
            .unanswered
            .take()
            .expect("an answered write is missing");
        apply(&store, &unanswered);
        assert_eq!(
            found,
            image(&store),
            "neither with nor without the last batch"
        );
        self.batches.push(unanswered);
    }
}

/// Runs steps until they end or the disk fails.
fn run(disk: &Disk, opened: Recovered, steps: &[Step], model: &mut Model) {
    let Recovered { store, mut log, .. } = opened;
    let mut cut: Option<Cut> = None;
    for step in steps {
        match step {
            Step::Batch(commands) => {
                match append(&mut log, &store, commands) {
                    Ok(()) => {
                        apply(&store, commands);
                        model.batches.push(commands.clone());
                    }
                    Err(Error::NoSpace) => {}
                    Err(_) => {
                        model.unanswered = Some(commands.clone());
                        return;
                    }
                }
                if log.is_long() && cut.is_none() {
                    cut = log.cut(&store).ok();
                }
            }
            Step::BeginSnapshot if cut.is_none() && log.is_worth_a_snapshot() => {
                cut = log.cut(&store).ok();
            }
            Step::EndSnapshot => {
                if let Some(cut) = cut.take() {
                    log.snapshot_written(cut.write().ok());
                }
            }
            Step::BeginSnapshot => {}
            Step::Full(full) => disk.set_full(*full),
            Step::HalfWrite => disk.fail_half_way(),
            Step::FailSync => disk.fail_sync(),
        }
    }
}

fn append(log: &mut Log, store: &Store, commands: &[Command]) -> Result<(), Error> {
    let encode = |command| {
        let mut bytes = Vec::new();
        codec::put_command(&mut bytes, command);
        bytes
    };
    let encoded: Vec<_> = commands.iter().map(encode).collect();
    log.append(store.revision(), encoded.iter().map(|bytes| &bytes[..]))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(1500),
        ..ProptestConfig::default()
    })]

    #[test]
    fn crashes_lose_nothing_that_was_answered(
        lives in vec((vec(step(), 0..30), 0..120_u64, any::<Option<u64>>()), 1..6)
    ) {
        let mut disk = Disk::default();
        let mut model = Model { batches: Vec::new(), unanswered: None };
        for (steps, fuse, seed) in lives {
            disk.set_fuse(fuse);
            if let Ok(opened) = open(&disk) {
                model.check(&opened);
                run(&disk, opened, &steps, &mut model);
            }
            match seed {
                Some(seed) => {
                    disk = disk.after_crash(seed);
                    let opened = open(&disk.copy()).expect("a crash is no damage");
                    model.check(&opened);
                }
                // Only the process dies. What the next one finds counts once its start has ended,
                // as that makes it durable.
                None => {
                    disk.after_kill();
                    drop(open(&disk.copy()).expect("a kill is no damage"));
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_the_stated_cut(
        batches in vec(vec(command(), 1..4), 1..25), snapshot in 0..25_usize,
        place in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let disk = Disk::default();
        let Recovered { store, mut log, .. } = open(&disk).unwrap();
        let mut before = image(&store);
        let mut after = image(&store);
        for (number, batch) in batches.iter().enumerate() {
            append(&mut log, &store, batch).unwrap();
            apply(&store, batch);
            before = std::mem::replace(&mut after, image(&store));
            if number == snapshot {
                log.cut(&store).unwrap().write().unwrap();
                before = after.clone();
            }
        }
        let names = disk.names();
        disk.edit(&names[place.index(names.len())], |bytes| {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        });
        match open(&disk) {
            Ok(opened) => {
                let found = image(&opened.store);
                let is_whole = found == after;
                prop_assert!(is_whole || (opened.torn.is_some() && found == before));
            }
            Err(OpenError::Damaged { .. } | OpenError::Version { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn commands_and_their_bytes_are_one(batch in vec(command(), 0..6)) {
        let mut bytes = Vec::new();
        batch.iter().for_each(|command| codec::put_command(&mut bytes, command));
        let decoded = codec::commands(&bytes).unwrap();
        let mut again = Vec::new();
        decoded.iter().for_each(|command| codec::put_command(&mut again, command));
        prop_assert_eq!(bytes, again);
        prop_assert_eq!(batch.len(), decoded.len());
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in vec(any::<u8>(), 0..300)) {
        drop(codec::commands(&bytes));
        drop(codec::records(&bytes));
    }
}
