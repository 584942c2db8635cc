//! A peer file: the etcd client's YAML, and what we add to it. Field names are case-insensitive.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    etcd::{ConnectOptions, Endpoint, EndpointError},
    tls::ClientOptions,
    types::{ClusterId, IpPrefix, IpPrefixError, MaxClusters},
};

/// What a peer file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// How to connect.
    pub connect: ConnectOptions,
    /// The only id that the peer may have; `None` if any.
    pub cluster_id: Option<ClusterId>,
    /// The only ranges that it may claim addresses in; empty if any.
    pub allowed_cidrs: Arc<[IpPrefix]>,
    /// Keys that mean nothing here, in lower case; told, and otherwise ignored.
    pub unknown: Vec<String>,
}

/// Why a peer file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// Not text.
    #[error("read as UTF-8: byte {0} is none; write the file anew")]
    Utf8(usize),
    /// Not YAML, or no mapping at the top.
    #[error("parse as YAML: {0}")]
    Yaml(String),
    /// A key has a value of the wrong type.
    #[error("read key {key:?}: expected {expected}")]
    Type {
        /// The key, in lower case.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// No endpoint is listed.
    #[error("read key \"endpoints\": none listed")]
    NoEndpoint,
    /// An endpoint is malformed.
    #[error("read key \"endpoints\"")]
    Endpoint(#[source] EndpointError),
    /// One of certificate and key is missing.
    #[error("read keys \"cert-file\" and \"key-file\": both or neither must be given")]
    HalfIdentity,
    /// A host alias is malformed.
    #[error("read key \"cilium-host-aliases\": each needs a new hostname and addresses")]
    HostAliases,
    /// The pinned id can be no cluster's.
    #[error("read key \"cluster-id\": {0} is not within 1..=511")]
    ClusterId(u64),
    /// A range is malformed.
    #[error("read key \"allowed-cidrs\"")]
    AllowedCidrs(#[source] IpPrefixError),
    /// A list that allows nothing is surely not meant.
    #[error("read key \"allowed-cidrs\": none listed; leave the key out to allow any")]
    NoAllowedCidr,
}

/// Keys of the field's client that have no effect here, on purpose.
const IGNORED: [&str; 10] = [
    "dial-timeout",
    "dial-keep-alive-time",
    "dial-keep-alive-timeout",
    "auto-sync-interval",
    "reject-old-cluster",
    "permit-without-stream",
    "max-unary-retries",
    "backoff-wait-between",
    "backoff-jitter-fraction",
    "insecure-discovery",
];

impl ConfigFile {
    /// Parses a file's content, as [`Self::parse`].
    ///
    /// # Errors
    /// [`ConfigFileError::Utf8`], and those of `parse`.
    pub fn from_bytes(bytes: &[u8], dir: &Path) -> Result<Self, ConfigFileError> {
        let text = str::from_utf8(bytes);
        let text = text.map_err(|error| ConfigFileError::Utf8(error.valid_up_to()))?;
        Self::parse(text, dir)
    }

    /// Parses a file's text; relative paths in it are relative to `dir`.
    ///
    /// # Errors
    /// The first problem found.
    pub fn parse(text: &str, dir: &Path) -> Result<Self, ConfigFileError> {
        let raw: BTreeMap<String, Value> =
            serde_saphyr::from_str(text).map_err(|e| ConfigFileError::Yaml(e.to_string()))?;
        let mut keys: BTreeMap<String, Value> = raw
            .into_iter()
            .map(|(key, value)| (key.to_ascii_lowercase(), value))
            .collect();
        let mut take = |key: &str| keys.remove(key).filter(|value| !value.is_null());

        let endpoints = strings("endpoints", take("endpoints"))?;
        let trusted = string("trusted-ca-file", take("trusted-ca-file"))?;
        let ca = trusted.or(string("ca-file", take("ca-file"))?);
        let cert = string("cert-file", take("cert-file"))?;
        let key = string("key-file", take("key-file"))?;
        let plain = flag("insecure-transport", take("insecure-transport"))?;
        let skip = flag("insecure-skip-tls-verify", take("insecure-skip-tls-verify"))?;
        let user = string("username", take("username"))?;
        let password = string("password", take("password"))?;
        let aliases = host_aliases(take("cilium-host-aliases"))?;
        let cluster_id = cluster_id(take("cluster-id"))?;
        let allowed_cidrs = allowed_cidrs(take("allowed-cidrs"))?;
        for key in IGNORED {
            drop(take(key));
        }

        if endpoints.is_empty() {
            return Err(ConfigFileError::NoEndpoint);
        }
        let mut endpoints = endpoints
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Endpoint>, _>>()
            .map_err(ConfigFileError::Endpoint)?;
        if plain {
            endpoints
                .iter_mut()
                .for_each(|endpoint| endpoint.tls = Some(false));
        }
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((dir.join(cert), dir.join(key))),
            (None, None) => None,
            _ => return Err(ConfigFileError::HalfIdentity),
        };
        let tls = ClientOptions {
            ca: ca.map(|ca| dir.join(ca)),
            identity,
            server_name: None,
            insecure_skip_verify: skip,
        };
        let user = user.map(|name| (name, password.unwrap_or_default()));
        let connect = ConnectOptions {
            endpoints,
            tls,
            user,
            host_aliases: aliases,
        };
        Ok(Self {
            connect,
            cluster_id,
            allowed_cidrs,
            unknown: keys
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, _)| key)
                .collect(),
        })
    }

    /// The CA file whose CAs may vouch for this peer as a client of ours, if the peer uses TLS.
    #[must_use]
    pub fn ca_file(&self) -> Option<&PathBuf> {
        let mut endpoints = self.connect.endpoints.iter();
        let tls = endpoints.any(|endpoint| self.connect.uses_tls(endpoint));
        self.connect
            .tls
            .ca
            .as_ref()
            .filter(|_| tls && !self.connect.tls.insecure_skip_verify)
    }
}

fn string(key: &'static str, value: Option<Value>) -> Result<Option<String>, ConfigFileError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(ConfigFileError::Type {
            key,
            expected: "a text",
        }),
    }
}

fn flag(key: &'static str, value: Option<Value>) -> Result<bool, ConfigFileError> {
    match value {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(flag),
        Some(_) => Err(ConfigFileError::Type {
            key,
            expected: "true or false",
        }),
    }
}

fn strings(key: &'static str, value: Option<Value>) -> Result<Vec<String>, ConfigFileError> {
    let error = || ConfigFileError::Type {
        key,
        expected: "a list of texts",
    };
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(error()),
            })
            .collect(),
        Some(_) => Err(error()),
    }
}

fn cluster_id(value: Option<Value>) -> Result<Option<ClusterId>, ConfigFileError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let number = value.as_u64().ok_or(ConfigFileError::Type {
        key: "cluster-id",
        expected: "a number",
    })?;
    let id = u32::try_from(number).ok();
    let id = id.and_then(|id| ClusterId::new(id, MaxClusters::C511).ok());
    id.map(Some).ok_or(ConfigFileError::ClusterId(number))
}

fn allowed_cidrs(value: Option<Value>) -> Result<Arc<[IpPrefix]>, ConfigFileError> {
    if value.is_none() {
        return Ok(Arc::default());
    }
    let texts = strings("allowed-cidrs", value)?;
    if texts.is_empty() {
        return Err(ConfigFileError::NoAllowedCidr);
    }
    let parsed = texts.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, _>>()
        .map_err(ConfigFileError::AllowedCidrs)
}

fn host_aliases(value: Option<Value>) -> Result<BTreeMap<String, Vec<IpAddr>>, ConfigFileError> {
    let Some(value) = value else {
        return Ok(BTreeMap::new());
    };
    let error = || ConfigFileError::HostAliases;
    let mut aliases = BTreeMap::new();
    for item in value.as_array().ok_or_else(error)? {
        let field = |name: &str| {
            let mut fields = item.as_object()?.iter();
            let (_, value) = fields.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value)
        };
        let host = field("hostname").and_then(Value::as_str);
        let host = host.filter(|host| !host.is_empty()).ok_or_else(error)?;
        let ips = field("ips").and_then(Value::as_array).ok_or_else(error)?;
        let parse = |ip: &Value| ip.as_str().and_then(|ip| ip.parse().ok());
        let ips: Option<Vec<IpAddr>> = ips.iter().map(parse).collect();
        let ips = ips.filter(|ips| !ips.is_empty()).ok_or_else(error)?;
        if aliases.insert(host.to_owned(), ips).is_some() {
            return Err(error());
        }
    }
    Ok(aliases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, ConfigFileError> {
        ConfigFile::parse(text, Path::new("/dir"))
    }

    #[test]
    fn reads_cilium_files_with_both_spellings_of_the_ca() {
        for ca in ["trusted-ca-file", "ca-file", "Trusted-CA-File"] {
            let text = format!(
                "endpoints:\n- https://west.mesh.cilium.io:32379\n{ca}: /c/ca.crt\n\
                 cert-file: client.crt\nkey-file: '/c/client.key'\ndial-timeout: 5\nfoo: [1]\n"
            );
            let file = parse(&text).unwrap();
            assert_eq!(file.connect.endpoints[0].host, "west.mesh.cilium.io");
            assert_eq!(file.ca_file(), Some(&PathBuf::from("/c/ca.crt")));
            let identity = ("/dir/client.crt".into(), "/c/client.key".into());
            assert_eq!(file.connect.tls.identity, Some(identity));
            assert_eq!(file.unknown, ["foo"]);
        }
    }

    #[test]
    fn reads_switches_users_and_aliases() {
        let file = parse(
            "endpoints: ['west:1', \"https://b:2\"]\ninsecure-transport: true\nusername: u\n\
             password: 123\ncilium-host-aliases:\n- hostname: west\n  ips: [192.0.2.1, '::1']\n",
        )
        .unwrap();
        assert!(file.connect.endpoints.iter().all(|e| e.tls == Some(false)));
        assert_eq!(file.connect.user, Some(("u".to_owned(), "123".to_owned())));
        assert_eq!(file.connect.host_aliases["west"].len(), 2);
        assert_eq!(file.ca_file(), None);
        let file = parse("endpoints: [https://a:1]\nca-file: x\ninsecure-skip-tls-verify: true");
        assert_eq!(file.unwrap().ca_file(), None);
    }

    #[test]
    fn reads_what_the_operator_holds_the_peer_to() {
        let file = parse(
            "Endpoints: [https://a:1]\nCluster-ID: 7\nallowed-cidrs: [10.1.0.0/16, '2001:db8::/32']\n\
             Cilium-Host-Aliases: [{Hostname: a, IPs: [192.0.2.1]}]\n",
        )
        .unwrap();
        assert_eq!(file.cluster_id.map(ClusterId::get), Some(7));
        let cidrs: Vec<String> = file.allowed_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.1.0.0/16", "2001:db8::/32"]);
        assert!(file.unknown.is_empty() && file.connect.host_aliases.contains_key("a"));
        let file = parse("endpoints: [https://a:1]\ncluster-id:\nallowed-cidrs: null").unwrap();
        assert!(file.cluster_id.is_none() && file.allowed_cidrs.is_empty());
    }

    #[test]
    fn refuses_what_cannot_work() {
        for text in [
            "",
            "endpoints:",
            "endpoints: []",
            "endpoints: https://a:1",
            "endpoints: [https://a]",
            "endpoints: [https://a:1]\ncert-file: x",
            "endpoints: [https://a:1]\ninsecure-transport: 7",
            "endpoints: [https://a:1]\nca-file: [x]",
            "endpoints: [https://a:1",
            "endpoints: [https://a:1]\nkey-file: x",
            "endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: a, ips: []}]",
            "endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: '', ips: [192.0.2.1]}]",
            "endpoints: [https://a:1]\ncilium-host-aliases: [{ips: [192.0.2.1]}]",
            "endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: a, ips: [b]}]",
            "endpoints: [https://a:1]\ncilium-host-aliases: \
             [{hostname: a, ips: [192.0.2.1]}, {hostname: a, ips: [192.0.2.2]}]",
            "endpoints: [https://a:1]\ncluster-id: 0",
            "endpoints: [https://a:1]\ncluster-id: 512",
            "endpoints: [https://a:1]\ncluster-id: '7'",
            "endpoints: [https://a:1]\nallowed-cidrs: 10.0.0.0/8",
            "endpoints: [https://a:1]\nallowed-cidrs: [10.0.0.0/33]",
            "endpoints: [https://a:1]\nallowed-cidrs: []",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
