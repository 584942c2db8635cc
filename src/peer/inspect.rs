//! The peer files as they are now, for tools that look at them without an agent.
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{ConfigFile, ConfigFileError, directory, machine};
use crate::{
    follower::Subject,
    keyspace::ClusterConfig,
    types::{ClusterName, ClusterNameError},
};

/// What the directory holds of one peer.
#[derive(Debug)]
pub struct Configured {
    /// The files that name it; more than one is a conflict.
    pub paths: Vec<PathBuf>,
    /// What the only file says.
    pub file: Result<ConfigFile, Refusal>,
}

/// Why a peer has no usable file.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It can't be read.
    #[error("read it")]
    Read(#[source] io::Error),
    /// It is there, but is no peer file.
    #[error("find endpoints in it: there is no such key, so it counts as no peer file")]
    NoEndpoints,
    /// Its content is refused.
    #[error(transparent)]
    Parse(#[from] ConfigFileError),
    /// Several files name the peer.
    #[error("choose a file: several name this peer")]
    Conflict,
}

/// All peers that the directory names, the own cluster's file left out if `own` is known.
///
/// # Errors
/// If the directory can't be listed.
pub fn configured(
    dir: &Path,
    own: Option<&ClusterName>,
) -> io::Result<BTreeMap<ClusterName, Configured>> {
    let scan = directory::scan_all(dir)?;
    let mut peers = BTreeMap::new();
    for (name, blank) in scan.blank {
        let file = Err(match blank {
            directory::Blank::NoEndpoints => Refusal::NoEndpoints,
            directory::Blank::Unreadable => Refusal::Read(io::ErrorKind::PermissionDenied.into()),
        });
        let paths = directory::paths_of(dir, &name);
        peers.insert(name, Configured { paths, file });
    }
    for (name, files) in scan.files {
        let file = match files.as_slice() {
            [file] => ConfigFile::from_bytes(&file.bytes, dir).map_err(Refusal::Parse),
            _ => Err(Refusal::Conflict),
        };
        let paths = files.into_iter().map(|file| file.path).collect();
        peers.insert(name, Configured { paths, file });
    }
    if let Some(own) = own {
        peers.remove(own);
    }
    Ok(peers)
}

/// The peer that a file of this name is about.
///
/// # Errors
/// If the name, without the endings of peer files, is no cluster name.
pub fn peer_of(path: &Path) -> Result<ClusterName, ClusterNameError> {
    let name = path.file_name().unwrap_or_default();
    directory::peer_name(&name.to_string_lossy())
}

/// Reads one peer file wherever it lies. Relative paths in it are relative to its directory.
///
/// # Errors
/// Why it is refused.
pub fn load(path: &Path) -> Result<ConfigFile, Refusal> {
    let bytes = match directory::read(path) {
        Ok(Some(bytes)) if directory::names_endpoints(&bytes) => bytes,
        Ok(Some(_)) => return Err(Refusal::NoEndpoints),
        Ok(None) if path.exists() => {
            let error = io::Error::new(io::ErrorKind::InvalidData, "it is no file");
            return Err(Refusal::Read(error));
        }
        Ok(None) => return Err(Refusal::Read(io::ErrorKind::NotFound.into())),
        Err(error) => return Err(Refusal::Read(error)),
    };
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    Ok(ConfigFile::from_bytes(&bytes, dir)?)
}

/// What a session with a peer of this configuration follows: in which tree, which kinds, and whether
/// it waits for canaries.
#[must_use]
pub fn subject(name: &ClusterName, config: &ClusterConfig) -> Subject {
    machine::subject(name, config)
}
