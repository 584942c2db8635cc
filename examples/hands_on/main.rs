//! Plays the ClusterMesh hands-on guide with real namespaces, real agents and a real redis, and
//! asserts every outcome. `scripts/demo.sh` and the kernel tier run it; see `--help`.
//!
//! The program is also its own traffic: `client`, `hold`, `capture` and `get` run inside pods and
//! hosts, started by the story.
#![expect(clippy::print_stdout, reason = "the story is told on standard output")]
use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

mod agents;
mod checks;
mod etcd;
mod story;
mod traffic;
mod world;

/// Two clusters, one policy, enforced in the kernel.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    story: Options,
}

/// How to play the story.
#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// The agent's binary [default: next to this program's directory]
    #[arg(long)]
    tombolo: Option<PathBuf>,
    /// Work directory; what an earlier run left in it is ended [default: $TMPDIR/tombolo-demo]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave everything running at the end
    #[arg(long)]
    keep: bool,
    /// What the second cluster is
    #[arg(long, value_enum, default_value_t = Peer::Tombolo)]
    peer: Peer,
    /// Break something on purpose: the story must fail
    #[arg(long)]
    fault: Option<Fault>,
    /// Only end what an earlier run left
    #[arg(long)]
    clean: bool,
}

/// What the second cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// An agent as in the first cluster
    Tombolo,
    /// A plain etcd that holds the keys of a Cilium cluster
    Etcd,
}

/// What can be broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Remove the links that hold the enforcement on the database's interface
    DetachLinks,
    /// Misspell a label in the policy
    WrongLabel,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// (inside a pod) open connections and report each
    #[command(hide = true)]
    Client {
        target: SocketAddr,
        #[arg(long, default_value_t = 10)]
        rate: u32,
        #[arg(long)]
        count: Option<usize>,
    },
    /// (inside a pod) keep one connection busy and report when it falls silent
    #[command(hide = true)]
    Hold { target: SocketAddr },
    /// (inside a pod) count the SYNs that arrive
    #[command(hide = true)]
    Capture { own: std::net::Ipv4Addr },
    /// (inside a host) fetch a page
    #[command(hide = true)]
    Get { address: SocketAddr, path: String },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.part {
        Some(Part::Client {
            target,
            rate,
            count,
        }) => traffic::client(target, rate, count),
        Some(Part::Hold { target }) => traffic::hold(target),
        Some(Part::Capture { own }) => traffic::capture(own),
        Some(Part::Get { address, path }) => traffic::get(address, &path),
        None => return story::play(&args.story),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever read our output may be gone; that must not hide the exit code.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
