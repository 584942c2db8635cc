//! Measures the parts that carry load, in release processes of their own, beside etcd where it does
//! the same work, and the policy programs beside an empty one. `scripts/bench.sh` builds and runs
//! it; benches/README.md says what the rows mean.
//!
//! Everything happens in a network and a mount namespace that end with the program.
//! The program is also its own server and reader: `serve` and `read` run as children.
#![expect(clippy::print_stdout, reason = "the figures go to standard output")]
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};

use self::figure::Figure;

mod agent;
mod datapath;
mod fanout;
mod figure;
mod firewall;
mod mesh;
mod peers;
mod policy;
mod propagation;
mod puts;
mod ranges;
mod raw;
mod scale;
mod store;
mod traffic;
mod world;

/// Figures of a release build, beside etcd's and an empty program's.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Smaller loads; the figures are good for a first look only
    #[arg(long)]
    quick: bool,
    /// Append one JSON object a line to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// (child) the namespaces are there already
    #[arg(long, hide = true)]
    isolated: bool,
    /// What to measure [default: all]
    groups: Vec<Group>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Latency from a write to a watcher
    Store,
    /// Large ranges, whole and in pages, and memory per key
    Ranges,
    /// Durable writes of 1, 16 and 256 clients
    Puts,
    /// One writer and up to a thousand watchers
    Fanout,
    /// Import of a peer's keyspace, of large and of many, reconnection, restart, and the latency
    /// from a peer's write to a watcher of the cache
    Mesh,
    /// One change of policy, identities or endpoints, until its consequences are known
    Policy,
    /// The policy programs on made-up packets
    Datapath,
    /// The same policy as ours, as nftables and as iptables, on the same veths
    Firewall,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// (child) serve a store with this many addresses
    #[command(hide = true)]
    Serve {
        certs: PathBuf,
        addresses: u32,
        /// Of a durable cluster store; without it, the store is in memory
        directory: Option<PathBuf>,
        /// What the cache holds of how many peers
        #[arg(long)]
        peers: Option<peers::Shape>,
    },
    /// (child) print what an entry of the policy engine takes
    #[command(hide = true)]
    PolicyMemory,
    /// (child) answer the traffic that firewalls are compared with
    #[command(hide = true)]
    TrafficServer,
    /// (child) load that server
    #[command(hide = true)]
    Traffic {
        load: traffic::Load,
        server: std::net::IpAddr,
    },
    /// (child) wait for the last key in the cache at the URL
    #[command(hide = true)]
    Read {
        certs: PathBuf,
        cache: String,
        addresses: u32,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            // Whoever read our output may be gone; that must not hide the exit code.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if args.part.is_none() && !args.options.isolated {
        return isolate();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    match &args.part {
        Some(Part::Serve {
            certs,
            addresses,
            directory,
            peers,
        }) => runtime.block_on(world::serve(
            certs,
            *addresses,
            directory.as_deref(),
            *peers,
        ))?,
        Some(Part::Read {
            certs,
            cache,
            addresses,
        }) => runtime.block_on(mesh::read(certs, cache, *addresses))?,
        Some(Part::TrafficServer) => traffic::serve()?,
        Some(Part::Traffic { load, server }) => traffic::load(*load, *server)?,
        Some(Part::PolicyMemory) => policy::memory()?,
        None => measure(&runtime, &args.options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs this program again in namespaces of its own: no port, mount or interface of the machine is
/// touched, and all of ours go with the last process.
fn isolate() -> Result<ExitCode> {
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .args(["sh", "-euc", "ip link set lo up; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().context("find this program")?)
        .arg("--isolated")
        .args(std::env::args_os().skip(1))
        .status()
        .context("run unshare (util-linux)")?;
    // What went wrong inside was said there; unshare itself says that it needs root.
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(runtime: &tokio::runtime::Runtime, options: &Options) -> Result<()> {
    let groups = if options.groups.is_empty() {
        Group::value_variants()
    } else {
        &options.groups
    };
    println!("{}", Figure::header());
    for group in groups {
        let figures = match group {
            Group::Store => store::measure(runtime, options.quick),
            Group::Ranges => ranges::measure(runtime, options.quick),
            Group::Puts => puts::measure(runtime, options.quick),
            Group::Fanout => fanout::measure(runtime, options.quick),
            Group::Mesh => mesh::measure(runtime, options.quick),
            Group::Policy => policy::measure(options.quick),
            Group::Datapath => datapath::measure(options.quick),
            Group::Firewall => firewall::measure(options.quick),
        };
        for figure in figures.with_context(|| format!("measure {group:?}"))? {
            println!("{}", figure.row());
            if let Some(path) = &options.json {
                figure.append(path)?;
            }
        }
    }
    Ok(())
}
