//! Flows: answers, revocation, closing, forgotten ones, and the errors that belong to them.
use super::*;
use tombolo::test_support::frame::{ACK, FIN, ICMP, ICMPV6, RST, SCTP, SYN, TCP, UDP};

const REDIS: u16 = 6379;
const CLIENT: u16 = 40_000;

/// The packets of a flow that one side opened, of a protocol: from its opener, and back.
struct Flow {
    opener: Direction,
    protocol: u8,
    db: IpAddr,
    peer: IpAddr,
}

impl Flow {
    fn back(&self) -> Direction {
        if self.opener == Ingress {
            Egress
        } else {
            Ingress
        }
    }

    /// A packet from the opener; TCP with these flags, SCTP with this chunk.
    fn forth(&self, detail: u8) -> Frame {
        let (client, server) = ends(self.opener, self.db, self.peer);
        packet(
            self.protocol,
            (client, CLIENT),
            (server, REDIS),
            detail,
            false,
        )
    }

    /// A packet to the opener.
    fn answer(&self, detail: u8) -> Frame {
        let (client, server) = ends(self.opener, self.db, self.peer);
        packet(
            self.protocol,
            (server, REDIS),
            (client, CLIENT),
            detail,
            true,
        )
    }

    /// What the opener begins with, what is answered, and what follows.
    fn details(&self) -> (u8, u8, u8) {
        match self.protocol {
            TCP => (SYN, SYN | ACK, ACK),
            SCTP => (1, 2, 0),
            _ => (0, 0, 0),
        }
    }

    /// The level of the policy map that the flow needs.
    fn level(&self) -> (u8, u16, u8) {
        match self.protocol {
            ICMP => (ICMP, 8, 16),
            ICMPV6 => (ICMPV6, 128, 16),
            other => (other, REDIS, 16),
        }
    }

    fn allow(&self, on: bool) -> Change {
        let votes = if on { Votes::ALLOW } else { Votes::NONE };
        entry(self.opener, EMPLOYEE_ID, self.level(), votes, 1)
    }
}

fn packet(
    protocol: u8,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    detail: u8,
    reply: bool,
) -> Frame {
    match protocol {
        TCP => Frame::tcp(source, destination, detail),
        UDP => Frame::udp(source, destination),
        SCTP => Frame::sctp(source, destination, detail),
        ICMP | ICMPV6 => Frame::echo(source.0, destination.0, CLIENT, reply),
        other => Frame::new(source.0, destination.0, other, &[0; 8]),
    }
}

/// Every protocol in both families, opened from either side.
fn all_flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (db, peer) in families() {
        let icmp = if db.is_ipv4() { ICMP } else { ICMPV6 };
        for protocol in [TCP, UDP, SCTP, icmp] {
            for opener in [Ingress, Egress] {
                flows.push(Flow {
                    opener,
                    protocol,
                    db,
                    peer,
                });
            }
        }
    }
    flows
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} flow of protocol {} with {}",
            self.opener, self.protocol, self.peer
        )
    }
}

#[test]
fn answers_pass_without_a_rule_of_their_own() {
    crate::lab::isolated(
        "packets::flows::answers_pass_without_a_rule_of_their_own",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            for flow in all_flows() {
                let (open, accept, go_on) = flow.details();
                datapath.deny(
                    flow.back(),
                    &format!("{flow}: answer first"),
                    &flow.answer(accept),
                );
                datapath.apply([flow.allow(true)]);
                datapath.pass(flow.opener, &format!("{flow}: first"), &flow.forth(open));
                datapath.pass(
                    flow.back(),
                    &format!("{flow}: answer"),
                    &flow.answer(accept),
                );
                datapath.pass(flow.opener, &format!("{flow}: more"), &flow.forth(go_on));
                datapath.pass(
                    flow.back(),
                    &format!("{flow}: more back"),
                    &flow.answer(go_on),
                );
                datapath.apply([flow.allow(false)]);
                datapath.forget_flows();
            }
        },
    );
}

/// Whoever sends first after a revocation, both sides are cut; allowed again, the flow goes on.
#[test]
fn revocation_cuts_both_ways_whoever_sends_first() {
    crate::lab::isolated(
        "packets::flows::revocation_cuts_both_ways_whoever_sends_first",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            for flow in all_flows() {
                let (open, accept, go_on) = flow.details();
                for opener_first in [true, false] {
                    datapath.apply([flow.allow(true)]);
                    datapath.pass(flow.opener, &format!("{flow}: first"), &flow.forth(open));
                    datapath.pass(
                        flow.back(),
                        &format!("{flow}: answer"),
                        &flow.answer(accept),
                    );
                    datapath.apply([flow.allow(false)]);
                    let forth = (flow.opener, flow.forth(go_on));
                    let back = (flow.back(), flow.answer(go_on));
                    let order = if opener_first {
                        [&forth, &back]
                    } else {
                        [&back, &forth]
                    };
                    for (direction, frame) in order {
                        datapath.deny(*direction, &format!("{flow}: revoked"), frame);
                    }
                    datapath.apply([flow.allow(true)]);
                    for (direction, frame) in order {
                        if flow.protocol == ICMP || flow.protocol == ICMPV6 {
                            // An echo opens; a reply alone must wait for it.
                            datapath.pass(flow.opener, &format!("{flow}: again"), &forth.1);
                        }
                        datapath.pass(*direction, &format!("{flow}: again"), frame);
                    }
                    datapath.apply([flow.allow(false)]);
                    datapath.forget_flows();
                }
            }
        },
    );
}

/// The other side's address gets another identity, or none: same as a revocation.
#[test]
fn a_lost_identity_cuts_its_flows() {
    crate::lab::isolated("packets::flows::a_lost_identity_cuts_its_flows", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        for flow in all_flows() {
            let (open, accept, go_on) = flow.details();
            datapath.apply([flow.allow(true)]);
            for identity in [None, Some(STRANGER_ID)] {
                datapath.pass(flow.opener, &format!("{flow}: first"), &flow.forth(open));
                datapath.pass(
                    flow.back(),
                    &format!("{flow}: answer"),
                    &flow.answer(accept),
                );
                let peer = flow.peer.to_string();
                datapath.apply([known(&peer, identity)]);
                datapath.deny(
                    flow.back(),
                    &format!("{flow}: {identity:?}"),
                    &flow.answer(go_on),
                );
                datapath.deny(
                    flow.opener,
                    &format!("{flow}: {identity:?}"),
                    &flow.forth(go_on),
                );
                datapath.apply([known(&peer, Some(EMPLOYEE_ID))]);
                datapath.forget_flows();
            }
            datapath.apply([flow.allow(false)]);
        }
    });
}

/// Without an entry, what opens nothing is judged as new, whatever its flags say.
#[test]
fn odd_flags_open_nothing_without_a_rule() {
    crate::lab::isolated(
        "packets::flows::odd_flags_open_nothing_without_a_rule",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            let odd = [
                0,
                ACK,
                FIN,
                FIN | ACK,
                RST,
                RST | ACK,
                SYN | ACK,
                SYN | FIN,
                SYN | RST,
                0x29,
                0xff,
            ];
            for opener in [Ingress, Egress] {
                for (db, peer) in families() {
                    let flow = Flow {
                        opener,
                        protocol: TCP,
                        db,
                        peer,
                    };
                    for flags in odd {
                        datapath.deny(opener, &format!("{flow}: {flags:#x}"), &flow.forth(flags));
                    }
                    datapath.apply([flow.allow(true)]);
                    for flags in odd {
                        datapath.pass(opener, &format!("{flow}: {flags:#x}"), &flow.forth(flags));
                        datapath.forget_flows();
                    }
                    datapath.apply([flow.allow(false)]);
                }
            }
        },
    );
}

/// A forgotten flow of TCP or SCTP is the one it was: an allowed one goes on whichever side sends
/// first, a revoked one stays cut, although the other direction is open to everybody.
#[test]
fn forgotten_flows_are_judged_by_who_opened_them() {
    crate::lab::isolated(
        "packets::flows::forgotten_flows_are_judged_by_who_opened_them",
        || {
            let mut datapath = Datapath::start(&Options::default());
            for flow in all_flows()
                .iter()
                .filter(|flow| [TCP, SCTP].contains(&flow.protocol))
            {
                let (open, accept, go_on) = flow.details();
                // Only the opener's direction is closed.
                datapath.apply([mode(|mode| *mode.default_deny.get_mut(flow.opener) = true)]);
                datapath.apply([flow.allow(true)]);
                datapath.pass(flow.opener, "first", &flow.forth(open));
                datapath.pass(flow.back(), "answer", &flow.answer(accept));
                let forth = (flow.opener, flow.forth(go_on));
                let back = (flow.back(), flow.answer(go_on));
                for (direction, frame) in [&forth, &back] {
                    datapath.forget_flows();
                    datapath.pass(*direction, &format!("{flow}: forgotten"), frame);
                }
                datapath.apply([flow.allow(false)]);
                for (direction, frame) in [&forth, &back, &forth] {
                    datapath.forget_flows();
                    datapath.deny(*direction, &format!("{flow}: forgotten and revoked"), frame);
                }
                // And the other way about: only the answers' direction is closed.
                datapath.apply([mode(|mode| *mode.default_deny.get_mut(flow.back()) = true)]);
                for (direction, frame) in [&back, &forth] {
                    datapath.forget_flows();
                    datapath.pass(
                        *direction,
                        &format!("{flow}: forgotten, answers closed"),
                        frame,
                    );
                }
                datapath.forget_flows();
            }
        },
    );
}

/// Of a connection older than its guard nobody knows who opened it: what the container says of
/// itself does not let the other side in.
#[test]
fn an_unknown_connection_lets_nobody_in() {
    crate::lab::isolated(
        "packets::flows::an_unknown_connection_lets_nobody_in",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([mode(|mode| mode.default_deny.ingress = true)]);
            for (db, peer) in families() {
                let flow = Flow {
                    opener: Ingress,
                    protocol: TCP,
                    db,
                    peer,
                };
                datapath.deny(Ingress, "before", &flow.forth(ACK));
                datapath.pass(Egress, "egress is open", &flow.answer(ACK));
                datapath.deny(Ingress, "after", &flow.forth(ACK));
            }
        },
    );
}

/// A SYN is judged anew even within a living flow, and does not harm the other side's flow.
#[test]
fn a_syn_is_always_judged() {
    crate::lab::isolated("packets::flows::a_syn_is_always_judged", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        for (db, peer) in families() {
            for opener in [Ingress, Egress] {
                let flow = Flow {
                    opener,
                    protocol: TCP,
                    db,
                    peer,
                };
                datapath.apply([flow.allow(true)]);
                datapath.pass(opener, "first", &flow.forth(SYN));
                datapath.pass(flow.back(), "answer", &flow.answer(SYN | ACK));
                datapath.deny(flow.back(), "backward SYN", &flow.answer(SYN));
                datapath.pass(flow.back(), "the flow lives", &flow.answer(ACK));
                datapath.pass(opener, "the flow lives", &flow.forth(ACK));
                datapath.pass(opener, "SYN again", &flow.forth(SYN));
                datapath.pass(flow.back(), "the flow lives", &flow.answer(ACK));
                datapath.apply([flow.allow(false)]);
                datapath.forget_flows();
            }
        }
    });
}

/// Errors about a tracked flow pass with it, those about nothing are judged as ICMP of their type.
#[test]
fn icmp_errors_follow_their_flow() {
    crate::lab::isolated("packets::flows::icmp_errors_follow_their_flow", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        let router = [["10.9.9.9", "fd09::9"], ["10.9.9.8", "fd09::8"]];
        for flow in all_flows() {
            let (open, ..) = flow.details();
            let family = usize::from(flow.db.is_ipv6());
            let kinds: &[u8] = if flow.db.is_ipv4() {
                &[3, 4, 11, 12]
            } else {
                &[1, 2, 3, 4]
            };
            let (client, server) = ends(flow.opener, flow.db, flow.peer);
            // From the server itself; towards the endpoint also from a router on the way.
            let mut senders = vec![server];
            if flow.back() == Ingress {
                senders.extend(router.map(|pair| pair[family].parse::<IpAddr>().unwrap()));
            }
            for kind in kinds {
                for sender in &senders {
                    let error = Frame::error(*sender, client, *kind, &flow.forth(open), 8);
                    let what = format!("{flow}: error {kind} from {sender}");
                    datapath.deny(flow.back(), &what, &error);
                    datapath.apply([flow.allow(true)]);
                    datapath.pass(flow.opener, &what, &flow.forth(open));
                    datapath.pass(flow.back(), &what, &error);
                    let cut = Frame::error(*sender, client, *kind, &flow.forth(open), 7);
                    datapath.deny(flow.back(), &format!("{what}, cut off"), &cut);
                    let elsewhere = Frame::error(*sender, client, *kind, &flow.answer(open), 8);
                    datapath.deny(flow.back(), &format!("{what}, not its packet"), &elsewhere);
                    let third = both(STRANGER)[family];
                    let astray = Frame::error(*sender, third, *kind, &flow.forth(open), 8);
                    datapath.deny(flow.back(), &format!("{what}, to another"), &astray);
                    datapath.apply([flow.allow(false)]);
                    datapath.deny(flow.back(), &format!("{what}, revoked"), &error);
                    datapath.forget_flows();
                }
            }
        }
    });
}
