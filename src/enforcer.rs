//! Programs the kernel: what the maps should hold, against what they hold.
//!
//! Owns the pinned maps, programs and links below `<bpf root>/tombolo/`, and the one thread that
//! writes them. Always true: the kernel goes on enforcing when this process ends; there is no
//! path that detaches because of an exit.
//! Protocol: [`open`] reads what the kernel holds and gives back an [`Enforcer`] to run and a
//! [`Handle`] to talk to it. Changes come in over a bounded channel: full means wait.
//! What the programs do with a packet, rule by rule, and what happens when a map is full:
//! `bpf/README.md`.
//! Absent on purpose: policy decisions (`policy`), who owns an address (`mesh`).
use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    datapath::Error,
    events::Event,
    kernel::{Cleanup, MapUse, cleanup},
    reconcile::{Change, Status},
};
use self::{
    datapath::{Datapath, Memory},
    kernel::{Counters, Events, Kernel},
    reconcile::Reconciler,
};
use crate::{
    config::{self, AttachMode, MapSizes},
    limits,
    policy::Direction,
    types::{EndpointId, IdentityId, IpPrefix, MaxClusters},
};

pub mod abi;
pub mod datapath;
pub mod events;
pub mod kernel;
pub mod reconcile;
pub mod rows;

/// What [`open`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// A mounted bpffs.
    pub bpf_root: PathBuf,
    /// How identities are split.
    pub max_clusters: MaxClusters,
    /// How programs are attached; another way than before moves them.
    pub attach_mode: AttachMode,
    /// Sizes of the maps; other ones than before move their entries.
    pub sizes: MapSizes,
    /// What policy would drop is reported and let pass, on all endpoints.
    pub audit: bool,
    /// This node's own addresses reach local endpoints whatever ingress policy says.
    pub allow_localhost: bool,
}

impl Default for Options {
    /// The agent's defaults.
    fn default() -> Self {
        Self {
            bpf_root: config::BPF_ROOT.into(),
            max_clusters: MaxClusters::default(),
            attach_mode: AttachMode::default(),
            sizes: MapSizes::default(),
            audit: false,
            allow_localhost: false,
        }
    }
}

/// To talk to a running [`Enforcer`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Changes to follow, in order; bounded by [`limits::ENFORCER_INBOX_MAX`].
    pub changes: mpsc::Sender<Change>,
    /// Newest status.
    pub status: watch::Receiver<Status>,
    /// What the programs report; subscribe to it. A slow subscriber loses the oldest.
    pub events: broadcast::Sender<Event>,
    counters: Option<Arc<Counters>>,
}

/// A counter of packets, by endpoint, reason and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// The endpoint; `None` for interfaces without one, and for all that are gone.
    pub endpoint: Option<EndpointId>,
    /// Cilium's words, as in [`Event::reason`].
    pub reason: &'static str,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Packets since the maps were made, or the endpoint.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Everything the programs count.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Dropped packets; reasons never seen are left out.
    pub drops: Vec<Count>,
    /// Packets that policy would have dropped, but for audit mode.
    pub audited: Vec<Count>,
    /// Packets let through, by endpoint.
    pub passed: Vec<Count>,
    /// Packets let through, ingress and egress.
    pub forwarded: [(u64, u64); 2],
    /// Flows that found no room in the conntrack: each of their packets is judged.
    pub untracked: u64,
    /// Events held back by the rate limit per source.
    pub events_suppressed: u64,
    /// Events that found the ring full.
    pub events_lost: u64,
}

impl Counts {
    fn add(&mut self, endpoint: Option<EndpointId>, row: &abi::CounterRow) {
        for (column, counted) in row.0.iter().enumerate() {
            let (reason, direction) = (column / 2, column % 2);
            if counted.packets == 0 {
                continue;
            }
            let count = Count {
                endpoint,
                reason: abi::reason(u8::try_from(reason).unwrap_or(u8::MAX)),
                direction: abi::direction(u8::try_from(direction).unwrap_or(0)),
                packets: counted.packets,
                bytes: counted.bytes,
            };
            match reason {
                abi::FORWARDED => {
                    self.forwarded[direction].0 += counted.packets;
                    self.forwarded[direction].1 += counted.bytes;
                    self.passed.push(Count {
                        reason: "",
                        ..count
                    });
                }
                abi::AUDITED => self.audited.push(Count {
                    reason: "",
                    ..count
                }),
                abi::UNTRACKED => self.untracked += counted.packets,
                abi::SUPPRESSED => self.events_suppressed += counted.packets,
                abi::LOST => self.events_lost += counted.packets,
                _ => self.drops.push(count),
            }
        }
    }
}

impl Handle {
    /// How full the maps are, as of the last seconds; counting takes milliseconds.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn map_usage(&self) -> Result<Vec<MapUse>, Error> {
        match &self.counters {
            Some(counters) => counters.usage(),
            None => Ok(Vec::new()),
        }
    }

    /// Reads the programs' counters: a system call per endpoint.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn counts(&self) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        if let Some(counters) = &self.counters {
            for (endpoint, row) in counters.rows()? {
                counts.add(endpoint, &row);
            }
        }
        Ok(counts)
    }

    /// How often each rule decided, by its number: a system call per rule.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn rule_hits(&self) -> Result<Vec<(u32, u64)>, Error> {
        match &self.counters {
            Some(counters) => counters.rule_hits(),
            None => Ok(Vec::new()),
        }
    }
}

/// The enforcer, ready to run.
pub struct Enforcer {
    reconciler: Reconciler<Box<dyn Datapath>>,
    inbox: mpsc::Receiver<Change>,
    status: watch::Sender<Status>,
    source: Option<Events>,
    events: broadcast::Sender<Event>,
}

impl std::fmt::Debug for Enforcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enforcer").finish_non_exhaustive()
    }
}

/// Loads the programs, reads what the kernel holds, takes over its links. Blocks for some tens of
/// milliseconds. Call it in the network namespace whose interfaces are meant. Without the `ebpf`
/// feature the maps are plain memory, and every endpoint's interface counts as missing.
///
/// # Errors
/// If the programs cannot be loaded or the pins are not ours.
pub fn open(options: &Options) -> Result<(Enforcer, Handle), Error> {
    let (datapath, source, counters): (Box<dyn Datapath>, _, _) = if kernel::AVAILABLE {
        let (kernel, events, counters) = Kernel::open(options)?;
        (Box::new(kernel), Some(events), Some(Arc::new(counters)))
    } else {
        (Box::new(Memory::default()), None, None)
    };
    let mut reconciler = Reconciler::open(datapath, options)?;
    reconciler.apply([]);
    let (changes, inbox) = mpsc::channel(limits::ENFORCER_INBOX_MAX);
    let (status, status_receiver) = watch::channel(reconciler.status().clone());
    let (events, _) = broadcast::channel(limits::DROP_EVENTS_MAX);
    let handle = Handle {
        changes,
        status: status_receiver,
        events: events.clone(),
        counters,
    };
    Ok((
        Enforcer {
            reconciler,
            inbox,
            status,
            source,
            events,
        },
        handle,
    ))
}

impl Enforcer {
    /// Identities of prefixes that a former process left in the kernel: what a new policy engine
    /// goes on with.
    #[must_use]
    pub fn cidrs(&self) -> Vec<(IpPrefix, IdentityId)> {
        self.reconciler.cidrs()
    }

    /// Runs two threads, one that writes maps and one that reads events, until `cancel` or until
    /// all [`Handle`]s are gone. Dropping the future leaves the threads to `cancel`.
    ///
    /// # Errors
    /// If a thread cannot be started, or dies.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        let Self {
            reconciler,
            inbox,
            status,
            source,
            events,
        } = self;
        let stop = cancel.clone();
        let maps = thread("bpf-maps", reconcile_loop(reconciler, inbox, status, stop))?;
        if let Some(source) = source {
            let stop = cancel.clone();
            let reader = thread("bpf-events", event_loop(source, events, stop))?;
            let ended = tokio::select! {
                ended = maps => ended.map_err(died("bpf-maps"))?,
                ended = reader => ended.map_err(died("bpf-events"))?,
            };
            cancel.cancel();
            return ended;
        }
        maps.await.map_err(died("bpf-maps"))?
    }
}

fn died(name: &'static str) -> impl FnOnce(oneshot::error::RecvError) -> Error {
    move |source| Error::Died { name, source }
}

/// A thread with a runtime of its own, so that no system call of ours delays another task.
fn thread(
    name: &'static str,
    work: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
    let fail = |source| Error::Thread { name, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(fail)?;
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // Nobody listens any more if the caller was dropped.
            drop(done.send(runtime.block_on(work)));
        })
        .map_err(fail)?;
    Ok(result)
}

async fn reconcile_loop(
    mut reconciler: Reconciler<Box<dyn Datapath>>,
    mut inbox: mpsc::Receiver<Change>,
    status: watch::Sender<Status>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let mut batch = Vec::with_capacity(limits::ENFORCER_BATCH_MAX);
    let mut verify = tokio::time::interval(limits::MAP_VERIFY_INTERVAL);
    verify.reset();
    let mut retry = limits::ENFORCER_RETRY_MIN;
    // A deadline, not a pause: a stream of changes must not put it off.
    let mut idle_since = tokio::time::Instant::now();
    loop {
        let idle = if reconciler.owes() {
            retry
        } else {
            limits::INTERFACE_CHECK_INTERVAL
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            count = inbox.recv_many(&mut batch, limits::ENFORCER_BATCH_MAX) => {
                if count == 0 {
                    return Ok(());
                }
                reconciler.apply(batch.drain(..));
            }
            _ = verify.tick() => {
                if let Err(error) = reconciler.verify() {
                    tracing::warn!(subsys = "enforcer", %error, "Maps could not be read back");
                }
            }
            () = tokio::time::sleep_until(idle_since + idle) => {
                reconciler.tick();
                idle_since = tokio::time::Instant::now();
                retry = next_retry(retry, reconciler.owes());
            }
        }
        status.send_if_modified(|old| {
            let changed = old != reconciler.status();
            if changed {
                old.clone_from(reconciler.status());
            }
            changed
        });
    }
}

fn next_retry(retry: Duration, owes: bool) -> Duration {
    if owes {
        (retry * 2).min(limits::ENFORCER_RETRY_MAX)
    } else {
        limits::ENFORCER_RETRY_MIN
    }
}

async fn event_loop(
    source: Events,
    subscribers: broadcast::Sender<Event>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let fail = |source| Error::Map {
        map: "events",
        op: "read",
        source,
    };
    let mut source = source.register().map_err(fail)?;
    loop {
        let boot = kernel::boot_unix_ns();
        source.get_mut().drain(|bytes| {
            if let Some(event) = events::decode(bytes, boot) {
                // Nobody watching is fine: the counters have it.
                drop(subscribers.send(event));
            }
        });
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            ready = source.readable_mut() => ready.map_err(fail)?.clear_ready(),
        }
    }
}
