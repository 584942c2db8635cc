//! Reads what this process logs as errors.
use std::{
    io::{self, Write},
    sync::{Arc, LazyLock, Mutex},
};

use tracing::Level;

/// The text so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

/// Of all cases, from the first call on.
pub(crate) fn errors() -> Log {
    static LOG: LazyLock<Log> = LazyLock::new(|| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(Level::ERROR)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    });
    LOG.clone()
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// The first line with all these words.
    pub(crate) fn line_with(&self, words: &[&str]) -> Option<String> {
        let text = self.text();
        let found = text
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        found.map(ToOwned::to_owned)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
