//! More flows than there is room for: what is forgotten is judged right when it comes back.
use super::*;
use tombolo::{
    config::MapSizes,
    test_support::frame::{ACK, SYN, TCP, UDP},
};

const ROOM: u32 = 1024;
const FLOWS: u16 = 10 * 1024;
const REDIS: u16 = 6379;

fn small() -> Options {
    let sizes = MapSizes {
        conntrack: ROOM,
        ..MapSizes::default()
    };
    Options {
        sizes,
        ..Options::default()
    }
}

/// One flow of many, opened by either side: a packet from its opener, and one back.
fn packets(opener: Direction, db: IpAddr, peer: IpAddr, n: u16) -> [Frame; 4] {
    let (client, server) = ends(opener, db, peer);
    let (client, server) = ((client, 20_000 + n), (server, REDIS));
    [
        Frame::tcp(client, server, SYN),
        Frame::tcp(server, client, SYN | ACK),
        Frame::tcp(client, server, ACK),
        Frame::tcp(server, client, ACK),
    ]
}

fn back(direction: Direction) -> Direction {
    if direction == Ingress {
        Egress
    } else {
        Ingress
    }
}

/// Runs one packet of each flow; how many pass.
fn count(
    datapath: &mut Datapath,
    opener: Direction,
    (db, peer): (IpAddr, IpAddr),
    which: usize,
) -> u16 {
    let direction = if which.is_multiple_of(2) {
        opener
    } else {
        back(opener)
    };
    let passed = (0..FLOWS).filter(|n| {
        let frame = packets(opener, db, peer, *n)[which].bytes();
        datapath.passes(direction, &frame)
    });
    let passed = passed.count();
    datapath.reported();
    u16::try_from(passed).unwrap()
}

/// Ten times the flows, each open, with a SYN flood on top: all that is allowed passes whichever
/// side sends first, nothing passes once it is revoked, and what only the other direction allows
/// does not revive it.
#[test]
fn ten_times_the_flows_and_a_flood_change_no_verdict() {
    crate::lab::isolated(
        "packets::pressure::ten_times_the_flows_and_a_flood_change_no_verdict",
        || {
            let mut datapath = Datapath::start(&small());
            for family in families() {
                for opener in [Ingress, Egress] {
                    let allow = |votes| entry(opener, EMPLOYEE_ID, (TCP, REDIS, 16), votes, 1);
                    // The answers' direction is open: it must not be what lets a flow on.
                    datapath.apply([
                        mode(|mode| *mode.default_deny.get_mut(opener) = true),
                        allow(Votes::ALLOW),
                    ]);
                    for which in 0..4 {
                        assert_eq!(
                            count(&mut datapath, opener, family, which),
                            FLOWS,
                            "packet {which}"
                        );
                    }
                    flood(&mut datapath, opener, family);
                    for which in [3, 2] {
                        assert_eq!(
                            count(&mut datapath, opener, family, which),
                            FLOWS,
                            "after the flood"
                        );
                    }
                    datapath.apply([allow(Votes::NONE)]);
                    for which in [3, 2, 3] {
                        assert_eq!(count(&mut datapath, opener, family, which), 0, "revoked");
                    }
                }
            }
        },
    );
}

/// SYNs of flows that nobody goes on with, allowed and forbidden ones.
fn flood(datapath: &mut Datapath, opener: Direction, (db, peer): (IpAddr, IpAddr)) {
    for n in 0..FLOWS {
        let (client, server) = ends(opener, db, peer);
        for port in [REDIS, REDIS + 1] {
            let syn = Frame::tcp((client, 40_000 + n), (server, port), SYN).bytes();
            assert_eq!(datapath.passes(opener, &syn), port == REDIS);
        }
    }
    datapath.reported();
}

/// A flood does not push out a flow that goes on: its entry, not its role, lets answers in.
#[test]
fn a_flood_leaves_busy_flows_alone() {
    crate::lab::isolated("packets::pressure::a_flood_leaves_busy_flows_alone", || {
        let mut datapath = Datapath::start(&small());
        datapath.apply([
            closed(),
            entry(Egress, EMPLOYEE_ID, (UDP, 53, 16), Votes::ALLOW, 1),
            entry(Ingress, EMPLOYEE_ID, (TCP, REDIS, 16), Votes::ALLOW, 2),
        ]);
        for (db, peer) in families() {
            let ask = |n: u16| Frame::udp((db, 30_000 + n), (peer, 53)).bytes();
            let tell = |n: u16| Frame::udp((peer, 53), (db, 30_000 + n)).bytes();
            let busy = 0..64;
            assert!(busy.clone().all(|n| datapath.passes(Egress, &ask(n))));
            let mut lost = 0;
            for n in 0..FLOWS {
                let syn = Frame::tcp((peer, n), (db, REDIS), SYN).bytes();
                assert!(datapath.passes(Ingress, &syn));
                if n.is_multiple_of(64) {
                    lost += busy
                        .clone()
                        .filter(|n| !datapath.passes(Ingress, &tell(*n)))
                        .count();
                }
            }
            datapath.reported();
            assert_eq!(lost, 0, "answers");
        }
    });
}
