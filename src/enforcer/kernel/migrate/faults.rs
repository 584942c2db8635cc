//! Ends a migration between two of its steps, as a kill would; for tests only.
use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicI64, Ordering},
};

use super::Error;

/// Steps until the end; negative for never.
static LEFT: AtomicI64 = AtomicI64::new(-1);

/// Lets `steps` steps of this process' migrations pass and fails at the next.
pub fn end_after(steps: u32) {
    LEFT.store(i64::from(steps), Ordering::SeqCst);
}

/// Lets everything pass again; true if there was no end since [`end_after`].
pub fn never_again() -> bool {
    LEFT.swap(-1, Ordering::SeqCst) >= 0
}

pub(super) fn pass() -> Result<(), Error> {
    // -1 stays where it is, 0 ends and becomes -1.
    let before = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        (left >= 0).then_some(left - 1)
    });
    match before {
        Ok(0) => Err(Error::Directory {
            path: PathBuf::from("a planted end"),
            source: io::ErrorKind::Interrupted.into(),
        }),
        _ => Ok(()),
    }
}
