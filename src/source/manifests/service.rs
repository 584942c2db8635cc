//! Which services are exported, and as what: the rules of Cilium's clustermesh-apiserver. Pure.
use std::{collections::BTreeMap, net::IpAddr};

use super::object::{ClusterIp, EndpointSlice, Port, Service};
use crate::source::{LocalService, ServiceKey, ServicePort, ServicePorts};

/// Label of an EndpointSlice that names its service.
pub(super) const SLICE_LABEL: &str = "kubernetes.io/service-name";

/// Annotations with their older spelling, which counts only without the first.
const GLOBAL: [&str; 2] = ["service.cilium.io/global", "io.cilium/global-service"];
const SHARED: [&str; 2] = ["service.cilium.io/shared", "io.cilium/shared-service"];

/// Services of the control plane, which never leave their cluster.
const NEVER_EXPORTED: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

/// The service as other clusters shall see it; `None` if they shall not. `slices` are its own.
pub(super) fn exported(service: &Service, slices: &[&EndpointSlice]) -> Option<LocalService> {
    let annotations = &service.metadata.annotations;
    let global = flag(annotations, GLOBAL).unwrap_or(false);
    let shared = global && flag(annotations, SHARED).unwrap_or(true);
    let name = service.metadata.name.0.as_str();
    let spec = &service.spec;
    let cluster_ips = cluster_ips(service);
    if !shared
        || spec.kind == "ExternalName"
        || cluster_ips.is_empty()
        || NEVER_EXPORTED.contains(&name)
        || slices.is_empty()
    {
        return None;
    }
    let frontend_ports = ports(&spec.ports);
    let frontends = cluster_ips
        .iter()
        .filter_map(|ip| match ip {
            ClusterIp::Ip(ip) => Some((*ip, frontend_ports.clone())),
            ClusterIp::Headless => None,
        })
        .collect();
    let mut backends: BTreeMap<IpAddr, ServicePorts> = BTreeMap::new();
    let mut hostnames = BTreeMap::new();
    for slice in slices {
        let slice_ports = ports(&slice.ports);
        for endpoint in slice.endpoints.iter().filter(|e| e.conditions.usable()) {
            for ip in endpoint.addresses.iter().filter_map(|a| a.0) {
                backends.entry(ip).or_default().extend(slice_ports.clone());
                if !endpoint.hostname.is_empty() {
                    hostnames.insert(ip, endpoint.hostname.clone());
                }
            }
        }
    }
    let key = ServiceKey {
        namespace: service.metadata.namespace().to_owned(),
        name: name.to_owned(),
    };
    let labels = service.metadata.labels.clone();
    let selector = spec.selector.clone();
    Some(LocalService {
        key,
        frontends,
        backends,
        hostnames,
        labels,
        selector,
        global,
        shared,
    })
}

/// The service's addresses; `clusterIP` decides alone whether there are any.
fn cluster_ips(service: &Service) -> Vec<ClusterIp> {
    let Some(first) = service
        .spec
        .cluster_ip
        .or_else(|| service.spec.cluster_ips.first().copied())
    else {
        return Vec::new();
    };
    let mut all = vec![first];
    all.extend(service.spec.cluster_ips.iter().filter(|ip| **ip != first));
    all
}

fn ports(ports: &[Port]) -> ServicePorts {
    let port = |p: &Port| {
        let value = ServicePort {
            protocol: p.protocol.as_str().to_owned(),
            port: p.port?,
        };
        Some((p.name.clone(), value))
    };
    ports.iter().filter_map(port).collect()
}

fn flag(annotations: &BTreeMap<String, String>, [name, alias]: [&str; 2]) -> Option<bool> {
    let text = annotations.get(name).or_else(|| annotations.get(alias))?;
    Some(text.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use super::exported;
    use crate::source::manifests::{object::Object, parse::parse};

    /// Goal: one row per rule of the export table, with P6 and P7 of the conformance cases.
    #[test]
    fn p7_export_follows_the_table_of_annotations() {
        const IP: &str = "clusterIP: 10.96.0.10";
        let slice = "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {name: s, labels: {kubernetes.io/service-name: db}}\n";
        let global = "service.cilium.io/global: 'true'";
        let table: &[(&str, &str, &str, &str, bool)] = &[
            ("db", "", IP, slice, false),
            ("db", global, IP, slice, true),
            ("db", "service.cilium.io/global: 'True'", IP, slice, true),
            ("db", "service.cilium.io/global: 'yes'", IP, slice, false),
            ("db", "io.cilium/global-service: 'true'", IP, slice, true),
            (
                "db",
                "service.cilium.io/global: 'false', io.cilium/global-service: 'true'",
                IP,
                slice,
                false,
            ),
            ("db", "service.cilium.io/shared: 'true'", IP, slice, false),
            (
                "db",
                "service.cilium.io/global: 'true', service.cilium.io/shared: 'false'",
                IP,
                slice,
                false,
            ),
            (
                "db",
                "service.cilium.io/global: 'true', io.cilium/shared-service: 'false'",
                IP,
                slice,
                false,
            ),
            ("db", global, "clusterIP: None", slice, true),
            ("db", global, "clusterIP: ''", slice, false),
            ("db", global, "type: ClusterIP", slice, false),
            (
                "db",
                global,
                "type: ExternalName, clusterIP: 10.96.0.10",
                slice,
                false,
            ),
            ("db", global, IP, "", false),
            ("kube-scheduler", global, IP, slice, false),
            ("kube-controller-manager", global, IP, slice, false),
        ];
        for &(name, annotations, spec, slice, expected) in table {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: \
                 {{{annotations}}}}}\nspec: {{{spec}}}{slice}"
            );
            let parsed = parse(&text).unwrap();
            let (mut service, mut slices) = (None, Vec::new());
            for located in &parsed.objects {
                match &located.object {
                    Object::Service(o) => service = Some(o),
                    Object::EndpointSlice(o) => slices.push(o),
                    _ => {}
                }
            }
            assert_eq!(
                exported(service.unwrap(), &slices).is_some(),
                expected,
                "{text}"
            );
        }
    }
}
