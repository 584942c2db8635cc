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

/// How many rejections of one reason and cluster are logged one by one; all are counted.
pub const REJECTIONS_LOGGED_MAX: u64 = 10;

// --- publish, source ---

// --- policy ---

// --- enforcer ---

// --- admin ---
