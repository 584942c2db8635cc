//! The layouts of version 1, and what their rows are today.
use super::copy::{Convert, unchanged};

/// What a map is filled with.
pub(super) enum Origin {
    /// The former map itself: its rows mean the same.
    Shared,
    /// The rows of a former map.
    Rows(&'static str, Convert),
    /// Nothing.
    Nothing,
}

/// Where the rows of the map `name` come from.
pub(super) fn origin(name: &str) -> Origin {
    match name {
        "ipcache_exact" | "ipcache_lpm" | "ratelimit" | "metrics" => Origin::Shared,
        "endpoints" => Origin::Rows("endpoints", unchanged),
        "policy" => Origin::Rows("policy", unchanged),
        "config" => Origin::Rows("config", unchanged),
        "conntrack" => Origin::Rows("conntrack", unchanged),
        _ => Origin::Nothing,
    }
}
