use super::*;
use crate::types::NamedPort;

fn with_ports(address: &str, identity: u32, ports: &[u16]) -> String {
    let port = |port| format!(r#"{{"Name":"web","Port":{port},"Protocol":"TCP"}}"#);
    let ports: Vec<String> = ports.iter().map(port).collect();
    let (head, _) = ip(address, identity).rsplit_once('}').map_or_else(
        || unreachable!("a JSON object"),
        |(head, tail)| (head.to_owned(), tail.to_owned()),
    );
    format!(r#"{head},"NamedPorts":[{}]}}"#, ports.join(","))
}

fn ports(address: &str, ports: &[u16]) -> Delta {
    let port = |port: &u16| NamedPort {
        name: "web".into(),
        port: *port,
        protocol: "TCP".into(),
    };
    Delta::NamedPorts {
        prefix: address.parse().unwrap(),
        ports: ports.iter().map(port).collect(),
    }
}

const IP: &str = "10.2.0.1";

#[test]
fn named_ports_come_before_their_address_and_alone_when_only_they_change() {
    let mut bench = Bench::new();
    let mut put = |value: &str| bench.put("west", Kind::Ips, IP, value);
    let first = put(&with_ports(IP, WEST_1, &[80]));
    assert_eq!(first, [ports(IP, &[80]), target(IP, WEST_1, 2)]);
    assert_eq!(put(&with_ports(IP, WEST_1, &[80])), []);
    let others = put(&with_ports(IP, WEST_1, &[80, 81]));
    assert_eq!(others, [ports(IP, &[80, 81])]);
    assert_eq!(put(&ip(IP, WEST_1)), [ports(IP, &[])]);
    put(&with_ports(IP, WEST_1, &[80]));
    let gone_too = bench.delete("west", Kind::Ips, IP);
    assert_eq!(gone_too, [ports(IP, &[]), gone(IP)]);
    assert!(bench.mesh.view.ports.is_empty() && bench.mesh.ports.is_empty());
}

#[test]
fn an_address_has_the_ports_of_whoever_has_it() {
    let mut bench = Bench::new();
    bench.put("west", Kind::Ips, IP, &with_ports(IP, WEST_1, &[80]));
    // The own cluster takes it.
    let own = (1 << 16) + 1;
    let taken = bench.put("east", Kind::Ips, IP, &with_ports(IP, own, &[81]));
    assert_eq!(taken, [ports(IP, &[81]), target(IP, own, 1)]);
    // What waits for it gets it back with its own ports.
    let back = bench.delete("east", Kind::Ips, IP);
    let last = |delta: &Delta| back.iter().rev().any(|told| told == delta);
    assert!(
        last(&ports(IP, &[80])) && last(&target(IP, WEST_1, 2)),
        "{back:?}"
    );
    let view = bench.mesh.view.ports.get(&IP.parse().unwrap());
    assert_eq!(view.map(|ports| ports[0].port), Some(80));
    bench.remove("west");
    assert!(bench.mesh.view.ports.is_empty() && bench.mesh.ports.is_empty());
}

#[test]
fn named_ports_past_the_limit_have_no_name() {
    let mut bench = Bench::new();
    let many: Vec<u16> = (1..=100).collect();
    let deltas = bench.put("west", Kind::Ips, IP, &with_ports(IP, WEST_1, &many));
    assert_eq!(
        deltas[0],
        ports(IP, &many[..crate::limits::NAMED_PORTS_MAX])
    );
}
