//! The operator's verbs. `agent` runs the agent; all others ask a running one over its socket.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
//! The only module that prints. Tables have the columns of Cilium's command line, so that the same
//! eyes and scripts can read them; `-o json` prints what the admin route answered.
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use self::{policy::PolicyVerb, store::StoreVerb};
use crate::{
    admin::wire,
    config::{Args, Config, ConfigError, SocketArg},
};

mod bpf;
pub mod certs;
mod check;
mod cleanup;
mod client;
mod endpoint;
mod map;
mod monitor;
mod policy;
mod print;
mod store;
#[cfg(test)]
mod tests;
mod troubleshoot;

/// Joins clusters: publishes, imports and enforces ClusterMesh keyspaces without Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    socket: SocketArg,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent.
    Agent(Box<Args>),
    Certs(certs::CertsArgs),
    /// Show the state of the agent and of its peers. The exit code is 1 while it is not ready.
    Status {
        /// Show also the own cluster's counts, and of each peer its file, certificates and the
        /// entries refused.
        #[arg(long)]
        verbose: bool,
        /// Print one line: OK, or what the agent waits for.
        #[arg(long, conflicts_with_all = ["verbose", "output"])]
        brief: bool,
        #[command(flatten)]
        output: Output,
    },
    /// The peers of this cluster.
    #[command(subcommand)]
    Peer(PeerVerb),
    Troubleshoot(troubleshoot::TroubleshootArgs),
    /// Peer files.
    #[command(subcommand)]
    Config(check::ConfigVerb),
    /// Nodes of all clusters.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Security identities of all clusters.
    #[command(subcommand)]
    Identity(IdentityVerb),
    #[command(subcommand)]
    Endpoint(endpoint::EndpointVerb),
    /// Addresses of all clusters.
    #[command(subcommand)]
    Ip(IpVerb),
    Monitor(monitor::MonitorArgs),
    #[command(subcommand)]
    Bpf(bpf::BpfVerb),
    #[command(subcommand)]
    Map(map::MapVerb),
    #[command(subcommand)]
    Policy(PolicyVerb),
    #[command(subcommand)]
    Store(StoreVerb),
    Cleanup(cleanup::CleanupArgs),
    /// Succeed if the agent is ready; else say what it waits for.
    Health,
    /// Show the version.
    Version,
}

#[derive(Debug, Subcommand)]
enum PeerVerb {
    /// List them with how much goes each way.
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// List them.
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, Subcommand)]
enum IpVerb {
    /// List them with the identities that their packets carry.
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, Subcommand)]
enum IdentityVerb {
    /// List them, the reserved ones included.
    #[command(visible_alias = "ls")]
    List {
        /// Only those with all of these labels, each `source:key=value` or `key=value`.
        labels: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show one.
    Get {
        /// Its number.
        id: u32,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
struct Output {
    /// Print JSON instead of text.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Json,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0:#}")]
    Agent(anyhow::Error),
    #[error("{0:#}")]
    Certs(anyhow::Error),
    #[error("{0:#}")]
    Store(anyhow::Error),
    #[error("{0:#}")]
    Policy(anyhow::Error),
    #[error("{0:#}")]
    Cleanup(anyhow::Error),
    #[error(
        "an agent listens at {}; it would go on without programs and maps\n\
         Stop it first, or use --force and restart it.",
        path.display()
    )]
    Running { path: PathBuf },
    #[error("remove {}\nRun it as root, then again.", .0.join("\nremove "))]
    Left(Vec<String>),
    /// Not to be told from an answer by its exit code.
    #[error("{0}")]
    Untold(Box<Self>),
    /// The agent's own words.
    #[error("{0}")]
    Said(String),
    #[error("start the runtime: {0}")]
    Runtime(io::Error),
    #[error(
        "connect to the agent at {}: {source}\n\
         Is the agent running? Name its socket with --socket-path or TOMBOLO_SOCKET_PATH.",
        path.display()
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error("ask the agent for {route}: {source}\nLook into the agent's log.")]
    Request {
        route: &'static str,
        source: hyper::Error,
    },
    #[error("ask the agent for {route}: it answered {status}: {body}")]
    Refused {
        route: &'static str,
        status: hyper::StatusCode,
        body: String,
    },
    #[error("ask the agent for {uri}: {source}")]
    Query {
        uri: String,
        source: hyper::http::uri::InvalidUri,
    },
    #[error("write the request for {route}: {source}")]
    Encode {
        route: &'static str,
        source: serde_json::Error,
    },
    #[error(
        "read the agent's answer to {route}: {source}\n\
         Do the agent and this command have the same version? tombolo status -o json shows its own."
    )]
    Decode {
        route: &'static str,
        source: serde_json::Error,
    },
    #[error("identity {0} is not known; tombolo identity list shows which are")]
    NoIdentity(u32),
    #[error("endpoint {0} is not known; tombolo endpoint list shows which are")]
    NoEndpoint(u32),
    #[error("the agent closed the event stream; is it still running? tombolo health")]
    StreamEnded,
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Untold(_) => ExitCode::from(2),
            // The reader has seen enough (`| head`).
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs the command line and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if even the usage can't be printed.
            drop(error.print());
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match run(cli, &mut io::stdout()) {
        Ok(code) => code,
        Err(error) => {
            let code = error.exit_code();
            if code != ExitCode::SUCCESS {
                drop(writeln!(io::stderr(), "tombolo: {error}"));
            }
            code
        }
    }
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<ExitCode, Error> {
    match cli.verb {
        Verb::Agent(args) => {
            let config = Config::load(&args, &cli.socket)?;
            crate::app::run(config).map_err(Error::Agent)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Certs(args) => {
            certs::run(args).map_err(Error::Certs)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Store(StoreVerb::Restore(args)) => {
            store::restore(&args, out).map_err(Error::Store)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Policy(PolicyVerb::Validate(args)) => {
            let reports = policy::validate::run(&args);
            args.output
                .write(out, &reports, |reports| policy::validate::text(reports))?;
            Ok(exit_code(policy::validate::any_refused(&reports)))
        }
        Verb::Version => {
            writeln!(out, "tombolo {}", env!("CARGO_PKG_VERSION"))?;
            Ok(ExitCode::SUCCESS)
        }
        verb => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let client = client::Client::new(cli.socket.path());
            runtime
                .map_err(Error::Runtime)?
                .block_on(ask(verb, &client, out))
        }
    }
}

async fn ask(verb: Verb, client: &client::Client, out: &mut dyn Write) -> Result<ExitCode, Error> {
    match verb {
        Verb::Agent(_) | Verb::Certs(_) | Verb::Version => {}
        Verb::Store(StoreVerb::Restore(_)) | Verb::Policy(PolicyVerb::Validate(_)) => {}
        Verb::Cleanup(args) => cleanup::run(&args, client, out).await?,
        Verb::Store(StoreVerb::Backup { file }) => store::backup(client, &file, out).await?,
        Verb::Status {
            verbose,
            brief,
            output,
        } => {
            let status: wire::Status = client.json("/v1/status").await?;
            output.write(out, &status, |status| match brief {
                true => print::brief(status),
                false => print::status(status, verbose),
            })?;
            return Ok(exit_code(!status.ready));
        }
        Verb::Peer(PeerVerb::List(output)) => {
            let status: wire::Status = client.json("/v1/status").await?;
            output.write(out, &status.cluster_mesh.clusters, |clusters| {
                print::peers(clusters, status.time)
            })?;
        }
        Verb::Troubleshoot(args) => {
            // On the heap: the future holds connections.
            let reports = Box::pin(troubleshoot::run(&args, client)).await?;
            args.output.write(out, &reports, |reports| {
                troubleshoot::text(reports, args.directory())
            })?;
            return Ok(exit_code(troubleshoot::any_failed(&reports)));
        }
        Verb::Config(check::ConfigVerb::Check(args)) => {
            let reports = Box::pin(check::run(&args, client)).await?;
            args.output
                .write(out, &reports, |reports| check::text(reports))?;
            return Ok(exit_code(check::any_failed(&reports)));
        }
        Verb::Policy(verb) => return Box::pin(policy::run(&verb, client, out)).await,
        Verb::Node(NodeVerb::List(output)) => {
            let nodes: Vec<wire::Node> = client.json("/v1/nodes").await?;
            output.write(out, &nodes, |nodes| print::nodes(nodes))?;
        }
        Verb::Endpoint(verb) => endpoint::run(&verb, client, out).await?,
        Verb::Bpf(verb) => return Box::pin(bpf::run(&verb, client, out)).await,
        Verb::Map(verb) => map::run(&verb, client, out).await?,
        Verb::Ip(IpVerb::List(output)) => {
            let ips: Vec<wire::Ip> = client.json("/v1/ip").await?;
            output.write(out, &ips, |ips| print::ips(ips))?;
        }
        Verb::Identity(IdentityVerb::List { labels, output }) => {
            let mut identities: Vec<wire::Identity> = client.json("/v1/identities").await?;
            identities.retain(|identity| labels.iter().all(|label| has_label(identity, label)));
            output.write(out, &identities, |identities| print::identities(identities))?;
        }
        Verb::Identity(IdentityVerb::Get { id, output }) => {
            let mut identities: Vec<wire::Identity> = client.json("/v1/identities").await?;
            identities.retain(|identity| identity.id == id);
            let identity = identities.first().ok_or(Error::NoIdentity(id))?;
            output.write(out, identity, |identity| {
                print::identities(std::slice::from_ref(identity))
            })?;
        }
        Verb::Monitor(args) => Box::pin(monitor::run(&args, client, out)).await?,
        Verb::Health => {
            let (status, body) = client.text("/readyz").await?;
            out.write_all(body.as_bytes())?;
            if !status.is_success() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(failed: bool) -> ExitCode {
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// A filter without a source matches every source.
fn has_label(identity: &wire::Identity, wanted: &str) -> bool {
    identity.labels.iter().any(|label| {
        label == wanted
            || label
                .split_once(':')
                .is_some_and(|(_, bare)| bare == wanted)
    })
}

impl Output {
    fn write<T: serde::Serialize>(
        &self,
        out: &mut dyn Write,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        match self.output {
            Some(Format::Json) => {
                serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
                writeln!(out)?;
            }
            None => out.write_all(text(value).as_bytes())?,
        }
        Ok(out.flush()?)
    }
}
