//! The cluster store and how it is reached: in this process, or at an etcd whose file is read for
//! each connection, so that new endpoints and certificates count from the next one on. With an etcd
//! there is no store in this process, neither on the disk nor to be asked by others.
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Kvstore},
    etcd::{Client, Connector, Error},
    journal::{self, Journal, Writer},
    lifecycle::Tasks,
    limits::STORE_HISTORY_EVENTS_MAX,
    peer::ConfigFile,
    serve,
};

/// Opens the embedded cluster store, if that is the engine. It must be served at once: its leases
/// live from now on.
pub(super) async fn open(tasks: &Tasks, config: &Config) -> anyhow::Result<Option<Journal>> {
    if config.kvstore != Kvstore::Embedded {
        return Ok(None);
    }
    let directory = config.state_dir.join("store");
    let path = directory.clone();
    let open = move || journal::open(&path, STORE_HISTORY_EVENTS_MAX, Instant::now());
    let (journal, runner) = tokio::task::spawn_blocking(open)
        .await
        .context("open the cluster store")?
        .with_context(|| format!("open the cluster store in {}", directory.display()))?;
    tasks
        .spawn_thread("journal", move |cancel| {
            runner.run(&cancel);
            Ok(())
        })
        .context("start the thread of the cluster store")?;
    Ok(Some(journal))
}

/// Connections to the cluster store; `embedded` is what [`open`] opened.
///
/// # Errors
/// If the engine is the embedded store and none was opened.
pub(super) fn connector(
    kvstore: &Kvstore,
    embedded: Option<&Writer>,
    cancel: CancellationToken,
) -> anyhow::Result<Connector> {
    match kvstore {
        Kvstore::Embedded => {
            let writer = embedded.context("the cluster store is not open")?.clone();
            Ok(Connector::new(move || {
                Client::in_process(serve::in_process(writer.clone(), cancel.clone()))
            }))
        }
        Kvstore::Etcd { config } => Ok(external(config.clone())),
    }
}

/// Connections to the etcd of a client file.
pub(super) fn external(config: PathBuf) -> Connector {
    Connector::new(move || connect(config.clone()))
}

async fn connect(path: PathBuf) -> Result<Client, Error> {
    match read(&path).await {
        Ok(file) => Client::connect_to_store(&file.connect).await,
        Err(reason) => Err(Error::File { path, reason }),
    }
}

async fn read(path: &Path) -> Result<ConfigFile, String> {
    let about = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| about(&error))?;
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    ConfigFile::parse(&text, dir).map_err(|error| about(&error))
}
