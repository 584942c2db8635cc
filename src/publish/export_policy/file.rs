//! Reads the export policy file, and reads it again when it changes. A bad new version never
//! replaces the last good one: a peer must not see more because a file is half written.
use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ExportPolicy, ExportPolicyError};
use crate::limits;

/// Why the file's present version is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ExportPolicyFileError {
    /// It can't be read.
    #[error("read export policy {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can be read, but means nothing.
    #[error("export policy {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ExportPolicyError,
    },
}

/// The file and its last good version.
#[derive(Debug)]
pub struct ExportPolicyFile {
    path: PathBuf,
    /// As last read, good or bad; `None` while it can't be read.
    text: Option<String>,
    policy: watch::Sender<ExportPolicy>,
    error: watch::Sender<Option<String>>,
}

impl ExportPolicyFile {
    /// Reads the file for the first time. Without a good version there is nothing to fall back to.
    ///
    /// # Errors
    /// If the file can't be read or is refused.
    pub fn open(path: PathBuf) -> Result<Self, ExportPolicyFileError> {
        let text = std::fs::read_to_string(&path);
        let (text, policy) = parse(&path, text)?;
        Ok(Self {
            path,
            text: Some(text),
            policy: watch::Sender::new(policy),
            error: watch::Sender::new(None),
        })
    }

    /// The last good version.
    #[must_use]
    pub fn policy(&self) -> watch::Receiver<ExportPolicy> {
        self.policy.subscribe()
    }

    /// Why the present version is not in force, if so.
    #[must_use]
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// Looks at the file until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(limits::EXPORT_POLICY_RELOAD);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            let text = tokio::fs::read_to_string(&self.path).await;
            self.reload(text);
        }
    }

    fn reload(&mut self, text: io::Result<String>) {
        let seen = text.as_ref().ok().cloned();
        let standing = self.error.borrow().is_some();
        if seen == self.text && (seen.is_some() || standing) {
            return;
        }
        self.text = seen;
        match parse(&self.path, text) {
            Ok((_, policy)) => {
                tracing::info!(file = %self.path.display(), "Export policy loaded");
                self.policy.send_replace(policy);
                self.error.send_replace(None);
            }
            Err(error) => {
                let error = format!(
                    "{:#}; the last good version stays",
                    anyhow::Error::new(error)
                );
                tracing::error!(error, "Export policy refused");
                self.error.send_replace(Some(error));
            }
        }
    }
}

fn parse(
    path: &Path,
    text: io::Result<String>,
) -> Result<(String, ExportPolicy), ExportPolicyFileError> {
    let path = || path.to_owned();
    let text = text.map_err(|source| ExportPolicyFileError::Read {
        path: path(),
        source,
    })?;
    let policy = ExportPolicy::parse(&text).map_err(|source| ExportPolicyFileError::Parse {
        path: path(),
        source,
    })?;
    Ok((text, policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_version_leaves_the_last_good_one_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.yaml");
        let open = |path: &Path| ExportPolicyFile::open(path.to_owned());
        let missing = open(&path).unwrap_err();
        assert!(matches!(missing, ExportPolicyFileError::Read { .. }));
        std::fs::write(&path, "- pear: west").unwrap();
        assert!(matches!(
            open(&path).unwrap_err(),
            ExportPolicyFileError::Parse { .. }
        ));

        std::fs::write(&path, "- peer: west").unwrap();
        let mut file = open(&path).unwrap();
        let (mut policy, error) = (file.policy(), file.error());
        let read = || std::fs::read_to_string(&path);
        file.reload(read());
        assert!(!policy.has_changed().unwrap());

        std::fs::write(&path, "- pear: west").unwrap();
        file.reload(read());
        assert!(!policy.has_changed().unwrap());
        let text = error.borrow().clone().unwrap();
        assert!(
            text.contains("export.yaml") && text.contains("pear"),
            "{text}"
        );

        std::fs::write(&path, "- peer: east").unwrap();
        file.reload(read());
        assert!(policy.has_changed().unwrap() && error.borrow().is_none());
        assert!(policy.borrow_and_update().grant(Some("east")).shows_nodes());

        std::fs::remove_file(&path).unwrap();
        file.reload(read());
        assert!(!policy.has_changed().unwrap());
        assert!(
            error
                .borrow()
                .as_ref()
                .unwrap()
                .contains("read export policy")
        );
        std::fs::write(&path, "- peer: east").unwrap();
        file.reload(read());
        assert!(error.borrow().is_none());
    }
}
