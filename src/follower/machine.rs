//! Turns pages and watch events of one kind into key events. No I/O, no state of its own.
use bytes::Bytes;

use crate::{
    etcd::{Entry, Event, Page},
    keyspace::{KeyEvent, Kind},
};

/// One kind under one prefix.
#[derive(Debug)]
pub(super) struct KindMachine {
    kind: Kind,
    prefix_bytes: usize,
    prefix: Bytes,
}

impl KindMachine {
    pub(super) fn new(kind: Kind, prefix: &str) -> Self {
        let prefix = Bytes::copy_from_slice(prefix.as_bytes());
        Self {
            kind,
            prefix_bytes: prefix.len(),
            prefix,
        }
    }

    pub(super) const fn begin(&self) -> KeyEvent {
        KeyEvent::BeginList { kind: self.kind }
    }

    pub(super) const fn end(&self) -> KeyEvent {
        KeyEvent::EndList { kind: self.kind }
    }

    pub(super) fn page(&self, page: Page) -> Vec<KeyEvent> {
        page.entries
            .into_iter()
            .filter_map(|entry| self.upsert(entry))
            .collect()
    }

    pub(super) fn events(&self, events: Vec<Event>) -> Vec<KeyEvent> {
        let kind = self.kind;
        let convert = |event| match event {
            Event::Put(entry) => self.upsert(entry),
            Event::Delete { key } => self
                .suffix(&key)
                .map(|suffix| KeyEvent::Delete { kind, suffix }),
        };
        events.into_iter().filter_map(convert).collect()
    }

    fn upsert(&self, entry: Entry) -> Option<KeyEvent> {
        let suffix = self.suffix(&entry.key)?;
        Some(KeyEvent::Upsert {
            kind: self.kind,
            suffix,
            value: entry.value,
            revision: entry.revision,
        })
    }

    /// The part behind the prefix. A server that sends other keys than asked for is ignored there.
    fn suffix(&self, key: &Bytes) -> Option<Bytes> {
        let inside = key.starts_with(&self.prefix) && key.len() > self.prefix_bytes;
        inside.then(|| key.slice(self.prefix_bytes..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_the_key_behind_the_prefix_and_foreign_keys_are_dropped() {
        let machine = KindMachine::new(Kind::Nodes, "a/b/");
        let entry = |key: &'static str| Entry {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"v"),
            revision: 4,
        };
        let page = Page {
            revision: 9,
            entries: vec![entry("a/b/n"), entry("a/b/"), entry("a/c")],
        };
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
        let events = vec![Event::Put(entry("a/b/n")), delete("a/b/n/x"), delete("z")];
        let gone = KeyEvent::Delete {
            kind: Kind::Nodes,
            suffix: Bytes::from_static(b"n/x"),
        };
        assert_eq!(machine.events(events), [upsert, gone]);
    }
}
