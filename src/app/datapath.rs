//! Joins mesh, endpoints and policies into changes for the enforcer.
//! Always true: no endpoint reaches the policy engine before all sources of policies were read once,
//! so that a restart never takes an enforced endpoint for one without policy.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    enforcer::{self, Change},
    lifecycle::{ReadyToken, queue::Batch},
    limits::DELTA_BATCH_MAX,
    mesh::{Delta, Deltas, IpTarget, View},
    policy::{self, Engine, PolicyEvent},
    types::{ClusterId, EndpointEvent, IdentityId, IpPrefix, LocalEndpoint},
};

/// Everything the task reads and writes.
pub(super) struct Datapath {
    pub(super) engine: Engine,
    pub(super) deltas: Deltas,
    pub(super) view: View,
    pub(super) endpoint_events: mpsc::Receiver<EndpointEvent>,
    pub(super) policies: mpsc::Receiver<PolicyEvent>,
    /// How many there are that tell of policies.
    pub(super) policy_sources: usize,
    /// What operators ask the engine.
    pub(super) queries: mpsc::Receiver<policy::Query>,
    /// How many different selectors the rules use, for metrics.
    pub(super) selectors: Arc<AtomicUsize>,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) endpoints: watch::Sender<Vec<Arc<LocalEndpoint>>>,
}

/// The policy engine that follows from the configuration, and from the identities that the kernel
/// holds for prefixes.
pub(super) fn engine(
    config: &Config,
    held: impl IntoIterator<Item = (IpPrefix, IdentityId)>,
) -> Engine {
    let options = policy::Options {
        cluster: config.cluster_name.clone(),
        default_local_cluster: config.policy_default_local_cluster,
        enforcement: config.enable_policy,
    };
    Engine::new(options, held)
}

impl Datapath {
    /// Runs until cancelled or until the enforcer is gone. Drops `policies_read` when all sources of
    /// policies were read once.
    pub(super) async fn run(
        mut self,
        policies_read: ReadyToken,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(mut changes) = self.read_policies_once(&cancel).await else {
            return Ok(());
        };
        drop(policies_read);
        loop {
            for change in changes {
                if self.changes.send(change).await.is_err() {
                    anyhow::bail!("the enforcer has ended");
                }
            }
            changes = Vec::new();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                Some(event) = self.policies.recv() => self.policy(event, &mut changes),
                Some(event) = self.endpoint_events.recv() => self.endpoint(event, &mut changes),
                batch = self.deltas.pop_batch(DELTA_BATCH_MAX) => self.batch(batch, &mut changes),
                Some(query) = self.queries.recv() => self.answer(query),
            }
        }
    }

    /// What follows from the policies that there are; `None` if cancelled.
    async fn read_policies_once(&mut self, cancel: &CancellationToken) -> Option<Vec<Change>> {
        let mut changes = Vec::new();
        let mut unread = self.policy_sources;
        while unread > 0 {
            tokio::select! {
                () = cancel.cancelled() => return None,
                event = self.policies.recv() => match event {
                    Some(PolicyEvent::Synced) => unread -= 1,
                    Some(event) => self.policy(event, &mut changes),
                    None => break,
                },
            }
        }
        Some(changes)
    }

    fn policy(&mut self, event: PolicyEvent, changes: &mut Vec<Change>) {
        let mut out = Vec::new();
        match event {
            PolicyEvent::Set { origin, policies } => {
                self.engine.set_policies(&origin, policies, &mut out);
            }
            PolicyEvent::Removed { origin } => self.engine.remove_origin(&origin, &mut out),
            PolicyEvent::Mark(mark) => {
                let selectors = self.engine.selector_count();
                self.selectors.store(selectors, Ordering::Relaxed);
                changes.push(Change::Mark(mark));
            }
            PolicyEvent::Synced => {}
        }
        changes.extend(out.into_iter().map(Change::Map));
    }

    fn answer(&self, policy::Query { question, answer }: policy::Query) {
        // Whoever asked may have gone.
        drop(answer.send(self.engine.trace(&question)));
    }

    fn endpoint(&mut self, event: EndpointEvent, changes: &mut Vec<Change>) {
        let mut out = Vec::new();
        self.engine.apply_endpoint(&event, &mut out);
        self.endpoints.send_modify(|list| match &event {
            EndpointEvent::Upsert(endpoint) => {
                list.retain(|e| e.id != endpoint.id);
                list.push(Arc::clone(endpoint));
            }
            EndpointEvent::Delete(id) => list.retain(|e| e.id != *id),
            EndpointEvent::Synced => {}
        });
        // Entries before the endpoint that they judge; when it goes, the endpoint first.
        let gone = matches!(event, EndpointEvent::Delete(_));
        if gone {
            changes.push(Change::Endpoint(event));
            changes.extend(out.into_iter().map(Change::Map));
        } else {
            changes.extend(out.into_iter().map(Change::Map));
            changes.push(Change::Endpoint(event));
        }
    }

    fn batch(&mut self, batch: Batch<Delta>, changes: &mut Vec<Change>) {
        if batch.lost {
            self.recover(changes);
        }
        self.deltas(batch.items, changes);
        let samples = self.view.propagation.taken(self.deltas.taken());
        changes.extend(samples.into_iter().map(Change::Sampled));
    }

    /// What the engine says of what is new comes before any address of the same batch reaches the
    /// kernel, and what it says of addresses and ports that are gone behind those that leave it.
    fn deltas(&mut self, deltas: Vec<Delta>, changes: &mut Vec<Change>) {
        let (mut out, mut rest) = (Vec::new(), Vec::new());
        let (mut unnamed, mut gone) = (Vec::new(), Vec::new());
        for delta in deltas {
            match delta {
                Delta::Identity { id, labels } => self.engine.apply_identity(id, labels, &mut out),
                Delta::NamedPorts { prefix, ports } if ports.is_empty() => unnamed.push(prefix),
                Delta::NamedPorts { prefix, ports } => {
                    self.engine.apply_named_ports(prefix, &ports, &mut out);
                }
                Delta::Ip { prefix, target } => {
                    match target {
                        Some(IpTarget { identity, .. }) => {
                            self.engine.apply_address(prefix, Some(identity), &mut out);
                        }
                        None => gone.push(prefix),
                    }
                    rest.push(Change::Ip { prefix, target });
                }
                Delta::Synced { cluster } => rest.push(Change::Synced { cluster }),
                Delta::Removed { cluster } => rest.push(Change::RemovedCluster { cluster }),
            }
        }
        changes.extend(out.drain(..).map(Change::Map));
        changes.extend(rest);
        for prefix in unnamed {
            self.engine.apply_named_ports(prefix, &[], &mut out);
        }
        for prefix in gone {
            self.engine.apply_address(prefix, None, &mut out);
        }
        changes.extend(out.into_iter().map(Change::Map));
    }

    /// Deltas were lost: everything is told again, and what is not there any more is withdrawn.
    /// Marks come last, as in the queue, but are read first: what they speak of is in the view then.
    fn recover(&mut self, changes: &mut Vec<Change>) {
        tracing::warn!("The queue of deltas overran; telling everything again");
        let view = self.view.clone();
        let marks: Vec<Delta> = view.marks.iter().map(|mark| mark.clone()).collect();
        let mut all = self.vanished();
        all.extend(view.identities.iter().map(|entry| Delta::Identity {
            id: *entry.key(),
            labels: Some(Arc::clone(&entry.labels)),
        }));
        all.extend(view.ports.iter().map(|entry| Delta::NamedPorts {
            prefix: *entry.key(),
            ports: Arc::clone(entry.value()),
        }));
        all.extend(view.addresses.iter().map(|entry| Delta::Ip {
            prefix: *entry.key(),
            target: Some(*entry.value()),
        }));
        all.extend(marks);
        self.deltas(all, changes);
    }

    /// What was told to engine and enforcer and is not in the view any more, as withdrawals.
    fn vanished(&self) -> Vec<Delta> {
        let (engine, view) = (&self.engine, &self.view);
        let identities = engine.identities();
        let identities = identities.filter(|id| !view.identities.contains_key(id));
        let ports = engine.naming_addresses();
        let ports = ports.filter(|prefix| !view.ports.contains_key(prefix));
        let addresses = engine.addresses();
        let addresses = addresses.filter(|prefix| !view.addresses.contains_key(prefix));
        let identities = identities.map(|id| Delta::Identity { id, labels: None });
        let ports = ports.map(|prefix| Delta::NamedPorts {
            prefix,
            ports: Arc::default(),
        });
        let target = None;
        let addresses = addresses.map(|prefix| Delta::Ip { prefix, target });
        identities.chain(ports).chain(addresses).collect()
    }
}

/// Drops `token` once the kernel holds what follows from the policies, this node's endpoints and
/// the own cluster. Endpoints without an interface are a problem of theirs, and peers are not waited
/// for: a dead one must not hold back a start.
pub(super) async fn reconciled(
    mut status: watch::Receiver<enforcer::Status>,
    own: ClusterId,
    token: ReadyToken,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let done = status.wait_for(|status| {
        let told = status.endpoints_synced && status.clusters_synced.contains(&own.get());
        told && status.pending == 0
    });
    if let Some(done) = cancel.run_until_cancelled(done).await {
        drop(done?);
        drop(token);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
