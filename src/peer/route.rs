//! Which way a cluster's nodes take to their peers: one of them dials, the others read its cache.
use crate::etcd::ConnectOptions;

/// Where this node gets its peers' entries from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Route {
    /// It is not known yet who imports; nobody is dialled, entries stay.
    #[default]
    Undecided,
    /// This node imports: each peer is dialled as its file says.
    Direct,
    /// Another node imports, and its cache is read.
    Via {
        /// Its name.
        node: String,
        /// How its cache is reached; `None` if it does not say where.
        cache: Option<Box<ConnectOptions>>,
    },
}
