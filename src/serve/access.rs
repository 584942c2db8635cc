//! Who may do what: a certificate's CN decides the store and the key ranges (protocol §3.11).
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Keyspaces, Limits, refusal};
use crate::{
    journal::Writer,
    publish::View,
    store::{KeyRange, Store, Txn, TxnOp},
    types::ClusterName,
};

/// What one connection may do; travels with each of its requests as an extension.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) store: Store,
    /// Every write goes through it, none to `store`.
    pub(super) writer: Writer,
    /// Open streams end when it fires.
    pub(super) cancel: CancellationToken,
    /// The connection ends when it fires: the store is not this client's any more.
    pub(super) ended: CancellationToken,
    pub(super) limits: Limits,
    grants: Grants,
}

#[derive(Debug, Clone)]
enum Grants {
    All,
    Read(Vec<KeyRange>),
    /// The store that they are for is not here, see [`Access::refusal`].
    Elsewhere,
}

impl Access {
    /// Everything; for the own process.
    pub(super) fn full(writer: Writer, limits: Limits, cancel: CancellationToken) -> Self {
        Self {
            store: writer.store().clone(),
            writer,
            cancel,
            ended: CancellationToken::new(),
            limits,
            grants: Grants::All,
        }
    }

    /// Everything on the cluster store, if this node has one.
    pub(super) fn admin(keyspaces: &Keyspaces, limits: Limits, cancel: CancellationToken) -> Self {
        match &keyspaces.cluster {
            Some(writer) => Self::full(writer.clone(), limits, cancel),
            None => Self {
                grants: Grants::Elsewhere,
                ..Self::full(keyspaces.cache.clone().into(), limits, cancel)
            },
        }
    }

    /// By the CN of a verified certificate; one that has no role may do nothing.
    pub(super) fn for_common_name(
        cn: &str,
        keyspaces: &Keyspaces,
        cluster: &ClusterName,
        limits: Limits,
        cancel: CancellationToken,
    ) -> Self {
        let is_own = |role: &str| cn.strip_prefix(role) == Some(cluster.as_str());
        let peer = cn.strip_prefix("remote-").filter(|peer| !peer.is_empty());
        if cn == "remote" || peer.is_some() {
            let View { store, ended } = keyspaces.export.of(peer);
            let ranges = [
                KeyRange::prefix(b"cilium/.heartbeat"),
                KeyRange::prefix(b"cilium/state/"),
                KeyRange::single(format!("cilium/cluster-config/{cluster}")),
                KeyRange::prefix(format!("cilium/synced/{cluster}/").as_bytes()),
            ];
            return Self {
                ended,
                grants: Grants::Read(ranges.into()),
                ..Self::full(store.into(), limits, cancel)
            };
        }
        if is_own("admin-") {
            return Self::admin(keyspaces, limits, cancel);
        }
        let prefixes: &[&str] = if is_own("local-") {
            &[
                "cilium/.heartbeat",
                "cilium/cache/",
                "cilium/cluster-config/",
                "cilium/synced/",
            ]
        } else {
            &[]
        };
        let ranges = prefixes.iter().map(|p| KeyRange::prefix(p.as_bytes()));
        Self {
            grants: Grants::Read(ranges.collect()),
            ..Self::full(keyspaces.cache.clone().into(), limits, cancel)
        }
    }

    /// Why this client is refused whatever it asks for.
    pub(super) fn refusal(&self) -> Option<Status> {
        matches!(self.grants, Grants::Elsewhere).then(refusal::store_elsewhere)
    }

    /// True if the certificate has a role at all; what needs no key needs at least that.
    pub(super) fn has_role(&self) -> bool {
        match &self.grants {
            Grants::All | Grants::Elsewhere => true,
            Grants::Read(ranges) => !ranges.is_empty(),
        }
    }

    pub(super) fn may_read(&self, range: &KeyRange) -> bool {
        match &self.grants {
            Grants::All => true,
            Grants::Elsewhere => false,
            Grants::Read(grants) => grants.iter().any(|grant| grant.covers(range)),
        }
    }

    pub(super) const fn may_write(&self) -> bool {
        matches!(self.grants, Grants::All)
    }

    pub(super) fn check_role(&self) -> Result<(), Status> {
        if self.has_role() {
            Ok(())
        } else {
            Err(permission_denied())
        }
    }

    pub(super) fn check_read(&self, range: &KeyRange) -> Result<(), Status> {
        if self.may_read(range) {
            Ok(())
        } else {
            Err(permission_denied())
        }
    }

    pub(super) fn check_write(&self) -> Result<(), Status> {
        if self.may_write() {
            Ok(())
        } else {
            Err(permission_denied())
        }
    }

    /// Refuses writes whose message is too long.
    pub(super) fn check_bytes(&self, message: &impl prost::Message) -> Result<(), Status> {
        if message.encoded_len() > self.limits.request_bytes {
            return Err(refusal::too_large(&self.limits));
        }
        Ok(())
    }

    /// Conditions and all steps, whichever branch would run.
    pub(super) fn check_txn(&self, txn: &Txn) -> Result<(), Status> {
        if self.may_write() {
            return Ok(());
        }
        self.check_role()?;
        txn.compare
            .iter()
            .try_for_each(|compare| self.check_read(&compare.range))?;
        txn.success
            .iter()
            .chain(&txn.failure)
            .try_for_each(|op| match op {
                TxnOp::Range(request) => self.check_read(&request.range),
                TxnOp::Put(_) | TxnOp::Delete(_) => self.check_write(),
                TxnOp::Txn(inner) => self.check_txn(inner),
            })
    }
}

pub(super) fn permission_denied() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        publish::{ExportPolicy, Views},
        store::Options,
    };

    fn store(cluster_id: u64) -> Store {
        Store::new(Options {
            cluster_id,
            history_max: 10,
        })
    }

    fn access(cn: &str) -> (Access, Keyspaces) {
        let keyspaces = Keyspaces {
            cluster: Some(store(1).into()),
            export: Views::new(&ExportPolicy::default(), || store(2)),
            cache: store(3),
        };
        let cluster = "west".parse().unwrap();
        let cancel = CancellationToken::new();
        (
            Access::for_common_name(cn, &keyspaces, &cluster, Limits::default(), cancel),
            keyspaces,
        )
    }

    #[test]
    fn common_name_decides_store_and_ranges() {
        // (CN, store, readable single keys, readable prefixes, refused single keys, refused prefixes)
        type Row = (
            &'static str,
            u64,
            [&'static str; 2],
            &'static str,
            &'static [&'static str],
        );
        let rows: [Row; 4] = [
            ("admin-west", 1, ["x", "cilium/cache/a"], "", &[]),
            (
                "local-west",
                3,
                ["cilium/.heartbeat", "cilium/cluster-config/east"],
                "cilium/cache/ip/v1/east/",
                &["cilium/state/a", "cilium/cache", "x"],
            ),
            (
                "remote",
                2,
                ["cilium/.heartbeat", "cilium/cluster-config/west"],
                "cilium/state/nodes/v1/",
                &[
                    "cilium/cluster-config/east",
                    "cilium/cluster-config/west2",
                    "cilium/synced/east/a",
                ],
            ),
            (
                "remote-east",
                2,
                ["cilium/synced/west/a", "cilium/state/"],
                "cilium/synced/west/",
                &["cilium/cache/a", "cilium/synced/west"],
            ),
        ];
        for (cn, store, keys, prefix, refused) in rows {
            let (access, _) = access(cn);
            assert_eq!(access.store.cluster_id(), store, "{cn}");
            assert_eq!(access.may_write(), store == 1, "{cn}");
            for key in keys {
                assert!(access.may_read(&KeyRange::single(key)), "{cn} {key}");
            }
            assert!(
                access.may_read(&KeyRange::prefix(prefix.as_bytes())),
                "{cn} {prefix}"
            );
            for key in refused {
                assert!(!access.may_read(&KeyRange::single(*key)), "{cn} {key}");
            }
            assert_eq!(access.may_read(&KeyRange::prefix(b"")), store == 1, "{cn}");
            assert_eq!(
                access.may_read(&KeyRange::prefix(b"cilium/")),
                store == 1,
                "{cn}"
            );
        }
        let (remote, _) = access("remote");
        assert!(!remote.may_read(&KeyRange::prefix(b"cilium/cluster-config/west")));
    }

    #[test]
    fn unknown_common_names_have_no_role() {
        for cn in [
            "",
            "root",
            "admin-east",
            "local-east",
            "admin-",
            "remote-",
            "remotes",
        ] {
            assert!(!access(cn).0.has_role(), "{cn}");
        }
    }
}
