//! The values of the keyspace, typed. Field order and omissions are those of Cilium's Go structs.
use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Kind, Rejection,
    gojson::{self, Mask, Wire, go_struct},
};
use crate::{
    limits::VALUE_BYTES_MAX,
    types::{IpPrefix, NamedPort},
};

/// `cilium/cluster-config/<cluster>`: what a producer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterConfig {
    /// Cluster id; 0 if absent. Unchecked: see [`ClusterConfig::accept`].
    pub id: u32,
    /// What the producer can do.
    pub capabilities: Capabilities,
}

/// Part of [`ClusterConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// It writes canaries: a kind may be read only once its canary exists.
    pub synced_canaries: bool,
    /// Its data lies under `cilium/cache/`.
    pub cached: bool,
    /// 255 or 511; 0 if absent.
    pub max_connected_clusters: u32,
    /// Presence alone says that the service-export prefix and its canary exist.
    pub service_exports_enabled: Option<bool>,
    /// Empty: services only.
    pub endpoint_slices_export_mode: String,
}

impl Capabilities {
    /// Whether the producer has such entries at all. One that hasn't may lack the kind's canary, too.
    #[must_use]
    pub fn offers(&self, kind: Kind) -> bool {
        match kind {
            Kind::Nodes | Kind::Identities | Kind::Ips => true,
            Kind::Services => self.endpoint_slices_export_mode != "endpointslices-only",
            Kind::ServiceExports => self.service_exports_enabled.is_some(),
            Kind::EndpointSlices => !self.endpoint_slices_export_mode.is_empty(),
        }
    }
}

/// A node, `nodes/v1/<cluster>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeRecord {
    /// Node name, the last part of its key.
    pub name: String,
    /// Name of its cluster.
    pub cluster: String,
    /// Addresses in order of significance.
    pub ip_addresses: Option<Vec<NodeAddress>>,
    /// Primary IPv4 pod CIDR.
    pub ipv4_alloc_cidr: Option<Cidr>,
    /// Further IPv4 pod CIDRs.
    pub ipv4_secondary_alloc_cidrs: Option<Vec<Cidr>>,
    /// Primary IPv6 pod CIDR.
    pub ipv6_alloc_cidr: Option<Cidr>,
    /// Further IPv6 pod CIDRs.
    pub ipv6_secondary_alloc_cidrs: Option<Vec<Cidr>>,
    /// Address of the health endpoint.
    pub ipv4_health_ip: Option<IpAddr>,
    /// Address of the health endpoint.
    pub ipv6_health_ip: Option<IpAddr>,
    /// Address of the ingress listener.
    pub ipv4_ingress_ip: Option<IpAddr>,
    /// Address of the ingress listener.
    pub ipv6_ingress_ip: Option<IpAddr>,
    /// Id of its cluster.
    pub cluster_id: u32,
    /// Who learnt of it; a consumer reads `clustermesh` whatever it says.
    pub source: String,
    /// IPsec key index, 0 = off.
    pub encryption_key: u8,
    /// Labels of the node object.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations of the node object.
    pub annotations: Option<BTreeMap<String, String>>,
    /// 0 in practice; gone in newer producers.
    pub node_identity: u32,
    /// WireGuard public key, base64.
    pub wireguard_pub_key: String,
    /// Changes with each boot.
    pub boot_id: String,
}

/// One address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `CiliumInternalIP`, …; any text is accepted.
    pub kind: String,
    /// The address.
    pub ip: Option<IpAddr>,
}

/// An address range as Go writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cidr {
    /// Network address.
    pub ip: Option<IpAddr>,
    /// Its mask.
    pub mask: Mask,
}

impl Cidr {
    /// The range, if address and mask make one.
    #[must_use]
    pub fn prefix(&self) -> Option<IpPrefix> {
        prefix_of(self.ip?, &self.mask)
    }
}

impl From<IpPrefix> for Cidr {
    fn from(prefix: IpPrefix) -> Self {
        let bytes = if prefix.addr().is_ipv4() { 4 } else { 16 };
        Self {
            ip: Some(prefix.addr()),
            mask: Mask::new(prefix.prefix_len(), bytes),
        }
    }
}

/// A 16-byte mask may stand beside an IPv4 address; it then counts the 96 mapped bits as well.
pub(super) fn prefix_of(ip: IpAddr, mask: &Mask) -> Option<IpPrefix> {
    let (ones, bits) = mask.size()?;
    match (ip, bits) {
        (IpAddr::V4(_), 128) => IpPrefix::new(ip, ones.checked_sub(96)?),
        (IpAddr::V6(_), 32) => None,
        _ => IpPrefix::new(ip, ones),
    }
}

/// Whose address it is, `ip/v1/default/<address>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpRecord {
    /// The address; the key repeats it.
    pub ip: Option<IpAddr>,
    /// Set for ranges only.
    pub mask: Mask,
    /// Node that hosts it.
    pub host_ip: Option<IpAddr>,
    /// Its identity; unchecked: see [`IpRecord::identity`].
    pub id: u32,
    /// IPsec key index.
    pub key: u8,
    /// Always empty in current producers.
    pub metadata: String,
    /// Namespace of the workload.
    pub k8s_namespace: String,
    /// Pod name of the workload.
    pub k8s_pod_name: String,
    /// Written by 1.19 and later.
    pub k8s_service_account: String,
    /// Written by 1.20 and later.
    pub k8s_pod_uid: String,
    /// Sorted by name.
    pub named_ports: Vec<NamedPort>,
}

/// Port by port name; an unnamed port has the name `""`.
pub type ServicePorts = BTreeMap<String, ServicePort>;

/// A port of a frontend or backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct ServicePort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
}

/// A global service, `services/v1/<cluster>/<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceRecord {
    /// Name of the cluster.
    pub cluster: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub name: String,
    /// Cluster addresses with ports.
    pub frontends: BTreeMap<IpAddr, ServicePorts>,
    /// Usable backends with ports.
    pub backends: BTreeMap<IpAddr, ServicePorts>,
    /// Host names by address.
    pub hostnames: BTreeMap<String, String>,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
    /// Ignored by consumers.
    pub include_external: bool,
    /// False withdraws the backends.
    pub shared: bool,
    /// Id of the cluster.
    pub cluster_id: u32,
}

go_struct!(ClusterConfig {
    "id" => id omitempty,
    "capabilities" => capabilities,
});
go_struct!(Capabilities {
    "syncedCanaries" => synced_canaries omitempty,
    "cached" => cached omitempty,
    "maxConnectedClusters" => max_connected_clusters omitempty,
    "serviceExportsEnabled" => service_exports_enabled omitempty,
    "endpointSlicesExportMode" => endpoint_slices_export_mode omitempty,
});
go_struct!(NodeRecord {
    "Name" => name,
    "Cluster" => cluster,
    "IPAddresses" => ip_addresses,
    "IPv4AllocCIDR" => ipv4_alloc_cidr,
    "IPv4SecondaryAllocCIDRs" => ipv4_secondary_alloc_cidrs,
    "IPv6AllocCIDR" => ipv6_alloc_cidr,
    "IPv6SecondaryAllocCIDRs" => ipv6_secondary_alloc_cidrs,
    "IPv4HealthIP" => ipv4_health_ip,
    "IPv6HealthIP" => ipv6_health_ip,
    "IPv4IngressIP" => ipv4_ingress_ip,
    "IPv6IngressIP" => ipv6_ingress_ip,
    "ClusterID" => cluster_id,
    "Source" => source,
    "EncryptionKey" => encryption_key,
    "Labels" => labels,
    "Annotations" => annotations,
    "NodeIdentity" => node_identity,
    "WireguardPubKey" => wireguard_pub_key,
    "BootID" => boot_id,
});
go_struct!(NodeAddress { "Type" => kind, "IP" => ip, });
go_struct!(Cidr { "IP" => ip, "Mask" => mask, });
go_struct!(IpRecord {
    "IP" => ip,
    "Mask" => mask,
    "HostIP" => host_ip,
    "ID" => id,
    "Key" => key,
    "Metadata" => metadata,
    "K8sNamespace" => k8s_namespace omitempty,
    "K8sPodName" => k8s_pod_name omitempty,
    "K8sServiceAccount" => k8s_service_account omitempty,
    "K8sPodUID" => k8s_pod_uid omitempty,
    "NamedPorts" => named_ports omitempty,
});
go_struct!(NamedPort { "Name" => name, "Port" => port, "Protocol" => protocol, });
go_struct!(ServicePort { "Protocol" => protocol, "Port" => port, });
go_struct!(ServiceRecord {
    "cluster" => cluster,
    "namespace" => namespace,
    "name" => name,
    "frontends" => frontends,
    "backends" => backends,
    "hostnames" => hostnames,
    "labels" => labels,
    "selector" => selector,
    "includeExternal" => include_external,
    "shared" => shared,
    "clusterID" => cluster_id,
});

/// A pointer to a range: `null` if unset.
impl Wire for Option<Cidr> {
    fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Some(Cidr::read(deserializer)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        gojson::write_pointer(self.as_ref(), out);
    }
}

/// The parser's own words may quote the value, which must not reach a log.
pub(super) fn undecodable(error: &serde_json::Error) -> Rejection {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Data => "wrong type or range",
        Category::Eof => "unexpected end",
        Category::Syntax | Category::Io => "syntax error",
    };
    Rejection::Undecodable(format!(
        "{what} at line {} column {}",
        error.line(),
        error.column()
    ))
}

macro_rules! documents {
    ($($type:ident)+) => {$(
        impl $type {
            /// Reads a value as Go would; a `null` or `{}` document is the zero record.
            ///
            /// # Errors
            /// [`Rejection::Oversize`] above [`VALUE_BYTES_MAX`], else [`Rejection::Undecodable`].
            pub fn decode(value: &[u8]) -> Result<Self, Rejection> {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(Rejection::Oversize);
                }
                gojson::decode(value).map_err(|error| undecodable(&error))
            }

            /// The value as Go would write it: equal records yield equal bytes.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                gojson::encode(self)
            }
        }
    )+};
}
documents!(ClusterConfig NodeRecord IpRecord ServiceRecord);
