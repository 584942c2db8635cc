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

// --- netdev ---
/// Pause in which further changes of links and routes count as the same; a pod makes about ten.
pub const NETDEV_COALESCE: Duration = Duration::from_millis(20);

// --- publish, source ---
/// How often a watched directory is read without being told; file systems without events exist.
pub const SOURCE_RESCAN: Duration = Duration::from_secs(5);
/// Pause between a change in a directory and reading it, so that a file can be written to its end.
pub const SOURCE_DEBOUNCE: Duration = Duration::from_millis(50);
/// How often that pause may begin anew because of further changes: half a second at most.
pub const SOURCE_DEBOUNCES_MAX: u32 = 10;
/// How long bad files may hold back the news that all workloads are known.
pub const SOURCE_BAD_FILE_GRACE: Duration = Duration::from_secs(10);
/// Most manifest files in a directory; more are an error, as that is surely not what was meant.
pub const SOURCE_FILES_MAX: usize = 65_536;
/// Longest manifest file in bytes; room for 10 000 pods.
pub const SOURCE_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

// --- policy ---

// --- enforcer ---

// --- admin ---
