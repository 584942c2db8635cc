//! The prefixes that rules name: each has an identity of this node, with entries of its own.
//!
//! A packet's identity changes when a prefix begins or ceases to stand for its address, in one
//! write. That write must not change what becomes of it: so it is done while all rules say of the
//! prefix what they say of the next one around it. A new prefix begins under the old rules, none of
//! which names it, and only once its entries are there. A prefix that no rule names any more ceases
//! under the new rules, before its entries go. In between, rules change for identities that stay.
use super::{Engine, contributions::Touched, rules::Source, selectors::Identity};
use crate::{policy::MapDelta, types::IpPrefix};

impl Engine {
    /// Gives the prefixes of rules that are to come identities; false if there are not enough, and
    /// nothing is changed then.
    pub(super) fn acquire_prefixes<'a>(
        &mut self,
        sources: impl Iterator<Item = &'a Source>,
        out: &mut Vec<MapDelta>,
    ) -> bool {
        let prefixes: Vec<IpPrefix> = sources.flat_map(Source::prefixes).collect();
        if prefixes.len() > self.cidrs.room() {
            return false;
        }
        let mut touched = Touched::default();
        for prefix in prefixes {
            if let Some(id) = self.cidrs.acquire(prefix) {
                self.untold.insert(prefix);
                self.relabel(id, Some(Identity::of(prefix)), &mut touched);
            }
        }
        self.finish(touched, out);
        self.tell_prefixes(out);
        true
    }

    /// Says what is to be said, unless the entries for these prefixes are still to come: before the
    /// first endpoint of the start, the kernel holds those of a former process.
    pub(super) fn tell_prefixes(&mut self, out: &mut Vec<MapDelta>) {
        if self.endpoints.is_empty() && !self.synced {
            return;
        }
        for prefix in std::mem::take(&mut self.untold) {
            if let Some(id) = self.cidrs.identity(&prefix) {
                let identity = Some(id);
                out.push(MapDelta::Cidr { prefix, identity });
            }
        }
    }

    pub(super) fn release_prefixes(&mut self, prefixes: Vec<IpPrefix>, out: &mut Vec<MapDelta>) {
        let mut touched = Touched::default();
        for prefix in prefixes {
            let Some(id) = self.cidrs.release(&prefix) else {
                continue;
            };
            if !self.untold.remove(&prefix) {
                let identity = None;
                out.push(MapDelta::Cidr { prefix, identity });
            }
            self.relabel(id, None, &mut touched);
        }
        self.finish(touched, out);
    }
}
