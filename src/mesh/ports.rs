//! The names that addresses give their ports. Few addresses have some, so these lie beside the
//! records, and only the others' absence costs nothing.
use std::{collections::HashMap, sync::Arc};

use super::{
    Delta, DeltaKey, Mesh,
    claims::Origin,
    member::{IpKey, Record},
};
use crate::types::{ClusterId, IpPrefix, NamedPort};

/// Of the ip records in force that name ports, by whose they are.
pub(super) type Ports = HashMap<(ClusterId, IpKey), Arc<[NamedPort]>>;

impl Mesh {
    /// Notes what a record in force says of its ports; to be told once it is known who has the
    /// address.
    pub(super) fn set_ports(&mut self, cluster: ClusterId, record: &Record, ports: Vec<NamedPort>) {
        let Record::Ip { key, .. } = record else {
            return;
        };
        if ports.is_empty() {
            self.ports.remove(&(cluster, *key));
        } else {
            self.ports.insert((cluster, *key), ports.into());
        }
    }

    /// Tells the ports of an address if they are others than told last: those of the record whose
    /// claim is the effective one. Returns whether they are.
    pub(super) fn tell_ports(&self, prefix: IpPrefix) -> bool {
        if self.ports.is_empty() && self.view.ports.is_empty() {
            return false;
        }
        let claim = self.claims.first(&prefix);
        let key = claim.and_then(|claim| {
            let masked = claim.origin == Origin::MASKED;
            let record = claim.origin.node_number().is_none();
            record.then_some((claim.cluster, IpKey { prefix, masked }))
        });
        let ports = key.and_then(|key| self.ports.get(&key)).cloned();
        let old = match ports.clone() {
            Some(ports) => self.view.ports.insert(prefix, ports),
            None => self.view.ports.remove(&prefix).map(|(_, old)| old),
        };
        if old == ports {
            return false;
        }
        let ports = ports.unwrap_or_default();
        let delta = Delta::NamedPorts { prefix, ports };
        self.deltas.push(DeltaKey::NamedPorts(prefix), delta);
        true
    }
}
