//! Keys and values as Cilium writes them, as a JSON value where a case changes a field.
use serde_json::{Value, json};

/// `cilium/cluster-config/<cluster>` of a producer with canaries.
pub(crate) fn config(id: u32) -> Value {
    json!({"id": id, "capabilities": {"syncedCanaries": true, "maxConnectedClusters": 255}})
}

pub(crate) fn node(cluster: &str, id: u32, name: &str, address: &str) -> Value {
    json!({
        "Name": name, "Cluster": cluster,
        "IPAddresses": [{"Type": "InternalIP", "IP": address}],
        "IPv4AllocCIDR": null, "IPv4SecondaryAllocCIDRs": null,
        "IPv6AllocCIDR": null, "IPv6SecondaryAllocCIDRs": null,
        "IPv4HealthIP": "", "IPv6HealthIP": "", "IPv4IngressIP": "", "IPv6IngressIP": "",
        "ClusterID": id, "Source": "custom-resource", "EncryptionKey": 0,
        "Labels": {"zone": "b"}, "Annotations": null, "NodeIdentity": 0,
        "WireguardPubKey": "", "BootID": ""
    })
}

pub(crate) fn ip(address: &str, identity: u32) -> Value {
    json!({
        "IP": address, "Mask": null, "HostIP": "10.7.0.21", "ID": identity, "Key": 0,
        "Metadata": "", "K8sNamespace": "shop", "K8sPodName": "checkout"
    })
}

pub(crate) fn service(cluster: &str, id: u32, name: &str, backends: &[&str]) -> Value {
    let ports = || json!({"http": {"Protocol": "TCP", "Port": 8080}});
    let backends = backends.iter().map(|ip| ((*ip).to_owned(), ports()));
    let backends: serde_json::Map<String, Value> = backends.collect();
    json!({
        "cluster": cluster, "namespace": "shop", "name": name,
        "frontends": {"10.96.44.10": ports()}, "backends": backends,
        "hostnames": {}, "labels": {}, "selector": {"app": name},
        "includeExternal": true, "shared": true, "clusterID": id
    })
}

pub(crate) fn labels(cluster: &str, app: &str) -> String {
    format!(
        "k8s:app={app};k8s:io.cilium.k8s.policy.cluster={cluster};k8s:io.kubernetes.pod.namespace=shop;"
    )
}

/// The value with one field changed.
pub(crate) fn with(mut value: Value, field: &str, to: impl Into<Value>) -> Value {
    value[field] = to.into();
    value
}
