//! The one task that owns the mesh: takes the events of all members, each from a bounded channel
//! of its own, so that a busy member makes only itself wait.
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, StreamMap, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{MEMBERS_MAX, PEER_QUEUE_BATCHES},
    mesh::{Mesh, Terms},
    peer::MemberEvent,
    types::ClusterName,
};

type Joining = (ClusterName, mpsc::Receiver<MemberEvent>);

/// Opens a channel into the mesh for a member. A second call for the same member replaces its
/// first channel: what was not taken from that one is dropped, and the new session lists anew.
#[derive(Debug, Clone)]
pub(super) struct Members(mpsc::Sender<Joining>);

impl Members {
    pub(super) fn join(&self, name: ClusterName) -> mpsc::Sender<MemberEvent> {
        let (sender, receiver) = mpsc::channel(PEER_QUEUE_BATCHES);
        if self.0.try_send((name.clone(), receiver)).is_err() {
            tracing::error!(cluster = %name, "Too many members join at once; this one stays out");
        }
        sender
    }
}

/// The handle and the receiving end for `run`.
pub(super) fn channel() -> (Members, mpsc::Receiver<Joining>) {
    let (sender, receiver) = mpsc::channel(MEMBERS_MAX);
    (Members(sender), receiver)
}

/// Applies members' events until cancelled.
pub(super) async fn run(
    mut mesh: Mesh,
    mut joining: mpsc::Receiver<Joining>,
    cancel: CancellationToken,
) {
    let mut members = StreamMap::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some((name, receiver)) = joining.recv() => {
                members.insert(name, ReceiverStream::new(receiver));
            }
            Some((_, event)) = members.next(), if !members.is_empty() => match event {
                MemberEvent::Connected { name, id, config, allowed_cidrs } => {
                    let terms = Terms { id, config, allowed_cidrs };
                    mesh.connected(&name, terms);
                }
                MemberEvent::Keys { name, events } => mesh.apply(&name, events),
                MemberEvent::Expired { name } => mesh.expire_services(&name),
                MemberEvent::Removed { name } => mesh.removed(&name),
            },
        }
    }
}
