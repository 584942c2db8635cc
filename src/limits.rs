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
/// Most events between a source and the publisher; a source that is ahead waits.
pub const LOCAL_EVENTS_MAX: usize = 1_024;
/// Most events taken at once: new ids of a batch are saved to disk together, before any is used.
pub const LOCAL_EVENTS_BATCH: usize = 512;
/// Most endpoint events that wait for policy and datapath; the publisher waits past it.
pub const ENDPOINT_EVENTS_MAX: usize = 1_024;
/// Life of published keys without their publisher (Cilium's `--kvstore-lease-ttl` default).
pub const LEASE_TTL: std::time::Duration = std::time::Duration::from_secs(15 * 60);
/// How often the lease is renewed: a third of its life, as etcd's clients do.
pub const LEASE_KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// How often the heartbeat is written; readers give up after twice this.
pub const HEARTBEAT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a released identity or endpoint id stays with its old owner before it may mean
/// something else: longer than any reader or packet remembers it.
pub const ID_REUSE_AFTER: std::time::Duration = std::time::Duration::from_secs(30 * 60);
/// Random picks of an identity before the range is searched in order.
pub const IDENTITY_PICKS_MAX: usize = 64;
/// Largest endpoint id; tools that know Cilium expect 16 bits.
pub const ENDPOINT_ID_MAX: u32 = 65_535;
/// Longest state file that is read: 65 536 identities with long label sets fit.
pub const IDENTITIES_FILE_BYTES_MAX: u64 = 256 << 20;

// --- policy ---

// --- enforcer ---

// --- admin ---
