//! `tombolo monitor`: what the datapath reports, as it happens.
use std::io::{self, Write};

use clap::ValueEnum;

use super::{Error, Format, Output, client::Client, print};
use crate::admin::wire::monitor::Line;

/// Print events as they happen, until stopped.
#[derive(Debug, clap::Args)]
pub(super) struct MonitorArgs {
    /// Which events; may be given several times. Flows that policy allows, and traces of new flows,
    /// are reported by the datapath only while somebody asks for them.
    #[arg(short = 't', long = "type", value_enum, default_value = "drop")]
    kinds: Vec<EventKind>,
    /// Only events of this endpoint.
    #[arg(long, value_name = "ENDPOINT")]
    related_to: Option<u32>,
    /// Only packets that leave this endpoint.
    #[arg(long, value_name = "ENDPOINT")]
    from: Option<u32>,
    /// Only packets towards this endpoint.
    #[arg(long, value_name = "ENDPOINT")]
    to: Option<u32>,
    /// Tell also the labels of both sides, which cluster said so, when and at which revision of its
    /// store, and the rule that decided.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum EventKind {
    /// Dropped packets.
    Drop,
    /// What policy said of flows, audit mode included.
    PolicyVerdict,
    /// New flows.
    Trace,
}

impl EventKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::PolicyVerdict => "policy-verdict",
            Self::Trace => "trace",
        }
    }
}

pub(super) async fn run(
    args: &MonitorArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let route = "/v1/monitor";
    let mut kinds = args.kinds.clone();
    kinds.sort();
    kinds.dedup();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let query = names.iter().map(|name| format!("type={name}"));
    let query = query.collect::<Vec<_>>().join("&");
    let mut lines = client.lines(route, &query).await?;
    // Once this is printed nothing that happens is missed; scripts wait for it.
    drop(writeln!(
        io::stderr(),
        "Listening for {} events, press Ctrl-C to quit",
        names.join(", ")
    ));
    while let Some(text) = lines.next().await? {
        let line: Line =
            serde_json::from_str(&text).map_err(|source| Error::Decode { route, source })?;
        if !args.wants(&line) {
            continue;
        }
        match args.output.output {
            Some(Format::Json) => writeln!(out, "{text}")?,
            None => out.write_all(print::monitor::line(&line, args.verbose).as_bytes())?,
        }
        out.flush()?;
    }
    Err(Error::StreamEnded)
}

impl MonitorArgs {
    /// Lines about no packet are wanted always.
    fn wants(&self, line: &Line) -> bool {
        let Some(packet) = line.packet() else {
            return true;
        };
        let is = |wanted: Option<u32>| wanted.is_none_or(|id| packet.endpoint == id);
        let leaves = packet.direction == "egress";
        is(self.related_to)
            && (self.from.is_none() || leaves && is(self.from))
            && (self.to.is_none() || !leaves && is(self.to))
    }
}
