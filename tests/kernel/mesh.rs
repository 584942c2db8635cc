//! Clusters of several nodes, with real agents: one importer per cluster, what becomes of its work
//! when it dies, sleeps or loses the cluster store, and who sees whom.
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use tombolo::test_support::{eventually, lab::Pod, pause, process::run};

use self::fleet::{A1, A2, B1, B2, C1, Fleet, PATIENCE};

mod fleet;
mod warm;

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: employees, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: employee}}]
    toPorts: [{ports: [{port: '6379', protocol: TCP}]}]
";

#[test]
fn clusters_of_several_nodes_have_one_importer_and_lose_nothing_with_it() {
    let mut fleet = Fleet::build().expect("the kernel tier needs root");
    fleet.start_etcd().unwrap();
    let pods = own_pods(&mut fleet);
    let mut pids: Vec<u32> = Vec::new();
    for index in [A1, A2, B1, B2, C1] {
        pids.push(fleet.start_agent(index).unwrap());
        if index == B1 {
            // cluster2's first node, which has the store, is to import as well.
            fleet.logs(index, "This node imports for its cluster");
        }
    }
    for (from, to) in [("cluster1", "cluster2"), ("cluster2", "cluster3")] {
        fleet.invite(from, to).unwrap();
        fleet.invite(to, from).unwrap();
    }
    node_lists(&fleet);
    other_nodes_pods_are_enforced(&fleet, &pods);
    one_connection_per_cluster(&fleet);
    let (alive, dead) = killed(&mut fleet);
    pids[dead] = fleet.start_agent(dead).unwrap();
    fleet.shows(dead, &["node", "list"], &["cluster2/node2"]);
    one_connection_per_cluster(&fleet);
    paused(&mut fleet, pids[alive], (alive, dead));
    store_lost(&mut fleet);
    store_and_importer_lost(&mut fleet);
    clusters_apart(&mut fleet);
}

/// A database on one node of cluster1, its clients on the other.
fn own_pods(fleet: &mut Fleet) -> [Pod; 3] {
    let db = fleet.pod(A1, "db", 10).unwrap();
    let mut redis = db.namespace.command("redis-server");
    redis.args(["--save", "", "--protected-mode", "no", "--port", "6379"]);
    let log = fleet.lab.dir().join("redis.log");
    fleet.lab.daemon("redis", &mut redis, &log).unwrap();
    fleet.write(A1, "policies/employees.yaml", POLICY).unwrap();
    let employee = fleet.pod(A2, "employee", 11).unwrap();
    let stranger = fleet.pod(A2, "stranger", 12).unwrap();
    [db, employee, stranger]
}

/// Each node of both clusters lists the four; the third cluster sees its peer only.
fn node_lists(fleet: &Fleet) {
    let four = [
        "cluster1/node1",
        "cluster1/node2",
        "cluster2/node1",
        "cluster2/node2",
    ];
    for index in [A1, A2] {
        fleet.shows(index, &["node", "list"], &four);
        let text = fleet.verb(index, &["node", "list"]).unwrap();
        assert_eq!(text.lines().count(), 5, "a header and four nodes:\n{text}");
    }
    for index in [B1, B2] {
        fleet.shows(
            index,
            &["node", "list"],
            &[&four[..], &["cluster3/node1"]].concat(),
        );
    }
    fleet.shows(
        C1,
        &["node", "list"],
        &["cluster2/node1", "cluster2/node2", "cluster3/node1"],
    );
}

/// By the labels that the other node gave its pods.
fn other_nodes_pods_are_enforced(fleet: &Fleet, [db, employee, stranger]: &[Pod; 3]) {
    let reaches = |from: &Pod| {
        let connect = format!("timeout 1 bash -c 'exec 3<>/dev/tcp/{}/6379'", db.address);
        let mut command = from.namespace.command("sh");
        let output = run(command.args(["-c", &connect]), PATIENCE).unwrap();
        output.status.success()
    };
    let look = || {
        ensure!(reaches(employee), "the employee is refused");
        ensure!(!reaches(stranger), "the stranger is let in");
        Ok(())
    };
    eventually(PATIENCE, look).unwrap();
    let employee = employee.address.to_string();
    fleet.shows(B2, &["ip", "list"], &[&employee]);
}

fn one_connection_per_cluster(fleet: &Fleet) {
    let look = || {
        for (from, to) in [
            ("cluster1", "cluster2"),
            ("cluster2", "cluster1"),
            ("cluster2", "cluster3"),
            ("cluster3", "cluster2"),
        ] {
            let connections = fleet.connections(from, to);
            let count = connections.len();
            ensure!(
                count == 1,
                "{from} holds {count} connections to {to}: {connections:?}"
            );
        }
        Ok(())
    };
    eventually(PATIENCE, look).unwrap();
}

/// Which node of cluster1 imports.
fn importer(fleet: &Fleet) -> anyhow::Result<usize> {
    let text = fleet.etcdctl(&["get", "--print-value-only", "tombolo/importer"])?;
    match text {
        _ if text.contains("\"node1\"") => Ok(A1),
        _ if text.contains("\"node2\"") => Ok(A2),
        _ => bail!("nobody imports: {text:?}"),
    }
}

/// No key of the record may have been deleted.
fn assert_nothing_withdrawn(record: &Path) {
    let text = fs::read_to_string(record).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&"PUT"), "nothing was recorded");
    let deleted = lines.windows(2).filter(|pair| pair[0] == "DELETE");
    let deleted: Vec<_> = deleted.map(|pair| pair[1]).collect();
    assert_eq!(deleted, [""; 0], "withdrawn");
}

/// The importer dies; the other node takes over in time and goes on with what it has.
fn killed(fleet: &mut Fleet) -> (usize, usize) {
    let dead = importer(fleet).unwrap();
    let alive = if dead == A1 { A2 } else { A1 };
    let record = fleet.record(alive, "killed.watch").unwrap();
    let survivor = fleet.node(alive).host.address;
    let agent = fleet.agent(dead);
    fleet.lab.kill(&agent).unwrap();
    let since = Instant::now();
    let look = || {
        let connections = fleet.connections("cluster1", "cluster2");
        ensure!(
            connections == [survivor],
            "connections from {connections:?}"
        );
        Ok(())
    };
    eventually(Duration::from_secs(5), look)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.tail(alive)));
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
    // What changes now comes by the new importer.
    fleet.write_pod(B2, "late", 20, None).unwrap();
    let late = fleet.pod_address(B2, 20).to_string();
    fleet.shows(alive, &["ip", "list"], &[&late]);
    assert_nothing_withdrawn(&record);
    (alive, dead)
}

/// The importer sleeps past its lease and wakes up as one among others.
fn paused(fleet: &mut Fleet, pid: u32, (asleep, awake): (usize, usize)) {
    assert_eq!(importer(fleet).unwrap(), asleep);
    let records = [(asleep, "asleep.watch"), (awake, "awake.watch")];
    let records = records.map(|(index, file)| fleet.record(index, file).unwrap());
    Fleet::signal(pid, "STOP");
    let taken = eventually(PATIENCE, || {
        ensure!(importer(fleet)? == awake, "the sleeper still has the lock");
        Ok(())
    });
    taken.unwrap();
    fleet.write_pod(B1, "meanwhile", 21, None).unwrap();
    let address = fleet.pod_address(B1, 21).to_string();
    fleet.shows(awake, &["ip", "list"], &[&address]);
    Fleet::signal(pid, "CONT");
    fleet.shows(asleep, &["ip", "list"], &[&address]);
    one_connection_per_cluster(fleet);
    assert_eq!(importer(fleet).unwrap(), awake);
    for record in records {
        assert_nothing_withdrawn(&record);
    }
}

/// Without the cluster store the importer goes on, and the others read on.
fn store_lost(fleet: &mut Fleet) {
    let records = [(A1, "lost1.watch"), (A2, "lost2.watch")];
    let records = records.map(|(index, file)| fleet.record(index, file).unwrap());
    fleet.lab.kill("etcd").unwrap();
    // Longer than the lock's lease.
    pause(Duration::from_secs(4));
    fleet.write_pod(B1, "unstored", 22, None).unwrap();
    let address = fleet.pod_address(B1, 22).to_string();
    for index in [A1, A2] {
        fleet.shows(index, &["ip", "list"], &[&address]);
    }
    assert_eq!(fleet.connections("cluster1", "cluster2").len(), 1);
    fleet.start_etcd().unwrap();
    let back = eventually(PATIENCE, || importer(fleet).map(drop));
    back.unwrap();
    one_connection_per_cluster(fleet);
    for record in records {
        assert_nothing_withdrawn(&record);
    }
}

/// cluster2's store and its importer are one process: the other node goes on alone.
fn store_and_importer_lost(fleet: &mut Fleet) {
    let look = || {
        let text = fleet.verb(B2, &["status"])?;
        ensure!(
            text.contains("cache of node1"),
            "node2 does not read node1's cache:\n{text}"
        );
        Ok(())
    };
    eventually(PATIENCE, look).unwrap();
    let records = [(A1, "alone1.watch"), (B2, "alone2.watch")];
    let records = records.map(|(index, file)| fleet.record(index, file).unwrap());
    let agent = fleet.agent(B1);
    fleet.lab.kill(&agent).unwrap();
    let look = || {
        for peer in ["cluster1", "cluster3"] {
            let connections = fleet.connections("cluster2", peer);
            ensure!(connections.len() == 1, "{peer} is held by {connections:?}");
        }
        Ok(())
    };
    eventually(PATIENCE, look).unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.tail(B2)));
    fleet.write_pod(A2, "alone", 23, None).unwrap();
    let address = fleet.pod_address(A2, 23).to_string();
    fleet.shows(B2, &["ip", "list"], &[&address]);
    fleet.start_agent(B1).unwrap();
    fleet.shows(B1, &["ip", "list"], &[&address]);
    one_connection_per_cluster(fleet);
    for record in records {
        assert_nothing_withdrawn(&record);
    }
}

/// Peers of a peer are strangers until each side has the other's file.
fn clusters_apart(fleet: &mut Fleet) {
    let record = fleet.record(A1, "apart.watch").unwrap();
    fleet.shows(A1, &["node", "list"], &["cluster2/node1"]);
    let look = || {
        let text = fs::read_to_string(&record)?;
        ensure!(text.contains("/cluster2/"), "the cache is not recorded yet");
        ensure!(!text.contains("cluster3"), "cluster1 saw a key of cluster3");
        Ok(())
    };
    eventually(PATIENCE, look).unwrap();
    for index in [A1, A2] {
        assert!(
            !fleet
                .verb(index, &["identity", "list"])
                .unwrap()
                .contains("cluster3")
        );
    }
    fleet.invite("cluster1", "cluster3").unwrap();
    fleet.invite("cluster3", "cluster1").unwrap();
    for index in [A1, A2] {
        fleet.shows(index, &["node", "list"], &["cluster3/node1"]);
    }
    fleet.shows(C1, &["node", "list"], &["cluster1/node1", "cluster1/node2"]);
    assert_eq!(fleet.connections("cluster1", "cluster3").len(), 1);
}
