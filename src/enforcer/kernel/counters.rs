//! What the programs count: packets by endpoint, reason and direction, verdicts by rule; and how
//! full the maps are.
use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};

use super::{Error, MapUse, abi, batch::RawMap, map_error, usage::Usage};
use crate::types::EndpointId;

/// The counters' maps; reading costs a system call per endpoint or rule.
pub struct Counters {
    rows: PerCpuArray<MapData, abi::CounterRow>,
    endpoints: HashMap<MapData, u32, abi::Endpoint>,
    rules: PerCpuHashMap<MapData, u32, u64>,
    usage: Usage,
}

impl Counters {
    pub(super) const fn new(
        rows: PerCpuArray<MapData, abi::CounterRow>,
        endpoints: HashMap<MapData, u32, abi::Endpoint>,
        rules: PerCpuHashMap<MapData, u32, u64>,
        maps: Vec<RawMap>,
    ) -> Self {
        Self {
            rows,
            endpoints,
            rules,
            usage: Usage::new(maps),
        }
    }

    /// How full the maps are, as of the last seconds.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn usage(&self) -> Result<Vec<MapUse>, Error> {
        self.usage.read()
    }

    /// Hands out the rows of a map, key and value, until `each` returns false; nothing of a map that
    /// is not counted.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn read_map(
        &self,
        name: &str,
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Error> {
        let Some(map) = self.usage.map(name) else {
            return Ok(());
        };
        let read = map.read(|rows| Ok(rows.iter().all(|(key, value)| each(key, value))));
        read.map(drop)
    }

    /// Summed over the CPUs: of each endpoint, and with `None` of interfaces without one and of
    /// endpoints that are gone.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn rows(&self) -> Result<Vec<(Option<EndpointId>, abi::CounterRow)>, Error> {
        let mut slots = vec![(None, abi::SLOT_UNKNOWN), (None, abi::SLOT_GONE)];
        for endpoint in self.endpoints.iter() {
            let (_, endpoint) = endpoint.map_err(map_error("endpoints", "read"))?;
            slots.push((Some(EndpointId(endpoint.endpoint)), endpoint.slot));
        }
        slots
            .into_iter()
            .map(|(endpoint, slot)| Ok((endpoint, sum(&self.read(slot)?))))
            .collect()
    }

    fn read(&self, slot: u32) -> Result<PerCpuValues<abi::CounterRow>, Error> {
        let row = self.rows.get(&slot, 0);
        row.map_err(map_error("counters", "read"))
    }

    /// How often each rule decided, by its number; rules that never did are left out.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn rule_hits(&self) -> Result<Vec<(u32, u64)>, Error> {
        let rules = self.rules.iter().map(|entry| {
            let (rule, hits) = entry.map_err(map_error("rule_hits", "read"))?;
            Ok((rule, hits.iter().sum()))
        });
        rules.collect()
    }
}

fn sum(row: &PerCpuValues<abi::CounterRow>) -> abi::CounterRow {
    let mut sum = abi::CounterRow::default();
    row.iter().for_each(|cpu| sum.add(cpu));
    sum
}

/// Adds a slot's counts to those of what is gone and sets them to zero.
pub(super) fn retire(
    rows: &mut PerCpuArray<MapData, abi::CounterRow>,
    slot: u32,
) -> Result<(), Error> {
    let read = |rows: &PerCpuArray<_, _>, slot| {
        let row: Result<PerCpuValues<abi::CounterRow>, _> = rows.get(&slot, 0);
        row.map_err(map_error("counters", "read"))
    };
    let old = read(rows, slot)?;
    if sum(&old) == abi::CounterRow::default() {
        return Ok(());
    }
    let mut gone = read(rows, abi::SLOT_GONE)?.to_vec();
    for (sum, old) in gone.iter_mut().zip(old.iter()) {
        sum.add(old);
    }
    let zero = vec![abi::CounterRow::default(); old.len()];
    for (slot, values) in [(abi::SLOT_GONE, gone), (slot, zero)] {
        let values = PerCpuValues::try_from(values).map_err(|source| Error::Map {
            map: "counters",
            op: "write",
            source,
        })?;
        rows.set(slot, values, 0)
            .map_err(map_error("counters", "write"))?;
    }
    Ok(())
}
