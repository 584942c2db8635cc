//! Loads the programs onto their maps.
use std::{fs, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{SchedClassifier, TcAttachType},
};

use super::{
    Counters, Error, Events, Kernel, map_error,
    pins::{MAPS, SCHEMA, check_pin},
};

#[cfg(feature = "ebpf")]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/tombolo.bpf.o"
)));
#[cfg(not(feature = "ebpf"))]
const OBJECT: Option<&[u8]> = None;

/// True if the programs are part of this binary.
pub const AVAILABLE: bool = OBJECT.is_some();

/// Program, name of its direction in pins, hook.
pub(super) const PROGRAMS: [(&str, &str, TcAttachType); 2] = [
    // to_container first: a new endpoint must not be reachable before it is guarded.
    ("to_container", "egress", TcAttachType::Egress),
    ("from_container", "ingress", TcAttachType::Ingress),
];

impl Kernel {
    /// Loads and verifies the programs with the maps pinned below `bpf_root`, a mounted bpffs;
    /// makes what is missing. Attaches nothing yet.
    ///
    /// # Errors
    /// [`Error::Schema`] if a pin has another layout, else which step failed.
    pub fn open(bpf_root: &Path) -> Result<(Self, Events, Counters), Error> {
        let object = OBJECT.ok_or(Error::NotBuilt)?;
        let pins = bpf_root.join("tombolo").join(SCHEMA);
        let links = pins.join("links");
        fs::create_dir_all(&links).map_err(|source| Error::Directory {
            path: links.clone(),
            source,
        })?;
        for expected in &MAPS {
            check_pin(&pins, *expected)?;
        }
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .load(object)
            .map_err(|error| Error::Load {
                source: io::Error::other(error),
            })?;
        for (program, _, _) in PROGRAMS {
            classifier(&mut ebpf, program)?
                .load()
                .map_err(|error| Error::Program {
                    program,
                    source: io::Error::other(error),
                })?;
        }
        let events: RingBuf<MapData> = take(&mut ebpf, "events")?;
        let counters = Counters {
            metrics: take(&mut ebpf, "metrics")?,
        };
        let kernel = Self {
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

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, map: &'static str) -> Result<T, Error> {
    ebpf.take_map(map)
        .ok_or_else(|| Error::Map {
            map,
            op: "open",
            source: io::ErrorKind::NotFound.into(),
        })?
        .try_into()
        .map_err(map_error(map, "open"))
}
