//! Maps as rows of bytes, many to a system call: for copying between layouts and for counting.
//! aya has no batch calls; those here are `BPF_MAP_LOOKUP_BATCH` and `BPF_MAP_UPDATE_BATCH` of
//! linux/bpf.h, Linux 5.6, tries since 5.13.
use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    path::Path,
};

use aya::maps::{MapData, MapType};

use super::{Error, map_error};
use crate::limits::{MAP_BATCH_ENTRIES, MAP_SAMPLE_ENTRIES};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_NOEXIST: u64 = 1;

/// `union bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` of the commands for one entry.
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = {
    assert!(size_of::<BatchAttr>() == 56);
    assert!(size_of::<ElemAttr>() == 32);
};

/// A pinned map, its layout as the kernel says.
pub(super) struct RawMap {
    data: MapData,
    pub(super) name: &'static str,
    pub(super) kind: u32,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) entries: u32,
}

/// Rows read at once, one after another without gaps.
pub(super) struct Rows<'a> {
    keys: &'a [u8],
    values: &'a [u8],
    key: usize,
    value: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let keys = self.keys.chunks_exact(self.key);
        keys.zip(self.values.chunks_exact(self.value))
    }
}

impl RawMap {
    /// Opens a pin; `None` if there is none.
    pub(super) fn open(path: &Path, name: &'static str) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let data = MapData::from_pin(path).map_err(map_error(name, "open"))?;
        let info = data.info().map_err(map_error(name, "open"))?;
        let bytes = |size| usize::try_from(size).unwrap_or(0);
        Ok(Some(Self {
            name,
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key: bytes(info.key_size()),
            value: bytes(info.value_size()),
            entries: info.max_entries(),
            data,
        }))
    }

    /// True for the kinds whose rows are there or not: hashes and tries.
    pub(super) const fn counts(&self) -> bool {
        self.is_hash() || self.kind == MapType::LpmTrie as u32
    }

    /// True for the kinds whose rows can be copied.
    pub(super) const fn copies(&self) -> bool {
        self.counts() || self.kind == MapType::Array as u32
    }

    /// True if the map makes room by itself.
    pub(super) const fn is_lru(&self) -> bool {
        self.kind == MapType::LruHash as u32
    }

    const fn is_hash(&self) -> bool {
        self.kind == MapType::Hash as u32 || self.kind == MapType::LruHash as u32
    }

    /// Hands out all rows; those that come or go meanwhile may be missed. Ends early when `each`
    /// returns false, and says where: the number of the first bucket that was not read.
    ///
    /// # Errors
    /// If the kernel refuses, or `each` does.
    pub(super) fn read(
        &self,
        mut each: impl FnMut(Rows<'_>) -> Result<bool, Error>,
    ) -> Result<Option<u32>, Error> {
        let mut count = MAP_BATCH_ENTRIES.min(self.entries.max(1));
        // Hashes say where they are in 4 bytes, others by a key.
        let mut position = vec![0; self.key.max(size_of::<u32>())];
        let mut next = position.clone();
        let mut begun = false;
        loop {
            let places = usize::try_from(count)
                .map_err(|error| self.error("read", io::Error::other(error)))?;
            let mut keys = vec![0; self.key * places];
            let mut values = vec![0; self.value * places];
            let mut attr = BatchAttr {
                in_batch: if begun { address(&mut position) } else { 0 },
                out_batch: address(&mut next),
                keys: address(&mut keys),
                values: address(&mut values),
                count,
                map_fd: self.fd(),
                ..BatchAttr::default()
            };
            let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
            let code = result.as_ref().err().and_then(io::Error::raw_os_error);
            match (result, code) {
                // A bucket that holds more than there is room for.
                (Err(_), Some(libc::ENOSPC)) if count < self.entries => {
                    count = count.saturating_mul(2);
                    continue;
                }
                (Err(_), Some(libc::ENOENT)) | (Ok(()), _) => {}
                (Err(error), _) => return Err(self.error("read", error)),
            }
            let read = usize::try_from(attr.count).unwrap_or(0).min(places);
            let go_on = each(Rows {
                keys: &keys[..read * self.key],
                values: &values[..read * self.value],
                key: self.key,
                value: self.value,
            })?;
            if code == Some(libc::ENOENT) {
                return Ok(None);
            }
            if !go_on {
                let bucket = next.first_chunk().copied().unwrap_or_default();
                return Ok(Some(u32::from_ne_bytes(bucket)));
            }
            std::mem::swap(&mut position, &mut next);
            begun = true;
        }
    }

    /// Writes rows, replacing those that are there.
    ///
    /// # Errors
    /// `E2BIG` if the map is full.
    pub(super) fn write(&self, keys: &mut [u8], values: &mut [u8]) -> Result<(), Error> {
        let count = keys.len() / self.key;
        if count == 0 {
            return Ok(());
        }
        let mut attr = BatchAttr {
            keys: address(keys),
            values: address(values),
            count: u32::try_from(count)
                .map_err(|error| self.error("write", io::Error::other(error)))?,
            map_fd: self.fd(),
            ..BatchAttr::default()
        };
        bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map_err(|error| self.error("write", error))
    }

    /// Writes a row unless its key is there.
    ///
    /// # Errors
    /// If the kernel refuses for another reason.
    pub(super) fn write_absent(&self, key: &mut [u8], value: &mut [u8]) -> Result<(), Error> {
        let mut attr = ElemAttr {
            map_fd: self.fd(),
            pad: 0,
            key: address(key),
            value: address(value),
            flags: BPF_NOEXIST,
        };
        match bpf(BPF_MAP_UPDATE_ELEM, &mut attr) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                Err(self.error("write", error))
            }
            _ => Ok(()),
        }
    }

    /// How many rows there are. A large hash is sampled: its keys are spread evenly over as many
    /// buckets as it has room for, and the first of them are counted.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn count(&self) -> Result<u32, Error> {
        let mut read = 0_usize;
        let end = self.read(|rows| {
            read += rows.iter().count();
            Ok(!self.is_hash() || read < MAP_SAMPLE_ENTRIES)
        })?;
        let read = u32::try_from(read).unwrap_or(u32::MAX);
        let Some(buckets_read) = end.filter(|buckets| *buckets > 0) else {
            return Ok(read.min(self.entries));
        };
        let buckets = u64::from(self.entries.next_power_of_two());
        let estimate = u64::from(read) * buckets / u64::from(buckets_read);
        Ok(u32::try_from(estimate)
            .unwrap_or(u32::MAX)
            .min(self.entries))
    }

    fn fd(&self) -> u32 {
        let fd: RawFd = self.data.fd().as_fd().as_raw_fd();
        fd.cast_unsigned()
    }

    fn error(&self, op: &'static str, source: io::Error) -> Error {
        Error::Map {
            map: self.name,
            op,
            source,
        }
    }
}

fn address(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

#[expect(unsafe_code, reason = "the call has no safe face")]
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is the command's part of union bpf_attr, of the size that is said; its
    // addresses are of buffers that the caller holds, with the lengths that the map's sizes and
    // `count` say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
