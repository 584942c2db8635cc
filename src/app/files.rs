//! How many files the agent may have open.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, as the kernel lets every process do: a thousand watchers
/// are a thousand sockets, and containers often begin with a soft limit of 1 024.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(
            from = limit.current,
            to = limit.maximum,
            "open files limit set"
        ),
        Err(error) => tracing::warn!(
            %error,
            limit = limit.current,
            "Open files limit could not be raised; connections beyond it are not accepted"
        ),
    }
}
