//! The stream of events: who listens to which, and whence everybody in them is known.
//!
//! Always true: the datapath reports what somebody listens to and nothing else; drops, and what only
//! audit mode lets pass, it reports anyway.
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tokio_util::sync::CancellationToken;

use super::{
    State,
    wire::{
        label_texts,
        monitor::{Line, Packet, Provenance, Rule},
    },
};
use crate::{
    enforcer::{Event, events::Kind},
    policy::RuleNames,
    types::IdentityId,
};

/// The events, and what is needed to tell of them.
#[derive(Debug, Clone)]
pub struct Events {
    /// What the datapath reports. Its capacity is what a slow reader may lag.
    pub source: broadcast::Sender<Event>,
    /// Who listens.
    pub listeners: Listeners,
    /// What the numbers of rules stand for.
    pub rules: RuleNames,
}

/// Which events somebody listens to that the datapath reports only then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Flows that policy allows.
    pub verdicts: bool,
    /// New flows.
    pub traces: bool,
}

/// Counts who listens to what; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    counts: Arc<Mutex<[usize; 2]>>,
    wanted: watch::Sender<Wanted>,
}

/// Somebody who listens, until it is dropped.
#[derive(Debug)]
struct Listening {
    to: Listeners,
    kinds: Vec<Kind>,
}

impl Listeners {
    /// What somebody listens to now, and how that changes.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    fn listen(&self, kinds: Vec<Kind>) -> Listening {
        self.count(&kinds, |count| count + 1);
        Listening {
            to: self.clone(),
            kinds,
        }
    }

    fn count(&self, kinds: &[Kind], change: impl Fn(usize) -> usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in kinds {
            match kind {
                Kind::Drop => {}
                Kind::PolicyVerdict => counts[0] = change(counts[0]),
                Kind::Trace => counts[1] = change(counts[1]),
            }
        }
        let wanted = Wanted {
            verdicts: counts[0] > 0,
            traces: counts[1] > 0,
        };
        self.wanted.send_if_modified(|old| {
            let changed = *old != wanted;
            *old = wanted;
            changed
        });
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.to.count(&self.kinds, |count| count.saturating_sub(1));
    }
}

/// Subscribed before the answer begins: whoever has read its header misses nothing that follows.
/// `query` is `type=<kind>` for each kind, drops without any.
pub(super) fn monitor(
    state: &Arc<State>,
    query: &[(String, String)],
    token: CancellationToken,
) -> Response {
    let kinds = match kinds(query) {
        Ok(kinds) => kinds,
        Err(wrong) => {
            let text =
                format!("{wrong} is not a filter of events; type=drop, policy-verdict or trace is");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    let events = BroadcastStream::new(state.events.source.subscribe());
    let listening = state.events.listeners.listen(kinds);
    let state = Arc::clone(state);
    let lines = events.filter_map(move |event| {
        let line = match event {
            Ok(event) if !listening.kinds.contains(&event.kind) => None,
            Ok(event) => Some(line(&state, &event)),
            Err(BroadcastStreamRecvError::Lagged(count)) => Some(Line::Lost { count }),
        };
        std::future::ready(line.map(|line| {
            // Plain numbers and text: there is nothing in it that JSON can't express.
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            Ok::<_, Infallible>(text)
        }))
    });
    let body = Body::from_stream(lines.take_until(token.cancelled_owned()));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

fn kinds(query: &[(String, String)]) -> Result<Vec<Kind>, String> {
    let kind = |(key, value): &(String, String)| match (key.as_str(), value.as_str()) {
        ("type", "drop") => Ok(Kind::Drop),
        ("type", "policy-verdict") => Ok(Kind::PolicyVerdict),
        ("type", "trace") => Ok(Kind::Trace),
        _ => Err(format!("{key}={value}")),
    };
    let mut kinds = query.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    if kinds.is_empty() {
        kinds.push(Kind::Drop);
    }
    Ok(kinds)
}

fn line(state: &State, event: &Event) -> Line {
    let known = (
        provenance(state, event.source_identity),
        provenance(state, event.destination_identity),
    );
    let rule = (event.rule != 0)
        .then(|| Rule::new(event.rule, state.events.rules.get(event.rule).as_deref()));
    Line::new(event.kind, Packet::new(event, known, rule))
}

fn provenance(state: &State, id: IdentityId) -> Provenance {
    if let Some(name) = id.reserved_name() {
        return Provenance {
            labels: vec![format!("reserved:{name}")],
            ..Provenance::default()
        };
    }
    let Some(known) = state.view.identities.get(&id) else {
        return Provenance::default();
    };
    let age = Instant::now().saturating_duration_since(known.learned);
    Provenance {
        labels: label_texts(&known.labels),
        cluster: Some(known.cluster.to_string()),
        revision: Some(known.revision),
        age_ms: Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datapath_reports_while_somebody_listens() {
        let listeners = Listeners::default();
        let wanted = listeners.wanted();
        let now = || *wanted.borrow();
        let drops = listeners.listen(vec![Kind::Drop]);
        assert_eq!(now(), Wanted::default());
        let first = listeners.listen(vec![Kind::PolicyVerdict]);
        let second = listeners.listen(vec![Kind::PolicyVerdict, Kind::Trace]);
        let all = Wanted {
            verdicts: true,
            traces: true,
        };
        assert_eq!(now(), all);
        drop(first);
        assert_eq!(now(), all);
        drop(second);
        assert_eq!(now(), Wanted::default());
        drop(drops);
    }
}
