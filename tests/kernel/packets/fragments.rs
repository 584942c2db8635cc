//! Fragments and extension headers.
use super::*;
use tombolo::test_support::frame::{
    AUTHENTICATION, DESTINATION, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, SYN, TCP, UDP,
};

/// The first piece of a datagram, and the one after it.
fn pieces(direction: Direction, (db, peer): (IpAddr, IpAddr), port: u16, id: u16) -> [Frame; 2] {
    let (source, destination) = ends(direction, db, peer);
    let first = Frame::udp((source, 40_000), (destination, port)).fragment(id, 0, true);
    let later = Frame::new(source, destination, UDP, &[0xaa; 24]).fragment(id, 3, false);
    [first, later]
}

#[test]
fn later_fragments_follow_the_first() {
    crate::lab::isolated(
        "packets::fragments::later_fragments_follow_the_first",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            for direction in [Ingress, Egress] {
                datapath.apply([entry(
                    direction,
                    EMPLOYEE_ID,
                    (UDP, 53, 16),
                    Votes::ALLOW,
                    1,
                )]);
                for family in families() {
                    let id = if direction == Ingress { 1 } else { 2 };
                    let [first, later] = pieces(direction, family, 53, id);
                    datapath.drop(direction, "before its first", FRAGMENT, &later.bytes());
                    datapath.pass(direction, "first", &first);
                    datapath.pass(direction, "later", &later);
                    let [_, other] = pieces(direction, family, 53, id + 2);
                    datapath.drop(direction, "of another datagram", FRAGMENT, &other.bytes());
                    let back = if direction == Ingress {
                        Egress
                    } else {
                        Ingress
                    };
                    let swapped = pieces(back, family, 53, id)[1].bytes();
                    datapath.drop(back, "of the other direction", FRAGMENT, &swapped);
                    // A denied datagram is denied whole, with its ports in the event.
                    let [first, later] = pieces(direction, family, 54, id + 4);
                    datapath.deny(direction, "denied", &first);
                    assert!(!datapath.passes(direction, &later.bytes()));
                    let event = datapath.reported().remove(0);
                    assert_eq!((event.reason, event.destination_port), (DENIED, 54));
                    datapath.forget_flows();
                }
            }
        },
    );
}

#[test]
fn fragments_of_an_echo_follow_it() {
    crate::lab::isolated("packets::fragments::fragments_of_an_echo_follow_it", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        for (db, peer) in families() {
            let (protocol, kind) = if db.is_ipv4() {
                (ICMP, 8)
            } else {
                (ICMPV6, 128)
            };
            datapath.apply([entry(
                Ingress,
                EMPLOYEE_ID,
                (protocol, kind, 16),
                Votes::ALLOW,
                1,
            )]);
            let later = |from, to| Frame::new(from, to, protocol, &[0; 16]).fragment(9, 1, false);
            let echo = Frame::echo(peer, db, 5, false).fragment(9, 0, true);
            datapath.pass(Ingress, "echo", &echo);
            datapath.pass(Ingress, "its rest", &later(peer, db));
            let reply = Frame::echo(db, peer, 5, true).fragment(9, 0, true);
            datapath.pass(Egress, "reply", &reply);
            datapath.pass(Egress, "its rest", &later(db, peer));
        }
    });
}

/// Where nothing has to be allowed first, a fragment alone is nobody's business.
#[test]
fn fragments_pass_where_policy_is_not_enforced() {
    crate::lab::isolated(
        "packets::fragments::fragments_pass_where_policy_is_not_enforced",
        || {
            let mut datapath = Datapath::start(&Options::default());
            for direction in [Ingress, Egress] {
                for family in families() {
                    datapath.pass(direction, "later", &pieces(direction, family, 53, 1)[1]);
                }
            }
        },
    );
}

/// A first piece without the whole TCP header hides its flags, a second one at eight bytes
/// overwrites them.
#[test]
fn fragments_that_hide_a_header_are_invalid() {
    crate::lab::isolated(
        "packets::fragments::fragments_that_hide_a_header_are_invalid",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            for direction in [Ingress, Egress] {
                datapath.apply([entry(direction, EMPLOYEE_ID, (0, 0, 0), Votes::ALLOW, 1)]);
                for (db, peer) in families() {
                    let (source, destination) = ends(direction, db, peer);
                    let whole = Frame::tcp((source, 1), (destination, 2), SYN).fragment(1, 0, true);
                    datapath.pass(direction, "whole header", &whole);
                    let tiny = Frame::new(source, destination, TCP, &[0; 8]).fragment(2, 0, true);
                    datapath.drop(direction, "tiny first", INVALID, &tiny.bytes());
                    let over = Frame::new(source, destination, TCP, &[0; 8]).fragment(1, 1, false);
                    datapath.drop(direction, "over the flags", INVALID, &over.bytes());
                    let after = Frame::new(source, destination, TCP, &[0; 8]).fragment(1, 3, false);
                    datapath.pass(direction, "after the header", &after);
                }
            }
        },
    );
}

#[test]
fn extension_headers_and_options_are_walked() {
    crate::lab::isolated(
        "packets::fragments::extension_headers_and_options_are_walked",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            let kinds = [HOP_BY_HOP, ROUTING, DESTINATION, AUTHENTICATION];
            for direction in [Ingress, Egress] {
                datapath.apply([entry(
                    direction,
                    EMPLOYEE_ID,
                    (TCP, 80, 16),
                    Votes::ALLOW,
                    1,
                )]);
                let [(db4, peer4), (db6, peer6)] = families();
                let (source, destination) = ends(direction, db4, peer4);
                for words in 0..=10 {
                    let frame = |port| {
                        Frame::tcp((source, 40_000), (destination, port), SYN).options(words)
                    };
                    datapath.pass(direction, "options", &frame(80));
                    datapath.deny(direction, "options", &frame(81));
                }
                let (source, destination) = ends(direction, db6, peer6);
                let frame = |port| Frame::tcp((source, 40_000), (destination, port), SYN);
                for count in 0..=7 {
                    for first in 0..kinds.len() {
                        let extended = |mut frame: Frame| {
                            for n in 0..count {
                                frame = frame.extension(kinds[(first + n) % kinds.len()]);
                            }
                            frame
                        };
                        let what = format!("{count} headers from {}", kinds[first]);
                        if count > 6 {
                            datapath.drop(direction, &what, INVALID, &extended(frame(80)).bytes());
                            continue;
                        }
                        datapath.pass(direction, &what, &extended(frame(80)));
                        datapath.deny(direction, &what, &extended(frame(81)));
                    }
                }
                // A datagram in one piece with a fragment header is judged like one without.
                datapath.pass(direction, "atomic", &frame(80).fragment(1, 0, false));
                datapath.deny(direction, "atomic", &frame(81).fragment(1, 0, false));
            }
        },
    );
}
