//! The kernel behind [`Datapath`]: loads the programs, owns the pinned maps and links.
//! Always true: nothing is detached because this process ends; a pin with another layout is
//! refused; a link is replaced in place, never removed first.
//! The only module with `unsafe`, and the only one that knows aya.
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf, lpm_trie,
    },
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{
    abi,
    datapath::{Datapath, Error, Observed},
};
use crate::{
    policy::{PolicyEntry, PolicyKey},
    types::IpPrefix,
};

#[cfg(feature = "testing")]
pub mod test_run;

/// Version of the layouts in `abi`; part of the pin path.
pub const SCHEMA: &str = "v1";

#[cfg(feature = "ebpf")]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/tombolo.bpf.o"
)));
#[cfg(not(feature = "ebpf"))]
const OBJECT: Option<&[u8]> = None;

/// True if the programs are part of this binary.
pub const AVAILABLE: bool = OBJECT.is_some();

// SAFETY: repr(C), no padding (sizes asserted in abi), any bit pattern is valid.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::IpcacheValue {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::Endpoint {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map keys are read and written as bytes")]
unsafe impl aya::Pod for abi::RawPolicyKey {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::RawPolicyValue {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::Config {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::Metrics {}

const PROGRAMS: [(&str, &str, TcAttachType); 2] = [
    // to_container first: a new endpoint must not be reachable before it is guarded.
    ("to_container", "egress", TcAttachType::Egress),
    ("from_container", "ingress", TcAttachType::Ingress),
];

/// Name, map type number (`enum bpf_map_type`), key bytes, value bytes, entries, as `bpf/` has them.
const MAPS: [(&str, u32, u32, u32, u32); 9] = [
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

/// The loaded programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    links: PathBuf,
    ipcache_exact: HashMap<MapData, abi::Address, abi::IpcacheValue>,
    ipcache_lpm: LpmTrie<MapData, abi::Address, abi::IpcacheValue>,
    endpoints: HashMap<MapData, u32, abi::Endpoint>,
    policy: HashMap<MapData, abi::RawPolicyKey, abi::RawPolicyValue>,
    config: Array<MapData, abi::Config>,
}

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

    fn link_path(&self, ifindex: u32, direction: &str) -> PathBuf {
        self.links.join(format!("{ifindex}-{direction}"))
    }

    /// Puts our program onto a pinned link; false if the link's interface is gone, then the pin
    /// is gone too.
    fn take_over(&mut self, path: &Path, program: &'static str) -> Result<bool, Error> {
        let fail = |op, source| Error::Link {
            op,
            link: file_name(path),
            source,
        };
        let Ok(pinned) = PinnedLink::from_pin(path) else {
            return Ok(false);
        };
        let link = SchedClassifierLink::try_from(FdLink::from(pinned))
            .map_err(|error| fail("open", io::Error::other(error)))?;
        let classifier = classifier(&mut self.ebpf, program)?;
        if let Ok(id) = classifier.attach_to_link(link) {
            // Dropping the link closes our descriptor; the pin keeps the link alive.
            drop(
                classifier
                    .take_link(id)
                    .map_err(|error| fail("keep", io::Error::other(error)))?,
            );
            return Ok(true);
        }
        // ENOLINK: the interface was deleted under it.
        fs::remove_file(path).map_err(|source| fail("detach", source))?;
        Ok(false)
    }

    fn attach_one(
        &mut self,
        ifindex: u32,
        name: &str,
        (program, direction, attach_type): (&'static str, &str, TcAttachType),
    ) -> Result<(), Error> {
        let path = self.link_path(ifindex, direction);
        if path.exists() && self.take_over(&path, program)? {
            return Ok(());
        }
        let fail = |op, source| Error::Link {
            op,
            link: file_name(&path),
            source,
        };
        let classifier = classifier(&mut self.ebpf, program)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier
            .attach_with_options(name, attach_type, order)
            .map_err(|error| fail("attach", io::Error::other(error)))?;
        let link: FdLink = classifier
            .take_link(id)
            .map_err(|error| fail("attach", io::Error::other(error)))?
            .try_into()
            .map_err(|error| fail("attach", io::Error::other(error)))?;
        link.pin(&path)
            .map_err(|error| fail("pin", io::Error::other(error)))?;
        Ok(())
    }
}

impl Datapath for Kernel {
    fn observe(&mut self) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for entry in self.ipcache_exact.iter() {
            let (addr, value) = entry.map_err(map_error("ipcache_exact", "read"))?;
            observed
                .ipcache
                .insert(IpPrefix::host(abi::ip(addr)), value);
        }
        for entry in self.ipcache_lpm.iter() {
            let (key, value) = entry.map_err(map_error("ipcache_lpm", "read"))?;
            if let Some(prefix) = abi::prefix(key.prefix_len(), key.data()) {
                observed.ipcache.insert(prefix, value);
            }
        }
        for entry in self.policy.iter() {
            let (key, value) = entry.map_err(map_error("policy", "read"))?;
            observed.policy.insert(key.into(), value.into());
        }
        for entry in self.endpoints.iter() {
            let (ifindex, value) = entry.map_err(map_error("endpoints", "read"))?;
            observed.endpoints.insert(ifindex, value);
        }
        observed.epoch = self
            .config
            .get(&0, 0)
            .map_err(map_error("config", "read"))?
            .epoch;

        let directory = |source| Error::Directory {
            path: self.links.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.links).map_err(directory)? {
            names.push(
                entry
                    .map_err(directory)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        let mut attached = std::collections::HashMap::<u32, usize>::new();
        for name in names {
            let Some((index, direction)) = name.split_once('-') else {
                continue;
            };
            let Ok(ifindex) = index.parse::<u32>() else {
                continue;
            };
            let Some((program, ..)) = PROGRAMS.iter().find(|(_, d, _)| *d == direction) else {
                continue;
            };
            if self.take_over(&self.links.join(&name), program)? {
                *attached.entry(ifindex).or_default() += 1;
            }
        }
        observed.links = attached
            .into_iter()
            .filter(|(_, n)| *n == PROGRAMS.len())
            .map(|(i, _)| i)
            .collect();
        Ok(observed)
    }

    fn set_ipcache(
        &mut self,
        prefix: &IpPrefix,
        value: Option<abi::IpcacheValue>,
    ) -> Result<(), Error> {
        let addr = abi::address(prefix.addr());
        if prefix.is_host() {
            return match value {
                Some(value) => self.ipcache_exact.insert(addr, value, 0),
                None => or_absent(self.ipcache_exact.remove(&addr)),
            }
            .map_err(map_error("ipcache_exact", op(value.is_some())));
        }
        let key = lpm_trie::Key::new(abi::lpm_bits(prefix), addr);
        match value {
            Some(value) => self.ipcache_lpm.insert(&key, value, 0),
            None => or_absent(self.ipcache_lpm.remove(&key)),
        }
        .map_err(map_error("ipcache_lpm", op(value.is_some())))
    }

    fn set_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) -> Result<(), Error> {
        let key = abi::RawPolicyKey::from(key);
        match value {
            Some(value) => self.policy.insert(key, abi::RawPolicyValue::from(value), 0),
            None => or_absent(self.policy.remove(&key)),
        }
        .map_err(map_error("policy", op(value.is_some())))
    }

    fn set_endpoint(&mut self, ifindex: u32, value: Option<abi::Endpoint>) -> Result<(), Error> {
        match value {
            Some(value) => self.endpoints.insert(ifindex, value, 0),
            None => or_absent(self.endpoints.remove(&ifindex)),
        }
        .map_err(map_error("endpoints", op(value.is_some())))
    }

    fn set_epoch(&mut self, epoch: u32) -> Result<(), Error> {
        self.config
            .set(0, abi::Config { epoch, pad: 0 }, 0)
            .map_err(map_error("config", "write"))
    }

    #[expect(unsafe_code, reason = "the libc call takes a C string")]
    fn ifindex(&self, name: &str) -> Option<u32> {
        let name = CString::new(name).ok()?;
        // SAFETY: `name` is a valid C string for the length of the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        (index != 0).then_some(index)
    }

    #[expect(unsafe_code, reason = "the libc call fills a buffer")]
    fn exists(&self, ifindex: u32) -> bool {
        let mut name = [0; libc::IF_NAMESIZE];
        // SAFETY: the buffer has the IF_NAMESIZE bytes that the call asks for.
        !unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null()
    }

    fn attach(&mut self, ifindex: u32, name: &str) -> Result<(), Error> {
        PROGRAMS
            .into_iter()
            .try_for_each(|program| self.attach_one(ifindex, name, program))
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        for (_, direction, _) in PROGRAMS {
            // Without its pin nothing holds the link, and the kernel detaches it.
            match fs::remove_file(self.link_path(ifindex, direction)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let link = format!("{ifindex}-{direction}");
                    return Err(Error::Link {
                        op: "detach",
                        link,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The ring buffer of drop events; ready for reading when its descriptor is.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Registers the ring with the runtime of the calling task.
    ///
    /// # Errors
    /// If the runtime cannot watch the descriptor.
    #[expect(unsafe_code, reason = "aya's ring has no AsFd that outlives a move")]
    pub fn register(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the ring owns its descriptor and is moved into the result: it stays open and
        // the same for as long as it is registered.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
    }

    /// Hands out what is in the ring, oldest first.
    pub fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        while let Some(item) = self.ring.next() {
            each(&item);
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// The packet counters; reading them costs one system call per row.
pub struct Counters {
    metrics: PerCpuArray<MapData, abi::Metrics>,
}

impl Counters {
    /// All rows, summed over the CPUs, ingress before egress for each reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn rows(&self) -> Result<Vec<abi::Metrics>, Error> {
        (0..self.metrics.len())
            .map(|row| {
                let values = self
                    .metrics
                    .get(&row, 0)
                    .map_err(map_error("metrics", "read"))?;
                let zero = abi::Metrics {
                    packets: 0,
                    bytes: 0,
                };
                Ok(values.iter().fold(zero, |sum, value| abi::Metrics {
                    packets: sum.packets + value.packets,
                    bytes: sum.bytes + value.bytes,
                }))
            })
            .collect()
    }
}

/// Unix time of the boot in nanoseconds, as the clocks stand now.
#[must_use]
pub fn boot_unix_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME).saturating_sub(clock_ns(libc::CLOCK_BOOTTIME))
}

#[expect(unsafe_code, reason = "the boot clock has no safe face in std")]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; both clocks exist since Linux 2.6.39.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return 0;
    }
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque_debug!(Kernel, Events, Counters);

fn classifier<'a>(
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

fn check_pin(
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

fn or_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn map_error(map: &'static str, op: &'static str) -> impl FnOnce(MapError) -> Error {
    move |error| Error::Map {
        map,
        op,
        source: match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        },
    }
}

const fn op(write: bool) -> &'static str {
    if write { "write" } else { "delete" }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
