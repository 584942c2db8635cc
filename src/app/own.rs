//! The own cluster as the mesh's first member: its store is read by the same follower as a peer's,
//! over a connection inside the process.
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    etcd::Client,
    follower::{self, Sink, Subject},
    keyspace::{Kind, Layout},
    peer::MemberEvent,
    serve,
    store::Store,
    types::{ClusterId, ClusterName},
};

/// Pause before the in-process connection is made anew, should it ever break.
const RETRY: Duration = Duration::from_millis(100);

/// Follows `store` into `sender` until cancelled.
pub(super) async fn run(
    store: Store,
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
        kinds: Kind::ALL.to_vec(),
        canaries: false,
    };
    let follow = async {
        sink.send(MemberEvent::Connected {
            name: name.clone(),
            id,
        })
        .await?;
        loop {
            let channel = serve::in_process(store.clone(), cancel.clone());
            let client = Client::in_process(channel).await?;
            let Err(error) = follower::follow(&client, &subject, &sink, |_| ()).await;
            tracing::warn!(
                error = format!("{error:#}"),
                "Following the own store broke off"
            );
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        result = follow => result,
    }
}
