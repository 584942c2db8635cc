//! Objects to what is local: this node, its workloads, and the services to be exported. Pure.
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    inventory::{Found, Inventory},
    object::{CiliumNode, EndpointSlice, Metadata, Node, NodeAddress, Object, Pod},
    service,
};
use crate::{
    source::{
        FileError, LocalNode, LocalWorkload, WorkloadKey,
        desired::Desired,
        labels::{Subject, identity_labels},
    },
    types::{ClusterName, IpPrefix},
};

/// Annotation of a pod that names its host-side interface.
const INTERFACE_ANNOTATION: &str = "tombolo.io/interface";
/// Annotation of a pod of which policy drops nothing, but reports what it would drop.
const AUDIT_ANNOTATION: &str = "policy.tombolo.io/audit";
/// The whole object once more, for kubectl's use only.
const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The longest name the kernel gives an interface (`IFNAMSIZ` minus the final zero).
const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The own cluster.
    pub cluster: ClusterName,
    /// The own node, as in `spec.nodeName`.
    pub node_name: String,
}

/// What the files' objects come to at `place`, and all errors, sorted by file and line.
/// `veths` tells the host-side interface of an address from the routes.
pub(super) fn resolve(
    inventory: &Inventory,
    place: &Place,
    veths: &HashMap<IpAddr, String>,
) -> (Desired, Vec<FileError>) {
    let (objects, mut errors) = inventory.objects();
    let mut namespaces = HashMap::new();
    let (mut node, mut cilium_node) = (None, None);
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for found in objects.values() {
        match found.object {
            Object::Namespace(o) => {
                namespaces.insert(o.metadata.name.0.as_str(), &o.metadata.labels);
            }
            Object::Node(o) if o.metadata.name.0 == place.node_name => node = Some(o),
            Object::CiliumNode(o) if o.metadata.name.0 == place.node_name => cilium_node = Some(o),
            Object::EndpointSlice(o) => {
                if let Some(service) = o.metadata.labels.get(service::SLICE_LABEL) {
                    slices
                        .entry((o.metadata.namespace(), service))
                        .or_default()
                        .push(o);
                }
            }
            Object::Node(_) | Object::CiliumNode(_) | Object::Pod(_) | Object::Service(_) => {}
        }
    }

    let mut desired = Desired::default();
    let node = local_node(place, node, cilium_node);
    let node_ip = node.as_ref().and_then(internal_ip);
    desired
        .nodes
        .extend(node.map(|node| (node.name.clone(), node)));
    for found in objects.values() {
        match found.object {
            Object::Pod(pod) if runs_here(pod, place) => {
                let namespace_labels = namespaces.get(pod.metadata.namespace()).copied();
                match workload(
                    pod,
                    place,
                    namespace_labels,
                    node_ip,
                    veths,
                    found,
                    &mut errors,
                ) {
                    Ok(workload) => {
                        desired
                            .workloads
                            .extend(workload.map(|w| (w.key.clone(), w)));
                    }
                    Err(error) => errors.push(error),
                }
            }
            Object::Service(service) => {
                let key = (
                    service.metadata.namespace(),
                    service.metadata.name.0.as_str(),
                );
                let slices = slices.get(&key).map_or(&[][..], Vec::as_slice);
                let exported = service::exported(service, slices);
                desired
                    .services
                    .extend(exported.map(|s| (s.key.clone(), s)));
            }
            _ => {}
        }
    }
    errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    (desired, errors)
}

/// True if a pod of this node may need its interface looked up in the routes.
pub(super) fn needs_routes(inventory: &Inventory, place: &Place) -> bool {
    inventory
        .objects()
        .0
        .values()
        .any(|found| match found.object {
            Object::Pod(pod) => {
                runs_here(pod, place)
                    && !pod.metadata.annotations.contains_key(INTERFACE_ANNOTATION)
            }
            _ => false,
        })
}

/// Pods of the host's network are the node itself; those that ended hold their address no more.
fn runs_here(pod: &Pod, place: &Place) -> bool {
    pod.spec.node_name == place.node_name
        && !pod.spec.host_network
        && !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed")
}

fn workload(
    pod: &Pod,
    place: &Place,
    namespace_labels: Option<&BTreeMap<String, String>>,
    node_ip: Option<IpAddr>,
    veths: &HashMap<IpAddr, String>,
    found: &Found<'_>,
    errors: &mut Vec<FileError>,
) -> Result<Option<LocalWorkload>, FileError> {
    let mut addresses = Vec::new();
    for ip in pod
        .status
        .pod_ip
        .into_iter()
        .chain(pod.status.pod_ips.iter().filter_map(|p| p.ip))
    {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        return Ok(None);
    }
    let service_account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let labels = identity_labels(Subject {
        cluster: &place.cluster,
        namespace: pod.metadata.namespace(),
        namespace_labels,
        service_account,
        labels: &pod.metadata.labels,
    })
    .map_err(|error| found.error(format!("{}: {error}", found.object.key())))?;

    let mut interface = pod.metadata.annotations.get(INTERFACE_ANNOTATION).cloned();
    if let Some(name) = interface.take_if(|name| !is_interface_name(name)) {
        let key = found.object.key();
        errors.push(found.error(format!(
            "{key}: {INTERFACE_ANNOTATION}: {name:?} is no interface name"
        )));
    } else if interface.is_none() {
        interface = addresses.iter().find_map(|ip| veths.get(ip)).cloned();
    }

    let audit = pod.metadata.annotations.get(AUDIT_ANNOTATION);
    if let Some(other) = audit.filter(|text| !matches!(text.as_str(), "true" | "false")) {
        let key = found.object.key();
        errors.push(found.error(format!(
            "{key}: {AUDIT_ANNOTATION}: {other:?} is neither true nor false; it is enforced"
        )));
    }

    let mut named_ports: Vec<_> = pod
        .spec
        .containers
        .iter()
        .flat_map(|c| &c.ports)
        .filter_map(|p| p.named())
        .collect();
    named_ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    named_ports.dedup();

    let key = WorkloadKey {
        namespace: pod.metadata.namespace().to_owned(),
        name: pod.metadata.name.0.clone(),
    };
    let host_ip = node_ip.or(pod.status.host_ip);
    let labels = Arc::new(labels);
    Ok(Some(LocalWorkload {
        key,
        labels,
        addresses,
        host_ip,
        interface,
        named_ports,
        this_node: true,
        audit: audit.is_some_and(|text| text == "true"),
    }))
}

fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

/// This node as its Node and CiliumNode objects say; the latter wins, aspect by aspect.
fn local_node(
    place: &Place,
    node: Option<&Node>,
    cilium: Option<&CiliumNode>,
) -> Option<LocalNode> {
    if node.is_none() && cilium.is_none() {
        return None;
    }
    let addresses = |list: &[NodeAddress]| -> Vec<(String, IpAddr)> {
        list.iter()
            .filter_map(|a| Some((a.kind.clone(), a.ip?)))
            .collect()
    };
    let metadata = |part: fn(&Metadata) -> &BTreeMap<String, String>| {
        [
            cilium.map(|n| part(&n.metadata)),
            node.map(|n| part(&n.metadata)),
        ]
        .into_iter()
        .flatten()
        .find(|map| !map.is_empty())
        .cloned()
        .unwrap_or_default()
    };
    let mut annotations = metadata(|m| &m.annotations);
    annotations.remove(LAST_APPLIED_ANNOTATION);
    let mut local = LocalNode {
        name: place.node_name.clone(),
        labels: metadata(|m| &m.labels),
        annotations,
        ..LocalNode::default()
    };
    let mut cidrs: Vec<IpPrefix> = Vec::new();
    if let Some(node) = node {
        local.addresses = addresses(&node.status.addresses);
        cidrs.extend(node.spec.pod_cidr);
        cidrs.extend(
            node.spec
                .pod_cidrs
                .iter()
                .filter(|c| Some(**c) != node.spec.pod_cidr),
        );
    }
    if let Some(CiliumNode { spec, .. }) = cilium {
        let own = addresses(&spec.addresses);
        if !own.is_empty() {
            local.addresses = own;
        }
        if !spec.ipam.pod_cidrs.is_empty() {
            cidrs.clone_from(&spec.ipam.pod_cidrs);
        }
        local.health_ipv4 = spec.health.ipv4.filter(IpAddr::is_ipv4);
        local.health_ipv6 = spec.health.ipv6.filter(IpAddr::is_ipv6);
    }
    (local.ipv4_cidrs, local.ipv6_cidrs) = cidrs.into_iter().partition(|c| c.addr().is_ipv4());
    Some(local)
}

/// The address other nodes send to: IPv4 if there is one.
fn internal_ip(node: &LocalNode) -> Option<IpAddr> {
    let mut internal = node
        .addresses
        .iter()
        .filter(|(kind, _)| kind == "InternalIP");
    let first = internal.clone().next();
    internal
        .find(|(_, ip)| ip.is_ipv4())
        .or(first)
        .map(|&(_, ip)| ip)
}
