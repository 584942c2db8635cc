//! `tombolo config check`: what would go wrong with a peer file, before the agent reads it.
//!
//! Everything that two files, the clock and a running agent can tell, found at once. An error keeps
//! the peer from being joined, or joins another one than is meant; a warning does not.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;

use super::{
    Error,
    client::Client,
    print,
    troubleshoot::{self, Own, Place, State},
};
use crate::{
    admin::wire,
    peer::{ConfigFile, ConfigFileError, inspect},
    types::{ClusterName, IpPrefix, MaxClusters},
};

mod certificates;

/// Peer files.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigVerb {
    Check(CheckArgs),
}

/// Find what is wrong with peer files before they are used. The exit code is 1 if anything keeps a
/// peer from being joined.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The files, wherever they lie now.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Walk to the peers, too, as `troubleshoot` does.
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    pub(super) output: super::Output,
}

/// What follows from a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// The key of the file, `name` for that of the file itself, or a layer of the walk.
    pub(super) key: String,
    pub(super) reason: String,
    pub(super) next_step: String,
}

/// All that is wrong with one file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FileReport {
    file: PathBuf,
    peer: Option<String>,
    ok: bool,
    findings: Vec<Finding>,
}

/// What the files are compared with.
struct Surroundings {
    own: Own,
    dir: PathBuf,
    /// Nodes of all clusters, if there is an agent.
    nodes: Vec<wire::Node>,
    /// Each file given, by its path.
    given: BTreeMap<PathBuf, (ClusterName, ConfigFile)>,
}

/// A file under examination.
struct Check<'a> {
    path: &'a Path,
    peer: &'a ClusterName,
    file: &'a ConfigFile,
    around: &'a Surroundings,
    findings: Vec<Finding>,
}

/// Checks all files given.
///
/// # Errors
/// If the agent answers but cannot be understood.
pub(super) async fn run(args: &CheckArgs, client: &Client) -> Result<Vec<FileReport>, Error> {
    let own = Own::learn(&args.place, client).await?;
    let nodes = match own.agent {
        Some(_) => client.json("/v1/nodes").await?,
        None => Vec::new(),
    };
    let mut around = Surroundings {
        own,
        dir: args.place.clustermesh_config.clone(),
        nodes,
        given: BTreeMap::new(),
    };
    let mut loaded = Vec::new();
    for path in &args.files {
        let peer = inspect::peer_of(path);
        let file = inspect::load(path);
        if let (Ok(peer), Ok(file)) = (&peer, &file) {
            around
                .given
                .insert(path.clone(), (peer.clone(), file.clone()));
        }
        loaded.push((path, peer, file));
    }
    let mut reports = Vec::new();
    for (path, peer, file) in loaded {
        let mut findings = Vec::new();
        if let Err(error) = &peer {
            findings.push(Finding::error(
                "name",
                error,
                "name the file after the peer's cluster: <peer>, <peer>.config or \
                 <peer>-cilium-etcd.config",
            ));
        }
        let file = match file {
            Ok(file) => Some(file),
            Err(refusal) => {
                findings.push(refused(refusal));
                None
            }
        };
        if let (Ok(peer), Some(file)) = (&peer, &file) {
            let mut check = Check {
                path,
                peer,
                file,
                around: &around,
                findings,
            };
            check.all();
            findings = check.findings;
            if args.connect {
                findings.extend(walk(peer, file, &around.own, &args.place).await);
            }
        }
        reports.push(FileReport {
            file: path.clone(),
            peer: peer.ok().map(|peer| peer.to_string()),
            ok: !findings
                .iter()
                .any(|finding| finding.severity == Severity::Error),
            findings,
        });
    }
    Ok(reports)
}

impl Finding {
    fn new(
        severity: Severity,
        key: &str,
        reason: impl ToString,
        next_step: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            key: key.to_owned(),
            reason: reason.to_string(),
            next_step: next_step.into(),
        }
    }

    fn error(key: &str, reason: impl ToString, next_step: impl Into<String>) -> Self {
        Self::new(Severity::Error, key, reason, next_step)
    }

    fn warning(key: &str, reason: impl ToString, next_step: impl Into<String>) -> Self {
        Self::new(Severity::Warning, key, reason, next_step)
    }
}

/// A file that says nothing usable, by the key that is to blame.
fn refused(refusal: inspect::Refusal) -> Finding {
    use inspect::Refusal;
    let (key, next) = match &refusal {
        Refusal::Read(_) => ("file", "check that it exists and may be read"),
        Refusal::NoEndpoints => (
            "endpoints",
            "list the peer's servers: endpoints: [https://HOST:2379]",
        ),
        Refusal::Conflict => ("name", "leave only one of the files"),
        Refusal::Parse(error) => match error {
            ConfigFileError::Utf8(_) => ("file", "write it anew as UTF-8 text"),
            ConfigFileError::Yaml(_) => ("file", "write YAML, as `tombolo certs issue` does"),
            ConfigFileError::Type { key, .. } => (*key, "correct the value"),
            ConfigFileError::NoEndpoint | ConfigFileError::Endpoint(_) => {
                ("endpoints", "write each as https://HOST:PORT")
            }
            ConfigFileError::HalfIdentity => ("cert-file", "name both cert-file and key-file"),
            ConfigFileError::HostAliases => (
                "cilium-host-aliases",
                "write a list of {hostname: NAME, ips: [ADDRESS]}, each name once",
            ),
            ConfigFileError::ClusterId(_) => ("cluster-id", "write the peer's --cluster-id"),
            ConfigFileError::AllowedCidrs(_) | ConfigFileError::NoAllowedCidr => {
                ("allowed-cidrs", "write a list of ADDRESS/LENGTH")
            }
        },
    };
    let reason = format!("{:#}", anyhow::Error::from(refusal));
    Finding::error(key, reason, next)
}

/// What the walk says against the peer.
async fn walk(peer: &ClusterName, file: &ConfigFile, own: &Own, place: &Place) -> Vec<Finding> {
    let mut findings = Vec::new();
    for report in troubleshoot::endpoints(peer, file, own, place.patience()).await {
        let failed = report
            .steps
            .into_iter()
            .filter(|step| step.state == State::Failed);
        findings.extend(failed.map(|step| {
            let reason = format!("{}: {}", report.endpoint, step.text);
            let key = print::layer(step.layer).to_lowercase();
            Finding::error(&key, reason, step.next_step.unwrap_or_default())
        }));
    }
    findings
}

impl Check<'_> {
    fn all(&mut self) {
        self.unknown_keys();
        self.names();
        self.ids();
        self.ranges();
        self.endpoints();
        self.certificates(SystemTime::now());
    }

    fn error(&mut self, key: &str, reason: impl ToString, next: impl Into<String>) {
        self.findings.push(Finding::error(key, reason, next));
    }

    fn warning(&mut self, key: &str, reason: impl ToString, next: impl Into<String>) {
        self.findings.push(Finding::warning(key, reason, next));
    }

    fn unknown_keys(&mut self) {
        for key in &self.file.unknown {
            let next = "correct its spelling, or take it out";
            self.findings
                .push(Finding::warning(key, "means nothing here", next));
        }
    }

    fn names(&mut self) {
        if self.around.own.name.as_ref() == Some(self.peer) {
            let reason = format!("{} is this cluster itself", self.peer);
            let next = "name the file after the other cluster; if both have this name, rename one";
            self.error("name", reason, next);
        }
        // A file of the same name takes the place of the present one; another one stands beside it.
        let beside = |path: &&Path| path.file_name() != self.path.file_name();
        let here = inspect::configured(&self.around.dir, None).unwrap_or_default();
        let here = here
            .get(self.peer)
            .map(|configured| configured.paths.as_slice());
        let given = self.around.given.iter().filter(|(path, (peer, _))| {
            *peer == *self.peer && path.as_path() != self.path && !same_file(path, self.path)
        });
        let given = given.map(|(path, _)| path.as_path());
        let others = here
            .unwrap_or_default()
            .iter()
            .map(PathBuf::as_path)
            .filter(beside);
        let others: Vec<_> = others
            .chain(given)
            .map(|path| path.display().to_string())
            .collect();
        if !others.is_empty() {
            let reason = format!("{} is named by {}, too", self.peer, others.join(", "));
            self.error("name", reason, "leave only one file for each peer");
        }
    }

    /// All other peers that have a file, here or among those given.
    fn others(&self) -> Vec<(String, ConfigFile)> {
        let own = &self.around.own;
        let here = troubleshoot::other_files(&self.around.dir, own, self.peer);
        let here = here
            .into_iter()
            .filter_map(|(name, configured)| Some((format!("peer {name}"), configured.file.ok()?)));
        let given = self
            .around
            .given
            .values()
            .filter(|(peer, _)| peer != self.peer);
        let given = given.map(|(peer, file)| (format!("peer {peer}"), file.clone()));
        // A peer that is given and here would be told twice.
        given
            .chain(here)
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }

    fn ids(&mut self) {
        let Some(id) = self.file.cluster_id else {
            return;
        };
        let max = self.around.own.max.unwrap_or(MaxClusters::C255).max_id();
        if self.around.own.max.is_some() && id.get() > max {
            let reason = format!("{id} is above {max}, the largest id of this mesh");
            self.error(
                "cluster-id",
                reason,
                "compare --max-connected-clusters of both clusters",
            );
        }
        let pinned = self.others().into_iter();
        let mut pinned = pinned.filter(|(_, file)| file.cluster_id == Some(id));
        let holder = self.around.own.holder(id.get(), self.peer);
        if let Some(holder) = holder.or_else(|| pinned.next().map(|(peer, _)| peer)) {
            let reason = format!("{id} is the id of {holder}");
            self.error(
                "cluster-id",
                reason,
                "give one of the clusters another --cluster-id",
            );
        }
    }

    fn ranges(&mut self) {
        let mut taken = Vec::new();
        for node in self
            .around
            .nodes
            .iter()
            .filter(|node| node.cluster != self.peer.as_str())
        {
            let owner = match &self.around.own.name {
                Some(own) if own.as_str() == node.cluster => "this cluster".to_owned(),
                _ => format!("peer {}", node.cluster),
            };
            let cidrs = node.ipv4_cidr.iter().chain(&node.ipv6_cidr);
            let cidrs = cidrs.filter_map(|cidr| cidr.parse::<IpPrefix>().ok());
            taken.extend(cidrs.map(|cidr| (cidr, format!("{cidr}, a pod CIDR of {owner}"))));
            let addresses = node
                .ipv4
                .map(Into::into)
                .into_iter()
                .chain(node.ipv6.map(Into::into));
            taken.extend(addresses.map(|address| {
                let text = format!("{address}, a node of {owner}");
                (IpPrefix::host(address), text)
            }));
        }
        for (peer, file) in self.others() {
            let allowed = file.allowed_cidrs.iter();
            taken.extend(allowed.map(|cidr| (*cidr, format!("{cidr}, which {peer} may claim"))));
        }
        for allowed in self.file.allowed_cidrs.iter() {
            // One of each range is enough to know.
            if let Some((_, what)) = taken.iter().find(|(cidr, _)| overlap(cidr, allowed)) {
                let reason = format!("{allowed} overlaps {what}");
                let next = "allow the peer only ranges of its own pods and nodes";
                self.findings
                    .push(Finding::error("allowed-cidrs", reason, next));
            }
        }
    }

    fn endpoints(&mut self) {
        let connect = &self.file.connect;
        let others = self.others();
        let mut seen = Vec::new();
        for endpoint in &connect.endpoints {
            let text = endpoint.to_string();
            if seen.contains(&text) {
                let reason = format!("{text} is listed twice");
                let finding = Finding::warning("endpoints", reason, "list each server once");
                self.findings.push(finding);
                continue;
            }
            let has =
                |file: &ConfigFile| file.connect.endpoints.iter().any(|e| e.to_string() == text);
            if let Some((peer, _)) = others.iter().find(|(_, file)| has(file)) {
                let reason = format!("{text} is an endpoint of {peer}, too");
                let next = "each cluster has endpoints of its own; compare the two files";
                self.findings
                    .push(Finding::warning("endpoints", reason, next));
            }
            if !connect.uses_tls(endpoint) {
                let reason = format!("{text} is plaintext; certificates are not used");
                let next = "write https:// and take insecure-transport out";
                self.findings
                    .push(Finding::warning("endpoints", reason, next));
            }
            seen.push(text);
        }
        if connect.tls.insecure_skip_verify {
            let reason = "whoever answers is taken for the peer";
            let next = "name the peer's CA as trusted-ca-file instead";
            self.warning("insecure-skip-tls-verify", reason, next);
        }
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

fn overlap(a: &IpPrefix, b: &IpPrefix) -> bool {
    a.contains(b.addr()) && a.prefix_len() <= b.prefix_len()
        || b.contains(a.addr()) && b.prefix_len() <= a.prefix_len()
}

/// True if any file has an error.
pub(super) fn any_failed(reports: &[FileReport]) -> bool {
    reports.iter().any(|report| !report.ok)
}

/// The reports for people.
pub(super) fn text(reports: &[FileReport]) -> String {
    let mut text = String::new();
    for report in reports {
        text.push_str(&format!("📄 {}\n", report.file.display()));
        for finding in &report.findings {
            let mark = match finding.severity {
                Severity::Error => "❌",
                Severity::Warning => "⚠️ ",
            };
            let Finding {
                key,
                reason,
                next_step,
                ..
            } = finding;
            text.push_str(&format!("  {mark} {key}: {reason}\n     💡 {next_step}\n"));
        }
        if report.ok {
            let peer = report.peer.as_deref().unwrap_or_default();
            text.push_str(&format!("  ✅ can be used for peer {peer}\n"));
        }
    }
    text
}
