//! Runs the programs on made-up packets by `BPF_PROG_TEST_RUN`, for the benchmarks: same object,
//! same pinned maps as the enforcer's, no interface in between; and an empty program, to tell what
//! of the time is the harness's own.
use std::{io, time::Duration};

use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};

use super::{Error, Kernel, load::classifier};
use crate::enforcer::Options;

#[cfg(feature = "ebpf")]
const EMPTY: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/empty.bpf.o"
)));
#[cfg(not(feature = "ebpf"))]
const EMPTY: Option<&[u8]> = None;

/// `TC_ACT_SHOT` of linux/pkt_cls.h.
const SHOT: u32 = 2;
/// Where `ifindex` begins in `struct __sk_buff` of linux/bpf.h, the context of a test run.
const CONTEXT_IFINDEX: usize = 40;
/// The context up to and with `ifindex`; the kernel takes the rest as zero.
const CONTEXT_BYTES: usize = CONTEXT_IFINDEX + size_of::<u32>();

/// What can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Ingress policy.
    ToContainer,
    /// Anti-spoofing and the answers.
    FromContainer,
    /// Passes everything.
    Empty,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// True if the last repetition dropped the packet.
    pub dropped: bool,
    /// Mean of one repetition in whole nanoseconds, with the kernel's loop around it.
    pub mean: Duration,
}

/// The programs, loaded a second time onto the maps that an enforcer keeps below its bpffs.
#[derive(Debug)]
pub struct Programs {
    kernel: Kernel,
    empty: Ebpf,
}

impl Programs {
    /// Loads them; makes the maps if there are none.
    ///
    /// # Errors
    /// As [`Kernel::open`], or if the empty program is refused.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let (kernel, _, _) = Kernel::open(options)?;
        let mut empty = EbpfLoader::new()
            .load(EMPTY.ok_or(Error::NotBuilt)?)
            .map_err(|error| Error::Load {
                source: io::Error::other(error),
            })?;
        classifier(&mut empty, "empty")?
            .load()
            .map_err(|error| Error::Program {
                program: "empty",
                source: io::Error::other(error),
            })?;
        Ok(Self { kernel, empty })
    }

    /// Runs `program` on `packet`, an Ethernet frame, `repeat` times in a row, as if it passed the
    /// interface `ifindex` of the calling thread's network namespace. Maps, counters and events
    /// change as they do for a real packet.
    ///
    /// # Errors
    /// If the interface does not exist, or the kernel refuses the frame.
    pub fn run(
        &mut self,
        program: Program,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> io::Result<Outcome> {
        let (ebpf, name) = match program {
            Program::ToContainer => (&mut self.kernel.ebpf, "to_container"),
            Program::FromContainer => (&mut self.kernel.ebpf, "from_container"),
            Program::Empty => (&mut self.empty, "empty"),
        };
        let mut context = [0; CONTEXT_BYTES];
        context[CONTEXT_IFINDEX..].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = classifier(ebpf, name)
            .map_err(io::Error::other)?
            .test_run(options)
            .map_err(io::Error::other)?;
        Ok(Outcome {
            dropped: result.return_value == SHOT,
            mean: result.duration,
        })
    }
}
