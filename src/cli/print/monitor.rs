//! Events as lines: Cilium's of today without its source file and line, and below them, if asked for,
//! whence everybody in them is known.
use std::net::{IpAddr, SocketAddr};

use crate::{
    admin::wire::monitor::{Line, Packet, Provenance},
    enforcer::events::Action,
};

/// With a line end; `verbose` adds lines below it.
pub(in crate::cli) fn line(line: &Line, verbose: bool) -> String {
    let mut text = match line {
        Line::Drop(packet) => drop_line(packet),
        Line::PolicyVerdict(packet) => verdict_line(packet),
        Line::Trace(packet) => trace_line(packet),
        Line::Lost { count } => format!("xx {count} events lost: this reader was too slow"),
    };
    text.push('\n');
    if let Some(packet) = line.packet().filter(|_| verbose) {
        let sides = [
            ("source", packet.source_identity, &packet.source_known),
            (
                "destination",
                packet.destination_identity,
                &packet.destination_known,
            ),
        ];
        for (name, id, known) in sides {
            text.push_str(&format!("   └  {name}: {}\n", side(id, known)));
        }
        text.push_str(&format!("   └  rule: {}\n", rule(packet)));
    }
    text
}

/// There the leading `xx` is a literal too: it marks drops, as `->` marks what passes.
fn drop_line(packet: &Packet) -> String {
    // An egress drop never comes to the endpoint; it leaves it.
    let towards = if packet.direction == "egress" {
        "from"
    } else {
        "to"
    };
    format!(
        "xx drop ({}) flow {:#x} {towards} endpoint {}, ifindex {}, identity {}->{}: {}",
        packet.reason,
        packet.flow,
        packet.endpoint,
        packet.ifindex,
        packet.source_identity,
        packet.destination_identity,
        connection(packet),
    )
}

fn verdict_line(packet: &Packet) -> String {
    let remote = match packet.direction.as_str() {
        "egress" => packet.destination_identity,
        _ => packet.source_identity,
    };
    let action = match packet.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Audit => "audit",
    };
    format!(
        "Policy verdict log: flow {:#x} local EP ID {}, remote ID {remote}, proto {}, {}, action {action}, {}",
        packet.flow,
        packet.endpoint,
        packet.protocol,
        packet.direction,
        connection(packet),
    )
}

fn trace_line(packet: &Packet) -> String {
    let arrow = if packet.direction == "egress" {
        "<-"
    } else {
        "->"
    };
    format!(
        "{arrow} endpoint {} flow {:#x}, identity {}->{} state new ifindex {}: {}",
        packet.endpoint,
        packet.flow,
        packet.source_identity,
        packet.destination_identity,
        packet.ifindex,
        connection(packet),
    )
}

fn connection(packet: &Packet) -> String {
    let with_ports = matches!(packet.protocol, 6 | 17 | 132);
    let side = |addr: IpAddr, port: u16| match port {
        port if with_ports && port != 0 => SocketAddr::new(addr, port).to_string(),
        _ => addr.to_string(),
    };
    format!(
        "{} -> {} {}",
        side(packet.source, packet.source_port),
        side(packet.destination, packet.destination_port),
        protocol(packet)
    )
}

fn protocol(packet: &Packet) -> String {
    match packet.protocol {
        6 => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = |(bit, name): (usize, &'static str)| {
                (packet.tcp_flags & (1 << bit) != 0).then_some(name)
            };
            let flags: Vec<_> = names.into_iter().enumerate().filter_map(set).collect();
            format!("tcp {}", flags.join(", ")).trim_end().to_owned()
        }
        other => protocol_name(other),
    }
}

/// `tcp`, `udp`, …, or the number.
pub(in crate::cli) fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn side(id: u32, known: &Provenance) -> String {
    let labels = match known.labels.as_slice() {
        [] => "labels not known".to_owned(),
        labels => labels.join(", "),
    };
    let mut text = format!("identity {id}");
    if let Some(cluster) = &known.cluster {
        text.push_str(&format!(" of {cluster}"));
    }
    text.push_str(&format!(": {labels}"));
    if let (Some(revision), Some(age)) = (known.revision, known.age_ms) {
        let age = age_text(age);
        text.push_str(&format!(" (learned {age} ago, revision {revision})"));
    }
    text
}

fn age_text(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis}ms"),
        _ => super::duration(millis / 1000),
    }
}

fn rule(packet: &Packet) -> String {
    match &packet.rule {
        None if packet.action != Action::Allow && packet.reason == "Policy denied" => {
            "none allows it".to_owned()
        }
        None => "none".to_owned(),
        Some(rule) => match &rule.name {
            Some(name) => name.clone(),
            None => format!("{}, which is not in force any more", rule.number),
        },
    }
}
