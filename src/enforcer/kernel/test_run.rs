//! Runs the programs on made-up packets by `BPF_PROG_TEST_RUN`, for tests and benchmarks: same
//! object, same pinned maps as the enforcer's, no interface in between; and an empty program, to
//! tell what of the time is the harness's own.
use std::{io, net::Ipv4Addr, time::Duration};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, MapData, ProgramArray},
};

use super::{
    Error, Kernel,
    load::{classifier, take},
};
use crate::enforcer::Options;

#[cfg(feature = "ebpf")]
const BENCH: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/bench.bpf.o"
)));
#[cfg(not(feature = "ebpf"))]
const BENCH: Option<&[u8]> = None;

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

/// Flows that one packet stands for, one after another: clients at 1 024 consecutive addresses, each
/// with as many ports as it takes.
#[derive(Debug, Clone, Copy)]
pub struct Flows {
    /// How many, a power of two.
    pub count: u32,
    /// The first client.
    pub client: Ipv4Addr,
    /// Its first port.
    pub port: u16,
    /// True if the packet goes to the client.
    pub answer: bool,
}

/// `struct cycle` of `bpf/bench.bpf.c`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cycle {
    next: u32,
    flows: u32,
    address: u32,
    port: u16,
    answer: u16,
}

// SAFETY: repr(C), without padding, any bit pattern is valid.
#[expect(unsafe_code, reason = "map values are written as bytes")]
unsafe impl aya::Pod for Cycle {}

/// The programs, loaded a second time onto the maps that an enforcer keeps below its bpffs.
pub struct Programs {
    kernel: Kernel,
    bench: Ebpf,
    cycles: Array<MapData, Cycle>,
    next: ProgramArray<MapData>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads them; makes the maps if there are none.
    ///
    /// # Errors
    /// As [`Kernel::open`], or if the empty program is refused.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let (kernel, _, _) = Kernel::open(options)?;
        let mut bench = EbpfLoader::new()
            .load(BENCH.ok_or(Error::NotBuilt)?)
            .map_err(|error| Error::Load {
                source: io::Error::other(error),
            })?;
        for program in ["empty", "each_flow"] {
            classifier(&mut bench, program)?
                .load()
                .map_err(|error| Error::Program {
                    program,
                    source: io::Error::other(error),
                })?;
        }
        Ok(Self {
            kernel,
            cycles: take(&mut bench, "cycles")?,
            next: take(&mut bench, "programs")?,
            bench,
        })
    }

    /// As [`Self::run`], and at each repetition the packet, TCP over IPv4 without options, is the
    /// next flow's; time includes this change.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_flows(
        &mut self,
        program: Program,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
        flows: &Flows,
    ) -> io::Result<Outcome> {
        let (ebpf, name) = self.find(program);
        let program = classifier(ebpf, name).map_err(io::Error::other)?;
        let descriptor = program.fd().map_err(io::Error::other)?.try_clone()?;
        self.next.set(0, &descriptor, 0).map_err(io::Error::other)?;
        let cycle = Cycle {
            next: 0,
            flows: flows.count,
            address: flows.client.to_bits(),
            port: flows.port,
            answer: flows.answer.into(),
        };
        self.cycles.set(0, cycle, 0).map_err(io::Error::other)?;
        test_run(&mut self.bench, "each_flow", packet, ifindex, repeat)
    }

    fn find(&mut self, program: Program) -> (&mut Ebpf, &'static str) {
        match program {
            Program::ToContainer => (&mut self.kernel.ebpf, "to_container"),
            Program::FromContainer => (&mut self.kernel.ebpf, "from_container"),
            Program::Empty => (&mut self.bench, "empty"),
        }
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
        let (ebpf, name) = self.find(program);
        test_run(ebpf, name, packet, ifindex, repeat)
    }
}

fn test_run(
    ebpf: &mut Ebpf,
    name: &'static str,
    packet: &[u8],
    ifindex: u32,
    repeat: u32,
) -> io::Result<Outcome> {
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
