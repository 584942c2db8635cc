//! Another producer's records as ours would be: own cluster, our field order, no more than what is
//! known. Pure: key events in, local events out.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::{
    keyspace::{self, IpRecord, KeyEvent, Kind, NodeRecord, Rejection, ServiceRecord},
    limits::VALUE_BYTES_MAX,
    source::{LocalEvent, LocalRecord},
    types::{ClusterId, ClusterName, MaxClusters},
};

/// Whose records are taken.
#[derive(Debug, Clone)]
pub struct Producer {
    /// The own cluster.
    pub name: ClusterName,
    /// Its id.
    pub id: ClusterId,
    /// Size of the mesh: decides the identity range.
    pub max: MaxClusters,
}

/// What is published of one source.
#[derive(Debug)]
pub(super) struct Normalizer {
    producer: Producer,
    entries: HashMap<Kind, BTreeMap<Bytes, Entry>>,
    listed: BTreeSet<Kind>,
    synced: bool,
    /// How many by reason, and the last offender.
    rejected: BTreeMap<&'static str, (u64, String)>,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    /// Not confirmed yet by the list that runs.
    stale: bool,
}

impl Normalizer {
    pub(super) fn new(producer: Producer) -> Self {
        Self {
            producer,
            entries: HashMap::new(),
            listed: BTreeSet::new(),
            synced: false,
            rejected: BTreeMap::new(),
        }
    }

    pub(super) const fn cluster(&self) -> &ClusterName {
        &self.producer.name
    }

    /// All kinds were listed once.
    pub(super) const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Counts of what is not published, with the last key of each reason.
    pub(super) fn rejected(&self) -> impl Iterator<Item = (&'static str, &(u64, String))> {
        self.rejected.iter().map(|(reason, count)| (*reason, count))
    }

    pub(super) fn apply(&mut self, event: KeyEvent) -> Vec<LocalEvent> {
        match event {
            KeyEvent::Upsert {
                kind,
                suffix,
                value,
                ..
            } => self.upsert(kind, suffix, &value),
            KeyEvent::Delete { kind, suffix } => self.remove(kind, suffix),
            KeyEvent::BeginList { kind } => {
                let entries = self.entries.entry(kind).or_default();
                entries.values_mut().for_each(|entry| entry.stale = true);
                Vec::new()
            }
            KeyEvent::EndList { kind } => self.end_list(kind),
        }
    }

    fn upsert(&mut self, kind: Kind, suffix: Bytes, value: &[u8]) -> Vec<LocalEvent> {
        let normal = match self.normalize(kind, &suffix, value) {
            Ok(Some(normal)) => Bytes::from(normal),
            Ok(None) => return self.remove(kind, suffix),
            Err(rejection) => {
                // As any reader does: the last good version stays until the key goes.
                let entry = self.rejected.entry(rejection.reason()).or_default();
                let key = format!("{}/{}", kind.segment(), String::from_utf8_lossy(&suffix));
                *entry = (entry.0.saturating_add(1), key);
                return Vec::new();
            }
        };
        let entry = Entry {
            value: normal.clone(),
            stale: false,
        };
        let old = self.entries.entry(kind).or_default();
        let old = old.insert(suffix.clone(), entry);
        if old.is_some_and(|old| old.value == normal) {
            return Vec::new();
        }
        vec![LocalEvent::RecordUpsert(LocalRecord {
            kind,
            suffix,
            value: normal,
        })]
    }

    fn remove(&mut self, kind: Kind, suffix: Bytes) -> Vec<LocalEvent> {
        let entries = self.entries.entry(kind).or_default();
        let known = entries.remove(&suffix).is_some();
        known
            .then_some(LocalEvent::RecordDelete { kind, suffix })
            .into_iter()
            .collect()
    }

    fn end_list(&mut self, kind: Kind) -> Vec<LocalEvent> {
        let entries = self.entries.entry(kind).or_default().iter();
        let stale = entries.filter(|(_, entry)| entry.stale);
        let stale: Vec<Bytes> = stale.map(|(suffix, _)| suffix.clone()).collect();
        let gone = stale.into_iter().map(|suffix| self.remove(kind, suffix));
        let mut events: Vec<LocalEvent> = gone.flatten().collect();
        self.listed.insert(kind);
        let all = Kind::BASIC.iter().all(|kind| self.listed.contains(kind));
        if all && !std::mem::replace(&mut self.synced, true) {
            events.push(LocalEvent::Synced);
        }
        events
    }

    /// The record's bytes; `None` if it is not for other clusters.
    fn normalize(
        &self,
        kind: Kind,
        suffix: &[u8],
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, Rejection> {
        let Producer { name, id, max } = &self.producer;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Rejection::Oversize);
        }
        Ok(Some(match kind {
            Kind::Nodes => {
                let mut node = NodeRecord::decode(value)?;
                own(&mut node.cluster, &mut node.cluster_id, name, *id);
                node.check(suffix, name, *id)?;
                node.encode()
            }
            Kind::Identities => {
                let (_, labels) = keyspace::decode_identity(suffix, value, name, *id, *max)?;
                labels.to_string().into_bytes()
            }
            Kind::Ips => {
                let ip = IpRecord::decode(value)?;
                ip.prefix(suffix)?;
                ip.identity(*id, *max)?;
                ip.encode()
            }
            Kind::Services => {
                let mut service = ServiceRecord::decode(value)?;
                own(&mut service.cluster, &mut service.cluster_id, name, *id);
                service.check(suffix, name, *id)?;
                if !service.shared {
                    return Ok(None);
                }
                service.encode()
            }
            Kind::ServiceExports | Kind::EndpointSlices => return Ok(None),
        }))
    }
}

/// Fills in what a record leaves open of its cluster; what it says otherwise is checked.
fn own(cluster: &mut String, cluster_id: &mut u32, name: &ClusterName, id: ClusterId) {
    if cluster.is_empty() {
        *cluster = name.to_string();
    }
    if *cluster_id == 0 {
        *cluster_id = id.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalizer() -> Normalizer {
        let max = MaxClusters::C255;
        Normalizer::new(Producer {
            name: "west".parse().unwrap(),
            id: ClusterId::new(12, max).unwrap(),
            max,
        })
    }

    fn upsert(kind: Kind, suffix: &'static str, value: &str) -> KeyEvent {
        KeyEvent::Upsert {
            kind,
            suffix: suffix.into(),
            value: value.to_owned().into(),
            revision: 1,
        }
    }

    fn text(events: &[LocalEvent]) -> Vec<String> {
        let text = |event: &LocalEvent| match event {
            LocalEvent::RecordUpsert(record) => String::from_utf8(record.value.to_vec()).unwrap(),
            LocalEvent::RecordDelete { suffix, .. } => format!("-{}", suffix.escape_ascii()),
            LocalEvent::Synced => "synced".to_owned(),
            other => panic!("{other:?}"),
        };
        events.iter().map(text).collect()
    }

    const NODE: &str = r#"{"clusterid":0,"name":"n1","Cluster":"","Extra":[1],"IPAddresses":[{"IP":"192.0.2.1","Type":"InternalIP"}]}"#;

    #[test]
    fn equal_records_are_one_event_however_they_are_spelled() {
        let mut normalizer = normalizer();
        let events = normalizer.apply(upsert(Kind::Nodes, "n1", NODE));
        let [LocalEvent::RecordUpsert(record)] = &events[..] else {
            panic!("{events:?}");
        };
        let node = NodeRecord::decode(&record.value).unwrap();
        assert_eq!((node.cluster.as_str(), node.cluster_id), ("west", 12));
        assert_eq!(node.encode(), record.value);
        assert!(
            record
                .value
                .starts_with(br#"{"Name":"n1","Cluster":"west","IPAddresses""#)
        );
        assert_eq!(normalizer.apply(upsert(Kind::Nodes, "n1", NODE)), []);
        let other = NODE
            .replace("\"Extra\":[1],", "")
            .replace("clusterid\":0", "ClusterID\":12");
        assert_eq!(normalizer.apply(upsert(Kind::Nodes, "n1", &other)), []);
    }

    #[test]
    fn what_is_not_the_own_clusters_is_counted_and_goes_nowhere() {
        let mut normalizer = normalizer();
        let foreign = "k8s:app=x;k8s:io.cilium.k8s.policy.cluster=east;";
        let bad = [
            upsert(
                Kind::Nodes,
                "n1",
                &NODE.replace("\"Cluster\":\"\"", "\"Cluster\":\"east\""),
            ),
            upsert(
                Kind::Nodes,
                "n1",
                &NODE.replace("clusterid\":0", "ClusterID\":7"),
            ),
            upsert(Kind::Ips, "10.0.0.1", r#"{"IP":"10.0.0.1","ID":65537}"#),
            upsert(Kind::Identities, "786433", foreign),
            upsert(Kind::Identities, "65537", foreign),
            upsert(
                Kind::Services,
                "shop/web",
                r#"{"cluster":"east","namespace":"shop","name":"web"}"#,
            ),
            upsert(Kind::Services, "shop/web", "{"),
        ];
        for event in bad {
            assert_eq!(normalizer.apply(event), []);
        }
        let counted: u64 = normalizer.rejected().map(|(_, (count, _))| count).sum();
        assert_eq!(counted, 7);
        let reasons: Vec<_> = normalizer.rejected().map(|(reason, _)| reason).collect();
        assert!(
            reasons.contains(&"identity-out-of-range") && reasons.contains(&"cluster-mismatch")
        );
    }

    #[test]
    fn hosts_keep_their_reserved_identity_and_services_that_are_not_shared_go() {
        let mut normalizer = normalizer();
        let host = r#"{"IP":"192.0.2.1","ID":6}"#;
        assert_eq!(
            normalizer.apply(upsert(Kind::Ips, "192.0.2.1", host)).len(),
            1
        );
        let service = |shared| {
            let text = format!(
                r#"{{"cluster":"west","namespace":"shop","name":"web","shared":{shared}}}"#
            );
            upsert(Kind::Services, "shop/web", &text)
        };
        assert_eq!(normalizer.apply(service(false)), []);
        assert_eq!(normalizer.apply(service(true)).len(), 1);
        assert_eq!(text(&normalizer.apply(service(false))), ["-shop/web"]);
        assert_eq!(normalizer.rejected().count(), 0);
    }

    #[test]
    fn a_list_sweeps_what_it_did_not_confirm_and_the_last_first_one_says_so() {
        let mut normalizer = normalizer();
        let labels = "k8s:app=x;k8s:io.cilium.k8s.policy.cluster=west;";
        let list = |kind| [KeyEvent::BeginList { kind }, KeyEvent::EndList { kind }];
        for kind in [Kind::Nodes, Kind::Ips, Kind::Services] {
            let events = list(kind).map(|event| normalizer.apply(event));
            assert_eq!(events.concat(), []);
        }
        let kind = Kind::Identities;
        normalizer.apply(KeyEvent::BeginList { kind });
        for id in ["786433", "786434"] {
            assert_eq!(text(&normalizer.apply(upsert(kind, id, labels))), [labels]);
        }
        let end = || KeyEvent::EndList { kind };
        assert_eq!(text(&normalizer.apply(end())), ["synced"]);
        normalizer.apply(KeyEvent::BeginList { kind });
        assert_eq!(normalizer.apply(upsert(kind, "786434", labels)), []);
        assert_eq!(text(&normalizer.apply(end())), ["-786433"]);
        let gone = KeyEvent::Delete {
            kind,
            suffix: "786434".into(),
        };
        assert_eq!(text(&normalizer.apply(gone.clone())), ["-786434"]);
        assert_eq!(normalizer.apply(gone), []);
    }
}
