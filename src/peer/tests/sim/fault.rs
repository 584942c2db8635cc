//! What may go wrong, and what sessions may be doing then.

/// What happens to a site, or to the way of one reader to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Cut,
    Refuse,
    Freeze,
    Slow,
    Compact,
    Wipe,
    WipeSameId,
    Swap,
    ExpireLease,
    LoseConfig,
    SpoilConfig,
    Renumber,
    RemoveFile,
    ChangeFile,
}

pub(super) const FAULTS: [Fault; 14] = [
    Fault::Cut,
    Fault::Refuse,
    Fault::Freeze,
    Fault::Slow,
    Fault::Compact,
    Fault::Wipe,
    Fault::WipeSameId,
    Fault::Swap,
    Fault::ExpireLease,
    Fault::LoseConfig,
    Fault::SpoilConfig,
    Fault::Renumber,
    Fault::RemoveFile,
    Fault::ChangeFile,
];

/// What a session is doing, as its status tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Removed,
    Down,
    /// Connected without an accepted configuration.
    Unaccepted,
    Listing,
    Synced,
}

pub(super) const STATES: [State; 5] = [
    State::Removed,
    State::Down,
    State::Unaccepted,
    State::Listing,
    State::Synced,
];

/// A bug that the simulation must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    SweepBeforeListDone,
    ResumeAcrossClusterIds,
    LostDelete,
}

impl Fault {
    /// True if all readers of a site meet it, not only the one whose way is struck.
    pub(super) const fn is_sites(self) -> bool {
        !matches!(
            self,
            Self::Cut
                | Self::Refuse
                | Self::Freeze
                | Self::Slow
                | Self::RemoveFile
                | Self::ChangeFile
        )
    }

    pub(super) const fn replaces_store(self) -> bool {
        matches!(
            self,
            Self::Wipe | Self::WipeSameId | Self::Swap | Self::Renumber
        )
    }
}
