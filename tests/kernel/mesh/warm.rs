//! A node that is killed while its peer is away: what it knew is in force from the start, as stale, and
//! the peer's return changes nothing that is still so.
use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use tombolo::test_support::{eventually, lab::Pod, process::run};

use super::fleet::{B1, C1, Fleet, PATIENCE};

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: employees, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: employee, io.cilium.k8s.policy.cluster: cluster2}}]
";

/// The pods of the peer: one that may reach the database, and one that may not.
struct World {
    fleet: Fleet,
    db: Pod,
    employee: Pod,
    stranger: Pod,
}

#[test]
fn a_killed_node_enforces_what_it_knew_of_a_peer_that_is_away() {
    let mut world = World::build();
    let employee = world.employee.address.to_string();
    world.enforced();

    world.killed_both();
    world.fleet.start_agent(C1).unwrap();
    world.fleet.shows(C1, &["ip", "list"], &[&employee]);
    let stale = "stale, from the disk: nodes, identities, ip";
    world.fleet.shows(C1, &["status", "--verbose"], &[stale]);
    world.enforced();

    let record = world.fleet.record(C1, "restored.watch").unwrap();
    world.fleet.write_pod(B1, "late", 30, None).unwrap();
    world.fleet.start_agent(B1).unwrap();
    let late = world.fleet.pod_address(B1, 30).to_string();
    world.fleet.shows(C1, &["ip", "list"], &[&late]);
    world.reconciled();
    world.enforced();
    let text = fs::read_to_string(record).unwrap();
    let of = |address: &str| {
        let key = format!("cilium/cache/ip/v1/cluster2/{address}");
        text.lines().filter(|line| *line == key).count()
    };
    assert_eq!((of(&employee), of(&late)), (1, 1), "{text}");
    assert!(!text.contains("DELETE"), "withdrawn:\n{text}");

    // A file that is damaged is as none, and that is said.
    world.saved(&late);
    world.killed_both();
    let path = world.file();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    world.fleet.start_agent(C1).unwrap();
    let line = "nothing is known of it until it answers";
    world.fleet.logs(C1, line);
    let list = world.fleet.verb(C1, &["ip", "list"]).unwrap();
    assert!(!list.contains(&employee), "{list}");
    world.fleet.start_agent(B1).unwrap();
    world.fleet.shows(C1, &["ip", "list"], &[&employee, &late]);
    world.enforced();
}

impl World {
    /// cluster3's node with a database, its peer cluster2 with the clients; saved to disk.
    fn build() -> Self {
        let mut fleet = Fleet::build().expect("the kernel tier needs root");
        let db = fleet.pod(C1, "db", 10).unwrap();
        let mut redis = db.namespace.command("redis-server");
        redis.args(["--save", "", "--protected-mode", "no", "--port", "6379"]);
        let log = fleet.lab.dir().join("redis.log");
        fleet.lab.daemon("redis", &mut redis, &log).unwrap();
        fleet.write(C1, "policies/employees.yaml", POLICY).unwrap();
        let employee = fleet.pod(B1, "employee", 11).unwrap();
        let stranger = fleet.pod(B1, "stranger", 12).unwrap();
        for index in [B1, C1] {
            fleet.start_agent(index).unwrap();
        }
        for (from, to) in [("cluster2", "cluster3"), ("cluster3", "cluster2")] {
            fleet.invite(from, to).unwrap();
        }
        let addresses = [&employee, &stranger].map(|pod| pod.address.to_string());
        fleet.shows(C1, &["ip", "list"], &addresses.each_ref().map(|a| &**a));
        let world = Self {
            fleet,
            db,
            employee,
            stranger,
        };
        world.saved(&addresses[0]);
        world.saved(&addresses[1]);
        world
    }

    /// What C1 has saved of its peer.
    fn file(&self) -> PathBuf {
        self.fleet.node(C1).dir.join("state/mesh/cluster2")
    }

    /// Waits until the file has this address.
    fn saved(&self, address: &str) {
        let look = || {
            let bytes = fs::read(self.file())?;
            let found = bytes
                .windows(address.len())
                .any(|text| text == address.as_bytes());
            ensure!(found, "{address} is not saved");
            Ok(())
        };
        eventually(PATIENCE, look).unwrap();
    }

    fn killed_both(&mut self) {
        for index in [B1, C1] {
            let agent = self.fleet.agent(index);
            self.fleet.lab.kill(&agent).unwrap();
        }
    }

    fn reconciled(&self) {
        let look = || {
            let text = self.fleet.verb(C1, &["status", "--verbose"])?;
            ensure!(!text.contains("from the disk"), "still stale:\n{text}");
            Ok(())
        };
        eventually(PATIENCE, look).unwrap();
    }

    /// The employee reaches the database, the stranger does not.
    fn enforced(&self) {
        let look = || -> Result<()> {
            ensure!(self.reaches(&self.employee)?, "the employee is refused");
            ensure!(!self.reaches(&self.stranger)?, "the stranger is let in");
            Ok(())
        };
        eventually(PATIENCE, look)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.fleet.tail(C1)));
    }

    fn reaches(&self, from: &Pod) -> Result<bool> {
        let address = self.db.address;
        let connect = format!("timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/6379'");
        let mut command = from.namespace.command("sh");
        let output = run(command.args(["-c", &connect]), Duration::from_secs(5))?;
        Ok(output.status.success())
    }
}
