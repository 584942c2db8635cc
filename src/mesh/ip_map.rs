//! A map by address or range in which IPv4 addresses, of which there are by far the most, take a
//! quarter of a general key.
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use crate::types::IpPrefix;

#[derive(Debug)]
pub(super) struct IpMap<V> {
    v4: HashMap<Ipv4Addr, V>,
    /// Ranges and IPv6.
    rest: HashMap<IpPrefix, V>,
}

impl<V> Default for IpMap<V> {
    fn default() -> Self {
        Self {
            v4: HashMap::new(),
            rest: HashMap::new(),
        }
    }
}

impl<V> IpMap<V> {
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.rest.len()
    }

    pub(super) fn get(&self, prefix: &IpPrefix) -> Option<&V> {
        match v4(prefix) {
            Some(address) => self.v4.get(&address),
            None => self.rest.get(prefix),
        }
    }

    pub(super) fn get_mut(&mut self, prefix: &IpPrefix) -> Option<&mut V> {
        match v4(prefix) {
            Some(address) => self.v4.get_mut(&address),
            None => self.rest.get_mut(prefix),
        }
    }

    pub(super) fn insert(&mut self, prefix: IpPrefix, value: V) -> Option<V> {
        match v4(&prefix) {
            Some(address) => self.v4.insert(address, value),
            None => self.rest.insert(prefix, value),
        }
    }

    pub(super) fn remove(&mut self, prefix: &IpPrefix) -> Option<V> {
        match v4(prefix) {
            Some(address) => self.v4.remove(&address),
            None => self.rest.remove(prefix),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = IpPrefix> {
        let v4 = self
            .v4
            .keys()
            .map(|address| IpPrefix::host((*address).into()));
        v4.chain(self.rest.keys().copied())
    }

    /// Removes and yields what `gone` is true of.
    pub(super) fn extract(
        &mut self,
        gone: impl Fn(&V) -> bool + Copy,
    ) -> impl Iterator<Item = (IpPrefix, V)> {
        let v4 = self.v4.extract_if(move |_, value| gone(value));
        let v4 = v4.map(|(address, value)| (IpPrefix::host(address.into()), value));
        v4.chain(self.rest.extract_if(move |_, value| gone(value)))
    }
}

fn v4(prefix: &IpPrefix) -> Option<Ipv4Addr> {
    match prefix.addr() {
        IpAddr::V4(address) if prefix.is_host() => Some(address),
        _ => None,
    }
}
