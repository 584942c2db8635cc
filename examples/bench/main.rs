//! Measures the parts that carry load, in release processes of their own, beside etcd where it does
//! the same work. `scripts/bench.sh` builds and runs it; benches/README.md says what the rows mean.
//!
//! The program is also its own servers and readers: `serve`, `cache` and `read` run as children.
#![expect(clippy::print_stdout, reason = "the figures go to standard output")]
use std::{fs::OpenOptions, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

mod mesh;
mod store;
mod world;

/// Figures of a release build, beside etcd's.
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
    /// What to measure [default: all]
    groups: Vec<Group>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Import of a peer's keyspace
    Mesh,
    /// Latency from a write to a watcher
    Store,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// (child) serve a store with this many addresses
    #[command(hide = true)]
    Serve { dir: PathBuf, addresses: u32 },
    /// (child) import from the URL, serve the cache
    #[command(hide = true)]
    Cache { dir: PathBuf, source: String },
    /// (child) wait for the last key in the cache at the URL
    #[command(hide = true)]
    Read {
        dir: PathBuf,
        cache: String,
        addresses: u32,
    },
}

/// One figure, as a line of JSON.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What it is compared with.
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    /// `value / peer_value`.
    ratio: Option<f64>,
    aim: Option<f64>,
    met: Option<bool>,
}

impl Figure {
    /// A figure beside etcd's for the same work; there is no aim yet.
    fn beside_etcd(name: impl Into<String>, unit: &'static str, value: f64, etcd: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            peer: Some("etcd"),
            peer_value: Some(etcd),
            ratio: (etcd > 0.0).then(|| value / etcd),
            aim: None,
            met: None,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime");
    let result = runtime.and_then(|runtime| match args.part {
        Some(Part::Serve { dir, addresses }) => runtime.block_on(world::serve(&dir, addresses)),
        Some(Part::Cache { dir, source }) => runtime.block_on(mesh::cache(&dir, &source)),
        Some(Part::Read {
            dir,
            cache,
            addresses,
        }) => runtime.block_on(mesh::read(&dir, &cache, addresses)),
        None => measure(&runtime, &args.options),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever read our output may be gone; that must not hide the exit code.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(runtime: &tokio::runtime::Runtime, options: &Options) -> Result<()> {
    let groups = if options.groups.is_empty() {
        Group::value_variants()
    } else {
        &options.groups
    };
    println!(
        "{:<28} {:>10} {:<4} {:>10} {:>7}",
        "name", "value", "unit", "etcd", "ratio"
    );
    for group in groups {
        let figures = match group {
            Group::Mesh => mesh::measure(runtime, options.quick),
            Group::Store => store::measure(runtime, options.quick),
        };
        for figure in figures.with_context(|| format!("measure {group:?}"))? {
            report(&figure, options)?;
        }
    }
    Ok(())
}

fn report(figure: &Figure, options: &Options) -> Result<()> {
    let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    println!(
        "{:<28} {:>10.3} {:<4} {:>10} {:>7}",
        figure.name,
        figure.value,
        figure.unit,
        text(figure.peer_value),
        text(figure.ratio)
    );
    if let Some(path) = &options.json {
        let line = serde_json::to_string(figure).context("encode a figure")?;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "{line}"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
