//! The directory of peer files: which file names which peer, and what changed since the last scan.
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use crate::{limits, types::ClusterName};

/// How long a file may lie there without `endpoints:` before its peer counts as removed: whoever
/// writes a file in place empties it first.
const BLANK_PATIENCE: Duration = Duration::from_secs(1);

/// One scan's findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Files with `endpoints:`, by peer; more than one is a conflict.
    pub(super) files: BTreeMap<ClusterName, Vec<PeerFile>>,
    /// Peers whose file is there, but cannot be read or lacks `endpoints:`.
    pub(super) blank: BTreeMap<ClusterName, Blank>,
    /// Files with `endpoints:` whose name is no cluster name.
    pub(super) misnamed: BTreeSet<PathBuf>,
}

/// Why a file does not count, though it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blank {
    /// It says nothing of endpoints.
    NoEndpoints,
    /// It could not be read; not a statement of the operator.
    Unreadable,
}

/// A peer file as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerFile {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) hash: [u8; 32],
}

/// What the operator changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// New or other content.
    Upsert(ClusterName, PeerFile),
    /// Gone.
    Remove(ClusterName),
    /// Several files name the peer; what runs goes on.
    Conflict(ClusterName, Vec<PathBuf>),
}

/// Reads the directory, not its subdirectories. Ignores the own cluster's file.
///
/// # Errors
/// If the directory cannot be listed: then nothing is known, which is not "all removed".
pub(super) fn scan(dir: &Path, own: &ClusterName) -> std::io::Result<Scan> {
    let mut scan = scan_all(dir)?;
    scan.files.remove(own);
    scan.blank.remove(own);
    Ok(scan)
}

/// As [`scan`], the own cluster's file included.
///
/// # Errors
/// As [`scan`].
pub(super) fn scan_all(dir: &Path) -> std::io::Result<Scan> {
    let mut scan = Scan::default();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(peer) = name.map(peer_name) else {
            continue;
        };
        match (read(&path), peer) {
            (Ok(None), _) | (Err(_), Err(_)) => {}
            (Ok(Some(bytes)), peer) if names_endpoints(&bytes) => match peer {
                Ok(peer) => {
                    let hash = Sha256::digest(&bytes).into();
                    let file = PeerFile { path, bytes, hash };
                    scan.files.entry(peer).or_default().push(file);
                }
                Err(_) => {
                    scan.misnamed.insert(path);
                }
            },
            (Ok(Some(_)), Ok(peer)) => {
                scan.blank.entry(peer).or_insert(Blank::NoEndpoints);
            }
            (Ok(Some(_)), Err(_)) => {}
            (Err(_), Ok(peer)) => {
                scan.blank.insert(peer, Blank::Unreadable);
            }
        }
    }
    scan.files
        .values_mut()
        .for_each(|files| files.sort_by(|a, b| a.path.cmp(&b.path)));
    Ok(scan)
}

/// What may stand behind a peer's name in the name of its file; the longer ones first.
const SUFFIXES: [&str; 3] = ["-cilium-etcd.config", ".config", ""];

/// `<peer>`, `<peer>.config` and `<peer>-cilium-etcd.config` all name `<peer>`.
pub(super) fn peer_name(file: &str) -> Result<ClusterName, crate::types::ClusterNameError> {
    let stem = SUFFIXES
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))
        .unwrap_or(file);
    stem.parse()
}

/// The files that are there and whose names say that they are about `peer`.
pub(super) fn paths_of(dir: &Path, peer: &ClusterName) -> Vec<PathBuf> {
    let paths = SUFFIXES
        .iter()
        .map(|suffix| dir.join(format!("{peer}{suffix}")));
    paths.filter(|path| path.exists()).collect()
}

/// What makes a file a peer's, whatever else is in it: also one that is no text is not "removed".
pub(super) fn names_endpoints(bytes: &[u8]) -> bool {
    let key = b"endpoints:";
    bytes.windows(key.len()).any(|window| window == key)
}

/// The content of a file; `None` if it is no file, or is gone.
pub(super) fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let open = || -> std::io::Result<Option<Vec<u8>>> {
        if !std::fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(limits::PEER_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

/// What was last reported, to find changes.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    known: BTreeMap<ClusterName, [u8; 32]>,
    conflicts: BTreeMap<ClusterName, Vec<PathBuf>>,
    blank_since: BTreeMap<ClusterName, Instant>,
    misnamed: BTreeSet<PathBuf>,
}

impl Tracker {
    /// Changes since the last call, each reported once; and files that are newly misnamed.
    pub(super) fn update(&mut self, scan: Scan, now: Instant) -> (Vec<Change>, Vec<PathBuf>) {
        let mut changes = Vec::new();
        let gone: Vec<ClusterName> = self
            .known
            .keys()
            .chain(self.conflicts.keys())
            .filter(|peer| !scan.files.contains_key(*peer))
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        self.blank_since.retain(|peer, _| gone.contains(peer));
        for peer in gone {
            let wait = match scan.blank.get(&peer) {
                None => false,
                Some(Blank::Unreadable) => true,
                Some(Blank::NoEndpoints) => {
                    let since = *self.blank_since.entry(peer.clone()).or_insert(now);
                    now.saturating_duration_since(since) < BLANK_PATIENCE
                }
            };
            if !wait {
                self.known.remove(&peer);
                self.conflicts.remove(&peer);
                self.blank_since.remove(&peer);
                changes.push(Change::Remove(peer));
            }
        }
        for (peer, mut files) in scan.files {
            match (files.pop(), files.is_empty()) {
                (Some(file), true) => {
                    let conflict_over = self.conflicts.remove(&peer).is_some();
                    let old = self.known.insert(peer.clone(), file.hash);
                    if old != Some(file.hash) || conflict_over {
                        changes.push(Change::Upsert(peer, file));
                    }
                }
                (Some(last), false) => {
                    let paths: Vec<PathBuf> = files
                        .into_iter()
                        .chain([last])
                        .map(|file| file.path)
                        .collect();
                    if self.conflicts.insert(peer.clone(), paths.clone()).as_ref() != Some(&paths) {
                        changes.push(Change::Conflict(peer, paths));
                    }
                }
                (None, _) => {}
            }
        }
        let fresh = scan.misnamed.difference(&self.misnamed).cloned().collect();
        self.misnamed = scan.misnamed;
        (changes, fresh)
    }

    /// Forgets a peer's content, so that the next scan reports it again.
    pub(super) fn forget(&mut self, peer: &ClusterName) {
        if let Some(hash) = self.known.get_mut(peer) {
            *hash = [0; 32];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "endpoints: [https://a:1]";

    fn kinds(changes: &[Change]) -> Vec<String> {
        let show = |change: &Change| match change {
            Change::Upsert(peer, _) => format!("+{peer}"),
            Change::Remove(peer) => format!("-{peer}"),
            Change::Conflict(peer, paths) => format!("!{peer}{}", paths.len()),
        };
        changes.iter().map(show).collect()
    }

    #[test]
    fn names_content_and_conflicts_follow_the_rules() {
        let dir = tempfile::tempdir().unwrap();
        let own = "own".parse().unwrap();
        let mut tracker = Tracker::default();
        let mut now = Instant::now();
        let mut step = || {
            now += Duration::from_millis(600);
            let (changes, misnamed) = tracker.update(scan(dir.path(), &own).unwrap(), now);
            (kinds(&changes), misnamed.len())
        };
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let remove = |name: &str| std::fs::remove_file(dir.path().join(name)).unwrap();
        let none: Vec<String> = Vec::new();

        put("east", TEXT);
        put("west.config", TEXT);
        put("north-cilium-etcd.config", TEXT);
        put("own", TEXT);
        put("Bad_Name", TEXT);
        put("ca.crt", "-----BEGIN");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/south"), TEXT).unwrap();
        assert_eq!(
            step(),
            (vec!["+east".into(), "+north".into(), "+west".into()], 1)
        );
        assert_eq!(step(), (none.clone(), 0));

        // A touch is no change; other content is.
        put("east", TEXT);
        put("west.config", "endpoints: [https://b:1]");
        assert_eq!(step().0, ["+west"]);

        // Emptied for a moment is no removal; for longer it is.
        put("east", "");
        assert_eq!(step().0, none);
        put("east", TEXT);
        assert_eq!(step().0, none);
        put("east", "");
        assert_eq!((step().0, step().0), (none.clone(), none.clone()));
        assert_eq!(step().0, ["-east"]);
        assert_eq!(step().0, none);

        // A removed file is a removed peer at once.
        remove("north-cilium-etcd.config");
        assert_eq!(step().0, ["-north"]);

        // Two files conflict until one goes.
        put("west", TEXT);
        assert_eq!(step().0, ["!west2"]);
        assert_eq!(step().0, none);
        remove("west");
        assert_eq!(step().0, ["+west"]);
        put("west", TEXT);
        assert_eq!(step().0, ["!west2"]);
        remove("west");
        remove("west.config");
        assert_eq!(step().0, ["-west"]);
    }

    #[test]
    fn names_are_checked_in_all_three_spellings_and_the_own_one_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| std::fs::write(dir.path().join(name), TEXT).unwrap();
        let longest = "a".repeat(32);
        for name in ["own", "own.config", "own-cilium-etcd.config", "a.config"] {
            put(name);
        }
        let wrong = ["West", "-west", "west-", "we_st.config", &"a".repeat(33)];
        wrong.into_iter().for_each(&put);
        put(&format!("{longest}-cilium-etcd.config"));
        let found = scan(dir.path(), &"own".parse().unwrap()).unwrap();
        let names: Vec<&str> = found.files.keys().map(ClusterName::as_str).collect();
        assert_eq!(names, ["a", &longest]);
        assert_eq!(found.misnamed.len(), wrong.len());
        let mut tracker = Tracker::default();
        let (_, reported) = tracker.update(found.clone(), Instant::now());
        assert_eq!(reported.len(), wrong.len());
        assert!(tracker.update(found, Instant::now()).1.is_empty());
    }

    #[test]
    fn unreadable_file_is_no_removal_and_a_vanished_one_is() {
        let now = Instant::now();
        let name: ClusterName = "east".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("east"), TEXT).unwrap();
        let own = "own".parse().unwrap();
        let mut tracker = Tracker::default();
        tracker.update(scan(dir.path(), &own).unwrap(), now);
        let mut unreadable = Scan::default();
        unreadable.blank.insert(name, Blank::Unreadable);
        assert!(
            tracker
                .update(unreadable, now + BLANK_PATIENCE * 9)
                .0
                .is_empty()
        );
        // A link that leads nowhere, as a mounted secret leaves behind.
        std::fs::remove_file(dir.path().join("east")).unwrap();
        std::os::unix::fs::symlink("..data/east", dir.path().join("east")).unwrap();
        let (changes, _) = tracker.update(scan(dir.path(), &own).unwrap(), now);
        assert_eq!(kinds(&changes), ["-east"]);
    }

    #[test]
    fn file_with_a_byte_that_is_no_text_is_a_bad_file_and_no_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("east");
        let own = "own".parse().unwrap();
        let mut tracker = Tracker::default();
        let mut now = Instant::now();
        let mut step = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            now += BLANK_PATIENCE;
            let changes = tracker.update(scan(dir.path(), &own).unwrap(), now).0;
            let refused = changes.iter().any(|change| match change {
                Change::Upsert(_, file) => {
                    super::super::ConfigFile::from_bytes(&file.bytes, dir.path()).is_err()
                }
                _ => false,
            });
            (kinds(&changes), refused)
        };
        assert_eq!(step(TEXT.as_bytes()), (vec!["+east".to_owned()], false));
        let bad = [TEXT.as_bytes(), b"\n# caf\xe9\n"].concat();
        assert_eq!(step(&bad), (vec!["+east".to_owned()], true));
        // What is no peer file at all gets the patience of an emptied one.
        assert_eq!(step(b"\xff\xfe"), (Vec::new(), false));
        assert_eq!(step(b"\xff\xfe"), (vec!["-east".to_owned()], false));
    }

    #[test]
    fn a_swapped_symlink_as_in_kubernetes_secrets_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let own = "own".parse().unwrap();
        for (version, text) in [("v1", TEXT), ("v2", "endpoints: [https://b:1]")] {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("east"), text).unwrap();
        }
        let data = dir.path().join("..data");
        std::os::unix::fs::symlink("v1", &data).unwrap();
        std::os::unix::fs::symlink("..data/east", dir.path().join("east")).unwrap();
        let mut tracker = Tracker::default();
        let mut step = || {
            kinds(
                &tracker
                    .update(scan(dir.path(), &own).unwrap(), Instant::now())
                    .0,
            )
        };
        assert_eq!(step(), ["+east"]);
        std::fs::remove_file(&data).unwrap();
        std::os::unix::fs::symlink("v2", &data).unwrap();
        assert_eq!(step(), ["+east"]);
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(scan(&dir.path().join("none"), &"own".parse().unwrap()).is_err());
    }
}
