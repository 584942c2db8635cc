//! The policy programs on made-up packets, beside an empty program under the same test run. The
//! maps are the enforcer's own, pinned, and filled by policy engine and reconciler from a policy, a
//! workload behind a real veth, and a peer's identities and addresses.
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use tombolo::{
    enforcer::{
        self, Change,
        datapath::Datapath as _,
        kernel::{
            Kernel,
            test_run::{Flows, Program, Programs},
        },
        reconcile::Reconciler,
    },
    mesh::IpTarget,
    policy::{Enforcement, Engine, Options, Origin, parse},
    test_support::process::run_ok,
    types::{
        ClusterId, EndpointEvent, EndpointId, IdentityId, IpPrefix, Labels, LocalEndpoint,
        MaxClusters,
    },
};

use crate::{
    figure::{Figure, Runs, alternate},
    world::{self, ADDRESSES_PER_IDENTITY, Bpffs, COMMAND_LIMIT, EAST_ID, WEST},
};

/// The workload and its port.
const DATABASE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), 6379);
/// Its number on this node.
pub(crate) const DATABASE_ENDPOINT: EndpointId = EndpointId(1);
/// The host's end of its veth.
const INTERFACE: &str = "lxcdb";
/// Of the packet that repeats, before it is each flow's.
const CLIENT_PORT: u16 = 39_999;
/// The first identities are of strangers, whom no policy names; the others are clients.
pub(crate) const STRANGERS: u32 = 128;
/// The clients of flows that follow one another closely, and the first of their ports.
const WARM: Flows = Flows {
    count: 1024,
    client: Ipv4Addr::new(10, 64, 8, 0),
    port: 1024,
    answer: false,
};
/// New flows of a round: all rounds together leave room in the conntrack.
const FRESH: u32 = 1 << 14;
/// Several times the conntrack's room.
const CROWD: u32 = 1 << 20;
/// The clients' ports of the first round; each round has its own, so that its flows are new.
const FIRST_PORT: u16 = 40_000;
/// Prime to the number of clients: consecutive packets come from addresses far apart.
const STRIDE: u32 = 7_919;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The ports that the clients may use, as a policy lists them.
const PORTS: &str = "[{port: \"6379\", protocol: TCP}]";

fn policy(ports: &str) -> String {
    format!(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: db, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: db}}}}
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: client
        io.cilium.k8s.policy.cluster: east
        k8s:io.kubernetes.pod.namespace: shop
    toPorts: [{{ports: {ports}}}]
"
    )
}

/// Ethernet, IPv4 and TCP headers.
type Packet = [u8; 54];

/// How much of everything.
#[derive(Debug)]
struct Load {
    rounds: usize,
    /// What the ipcache holds of the peer.
    addresses: u32,
    /// How often one packet runs.
    repeat: u32,
    /// Packets of a round where each is another flow's.
    flows: u32,
}

const FULL: Load = Load {
    rounds: 11,
    addresses: 1_000_000,
    repeat: 1_000_000,
    flows: 20_000,
};
const QUICK: Load = Load {
    rounds: 5,
    addresses: 10_000,
    repeat: 100_000,
    flows: 5_000,
};

/// A figure: which program gets what, and what it must answer.
struct Case {
    name: &'static str,
    program: Program,
    dropped: bool,
    repeat: u32,
    packets: Box<dyn Fn(usize) -> Vec<Packet>>,
    /// Another flow at each repetition.
    flows: Option<Box<dyn Fn(usize) -> Flows>>,
}

/// Measures all cases.
pub(crate) fn measure(quick: bool) -> Result<Vec<Figure>> {
    let load = if quick { QUICK } else { FULL };
    let dir = tempfile::tempdir()?;
    let bpffs = dir.path().join("bpf");
    let _mounted = Bpffs::mount(bpffs.clone())?;
    let script = format!(
        "ip link add {INTERFACE} type veth peer name pod; ip link set {INTERFACE} up; \
         ip link set pod up"
    );
    run_ok(Command::new("sh").args(["-euc", &script]), COMMAND_LIMIT)?;
    // It also keeps the programs attached while the same ones run beside it.
    let (reconciler, ifindex) = enforce(&bpffs, load.addresses)?;
    let mut bench = Bench {
        programs: Programs::open(&options(&bpffs))?,
        ifindex,
    };
    let client = SocketAddrV4::new(WARM.client, CLIENT_PORT);
    let figures = cases(&load, client)
        .iter()
        .map(|case| bench.figure(case, load.rounds))
        .collect();
    drop(reconciler);
    figures
}

fn cases(load: &Load, client: SocketAddrV4) -> Vec<Case> {
    let (addresses, flows) = (load.addresses, load.flows);
    let each = |name, flags| Case {
        name,
        program: Program::ToContainer,
        dropped: false,
        repeat: 1,
        packets: Box::new(move |round| clients(addresses, flows, round, flags)),
        flows: None,
    };
    let warm = |name, program, dropped, packet: Packet, flows| Case {
        name,
        program,
        dropped,
        repeat: load.repeat,
        packets: Box::new(move |_| vec![packet]),
        flows: Some(Box::new(move |_| flows)),
    };
    let fresh = |round: usize| Flows {
        count: FRESH,
        // 1 024 clients have sixteen ports each.
        port: u16::try_from(2048 + round * 16).unwrap_or(u16::MAX),
        ..WARM
    };
    let crowd = Flows {
        count: CROWD,
        port: 4096,
        ..WARM
    };
    let answer = Flows {
        answer: true,
        ..WARM
    };
    let stranger = Flows {
        client: world::address(0),
        ..WARM
    };
    let (to, from) = (Program::ToContainer, Program::FromContainer);
    let syn = packet(client, DATABASE, SYN);
    vec![
        // In this order: the second asks for what the first wrote.
        warm("open", to, false, syn, WARM),
        warm(
            "established",
            to,
            false,
            packet(client, DATABASE, ACK),
            WARM,
        ),
        warm("answer", from, false, packet(DATABASE, client, ACK), answer),
        warm("drop", to, true, syn, stranger),
        Case {
            name: "new-flow",
            program: to,
            dropped: false,
            repeat: FRESH,
            packets: Box::new(move |_| vec![syn]),
            flows: Some(Box::new(fresh)),
        },
        warm("new-flow-full", to, false, syn, crowd),
        // Same here.
        each("new-flow-cold", SYN),
        each("established-cold", ACK),
    ]
}

/// One packet of each flow of a round.
fn clients(addresses: u32, flows: u32, round: usize, flags: u8) -> Vec<Packet> {
    let strangers = STRANGERS * ADDRESSES_PER_IDENTITY;
    let known = addresses - strangers;
    let port = FIRST_PORT.saturating_add(u16::try_from(round).unwrap_or(u16::MAX));
    (0..flows)
        .map(|n| {
            let client = world::address(strangers + n * STRIDE % known);
            packet(SocketAddrV4::new(client, port), DATABASE, flags)
        })
        .collect()
}

/// Checksums and lengths stay zero: the programs leave both to the kernel.
fn packet(from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Packet {
    let mut packet = [0; 54];
    packet[12..14].copy_from_slice(&[0x08, 0x00]); // IPv4
    packet[14] = 0x45; // version, header of 20 bytes
    packet[22] = 64; // time to live
    packet[23] = 6; // TCP
    packet[26..30].copy_from_slice(&from.ip().octets());
    packet[30..34].copy_from_slice(&to.ip().octets());
    packet[34..36].copy_from_slice(&from.port().to_be_bytes());
    packet[36..38].copy_from_slice(&to.port().to_be_bytes());
    packet[46] = 0x50; // header of 20 bytes
    packet[47] = flags;
    packet
}

struct Bench {
    programs: Programs,
    ifindex: u32,
}

impl Bench {
    fn figure(&mut self, case: &Case, rounds: usize) -> Result<Figure> {
        let this = std::cell::RefCell::new(self);
        let run = |round, program, dropped| {
            let packets = (case.packets)(round);
            let flows = case.flows.as_ref().map(|flows| flows(round));
            let mut this = this.borrow_mut();
            this.mean_ns(program, &packets, case.repeat, flows.as_ref(), dropped)
        };
        let (ours, theirs) = alternate(
            rounds,
            |round| run(round, case.program, case.dropped),
            |round| run(round, Program::Empty, false),
        )
        .with_context(|| case.name)?;
        let name = format!("datapath/{}", case.name);
        let (ours, theirs) = (Runs::new(ours), Runs::new(theirs));
        Ok(Figure::beside("empty program", name, "ns", &ours, &theirs))
    }

    /// Nanoseconds a packet; fails if any gets the wrong verdict.
    fn mean_ns(
        &mut self,
        program: Program,
        packets: &[Packet],
        repeat: u32,
        flows: Option<&Flows>,
        dropped: bool,
    ) -> Result<f64> {
        let mut seconds = 0.0;
        for packet in packets {
            let outcome = match flows {
                Some(flows) => {
                    self.programs
                        .run_flows(program, packet, self.ifindex, repeat, flows)
                }
                None => self.programs.run(program, packet, self.ifindex, repeat),
            };
            let outcome = outcome.with_context(|| format!("run {program:?}"))?;
            ensure!(
                outcome.dropped == dropped,
                "{program:?}: a packet was {}",
                if dropped { "passed" } else { "dropped" }
            );
            seconds += outcome.mean.as_secs_f64();
        }
        let count = u32::try_from(packets.len())?;
        Ok(seconds * 1e9 / f64::from(count))
    }
}

pub(crate) fn options(bpffs: &Path) -> enforcer::Options {
    enforcer::Options {
        bpf_root: bpffs.to_owned(),
        ..enforcer::Options::default()
    }
}

/// Has the enforcer put everything into the kernel; returns it with the workload's interface.
fn enforce(bpffs: &Path, addresses: u32) -> Result<(Reconciler<Kernel>, u32)> {
    let max = MaxClusters::C255;
    let options = options(bpffs);
    let (kernel, _, _) = Kernel::open(&options)?;
    let ifindex = kernel.ifindex(INTERFACE).context("find the veth")?;
    let mut reconciler = Reconciler::open(kernel, &options)?;
    reconciler.apply(changes(PORTS, INTERFACE, addresses, max)?);
    let status = reconciler.status();
    let all = usize::try_from(addresses)?;
    ensure!(
        status.last_error.is_none()
            && status.problems.is_empty()
            && status.enforced == 1
            && status.ipcache == all,
        "the enforcer did not follow: {status:?}"
    );
    Ok((reconciler, ifindex))
}

/// What the agent would tell the enforcer of the policy, the workload behind `interface` and the peer.
pub(crate) fn changes(
    ports: &str,
    interface: &str,
    addresses: u32,
    max: MaxClusters,
) -> Result<Vec<Change>> {
    let cluster = ClusterId::new(EAST_ID, max).context("cluster id")?;
    let options = Options {
        cluster: WEST.parse()?,
        default_local_cluster: true,
        enforcement: Enforcement::Default,
    };
    let mut engine = Engine::new(options, []);
    let mut out = Vec::new();
    for n in 0..addresses / ADDRESSES_PER_IDENTITY {
        let app = if n < STRANGERS { "stranger" } else { "client" };
        let labels = Labels::parse(&format!(
            "k8s:app={app};k8s:io.cilium.k8s.policy.cluster=east;\
             k8s:io.kubernetes.pod.namespace=shop;k8s:shard=s{n};"
        ));
        let id = IdentityId(world::identity(n));
        engine.apply_identity(id, Some(Arc::new(labels)), &mut out);
    }
    let file = Path::new("db.yaml");
    engine.set_policies(
        &Origin::File(file.to_owned()),
        parse(&policy(ports), file)?,
        &mut out,
    );
    let endpoint = EndpointEvent::Upsert(Arc::new(LocalEndpoint {
        id: DATABASE_ENDPOINT,
        identity: IdentityId((1 << 16) + 256),
        labels: Arc::new(Labels::parse(
            "k8s:app=db;k8s:io.cilium.k8s.policy.cluster=west;\
             k8s:io.kubernetes.pod.namespace=default;",
        )),
        namespace: "default".into(),
        name: "db".into(),
        addresses: vec![(*DATABASE.ip()).into()],
        interface: Some(interface.into()),
        named_ports: Vec::new(),
        audit: false,
    }));
    engine.apply_endpoint(&endpoint, &mut out);
    let mut changes: Vec<_> = out.into_iter().map(Change::Map).collect();
    changes.push(Change::Endpoint(endpoint));
    changes.extend((0..addresses).map(|n| Change::Ip {
        prefix: IpPrefix::host(world::address(n).into()),
        target: Some(IpTarget {
            identity: IdentityId(world::identity(n / ADDRESSES_PER_IDENTITY)),
            cluster,
        }),
    }));
    changes.push(Change::Endpoint(EndpointEvent::Synced));
    changes.push(Change::Synced { cluster });
    Ok(changes)
}
