//! What tests, the demo and the benchmarks share: bounded waiting, child processes, namespaces.
//! Invariant: every wait has a deadline, and every process started here is ended by whoever
//! started it, or by the next run in the same directory.
//! Absent on purpose: nothing here is compiled into a release agent (feature `testing`).
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

pub mod frame;
pub mod lab;
pub mod process;

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(50);

/// Lets `duration` pass; for load that must last, and between two looks at another process.
pub fn pause(duration: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "another process gives no signal to wait for"
    )]
    std::thread::sleep(duration);
}

/// Calls `look` until it succeeds, at most for `limit`.
///
/// # Errors
/// The last error of `look`, with the time that was waited.
pub fn eventually<T>(limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {} s", limit.as_secs_f32()));
            }
            Err(_) => pause(POLL),
        }
    }
}

/// Unix time in milliseconds; 0 if the clock stands before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
