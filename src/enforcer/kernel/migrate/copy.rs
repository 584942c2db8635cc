//! Rows from an old map into a new one.
use std::time::Duration;

use super::super::{Error, batch::RawMap, clock_ns};

/// Key and value as the new map has them; `None` if the row has no place there.
pub(super) type Convert = fn(&[u8], &[u8]) -> Option<(Vec<u8>, Vec<u8>)>;

/// Where flows carry the time at which they were last seen, in all versions.
const SEEN_BYTES: usize = size_of::<u64>();
/// Flows that old programs judged while the first copy was made count as late too.
const LATE_MARGIN: Duration = Duration::from_secs(120);

/// A map and its successor.
pub(super) struct Pair {
    pub(super) old: RawMap,
    pub(super) new: RawMap,
    pub(super) convert: Convert,
}

/// For maps that only change their size.
pub(super) fn unchanged(key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    Some((key.to_vec(), value.to_vec()))
}

/// The kernel's clock, as programs read it.
pub(super) fn now() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Copies everything. Flows may be left out, the longest silent first, where there are too many.
///
/// # Errors
/// [`Error::Shrink`] if rows that we wrote don't fit, naming `flag`.
pub(super) fn all(pair: &Pair, flag: &'static str) -> Result<(), Error> {
    let Pair { old, new, convert } = pair;
    let mut rows = Vec::new();
    old.read(|some| {
        rows.extend(some.iter().filter_map(|(key, value)| convert(key, value)));
        Ok(true)
    })?;
    let room = usize::try_from(new.entries).unwrap_or(usize::MAX);
    if new.is_lru() {
        // Written last, so that they stay.
        rows.sort_unstable_by_key(|(_, value)| seen(value));
        rows.drain(..rows.len().saturating_sub(room));
    } else if rows.len() > room {
        return Err(Error::Shrink {
            map: new.name,
            entries: rows.len(),
            max: new.entries,
            flag,
        });
    }
    for some in rows.chunks(4096) {
        let mut keys = Vec::with_capacity(some.len() * new.key);
        let mut values = Vec::with_capacity(some.len() * new.value);
        for (key, value) in some {
            keys.extend(key);
            values.extend(value);
        }
        new.write(&mut keys, &mut values)?;
    }
    Ok(())
}

/// Copies the flows that were seen shortly before `since` or later and that the new map does not
/// know.
pub(super) fn late(pair: &Pair, since: u64) -> Result<(), Error> {
    let Pair { old, new, convert } = pair;
    let margin = u64::try_from(LATE_MARGIN.as_nanos()).unwrap_or(u64::MAX);
    let since = since.saturating_sub(margin);
    old.read(|some| {
        for (key, value) in some.iter() {
            if seen(value) < since {
                continue;
            }
            if let Some((mut key, mut value)) = convert(key, value) {
                new.write_absent(&mut key, &mut value)?;
            }
        }
        Ok(true)
    })?;
    Ok(())
}

fn seen(value: &[u8]) -> u64 {
    let bytes = value.first_chunk::<SEEN_BYTES>();
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
