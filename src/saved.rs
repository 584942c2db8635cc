//! Copies of the last good version of each file of a watched directory, so that a file which turned
//! bad while no agent ran counts as what it was: a policy does not open what it used to close, and
//! a pod does not lose its enforcement.
//! Always true: a copy is written whole or not at all; without a place to write, nothing is saved
//! and that is logged, but the files work.
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

/// A copy that is being written.
const PART: &str = ".part";

/// The directory of copies; each has the name of its file.
#[derive(Debug)]
pub(crate) struct Saved {
    dir: PathBuf,
}

impl Saved {
    /// Copies in `dir`, which is made when needed and which nobody else writes to.
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn copy(&self, file: &Path) -> Option<PathBuf> {
        file.file_name().map(|name| self.dir.join(name))
    }

    /// Keeps this version as the last good one. Writes nothing if that is what the copy says.
    pub(crate) async fn keep(&self, file: &Path, text: &str) {
        let Some(copy) = self.copy(file) else { return };
        if self.last_good(file).await.as_deref() == Some(text) {
            return;
        }
        if let Err(error) = self.write(&copy, text).await {
            tracing::error!(copy = %copy.display(), %error, "last good version could not be saved");
        }
    }

    async fn create(&self) -> io::Result<()> {
        // What is copied may be meant for fewer eyes than this directory's parent.
        let mut private = tokio::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&self.dir).await
    }

    async fn write(&self, copy: &Path, text: &str) -> io::Result<()> {
        self.create().await?;
        let part = self.dir.join(PART);
        tokio::fs::write(&part, text).await?;
        tokio::fs::File::open(&part).await?.sync_all().await?;
        tokio::fs::rename(&part, copy).await
    }

    /// The last good version, if one was kept.
    pub(crate) async fn last_good(&self, file: &Path) -> Option<String> {
        tokio::fs::read_to_string(self.copy(file)?).await.ok()
    }

    /// All last good versions, in any order; `None` if there is no directory of them.
    pub(crate) async fn all(&self) -> Option<Vec<String>> {
        let mut entries = tokio::fs::read_dir(&self.dir).await.ok()?;
        let mut texts = Vec::new();
        while let Ok(Some(entry)) = entries.next_entry().await {
            // What was being written when a process ended is no version of anything.
            let whole = entry.file_name() != PART;
            if whole && let Some(text) = self.last_good(&entry.path()).await {
                texts.push(text);
            }
        }
        Some(texts)
    }

    /// Makes the directory, so that [`Self::all`] knows that nothing is all there is.
    pub(crate) async fn make(&self) {
        if let Err(error) = self.create().await {
            let dir = self.dir.display();
            tracing::error!(%dir, %error, "directory of last good versions could not be made");
        }
    }

    /// Removes the copies of files that `exists` does not know.
    pub(crate) async fn retain(&self, exists: impl Fn(&OsStr) -> bool) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_that_was_not_finished_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::new(dir.path().to_owned());
        saved.keep(Path::new("a.yaml"), "whole").await;
        std::fs::write(dir.path().join(PART), "ha").unwrap();
        assert_eq!(saved.all().await.unwrap(), ["whole"]);
    }
}
