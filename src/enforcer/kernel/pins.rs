//! The maps' pins below the bpf filesystem: where they are, and what they must be to be reused.
//!
//! `<bpf root>/tombolo/v<schema>/` holds the maps in use. Maps that are to replace them are made in
//! `filling/` there, which counts for nothing; once they hold everything it is renamed to `ready/`,
//! and from then on they are the ones that count. So a process that ends anywhere in between leaves
//! either the old maps or the new ones; `migrate` has the steps.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, batch::RawMap};
use crate::{config::MapSizes, enforcer::abi};

/// Version of the layouts in `abi`; part of the pin path.
pub const SCHEMA: &str = "v2";
/// The version before, which is migrated.
const FORMER_SCHEMA: &str = "v1";

/// Name, map type number (`enum bpf_map_type`), key bytes, value bytes, entries, as `bpf/` has them.
const MAPS: [(&str, u32, u32, u32, u32); 14] = [
    ("ipcache_exact", 1, 16, 8, 1_048_576),
    ("ipcache_lpm", 11, 20, 8, 65_536),
    ("cidr", 11, 20, 8, 65_536),
    ("endpoints", 1, 4, 104, 4_096),
    ("policy", 1, 12, 8, 1_048_576),
    ("conntrack_v4", 9, 20, 24, 262_144),
    ("conntrack_v6", 9, 44, 24, 131_072),
    ("port_roles", 1, 8, abi::ROLES_VALUE_BYTES, 65_536),
    (
        "fragments",
        9,
        abi::FRAGMENT_KEY_BYTES,
        abi::FRAGMENT_VALUE_BYTES,
        8_192,
    ),
    ("config", 2, 4, 8, 1),
    ("events", 27, 0, 0, 1 << 20),
    ("counters", 6, 4, 512, 4_098),
    ("rule_hits", 5, 4, 8, 65_536),
    ("ratelimit", 9, 16, abi::RATE_VALUE_BYTES, 16_384),
];

/// What a map must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema {
    pub(super) name: &'static str,
    kind: u32,
    key: u32,
    value: u32,
    pub(super) entries: u32,
    /// The flag that sizes it.
    pub(super) flag: &'static str,
}

/// All maps of the programs, at these sizes.
pub(super) fn schemas(sizes: &MapSizes) -> Vec<Schema> {
    let sized = |name: &str| match name {
        "conntrack_v4" | "conntrack_v6" => Some((sizes.conntrack, "--bpf-ct-max")),
        "policy" => Some((sizes.policy, "--bpf-policy-map-max")),
        "ipcache_exact" => Some((sizes.ipcache, "--bpf-ipcache-max")),
        "fragments" => Some((sizes.fragments, "--bpf-fragments-max")),
        _ => None,
    };
    MAPS.iter()
        .map(|&(name, kind, key, value, entries)| {
            let (entries, flag) = sized(name).unwrap_or((entries, ""));
            Schema {
                name,
                kind,
                key,
                value,
                entries,
                flag,
            }
        })
        .collect()
}

/// How a pin compares with what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// No pin.
    Absent,
    /// The same in all.
    Same,
    /// Another number of entries, else the same.
    Resized,
}

impl Schema {
    /// Compares with the pin at `path`.
    ///
    /// # Errors
    /// [`Error::Schema`] if type, key or value differ: such a pin is not of this version.
    pub(super) fn compare(&self, path: &Path) -> Result<Found, Error> {
        let Some(map) = RawMap::open(path, self.name)? else {
            return Ok(Found::Absent);
        };
        for (what, found, expected) in [
            ("type", u64::from(map.kind), self.kind),
            ("key size", map.key as u64, self.key),
            ("value size", map.value as u64, self.value),
        ] {
            if found != u64::from(expected) {
                return Err(Error::Schema {
                    map: self.name,
                    what,
                    found,
                    expected,
                });
            }
        }
        Ok(match map.entries == self.entries {
            true => Found::Same,
            false => Found::Resized,
        })
    }
}

/// The directories.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    /// `<bpf root>/tombolo`.
    pub(super) root: PathBuf,
    /// Maps in use, and the directories of `links`.
    pub(super) base: PathBuf,
}

impl Pins {
    pub(super) fn new(bpf_root: &Path) -> Self {
        let root = bpf_root.join("tombolo");
        Self {
            base: root.join(SCHEMA),
            root,
        }
    }

    /// Makes the directory, and removes maps that were never ready.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.base).map_err(|source| Error::Directory {
            path: self.base.clone(),
            source,
        })?;
        remove_tree(&self.filling())
    }

    pub(super) fn filling(&self) -> PathBuf {
        self.base.join("filling")
    }

    pub(super) fn ready(&self) -> PathBuf {
        self.base.join("ready")
    }

    /// Where the version before had its maps.
    pub(super) fn former(&self) -> PathBuf {
        self.root.join(FORMER_SCHEMA)
    }

    /// Where a map that counts is, or would be made.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        let ready = self.ready().join(name);
        match ready.exists() {
            true => ready,
            false => self.base.join(name),
        }
    }

    /// True if there are maps of this version.
    pub(super) fn any(&self, schemas: &[Schema]) -> bool {
        schemas.iter().any(|schema| self.map(schema.name).exists())
    }
}

/// Removes a directory with everything below it; none is fine. Pins that are removed so let go of
/// maps and links.
pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Directory {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
