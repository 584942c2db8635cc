//! `tombolo policy trace`: what the policies make of a connection, and why.
use std::{io::Write, process::ExitCode};

use super::super::{Error, Output, client::Client, print};
use crate::{
    admin::wire::trace::{Half, Judgement, Match, Party, Question, Rule, Side, Trace},
    policy::{Basis, Outcome},
};

/// Say whether policy allows a connection, by which rule, and whom else the rules in question admit.
/// The exit code is 0 if it passes, 1 if it is denied, and 2 if that can't be said.
///
/// A side is `endpoint:N`, `identity:N`, `ip:ADDRESS`, or labels such as `k8s:app=web,k8s:tier=front`;
/// labels without a source are k8s's, and a workload without a label for its cluster is of this one.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct TraceArgs {
    /// Who opens the connection.
    #[arg(long, value_name = "SIDE", value_parser = side)]
    src: Side,
    /// To whom.
    #[arg(long, value_name = "SIDE", value_parser = side)]
    dst: Side,
    /// To which port, or ICMP type; the protocol is tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    dport: (u16, u8),
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(
    args: &TraceArgs,
    client: &Client,
    out: &mut dyn Write,
) -> Result<ExitCode, Error> {
    let (port, protocol) = args.dport;
    let question = Question {
        source: args.src.clone(),
        destination: args.dst.clone(),
        protocol,
        port,
    };
    let answer = client.post("/v1/policy/trace", &question).await;
    let trace: Trace = answer.map_err(|error| Error::Untold(Box::new(error)))?;
    args.output.write(out, &trace, text)?;
    Ok(match trace.verdict {
        Outcome::Allowed | Outcome::Audited => ExitCode::SUCCESS,
        Outcome::Denied => ExitCode::FAILURE,
        Outcome::Unknown => ExitCode::from(2),
    })
}

fn side(text: &str) -> Result<Side, String> {
    let number = |text: &str| {
        let number = text.parse::<u32>();
        number.map_err(|_error| format!("{text:?} is not a number"))
    };
    match text.split_once(':') {
        Some(("endpoint", id)) => number(id).map(Side::Endpoint),
        Some(("identity", id)) => number(id).map(Side::Identity),
        Some(("ip", address)) => match address.parse() {
            Ok(address) => Ok(Side::Address(address)),
            Err(_) => Err(format!("{address:?} is not an address")),
        },
        _ => labels(text).map(Side::Labels),
    }
}

fn labels(text: &str) -> Result<String, String> {
    let mut labels = String::new();
    for label in text.split(',') {
        let key = label.split('=').next().unwrap_or_default();
        if key.is_empty() || key.ends_with(':') || label.contains(';') {
            return Err(format!("{label:?} is not a label like k8s:app=web"));
        }
        if !key.contains(':') {
            labels.push_str("k8s:");
        }
        labels.push_str(label);
        labels.push(';');
    }
    Ok(labels)
}

fn port(text: &str) -> Result<(u16, u8), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmpv6" => 58,
        other => other
            .parse()
            .ok()
            .filter(|number| *number != 0)
            .ok_or_else(|| format!("{protocol:?} is not a protocol"))?,
    };
    let port = port.parse();
    let port = port.map_err(|_error| format!("{text:?} is not a port like 6379/tcp"))?;
    Ok((port, number))
}

fn text(trace: &Trace) -> String {
    let mut text = format!(
        "{} -> {} {} {}\n",
        party(&trace.source),
        party(&trace.destination),
        print::monitor::protocol_name(trace.protocol),
        trace.port
    );
    for (name, half) in [("Egress", &trace.egress), ("Ingress", &trace.ingress)] {
        match half {
            Half::Policy(judgement) => judgement_text(&mut text, name, judgement),
            Half::Cluster { name: cluster } => {
                text.push_str(&format!(
                    "{name}: judged by {cluster}, whose policies are not known here\n"
                ));
            }
            Half::Nobody => {
                text.push_str(&format!(
                    "{name}: judged by nobody, as that side is no workload of the mesh\n"
                ));
            }
        }
    }
    text.push_str(&format!("Verdict: {}\n", outcome(trace.verdict)));
    text
}

fn party(party: &Party) -> String {
    let mut words = Vec::new();
    words.extend(party.endpoint.map(|id| format!("endpoint {id}")));
    words.extend(party.address.map(|address| address.to_string()));
    match party.identity {
        Some(id) => words.push(format!("identity {id}")),
        None => words.push("no known identity".to_owned()),
    }
    words.extend(party.cluster.as_ref().map(|name| format!("of {name}")));
    words.push(match party.labels.as_slice() {
        [] => "(labels not known)".to_owned(),
        labels => format!("({})", labels.join(", ")),
    });
    words.join(" ")
}

fn judgement_text(text: &mut String, name: &str, judgement: &Judgement) {
    let Judgement {
        outcome: result,
        basis,
        rule,
        audited,
        audited_endpoint,
        selecting,
        default_deny,
        matches,
    } = judgement;
    let (result, reason) = (outcome(*result), reason(*basis, rule.as_ref()));
    // Not twice the same word.
    text.push_str(&match reason.starts_with(result) {
        true => format!("{name}: {reason}\n"),
        false => format!("{name}: {result}, {reason}\n"),
    });
    if let Some(audited) = audited {
        let reason = self::reason(*audited, None);
        text.push_str(&format!(
            "   └  if policies that are only audited counted: {reason}\n"
        ));
    }
    if *audited_endpoint {
        text.push_str("   └  the endpoint is only audited: nothing of it is dropped by policy\n");
    }
    text.push_str(&format!(
        "   └  rules that select the endpoint: {selecting}\n"
    ));
    for rule in default_deny {
        text.push_str(&format!("   └  default deny by: {rule}\n"));
    }
    for matched in matches {
        text.push_str(&format!("   └  {}\n", matched_text(matched)));
    }
}

const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Allowed => "allowed",
        Outcome::Denied => "denied",
        Outcome::Audited => "audited (it passes and is reported)",
        Outcome::Unknown => "unknown, as nothing of it is judged by this cluster",
    }
}

fn reason(basis: Basis, rule: Option<&Rule>) -> String {
    let by = rule.map(|rule| format!(" by {}", rule.name));
    match basis {
        Basis::Allowed => format!("allowed{}", by.unwrap_or_default()),
        Basis::Denied => format!("denied{}", by.unwrap_or_default()),
        Basis::DefaultDeny => "no rule allows it, and what none allows is dropped".to_owned(),
        Basis::NoDefaultDeny => "no rule is about it, and nothing is dropped by default".to_owned(),
    }
}

fn matched_text(matched: &Match) -> String {
    let verb = if matched.rule.deny {
        "denies"
    } else {
        "admits"
    };
    let audited = if matched.audited {
        " (only audited)"
    } else {
        ""
    };
    let whom = if matched.anybody {
        "everybody".to_owned()
    } else {
        let shown = matched.identities.iter().map(|admitted| {
            let labels = admitted.labels.join(", ");
            format!("{} ({labels})", admitted.identity)
        });
        let shown: Vec<_> = shown.collect();
        let more = matched.count.saturating_sub(shown.len());
        match (shown.is_empty(), more) {
            (true, 0) => "nobody known now".to_owned(),
            (_, 0) => shown.join("; "),
            _ => format!("{}; and {more} more", shown.join("; ")),
        }
    };
    format!("{}{audited} {verb} {whom}", matched.rule.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_and_ports_are_read_as_they_are_typed() {
        assert_eq!(side("endpoint:7"), Ok(Side::Endpoint(7)));
        assert_eq!(side("identity:6587186"), Ok(Side::Identity(6_587_186)));
        let address = "fd00::1".parse().unwrap();
        assert_eq!(side("ip:fd00::1"), Ok(Side::Address(address)));
        let labels = "k8s:app=web;any:x=y;reserved:world;k8s:tier;".to_owned();
        assert_eq!(
            side("app=web,any:x=y,reserved:world,tier"),
            Ok(Side::Labels(labels))
        );
        for wrong in [
            "endpoint:x",
            "identity:",
            "ip:10.0.0.300",
            "",
            "a,,b",
            "k8s:=x",
            "a=1;b=2",
        ] {
            assert!(side(wrong).is_err(), "{wrong}");
        }
        assert_eq!(port("6379"), Ok((6379, 6)));
        assert_eq!(port("53/UDP"), Ok((53, 17)));
        assert_eq!(port("8/icmp"), Ok((8, 1)));
        assert_eq!(port("0/47"), Ok((0, 47)));
        for wrong in ["", "http", "70000", "80/x", "80/0", "80/300"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
