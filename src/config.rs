//! Flags, environment and config directory to one validated [`Config`]; the only reader of the
//! environment.
//!
//! Always true: after `load` there is no text left to check, and a refused configuration names all
//! of its problems, each with its key.
//! Precedence: flag, environment, directory, default. An empty value counts as not given.
//! Absent on purpose: reload. Certificates, peer files, manifests and policies are re-read by who
//! uses them; everything here changes by restart.
use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

pub use self::{
    args::{Args, SocketArg},
    datapath::{AttachMode, Datapath, DatapathArgs, MapSizes},
};
use crate::{
    limits,
    policy::Enforcement,
    socket::PATH_BYTES_MAX,
    types::{ClusterId, ClusterName, MaxClusters},
};

mod args;
mod datapath;
mod parse;

pub(crate) use self::parse::duration;
#[cfg(test)]
mod tests;

const SOCKET_PATH: &str = "/run/tombolo/tombolo.sock";
/// Where a host's state is kept unless it is said.
pub const STATE_DIR: &str = "/var/lib/tombolo";
/// Where the bpf filesystem is, unless said otherwise.
pub const BPF_ROOT: &str = "/sys/fs/bpf";
/// A DNS name's limit, which Kubernetes node names share.
const NODE_NAME_BYTES_MAX: usize = 253;

/// What the agent runs with. Everything is validated; files are not opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This cluster's name.
    pub cluster_name: ClusterName,
    /// This cluster's number; within `max_clusters`.
    pub cluster_id: ClusterId,
    /// How identities are split; the same in the whole mesh.
    pub max_clusters: MaxClusters,
    /// This node's name; 1-253 printable bytes without `/`.
    pub node_name: String,
    /// Directory of peer files; need not exist yet.
    pub clustermesh_config: PathBuf,
    /// How long a peer's services stay while it is out of reach; `None` for ever.
    pub clustermesh_cache_ttl: Option<Duration>,
    /// Directory for what must survive restarts.
    pub state_dir: PathBuf,
    /// The admin socket; at most 107 bytes.
    pub socket_path: PathBuf,
    /// Where the cluster store is.
    pub kvstore: Kvstore,
    /// The etcd of a Cilium cluster in kvstore mode that is the source, if there is one: an etcd
    /// client file. Other than that of `kvstore`.
    pub kvstore_source: Option<PathBuf>,
    /// The bpf filesystem.
    pub bpf_root: PathBuf,
    /// Directory of manifests, if that source is used.
    pub manifests_dir: Option<PathBuf>,
    /// Directory of policies, if there are any.
    pub policy_dir: Option<PathBuf>,
    /// Address of the etcd face.
    pub listen: SocketAddr,
    /// Where this cluster's other nodes reach the etcd face, `host:port`; `None` if that follows
    /// from `listen` and the node's own record.
    pub advertise_address: Option<String>,
    /// Longest write request in bytes; at most `limits::REQUEST_BYTES_CEILING`.
    pub max_request_bytes: usize,
    /// Most conditions or steps of a transaction; at most `limits::TXN_OPS_CEILING`.
    pub max_txn_ops: usize,
    /// Address of `/metrics`; `None` if off.
    pub prometheus_serve_addr: Option<SocketAddr>,
    /// Address of `/healthz` and `/readyz`; `None` if off.
    pub health_addr: Option<SocketAddr>,
    /// After this a peer that was never connected is not waited for until the cache is ready.
    pub per_cluster_ready_timeout: Duration,
    /// After this no peer is.
    pub global_ready_timeout: Duration,
    /// Certificate chain of the etcd face, PEM.
    pub tls_cert_file: PathBuf,
    /// Its private key, PEM.
    pub tls_key_file: PathBuf,
    /// This cluster's CA certificate, PEM.
    pub tls_ca_file: PathBuf,
    /// Certificate chain as which this node reads the cache of the one that imports, PEM.
    pub tls_local_cert_file: PathBuf,
    /// Its private key, PEM.
    pub tls_local_key_file: PathBuf,
    /// CA bundle that vouches for `admin-<cluster>` in place of `tls_ca_file`, PEM.
    pub tls_admin_ca_file: Option<PathBuf>,
    /// The same for `local-<cluster>`.
    pub tls_local_ca_file: Option<PathBuf>,
    /// The same for `remote` and `remote-<peer>`.
    pub tls_remote_ca_file: Option<PathBuf>,
    /// Where tools on this host reach the cluster store without a certificate; `None` if off.
    pub local_listen: Option<LocalListen>,
    /// The file that says which peer may see what; `None` if all see everything.
    pub export_policy: Option<PathBuf>,
    /// Selectors that name no cluster mean the local one.
    pub policy_default_local_cluster: bool,
    /// Programs, their maps, and what they guard.
    pub datapath: Datapath,
    /// Which endpoints are enforced.
    pub enable_policy: Enforcement,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Log debug events too.
    pub debug: bool,
}

/// Address of the plaintext listener; one that only this host reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalListen {
    /// A unix socket; an absolute path of at most 107 bytes.
    Unix(PathBuf),
    /// An address of the loopback interface.
    Loopback(SocketAddr),
}

impl FromStr for LocalListen {
    type Err = &'static str;

    /// `unix:/path` (also `unix:///path`, as clients spell it) or `127.0.0.1:port`.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.len() {
                _ if !path.starts_with('/') => {
                    Err("is no absolute path; write unix:/run/tombolo/etcd.sock")
                }
                0..=PATH_BYTES_MAX => Ok(Self::Unix(path.into())),
                _ => Err("is longer than the 107 bytes of a socket path; name a shorter one"),
            };
        }
        let address = text.parse::<SocketAddr>().map_err(|_cause| {
            "is neither unix:/path nor a loopback address; write unix:/run/tombolo/etcd.sock or 127.0.0.1:2378"
        })?;
        if !address.ip().to_canonical().is_loopback() {
            return Err(
                "can be reached from other hosts, and this listener asks for no certificate; write \
                 unix:/run/tombolo/etcd.sock or 127.0.0.1:2378, and use --listen for the others",
            );
        }
        Ok(Self::Loopback(address))
    }
}

/// Engine of the cluster store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Kvstore {
    /// In this process.
    #[default]
    Embedded,
    /// An etcd, or another node's tombolo.
    Etcd {
        /// How to reach it: an etcd client file.
        config: PathBuf,
    },
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `level=info msg="…" key=value`
    #[default]
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// Everything wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// In order of the keys' documentation, then those of unknown keys.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, as spelled without `--`.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the configuration has {} problem(s):",
            self.problems.len()
        )?;
        for Problem { key, message } in &self.problems {
            write!(f, "\n  {key}: {message}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Merges what flags and environment gave with the config directory and the defaults.
    ///
    /// # Errors
    /// All problems at once; see [`ConfigError`].
    pub fn load(args: &Args, socket: &SocketArg) -> Result<Self, ConfigError> {
        let mut raw = Raw::default();
        raw.read_given(args, socket);
        raw.validate().ok_or_else(|| {
            raw.problems
                .sort_by_key(|p| raw.keys.iter().position(|k| *k == p.key).unwrap_or(99));
            ConfigError {
                problems: raw.problems,
            }
        })
    }
}

/// Values before validation, and the problems found so far.
#[derive(Default)]
struct Raw {
    keys: Vec<&'static str>,
    values: BTreeMap<&'static str, Given>,
    problems: Vec<Problem>,
}

struct Given {
    text: String,
    /// The file, if the value comes from the config directory.
    file: Option<PathBuf>,
}

impl Raw {
    fn read_given(&mut self, args: &Args, socket: &SocketArg) {
        let given = args.given(socket);
        self.keys = given.iter().map(|(key, _)| *key).collect();
        if let Some(dir) = args.config_dir.as_deref().filter(|dir| !dir.is_empty()) {
            self.read_dir(Path::new(dir));
        }
        for (key, value) in given {
            if let Some(text) = value
                .as_deref()
                .map(str::trim)
                .filter(|text| !text.is_empty())
            {
                self.values.insert(
                    key,
                    Given {
                        text: text.to_owned(),
                        file: None,
                    },
                );
            }
        }
    }

    fn read_dir(&mut self, dir: &Path) {
        let entries = match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>)
        {
            Ok(entries) => entries,
            Err(error) => {
                return self.problem("config-dir", format!("reading {}: {error}", dir.display()));
            }
        };
        let mut names: Vec<_> = entries.iter().map(std::fs::DirEntry::file_name).collect();
        names.sort();
        for name in names {
            let name = name.to_string_lossy();
            // Mounted ConfigMaps keep their versions in `..data` and `..<timestamp>`.
            if name.starts_with('.') {
                continue;
            }
            let file = dir.join(&*name);
            let Some(key) = self.keys.iter().copied().find(|key| **key == *name) else {
                self.problem(&name, format!("unknown key (file {})", file.display()));
                continue;
            };
            match std::fs::read_to_string(&file) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    let text = text.trim().to_owned();
                    self.values.insert(
                        key,
                        Given {
                            text,
                            file: Some(file),
                        },
                    );
                }
                Err(error) => self.problem(key, format!("reading {}: {error}", file.display())),
            }
        }
    }

    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    }

    /// `None` if there is any problem; all fields are looked at first.
    fn validate(&mut self) -> Option<Config> {
        let max_clusters = self.parse("max-connected-clusters", |text| match text {
            "255" => Ok(MaxClusters::C255),
            "511" => Ok(MaxClusters::C511),
            _ => Err("must be 255 or 511"),
        });
        let max_clusters = max_clusters.unwrap_or_default();
        let cluster_name = self.required("cluster-name", parse::mesh_name);
        let cluster_id = self.required("cluster-id", |text| {
            let id = text.parse().ok().ok_or("is not a number")?;
            ClusterId::new(id, max_clusters).map_err(|error| error.to_string())
        });
        let node_name = self.node_name();
        let state_dir = self.path("state-dir").unwrap_or_else(|| STATE_DIR.into());
        let in_certs = |name: &str| state_dir.join("certs").join(name);
        let socket_path = self
            .path("socket-path")
            .unwrap_or_else(|| SOCKET_PATH.into());
        if socket_path.as_os_str().len() > PATH_BYTES_MAX {
            let message = format!("is longer than the {PATH_BYTES_MAX} bytes of a socket path");
            self.problem("socket-path", message);
        }
        let kvstore = self.kvstore();
        let addr = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let config = Config {
            max_clusters,
            clustermesh_config: self
                .path("clustermesh-config")
                .unwrap_or_else(|| "/var/lib/clustermesh".into()),
            socket_path,
            kvstore: kvstore.clone(),
            kvstore_source: self.kvstore_source(&kvstore),
            bpf_root: self.path("bpf-root").unwrap_or_else(|| BPF_ROOT.into()),
            manifests_dir: self.path("manifests-dir"),
            policy_dir: self.path("policy-dir"),
            listen: self
                .parse("listen", parse_addr)
                .unwrap_or_else(|| addr(2379)),
            advertise_address: self.parse("advertise-address", parse::host_and_port),
            max_request_bytes: self
                .parse("max-request-bytes", |text| {
                    parse_count(text, limits::REQUEST_BYTES_CEILING)
                })
                .unwrap_or(limits::REQUEST_BYTES_MAX),
            max_txn_ops: self
                .parse("max-txn-ops", |text| {
                    parse_count(text, limits::TXN_OPS_CEILING)
                })
                .unwrap_or(limits::TXN_OPS_MAX),
            prometheus_serve_addr: self
                .parse("prometheus-serve-addr", |text| unless_off(text, parse_addr))
                .unwrap_or_else(|| Some(addr(9962))),
            health_addr: self
                .parse("health-port", |text| {
                    unless_off(text, |text| text.parse().map(addr))
                })
                .unwrap_or_else(|| Some(addr(9880))),
            per_cluster_ready_timeout: self
                .parse("per-cluster-ready-timeout", duration)
                .unwrap_or(limits::PER_CLUSTER_READY_TIMEOUT),
            global_ready_timeout: self
                .parse("global-ready-timeout", duration)
                .unwrap_or(limits::GLOBAL_READY_TIMEOUT),
            tls_cert_file: self
                .path("tls-cert-file")
                .unwrap_or_else(|| in_certs("server.crt")),
            tls_key_file: self
                .path("tls-key-file")
                .unwrap_or_else(|| in_certs("server.key")),
            tls_ca_file: self
                .path("tls-ca-file")
                .unwrap_or_else(|| in_certs("ca.crt")),
            tls_local_cert_file: self
                .path("tls-local-cert-file")
                .unwrap_or_else(|| in_certs("local.crt")),
            tls_local_key_file: self
                .path("tls-local-key-file")
                .unwrap_or_else(|| in_certs("local.key")),
            tls_admin_ca_file: self.path("tls-admin-ca-file"),
            tls_local_ca_file: self.path("tls-local-ca-file"),
            tls_remote_ca_file: self.path("tls-remote-ca-file"),
            local_listen: self
                .parse("local-listen", |text| unless_off(text, str::parse))
                .flatten(),
            export_policy: self.path("export-policy"),
            clustermesh_cache_ttl: self
                .parse("clustermesh-cache-ttl", duration)
                .filter(|ttl| !ttl.is_zero()),
            policy_default_local_cluster: self
                .parse("policy-default-local-cluster", parse_bool)
                .unwrap_or(true),
            datapath: self.datapath(),
            enable_policy: self.parse("enable-policy", str::parse).unwrap_or_default(),
            log_format: self
                .parse("log-format", |text| match text {
                    "logfmt" => Ok(LogFormat::Logfmt),
                    "json" => Ok(LogFormat::Json),
                    _ => Err("must be logfmt or json"),
                })
                .unwrap_or_default(),
            debug: self.parse("debug", parse_bool).unwrap_or(false),
            cluster_name: cluster_name?,
            cluster_id: cluster_id?,
            node_name: node_name?,
            state_dir,
        };
        self.problems.is_empty().then_some(config)
    }

    fn kvstore(&mut self) -> Kvstore {
        let etcd = self.parse("kvstore", |text| match text {
            "embedded" => Ok(false),
            "etcd" => Ok(true),
            _ => Err("must be embedded or etcd"),
        });
        let given = self.values.contains_key("kvstore-opt");
        let config = self.parse("kvstore-opt", parse::etcd_config);
        match (etcd, config) {
            (Some(true), Some(config)) => return Kvstore::Etcd { config },
            (Some(true), None) if !given => {
                let message = "is required with --kvstore=etcd; give etcd.config=FILE";
                self.problem("kvstore-opt", message.into());
            }
            (None | Some(false), Some(_)) => {
                let message = "has an effect only with --kvstore=etcd";
                self.problem("kvstore-opt", message.into());
            }
            _ => {}
        }
        Kvstore::Embedded
    }

    fn kvstore_source(&mut self, kvstore: &Kvstore) -> Option<PathBuf> {
        let source = self.parse("kvstore-source", parse::etcd_config)?;
        if matches!(kvstore, Kvstore::Etcd { config } if *config == source) {
            let message = "is the cluster store, which --kvstore-opt names; a source is only read";
            self.problem("kvstore-source", message.into());
        }
        if self.values.contains_key("manifests-dir") {
            let message = "can't go with --manifests-dir: with this source Cilium's agents give this \
                           cluster's identities, for manifests the cluster store does; give one of them";
            self.problem("kvstore-source", message.into());
        }
        Some(source)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.values.get(key).map(|given| PathBuf::from(&given.text))
    }

    /// The value if given and good; a bad one becomes a problem.
    fn parse<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let given = self.values.get(key)?;
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(error) => {
                let text: String = given.text.chars().take(64).collect();
                let file = given.file.as_ref();
                let file = file
                    .map(|f| format!(" (file {})", f.display()))
                    .unwrap_or_default();
                self.problem(key, format!("{text:?}: {error}{file}"));
                None
            }
        }
    }

    fn required<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        // A file that could not be read is a problem already; "missing" would mislead.
        if !self.values.contains_key(key) && !self.problems.iter().any(|p| p.key == key) {
            let env = key.to_uppercase().replace('-', "_");
            self.problem(key, format!("is required; give --{key} or TOMBOLO_{env}"));
        }
        self.parse(key, parse)
    }

    fn node_name(&mut self) -> Option<String> {
        let check = |text: &str| {
            let bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
            let ok = text.len() <= NODE_NAME_BYTES_MAX && !text.contains(bad);
            ok.then(|| text.to_owned())
                .ok_or("must have at most 253 bytes, no '/' and no blanks")
        };
        if self.values.contains_key("node-name") {
            return self.parse("node-name", check);
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let host = host.map_err(|error| error.to_string());
        match host.as_deref().map(|text| check(text.trim())) {
            Ok(Ok(name)) if !name.is_empty() => Some(name),
            _ => {
                self.problem(
                    "node-name",
                    "the host name can't be used; give --node-name".into(),
                );
                None
            }
        }
    }
}

fn parse_addr(text: &str) -> Result<SocketAddr, &'static str> {
    // Go's way to say "all addresses".
    let text = text
        .strip_prefix(':')
        .map_or_else(|| text.to_owned(), |p| format!("0.0.0.0:{p}"));
    text.parse()
        .ok()
        .ok_or("is not an address like 10.0.0.1:2379 or :2379")
}

fn parse_count(text: &str, max: usize) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=max).contains(count));
    count.ok_or_else(|| format!("must be a number from 1 to {max}"))
}

fn parse_bool(text: &str) -> Result<bool, &'static str> {
    text.parse().ok().ok_or("must be true or false")
}

fn unless_off<T, E>(text: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, E> {
    if text == "off" {
        Ok(None)
    } else {
        parse(text).map(Some)
    }
}
