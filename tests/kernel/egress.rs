//! Egress policy, errors and fragments on real veths, with the kernel's own stack on both ends.
use tombolo::{
    enforcer::{Change, events::Kind},
    policy::{Direction, EndpointMode, MapDelta, PolicyEntry, PolicyKey, Votes},
    types::{EndpointId, IdentityId},
};

use crate::{
    enforcer::{DB_ID, EMPLOYEE_ID, Running, STRANGER_ID, drain, ip, story},
    lab::{DB, EMPLOYEE, Pod, STRANGER, eventually, isolated, v6},
};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether the database may reach a port of this identity.
fn reach(identity: IdentityId, protocol: u8, port: u16, on: bool) -> Change {
    let key = PolicyKey {
        endpoint: EndpointId(1),
        identity,
        direction: Direction::Egress,
        protocol,
        port,
        port_bits: 16,
    };
    let value = on.then_some(PolicyEntry {
        votes: Votes::ALLOW,
        rule: 5,
    });
    Change::Map(MapDelta::Entry { key, value })
}

/// The database has default deny both ways; all know each other by IPv6 too.
fn closed() -> Vec<Change> {
    let mut mode = EndpointMode::default();
    mode.default_deny.ingress = true;
    mode.default_deny.egress = true;
    let mut changes = story();
    changes.extend([
        ip(&v6(DB), Some(DB_ID)),
        ip(&v6(EMPLOYEE), Some(EMPLOYEE_ID)),
        ip(&v6(STRANGER), Some(STRANGER_ID)),
        Change::Map(MapDelta::Endpoint {
            endpoint: EndpointId(1),
            mode,
        }),
    ]);
    changes
}

/// A port of a pod, in both families.
fn ports(address: &str, port: u16) -> [String; 2] {
    [
        format!("{address}:{port}"),
        format!("[{}]:{port}", v6(address)),
    ]
}

#[test]
fn the_database_reaches_only_whom_egress_policy_names() {
    isolated(
        "egress::the_database_reaches_only_whom_egress_policy_names",
        || {
            let mut db = Pod::start("db");
            let (mut employee, mut stranger) = (Pod::start("employee"), Pod::start("stranger"));
            employee.listen(80);
            stranger.listen(80);
            let enforcer = Running::start();
            enforcer.send(closed());
            for target in ports(EMPLOYEE, 80) {
                enforcer.send(vec![reach(EMPLOYEE_ID, TCP, 80, true)]);
                assert!(db.connect(&target) && db.echo(), "{target}");

                // First packet after the revocation from the answering side, and then the opener's.
                let mut events = enforcer.handle.events.subscribe();
                enforcer.send(vec![reach(EMPLOYEE_ID, TCP, 80, false)]);
                employee.push();
                assert!(!db.pull(), "the answers are cut");
                let cut = drain(&mut events);
                assert!(!cut.is_empty());
                assert!(
                    cut.iter()
                        .all(|e| (e.kind, e.direction) == (Kind::Drop, Direction::Ingress))
                );
                assert!(!db.echo(), "the database's side is cut");
                enforcer.send(vec![reach(EMPLOYEE_ID, TCP, 80, true)]);
                assert!(db.echo(), "allowed again, it goes on");
            }
            let mut events = enforcer.handle.events.subscribe();
            assert!(!db.connect(&ports(STRANGER, 80)[0]));
            eventually("an event", || !events.is_empty());
            let event = drain(&mut events).remove(0);
            assert_eq!(
                (event.reason, event.direction, event.endpoint),
                ("Policy denied", Direction::Egress, EndpointId(1))
            );
            assert_eq!(
                (event.source_identity, event.destination_identity),
                (DB_ID, STRANGER_ID)
            );

            // The address that was allowed gets another owner.
            assert!(db.connect(&ports(EMPLOYEE, 80)[0]) && db.echo());
            enforcer.send(vec![ip(EMPLOYEE, Some(STRANGER_ID))]);
            assert!(!db.echo(), "its identity is gone");
        },
    );
}

/// Nobody may send to the database, and yet it learns that a port is closed.
#[test]
fn an_error_about_an_allowed_flow_comes_back() {
    isolated("egress::an_error_about_an_allowed_flow_comes_back", || {
        let mut db = Pod::start("db");
        let enforcer = Running::start();
        enforcer.send(closed());
        for target in ports(EMPLOYEE, 9) {
            assert!(!db.ask(&format!("udp-refused {target}")), "not allowed");
            enforcer.send(vec![reach(EMPLOYEE_ID, UDP, 9, true)]);
            assert!(db.ask(&format!("udp-refused {target}")), "{target}");
            enforcer.send(vec![reach(EMPLOYEE_ID, UDP, 9, false)]);
        }
    });
}

/// Datagrams larger than the link, asked and answered, are cut by the stack and judged piece by
/// piece.
#[test]
fn large_datagrams_pass_in_fragments() {
    isolated("egress::large_datagrams_pass_in_fragments", || {
        let mut db = Pod::start("db");
        let mut employee = Pod::start("employee");
        assert!(employee.ask("udp-listen 53"));
        let enforcer = Running::start();
        enforcer.send(closed());
        for target in [
            format!("[::ffff:{EMPLOYEE}]:53"),
            ports(EMPLOYEE, 53)[1].clone(),
        ] {
            assert!(!db.ask(&format!("udp-large 9000 {target}")), "not allowed");
            enforcer.send(vec![reach(EMPLOYEE_ID, UDP, 53, true)]);
            for bytes in [9000, 60_000] {
                assert!(db.ask(&format!("udp-large {bytes} {target}")), "{target}");
            }
            enforcer.send(vec![reach(EMPLOYEE_ID, UDP, 53, false)]);
        }
        let counts = enforcer.handle.counts().unwrap();
        let fragments = counts.drops.iter().find(|c| c.reason.contains("fragment"));
        assert_eq!(fragments, None, "no piece without its first");
    });
}
