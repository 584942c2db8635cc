//! The second cluster as a plain etcd: no agent, only the keys that a Cilium cluster would export.
use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use tombolo::test_support::{eventually, lab::Lab, process::run_ok};

use crate::world::{Site, Workload};

/// Debian's package puts it here.
const ETCD: &str = "/usr/bin/etcd";
/// The daemon's name in the lab.
const DAEMON: &str = "etcd";
/// One `etcdctl` takes a fraction of a second; this bounds a hung one.
const CTL_LIMIT: Duration = Duration::from_secs(20);
/// For etcd to elect itself.
const START: Duration = Duration::from_secs(20);
/// The lowest identity that is not reserved (`identity.MinimalNumericIdentity`).
const IDENTITY_FIRST: u32 = 256;
/// A cluster's identities carry its id above this bit.
const CLUSTER_ID_SHIFT: u32 = 16;
/// Every kind that Cilium exports, by the canary's name.
const KINDS: [&str; 5] = ["nodes", "identities", "ip", "services", "serviceexports"];

/// etcd's log.
pub(crate) fn log(site: &Site) -> PathBuf {
    site.dir.join("etcd.log")
}

/// Starts etcd on the site's host, with the certificates that its agent would have had, and fills
/// it in the order that Cilium's clustermesh-apiserver does: the canaries come last.
pub(crate) fn start(lab: &mut Lab, site: &mut Site) -> Result<()> {
    let client = format!("https://{}:2379", site.host.address);
    // There is only one member; nobody but itself needs this port.
    let member = "http://127.0.0.1:2380";
    let certs = site.dir.join("certs");
    let mut command = site.host.namespace.command(ETCD);
    command.args(["--name", site.cluster, "--client-cert-auth"]);
    command.arg("--data-dir").arg(site.dir.join("etcd"));
    command.args(["--listen-client-urls", &client]);
    command.args(["--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", member]);
    command.args(["--initial-advertise-peer-urls", member]);
    command.arg("--initial-cluster");
    command.arg(format!("{}={member}", site.cluster));
    command.arg("--trusted-ca-file").arg(certs.join("ca.crt"));
    command.arg("--cert-file").arg(certs.join("server.crt"));
    command.arg("--key-file").arg(certs.join("server.key"));
    lab.daemon(DAEMON, &mut command, &log(site))?;
    eventually(START, || {
        lab.alive(DAEMON)?;
        run_ok(ctl(site).args(["endpoint", "health"]), CTL_LIMIT).map(drop)
    })?;
    refuses_strangers(site)?;

    let (name, id) = (site.cluster, site.id);
    for (workload, number) in site.workloads.iter_mut().zip(IDENTITY_FIRST..) {
        workload.identity = Some(id << CLUSTER_ID_SHIFT | number);
    }
    put(
        site,
        &format!("cilium/cluster-config/{name}"),
        &format!(
            r#"{{"id":{id},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":255}}}}"#
        ),
    )?;
    let node = format!("cilium/state/nodes/v1/{name}/{}", site.node);
    put(site, &node, &node_record(site)?)?;
    for workload in &site.workloads {
        let number = workload.identity.context("it was set above")?;
        let key = format!("cilium/state/identities/v1/id/{number}");
        put(site, &key, &labels(site, workload))?;
        put_address(site, workload)?;
    }
    beat(site)?;
    for kind in KINDS {
        let key = format!("cilium/synced/{name}/cilium/state/{kind}/v1");
        put(site, &key, &now(site)?)?;
    }
    Ok(())
}

/// Writes or restores a workload's address.
pub(crate) fn put_address(site: &Site, workload: &Workload) -> Result<()> {
    let number = workload.identity.context("the workload has an identity")?;
    let (ip, host) = (workload.pod.address, site.host.address);
    let (namespace, app) = (workload.namespace, workload.app);
    let record = format!(
        r#"{{"IP":"{ip}","Mask":null,"HostIP":"{host}","ID":{number},"Key":0,"Metadata":"","K8sNamespace":"{namespace}","K8sPodName":"{app}"}}"#
    );
    put(site, &address_key(workload), &record)
}

/// Deletes a workload's address.
pub(crate) fn delete_address(site: &Site, workload: &Workload) -> Result<()> {
    let mut command = ctl(site);
    command.args(["del", &address_key(workload)]);
    let deleted = run_ok(&mut command, CTL_LIMIT)?;
    anyhow::ensure!(
        deleted.trim() == "1",
        "expected one deleted key, got {deleted}"
    );
    Ok(())
}

/// Cilium beats once a minute; readers look only at when it came.
pub(crate) fn beat(site: &Site) -> Result<()> {
    put(site, "cilium/.heartbeat", &now(site)?)
}

/// Without a certificate there is no answer: the story is about client-certificate TLS.
fn refuses_strangers(site: &Site) -> Result<()> {
    let mut command = bare_ctl(site);
    command.args(["get", "cilium/.heartbeat"]);
    let output = tombolo::test_support::process::run(&mut command, CTL_LIMIT)?;
    anyhow::ensure!(
        !output.status.success(),
        "etcd answered a client without a certificate"
    );
    Ok(())
}

fn address_key(workload: &Workload) -> String {
    format!("cilium/state/ip/v1/default/{}", workload.pod.address)
}

fn labels(site: &Site, workload: &Workload) -> String {
    let (cluster, app, namespace) = (site.cluster, workload.app, workload.namespace);
    format!(
        "k8s:app={app};\
         k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name={namespace};\
         k8s:io.cilium.k8s.policy.cluster={cluster};\
         k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace={namespace};"
    )
}

/// The node as Go writes it: all fields, in their order. The mask is that of a /24.
fn node_record(site: &Site) -> Result<String> {
    let (node, cluster, id, host) = (site.node, site.cluster, site.id, site.host.address);
    let network = site
        .cidr
        .strip_suffix("/24")
        .context("the pod CIDR is a /24")?;
    Ok(format!(
        r#"{{"Name":"{node}","Cluster":"{cluster}","IPAddresses":[{{"Type":"InternalIP","IP":"{host}"}}],"IPv4AllocCIDR":{{"IP":"{network}","Mask":"////AA=="}},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":{id},"Source":"custom-resource","EncryptionKey":0,"Labels":null,"Annotations":null,"NodeIdentity":0,"WireguardPubKey":"","BootID":""}}"#
    ))
}

/// The time as Go prints it (RFC 3339).
fn now(site: &Site) -> Result<String> {
    let time = site.host.namespace.shell("date -u +%Y-%m-%dT%H:%M:%SZ")?;
    Ok(time.trim().to_owned())
}

fn put(site: &Site, key: &str, value: &str) -> Result<()> {
    run_ok(ctl(site).args(["put", "--", key, value]), CTL_LIMIT).map(drop)
}

/// `etcdctl` on the site's host, as the cluster's administrator.
fn ctl(site: &Site) -> Command {
    let certs = site.dir.join("certs");
    let mut command = bare_ctl(site);
    command.arg("--cert").arg(certs.join("admin.crt"));
    command.arg("--key").arg(certs.join("admin.key"));
    command
}

/// `etcdctl` that trusts the server but has nothing to show.
fn bare_ctl(site: &Site) -> Command {
    let mut command = site.host.namespace.command("etcdctl");
    command.arg("--endpoints");
    command.arg(format!("https://{}:2379", site.host.address));
    command.arg("--cacert").arg(site.dir.join("certs/ca.crt"));
    command
}
