//! `tombolo store`: a backup of the running agent's cluster store, and a store made of one.
//! A backup file is complete or not there: it is checked to its end before it gets its name.
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{Error, client::Client};
use crate::{config::STATE_DIR, journal};

/// Back up and restore the cluster store.
#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// Copy the running agent's cluster store into a file, as it is at this moment.
    Backup {
        /// Replaced if it exists.
        file: PathBuf,
    },
    Restore(RestoreArgs),
}

/// Make a cluster store of a backup. The agent must not run, and have no store yet.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Made by `tombolo store backup`.
    file: PathBuf,
    /// The agent's directory for what must survive restarts.
    #[arg(long, value_name = "DIR", env = "TOMBOLO_STATE_DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
}

pub(super) async fn backup(client: &Client, file: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let saved = save(client, &temporary, file).await;
    if saved.is_err() {
        // It may not even have been made.
        drop(fs::remove_file(&temporary));
    }
    let summary = saved?;
    writeln!(
        out,
        "Saved revision {} with {} keys to {} ({} bytes)",
        summary.revision,
        summary.keys,
        file.display(),
        summary.bytes
    )?;
    Ok(())
}

async fn save(client: &Client, temporary: &Path, file: &Path) -> Result<journal::Summary, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let open = options.open(temporary);
    let mut to = open
        .with_context(|| format!("create {}", temporary.display()))
        .map_err(Error::Store)?;
    client.download("/v1/store/backup", &mut to).await?;
    let finish = || {
        to.sync_all().context("write the backup to disk")?;
        let summary = journal::check(temporary).context("check the backup")?;
        fs::rename(temporary, file).with_context(|| format!("create {}", file.display()))?;
        Ok(summary)
    };
    finish().map_err(Error::Store)
}

pub(super) fn restore(args: &RestoreArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = args.state_dir.join("store");
    let summary = journal::restore(&args.file, &directory).with_context(|| {
        let (file, to) = (args.file.display(), directory.display());
        format!("restore {file} to {to}")
    })?;
    writeln!(
        out,
        "Restored revision {} with {} keys to {}",
        summary.revision,
        summary.keys,
        directory.display()
    )?;
    Ok(())
}
