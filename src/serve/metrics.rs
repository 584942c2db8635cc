//! What the etcd face tells Prometheus.
use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::telemetry::Samples;

/// Counters and gauges of the face; clones are the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    connections: IntGauge,
    requests: IntCounter,
    limit_hits: IntCounterVec,
    slow_watches_ended: IntCounter,
    samples: Arc<Samples<Limit>>,
}

/// A limit that a client can run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limit {
    Connections,
    ConnectionsPerAddress,
    ConnectionsPerName,
    StreamsPerConnection,
    RequestsPerClient,
    RequestBytes,
}

impl Limit {
    const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::ConnectionsPerName => "connections_per_name",
            Self::StreamsPerConnection => "streams_per_connection",
            Self::RequestsPerClient => "requests_per_client",
            Self::RequestBytes => "request_bytes",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let connections = IntGauge::new(
            "tombolo_serve_connections",
            "Authenticated connections that are open. Near the limit of 4096: look for a client \
             that does not reuse its connection.",
        );
        let requests = IntCounter::new(
            "tombolo_serve_requests_total",
            "Calls that were let through to a store's role check. If it jumps, a client polls.",
        );
        let limit_hits = IntCounterVec::new(
            Opts::new(
                "tombolo_serve_limit_hits_total",
                "Connections and calls refused at a limit. If it rises: the log names the client \
                 and the limit of a sample.",
            ),
            &["limit"],
        );
        let slow_watches_ended = IntCounter::new(
            "tombolo_serve_slow_watches_ended_total",
            "Watches ended because their client read so slowly that the history no longer reached \
             back to them; it lists again. If it rises: look at that client's CPU and network.",
        );
        let fixed = "names and labels are constants of the right form";
        Self {
            connections: connections.expect(fixed),
            requests: requests.expect(fixed),
            limit_hits: limit_hits.expect(fixed),
            slow_watches_ended: slow_watches_ended.expect(fixed),
            samples: Arc::default(),
        }
    }
}

impl Metrics {
    /// Makes them part of `registry`.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.connections.clone()))?;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.limit_hits.clone()))?;
        registry.register(Box::new(self.slow_watches_ended.clone()))
    }

    /// Calls that were let through so far, whatever became of them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    pub(super) fn request(&self) {
        self.requests.inc();
    }

    /// A watch that had begun ended as compacted.
    pub(super) fn fell_behind(&self) {
        self.slow_watches_ended.inc();
    }

    pub(super) fn connected(&self) {
        self.connections.inc();
    }

    pub(super) fn disconnected(&self) {
        self.connections.dec();
    }

    /// Counts a refusal, and logs it as one of a sample.
    pub(super) fn limit_hit(&self, limit: Limit, max: usize, client: &dyn std::fmt::Display) {
        self.limit_hits.with_label_values(&[limit.label()]).inc();
        if let Some(count) = self.samples.take(limit) {
            tracing::warn!(limit = limit.label(), max, %client, count, "Client refused at a limit");
        }
    }
}
