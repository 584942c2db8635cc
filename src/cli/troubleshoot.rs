//! `tombolo troubleshoot`: from a peer's file up to its heartbeat, layer by layer, in this process
//! and by the code that the agent uses. A running agent is asked what it sees, but is not needed.
//!
//! Invariant: below the first failed layer of an endpoint nothing is called good.
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::{Error, client::Client, print};
use crate::{
    admin::wire,
    etcd::Endpoint,
    keyspace::ClusterConfig,
    peer::{ConfigFile, Layer, inspect},
    tls::{self, Reason},
    types::{ClusterId, ClusterName, MaxClusters},
};

mod walk;

/// Where the peer files are and who we are; the agent's own flags.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Directory of peer files.
    #[arg(
        long,
        value_name = "DIR",
        env = "TOMBOLO_CLUSTERMESH_CONFIG",
        default_value = "/var/lib/clustermesh"
    )]
    pub(super) clustermesh_config: PathBuf,
    /// Name of this cluster [default: the running agent's].
    #[arg(long, value_name = "NAME", env = "TOMBOLO_CLUSTER_NAME")]
    pub(super) cluster_name: Option<ClusterName>,
    /// Number of this cluster [default: the running agent's].
    #[arg(long, value_name = "ID", env = "TOMBOLO_CLUSTER_ID")]
    pub(super) cluster_id: Option<u32>,
    /// Most clusters in the mesh, 255 or 511 [default: the running agent's, else what the peer says].
    #[arg(long, value_name = "COUNT", env = "TOMBOLO_MAX_CONNECTED_CLUSTERS", value_parser = mesh_size)]
    pub(super) max_connected_clusters: Option<MaxClusters>,
    /// Longest wait for each answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

fn mesh_size(text: &str) -> Result<MaxClusters, &'static str> {
    match text {
        "255" => Ok(MaxClusters::C255),
        "511" => Ok(MaxClusters::C511),
        _ => Err("must be 255 or 511"),
    }
}

/// Walk from a peer's file to its heartbeat and name the first layer that fails, and what to do.
/// The exit code is 1 if any fails.
#[derive(Debug, clap::Args)]
pub(super) struct TroubleshootArgs {
    /// The peers to look at [default: all that have a file].
    peers: Vec<ClusterName>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    pub(super) output: super::Output,
}

/// What a peer must not clash with, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) name: Option<ClusterName>,
    pub(super) id: Option<ClusterId>,
    /// How the mesh is sized; `None` if nobody says so.
    pub(super) max: Option<MaxClusters>,
    /// What the running agent says.
    pub(super) agent: Option<wire::Status>,
}

/// How far one layer is trusted to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Ok,
    Failed,
    /// A lower one failed.
    NotReached,
}

/// One layer of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Step {
    pub(super) layer: Layer,
    pub(super) state: State,
    /// What was found, or why it failed.
    pub(super) text: String,
    /// More to know, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) details: Vec<String>,
    /// What to do next; only if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_step: Option<String>,
}

/// All layers above the file, by one endpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct EndpointReport {
    pub(super) endpoint: String,
    pub(super) steps: Vec<Step>,
}

/// What was found of one peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    peer: String,
    config_path: Option<PathBuf>,
    file: Step,
    pub(super) endpoints: Vec<EndpointReport>,
    /// What the running agent says of the peer; `None` if there is no agent.
    agent: Option<String>,
}

impl Step {
    pub(super) fn good(layer: Layer, text: impl Into<String>) -> Self {
        Self {
            layer,
            state: State::Ok,
            text: text.into(),
            details: Vec::new(),
            next_step: None,
        }
    }

    pub(super) fn bad(layer: Layer, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            next_step: Some(next.into()),
            ..Self::good(layer, text)
        }
    }

    pub(super) fn with(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

impl Report {
    /// All its steps, lowest layer first, endpoint by endpoint.
    pub(super) fn steps(&self) -> impl Iterator<Item = &Step> {
        let above = self.endpoints.iter().flat_map(|endpoint| &endpoint.steps);
        std::iter::once(&self.file).chain(above)
    }

    fn failed(&self) -> bool {
        self.steps().any(|step| step.state == State::Failed)
    }
}

impl Own {
    /// From flags, and from the agent where they say nothing.
    pub(super) async fn learn(place: &Place, client: &Client) -> Result<Self, Error> {
        let agent: Option<wire::Status> = match client.json("/v1/status").await {
            Ok(status) => Some(status),
            Err(Error::Connect { .. }) => None,
            Err(error) => return Err(error),
        };
        let told = agent.as_ref().map(|status| &status.cluster);
        let max = told.map(|own| match own.max_connected_clusters {
            511 => MaxClusters::C511,
            _ => MaxClusters::C255,
        });
        let id = place.cluster_id.or_else(|| told.map(|own| own.id));
        let name = told.and_then(|own| own.name.parse().ok());
        Ok(Self {
            name: place.cluster_name.clone().or(name),
            id: id.and_then(|id| ClusterId::new(id, MaxClusters::C511).ok()),
            max: place.max_connected_clusters.or(max),
            agent,
        })
    }

    /// How the mesh is sized, by the peer's own word where nobody here says it.
    pub(super) fn max_for(&self, config: &ClusterConfig) -> MaxClusters {
        self.max
            .unwrap_or(match config.capabilities.max_connected_clusters {
                511 => MaxClusters::C511,
                _ => MaxClusters::C255,
            })
    }

    /// What the agent knows of a peer.
    pub(super) fn peer(&self, name: &ClusterName) -> Option<&wire::RemoteCluster> {
        let clusters = &self.agent.as_ref()?.cluster_mesh.clusters;
        clusters
            .iter()
            .find(|cluster| cluster.name == name.as_str())
    }

    /// Who has an id already, other than `peer`: we or a peer of the running agent.
    pub(super) fn holder(&self, id: u32, peer: &ClusterName) -> Option<String> {
        if self.id.is_some_and(|own| own.get() == id) {
            return Some("this cluster".to_owned());
        }
        let clusters = &self.agent.as_ref()?.cluster_mesh.clusters;
        let mut others = clusters.iter().filter(|other| other.name != peer.as_str());
        let holder =
            others.find(|other| other.config.retrieved && other.config.cluster_id == id)?;
        Some(format!("peer {}", holder.name))
    }

    fn says(&self, name: &ClusterName) -> Option<String> {
        self.agent.as_ref()?;
        Some(match self.peer(name) {
            None => "does not know this peer; does it read the same directory?".to_owned(),
            Some(peer) if peer.ready => format!("ready, {}", peer.status),
            Some(peer) => format!("not-ready, {}", peer.status),
        })
    }
}

/// Walks all peers asked for.
///
/// # Errors
/// If the agent answers but cannot be understood.
pub(super) async fn run(args: &TroubleshootArgs, client: &Client) -> Result<Vec<Report>, Error> {
    let own = Own::learn(&args.place, client).await?;
    let dir = &args.place.clustermesh_config;
    let listed = inspect::configured(dir, own.name.as_ref());
    let mut found = match listed {
        Ok(found) => found,
        Err(error) => {
            let text = format!("list {}: {error}", dir.display());
            let next = format!(
                "ls -l {}; name another by --clustermesh-config",
                dir.display()
            );
            let unlisted = |peer: &ClusterName| missing(peer, &own, text.clone(), next.clone());
            let nobody = "*".to_owned();
            let mut reports: Vec<_> = args.peers.iter().map(unlisted).collect();
            if reports.is_empty() {
                reports.push(Report {
                    peer: nobody,
                    config_path: None,
                    file: Step::bad(Layer::File, text, next),
                    endpoints: Vec::new(),
                    agent: None,
                });
            }
            return Ok(reports);
        }
    };
    let wanted: Vec<ClusterName> = match args.peers.as_slice() {
        [] => found.keys().cloned().collect(),
        peers => peers.to_vec(),
    };
    let patience = Duration::from_secs(args.place.timeout);
    let mut reports = Vec::new();
    for peer in wanted {
        reports.push(match found.remove(&peer) {
            None => {
                let text = format!("find a file of this peer in {}", dir.display());
                let next = format!(
                    "on {peer}: tombolo certs issue --peer {}; copy its files to {}",
                    own.name
                        .as_ref()
                        .map_or("<this cluster>", ClusterName::as_str),
                    dir.display()
                );
                missing(&peer, &own, text, next)
            }
            Some(configured) => look(&peer, configured, &own, patience).await,
        });
    }
    Ok(reports)
}

fn missing(peer: &ClusterName, own: &Own, text: String, next: String) -> Report {
    Report {
        peer: peer.to_string(),
        config_path: None,
        file: Step::bad(Layer::File, text, next),
        endpoints: Vec::new(),
        agent: own.says(peer),
    }
}

async fn look(
    peer: &ClusterName,
    configured: inspect::Configured,
    own: &Own,
    patience: Duration,
) -> Report {
    let inspect::Configured { paths, file } = configured;
    let path = paths.first().cloned();
    let shown = paths.iter().map(|path| path.display().to_string());
    let shown = shown.collect::<Vec<_>>().join(" ");
    let mut report = Report {
        peer: peer.to_string(),
        config_path: path,
        file: Step::good(Layer::File, ""),
        endpoints: Vec::new(),
        agent: own.says(peer),
    };
    match file {
        Err(error) => {
            let next = match error {
                inspect::Refusal::Conflict => format!("leave only one of {shown}"),
                _ => format!("tombolo config check {shown}"),
            };
            let text = format!("{:#}", anyhow::Error::from(error));
            report.file = Step::bad(Layer::File, text, next);
        }
        Ok(file) => {
            report.file = self::file(&file, &shown);
            if report.file.state == State::Ok {
                report.endpoints = endpoints(peer, &file, own, patience).await;
            }
        }
    }
    report
}

/// Walks every endpoint of a file that was read.
pub(super) async fn endpoints(
    peer: &ClusterName,
    file: &ConfigFile,
    own: &Own,
    patience: Duration,
) -> Vec<EndpointReport> {
    let mut reports = Vec::new();
    for endpoint in &file.connect.endpoints {
        let walk = walk::Walk {
            peer,
            file,
            own,
            patience,
        };
        reports.push(EndpointReport {
            endpoint: url(file, endpoint),
            steps: walk.steps(endpoint).await,
        });
    }
    reports
}

fn url(file: &ConfigFile, endpoint: &Endpoint) -> String {
    let tls = file.connect.uses_tls(endpoint);
    format!("{}://{endpoint}", if tls { "https" } else { "http" })
}

/// The file itself, and whether the files that it names can be read.
fn file(file: &ConfigFile, shown: &str) -> Step {
    let tls = &file.connect.tls;
    let used = file
        .connect
        .endpoints
        .iter()
        .any(|e| file.connect.uses_tls(e));
    let ca = tls.ca.as_ref().map(|ca| tls::inspect::check_ca(ca));
    let identity = tls.identity.as_ref();
    let identity = identity.map(|(cert, key)| tls::inspect::check_client(cert, key).map(drop));
    let unreadable = ca.into_iter().chain(identity).filter_map(Result::err);
    let mut unreadable = unreadable.filter(|error| used && error.reason() == Reason::Unreadable);
    if let Some(error) = unreadable.next() {
        let text = format!("{:#}", anyhow::Error::from(error));
        return Step::bad(Layer::File, text, format!("tombolo config check {shown}"));
    }
    let mut text = match file.connect.endpoints.len() {
        1 => "1 endpoint".to_owned(),
        count => format!("{count} endpoints"),
    };
    if let Some(id) = file.cluster_id {
        let _infallible = write!(text, ", cluster-id={id}");
    }
    let unknown = match file.unknown.as_slice() {
        [] => Vec::new(),
        keys => vec![format!("unknown keys, ignored: {}", keys.join(", "))],
    };
    Step::good(Layer::File, text).with(unknown)
}

/// True if any layer of any peer failed.
pub(super) fn any_failed(reports: &[Report]) -> bool {
    reports.iter().any(Report::failed)
}

/// The reports for people.
pub(super) fn text(reports: &[Report], dir: &Path) -> String {
    if reports.is_empty() {
        return format!("🔌 No peer is configured in {}\n", dir.display());
    }
    let mut text = String::new();
    for report in reports {
        if !text.is_empty() {
            text.push('\n');
        }
        write_report(&mut text, report);
    }
    text
}

fn write_report(text: &mut String, report: &Report) {
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("Peer {}", report.peer));
    if let Some(path) = &report.config_path {
        line(format!("📄 Configuration path: {}", path.display()));
    }
    step_lines(&report.file).into_iter().for_each(&mut line);
    for endpoint in &report.endpoints {
        line(format!("🔌 Endpoint: {}", endpoint.endpoint));
        let lines = endpoint.steps.iter().flat_map(step_lines);
        lines.for_each(&mut line);
    }
    match &report.agent {
        Some(says) => line(format!("ℹ️  The agent says: {says}")),
        None => line("ℹ️  No agent answers here".to_owned()),
    }
}

fn step_lines(step: &Step) -> Vec<String> {
    let mark = match step.state {
        State::Ok => "✅",
        State::Failed => "❌",
        State::NotReached => "➖",
    };
    let mut lines = vec![format!(
        "  {mark} {}: {}",
        print::layer(step.layer),
        step.text
    )];
    lines.extend(step.details.iter().map(|detail| format!("     {detail}")));
    lines.extend(step.next_step.iter().map(|next| format!("     💡 {next}")));
    lines
}

impl TroubleshootArgs {
    pub(super) fn directory(&self) -> &Path {
        &self.place.clustermesh_config
    }
}

impl Place {
    pub(super) const fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Everybody's file but that of `peer`, as far as the directory can be read.
pub(super) fn other_files(
    dir: &Path,
    own: &Own,
    peer: &ClusterName,
) -> BTreeMap<ClusterName, inspect::Configured> {
    let mut found = inspect::configured(dir, own.name.as_ref()).unwrap_or_default();
    found.remove(peer);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_of_ours_the_mesh_is_as_large_as_the_peer_says() {
        let large = br#"{"id":300,"capabilities":{"maxConnectedClusters":511}}"#;
        let large = ClusterConfig::decode(large).unwrap();
        let mut own = Own::default();
        assert!(large.accept(own.max_for(&large)).is_ok());
        let small = ClusterConfig::decode(br#"{"id":300}"#).unwrap();
        assert!(small.accept(own.max_for(&small)).is_err());
        own.max = Some(MaxClusters::C255);
        assert!(large.accept(own.max_for(&large)).is_err());
        assert_eq!(mesh_size("511"), Ok(MaxClusters::C511));
        assert!(mesh_size("256").is_err());
    }
}
