//! What policy says about the first packet of a flow: levels, votes, identities, modes.
use super::*;
use tombolo::{
    enforcer::events::{Action, Kind},
    test_support::frame::{ACK, ICMP, ICMPV6, SYN, TCP, UDP},
};

const ANY: IdentityId = IdentityId::UNKNOWN;
const ALLOW: Votes = Votes::ALLOW;
const DENY: Votes = Votes::DENY;

/// A SYN between database and employee, to a port of the one that it goes to.
fn syn(direction: Direction, (db, employee): (IpAddr, IpAddr), port: u16) -> Frame {
    let (source, destination) = ends(direction, db, employee);
    Frame::tcp((source, 40_000), (destination, port), SYN)
}

/// All entries of the tests here, given and taken.
fn entries(
    direction: Direction,
    list: &[(IdentityId, (u8, u16, u8), Votes)],
    on: bool,
) -> Vec<Change> {
    let of = |(n, (identity, level, votes)): (usize, &(IdentityId, _, Votes))| {
        let votes = if on { *votes } else { Votes::NONE };
        entry(
            direction,
            *identity,
            *level,
            votes,
            u32::try_from(n + 1).unwrap(),
        )
    };
    list.iter().enumerate().map(of).collect()
}

/// Each level alone and against a deny on another; both families, both directions.
#[test]
fn levels_are_united_and_a_deny_on_any_wins() {
    crate::lab::isolated(
        "packets::verdicts::levels_are_united_and_a_deny_on_any_wins",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([closed()]);
            let one = (TCP, 6379, 16);
            let block = (TCP, 6144, 6); // 6144-7167
            let all_ports = (TCP, 0, 0);
            let all = (0, 0, 0);
            let udp = (UDP, 6379, 16);
            type Case<'a> = (&'a [(IdentityId, (u8, u16, u8), Votes)], u16, bool);
            let cases: &[Case<'_>] = &[
                (&[], 6379, false),
                (&[(EMPLOYEE_ID, one, ALLOW)], 6379, true),
                (&[(EMPLOYEE_ID, one, ALLOW)], 6380, false),
                (&[(EMPLOYEE_ID, udp, ALLOW)], 6379, false),
                (&[(STRANGER_ID, one, ALLOW)], 6379, false),
                (&[(ANY, one, ALLOW)], 6379, true),
                (&[(EMPLOYEE_ID, block, ALLOW)], 6144, true),
                (&[(EMPLOYEE_ID, block, ALLOW)], 7167, true),
                (&[(EMPLOYEE_ID, block, ALLOW)], 7168, false),
                (&[(EMPLOYEE_ID, block, ALLOW)], 6143, false),
                (&[(ANY, block, ALLOW)], 6379, true),
                (&[(EMPLOYEE_ID, (TCP, 32768, 1), ALLOW)], 65535, true),
                (&[(EMPLOYEE_ID, (TCP, 32768, 1), ALLOW)], 32767, false),
                (&[(EMPLOYEE_ID, (TCP, 6378, 15), ALLOW)], 6379, true),
                (&[(EMPLOYEE_ID, all_ports, ALLOW)], 1, true),
                (&[(EMPLOYEE_ID, all, ALLOW)], 1, true),
                (&[(ANY, all, ALLOW)], 1, true),
                (&[(EMPLOYEE_ID, one, ALLOW), (ANY, all, DENY)], 6379, false),
                (
                    &[(EMPLOYEE_ID, one, ALLOW), (EMPLOYEE_ID, all, DENY)],
                    6379,
                    false,
                ),
                (
                    &[(EMPLOYEE_ID, one, ALLOW), (ANY, block, DENY)],
                    6379,
                    false,
                ),
                (&[(EMPLOYEE_ID, one, DENY), (ANY, all, ALLOW)], 6379, false),
                (&[(EMPLOYEE_ID, one, DENY), (ANY, all, ALLOW)], 6380, true),
                (&[(STRANGER_ID, all, DENY), (ANY, all, ALLOW)], 6379, true),
                (&[(ANY, udp, DENY), (ANY, all, ALLOW)], 6379, true),
            ];
            for direction in [Ingress, Egress] {
                for (list, port, passes) in cases {
                    datapath.apply(entries(direction, list, true));
                    for family in families() {
                        let frame = syn(direction, family, *port);
                        let what = format!("{direction:?} {family:?} {port} {list:?}");
                        match passes {
                            true => datapath.pass(direction, &what, &frame),
                            false => datapath.deny(direction, &what, &frame),
                        }
                    }
                    datapath.apply(entries(direction, list, false));
                    datapath.forget_flows();
                }
            }
        },
    );
}

#[test]
fn without_default_deny_only_denies_drop() {
    crate::lab::isolated(
        "packets::verdicts::without_default_deny_only_denies_drop",
        || {
            let mut datapath = Datapath::start(&Options::default());
            for direction in [Ingress, Egress] {
                datapath.apply([entry(direction, EMPLOYEE_ID, (TCP, 6379, 16), DENY, 7)]);
                for family in families() {
                    datapath.deny(direction, "denied port", &syn(direction, family, 6379));
                    datapath.pass(direction, "another port", &syn(direction, family, 6380));
                }
            }
            // Default deny in one direction says nothing about the other.
            datapath.apply([mode(|mode| mode.default_deny.egress = true)]);
            for family in families() {
                datapath.pass(Ingress, "open", &syn(Ingress, family, 1));
                datapath.deny(Egress, "closed", &syn(Egress, family, 1));
            }
        },
    );
}

#[test]
fn icmp_is_judged_by_its_type() {
    crate::lab::isolated("packets::verdicts::icmp_is_judged_by_its_type", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([closed()]);
        for direction in [Ingress, Egress] {
            datapath.apply([
                entry(direction, EMPLOYEE_ID, (ICMP, 8, 16), ALLOW, 1),
                entry(direction, EMPLOYEE_ID, (ICMP, 13, 16), ALLOW, 1),
                entry(direction, EMPLOYEE_ID, (ICMPV6, 128, 16), ALLOW, 1),
            ]);
            for (db, employee) in families() {
                let (source, destination) = ends(direction, db, employee);
                let back = if direction == Ingress {
                    Egress
                } else {
                    Ingress
                };
                let reply = Frame::echo(destination, source, 7, true);
                datapath.deny(back, "reply to nothing", &reply);
                datapath.pass(
                    direction,
                    "echo",
                    &Frame::echo(source, destination, 7, false),
                );
                datapath.pass(back, "reply", &reply);
                let other = Frame::echo(destination, source, 8, true);
                datapath.deny(back, "reply with another id", &other);
                // A type that opens no flow is judged each time.
                let timestamp = Frame::icmp(source, destination, 13, &[0; 4]);
                let redirect = Frame::icmp(source, destination, 5, &[0; 4]);
                if db.is_ipv4() {
                    datapath.pass(direction, "timestamp", &timestamp);
                }
                datapath.deny(direction, "another type", &redirect);
            }
        }
    });
}

/// A short prefix of IPv6 has the mapped form of IPv4 addresses in it, and is none of theirs.
#[test]
fn prefixes_match_addresses_of_their_own_family_only() {
    crate::lab::isolated(
        "packets::verdicts::prefixes_match_addresses_of_their_own_family_only",
        || {
            let mut datapath = Datapath::start(&Options::default());
            let named = |prefix: &str, n: u32| {
                Change::Map(MapDelta::Cidr {
                    prefix: prefix.parse().unwrap(),
                    identity: Some(IdentityId(1 << 24 | n)),
                })
            };
            let [db, db6] = both(DB);
            let outside: IpAddr = "198.51.100.1".parse().unwrap();
            let outside6: IpAddr = "1::1".parse().unwrap();
            for (prefix, of_v6) in [
                (named("::/1", 1), IdentityId(1 << 24 | 1)),
                // Not in it: what the rule names goes on.
                (known("::/16", Some(STRANGER_ID)), IdentityId(1 << 24 | 1)),
            ] {
                datapath.apply([closed(), prefix]);
                for (own, other, identity) in [(db, outside, WORLD_V4), (db6, outside6, of_v6)] {
                    let frame = syn(Ingress, (own, other), 80);
                    assert!(!datapath.passes(Ingress, &frame.bytes()));
                    let event = datapath.reported().remove(0);
                    let ids = ends(Ingress, DB_ID, identity);
                    let told = (event.source_identity, event.destination_identity);
                    assert_eq!(told, ids, "{other}");
                }
            }
        },
    );
}

/// Exact before prefix of the mesh before prefix of a rule before the world of the family.
#[test]
fn identities_come_from_the_nearest_map() {
    crate::lab::isolated(
        "packets::verdicts::identities_come_from_the_nearest_map",
        || {
            let mut datapath = Datapath::start(&Options::default());
            let named = |prefix: &str, n: u32| {
                Change::Map(MapDelta::Cidr {
                    prefix: prefix.parse().unwrap(),
                    identity: Some(IdentityId(1 << 24 | n)),
                })
            };
            datapath.apply([
                closed(),
                known("192.0.2.0/26", Some(STRANGER_ID)),
                known("2001:db8::/64", Some(STRANGER_ID)),
                named("192.0.2.0/24", 1),
                // Longer than the mesh's, and still behind it.
                named("192.0.2.0/28", 2),
                named("10.1.0.0/24", 3),
                named("2001:db8::/32", 4),
            ]);
            let [_, db6] = both(DB);
            for (address, identity) in [
                (EMPLOYEE, EMPLOYEE_ID),
                ("192.0.2.1", STRANGER_ID),
                ("192.0.2.77", IdentityId(1 << 24 | 1)),
                ("10.1.0.77", IdentityId(1 << 24 | 3)),
                ("198.51.100.1", WORLD_V4),
                ("2001:db8::1", STRANGER_ID),
                ("2001:db8:1::1", IdentityId(1 << 24 | 4)),
                ("2001:db9::1", WORLD_V6),
            ] {
                let other: IpAddr = address.parse().unwrap();
                let db = if other.is_ipv4() {
                    DB.parse().unwrap()
                } else {
                    db6
                };
                for direction in [Ingress, Egress] {
                    let frame = syn(direction, (db, other), 80);
                    assert!(!datapath.passes(direction, &frame.bytes()));
                    let event = datapath.reported().remove(0);
                    let ids = ends(direction, DB_ID, identity);
                    assert_eq!(
                        (event.source_identity, event.destination_identity),
                        ids,
                        "{address}"
                    );
                }
            }
        },
    );
}

#[test]
fn the_host_passes_ingress_where_it_is_always_allowed() {
    crate::lab::isolated(
        "packets::verdicts::the_host_passes_ingress_where_it_is_always_allowed",
        || {
            for allow_localhost in [false, true] {
                let mut datapath = Datapath::start(&Options {
                    allow_localhost,
                    ..Options::default()
                });
                datapath.apply([closed(), known("10.1.0.1", Some(IdentityId(1)))]);
                let host: IpAddr = "10.1.0.1".parse().unwrap();
                let db: IpAddr = DB.parse().unwrap();
                let frame = syn(Ingress, (db, host), 80);
                match allow_localhost {
                    true => datapath.pass(Ingress, "host", &frame),
                    false => datapath.deny(Ingress, "host", &frame),
                }
                datapath.deny(Egress, "to the host", &syn(Egress, (db, host), 81));
                datapath.forget_flows();
            }
        },
    );
}

/// What would be dropped passes and is reported: by endpoint, on all endpoints, and of policies
/// that are only audited.
#[test]
fn audit_reports_and_passes() {
    crate::lab::isolated("packets::verdicts::audit_reports_and_passes", || {
        type Case = (
            &'static str,
            bool,
            fn(&mut EndpointMode),
            Option<Votes>,
            Option<u32>,
        );
        let cases: [Case; 7] = [
            (
                "endpoint",
                false,
                |m| {
                    m.audit = true;
                    m.default_deny.ingress = true;
                    m.default_deny.egress = true;
                },
                None,
                Some(0),
            ),
            (
                "global",
                true,
                |m| {
                    m.default_deny.ingress = true;
                    m.default_deny.egress = true;
                },
                None,
                Some(0),
            ),
            ("global, denied", true, |_| (), Some(DENY), Some(5)),
            (
                "default deny on trial",
                false,
                |m| {
                    m.audit_default_deny.ingress = true;
                    m.audit_default_deny.egress = true;
                },
                None,
                Some(0),
            ),
            (
                "allowed on trial",
                false,
                |m| {
                    m.audit_default_deny.ingress = true;
                    m.audit_default_deny.egress = true;
                },
                Some(Votes::AUDIT_ALLOW),
                None,
            ),
            (
                "denied on trial",
                false,
                |_| (),
                Some(Votes::AUDIT_DENY),
                Some(5),
            ),
            (
                "allowed",
                false,
                |m| {
                    m.audit_default_deny.ingress = true;
                    m.audit_default_deny.egress = true;
                },
                Some(ALLOW),
                None,
            ),
        ];
        for (what, audit, change, votes, rule) in cases {
            let mut datapath = Datapath::start(&Options {
                audit,
                ..Options::default()
            });
            datapath.apply([mode(change)]);
            for direction in [Ingress, Egress] {
                let level = (TCP, 6379, 16);
                datapath.apply([entry(
                    direction,
                    EMPLOYEE_ID,
                    level,
                    votes.unwrap_or_default(),
                    5,
                )]);
                for family in families() {
                    let frame = syn(direction, family, 6379).bytes();
                    assert!(datapath.passes(direction, &frame), "{what}");
                    let reported = datapath.reported();
                    let seen: Vec<_> = reported
                        .iter()
                        .map(|e| (e.kind, e.action, e.reason, e.rule))
                        .collect();
                    let expected =
                        rule.map(|rule| (Kind::PolicyVerdict, Action::Audit, DENIED, rule));
                    assert_eq!(
                        seen,
                        expected.into_iter().collect::<Vec<_>>(),
                        "{what} {direction:?}"
                    );
                }
                datapath.apply([entry(direction, EMPLOYEE_ID, level, Votes::NONE, 5)]);
            }
            datapath.forget_flows();
        }
    });
}

#[test]
fn verdicts_and_traces_are_reported_to_who_asks() {
    crate::lab::isolated(
        "packets::verdicts::verdicts_and_traces_are_reported_to_who_asks",
        || {
            let mut datapath = Datapath::start(&Options::default());
            datapath.apply([
                closed(),
                entry(Ingress, EMPLOYEE_ID, (TCP, 6379, 16), ALLOW, 9),
            ]);
            let (db, employee) = families()[0];
            let mut kinds = |verdicts, traces, port| {
                datapath.apply([Change::Reports { verdicts, traces }]);
                let frame = |flags| Frame::tcp((employee, port), (db, 6379), flags);
                assert!(datapath.passes(Ingress, &frame(SYN).bytes()));
                let reported = datapath.reported();
                assert!(datapath.passes(Ingress, &frame(ACK).bytes()));
                assert_eq!(datapath.reported(), [], "once for a flow");
                for event in &reported {
                    assert_eq!(
                        (event.action, event.rule, event.reason),
                        (Action::Allow, 9, "")
                    );
                    assert_eq!((event.source_port, event.destination_port), (port, 6379));
                }
                reported.iter().map(|event| event.kind).collect::<Vec<_>>()
            };
            assert_eq!(kinds(false, false, 1), []);
            assert_eq!(kinds(true, false, 2), [Kind::PolicyVerdict]);
            assert_eq!(kinds(false, true, 3), [Kind::Trace]);
            assert_eq!(kinds(true, true, 4), [Kind::PolicyVerdict, Kind::Trace]);
        },
    );
}

/// A rule is named, its verdicts counted; so are packets, by endpoint.
#[test]
fn rules_and_packets_are_counted() {
    crate::lab::isolated("packets::verdicts::rules_and_packets_are_counted", || {
        let mut datapath = Datapath::start(&Options::default());
        datapath.apply([
            closed(),
            entry(Ingress, EMPLOYEE_ID, (TCP, 6379, 16), ALLOW, 3),
            entry(Ingress, STRANGER_ID, (0, 0, 0), DENY, 4),
        ]);
        let (db, employee) = families()[0];
        let stranger = both(STRANGER)[0];
        datapath.pass(Ingress, "allowed", &syn(Ingress, (db, employee), 6379));
        datapath.pass(
            Ingress,
            "established",
            &Frame::tcp((employee, 40_000), (db, 6379), ACK),
        );
        for port in 0..2 {
            let frame = Frame::udp((stranger, 1000 + port), (db, 53)).bytes();
            assert!(!datapath.passes(Ingress, &frame));
            assert_eq!(datapath.reported()[0].rule, 4);
        }
        let mut hits = datapath.counters.rule_hits().unwrap();
        hits.sort_unstable();
        assert_eq!(hits, [(3, 1), (4, 2)]);
        let rows = datapath.counters.rows().unwrap();
        let (_, row) = rows.iter().find(|(id, _)| *id == Some(ENDPOINT)).unwrap();
        assert_eq!(
            (row.0[0].packets, row.0[2].packets),
            (2, 2),
            "forwarded, denied"
        );
        // What an endpoint counted is kept when it goes.
        datapath.apply([Change::Endpoint(EndpointEvent::Delete(ENDPOINT))]);
        let rows = datapath.counters.rows().unwrap();
        assert_eq!(rows.iter().map(|(_, row)| row.0[2].packets).sum::<u64>(), 2);
        assert_eq!(rows.len(), 2);
    });
}
