//! Whose addresses are whose, and the names that workloads give their ports.
//!
//! Policy is by identity, names are by address: so an allow covers the ports that all addresses of
//! an identity give a name, a deny those that any of them gives.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use super::ports::{Name, Resolved};
use crate::{
    policy::cidr,
    types::{IdentityId, IpPrefix},
};

/// The addresses of the mesh.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    identities: HashMap<IpPrefix, IdentityId>,
    /// Of the few that have some, identity or not; never empty.
    ports: HashMap<IpPrefix, BTreeSet<Resolved>>,
    /// How many each identity has; never 0.
    counts: HashMap<IdentityId, u32>,
    /// How many addresses of an identity have a port of that name; never empty, never 0.
    named: HashMap<IdentityId, BTreeMap<Resolved, u32>>,
}

impl Addresses {
    pub(super) fn identity(&self, prefix: &IpPrefix) -> Option<IdentityId> {
        self.identities.get(prefix).copied()
    }

    /// The one that an address belongs to: its own entry, else the longest range around it.
    pub(super) fn find(&self, address: IpAddr) -> Option<IdentityId> {
        let mut around = cidr::around(IpPrefix::host(address));
        around.find_map(|prefix| self.identity(&prefix))
    }

    pub(super) fn prefixes(&self) -> impl Iterator<Item = &IpPrefix> {
        self.identities.keys()
    }

    /// Those whose ports have names, whether they belong to somebody or not.
    pub(super) fn prefixes_with_ports(&self) -> impl Iterator<Item = &IpPrefix> {
        self.ports.keys()
    }

    /// Identities of which some address names a port.
    pub(super) fn naming(&self) -> impl Iterator<Item = IdentityId> {
        self.named.keys().copied()
    }

    /// Whose names may mean something else once the address is told another identity or other ports.
    pub(super) fn concerned(
        &self,
        prefix: &IpPrefix,
        new: Option<IdentityId>,
    ) -> HashSet<IdentityId> {
        let has_ports = self.ports.contains_key(prefix);
        let both = self.identity(prefix).into_iter().chain(new);
        both.filter(|id| has_ports || self.named.contains_key(id))
            .collect()
    }

    pub(super) fn set_identity(&mut self, prefix: IpPrefix, identity: Option<IdentityId>) {
        self.count(&prefix, false);
        match identity {
            Some(identity) => self.identities.insert(prefix, identity),
            None => self.identities.remove(&prefix),
        };
        self.count(&prefix, true);
    }

    pub(super) fn set_ports(&mut self, prefix: IpPrefix, ports: BTreeSet<Resolved>) {
        self.count(&prefix, false);
        if ports.is_empty() {
            self.ports.remove(&prefix);
        } else {
            self.ports.insert(prefix, ports);
        }
        self.count(&prefix, true);
    }

    /// The protocols and ports of a name that a rule means when it speaks of an identity.
    pub(super) fn resolve<'a>(
        &'a self,
        identity: IdentityId,
        name: &'a Name,
        deny: bool,
    ) -> impl Iterator<Item = (u8, u16)> + 'a {
        let addresses = self.counts.get(&identity).copied().unwrap_or(0);
        let ports = self.named.get(&identity).into_iter().flatten();
        let meant =
            ports.filter(move |(port, count)| name.is(port) && (deny || **count == addresses));
        meant.map(|(port, _)| (port.protocol, port.port))
    }

    /// Counts what is known of an address in, or out.
    fn count(&mut self, prefix: &IpPrefix, add: bool) {
        let Some(identity) = self.identity(prefix) else {
            return;
        };
        step(&mut self.counts, identity, add);
        let Some(ports) = self.ports.get(prefix) else {
            return;
        };
        let named = self.named.entry(identity).or_default();
        for port in ports {
            if add {
                *named.entry(port.clone()).or_default() += 1;
            } else if let Some(count) = named.get_mut(port) {
                *count -= 1;
            }
        }
        named.retain(|_, count| *count > 0);
        if named.is_empty() {
            self.named.remove(&identity);
        }
    }
}

fn step(counts: &mut HashMap<IdentityId, u32>, identity: IdentityId, add: bool) {
    let count = counts.entry(identity).or_default();
    *count = if add {
        *count + 1
    } else {
        count.saturating_sub(1)
    };
    if *count == 0 {
        counts.remove(&identity);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ports, *};
    use crate::{policy::Port, types::NamedPort};

    const ID: IdentityId = IdentityId(300);

    fn web(port: u16) -> BTreeSet<Resolved> {
        ports::resolved(&[NamedPort {
            name: "web".into(),
            port,
            protocol: "TCP".into(),
        }])
    }

    #[test]
    fn an_allow_needs_all_addresses_and_a_deny_one() {
        let name = Port::Named {
            protocol: Some(6),
            name: "web".into(),
        };
        let name = &ports::Ports::new(&[name]).names[0];
        let means = |addresses: &Addresses| {
            let of = |deny| addresses.resolve(ID, name, deny).collect::<Vec<_>>();
            (of(false), of(true))
        };
        let [a, b]: [IpPrefix; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let mut addresses = Addresses::default();
        addresses.set_ports(a, web(80));
        assert_eq!(means(&addresses), (vec![], vec![]), "nobody's yet");
        addresses.set_identity(a, Some(ID));
        assert_eq!(means(&addresses), (vec![(6, 80)], vec![(6, 80)]));
        addresses.set_identity(b, Some(ID));
        assert_eq!(means(&addresses), (vec![], vec![(6, 80)]), "b says nothing");
        addresses.set_ports(b, web(81));
        let both = vec![(6, 80), (6, 81)];
        assert_eq!(means(&addresses), (vec![], both), "they disagree");
        addresses.set_ports(b, web(80));
        assert_eq!(means(&addresses), (vec![(6, 80)], vec![(6, 80)]));
        addresses.set_identity(a, None);
        addresses.set_identity(b, None);
        assert_eq!(addresses.naming().count() + addresses.counts.len(), 0);
    }
}
