//! Which statements of the policy language a run has touched, and how often.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// Each statement by the number of its section. A packet touches one if the statement had a part
/// in its verdict: the element was there, for this endpoint and direction, and did what is said.
pub(crate) const ROWS: &[&str] = &[
    "6.1 spec",
    "6.1 specs",
    "6.1 spec and specs united",
    "6.1 entry {} selects nobody",
    "6.1 deny entry {} denies nobody",
    "6.1 empty section is none",
    "6.1 no peers named: any",
    "6.1 peers named, none listed: nobody",
    "6.1 empty selector",
    "6.1 one of several peers",
    "6.1 peer matches, port does not",
    "6.1 one of several entries",
    "6.2 no rule selects it",
    "6.2 default deny by an allow section",
    "6.2 default deny by a deny section",
    "6.2 enableDefaultDeny false",
    "6.2 enableDefaultDeny true without a section",
    "6.2 enforcement always",
    "6.2 enforcement never",
    "6.2 init is always enforced",
    "6.3 bare key",
    "6.3 any: key",
    "6.3 k8s: key",
    "6.3 reserved: key",
    "6.3 key of another source",
    "6.3 matchLabels",
    "6.3 In",
    "6.3 NotIn, other value",
    "6.3 NotIn, no such key",
    "6.3 Exists",
    "6.3 DoesNotExist",
    "6.3 subject confined to the namespace",
    "6.3 subject's namespace overridden",
    "6.3 peer confined to the namespace",
    "6.3 peer's namespace named",
    "6.3 peer's namespace labels named",
    "6.3 peer of reserved keys only",
    "6.3 clusterwide peers are pods",
    "6.3 clusterwide peers of init",
    "6.3 cluster restricted by default",
    "6.3 cluster named",
    "6.3 cluster not restricted",
    "6.3 namespace sameness across clusters",
    "6.4 all",
    "6.4 world",
    "6.4 world-ipv4",
    "6.4 world-ipv6",
    "6.4 host",
    "6.4 remote-node",
    "6.4 kube-apiserver",
    "6.4 init",
    "6.4 ingress",
    "6.4 unmanaged",
    "6.4 health",
    "6.4 none",
    "6.4 cluster, reserved",
    "6.4 cluster, own pod",
    "6.4 foreign pod is not in cluster",
    "6.4 foreign pod is not in world",
    "6.4 nothing but all matches an unknown identity",
    "6.5 CIDR",
    "6.5 bare address",
    "6.5 CIDRSet",
    "6.5 except",
    "6.5 address of the mesh is not matched",
    "6.5 default route",
    "6.6 number",
    "6.6 port 0 or absent",
    "6.6 named port, ingress",
    "6.6 named port, egress",
    "6.6 named port unresolved",
    "6.6 TCP",
    "6.6 UDP",
    "6.6 SCTP",
    "6.6 ANY",
    "6.6 protocol absent",
    "6.6 endPort",
    "6.6 outside of endPort",
    "6.6 endPort not above port",
    "6.6 ICMP type by number",
    "6.6 ICMP type by name",
    "6.6 ICMPv6",
    "6.6 family absent: IPv4",
    "6.7 deny beats allow",
    "6.7 deny alone",
    "6.7 allow",
    "6.7 none of both, default deny",
    "6.7 none of both, no default deny",
    "6.7 answer of an allowed flow",
    "6.7 flow goes on",
    "6.7 flow is cut",
    "6.8 podSelector",
    "6.8 peer podSelector",
    "6.8 namespaceSelector",
    "6.8 empty namespaceSelector",
    "6.8 podSelector and namespaceSelector",
    "6.8 from or to empty",
    "6.8 from or to absent",
    "6.8 ipBlock",
    "6.8 ipBlock except",
    "6.8 port absent",
    "6.8 protocol absent: TCP",
    "6.8 ingress implied",
    "6.8 default deny without rules",
    "6.8 egress by policyTypes",
    "6.8 local cluster",
    "6.8 all clusters",
    "6.1 refused",
    "6.6 refused",
    "6.9 refused",
];

/// Counts by row.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    counts: BTreeMap<&'static str, u64>,
    /// Of the packet that is judged just now: a row counts once for each.
    touched: BTreeSet<&'static str>,
}

impl Rows {
    /// The packet touches `row`.
    pub(crate) fn hit(&mut self, row: &'static str) {
        self.touched.insert(row);
    }

    /// As [`Self::hit`] if `condition` holds; gives it back.
    pub(crate) fn hit_if(&mut self, condition: bool, row: &'static str) -> bool {
        if condition {
            self.hit(row);
        }
        condition
    }

    /// The packet has its verdict.
    pub(crate) fn next_packet(&mut self) {
        for row in std::mem::take(&mut self.touched) {
            assert!(ROWS.contains(&row), "not a row: {row}");
            *self.counts.entry(row).or_default() += 1;
        }
    }

    pub(crate) fn count(&self, row: &str) -> u64 {
        self.counts.get(row).copied().unwrap_or_default()
    }

    /// The rows touched less than `least` times, with their counts; empty if there are none.
    pub(crate) fn rare(&self, least: u64) -> String {
        let mut text = String::new();
        for row in ROWS {
            let count = self.count(row);
            if count < least {
                writeln!(text, "{row}: {count} times, not {least}").unwrap();
            }
        }
        text
    }
}
