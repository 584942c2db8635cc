//! What TLS tells Prometheus: expiry, refused handshakes, refused files.
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::Reason;

/// Counters and gauges of one server; clones are the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    expiry: IntGaugeVec,
    handshakes_refused: IntCounterVec,
    reloads: IntCounter,
    reloads_refused: IntCounterVec,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let expiry = IntGaugeVec::new(
            Opts::new(
                "tombolo_certificate_expiry_timestamp_seconds",
                "Unix time at which the first certificate of a file in use expires; peer is empty \
                 for our own. Renew the file before; it is reloaded without a restart.",
            ),
            &["peer", "role"],
        );
        let handshakes = IntCounterVec::new(
            Opts::new(
                "tombolo_tls_handshakes_refused_total",
                "Clients refused before they were authenticated. If it rises: the log names \
                 address, reason and next step of a sample.",
            ),
            &["reason"],
        );
        let reloads = IntCounter::new(
            "tombolo_tls_reloads_total",
            "Changed certificate files that were taken into use.",
        );
        let refused = IntCounterVec::new(
            Opts::new(
                "tombolo_tls_reloads_refused_total",
                "Looks at changed certificate files that found them unusable; the old ones stay in \
                 use. If it rises: tombolo status names file and reason.",
            ),
            &["reason"],
        );
        let fixed = "names and labels are constants of the right form";
        Self {
            expiry: expiry.expect(fixed),
            handshakes_refused: handshakes.expect(fixed),
            reloads: reloads.expect(fixed),
            reloads_refused: refused.expect(fixed),
        }
    }

    /// Makes them part of `registry`.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.expiry.clone()))?;
        registry.register(Box::new(self.handshakes_refused.clone()))?;
        registry.register(Box::new(self.reloads.clone()))?;
        registry.register(Box::new(self.reloads_refused.clone()))
    }

    pub(super) fn handshake_refused(&self, reason: Reason) {
        self.handshakes_refused
            .with_label_values(&[reason.label()])
            .inc();
    }

    pub(super) fn reloaded(&self) {
        self.reloads.inc();
    }

    pub(super) fn reload_refused(&self, reason: Reason) {
        self.reloads_refused
            .with_label_values(&[reason.label()])
            .inc();
    }

    /// `peer` is empty for the own cluster; `role` says whose certificate it is.
    pub(super) fn set_expiry(&self, peer: &str, role: &str, unix_seconds: i64) {
        self.expiry
            .with_label_values(&[peer, role])
            .set(unix_seconds);
    }

    pub(super) fn forget_peer(&self, peer: &str) {
        for role in ["ca", "client"] {
            // An error says that it was not there.
            drop(self.expiry.remove_label_values(&[peer, role]));
        }
    }
}
