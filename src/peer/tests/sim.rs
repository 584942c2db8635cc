//! Many peers over a bad network, in virtual time: the shipped session, follower, members' queues,
//! mesh, store and etcd face; only sockets, TLS and the directory are left out.
//!
//! Goal: after quiet every mesh holds exactly what its peers may say; nothing that was valid all
//! the time is ever withdrawn; nothing forbidden is ever seen. Method: seeded faults against
//! sessions in every state, a recorder of each change of the cache and each delta.
//! A failing seed is printed; `TOMBOLO_SIM_SEED=<seed>` plays it alone, and `TOMBOLO_SIM_SEEDS=<count>`
//! plays so many instead of the few of every run. The seed fixes faults, delays and their times; only
//! the order of what happens in the same instant is left to hash maps and the runtime.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::{
    book::{Book, cache_key, record_cache, record_deltas},
    fault::{Bug, FAULTS, Fault, STATES, State},
    site::Site,
};
use super::net::{Lots, Way, lock};
use crate::{
    app::members,
    follower::{Sink, planted},
    keyspace::{ClusterConfig, KeyEvent, Kind},
    mesh::{Deltas, Mesh, Settings, View},
    peer::{
        ConfigFile, Dial, Layer, MemberEvent, Options, Random, Timing,
        actor::{self, Desired},
        link::Context,
        shared::Shared,
    },
    store::{self, Store},
    types::{ClusterId, ClusterName, MaxClusters},
};

mod book;
mod fault;
mod site;

/// Seeds of every run; each plays for some minutes of virtual time.
const SEEDS: u64 = 30;
const STEPS: usize = 60;
const SITES: usize = 4;
const READERS: usize = 2;

struct Session {
    reader: usize,
    site: usize,
    way: Way,
    desired: watch::Sender<Desired>,
    versions: u64,
}

struct Reader {
    shared: Arc<Shared>,
    options: Arc<Options>,
    cache: Store,
    view: View,
}

struct World {
    lots: Lots,
    sites: Vec<Arc<Mutex<Site>>>,
    readers: Vec<Reader>,
    sessions: Vec<Session>,
    book: Arc<Mutex<Book>>,
    met: BTreeSet<(Fault, State)>,
    beaten: Instant,
    tasks: JoinSet<()>,
}

fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

impl World {
    async fn new(seed: u64, bug: Option<Bug>) -> Self {
        let lots = Lots::new(seed);
        let site = |index: usize| {
            let net = u32::try_from(index).unwrap() + 1;
            Arc::new(Mutex::new(Site::new(
                &format!("site{net}"),
                net,
                lots.clone(),
            )))
        };
        let mut world = Self {
            sites: (0..SITES).map(site).collect(),
            lots,
            readers: Vec::new(),
            sessions: Vec::new(),
            book: Arc::default(),
            met: BTreeSet::new(),
            beaten: Instant::now(),
            tasks: JoinSet::new(),
        };
        planted::resume_across_cluster_ids(bug == Some(Bug::ResumeAcrossClusterIds));
        for reader in 0..READERS {
            world.add_reader(reader, bug).await;
        }
        world
    }

    async fn add_reader(&mut self, reader: usize, bug: Option<Bug>) {
        let id = ClusterId::new(100 + u32::try_from(reader).unwrap(), MaxClusters::C255).unwrap();
        let cluster = name(&format!("reader{reader}"));
        let settings = Settings {
            cluster_name: cluster.clone(),
            cluster_id: id,
            max_clusters: MaxClusters::C255,
            node_name: "n1".into(),
        };
        let cache = Store::new(store::Options {
            cluster_id: 7,
            history_max: 100_000,
        });
        let deltas = Deltas::new(100_000);
        let mesh = Mesh::new(settings, cache.clone(), deltas.clone());
        let view = mesh.view();
        let (join, joining) = members::channel();
        self.tasks
            .spawn(members::run(mesh, joining, CancellationToken::new()));
        self.tasks
            .spawn(record_cache(reader, cache.clone(), Arc::clone(&self.book)));
        self.tasks
            .spawn(record_deltas(reader, deltas, Arc::clone(&self.book)));
        self.tasks
            .spawn(own(join.join(cluster.clone()), cluster.clone(), id));

        let ways: Vec<Way> = (0..SITES).map(|_| Way::new(self.lots.clone())).collect();
        let shared = Arc::new(Shared::default());
        let options = Arc::new(self.options(cluster, id, &ways));
        for (site, way) in ways.into_iter().enumerate() {
            let site_name = lock(&self.sites[site]).name.clone();
            let mut sender = join.join(site_name.clone());
            if let Some(bug) = bug {
                let (tampered, receiver) = mpsc::channel(4);
                let honest = std::mem::replace(&mut sender, tampered);
                self.tasks.spawn(tamper(bug, receiver, honest));
            }
            let keys_of = site_name.clone();
            let context = Context {
                name: site_name,
                options: Arc::clone(&options),
                shared: Arc::clone(&shared),
                sink: Sink::new(sender, move |events| MemberEvent::Keys {
                    name: keys_of.clone(),
                    events,
                }),
            };
            let (desired, receiver) = watch::channel(running(0));
            self.tasks.spawn(actor::run(context, receiver));
            self.sessions.push(Session {
                reader,
                site,
                way,
                desired,
                versions: 0,
            });
        }
        self.readers.push(Reader {
            shared,
            options,
            cache,
            view,
        });
        tokio::task::yield_now().await;
    }

    fn options(&self, cluster: ClusterName, id: ClusterId, ways: &[Way]) -> Options {
        let named = |(site, way): (&Arc<Mutex<Site>>, &Way)| {
            let name = lock(site).name.clone();
            (name, (Arc::clone(site), way.clone()))
        };
        let known: HashMap<_, _> = self.sites.iter().zip(ways).map(named).collect();
        let dial = Dial::new(move |name, _, endpoint| {
            let (site, way) = known[name].clone();
            // Its second endpoint is always dead.
            let dead = endpoint.port == 2;
            Box::pin(async move {
                let way = if dead { Way::refusing() } else { way };
                way.dial(|| lock(&site).store()).await
            })
        });
        let lots = self.lots.clone();
        Options {
            directory: "/none".into(),
            cluster,
            id,
            max_clusters: MaxClusters::C255,
            cache_ttl: None,
            trust: None,
            clock: || SystemTime::UNIX_EPOCH,
            timing: Timing::default(),
            dial,
            random: Random::new(move || lots.fraction()),
            route: watch::channel(crate::peer::Route::Direct).1,
        }
    }

    /// Lets virtual time pass; heartbeats go on, and stores that are being filled get full.
    async fn pass(&mut self, time: Duration) {
        sleep(time).await;
        if self.beaten.elapsed() > Duration::from_secs(30) {
            self.beaten = Instant::now();
            self.sites.iter().for_each(|site| lock(site).beat());
        }
        self.note_deaths();
    }

    fn note_deaths(&self) {
        let mut book = lock(&self.book);
        for site in &self.sites {
            let site = lock(site);
            for (entry, deaths) in &site.deaths {
                book.deaths.insert(cache_key(&site.name, entry), *deaths);
            }
        }
    }

    fn state(&self, session: &Session) -> State {
        if matches!(*session.desired.borrow(), Desired::Removed) {
            return State::Removed;
        }
        let name = lock(&self.sites[session.site]).name.clone();
        let reader = &self.readers[session.reader];
        let mut statuses = reader.shared.statuses(&reader.options).into_iter();
        match statuses.find(|status| status.name == name) {
            Some(status) if status.ready => State::Synced,
            Some(status) if status.layer == Some(Layer::ClusterConfig) => {
                if status.connected {
                    State::Unaccepted
                } else {
                    State::Down
                }
            }
            Some(status) if status.connected => State::Listing,
            _ => State::Down,
        }
    }

    async fn step(&mut self) {
        let wait = match self.lots.below(4) {
            0 => 3_000,
            1 => 300,
            _ => 30,
        };
        let wait = self.lots.below(wait);
        self.pass(Duration::from_millis(wait)).await;
        for site in &self.sites {
            let mut site = lock(site);
            if self.lots.below(2) == 0 {
                site.mutate();
            }
            if !site.is_complete() && self.lots.below(6) == 0 {
                site.finish();
            }
            if !site.has_config() && self.lots.below(6) == 0 {
                let config = site.good_config();
                site.config(Some(&config));
            }
        }
        self.note_deaths();
        for session in 0..self.sessions.len() {
            let session = &self.sessions[session];
            if self.lots.below(8) == 0 {
                session.way.heal();
            }
            if matches!(*session.desired.borrow(), Desired::Removed) && self.lots.below(12) == 0 {
                session.desired.send_replace(running(session.versions));
            }
        }
        if self.lots.below(5) < 3 {
            let draw = || {
                let session = self.lots.index(self.sessions.len());
                (session, FAULTS[self.lots.index(FAULTS.len())])
            };
            // Rather one that did not meet this state yet.
            let drawn = [draw(), draw(), draw(), draw()];
            let fresh = |(session, fault): &&(usize, Fault)| {
                !self
                    .met
                    .contains(&(*fault, self.state(&self.sessions[*session])))
            };
            let (session, fault) = *drawn.iter().find(fresh).unwrap_or(&drawn[0]);
            self.strike(session, fault);
        }
    }

    fn strike(&mut self, index: usize, fault: Fault) {
        let session = &self.sessions[index];
        let (struck, site) = (session.site, Arc::clone(&self.sites[session.site]));
        let concerned: Vec<State> = self
            .sessions
            .iter()
            .enumerate()
            .filter(|(other, session)| {
                *other == index || (fault.is_sites() && session.site == struck)
            })
            .map(|(_, session)| self.state(session))
            .collect();
        self.met
            .extend(concerned.into_iter().map(|state| (fault, state)));
        let mut site = lock(&site);
        let reset = |reader: usize, name: &ClusterName| {
            let key = (reader, name.clone());
            *lock(&self.book).resets.entry(key).or_default() += 1;
        };
        match fault {
            Fault::Cut => session.way.cut(),
            Fault::Refuse => session.way.refuse(true),
            Fault::Freeze => session.way.freeze(true),
            Fault::Slow => session.way.slow(800),
            Fault::Compact => site.compact(),
            Fault::ExpireLease => site.expire(),
            Fault::LoseConfig => site.config(None),
            Fault::SpoilConfig => site.config(Some("{not")),
            Fault::Wipe | Fault::WipeSameId => site.wipe(fault == Fault::WipeSameId),
            Fault::Swap => site.swap(),
            Fault::Renumber => {
                (0..READERS).for_each(|reader| reset(reader, &site.name));
                site.renumber();
            }
            Fault::RemoveFile => {
                reset(session.reader, &site.name);
                session.desired.send_replace(Desired::Removed);
            }
            Fault::ChangeFile => {
                let running = running(session.versions + 1);
                if !matches!(*session.desired.borrow(), Desired::Removed) {
                    session.desired.send_replace(running);
                }
            }
        }
        drop(site);
        self.sessions[index].versions += u64::from(fault == Fault::ChangeFile);
        if fault.replaces_store() {
            // The old server is gone; behind a balancer its connections may hang on for a while.
            let lingers = fault == Fault::Swap && self.lots.below(2) == 0;
            let sessions = self
                .sessions
                .iter()
                .filter(|s| s.site == struck && !lingers);
            sessions.for_each(|session| session.way.cut());
        }
        self.note_deaths();
    }

    /// Everything is put right, and in time every mesh must be as it should.
    async fn quiet(&mut self) -> Result<(), String> {
        for site in &self.sites {
            let mut site = lock(site);
            let config = site.good_config();
            site.config(Some(&config));
            site.finish();
        }
        for session in &self.sessions {
            session.way.heal();
            let removed = matches!(*session.desired.borrow(), Desired::Removed);
            if removed {
                session.desired.send_replace(running(session.versions));
            }
        }
        let mut last = String::new();
        // Longer than a heartbeat may stay away, an attempt may hang and a delay may last.
        for _ in 0..240 {
            self.pass(Duration::from_secs(1)).await;
            match self.difference() {
                None => return Ok(()),
                Some(difference) => last = difference,
            }
        }
        Err(format!("not as it should be after quiet: {last}"))
    }

    fn difference(&self) -> Option<String> {
        for (index, reader) in self.readers.iter().enumerate() {
            let mut expected = BTreeMap::new();
            for site in &self.sites {
                let site = lock(site);
                let entries = site.truth.iter();
                expected.extend(entries.map(|(e, v)| (cache_key(&site.name, e), v.clone())));
            }
            let found = cached(&reader.cache);
            if found != expected {
                let missing = expected.iter().find(|(k, v)| found.get(*k) != Some(v));
                let surplus = found.keys().find(|key| !expected.contains_key(*key));
                return Some(format!(
                    "reader{index}: missing {missing:?}, surplus {surplus:?}"
                ));
            }
            let addresses = expected
                .keys()
                .filter(|key| key.contains("/ip/v1/"))
                .count();
            let nodes = expected
                .keys()
                .filter(|key| key.contains("/nodes/v1/"))
                .count();
            let own = 1;
            let shown = reader.view.addresses.len();
            if shown != addresses + nodes + own {
                return Some(format!("reader{index} shows {shown} addresses"));
            }
        }
        for session in &self.sessions {
            if self.state(session) != State::Synced {
                let (reader, site) = (session.reader, session.site);
                return Some(format!("reader{reader} is not synced with site {site}"));
            }
        }
        None
    }
}

fn running(version: u64) -> Desired {
    let text = format!("# {version}\nendpoints: [http://site:1, http://site:2]\n");
    let file = ConfigFile::parse(&text, Path::new("/none")).unwrap();
    Desired::Running(Arc::new(("/none/site".into(), file)))
}

/// The entries of a cache.
fn cached(cache: &Store) -> BTreeMap<String, String> {
    let range = store::RangeRequest {
        range: store::KeyRange::prefix(b"cilium/cache/"),
        ..store::RangeRequest::default()
    };
    let found = cache.range(&range).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pairs = found.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value)));
    pairs.collect()
}

/// The reader's own cluster: one node, whose range no peer may use.
async fn own(sender: mpsc::Sender<MemberEvent>, cluster: ClusterName, id: ClusterId) {
    let number = id.get();
    let node = format!(
        r#"{{"Name":"n1","Cluster":"{cluster}","ClusterID":{number},"IPAddresses":[{{"Type":"InternalIP","IP":"192.0.2.1"}}],"IPv4AllocCIDR":{{"IP":"172.16.0.0","Mask":"//8AAA=="}}}}"#
    );
    let kind = Kind::Nodes;
    let connected = MemberEvent::Connected {
        name: cluster.clone(),
        id,
        config: ClusterConfig::default(),
        allowed_cidrs: Arc::default(),
        relayed: false,
    };
    let keys = MemberEvent::Keys {
        name: cluster,
        events: vec![
            KeyEvent::BeginList { kind },
            KeyEvent::Upsert {
                kind,
                suffix: "n1".into(),
                value: node.into(),
                revision: 1,
            },
            KeyEvent::EndList { kind },
        ],
    };
    sender.send(connected).await.unwrap();
    sender.send(keys).await.unwrap();
    // The member stays.
    sender.closed().await;
}

/// Stands between a session and the mesh, and does what a bug in the follower would.
async fn tamper(bug: Bug, mut from: mpsc::Receiver<MemberEvent>, to: mpsc::Sender<MemberEvent>) {
    while let Some(mut event) = from.recv().await {
        if let MemberEvent::Keys { events, .. } = &mut event {
            match bug {
                Bug::SweepBeforeListDone => {
                    if let [KeyEvent::BeginList { kind }] = events[..] {
                        events.push(KeyEvent::EndList { kind });
                    }
                }
                Bug::LostDelete => events.retain(|e| !matches!(e, KeyEvent::Delete { .. })),
                Bug::ResumeAcrossClusterIds => {}
            }
            if events.is_empty() {
                continue;
            }
        }
        if to.send(event).await.is_err() {
            return;
        }
    }
}

/// Plays one seed; the first thing that is wrong, if any.
fn play(seed: u64, bug: Option<Bug>) -> (Result<(), String>, BTreeSet<(Fault, State)>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, bug).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        let settled = world.quiet().await;
        let violation = lock(&world.book).violations.first().cloned();
        let result = violation.map_or(settled, Err);
        (result, std::mem::take(&mut world.met))
    })
}

fn seeds() -> std::ops::Range<u64> {
    let number = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("TOMBOLO_SIM_SEED") {
        return seed..seed + 1;
    }
    0..number("TOMBOLO_SIM_SEEDS").unwrap_or(SEEDS)
}

#[test]
fn meshes_hold_what_peers_say_and_nothing_valid_flaps() {
    let (mut met, mut failed) = (BTreeSet::new(), Vec::new());
    let seeds = seeds();
    let all = seeds.end - seeds.start >= SEEDS;
    for seed in seeds {
        let (result, of_seed) = play(seed, None);
        met.extend(of_seed);
        failed.extend(result.err().map(|error| format!("seed {seed}: {error}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let pairs = FAULTS
        .iter()
        .flat_map(|fault| STATES.map(|state| (*fault, state)));
    let unmet: Vec<_> = pairs.filter(|pair| !met.contains(pair)).collect();
    assert!(
        !all || unmet.is_empty(),
        "faults that missed a state: {unmet:?}"
    );
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::SweepBeforeListDone,
        Bug::ResumeAcrossClusterIds,
        Bug::LostDelete,
    ] {
        let found = (0..SEEDS).find_map(|seed| Some((seed, play(seed, Some(bug)).0.err()?)));
        let (seed, error) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        let (again, _) = play(seed, Some(bug));
        assert!(again.is_err(), "{bug:?}: seed {seed} does not replay");
        // How it shows is part of what is wanted.
        let flap = error.contains("withdrew");
        assert_eq!(
            flap,
            bug == Bug::SweepBeforeListDone,
            "{bug:?}, seed {seed}: {error}"
        );
    }
}
