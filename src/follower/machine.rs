//! Turns pages and watch events of one kind into key events, and notes what was handed on, so that
//! the next connection can tell whether it may go on there. No I/O.
use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use bytes::Bytes;

use crate::{
    etcd::{Entry, Event, Page},
    keyspace::{KeyEvent, Kind},
    limits::RESUME_KEYS_MAX,
};

/// One kind under one prefix.
#[derive(Debug)]
pub(super) struct KindMachine {
    kind: Kind,
    prefix: Bytes,
    /// What the receiver holds; `None` if that is not known or not worth the memory.
    held: Option<Held>,
}

/// The keys behind the prefix with their mod revisions. A key is kept as its hash, with a secret of
/// this process: two of a million keys share one with a chance of one in forty million, and then the
/// comparison fails or misses a key that changed places with another of the same revision.
#[derive(Debug, Default)]
struct Held {
    secret: RandomState,
    keys: HashMap<u64, i64>,
    /// `None` while a list is not complete.
    at: Option<Position>,
}

/// Everything of `cluster_id` up to and including `revision` was handed on.
#[derive(Debug, Clone, Copy)]
struct Position {
    cluster_id: u64,
    revision: i64,
}

impl Held {
    fn hash(&self, suffix: &[u8]) -> u64 {
        self.secret.hash_one(suffix)
    }
}

impl KindMachine {
    pub(super) fn new(kind: Kind, prefix: &str) -> Self {
        Self {
            kind,
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            held: None,
        }
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// A list begins, and with it the notes.
    pub(super) fn begin(&mut self) -> KeyEvent {
        self.held = Some(Held::default());
        KeyEvent::BeginList { kind: self.kind }
    }

    pub(super) fn page(&mut self, page: Page) -> Vec<KeyEvent> {
        page.entries
            .into_iter()
            .filter_map(|entry| self.upsert(entry))
            .collect()
    }

    /// The list of this etcd cluster at `revision` is complete.
    pub(super) fn end(&mut self, cluster_id: Option<u64>, revision: i64) -> KeyEvent {
        if let Some(held) = &mut self.held {
            held.at = cluster_id.map(|cluster_id| Position {
                cluster_id,
                revision,
            });
        }
        KeyEvent::EndList { kind: self.kind }
    }

    /// Changes behind the list; `next` is where a watch would go on.
    pub(super) fn events(&mut self, events: Vec<Event>, next: i64) -> Vec<KeyEvent> {
        let kind = self.kind;
        let convert = |event| match event {
            Event::Put(entry) => self.upsert(entry),
            Event::Delete { key } => {
                let suffix = self.suffix(&key)?;
                if let Some(held) = &mut self.held {
                    held.keys.remove(&held.hash(&suffix));
                }
                Some(KeyEvent::Delete { kind, suffix })
            }
        };
        let events = events.into_iter().filter_map(convert).collect();
        self.advance(next);
        events
    }

    /// Nothing more happened in front of `next`.
    pub(super) const fn advance(&mut self, next: i64) {
        if let Some(Held { at: Some(at), .. }) = &mut self.held {
            at.revision = next.saturating_sub(1);
        }
    }

    /// Begins to compare a server's keys with what was handed on; `None` if that is not known.
    pub(super) fn check(&self) -> Option<Check<'_>> {
        let held = self.held.as_ref()?;
        Some(Check {
            machine: self,
            held,
            at: held.at?,
            found: 0,
        })
    }

    fn upsert(&mut self, entry: Entry) -> Option<KeyEvent> {
        let suffix = self.suffix(&entry.key)?;
        self.note(&suffix, entry.revision);
        Some(KeyEvent::Upsert {
            kind: self.kind,
            suffix,
            value: entry.value,
            revision: entry.revision,
        })
    }

    fn note(&mut self, suffix: &[u8], revision: i64) {
        let Some(held) = &mut self.held else { return };
        held.keys.insert(held.hash(suffix), revision);
        if held.keys.len() > RESUME_KEYS_MAX {
            self.held = None;
        }
    }

    /// The part behind the prefix. A server that sends other keys than asked for is ignored there.
    fn suffix(&self, key: &Bytes) -> Option<Bytes> {
        let inside = key.starts_with(&self.prefix) && key.len() > self.prefix.len();
        inside.then(|| key.slice(self.prefix.len()..))
    }
}

/// A comparison in progress.
#[derive(Debug)]
pub(super) struct Check<'a> {
    machine: &'a KindMachine,
    held: &'a Held,
    at: Position,
    found: usize,
}

impl Check<'_> {
    /// The revision at which the server's keys are to be compared.
    pub(super) const fn revision(&self) -> i64 {
        self.at.revision
    }

    /// False if this page of `cluster_id`'s keys shows a difference.
    pub(super) fn page(&mut self, cluster_id: Option<u64>, page: &Page) -> bool {
        let suffixes = page
            .entries
            .iter()
            .filter_map(|entry| Some((self.machine.suffix(&entry.key)?, entry.revision)));
        let mut equal = cluster_id == Some(self.at.cluster_id);
        #[cfg(test)]
        if super::planted::resumes_across_cluster_ids() {
            equal = true;
        }
        for (suffix, revision) in suffixes {
            let key = self.held.hash(&suffix);
            equal &= self.held.keys.get(&key) == Some(&revision);
            self.found += 1;
        }
        equal
    }

    /// After all pages without a difference: true if no key is missing.
    pub(super) fn agrees(&self) -> bool {
        self.found == self.held.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &'static str, revision: i64) -> Entry {
        Entry {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"v"),
            revision,
        }
    }

    fn page(keys: &[(&'static str, i64)]) -> Page {
        Page {
            revision: 9,
            entries: keys.iter().map(|(key, rev)| entry(key, *rev)).collect(),
        }
    }

    /// Listed `a/b/m` and `a/b/n` of cluster 7 at revision 9.
    fn listed() -> KindMachine {
        let mut machine = KindMachine::new(Kind::Nodes, "a/b/");
        machine.begin();
        machine.page(page(&[("a/b/m", 3), ("a/b/n", 4), ("a/c", 5)]));
        assert!(machine.check().is_none(), "not complete yet");
        machine.end(Some(7), 9);
        machine
    }

    fn agrees(machine: &KindMachine, cluster: u64, keys: &[(&'static str, i64)]) -> bool {
        let mut check = machine.check().unwrap();
        let (first, rest) = keys.split_at(keys.len() / 2);
        check.page(Some(cluster), &page(first))
            && check.page(Some(cluster), &page(rest))
            && check.agrees()
    }

    #[test]
    fn server_with_other_keys_revisions_or_id_does_not_agree() {
        let machine = listed();
        assert!(agrees(&machine, 7, &[("a/b/m", 3), ("a/b/n", 4)]));
        assert!(!agrees(&machine, 8, &[("a/b/m", 3), ("a/b/n", 4)]));
        assert!(!agrees(&machine, 7, &[("a/b/m", 3), ("a/b/n", 6)]));
        assert!(!agrees(&machine, 7, &[("a/b/n", 4)]));
        assert!(!agrees(&machine, 7, &[("a/b/m", 3), ("a/b/o", 4)]));
        let more = [("a/b/m", 3), ("a/b/n", 4), ("a/b/o", 5)];
        assert!(!agrees(&machine, 7, &more));
        assert!(!agrees(&machine, 7, &[]));
    }

    #[test]
    fn notes_follow_the_changes_and_end_with_the_next_list() {
        let mut machine = listed();
        assert_eq!(machine.check().unwrap().revision(), 9);
        let key = Bytes::from_static(b"a/b/m");
        let changes = vec![Event::Delete { key }, Event::Put(entry("a/b/n", 11))];
        machine.events(changes, 12);
        assert_eq!(machine.check().unwrap().revision(), 11);
        assert!(agrees(&machine, 7, &[("a/b/n", 11)]));
        machine.advance(20);
        assert_eq!(machine.check().unwrap().revision(), 19);
        machine.begin();
        assert!(machine.check().is_none());
    }

    #[test]
    fn too_many_keys_are_not_noted() {
        let mut machine = listed();
        for n in 0..RESUME_KEYS_MAX {
            machine.note(n.to_string().as_bytes(), 1);
        }
        assert!(machine.check().is_none());
    }

    #[test]
    fn events_carry_the_key_behind_the_prefix_and_foreign_keys_are_dropped() {
        let mut machine = KindMachine::new(Kind::Nodes, "a/b/");
        let page = page(&[("a/b/n", 4), ("a/b/", 4), ("a/c", 4)]);
        let upsert = KeyEvent::Upsert {
            kind: Kind::Nodes,
            suffix: Bytes::from_static(b"n"),
            value: Bytes::from_static(b"v"),
            revision: 4,
        };
        assert_eq!(machine.page(page), std::slice::from_ref(&upsert));
        let delete = |key: &'static str| Event::Delete {
            key: Bytes::from_static(key.as_bytes()),
        };
        let events = vec![
            Event::Put(entry("a/b/n", 4)),
            delete("a/b/n/x"),
            delete("z"),
        ];
        let gone = KeyEvent::Delete {
            kind: Kind::Nodes,
            suffix: Bytes::from_static(b"n/x"),
        };
        assert_eq!(machine.events(events, 5), [upsert, gone]);
    }
}
