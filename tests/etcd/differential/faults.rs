//! Faults planted between a correct server and the comparison, to show that each would be seen.
use etcd_client::proto::{PbEvent, PbTxnOpResponse, PbWatchResponse};

use super::{
    server::{Outcome, Refusal},
    wire::Reply,
};

/// How many of a fault's opportunities pass before it strikes, once.
const SPARED: usize = 5;

/// What a server could get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A put says the revision before its own.
    RevisionOffByOne,
    /// A watch forgets what was there before.
    LostPrevKv,
    /// An event is delivered twice.
    EventTwice,
    /// The events of a revision come in the wrong order.
    EventsSwapped,
    /// Two revisions of a burst come in the wrong order.
    RevisionsSwapped,
    /// A page says that it is the last one.
    LostMore,
    /// The count is that of the page.
    CountOfPage,
    /// A refusal has the right code and another text.
    OtherText,
    /// A version is not reset by a deletion.
    VersionGoesOn,
    /// A header has another cluster's id.
    ForeignClusterId,
    /// The wrong branch of a transaction is reported.
    WrongBranch,
}

impl Kind {
    pub(super) const ALL: [Self; 11] = [
        Self::RevisionOffByOne,
        Self::LostPrevKv,
        Self::EventTwice,
        Self::EventsSwapped,
        Self::RevisionsSwapped,
        Self::LostMore,
        Self::CountOfPage,
        Self::OtherText,
        Self::VersionGoesOn,
        Self::ForeignClusterId,
        Self::WrongBranch,
    ];
}

/// A fault that strikes once.
#[derive(Debug)]
pub(super) struct Fault {
    kind: Kind,
    spared: usize,
}

impl Fault {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, spared: 0 }
    }

    pub(super) fn plant(&mut self, outcome: &mut Outcome) {
        let is_due = self.spared == SPARED;
        if strike(self.kind, outcome, is_due).is_some() {
            self.spared += 1;
        }
    }
}

/// `None` if the fault can do nothing to this outcome; otherwise does it if it is due.
fn strike(kind: Kind, outcome: &mut Outcome, is_due: bool) -> Option<()> {
    let mut responses = outcome.watched.values_mut().flatten();
    match kind {
        Kind::LostPrevKv => {
            let events = responses.flat_map(|r: &mut PbWatchResponse| &mut r.events);
            let mut kvs = events.map(|event| &mut event.prev_kv);
            let prev_kv = kvs.find(|kv| kv.is_some())?;
            change(is_due, prev_kv, |prev_kv| *prev_kv = None)
        }
        Kind::EventTwice => {
            let response = responses.find(|r| !r.events.is_empty())?;
            let event = response.events[0].clone();
            change(is_due, response, |r| r.events.insert(0, event))
        }
        Kind::EventsSwapped => {
            let response = responses.find(|r| r.events.len() > 1)?;
            change(is_due, response, |r| r.events.swap(0, 1))
        }
        Kind::RevisionsSwapped => {
            let is_burst = matches!(outcome.reply, Ok(Reply::Burst(_)));
            let response = responses
                .filter(|_| is_burst)
                .find(|r| swaps(r).is_some())?;
            let last = swaps(response)?;
            change(is_due, response, |r| r.events.swap(last - 1, last))
        }
        _ => strike_reply(kind, &mut outcome.reply, is_due),
    }
}

/// The first event whose revision is not that of the one before.
fn swaps(response: &PbWatchResponse) -> Option<usize> {
    let revision = |event: &PbEvent| event.kv.as_ref().map(|kv| kv.mod_revision);
    let mut pairs = response.events.windows(2);
    let first = pairs.position(|pair| revision(&pair[0]) != revision(&pair[1]));
    first.map(|first| first + 1)
}

fn strike_reply(kind: Kind, reply: &mut Result<Reply, Refusal>, is_due: bool) -> Option<()> {
    match (kind, reply) {
        (Kind::RevisionOffByOne, Ok(Reply::Put(r))) => {
            change(is_due, r.header.as_mut()?, |header| header.revision -= 1)
        }
        (Kind::LostMore, Ok(Reply::Range(r))) if r.more => change(is_due, r, |r| r.more = false),
        (Kind::CountOfPage, Ok(Reply::Range(r))) if r.more => {
            let page = i64::try_from(r.kvs.len()).ok()?;
            change(is_due, r, |r| r.count = page)
        }
        (Kind::OtherText, Err(refusal)) => change(is_due, refusal, |r| r.text.push('.')),
        (Kind::VersionGoesOn, Ok(Reply::Range(r))) => {
            let kv = r.kvs.iter_mut().find(|kv| kv.version == 1)?;
            change(is_due, kv, |kv| kv.version += 1)
        }
        (Kind::ForeignClusterId, Ok(Reply::Txn(r))) => {
            change(is_due, r.header.as_mut()?, |header| header.cluster_id += 1)
        }
        (Kind::WrongBranch, Ok(Reply::Txn(r))) => {
            let inner = r
                .responses
                .iter_mut()
                .find_map(|op| match &mut op.response {
                    Some(PbTxnOpResponse::ResponseTxn(inner)) => Some(inner),
                    _ => None,
                })?;
            change(is_due, inner, |inner| inner.succeeded = !inner.succeeded)
        }
        _ => None,
    }
}

fn change<T>(is_due: bool, place: &mut T, change: impl FnOnce(&mut T)) -> Option<()> {
    if is_due {
        change(place);
    }
    Some(())
}
