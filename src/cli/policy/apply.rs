//! `tombolo policy apply`: writes policies to the cluster store, and waits for the nodes if asked to.
use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::super::{Error, Output, client::Client};
use crate::{
    admin::wire::policy::{Apply, Changed, Nodes},
    config::duration,
    policy::store::Outcome,
};

/// How often the nodes are asked while waiting: below what a person notices.
const POLL: Duration = Duration::from_millis(100);
/// `--wait` without a time.
const PATIENCE: &str = "30s";

/// Write policies to the cluster store, where every node of the cluster enforces them beside its own
/// files. Nothing is written unless all documents are good.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ApplyArgs {
    /// Files of CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy documents, or -
    /// for the standard input.
    #[arg(short, long = "filename", required = true, value_name = "FILE", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Wait until the kernels of all live nodes follow, at most so long. The exit code is 1 if some
    /// don't.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = PATIENCE,
        value_parser = duration
    )]
    wait: Option<Duration>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(
    args: &ApplyArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let files = super::read(&args.files)?;
    let changed: Vec<Changed> = client.post("/v1/policies", &Apply { files }).await?;
    args.output.write(out, &changed, |changed| lines(changed))?;
    match args.wait {
        Some(patience) => wait(&changed, patience, client).await.map(|()| false),
        None => Ok(false),
    }
}

/// `kind/namespace/name outcome`, as kubectl says it.
pub(super) fn lines(changed: &[Changed]) -> String {
    let line = |changed: &Changed| {
        let outcome = match changed.outcome {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
            Outcome::Deleted => "deleted",
            Outcome::Missing => "not found",
        };
        match changed.revision {
            0 => format!("{} {outcome}\n", changed.name),
            revision => format!("{} {outcome} (revision {revision})\n", changed.name),
        }
    };
    changed.iter().map(line).collect()
}

async fn wait(changed: &[Changed], patience: Duration, client: &Client) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        let nodes: Nodes = client.json("/v1/policies/nodes").await?;
        let behind = behind(changed, &nodes);
        if behind.is_empty() && !nodes.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let behind = behind.join(", ");
            return Err(Error::Policy(anyhow::anyhow!(
                "wait for the nodes: after {}s not all apply the policies: {behind}; tombolo policy get \
                 shows which, tombolo status on such a node why",
                patience.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The nodes that do not apply all of it, each with what it lacks.
fn behind(changed: &[Changed], nodes: &Nodes) -> Vec<String> {
    let nodes = nodes.iter().filter_map(|(node, status)| {
        let lacks = |changed: &&Changed| !status.applies(&changed.name, changed.revision);
        let lacking = changed.iter().find(lacks)?;
        let how = match status.refused.contains(&lacking.name) {
            true => "refuses",
            false => "lacks",
        };
        Some(format!("{node} {how} {}", lacking.name))
    });
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::store::NodeStatus;

    #[test]
    fn nodes_are_waited_for_by_what_they_lack() {
        let changed = |name: &str, revision| Changed {
            name: name.to_owned(),
            outcome: Outcome::Created,
            revision,
        };
        let changed = [changed("a", 5), changed("b", 7)];
        let node = |revision, refused: &[&str]| NodeStatus {
            revision,
            refused: refused.iter().map(|name| (*name).to_owned()).collect(),
        };
        let nodes: Nodes = [
            ("n1".to_owned(), node(7, &[])),
            ("n2".to_owned(), node(6, &[])),
            ("n3".to_owned(), node(9, &["a"])),
            ("n4".to_owned(), node(9, &["c"])),
        ]
        .into();
        assert_eq!(behind(&changed, &nodes), ["n2 lacks b", "n3 refuses a"]);
    }
}
