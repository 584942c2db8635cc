//! The one task that owns the mesh: takes the events of all members, each from a bounded channel
//! of its own, merges what is pending by key, and gives each member a slice in turn: a busy member
//! makes only itself wait, and the mesh never works on what is outdated. A peer that is busier than
//! any should be waits between its slices, too.
use std::{
    collections::VecDeque,
    future::{Future as _, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    keyspace::{KeyEvent, Kind},
    limits::{MEMBER_SLICE, MEMBER_STEP, MEMBER_TURN, MEMBERS_MAX, PEER_QUEUE_BATCHES},
    mesh::{Cost, Mesh, Propagation, Sample, Terms},
    peer::{MemberEvent, Pending},
    types::ClusterName,
};

use self::rate::Allowance;

mod rate;

pub(crate) type Joining = (ClusterName, mpsc::Receiver<MemberEvent>);

/// Opens a channel into the mesh for a member. A second call for the same member replaces its
/// first channel: what was not taken from that one is dropped, and the new session lists anew.
#[derive(Debug, Clone)]
pub(crate) struct Members(mpsc::Sender<Joining>);

impl Members {
    pub(crate) fn join(&self, name: ClusterName) -> mpsc::Sender<MemberEvent> {
        let (sender, receiver) = mpsc::channel(PEER_QUEUE_BATCHES);
        if self.0.try_send((name.clone(), receiver)).is_err() {
            tracing::error!(cluster = %name, "Too many members join at once; this one stays out");
        }
        sender
    }
}

/// The handle and the receiving end for `run`.
pub(crate) fn channel() -> (Members, mpsc::Receiver<Joining>) {
    let (sender, receiver) = mpsc::channel(MEMBERS_MAX);
    (Members(sender), receiver)
}

/// Applies members' events until cancelled.
pub(crate) async fn run(mesh: Mesh, joining: mpsc::Receiver<Joining>, cancel: CancellationToken) {
    let mut work = Work::new(mesh, joining);
    cancel.run_until_cancelled(work.run()).await;
}

struct Work {
    propagation: Propagation,
    mesh: Mesh,
    joining: mpsc::Receiver<Joining>,
    members: Vec<Member>,
    /// Whose slice is next.
    turn: usize,
    /// Ends when a member that waits may go on.
    pause: Pin<Box<tokio::time::Sleep>>,
}

struct Member {
    name: ClusterName,
    events: mpsc::Receiver<MemberEvent>,
    pending: Pending,
    /// Batches that are followed, and where they end in `pending`.
    samples: VecDeque<(u64, Sample)>,
    /// Its sender is gone; what is pending still counts.
    closed: bool,
    /// How much it may have applied; `None` for the own cluster.
    allowance: Option<Allowance>,
    /// Kinds of which a list goes on.
    listing: [bool; Kind::ALL.len()],
}

impl Work {
    fn new(mesh: Mesh, joining: mpsc::Receiver<Joining>) -> Self {
        Self {
            propagation: mesh.view().propagation,
            mesh,
            joining,
            members: Vec::new(),
            turn: 0,
            pause: Box::pin(tokio::time::sleep(std::time::Duration::ZERO)),
        }
    }

    async fn run(&mut self) {
        loop {
            let expires = self.mesh.expires();
            tokio::select! {
                // Members may always have something; what has its time comes first.
                biased;
                () = until(expires) => self.mesh.expire(now()),
                () = poll_fn(|context| self.absorb(context)) => {
                    self.slice();
                    // What comes meanwhile is merged with what is pending; others get to run.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Takes what the channels hold, as far as there is room. Ready if anything is due.
    fn absorb(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some((name, events))) = self.joining.poll_recv(context) {
            self.members.retain(|member| member.name != name);
            let peer = name != *self.mesh.own_name();
            let allowance = peer.then(|| Allowance::new(now()));
            self.members.push(Member::new(name, events, allowance));
        }
        for member in &mut self.members {
            member.absorb(context, &self.propagation);
        }
        self.members.retain(|m| !m.closed || !m.pending.is_empty());
        let Some(due) = self.members.iter().filter_map(Member::due).min() else {
            return Poll::Pending;
        };
        match due {
            Due::Now => Poll::Ready(()),
            Due::At(due) => {
                self.pause.as_mut().reset(due.into());
                self.pause.as_mut().poll(context)
            }
        }
    }

    /// Applies a few events of the next member that has some; false if none has. Values may cost next
    /// to nothing, or be made to cost all they can: so a turn ends by the clock, too.
    fn slice(&mut self) -> bool {
        let count = self.members.len();
        let since = now();
        let mut turns = (0..count).map(|step| (self.turn + step) % count);
        let Some(index) = turns.find(|index| self.members[*index].is_due(since)) else {
            return false;
        };
        self.turn = index + 1;
        for _ in 0..MEMBER_SLICE / MEMBER_STEP {
            let Some(event) = self.members[index].pending.pop(MEMBER_STEP) else {
                break;
            };
            if let MemberEvent::Connected { .. } = event {
                self.settle_removals(index);
            }
            let (changes, listed) = self.members[index].count(&event);
            let cost = self.apply(event);
            let now = now();
            if self.charge(index, (changes, listed, cost), now)
                || now.duration_since(since) >= MEMBER_TURN
            {
                break;
            }
        }
        let end = self.mesh.deltas_end();
        for sample in self.members[index].applied() {
            self.propagation.in_mesh(sample, end);
        }
        true
    }

    /// Charges a peer for changes and entries of lists; true if it must wait now.
    fn charge(
        &mut self,
        index: usize,
        (changes, listed, cost): (usize, usize, Cost),
        now: Instant,
    ) -> bool {
        let member = &mut self.members[index];
        let Some(allowance) = &mut member.allowance else {
            return false;
        };
        let waits = allowance.applied(changes, listed, cost, now);
        if waits && let Some(event) = member.pending.front() {
            self.mesh.delayed(&member.name, event);
        }
        waits
    }

    /// Whoever connects may have the id of one that was removed before; that was told on another
    /// channel, and must be done first.
    fn settle_removals(&mut self, connecting: usize) {
        let mut removed = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            if index != connecting {
                member.drain(&self.propagation);
                removed.extend(member.pending.take_removed());
            }
        }
        for event in removed {
            self.apply(event);
        }
    }

    fn apply(&mut self, event: MemberEvent) -> Cost {
        match event {
            MemberEvent::Connected {
                name,
                id,
                config,
                allowed_cidrs,
                relayed,
            } => {
                let terms = Terms {
                    id,
                    config,
                    allowed_cidrs,
                    relayed,
                };
                self.mesh.connected(&name, terms);
            }
            MemberEvent::Terms {
                name,
                cluster_id,
                allowed_cidrs,
            } => self.mesh.terms(&name, cluster_id, &allowed_cidrs, now()),
            MemberEvent::Keys { name, events } => return self.mesh.apply(&name, events),
            MemberEvent::Expired { name } => self.mesh.expire_services(&name),
            MemberEvent::Removed { name } => {
                self.mesh.removed(&name, now());
                self.propagation.forget(&name);
            }
        }
        Cost::default()
    }
}

/// By the clock that timers go by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// When a member has its turn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Now,
    At(Instant),
}

impl Member {
    fn new(
        name: ClusterName,
        events: mpsc::Receiver<MemberEvent>,
        allowance: Option<Allowance>,
    ) -> Self {
        Self {
            pending: Pending::new(name.clone()),
            samples: VecDeque::new(),
            name,
            events,
            closed: false,
            allowance,
            listing: Default::default(),
        }
    }

    /// `None` if nothing is pending. Only changes of keys wait for the allowance.
    fn due(&self) -> Option<Due> {
        let waits = self.allowance.as_ref().and_then(Allowance::waits);
        match waits {
            _ if self.pending.is_empty() => None,
            Some(until) if self.pending.front().is_some() => Some(Due::At(until)),
            _ => Some(Due::Now),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        match self.due() {
            None => false,
            Some(Due::Now) => true,
            Some(Due::At(due)) => due <= now,
        }
    }

    /// How many changes and how many entries of lists these are.
    fn count(&mut self, event: &MemberEvent) -> (usize, usize) {
        let MemberEvent::Keys { events, .. } = event else {
            self.listing = Default::default();
            return (0, 0);
        };
        let (mut changes, mut listed) = (0, 0);
        for event in events {
            let listing = &mut self.listing[event.kind() as usize];
            match event {
                KeyEvent::BeginList { .. } => *listing = true,
                KeyEvent::EndList { .. } => *listing = false,
                KeyEvent::Upsert { .. } | KeyEvent::Delete { .. } if *listing => listed += 1,
                KeyEvent::Upsert { .. } | KeyEvent::Delete { .. } => changes += 1,
            }
        }
        (changes, listed)
    }

    /// Takes what its channel holds, as far as there is room.
    fn absorb(&mut self, context: &mut Context<'_>, propagation: &Propagation) {
        while !self.closed && !self.pending.is_full() {
            match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => self.push(event, propagation),
                Poll::Ready(None) => self.closed = true,
                Poll::Pending => return,
            }
        }
    }

    /// Takes all that its channel holds, which is little.
    fn drain(&mut self, propagation: &Propagation) {
        while let Ok(event) = self.events.try_recv() {
            self.push(event, propagation);
        }
    }

    fn push(&mut self, event: MemberEvent, propagation: &Propagation) {
        let sample = match &event {
            MemberEvent::Keys { name, events } => {
                let kind = events.first().map(KeyEvent::kind);
                kind.and_then(|kind| propagation.received(name, kind))
            }
            MemberEvent::Removed { .. } => {
                self.samples.clear();
                None
            }
            MemberEvent::Connected { .. }
            | MemberEvent::Terms { .. }
            | MemberEvent::Expired { .. } => None,
        };
        self.pending.push(event);
        let end = self.pending.end();
        self.samples.extend(sample.map(|sample| (end, sample)));
    }

    /// The samples of which everything is popped.
    fn applied(&mut self) -> Vec<Sample> {
        let popped = self.pending.popped();
        let count = self
            .samples
            .iter()
            .take_while(|(end, _)| *end <= popped)
            .count();
        self.samples
            .drain(..count)
            .map(|(_, sample)| sample)
            .collect()
    }
}

#[cfg(test)]
mod tests;
