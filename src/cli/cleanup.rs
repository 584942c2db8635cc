//! `tombolo cleanup`: the kernel without anything of ours; needs no agent.
use std::{io::Write, path::PathBuf};

use super::{Error, client::Client};
use crate::{
    config::BPF_ROOT,
    enforcer::{self, Cleanup},
};

/// Remove Tombolo's programs and maps of any version from the kernel. Nothing is enforced until an
/// agent starts again. Run it in the agent's network namespace. The exit code is 1 if something
/// could not be removed.
#[derive(Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// The bpf filesystem.
    #[arg(long, value_name = "DIR", env = "TOMBOLO_BPF_ROOT", default_value = BPF_ROOT)]
    bpf_root: PathBuf,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Do it also while an agent runs, which has to be restarted then.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(
    args: &CleanupArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<(), Error> {
    if !args.force && !args.dry_run {
        client.unused().await?;
    }
    let cleanup = enforcer::cleanup(&args.bpf_root, args.dry_run);
    let cleanup = cleanup.map_err(|error| Error::Cleanup(anyhow::Error::new(error)))?;
    out.write_all(text(&cleanup, args).as_bytes())?;
    out.flush()?;
    match cleanup.failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Left(cleanup.failed)),
    }
}

fn text(cleanup: &Cleanup, args: &CleanupArgs) -> String {
    let Cleanup {
        removed,
        kept,
        failed,
    } = cleanup;
    if removed.is_empty() && kept.is_empty() && failed.is_empty() {
        return format!("Nothing of Tombolo's below {}\n", args.bpf_root.display());
    }
    let done = if args.dry_run {
        "Would remove"
    } else {
        "Removed"
    };
    let removed = removed.iter().map(|what| format!("{done} {what}\n"));
    let kept = kept.iter().map(|what| format!("Kept {what}\n"));
    removed.chain(kept).collect()
}
