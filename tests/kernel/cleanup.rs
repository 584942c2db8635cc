//! `tombolo cleanup` after an agent of either attach mode: nothing of ours is left, all else is.
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use tombolo::{
    config::AttachMode,
    enforcer::{Options, open},
};

use crate::{
    enforcer::{Running, TARGET},
    lab::{Pod, isolated, options, run},
    lifecycle::enforce,
};

const INTERFACES: [&str; 3] = ["lxcdb", "lxcemployee", "lxcstranger"];
const FOREIGN_FILTER: &str = "prio 7 bpf bytecode '1,6 0 0 4294967295' flowid 1:1";

/// What the command prints; it has to succeed.
fn cleanup(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tombolo"))
        .args(["cleanup", "--socket-path=/nobody"])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn links_and_maps_go() {
    isolated("cleanup::links_and_maps_go", || {
        leaves_nothing(AttachMode::Tcx)
    });
}

#[test]
fn filters_disciplines_and_maps_go() {
    isolated("cleanup::filters_disciplines_and_maps_go", || {
        leaves_nothing(AttachMode::Clsact);
    });
}

fn leaves_nothing(attach_mode: AttachMode) {
    let options = Options {
        attach_mode,
        ..options()
    };
    // Others were here before us: a pin, and a discipline with a filter.
    run("bpftool map create /sys/fs/bpf/foreign type array key 4 value 4 entries 1 name foreign");
    run("tc qdisc add dev lxcdb clsact");
    run(&format!("tc filter add dev lxcdb ingress {FOREIGN_FILTER}"));
    let (mut db, mut stranger) = (Pod::start("db"), Pod::start("stranger"));
    db.listen(6379);
    let running = Running::start_with(&options);
    enforce(&running);
    drop(running);
    if attach_mode == AttachMode::Clsact {
        // Others came later, into the discipline that we made.
        run(&format!(
            "tc filter add dev lxcstranger egress {FOREIGN_FILTER}"
        ));
    }
    assert!(!stranger.connect(TARGET), "enforced without an agent");

    let told = cleanup(&["--dry-run"]);
    assert!(!stranger.connect(TARGET), "still enforced: {told}");
    let done = cleanup(&[]);
    assert_eq!(told.replace("Would remove", "Removed"), done);
    assert!(stranger.connect(TARGET), "nothing enforces: {done}");

    assert!(!std::fs::exists("/sys/fs/bpf/tombolo").unwrap(), "{done}");
    for interface in INTERFACES {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(interface, direction).unwrap();
            assert!(programs.is_empty(), "{interface}: {done}");
        }
        for hook in ["ingress", "egress"] {
            run(&format!(
                "! tc filter show dev {interface} {hook} | grep _container"
            ));
        }
    }
    run("! tc qdisc show dev lxcemployee | grep clsact");
    run("tc filter show dev lxcdb ingress | grep -q 'pref 7 bpf'");
    run("bpftool map show pinned /sys/fs/bpf/foreign > /dev/null");
    if attach_mode == AttachMode::Clsact {
        run("tc filter show dev lxcstranger egress | grep -q 'pref 7 bpf'");
        let kept = "Kept clsact discipline of lxcstranger: others use it\n";
        assert!(done.contains(kept), "{done}");
    }

    // An agent finds a kernel as on its first day.
    let running = Running::start_with(&options);
    enforce(&running);
    assert_eq!(running.handle.status.borrow().enforced, 3);
    assert!(!stranger.connect(TARGET));
}

#[test]
fn a_map_of_another_layout_is_out_of_the_way_as_its_refusal_says() {
    let test = "cleanup::a_map_of_another_layout_is_out_of_the_way_as_its_refusal_says";
    isolated(test, || {
        let map = "/sys/fs/bpf/tombolo/v2/policy";
        run("mkdir -p /sys/fs/bpf/tombolo/v2");
        run(&format!(
            "bpftool map create {map} type hash key 4 value 4 entries 8 name policy"
        ));
        let refused = open(&options()).unwrap_err().to_string();
        assert!(refused.contains("tombolo cleanup removes it"), "{refused}");
        let done = cleanup(&[]);
        assert!(done.contains(&format!("Removed map {map}\n")), "{done}");
        drop(open(&options()).unwrap());
    });
}
