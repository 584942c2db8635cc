//! The own cluster's records as the cluster store has them, with what decides who may see them.
//! Pure: events in, keys to look at again out.
//! Always true: the bytes are those of the cluster store; an address depends on its identity, so a
//! change of the identity names its addresses as well.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::export_policy::Grant;
use crate::{
    keyspace::{IpRecord, KeyEvent, Kind, parse_identity_id},
    types::{IdentityId, Labels},
};

/// All records, by kind and by the key behind the kind's prefix.
#[derive(Debug, Default)]
pub(super) struct Entries {
    kinds: HashMap<Kind, BTreeMap<Bytes, Entry>>,
    /// The addresses that carry an identity, whether or not it is known yet.
    addresses: HashMap<IdentityId, BTreeSet<Bytes>>,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    seen_as: SeenAs,
    /// Not confirmed yet by the list that runs.
    stale: bool,
}

/// What visibility depends on.
#[derive(Debug, PartialEq, Eq)]
enum SeenAs {
    Node,
    Service,
    Identity(IdentityId, Labels),
    Address(IdentityId),
    /// Cannot be read: shown only where everything is.
    Opaque,
}

/// A record that may have appeared, changed or gone.
pub(super) type Touched = (Kind, Bytes);

impl Entries {
    /// Takes in one event. An identity comes before the addresses that carry it.
    pub(super) fn apply(&mut self, event: KeyEvent) -> Vec<Touched> {
        match event {
            KeyEvent::Upsert {
                kind,
                suffix,
                value,
                ..
            } => self.upsert(kind, suffix, value),
            KeyEvent::Delete { kind, suffix } => self.remove(kind, suffix),
            KeyEvent::BeginList { kind } => {
                let entries = self.kinds.entry(kind).or_default();
                entries.values_mut().for_each(|entry| entry.stale = true);
                Vec::new()
            }
            KeyEvent::EndList { kind } => {
                let entries = self.kinds.entry(kind).or_default().iter();
                let stale = entries.filter(|(_, entry)| entry.stale);
                let stale: Vec<Bytes> = stale.map(|(suffix, _)| suffix.clone()).collect();
                let gone = stale.into_iter().map(|suffix| self.remove(kind, suffix));
                gone.flatten().collect()
            }
        }
    }

    /// The record's bytes, if it exists and the grant shows it.
    pub(super) fn shown(&self, grant: &Grant, kind: Kind, suffix: &Bytes) -> Option<&Bytes> {
        let entry = self.kinds.get(&kind)?.get(suffix)?;
        let shown = match &entry.seen_as {
            SeenAs::Node => grant.shows_nodes(),
            SeenAs::Service => match str::from_utf8(suffix).ok().and_then(|s| s.split_once('/')) {
                Some((namespace, name)) => grant.shows_service(namespace, name),
                None => *grant == Grant::All,
            },
            SeenAs::Identity(_, labels) => grant.shows_identity(labels),
            SeenAs::Address(id) if id.is_reserved() => grant.shows_nodes(),
            SeenAs::Address(id) => self.labels(*id).is_some_and(|l| grant.shows_identity(l)),
            SeenAs::Opaque => *grant == Grant::All,
        };
        shown.then_some(&entry.value)
    }

    /// Every record, identities before addresses.
    pub(super) fn all(&self) -> impl Iterator<Item = Touched> {
        Kind::BASIC.into_iter().flat_map(|kind| {
            let entries = self.kinds.get(&kind).into_iter().flatten();
            entries.map(move |(suffix, _)| (kind, suffix.clone()))
        })
    }

    fn labels(&self, id: IdentityId) -> Option<&Labels> {
        let suffix = Bytes::from(id.to_string());
        match &self.kinds.get(&Kind::Identities)?.get(&suffix)?.seen_as {
            SeenAs::Identity(_, labels) => Some(labels),
            _ => None,
        }
    }

    fn upsert(&mut self, kind: Kind, suffix: Bytes, value: Bytes) -> Vec<Touched> {
        let entry = Entry {
            seen_as: seen_as(kind, &suffix, &value),
            value,
            stale: false,
        };
        let entries = self.kinds.entry(kind).or_default();
        if let Some(old) = entries.get_mut(&suffix)
            && old.value == entry.value
        {
            old.stale = false;
            return Vec::new();
        }
        self.remove_address(kind, &suffix);
        if let SeenAs::Address(id) = entry.seen_as {
            let addresses = self.addresses.entry(id).or_default();
            addresses.insert(suffix.clone());
        }
        let entries = self.kinds.entry(kind).or_default();
        entries.insert(suffix.clone(), entry);
        self.with_addresses(kind, suffix)
    }

    fn remove(&mut self, kind: Kind, suffix: Bytes) -> Vec<Touched> {
        self.remove_address(kind, &suffix);
        let entries = self.kinds.entry(kind).or_default();
        match entries.remove(&suffix) {
            Some(_) => self.with_addresses(kind, suffix),
            None => Vec::new(),
        }
    }

    fn remove_address(&mut self, kind: Kind, suffix: &Bytes) {
        let entry = self.kinds.get(&kind).and_then(|e| e.get(suffix));
        if let Some(SeenAs::Address(id)) = entry.map(|entry| &entry.seen_as)
            && let Some(addresses) = self.addresses.get_mut(id)
        {
            addresses.remove(suffix);
            if addresses.is_empty() {
                self.addresses.remove(id);
            }
        }
    }

    /// The record itself, and for an identity the addresses that carry it.
    fn with_addresses(&self, kind: Kind, suffix: Bytes) -> Vec<Touched> {
        let carried = (kind == Kind::Identities)
            .then(|| identity_id(&suffix))
            .flatten()
            .and_then(|id| self.addresses.get(&id));
        let addresses = carried.into_iter().flatten().cloned();
        let addresses = addresses.map(|suffix| (Kind::Ips, suffix));
        std::iter::once((kind, suffix)).chain(addresses).collect()
    }
}

fn identity_id(suffix: &[u8]) -> Option<IdentityId> {
    let id = u32::try_from(parse_identity_id(suffix).ok()?);
    id.ok().map(IdentityId)
}

fn seen_as(kind: Kind, suffix: &[u8], value: &[u8]) -> SeenAs {
    match kind {
        Kind::Nodes => SeenAs::Node,
        Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => SeenAs::Service,
        Kind::Identities => identity_id(suffix).map_or(SeenAs::Opaque, |id| {
            SeenAs::Identity(id, Labels::parse(&String::from_utf8_lossy(value)))
        }),
        Kind::Ips => match IpRecord::decode(value) {
            Ok(record) => SeenAs::Address(IdentityId(record.id)),
            Err(_) => SeenAs::Opaque,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{super::export_policy::ExportPolicy, *};

    fn upsert(kind: Kind, suffix: &str, value: &str) -> KeyEvent {
        KeyEvent::Upsert {
            kind,
            suffix: suffix.to_owned().into(),
            value: value.to_owned().into(),
            revision: 1,
        }
    }

    fn identity(id: u32, namespace: &str) -> KeyEvent {
        let labels = format!("k8s:io.kubernetes.pod.namespace={namespace};");
        upsert(Kind::Identities, &id.to_string(), &labels)
    }

    fn address(ip: &str, id: u32) -> KeyEvent {
        upsert(Kind::Ips, ip, &format!("{{\"IP\":\"{ip}\",\"ID\":{id}}}"))
    }

    fn touched(entries: &mut Entries, event: KeyEvent) -> Vec<String> {
        let text = |(_, suffix): Touched| String::from_utf8(suffix.to_vec()).unwrap();
        entries.apply(event).into_iter().map(text).collect()
    }

    fn shop() -> Grant {
        let text = "[{peer: west, namespaces: [shop], services: []}]";
        ExportPolicy::parse(text).unwrap().grant(Some("west"))
    }

    fn shown(entries: &Entries, grant: &Grant) -> Vec<String> {
        let shown = entries
            .all()
            .filter(|(kind, suffix)| entries.shown(grant, *kind, suffix).is_some());
        shown
            .map(|(_, suffix)| String::from_utf8(suffix.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn an_address_is_never_shown_without_its_identity() {
        let mut entries = Entries::default();
        assert_eq!(
            touched(&mut entries, address("10.0.0.1", 65_537)),
            ["10.0.0.1"]
        );
        assert!(shown(&entries, &shop()).is_empty());
        let both = ["65537", "10.0.0.1"];
        assert_eq!(touched(&mut entries, identity(65_537, "shop")), both);
        assert_eq!(shown(&entries, &shop()), both);
        // The identity moves out of what the peer may see, and its address with it.
        assert_eq!(touched(&mut entries, identity(65_537, "ops")), both);
        assert!(shown(&entries, &shop()).is_empty());
        assert_eq!(shown(&entries, &Grant::All), both);
        touched(&mut entries, identity(65_537, "shop"));
        let gone = KeyEvent::Delete {
            kind: Kind::Identities,
            suffix: "65537".into(),
        };
        assert_eq!(touched(&mut entries, gone), both);
        assert!(shown(&entries, &shop()).is_empty());
        assert!(shown(&entries, &Grant::All).is_empty());
    }

    #[test]
    fn an_address_that_changes_hands_follows_its_new_identity() {
        let mut entries = Entries::default();
        touched(&mut entries, identity(65_537, "shop"));
        touched(&mut entries, identity(65_538, "ops"));
        touched(&mut entries, address("10.0.0.1", 65_537));
        touched(&mut entries, address("10.0.0.1", 65_538));
        assert_eq!(shown(&entries, &shop()), ["65537"]);
        assert_eq!(touched(&mut entries, identity(65_537, "x")), ["65537"]);
        assert_eq!(
            touched(&mut entries, identity(65_538, "shop")),
            ["65538", "10.0.0.1"]
        );
    }

    #[test]
    fn nodes_services_and_unreadable_records() {
        let mut entries = Entries::default();
        for event in [
            upsert(Kind::Nodes, "n1", "{}"),
            upsert(Kind::Services, "shop/cart", "{}"),
            upsert(Kind::Ips, "10.0.0.9", "not json"),
            upsert(Kind::Identities, "x", "k8s:a=b;"),
            address("192.0.2.1", 1),
        ] {
            touched(&mut entries, event);
        }
        assert_eq!(shown(&entries, &Grant::All).len(), 5);
        assert_eq!(shown(&entries, &shop()), ["n1", "192.0.2.1"]);
        let nothing = ExportPolicy::parse("[]").unwrap().grant(None);
        assert!(shown(&entries, &nothing).is_empty());
        let services = ExportPolicy::parse("[{peer: '*', services: [shop/cart]}]").unwrap();
        assert!(shown(&entries, &services.grant(None)).contains(&"shop/cart".to_owned()));
    }

    #[test]
    fn a_list_sweeps_what_it_did_not_confirm_and_touches_nothing_else() {
        let mut entries = Entries::default();
        for event in [address("10.0.0.1", 65_537), address("10.0.0.2", 65_537)] {
            touched(&mut entries, event);
        }
        let kind = Kind::Ips;
        assert!(touched(&mut entries, KeyEvent::BeginList { kind }).is_empty());
        assert!(touched(&mut entries, address("10.0.0.2", 65_537)).is_empty());
        assert_eq!(
            touched(&mut entries, KeyEvent::EndList { kind }),
            ["10.0.0.1"]
        );
        let end = KeyEvent::EndList {
            kind: Kind::Services,
        };
        assert!(touched(&mut entries, end).is_empty());
    }
}
