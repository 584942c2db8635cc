//! Starting agents and asking them: certificates, processes, the operator's verbs, metrics.
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tombolo::test_support::{
    lab::Lab,
    process::{Helper, run_ok},
};

use crate::world::{Invitation, REDIS_PORT, Site, database};

/// A verb or a fetched page takes milliseconds; this bounds a hung one.
const VERB_LIMIT: Duration = Duration::from_secs(20);
/// Port of `/healthz` and `/readyz`.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(LOCALHOST), 9880);
/// Port of `/metrics`.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(LOCALHOST), 9962);
const LOCALHOST: std::net::Ipv4Addr = std::net::Ipv4Addr::LOCALHOST;

/// The binaries.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The agent.
    pub(crate) tombolo: PathBuf,
    /// This program, which is also the traffic.
    pub(crate) own: PathBuf,
}

impl Programs {
    /// Makes a cluster's CA and server certificate.
    pub(crate) fn certs_init(&self, site: &Site) -> Result<()> {
        let mut command = Command::new(&self.tombolo);
        command.args(["certs", "init", "--cluster-name", site.cluster]);
        command.arg("--dir").arg(site.dir.join("certs"));
        command.arg("--san").arg(site.host.address.to_string());
        run_ok(&mut command, VERB_LIMIT).map(drop)
    }

    /// Lets `from`'s CA issue what `to` needs in order to read `from`.
    pub(crate) fn certs_issue(&self, from: &Site, to: &Site) -> Result<Invitation> {
        let out = from.dir.join(format!("for-{}", to.cluster));
        let mut command = Command::new(&self.tombolo);
        command.args(["certs", "issue", "--peer", to.cluster]);
        command
            .arg("--dir")
            .arg(from.dir.join("certs"))
            .arg("--out")
            .arg(&out);
        command
            .arg("--endpoint")
            .arg(format!("https://{}:2379", from.host.address));
        command
            .arg("--config-path-prefix")
            .arg(to.dir.join("etcd-secrets"));
        run_ok(&mut command, VERB_LIMIT)?;
        Invitation::read(&out)
    }

    /// Starts the real redis inside the database's pod.
    pub(crate) fn start_database(&self, lab: &mut Lab, sites: &[Site; 2]) -> Result<()> {
        let pod = &sites[0].workload(crate::world::DATABASE)?.pod;
        let mut command = pod.namespace.command("redis-server");
        command.args(["--save", "", "--appendonly", "no", "--protected-mode", "no"]);
        command.args([
            "--port",
            &REDIS_PORT.to_string(),
            "--bind",
            &pod.address.to_string(),
        ]);
        // Enough for clients that fall silent and are never closed.
        command.args(["--tcp-backlog", "511", "--maxclients", "10000"]);
        let log = lab.dir().join("redis.log");
        lab.daemon("redis", &mut command, &log)?;
        Ok(())
    }

    /// Starts a cluster's agent; the log goes on where an earlier one ended.
    pub(crate) fn start_agent(&self, lab: &mut Lab, site: &Site) -> Result<()> {
        let dir = |name: &str| site.dir.join(name);
        let mut command = site.host.namespace.command(&self.tombolo);
        command.args(["agent", "--cluster-name", site.cluster]);
        command.args([
            "--cluster-id",
            &site.id.to_string(),
            "--node-name",
            site.node,
        ]);
        command.arg("--clustermesh-config").arg(dir("clustermesh"));
        command.arg("--state-dir").arg(dir("state"));
        command.arg("--socket-path").arg(socket(site));
        command.args(["--bpf-root", "/sys/fs/bpf"]);
        command.arg("--manifests-dir").arg(dir("manifests"));
        command.arg("--policy-dir").arg(dir("policies"));
        command
            .arg("--listen")
            .arg(format!("{}:2379", site.host.address));
        command
            .arg("--prometheus-serve-addr")
            .arg(METRICS.to_string());
        command.arg("--health-port").arg(HEALTH.port().to_string());
        command.arg("--tls-cert-file").arg(dir("certs/server.crt"));
        command.arg("--tls-key-file").arg(dir("certs/server.key"));
        command.arg("--tls-ca-file").arg(dir("certs/ca.crt"));
        lab.daemon(&agent(site), &mut command, &log(site))?;
        Ok(())
    }

    /// One of the operator's verbs on a host, ready to run.
    pub(crate) fn verb_command(&self, site: &Site, words: &[&str]) -> Command {
        let mut command = site.host.namespace.command(&self.tombolo);
        command.args(words).arg("--socket-path").arg(socket(site));
        command
    }

    /// The output of one of the operator's verbs on a host.
    pub(crate) fn verb(&self, site: &Site, words: &[&str]) -> Result<String> {
        run_ok(&mut self.verb_command(site, words), VERB_LIMIT)
    }

    /// Fails unless the agent says that it is ready.
    pub(crate) fn ready(&self, site: &Site) -> Result<()> {
        self.get(site, HEALTH, "/readyz").map(drop)
    }

    /// How many packets the agent's host dropped at ingress because of policy.
    pub(crate) fn policy_drops(&self, site: &Site) -> Result<u64> {
        let mut sum = 0;
        for line in self.get(site, METRICS, "/metrics")?.lines() {
            let Some(rest) = line.strip_prefix("tombolo_drop_count_total{") else {
                continue;
            };
            let (labels, value) = rest.rsplit_once(' ').context("a sample has a value")?;
            let wanted = ["reason=\"Policy denied\"", "direction=\"INGRESS\""];
            if wanted.iter().all(|label| labels.contains(label)) {
                sum += value
                    .parse::<u64>()
                    .with_context(|| format!("read {line}"))?;
            }
        }
        Ok(sum)
    }

    fn get(&self, site: &Site, address: SocketAddr, path: &str) -> Result<String> {
        let mut command = site.host.namespace.command(&self.own);
        command.args(["get", &address.to_string(), path]);
        run_ok(&mut command, VERB_LIMIT)
    }

    /// Starts a part of this program inside a workload's pod, aimed at the database.
    pub(crate) fn part(
        &self,
        sites: &[Site; 2],
        at: (usize, &str),
        words: &[&str],
    ) -> Result<Helper> {
        let site = sites.get(at.0).context("there are two sites")?;
        let workload = site.workload(at.1)?;
        let (part, options) = words.split_first().context("a part has a name")?;
        let target = match *part {
            "capture" => workload.pod.address.to_string(),
            _ => database(sites)?.to_string(),
        };
        let mut command = workload.pod.namespace.command(&self.own);
        command.args([part, target.as_str()]).args(options);
        Helper::start(
            &format!("{part} in {}/{}", site.cluster, at.1),
            &mut command,
        )
    }
}

/// The daemon's name in the lab.
pub(crate) fn agent(site: &Site) -> String {
    format!("agent-{}", site.cluster)
}

/// Where the agent's verbs connect to.
pub(crate) fn socket(site: &Site) -> PathBuf {
    site.dir.join("tombolo.sock")
}

/// The agent's log.
pub(crate) fn log(site: &Site) -> PathBuf {
    site.dir.join("agent.log")
}

/// The last lines of a log; empty if there is none.
pub(crate) fn tail(path: &Path, count: usize) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let skip = lines.len().saturating_sub(count);
    lines.into_iter().skip(skip).map(str::to_owned).collect()
}
