//! A member as bytes for the disk: its terms and the values that are in the cache, in one checked
//! piece. Reading is total: whatever the bytes are, they are an image or an error.
use std::{convert::Infallible, io, str::FromStr, sync::Arc};

use bytes::Bytes;

use super::Terms;
use crate::{
    keyspace::{ClusterConfig, KeyEvent, Kind, Layout},
    limits,
    store::{KeyRange, RangeRequest, Record, Store},
    types::{ClusterId, ClusterName, IpPrefix, MaxClusters},
};

/// What a file begins with; the number is the format's.
const MAGIC: &[u8] = b"tombolo mesh 1\n";
/// Stands in a kind's place behind the last entry.
const END: u8 = 0;
/// Length of the checksum at the end.
const CHECKSUM_BYTES: usize = size_of::<u32>();

/// Why bytes are no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not a file of ours, or of another version.
    #[error("is no saved cluster of this version")]
    Foreign,
    /// Cut off or altered.
    #[error("checksum does not match; the file is damaged")]
    Damaged,
    /// Undamaged, but it says what no cluster may say here.
    #[error("field {0} is invalid")]
    Invalid(&'static str),
}

/// A member as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: ClusterName,
    /// What it was let in on.
    pub terms: Terms,
    /// Its values, each as the upsert that it once was, without a revision.
    pub entries: Vec<KeyEvent>,
}

/// Tells whether a member changed between two looks: how many keys it has, and the cache's revision
/// at the latest change of one.
pub type Fingerprint = (usize, i64);

/// What tells whether the cache's entries of a member changed.
#[must_use]
pub fn fingerprint(name: &ClusterName, cache: &Store) -> Fingerprint {
    let (mut count, mut latest) = (0, 0);
    let done: Result<(), Infallible> = for_each(name, cache, |_, _, record| {
        count += 1;
        latest = latest.max(record.mod_revision());
        Ok(())
    });
    match done {
        Ok(()) => (count, latest),
    }
}

impl Image {
    /// Writes what the cache holds of a member now. Changes meanwhile may be in it or not.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(
        name: &ClusterName,
        terms: &Terms,
        cache: &Store,
        out: impl io::Write,
    ) -> io::Result<()> {
        let mut out = Checked { out, sum: 0 };
        out.write(MAGIC)?;
        out.field(name.as_str().as_bytes())?;
        out.write(&terms.id.get().to_le_bytes())?;
        out.write(&[u8::from(terms.relayed)])?;
        out.field(&terms.config.encode())?;
        let allowed = terms.allowed_cidrs.iter();
        let allowed: Vec<String> = allowed.map(ToString::to_string).collect();
        out.field(allowed.join(" ").as_bytes())?;
        for_each(name, cache, |kind, suffix, record| {
            out.write(&[number(kind)])?;
            out.field(suffix)?;
            out.field(record.value())
        })?;
        out.write(&[END])?;
        let sum = out.sum;
        out.write(&sum.to_le_bytes())?;
        out.out.flush()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn read(file: &[u8], max: MaxClusters) -> Result<Self, ImageError> {
        if !file.starts_with(MAGIC) {
            return Err(ImageError::Foreign);
        }
        let end = file.len().saturating_sub(CHECKSUM_BYTES);
        let (body, sum) = file.split_at(end);
        if sum != crc32c::crc32c(body).to_le_bytes() {
            return Err(ImageError::Damaged);
        }
        let mut rest = Fields(&body[MAGIC.len()..]);
        let name = parsed(rest.field()?).ok_or(ImageError::Invalid("name"))?;
        let id = u32::from_le_bytes(rest.array()?);
        let id = ClusterId::new(id, max).map_err(|_range| ImageError::Invalid("cluster id"))?;
        let [relayed] = rest.array()?;
        let config = ClusterConfig::decode(rest.field()?)
            .map_err(|_rejection| ImageError::Invalid("cluster configuration"))?;
        let allowed = str::from_utf8(rest.field()?).unwrap_or("?");
        let allowed: Option<Arc<[IpPrefix]>> = allowed
            .split_terminator(' ')
            .map(|p| p.parse().ok())
            .collect();
        let terms = Terms {
            id,
            config,
            allowed_cidrs: allowed.ok_or(ImageError::Invalid("allowed CIDRs"))?,
            relayed: relayed != 0,
        };
        let mut entries = Vec::new();
        loop {
            let [kind] = rest.array()?;
            if kind == END {
                break;
            }
            let of_number = |k: &Kind| number(*k) == kind;
            let kind = Kind::ALL.into_iter().find(of_number);
            entries.push(KeyEvent::Upsert {
                kind: kind.ok_or(ImageError::Invalid("kind"))?,
                suffix: Bytes::copy_from_slice(rest.field()?),
                value: Bytes::copy_from_slice(rest.field()?),
                revision: 0,
            });
        }
        Ok(Self {
            name,
            terms,
            entries,
        })
    }
}

/// Goes through a member's entries in the cache, in pages, so that no other reader or writer of it
/// has to wait.
fn for_each<E>(
    name: &ClusterName,
    cache: &Store,
    mut each: impl FnMut(Kind, &[u8], &Record) -> Result<(), E>,
) -> Result<(), E> {
    for kind in Kind::ALL {
        let prefix = Layout::Cache.prefix(kind, name);
        let mut range = KeyRange::prefix(prefix.as_bytes());
        loop {
            let request = RangeRequest {
                range: range.clone(),
                limit: limits::LIST_PAGE_KEYS,
                ..RangeRequest::default()
            };
            // Only a range without a key, or of the future, is refused.
            let Ok(page) = cache.range_records(&request) else {
                break;
            };
            let Some(last) = page.records.last() else {
                break;
            };
            range.key = [last.key(), &[0]].concat().into();
            for record in &page.records {
                each(kind, &record.key()[prefix.len()..], record)?;
            }
        }
    }
    Ok(())
}

fn parsed<T: FromStr>(text: &[u8]) -> Option<T> {
    str::from_utf8(text).ok()?.parse().ok()
}

const fn number(kind: Kind) -> u8 {
    match kind {
        Kind::Nodes => 1,
        Kind::Identities => 2,
        Kind::Ips => 3,
        Kind::Services => 4,
        Kind::ServiceExports => 5,
        Kind::EndpointSlices => 6,
    }
}

/// Sums up what it writes.
struct Checked<W> {
    out: W,
    sum: u32,
}

impl<W: io::Write> Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.out.write_all(bytes)
    }

    fn field(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.write(&len.to_le_bytes())?;
        self.write(bytes)
    }
}

/// What is left to read. The end is never reached in an image that [`Image::write`] made.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(ImageError::Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    fn field(&mut self) -> Result<&'a [u8], ImageError> {
        let len = u32::from_le_bytes(self.array()?);
        let split = usize::try_from(len)
            .ok()
            .and_then(|len| self.0.split_at_checked(len));
        let (field, rest) = split.ok_or(ImageError::Damaged)?;
        self.0 = rest;
        Ok(field)
    }
}
