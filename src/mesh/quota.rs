//! How much of us a peer has, and how much it may have.
use super::decode::Rejection;
use crate::limits;

/// What a peer may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    pub(super) keys: usize,
    pub(super) bytes: usize,
    pub(super) held_keys: usize,
    pub(super) held_bytes: usize,
}

impl Quota {
    pub(super) const OF_PEER: Self = Self {
        keys: limits::PEER_KEYS_MAX,
        bytes: limits::PEER_BYTES_MAX,
        held_keys: limits::PEER_HELD_KEYS_MAX,
        held_bytes: limits::PEER_HELD_BYTES_MAX,
    };
}

/// What is kept because of one member. A key that has a record in force and a newer value that is
/// not counts twice.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// Keys in force or copied to the cache.
    pub(super) keys: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Keys held back.
    pub(super) held_keys: usize,
    /// Their bytes.
    pub(super) held_bytes: usize,
}

impl Usage {
    /// Whether a value of `new` bytes fits in the place of one of `old` bytes.
    pub(super) const fn room(
        &self,
        quota: &Quota,
        old: Option<u32>,
        new: usize,
    ) -> Result<(), Rejection> {
        let old_bytes = match old {
            Some(bytes) => bytes as usize,
            None => 0,
        };
        if old.is_none() && self.keys >= quota.keys {
            Err(Rejection::TooManyKeys(quota.keys))
        } else if new > old_bytes && self.bytes + new - old_bytes > quota.bytes {
            Err(Rejection::TooManyBytes(quota.bytes))
        } else {
            Ok(())
        }
    }

    /// Whether one more value of `bytes` may be held back.
    pub(super) const fn may_hold(&self, quota: &Quota, bytes: usize) -> bool {
        self.held_keys < quota.held_keys && self.held_bytes + bytes <= quota.held_bytes
    }

    pub(super) const fn add(&mut self, bytes: u32) {
        self.keys += 1;
        self.bytes += bytes as usize;
    }

    pub(super) const fn take(&mut self, bytes: u32) {
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as usize);
    }

    pub(super) const fn hold(&mut self, bytes: u32) {
        self.held_keys += 1;
        self.held_bytes += bytes as usize;
    }

    pub(super) const fn release(&mut self, bytes: u32) {
        self.held_keys = self.held_keys.saturating_sub(1);
        self.held_bytes = self.held_bytes.saturating_sub(bytes as usize);
    }
}
