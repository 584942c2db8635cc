//! `tombolo policy delete`: takes policies out of the cluster store.
use std::{io::Write, path::PathBuf};

use super::{
    super::{Error, Output, client::Client},
    apply,
};
use crate::{
    admin::wire::policy::{Changed, Delete},
    policy::store::Outcome,
};

/// Delete policies from the cluster store. The exit code is 1 if one was not there.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeleteArgs {
    /// KIND/NAMESPACE/NAME, or KIND/NAME for clusterwide ones; KIND may be cnp, ccnp or netpol.
    #[arg(required_unless_present = "files", value_name = "POLICY")]
    names: Vec<String>,
    /// Delete the policies of these files; - is the standard input.
    #[arg(short, long = "filename", value_name = "FILE", num_args = 1..)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(
    args: &DeleteArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let names = args.names.clone();
    let files = super::read(&args.files)?;
    let request = Delete { names, files };
    let changed: Vec<Changed> = client.post("/v1/policies/delete", &request).await?;
    args.output
        .write(out, &changed, |changed| apply::lines(changed))?;
    Ok(changed
        .iter()
        .any(|changed| changed.outcome == Outcome::Missing))
}
