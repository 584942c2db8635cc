//! `etcdserverpb.Watch`: many watches multiplexed on one stream.
//! Nothing runs ahead of the client: the stream is a pull, at most one batch is in memory, and a
//! client that does not read falls behind the store's history and is told that it is compacted.
use std::collections::{HashMap, VecDeque};

use etcd_client::proto::{
    PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, BoxFuture, FutureExt},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::{Request, Response, Status, Streaming};

use super::{Face, access::Access, convert, open};
use crate::{
    limits,
    store::{Position, WatchBatch, WatchError, WatchRequest, Watcher},
};

/// Etcd's `InvalidWatchID`: a watch that never was, or progress of the whole stream.
const NO_WATCH: i64 = -1;

/// `rpctypes.ErrGRPCPermissionDenied.Error()`; Go clients search the text.
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";

#[tonic::async_trait]
impl PbWatchService for Face {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (access, incoming) = open(request)?;
        let session = Session::new(access, incoming);
        Ok(Response::new(
            stream::unfold(session, Session::step).boxed(),
        ))
    }
}

type Received = (i64, Watcher, Result<WatchBatch, WatchError>);

/// One watch stream.
struct Session {
    access: Access,
    incoming: Streaming<PbWatchRequest>,
    watches: HashMap<i64, Watch>,
    receiving: FuturesUnordered<Abortable<BoxFuture<'static, Received>>>,
    /// Answers not pulled yet: those to one request, or one batch.
    answers: VecDeque<Result<PbWatchResponse, Status>>,
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
    fn new(access: Access, incoming: Streaming<PbWatchRequest>) -> Self {
        let period = limits::WATCH_PROGRESS_INTERVAL;
        let mut progress = interval_at(Instant::now() + period, period);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            access,
            incoming,
            watches: HashMap::new(),
            receiving: FuturesUnordered::new(),
            answers: VecDeque::new(),
            next_id: 0,
            progress,
            ended: false,
        }
    }

    async fn step(mut self) -> Option<(Result<PbWatchResponse, Status>, Self)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some((answer, self));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                () = self.access.cancel.cancelled() => {
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
                // What is ready goes out first, so that the answer says as much as it can.
                while self.answers.len() < limits::WATCHES_PER_STREAM_MAX
                    && let Some(Some(received)) = self.receiving.next().now_or_never()
                {
                    if let Ok(received) = received {
                        self.received(received);
                    }
                }
                let behind = self
                    .watches
                    .values()
                    .map(|watch| watch.position.get())
                    .min();
                let now = self.access.store.revision();
                // A watch of the future is not behind.
                let answer = self.answer(NO_WATCH, behind.map_or(now, |behind| behind.min(now)));
                self.push(answer);
            }
            None => {}
        }
    }

    fn create(&mut self, id: i64, request: WatchRequest, wants_progress: bool, fragment: bool) {
        let revision = self.access.store.revision();
        let refused = if !self.access.may_read(&request.range) {
            Some(DENIED)
        } else if self.watches.len() >= limits::WATCHES_PER_STREAM_MAX {
            Some("etcdserver: too many watches on one stream")
        } else if id != 0 && self.watches.contains_key(&id) {
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
                let abort = self.receive(id, watcher);
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
            Ok(batch) => {
                let answer = self.answer(id, batch.revision);
                if fragment {
                    self.push_fragments(&answer, &batch);
                } else {
                    let events = batch.events.iter().map(convert::event).collect();
                    self.push(PbWatchResponse { events, ..answer });
                }
                let abort = self.receive(id, watcher);
                if let Some(watch) = self.watches.get_mut(&id) {
                    watch.abort = abort;
                }
            }
            Err(WatchError::Compacted { compact_revision }) => {
                self.watches.remove(&id);
                self.push_compacted(id, compact_revision);
            }
        }
    }

    fn receive(&self, id: i64, mut watcher: Watcher) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        let receive = async move {
            let result = watcher.recv().await;
            (id, watcher, result)
        };
        self.receiving
            .push(Abortable::new(receive.boxed(), registration));
        abort
    }

    fn cancel(&mut self, id: i64) {
        if let Some(watch) = self.watches.remove(&id) {
            watch.abort.abort();
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

    /// Splits a batch into messages that a client with etcd's request limit accepts.
    fn push_fragments(&mut self, answer: &PbWatchResponse, batch: &WatchBatch) {
        let mut events: Vec<PbEvent> = Vec::new();
        let mut bytes = 0;
        for event in &batch.events {
            if !events.is_empty() && bytes + event.len_bytes() > limits::VALUE_BYTES_MAX {
                let events = std::mem::take(&mut events);
                self.push(PbWatchResponse {
                    fragment: true,
                    events,
                    ..answer.clone()
                });
                bytes = 0;
            }
            bytes += event.len_bytes();
            events.push(convert::event(event));
        }
        self.push(PbWatchResponse {
            events,
            ..answer.clone()
        });
    }

    fn push_compacted(&mut self, id: i64, compact_revision: i64) {
        let answer = self.answer(id, self.access.store.revision());
        self.push(PbWatchResponse {
            canceled: true,
            compact_revision,
            ..answer
        });
    }

    fn push(&mut self, answer: PbWatchResponse) {
        self.answers.push_back(Ok(answer));
    }

    fn answer(&self, watch_id: i64, revision: i64) -> PbWatchResponse {
        let header = convert::header(&self.access.store, revision);
        PbWatchResponse {
            header,
            watch_id,
            ..PbWatchResponse::default()
        }
    }

    fn unused_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}
