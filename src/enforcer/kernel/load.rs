//! Loads the programs onto their maps, whatever state those were left in.
use std::{io, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{SchedClassifier, TcAttachType},
};

use super::{
    Counters, Error, Events, Kernel, Links, Mode,
    batch::RawMap,
    links::PROGRAMS,
    map_error,
    migrate::{self, Migration},
    pins::{Pins, Schema, schemas},
};
use crate::{config::AttachMode, enforcer::Options};

#[cfg(feature = "ebpf")]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/tombolo.bpf.o"
)));
#[cfg(not(feature = "ebpf"))]
const OBJECT: Option<&[u8]> = None;

/// True if the programs are part of this binary.
pub const AVAILABLE: bool = OBJECT.is_some();

impl Kernel {
    /// Loads and verifies the programs with the maps pinned below the bpf root, a mounted bpffs;
    /// makes what is missing, and moves what has another size or was made by the version before,
    /// with the links that use it. Attaches nothing that was not attached before.
    ///
    /// # Errors
    /// [`Error::Schema`] if a pin has another layout, [`Error::Shrink`] if a map holds more than its
    /// new size, else which step failed. What was enforced is enforced still.
    pub fn open(options: &Options) -> Result<(Self, Events, Counters), Error> {
        let pins = Pins::new(&options.bpf_root);
        let schemas = schemas(&options.sizes);
        pins.prepare()?;
        let links = Links::open(&pins.base, mode(options.attach_mode)?)?;
        if pins.ready().exists() {
            let mut ebpf = load(&schemas, |name| pins.map(name))?;
            migrate::finish(&pins, &links, &mut ebpf)?;
        }
        let migration = Migration::plan(&pins, &schemas)?;
        let mut ebpf = match &migration {
            None => load(&schemas, |name| pins.map(name))?,
            Some(migration) => {
                migration.begin()?;
                let ebpf = load(&schemas, |name| migration.map(name))?;
                migration.fill()?;
                ebpf
            }
        };
        if migration.is_some() {
            migrate::finish(&pins, &links, &mut ebpf)?;
        }
        migrate::remove_former(&pins, &links, &mut ebpf)?;
        Self::assemble(ebpf, links, &pins, &schemas)
    }

    fn assemble(
        mut ebpf: Ebpf,
        links: Links,
        pins: &Pins,
        schemas: &[Schema],
    ) -> Result<(Self, Events, Counters), Error> {
        let events: RingBuf<MapData> = take(&mut ebpf, "events")?;
        let mut maps = Vec::new();
        for schema in schemas {
            let map = RawMap::open(&pins.map(schema.name), schema.name)?;
            maps.extend(map.filter(RawMap::counts));
        }
        let counters = Counters::new(
            reopen(pins, "counters")?,
            reopen(pins, "endpoints")?,
            take(&mut ebpf, "rule_hits")?,
            maps,
        );
        let kernel = Self {
            cidr: take(&mut ebpf, "cidr")?,
            counters: take(&mut ebpf, "counters")?,
            port_roles: take(&mut ebpf, "port_roles")?,
            ipcache_exact: take(&mut ebpf, "ipcache_exact")?,
            ipcache_lpm: take(&mut ebpf, "ipcache_lpm")?,
            endpoints: take(&mut ebpf, "endpoints")?,
            policy: take(&mut ebpf, "policy")?,
            config: take(&mut ebpf, "config")?,
            links,
            ebpf,
        };
        Ok((kernel, Events { ring: events }, counters))
    }
}

/// What `auto` means here: TCX if the kernel knows it.
fn mode(asked: AttachMode) -> Result<Mode, Error> {
    match asked {
        AttachMode::Tcx if !has_tcx() => Err(Error::NoTcx),
        AttachMode::Tcx => Ok(Mode::Tcx),
        AttachMode::Clsact => Ok(Mode::Clsact),
        AttachMode::Auto if has_tcx() => Ok(Mode::Tcx),
        AttachMode::Auto => Ok(Mode::Clsact),
    }
}

/// Asks which programs hang on an interface that always exists: the kernels before 6.6 don't know
/// the question.
pub(super) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Loads the programs with each map at the pin that `place` says, made there if there is none.
fn load(schemas: &[Schema], place: impl Fn(&str) -> PathBuf) -> Result<Ebpf, Error> {
    let object = OBJECT.ok_or(Error::NotBuilt)?;
    let mut loader = EbpfLoader::new();
    for schema in schemas {
        loader
            .map_pin_path(schema.name, place(schema.name))
            .map_max_entries(schema.name, schema.entries);
    }
    let mut ebpf = loader.load(object).map_err(|error| Error::Load {
        source: io::Error::other(error),
    })?;
    for program in &PROGRAMS {
        classifier(&mut ebpf, program.name)?
            .load()
            .map_err(|error| Error::Program {
                program: program.name,
                source: io::Error::other(error),
            })?;
    }
    Ok(ebpf)
}

/// One of the object's programs.
pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    ebpf.program_mut(program)
        .ok_or_else(|| Error::Program {
            program,
            source: io::ErrorKind::NotFound.into(),
        })?
        .try_into()
        .map_err(|error| Error::Program {
            program,
            source: io::Error::other::<aya::programs::ProgramError>(error),
        })
}

/// A second handle of a map.
fn reopen<T: TryFrom<Map, Error = MapError>>(pins: &Pins, map: &'static str) -> Result<T, Error> {
    let data = MapData::from_pin(pins.map(map)).map_err(map_error(map, "open"))?;
    Map::from_map_data(data)
        .and_then(T::try_from)
        .map_err(map_error(map, "open"))
}

/// One of the object's maps.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<T, Error> {
    ebpf.take_map(map)
        .ok_or_else(|| Error::Map {
            map,
            op: "open",
            source: io::ErrorKind::NotFound.into(),
        })?
        .try_into()
        .map_err(map_error(map, "open"))
}
