//! What a peer sees of a node's export, event by event: a process in the node's namespace that
//! watches with a `remote` certificate, from the export's first revision on, and comes back whenever
//! the connection ends.
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tombolo::{
    etcd::{self, Client, ConnectOptions, Watch},
    test_support::{lab::Namespace, unix_ms},
    tls::ClientOptions,
};

use crate::lab::{Helper, serve};

/// As in `lab::helper`.
pub(crate) const ROLE: &str = "export";
/// Where every agent listens.
const ADDRESS: &str = "https://127.0.0.1:2379";
/// All that a peer may watch as ranges.
const PREFIXES: [&str; 3] = ["cilium/.heartbeat", "cilium/state/", "cilium/synced/west/"];
/// Before the next try to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// A change of a key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When it came, Unix time.
    pub(crate) at_ms: u64,
    pub(crate) key: String,
    /// `None` for a deletion.
    pub(crate) value: Option<String>,
    /// Of the put, 0 for a deletion.
    pub(crate) revision: i64,
}

/// What came over one connection: for each prefix in revision order.
pub(crate) type Session = Vec<Event>;

/// The recording process; ended when dropped.
pub(crate) struct Recorder(Helper);

impl Recorder {
    /// Watches the export of the agent in `namespace` with the certificates in `certs`.
    pub(crate) fn start(namespace: &Namespace, certs: &Path) -> Self {
        let mut helper = Helper::start(ROLE, Some(namespace));
        assert_eq!(helper.ask(&certs.display().to_string()), "recording");
        Self(helper)
    }

    /// All that came so far, oldest session first; those in which nothing came are left out.
    pub(crate) fn sessions(&mut self) -> Vec<Session> {
        let sessions: Vec<Session> = serde_json::from_str(&self.0.ask("sessions")).unwrap();
        sessions.into_iter().filter(|s| !s.is_empty()).collect()
    }
}

type Sessions = Arc<Mutex<Vec<Session>>>;

/// The process: takes the directory of the certificates, then answers every line with the sessions.
pub(crate) fn helper() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let sessions = Sessions::default();
    serve(|words| match *words {
        ["sessions"] => serde_json::to_string(&*sessions.lock().unwrap()).unwrap(),
        [certs] => {
            runtime.spawn(record(PathBuf::from(certs), Arc::clone(&sessions)));
            "recording".to_owned()
        }
        _ => panic!("{words:?}"),
    });
}

async fn record(certs: PathBuf, sessions: Sessions) {
    let options = ConnectOptions {
        endpoints: vec![ADDRESS.parse().unwrap()],
        tls: ClientOptions {
            ca: Some(certs.join("ca.crt")),
            identity: Some((certs.join("remote.crt"), certs.join("remote.key"))),
            ..ClientOptions::default()
        },
        ..ConnectOptions::default()
    };
    loop {
        if let Ok(watches) = watch(&options).await {
            sessions.lock().unwrap().push(Session::new());
            let following = watches.into_iter().map(|w| Box::pin(follow(w, &sessions)));
            // The connection is theirs together.
            futures::future::select_all(following).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn watch(options: &ConnectOptions) -> Result<Vec<Watch>, etcd::Error> {
    let client = Client::connect(options, &options.endpoints[0]).await?;
    let mut watches = Vec::new();
    for prefix in PREFIXES {
        watches.push(client.watch(prefix, 1).await?);
    }
    Ok(watches)
}

async fn follow(mut watch: Watch, sessions: &Sessions) {
    while let Ok(Some(events)) = watch.recv().await {
        let mut sessions = sessions.lock().unwrap();
        let session = sessions.last_mut().expect("it was pushed before");
        session.extend(events.into_iter().map(event));
    }
}

fn event(event: etcd::Event) -> Event {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (key, value, revision) = match event {
        etcd::Event::Put(entry) => (text(&entry.key), Some(text(&entry.value)), entry.revision),
        etcd::Event::Delete { key } => (text(&key), None, 0),
    };
    Event {
        at_ms: unix_ms(),
        key,
        value,
        revision,
    }
}
