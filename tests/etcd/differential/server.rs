//! One server under comparison: takes calls, and after each waits for what its watches owe.
//!
//! What they owe follows from a first watch of all keys: every other watch must deliver those
//! events of it that are in its range and pass its filters, once. With nothing owed between two
//! calls, message boundaries and header revisions are the same on every correct server.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_client::proto::{PbEvent, PbPutRequest, PbWatchRequest, PbWatchResponse};
use futures::FutureExt;
use tonic::Status;

use super::{
    faults::Fault,
    mask::Mask,
    wire::{Call, Duplex, Reply, WatchCall, WatchCreate, Wire},
};

/// Watch streams that calls may use; one more holds the watch of all keys.
pub(super) const STREAMS: usize = 3;
/// Longest time for events; a catch-up of etcd takes a tenth of a second.
const OWED_LIMIT: Duration = Duration::from_secs(5);

/// A refused call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: i32,
    pub(super) text: String,
}

/// All that a call led to, masked.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) reply: Result<Reply, Refusal>,
    /// By stream and watch id, as the order between two watches is nobody's promise; within one, in
    /// the order of arrival.
    pub(super) watched: BTreeMap<(usize, i64), Vec<PbWatchResponse>>,
    /// The newest revision.
    pub(super) revision: i64,
    /// What did not come, or came unasked.
    pub(super) broken: Vec<String>,
}

pub(super) struct Server {
    pub(super) name: &'static str,
    wire: Wire,
    mask: Mask,
    fault: Option<Fault>,
    streams: Vec<Duplex<PbWatchRequest, PbWatchResponse>>,
    watches: BTreeMap<(usize, i64), Watch>,
    /// Watches that were compacted, which servers let a client cancel once more.
    ended: BTreeSet<(usize, i64)>,
    /// All events since the first call, in order.
    history: Vec<PbEvent>,
    revision: i64,
    compacted: i64,
}

/// A live watch.
struct Watch {
    create: WatchCreate,
    /// How much of the history is accounted for.
    seen: usize,
}

impl Watch {
    fn wants(&self, event: &PbEvent) -> bool {
        let WatchCreate {
            key,
            range_end,
            start_revision,
            filters,
            ..
        } = &self.create;
        let kv = event.kv.as_ref().expect("events have a key");
        let within = match range_end.as_slice() {
            [] => kv.key == *key,
            [0] => kv.key >= *key,
            end => kv.key >= *key && kv.key.as_slice() < end,
        };
        within && kv.mod_revision >= *start_revision && !filters.contains(&event.r#type)
    }
}

impl Server {
    pub(super) async fn connect(name: &'static str, endpoint: &str, fault: Option<Fault>) -> Self {
        let wire = Wire::connect(endpoint).await;
        let status = wire.status().await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..=STREAMS {
            streams.push(wire.watch().await);
        }
        let mut server = Self {
            name,
            wire,
            mask: Mask::learn(&status),
            fault,
            streams,
            watches: BTreeMap::new(),
            ended: BTreeSet::new(),
            history: Vec::new(),
            revision: 1,
            compacted: -1,
        };
        let all = WatchCreate {
            key: vec![0],
            range_end: vec![0],
            prev_kv: true,
            ..WatchCreate::default()
        };
        let created = server
            .step(&Call::Watch(STREAMS, WatchCall::Create(all)))
            .await;
        assert!(created.broken.is_empty(), "{created:?}");
        server
    }

    /// Sends a call, and collects its answer and what the watches deliver because of it.
    pub(super) async fn step(&mut self, call: &Call) -> Outcome {
        let mut outcome = Outcome {
            reply: Ok(Reply::Sent),
            watched: BTreeMap::new(),
            revision: 0,
            broken: Vec::new(),
        };
        match call {
            Call::Watch(stream, watch) => self.send(*stream, watch, &mut outcome).await,
            Call::AwaitExpiry => self.revision += 1,
            Call::Burst(calls) => {
                let mut replies = Vec::new();
                for call in calls {
                    replies.push(self.answer(call).await);
                }
                outcome.reply = Ok(Reply::Burst(replies));
            }
            _ => outcome.reply = self.answer(call).await,
        }
        self.collect_owed(&mut outcome).await;
        if matches!(call, Call::Burst(_)) {
            outcome.watched.values_mut().for_each(join_messages);
        }
        if matches!(call, Call::Watch(_, WatchCall::Create(create)) if create.start_revision > 0) {
            self.await_past(&mut outcome).await;
        }
        outcome.revision = self.revision;
        if let Some(fault) = &mut self.fault {
            fault.plant(&mut outcome);
        }
        outcome
    }

    async fn answer(&mut self, call: &Call) -> Result<Reply, Refusal> {
        let reply = self.wire.call(self.mask.call(call)).await;
        let mut reply = reply.map_err(|status| refusal(&status))?;
        self.mask.reply(call, &mut reply);
        self.take_over(call, &reply);
        Ok(reply)
    }

    fn take_over(&mut self, call: &Call, reply: &Reply) {
        let header = match reply {
            Reply::Put(r) => &r.header,
            Reply::Delete(r) => &r.header,
            Reply::Txn(r) => &r.header,
            Reply::Revoke(r) => &r.header,
            _ => &None,
        };
        if let Some(header) = header {
            self.revision = self.revision.max(header.revision);
        }
        if let (Reply::Compact(_), Call::Compact(request)) = (reply, call) {
            self.compacted = request.revision;
        }
    }

    async fn send(&mut self, stream: usize, call: &WatchCall, outcome: &mut Outcome) {
        let message = call.clone().into_message();
        self.streams[stream].requests.send(message).await.unwrap();
        match call {
            WatchCall::Create(create) => {
                let is_answer = |r: &PbWatchResponse| r.created;
                let Some(answer) = self.receive_until(stream, is_answer, outcome).await else {
                    return;
                };
                if answer.canceled {
                    return;
                }
                let (id, start) = (answer.watch_id, create.start_revision);
                if start != 0 && start < self.compacted {
                    let is_end = |r: &PbWatchResponse| r.canceled && r.watch_id == id;
                    self.receive_until(stream, is_end, outcome).await;
                    self.ended.insert((stream, id));
                    return;
                }
                let watch = Watch {
                    create: create.clone(),
                    seen: if start == 0 { self.history.len() } else { 0 },
                };
                self.watches.insert((stream, id), watch);
            }
            WatchCall::Cancel(id) => {
                let watch = (stream, *id);
                if self.watches.remove(&watch).is_some() || self.ended.remove(&watch) {
                    let is_end = |r: &PbWatchResponse| r.canceled && r.watch_id == *id;
                    self.receive_until(stream, is_end, outcome).await;
                }
            }
            WatchCall::Progress => {
                let is_progress = |r: &PbWatchResponse| r.watch_id == -1;
                self.receive_until(stream, is_progress, outcome).await;
            }
        }
    }

    /// Waits for all events up to the newest revision, then takes what else is there.
    async fn collect_owed(&mut self, outcome: &mut Outcome) {
        let newest = |history: &[PbEvent]| {
            let last = history.last().and_then(|event| event.kv.as_ref());
            last.map_or(1, |kv| kv.mod_revision)
        };
        while newest(&self.history) < self.revision {
            if self.receive(STREAMS, outcome).await.is_none() {
                return;
            }
        }
        let mut owed = vec![BTreeMap::new(); STREAMS];
        for ((stream, id), watch) in &mut self.watches {
            if *stream == STREAMS {
                continue;
            }
            let events = &self.history[watch.seen..];
            let count = events.iter().filter(|event| watch.wants(event)).count();
            watch.seen = self.history.len();
            if count > 0 {
                owed[*stream].insert(*id, count);
            }
        }
        for (stream, mut owed) in owed.into_iter().enumerate() {
            while !owed.is_empty() {
                let Some(response) = self.receive(stream, outcome).await else {
                    let watches = owed.keys().map(|id| &self.watches[&(stream, *id)].create);
                    let watches: Vec<_> = watches.collect();
                    let broken = format!("stream {stream} still owes {owed:?} for {watches:?}");
                    outcome.broken.push(broken);
                    break;
                };
                if let Some(count) = owed.get_mut(&response.watch_id) {
                    *count = count.saturating_sub(response.events.len());
                    if *count == 0 && !response.fragment {
                        owed.remove(&response.watch_id);
                    }
                }
            }
            while let Some(Ok(Some(response))) =
                self.streams[stream].answers.message().now_or_never()
            {
                self.note(stream, response, outcome);
            }
        }
    }

    /// Waits until etcd took up the watches of the past: it looks for them ten times a second, all
    /// at once, so a later one that delivers shows that the earlier ones are on their way, too.
    async fn await_past(&mut self, outcome: &mut Outcome) {
        let put = Call::Put(PbPutRequest {
            key: b"~past".to_vec(),
            ..PbPutRequest::default()
        });
        match self.wire.call(put.clone()).await {
            Ok(reply) => self.take_over(&put, &reply),
            Err(status) => outcome.broken.push(format!("{:?}", refusal(&status))),
        }
        self.collect_owed(outcome).await;
        let (watch_id, key) = (2, b"~past".to_vec());
        let create = WatchCreate {
            key,
            watch_id,
            start_revision: self.revision,
            ..WatchCreate::default()
        };
        for message in [WatchCall::Create(create), WatchCall::Cancel(watch_id)] {
            let is_create = matches!(message, WatchCall::Create(_));
            let message = message.into_message();
            self.streams[STREAMS].requests.send(message).await.unwrap();
            let is_done = |r: &PbWatchResponse| {
                r.watch_id == watch_id
                    && if is_create {
                        !r.events.is_empty()
                    } else {
                        r.canceled
                    }
            };
            self.receive_until(STREAMS, is_done, outcome).await;
        }
    }

    async fn receive_until(
        &mut self,
        stream: usize,
        wanted: impl Fn(&PbWatchResponse) -> bool,
        outcome: &mut Outcome,
    ) -> Option<PbWatchResponse> {
        loop {
            let response = self.receive(stream, outcome).await?;
            if wanted(&response) {
                return Some(response);
            }
        }
    }

    async fn receive(&mut self, stream: usize, outcome: &mut Outcome) -> Option<PbWatchResponse> {
        let message = self.streams[stream].answers.message();
        match tokio::time::timeout(OWED_LIMIT, message).await {
            Ok(Ok(Some(response))) => Some(self.note(stream, response, outcome)),
            Ok(Ok(None)) => {
                outcome.broken.push(format!("stream {stream} ended"));
                None
            }
            Ok(Err(status)) => {
                let end = format!("stream {stream} ended: {:?}", refusal(&status));
                outcome.broken.push(end);
                None
            }
            Err(_) => {
                outcome.broken.push(format!("stream {stream} is silent"));
                None
            }
        }
    }

    fn note(
        &mut self,
        stream: usize,
        mut response: PbWatchResponse,
        outcome: &mut Outcome,
    ) -> PbWatchResponse {
        self.mask.watched(&mut response);
        let id = response.watch_id;
        if stream == STREAMS && id == 1 {
            self.history.extend(response.events.iter().cloned());
        }
        let watched = outcome.watched.entry((stream, id)).or_default();
        watched.push(response.clone());
        response
    }
}

/// Makes one message of all that a watch got during a burst: where they are cut, and what their
/// headers say, follows from timing.
fn join_messages(messages: &mut Vec<PbWatchResponse>) {
    let events = messages
        .iter_mut()
        .flat_map(|m| std::mem::take(&mut m.events));
    let events: Vec<_> = events.collect();
    messages.truncate(1);
    if let Some(message) = messages.first_mut() {
        message.fragment = false;
        message.events = events;
        if let Some(header) = &mut message.header {
            header.revision = 0;
        }
    }
}

fn refusal(status: &Status) -> Refusal {
    Refusal {
        code: status.code() as i32,
        text: status.message().to_owned(),
    }
}
