//! Unix sockets that only their owner may use.
//! Invariant: the file never exists with a wider mode than 0600, and what is not a socket, or is
//! somebody's, is left alone.
//! Absent on purpose: removing the file at the end, which could hit that of a process started
//! meanwhile.
use std::{
    fs::{DirBuilder, Permissions},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// `sun_path` of `struct sockaddr_un` has 108 bytes, the last of which is zero.
pub const PATH_BYTES_MAX: usize = 107;

/// Why a socket can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket's directory is missing and can't be made.
    #[error("create the directory of socket {}", path.display())]
    Directory {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody answers there.
    #[error("bind socket {}: another agent uses it; give each its own path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is there; it is not ours to remove.
    #[error("bind socket {}: the file exists and is not a socket; remove it or name another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket can't be bound.
    #[error("bind socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Binds within a temporary directory of mode 0700 and renames: nobody can connect before the mode
/// is set, and a stale socket is replaced in one step. The listener is nonblocking.
///
/// # Errors
/// If the path is taken or can't be bound.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let directory = path.parent().unwrap_or_else(|| Path::new(""));
    if !directory.as_os_str().is_empty() {
        std::fs::create_dir_all(directory).map_err(|source| Error::Directory {
            path: path.into(),
            source,
        })?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(Error::NotASocket { path: path.into() });
        }
        if UnixStream::connect(path).is_ok() {
            return Err(Error::InUse { path: path.into() });
        }
    }
    let temporary = directory.join(format!(".{}", std::process::id()));
    let inside = temporary.join("s");
    let bind = || {
        DirBuilder::new().mode(0o700).create(&temporary)?;
        let listener = UnixListener::bind(&inside)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok(listener)
    };
    let bound = bind().map_err(|source| Error::Bind {
        path: path.into(),
        source,
    });
    // What is not there needs no removal.
    drop(std::fs::remove_dir_all(&temporary));
    bound
}
