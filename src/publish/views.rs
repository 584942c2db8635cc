//! The export's views: a store for each distinct grant, and who reads which.
//! Always true: peers with equal grants share one store; whose grant changes gets another store, and
//! what reads the former one for them ends, because revisions of two stores do not compare.
//! One writer, the projection, fills the stores and replaces the views; `serve` looks them up.
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio_util::sync::CancellationToken;

use super::export_policy::{ExportPolicy, Grant};
use crate::store::Store;

/// The views as `serve` finds them. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub struct Views {
    current: Arc<RwLock<Bindings>>,
    make: fn() -> Store,
}

/// Who reads which store.
#[derive(Debug)]
pub(super) struct Bindings {
    /// Of the peers that the policy names.
    named: BTreeMap<String, Bound>,
    /// Of everybody else, CN `remote` included.
    others: Bound,
}

#[derive(Debug, Clone)]
struct Bound {
    grant: Grant,
    view: View,
}

/// What one peer reads.
#[derive(Debug, Clone)]
pub struct View {
    /// Its store.
    pub store: Store,
    /// Fires when the peer has to read elsewhere.
    pub ended: CancellationToken,
}

impl Views {
    /// The views of `policy`, in stores that `make` yields and the projection fills.
    #[must_use]
    pub fn new(policy: &ExportPolicy, make: fn() -> Store) -> Self {
        let current = bind(policy, BTreeMap::new(), make);
        Self {
            current: Arc::new(RwLock::new(current)),
            make,
        }
    }

    /// What the holder of CN `remote-<peer>` reads, or of CN `remote` for `None`.
    #[must_use]
    pub fn of(&self, peer: Option<&str>) -> View {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let named = peer.and_then(|peer| current.named.get(peer));
        named.unwrap_or(&current.others).view.clone()
    }

    /// Each store once, with what it shows.
    pub(super) fn stores(&self) -> BTreeMap<Grant, Store> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.stores()
    }

    /// The bindings of another policy: grants that exist keep their store, the others have an empty
    /// one that has to be filled before [`Self::replace`].
    pub(super) fn next(&self, policy: &ExportPolicy) -> Bindings {
        bind(policy, self.stores(), self.make)
    }

    /// Goes over to `next`. Peers whose grant stays keep their streams; when names appear or vanish,
    /// those without a name read anew, as one of them may have got one.
    pub(super) fn replace(&self, mut next: Bindings) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let same_names = next.named.keys().eq(current.named.keys());
        for (peer, old) in &current.named {
            match next.named.get_mut(peer) {
                Some(new) if new.grant == old.grant => new.view = old.view.clone(),
                _ => old.view.ended.cancel(),
            }
        }
        if same_names && next.others.grant == current.others.grant {
            next.others.view = current.others.view.clone();
        } else {
            current.others.view.ended.cancel();
        }
        *current = next;
    }
}

impl Bindings {
    pub(super) fn stores(&self) -> BTreeMap<Grant, Store> {
        let all = self.named.values().chain([&self.others]);
        all.map(|bound| (bound.grant.clone(), bound.view.store.clone()))
            .collect()
    }
}

/// A view for everybody: stores that exist are used again, missing ones are made.
fn bind(
    policy: &ExportPolicy,
    mut stores: BTreeMap<Grant, Store>,
    make: fn() -> Store,
) -> Bindings {
    let mut bound = |peer: Option<&str>| {
        let grant = policy.grant(peer);
        let store = stores.entry(grant.clone()).or_insert_with(make).clone();
        let ended = CancellationToken::new();
        Bound {
            grant,
            view: View { store, ended },
        }
    };
    Bindings {
        named: policy
            .named()
            .map(|name| (name.to_string(), bound(Some(name.as_str()))))
            .collect(),
        others: bound(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    fn views(text: &str) -> Views {
        Views::new(&ExportPolicy::parse(text).unwrap(), || {
            Store::new(Options {
                cluster_id: rand::random(),
                history_max: 10,
            })
        })
    }

    fn replace(views: &Views, text: &str) {
        views.replace(views.next(&ExportPolicy::parse(text).unwrap()));
    }

    fn id(views: &Views, peer: &str) -> u64 {
        views.of(Some(peer)).store.cluster_id()
    }

    #[test]
    fn equal_grants_share_a_store_and_the_rest_has_its_own() {
        let views = views("[{peer: a, namespaces: [x]}, {peer: b, namespaces: [x]}, {peer: c}]");
        assert_eq!(id(&views, "a"), id(&views, "b"));
        assert_ne!(id(&views, "a"), id(&views, "c"));
        assert_eq!(id(&views, "d"), views.of(None).store.cluster_id());
        assert_ne!(id(&views, "d"), id(&views, "a"));
        assert_eq!(views.stores().len(), 3);
    }

    #[test]
    fn only_those_whose_grant_changed_read_anew() {
        let views = views("[{peer: a, namespaces: [x]}, {peer: b, namespaces: [x]}]");
        let before = ["a", "b", "z"].map(|peer| views.of(Some(peer)));
        let ended = || before.each_ref().map(|view| view.ended.is_cancelled());
        replace(
            &views,
            "[{peer: a, namespaces: [x]}, {peer: b, namespaces: [y]}]",
        );
        assert_eq!(ended(), [false, true, false]);
        assert_eq!(id(&views, "a"), before[0].store.cluster_id());
        assert_ne!(id(&views, "b"), before[1].store.cluster_id());
        // `z` gets a name; `a` loses its own.
        let b = views.of(Some("b"));
        replace(
            &views,
            "[{peer: z, namespaces: [y]}, {peer: b, namespaces: [y]}]",
        );
        assert_eq!(ended(), [true; 3]);
        assert!(!b.ended.is_cancelled());
        assert_eq!(id(&views, "z"), id(&views, "b"));
        assert_eq!(views.stores().len(), 2);
    }
}
