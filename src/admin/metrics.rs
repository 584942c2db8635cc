//! Metrics that are read from a status at the time of the scrape, not counted where they happen.
//!
//! Names and types under `tombolo_clustermesh_` are those of Cilium's agent with our prefix, so
//! that its alerts need one replacement; `…_failures` is a gauge there, therefore here too.
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

pub use self::mesh::register_mesh;
use crate::{enforcer::MapUse, policy::Direction, types::EndpointId};

mod mesh;

/// Packets dropped for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropCount {
    /// As in the drop events.
    pub reason: &'static str,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Packets, since the datapath's maps were made.
    pub packets: u64,
}

/// The same of a local endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointDrops {
    /// Which.
    pub endpoint: EndpointId,
    /// Since the endpoint is known.
    pub count: DropCount,
}

/// How often a rule decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleHits {
    /// `namespace/name` of its policy, or the name alone if it is clusterwide.
    pub policy: String,
    /// The rule's whole name, its origin included.
    pub rule: String,
    /// Flows that it allowed or denied.
    pub flows: u64,
}

/// Registers `tombolo_drop_count_total`, read by `counts` at each scrape; each pair of reason and
/// direction at most once.
///
/// # Errors
/// If it is registered already.
pub fn register_drops(
    registry: &prometheus::Registry,
    counts: impl Fn() -> Vec<DropCount> + Send + Sync + 'static,
) -> Result<(), prometheus::Error> {
    let read = move || {
        let sample = |count: DropCount| {
            let labels = vec![
                count.reason.to_owned(),
                direction(count.direction).to_owned(),
            ];
            Sample {
                family: 0,
                labels,
                value: as_float(count.packets),
            }
        };
        counts().into_iter().map(sample).collect()
    };
    registry.register(Box::new(Statuses::new(DROPS.to_vec(), Arc::new(read))?))
}

/// Registers the counters of endpoints and rules, read by `read` at each scrape.
///
/// # Errors
/// If it is registered already.
pub fn register_datapath(
    registry: &prometheus::Registry,
    read: impl Fn() -> (Vec<EndpointDrops>, Vec<RuleHits>) + Send + Sync + 'static,
) -> Result<(), prometheus::Error> {
    let read = move || {
        let (drops, hits) = read();
        let drops = drops.into_iter().map(|drops| Sample {
            family: 0,
            labels: vec![
                drops.endpoint.to_string(),
                direction(drops.count.direction).to_owned(),
                drops.count.reason.to_owned(),
            ],
            value: as_float(drops.count.packets),
        });
        let hits = hits.into_iter().map(|hits| Sample {
            family: 1,
            labels: vec![hits.policy, hits.rule],
            value: as_float(hits.flows),
        });
        drops.chain(hits).collect()
    };
    registry.register(Box::new(Statuses::new(DATAPATH.to_vec(), Arc::new(read))?))
}

/// Registers how full the datapath's maps are, read by `read` at each scrape.
///
/// # Errors
/// If it is registered already.
pub fn register_maps(
    registry: &prometheus::Registry,
    read: impl Fn() -> Vec<MapUse> + Send + Sync + 'static,
) -> Result<(), prometheus::Error> {
    let read = move || {
        let sample = |map: MapUse| Sample {
            family: 0,
            labels: vec![map.name],
            value: f64::from(map.entries) / f64::from(map.capacity.max(1)),
        };
        read().into_iter().map(sample).collect()
    };
    registry.register(Box::new(Statuses::new(MAPS.to_vec(), Arc::new(read))?))
}

/// Registers what is known of policies.
///
/// # Errors
/// If it is registered already.
pub fn register_policies(state: &super::State) -> Result<(), prometheus::Error> {
    let (sources, rules) = (state.policies.clone(), state.events.rules.clone());
    let read = move || {
        let summary = sources.summary();
        let count = |family, labels: &[&str], count: usize| Sample {
            family,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            value: as_float(count as u64),
        };
        let applied = u64::try_from(summary.applied_revision).unwrap_or(0);
        vec![
            Sample {
                family: 0,
                labels: Vec::new(),
                value: as_float(applied),
            },
            count(1, &["file"], summary.files),
            count(1, &["cluster"], summary.cluster),
            count(2, &[], summary.refused),
            count(3, &[], rules.len()),
            count(4, &[], sources.selectors.load(Ordering::Relaxed)),
        ]
    };
    let statuses = Statuses::new(POLICIES.to_vec(), Arc::new(read))?;
    state.registry.register(Box::new(statuses))
}

const DATAPATH: &[Family] = &[
    Family {
        name: "tombolo_endpoint_drop_count_total",
        help: "Packets of each local endpoint that were dropped. tombolo monitor --related-to shows them.",
        kind: MetricType::COUNTER,
        labels: &["endpoint", "direction", "reason"],
    },
    Family {
        name: "tombolo_policy_rule_hits_total",
        help: "Flows that each rule decided. A rule that never does may be left out.",
        kind: MetricType::COUNTER,
        labels: &["policy", "rule"],
    },
];

const MAPS: &[Family] = &[Family {
    name: "tombolo_bpf_map_pressure",
    help: "How full each map of the datapath is, 1 is full; large ones are estimated. tombolo map list has \
           the numbers; conntrack maps forget the oldest flows, others want larger --bpf-*-max.",
    kind: GAUGE,
    labels: &["map_name"],
}];

const POLICIES: &[Family] = &[
    Family {
        name: "tombolo_policy_max_revision",
        help: "Revision of the cluster store up to which this node's kernel follows its policies. If it \
               stays behind other nodes': tombolo status.",
        kind: GAUGE,
        labels: &[],
    },
    Family {
        name: "tombolo_policies",
        help: "Policies in force, from files of this node and from the cluster store.",
        kind: GAUGE,
        labels: &["source"],
    },
    Family {
        name: "tombolo_policies_refused",
        help: "Policies and files whose present version is not in force. If above 0: tombolo status.",
        kind: GAUGE,
        labels: &[],
    },
    Family {
        name: "tombolo_policy_rules",
        help: "Entries of rules in force.",
        kind: GAUGE,
        labels: &[],
    },
    Family {
        name: "tombolo_policy_selectors",
        help: "Different selectors that the rules in force use.",
        kind: GAUGE,
        labels: &[],
    },
];

/// Registers what is known of the cluster store: whether it answers, and how much waits for it.
///
/// # Errors
/// If it is registered already.
pub fn register_kvstore(
    registry: &prometheus::Registry,
    read: impl Fn() -> (bool, usize) + Send + Sync + 'static,
) -> Result<(), prometheus::Error> {
    let read = move || {
        let (connected, waiting) = read();
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        let values = [as_float(u64::from(connected)), as_float(waiting)];
        let sample = |(family, value)| Sample {
            family,
            labels: Vec::new(),
            value,
        };
        values.into_iter().enumerate().map(sample).collect()
    };
    registry.register(Box::new(Statuses::new(KVSTORE.to_vec(), Arc::new(read))?))
}

/// Registers how many records of the source were refused, by reason; read by `counts`.
///
/// # Errors
/// If it is registered already.
pub fn register_source(
    registry: &prometheus::Registry,
    counts: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
) -> Result<(), prometheus::Error> {
    let read = move || {
        let sample = |(reason, count): (&'static str, u64)| Sample {
            family: 0,
            labels: vec![reason.to_owned()],
            value: as_float(count),
        };
        counts().into_iter().map(sample).collect()
    };
    registry.register(Box::new(Statuses::new(SOURCE.to_vec(), Arc::new(read))?))
}

const SOURCE: &[Family] = &[Family {
    name: "tombolo_source_rejected_keys_total",
    help: "Records of the kvstore source that were not published. If it rises: tombolo status.",
    kind: MetricType::COUNTER,
    labels: &["reason"],
}];

const KVSTORE: &[Family] = &[
    Family {
        name: "tombolo_kvstore_connected",
        help: "1 if the cluster store answers. If 0: the last known export stays; tombolo status.",
        kind: GAUGE,
        labels: &[],
    },
    Family {
        name: "tombolo_kvstore_sync_queue_size",
        help: "Keys and workloads that wait for the cluster store. If it stays above 0: tombolo status.",
        kind: GAUGE,
        labels: &[],
    },
];

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "INGRESS",
        Direction::Egress => "EGRESS",
    }
}

#[derive(Debug, Clone, Copy)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
}

struct Sample {
    /// Index into the collector's families.
    family: usize,
    /// As many as the family's labels.
    labels: Vec<String>,
    value: f64,
}

const DROPS: &[Family] = &[Family {
    name: "tombolo_drop_count_total",
    help: "Packets dropped by the datapath. If it rises unexpectedly: tombolo monitor --type drop",
    kind: MetricType::COUNTER,
    labels: &["reason", "direction"],
}];

const GAUGE: MetricType = MetricType::GAUGE;

type Read = Arc<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// Prometheus knows only floats; above 2^53 a count loses its last digits.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_float(count: u64) -> f64 {
    count as f64
}

struct Statuses {
    families: Vec<Family>,
    /// One per family; the registry tells collectors apart by them.
    descs: Vec<Desc>,
    read: Read,
}

impl Statuses {
    fn new(families: Vec<Family>, read: Read) -> Result<Self, prometheus::Error> {
        let desc = |family: &Family| {
            let labels = family
                .labels
                .iter()
                .map(|label| (*label).to_owned())
                .collect();
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                HashMap::new(),
            )
        };
        let descs = families.iter().map(desc).collect::<Result<_, _>>()?;
        Ok(Self {
            families,
            descs,
            read,
        })
    }
}

impl Collector for Statuses {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics: Vec<Vec<Metric>> = self.families.iter().map(|_| Vec::new()).collect();
        for sample in (self.read)() {
            let family = &self.families[sample.family];
            let pairs = family
                .labels
                .iter()
                .zip(sample.labels)
                .map(|(name, value)| {
                    let mut pair = LabelPair::default();
                    pair.set_name((*name).to_owned());
                    pair.set_value(value);
                    pair
                });
            let mut pairs: Vec<_> = pairs.collect();
            pairs.sort_by(|a, b| a.name().cmp(b.name()));
            let mut metric = Metric::from_label(pairs);
            if family.kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(sample.value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(sample.value);
                metric.set_gauge(gauge);
            }
            metrics[sample.family].push(metric);
        }
        let families = self
            .families
            .iter()
            .zip(metrics)
            .filter(|(_, m)| !m.is_empty());
        let families = families.map(|(family, metrics)| {
            let mut output = MetricFamily::default();
            output.set_name(family.name.to_owned());
            output.set_help(family.help.to_owned());
            output.set_field_type(family.kind);
            output.set_metric(metrics);
            output
        });
        families.collect()
    }
}
