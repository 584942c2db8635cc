//! How the cluster store is reached: in this process, or at an etcd.
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    etcd::{Client, Connector},
    serve,
    store::Store,
};

/// Connections to the cluster store of this configuration.
pub(super) fn connector(_config: &Config, own: &Store, cancel: CancellationToken) -> Connector {
    let store = own.clone();
    Connector::new(move || Client::in_process(serve::in_process(store.clone(), cancel.clone())))
}
