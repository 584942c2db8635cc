//! `tombolo policy`: what policies say, before and while the agent enforces them.
use clap::Subcommand;

pub(super) mod validate;

/// Policies.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    Validate(validate::ValidateArgs),
}
