//! Service exports of the multi-cluster services API, `serviceexports/v1`.
use std::{collections::BTreeMap, fmt};

use serde::de::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Rejection,
    check::same_object,
    gojson::{self, Wire, go_struct},
};
use crate::{limits::VALUE_BYTES_MAX, types::ClusterName};

/// What a cluster exports a service as. There is no cluster id in this type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceExportRecord {
    /// Name of the cluster.
    pub cluster: String,
    /// Service name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Annotations to give to the imported service.
    pub annotations: BTreeMap<String, String>,
    /// Labels to give to the imported service.
    pub labels: BTreeMap<String, String>,
    /// The oldest export wins conflicts.
    pub creation_timestamp: Timestamp,
    /// What it listens on.
    pub ports: Vec<ExportPort>,
    /// `ClusterSetIP` or `Headless`.
    pub kind: String,
    /// `ClientIP` or `None`.
    pub session_affinity: String,
    /// How long affinity lasts.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Written by 1.19 and later.
    pub ip_families: Vec<String>,
    /// `Cluster` or `Local`, if set.
    pub internal_traffic_policy: Option<String>,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`, if set.
    pub traffic_distribution: Option<String>,
}

/// A port of a service export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportPort {
    /// Its name; may be empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What is spoken on it.
    pub app_protocol: Option<String>,
    /// Its number; unchecked.
    pub port: i32,
}

/// Options of session affinity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionAffinityConfig {
    /// Of `ClientIP`.
    pub client_ip: Option<ClientIpConfig>,
}

/// Options of session affinity by client address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientIpConfig {
    /// In seconds; unchecked.
    pub timeout_seconds: Option<i32>,
}

/// A time as text; `None` is Go's zero time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp(pub Option<OffsetDateTime>);

impl ServiceExportRecord {
    /// Reads a value as Go would; a `null` or `{}` document is the zero record.
    ///
    /// # Errors
    /// [`Rejection::Oversize`] above [`VALUE_BYTES_MAX`], else [`Rejection::Undecodable`].
    pub fn decode(value: &[u8]) -> Result<Self, Rejection> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(Rejection::Oversize);
        }
        gojson::decode(value).map_err(|error| super::records::undecodable(&error))
    }

    /// The value as Go would write it: equal records yield equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        gojson::encode(self)
    }

    /// Checks that the record belongs to `cluster` and to its key, and that its fields have values
    /// that mean something; `suffix` is `namespace/name`.
    ///
    /// # Errors
    /// In this order: incomplete, foreign cluster, key mismatch, invalid field.
    pub fn check(&self, suffix: &[u8], cluster: &ClusterName) -> Result<(), Rejection> {
        same_object(
            (&self.cluster, &self.namespace, &self.name),
            suffix,
            cluster,
        )?;
        if self.creation_timestamp.0.is_none() {
            return Err(Rejection::Incomplete("exportCreationTimestamp"));
        }
        let policy = self.internal_traffic_policy.as_deref();
        let distribution = self.traffic_distribution.as_deref();
        let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        let fields = [
            ("type", Some(&*self.kind), &["ClusterSetIP", "Headless"][..]),
            (
                "sessionAffinity",
                Some(&*self.session_affinity),
                &["ClientIP", "None"],
            ),
            ("internalTrafficPolicy", policy, &["Cluster", "Local"]),
            ("trafficDistribution", distribution, &distributions),
        ];
        let invalid = |(field, value, allowed): (&'static str, Option<&str>, &[&str])| {
            value
                .is_some_and(|value| !allowed.contains(&value))
                .then_some(Rejection::InvalidField(field))
        };
        fields.into_iter().find_map(invalid).map_or(Ok(()), Err)
    }
}

go_struct!(ServiceExportRecord {
    "cluster" => cluster,
    "name" => name,
    "namespace" => namespace,
    "annotations" => annotations omitempty,
    "labels" => labels omitempty,
    "exportCreationTimestamp" => creation_timestamp,
    "ports" => ports,
    "type" => kind,
    "sessionAffinity" => session_affinity,
    "sessionAffinityConfig" => session_affinity_config omitempty,
    "ipFamilies" => ip_families omitempty,
    "internalTrafficPolicy" => internal_traffic_policy omitempty,
    "trafficDistribution" => traffic_distribution omitempty,
});
go_struct!(ExportPort {
    "name" => name omitempty,
    "protocol" => protocol omitempty,
    "appProtocol" => app_protocol omitempty,
    "port" => port,
});
go_struct!(SessionAffinityConfig { "clientIP" => client_ip omitempty, });
go_struct!(ClientIpConfig { "timeoutSeconds" => timeout_seconds omitempty, });

/// Pointers: `null` if unset.
macro_rules! pointers {
    ($($type:ty)+) => {$(
        impl Wire for Option<$type> {
            fn read<'de, D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<Self>, D::Error> {
                Ok(Some(<$type>::read(deserializer)?))
            }

            fn write(&self, out: &mut Vec<u8>) {
                gojson::write_pointer(self.as_ref(), out);
            }

            fn is_zero(&self) -> bool {
                self.is_none()
            }
        }
    )+};
}
pointers!(String i32 SessionAffinityConfig ClientIpConfig);

impl Wire for i32 {
    fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        struct Scalar;
        impl serde::de::Visitor<'_> for Scalar {
            type Value = Option<i32>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 32-bit number")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                i32::try_from(value).map(Some).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                i32::try_from(value).map(Some).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Scalar)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_string().as_bytes());
    }
}

impl Wire for Timestamp {
    fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let Some(text) = String::read(deserializer)? else {
            return Ok(None);
        };
        let time = OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_invalid| D::Error::custom("invalid RFC 3339 time"))?;
        // Go's zero time is the first instant of year one.
        let is_zero = time.unix_timestamp() == -62_135_596_800;
        Ok(Some(Self((!is_zero).then_some(time))))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let text = self.0.and_then(|time| time.format(&Rfc3339).ok());
        text.write(out);
    }
}
