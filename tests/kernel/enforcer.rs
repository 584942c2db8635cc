//! The enforcer on real veths: verdicts, events, counters, revocation, takeover.
use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tombolo::{
    enforcer::{Change, Event, Handle, Options, open},
    mesh::IpTarget,
    policy::{Direction, EndpointMode, MapDelta, PolicyEntry, PolicyKey, Votes},
    types::{ClusterId, EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint, MaxClusters},
};

use crate::lab::{
    DB, EMPLOYEE, Helper, Pod, STRANGER, attached, eventually, isolated, options, run, serve, v6,
};

pub(crate) const TARGET: &str = "10.1.0.2:6379";
pub(crate) const DB_ID: IdentityId = IdentityId(101 << 16 | 1);
pub(crate) const EMPLOYEE_ID: IdentityId = IdentityId(102 << 16 | 2);
pub(crate) const STRANGER_ID: IdentityId = IdentityId(102 << 16 | 3);

fn cluster(id: u32) -> ClusterId {
    ClusterId::new(id, MaxClusters::C255).unwrap()
}

/// An enforcer on its own threads; dropped without a word, as by a crash.
pub(crate) struct Running {
    runtime: tokio::runtime::Runtime,
    pub(crate) handle: Handle,
    cancel: CancellationToken,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::start_with(&options())
    }

    pub(crate) fn start_with(options: &Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (enforcer, handle) = open(options).unwrap();
        let cancel = CancellationToken::new();
        runtime.spawn(enforcer.run(cancel.clone()));
        Self {
            runtime,
            handle,
            cancel,
        }
    }

    /// Sends, and waits until the status says what `done` wants.
    pub(crate) fn send(&self, changes: Vec<Change>) {
        let before = self.handle.status.borrow().generation;
        let count = changes.len();
        for change in changes {
            self.runtime
                .block_on(self.handle.changes.send(change))
                .unwrap();
        }
        // Batches are taken whole: an empty inbox after a new generation means all is written.
        eventually("changes applied", || {
            let idle = self.handle.changes.capacity() == self.handle.changes.max_capacity();
            count == 0 || (idle && self.handle.status.borrow().generation > before)
        });
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        let status = self.handle.status.borrow();
        assert_eq!(status.last_error, None);
        assert!(status.problems.is_empty(), "{:?}", status.problems);
    }

    fn denied(&self) -> u64 {
        let drops = self.handle.counts().unwrap().drops;
        drops
            .iter()
            .filter(|c| c.reason == "Policy denied")
            .map(|c| c.packets)
            .sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub(crate) fn endpoint(id: u32, name: &str, address: &str, identity: IdentityId) -> Change {
    Change::Endpoint(EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id: EndpointId(id),
        identity,
        labels: Arc::new(Labels::default()),
        namespace: "default".into(),
        name: name.into(),
        addresses: vec![address.parse().unwrap(), v6(address).parse().unwrap()],
        interface: Some(format!("lxc{name}")),
        named_ports: Vec::new(),
        audit: false,
    })))
}

pub(crate) fn ip(address: &str, identity: Option<IdentityId>) -> Change {
    let of = |identity: IdentityId| IpTarget {
        identity,
        cluster: cluster(identity.0 >> 16),
    };
    Change::Ip {
        prefix: address.parse().unwrap(),
        target: identity.map(of),
    }
}

pub(crate) fn allow(identity: IdentityId, on: bool) -> Change {
    let direction = Direction::Ingress;
    let key = PolicyKey {
        endpoint: EndpointId(1),
        identity,
        direction,
        protocol: 6,
        port: 6379,
        port_bits: 16,
    };
    Change::Map(MapDelta::Entry {
        key,
        value: on.then_some(PolicyEntry {
            votes: Votes::ALLOW,
            rule: 1,
        }),
    })
}

fn allow_udp(identity: IdentityId, on: bool) -> Change {
    let direction = Direction::Ingress;
    let key = PolicyKey {
        endpoint: EndpointId(1),
        identity,
        direction,
        protocol: 17,
        port: 6379,
        port_bits: 16,
    };
    Change::Map(MapDelta::Entry {
        key,
        value: on.then_some(PolicyEntry {
            votes: Votes::ALLOW,
            rule: 2,
        }),
    })
}

pub(crate) fn default_deny(on: bool) -> Change {
    let mut mode = EndpointMode::default();
    mode.default_deny.ingress = on;
    Change::Map(MapDelta::Endpoint {
        endpoint: EndpointId(1),
        mode,
    })
}

pub(crate) fn story() -> Vec<Change> {
    vec![
        ip(DB, Some(DB_ID)),
        ip(EMPLOYEE, Some(EMPLOYEE_ID)),
        ip(STRANGER, Some(STRANGER_ID)),
        endpoint(1, "db", DB, DB_ID),
        endpoint(2, "employee", EMPLOYEE, EMPLOYEE_ID),
        endpoint(3, "stranger", STRANGER, STRANGER_ID),
        Change::Endpoint(EndpointEvent::Synced),
        Change::Synced {
            cluster: cluster(101),
        },
        Change::Synced {
            cluster: cluster(102),
        },
    ]
}

fn pods() -> (Pod, Pod, Pod) {
    let mut db = Pod::start("db");
    db.listen(6379);
    (db, Pod::start("employee"), Pod::start("stranger"))
}

pub(crate) fn drain(events: &mut broadcast::Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

#[test]
fn policy_admits_the_employee_and_reports_the_stranger() {
    isolated(
        "enforcer::policy_admits_the_employee_and_reports_the_stranger",
        || {
            let (_db, mut employee, mut stranger) = pods();
            let enforcer = Running::start();
            enforcer.send(story());
            assert!(employee.connect(TARGET) && employee.echo(), "no policy yet");
            assert!(stranger.connect(TARGET) && stranger.echo(), "no policy yet");

            enforcer.send(vec![allow(EMPLOYEE_ID, true), default_deny(true)]);
            let mut events = enforcer.handle.events.subscribe();
            let before = enforcer.denied();
            assert!(employee.connect(TARGET) && employee.echo());
            assert_eq!((enforcer.denied(), drain(&mut events).len()), (before, 0));

            let flow = std::thread::scope(|scope| {
                let refused = scope.spawn(|| stranger.connect(TARGET));
                assert!(employee.connect(TARGET), "allowed in the same second");
                assert!(!refused.join().unwrap());
                eventually("an event", || !events.is_empty());
                drain(&mut events)
            });
            // The SYN and its retransmissions, nothing else, and one count for each.
            assert_eq!(enforcer.denied() - before, flow.len() as u64);
            for event in &flow {
                assert_eq!(event.reason, "Policy denied");
                assert_eq!(
                    (event.source.to_string(), event.destination.to_string()),
                    (STRANGER.into(), DB.into())
                );
                assert_eq!(
                    (event.destination_port, event.protocol, event.tcp_flags),
                    (6379, 6, 2)
                );
                assert_eq!(event.source_port, flow[0].source_port);
                assert_eq!(
                    (event.source_identity, event.destination_identity),
                    (STRANGER_ID, DB_ID)
                );
                assert_eq!(
                    (event.endpoint, event.direction),
                    (EndpointId(1), Direction::Ingress)
                );
            }
        },
    );
}

#[test]
fn revocation_cuts_established_flows_in_both_directions() {
    isolated(
        "enforcer::revocation_cuts_established_flows_in_both_directions",
        || {
            let (mut db, mut employee, mut stranger) = pods();
            let enforcer = Running::start();
            enforcer.send(story());
            enforcer.send(vec![
                allow(EMPLOYEE_ID, true),
                allow(STRANGER_ID, true),
                default_deny(true),
            ]);
            assert!(employee.connect(TARGET) && employee.echo());
            let epoch = enforcer.handle.status.borrow().epoch;
            enforcer.send(vec![allow(STRANGER_ID, true)]);
            assert_eq!(
                enforcer.handle.status.borrow().epoch,
                epoch,
                "nothing was revoked"
            );

            // First packet after the revocation comes from the server.
            let mut events = enforcer.handle.events.subscribe();
            enforcer.send(vec![allow(EMPLOYEE_ID, false)]);
            db.push();
            assert!(!employee.pull(), "the server's side is cut");
            let cut = drain(&mut events);
            assert!(!cut.is_empty());
            assert!(cut.iter().all(|e| e.direction == Direction::Egress
                && (e.source_identity, e.destination_identity) == (DB_ID, EMPLOYEE_ID)
                && e.reason == "Policy denied"));
            assert!(!employee.echo(), "the client's side is cut, and stays so");

            enforcer.send(vec![allow(EMPLOYEE_ID, true)]);
            assert!(
                employee.echo(),
                "allowed again, the same connection goes on"
            );

            // First packet comes from the client, which lost its identity.
            assert!(stranger.connect(TARGET) && stranger.echo());
            enforcer.send(vec![ip(STRANGER, None)]);
            assert!(!stranger.echo());
            assert!(
                employee.connect(TARGET) && employee.echo(),
                "others are untouched"
            );
        },
    );
}

#[test]
fn what_the_endpoint_opens_itself_is_answered() {
    isolated(
        "enforcer::what_the_endpoint_opens_itself_is_answered",
        || {
            let (mut db, mut employee, _stranger) = pods();
            employee.listen(80);
            let enforcer = Running::start();
            enforcer.send(story());
            enforcer.send(vec![default_deny(true)]);
            assert!(db.connect("10.1.0.3:80") && db.echo());
            assert!(!employee.connect(TARGET));
        },
    );
}

#[test]
fn ipv6_and_datagrams_are_judged_the_same() {
    isolated("enforcer::ipv6_and_datagrams_are_judged_the_same", || {
        let (mut db, mut employee, mut stranger) = pods();
        assert!(db.ask("udp-listen 6379"));
        let enforcer = Running::start();
        enforcer.send(story());
        enforcer.send(vec![
            ip("fd00::3", Some(EMPLOYEE_ID)),
            ip("fd00::4/126", Some(STRANGER_ID)),
            allow(EMPLOYEE_ID, true),
            allow_udp(EMPLOYEE_ID, true),
            default_deny(true),
        ]);
        let target = format!("[{}]:6379", v6(DB));
        assert!(employee.connect(&target) && employee.echo());
        assert!(!stranger.connect(&target), "by its CIDR");
        let mut events = enforcer.handle.events.subscribe();
        assert!(!stranger.ask(&format!("udp-echo {target}")));
        eventually("an event", || !events.is_empty());
        let event = drain(&mut events).remove(0);
        assert_eq!((event.source_identity, event.protocol), (STRANGER_ID, 17));
        assert_eq!(event.source.to_string(), "fd00::4");

        assert!(employee.ask(&format!("udp-echo {target}")));
        assert!(db.ask("udp-push") && employee.ask("udp-pull"));
        enforcer.send(vec![allow_udp(EMPLOYEE_ID, false)]);
        assert!(
            db.ask("udp-push") && !employee.ask("udp-pull"),
            "no flow of the server's own"
        );
        assert!(!employee.ask(&format!("udp-echo {target}")));
        assert!(employee.echo(), "TCP is still allowed");
    });
}

#[test]
fn spoofed_sources_are_dropped() {
    isolated("enforcer::spoofed_sources_are_dropped", || {
        let (_db, _employee, mut stranger) = pods();
        stranger.shell(&format!("ip addr add {EMPLOYEE}/32 dev lo"));
        let enforcer = Running::start();
        enforcer.send(story());
        let mut events = enforcer.handle.events.subscribe();
        assert!(
            stranger.connect(TARGET),
            "its own address is fine, and its router is known now"
        );
        let mut spoof = |stranger: &mut Pod, protocol| {
            stranger.datagram(EMPLOYEE, TARGET);
            eventually("an event", || !events.is_empty());
            let event = drain(&mut events).remove(0);
            assert_eq!(
                (event.reason, event.direction),
                ("Invalid source ip", Direction::Egress)
            );
            assert_eq!(
                (event.source.to_string(), event.endpoint),
                (EMPLOYEE.into(), EndpointId(3))
            );
            assert_eq!(
                (event.source_identity, event.protocol),
                (STRANGER_ID, protocol)
            );
        };
        spoof(&mut stranger, 17);
        // Without a neighbour entry the lie is already in the ARP request.
        stranger.shell("ip neigh flush all");
        spoof(&mut stranger, 0);
    });
}

#[test]
fn a_killed_enforcer_goes_on_enforcing_and_is_taken_over() {
    isolated(
        "enforcer::a_killed_enforcer_goes_on_enforcing_and_is_taken_over",
        || {
            let (_db, mut employee, mut stranger) = pods();
            let mut first = Helper::start("enforcer", None);
            assert_eq!(first.ask("enforce"), "ok");
            assert!(employee.connect(TARGET) && employee.echo());
            assert!(!stranger.connect(TARGET));
            drop(first);
            assert!(employee.echo(), "open connection");
            assert!(
                employee.connect(TARGET) && !stranger.connect(TARGET),
                "nobody at home"
            );

            let second = Running::start();
            let status = second.handle.status.borrow().clone();
            assert_eq!((status.enforced, status.ipcache, status.policy), (3, 3, 1));
            assert_eq!(status.restored, 3 + 1 + 3);
            assert!(employee.echo() && employee.connect(TARGET) && !stranger.connect(TARGET));
            // The endpoint comes back before its policies are computed.
            second.send(vec![endpoint(1, "db", DB, DB_ID)]);
            assert!(employee.connect(TARGET) && !stranger.connect(TARGET));
            second.send([vec![allow(EMPLOYEE_ID, true), default_deny(true)], story()].concat());
            assert_eq!(second.handle.status.borrow().restored, 0);
            assert!(employee.echo() && employee.connect(TARGET) && !stranger.connect(TARGET));

            // A pod that is gone takes its pins with it.
            stranger.end();
            run("ip link del lxcemployee");
            second.send(vec![
                Change::Endpoint(EndpointEvent::Delete(EndpointId(2))),
                Change::Endpoint(EndpointEvent::Delete(EndpointId(3))),
                Change::InterfacesChanged,
            ]);
            assert_eq!(attached().len(), 2, "the database's");
        },
    );
}

#[test]
fn pins_of_another_layout_are_refused() {
    isolated("enforcer::pins_of_another_layout_are_refused", || {
        run("mkdir -p /sys/fs/bpf/tombolo/v2");
        let options = options();
        let pin = "/sys/fs/bpf/tombolo/v2/policy";
        // LRU maps are always allocated whole; the others here are not (flag 1).
        let make = |kind: &str, key: u32, value: u32, entries: u32| {
            let flags = u8::from(kind == "hash");
            run(&format!(
                "bpftool map create {pin} type {kind} key {key} value {value} \
                 entries {entries} name policy flags {flags}"
            ));
        };
        for (kind, key, value, entries, reason) in [
            ("lru_hash", 12, 8, 1 << 20, "type is 9, expected 1"),
            ("hash", 8, 8, 1 << 20, "key size is 8, expected 12"),
            ("hash", 12, 4, 1 << 20, "value size is 4, expected 8"),
        ] {
            make(kind, key, value, entries);
            let error = open(&options).unwrap_err().to_string();
            let expected = format!("reuse map policy: {reason}; ");
            assert!(error.starts_with(&expected), "{error}");
            run(&format!("rm {pin}"));
        }
        make("hash", 12, 8, 1 << 20);
        open(&options).unwrap();
        // All maps are pinned by the programs now: what is expected is what they have.
        open(&options).unwrap();
    });
}

/// The first enforcer of the takeover test, in a process that can be killed.
pub(crate) fn helper() {
    let enforcer = Running::start();
    serve(|_| {
        enforcer.send(story());
        enforcer.send(vec![allow(EMPLOYEE_ID, true), default_deny(true)]);
        "ok".into()
    });
}
