//! `tombolo endpoint`: the workloads of this node.
use std::io::Write;

use clap::Subcommand;

use super::{Error, Output, client::Client, print};
use crate::admin::wire::Endpoint;

/// Workloads of this node.
#[derive(Debug, Subcommand)]
pub(super) enum EndpointVerb {
    /// List them.
    #[command(visible_alias = "ls")]
    List(Output),
    /// Show one.
    Get {
        /// Its number.
        id: u32,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) async fn run(
    verb: &EndpointVerb,
    client: &Client,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let endpoints: Vec<Endpoint> = client.json("/v1/endpoints").await?;
    match verb {
        EndpointVerb::List(output) => output.write(out, &endpoints, |all| print::endpoints(all)),
        EndpointVerb::Get { id, output } => {
            let found = endpoints.iter().find(|endpoint| endpoint.id == *id);
            let found = found.ok_or(Error::NoEndpoint(*id))?;
            output.write(out, found, |one| {
                print::endpoints(std::slice::from_ref(one))
            })
        }
    }
}
