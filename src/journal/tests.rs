//! Goal: what a start makes of the files, error by error; the thread in front of the log; backups.
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use self::disk::Disk;
use super::{
    Command, Error, Journal, OpenError, Recovered, Response, Settings, Writer, backup, check,
    codec, log::Log, open, recover::recover, restore,
};
use crate::store::{
    self, DeleteRequest, Event, KeyRange, KeyValue, PutRequest, RangeRequest, Store, Txn, TxnOp,
};

pub(super) mod disk;

const SETTINGS: Settings = Settings {
    segment_bytes: 512,
    snapshot_after_bytes: u64::MAX,
    history_max: 1000,
};

type Image = (
    (i64, i64),
    BTreeMap<bytes::Bytes, KeyValue>,
    Vec<(i64, Vec<Event>)>,
    Vec<(i64, Duration)>,
);

/// Everything that can be seen of a store, to compare two.
pub(super) fn image(store: &Store) -> Image {
    let contents = store.contents();
    let all = RangeRequest::prefix(b"");
    let keys = store.range(&all).unwrap().kvs.into_iter();
    let changes = contents
        .changes()
        .map(|(at, changes)| (at, changes.iter().map(Event::from).collect()));
    (
        (contents.revision, contents.compacted),
        keys.map(|kv| (kv.key.clone(), kv)).collect(),
        changes.collect(),
        contents.leases.clone(),
    )
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

fn recovered(disk: &Disk) -> Result<Recovered, OpenError> {
    recover(Arc::new(disk.clone()), SETTINGS, 5, Instant::now())
}

fn write(log: &mut Log, store: &Store, command: &Command) -> Result<(), Error> {
    let mut bytes = Vec::new();
    codec::put_command(&mut bytes, command);
    log.append(store.revision(), std::iter::once(&bytes[..]))?;
    command.apply(store, Instant::now())?;
    Ok(())
}

/// A disk with this many puts, a frame each, in segments of 512 bytes.
fn written(puts: usize) -> Disk {
    let disk = Disk::default();
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    for number in 0..puts {
        let command = Command::Put(put(&format!("k{number}"), &"v".repeat(80)));
        write(&mut log, &store, &command).unwrap();
    }
    disk
}

fn refused(disk: &Disk) -> String {
    recovered(disk)
        .err()
        .expect("this must not open")
        .to_string()
}

#[test]
fn segments_follow_each_other_and_a_snapshot_replaces_them() {
    let disk = written(20);
    assert!(disk.names().len() > 4, "{:?}", disk.names());
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    assert_eq!((store.revision(), store.cluster_id()), (21, 5));
    let whole = image(&store);
    log.cut(&store).unwrap().write().unwrap();
    assert_eq!(disk.names().len(), 2, "{:?}", disk.names());
    let again = recovered(&disk).unwrap();
    assert_eq!((again.frames, image(&again.store)), (0, whole));
    // A file of an unfinished snapshot goes with the next start.
    use super::storage::Storage as _;
    disk.create("snapshot-0000000000000099.tmp").unwrap();
    recovered(&disk).unwrap();
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn a_torn_tail_is_cut_and_told() {
    let disk = written(2);
    let name = "log-0000000000000001";
    let end = disk.edit(name, |bytes| {
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[last - 20] ^= 1;
        last
    });
    let opened = recovered(&disk).unwrap();
    let torn = opened.torn.unwrap();
    assert_eq!((torn.name.as_str(), opened.store.len()), (name, 1));
    assert_eq!(usize::try_from(torn.offset + torn.bytes).unwrap(), end + 1);
    let opened = recovered(&disk).unwrap();
    assert!(opened.torn.is_none(), "it is cut once");
}

#[test]
fn damage_is_named_with_file_and_offset() {
    let first = "log-0000000000000001";
    // In a frame that others follow, in a full segment, in a header, in the space behind frames.
    for (puts, name, at) in [
        (3, first, 70),
        (9, first, 490),
        (3, first, 3),
        (9, first, 511),
    ] {
        let disk = written(puts);
        disk.edit(name, |bytes| bytes[at] ^= 4);
        let text = refused(&disk);
        assert!(
            text.contains(name) && text.contains("damaged at byte") && text.contains("restore"),
            "{at}: {text}"
        );
    }
    let disk = written(3);
    disk.edit(first, |bytes| bytes[8] = 2);
    let text = refused(&disk);
    assert!(text.contains("format version 2 is not 1"), "{text}");

    let disk = written(3);
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    log.cut(&store).unwrap().write().unwrap();
    for at in [4, 30, 70, 100, 200] {
        let disk = disk.copy();
        disk.edit("snapshot-0000000000000002", |bytes| bytes[at] ^= 1);
        let text = refused(&disk);
        assert!(text.contains("snapshot-0000000000000002"), "{at}: {text}");
    }
    disk.edit("snapshot-0000000000000002", |bytes| {
        bytes.truncate(bytes.len() - 40)
    });
    assert!(refused(&disk).contains("damaged at byte"));
}

#[test]
fn files_that_are_missing_or_foreign_are_named() {
    use super::storage::Storage as _;
    for missing in ["log-0000000000000001", "log-0000000000000002"] {
        let disk = written(12);
        disk.remove(missing).unwrap();
        let text = refused(&disk);
        assert!(text.contains(missing) && text.contains("missing"), "{text}");
    }
    let (disk, other) = (written(12), Disk::default());
    recover(Arc::new(other.clone()), SETTINGS, 6, Instant::now()).unwrap();
    let bytes = other.edit("log-0000000000000001", |bytes| bytes.clone());
    disk.edit("log-0000000000000002", |place| *place = bytes);
    assert!(refused(&disk).contains("belongs to another store"));

    let disk = written(3);
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    log.cut(&store).unwrap().write().unwrap();
    disk.remove("snapshot-0000000000000002").unwrap();
    assert!(
        refused(&disk).contains("log-0000000000000001"),
        "a snapshot is missing"
    );
}

#[test]
fn a_log_that_leads_elsewhere_is_refused() {
    let disk = Disk::default();
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    // As if a put did more when it was written than it does now.
    write(&mut log, &store, &Command::Put(put("a", "1"))).unwrap();
    store.put("b".into(), "2".into(), 0).unwrap();
    write(&mut log, &store, &Command::Put(put("c", "3"))).unwrap();
    let text = refused(&disk);
    assert!(text.contains("revision 2 instead of 3"), "{text}");
}

#[test]
fn a_full_disk_refuses_and_recovers_a_failed_sync_stays() {
    let disk = written(1);
    let Recovered { store, mut log, .. } = recovered(&disk).unwrap();
    let command = Command::Put(put("x", &"v".repeat(90)));
    disk.fail_half_way();
    assert_eq!(write(&mut log, &store, &command), Err(Error::NoSpace));
    disk.set_full(true);
    let mut done = 0;
    while write(&mut log, &store, &command).is_ok() {
        done += 1;
    }
    assert!(done > 0, "the segment had room");
    assert_eq!(write(&mut log, &store, &command), Err(Error::NoSpace));
    disk.set_full(false);
    write(&mut log, &store, &command).unwrap();
    let found = recovered(&disk.after_crash(1)).unwrap();
    assert_eq!(image(&found.store), image(&store));

    disk.fail_sync();
    let failed = write(&mut log, &store, &command).unwrap_err();
    assert!(failed.to_string().contains("restart the agent"), "{failed}");
    assert_eq!(write(&mut log, &store, &command), Err(failed));
}

#[test]
fn another_limit_of_history_applies_to_what_follows_only() {
    let disk = written(9);
    let small = Settings {
        history_max: 2,
        ..SETTINGS
    };
    let open = |settings| recover(Arc::new(disk.clone()), settings, 5, Instant::now()).unwrap();
    let Recovered { store, mut log, .. } = open(small);
    assert_eq!(store.compact_revision(), 0, "done again as it was done");
    write(&mut log, &store, &Command::Put(put("a", "1"))).unwrap();
    assert_eq!(store.compact_revision(), 10);
    assert_eq!(image(&open(SETTINGS).store), image(&store));
}

#[test]
fn commands_have_these_bytes() {
    // Changing any of them is a new format version.
    let commands = [
        Command::Put(PutRequest {
            lease: 3,
            ignore_lease: true,
            ..put("k", "v")
        }),
        Command::Delete(DeleteRequest {
            range: KeyRange::prefix(b"p"),
            prev_kv: true,
        }),
        Command::Txn(Txn {
            success: vec![TxnOp::Range(RangeRequest::prefix(b"r"))],
            ..Txn::default()
        }),
        Command::Compact(9),
        Command::LeaseGrant {
            id: 1,
            ttl: Duration::from_millis(1500),
        },
        Command::LeaseRevoke(1),
    ];
    let mut bytes = Vec::new();
    commands
        .iter()
        .for_each(|c| codec::put_command(&mut bytes, c));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        "01010000006b01000000760300000000000000",
        "04",
        "02010000007001000000",
        "7101",
        "0300000000010000000101000000720100000073000000000000000000000000",
        "040900000000000000",
        "0501000000000000000100000000000000",
        "0065cd1d",
        "060100000000000000",
    );
    assert_eq!(hex, expected);
}

/// A runner on a thread of its own, ended on request.
struct Running {
    journal: Journal,
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

fn start(dir: &Path) -> Running {
    let (journal, runner) = open(dir, 1000, Instant::now()).unwrap();
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let thread = std::thread::spawn(move || runner.run(&token));
    Running {
        journal,
        cancel,
        thread,
    }
}

impl Running {
    fn stop(self) {
        self.cancel.cancel();
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn concurrent_writes_share_frames_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/store");
    let running = start(&path);
    let writer = Writer::from(running.journal.clone());
    let lease = writer
        .lease_grant(0, Duration::from_secs(60))
        .await
        .unwrap();
    let puts = (0..300).map(|n| {
        writer.put(PutRequest {
            lease,
            ..put(&format!("k{n}"), "v")
        })
    });
    for response in futures::future::join_all(puts).await {
        response.unwrap();
    }
    let missing = writer
        .put(PutRequest {
            lease: 99,
            ..put("x", "")
        })
        .await;
    let refusal = store::Error::LeaseNotFound { id: 99 };
    assert_eq!(missing, Err(Error::Refused(refusal)));
    writer.compact(100).await.unwrap();
    let whole = image(writer.store());
    let in_use = open(&path, 1000, Instant::now()).map(drop);
    assert!(matches!(in_use, Err(OpenError::InUse)), "{in_use:?}");
    running.stop();
    assert_eq!(writer.put(put("late", "")).await, Err(Error::Stopped));

    let names = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!(names(&path), 3, "a lock, a snapshot, and an empty segment");
    let later = Instant::now() + Duration::from_secs(1000);
    let (journal, _runner) = open(&path, 1000, later).unwrap();
    assert_eq!(image(&journal.store), whole);
    let status = journal.store.lease_time_to_live(lease, later).unwrap();
    assert_eq!(status.remaining, Duration::from_secs(60), "all of it again");
    assert_eq!(status.keys.len(), 300);
}

#[tokio::test]
async fn reads_do_not_wait_for_the_disk_and_writes_are_not_seen_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, runner) = open(dir.path(), 1000, Instant::now()).unwrap();
    let writer = Writer::from(journal);
    // Nobody runs the log: a write waits, a transaction that only reads does not.
    let read = Txn {
        success: vec![TxnOp::Range(RangeRequest::prefix(b""))],
        ..Txn::default()
    };
    assert!(writer.txn(read).await.unwrap().succeeded);
    let write = writer.put(put("a", "1"));
    let waited = tokio::time::timeout(Duration::from_millis(50), write).await;
    assert!(waited.is_err() && writer.store().is_empty());
    // It was queued; who asked is gone, and it is done all the same.
    let cancel = CancellationToken::new();
    cancel.cancel();
    runner.run(&cancel);
    assert_eq!(writer.store().len(), 1);
}

#[test]
fn a_backup_becomes_a_store_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (file, target) = (dir.path().join("backup"), dir.path().join("state/store"));
    let source = Store::new(store::Options {
        cluster_id: 9,
        history_max: 5,
    });
    let now = Instant::now();
    source.lease_grant(4, Duration::from_secs(7), now).unwrap();
    for number in 0..40 {
        let (key, lease) = (format!("k{}", number % 9), i64::from(number % 2) * 4);
        source.put(key.into(), "v".into(), lease).unwrap();
    }
    source.delete(b"k3");
    let mut bytes = Vec::new();
    backup(&source, &mut |chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })
    .unwrap();
    fs::write(&file, &bytes).unwrap();
    let summary = check(&file).unwrap();
    assert_eq!(
        (summary.cluster_id, summary.revision, summary.keys),
        (9, 42, 8)
    );

    restore(&file, &target).unwrap();
    let running = start(&target);
    assert_eq!(image(&running.journal.store), image(&source));
    assert_ne!(
        running.journal.store.cluster_id(),
        9,
        "readers must list again"
    );
    let response = futures::executor::block_on(running.journal.submit(Command::LeaseRevoke(4)));
    assert_eq!(response, Ok(Response::Done));
    running.stop();
    let over = restore(&file, &target).unwrap_err();
    assert!(matches!(over, OpenError::NotEmpty { .. }), "{over}");

    fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    assert!(matches!(check(&file), Err(OpenError::Damaged { .. })));
    fs::write(&file, "something else").unwrap();
    assert!(matches!(
        check(&file),
        Err(OpenError::Damaged { offset: 14, .. })
    ));
}
