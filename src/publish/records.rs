//! Local objects as records: own cluster forced, equal objects give equal bytes.
use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    keyspace::{
        Cidr, IpRecord, Kind, Layout, NodeAddress, NodeRecord, ServicePort, ServicePorts,
        ServiceRecord, identity::CLUSTER_LABEL, is_component,
    },
    source::{self, LocalNode, LocalService, LocalWorkload, ServiceKey, WorkloadKey},
    types::{ClusterId, ClusterName, IdentityId, IpPrefix, Label, LabelError, Labels, NamedPort},
};

/// Where a node's WireGuard key is found; the second is the older spelling.
const WIREGUARD_KEYS: [&str; 2] = [
    "network.cilium.io/wg-pub-key",
    "io.cilium.network.wg-pub-key",
];

/// `None` if the name can't stand in a key.
pub(super) fn node_key(name: &str, cluster: &ClusterName) -> Option<String> {
    is_component(name).then(|| Layout::State.prefix(Kind::Nodes, cluster) + name)
}

/// `None` if namespace or name can't stand in a key.
pub(super) fn service_key(key: &ServiceKey, cluster: &ClusterName) -> Option<String> {
    let clean = is_component(&key.namespace) && is_component(&key.name);
    clean.then(|| {
        format!(
            "{}{}/{}",
            Layout::State.prefix(Kind::Services, cluster),
            key.namespace,
            key.name
        )
    })
}

pub(super) fn ip_key(address: IpAddr, cluster: &ClusterName) -> String {
    format!(
        "{}{}",
        Layout::State.prefix(Kind::Ips, cluster),
        address.to_canonical()
    )
}

pub(super) fn node(node: &LocalNode, cluster: &ClusterName, id: ClusterId) -> NodeRecord {
    let addresses = node.addresses.iter();
    let addresses = addresses
        .map(|(kind, ip)| NodeAddress {
            kind: kind.clone(),
            ip: Some(*ip),
        })
        .collect();
    let split = |cidrs: &[IpPrefix]| {
        let mut cidrs = cidrs.iter().copied().map(Cidr::from);
        let first = cidrs.next();
        let rest: Vec<_> = cidrs.collect();
        (first, (!rest.is_empty()).then_some(rest))
    };
    let (ipv4_alloc_cidr, ipv4_secondary_alloc_cidrs) = split(&node.ipv4_cidrs);
    let (ipv6_alloc_cidr, ipv6_secondary_alloc_cidrs) = split(&node.ipv6_cidrs);
    let map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    let wireguard = WIREGUARD_KEYS
        .iter()
        .find_map(|key| node.annotations.get(*key));
    NodeRecord {
        name: node.name.clone(),
        cluster: cluster.to_string(),
        ip_addresses: Some(addresses),
        ipv4_alloc_cidr,
        ipv4_secondary_alloc_cidrs,
        ipv6_alloc_cidr,
        ipv6_secondary_alloc_cidrs,
        ipv4_health_ip: node.health_ipv4,
        ipv6_health_ip: node.health_ipv6,
        cluster_id: id.get(),
        source: "custom-resource".to_owned(),
        labels: map(&node.labels),
        annotations: map(&node.annotations),
        wireguard_pub_key: wireguard.cloned().unwrap_or_default(),
        ..NodeRecord::default()
    }
}

pub(super) fn ip(address: IpAddr, workload: &LocalWorkload, identity: IdentityId) -> IpRecord {
    let mut named_ports: Vec<NamedPort> = workload
        .named_ports
        .iter()
        .filter(|port| !port.name.is_empty())
        .cloned()
        .collect();
    named_ports.sort_by(|a, b| (&a.name, a.port).cmp(&(&b.name, b.port)));
    IpRecord {
        ip: Some(address.to_canonical()),
        host_ip: workload.host_ip.map(|ip| ip.to_canonical()),
        id: identity.0,
        k8s_namespace: workload.key.namespace.clone(),
        k8s_pod_name: workload.key.name.clone(),
        named_ports,
        ..IpRecord::default()
    }
}

/// `None` unless the service is both global and shared: such a record is not written at all.
pub(super) fn service(
    service: &LocalService,
    cluster: &ClusterName,
    id: ClusterId,
) -> Option<ServiceRecord> {
    if !(service.global && service.shared) {
        return None;
    }
    let ports = |ports: &source::ServicePorts| -> ServicePorts {
        let port = |(name, port): (&String, &source::ServicePort)| {
            (
                name.clone(),
                ServicePort {
                    protocol: port.protocol.clone(),
                    port: port.port,
                },
            )
        };
        ports.iter().map(port).collect()
    };
    let map = |map: &BTreeMap<IpAddr, source::ServicePorts>| {
        map.iter()
            .map(|(ip, list)| (ip.to_canonical(), ports(list)))
            .collect()
    };
    let hostnames = service.hostnames.iter();
    Some(ServiceRecord {
        cluster: cluster.to_string(),
        namespace: service.key.namespace.clone(),
        name: service.key.name.clone(),
        frontends: map(&service.frontends),
        backends: map(&service.backends),
        hostnames: hostnames
            .map(|(ip, name)| (ip.to_canonical().to_string(), name.clone()))
            .collect(),
        labels: service.labels.clone(),
        selector: service.selector.clone(),
        include_external: true,
        shared: true,
        cluster_id: id.get(),
    })
}

/// The labels with the own cluster's label, whatever the source said.
pub(super) fn own_labels(labels: &Labels, cluster: &ClusterName) -> Result<Labels, LabelError> {
    let own = Label {
        source: "k8s".into(),
        key: CLUSTER_LABEL.to_owned(),
        value: cluster.to_string(),
    };
    Labels::new(labels.as_slice().iter().cloned().chain([own]))
}

/// A workload's name for the log.
pub(super) fn text(key: &WorkloadKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}
