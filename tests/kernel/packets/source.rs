//! What a container may say about itself.
use super::*;
use tombolo::test_support::frame::{ACK, SYN, arp};

#[test]
fn other_sources_than_its_own_are_dropped() {
    crate::lab::isolated(
        "packets::source::other_sources_than_its_own_are_dropped",
        || {
            let mut datapath = Datapath::start(&Options::default());
            // In a flow that is allowed and established, too.
            for (n, (db, peer)) in families().into_iter().enumerate() {
                let stranger = both(STRANGER)[n];
                datapath.pass(Egress, "own", &Frame::tcp((db, 1), (peer, 2), SYN));
                for source in [stranger, peer] {
                    for frame in [
                        Frame::tcp((source, 1), (peer, 2), SYN),
                        Frame::tcp((source, 1), (peer, 2), ACK),
                        Frame::udp((source, 1), (peer, 2)),
                        Frame::echo(source, peer, 1, false),
                        Frame::new(source, peer, 47, &[0; 8]),
                        Frame::udp((source, 1), (peer, 2)).fragment(1, 3, true),
                    ] {
                        datapath.drop(Egress, &format!("{frame:?}"), SPOOFED, &frame.bytes());
                    }
                }
            }
            let peer = both(EMPLOYEE);
            for (source, destination) in [
                ("0.0.0.0", peer[0]),
                ("255.255.255.255", peer[0]),
                ("127.0.0.1", peer[0]),
                ("::", peer[1]),
                ("fe80::2", peer[1]),
                ("::1", peer[1]),
                ("::ffff:10.1.0.2", peer[1]),
            ] {
                let frame = Frame::udp((source.parse().unwrap(), 1), (destination, 2));
                datapath.drop(Egress, source, SPOOFED, &frame.bytes());
            }
        },
    );
}

/// An IPv4 address in IPv6 clothes would have the identity of the IPv4 host.
#[test]
fn mapped_addresses_are_dropped_on_the_wire() {
    crate::lab::isolated(
        "packets::source::mapped_addresses_are_dropped_on_the_wire",
        || {
            let mut datapath = Datapath::start(&Options::default());
            let [_, db] = both(DB);
            let mapped: IpAddr = "::ffff:10.1.0.3".parse().unwrap();
            for direction in [Ingress, Egress] {
                let (source, destination) = ends(direction, db, mapped);
                let frame = Frame::udp((source, 1), (destination, 2));
                datapath.drop(direction, "mapped peer", SPOOFED, &frame.bytes());
            }
        },
    );
}

#[test]
fn arp_speaks_of_own_addresses_only() {
    crate::lab::isolated("packets::source::arp_speaks_of_own_addresses_only", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        let [db, gateway, other] = [[10, 1, 0, 2], [10, 1, 0, 1], [10, 1, 0, 3]];
        for operation in [1, 2] {
            assert!(datapath.passes(Ingress, &arp(operation, gateway, db)));
            assert!(datapath.passes(Ingress, &arp(operation, other, db)));
            assert!(datapath.passes(Egress, &arp(operation, db, gateway)));
            assert!(
                datapath.passes(Egress, &arp(operation, [0; 4], db)),
                "probe"
            );
            let spoofed = arp(operation, other, gateway);
            datapath.drop(Egress, "another's", SPOOFED, &spoofed);
            let whole = arp(operation, db, gateway);
            for length in 14..whole.len() {
                datapath.drop(Egress, "cut off", SPOOFED, &whole[..length]);
            }
        }
        assert_eq!(datapath.reported(), []);
    });
}

#[test]
fn neighbour_discovery_speaks_of_own_addresses_only() {
    crate::lab::isolated(
        "packets::source::neighbour_discovery_speaks_of_own_addresses_only",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            let [_, db] = both(DB);
            let [_, peer] = both(EMPLOYEE);
            let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
            let (link, any) = (parse("fe80::2"), parse("::"));
            let message = |from, to, kind, target: IpAddr| {
                let IpAddr::V6(target) = target else {
                    unreachable!()
                };
                let rest = [&[0; 4][..], &target.octets()].concat();
                Frame::icmp(from, to, kind, &rest).hop_limit(255)
            };
            for from in [db, link, any] {
                datapath.pass(Egress, "solicitation", &message(from, peer, 135, peer));
                datapath.pass(Egress, "router wanted", &message(from, peer, 133, peer));
            }
            for from in [db, link] {
                datapath.pass(Egress, "own advertisement", &message(from, peer, 136, db));
                let others = message(from, peer, 136, peer).bytes();
                datapath.drop(Egress, "another's advertisement", SPOOFED, &others);
                for kind in [134, 137] {
                    let router = message(from, peer, kind, db).bytes();
                    datapath.drop(Egress, "a router's", SPOOFED, &router);
                }
            }
            let spoofed = message(peer, db, 135, db).bytes();
            datapath.drop(Egress, "solicitation of another", SPOOFED, &spoofed);
            for kind in 133..=137 {
                let frame = message(peer, db, kind, db);
                datapath.pass(Ingress, "discovery", &frame);
                // Not from this link, or in fragments: a message like any other.
                datapath.deny(Ingress, "from far", &frame.clone().hop_limit(254));
                datapath.deny(Ingress, "in fragments", &frame.fragment(1, 0, true));
            }
            for kind in [130, 131, 132, 143] {
                let frame = Frame::icmp(link, peer, kind, &[0; 20])
                    .hop_limit(1)
                    .extension(0);
                datapath.pass(Egress, "listener", &frame);
                datapath.pass(Ingress, "listener", &frame);
            }
        },
    );
}
