//! Every bound and default interval, with the reason for its number.

// --- keyspace ---
/// Longest value that is decoded; larger ones are treated as undecodable (etcd's request default).
pub const VALUE_BYTES_MAX: usize = 1_572_864;

// --- store ---
/// Most events a store keeps for watches and reads of the past: minutes of a busy mesh, so that a
/// reader that reconnects resumes instead of listing again.
pub const STORE_HISTORY_EVENTS_MAX: usize = 100_000;
/// Most bytes that history keeps alive; a few large values must not stand for many events.
pub const STORE_HISTORY_BYTES_MAX: usize = 256 << 20;
/// Most conditions or steps of a transaction (etcd's `--max-txn-ops` default).
pub const TXN_OPS_MAX: usize = 128;
/// Deepest transaction within a transaction; the check recurses, so it must end.
pub const TXN_DEPTH_MAX: usize = 8;
/// Longest lease (etcd's `MaxLeaseTTL`).
pub const LEASE_TTL_MAX: std::time::Duration = std::time::Duration::from_secs(9_000_000_000);
/// Most leases; readers may grant some too, and each costs memory until it expires.
pub const LEASES_MAX: usize = 65_536;
/// Most revisions a watcher looks at while it holds the store's lock; a few microseconds.
pub const WATCH_SCAN_REVISIONS: usize = 1_000;
/// A watch message is closed at this many events (etcd's `watchBatchMaxRevs`).
pub const WATCH_BATCH_EVENTS: usize = 1_000;
/// A watch message is closed at this many bytes, well below gRPC clients' usual 4 MiB.
pub const WATCH_BATCH_BYTES: usize = 1 << 20;

// --- serve ---
/// Longest request message: etcd's 1.5 MiB of payload and 512 KiB for its framing.
pub const REQUEST_BYTES_MAX: usize = VALUE_BYTES_MAX + (512 << 10);
/// Most connections at once; a mesh of 511 clusters with two readers each fits.
pub const CONNECTIONS_MAX: usize = 2_048;
/// Most TLS handshakes at once; each may burn a millisecond of CPU before a client is known.
pub const HANDSHAKES_MAX: usize = 64;
/// A client that takes longer than this to authenticate is dropped.
pub const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// Most concurrent calls and streams per connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// Most watches on one watch stream; a Cilium agent holds about ten per peer.
pub const WATCHES_PER_STREAM_MAX: usize = 1_024;
/// How often an idle peer is pinged, and how long it has to answer.
pub const CONNECTION_PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(30);
/// See `CONNECTION_PING_INTERVAL`.
pub const CONNECTION_PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
/// How often a watch that asked for it hears that nothing happened (etcd's default).
pub const WATCH_PROGRESS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(600);
/// Shortest lease granted over the network (etcd raises shorter ones to this at its defaults).
pub const LEASE_TTL_MIN: std::time::Duration = std::time::Duration::from_secs(2);
/// How often leases are checked for expiry; adds at most this to a lease's life.
pub const LEASE_EXPIRY_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);
/// How long open calls get to finish after shutdown began.
pub const SERVE_DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

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
