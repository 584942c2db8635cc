//! The maps' pins below the bpf filesystem: where they are, and what they must be to be reused.
use std::path::Path;

use aya::maps::MapInfo;

use super::{Error, map_error};
use crate::enforcer::abi;

/// Version of the layouts in `abi`; part of the pin path.
pub const SCHEMA: &str = "v1";

/// Name, map type number (`enum bpf_map_type`), key bytes, value bytes, entries, as `bpf/` has them.
pub(super) const MAPS: [(&str, u32, u32, u32, u32); 9] = [
    ("ipcache_exact", 1, 16, 8, 1_048_576),
    ("ipcache_lpm", 11, 20, 8, 65_536),
    ("endpoints", 1, 4, 80, 4_096),
    ("policy", 1, 12, 8, 1_048_576),
    (
        "conntrack",
        9,
        abi::CONNTRACK_KEY_BYTES,
        abi::CONNTRACK_VALUE_BYTES,
        262_144,
    ),
    ("config", 2, 4, 8, 1),
    ("events", 27, 0, 0, 1 << 20),
    ("metrics", 6, 4, 16, 32),
    ("ratelimit", 9, 16, abi::RATE_VALUE_BYTES, 16_384),
];

/// Refuses a pin that is not the map which the programs expect; no pin is fine.
pub(super) fn check_pin(
    pins: &Path,
    (map, kind, key, value, entries): (&'static str, u32, u32, u32, u32),
) -> Result<(), Error> {
    let path = pins.join(map);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path).map_err(map_error(map, "open"))?;
    let found_kind = info.map_type().map_or(0, |kind| kind as u32);
    for (what, found, expected) in [
        ("type", found_kind, kind),
        ("key size", info.key_size(), key),
        ("value size", info.value_size(), value),
        ("number of entries", info.max_entries(), entries),
    ] {
        if found != expected {
            let (found, expected) = (found.to_string(), expected.to_string());
            return Err(Error::Schema {
                map,
                what,
                found,
                expected,
            });
        }
    }
    Ok(())
}
