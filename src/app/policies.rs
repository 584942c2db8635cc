//! Where policies come from: this node's files and the cluster store, side by side.
use std::sync::{Arc, atomic::AtomicUsize};

use tokio::sync::{mpsc, watch};

use crate::{
    admin::policy::Sources,
    config::Config,
    etcd::Connector,
    lifecycle::Tasks,
    limits::POLICY_EVENTS_MAX,
    policy::{
        Delay, PolicyEvent, Query, directory,
        store::{self, Follower},
    },
};

/// What the sources tell, to be handed on.
pub(super) struct Policies {
    pub(super) events: mpsc::Receiver<PolicyEvent>,
    /// How many there are.
    pub(super) sources: usize,
    pub(super) status: Statuses,
    pub(super) delay: Delay,
}

/// What the sources say of themselves.
#[derive(Clone)]
pub(super) struct Statuses {
    /// `None` without `--policy-dir`.
    pub(super) files: Option<watch::Receiver<Arc<directory::Status>>>,
    pub(super) cluster: watch::Receiver<Arc<store::Status>>,
}

impl Statuses {
    /// For the admin, with the operator's hand in the store and the way to the engine.
    pub(super) fn sources(
        &self,
        store: store::Policies,
        queries: mpsc::Sender<Query>,
        selectors: Arc<AtomicUsize>,
    ) -> Sources {
        Sources {
            store,
            queries,
            selectors,
            cluster: self.cluster.clone(),
            files: self.files.clone(),
        }
    }

    /// What an operator must repair, one line each.
    pub(super) fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        if let Some(files) = &self.files {
            let status = files.borrow();
            errors.extend(status.error.clone());
            errors.extend(status.files.values().filter_map(|file| file.error.clone()));
        }
        let status = self.cluster.borrow();
        errors.extend(
            status
                .error
                .iter()
                .map(|error| format!("policies: {error}")),
        );
        errors.extend(status.policies.iter().filter_map(|(name, policy)| {
            let error = policy.error.as_ref()?;
            Some(format!("policy {name} of the cluster store: {error}"))
        }));
        errors
    }
}

/// Starts following them; `store` reaches the cluster store.
pub(super) fn spawn(tasks: &Tasks, config: &Config, store: &Connector) -> Policies {
    let (sender, events) = mpsc::channel(POLICY_EVENTS_MAX);
    let delay = Delay::default();
    let files = config.policy_dir.as_ref().map(|dir| {
        let saved = config.state_dir.join("policies");
        let (sender, delay) = (sender.clone(), delay.clone());
        let (directory, status) = directory::Directory::new(dir.clone(), saved, sender, delay);
        let cancel = tasks.token();
        tasks.spawn("policy-dir", async move {
            directory.run(cancel).await;
            Ok(())
        });
        status
    });
    let saved = config.state_dir.join("cluster-policies");
    let (node, store) = (config.node_name.clone(), store.clone());
    let (follower, cluster) = Follower::new(store, node, saved, sender, delay.clone());
    let cancel = tasks.token();
    tasks.spawn("policy-store", async move {
        follower.run(cancel).await;
        Ok(())
    });
    Policies {
        events,
        sources: 1 + usize::from(files.is_some()),
        status: Statuses { files, cluster },
        delay,
    }
}
