//! Watches under load: who does not read hurts nobody, and progress never runs ahead of events.
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tombolo::{
    serve::{Limits, Server},
    store::Store,
};

use super::{Face, within};

/// Bytes of a value; what a client's windows take in is then much less than the history.
const VALUE_BYTES: usize = 4 << 10;
/// Puts of the slow watchers' test: three times the history of `Face`.
const PUTS: usize = 30_000;
/// The writer waits for the watcher that reads after so many.
const STEP: usize = 500;
/// Most that the server and the network may hold for a watcher that does not read: the window of
/// its stream (2 MiB), and some messages of 1 MiB.
const HELD_BYTES_MAX: usize = 6 << 20;
/// Progress answers that a test looks at.
const ANSWERS: usize = 100;
/// How many revisions a writer may be ahead of the slowest watch; half the history of `Face`.
const LEAD: i64 = 5_000;

/// A watch on everything below `prefix`, from now on, in a stream of its own.
async fn watch(client: &mut etcd_client::Client, prefix: &str) -> WatchStream {
    let options = WatchOptions::new().with_prefix();
    let mut stream = within(client.watch(prefix, Some(options))).await.unwrap();
    assert!(message(&mut stream).await.created());
    stream
}

async fn message(stream: &mut WatchStream) -> WatchResponse {
    within(stream.message()).await.unwrap().unwrap()
}

fn revision(answer: &WatchResponse) -> i64 {
    answer.header().unwrap().revision()
}

/// The revisions of the events, one each.
fn revisions(answer: &WatchResponse) -> impl Iterator<Item = i64> {
    let events = answer.events().iter();
    events.map(|event| event.kv().unwrap().mod_revision())
}

/// Reads a stream that was left alone to its watch's end: the revisions that came, and the one that
/// the watch was told is compacted.
async fn rest(stream: &mut WatchStream) -> (Vec<i64>, i64) {
    let mut came = Vec::new();
    loop {
        let answer = message(stream).await;
        if answer.canceled() {
            return (came, answer.compact_revision());
        }
        came.extend(revisions(&answer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_delays_no_other_and_ends_when_history_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = prometheus::Registry::new();
    let face = Face::start_with(
        listener.local_addr().unwrap().to_string(),
        |stores, stop| {
            let server = Server::new(stores, "west".parse().unwrap(), Limits::default());
            server.metrics().register(&registry).unwrap();
            let accept = async |tcp: TcpStream| Ok::<_, Infallible>((tcp, "admin-west".to_owned()));
            tokio::spawn(server.run(listener, accept, stop))
        },
    );
    let ended = || {
        let families = registry.gather();
        let name = "tombolo_serve_slow_watches_ended_total";
        let family = families.iter().find(|family| family.name() == name);
        family.unwrap().get_metric()[0].get_counter().get_value()
    };
    let mut client = face.client().await;
    let mut reads = watch(&mut client, "a").await;
    // One shares the connection of the watcher that reads, one has its own.
    let mut slow = [
        watch(&mut client, "a").await,
        watch(&mut face.client().await, "a").await,
    ];
    let store = face.cluster().clone();
    let (first, value) = (store.revision() + 1, vec![b'x'; VALUE_BYTES]);
    let mut seen = Vec::new();
    for step in 0..PUTS / STEP {
        for put in 0..STEP {
            let key = format!("a/{step}/{put}");
            store.put(key.into(), value.clone().into(), 0).unwrap();
        }
        while seen.len() < (step + 1) * STEP {
            seen.extend(revisions(&message(&mut reads).await));
        }
    }
    assert!(seen.into_iter().eq(first..=store.revision()));
    assert_eq!(ended(), 0.0, "nobody was told yet, as nobody asked");

    for stream in &mut slow {
        let (came, compacted) = rest(stream).await;
        let last = first + i64::try_from(came.len()).unwrap();
        assert!(came.iter().copied().eq(first..last), "none is missing");
        let held = came.len() * VALUE_BYTES;
        assert!(held <= HELD_BYTES_MAX, "{held} bytes waited for it");
        assert!(last < compacted && compacted <= store.compact_revision());
    }
    assert_eq!(ended(), 2.0);
    drop((reads, slow));
    face.stop().await;
}

/// Puts to keys below `a`, `b` and `c` in turn until cancelled, as fast as it can; it waits only so
/// that `read`, the revision that the slowest watch is at, stays in the history.
fn write(store: Store, read: Arc<AtomicI64>, stop: CancellationToken) -> JoinHandle<()> {
    let value = vec![b'x'; VALUE_BYTES];
    tokio::task::spawn_blocking(move || {
        for number in (0_usize..).take_while(|_| !stop.is_cancelled()) {
            while store.revision() > read.load(Ordering::Relaxed) + LEAD && !stop.is_cancelled() {
                std::thread::yield_now();
            }
            let key = format!("{}/{}", ["a", "b", "c"][number % 3], number % 100);
            store.put(key.into(), value.clone().into(), 0).unwrap();
        }
    })
}

/// What the answers on a stream claim of its watches.
#[derive(Default)]
struct Claims {
    /// By watch, the last revision that came, as event or as progress.
    reached: HashMap<i64, i64>,
    /// The last progress of the whole stream.
    all: i64,
    answers: usize,
    /// A planted fault: so many revisions are added to each progress.
    too_far: i64,
    /// What the slowest of the watches that get events has reached.
    read: Arc<AtomicI64>,
}

impl Claims {
    /// Takes an answer; no event may come that was said to have come.
    fn take(&mut self, answer: &WatchResponse) -> anyhow::Result<()> {
        ensure!(!answer.canceled(), "{answer:?}");
        let (watch, mut header) = (answer.watch_id(), revision(answer));
        if answer.events().is_empty() {
            header += self.too_far;
        }
        if watch == -1 {
            ensure!(self.all <= header, "progress went back to {header}");
            let ahead = self.reached.values().find(|reached| **reached > header);
            ensure!(ahead.is_none(), "progress {header} is behind what came");
            self.all = header;
            self.answers += 1;
            return Ok(());
        }
        let all = self.all;
        let reached = self.reached.entry(watch).or_default();
        for revision in revisions(answer) {
            let claimed = all.max(*reached);
            ensure!(
                revision > claimed,
                "{revision} of watch {watch} came after {claimed}"
            );
            *reached = revision;
        }
        if answer.events().is_empty() {
            ensure!(*reached <= header, "watch {watch} went back to {header}");
            self.answers += 1;
        }
        *reached = header;
        let busy = [0, 1, 3].map(|watch| self.reached.get(&watch).copied());
        let slowest = busy.into_iter().min().flatten().unwrap_or_default();
        self.read.store(slowest, Ordering::Relaxed);
        Ok(())
    }
}

/// One stream with watches on `a`, on `b`, on what nobody writes, and on everything.
async fn four_watches(client: &mut etcd_client::Client, options: &WatchOptions) -> WatchStream {
    let prefix = || options.clone().with_prefix();
    let mut stream = within(client.watch("a", Some(prefix()))).await.unwrap();
    for key in ["b", "quiet"] {
        stream.watch(key, Some(prefix())).await.unwrap();
    }
    let all = options.clone().with_all_keys();
    stream.watch("", Some(all)).await.unwrap();
    for watch in 0..4 {
        let mut created = message(&mut stream).await;
        // The first watches may have told their progress already.
        while !created.created() {
            created = message(&mut stream).await;
        }
        assert_eq!(created.watch_id(), watch);
    }
    stream
}

/// Asks for progress while somebody writes, and once nobody does until it reaches the store's end.
async fn ask_for_progress(too_far: i64) -> anyhow::Result<()> {
    let face = Face::start("admin-west").await;
    let mut stream = four_watches(&mut face.client().await, &WatchOptions::new()).await;
    let (stop, store) = (CancellationToken::new(), face.cluster());
    // A failed test must not wait for its writer.
    let _stopped = stop.clone().drop_guard();
    let mut claims = Claims {
        too_far,
        ..Claims::default()
    };
    let writer = write(store.clone(), Arc::clone(&claims.read), stop.clone());
    let ask = async |stream: &mut WatchStream, claims: &mut Claims| {
        stream.request_progress().await?;
        let before = claims.answers;
        while claims.answers == before {
            claims.take(&message(stream).await)?;
        }
        anyhow::Ok(())
    };
    for _ in 0..ANSWERS {
        ask(&mut stream, &mut claims).await?;
    }
    stop.cancel();
    writer.await?;
    while claims.all < store.revision() {
        ask(&mut stream, &mut claims).await?;
    }
    drop(stream);
    face.stop().await;
    Ok(())
}

/// Waits for the progress that comes by itself, under load and then until the watch that nothing
/// concerns is at the store's end; it can serve to resume.
async fn await_progress(too_far: i64) -> anyhow::Result<()> {
    let limits = Limits {
        progress_interval: Duration::from_millis(5),
        ..Limits::default()
    };
    let face = Face::start_limited("admin-west", limits).await;
    let notify = WatchOptions::new().with_progress_notify();
    let mut stream = four_watches(&mut face.client().await, &notify).await;
    let (stop, store) = (CancellationToken::new(), face.cluster());
    // A failed test must not wait for its writer.
    let _stopped = stop.clone().drop_guard();
    let mut claims = Claims {
        too_far,
        ..Claims::default()
    };
    let writer = write(store.clone(), Arc::clone(&claims.read), stop.clone());
    while claims.answers < ANSWERS {
        claims.take(&message(&mut stream).await)?;
    }
    stop.cancel();
    writer.await?;
    while claims.reached.get(&2) < Some(&store.revision()) {
        claims.take(&message(&mut stream).await)?;
    }
    drop(stream);
    face.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_comes_after_the_progress_that_was_asked_for() {
    ask_for_progress(0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_comes_after_the_progress_that_comes_by_itself() {
    await_progress(0).await.unwrap();
}

/// Both tests see it if a server says one revision more than has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_told_one_revision_too_far_is_caught() {
    for seen in [ask_for_progress(1).await, await_progress(1).await] {
        let seen = seen.expect_err("the planted fault went unseen").to_string();
        assert!(seen.contains("came after"), "{seen}");
    }
}
