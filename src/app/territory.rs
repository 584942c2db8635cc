//! The own cluster's addresses as last known, on disk: while its store can't be read after a
//! restart, no peer gets any of them. Where nothing is known of them, peers wait.
use std::{collections::BTreeSet, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    limits,
    mesh::{Mesh, View},
    saved::Saved,
    types::{ClusterId, IpPrefix},
};

/// The name of the copy.
const FILE: &str = "addresses";
/// Its last line: a text without it is half of one.
const END: &str = "end";

/// What is saved, and where.
pub(super) struct Territory {
    saved: Saved,
    own: ClusterId,
}

impl Territory {
    /// Kept below `state_dir`.
    pub(super) fn new(state_dir: &Path, own: ClusterId) -> Self {
        let saved = Saved::new(state_dir.join("own"));
        Self { saved, own }
    }

    /// Tells the mesh what was saved. A damaged file is as none, and that is logged.
    pub(super) async fn restore(&self, mesh: &mut Mesh) {
        let Some(text) = self.saved.last_good(Path::new(FILE)).await else {
            return;
        };
        match parse(&text) {
            Some(own) => {
                tracing::info!(count = own.len(), "Own addresses restored from disk");
                mesh.remember(own);
            }
            None => tracing::error!(
                "Saved addresses of the own cluster are damaged; peers wait until its store is read"
            ),
        }
    }

    /// Saves what the own cluster has, whenever that changed since the last look, and when
    /// cancelled.
    pub(super) async fn keep(self, view: View, cancel: CancellationToken) {
        let mut kept = None;
        let mut last = false;
        while !last {
            last = cancel
                .run_until_cancelled(tokio::time::sleep(limits::OWN_SAVE_INTERVAL))
                .await
                .is_none();
            // Before that it would be less than what is there.
            if *view.own_known.borrow() {
                kept = Some(self.save(&view, kept).await);
            }
        }
    }

    async fn save(&self, view: &View, kept: Option<BTreeSet<IpPrefix>>) -> BTreeSet<IpPrefix> {
        let own = own_prefixes(view, self.own);
        if kept.as_ref() != Some(&own) {
            self.saved.keep(Path::new(FILE), &text(&own)).await;
        }
        own
    }
}

/// Returns once peers may be heard, and at shutdown.
pub(super) async fn known(view: View, cancel: &CancellationToken) {
    let mut known = view.own_known.subscribe();
    let wait = async {
        while tokio::time::timeout(PATIENCE, known.wait_for(|known| *known))
            .await
            .is_err()
        {
            tracing::warn!(
                "Peers wait until the own cluster's store was read once: what is ours is not known"
            );
        }
    };
    cancel.run_until_cancelled(wait).await;
}

/// Between warnings that nothing is imported.
const PATIENCE: Duration = Duration::from_secs(30);

fn own_prefixes(view: &View, own: ClusterId) -> BTreeSet<IpPrefix> {
    let ours = view.addresses.iter();
    let ours = ours.filter(|entry| entry.value().cluster == own);
    let nodes = view.territory.iter().map(|entry| *entry.key());
    ours.map(|entry| *entry.key()).chain(nodes).collect()
}

fn text(own: &BTreeSet<IpPrefix>) -> String {
    let lines = own.iter().map(ToString::to_string);
    let lines: Vec<String> = lines.chain([END.to_owned()]).collect();
    lines.join("\n")
}

fn parse(text: &str) -> Option<Vec<IpPrefix>> {
    let lines = text.strip_suffix(END)?.lines();
    lines.map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        keyspace::{ClusterConfig, KeyEvent, Kind},
        mesh::{Deltas, Settings, Terms},
        store::{Options, Store},
        types::{ClusterName, MaxClusters},
    };

    fn mesh() -> Mesh {
        let settings = Settings {
            cluster_name: "east".parse().unwrap(),
            cluster_id: id(1),
            max_clusters: MaxClusters::C255,
            node_name: "node1".into(),
        };
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 100,
        });
        Mesh::new(settings, cache, Deltas::new(100))
    }

    fn id(number: u32) -> ClusterId {
        ClusterId::new(number, MaxClusters::C255).unwrap()
    }

    fn join(mesh: &mut Mesh, name: &str, number: u32, ips: &[(&str, u32)]) {
        let name: ClusterName = name.parse().unwrap();
        let terms = Terms {
            id: id(number),
            config: ClusterConfig::default(),
            allowed_cidrs: Arc::default(),
            relayed: false,
        };
        mesh.connected(&name, terms);
        for kind in [Kind::Nodes, Kind::Ips] {
            mesh.apply(&name, [KeyEvent::BeginList { kind }]);
            let of_kind = ips.iter().filter(|_| kind == Kind::Ips);
            let events = of_kind.map(|(ip, identity)| KeyEvent::Upsert {
                kind,
                suffix: (*ip).to_owned().into(),
                value: format!(r#"{{"IP":"{ip}","ID":{identity}}}"#).into(),
                revision: 1,
            });
            mesh.apply(&name, events);
            mesh.apply(&name, [KeyEvent::EndList { kind }]);
        }
    }

    const OURS: (&str, u32) = ("10.1.0.5", 65_537);
    const THEIRS: (&str, u32) = ("10.1.0.5", 131_073);

    /// Goal: what the own cluster had stays out of peers' reach over a restart while its store is
    /// lost, and what it does not have any more comes free once that is read.
    #[tokio::test]
    async fn peers_get_no_own_address_after_a_restart_without_the_own_store() {
        let dir = tempfile::tempdir().unwrap();
        let territory = || Territory::new(dir.path(), id(1));
        let mut first = mesh();
        territory().restore(&mut first).await;
        assert!(!*first.view().own_known.borrow(), "nothing is known yet");
        join(&mut first, "east", 1, &[OURS]);
        assert!(*first.view().own_known.borrow());
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        territory().keep(first.view(), cancelled).await;

        let mut second = mesh();
        territory().restore(&mut second).await;
        let view = second.view();
        assert!(*view.own_known.borrow());
        join(&mut second, "west", 2, &[THEIRS]);
        assert!(view.addresses.is_empty(), "{:?}", view.addresses);
        join(&mut second, "east", 1, &[]);
        let owner = view.addresses.get(&"10.1.0.5".parse().unwrap());
        assert_eq!(owner.map(|target| target.cluster), Some(id(2)));
        assert!(view.territory.is_empty());
    }

    #[tokio::test]
    async fn half_a_file_or_another_one_is_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let territory = Territory::new(dir.path(), id(1));
        for text in ["", "10.1.0.0/24\n", "10.1.0.0/24\nx\nend"] {
            territory.saved.keep(Path::new(FILE), text).await;
            let mut mesh = mesh();
            territory.restore(&mut mesh).await;
            assert!(!*mesh.view().own_known.borrow(), "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn peers_wait_for_the_own_cluster_and_not_longer() {
        let (mut mesh, cancel) = (mesh(), CancellationToken::new());
        let view = mesh.view();
        let mut waiting = Box::pin(known(view.clone(), &cancel));
        let early = tokio::time::timeout(3 * PATIENCE, &mut waiting).await;
        assert!(early.is_err());
        join(&mut mesh, "east", 1, &[OURS]);
        waiting.await;
    }
}
