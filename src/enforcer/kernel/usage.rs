//! How full the maps are.
use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{Error, batch::RawMap};
use crate::limits::MAP_COUNT_INTERVAL;

/// Rows of a map, and room for them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MapUse {
    /// As in `bpf/`.
    pub name: String,
    /// About how many rows there are: half a percent off for large ones.
    pub entries: u32,
    /// Most that fit.
    pub capacity: u32,
}

/// Counts rows, seldom: who asks again soon gets the former answer.
pub(super) struct Usage {
    maps: Vec<RawMap>,
    newest: Mutex<Option<(Instant, Vec<MapUse>)>>,
}

impl Usage {
    pub(super) const fn new(maps: Vec<RawMap>) -> Self {
        Self {
            maps,
            newest: Mutex::new(None),
        }
    }

    pub(super) fn map(&self, name: &str) -> Option<&RawMap> {
        self.maps.iter().find(|map| map.name == name)
    }

    /// Of all maps that have rows, some milliseconds for each large one.
    pub(super) fn read(&self) -> Result<Vec<MapUse>, Error> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, known)) = &*newest
            && when.elapsed() < MAP_COUNT_INTERVAL
        {
            return Ok(known.clone());
        }
        let read = self.maps.iter().map(|map| {
            Ok(MapUse {
                name: map.name.to_owned(),
                entries: map.count()?,
                capacity: map.entries,
            })
        });
        let read = read.collect::<Result<Vec<_>, Error>>()?;
        *newest = Some((Instant::now(), read.clone()));
        Ok(read)
    }
}
