//! `tombolo bpf`: what the kernel's maps hold, printed as it is read.
use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Subcommand;
use serde::de::DeserializeOwned;

use super::{Error, Format, Output, client::Client, print};
use crate::admin::wire::maps::{Address, Flow, Policy};

/// What the kernel's maps hold.
#[derive(Debug, Subcommand)]
pub(super) enum BpfVerb {
    /// Entries of the policy map.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Identities by address.
    #[command(subcommand)]
    Ipcache(IpcacheVerb),
    /// Tracked flows.
    #[command(subcommand)]
    Ct(CtVerb),
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Show those of an endpoint.
    Get {
        /// Its number.
        #[arg(required_unless_present = "all")]
        endpoint: Option<u32>,
        /// Show those of all endpoints.
        #[arg(long, conflicts_with = "endpoint")]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum IpcacheVerb {
    /// List them, in the order of the map.
    #[command(visible_alias = "ls")]
    List(Output),
    /// Show the entry that packets of an address meet. The exit code is 1 if there is none.
    Get {
        /// The address.
        address: IpAddr,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CtVerb {
    /// List them, in the order of the maps.
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this endpoint.
        endpoint: Option<u32>,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) async fn run(
    verb: &BpfVerb,
    client: &Client,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let of = |endpoint: &Option<u32>| endpoint.map(|id| format!("endpoint={id}"));
    let addresses = |query, output| Listing {
        route: "/v1/bpf/ipcache",
        query,
        output,
        header: Some(columns(
            &ADDRESS,
            ["IP PREFIX/ADDRESS", "IDENTITY", "CLUSTER ID"],
        )),
    };
    let mut must_exist = false;
    let found = match verb {
        BpfVerb::Policy(PolicyVerb::Get {
            endpoint, output, ..
        }) => {
            let header = [
                "ENDPOINT",
                "POLICY",
                "DIRECTION",
                "IDENTITY",
                "PORT/PROTO",
                "RULE",
            ];
            let listing = Listing {
                route: "/v1/bpf/policy",
                query: of(endpoint).unwrap_or_default(),
                output,
                header: Some(columns(&POLICY, header)),
            };
            listing.print(client, out, policy).await?
        }
        BpfVerb::Ipcache(IpcacheVerb::List(output)) => {
            let listing = addresses(String::new(), output);
            listing.print(client, out, address).await?
        }
        BpfVerb::Ipcache(IpcacheVerb::Get {
            address: wanted,
            output,
        }) => {
            must_exist = true;
            let listing = addresses(format!("address={wanted}"), output);
            listing.print(client, out, address).await?
        }
        BpfVerb::Ct(CtVerb::List { endpoint, output }) => {
            let listing = Listing {
                route: "/v1/bpf/ct",
                query: of(endpoint).unwrap_or_default(),
                output,
                header: None,
            };
            listing.print(client, out, flow).await?
        }
    };
    Ok(super::exit_code(must_exist && found == 0))
}

/// Rows that are printed as they come: there may be a million, so that columns have fixed widths.
struct Listing<'a> {
    route: &'static str,
    query: String,
    output: &'a Output,
    header: Option<String>,
}

impl Listing<'_> {
    /// Returns how many there were.
    async fn print<T: DeserializeOwned>(
        self,
        client: &Client,
        out: &mut dyn Write,
        line: impl Fn(&T) -> String,
    ) -> Result<usize, Error> {
        let route = self.route;
        let json = matches!(self.output.output, Some(Format::Json));
        let mut rows = client.lines(route, &self.query).await?;
        let mut found = 0;
        if json {
            write!(out, "[")?;
        } else if let Some(header) = self.header {
            out.write_all(header.as_bytes())?;
        }
        while let Some(text) = rows.next().await? {
            if json {
                let gap = if found > 0 { "," } else { "" };
                write!(out, "{gap}\n  {text}")?;
            } else {
                let row = serde_json::from_str(&text);
                let row: T = row.map_err(|source| Error::Decode { route, source })?;
                out.write_all(line(&row).as_bytes())?;
            }
            found += 1;
        }
        if json {
            writeln!(out, "\n]")?;
        }
        out.flush()?;
        Ok(found)
    }
}

const POLICY: [usize; 5] = [11, 14, 12, 11, 18];
const ADDRESS: [usize; 2] = [46, 11];

/// Cells of at least these widths; the last one is as wide as it is.
fn columns<const N: usize>(widths: &[usize], cells: [impl AsRef<str>; N]) -> String {
    let mut line = String::new();
    for (place, cell) in cells.iter().enumerate() {
        let width = widths.get(place).copied().unwrap_or(0);
        line.push_str(&format!("{:width$}", cell.as_ref()));
    }
    format!("{}\n", line.trim_end())
}

fn policy(row: &Policy) -> String {
    let protocol = print::monitor::protocol_name(row.protocol).to_uppercase();
    let whole = row.port == 0 && row.last_port == u16::MAX;
    let ports = match (row.protocol, whole, row.port == row.last_port) {
        (0, ..) => "ANY".to_owned(),
        (_, true, _) => format!("ANY/{protocol}"),
        (_, _, true) => format!("{}/{protocol}", row.port),
        _ => format!("{}-{}/{protocol}", row.port, row.last_port),
    };
    let rule = match &row.rule_name {
        Some(name) => name.clone(),
        None => row.rule.to_string(),
    };
    let identity = match row.identity {
        0 => "ANY".to_owned(),
        id => id.to_string(),
    };
    let rule = match row.labels.as_slice() {
        [] => rule,
        labels => format!("{rule} ({})", labels.join(", ")),
    };
    let cells = [
        row.endpoint.to_string(),
        row.votes.join(","),
        row.direction.clone(),
        identity,
        ports,
        rule,
    ];
    columns(&POLICY, cells)
}

fn address(row: &Address) -> String {
    let cluster = row
        .cluster_id
        .map_or_else(|| "none (CIDR)".to_owned(), |id| id.to_string());
    columns(
        &ADDRESS,
        [row.prefix.clone(), row.identity.to_string(), cluster],
    )
}

/// As Cilium prints flows, with the rule that let it in.
fn flow(row: &Flow) -> String {
    let protocol = print::monitor::protocol_name(row.protocol).to_uppercase();
    let source = SocketAddr::new(row.source, row.source_port);
    let destination = SocketAddr::new(row.destination, row.destination_port);
    let rule = match (&row.rule_name, row.rule) {
        (Some(name), _) => name.clone(),
        (None, 0) => "none".to_owned(),
        (None, number) => number.to_string(),
    };
    format!(
        "{protocol} {} {source} -> {destination} endpoint={} idle={}s flags=[{}] SourceSecurityID={} \
         rule={rule}\n",
        row.direction.to_uppercase(),
        row.endpoint,
        row.idle_ms / 1000,
        row.flags.join(" "),
        row.identity,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines_of_fixed_columns() {
        let row = Policy {
            endpoint: 3833,
            direction: "ingress".to_owned(),
            identity: 0,
            labels: Vec::new(),
            protocol: 6,
            port: 1024,
            last_port: 2047,
            votes: vec!["allow".to_owned()],
            rule: 7,
            rule_name: None,
        };
        assert_eq!(
            policy(&row),
            "3833       allow         ingress     ANY        1024-2047/TCP     7\n"
        );
        let all = Policy {
            protocol: 0,
            port: 0,
            last_port: u16::MAX,
            identity: 9,
            labels: vec!["reserved:world-ipv4".to_owned()],
            rule_name: Some("all in a.yaml".to_owned()),
            ..row
        };
        assert_eq!(
            policy(&all),
            "3833       allow         ingress     9          ANY               all in a.yaml \
             (reserved:world-ipv4)\n"
        );
        let row = Flow {
            endpoint: 3833,
            direction: "in".to_owned(),
            protocol: 6,
            source: "10.1.0.3".parse().unwrap(),
            source_port: 42728,
            destination: "fd00::2".parse().unwrap(),
            destination_port: 6379,
            identity: 38354,
            rule: 0,
            rule_name: None,
            flags: vec!["replied".to_owned()],
            idle_ms: 2_500,
        };
        assert_eq!(
            flow(&row),
            "TCP IN 10.1.0.3:42728 -> [fd00::2]:6379 endpoint=3833 idle=2s flags=[replied] \
             SourceSecurityID=38354 rule=none\n"
        );
    }
}
