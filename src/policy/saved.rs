//! Copies of the last good version of each policy file, so that a file which turned bad while no
//! agent ran does not open at the next start what it used to close.
//! Always true: a copy is written whole or not at all; without a place to write, nothing is saved
//! and that is logged, but policies work.
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The directory of copies; each has the name of its file.
#[derive(Debug)]
pub(super) struct Saved {
    dir: PathBuf,
}

impl Saved {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn copy(&self, file: &Path) -> Option<PathBuf> {
        file.file_name().map(|name| self.dir.join(name))
    }

    /// Keeps this version as the last good one.
    pub(super) async fn keep(&self, file: &Path, text: &str) {
        let Some(copy) = self.copy(file) else { return };
        let part = self.dir.join(".part");
        let write = async {
            tokio::fs::create_dir_all(&self.dir).await?;
            tokio::fs::write(&part, text).await?;
            tokio::fs::File::open(&part).await?.sync_all().await?;
            tokio::fs::rename(&part, &copy).await
        };
        if let Err(error) = write.await {
            tracing::error!(copy = %copy.display(), %error, "policy file could not be saved");
        }
    }

    /// The last good version, if one was kept.
    pub(super) async fn last_good(&self, file: &Path) -> Option<String> {
        tokio::fs::read_to_string(self.copy(file)?).await.ok()
    }

    /// Removes the copies of files that `exists` does not know.
    pub(super) async fn retain(&self, exists: impl Fn(&OsStr) -> bool) {
        let Ok(mut entries) = tokio::fs::read_dir(&self.dir).await else {
            return;
        };
        while let Ok(Some(entry)) = entries.next_entry().await {
            if !exists(&entry.file_name())
                && let Err(error) = tokio::fs::remove_file(entry.path()).await
            {
                let copy = entry.path();
                tracing::error!(copy = %copy.display(), %error, "old copy could not be removed");
            }
        }
    }
}
