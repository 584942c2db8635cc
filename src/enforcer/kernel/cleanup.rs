//! Takes away what this program, in any version, left in the kernel.
//!
//! What is ours is told by its place: all of `<bpf root>/tombolo/v<number>/`, and of filters and
//! disciplines those that are recorded there. Everything else stays.
//! Always true: a record goes after what it stands for, so that what fails is found again.
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Error,
    links::{self, FILTERS, LINKS, QDISCS},
    pins::Pins,
};

/// What a cleanup did, or would do; each a text for the operator.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cleanup {
    /// What went, in this order.
    pub removed: Vec<String>,
    /// What stays because it is not ours, and what it is.
    pub kept: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// Removes links, filters, disciplines, maps and directories of all versions below `bpf_root`; goes
/// on after a failure. With `dry_run` only tells. Call it in the network namespace whose interfaces
/// are meant: filters are not pinned, and can be found in no other.
///
/// # Errors
/// [`Error::Interfaces`] if the interfaces could not be listed; nothing is removed then.
pub fn cleanup(bpf_root: &Path, dry_run: bool) -> Result<Cleanup, Error> {
    let root = Pins::new(bpf_root).root;
    let mut cleaner = Cleaner {
        dry_run,
        interfaces: links::interfaces()?.into_iter().collect(),
        report: Cleanup::default(),
    };
    // That it exists is looked at as well: a wrong path has nothing of ours either.
    let ours = cleaner.entries(bpf_root).unwrap_or_default();
    if ours.iter().any(|(_, path)| *path == root) {
        cleaner.root(&root);
    }
    Ok(cleaner.report)
}

struct Cleaner {
    dry_run: bool,
    /// Names by index.
    interfaces: BTreeMap<u32, String>,
    report: Cleanup,
}

impl Cleaner {
    fn root(&mut self, root: &Path) {
        let Some(entries) = self.entries(root) else {
            return;
        };
        let mut gone = true;
        for (is_dir, path) in entries {
            if is_dir && is_version(&name(&path)) {
                gone &= self.tree(&path);
            } else {
                let path = path.display();
                self.report.kept.push(format!("{path}: not Tombolo's"));
                gone = false;
            }
        }
        if gone {
            self.remove("directory", root, |path| fs::remove_dir(path));
        }
    }

    /// A directory with everything below it; true if nothing is left.
    fn tree(&mut self, directory: &Path) -> bool {
        let Some(entries) = self.entries(directory) else {
            return false;
        };
        let mut gone = true;
        for (is_dir, path) in entries {
            gone &= match name(directory).as_str() {
                LINKS => self.remove("link", &path, |path| fs::remove_file(path)),
                FILTERS => self.filter(&path),
                QDISCS => self.discipline(&path),
                _ if is_dir => self.tree(&path),
                _ => self.remove("map", &path, |path| fs::remove_file(path)),
            };
        }
        gone && self.remove("directory", directory, |path| fs::remove_dir(path))
    }

    /// A filter and its record.
    fn filter(&mut self, record: &Path) -> bool {
        if let Some((ifindex, program)) = links::parse(&name(record))
            && let Some(interface) = self.interfaces.get(&ifindex)
        {
            let what = format!("filter {} of {interface}", program.name);
            let act = match self.dry_run {
                true => links::has_own_filter,
                false => links::remove_own_filter,
            };
            match act(ifindex, program) {
                Ok(true) => self.report.removed.push(what),
                Ok(false) => {}
                Err(error) => return self.failed(&what, error),
            }
        }
        self.remove("record", record, |path| fs::remove_dir(path))
    }

    /// A discipline that we made, unless others use it by now, and its record.
    fn discipline(&mut self, record: &Path) -> bool {
        if let Ok(ifindex) = name(record).parse()
            && let Some(interface) = self.interfaces.get(&ifindex)
        {
            let what = format!("clsact discipline of {interface}");
            let remove = || {
                let free = !links::has_foreign_filters(ifindex)?;
                if free && !self.dry_run {
                    links::remove_discipline(ifindex)?;
                }
                Ok::<_, Error>(free)
            };
            match remove() {
                Ok(true) => self.report.removed.push(what),
                Ok(false) => self.report.kept.push(format!("{what}: others use it")),
                Err(error) => return self.failed(&what, error),
            }
        }
        self.remove("record", record, |path| fs::remove_dir(path))
    }

    /// True if it is gone, or would be.
    fn remove(&mut self, kind: &str, path: &Path, act: fn(&Path) -> io::Result<()>) -> bool {
        let what = format!("{kind} {}", path.display());
        let done = if self.dry_run { Ok(()) } else { act(path) };
        match done {
            Ok(()) => self.report.removed.push(what),
            Err(error) => return self.failed(&what, error),
        }
        true
    }

    /// What a directory holds, and whether it is a directory itself. Those come first: programs go
    /// before the maps they use.
    fn entries(&mut self, directory: &Path) -> Option<Vec<(bool, PathBuf)>> {
        let read = || {
            let mut entries = Vec::new();
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                entries.push((entry.file_type()?.is_dir(), entry.path()));
            }
            entries.sort_by(|a, b| (!a.0, &a.1).cmp(&(!b.0, &b.1)));
            Ok::<_, io::Error>(entries)
        };
        match read() {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.failed(&format!("directory {}", directory.display()), error);
                None
            }
        }
    }

    /// Always false: it is not gone.
    fn failed(&mut self, what: &str, error: impl Into<anyhow::Error>) -> bool {
        let error = error.into();
        self.report.failed.push(format!("{what}: {error:#}"));
        false
    }
}

/// `v` and a number.
fn is_version(name: &str) -> bool {
    let digits = name.strip_prefix('v');
    digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|byte| byte.is_ascii_digit()))
}

fn name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    fn left(root: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let mut open = vec![root.to_owned()];
        while let Some(path) = open.pop() {
            for entry in fs::read_dir(&path).unwrap() {
                let path = entry.unwrap().path();
                left.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        left.sort();
        left
    }

    #[test]
    fn versions_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(
            root,
            &["policy", "tombolo/v1/policy", "tombolo/v1/links/9-egress"],
        );
        touch(
            root,
            &[
                "tombolo/v2/ready/cidr",
                "tombolo/v12/unknown",
                "tombolo/v2/policy",
            ],
        );
        // Records of an interface that no machine has.
        fs::create_dir_all(root.join("tombolo/v2/filters/4294967295-ingress")).unwrap();
        fs::create_dir_all(root.join("tombolo/v2/qdiscs/4294967295")).unwrap();

        let before = left(root);
        let told = cleanup(root, true).unwrap();
        assert_eq!(left(root), before);
        let done = cleanup(root, false).unwrap();
        assert_eq!(done, told, "a dry run tells what will happen");
        assert_eq!((done.failed.len(), done.kept.len()), (0, 0));
        assert_eq!(left(root), ["policy"]);
        let text = done.removed.join("\n");
        let link = text.find("link ").unwrap();
        assert!(
            link < text.find("v1/policy").unwrap(),
            "links before maps: {text}"
        );
        assert_eq!(
            cleanup(root, false).unwrap(),
            Cleanup::default(),
            "nothing is left"
        );
    }

    #[test]
    fn others_beside_our_versions_are_named_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &["tombolo/v2/policy", "tombolo/vx/map", "tombolo/v"],
        );
        let done = cleanup(dir.path(), false).unwrap();
        assert_eq!((done.failed.len(), done.kept.len()), (0, 2), "{done:?}");
        assert_eq!(
            left(dir.path()),
            ["tombolo", "tombolo/v", "tombolo/vx", "tombolo/vx/map"]
        );
    }

    #[test]
    fn what_can_not_be_removed_is_named_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &["tombolo/v1/links/odd/file", "tombolo/v2/policy"],
        );
        let done = cleanup(dir.path(), false).unwrap();
        assert_eq!(done.failed.len(), 1, "{done:?}");
        assert!(done.failed[0].contains("v1/links/odd: "), "{done:?}");
        assert!(!dir.path().join("tombolo/v2").exists());
        let missing = cleanup(&dir.path().join("missing"), false).unwrap();
        assert!(missing.failed[0].contains("No such file"), "{missing:?}");
    }
}
