//! The kernel behind [`Datapath`]: loads the programs, owns the pinned maps and links.
//! Always true: nothing is detached because this process ends; a pin with another layout is
//! refused; a link is replaced in place, never removed first.
//! The only module with `unsafe`, and the only one that knows aya.
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, RawFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, RingBuf, lpm_trie},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    abi,
    datapath::{Datapath, Error, Observed},
};
use crate::{
    policy::{PolicyEntry, PolicyKey},
    types::{EndpointId, IdentityId, IpPrefix},
};

#[cfg(feature = "testing")]
pub mod test_run;

mod batch;
mod cleanup;
mod counters;
mod links;
mod load;
pub mod migrate;
mod pins;
mod tc;
mod usage;

use self::links::Links;
pub use self::{
    cleanup::{Cleanup, cleanup},
    counters::Counters,
    links::Mode,
    load::AVAILABLE,
    pins::SCHEMA,
    usage::MapUse,
};

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
unsafe impl aya::Pod for abi::CidrValue {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map values are read and written as bytes")]
unsafe impl aya::Pod for abi::CounterRow {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "map keys are read and written as bytes")]
unsafe impl aya::Pod for abi::RolesKey {}

/// The loaded programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    links: Links,
    ipcache_exact: HashMap<MapData, abi::Address, abi::IpcacheValue>,
    ipcache_lpm: LpmTrie<MapData, abi::Address, abi::IpcacheValue>,
    endpoints: HashMap<MapData, u32, abi::Endpoint>,
    policy: HashMap<MapData, abi::RawPolicyKey, abi::RawPolicyValue>,
    cidr: LpmTrie<MapData, abi::Address, abi::CidrValue>,
    config: Array<MapData, abi::Config>,
    counters: PerCpuArray<MapData, abi::CounterRow>,
    port_roles: HashMap<MapData, abi::RolesKey, [u8; abi::ROLES_VALUE_BYTES as usize]>,
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
        let mut unmarked = Vec::new();
        for entry in self.ipcache_lpm.iter() {
            let (key, value) = entry.map_err(map_error("ipcache_lpm", "read"))?;
            if let Some(prefix) = abi::prefix(key.prefix_len(), key.data()) {
                let bare = abi::IpcacheValue { flags: 0, ..value };
                if value.flags != abi::prefix_flags(&prefix) {
                    unmarked.push((prefix, bare));
                }
                observed.ipcache.insert(prefix, bare);
            }
        }
        // Of the former version, which told no family from the other; before a program reads them.
        for (prefix, value) in unmarked {
            self.set_ipcache(&prefix, Some(value))?;
        }
        for entry in self.policy.iter() {
            let (key, value) = entry.map_err(map_error("policy", "read"))?;
            observed.policy.insert(key.into(), value.into());
        }
        for entry in self.endpoints.iter() {
            let (ifindex, value) = entry.map_err(map_error("endpoints", "read"))?;
            observed.endpoints.insert(ifindex, value);
        }
        for entry in self.cidr.iter() {
            let (key, value) = entry.map_err(map_error("cidr", "read"))?;
            if let Some(prefix) = abi::prefix(key.prefix_len(), key.data()) {
                observed.cidrs.insert(prefix, IdentityId(value.identity));
            }
        }
        observed.config = self
            .config
            .get(&0, 0)
            .map_err(map_error("config", "read"))?;
        observed.links = self.links.take_over_all(&mut self.ebpf)?;
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
            Some(value) => {
                let flags = abi::prefix_flags(prefix);
                let value = abi::IpcacheValue { flags, ..value };
                self.ipcache_lpm.insert(&key, value, 0)
            }
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

    fn set_cidr(&mut self, prefix: &IpPrefix, value: Option<IdentityId>) -> Result<(), Error> {
        let key = lpm_trie::Key::new(abi::lpm_bits(prefix), abi::address(prefix.addr()));
        match value {
            Some(IdentityId(identity)) => {
                let flags = abi::prefix_flags(prefix).into();
                let value = abi::CidrValue { identity, flags };
                self.cidr.insert(&key, value, 0)
            }
            None => or_absent(self.cidr.remove(&key)),
        }
        .map_err(map_error("cidr", op(value.is_some())))
    }

    fn set_config(&mut self, config: abi::Config) -> Result<(), Error> {
        self.config
            .set(0, config, 0)
            .map_err(map_error("config", "write"))
    }

    fn retire_slot(&mut self, slot: u32) -> Result<(), Error> {
        counters::retire(&mut self.counters, slot)
    }

    fn forget_ports(&mut self, endpoint: EndpointId) -> Result<(), Error> {
        let mut own = Vec::new();
        for key in self.port_roles.keys() {
            let key = key.map_err(map_error("port_roles", "read"))?;
            if key.endpoint == endpoint.0 {
                own.push(key);
            }
        }
        own.iter()
            .try_for_each(|key| or_absent(self.port_roles.remove(key)))
            .map_err(map_error("port_roles", "delete"))
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
        self.links.attach(&mut self.ebpf, ifindex, name)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        self.links.detach(ifindex)
    }
}

/// The ring buffer of events; ready for reading when its descriptor is.
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

/// Unix time of the boot in nanoseconds, as the clocks stand now.
#[must_use]
pub fn boot_unix_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME).saturating_sub(clock_ns(libc::CLOCK_BOOTTIME))
}

/// Nanoseconds of the clock by which flows are timed.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

#[expect(unsafe_code, reason = "the boot clock has no safe face in std")]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; all of these clocks exist since Linux 2.6.39.
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
