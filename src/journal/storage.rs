//! What the log needs of a disk: a flat directory of files whose writes are lost or kept in any
//! combination until they are synced. The crash tests put their own disk below the same code.
use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

/// A directory.
pub(super) trait Storage: Send + Sync {
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Reads a file from its beginning.
    fn read(&self, name: &str) -> io::Result<Box<dyn Read>>;
    /// Creates a file, or empties it if it is there.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens a file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Gives a file another name, replacing who has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns once the names are as durable as they get.
    fn sync(&self) -> io::Result<()>;
}

/// A file open for writing.
pub(super) trait File: Send {
    /// Takes disk space for this many bytes, as far as the file system can promise it.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Writes all of `bytes`, or fails with any part of them written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written is durable, and the length with it.
    fn sync(&self) -> io::Result<()>;
}

/// A real directory.
#[derive(Debug)]
pub(super) struct Directory(pub(super) PathBuf);

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.0)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let file = fs::File::open(self.0.join(name))?;
        Ok(Box::new(io::BufReader::with_capacity(1 << 20, file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(options.open(self.0.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().write(true).open(self.0.join(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }
}

impl File for fs::File {
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        use rustix::{
            fs::{FallocateFlags, fallocate},
            io::Errno,
        };
        match fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // Not every file system can; then a full disk shows with a write.
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
