//! The L4 side of an entry: ports, ranges, names of ports, and ICMP types.
use std::collections::BTreeSet;

use super::{
    ParseError, Refusal,
    icmp::{self, ICMP, ICMPV6},
    import::{Import, Unsupported},
};
use crate::{
    limits,
    policy::{
        rule::Port,
        yaml::{At, Fields},
    },
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// What `ANY` stands for.
const ALL: [u8; 3] = [TCP, UDP, SCTP];

const WHOLE_PORT: &str = "remove it if the whole port may be allowed";
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported {
        name: "rules",
        reason: "requests are not looked into (layer 7)",
        instead: WHOLE_PORT,
    },
    Unsupported {
        name: "listener",
        reason: "connections are not handed to a proxy",
        instead: WHOLE_PORT,
    },
    Unsupported {
        name: "serverNames",
        reason: "names of TLS servers are not looked at",
        instead: WHOLE_PORT,
    },
    Unsupported {
        name: "terminatingTLS",
        reason: "TLS is not terminated",
        instead: WHOLE_PORT,
    },
    Unsupported {
        name: "originatingTLS",
        reason: "TLS is not originated",
        instead: WHOLE_PORT,
    },
];

/// An entry's ports: sorted, unique, empty for all ports of all protocols.
pub(super) fn of_entry(
    fields: &Fields<'_>,
    import: &mut Import<'_>,
) -> Result<Vec<Port>, ParseError> {
    let mut ports = BTreeSet::new();
    match (fields.get("toPorts"), fields.get("icmps")) {
        (None, None) => {}
        (Some(_), Some(icmps)) => {
            return Err(icmps.refuse(Refusal::Conflict { other: "toPorts" }));
        }
        (Some(section), None) => {
            for element in some(section, "remove it to mean all ports, or list the ports")? {
                let fields = import.fields(&element, &["ports"], UNSUPPORTED)?;
                let section = fields.require("ports")?;
                let instead = "remove toPorts to mean all ports, or list the ports";
                for at in at_most(section, instead, limits::POLICY_PORTS_MAX)? {
                    ports.extend(cilium_port(&at)?);
                }
            }
        }
        (None, Some(section)) => {
            for element in some(section, "remove it to mean everything, or list the types")? {
                let fields = element.fields(&["fields"])?;
                let section = fields.require("fields")?;
                let instead = "remove icmps to mean everything, or list the types";
                for at in at_most(section, instead, limits::POLICY_ICMP_FIELDS_MAX)? {
                    ports.insert(icmp_field(&at)?);
                }
            }
        }
    }
    Ok(ports.into_iter().collect())
}

/// The elements of a list that must not be empty.
pub(super) fn some<'a>(at: &At<'a>, instead: &'static str) -> Result<Vec<At<'a>>, ParseError> {
    let list = at.list()?;
    if list.is_empty() {
        let reason = "is an empty list";
        return Err(at.refuse(Refusal::Misplaced { reason, instead }));
    }
    Ok(list)
}

fn at_most<'a>(at: &At<'a>, instead: &'static str, max: usize) -> Result<Vec<At<'a>>, ParseError> {
    let list = some(at, instead)?;
    let count = list.len();
    if count > max {
        return Err(at.refuse(Refusal::TooMany { count, max }));
    }
    Ok(list)
}

/// An element of a CiliumNetworkPolicy's `ports`; without a protocol it means all of them.
fn cilium_port(at: &At<'_>) -> Result<Vec<Port>, ParseError> {
    let fields = at.fields(&["port", "protocol", "endPort"])?;
    let protocols: &[u8] = match fields.get("protocol") {
        None => &ALL,
        Some(at) => match at.text()? {
            "ANY" => &ALL,
            "ICMP" | "ICMPv6" => {
                let reason = "ICMP has no ports";
                let instead = "write icmps instead of toPorts";
                return Err(at.refuse(Refusal::Misplaced { reason, instead }));
            }
            _ => &[protocol(at, "TCP, UDP, SCTP or ANY")?],
        },
    };
    port(&fields, protocols)
}

/// An element of a NetworkPolicy's `ports`; without a protocol it means TCP.
pub(super) fn kubernetes_port(at: &At<'_>) -> Result<Vec<Port>, ParseError> {
    let fields = at.fields(&["port", "protocol", "endPort"])?;
    let protocol = match fields.get("protocol") {
        None => TCP,
        Some(at) => protocol(at, "TCP, UDP or SCTP")?,
    };
    port(&fields, &[protocol])
}

fn protocol(at: &At<'_>, expected: &'static str) -> Result<u8, ParseError> {
    match at.text()? {
        "TCP" => Ok(TCP),
        "UDP" => Ok(UDP),
        "SCTP" => Ok(SCTP),
        other => Err(at.refuse(Refusal::value(other, expected))),
    }
}

fn port(fields: &Fields<'_>, protocols: &[u8]) -> Result<Vec<Port>, ParseError> {
    let end = end_port(fields)?;
    let misplaced = |at: &At<'_>, reason| {
        let instead = "write the first port of the range as a number above 0";
        at.refuse(Refusal::Misplaced { reason, instead })
    };
    let each = |of: &dyn Fn(u8) -> Port| protocols.iter().map(|p| of(*p)).collect();
    let written = match fields.get("port") {
        Some(at) => written_port(at)?,
        None => Written::Number(0),
    };
    Ok(match (written, end) {
        (Written::Number(0), None) => each(&|protocol| Port::All { protocol }),
        (Written::Number(0), Some((at, _))) => {
            return Err(misplaced(at, "all ports have no end"));
        }
        (Written::Number(first), end) => {
            // An end before the start means the single port.
            let last = end.map_or(first, |(_, end)| end.max(first));
            each(&|protocol| Port::Range {
                protocol,
                first,
                last,
            })
        }
        (Written::Name(_), Some((at, _))) => {
            return Err(misplaced(at, "a named port is no range"));
        }
        (Written::Name(name), None) => {
            let protocol = match protocols {
                [one] => Some(*one),
                _ => None,
            };
            vec![Port::Named { protocol, name }]
        }
    })
}

/// The end of a range; `None` if there is none, which may be written as 0.
fn end_port<'f, 'a>(fields: &'f Fields<'a>) -> Result<Option<(&'f At<'a>, u16)>, ParseError> {
    let Some(at) = fields.get("endPort") else {
        return Ok(None);
    };
    let number = at.integer()?;
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(end) => Ok(Some((at, end))),
        Err(_) => {
            let expected = "a port number, 1 to 65535";
            Err(at.refuse(Refusal::value(&number.to_string(), expected)))
        }
    }
}

enum Written {
    Number(u16),
    /// In lower case: the case of names of ports does not count.
    Name(String),
}

fn written_port(at: &At<'_>) -> Result<Written, ParseError> {
    let text = at.text_or_number()?;
    if is_port_name(&text) {
        return Ok(Written::Name(text.to_ascii_lowercase()));
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(Written::Number(number)),
        Ok(_) | Err(_) => {
            let expected = "a port number (0 to 65535) or the name of a port";
            Err(at.refuse(Refusal::value(&text, expected)))
        }
    }
}

/// An IANA service name (RFC 6335): 1 to 15 letters, digits and single inner hyphens, among them a
/// letter.
fn is_port_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=15).contains(&text.len())
        && text.bytes().all(ok)
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && !(text.starts_with('-') || text.ends_with('-') || text.contains("--"))
}

fn icmp_field(at: &At<'_>) -> Result<Port, ParseError> {
    let fields = at.fields(&["family", "type"])?;
    let protocol = match fields.get("family") {
        None => ICMP,
        Some(at) => match at.text()? {
            "IPv4" => ICMP,
            "IPv6" => ICMPV6,
            other => return Err(at.refuse(Refusal::value(other, "IPv4 or IPv6"))),
        },
    };
    let at = fields.require("type")?;
    let text = at.text_or_number()?;
    let number = text.bytes().all(|b| b.is_ascii_digit());
    let kind = match text.parse() {
        Ok(kind) if number => Some(kind),
        Ok(_) | Err(_) => icmp::number(protocol, &text),
    };
    let Some(kind) = kind else {
        let expected = "an ICMP type of this family (0 to 255, or a name such as EchoRequest)";
        return Err(at.refuse(Refusal::value(&text, expected)));
    };
    Ok(Port::Icmp { protocol, kind })
}
