//! Every bound and default interval, with the reason for its number.
use std::time::Duration;

// --- keyspace ---
/// Longest value that is decoded; larger ones are treated as undecodable (etcd's request default).
pub const VALUE_BYTES_MAX: usize = 1_572_864;

// --- store ---

// --- serve ---

// --- tls, etcd ---
/// Longest TLS handshake, either side; a WAN round trip takes a small part of it.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the server's certificate files are compared; renewals are rare and overlap for days.
pub const TLS_RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// Longest TCP connect to an etcd endpoint before the next one is tried.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest unary call; etcd's own request timeout is 7 s plus elections.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 ping interval and patience, as Cilium sets them for its etcd clients.
pub const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(25));
/// First page of a list in keys; halved when a page exceeds `MESSAGE_BYTES_MAX`.
pub const LIST_PAGE_KEYS: i64 = 4096;
/// Largest gRPC message taken from an etcd: above a page of many values, far below memory limits.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

// --- follower, peer ---
/// Largest peer file; real ones have a few hundred bytes.
pub const PEER_FILE_BYTES_MAX: u64 = 256 * 1024;
/// How often the peer directory is scanned even if no notification came (network file systems).
pub const PEER_SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// Quiet time after a notification, so that an editor's unlink-and-write counts as one change.
pub const PEER_SCAN_SETTLE: Duration = Duration::from_millis(200);
/// Bounds of the jittered backoff between attempts to reach a peer.
pub const PEER_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));
/// How often missing certificate files are looked for.
pub const PEER_FILES_WAIT: Duration = Duration::from_secs(1);
/// A peer whose heartbeat key did not change for this long is reconnected (two write periods).
pub const HEARTBEAT_STALE: Duration = Duration::from_secs(120);
/// How often liveness is judged and the peer's CA file compared.
pub const LIVENESS_INTERVAL: Duration = Duration::from_secs(5);
/// How often a connected peer's cluster-config is compared; it changes by hand only.
pub const CLUSTER_CONFIG_CHECK: Duration = Duration::from_secs(30);
/// How long a connected peer may lack its cluster-config before the connection is rebuilt.
pub const CLUSTER_CONFIG_WAIT: Duration = Duration::from_secs(180);
/// Batches of events that may wait between a peer's session and the mesh.
pub const PEER_QUEUE_BATCHES: usize = 64;

// --- mesh ---
/// Most pending deltas between the mesh and the datapath; past it a full reconcile is owed instead.
pub const DELTA_QUEUE_MAX: usize = 262_144;

// --- publish, source ---

// --- policy ---

// --- enforcer ---

// --- admin ---
