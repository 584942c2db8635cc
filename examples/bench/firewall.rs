//! The same policy as nothing, as ours, as nftables and as iptables with ipset, on the same veths:
//! two clients and a server behind a forwarding host. All must give the same verdicts on the same
//! probes before any is measured.
use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tombolo::{
    enforcer::{Change, kernel::Kernel, reconcile::Reconciler},
    test_support::{
        lab::{Host, Lab, Namespace, Pod},
        process::{Helper, run_ok},
    },
    types::{EndpointEvent, MaxClusters},
};

use crate::{
    datapath::{self, DATABASE_ENDPOINT, STRANGERS},
    figure::{Figure, Runs},
    traffic::{CLOSE, DATAGRAMS, ECHO, Load, SINK},
    world::{self, ADDRESSES_PER_IDENTITY, Bpffs, COMMAND_LIMIT},
};

/// The first address that the policy allows; those before it are strangers'.
const FIRST_CLIENT: u32 = STRANGERS * ADDRESSES_PER_IDENTITY;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// What a probe of the server must say, to the allowed client and to the stranger.
const VERDICTS: [&str; 2] = ["111010", "000000"];
/// A client ends by itself after a second and a tenth.
const LOAD_LIMIT: Duration = Duration::from_secs(20);

/// Where the server may be asked.
const PORTS: &str = "[{port: \"6379\", protocol: TCP}, {port: \"6380\", protocol: TCP}, \
                     {port: \"6381\", protocol: TCP}, {port: \"7000\", protocol: UDP}]";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Ours,
    Nftables,
    Iptables,
}

const KINDS: [Kind; 4] = [Kind::Nothing, Kind::Ours, Kind::Nftables, Kind::Iptables];
const LOADS: [(Load, &str, &str, f64); 4] = [
    (Load::Packets, "packets", "k/s", 1e3),
    (Load::RoundTrips, "round-trips", "k/s", 1e3),
    (Load::Connections, "connections", "k/s", 1e3),
    (Load::Bulk, "bulk", "GB/s", 1e9),
];

/// Measures all loads behind all firewalls.
pub(crate) fn measure(quick: bool) -> Result<Vec<Figure>> {
    let (runs, addresses) = if quick { (3, 10_000) } else { (7, 100_000) };
    let dir = tempfile::tempdir()?;
    let bpffs = dir.path().join("bpf");
    let _mounted = Bpffs::mount(bpffs.clone())?;
    let mut street = Street::open(dir.path())?;
    let mut firewall = Firewall::prepare(dir.path(), &bpffs, &street, addresses)?;
    for kind in [Kind::Ours, Kind::Nftables, Kind::Iptables] {
        firewall.up(kind)?;
        let verdicts = [&street.client, &street.stranger].map(|pod| street.ask(pod, Load::Probe));
        for (verdict, expected) in verdicts.into_iter().zip(VERDICTS) {
            let verdict = verdict?;
            ensure!(
                verdict == expected,
                "{kind:?} says {verdict}, not {expected}"
            );
        }
        firewall.down(kind)?;
    }
    let mut values = vec![vec![Vec::new(); KINDS.len()]; LOADS.len()];
    for run in 0..runs {
        // Each run begins with another one: a slow second meets all alike.
        for at in 0..KINDS.len() {
            let index = (at + run) % KINDS.len();
            firewall.up(KINDS[index])?;
            for ((load, _, _, unit), values) in LOADS.iter().zip(&mut values) {
                let value: f64 = street.ask(&street.client, *load)?.parse()?;
                values[index].push(value / unit);
            }
            firewall.down(KINDS[index])?;
        }
    }
    street.close()?;
    Ok(figures(&values))
}

fn figures(values: &[Vec<Vec<f64>>]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ((_, name, unit, _), values) in LOADS.iter().zip(values) {
        let runs = |kind: Kind| {
            let index = KINDS.iter().position(|k| *k == kind).unwrap_or_default();
            Runs::new(values[index].clone())
        };
        for (kind, peer, aim) in [
            (Kind::Nothing, "no program", 0.98),
            (Kind::Nftables, "nftables", 1.0),
            (Kind::Iptables, "iptables", 1.0),
        ] {
            let name = format!("firewall/{name}");
            let figure = Figure::beside(peer, name, unit, &runs(Kind::Ours), &runs(kind));
            figures.push(figure.ratio_at_least(aim));
        }
    }
    figures
}

/// Two clients and the server, as pods of this namespace.
struct Street {
    client: Pod,
    stranger: Pod,
    database: Pod,
    server: Option<Helper>,
    _lab: Lab,
}

impl Street {
    fn open(dir: &Path) -> Result<Self> {
        let script = "ip addr add 169.254.1.1/32 dev lo scope link; \
                      echo 1 > /proc/sys/net/ipv4/ip_forward; \
                      echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; \
                      echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter";
        run_ok(Command::new("sh").args(["-euc", script]), COMMAND_LIMIT)?;
        let host = Host {
            name: "host".into(),
            address: Ipv4Addr::new(169, 254, 1, 1),
            namespace: Namespace::network_of(std::process::id()),
        };
        let mut lab = Lab::open(&dir.join("lab"))?;
        let client = lab.pod(&host, "client", world::address(FIRST_CLIENT))?;
        let stranger = lab.pod(&host, "stranger", world::address(0))?;
        let database = lab.pod(&host, "db", SERVER)?;
        let mut command = database.namespace.command(std::env::current_exe()?);
        let server = Helper::start("traffic-server", command.arg("traffic-server"))?;
        server.line(COMMAND_LIMIT)?.context("the server ended")?;
        Ok(Self {
            client,
            stranger,
            database,
            server: Some(server),
            _lab: lab,
        })
    }

    fn ask(&self, pod: &Pod, load: Load) -> Result<String> {
        let name = clap::ValueEnum::to_possible_value(&load).context("a name")?;
        let mut command = pod.namespace.command(std::env::current_exe()?);
        command
            .arg("traffic")
            .arg(name.get_name())
            .arg(SERVER.to_string());
        let line = run_ok(&mut command, LOAD_LIMIT).with_context(|| format!("{load:?}"))?;
        Ok(line.trim().to_owned())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.finish(COMMAND_LIMIT)?;
        }
        Ok(())
    }
}

/// What stands between them, one at a time.
struct Firewall {
    reconciler: Reconciler<Kernel>,
    workload: Vec<Change>,
    nftables: std::path::PathBuf,
    ipset: std::path::PathBuf,
}

impl Firewall {
    fn prepare(dir: &Path, bpffs: &Path, street: &Street, addresses: u32) -> Result<Self> {
        let max = MaxClusters::C255;
        let options = datapath::options(bpffs);
        let (kernel, ..) = Kernel::open(&options)?;
        let mut reconciler = Reconciler::open(kernel, &options)?;
        let interface = &street.database.interface;
        let changes = datapath::changes(PORTS, interface, addresses, max)?;
        // What goes with the workload; the addresses stay.
        let of_workload = |c: &&Change| {
            matches!(
                c,
                Change::Map(_) | Change::Endpoint(EndpointEvent::Upsert(_))
            )
        };
        let workload = changes.iter().filter(of_workload).cloned().collect();
        reconciler.apply(changes);
        let known: Vec<String> = (FIRST_CLIENT..addresses)
            .map(|n| world::address(n).to_string())
            .collect();
        let nftables = dir.join("rules.nft");
        let rules = format!(
            "table inet filter {{\n set clients {{ type ipv4_addr; elements = {{ {} }} }}\n \
             chain forward {{ type filter hook forward priority 0; policy accept;\n \
             ct state established,related accept\n \
             ip daddr {SERVER} ip saddr @clients tcp dport {{ {ECHO}, {SINK}, {CLOSE} }} accept\n \
             ip daddr {SERVER} ip saddr @clients udp dport {DATAGRAMS} accept\n \
             ip daddr {SERVER} drop\n }}\n}}\n",
            known.join(", ")
        );
        fs::write(&nftables, rules)?;
        let ipset = dir.join("rules.ipset");
        let lines: Vec<String> = known.iter().map(|a| format!("add clients {a}")).collect();
        let size = known.len().next_power_of_two();
        fs::write(
            &ipset,
            format!(
                "create clients hash:ip maxelem {size} hashsize {size}\n{}\n",
                lines.join("\n")
            ),
        )?;
        let mut firewall = Self {
            reconciler,
            workload,
            nftables,
            ipset,
        };
        firewall.down(Kind::Ours)?;
        Ok(firewall)
    }

    fn up(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Nothing => Ok(()),
            Kind::Ours => {
                self.reconciler.apply(self.workload.clone());
                let status = self.reconciler.status();
                ensure!(status.enforced == 1, "not enforced: {status:?}");
                Ok(())
            }
            Kind::Nftables => shell(&format!("nft -f {}", self.nftables.display())),
            Kind::Iptables => {
                let rule = |rest: &str| format!("iptables-legacy -A FORWARD -d {SERVER} {rest}");
                let known = "-m set --match-set clients src -j ACCEPT";
                shell(
                    &[
                        format!("ipset restore -f {}", self.ipset.display()),
                        "iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
                            .into(),
                        rule(&format!("-p tcp -m multiport --dports {ECHO},{SINK},{CLOSE} {known}")),
                        rule(&format!("-p udp --dport {DATAGRAMS} {known}")),
                        rule("-j DROP"),
                    ]
                    .join("; "),
                )
            }
        }
    }

    fn down(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Nothing => Ok(()),
            Kind::Ours => {
                let gone = Change::Endpoint(EndpointEvent::Delete(DATABASE_ENDPOINT));
                self.reconciler.apply([gone]);
                let status = self.reconciler.status();
                ensure!(status.enforced == 0, "still attached: {status:?}");
                Ok(())
            }
            Kind::Nftables => shell("nft delete table inet filter"),
            Kind::Iptables => shell("iptables-legacy -F FORWARD; ipset destroy clients"),
        }
    }
}

fn shell(script: &str) -> Result<()> {
    run_ok(Command::new("sh").args(["-euc", script]), COMMAND_LIMIT).map(drop)
}
