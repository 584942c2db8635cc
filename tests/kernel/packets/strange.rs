//! What is no IP packet, or none that can be read.
use super::*;
use tombolo::test_support::frame::{ETH_VLAN, SYN, ethernet};

const VLAN: &str = "VLAN traffic disallowed by VLAN filter";
const UNSUPPORTED: &str = "Unsupported L3 protocol";

/// Towards the endpoint it passes where nothing has to be allowed; from it, never.
fn dropped_where_enforced(datapath: &mut Datapath, what: &str, reason: &str, frame: &[u8]) {
    datapath.apply([mode(|_| ())]);
    assert!(datapath.passes(Ingress, frame), "{what}: not enforced");
    datapath.drop(Egress, what, reason, frame);
    datapath.apply([mode(|mode| {
        mode.default_deny.ingress = true;
        mode.audit = true;
    })]);
    assert!(datapath.passes(Ingress, frame), "{what}: on trial");
    let event = datapath.reported().remove(0);
    assert_eq!(
        (event.action, event.reason),
        (events::Action::Audit, reason)
    );
    datapath.drop(Egress, what, reason, frame);
    datapath.apply([mode(|mode| mode.default_deny.ingress = true)]);
    datapath.drop(Ingress, what, reason, frame);
}

#[test]
fn tags_and_other_protocols_are_dropped_where_policy_is_enforced() {
    crate::lab::isolated(
        "packets::strange::tags_and_other_protocols_are_dropped_where_policy_is_enforced",
        || {
            let mut datapath = Datapath::start(&Options::default());
            for (db, peer) in families() {
                for direction in [Ingress, Egress] {
                    let (source, destination) = ends(direction, db, peer);
                    let frame = Frame::tcp((source, 1), (destination, 2), SYN).vlan(5);
                    dropped_where_enforced(&mut datapath, "tagged", VLAN, &frame.bytes());
                }
            }
            let provider = ethernet(0x88a8, &[0, 5, 0x81, 0, 0, 6, 8, 0]);
            dropped_where_enforced(&mut datapath, "provider tag", VLAN, &provider);
            let bare = ethernet(ETH_VLAN, &[]);
            dropped_where_enforced(&mut datapath, "bare tag", VLAN, &bare);
            for kind in [
                0x0000, 0x002e, 0x0805, 0x8035, 0x8847, 0x8864, 0x88cc, 0x88e5, 0xffff,
            ] {
                let frame = ethernet(kind, &[0; 46]);
                let what = format!("{kind:#x}");
                dropped_where_enforced(&mut datapath, &what, UNSUPPORTED, &frame);
            }
        },
    );
}

/// Every header cut off at every length, up to the one where it is whole.
#[test]
fn cut_off_headers_are_invalid_at_each_length() {
    crate::lab::isolated(
        "packets::strange::cut_off_headers_are_invalid_at_each_length",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            let (mut cuts, mut refused) = (0, 0);
            for direction in [Ingress, Egress] {
                datapath.apply([entry(
                    direction,
                    IdentityId::UNKNOWN,
                    (0, 0, 0),
                    Votes::ALLOW,
                    1,
                )]);
                for (db, peer) in families() {
                    let (source, destination) = ends(direction, db, peer);
                    let (from, to) = ((source, 1), (destination, 2));
                    for (what, frame, least) in [
                        ("TCP", Frame::tcp(from, to, SYN), 20),
                        ("UDP", Frame::udp(from, to), 8),
                        ("SCTP", Frame::sctp(from, to, 1), 16),
                        ("echo", Frame::echo(source, destination, 1, false), 8),
                        (
                            "options",
                            Frame::tcp(from, to, SYN).options(3).extension(60),
                            20,
                        ),
                    ] {
                        let whole = frame.bytes();
                        let payload = Frame::new(source, destination, 99, &[]);
                        let header = match what {
                            "options" if source.is_ipv4() => payload.options(3),
                            "options" => payload.extension(60),
                            _ => payload,
                        };
                        let end = header.bytes().len() + least;
                        for length in 14..whole.len() {
                            let cut = &whole[..length];
                            let Ok(passed) = datapath.try_passes(direction, cut) else {
                                refused += 1;
                                continue;
                            };
                            cuts += 1;
                            let reported = datapath.reported();
                            assert_eq!(passed, length >= end, "{what} {source} cut to {length}");
                            if !passed {
                                assert_eq!(reported[0].reason, INVALID, "{what} cut to {length}");
                            }
                        }
                        assert!(datapath.passes(direction, &whole), "{what} whole");
                        datapath.reported();
                    }
                }
            }
            // The kernel's test run may refuse a frame that ends within the fixed IP header.
            assert!(cuts > 300, "{cuts} cuts, {refused} refused");
        },
    );
}

#[test]
fn headers_that_contradict_themselves_are_invalid() {
    crate::lab::isolated(
        "packets::strange::headers_that_contradict_themselves_are_invalid",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            for direction in [Ingress, Egress] {
                datapath.apply([entry(
                    direction,
                    IdentityId::UNKNOWN,
                    (0, 0, 0),
                    Votes::ALLOW,
                    1,
                )]);
                let frames = families().map(|(db, peer)| {
                    let (source, destination) = ends(direction, db, peer);
                    Frame::tcp((source, 1), (destination, 2), SYN).bytes()
                });
                for (what, family, byte) in [
                    ("version 6 in IPv4", 0, 0x65),
                    ("version 0", 0, 0x05),
                    ("header of 16 bytes", 0, 0x44),
                    ("header of none", 0, 0x40),
                    ("header of 60 bytes", 0, 0x4f),
                    ("version 4 in IPv6", 1, 0x45),
                ] {
                    let mut frame = frames[family].clone();
                    frame[14] = byte;
                    datapath.drop(direction, what, INVALID, &frame);
                }
            }
        },
    );
}

#[test]
fn unknown_interfaces_pass_nothing() {
    crate::lab::isolated("packets::strange::unknown_interfaces_pass_nothing", || {
        let mut datapath = Datapath::start(&Options::default());
        let own = datapath.ifindex;
        datapath.ifindex = datapath.other_interface();
        for (db, peer) in families() {
            for direction in [Ingress, Egress] {
                let (source, destination) = ends(direction, db, peer);
                let frame = Frame::udp((source, 1), (destination, 2)).bytes();
                datapath.drop(direction, "unknown", "Unknown endpoint", &frame);
                let arp = ethernet(0x0806, &[0; 28]);
                datapath.drop(direction, "unknown, ARP", "Unknown endpoint", &arp);
            }
        }
        datapath.ifindex = own;
        let (db, peer) = families()[0];
        datapath.pass(Ingress, "known", &Frame::udp((peer, 1), (db, 2)));
        let rows = datapath.counters.rows().unwrap();
        assert_eq!(rows[0].0, None);
        assert_eq!(rows[0].1.0[12].packets, 4, "unknown endpoint, ingress");
    });
}
