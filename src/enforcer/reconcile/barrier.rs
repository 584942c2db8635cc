//! Where a batch must be written before more of it is taken: an order that the policy engine gives
//! and that writing all at once would lose.
//!
//! - A prefix begins or ceases to stand for its addresses between two changes of entries, where all
//!   rules say the same of it and of the prefix around it.
//! - An endpoint's mode is told twice where it begins to be audited before its entries change, or
//!   ceases behind that.
use std::collections::HashSet;

use super::Change;
use crate::{
    policy::MapDelta,
    types::{EndpointEvent, EndpointId},
};

/// What was taken since the last write.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// Whether the last change was one of a prefix; `None` if there was none.
    prefix: Option<bool>,
    modes: HashSet<EndpointId>,
}

impl Barrier {
    /// True if what was taken must be written before this change is.
    pub(super) fn stands_before(&mut self, change: &Change) -> bool {
        let (prefix, mode) = match change {
            Change::Map(MapDelta::Cidr { .. }) => (true, None),
            Change::Map(MapDelta::Endpoint { endpoint, .. }) => (false, Some(*endpoint)),
            // With the latter go entries that a former process left.
            Change::Map(MapDelta::Entry { .. }) | Change::Endpoint(EndpointEvent::Synced) => {
                (false, None)
            }
            _ => return false,
        };
        let before = self.prefix.replace(prefix);
        let twice = mode.is_some_and(|id| self.modes.contains(&id));
        let stands = twice || before.is_some_and(|before| before != prefix);
        if stands {
            self.modes.clear();
        }
        self.modes.extend(mode);
        stands
    }
}
