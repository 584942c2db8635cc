//! Which source tells what is local.
use anyhow::Context as _;
use tokio::sync::{mpsc, watch};

use super::engine;
use crate::{
    config::Config,
    etcd::Connector,
    lifecycle::Tasks,
    netdev::Netdev,
    source::{
        LocalEvent, Status,
        kvstore::{Kvstore, Producer},
        manifests::{Manifests, Place},
    },
};

/// What the source says of itself, if there is one.
pub(super) type SourceStatus = Option<watch::Receiver<Status>>;

/// Starts the configured source; without one, says that nothing is local. `store` reaches the
/// cluster store.
pub(super) async fn spawn(
    tasks: &Tasks,
    config: &Config,
    store: &Connector,
    events: mpsc::Sender<LocalEvent>,
) -> anyhow::Result<SourceStatus> {
    if let Some(dir) = &config.manifests_dir {
        let place = Place {
            cluster: config.cluster_name.clone(),
            node_name: config.node_name.clone(),
        };
        let saved = config.state_dir.join("manifests");
        let netdev = Netdev::open().context("open netlink")?;
        let source = Manifests::new(dir, saved, place, Some(netdev), events);
        let status = source.status();
        let cancel = tasks.token();
        tasks.spawn("manifests", async move { Ok(source.run(cancel).await?) });
        return Ok(Some(status));
    }
    if let Some(file) = &config.kvstore_source {
        let producer = Producer {
            name: config.cluster_name.clone(),
            id: config.cluster_id,
            max: config.max_clusters,
        };
        let ends = (engine::external(file.clone()), store.clone());
        let source = Kvstore::new(producer, ends, file.clone(), events);
        let status = source.status();
        let cancel = tasks.token();
        tasks.spawn(
            "kvstore-source",
            async move { Ok(source.run(cancel).await?) },
        );
        return Ok(Some(status));
    }
    // Nothing local: the publisher still has to hear that this is all there is.
    events.send(LocalEvent::Synced).await.context("publish")?;
    Ok(None)
}
