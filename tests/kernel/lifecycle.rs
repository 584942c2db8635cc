//! What outlives a process: links in both modes, maps of another size, maps of the version before.
//! Under traffic each time: what is allowed loses no packet, what is forbidden never gets through.
use std::{
    collections::HashMap,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use aya::{
    EbpfLoader,
    programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};
use tombolo::{
    config::{AttachMode, MapSizes},
    enforcer::{Options, kernel::migrate::faults, open},
    types::IdentityId,
};

use crate::{
    enforcer::{DB_ID, EMPLOYEE_ID, Running, STRANGER_ID, TARGET, allow, default_deny, story},
    lab::{DB, EMPLOYEE, Pod, STRANGER, attached, isolated, options, run},
};

/// Nothing allows it, and its first datagram would be noticed.
const FORBIDDEN: &str = "10.1.0.2:6380";
/// The employee listens here too, so that the database can open a flow of its own.
const EMPLOYEE_SERVER: &str = "10.1.0.3:80";

/// The three pods, with a flow in each direction and traffic that must never arrive.
struct Traffic {
    db: Pod,
    employee: Pod,
    stranger: Pod,
}

impl Traffic {
    fn new() -> Self {
        let mut traffic = Self {
            db: Pod::start("db"),
            employee: Pod::start("employee"),
            stranger: Pod::start("stranger"),
        };
        traffic.db.listen(6379);
        traffic.employee.listen(80);
        traffic
    }

    /// Opens the flows under the rules that are in force now.
    fn open(&mut self) {
        assert!(self.db.ask("udp-listen 6380"));
        assert!(self.employee.connect(TARGET) && self.employee.echo());
        assert!(self.db.connect(EMPLOYEE_SERVER) && self.db.echo());
        assert!(!self.stranger.connect(TARGET));
    }

    /// Lets both flows and the stranger send without pause while `change` happens.
    fn during<T>(&mut self, change: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        let Self {
            db,
            employee,
            stranger,
        } = self;
        let running = || !stop.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while running() {
                    assert!(employee.echo(), "the allowed flow");
                }
            });
            scope.spawn(|| {
                while running() {
                    assert!(db.echo(), "the flow that the database opened");
                }
            });
            scope.spawn(|| {
                while running() {
                    stranger.datagram(STRANGER, FORBIDDEN);
                }
            });
            let result = change();
            // Traffic after the change counts as well.
            std::thread::park_timeout(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    /// The flows go on and nothing forbidden arrived.
    fn check(&mut self) {
        assert!(self.employee.echo() && self.db.echo());
        assert!(self.employee.connect(TARGET), "a new flow");
        assert!(!self.db.ask("udp-heard"), "a forbidden datagram arrived");
    }

    /// The same, and no packet of the flows was lost.
    fn check_lossless(&mut self) {
        self.check();
        for pod in [&self.db, &self.employee] {
            // What was lost is seen by a probe's answer or by a timeout; a probe that finds nothing
            // lost only means that the machine was busy.
            pod.shell(
                "awk '/^TcpExt:/ && !n { n = split($0, names); next } \
                 /^TcpExt:/ { for (i = 2; i <= n; i++) \
                 if (names[i] ~ /^(TCPTimeouts|TCPLossProbeRecovery)$/) lost += $i } \
                 END { exit lost != 0 }' /proc/net/netstat",
            );
        }
    }
}

/// The rules before the word that all is told: what is not confirmed by then is swept.
pub(crate) fn enforce(running: &Running) {
    let rules = vec![allow(EMPLOYEE_ID, true), default_deny(true)];
    running.send([rules, story()].concat());
}

fn with_mode(attach_mode: AttachMode) -> Options {
    Options {
        attach_mode,
        ..options()
    }
}

#[test]
fn another_attach_mode_moves_without_a_gap() {
    isolated("lifecycle::another_attach_mode_moves_without_a_gap", || {
        let mut traffic = Traffic::new();
        let mut running = Running::start_with(&with_mode(AttachMode::Tcx));
        enforce(&running);
        traffic.open();
        for mode in [AttachMode::Clsact, AttachMode::Clsact, AttachMode::Tcx] {
            drop(running);
            running = traffic.during(|| {
                let running = Running::start_with(&with_mode(mode));
                assert_eq!(running.handle.status.borrow().enforced, 3);
                enforce(&running);
                running
            });
            // Making or removing a clsact discipline stops the interface's queue for a moment, and
            // the kernel drops what comes then.
            traffic.check();
            assert_eq!(
                attached().len(),
                6,
                "two programs on each of three interfaces"
            );
            let filters = "{ tc filter show dev lxcdb ingress; tc filter show dev lxcdb egress; }";
            match mode {
                AttachMode::Clsact => {
                    run(&format!("test \"$({filters} | grep -c _container)\" = 2"));
                }
                _ => {
                    run("! tc qdisc show dev lxcdb | grep clsact");
                }
            }
        }
    });
}

#[test]
fn a_foreign_filter_is_neither_replaced_nor_removed() {
    isolated(
        "lifecycle::a_foreign_filter_is_neither_replaced_nor_removed",
        || {
            let foreign = "bpf bytecode '1,6 0 0 4294967295' flowid 1:1";
            run("tc qdisc add dev lxcdb clsact");
            run(&format!("tc filter add dev lxcdb ingress prio 7 {foreign}"));
            drop({
                let running = Running::start_with(&with_mode(AttachMode::Clsact));
                enforce(&running);
                running
            });
            drop({
                let running = Running::start_with(&with_mode(AttachMode::Tcx));
                enforce(&running);
                running
            });
            run("tc filter show dev lxcdb ingress | grep -q 'pref 7 bpf'");
            run("! tc filter show dev lxcdb ingress | grep -q _container");
        },
    );
}

#[test]
fn maps_change_their_size_without_a_gap() {
    isolated("lifecycle::maps_change_their_size_without_a_gap", || {
        let mut traffic = Traffic::new();
        let running = Running::start();
        enforce(&running);
        traffic.open();
        drop(running);
        let sizes = MapSizes {
            conntrack: 2048,
            policy: 1024,
            ipcache: 4096,
            fragments: 1024,
        };
        let resized = Options { sizes, ..options() };
        let running = traffic.during(|| {
            let running = Running::start_with(&resized);
            let status = running.handle.status.borrow().clone();
            assert_eq!((status.enforced, status.ipcache, status.policy), (3, 3, 1));
            running
        });
        traffic.check_lossless();
        let usage = running.handle.map_usage().unwrap();
        let capacity: HashMap<_, _> = usage
            .iter()
            .map(|map| (map.name.as_str(), map.capacity))
            .collect();
        for (map, expected) in [
            ("conntrack_v4", 2048),
            ("policy", 1024),
            ("ipcache_exact", 4096),
            ("fragments", 1024),
        ] {
            assert_eq!(capacity[map], expected, "{map}");
        }
        let policy = usage.iter().find(|map| map.name == "policy").unwrap();
        assert_eq!(policy.entries, 1);

        // What is full stays, and the refusal says what to do.
        drop(running);
        let running = Running::start();
        let many = (0..1100).map(|n| allow(IdentityId(102 << 16 | (100 + n)), true));
        running.send(many.collect());
        drop(running);
        let error = traffic.during(|| open(&resized).unwrap_err());
        let expected = "shrink map policy: it holds 1101 entries, more than \
                        --bpf-policy-map-max 1024; raise it";
        assert_eq!(error.to_string(), expected);
        traffic.check_lossless();
    });
}

#[test]
fn the_former_version_is_moved_and_any_step_may_be_the_last() {
    let test = "lifecycle::the_former_version_is_moved_and_any_step_may_be_the_last";
    isolated(test, || {
        let mut traffic = Traffic::new();
        former_version();
        traffic.open();
        let (mut steps, mut ends, mut ready) = (0, 0, false);
        traffic.during(|| {
            loop {
                assert!(ends < 100, "the migration comes to its end");
                faults::end_after(steps);
                let opened = open(&options());
                if faults::never_again() {
                    drop(opened.unwrap());
                    break;
                }
                assert!(opened.is_err());
                (steps, ends) = (steps + 1, ends + 1);
                // From here on a start goes on where the former one ended: count anew.
                if !ready && std::fs::exists("/sys/fs/bpf/tombolo/v2/ready").unwrap() {
                    (steps, ready) = (0, true);
                }
            }
        });
        assert!(ready && ends >= 15, "{ends} ends");
        traffic.check_lossless();
        assert!(!std::fs::exists("/sys/fs/bpf/tombolo/v1").unwrap());
        assert!(!std::fs::exists("/sys/fs/bpf/tombolo/v2/ready").unwrap());
        assert_eq!(attached().len(), 2, "the database's");

        let running = traffic.during(Running::start);
        let status = running.handle.status.borrow().clone();
        assert_eq!((status.enforced, status.ipcache, status.policy), (1, 3, 1));
        enforce(&running);
        traffic.check_lossless();
    });
}

/// What version 1 leaves behind: maps, programs on the database's interface, rules for it.
fn former_version() {
    let temp = tempfile::tempdir().unwrap();
    let object = temp.path().join("former.bpf.o");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/former.bpf.c");
    let clang = "\"${CLANG:-clang-19}\" -O2 -g -target bpf -mcpu=v3 \
                 -I\"/usr/include/$(uname -m)-linux-gnu\" -c";
    run(&format!("{clang} {source} -o {}", object.display()));
    let pins = "/sys/fs/bpf/tombolo/v1";
    run(&format!("mkdir -p {pins}/links"));
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins)
        .load_file(&object)
        .unwrap();
    let ifindex = std::fs::read_to_string("/sys/class/net/lxcdb/ifindex");
    let ifindex: u32 = match ifindex {
        Ok(text) => text.trim().parse().unwrap(),
        Err(_) => interface_index(),
    };
    fill(pins, ifindex);
    for (program, direction, kind) in [
        ("to_container", "egress", TcAttachType::Egress),
        ("from_container", "ingress", TcAttachType::Ingress),
    ] {
        let program: &mut SchedClassifier = ebpf.program_mut(program).unwrap().try_into().unwrap();
        program.load().unwrap();
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options("lxcdb", kind, order).unwrap();
        let link: FdLink = program.take_link(id).unwrap().try_into().unwrap();
        drop(
            link.pin(format!("{pins}/links/{ifindex}-{direction}"))
                .unwrap(),
        );
    }
}

/// `/sys` may show another namespace's interfaces.
fn interface_index() -> u32 {
    let output = Command::new("ip")
        .args(["-o", "link", "show", "lxcdb"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(':').next().unwrap().trim().parse().unwrap()
}

/// Addresses, the endpoint with default deny, and one rule, as version 1 wrote them.
fn fill(pins: &str, ifindex: u32) {
    let hex = |bytes: &[u8]| {
        let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("hex {}", bytes.join(" "))
    };
    let update = |map: &str, key: &[u8], value: &[u8]| {
        let (key, value) = (hex(key), hex(value));
        run(&format!(
            "bpftool map update pinned {pins}/{map} key {key} value {value}"
        ));
    };
    let address = |text: &str| {
        let address: std::net::Ipv4Addr = text.parse().unwrap();
        address.to_ipv6_mapped().octets()
    };
    for (text, identity) in [
        (DB, DB_ID),
        (EMPLOYEE, EMPLOYEE_ID),
        (STRANGER, STRANGER_ID),
    ] {
        let cluster = u16::try_from(identity.0 >> 16).unwrap();
        let value = [
            &identity.0.to_ne_bytes()[..],
            &cluster.to_ne_bytes(),
            &[0; 2],
        ];
        update("ipcache_exact", &address(text), &value.concat());
    }
    let head = [1, DB_ID.0, 1, 1].map(u32::to_ne_bytes).concat();
    let endpoint = [&head[..], &address(DB), &[0; 48]].concat();
    update("endpoints", &ifindex.to_ne_bytes(), &endpoint);
    let key = [
        &1_u32.to_ne_bytes()[..],
        &EMPLOYEE_ID.0.to_ne_bytes(),
        &6379_u16.to_be_bytes(),
        &[6, 0],
    ];
    let allow = [1_u32, 1].map(u32::to_ne_bytes).concat();
    update("policy", &key.concat(), &allow);
    update("config", &[0; 4], &1_u64.to_ne_bytes());
}
