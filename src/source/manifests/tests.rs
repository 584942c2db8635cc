use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Manifests, Place, inventory::Inventory, parse::parse, resolve::resolve};
use crate::source::{FileError, LocalEvent, ServiceKey, WorkloadKey, desired::Desired};

const CLUSTER: &str = include_str!("testdata/cluster.yaml");

fn place() -> Place {
    Place {
        cluster: "cluster1".parse().unwrap(),
        node_name: "node1".to_owned(),
    }
}

fn local(files: &[(&str, &str)]) -> (Desired, Vec<FileError>) {
    let mut inventory = Inventory::default();
    for (path, text) in files {
        inventory.set(path, parse(text));
    }
    let veths = HashMap::from([(ip("10.1.0.6"), "veth6".to_owned())]);
    resolve(&inventory, &place(), &veths)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

/// Goal: one manifest with everything gives exactly these events, written out.
#[test]
fn golden_manifest_gives_golden_events() {
    let (desired, errors) = local(&[("cluster.yaml", CLUSTER)]);
    assert_eq!(errors, []);
    let events = Desired::default().diff(&desired);
    let told: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
    let golden: Vec<&str> = include_str!("testdata/cluster.events").lines().collect();
    assert_eq!(told, golden, "got:\n{}", told.join("\n"));
    assert_eq!(desired.diff(&desired), []);
}

#[test]
fn pods_without_business_here_are_ignored() {
    let (desired, _) = local(&[("cluster.yaml", CLUSTER)]);
    let names: Vec<&str> = desired
        .workloads
        .keys()
        .map(|key| key.name.as_str())
        .collect();
    assert_eq!(names, ["by-route", "protected-db", "unknown-interface"]);
}

#[test]
fn first_of_two_equal_objects_wins_and_the_other_is_reported() {
    let pod = |app: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: {app}}}}}\n\
             spec: {{nodeName: node1}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n"
        )
    };
    let (a, b) = (
        pod("a", "10.1.0.1"),
        format!("# second\n---\n{}", pod("b", "10.1.0.2")),
    );
    let (desired, errors) = local(&[("b.yaml", &b), ("a.yaml", &a)]);
    assert_eq!(
        desired.workloads[&workload("p")].addresses,
        [ip("10.1.0.1")]
    );
    let message = "Pod default/p is used from a.yaml line 1".to_owned();
    assert_eq!(
        errors,
        [FileError {
            file: "b.yaml".to_owned(),
            line: 3,
            message
        }]
    );
}

#[test]
fn bad_file_keeps_its_last_good_version_as_a_whole() {
    let mut inventory = Inventory::default();
    inventory.set("a.yaml", parse(CLUSTER));
    let (before, _) = resolve(&inventory, &place(), &HashMap::new());
    let bad = CLUSTER.replacen("10.1.0.5", "10.1.0.500", 1);
    let line = CLUSTER
        .lines()
        .position(|line| line.contains("10.1.0.5"))
        .unwrap()
        + 1;
    inventory.set("a.yaml", parse(&bad));
    let (after, errors) = resolve(&inventory, &place(), &HashMap::new());
    assert_eq!(before.diff(&after), []);
    assert_eq!(errors.len(), 1);
    assert_eq!(
        (errors[0].file.as_str(), errors[0].line),
        ("a.yaml", line as u64)
    );
    assert!(
        errors[0].message.starts_with("status.podIP: "),
        "{}",
        errors[0].message
    );
    inventory.set("a.yaml", parse(CLUSTER));
    assert_eq!(resolve(&inventory, &place(), &HashMap::new()).1, []);
}

#[test]
fn a_pod_is_audited_if_its_annotation_is_true_and_nothing_else() {
    for (value, audit, errors) in [("true", true, 0), ("false", false, 0), ("yes", false, 1)] {
        let text = CLUSTER.replacen(
            "tombolo.io/interface: veth5",
            &format!("policy.tombolo.io/audit: {value:?}"),
            1,
        );
        let (desired, found) = local(&[("a.yaml", &text)]);
        assert_eq!(desired.workloads[&workload("protected-db")].audit, audit);
        assert_eq!(found.len(), errors, "{found:?}");
    }
}

#[test]
fn unfit_interface_annotation_is_reported_and_not_used() {
    let text = CLUSTER.replacen(
        "tombolo.io/interface: veth5",
        "tombolo.io/interface: a/b",
        1,
    );
    let (desired, errors) = local(&[("a.yaml", &text)]);
    assert_eq!(desired.workloads[&workload("protected-db")].interface, None);
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].message.contains("\"a/b\""),
        "{}",
        errors[0].message
    );
}

/// P6: a service that loses `global` or `shared` is deleted.
#[test]
fn p6_service_no_longer_shared_is_deleted() {
    let (before, _) = local(&[("a.yaml", CLUSTER)]);
    let key = ServiceKey {
        namespace: "default".to_owned(),
        name: "db".to_owned(),
    };
    assert!(before.services.contains_key(&key));
    for replacement in [
        "service.cilium.io/global: \"false\"",
        "service.cilium.io/global: \"true\"\n    service.cilium.io/shared: \"false\"",
    ] {
        let text = CLUSTER.replacen("service.cilium.io/global: \"true\"", replacement, 1);
        let (after, errors) = local(&[("a.yaml", &text)]);
        assert_eq!(errors, []);
        assert_eq!(
            before.diff(&after),
            [LocalEvent::ServiceDelete(key.clone())]
        );
    }
}

#[test]
fn gone_workloads_come_before_new_ones() {
    let (before, _) = local(&[("a.yaml", CLUSTER)]);
    let text = CLUSTER.replace("name: by-route", "name: a-successor");
    let (after, _) = local(&[("a.yaml", &text)]);
    let events = before.diff(&after);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0], LocalEvent::WorkloadDelete(workload("by-route")));
    assert!(
        matches!(&events[1], LocalEvent::WorkloadUpsert(w) if w.key == workload("a-successor"))
    );
}

/// Beside the manifests, under a name that is not read.
fn saved(dir: &Path) -> std::path::PathBuf {
    dir.join("saved")
}

async fn next(events: &mut mpsc::Receiver<LocalEvent>) -> LocalEvent {
    tokio::time::timeout(Duration::from_secs(4), events.recv())
        .await
        .unwrap()
        .unwrap()
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

fn small_pod(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: node1}}\n\
         status:\n  podIPs:\n  - ip: {address}\n"
    )
}

/// Goal: the driver, by inotify alone (each wait is shorter than the rescan), reports a file that
/// appears, goes bad, is mended and is removed.
#[tokio::test]
async fn directory_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "p.yaml", &small_pod("p", "10.1.0.1"));
    write(dir.path(), ".hidden.yaml", "not: [valid");
    let (sender, mut events) = mpsc::channel(4);
    let source = Manifests::new(dir.path(), saved(dir.path()), place(), None, sender);
    let mut status = source.status();
    let cancel = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(source.run(cancel.clone()));

    assert!(matches!(next(&mut events).await, LocalEvent::WorkloadUpsert(w) if w.key.name == "p"));
    assert_eq!(next(&mut events).await, LocalEvent::Synced);

    write(dir.path(), "q.yml", &small_pod("q", "10.1.0.2"));
    assert!(matches!(next(&mut events).await, LocalEvent::WorkloadUpsert(w) if w.key.name == "q"));

    write(dir.path(), "p.yaml", &small_pod("p", "nonsense"));
    let bad = status
        .wait_for(|status| !status.errors.is_empty())
        .await
        .unwrap()
        .clone();
    assert_eq!((bad.synced, bad.files, bad.errors[0].line), (true, 2, 7));
    assert!(bad.errors[0].file.ends_with("/p.yaml"));

    write(dir.path(), "p.yaml", "");
    status
        .wait_for(|s| s.errors.iter().any(|e| e.message.starts_with("empty")))
        .await
        .unwrap();

    write(dir.path(), "p.yaml", &small_pod("p", "10.1.0.3"));
    let mended = next(&mut events).await;
    assert!(matches!(mended, LocalEvent::WorkloadUpsert(w) if w.addresses == [ip("10.1.0.3")]));
    status
        .wait_for(|status| status.errors.is_empty())
        .await
        .unwrap();

    std::fs::remove_file(dir.path().join("q.yml")).unwrap();
    assert_eq!(
        next(&mut events).await,
        LocalEvent::WorkloadDelete(workload("q"))
    );

    cancel.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}

/// Goal: a directory that cannot be listed deletes nothing, and one that comes late is found.
#[tokio::test]
async fn unlisted_directory_is_not_an_empty_one() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("manifests");
    let (sender, mut events) = mpsc::channel(4);
    let mut source = Manifests::new(&dir, saved(&dir), place(), None, sender);
    let status = source.status();
    source.scan(tokio::time::Instant::now()).await.unwrap();
    assert!(events.try_recv().is_err());
    assert_eq!(status.borrow().errors[0].file, dir.display().to_string());

    std::fs::create_dir(&dir).unwrap();
    write(&dir, "p.json", &small_pod("p", "10.1.0.1"));
    source.scan(tokio::time::Instant::now()).await.unwrap();
    assert!(matches!(
        events.try_recv(),
        Ok(LocalEvent::WorkloadUpsert(_))
    ));
    assert_eq!(events.try_recv(), Ok(LocalEvent::Synced));

    std::fs::rename(&dir, base.path().join("away")).unwrap();
    source.scan(tokio::time::Instant::now()).await.unwrap();
    assert!(events.try_recv().is_err());
    assert_eq!(status.borrow().errors.len(), 1);
}

/// Goal: a file that was never good holds `Synced` back, but not for ever.
#[tokio::test]
async fn unread_file_delays_synced_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "p.yaml", "kind: [");
    let (sender, mut events) = mpsc::channel(4);
    let mut source = Manifests::new(dir.path(), saved(dir.path()), place(), None, sender);
    source.scan(tokio::time::Instant::now()).await.unwrap();
    assert!(events.try_recv().is_err());
    let later = tokio::time::Instant::now() + crate::limits::SOURCE_BAD_FILE_GRACE;
    source.scan(later).await.unwrap();
    assert_eq!(events.try_recv(), Ok(LocalEvent::Synced));
    source.scan(tokio::time::Instant::now()).await.unwrap();
    assert!(events.try_recv().is_err());
}

/// Goal: over restarts a bad file counts as its last good version, `Synced` does not wait for it,
/// and a newcomer under the name of a file that went gets nothing.
#[tokio::test]
async fn file_that_turned_bad_while_nobody_ran_keeps_its_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let run = async || {
        let (sender, mut events) = mpsc::channel(8);
        let mut source = Manifests::new(dir.path(), saved(dir.path()), place(), None, sender);
        source.scan(tokio::time::Instant::now()).await.unwrap();
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(match event {
                LocalEvent::WorkloadUpsert(w) => w.key.name,
                LocalEvent::Synced => "synced".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        (told, source.status().borrow().errors.len())
    };
    let told = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    write(dir.path(), "p.yaml", &small_pod("p", "10.1.0.1"));
    write(dir.path(), "q.yaml", &small_pod("q", "10.1.0.2"));
    assert_eq!(run().await, (told(&["p", "q", "synced"]), 0));

    write(dir.path(), "p.yaml", "kind: [");
    // Not even readable as a file.
    std::fs::remove_file(dir.path().join("q.yaml")).unwrap();
    std::fs::create_dir(dir.path().join("q.yaml")).unwrap();
    assert_eq!(run().await, (told(&["p", "q", "synced"]), 2));

    std::fs::remove_dir(dir.path().join("q.yaml")).unwrap();
    assert_eq!(run().await, (told(&["p", "synced"]), 1));
    write(dir.path(), "q.yaml", "kind: [");
    assert_eq!(run().await, (told(&["p"]), 2));
}

#[test]
fn own_labels_and_those_of_the_namespace_are_in_the_identity() {
    let (desired, _) = local(&[("cluster.yaml", CLUSTER)]);
    let labels = &desired.workloads[&workload("protected-db")].labels;
    let values: BTreeMap<&str, &str> = labels
        .as_slice()
        .iter()
        .map(|l| (l.key.as_str(), l.value.as_str()))
        .collect();
    assert_eq!(values["io.cilium.k8s.namespace.labels.team"], "core");
    assert_eq!(values["io.cilium.k8s.policy.serviceaccount"], "default");
    assert_eq!(values.get("pod-template-hash"), None);
}
