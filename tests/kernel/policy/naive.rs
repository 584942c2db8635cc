//! Who may talk to whom, decided anew for each packet by walking through all policies: slow and
//! obvious, statement by statement as the policy language is described. Knows nothing of entries,
//! levels, deltas or of any code under test.
use std::net::IpAddr;

use super::{
    coverage::Rows,
    model::{
        Block, CLUSTER_KEY, CiliumPolicy, CiliumRule, Endpoint, Enforcement, Entry, Expression,
        Icmp, IcmpText, KubernetesEntry, KubernetesPeer, Label, Load, NAMESPACE_KEY,
        NAMESPACE_LABELS, NamedPort, NetworkPolicy, Operator, Packet, Peers, Policy, Port,
        PortText, Selector, Way, World, k8s, label,
    },
};

/// Names of the reserved identities.
const RESERVED: [(u32, &str); 10] = [
    (1, "host"),
    (2, "world"),
    (3, "unmanaged"),
    (4, "health"),
    (5, "init"),
    (6, "remote-node"),
    (7, "kube-apiserver"),
    (8, "ingress"),
    (9, "world-ipv4"),
    (10, "world-ipv6"),
];

/// True if the packet may pass as a new flow.
pub(crate) fn passes(world: &World, packet: &Packet, rows: &mut Rows) -> bool {
    let endpoint = &world.endpoints[packet.endpoint];
    let mut judge = Judge {
        world,
        endpoint,
        packet,
        peer: Peer::at(world, packet.remote),
        rows,
    };
    let verdict = judge.verdict();
    rows.next_packet();
    verdict
}

/// The other side of a packet.
struct Peer {
    identity: Option<u32>,
    /// `None`: nobody said what the identity means.
    labels: Option<Vec<Label>>,
    /// The address, if it is nobody's in the mesh.
    outside: Option<IpAddr>,
    ports: Vec<NamedPort>,
}

impl Peer {
    fn at(world: &World, address: IpAddr) -> Self {
        let known = world.addresses.iter().filter(|(n, _)| n.contains(address));
        let Some((_, owner)) = known.max_by_key(|(net, _)| net.bits) else {
            let family = if address.is_ipv4() {
                "world-ipv4"
            } else {
                "world-ipv6"
            };
            return Self {
                identity: None,
                labels: Some(vec![label("reserved", family, "")]),
                outside: Some(address),
                ports: Vec::new(),
            };
        };
        Self {
            identity: Some(owner.identity),
            labels: labels(world, owner.identity),
            outside: None,
            ports: owner.ports.clone(),
        }
    }

    fn is(&self, identities: &[u32]) -> bool {
        self.identity.is_some_and(|id| identities.contains(&id))
    }

    fn has(&self, wanted: &Label) -> bool {
        self.labels.as_ref().is_some_and(|l| l.contains(wanted))
    }

    /// A pod of this cluster (`true`) or of another one (`false`).
    fn pod_of(&self, world: &World, own: bool) -> bool {
        let labels = self.labels.iter().flatten();
        let mut cluster = labels.filter(|l| l.key == CLUSTER_KEY);
        cluster.any(|l| (l.value == world.cluster) == own)
    }
}

fn labels(world: &World, identity: u32) -> Option<Vec<Label>> {
    if identity >= 256 {
        return world.identities.get(&identity).cloned();
    }
    let (_, name) = RESERVED.iter().find(|(id, _)| *id == identity)?;
    let mut labels = vec![label("reserved", name, "")];
    if identity == 7 {
        labels.push(label("reserved", "remote-node", ""));
    }
    Some(labels)
}

/// What one rule says about the packet.
#[derive(Default)]
struct Say {
    default_deny: bool,
    allow: bool,
    deny: bool,
}

struct Judge<'a> {
    world: &'a World,
    endpoint: &'a Endpoint,
    packet: &'a Packet,
    peer: Peer,
    rows: &'a mut Rows,
}

impl Judge<'_> {
    fn verdict(&mut self) -> bool {
        let world = self.world;
        let init = self
            .endpoint
            .labels
            .contains(&label("reserved", "init", ""));
        self.rows.hit_if(init, "6.2 init is always enforced");
        if world.enforcement == Enforcement::Never && !init {
            self.rows.hit("6.2 enforcement never");
            return true;
        }
        let always = world.enforcement == Enforcement::Always;
        self.rows.hit_if(always, "6.2 enforcement always");

        let mut says = Vec::new();
        for policy in world.files.values().flatten() {
            match policy {
                Policy::Cilium(policy) => self.cilium(policy, &mut says),
                Policy::Kubernetes(policy) => says.extend(self.kubernetes(policy)),
            }
        }
        self.rows.hit_if(says.is_empty(), "6.2 no rule selects it");
        let default_deny = always || init || says.iter().any(|say| say.default_deny);
        let allow = says.iter().any(|say| say.allow);
        let deny = says.iter().any(|say| say.deny);
        self.rows.hit(match (deny, allow, default_deny) {
            (true, true, _) => "6.7 deny beats allow",
            (true, false, _) => "6.7 deny alone",
            (false, true, _) => "6.7 allow",
            (false, false, true) => "6.7 none of both, default deny",
            (false, false, false) => "6.7 none of both, no default deny",
        });
        !deny && (allow || !default_deny)
    }

    fn cilium(&mut self, policy: &CiliumPolicy, says: &mut Vec<Say>) {
        let before = says.len();
        let spec = policy.spec.iter().map(|rule| ("6.1 spec", rule));
        let specs = policy.specs.iter().map(|rule| ("6.1 specs", rule));
        for (row, rule) in spec.chain(specs) {
            if self.selects(policy, rule) {
                self.rows.hit(row);
                says.push(self.cilium_rule(policy, rule));
            }
        }
        let both = policy.spec.is_some() && !policy.specs.is_empty();
        let united = both && says.len() > before;
        self.rows.hit_if(united, "6.1 spec and specs united");
    }

    /// True if the rule is about the endpoint.
    fn selects(&mut self, policy: &CiliumPolicy, rule: &CiliumRule) -> bool {
        let mut subject = rule.subject.clone();
        if let Some(namespace) = &policy.namespace {
            if !self
                .endpoint
                .labels
                .contains(&k8s(NAMESPACE_KEY, namespace))
            {
                return false;
            }
            self.rows.hit("6.3 subject confined to the namespace");
            let named = subject.labels.len();
            subject.labels.retain(|(key, _)| name(key) != NAMESPACE_KEY);
            let overridden = subject.labels.len() < named;
            let row = "6.3 subject's namespace overridden";
            self.rows.hit_if(overridden, row);
        }
        let labels = self.endpoint.labels.clone();
        self.matches(&subject, &labels)
    }

    fn cilium_rule(&mut self, policy: &CiliumPolicy, rule: &CiliumRule) -> Say {
        let (allows, denies, enable) = match self.packet.way {
            Way::Ingress => (&rule.ingress, &rule.ingress_deny, rule.default_deny[0]),
            Way::Egress => (&rule.egress, &rule.egress_deny, rule.default_deny[1]),
        };
        let (allows, denies) = (self.section(allows), self.section(denies));
        let by_section = !allows.is_empty() || !denies.is_empty();
        match enable {
            Some(false) if by_section => self.rows.hit("6.2 enableDefaultDeny false"),
            Some(true) if !by_section => {
                self.rows
                    .hit("6.2 enableDefaultDeny true without a section");
            }
            None if !allows.is_empty() => self.rows.hit("6.2 default deny by an allow section"),
            None if !denies.is_empty() => self.rows.hit("6.2 default deny by a deny section"),
            _ => {}
        }
        Say {
            default_deny: enable.unwrap_or(by_section),
            allow: self.any_entry(policy, rule, allows, "6.1 entry {} selects nobody"),
            deny: self.any_entry(policy, rule, denies, "6.1 deny entry {} denies nobody"),
        }
    }

    fn section<'s>(&mut self, section: &'s Option<Vec<Entry>>) -> &'s [Entry] {
        let entries = section.as_deref();
        let row = "6.1 empty section is none";
        self.rows.hit_if(entries.is_some_and(<[_]>::is_empty), row);
        entries.unwrap_or_default()
    }

    fn any_entry(
        &mut self,
        policy: &CiliumPolicy,
        rule: &CiliumRule,
        entries: &[Entry],
        nobody: &'static str,
    ) -> bool {
        let mut any = false;
        for (place, entry) in entries.iter().enumerate() {
            if self.entry(policy, rule, entry, nobody) {
                self.rows.hit_if(place > 0, "6.1 one of several entries");
                any = true;
            }
        }
        any
    }

    fn entry(
        &mut self,
        policy: &CiliumPolicy,
        rule: &CiliumRule,
        entry: &Entry,
        nobody: &'static str,
    ) -> bool {
        if entry.peers.is_none() && entry.ports.is_empty() && entry.icmps.is_empty() {
            self.rows.hit(nobody);
            return false;
        }
        let peer = match &entry.peers {
            None => self.rows.hit_if(true, "6.1 no peers named: any"),
            Some(peers) => self.peers(policy, rule, peers),
        };
        if !peer {
            return false;
        }
        let everything = entry.ports.is_empty() && entry.icmps.is_empty();
        let mut load = everything;
        for port in entry.ports.iter().flatten() {
            load |= self.cilium_port(port);
        }
        for icmp in entry.icmps.iter().flatten() {
            load |= self.icmp(icmp);
        }
        let only_peer = entry.peers.is_some() && !load;
        self.rows
            .hit_if(only_peer, "6.1 peer matches, port does not");
        load
    }

    fn peers(&mut self, policy: &CiliumPolicy, rule: &CiliumRule, peers: &Peers) -> bool {
        let each: Vec<bool> = match peers {
            Peers::Endpoints(list) => list
                .iter()
                .map(|one| self.peer_selector(policy, rule, one))
                .collect(),
            Peers::Entities(list) => list.iter().map(|one| self.entity(one)).collect(),
            Peers::Cidr(list) => list
                .iter()
                .map(|net| {
                    let block = Block {
                        cidr: *net,
                        except: Vec::new(),
                    };
                    let inside = self.block(&block);
                    let bare = inside && net.is_host();
                    self.rows.hit_if(bare, "6.5 bare address");
                    self.rows.hit_if(inside, "6.5 CIDR")
                })
                .collect(),
            Peers::CidrSet(list) => list
                .iter()
                .map(|block| {
                    let inside = self.block(block);
                    self.rows.hit_if(inside, "6.5 CIDRSet")
                })
                .collect(),
        };
        let row = "6.1 peers named, none listed: nobody";
        self.rows.hit_if(each.is_empty(), row);
        let later = each.iter().skip(1).any(|one| *one);
        self.rows.hit_if(later, "6.1 one of several peers");
        each.contains(&true)
    }

    fn peer_selector(
        &mut self,
        policy: &CiliumPolicy,
        rule: &CiliumRule,
        selector: &Selector,
    ) -> bool {
        let Some(labels) = self.peer.labels.clone() else {
            self.rows
                .hit("6.4 nothing but all matches an unknown identity");
            return false;
        };
        let keys: Vec<&str> = keys(selector).collect();
        if !self.matches(selector, &labels) {
            return false;
        }
        if !keys.is_empty() && keys.iter().all(|key| key.starts_with("reserved:")) {
            return self.rows.hit_if(true, "6.3 peer of reserved keys only");
        }
        let namespace = keys.iter().any(|key| name(key) == NAMESPACE_KEY);
        let of_namespace = keys
            .iter()
            .any(|key| name(key).starts_with(NAMESPACE_LABELS));
        let in_namespace = match &policy.namespace {
            Some(_) if namespace => self.rows.hit_if(true, "6.3 peer's namespace named"),
            Some(_) if of_namespace => self.rows.hit_if(true, "6.3 peer's namespace labels named"),
            Some(own) => {
                let inside = self.peer.has(&k8s(NAMESPACE_KEY, own));
                self.rows.hit("6.3 peer confined to the namespace");
                let foreign = inside && self.peer.pod_of(self.world, false);
                self.rows.hit_if(
                    foreign && !self.world.default_local,
                    "6.3 namespace sameness across clusters",
                );
                inside
            }
            None if keys_of_subject(rule).any(|key| key == "reserved:init") => {
                self.rows.hit_if(true, "6.3 clusterwide peers of init")
            }
            None => {
                self.rows.hit("6.3 clusterwide peers are pods");
                labels
                    .iter()
                    .any(|l| l.source == "k8s" && l.key == NAMESPACE_KEY)
            }
        };
        let cluster = keys.iter().any(|key| name(key) == CLUSTER_KEY);
        let in_cluster = if cluster {
            self.rows.hit_if(true, "6.3 cluster named")
        } else if self.world.default_local {
            self.rows.hit("6.3 cluster restricted by default");
            self.peer.has(&k8s(CLUSTER_KEY, self.world.cluster))
        } else {
            self.rows.hit_if(true, "6.3 cluster not restricted")
        };
        let empty = keys.is_empty() && in_namespace && in_cluster;
        self.rows.hit_if(empty, "6.1 empty selector");
        in_namespace && in_cluster
    }

    fn entity(&mut self, entity: &str) -> bool {
        let peer = &self.peer;
        let own_pod = peer.pod_of(self.world, true);
        let foreign_pod = peer.pod_of(self.world, false);
        let family = |v4: bool| peer.outside.is_some_and(|a| a.is_ipv4() == v4);
        let (row, inside) = match entity {
            "all" => ("6.4 all", true),
            "world" => {
                let row = "6.4 foreign pod is not in world";
                self.rows.hit_if(foreign_pod, row);
                ("6.4 world", peer.outside.is_some() || peer.is(&[2, 9, 10]))
            }
            "world-ipv4" => ("6.4 world-ipv4", family(true) || peer.is(&[9])),
            "world-ipv6" => ("6.4 world-ipv6", family(false) || peer.is(&[10])),
            "host" => ("6.4 host", peer.is(&[1])),
            "remote-node" => ("6.4 remote-node", peer.is(&[6, 7])),
            "kube-apiserver" => ("6.4 kube-apiserver", peer.is(&[7])),
            "init" => ("6.4 init", peer.is(&[5])),
            "ingress" => ("6.4 ingress", peer.is(&[8])),
            "unmanaged" => ("6.4 unmanaged", peer.is(&[3])),
            "health" => ("6.4 health", peer.is(&[4])),
            "none" => {
                self.rows.hit("6.4 none");
                ("6.4 none", false)
            }
            "cluster" => {
                let row = "6.4 foreign pod is not in cluster";
                self.rows.hit_if(foreign_pod, row);
                self.rows.hit_if(own_pod, "6.4 cluster, own pod");
                let reserved = peer.is(&[1, 3, 4, 5, 6, 7, 8]);
                ("6.4 cluster, reserved", reserved)
            }
            other => panic!("no entity {other}"),
        };
        self.rows.hit_if(inside, row);
        inside || (entity == "cluster" && own_pod)
    }

    /// Addresses of the mesh are nobody's business here.
    fn block(&mut self, block: &Block) -> bool {
        let remote = self.packet.remote;
        let (cidr, family) = (block.cidr, [9, 10][usize::from(remote.is_ipv6())]);
        let by_address = cidr.contains(remote);
        let Some(outside) = self.peer.outside else {
            let row = "6.5 address of the mesh is not matched";
            self.rows.hit_if(by_address, row);
            // The default route also stands for the family's world.
            return cidr.bits == 0 && by_address && self.peer.is(&[family]);
        };
        let excepted = block.except.iter().any(|net| net.contains(outside));
        self.rows.hit_if(by_address && excepted, "6.5 except");
        let inside = by_address && !excepted;
        self.rows
            .hit_if(inside && cidr.bits == 0, "6.5 default route");
        inside
    }

    fn cilium_port(&mut self, port: &Port) -> bool {
        let protocols = match port.protocol {
            None | Some("ANY") => &["TCP", "UDP", "SCTP"][..],
            Some(ref one) => std::slice::from_ref(one),
        };
        let matched = self.port(port, protocols);
        if matched {
            self.rows.hit(match port.protocol {
                None => "6.6 protocol absent",
                Some("ANY") => "6.6 ANY",
                Some("TCP") => "6.6 TCP",
                Some("UDP") => "6.6 UDP",
                _ => "6.6 SCTP",
            });
        }
        matched
    }

    /// True if the packet is of one of the protocols and goes to the port.
    fn port(&mut self, port: &Port, protocols: &[&str]) -> bool {
        let (protocol, number) = match self.packet.load {
            Load::Tcp(number) => ("TCP", number),
            Load::Udp(number) => ("UDP", number),
            Load::Sctp(number) => ("SCTP", number),
            Load::Icmp(_) | Load::Other(_) => return false,
        };
        if !protocols.contains(&protocol) {
            return false;
        }
        match port.port {
            None | Some(PortText::Number(0)) => self.rows.hit_if(true, "6.6 port 0 or absent"),
            Some(PortText::Number(first)) => match port.end {
                Some(last) if last > first => {
                    let inside = (first..=last).contains(&number);
                    self.rows.hit_if(!inside, "6.6 outside of endPort");
                    self.rows.hit_if(inside, "6.6 endPort")
                }
                Some(_) => self
                    .rows
                    .hit_if(number == first, "6.6 endPort not above port"),
                None => self.rows.hit_if(number == first, "6.6 number"),
            },
            Some(PortText::Name(name)) => self.named_port(name, protocol, number),
        }
    }

    fn named_port(&mut self, name: &str, protocol: &str, number: u16) -> bool {
        let (row, ports) = match self.packet.way {
            Way::Ingress => ("6.6 named port, ingress", &self.endpoint.ports),
            Way::Egress => ("6.6 named port, egress", &self.peer.ports),
        };
        let mut ports = ports.iter().filter(|port| port.name == name);
        let unresolved = ports.clone().next().is_none();
        let matched = ports.any(|port| port.protocol == protocol && port.port == number);
        self.rows.hit_if(unresolved, "6.6 named port unresolved");
        self.rows.hit_if(matched, row)
    }

    fn icmp(&mut self, icmp: &Icmp) -> bool {
        let Load::Icmp(kind) = self.packet.load else {
            return false;
        };
        let v6 = icmp.family == Some("IPv6");
        if v6 != self.packet.remote.is_ipv6() {
            return false;
        }
        let (row, wanted) = match icmp.kind {
            IcmpText::Number(wanted) => ("6.6 ICMP type by number", wanted),
            IcmpText::Name("EchoRequest") if v6 => ("6.6 ICMP type by name", 128),
            IcmpText::Name("EchoRequest") => ("6.6 ICMP type by name", 8),
            IcmpText::Name("EchoReply") if v6 => ("6.6 ICMP type by name", 129),
            IcmpText::Name("EchoReply") => ("6.6 ICMP type by name", 0),
            IcmpText::Name(other) => panic!("no ICMP type {other}"),
        };
        let matched = kind == wanted;
        self.rows.hit_if(matched && v6, "6.6 ICMPv6");
        let absent = matched && icmp.family.is_none();
        self.rows.hit_if(absent, "6.6 family absent: IPv4");
        self.rows.hit_if(matched, row)
    }

    fn kubernetes(&mut self, policy: &NetworkPolicy) -> Option<Say> {
        let labels = self.endpoint.labels.clone();
        let inside = labels.contains(&k8s(NAMESPACE_KEY, &policy.namespace));
        if !inside || !self.matches(&of_kubernetes(&policy.subject), &labels) {
            return None;
        }
        self.rows.hit("6.8 podSelector");
        let (section, enforced) = match self.packet.way {
            Way::Ingress => {
                let implied = policy.types.is_none();
                self.rows.hit_if(implied, "6.8 ingress implied");
                let listed = policy.types.iter().flatten().any(|t| *t == Way::Ingress);
                (&policy.ingress, implied || listed)
            }
            Way::Egress => {
                let listed = policy.types.iter().flatten().any(|t| *t == Way::Egress);
                self.rows.hit_if(listed, "6.8 egress by policyTypes");
                (&policy.egress, listed)
            }
        };
        if !enforced {
            return Some(Say::default());
        }
        let entries = section.as_deref().unwrap_or_default();
        let bare = entries.is_empty();
        self.rows.hit_if(bare, "6.8 default deny without rules");
        let mut allow = false;
        for entry in entries {
            allow |= self.kubernetes_entry(policy, entry);
        }
        Some(Say {
            default_deny: true,
            allow,
            deny: false,
        })
    }

    fn kubernetes_entry(&mut self, policy: &NetworkPolicy, entry: &KubernetesEntry) -> bool {
        let mut peer = false;
        match entry.peers.as_deref() {
            None => peer = self.rows.hit_if(true, "6.8 from or to absent"),
            Some([]) => peer = self.rows.hit_if(true, "6.8 from or to empty"),
            Some(peers) => {
                for one in peers {
                    peer |= self.kubernetes_peer(policy, one);
                }
            }
        }
        let ports = entry.ports.as_deref().unwrap_or_default();
        let mut load = ports.is_empty();
        for port in ports {
            load |= self.kubernetes_port(port, peer);
        }
        peer && load
    }

    fn kubernetes_port(&mut self, port: &Port, peer: bool) -> bool {
        let protocol = port.protocol.unwrap_or("TCP");
        let matched = self.port(port, &[protocol]);
        let absent = matched && peer && port.protocol.is_none();
        self.rows.hit_if(absent, "6.8 protocol absent: TCP");
        let absent = matched && peer && port.port.is_none();
        self.rows.hit_if(absent, "6.8 port absent");
        matched
    }

    fn kubernetes_peer(&mut self, policy: &NetworkPolicy, peer: &KubernetesPeer) -> bool {
        let (pods, namespaces) = match peer {
            KubernetesPeer::Block(block) => {
                let inside = self.block(block);
                let by_address = block.cidr.contains(self.packet.remote);
                let excepted = by_address && !inside && self.peer.outside.is_some();
                self.rows.hit_if(excepted, "6.8 ipBlock except");
                return self.rows.hit_if(inside, "6.8 ipBlock");
            }
            KubernetesPeer::Pods { pods, namespaces } => (pods, namespaces),
        };
        let Some(labels) = self.peer.labels.clone() else {
            return false;
        };
        let cluster = if self.world.default_local {
            self.rows.hit("6.8 local cluster");
            self.peer.has(&k8s(CLUSTER_KEY, self.world.cluster))
        } else {
            self.rows.hit_if(true, "6.8 all clusters")
        };
        let by_pods = match pods {
            Some(pods) => self.matches(&of_kubernetes(pods), &labels),
            None => true,
        };
        let (row, by_namespace) = match namespaces {
            None => {
                let own = k8s(NAMESPACE_KEY, &policy.namespace);
                ("6.8 peer podSelector", self.peer.has(&own))
            }
            Some(empty) if *empty == Selector::default() => {
                let any = labels
                    .iter()
                    .any(|l| l.source == "k8s" && l.key == NAMESPACE_KEY);
                ("6.8 empty namespaceSelector", any)
            }
            Some(namespaces) => {
                let selector = of_namespace(namespaces);
                ("6.8 namespaceSelector", self.matches(&selector, &labels))
            }
        };
        let matched = cluster && by_pods && by_namespace;
        let both = pods.is_some() && namespaces.is_some();
        self.rows
            .hit_if(matched && both, "6.8 podSelector and namespaceSelector");
        self.rows.hit_if(matched, row)
    }

    /// True if the labels are as the selector wants them.
    fn matches(&mut self, selector: &Selector, labels: &[Label]) -> bool {
        let pairs = selector.labels.iter();
        let by_labels = pairs.map(|(key, value)| {
            let found = values(key, labels).any(|v| v == value);
            self.rows.hit_if(found, "6.3 matchLabels");
            self.key(key, found, labels)
        });
        let by_labels: Vec<bool> = by_labels.collect();
        let expressions = selector.expressions.iter();
        let by_expressions: Vec<bool> = expressions.map(|e| self.expression(e, labels)).collect();
        !by_labels.contains(&false) && !by_expressions.contains(&false)
    }

    fn expression(&mut self, expression: &Expression, labels: &[Label]) -> bool {
        let Expression {
            key,
            operator,
            values: wanted,
        } = expression;
        let exists = values(key, labels).next().is_some();
        let listed = values(key, labels).any(|v| wanted.iter().any(|w| w == v));
        let (row, holds) = match operator {
            Operator::In => ("6.3 In", listed),
            Operator::NotIn if exists => ("6.3 NotIn, other value", !listed),
            Operator::NotIn => ("6.3 NotIn, no such key", true),
            Operator::Exists => ("6.3 Exists", exists),
            Operator::DoesNotExist => ("6.3 DoesNotExist", !exists),
        };
        self.rows.hit_if(holds, row);
        self.key(key, holds && exists, labels) || (holds && !exists)
    }

    /// Counts the way in which the key of a label that was found is written; gives `found` back.
    fn key(&mut self, key: &str, found: bool, labels: &[Label]) -> bool {
        if found {
            self.rows.hit(match key.split_once(':') {
                None => "6.3 bare key",
                Some(("any", _)) => "6.3 any: key",
                Some(("reserved", _)) => "6.3 reserved: key",
                Some(_) => "6.3 k8s: key",
            });
        }
        let elsewhere = labels
            .iter()
            .any(|l| l.key == name(key) && !has_source(key, l));
        self.rows.hit_if(elsewhere, "6.3 key of another source");
        found
    }
}

/// A key without its source.
fn name(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, name)| name)
}

fn has_source(key: &str, label: &Label) -> bool {
    match key.split_once(':') {
        None | Some(("any", _)) => true,
        Some((source, _)) => label.source == source,
    }
}

fn values<'a>(key: &'a str, labels: &'a [Label]) -> impl Iterator<Item = &'a String> {
    labels
        .iter()
        .filter(move |l| l.key == name(key) && has_source(key, l))
        .map(|l| &l.value)
}

fn keys(selector: &Selector) -> impl Iterator<Item = &str> {
    let labels = selector.labels.iter().map(|(key, _)| key.as_str());
    labels.chain(selector.expressions.iter().map(|e| e.key.as_str()))
}

fn keys_of_subject(rule: &CiliumRule) -> impl Iterator<Item = &str> {
    keys(&rule.subject)
}

/// Keys of a NetworkPolicy are the orchestrator's.
fn of_kubernetes(selector: &Selector) -> Selector {
    renamed(selector, "k8s:")
}

fn of_namespace(selector: &Selector) -> Selector {
    renamed(selector, &format!("k8s:{NAMESPACE_LABELS}"))
}

fn renamed(selector: &Selector, prefix: &str) -> Selector {
    let mut out = selector.clone();
    let labels = out.labels.iter_mut().map(|(key, _)| key);
    for key in labels.chain(out.expressions.iter_mut().map(|e| &mut e.key)) {
        *key = format!("{prefix}{key}");
    }
    out
}
