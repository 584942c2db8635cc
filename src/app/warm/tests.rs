use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    app::members,
    keyspace::ClusterConfig,
    mesh::{Delta, Deltas, IpTarget, Mesh, Settings},
    store::Options,
    types::{ClusterId, IdentityId},
};

mod admission;

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn id(n: u32) -> ClusterId {
    ClusterId::new(n, MaxClusters::C255).unwrap()
}

fn terms(n: u32) -> Terms {
    Terms {
        id: id(n),
        config: ClusterConfig::decode(br#"{"id":2,"capabilities":{"serviceExportsEnabled":true}}"#)
            .unwrap(),
        allowed_cidrs: ["10.2.0.0/16", "2001:db8::/32"]
            .map(|c| c.parse().unwrap())
            .into(),
        relayed: false,
    }
}

fn upsert(suffix: &str, value: &str) -> KeyEvent {
    KeyEvent::Upsert {
        kind: Kind::Ips,
        suffix: suffix.to_owned().into(),
        value: value.to_owned().into(),
        revision: 5,
    }
}

fn ip(n: u32) -> (String, String) {
    let ip = format!("10.2.0.{n}");
    let value = format!(r#"{{"IP":"{ip}","Mask":null,"ID":131073}}"#);
    (ip, value)
}

/// A process: a mesh, its cache and what comes out of it.
struct Process {
    mesh: Mesh,
    cache: Store,
    deltas: Deltas,
    place: Place,
}

impl Process {
    fn new(directory: &Path) -> Self {
        let settings = Settings {
            cluster_name: name("east"),
            cluster_id: id(1),
            max_clusters: MaxClusters::C255,
            node_name: "node1".into(),
        };
        let cache = Store::new(Options {
            cluster_id: 7,
            history_max: 1_000,
        });
        let deltas = Deltas::new(1_000);
        Self {
            mesh: Mesh::new(settings, cache.clone(), deltas.clone()),
            cache,
            deltas,
            place: Place {
                directory: directory.join("mesh"),
                own: name("east"),
                max_clusters: MaxClusters::C255,
            },
        }
    }

    fn deltas(&self) -> Vec<Delta> {
        let batch = self.deltas.try_pop_batch(usize::MAX);
        batch.map_or_else(Vec::new, |batch| batch.items)
    }

    fn list(&mut self, entries: &[(String, String)]) -> Vec<Delta> {
        let kind = Kind::Ips;
        let entries = entries.iter().map(|(key, value)| upsert(key, value));
        let begin = [KeyEvent::BeginList { kind }];
        let events = begin.into_iter().chain(entries);
        let events = events.chain([KeyEvent::EndList { kind }]);
        self.mesh.apply(&name("west"), events);
        self.deltas()
    }

    fn save(&self) {
        let (cache, view) = (&self.cache, self.mesh.view());
        self.place.save_all(cache, &view, &mut Saved::new());
    }

    /// Restores into the mesh task; returns the mesh when that has taken everything in.
    async fn restore(self) -> (View, Deltas, mpsc::Sender<MemberEvent>, CancellationToken) {
        let (join, joining) = members::channel();
        let (view, deltas, cancel) = (self.mesh.view(), self.deltas, CancellationToken::new());
        let (mesh, token) = (self.mesh, cancel.clone());
        tokio::spawn(members::run(mesh, joining, token));
        let restored = Restored::default();
        let registry = admission::registry(&self.place.directory);
        restored.load(self.place, &join, &view, &registry).await;
        let session = restored.take(&name("west")).expect("west was saved");
        (view, deltas, session, cancel)
    }
}

fn target(n: u32) -> Delta {
    Delta::Ip {
        prefix: ip(n).0.parse().unwrap(),
        target: Some(IpTarget {
            identity: IdentityId(131_073),
            cluster: id(2),
        }),
    }
}

/// Goal: what a process knew is known to the next one before the peer answers; a list then withdraws
/// what is gone and tells nothing else anew.
#[tokio::test]
async fn the_mesh_outlives_a_restart_and_the_first_list_corrects_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Process::new(dir.path());
    first.mesh.connected(&name("west"), terms(2));
    first.list(&[ip(1), ip(2)]);
    first
        .mesh
        .apply(&name("west"), [upsert("10.2.0.3", "{not json")]);
    first.save();

    let second = Process::new(dir.path());
    let cache = second.cache.clone();
    let (view, deltas, session, cancel) = second.restore().await;
    let mut told = deltas.pop_batch(9).await.items;
    while told.len() < 2 {
        told.extend(deltas.pop_batch(9).await.items);
    }
    assert_eq!(told, [target(1), target(2)]);
    assert!(view.restored.contains(&(name("west"), Kind::Ips)));
    assert_eq!(*view.terms.get(&name("west")).unwrap(), terms(2));
    let cached = |key: &str| cache.get(key.as_bytes()).map(|kv| kv.value);
    assert!(cached("cilium/cluster-config/west").is_some());
    assert_eq!(
        cached("cilium/cache/ip/v1/west/10.2.0.3").unwrap(),
        "{not json"
    );
    let canary = "cilium/synced/west/cilium/cache/ip/v1";
    assert_eq!(cached(canary), None, "not before a list confirms it");

    let kind = Kind::Ips;
    let (kept, value) = ip(1);
    let before = cache.revision();
    let events = vec![
        KeyEvent::BeginList { kind },
        upsert(&kept, &value),
        KeyEvent::EndList { kind },
    ];
    let name = name("west");
    let keys = MemberEvent::Keys {
        name: name.clone(),
        events,
    };
    session.send(keys).await.unwrap();
    let withdrawn = deltas.pop_batch(9).await.items;
    let gone = Delta::Ip {
        prefix: ip(2).0.parse().unwrap(),
        target: None,
    };
    assert_eq!(withdrawn, [gone]);
    while cached(canary).is_none() {
        tokio::task::yield_now().await;
    }
    assert!(!view.restored.contains(&(name, kind)));
    // Two entries went and two canaries came; the one that stayed was not written.
    assert_eq!(cache.revision(), before + 4);
    cancel.cancel();
}

#[test]
fn files_that_are_damaged_foreign_or_cut_are_none_and_never_end_us() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path());
    process.mesh.connected(&name("west"), terms(2));
    process.list(&[ip(1)]);
    process.save();
    let path = process.place.directory.join("west");
    let good = fs::read(&path).unwrap();
    assert_eq!(process.place.read_all().len(), 1);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        assert_eq!(process.place.read_all(), [], "byte {at}");
        assert!(Image::read(&good[..at], MaxClusters::C255).is_err());
    }
    // Of another cluster, or none at all.
    fs::write(&path, &good).unwrap();
    fs::rename(&path, process.place.directory.join("north")).unwrap();
    fs::write(process.place.directory.join(".part"), "x").unwrap();
    fs::write(process.place.directory.join("empty"), "").unwrap();
    assert_eq!(process.place.read_all(), []);
}

#[test]
fn what_was_removed_does_not_come_back_and_what_is_as_before_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path());
    process.mesh.connected(&name("west"), terms(2));
    process.list(&[ip(1)]);
    let (view, mut saved) = (process.mesh.view(), Saved::new());
    process.place.save_all(&process.cache, &view, &mut saved);
    let path = process.place.directory.join("west");
    fs::write(&path, "mine").unwrap();
    process.place.save_all(&process.cache, &view, &mut saved);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    process.list(&[ip(1), ip(2)]);
    process.place.save_all(&process.cache, &view, &mut saved);
    assert_eq!(process.place.read_all()[0].entries.len(), 2);
    // Only what it was let in on is another.
    let narrower = Terms {
        allowed_cidrs: ["10.2.0.0/24".parse().unwrap()].into(),
        ..terms(2)
    };
    process.mesh.connected(&name("west"), narrower.clone());
    process.place.save_all(&process.cache, &view, &mut saved);
    assert_eq!(process.place.read_all()[0].terms, narrower);
    process.mesh.removed(&name("west"), Instant::now());
    process.place.save_all(&process.cache, &view, &mut saved);
    assert!(!path.exists());
}

/// Goal: whoever was restored and never had a session goes with its file, whatever was in that.
#[tokio::test]
async fn restored_peer_whose_file_was_never_good_goes_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Process::new(dir.path());
    first.mesh.connected(&name("west"), terms(2));
    first.list(&[ip(1)]);
    first.save();

    let process = Process::new(dir.path());
    let (join, joining) = members::channel();
    let (view, cancel) = (process.mesh.view(), CancellationToken::new());
    tokio::spawn(members::run(process.mesh, joining, cancel.clone()));
    let restored = Restored::default();
    let peers = dir.path().join("peers");
    fs::create_dir(&peers).unwrap();
    let file = peers.join("west.config");
    fs::write(&file, "endpoints: [nonsense").unwrap();
    let registry = registry(&peers, &restored);
    restored.load(process.place, &join, &view, &registry).await;
    let run = registry.clone().run(cancel.clone());
    let watch = async {
        while view.addresses.is_empty() || registry.statuses().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        fs::remove_file(&file).unwrap();
        while !view.addresses.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cancel.cancel();
    };
    let withdrawn = async { tokio::join!(run, restored.prune(registry.clone()), watch) };
    let withdrawn = tokio::time::timeout(Duration::from_secs(20), withdrawn).await;
    assert!(withdrawn.is_ok(), "it is still there");
    assert!(restored.lock().is_empty());
}

/// Peers by the files in `directory`; none of them is dialled.
fn registry(directory: &Path, restored: &Restored) -> peer::Registry {
    let options = peer::Options {
        directory: directory.to_owned(),
        cluster: name("east"),
        id: id(1),
        max_clusters: MaxClusters::C255,
        cache_ttl: None,
        trust: None,
        clock: crate::telemetry::wall_clock,
        timing: peer::Timing::default(),
        dial: peer::Dial::default(),
        random: peer::Random::default(),
        route: tokio::sync::watch::Sender::new(peer::Route::Direct).subscribe(),
    };
    let restored = restored.clone();
    peer::Registry::new(options, move |name| {
        let channel = restored.take(name);
        channel.expect("only west has a file, and was restored")
    })
}

#[test]
fn saving_takes_its_share_and_no_more() {
    let (least, most) = limits::SAVE_INTERVAL;
    assert_eq!(pause(Duration::from_millis(1), 1 << 10), least);
    let second = Duration::from_secs(1);
    assert_eq!(pause(second / 5, 0), 20 * second);
    assert_eq!(pause(Duration::ZERO, 60 << 20), 60 * second);
    assert_eq!(pause(60 * second, u64::MAX), most);
}
