//! Workloads: their numbers, their records, and the endpoints that the kernel sees.
use super::*;
use crate::{
    keyspace::identity,
    types::{EndpointId, Labels, LocalEndpoint},
};

/// A published workload.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) value: LocalWorkload,
    /// Its labels as text: the registry's key.
    pub(super) labels: String,
    identity: IdentityId,
    slave: String,
    /// Its number on this node.
    endpoint: Option<EndpointId>,
    /// As last sent.
    sent: Option<Arc<LocalEndpoint>>,
}

impl Publisher {
    /// Forces the own cluster's label, tidies addresses, and chooses the endpoint's number.
    pub(super) fn prepare(&mut self, workload: &mut LocalWorkload) {
        workload.addresses = workload
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .collect();
        workload.addresses.sort_unstable();
        workload.addresses.dedup();
        match records::own_labels(&workload.labels, &self.options.cluster) {
            Ok(labels) if labels == *workload.labels => {}
            Ok(labels) => workload.labels = Arc::new(labels),
            Err(error) => {
                tracing::warn!(endpoint = %records::text(&workload.key), %error, "Workload is not published");
                workload.addresses.clear();
            }
        }
        if !workload.addresses.is_empty() && workload.this_node {
            self.registry.endpoint(&workload.key);
        }
    }

    pub(super) fn upsert_workload(&mut self, value: LocalWorkload) {
        if value.addresses.is_empty() {
            return self.delete_workload(&value.key);
        }
        self.pending.remove(&value.key);
        self.refused.remove(&value.key);
        match self.held.get(&value.labels.to_string()) {
            Some(id) => self.publish(value, *id),
            None => self.want(value),
        }
    }

    /// Asks for the number of a workload's labels; until it is there, an older version of the
    /// workload stays as it is.
    pub(super) fn want(&mut self, value: LocalWorkload) {
        let asking = self.wanted.entry(value.labels.to_string()).or_default();
        asking.push(value.key.clone());
        self.pending.insert(value.key.clone(), value);
    }

    /// Who asks for a label set and still has it. None of them may be left.
    pub(super) fn asking(&self, text: &str) -> Vec<WorkloadKey> {
        let asked = self.wanted.get(text).into_iter().flatten();
        let still = |key: &&WorkloadKey| {
            let pending = self.pending.get(key);
            pending.is_some_and(|value| value.labels.to_string() == text)
        };
        asked.filter(still).cloned().collect()
    }

    /// The key by which a workload's node holds its number.
    pub(super) fn slave_key(&self, value: &LocalWorkload) -> String {
        match value.host_ip {
            Some(ip) => identity::slave_key(&value.labels, &ip.to_canonical().to_string()),
            None => identity::slave_key(&value.labels, &self.options.node_name),
        }
    }

    /// Makes the records of a workload whose number the store has.
    fn publish(&mut self, value: LocalWorkload, identity: IdentityId) {
        let key = value.key.clone();
        let labels = value.labels.to_string();
        self.registry.retain_identity(&labels);
        let slave = self.slave_key(&value);
        *self.slaves.entry(slave.clone()).or_default() += 1;
        self.writer
            .put(slave.clone(), identity.to_string().into_bytes());
        let endpoint = if value.this_node {
            self.registry.endpoint(&key)
        } else {
            None
        };
        for address in &value.addresses {
            if !self.claims.claim(*address, &key) {
                tracing::warn!(endpoint = %records::text(&key), %address, "Address belongs to another workload");
            }
        }
        let sent = self.workloads.get_mut(&key).and_then(|old| old.sent.take());
        let new = Workload {
            value,
            labels,
            identity,
            slave,
            endpoint,
            sent,
        };
        if let Some(old) = self.workloads.insert(key.clone(), new) {
            self.drop_holds(&old);
            if endpoint.is_none() && old.endpoint.is_some() {
                self.registry
                    .release_endpoint(&key, (self.clock)().unix_timestamp());
            }
            for address in old.value.addresses {
                let kept = self.workloads.get(&key).map(|new| &new.value.addresses);
                if kept.is_some_and(|kept| !kept.contains(&address)) {
                    self.release_address(address, &key);
                }
            }
        }
        self.announce(&key);
    }

    pub(super) fn delete_workload(&mut self, key: &WorkloadKey) {
        self.pending.remove(key);
        self.refused.remove(key);
        let Some(old) = self.workloads.remove(key) else {
            return;
        };
        for address in &old.value.addresses {
            self.release_address(*address, key);
        }
        self.drop_holds(&old);
        if old.endpoint.is_some() {
            self.registry
                .release_endpoint(key, (self.clock)().unix_timestamp());
        }
        self.outbox
            .extend(old.sent.map(|sent| EndpointEvent::Delete(sent.id)));
    }

    /// Takes back a workload's part in its identity.
    fn drop_holds(&mut self, old: &Workload) {
        let users = self
            .registry
            .release_identity(&old.labels, (self.clock)().unix_timestamp());
        if users == 0 {
            // The number must be taken from the store again before it is used again.
            self.held.remove(&old.labels);
        }
        if let Some(count) = self.slaves.get_mut(&old.slave) {
            *count -= 1;
            if *count == 0 {
                self.slaves.remove(&old.slave);
                self.writer.delete(&old.slave);
            }
        }
    }

    /// Gives an address up: to the next claimant, else its record goes.
    fn release_address(&mut self, address: IpAddr, key: &WorkloadKey) {
        match self.claims.release(address, key) {
            None => {}
            Some(Some(next)) => self.announce(&next),
            Some(None) => self
                .writer
                .delete(&records::ip_key(address, &self.options.cluster)),
        }
    }

    /// Writes the records of the addresses that a workload owns, and tells of it as an endpoint.
    fn announce(&mut self, key: &WorkloadKey) {
        let Some(workload) = self.workloads.get_mut(key) else {
            return;
        };
        let value = &workload.value;
        let owned = value
            .addresses
            .iter()
            .filter(|address| self.claims.owns(**address, key));
        let owned: Vec<IpAddr> = owned.copied().collect();
        for address in &owned {
            let record = records::ip(*address, value, workload.identity);
            let key = records::ip_key(*address, &self.options.cluster);
            self.writer.put(key, record.encode());
        }
        let endpoint = workload.endpoint.filter(|_| !owned.is_empty()).map(|id| {
            Arc::new(LocalEndpoint {
                id,
                identity: workload.identity,
                labels: Arc::clone(&value.labels),
                namespace: value.key.namespace.clone(),
                name: value.key.name.clone(),
                addresses: owned,
                interface: value.interface.clone(),
                named_ports: value.named_ports.clone(),
                audit: value.audit,
            })
        });
        if endpoint == workload.sent {
            return;
        }
        let sent = std::mem::replace(&mut workload.sent, endpoint.clone());
        match (endpoint, sent) {
            (Some(endpoint), _) => self.outbox.push(EndpointEvent::Upsert(endpoint)),
            (None, Some(sent)) => self.outbox.push(EndpointEvent::Delete(sent.id)),
            (None, None) => {}
        }
    }

    /// A label set has its number: publishes the workloads that asked. `written` is the slave key
    /// that the allocation wrote, already on one of our leases.
    pub(super) async fn identity_held(
        &mut self,
        labels: &Arc<Labels>,
        id: IdentityId,
        (written, lease): (String, i64),
    ) {
        let text = labels.to_string();
        let asking = self.asking(&text);
        self.wanted.remove(&text);
        self.registry.set_identity(id, labels);
        self.held.insert(text.clone(), id);
        // A number must not be used before the disk has it.
        self.save().await;
        let value = id.to_string();
        // Other nodes' slave keys that this process holds may be gone like this one was.
        let prefix = identity::slave_prefix(labels);
        let others = self.slaves.range(prefix.clone()..);
        for (slave, _) in others.take_while(|(slave, _)| slave.starts_with(&prefix)) {
            if *slave != written {
                self.writer.touch(slave.clone(), value.clone().into_bytes());
            }
        }
        self.writer
            .adopt(written.clone().into(), value.into(), lease);
        for key in asking {
            if let Some(value) = self.pending.remove(&key) {
                self.publish(value, id);
            }
        }
        // All who asked may be gone by now.
        if !self.slaves.contains_key(&written) {
            self.writer.delete(&written);
        }
        if self.registry.is_unused(&text) {
            self.held.remove(&text);
            self.registry
                .release_identity(&text, (self.clock)().unix_timestamp());
        }
    }

    /// A label set gets no number now. `withdraw` says that its workloads must not go on with the
    /// labels that they had.
    pub(super) fn identity_refused(&mut self, text: &str, withdraw: bool) {
        let asking = self.asking(text);
        self.wanted.remove(text);
        for key in asking {
            let Some(value) = self.pending.remove(&key) else {
                continue;
            };
            if withdraw {
                self.delete_workload(&key);
            }
            self.refused.insert(key, value);
        }
    }

    /// Takes the numbers of label sets from the store again; their workloads stay as they are.
    pub(super) fn take_again(&mut self, texts: &std::collections::BTreeSet<String>) {
        if texts.is_empty() {
            return;
        }
        for text in texts {
            self.held.remove(text);
        }
        let concerned = self.workloads.values();
        let concerned: Vec<LocalWorkload> = concerned
            .filter(|workload| texts.contains(&workload.labels))
            .map(|workload| workload.value.clone())
            .collect();
        for value in concerned {
            // A newer version that waits asks for itself.
            if !self.pending.contains_key(&value.key) {
                self.want(value);
            }
        }
    }
}
