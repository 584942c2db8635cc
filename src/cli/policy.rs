//! `tombolo policy`: what policies say, before and while the agent enforces them.
use std::{
    fs,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;

use super::{Error, client::Client};
use crate::{admin::wire::policy::File, limits};

mod apply;
mod delete;
mod get;
mod trace;
pub(super) mod validate;

/// Policies: those in --policy-dir count on their node, those in the cluster store on every node of
/// the cluster. Both count together and none comes first: every rule counts, a deny beats an allow.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    Validate(validate::ValidateArgs),
    Apply(apply::ApplyArgs),
    Delete(delete::DeleteArgs),
    Get(get::GetArgs),
    Trace(trace::TraceArgs),
}

pub(super) async fn run(
    verb: &PolicyVerb,
    client: &Client,
    out: &mut dyn Write,
) -> Result<std::process::ExitCode, Error> {
    let failed = match verb {
        // Needs no agent, and ran before.
        PolicyVerb::Validate(_) => false,
        PolicyVerb::Apply(args) => apply::run(args, client, out).await?,
        PolicyVerb::Delete(args) => delete::run(args, client, out).await?,
        PolicyVerb::Get(args) => get::run(args, client, out).await?,
        PolicyVerb::Trace(args) => return trace::run(args, client, out).await,
    };
    Ok(super::exit_code(failed))
}

/// The files' texts; `-` is the standard input.
fn read(files: &[PathBuf]) -> Result<Vec<File>, Error> {
    let read = |name: &PathBuf| {
        let text = match name.to_str() {
            Some("-") => bounded(io::stdin().lock()),
            _ => fs::File::open(name).and_then(bounded),
        };
        let text = text.with_context(|| format!("read policy file {}", name.display()))?;
        Ok(File {
            name: shown(name),
            text,
        })
    };
    let files: anyhow::Result<Vec<File>> = files.iter().map(read).collect();
    files.map_err(Error::Policy)
}

/// One byte past the limit, so that the agent refuses it by that.
fn bounded(file: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    let max = limits::POLICY_REQUEST_BYTES_MAX as u64;
    file.take(max + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn shown(name: &Path) -> PathBuf {
    match name.to_str() {
        Some("-") => "standard input".into(),
        _ => name.to_owned(),
    }
}
