//! `tombolo policy get`: the policies of the cluster and of this node, and where they are in force.
use std::io::{self, Write};

use clap::ValueEnum;

use super::super::{Error, client::Client, print};
use crate::admin::wire::policy::{FilePolicies, Listing, Policy};

/// Show the policies of the cluster store, on how many of its live nodes each is in force, and those of
/// this node's files. The exit code is 1 if there is none of the name.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct GetArgs {
    /// Only those of this name: NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME.
    name: Option<String>,
    /// Print JSON, or the documents of the cluster store as they were given.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Yaml,
}

pub(super) async fn run(
    args: &GetArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<bool, Error> {
    let mut listing: Listing = client.json("/v1/policies").await?;
    if let Some(name) = &args.name {
        listing
            .cluster
            .retain(|policy| is_called(&policy.name, name));
        for file in &mut listing.files {
            file.policies.retain(|policy| is_called(policy, name));
        }
        listing.files.retain(|file| !file.policies.is_empty());
    }
    match args.output {
        Some(Format::Json) => {
            serde_json::to_writer_pretty(&mut *out, &listing).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Some(Format::Yaml) => {
            for policy in &listing.cluster {
                writeln!(out, "---\n{}", policy.document.trim_end())?;
            }
        }
        None => out.write_all(text(&listing).as_bytes())?,
    }
    out.flush()?;
    let none = listing.cluster.is_empty() && listing.files.is_empty();
    Ok(args.name.is_some() && none)
}

/// Whether the last parts of a policy's full name are `wanted`; kinds in any case.
fn is_called(full: &str, wanted: &str) -> bool {
    let (full, wanted) = (full.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let rest = full.strip_suffix(&wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

fn text(listing: &Listing) -> String {
    let header = ["KIND", "NAMESPACE", "NAME", "REVISION", "NODES", "ORIGIN"];
    let cluster = listing.cluster.iter().map(of_store);
    let files = listing.files.iter().flat_map(of_file);
    let mut text = print::table(&header, cluster.chain(files));
    let refused = listing.cluster.iter().filter_map(|policy| {
        let error = policy.error.as_ref()?;
        Some(format!("{}: {error}\n", policy.name))
    });
    let bad_files = listing.files.iter().filter_map(|file| {
        let error = file.error.as_ref()?;
        Some(format!("{error}\n"))
    });
    text.extend(refused.chain(bad_files));
    text
}

fn of_store(policy: &Policy) -> Vec<String> {
    let mut parts = policy.name.splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let (kind, namespace, name) = (part(), part(), part());
    let all = policy.applied.len() + policy.behind.len() + policy.refused.len();
    let mut nodes = format!("{}/{all}", policy.applied.len());
    if !policy.refused.is_empty() {
        nodes.push_str(&format!(" ({} refuse)", policy.refused.len()));
    }
    vec![
        kind,
        match namespace.as_str() {
            "_" => String::new(),
            _ => namespace,
        },
        name,
        policy.revision.to_string(),
        nodes,
        "cluster store".to_owned(),
    ]
}

fn of_file(file: &FilePolicies) -> Vec<Vec<String>> {
    let row = |title: &String| {
        let (namespace, name) = title.rsplit_once('/').unwrap_or(("", title));
        vec![
            String::new(),
            namespace.to_owned(),
            name.to_owned(),
            String::new(),
            "this node".to_owned(),
            file.file.display().to_string(),
        ]
    };
    file.policies.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_by_whole_parts() {
        let full = "CiliumNetworkPolicy/shop/web";
        for wanted in ["web", "shop/web", full, "ciliumnetworkpolicy/shop/web"] {
            assert!(is_called(full, wanted), "{wanted}");
        }
        for wanted in [
            "eb",
            "op/web",
            "other/web",
            "x/CiliumNetworkPolicy/shop/web",
        ] {
            assert!(!is_called(full, wanted), "{wanted}");
        }
    }

    #[test]
    fn table_tells_store_and_files() {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let listing = Listing {
            cluster: vec![Policy {
                name: "CiliumClusterwideNetworkPolicy/_/all".to_owned(),
                revision: 12,
                applied: strings(&["n1"]),
                behind: strings(&["n2"]),
                refused: strings(&["n3"]),
                error: Some("line 3: unknown field".to_owned()),
                document: String::new(),
            }],
            files: vec![FilePolicies {
                file: "/p/a.yaml".into(),
                policies: strings(&["shop/web"]),
                error: None,
            }],
        };
        let expected = "\
KIND                             NAMESPACE   NAME   REVISION   NODES            ORIGIN
CiliumClusterwideNetworkPolicy               all    12         1/3 (1 refuse)   cluster store
                                 shop        web               this node        /p/a.yaml
CiliumClusterwideNetworkPolicy/_/all: line 3: unknown field
";
        assert_eq!(text(&listing), expected);
    }
}
