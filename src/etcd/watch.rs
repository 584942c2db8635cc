//! A watch on a prefix.
use bytes::Bytes;
use etcd_client::WatchOptions;

use super::{Class, Client, Entry, Error};

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Created or changed.
    Put(Entry),
    /// Deleted, or its lease ran out.
    Delete {
        /// The whole key.
        key: Bytes,
    },
}

/// A stream of changes; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    stream: etcd_client::WatchStream,
    client: Client,
    prefix: String,
    next: i64,
}

impl Client {
    /// Watches all keys that begin with `prefix`, from revision `from` on (inclusive).
    ///
    /// # Errors
    /// [`Error::Call`] or [`Error::Timeout`] if the stream cannot be opened.
    pub async fn watch(&self, prefix: &str, from: i64) -> Result<Watch, Error> {
        self.open_watch(prefix, WatchOptions::new().with_prefix(), from)
            .await
    }

    /// Watches a single key, from revision `from` on (inclusive).
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub async fn watch_key(&self, key: &str, from: i64) -> Result<Watch, Error> {
        self.open_watch(key, WatchOptions::new(), from).await
    }

    async fn open_watch(
        &self,
        prefix: &str,
        options: WatchOptions,
        from: i64,
    ) -> Result<Watch, Error> {
        let options = options.with_start_revision(from).with_progress_notify();
        let mut client = self.watch.clone();
        let call = client.watch(prefix, Some(options));
        let stream = super::call_within("watch", prefix, call).await?;
        Ok(Watch {
            stream,
            client: self.clone(),
            prefix: prefix.to_owned(),
            next: from,
        })
    }
}

impl Watch {
    /// The next changes in revision order; never empty. `None` if the server closed the stream in
    /// good order: watch again from [`Self::next_revision`]. Cancel safe: no event gets lost.
    ///
    /// # Errors
    /// `Relist` if the position is compacted or the server cancels; else what broke.
    pub async fn recv(&mut self) -> Result<Option<Vec<Event>>, Error> {
        loop {
            let message = self.stream.message().await;
            let Some(response) = message.map_err(|e| Error::call("watch", &self.prefix, e))? else {
                return Ok(None);
            };
            let revision = self.client.pin.check(response.header())?;
            if response.compact_revision() != 0 {
                return Err(Error::Compacted {
                    prefix: self.prefix.clone(),
                    compacted: response.compact_revision(),
                });
            }
            if response.canceled() {
                let reason: String = response.cancel_reason().chars().take(200).collect();
                // etcd reports this one as text only; listing again would be refused as well.
                let denied = reason.contains("permission denied");
                let class = if denied { Class::Denied } else { Class::Relist };
                return Err(Error::Cancelled {
                    prefix: self.prefix.clone(),
                    reason,
                    class,
                });
            }
            if response.created() {
                // Its header may be ahead of events that are still to come.
                continue;
            }
            // A watch that catches up gets headers ahead of its events, so events count if there are.
            let last = response
                .events()
                .last()
                .and_then(|e| e.kv())
                .map(|kv| kv.mod_revision());
            self.next = self.next.max(last.unwrap_or(revision).saturating_add(1));
            let events: Vec<Event> = response.events().iter().filter_map(event).collect();
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
    }

    /// Where a new watch would go on.
    #[must_use]
    pub const fn next_revision(&self) -> i64 {
        self.next
    }
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let entry = event.kv()?;
    let key = Bytes::copy_from_slice(entry.key());
    // A stored key has version 1 or more, a tombstone has none. `event_type()` would say the same
    // but panics on numbers it does not know.
    Some(if entry.version() == 0 {
        Event::Delete { key }
    } else {
        let value = Bytes::copy_from_slice(entry.value());
        Event::Put(Entry {
            key,
            value,
            revision: entry.mod_revision(),
        })
    })
}
