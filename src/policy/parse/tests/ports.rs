//! Ports, protocols, ranges, names, ICMP types.
use super::*;

fn named(protocol: Option<u8>, name: &str) -> Port {
    Port::Named {
        protocol,
        name: name.into(),
    }
}

fn all(protocol: u8) -> Port {
    Port::All { protocol }
}

#[test]
fn ports_mean_what_the_reference_says() {
    for (ports, expected) in [
        ("{port: '80', protocol: TCP}", vec![port(6, 80)]),
        ("{port: 80, protocol: UDP}", vec![port(17, 80)]),
        ("{port: '65535', protocol: SCTP}", vec![port(132, 65535)]),
        (
            "{port: '80', protocol: ANY}",
            vec![port(6, 80), port(17, 80), port(132, 80)],
        ),
        (
            "{port: '80'}",
            vec![port(6, 80), port(17, 80), port(132, 80)],
        ),
        // No port is every port.
        ("{port: '0', protocol: TCP}", vec![all(6)]),
        ("{port: 0, protocol: ANY}", vec![all(6), all(17), all(132)]),
        ("{protocol: UDP}", vec![all(17)]),
        ("{}", vec![all(6), all(17), all(132)]),
        ("{port: 0, endPort: 0, protocol: TCP}", vec![all(6)]),
        // Ranges include their end; an end that is not behind the start is none.
        (
            "{port: '80', endPort: 90, protocol: TCP}",
            vec![range(6, 80, 90)],
        ),
        (
            "{port: '1', endPort: 65535, protocol: UDP}",
            vec![range(17, 1, 65535)],
        ),
        (
            "{port: '80', endPort: 80, protocol: TCP}",
            vec![port(6, 80)],
        ),
        (
            "{port: '80', endPort: 79, protocol: TCP}",
            vec![port(6, 80)],
        ),
        ("{port: '80', endPort: 0, protocol: TCP}", vec![port(6, 80)]),
        (
            "{port: '80', endPort: 81}",
            vec![range(6, 80, 81), range(17, 80, 81), range(132, 80, 81)],
        ),
        // Names are those of services: letters of either case.
        ("{port: http, protocol: TCP}", vec![named(Some(6), "http")]),
        (
            "{port: HTTP-8, protocol: SCTP}",
            vec![named(Some(132), "http-8")],
        ),
        ("{port: http}", vec![named(None, "http")]),
        (
            "{port: http, protocol: ANY, endPort: 0}",
            vec![named(None, "http")],
        ),
        (
            "{port: '0x50', protocol: TCP}",
            vec![named(Some(6), "0x50")],
        ),
        // Several are alternatives, each once.
        (
            "{port: '81', protocol: TCP}, {port: '80', protocol: TCP}, {port: 81, protocol: TCP}",
            vec![port(6, 80), port(6, 81)],
        ),
    ] {
        let found = grant(&format!("{{toPorts: [{{ports: [{ports}]}}]}}"));
        assert_eq!(found.ports, expected, "{ports}");
    }
    let split = "{toPorts: [{ports: [{port: '80', protocol: TCP}]}, {ports: [{protocol: UDP}]}]}";
    assert_eq!(grant(split).ports, [all(17), port(6, 80)]);
}

#[test]
fn icmp_types_are_numbers_or_names_of_their_family() {
    let icmp = |protocol, kind| Port::Icmp { protocol, kind };
    for (fields, expected) in [
        ("{type: 8}", vec![icmp(1, 8)]),
        ("{type: '8'}", vec![icmp(1, 8)]),
        ("{type: 0}", vec![icmp(1, 0)]),
        ("{type: 255, family: IPv4}", vec![icmp(1, 255)]),
        ("{type: 128, family: IPv6}", vec![icmp(58, 128)]),
        ("{type: EchoRequest}", vec![icmp(1, 8)]),
        ("{type: Echo}", vec![icmp(1, 8)]),
        ("{type: EchoReply}", vec![icmp(1, 0)]),
        ("{type: EchoRequest, family: IPv6}", vec![icmp(58, 128)]),
        ("{type: EchoReply, family: IPv6}", vec![icmp(58, 129)]),
        ("{type: TimeExceeded}", vec![icmp(1, 11)]),
        ("{type: TimeExceeded, family: IPv6}", vec![icmp(58, 3)]),
        ("{type: PacketTooBig, family: IPv6}", vec![icmp(58, 2)]),
        (
            "{type: 3}, {type: EchoRequest, family: IPv6}",
            vec![icmp(1, 3), icmp(58, 128)],
        ),
    ] {
        let found = grant(&format!("{{icmps: [{{fields: [{fields}]}}]}}"));
        assert_eq!(found.ports, expected, "{fields}");
    }
    let split = "{icmps: [{fields: [{type: 8}]}, {fields: [{type: 0}]}]}";
    assert_eq!(grant(split).ports, [icmp(1, 0), icmp(1, 8)]);
    for fields in [
        "{type: PacketTooBig}",
        "{type: Redirect, family: IPv6}",
        "{type: 256}",
    ] {
        let error = refused(&with_entry(&format!("{{icmps: [{{fields: [{fields}]}}]}}")));
        assert_eq!(error.field, "spec.ingress[0].icmps[0].fields[0].type");
        assert!(matches!(error.refusal, Refusal::Value { .. }), "{error}");
    }
}

#[test]
fn as_many_ports_and_types_as_cilium_takes_and_not_one_more() {
    let list = |count: usize, of: &str| vec![of; count].join(", ");
    let ports = |count| {
        with_entry(&format!(
            "{{toPorts: [{{ports: [{}]}}]}}",
            list(count, "{port: 1}")
        ))
    };
    let types = |count| {
        with_entry(&format!(
            "{{icmps: [{{fields: [{}]}}]}}",
            list(count, "{type: 1}")
        ))
    };
    assert_eq!(rule(&ports(40)).ingress.len(), 1);
    assert_eq!(rule(&types(40)).ingress.len(), 1);
    for (text, field) in [
        (ports(41), "spec.ingress[0].toPorts[0].ports"),
        (types(41), "spec.ingress[0].icmps[0].fields"),
    ] {
        let error = refused(&text);
        assert_eq!(error.field, field);
        assert_eq!(error.refusal, Refusal::TooMany { count: 41, max: 40 });
    }
}
