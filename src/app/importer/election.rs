//! Who imports, as far as this node can tell. Pure: what the cluster store said goes in.
//!
//! Always true: once somebody is known to import, the store's word changes that. While the store is
//! out of reach, who imports goes on importing, and the others go on reading its cache; only who
//! reaches neither imports for itself, until the store is back.
use std::time::Duration;

use tokio::time::Instant;

use crate::limits;

/// What stands in the lock's key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Holder {
    /// The node that imports.
    pub(super) node: String,
    /// Where the others read its cache, `https://host:port`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) endpoint: Option<String>,
}

impl Holder {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Strings always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A value that is none of ours stands for a node without a name, that cannot be reached.
    pub(super) fn decode(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_else(|_| Self {
            node: String::new(),
            endpoint: None,
        })
    }
}

/// Who imports.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Importer<'a> {
    Unknown,
    This,
    Other(&'a Holder),
}

#[derive(Debug)]
pub(super) struct Election {
    node: String,
    started: Instant,
    patience: Duration,
    holder: Option<Holder>,
    /// Since when neither the store nor the holder's cache can be reached.
    alone: Option<Instant>,
}

impl Election {
    /// For `node`. A store that says nothing for `patience` is not waited for any longer.
    pub(super) const fn new(node: String, started: Instant, patience: Duration) -> Self {
        Self {
            node,
            started,
            patience,
            holder: None,
            alone: None,
        }
    }

    /// The store says who holds the lock.
    pub(super) fn held_by(&mut self, holder: Holder) {
        self.holder = Some(holder);
        self.alone = None;
    }

    /// The store is out of reach; the holder's cache is or is not.
    pub(super) fn without_store(&mut self, now: Instant, cache: bool) {
        let alone = (!cache).then(|| self.alone.unwrap_or(now));
        // Who is alone for long stays so: to go back and forth would cost lists.
        if !self.is_alone(now) {
            self.alone = alone;
        }
    }

    fn is_alone(&self, now: Instant) -> bool {
        self.alone
            .is_some_and(|since| now >= since + limits::IMPORTER_LEASE_TTL)
    }

    pub(super) fn is_this(&self, holder: &Holder) -> bool {
        holder.node == self.node
    }

    pub(super) fn importer(&self, now: Instant) -> Importer<'_> {
        match &self.holder {
            Some(holder) if self.is_this(holder) || self.is_alone(now) => Importer::This,
            Some(holder) => Importer::Other(holder),
            // Several may do so at once; that costs connections, and nothing else.
            None if now >= self.deadline() => Importer::This,
            None => Importer::Unknown,
        }
    }

    /// When a node that was told nothing imports for itself.
    pub(super) fn deadline(&self) -> Instant {
        self.started + self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(node: &str) -> Holder {
        Holder {
            node: node.to_owned(),
            endpoint: Some("https://192.0.2.2:2379".to_owned()),
        }
    }

    #[test]
    fn only_the_store_changes_who_imports() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut election = Election::new("n1".to_owned(), start, Duration::from_secs(5));
        assert_eq!(election.importer(at(4)), Importer::Unknown);
        assert_eq!(election.importer(at(5)), Importer::This);
        election.held_by(holder("n2"));
        assert_eq!(election.importer(at(5)), Importer::Other(&holder("n2")));
        // However long the store is silent.
        assert_eq!(election.importer(at(9999)), Importer::Other(&holder("n2")));
        election.held_by(holder("n1"));
        assert_eq!(election.importer(at(0)), Importer::This);
    }

    #[test]
    fn a_node_that_reaches_nobody_imports_until_the_store_is_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut election = Election::new("n1".to_owned(), start, Duration::from_secs(5));
        election.held_by(holder("n2"));
        election.without_store(at(10), false);
        election.without_store(at(12), false);
        assert_eq!(election.importer(at(12)), Importer::Other(&holder("n2")));
        election.without_store(at(12), true);
        election.without_store(at(14), false);
        assert_eq!(election.importer(at(16)), Importer::Other(&holder("n2")));
        assert_eq!(election.importer(at(17)), Importer::This);
        election.without_store(at(18), true);
        assert_eq!(election.importer(at(18)), Importer::This);
        election.held_by(holder("n2"));
        assert_eq!(election.importer(at(18)), Importer::Other(&holder("n2")));
    }

    #[test]
    fn the_locks_value_is_json_that_others_can_add_to() {
        assert_eq!(
            holder("n2").encode(),
            br#"{"node":"n2","endpoint":"https://192.0.2.2:2379"}"#
        );
        let nowhere = Holder::decode(br#"{"node":"n3","since":7}"#);
        assert_eq!((nowhere.node.as_str(), &nowhere.endpoint), ("n3", &None));
        assert_eq!(Holder::decode(b"what?").node, "");
    }
}
