//! The agent's flags as clap reads them: all text, so that `config` can report every problem at
//! once instead of clap's first. Each field's long name is also the key in the config directory.
use std::path::PathBuf;

use super::DatapathArgs;

/// Where the admin socket is; one flag for the agent, which serves it, and for its clients.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SocketArg {
    /// Unix socket of the agent [default: /run/tombolo/tombolo.sock].
    #[arg(long, global = true, value_name = "PATH", env = "TOMBOLO_SOCKET_PATH")]
    pub socket_path: Option<String>,
}

impl SocketArg {
    /// The path for clients: as given, else the default.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let given = self.socket_path.as_deref().filter(|text| !text.is_empty());
        given.unwrap_or(super::SOCKET_PATH).into()
    }
}

/// Flags of `tombolo agent`. An empty value counts as not given.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Name of this cluster: 1-32 lower-case letters, digits or '-'. Required.
    #[arg(long, value_name = "NAME", env = "TOMBOLO_CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// Number of this cluster, unique in the mesh, from 1 on. Required.
    #[arg(long, value_name = "ID", env = "TOMBOLO_CLUSTER_ID")]
    pub cluster_id: Option<String>,
    /// Most clusters in the mesh, the same in all of them: 255 or 511 [default: 255].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_MAX_CONNECTED_CLUSTERS")]
    pub max_connected_clusters: Option<String>,
    /// Name of this node, unique in the cluster [default: the host name].
    #[arg(long, value_name = "NAME", env = "TOMBOLO_NODE_NAME")]
    pub node_name: Option<String>,
    /// Directory of peer files, watched for changes [default: /var/lib/clustermesh].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_CLUSTERMESH_CONFIG")]
    pub clustermesh_config: Option<String>,
    /// How long a peer's services stay while it is out of reach, as 15m or 1h; addresses and
    /// identities stay in any case. 0 is for ever [default: 0].
    #[arg(long, value_name = "DURATION", env = "TOMBOLO_CLUSTERMESH_CACHE_TTL")]
    pub clustermesh_cache_ttl: Option<String>,
    /// Directory for what must survive restarts [default: /var/lib/tombolo].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_STATE_DIR")]
    pub state_dir: Option<String>,
    /// Cluster store: 'embedded', or 'etcd' for one that several nodes share [default: embedded].
    #[arg(long, value_name = "ENGINE", env = "TOMBOLO_KVSTORE")]
    pub kvstore: Option<String>,
    /// Options of the cluster store: 'etcd.config=FILE', an etcd client file like a peer's
    /// [default: none].
    #[arg(long, value_name = "KEY=VALUE", env = "TOMBOLO_KVSTORE_OPT")]
    pub kvstore_opt: Option<String>,
    /// Source of a Cilium cluster that keeps its state in an etcd: 'etcd.config=FILE'. It is only
    /// read, and must not be the cluster store [default: none].
    #[arg(long, value_name = "KEY=VALUE", env = "TOMBOLO_KVSTORE_SOURCE")]
    pub kvstore_source: Option<String>,
    /// The bpf filesystem [default: /sys/fs/bpf].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_BPF_ROOT")]
    pub bpf_root: Option<String>,
    /// Directory of manifests that say what is local, watched for changes [default: none].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_MANIFESTS_DIR")]
    pub manifests_dir: Option<String>,
    /// Directory of policy files, watched for changes [default: none].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_POLICY_DIR")]
    pub policy_dir: Option<String>,
    /// Address of the etcd face that peers dial; ':PORT' is all IPv4 addresses [default: :2379].
    #[arg(long, value_name = "ADDR", env = "TOMBOLO_LISTEN")]
    pub listen: Option<String>,
    /// Where the cluster's other nodes reach this one's etcd face, 'HOST:PORT' [default: --listen,
    /// with the node's own address if that is all of them].
    #[arg(long, value_name = "ADDR", env = "TOMBOLO_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<String>,
    /// Longest write request of the etcd face, in bytes [default: 1572864].
    #[arg(long, value_name = "BYTES", env = "TOMBOLO_MAX_REQUEST_BYTES")]
    pub max_request_bytes: Option<String>,
    /// Most conditions or steps of a transaction [default: 128].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_MAX_TXN_OPS")]
    pub max_txn_ops: Option<String>,
    /// Address for /metrics, or 'off' [default: :9962].
    #[arg(long, value_name = "ADDR", env = "TOMBOLO_PROMETHEUS_SERVE_ADDR")]
    pub prometheus_serve_addr: Option<String>,
    /// Port for /healthz and /readyz on all IPv4 addresses, or 'off' [default: 9880].
    #[arg(long, value_name = "PORT", env = "TOMBOLO_HEALTH_PORT")]
    pub health_port: Option<String>,
    /// Time after which a peer that was never connected does not hold back /readyz/cache
    /// [default: 15s].
    #[arg(long, value_name = "TIME", env = "TOMBOLO_PER_CLUSTER_READY_TIMEOUT")]
    pub per_cluster_ready_timeout: Option<String>,
    /// Time after which no peer holds back /readyz/cache [default: 10m].
    #[arg(long, value_name = "TIME", env = "TOMBOLO_GLOBAL_READY_TIMEOUT")]
    pub global_ready_timeout: Option<String>,
    /// Certificate of the etcd face [default: certs/server.crt in the state directory].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_CERT_FILE")]
    pub tls_cert_file: Option<String>,
    /// Its private key [default: certs/server.key in the state directory].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_KEY_FILE")]
    pub tls_key_file: Option<String>,
    /// This cluster's CA, which clients' certificates must come from [default: certs/ca.crt in the
    /// state directory].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_CA_FILE")]
    pub tls_ca_file: Option<String>,
    /// Certificate as which this node reads the cache of the one that imports, CN
    /// `local-<cluster>` [default: certs/local.crt in the state directory].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_LOCAL_CERT_FILE")]
    pub tls_local_cert_file: Option<String>,
    /// Its private key [default: certs/local.key in the state directory].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_LOCAL_KEY_FILE")]
    pub tls_local_key_file: Option<String>,
    /// CA bundle that vouches for `admin-<cluster>` in place of --tls-ca-file [default: none].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_ADMIN_CA_FILE")]
    pub tls_admin_ca_file: Option<String>,
    /// CA bundle that vouches for `local-<cluster>` in place of --tls-ca-file [default: none].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_LOCAL_CA_FILE")]
    pub tls_local_ca_file: Option<String>,
    /// CA bundle that vouches for `remote` and `remote-<peer>` in place of --tls-ca-file
    /// [default: none].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_TLS_REMOTE_CA_FILE")]
    pub tls_remote_ca_file: Option<String>,
    /// Plaintext listener for tools on this host, with full rights on the cluster store:
    /// unix:/PATH (mode 0600), a loopback address, or 'off' [default: off].
    #[arg(long, value_name = "ADDR", env = "TOMBOLO_LOCAL_LISTEN")]
    pub local_listen: Option<String>,
    /// File that says which peer may see what, watched for changes [default: none, all see
    /// everything].
    #[arg(long, value_name = "FILE", env = "TOMBOLO_EXPORT_POLICY")]
    pub export_policy: Option<String>,
    /// Policy selectors that name no cluster mean the local one [default: true].
    #[arg(
        long,
        value_name = "BOOL",
        env = "TOMBOLO_POLICY_DEFAULT_LOCAL_CLUSTER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub policy_default_local_cluster: Option<String>,
    /// Those of the kernel side.
    #[command(flatten)]
    pub datapath: DatapathArgs,
    /// Endpoints that policy is enforced on: default (those that a policy selects), always or never
    /// [default: default].
    #[arg(long, value_name = "MODE", env = "TOMBOLO_ENABLE_POLICY")]
    pub enable_policy: Option<String>,
    /// Directory with one file per key; a key is a flag without '--' [default: none].
    #[arg(long, value_name = "DIR", env = "TOMBOLO_CONFIG_DIR")]
    pub config_dir: Option<String>,
    /// Form of the log lines: logfmt or json [default: logfmt].
    #[arg(long, value_name = "FORMAT", env = "TOMBOLO_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// Log also what only developers need [default: false].
    #[arg(
        long,
        value_name = "BOOL",
        env = "TOMBOLO_DEBUG",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub debug: Option<String>,
}

impl Args {
    /// All keys that a config directory may hold, with what flag or environment gave for them.
    pub(super) fn given<'a>(
        &'a self,
        socket: &'a SocketArg,
    ) -> Vec<(&'static str, &'a Option<String>)> {
        let mut given = vec![
            ("cluster-name", &self.cluster_name),
            ("cluster-id", &self.cluster_id),
            ("max-connected-clusters", &self.max_connected_clusters),
            ("node-name", &self.node_name),
            ("clustermesh-config", &self.clustermesh_config),
            ("clustermesh-cache-ttl", &self.clustermesh_cache_ttl),
            ("state-dir", &self.state_dir),
            ("socket-path", &socket.socket_path),
            ("kvstore", &self.kvstore),
            ("kvstore-opt", &self.kvstore_opt),
            ("kvstore-source", &self.kvstore_source),
            ("bpf-root", &self.bpf_root),
            ("manifests-dir", &self.manifests_dir),
            ("policy-dir", &self.policy_dir),
            ("listen", &self.listen),
            ("advertise-address", &self.advertise_address),
            ("max-request-bytes", &self.max_request_bytes),
            ("max-txn-ops", &self.max_txn_ops),
            ("prometheus-serve-addr", &self.prometheus_serve_addr),
            ("health-port", &self.health_port),
            ("per-cluster-ready-timeout", &self.per_cluster_ready_timeout),
            ("global-ready-timeout", &self.global_ready_timeout),
            ("tls-cert-file", &self.tls_cert_file),
            ("tls-key-file", &self.tls_key_file),
            ("tls-ca-file", &self.tls_ca_file),
            ("tls-local-cert-file", &self.tls_local_cert_file),
            ("tls-local-key-file", &self.tls_local_key_file),
            ("tls-admin-ca-file", &self.tls_admin_ca_file),
            ("tls-local-ca-file", &self.tls_local_ca_file),
            ("tls-remote-ca-file", &self.tls_remote_ca_file),
            ("local-listen", &self.local_listen),
            ("export-policy", &self.export_policy),
            (
                "policy-default-local-cluster",
                &self.policy_default_local_cluster,
            ),
            ("enable-policy", &self.enable_policy),
            ("log-format", &self.log_format),
            ("debug", &self.debug),
        ];
        given.extend(self.datapath.given());
        given
    }
}
