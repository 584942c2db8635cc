//! What a session is told, and what it wants to be done.
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    follower::Subject,
    keyspace::Kind,
    peer::{Layer, MemberEvent, Timing},
    types::{ClusterId, ClusterName, IpPrefix, MaxClusters},
};

/// What holds as long as the process.
#[derive(Debug, Clone)]
pub(in crate::peer) struct Rules {
    pub(in crate::peer) name: ClusterName,
    pub(in crate::peer) own_id: ClusterId,
    pub(in crate::peer) max: MaxClusters,
    pub(in crate::peer) cache_ttl: Option<Duration>,
    pub(in crate::peer) timing: Timing,
}

/// What matters here of a peer file.
#[derive(Debug, Clone)]
pub(in crate::peer) struct File {
    /// How many endpoints there are to try, at least one.
    pub(in crate::peer) endpoints: usize,
    /// The node that imports for this one: those endpoints are its cache's.
    pub(in crate::peer) relay: Option<String>,
    pub(in crate::peer) cluster_id: Option<ClusterId>,
    pub(in crate::peer) allowed_cidrs: Arc<[IpPrefix]>,
    pub(in crate::peer) warnings: Vec<String>,
}

/// What a connection has seen so far; only the newest of each counts.
#[derive(Debug, Clone, Default)]
pub(in crate::peer) struct Seen {
    /// The last heartbeat since the connection was opened.
    pub(in crate::peer) beat: Option<Instant>,
    /// The cluster-config: not read yet, read and not there, or its bytes.
    pub(in crate::peer) config: Option<Option<Bytes>>,
    /// Kinds whose canary is there.
    pub(in crate::peer) open: Vec<Kind>,
    /// Kinds that are complete.
    pub(in crate::peer) complete: Vec<Kind>,
}

/// Why an attempt or a connection failed.
#[derive(Debug, Clone)]
pub(in crate::peer) struct Failure {
    pub(in crate::peer) layer: Layer,
    pub(in crate::peer) text: String,
    pub(in crate::peer) retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::peer) enum Retry {
    /// With growing delays.
    Soon,
    /// Somebody must act first, so with the longest delay.
    Seldom,
    /// A file is not there yet: that is no failure.
    Files,
}

/// What happened.
#[derive(Debug)]
pub(in crate::peer) enum Input {
    /// The file is new or has new content.
    File(File),
    /// The file is gone.
    Removed,
    /// The deadline passed.
    Timer,
    /// The endpoint is connected and its heartbeat was listed.
    Opened,
    /// The attempt or the connection ended.
    Failed(Failure),
    Seen(Seen),
    /// The answer to [`Effect::Reserve`]; the holder if it is another.
    Reserved(Result<(), ClusterName>),
    /// Some peer released an id.
    IdFreed,
}

/// What is to be done, in order.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::peer) enum Effect {
    /// Drop the attempt or the connection.
    HangUp,
    /// Dial this endpoint, list its heartbeat.
    Dial(usize),
    /// Reserve an id, and come back with the answer.
    Reserve(ClusterId),
    Tell(MemberEvent),
    /// Follow this, in place of what is followed now.
    Follow(Subject),
    /// Follow nothing, but stay connected.
    Pause,
    /// The mesh does not hold these kinds any more, or wants to hear all of them again.
    Forget(&'static [Kind]),
    /// Forget the peer: status, id, trust.
    Release,
    Log(Log),
}

/// What the log is told; each once until it changes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::peer) enum Log {
    WaitingForFiles(String),
    /// An endpoint failed and the next one is tried.
    NextEndpoint(String),
    /// All endpoints failed, or the connection did; counted. `lost` if it was of use before.
    Failed {
        text: String,
        lost: bool,
        fresh: bool,
    },
    /// Connected, but without an acceptable configuration.
    Refused(String),
    Accepted(ClusterId),
}
