//! Made-up packets through both programs by BPF test run, over maps that the reconciler filled:
//! what passes, what is dropped, and what is said about it.
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{HashMap, Map, MapData};
use tombolo::{
    enforcer::{
        Change, Event, Options,
        datapath::Datapath as _,
        events,
        kernel::{
            Counters, Events, Kernel, SCHEMA,
            test_run::{Program, Programs},
        },
        reconcile::Reconciler,
    },
    mesh::IpTarget,
    policy::{Direction, EndpointMode, MapDelta, PolicyEntry, PolicyKey, Votes},
    test_support::frame::Frame,
    types::{ClusterId, EndpointEvent, EndpointId, IdentityId, Labels, LocalEndpoint, MaxClusters},
};

use crate::lab::{DB, EMPLOYEE, STRANGER, v6};

mod flows;
mod fragments;
pub(crate) mod frame;
mod pressure;
mod source;
mod strange;
mod verdicts;

const DB_ID: IdentityId = IdentityId(101 << 16 | 1);
const EMPLOYEE_ID: IdentityId = IdentityId(102 << 16 | 2);
const STRANGER_ID: IdentityId = IdentityId(102 << 16 | 3);
const WORLD_V4: IdentityId = IdentityId(9);
const WORLD_V6: IdentityId = IdentityId(10);
const ENDPOINT: EndpointId = EndpointId(1);
const BPF_ROOT: &str = "/sys/fs/bpf";

const DENIED: &str = "Policy denied";
const INVALID: &str = "Invalid packet";
const SPOOFED: &str = "Invalid source ip";
const FRAGMENT: &str = "First logical datagram fragment not found";

use Direction::{Egress, Ingress};

/// The database's endpoint with its programs and maps, and nobody on the wire.
struct Datapath {
    reconciler: Reconciler<Kernel>,
    programs: Programs,
    events: Events,
    counters: Counters,
    ifindex: u32,
}

impl Datapath {
    /// The database has no policy yet; employee and stranger are known by both addresses.
    fn start(options: &Options) -> Self {
        let options = Options {
            bpf_root: PathBuf::from(BPF_ROOT),
            ..options.clone()
        };
        let (kernel, events, counters) = Kernel::open(&options).unwrap();
        let ifindex = kernel.ifindex("lxcdb").unwrap();
        let reconciler = Reconciler::open(kernel, &options).unwrap();
        let mut datapath = Self {
            reconciler,
            programs: Programs::open(&options).unwrap(),
            events,
            counters,
            ifindex,
        };
        datapath.apply([
            endpoint(),
            known(DB, Some(DB_ID)),
            known(&v6(DB), Some(DB_ID)),
            known(EMPLOYEE, Some(EMPLOYEE_ID)),
            known(&v6(EMPLOYEE), Some(EMPLOYEE_ID)),
            known(STRANGER, Some(STRANGER_ID)),
            known(&v6(STRANGER), Some(STRANGER_ID)),
            Change::Endpoint(EndpointEvent::Synced),
        ]);
        datapath
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.reconciler.apply(changes);
        let status = self.reconciler.status();
        assert_eq!(status.last_error, None);
        assert!(status.problems.is_empty(), "{:?}", status.problems);
    }

    /// Runs a frame towards (ingress) or from (egress) the database; true if it passes.
    fn passes(&mut self, direction: Direction, frame: &[u8]) -> bool {
        let run = self.try_passes(direction, frame);
        run.unwrap_or_else(|error| panic!("{error}: {frame:02x?}"))
    }

    /// Same; fails if the kernel does not run programs on such a frame.
    fn try_passes(&mut self, direction: Direction, frame: &[u8]) -> std::io::Result<bool> {
        let program = match direction {
            Ingress => Program::ToContainer,
            Egress => Program::FromContainer,
        };
        let run = self.programs.run(program, frame, self.ifindex, 1)?;
        Ok(!run.dropped)
    }

    /// The index of an interface that no endpoint is behind.
    fn other_interface(&self) -> u32 {
        std::fs::read_to_string("/sys/class/net/lxcemployee/ifindex")
            .map_or(1, |text| text.trim().parse().unwrap())
    }

    /// What was reported since the last call.
    fn reported(&mut self) -> Vec<Event> {
        let mut reported = Vec::new();
        self.events
            .drain(|bytes| reported.push(events::decode(bytes, 0).unwrap()));
        reported
    }

    /// Runs a frame that must pass.
    #[track_caller]
    fn pass(&mut self, direction: Direction, what: &str, frame: &Frame) {
        let passed = self.passes(direction, &frame.bytes());
        let reported = self.reported();
        assert!(passed, "{what}: {reported:?}");
    }

    /// Runs a frame that must be dropped for this reason, and reported so.
    #[track_caller]
    fn drop(&mut self, direction: Direction, what: &str, reason: &str, frame: &[u8]) {
        let passed = self.passes(direction, frame);
        let reported = self.reported();
        assert!(!passed, "{what} passed");
        let [event] = &reported[..] else {
            panic!("{what}: {reported:?}")
        };
        assert_eq!(
            (event.reason, event.direction),
            (reason, direction),
            "{what}"
        );
        assert_eq!(
            (event.kind, event.action),
            (events::Kind::Drop, events::Action::Deny)
        );
    }

    /// Same for a frame that policy denies.
    #[track_caller]
    fn deny(&mut self, direction: Direction, what: &str, frame: &Frame) {
        self.drop(direction, what, DENIED, &frame.bytes());
    }

    /// Forgets all flows, as if others had needed their room.
    fn forget_flows(&self) {
        forget::<20>("conntrack_v4");
        forget::<44>("conntrack_v6");
    }
}

/// Deletes the rows of a conntrack map with keys of `KEY` bytes; how many there were.
fn forget<const KEY: usize>(map: &str) -> usize {
    let pin = Path::new(BPF_ROOT).join("tombolo").join(SCHEMA).join(map);
    let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
    let mut map: HashMap<_, [u8; KEY], [u8; 24]> = HashMap::try_from(map).unwrap();
    let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
    keys.iter().for_each(|key| map.remove(key).unwrap());
    keys.len()
}

/// The addresses of a pod.
fn both(address: &str) -> [IpAddr; 2] {
    [address.parse().unwrap(), v6(address).parse().unwrap()]
}

/// Database and employee in each family.
fn families() -> [(IpAddr, IpAddr); 2] {
    let [db4, db6] = both(DB);
    let [employee4, employee6] = both(EMPLOYEE);
    [(db4, employee4), (db6, employee6)]
}

/// Source and destination of a packet in this direction.
fn ends<T>(direction: Direction, db: T, other: T) -> (T, T) {
    match direction {
        Ingress => (other, db),
        Egress => (db, other),
    }
}

fn endpoint() -> Change {
    Change::Endpoint(EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id: ENDPOINT,
        identity: DB_ID,
        labels: Arc::new(Labels::default()),
        namespace: "default".into(),
        name: "db".into(),
        addresses: both(DB).to_vec(),
        interface: Some("lxcdb".into()),
        named_ports: Vec::new(),
        audit: false,
    })))
}

fn known(prefix: &str, identity: Option<IdentityId>) -> Change {
    let of = |identity: IdentityId| IpTarget {
        identity,
        // Reserved identities are of the own cluster here.
        cluster: ClusterId::new((identity.0 >> 16).max(1), MaxClusters::C255).unwrap(),
    };
    Change::Ip {
        prefix: prefix.parse().unwrap(),
        target: identity.map(of),
    }
}

fn mode(change: impl FnOnce(&mut EndpointMode)) -> Change {
    let mut mode = EndpointMode::default();
    change(&mut mode);
    Change::Map(MapDelta::Endpoint {
        endpoint: ENDPOINT,
        mode,
    })
}

/// Default deny in both directions.
fn closed() -> Change {
    mode(|mode| {
        mode.default_deny.ingress = true;
        mode.default_deny.egress = true;
    })
}

/// An entry: identity (0 any), protocol (0 all), port and how many of its bits count.
fn entry(
    direction: Direction,
    identity: IdentityId,
    (protocol, port, port_bits): (u8, u16, u8),
    votes: Votes,
    rule: u32,
) -> Change {
    let key = PolicyKey {
        endpoint: ENDPOINT,
        identity,
        direction,
        protocol,
        port,
        port_bits,
    };
    let value = (votes != Votes::NONE).then_some(PolicyEntry { votes, rule });
    Change::Map(MapDelta::Entry { key, value })
}
