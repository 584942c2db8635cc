//! Every bound and default interval, with the reason for its number.

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
/// Largest policy file that is read; Kubernetes takes no object above etcd's 1.5 MiB either.
pub const POLICY_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most policy files in the directory; past it the rest is reported and left out.
pub const POLICY_FILES_MAX: usize = 4096;
/// Most ports in one `toPorts` element, as in Cilium.
pub const POLICY_PORTS_MAX: usize = 40;
/// Policy events waiting for the engine; the directory watcher waits when it is full.
pub const POLICY_EVENTS_MAX: usize = 64;
/// How long the policy directory must be quiet before it is read: long enough for a writer's next
/// write, short against the time in which a person expects an effect.
pub const POLICY_DEBOUNCE: std::time::Duration = std::time::Duration::from_millis(20);
/// Longest wait for quiet, for directories that are written without pause.
pub const POLICY_DEBOUNCE_MAX: std::time::Duration = std::time::Duration::from_millis(500);
/// How often the policy directory is read without a notification, which may get lost.
pub const POLICY_RESCAN: std::time::Duration = std::time::Duration::from_secs(5);

// --- enforcer ---

// --- admin ---
