//! `etcdserverpb.Watch`: many watches multiplexed on one stream.
//! Nothing runs ahead of the client: the stream is a pull, at most one batch is in memory, and a
//! client that does not read falls behind the store's history and is told that it is compacted,
//! which is counted.
//! After a message a watch waits as `pace` says, so that under load messages get fuller, not more.
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, BoxFuture, FutureExt},
    stream::{self, BoxStream, FuturesUnordered},
};
use prost::Message as _;
use tokio::{
    sync::Notify,
    time::{Duration, Instant, Interval, MissedTickBehavior, interval_at, sleep},
};
use tonic::{Request, Status, Streaming};

use super::{
    access::Access,
    convert,
    metrics::Metrics,
    open,
    pace::Pace,
    wire::{WatchAnswer, event_len},
};
use crate::{
    limits,
    store::{Change, Position, WatchChanges, WatchError, WatchRequest, Watcher},
};

/// Etcd's `InvalidWatchID`: a watch that never was, or progress of the whole stream.
const NO_WATCH: i64 = -1;

/// `rpctypes.ErrGRPCPermissionDenied.Error()`; Go clients search the text.
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

/// What a watch stream yields.
pub(super) type Answers = BoxStream<'static, Result<WatchAnswer, Status>>;

/// `Watch`, which `wire` serves.
pub(super) fn watch(
    request: Request<Streaming<PbWatchRequest>>,
    pace: Arc<Pace>,
    metrics: Metrics,
) -> Result<Answers, Status> {
    let (access, incoming) = open(request)?;
    let session = Session::new(access, incoming, pace, metrics);
    Ok(stream::unfold(session, Session::step).boxed())
}

type Received = (i64, Watcher, Result<WatchChanges, WatchError>);

/// One watch stream.
struct Session {
    access: Access,
    /// The server ends. Kept, as a fresh one for each message would queue for the token's lock.
    stopped: BoxFuture<'static, ()>,
    incoming: Streaming<PbWatchRequest>,
    watches: HashMap<i64, Watch>,
    /// Ids of watches that ended because they were compacted: as in etcd they are taken until the
    /// client cancels them. At most `WATCHES_PER_STREAM_MAX`, then the lowest is free again.
    compacted: BTreeSet<i64>,
    receiving: FuturesUnordered<Abortable<BoxFuture<'static, Received>>>,
    /// Answers not pulled yet: those to one request, or one batch.
    answers: VecDeque<Result<WatchAnswer, Status>>,
    pace: Arc<Pace>,
    metrics: Metrics,
    /// Ends the pauses of all watches.
    hurry: Arc<Notify>,
    /// Requests for progress that are not answered.
    asked: usize,
    next_id: i64,
    progress: Interval,
    ended: bool,
}

struct Watch {
    abort: AbortHandle,
    position: Position,
    wants_progress: bool,
    fragment: bool,
}

impl Session {
    fn new(
        access: Access,
        incoming: Streaming<PbWatchRequest>,
        pace: Arc<Pace>,
        metrics: Metrics,
    ) -> Self {
        let period = access.limits.progress_interval;
        let mut progress = interval_at(Instant::now() + period, period);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stopped: access.cancel.clone().cancelled_owned().boxed(),
            access,
            incoming,
            watches: HashMap::new(),
            compacted: BTreeSet::new(),
            receiving: FuturesUnordered::new(),
            answers: VecDeque::new(),
            pace,
            metrics,
            hurry: Arc::new(Notify::new()),
            asked: 0,
            next_id: 0,
            progress,
            ended: false,
        }
    }

    async fn step(mut self) -> Option<(Result<WatchAnswer, Status>, Self)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some((answer, self));
            }
            if self.ended {
                return None;
            }
            if self.asked > 0 {
                self.answer_progress();
                if !self.answers.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                () = &mut self.stopped => {
                    self.ended = true;
                    let status = Status::unavailable("etcdserver: server stopped");
                    self.answers.push_back(Err(status));
                }
                request = self.incoming.message() => match request {
                    Ok(Some(request)) => self.request(request),
                    // Etcd ends the stream when the client stops asking.
                    Ok(None) | Err(_) => self.ended = true,
                },
                Some(received) = self.receiving.next(), if !self.receiving.is_empty() => {
                    // Aborted ones were cancelled and answered already.
                    if let Ok(received) = received {
                        self.received(received);
                    }
                }
                _ = self.progress.tick() => self.notify_progress(),
                () = sleep(limits::WATCH_PROGRESS_RETRY), if self.asked > 0 => {}
            }
        }
    }

    fn request(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let range_end = create.range_end;
                // Etcd reads an empty key as the first one.
                let key = if create.key.is_empty() {
                    vec![0]
                } else {
                    create.key
                };
                let request = WatchRequest {
                    range: convert::key_range(key, range_end),
                    start_revision: create.start_revision,
                    prev_kv: create.prev_kv,
                    no_put: create.filters.contains(&0),
                    no_delete: create.filters.contains(&1),
                };
                self.create(
                    create.watch_id,
                    request,
                    create.progress_notify,
                    create.fragment,
                );
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                // Who asks without reading is answered this often at most.
                self.asked = (self.asked + 1).min(limits::WATCHES_PER_STREAM_MAX);
                self.answer_progress();
            }
            None => {}
        }
    }

    /// Tells how far all watches of the stream are, once they are equally far: readers resume each
    /// watch behind that revision, so it must be neither ahead of one nor behind what came.
    fn answer_progress(&mut self) {
        self.hurry.notify_waiters();
        while self.answers.len() < limits::WATCHES_PER_STREAM_MAX
            && let Some(Some(received)) = self.receiving.next().now_or_never()
        {
            if let Ok(received) = received {
                self.received(received);
            }
        }
        let now = self.access.store.revision();
        // A watch of the future is as far as all can be.
        let positions = self.watches.values().map(|watch| watch.position.get());
        let positions = positions.map(|position| position.min(now));
        let (behind, ahead) = positions.fold((now, 0), |(min, max), at| (at.min(min), at.max(max)));
        if behind < ahead {
            return;
        }
        for _ in 0..std::mem::take(&mut self.asked) {
            let answer = self.answer(NO_WATCH, behind);
            self.push(answer);
        }
    }

    fn create(&mut self, id: i64, request: WatchRequest, wants_progress: bool, fragment: bool) {
        let revision = self.access.store.revision();
        let refused = if !self.access.may_read(&request.range) {
            Some(DENIED)
        } else if self.watches.len() >= limits::WATCHES_PER_STREAM_MAX {
            Some("etcdserver: too many watches on one stream")
        } else if request.range.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if id != 0 && self.is_taken(id) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = refused {
            let answer = self.answer(NO_WATCH, revision);
            let cancel_reason = reason.to_owned();
            self.push(PbWatchResponse {
                created: true,
                canceled: true,
                cancel_reason,
                ..answer
            });
            return;
        }
        let id = if id == 0 { self.unused_id() } else { id };
        let answer = self.answer(id, revision);
        self.push(PbWatchResponse {
            created: true,
            ..answer
        });
        match self.access.store.watch(request) {
            Ok(watcher) => {
                let position = watcher.position();
                let abort = self.receive(id, watcher, Duration::ZERO);
                self.watches.insert(
                    id,
                    Watch {
                        abort,
                        position,
                        wants_progress,
                        fragment,
                    },
                );
            }
            Err(WatchError::Compacted { compact_revision }) => {
                self.push_compacted(id, compact_revision);
            }
        }
    }

    fn received(&mut self, (id, watcher, result): Received) {
        let Some(fragment) = self.watches.get(&id).map(|watch| watch.fragment) else {
            return;
        };
        match result {
            Ok(WatchChanges { revision, changes }) => {
                let head = self.answer(id, revision);
                if fragment {
                    self.push_fragments(&head, changes);
                } else {
                    self.answers.push_back(Ok(WatchAnswer { head, changes }));
                }
                let pause = self.pace.sent(Instant::now().into_std());
                let abort = self.receive(id, watcher, pause);
                if let Some(watch) = self.watches.get_mut(&id) {
                    watch.abort = abort;
                }
            }
            Err(WatchError::Compacted { compact_revision }) => {
                self.watches.remove(&id);
                self.metrics.fell_behind();
                self.push_compacted(id, compact_revision);
            }
        }
    }

    fn receive(&self, id: i64, mut watcher: Watcher, pause: Duration) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        let hurry = Arc::clone(&self.hurry).notified_owned();
        let receive = async move {
            if !pause.is_zero() {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = hurry => {}
                }
            }
            let result = watcher.recv_changes().await;
            (id, watcher, result)
        };
        self.receiving
            .push(Abortable::new(receive.boxed(), registration));
        abort
    }

    fn cancel(&mut self, id: i64) {
        let watch = self.watches.remove(&id);
        if let Some(watch) = &watch {
            watch.abort.abort();
        }
        if watch.is_some() || self.compacted.remove(&id) {
            let answer = self.answer(id, self.access.store.revision());
            self.push(PbWatchResponse {
                canceled: true,
                ..answer
            });
        }
    }

    /// Tells watches that asked for it how far they are; it can serve as a resume point.
    fn notify_progress(&mut self) {
        let due: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, watch)| watch.wants_progress)
            .collect();
        let now = self.access.store.revision();
        let due: Vec<_> = due
            .iter()
            .map(|(id, w)| (**id, w.position.get().min(now)))
            .collect();
        for (id, revision) in due {
            let answer = self.answer(id, revision);
            self.push(answer);
        }
    }

    /// Splits a batch into messages that a client with etcd's limit accepts; each has at least one
    /// event, and they are cut where etcd cuts them.
    fn push_fragments(&mut self, head: &PbWatchResponse, batch: Vec<Change>) {
        let limit = self.access.limits.message_bytes();
        let last = head.clone();
        let head = PbWatchResponse {
            fragment: true,
            ..head.clone()
        };
        let (whole_bytes, empty_bytes) = (last.encoded_len(), head.encoded_len());
        let mut changes: Vec<Change> = Vec::new();
        if whole_bytes + batch.iter().map(event_len).sum::<usize>() < limit {
            changes = batch;
        } else {
            let mut bytes = empty_bytes;
            for change in batch {
                let len = event_len(&change);
                if !changes.is_empty() && bytes + len >= limit {
                    let (head, changes) = (head.clone(), std::mem::take(&mut changes));
                    self.answers.push_back(Ok(WatchAnswer { head, changes }));
                    bytes = empty_bytes;
                }
                bytes += len;
                changes.push(change);
            }
        }
        let answer = WatchAnswer {
            head: last,
            changes,
        };
        self.answers.push_back(Ok(answer));
    }

    /// As etcd's, the header has no revision: this is not a place to go on from.
    fn push_compacted(&mut self, id: i64, compact_revision: i64) {
        self.compacted.insert(id);
        if self.compacted.len() > limits::WATCHES_PER_STREAM_MAX {
            self.compacted.pop_first();
        }
        let answer = self.answer(id, 0);
        self.push(PbWatchResponse {
            canceled: true,
            compact_revision,
            ..answer
        });
    }

    /// An answer without events.
    fn push(&mut self, head: PbWatchResponse) {
        let changes = Vec::new();
        self.answers.push_back(Ok(WatchAnswer { head, changes }));
    }

    fn answer(&self, watch_id: i64, revision: i64) -> PbWatchResponse {
        let header = convert::header(&self.access.store, revision);
        PbWatchResponse {
            header,
            watch_id,
            ..PbWatchResponse::default()
        }
    }

    fn is_taken(&self, id: i64) -> bool {
        self.watches.contains_key(&id) || self.compacted.contains(&id)
    }

    fn unused_id(&mut self) -> i64 {
        while self.is_taken(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}
