use std::{net::IpAddr, process::Command, time::Duration};

use super::{Changes, Netdev};

/// Goal: run the test below in a network namespace of its own. Method: this very program again,
/// under `unshare`, which is possible for root and where user namespaces are allowed.
#[test]
fn netdev_reads_a_real_namespace() {
    let may = |options: &[&str]| {
        Command::new("unshare")
            .args(options)
            .arg("true")
            .status()
            .is_ok_and(|s| s.success())
    };
    let options: &[&str] = if may(&["--net"]) {
        &["--net"]
    } else if may(&["--map-root-user", "--net"]) {
        &["--map-root-user", "--net"]
    } else {
        eprintln!("SKIPPED: no network namespace can be made here");
        return;
    };
    let output = Command::new("unshare")
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "netdev::tests::within_the_namespace",
        ])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let ran = output.status.success() && told.contains("1 passed");
    assert!(ran, "{told}{}", String::from_utf8_lossy(&output.stderr));
}

fn ip(command: &str) {
    let status = Command::new("ip")
        .args(command.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {command}");
}

async fn told(changes: &mut Changes) {
    let changed = tokio::time::timeout(Duration::from_secs(5), changes.changed()).await;
    assert_eq!(changed, Ok(true));
}

#[tokio::test]
#[ignore = "changes links; run by the test above in a namespace of its own"]
async fn within_the_namespace() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let netdev = Netdev::open().unwrap();
    // A new namespace's loopback is down; the machine's own is not to be touched.
    assert!(!netdev.link("lo").await.unwrap().unwrap().up);
    let mut changes = netdev.changes();
    assert_eq!(netdev.link("pod1").await.unwrap(), None);
    assert!(netdev.veth_routes().await.unwrap().is_empty());

    ip("link add pod1 address 02:00:00:00:00:07 type veth peer name inside1");
    told(&mut changes).await;
    let link = netdev.link("pod1").await.unwrap().unwrap();
    assert_eq!((link.mac, link.up), (Some([2, 0, 0, 0, 0, 7]), false));
    assert!(link.is_veth());
    assert_eq!(netdev.links().await.unwrap()[&link.index], link);
    let loopback = netdev.link("lo").await.unwrap().unwrap();
    assert!(!loopback.is_veth());

    for name in ["pod1", "inside1", "lo"] {
        ip(&format!("link set {name} up"));
    }
    ip("address add 192.0.2.1/24 dev lo");
    ip("route add 10.1.0.5/32 dev pod1");
    ip("route add 10.1.1.0/24 dev pod1");
    ip("route add 10.1.0.6/32 dev lo");
    ip("-6 route add fd00:1::5/128 dev pod1");
    told(&mut changes).await;
    assert!(netdev.link("pod1").await.unwrap().unwrap().up);
    let routes = netdev.veth_routes().await.unwrap();
    let pod1 = || "pod1".to_owned();
    assert_eq!(routes.get(&address("10.1.0.5")), Some(&pod1()));
    assert_eq!(routes.get(&address("fd00:1::5")), Some(&pod1()));
    assert_eq!(routes.len(), 2, "{routes:?}");
    assert_eq!(
        netdev.veth_of(address("10.1.0.5")).await.unwrap(),
        Some(pod1())
    );
    assert_eq!(netdev.veth_of(address("10.1.0.6")).await.unwrap(), None);
    assert!(
        netdev
            .addresses()
            .await
            .unwrap()
            .contains(&address("192.0.2.1"))
    );

    // Late notifications of the above are told first; then there is silence until the next change.
    while tokio::time::timeout(Duration::from_secs(3), changes.changed())
        .await
        .is_ok()
    {}
    ip("route delete 10.1.0.5/32 dev pod1");
    told(&mut changes).await;
    assert_eq!(netdev.veth_of(address("10.1.0.5")).await.unwrap(), None);
    ip("link delete pod1");
    told(&mut changes).await;
    assert_eq!(netdev.link("pod1").await.unwrap(), None);
}
