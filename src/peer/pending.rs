//! Events of one member on their way into the mesh. While the mesh is busy, changes of the same key
//! become one, the newest in the place of the oldest, so that a storm on a few keys does not grow.
//!
//! Invariant: what comes out leads to the same state as what went in. Nothing moves over the begin
//! or the end of a list of its kind, nor over an event that is no change of a key.
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::MemberEvent;
use crate::{
    keyspace::{KeyEvent, Kind},
    limits,
    types::ClusterName,
};

/// The queue; not shared: whoever feeds the mesh has one for each member.
#[derive(Debug)]
pub struct Pending {
    name: ClusterName,
    items: VecDeque<Item>,
    /// Number of the first item; the others count on from there.
    first: u64,
    kinds: [KindOrder; Kind::ALL.len()],
    bytes: usize,
}

/// What may be merged of one kind.
#[derive(Debug, Default)]
struct KindOrder {
    /// Where the newest change of a key is, if later ones may take its place.
    newest: HashMap<Bytes, u64>,
    /// A list goes on; its keys differ, so there is nothing to merge.
    listing: bool,
}

#[derive(Debug)]
enum Item {
    Key(KeyEvent),
    Other(MemberEvent),
}

impl Pending {
    /// Nothing pending for this member.
    #[must_use]
    pub fn new(name: ClusterName) -> Self {
        Self {
            name,
            items: VecDeque::new(),
            first: 0,
            kinds: Default::default(),
            bytes: 0,
        }
    }

    /// True if no more should be pushed before something is popped.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.items.len() >= limits::MEMBER_PENDING_ENTRIES
            || self.bytes >= limits::MEMBER_PENDING_BYTES
    }

    /// True if nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many entries were popped since the last removal, as [`Self::end`] counts.
    #[must_use]
    pub const fn popped(&self) -> u64 {
        self.first
    }

    /// What [`Self::popped`] is once all that is pending now is popped.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first.wrapping_add(self.items.len() as u64)
    }

    /// Takes an event of the member. What waits in front of a `Removed` is dropped with it: it would
    /// be withdrawn in the same breath.
    pub fn push(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Keys { events, .. } => {
                for event in events {
                    self.push_key(event);
                }
            }
            other => {
                if matches!(other, MemberEvent::Removed { .. }) {
                    self.items.clear();
                    self.bytes = 0;
                }
                self.kinds = Default::default();
                self.items.push_back(Item::Other(other));
            }
        }
    }

    /// The change of a key that is next; `None` if something else is, or nothing.
    #[must_use]
    pub fn front(&self) -> Option<&KeyEvent> {
        match self.items.front() {
            Some(Item::Key(event)) => Some(event),
            Some(Item::Other(_)) | None => None,
        }
    }

    /// Takes the withdrawal that waits in front, if there is one.
    pub fn take_removed(&mut self) -> Option<MemberEvent> {
        match self.items.front() {
            Some(Item::Other(MemberEvent::Removed { .. })) => self.pop(1),
            _ => None,
        }
    }

    fn push_key(&mut self, event: KeyEvent) {
        let size = size(&event);
        let end = self.end();
        let (order, suffix) = match &event {
            KeyEvent::Upsert { kind, suffix, .. } | KeyEvent::Delete { kind, suffix } => {
                (&mut self.kinds[*kind as usize], suffix.clone())
            }
            KeyEvent::BeginList { kind } | KeyEvent::EndList { kind } => {
                self.kinds[*kind as usize] = KindOrder {
                    listing: matches!(event, KeyEvent::BeginList { .. }),
                    ..KindOrder::default()
                };
                self.items.push_back(Item::Key(event));
                return;
            }
        };
        self.bytes += size;
        if order.listing {
            self.items.push_back(Item::Key(event));
            return;
        }
        let at = order
            .newest
            .get(&suffix)
            .map(|n| n.wrapping_sub(self.first));
        let place = at.and_then(|at| self.items.get_mut(usize::try_from(at).ok()?));
        if let Some(Item::Key(old)) = place {
            self.bytes -= self::size(old);
            *old = event;
        } else {
            order.newest.insert(suffix, end);
            self.items.push_back(Item::Key(event));
        }
    }

    /// The next thing to do: some other event, or the oldest changes, at most `max` of them and no
    /// more behind one that may be much work.
    pub fn pop(&mut self, max: usize) -> Option<MemberEvent> {
        let mut events = Vec::new();
        let mut bytes = 0;
        while events.len() < max.max(1) && bytes < limits::MEMBER_STEP_BYTES {
            let number = self.first;
            match self.items.pop_front() {
                None => break,
                Some(Item::Key(event)) => {
                    self.first = number.wrapping_add(1);
                    self.bytes -= size(&event);
                    bytes += work(&event);
                    self.forget(&event, number);
                    events.push(event);
                }
                Some(Item::Other(other)) if events.is_empty() => {
                    self.first = number.wrapping_add(1);
                    return Some(other);
                }
                Some(other) => {
                    self.items.push_front(other);
                    break;
                }
            }
        }
        let name = self.name.clone();
        (!events.is_empty()).then_some(MemberEvent::Keys { name, events })
    }

    /// A change that left can be replaced no more.
    fn forget(&mut self, event: &KeyEvent, number: u64) {
        if let KeyEvent::Upsert { kind, suffix, .. } | KeyEvent::Delete { kind, suffix } = event {
            let newest = &mut self.kinds[*kind as usize].newest;
            if newest.get(suffix) == Some(&number) {
                newest.remove(suffix);
            }
        }
    }
}

fn size(event: &KeyEvent) -> usize {
    match event {
        KeyEvent::Upsert { suffix, value, .. } => suffix.len() + value.len(),
        KeyEvent::Delete { suffix, .. } => suffix.len(),
        KeyEvent::BeginList { .. } | KeyEvent::EndList { .. } => 0,
    }
}

/// Bytes that its decoding may have to look at: a slice of a few may expand to many.
fn work(event: &KeyEvent) -> usize {
    match event {
        KeyEvent::Upsert {
            kind: Kind::EndpointSlices,
            ..
        } => limits::ENDPOINT_SLICE_BYTES_MAX,
        event => size(event),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn upsert(key: u8, value: u8) -> KeyEvent {
        KeyEvent::Upsert {
            kind: Kind::Nodes,
            suffix: vec![key].into(),
            value: vec![value].into(),
            revision: 1,
        }
    }

    fn delete(key: u8) -> KeyEvent {
        KeyEvent::Delete {
            kind: Kind::Nodes,
            suffix: vec![key].into(),
        }
    }

    fn name() -> ClusterName {
        "west".parse().unwrap()
    }

    fn keys(events: Vec<KeyEvent>) -> MemberEvent {
        let name = name();
        MemberEvent::Keys { name, events }
    }

    const BEGIN: KeyEvent = KeyEvent::BeginList { kind: Kind::Nodes };
    const END: KeyEvent = KeyEvent::EndList { kind: Kind::Nodes };

    #[test]
    fn storm_on_one_key_is_one_change_and_leaves_no_bytes_behind() {
        let mut pending = Pending::new(name());
        for value in 0..200 {
            pending.push(keys(vec![upsert(1, value), upsert(2, value)]));
        }
        assert_eq!(pending.bytes, 4);
        assert_eq!(pending.pop(1), Some(keys(vec![upsert(1, 199)])));
        pending.push(keys(vec![upsert(1, 7), delete(2)]));
        assert_eq!(pending.pop(9), Some(keys(vec![delete(2), upsert(1, 7)])));
        assert!(pending.pop(9).is_none() && pending.bytes == 0);
        assert!(pending.kinds.iter().all(|order| order.newest.is_empty()));
    }

    #[test]
    fn change_before_a_list_is_not_taken_for_one_of_the_list() {
        let mut pending = Pending::new(name());
        let events = vec![
            upsert(1, 1),
            BEGIN,
            upsert(1, 2),
            END,
            upsert(1, 3),
            upsert(1, 4),
        ];
        pending.push(keys(events));
        let left = vec![upsert(1, 1), BEGIN, upsert(1, 2), END, upsert(1, 4)];
        assert_eq!(pending.pop(9), Some(keys(left)));
    }

    #[test]
    fn other_events_keep_their_place_and_removal_drops_what_it_withdraws() {
        let mut pending = Pending::new(name());
        let expired = || MemberEvent::Expired { name: name() };
        let removed = || MemberEvent::Removed { name: name() };
        pending.push(keys(vec![upsert(1, 1)]));
        pending.push(expired());
        pending.push(keys(vec![upsert(1, 2)]));
        assert_eq!(pending.pop(9), Some(keys(vec![upsert(1, 1)])));
        assert_eq!(pending.pop(9), Some(expired()));
        pending.push(removed());
        pending.push(keys(vec![upsert(1, 3)]));
        assert_eq!(pending.pop(9), Some(removed()));
        assert_eq!(pending.pop(9), Some(keys(vec![upsert(1, 3)])));
        assert_eq!(pending.pop(9), None);
    }

    #[test]
    fn full_by_entries_or_by_bytes() {
        let mut pending = Pending::new(name());
        pending.push(keys(vec![KeyEvent::Upsert {
            kind: Kind::Nodes,
            suffix: Bytes::new(),
            value: vec![0; limits::MEMBER_PENDING_BYTES].into(),
            revision: 1,
        }]));
        assert!(pending.is_full());
        pending.pop(1);
        assert!(!pending.is_full() && pending.is_empty());
        pending.push(keys(vec![BEGIN; limits::MEMBER_PENDING_ENTRIES]));
        assert!(pending.is_full());
    }

    /// Mark at the begin, sweep at the end, as consumers do.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Naive {
        entries: BTreeMap<Bytes, Bytes>,
        stale: BTreeSet<Bytes>,
    }

    impl Naive {
        fn apply(&mut self, event: KeyEvent) {
            match event {
                KeyEvent::Upsert { suffix, value, .. } => {
                    self.stale.remove(&suffix);
                    self.entries.insert(suffix, value);
                }
                KeyEvent::Delete { suffix, .. } => {
                    self.stale.remove(&suffix);
                    self.entries.remove(&suffix);
                }
                KeyEvent::BeginList { .. } => self.stale = self.entries.keys().cloned().collect(),
                KeyEvent::EndList { .. } => {
                    for suffix in std::mem::take(&mut self.stale) {
                        self.entries.remove(&suffix);
                    }
                }
            }
        }
    }

    proptest! {
        // Goal: whatever is merged, the consumer ends where it would have ended without merging.
        #[test]
        fn merged_events_lead_to_the_same_state(
            steps in prop::collection::vec(prop_oneof![
                6 => (0_u8..5, any::<u8>()).prop_map(|(k, v)| Ok(upsert(k, v))),
                3 => (0_u8..5).prop_map(|k| Ok(delete(k))),
                1 => Just(Ok(BEGIN)),
                1 => Just(Ok(END)),
                2 => (1_usize..4).prop_map(Err),
            ], 0..60),
        ) {
            let (mut plain, mut merged) = (Naive::default(), Naive::default());
            let mut pending = Pending::new(name());
            let pop = |pending: &mut Pending, merged: &mut Naive, max| {
                if let Some(MemberEvent::Keys { events, .. }) = pending.pop(max) {
                    events.into_iter().for_each(|event| merged.apply(event));
                }
            };
            for step in steps {
                match step {
                    Ok(event) => {
                        plain.apply(event.clone());
                        pending.push(keys(vec![event]));
                    }
                    Err(max) => pop(&mut pending, &mut merged, max),
                }
            }
            while !pending.is_empty() {
                pop(&mut pending, &mut merged, 7);
            }
            prop_assert_eq!(plain, merged);
            prop_assert_eq!(pending.bytes, 0);
        }
    }
}
