//! What the datapath counts, as metrics.
use crate::{
    admin::{
        State,
        metrics::{self, DropCount, EndpointDrops, RuleHits},
    },
    enforcer::{Count, Counts, Handle, MapUse},
    policy::RuleNames,
};

/// Makes the datapath's counters part of the metrics.
pub(super) fn register(state: &State, handle: Handle) -> Result<(), prometheus::Error> {
    let by_reason = handle.clone();
    metrics::register_drops(&state.registry, move || drops(&by_reason))?;
    let maps = handle.clone();
    metrics::register_maps(&state.registry, move || usage(&maps))?;
    let rules = state.events.rules.clone();
    metrics::register_datapath(&state.registry, move || {
        (of_endpoints(&handle), hits(&handle, &rules))
    })
}

fn usage(handle: &Handle) -> Vec<MapUse> {
    handle.map_usage().unwrap_or_else(|error| {
        tracing::warn!(%error, "The datapath's maps could not be counted");
        Vec::new()
    })
}

fn counts(handle: &Handle) -> Counts {
    handle.counts().unwrap_or_else(|error| {
        tracing::warn!(%error, "The datapath's counters could not be read");
        Counts::default()
    })
}

/// Of all endpoints together.
fn drops(handle: &Handle) -> Vec<DropCount> {
    let mut drops: Vec<DropCount> = Vec::new();
    for count in counts(handle).drops {
        let count = as_drops(&count);
        let same = |d: &&mut DropCount| (d.reason, d.direction) == (count.reason, count.direction);
        match drops.iter_mut().find(same) {
            Some(sum) => sum.packets += count.packets,
            None => drops.push(count),
        }
    }
    drops
}

/// Only of those that are there: an endpoint that goes takes its series along.
fn of_endpoints(handle: &Handle) -> Vec<EndpointDrops> {
    let drops = counts(handle).drops.into_iter().filter_map(|count| {
        let endpoint = count.endpoint?;
        let count = as_drops(&count);
        Some(EndpointDrops { endpoint, count })
    });
    drops.collect()
}

const fn as_drops(count: &Count) -> DropCount {
    DropCount {
        reason: count.reason,
        direction: count.direction,
        packets: count.packets,
    }
}

/// Of rules that are in force.
fn hits(handle: &Handle, rules: &RuleNames) -> Vec<RuleHits> {
    let hits = handle.rule_hits().unwrap_or_else(|error| {
        tracing::warn!(%error, "The hits of rules could not be read");
        Vec::new()
    });
    let named = hits.into_iter().filter_map(|(number, flows)| {
        let name = rules.get(number)?;
        let policy = match &name.namespace {
            Some(namespace) => format!("{namespace}/{}", name.policy),
            None => name.policy.clone(),
        };
        Some(RuleHits {
            policy,
            // Rules of several policies of one name would be one series without it.
            rule: name.to_string(),
            flows,
        })
    });
    named.collect()
}
