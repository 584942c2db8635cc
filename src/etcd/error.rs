//! What can fail, and what to do about it.
use tonic::Code;

/// Why an operation on an etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options name no endpoint.
    #[error("choose an endpoint: none configured")]
    NoEndpoint,
    /// The host's name has no address.
    #[error("resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No TCP connection.
    #[error("dial {address}")]
    Dial {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates or handshake.
    #[error("connect to {address} with TLS")]
    Tls {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: crate::tls::Error,
    },
    /// No HTTP/2 on a connection that stands.
    #[error("begin HTTP/2 with {address}")]
    Http {
        /// Host and port.
        address: String,
        /// True below TLS, where this may be how a refused certificate shows.
        tls: bool,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The server refused or broke a call.
    #[error("{op} {key}")]
    Call {
        /// What was tried.
        op: &'static str,
        /// Key or prefix, if one is concerned.
        key: String,
        /// What follows from it.
        class: Class,
        /// What the server or the connection said.
        #[source]
        source: Box<etcd_client::Error>,
    },
    /// No answer in time.
    #[error("{op} {key}: no answer in time")]
    Timeout {
        /// What was tried.
        op: &'static str,
        /// Key or prefix, if one is concerned.
        key: String,
    },
    /// A reply lacks the header or a cluster id.
    #[error("tell the etcd cluster: a reply came without header or cluster id")]
    NoHeader,
    /// Another etcd answered.
    #[error("stay on etcd cluster {pinned:x}: a reply came from {found:x}")]
    OtherCluster {
        /// The cluster of all earlier replies.
        pinned: u64,
        /// The cluster of this one.
        found: u64,
    },
    /// A single entry exceeds the message limit.
    #[error("list {prefix}: a single entry exceeds the message limit")]
    EntryTooLarge {
        /// The prefix.
        prefix: String,
    },
    /// The revision from which to watch is compacted.
    #[error("watch {prefix}: revisions below {compacted} are compacted")]
    Compacted {
        /// The prefix.
        prefix: String,
        /// First revision that is still there.
        compacted: i64,
    },
    /// The client file can't be used.
    #[error("read the etcd client file {path}: {reason}")]
    File {
        /// Its path.
        path: std::path::PathBuf,
        /// Why, and where in it.
        reason: String,
    },
    /// The store would lose with its process what we write. An agent's cluster store never does; one
    /// that another program serves from memory says so in its status.
    #[error("use {address} as cluster store: it keeps its keys in memory only; name a durable one")]
    NotDurable {
        /// Host and port.
        address: String,
    },
    /// What should be read only is what we write.
    #[error("read the source's etcd {id:x}: it is the cluster store; name another one")]
    SourceIsStore {
        /// The etcd cluster's id.
        id: u64,
    },
    /// The server ended the watch.
    #[error("watch {prefix}: cancelled by the server: {reason:?}")]
    Cancelled {
        /// The prefix.
        prefix: String,
        /// The server's words, cut to 200 characters.
        reason: String,
        /// `Denied` if it says so, else `Relist`.
        class: Class,
    },
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Back off and connect anew.
    Transient,
    /// The connection is good, but the position in the history is not: list again.
    Relist,
    /// Credentials or permissions: somebody must act, so try slowly and say so.
    Denied,
    /// The same call will fail again: a bug or a server that is no etcd.
    Fatal,
}

impl Error {
    /// What follows from it.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Call { class, .. } | Self::Cancelled { class, .. } => *class,
            Self::Compacted { .. } => Class::Relist,
            Self::EntryTooLarge { .. } | Self::NoEndpoint => Class::Fatal,
            Self::File { .. } | Self::NotDurable { .. } | Self::SourceIsStore { .. } => {
                Class::Denied
            }
            Self::Resolve { .. }
            | Self::Dial { .. }
            | Self::Tls { .. }
            | Self::Http { .. }
            | Self::Timeout { .. }
            | Self::NoHeader
            | Self::OtherCluster { .. } => Class::Transient,
        }
    }

    /// True if a certificate file does not exist (yet).
    #[must_use]
    pub const fn is_missing_file(&self) -> bool {
        matches!(self, Self::Tls { source, .. } if source.is_missing())
    }

    pub(super) fn call(op: &'static str, key: &str, source: etcd_client::Error) -> Self {
        let class = class(&source);
        Self::Call {
            op,
            key: key.to_owned(),
            class,
            source: Box::new(source),
        }
    }

    /// True if the server does not know the lease any more.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        let Self::Call { source, .. } = self else {
            return false;
        };
        match source.as_ref() {
            // The client's own word for an answer with no time left.
            etcd_client::Error::LeaseKeepAliveError(_) => true,
            etcd_client::Error::GRpcStatus(status) => status.code() == Code::NotFound,
            _ => false,
        }
    }

    /// True if a message was larger than either side allows, so that asking for less may help.
    pub(super) fn is_too_large(&self) -> bool {
        let Self::Call { source, .. } = self else {
            return false;
        };
        let etcd_client::Error::GRpcStatus(status) = source.as_ref() else {
            return false;
        };
        // Both codes mean other things too (compaction, rate limits); only the text tells.
        matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
            && (status.message().contains("too large") || status.message().contains("larger than"))
    }
}

fn class(error: &etcd_client::Error) -> Class {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return Class::Transient;
    };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Class::Denied,
        // etcd: "required revision has been compacted" and "is a future revision".
        Code::OutOfRange => Class::Relist,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::DataLoss => Class::Fatal,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => Class::Transient,
    }
}
