//! Which objects the files hold at the moment. Pure.
//!
//! Invariant: a file contributes the objects of its last good version, and none if there never was
//! one. Of an object that is written twice, the first counts, by file name, then by line.
use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    object::{Object, ObjectKey},
    parse::{Located, ParseError, Parsed},
};
use crate::source::FileError;

/// The files of a directory by path, with their objects.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    files: BTreeMap<String, File>,
}

#[derive(Debug, Default)]
struct File {
    objects: Vec<Located>,
    error: Option<FileError>,
}

/// An object and where it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) file: &'a str,
    pub(super) line: u64,
    pub(super) object: &'a Object,
}

impl Found<'_> {
    /// An error at this object.
    pub(super) fn error(&self, message: String) -> FileError {
        FileError {
            file: self.file.to_owned(),
            line: self.line,
            message,
        }
    }
}

impl Inventory {
    /// Takes a file's new version; if it is bad, the last good one stays.
    pub(super) fn set(&mut self, path: &str, version: Result<Parsed, ParseError>) {
        let file = self.files.entry(path.to_owned()).or_default();
        match version {
            Ok(parsed) => {
                *file = File {
                    objects: parsed.objects,
                    error: None,
                }
            }
            Err(ParseError { line, message }) => {
                file.error = Some(FileError {
                    file: path.to_owned(),
                    line,
                    message,
                });
            }
        }
    }

    /// Forgets the files that `keep` does not name.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.files.retain(|path, _| keep(path));
    }

    /// True if some version of the file was seen, good or bad.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// How many files are known.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// True if a file has no good version so far.
    pub(super) fn has_unread(&self) -> bool {
        self.files
            .values()
            .any(|file| file.error.is_some() && file.objects.is_empty())
    }

    /// The objects by key, and what is wrong with the files.
    pub(super) fn objects(&self) -> (BTreeMap<ObjectKey, Found<'_>>, Vec<FileError>) {
        let mut objects = BTreeMap::new();
        let mut errors = Vec::new();
        for (path, file) in &self.files {
            errors.extend(file.error.clone());
            for Located { line, object } in &file.objects {
                let found = Found {
                    file: path,
                    line: *line,
                    object,
                };
                match objects.entry(object.key()) {
                    Entry::Vacant(entry) => {
                        entry.insert(found);
                    }
                    Entry::Occupied(entry) => {
                        let Found { file, line, .. } = entry.get();
                        let key = entry.key();
                        errors.push(found.error(format!("{key} is used from {file} line {line}")));
                    }
                }
            }
        }
        (objects, errors)
    }
}
