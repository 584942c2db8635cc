//! Paged lists at one revision.
use bytes::Bytes;
use etcd_client::GetOptions;

use super::{Client, Error};
use crate::limits;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: Bytes,
    /// Its value; empty in a list of keys.
    pub value: Bytes,
    /// Revision of the last change.
    pub revision: i64,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The revision of the whole list, the same for all its pages.
    pub revision: i64,
    /// Ascending by key; may be empty.
    pub entries: Vec<Entry>,
}

/// A list in progress: ask for pages until there is none.
#[derive(Debug)]
pub struct List<'a> {
    client: &'a Client,
    prefix: String,
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    limit: i64,
    revision: i64,
    keys_only: bool,
}

impl Client {
    /// Lists all keys that begin with `prefix`, which must not be empty.
    #[must_use]
    pub fn list(&self, prefix: &str) -> List<'_> {
        self.list_from(prefix, 0, false)
    }

    /// Lists the keys, without values, that began with `prefix` at `revision`, 0 for now. A server that has
    /// compacted this revision, or never had it, answers with `Relist`.
    #[must_use]
    pub fn list_keys_at(&self, prefix: &str, revision: i64) -> List<'_> {
        self.list_from(prefix, revision, true)
    }

    fn list_from(&self, prefix: &str, revision: i64, keys_only: bool) -> List<'_> {
        List {
            client: self,
            prefix: prefix.to_owned(),
            next: Some(prefix.as_bytes().to_vec()),
            end: prefix_end(prefix.as_bytes()),
            limit: limits::LIST_PAGE_KEYS,
            revision,
            keys_only,
        }
    }
}

impl List<'_> {
    /// The next page; `None` after the last. The first call always yields a page. Cancel safe.
    ///
    /// # Errors
    /// `Relist` if the list's revision was compacted meanwhile: begin again.
    pub async fn page(&mut self) -> Result<Option<Page>, Error> {
        let Some(from) = &self.next else {
            return Ok(None);
        };
        let mut response = loop {
            let mut options = GetOptions::new()
                .with_range(self.end.clone())
                .with_limit(self.limit)
                .with_revision(self.revision)
                .with_serializable();
            if self.keys_only {
                options = options.with_keys_only();
            }
            let mut kv = self.client.kv.clone();
            let call = kv.get(from.clone(), Some(options));
            match super::call_within("list", &self.prefix, call).await {
                Err(e) if e.is_too_large() && self.limit > 1 => self.limit /= 2,
                Err(e) if e.is_too_large() => {
                    return Err(Error::EntryTooLarge {
                        prefix: self.prefix.clone(),
                    });
                }
                other => break other?,
            }
        };
        let header_revision = self.client.pin.check(response.header())?;
        if self.revision == 0 {
            self.revision = header_revision;
        }
        let entries: Vec<Entry> = response
            .take_kvs()
            .into_iter()
            .map(|entry| {
                let revision = entry.mod_revision();
                let (key, value) = entry.into_key_value();
                Entry {
                    key: key.into(),
                    value: value.into(),
                    revision,
                }
            })
            .collect();
        self.next = match entries.last() {
            // The smallest key above the last one.
            Some(last) if response.more() => Some([&last.key[..], &[0]].concat()),
            _ => None,
        };
        Ok(Some(Page {
            revision: self.revision,
            entries,
        }))
    }
}

/// The end of the range of all keys with `prefix`: the prefix with its last byte incremented.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // No end: all keys from the prefix on.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_is_the_first_key_behind_the_prefix() {
        assert_eq!(prefix_end(b"a/"), b"a0");
        assert_eq!(prefix_end(&[1, 0xff, 0xff]), [2]);
        assert_eq!(prefix_end(&[0xff]), [0]);
    }
}
