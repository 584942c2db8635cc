//! Every bound and default interval, with the reason for its number.
use std::time::Duration;

// --- keyspace ---
/// Longest value that is decoded; larger ones are treated as undecodable (etcd's request default).
pub const VALUE_BYTES_MAX: usize = 1_572_864;

// --- store ---

// --- serve ---

// --- follower, peer ---

// --- mesh ---
/// Most pending deltas between the mesh and the datapath; past it a full reconcile is owed instead.
pub const DELTA_QUEUE_MAX: usize = 262_144;

// --- publish, source ---

// --- policy ---

// --- enforcer ---
/// Changes waiting for the map thread; a few batches, so that a burst does not block its sender.
pub const ENFORCER_INBOX_MAX: usize = 16_384;
/// Changes applied between two moves of the epoch: a few milliseconds of map writes.
pub const ENFORCER_BATCH_MAX: usize = 4_096;
/// First pause before a failed write or a missing interface is tried again; doubles.
pub const ENFORCER_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest such pause.
pub const ENFORCER_RETRY_MAX: Duration = Duration::from_secs(10);
/// How often deleted interfaces are looked for when nobody says that they changed.
pub const INTERFACE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often the maps are read back and compared.
pub const MAP_VERIFY_INTERVAL: Duration = Duration::from_secs(300);
/// Drop events kept for a slow subscriber; what the rate limit lets through of some sources.
pub const DROP_EVENTS_MAX: usize = 4_096;

// --- admin ---
