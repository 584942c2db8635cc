//! The own cluster as the mesh's first member: its store is read by the same follower as a peer's,
//! over connections that are made once everything local is in it.
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    etcd::Connector,
    follower::{Follower, Sink, Subject},
    keyspace::{ClusterConfig, Kind, Layout},
    peer::MemberEvent,
    types::{ClusterId, ClusterName},
};

/// Follows the cluster store into `sender` until cancelled.
pub(super) async fn run(
    connector: Connector,
    name: ClusterName,
    id: ClusterId,
    sender: mpsc::Sender<MemberEvent>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let member = name.clone();
    let sink = Sink::new(sender, move |events| MemberEvent::Keys {
        name: member.clone(),
        events,
    });
    let subject = Subject {
        cluster: name.clone(),
        layout: Layout::State,
        kinds: Kind::BASIC.to_vec(),
        absent: Vec::new(),
        canaries: false,
    };
    let connected = sink.send(MemberEvent::Connected {
        name,
        id,
        config: ClusterConfig {
            id: id.get(),
            ..ClusterConfig::default()
        },
        allowed_cidrs: Arc::default(),
        relayed: false,
    });
    match cancel.run_until_cancelled(connected).await {
        Some(sent) => sent?,
        None => return Ok(()),
    }
    let connect = || connector.connect();
    let follower = Follower::new(subject);
    // On the heap: the future is large and lives long.
    Ok(Box::pin(follower.run(connect, sink.clone(), cancel.clone())).await?)
}
