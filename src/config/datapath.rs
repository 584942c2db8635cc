//! Flags of the kernel side: how programs are attached, how large their maps are, and what they do
//! with local traffic.
use std::fmt;

use super::{Raw, parse_bool};
use crate::limits::{
    CONNTRACK_ENTRIES, FRAGMENTS_ENTRIES, IPCACHE_ENTRIES, MAP_ENTRIES_MAX, MAP_ENTRIES_MIN,
    POLICY_ENTRIES,
};

/// How programs get onto an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX links; Linux 6.6.
    Tcx,
    /// Filters of a clsact queueing discipline, for Linux before 6.6.
    Clsact,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Most entries of the maps that an operator may size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSizes {
    /// Tracked flows.
    pub conntrack: u32,
    /// Policy entries of all endpoints together.
    pub policy: u32,
    /// Known addresses; prefixes have a map of their own, of fixed size.
    pub ipcache: u32,
    /// Fragmented datagrams under way.
    pub fragments: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            conntrack: CONNTRACK_ENTRIES,
            policy: POLICY_ENTRIES,
            ipcache: IPCACHE_ENTRIES,
            fragments: FRAGMENTS_ENTRIES,
        }
    }
}

/// The kernel side's part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Datapath {
    /// How programs are attached.
    pub attach_mode: AttachMode,
    /// Sizes of the maps.
    pub sizes: MapSizes,
    /// The host reaches local endpoints whatever their ingress policy says.
    pub allow_localhost: bool,
    /// What policy would drop is reported and let pass.
    pub audit: bool,
}

/// The same, as flags; text, as `config` checks it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DatapathArgs {
    /// How programs are attached: tcx, clsact for kernels before 6.6, or auto [default: auto].
    #[arg(long, value_name = "MODE", env = "TOMBOLO_ATTACH_MODE")]
    pub attach_mode: Option<String>,
    /// Most tracked flows of IPv4, and as many of IPv6 [default: 262144].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_BPF_CT_MAX")]
    pub bpf_ct_max: Option<String>,
    /// Most policy entries of all endpoints together [default: 1048576].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_BPF_POLICY_MAP_MAX")]
    pub bpf_policy_map_max: Option<String>,
    /// Most known addresses [default: 1048576].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_BPF_IPCACHE_MAX")]
    pub bpf_ipcache_max: Option<String>,
    /// Most fragmented datagrams under way [default: 8192].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_BPF_FRAGMENTS_MAX")]
    pub bpf_fragments_max: Option<String>,
    /// Whether this host reaches its endpoints: 'always', or as 'policy' says [default: policy].
    #[arg(long, value_name = "WHEN", env = "TOMBOLO_ALLOW_LOCALHOST")]
    pub allow_localhost: Option<String>,
    /// Report what policy would drop, and let it pass [default: false].
    #[arg(
        long,
        value_name = "BOOL",
        env = "TOMBOLO_POLICY_AUDIT_MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub policy_audit_mode: Option<String>,
}

impl DatapathArgs {
    /// As [`super::Args::given`].
    pub(super) const fn given(&self) -> [(&'static str, &Option<String>); 7] {
        [
            ("attach-mode", &self.attach_mode),
            ("bpf-ct-max", &self.bpf_ct_max),
            ("bpf-policy-map-max", &self.bpf_policy_map_max),
            ("bpf-ipcache-max", &self.bpf_ipcache_max),
            ("bpf-fragments-max", &self.bpf_fragments_max),
            ("allow-localhost", &self.allow_localhost),
            ("policy-audit-mode", &self.policy_audit_mode),
        ]
    }
}

impl Raw {
    pub(super) fn datapath(&mut self) -> Datapath {
        let sizes = MapSizes {
            conntrack: self.map_size("bpf-ct-max", CONNTRACK_ENTRIES),
            policy: self.map_size("bpf-policy-map-max", POLICY_ENTRIES),
            ipcache: self.map_size("bpf-ipcache-max", IPCACHE_ENTRIES),
            fragments: self.map_size("bpf-fragments-max", FRAGMENTS_ENTRIES),
        };
        Datapath {
            attach_mode: self
                .parse("attach-mode", |text| match text {
                    "auto" => Ok(AttachMode::Auto),
                    "tcx" => Ok(AttachMode::Tcx),
                    "clsact" => Ok(AttachMode::Clsact),
                    _ => Err("must be auto, tcx or clsact"),
                })
                .unwrap_or_default(),
            sizes,
            allow_localhost: self
                .parse("allow-localhost", |text| match text {
                    "always" => Ok(true),
                    "policy" => Ok(false),
                    _ => Err("must be always or policy"),
                })
                .unwrap_or(false),
            audit: self.parse("policy-audit-mode", parse_bool).unwrap_or(false),
        }
    }

    fn map_size(&mut self, key: &'static str, default: u32) -> u32 {
        let parse = |text: &str| {
            let entries = text.parse().ok();
            entries
                .filter(|entries| (MAP_ENTRIES_MIN..=MAP_ENTRIES_MAX).contains(entries))
                .ok_or_else(|| {
                    format!("must be a number from {MAP_ENTRIES_MIN} to {MAP_ENTRIES_MAX}")
                })
        };
        self.parse(key, parse).unwrap_or(default)
    }
}
