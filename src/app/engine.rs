//! How the cluster store is reached: in this process, or at an etcd whose file is read for each
//! connection, so that new endpoints and certificates count from the next one on.
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::{
    config::Kvstore,
    etcd::{Client, Connector, Error},
    journal::Writer,
    peer::ConfigFile,
    serve,
};

/// Connections to the cluster store; `embedded` is the one in this process.
pub(super) fn connector(
    kvstore: &Kvstore,
    embedded: &Writer,
    cancel: CancellationToken,
) -> Connector {
    match kvstore {
        Kvstore::Embedded => {
            let writer = embedded.clone();
            Connector::new(move || {
                Client::in_process(serve::in_process(writer.clone(), cancel.clone()))
            })
        }
        Kvstore::Etcd { config } => external(config.clone()),
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
