//! From old maps to new ones, of another size or of the version before, while packets flow.
//!
//! Steps: the new maps are made in `filling/` and take over what the old ones hold; `filling/` is
//! renamed to `ready/`; every link is put onto the new programs; flows that came meanwhile are
//! brought over; the new pins take the old ones' places; the former version's directory goes.
//! Always true: after any step a start can go on: before `ready/` from the beginning, after it from
//! the links on. Nothing is detached in any of them.
use std::{fs, path::PathBuf};

use aya::Ebpf;

use self::former::Origin;
use super::{
    Error,
    batch::RawMap,
    links::{self, Links},
    pins::{Found, Pins, Schema, remove_tree},
};

mod copy;
#[cfg(feature = "testing")]
pub mod faults;
mod former;

/// Maps that the programs fill while we copy.
const FLOWS: [&str; 2] = ["conntrack_v4", "conntrack_v6"];

/// What has to be moved.
pub(super) struct Migration {
    pins: Pins,
    source: Source,
    /// Maps to make anew.
    schemas: Vec<Schema>,
}

/// Where the old maps are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// In the version's own directory; they have another size.
    Resized,
    /// In that of the version before.
    Former,
}

impl Migration {
    /// Compares all pins with what is wanted; `None` if nothing has to be moved.
    pub(super) fn plan(pins: &Pins, schemas: &[Schema]) -> Result<Option<Self>, Error> {
        if !pins.any(schemas) {
            let former = pins.former();
            let there = schemas.iter().any(|s| former.join(s.name).exists());
            return Ok(there.then(|| Self {
                pins: pins.clone(),
                source: Source::Former,
                schemas: schemas.to_vec(),
            }));
        }
        let mut resized = Vec::new();
        for schema in schemas {
            if schema.compare(&pins.map(schema.name))? == Found::Resized {
                resized.push(*schema);
            }
        }
        Ok((!resized.is_empty()).then(|| Self {
            pins: pins.clone(),
            source: Source::Resized,
            schemas: resized,
        }))
    }

    /// Makes the directory. Maps that need no conversion are not copied: their pins are linked.
    pub(super) fn begin(&self) -> Result<(), Error> {
        let filling = self.pins.filling();
        let fail = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Directory { path, source }
        };
        fs::create_dir(&filling).map_err(fail(&filling))?;
        checkpoint()?;
        for schema in &self.schemas {
            if let Some(old) = self.shared(schema) {
                let new = filling.join(schema.name);
                fs::hard_link(&old, &new).map_err(fail(&new))?;
            }
        }
        checkpoint()
    }

    /// Where the programs find or make a map while they are loaded.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        match self.schemas.iter().any(|schema| schema.name == name) {
            true => self.pins.filling().join(name),
            false => self.pins.map(name),
        }
    }

    /// Fills the maps that were made, and makes them the ones that count.
    pub(super) fn fill(&self) -> Result<(), Error> {
        checkpoint()?;
        for schema in &self.schemas {
            if let Some(pair) = self.pair(schema)? {
                copy::all(&pair, schema.flag)?;
                checkpoint()?;
            }
        }
        let (filling, ready) = (self.pins.filling(), self.pins.ready());
        fs::rename(&filling, &ready).map_err(|source| Error::Directory {
            path: ready,
            source,
        })?;
        checkpoint()
    }

    /// The former map's pin, if it can go on as it is.
    fn shared(&self, schema: &Schema) -> Option<PathBuf> {
        let old = self.pins.former().join(schema.name);
        let former = self.source == Source::Former;
        let same = |old: &PathBuf| schema.compare(old).is_ok_and(|found| found == Found::Same);
        (former && matches!(former::origin(schema.name), Origin::Shared))
            .then_some(old)
            .filter(same)
    }

    fn pair(&self, schema: &Schema) -> Result<Option<copy::Pair>, Error> {
        if self.shared(schema).is_some() {
            return Ok(None);
        }
        let (old, convert) = match self.source {
            Source::Resized => (self.pins.map(schema.name), copy::unchanged as copy::Convert),
            Source::Former => match former::origin(schema.name) {
                Origin::Rows(name, convert) => (self.pins.former().join(name), convert),
                // Of another size, but with the same rows.
                Origin::Shared => (self.pins.former().join(schema.name), copy::unchanged as _),
                Origin::Nothing => return Ok(None),
            },
        };
        let old = RawMap::open(&old, schema.name)?;
        let new = RawMap::open(&self.pins.filling().join(schema.name), schema.name)?;
        // Rings and counters are not copied.
        let copied = |(old, _): &(RawMap, RawMap)| old.copies();
        Ok(old
            .zip(new)
            .filter(copied)
            .map(|(old, new)| copy::Pair { old, new, convert }))
    }
}

/// From `ready/` on: links, late flows, pins. `ebpf` is loaded onto the maps that count.
pub(super) fn finish(pins: &Pins, links: &Links, ebpf: &mut Ebpf) -> Result<(), Error> {
    let late = copy::now();
    adopt_former_links(pins, links, ebpf)?;
    links.take_over_all(ebpf)?;
    checkpoint()?;
    for name in FLOWS {
        if let Some(flows) = late_flows(pins, name)? {
            copy::late(&flows, late)?;
        }
    }
    checkpoint()?;
    promote(pins)
}

/// The former version's links come to ours; where we have one already, theirs ends.
fn adopt_former_links(pins: &Pins, links: &Links, ebpf: &mut Ebpf) -> Result<(), Error> {
    let former = pins.former().join("links");
    if !former.exists() {
        return Ok(());
    }
    for (_, program, name) in links::recorded(&former)? {
        let (old, new) = (former.join(&name), links.pin(&name));
        if !links::take_over_link(ebpf, &old, program)? {
            continue;
        }
        checkpoint()?;
        let moved = match new.exists() {
            true => fs::remove_file(&old),
            false => fs::rename(&old, &new),
        };
        moved.map_err(|source| Error::Directory { path: old, source })?;
        checkpoint()?;
    }
    Ok(())
}

/// Old and new flows, as long as both are there.
fn late_flows(pins: &Pins, name: &'static str) -> Result<Option<copy::Pair>, Error> {
    let Some(new) = RawMap::open(&pins.ready().join(name), name)? else {
        return Ok(None);
    };
    if let Some(old) = RawMap::open(&pins.base.join(name), name)? {
        return Ok(Some(copy::Pair {
            old,
            new,
            convert: copy::unchanged,
        }));
    }
    let Origin::Rows(old, convert) = former::origin(name) else {
        return Ok(None);
    };
    let old = RawMap::open(&pins.former().join(old), name)?;
    Ok(old.map(|old| copy::Pair { old, new, convert }))
}

/// The new pins take the old ones' places, which lets go of the old maps.
fn promote(pins: &Pins) -> Result<(), Error> {
    let ready = pins.ready();
    let fail = |source| Error::Directory {
        path: ready.clone(),
        source,
    };
    for entry in fs::read_dir(&ready).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        fs::rename(entry.path(), pins.base.join(entry.file_name())).map_err(fail)?;
        checkpoint()?;
    }
    fs::remove_dir(&ready).map_err(fail)?;
    checkpoint()
}

/// What is left of the former version, once its maps were moved or ours were there before.
pub(super) fn remove_former(pins: &Pins, links: &Links, ebpf: &mut Ebpf) -> Result<(), Error> {
    let former = pins.former();
    if !former.exists() {
        return Ok(());
    }
    adopt_former_links(pins, links, ebpf)?;
    // The links first: a map without them is only memory.
    remove_tree(&former.join("links"))?;
    checkpoint()?;
    remove_tree(&former)?;
    tracing::info!(path = %former.display(), "Maps and links of the former version were moved");
    Ok(())
}

/// A place where tests end the process.
fn checkpoint() -> Result<(), Error> {
    #[cfg(feature = "testing")]
    faults::pass()?;
    Ok(())
}
