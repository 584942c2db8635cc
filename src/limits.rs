//! Every bound and default interval, with the reason for its number.
use std::time::Duration;

// --- keyspace ---
/// Longest value that is decoded; larger ones are treated as undecodable (etcd's request default).
pub const VALUE_BYTES_MAX: usize = 1_572_864;
/// Largest endpoint slice after decompression, as in Cilium: a value of a few bytes may expand to
/// anything.
pub const ENDPOINT_SLICE_BYTES_MAX: usize = 16 << 20;

/// Most fields of an endpoint slice, those of its endpoints included: it has a thousand endpoints at
/// most, of a few dozen fields. Decoding takes a millisecond for each hundred thousand.
pub const ENDPOINT_SLICE_FIELDS_MAX: usize = 1 << 17;

// --- app ---
/// Tasks that a thread runs before it looks whether a socket has something: some take a millisecond,
/// and with tokio's 61 a neighbour of busy peers would wait for as many.
pub const TASKS_BETWEEN_SOCKETS: u32 = 8;

// --- telemetry ---
/// How often a line is written about what strangers can repeat at will, of each kind.
pub const LOG_SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

// --- store ---
/// Most events a store keeps for watches and reads of the past: minutes of a busy mesh, so that a
/// reader that reconnects resumes instead of listing again.
pub const STORE_HISTORY_EVENTS_MAX: usize = 100_000;
/// Most bytes that history keeps alive; a few large values must not stand for many events.
pub const STORE_HISTORY_BYTES_MAX: usize = 256 << 20;
/// Most past states kept for readers that page through one; each costs up to 8 bytes a key.
pub const STORE_PAST_STATES_MAX: usize = 8;
/// Most conditions or steps of a transaction (etcd's `--max-txn-ops` default).
pub const TXN_OPS_MAX: usize = 128;
/// Most that it can be set to; the whole transaction runs while nobody else reads or writes.
pub const TXN_OPS_CEILING: usize = 10_000;
/// Deepest transaction within a transaction; the check recurses, so it must end.
pub const TXN_DEPTH_MAX: usize = 8;
/// Longest lease (etcd's `MaxLeaseTTL`).
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(9_000_000_000);
/// Most leases; readers may grant some too, and each costs memory until it expires.
pub const LEASES_MAX: usize = 65_536;
/// Most revisions a watcher looks at while it holds the store's lock; a few microseconds.
pub const WATCH_SCAN_REVISIONS: usize = 1_000;
/// A watch message is closed at this many events (etcd's `watchBatchMaxRevs`).
pub const WATCH_BATCH_EVENTS: usize = 1_000;
/// A watch message is closed at this many bytes, well below gRPC clients' usual 4 MiB.
pub const WATCH_BATCH_BYTES: usize = 1 << 20;

// --- journal ---
/// Most writes that wait for the disk; more than all streams of a few busy connections.
pub const JOURNAL_QUEUE_COMMANDS: usize = 4_096;
/// Most bytes of writes that wait; then writers wait to queue theirs.
pub const JOURNAL_QUEUE_BYTES: usize = 64 << 20;
/// Most writes that share one sync; their answers leave together.
pub const JOURNAL_BATCH_COMMANDS: usize = 1_024;
/// Most bytes of them, unless a single one is longer; written in the time of a sync.
pub const JOURNAL_BATCH_BYTES: usize = 4 << 20;
/// Length of a log file; its making holds writes up for the time of a few syncs.
pub const JOURNAL_SEGMENT_BYTES: u64 = 16 << 20;
/// Log after which a snapshot is written, if that is no shorter than the last one: a start reads
/// this in well below a second, and a write is written twice at most.
pub const JOURNAL_SNAPSHOT_AFTER_BYTES: u64 = 64 << 20;
/// Largest store that is written whole when the agent stops, which has 5 s for everything.
pub const JOURNAL_FINAL_SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// Bytes in a frame of a snapshot, unless a single record is longer.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

// --- serve ---
/// Longest write request (etcd's `--max-request-bytes` default).
pub const REQUEST_BYTES_MAX: usize = VALUE_BYTES_MAX;
/// Most that it can be set to: etcd's own advice, as every watcher gets each value.
pub const REQUEST_BYTES_CEILING: usize = 10 << 20;
/// How much longer a message may be than a request, and a watch's message too before it is
/// fragmented (etcd's `grpcOverheadBytes`).
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;
/// Most connections at once; a mesh of 511 clusters with a few readers each fits.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Most connections of one address and of one common name: no single client can take all, and a
/// thousand agents behind one address fit.
pub const CONNECTIONS_PER_CLIENT_MAX: usize = CONNECTIONS_MAX / 2;
/// Most TLS handshakes at once; each may burn a millisecond of CPU before a client is known.
pub const HANDSHAKES_MAX: usize = 64;
/// Most of them with one address, whose others wait: who stalls, stalls itself.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;
/// A client that takes longer than this to authenticate is dropped.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most concurrent calls and streams per connection.
pub const STREAMS_PER_CONNECTION_MAX: usize = 1_024;
/// How many more HTTP/2 lets in, so that a client hears the limit's name and does not just wait.
pub const STREAMS_SPARE: usize = 64;
/// Most calls of one common name in work at once, over all its connections; each may hold a request
/// of `REQUEST_BYTES_MAX`.
pub const REQUESTS_PER_CLIENT_MAX: usize = 512;
/// Most watches on one watch stream; a Cilium agent holds about ten per peer.
pub const WATCHES_PER_STREAM_MAX: usize = 1_024;
/// How often an idle peer is pinged, and how long it has to answer.
pub const CONNECTION_PING_INTERVAL: Duration = Duration::from_secs(30);
/// See `CONNECTION_PING_INTERVAL`.
pub const CONNECTION_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Watch messages a second that a server aims at with all its watches; above it they wait and get
/// fuller. A hundred busy watches then pause for less than 6 ms, and the messages take a third of a core.
pub const WATCH_MESSAGES_PER_SECOND: f64 = 18_000.0;
/// Longest such wait; 1 800 busy watches reach it.
pub const WATCH_PAUSE_MAX: Duration = Duration::from_millis(100);
/// How often a watch that asked for it hears that nothing happened (etcd's default).
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// How soon a request for progress is tried again while the watches of its stream are not equally
/// far; under load they are so every now and then.
pub const WATCH_PROGRESS_RETRY: Duration = Duration::from_millis(2);
/// Shortest lease granted over the network (etcd raises shorter ones to this at its defaults).
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(2);
/// How often leases are checked for expiry; adds at most this to a lease's life.
pub const LEASE_EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long open calls get to finish after shutdown began.
pub const SERVE_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

// --- tls, etcd ---
/// Longest TLS handshake as a client; a WAN round trip takes a small part of it.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the server's certificate files are compared: a few small reads, and soon enough for a
/// person who waits for the effect.
pub const TLS_RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// How often the files are read anew when they differ from one read to the next.
pub const TLS_READS_MAX: usize = 3;
/// Longest TCP connect to an etcd endpoint before the next one is tried.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one address of a host is tried alone before the next is tried beside it, as RFC 8305
/// recommends.
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);
/// Most addresses of a host that are tried: the last one begins after four seconds.
pub const DIAL_ADDRESSES_MAX: usize = 16;
/// Longest unary call; etcd's own request timeout is 7 s plus elections.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 ping interval and patience, as Cilium sets them for its etcd clients.
pub const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(25));
/// How much an etcd may send ahead on one stream: a second of a fast line.
pub const CLIENT_STREAM_WINDOW: u32 = 1 << 20;
/// And on all streams of a connection: more than all kinds together may leave unread while the mesh
/// is busy, so that answers to probes still get through.
pub const CLIENT_CONNECTION_WINDOW: u32 = 16 << 20;
/// First page of a list in keys; halved when a page exceeds `MESSAGE_BYTES_MAX`.
pub const LIST_PAGE_KEYS: i64 = 4096;
/// Largest gRPC message taken from an etcd: above a page of many values, far below memory limits.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most fields of one: an etcd's largest watch message, 1 000 transactions of 128 changes, has fewer;
/// decoded, they take up to 200 bytes each beside their contents.
pub const MESSAGE_PARTS_MAX: usize = 1 << 17;

// --- follower, peer ---
/// Most keys of one kind that are remembered for resuming, about 100 MB; a cluster with more is
/// listed on each connection.
pub const RESUME_KEYS_MAX: usize = 1 << 20;
/// Largest peer file; real ones have a few hundred bytes.
pub const PEER_FILE_BYTES_MAX: u64 = 256 * 1024;
/// How often the peer directory is scanned even if no notification came (network file systems).
pub const PEER_SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// Quiet time after a notification, so that an editor's unlink-and-write counts as one change.
pub const PEER_SCAN_SETTLE: Duration = Duration::from_millis(30);
/// Bounds of the jittered backoff between attempts to reach a peer.
pub const PEER_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));
/// How often missing certificate files are looked for.
pub const PEER_FILES_WAIT: Duration = Duration::from_secs(1);
/// Longest attempt at one endpoint, to the end of its heartbeat's list: dialling, the handshake and
/// a few answers.
pub const PEER_ATTEMPT: Duration = Duration::from_secs(20);
/// A peer whose heartbeat key did not change for this long is reconnected (two write periods).
pub const HEARTBEAT_STALE: Duration = Duration::from_secs(120);
/// A connected peer that was silent for this long is asked for a sign of life.
pub const PEER_PROBE: Duration = Duration::from_secs(4);
/// A peer that was silent for this long, though asked, hangs: it is reconnected.
pub const PEER_HANG: Duration = Duration::from_secs(12);
/// How often the CA and certificate files of a connected peer are compared.
pub const PEER_TRUST_CHECK: Duration = Duration::from_secs(5);
/// How long a connected peer may lack an acceptable cluster-config before the connection is rebuilt.
pub const CLUSTER_CONFIG_WAIT: Duration = Duration::from_secs(180);
/// Pause before the watch of a single key or the heartbeat is opened again.
pub const PEER_REWATCH: Duration = Duration::from_millis(100);
/// Batches of events that may wait between a session and the mesh, which takes them at once; one of
/// them may be a page of `MESSAGE_BYTES_MAX`.
pub const PEER_QUEUE_BATCHES: usize = 4;
/// Most entries of one member that wait for the mesh, one per key; then its session waits. The mesh
/// applies as many within milliseconds, and that is how old a change can get.
pub const MEMBER_PENDING_ENTRIES: usize = 8_192;
/// Most bytes of them, unless a single batch is longer.
pub const MEMBER_PENDING_BYTES: usize = 8 << 20;
/// Entries of one member that the mesh applies before the next member has its turn.
pub const MEMBER_SLICE: usize = 256;
/// Entries between two looks at the clock.
pub const MEMBER_STEP: usize = 16;
/// Bytes after which a step ends: as many small entries are decoded in well below a millisecond.
pub const MEMBER_STEP_BYTES: usize = 64 << 10;
/// How long such a turn goes on at most, to the end of a step: a neighbour's change waits for it.
pub const MEMBER_TURN: Duration = Duration::from_micros(250);
/// Changes of a peer that are applied each second, and at once. Above the first number they wait,
/// merged by key: four times the rate at which none is to be merged, a tenth of what the mesh can do.
/// The second one is what goes when a large site fails.
pub const PEER_CHANGES: (u32, u32) = (20_000, 65_536);
/// The same for entries of lists, which bring nothing new but at first: the largest peer may be
/// listed twice at once, and then once a minute.
pub const PEER_LISTED: (u32, u32) = (20_000, 2 << 20);
/// The same for entries that are refused, of which a peer in its senses has few.
pub const PEER_REFUSED: (u32, u32) = (5_000, 65_536);
/// The same for kilobytes that endpoint slices expand to: what costs the sender little costs
/// milliseconds here. At once come 600 000 endpoints.
pub const PEER_EXPANDED: (u32, u32) = (8 << 10, 64 << 10);
/// Bytes of a change; a larger one counts as several.
pub const PEER_CHANGE_BYTES: usize = 512;
/// Changes that are waited for at least, once some must wait: a few milliseconds.
pub const PEER_RATE_STEP: u32 = 64;

// --- importer ---
/// Life of the importer's lock without its holder: half of the five seconds in which another node
/// is to import, and more than etcd's shortest lease.
pub const IMPORTER_LEASE_TTL: Duration = Duration::from_secs(3);
/// How often the importer keeps its lock alive and looks whether it still has it.
pub const IMPORTER_RENEW: Duration = Duration::from_secs(1);
/// Pause before the store is asked again who imports.
pub const IMPORTER_RETRY: Duration = Duration::from_millis(250);
/// How long a node that starts waits for the store to say who imports; then it does.
pub const IMPORTER_PATIENCE: Duration = Duration::from_secs(5);
/// Default of `--per-cluster-ready-timeout`, as in kvstoremesh.
pub const PER_CLUSTER_READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of `--global-ready-timeout`, as in kvstoremesh.
pub const GLOBAL_READY_TIMEOUT: Duration = Duration::from_secs(600);
/// How often it is looked whether the cache has all peers; a few look-ups in memory each.
pub const CACHE_READY_CHECK: Duration = Duration::from_millis(250);

// --- mesh ---
/// Members that may join before the mesh takes notice; no mesh has more.
pub const MEMBERS_MAX: usize = 512;
/// Most deltas turned into kernel changes at once, so that policies and endpoints get their turn.
pub const DELTA_BATCH_MAX: usize = 4_096;
/// Most batches that are followed to the kernel at once, to measure how long that takes.
pub const PROPAGATION_SAMPLES_MAX: usize = 64;
/// Most pending deltas between the mesh and the datapath; past it a full reconcile is owed instead.
pub const DELTA_QUEUE_MAX: usize = 262_144;
/// Room that an emptied queue keeps, in values: a steady mesh never needs more, an initial list fills
/// many times as much.
pub const QUEUE_KEPT_CAPACITY: usize = 4_096;
/// Most keys of a peer that are in force or in the cache: a cluster with 500 000 endpoints and as
/// much again.
pub const PEER_KEYS_MAX: usize = 1 << 20;
/// Most bytes of keys and values of them; half a kilobyte for each key.
pub const PEER_BYTES_MAX: usize = 512 << 20;
/// Most keys of a peer that are held back, for they break a rule that may stop to apply: an address
/// that another has, a quota. Past it a record comes in with the peer's next list.
pub const PEER_HELD_KEYS_MAX: usize = 1 << 16;
/// Most bytes of them.
pub const PEER_HELD_BYTES_MAX: usize = 32 << 20;
/// Longest part of a refused key that status shows.
pub const KEY_SHOWN_BYTES: usize = 256;
/// Ports with names that are kept of an address; more than any pod has, and what is left out is as
/// if it had no name.
pub const NAMED_PORTS_MAX: usize = 64;
/// Most records of a peer that status shows of those that wait for an address; their number is told.
pub const CLAIMS_SHOWN_MAX: usize = 16;
/// How soon the mesh is looked at again after it was written to disk, as far as it changed: what is
/// lost by a crash of the host is this old. Between the two it is what the next two limits demand.
pub const SAVE_INTERVAL: (Duration, Duration) =
    (Duration::from_secs(5), Duration::from_secs(5 * 60));
/// Looking and writing take this part of a core at most, one hundredth.
pub const SAVE_TIME_SHARE: u32 = 100;
/// And write so much on average: a large cluster that changes all the time is written every few
/// minutes.
pub const SAVE_BYTES_PER_SECOND: u64 = 1 << 20;
/// How much later than told a peer must have been heard from for the cluster's other nodes to be told
/// again: well below the minute after which freshness is worth an alarm.
pub const RELAYED_HEARD_STEP: Duration = Duration::from_secs(10);
/// Longest such word of a peer's state: an error and all its causes.
pub const RELAYED_BYTES_MAX: usize = 64 << 10;
/// How often an importing node looks whether it has to say something new of a peer.
pub const RELAYED_CHECK: Duration = Duration::from_secs(1);
/// How often the own cluster's addresses are looked at, to write them to disk if they changed: a
/// look at a large mesh takes milliseconds.
pub const OWN_SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Longest file of a saved cluster: its quota, and 16 bytes more for each key.
pub const SAVED_CLUSTER_BYTES_MAX: u64 = (PEER_BYTES_MAX + 16 * PEER_KEYS_MAX) as u64;
/// Entries that are taken from the disk into the mesh at once.
pub const RESTORE_BATCH: usize = 1_024;
/// How long a removed peer's entries stay in the cache: readers on other nodes see the change of
/// their configuration first (Cilium's kvstoremesh waits as long).
pub const CACHE_GRACE: Duration = Duration::from_secs(180);

// --- publish, source ---
/// Largest export policy file; one that names every service of a large cluster fits.
pub const EXPORT_POLICY_BYTES_MAX: usize = 1 << 20;
/// Most rules of an export policy: two for each cluster of the largest mesh.
pub const EXPORT_POLICY_RULES_MAX: usize = 1_024;
/// How often the export policy file is compared; reading it costs next to nothing.
pub const EXPORT_POLICY_RELOAD: Duration = Duration::from_secs(1);
/// Most events between a source and the publisher; a source that is ahead waits.
pub const LOCAL_EVENTS_MAX: usize = 1_024;
/// Most events taken at once: new ids of a batch are saved to disk together, before any is used.
pub const LOCAL_EVENTS_BATCH: usize = 512;
/// Most endpoint events that wait for policy and datapath; the publisher waits past it.
pub const ENDPOINT_EVENTS_MAX: usize = 1_024;
/// Life of published keys without their publisher (Cilium's `--kvstore-lease-ttl` default).
pub const LEASE_TTL: Duration = Duration::from_secs(15 * 60);
/// How often the leases are renewed, a third of their life as etcd's clients do, and what should be
/// in the cluster store compared with what is.
pub const LEASE_KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);
/// Most keys on one lease, as in Cilium: its end is one transaction.
pub const LEASE_KEYS_MAX: usize = 1_000;
/// Most keys read or written in one transaction; etcd takes 128 operations.
pub const STORE_BATCH_KEYS: usize = 100;
/// A batch takes no further key past this; with one more value it stays below etcd's 1.5 MiB
/// unless that value alone is large.
pub const STORE_BATCH_BYTES: usize = 512 * 1024;
/// Bounds of the jittered backoff between attempts to reach the cluster store.
pub const STORE_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));
/// Longest wait for one member of an external cluster store to answer before the next is tried.
pub const STORE_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most who may ask at once whether everything is published: the export, the own member.
pub const CONFIRMS_MAX: usize = 16;
/// How often a batch of keys that another node holds is tried again; each costs the store a read.
pub const HELD_RETRY: Duration = Duration::from_secs(2);
/// Most refused keys that the status names; their number is in the log.
pub const REFUSALS_SHOWN_MAX: usize = 16;
/// Life of the mutex under which an identity is chosen, without its holder (Cilium's lock lease).
pub const LOCK_LEASE_TTL: Duration = Duration::from_secs(25);
/// Most identities asked for in one go, and how many of those run at once.
pub const ALLOCATIONS_BATCH: usize = 64;
/// See `ALLOCATIONS_BATCH`.
pub const ALLOCATIONS_AT_ONCE: usize = 16;
/// How often unused identities are looked for, by one node of the cluster.
pub const IDENTITY_GC_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How long giving up the collector's lock may delay a shutdown; the lock ends by itself.
pub const COLLECTOR_STOP: Duration = Duration::from_secs(1);
/// How often the heartbeat is written; readers give up after twice this.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a released identity or endpoint id stays with its old owner before it may mean
/// something else: longer than any reader or packet remembers it.
pub const ID_REUSE_AFTER: Duration = Duration::from_secs(30 * 60);
/// Picks of an identity: random ones first, and as many again of those the store lists as free.
pub const IDENTITY_PICKS_MAX: usize = 16;
/// Largest endpoint id; tools that know Cilium expect 16 bits.
pub const ENDPOINT_ID_MAX: u32 = 65_535;
/// Longest state file that is read: 65 536 identities with long label sets fit.
pub const IDENTITIES_FILE_BYTES_MAX: u64 = 256 << 20;
// --- netdev ---
/// Pause in which further changes of links and routes count as the same; a pod makes about ten.
pub const NETDEV_COALESCE: Duration = Duration::from_millis(20);

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
/// Largest policy file that is read; Kubernetes takes no object above etcd's 1.5 MiB either.
pub const POLICY_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most policy files in the directory; past it the rest is reported and left out.
pub const POLICY_FILES_MAX: usize = 4096;
/// Most ports in one `toPorts` element, as in Cilium.
pub const POLICY_PORTS_MAX: usize = 40;
/// Most fields in one `icmps` element, as in Cilium.
pub const POLICY_ICMP_FIELDS_MAX: usize = 40;
/// Most nodes that the aliases of a policy file stand for together: many more than people write,
/// about 20 MB while the file is read.
pub const POLICY_ALIASED_EVENTS_MAX: usize = 100_000;
/// Policy events waiting for the engine; the directory watcher waits when it is full.
pub const POLICY_EVENTS_MAX: usize = 64;
/// Identities that a trace lists for each rule; how many there are it says anyway.
pub const TRACE_IDENTITIES_MAX: usize = 16;
/// How long the policy directory must be quiet before it is read: long enough for a writer's next
/// write, short against the time in which a person expects an effect.
pub const POLICY_DEBOUNCE: Duration = Duration::from_millis(20);
/// Longest wait for quiet, for directories that are written without pause.
pub const POLICY_DEBOUNCE_MAX: Duration = Duration::from_millis(500);
/// Most questions about policy that wait for the engine; operators ask them, one at a time each.
pub const POLICY_QUERIES_MAX: usize = 16;
/// Most policies in the cluster store, as many as files; a node leaves out what is beyond.
pub const POLICIES_MAX: usize = 4096;
/// Most bytes of a request to apply policies: a chart's worth, or sixteen of the largest files.
pub const POLICY_REQUEST_BYTES_MAX: usize = 16 << 20;
/// Most names of refused policies in a node's status: it stays far below a value's limit.
pub const POLICIES_REFUSED_TOLD_MAX: usize = 256;
/// How long a node that never read the store's policies waits for them before it enforces anything
/// else; who read them once goes by those.
pub const POLICY_STORE_PATIENCE: Duration = Duration::from_secs(10);
/// How often the keys of the store's policies are compared, in case a watch fell silent.
pub const POLICY_STORE_COMPARE: Duration = Duration::from_secs(60);
/// Life of a node's policy status without the node: what waits for all nodes waits as long for one
/// that died.
pub const POLICY_STATUS_TTL: Duration = Duration::from_secs(15);
/// How often that lease is renewed, a third of its life.
pub const POLICY_STATUS_RENEW: Duration = Duration::from_secs(5);
/// How often the policy directory is read without a notification, which may get lost.
pub const POLICY_RESCAN: Duration = Duration::from_secs(5);

// --- enforcer ---
/// Changes waiting for the map thread; a few batches, so that a burst does not block its sender.
pub const ENFORCER_INBOX_MAX: usize = 16_384;
/// Changes applied between two moves of the epoch: a few milliseconds of map writes.
pub const ENFORCER_BATCH_MAX: usize = 4_096;
/// First pause before a failed write or a missing interface is tried again; doubles.
pub const ENFORCER_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest such pause.
pub const ENFORCER_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a TCP flow may be silent that nobody answered yet; Linux gives up its SYN after two
/// minutes, and each retransmission counts. The numbers of flows are written in `bpf/include/abi.h`.
pub const FLOW_TCP_OPENING: Duration = Duration::from_secs(60);
/// How long an answered TCP flow may be silent: three keep-alive intervals of Linux (two hours).
pub const FLOW_TCP_ESTABLISHED: Duration = Duration::from_secs(6 * 3600);
/// How long a TCP flow is kept that both sides closed: for the last retransmissions.
pub const FLOW_TCP_CLOSING: Duration = Duration::from_secs(10);
/// How long an echo may be without the next request or reply.
pub const FLOW_ICMP: Duration = Duration::from_secs(30);
/// How long a flow of UDP, SCTP and all else may be silent; resolvers ask again much sooner.
pub const FLOW_OTHER: Duration = Duration::from_secs(60);
/// How often deleted interfaces are looked for when nobody says that they changed.
pub const INTERFACE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Fewest and most entries of a map that may be configured: below, a single busy pod would push its
/// own flows out; above, the kernel would need gigabytes for it.
pub const MAP_ENTRIES_MIN: u32 = 1 << 10;
/// See [`MAP_ENTRIES_MIN`].
pub const MAP_ENTRIES_MAX: u32 = 1 << 24;
/// Default of `--bpf-ct-max`; 38 MB.
pub const CONNTRACK_ENTRIES: u32 = 1 << 18;
/// Default of `--bpf-policy-map-max`; the kernel takes the memory as entries come.
pub const POLICY_ENTRIES: u32 = 1 << 20;
/// Default of `--bpf-ipcache-max`, likewise.
pub const IPCACHE_ENTRIES: u32 = 1 << 20;
/// Default of `--bpf-fragments-max`, as in Cilium.
pub const FRAGMENTS_ENTRIES: u32 = 1 << 13;
/// Rows of a map that are read or written in one system call; a few hundred kilobytes.
pub const MAP_BATCH_ENTRIES: u32 = 1 << 12;
/// Rows of a hash that are counted before the rest is taken to be like them: an error of half a
/// percent, for ten milliseconds.
pub const MAP_SAMPLE_ENTRIES: usize = 1 << 16;
/// How long a count of a map's rows is good enough for who asks again.
pub const MAP_COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// How often the maps are read back and compared.
pub const MAP_VERIFY_INTERVAL: Duration = Duration::from_secs(300);
/// Drop events kept for a slow subscriber; what the rate limit lets through of some sources.
pub const DROP_EVENTS_MAX: usize = 4_096;

// --- admin ---
/// Rows of a map are told in pieces of about this size.
pub const MAP_ROWS_CHUNK_BYTES: usize = 64 << 10;
/// Most such pieces that wait for their reader; then the map is read no further.
pub const MAP_ROWS_CHUNKS: usize = 4;
