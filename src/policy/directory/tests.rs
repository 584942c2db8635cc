use std::{fs, path::Path, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Delay, Directory, Origin, PolicyEvent, Status};

const GOOD: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: NAME}
spec: {endpointSelector: {}, ingress: [{}]}
";

struct Running {
    events: mpsc::Receiver<PolicyEvent>,
    status: watch::Receiver<Arc<Status>>,
    _stop: DropGuard,
    _tasks: tokio::task::JoinSet<()>,
}

impl Running {
    fn start(dir: &Path) -> Self {
        // Beside the directory, under a name that it does not read.
        let (sender, events) = mpsc::channel(64);
        let saved = dir.join("saved");
        let (directory, status) = Directory::new(dir.to_owned(), saved, sender, Delay::default());
        let cancel = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(directory.run(cancel.clone()));
        Self {
            events,
            status,
            _stop: cancel.drop_guard(),
            _tasks: tasks,
        }
    }

    /// The next event that is no mark.
    async fn next(&mut self) -> PolicyEvent {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
            let event = event
                .await
                .expect("an event in time")
                .expect("the watcher runs");
            if !matches!(event, PolicyEvent::Mark(_)) {
                return event;
            }
        }
    }

    async fn names(&mut self) -> Vec<String> {
        match self.next().await {
            PolicyEvent::Set { policies, .. } => policies.into_iter().map(|p| p.name).collect(),
            other => panic!("expected policies, got {other:?}"),
        }
    }

    async fn status(&self, wanted: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut receiver = self.status.clone();
        let found = tokio::time::timeout(Duration::from_secs(20), receiver.wait_for(|s| wanted(s)));
        match found.await {
            Ok(status) => Arc::clone(&status.expect("the watcher runs")),
            Err(_elapsed) => panic!("waited in vain; status is {:?}", self.status.borrow()),
        }
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), GOOD.replace("NAME", "first")).unwrap();
    fs::write(dir.path().join("notes.txt"), "no policy").unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "no policy").unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.names().await, ["first"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
    fs::write(dir.path().join("a.yaml"), GOOD.replace("NAME", "second")).unwrap();
    assert_eq!(running.names().await, ["second"]);
    // A rename sets the new file before it removes the old.
    fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yml")).unwrap();
    assert_eq!(running.names().await, ["second"]);
    let file = dir.path().join("a.yaml");
    assert_eq!(
        running.next().await,
        PolicyEvent::Removed {
            origin: Origin::File(file)
        }
    );
}

#[tokio::test]
async fn a_file_that_turned_bad_while_nobody_ran_keeps_its_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, gone) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&kept, GOOD.replace("NAME", "good")).unwrap();
    fs::write(&gone, GOOD.replace("NAME", "other")).unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.names().await, ["good"]);
    assert_eq!(running.names().await, ["other"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
    drop(running);

    fs::write(&kept, "kind: {").unwrap();
    fs::remove_file(&gone).unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.names().await, ["good"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
    let status = running.status(|s| s.files.contains_key(&kept)).await;
    assert!(status.files[&kept].error.is_some());
    drop(running);

    // The copy of the file that is gone is gone as well: a bad newcomer of its name gets nothing.
    fs::write(&gone, "kind: {").unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.names().await, ["good"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
}

#[tokio::test]
async fn a_bad_file_keeps_its_last_good_version() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, GOOD.replace("NAME", "good")).unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.names().await, ["good"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
    for (bad, place) in [
        (
            GOOD.replace("NAME", "good")
                .replace("[{}]", "[{fromNodes: [{}]}]"),
            "a.yaml:4: spec.ingress[0].fromNodes: ",
        ),
        (String::new(), "a.yaml: holds no policy"),
        ("kind: {".to_owned(), "not readable as YAML"),
    ] {
        fs::write(&file, bad).unwrap();
        let has = |s: &Status| {
            s.files[&file]
                .error
                .as_ref()
                .is_some_and(|e| e.contains(place))
        };
        let status = running.status(has).await;
        assert_eq!(status.files[&file].policies, ["default/good"]);
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    running
        .status(|s| {
            s.files[&file]
                .error
                .as_ref()
                .is_some_and(|e| e.contains("UTF-8"))
        })
        .await;
    while let Ok(event) = running.events.try_recv() {
        assert!(
            matches!(event, PolicyEvent::Mark(_)),
            "bad versions send nothing"
        );
    }
    fs::write(&file, GOOD.replace("NAME", "better")).unwrap();
    assert_eq!(running.names().await, ["better"]);
    running.status(|s| s.files[&file].error.is_none()).await;
}

#[tokio::test]
async fn what_cannot_be_a_policy_file_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    let bytes = usize::try_from(crate::limits::POLICY_FILE_BYTES_MAX).unwrap() + 1;
    fs::write(&file, vec![b' '; bytes]).unwrap();
    let folder = dir.path().join("folder.yaml");
    fs::create_dir(&folder).unwrap();
    let mut running = Running::start(dir.path());
    assert_eq!(running.next().await, PolicyEvent::Synced);
    let status = running.status(|s| s.files.contains_key(&file)).await;
    assert!(
        status.files[&folder]
            .error
            .as_ref()
            .unwrap()
            .contains("not a regular file")
    );
    assert!(
        status.files[&file]
            .error
            .as_ref()
            .unwrap()
            .contains("larger than")
    );
}

#[tokio::test]
async fn a_directory_may_come_later_and_vanish_without_withdrawing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("policies");
    let mut running = Running::start(&dir);
    running.status(|s| s.error.is_some()).await;
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), GOOD.replace("NAME", "late")).unwrap();
    assert_eq!(running.names().await, ["late"]);
    assert_eq!(running.next().await, PolicyEvent::Synced);
    fs::remove_dir_all(&dir).unwrap();
    // Removing the file first, then the directory, may be seen in two steps; then the file is
    // gone in a directory that can be listed. Either way the error is told.
    running.status(|s| s.error.is_some()).await;
}
