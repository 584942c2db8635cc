//! What the reconciler needs of a kernel, and a kernel made of plain maps for tests and for builds
//! without eBPF. Absent on purpose: any decision; that is `reconcile`.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::PathBuf,
};

use super::abi;
use crate::{
    policy::{PolicyEntry, PolicyKey},
    types::{EndpointId, IdentityId, IpPrefix},
};

/// Why the kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without the `ebpf` feature.
    #[error("load programs: built without eBPF")]
    NotBuilt,
    /// A directory for pins could not be made or read.
    #[error("prepare {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pinned map is not the one that the programs expect.
    #[error(
        "reuse map {map}: {what} is {found}, expected {expected}; it was made by another program: \
         tombolo cleanup removes it, and ends enforcement until the agent is back"
    )]
    Schema {
        /// Which.
        map: &'static str,
        /// Type, key or value.
        what: &'static str,
        /// What the pin has.
        found: u64,
        /// What the program has.
        expected: u32,
    },
    /// A map holds more than its new size.
    #[error("shrink map {map}: it holds {entries} entries, more than {flag} {max}; raise it")]
    Shrink {
        /// Which.
        map: &'static str,
        /// What it holds.
        entries: usize,
        /// Its new size.
        max: u32,
        /// What sizes it.
        flag: &'static str,
    },
    /// TCX was asked for.
    #[error("attach by TCX: this kernel has none (Linux 6.6); use --attach-mode=clsact")]
    NoTcx,
    /// The network interfaces could not be listed.
    #[error("list interfaces")]
    Interfaces {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The object was refused.
    #[error("load programs")]
    Load {
        /// Why, with the verifier's words if it was the verifier.
        #[source]
        source: io::Error,
    },
    /// A program was refused.
    #[error("load program {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error("{op} map {map}")]
    Map {
        /// Which.
        map: &'static str,
        /// `read`, `write`, `delete` or `open`.
        op: &'static str,
        /// Why; `E2BIG` or `ENOSPC` if it is full.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached or detached.
    #[error("{op} {link}")]
    Link {
        /// `attach`, `pin` or `detach`.
        op: &'static str,
        /// `<ifindex>-<direction>`.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started, or its runtime not built.
    #[error("start thread {name}")]
    Thread {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread ended without a result: it panicked.
    #[error("thread {name} died")]
    Died {
        /// Which.
        name: &'static str,
        /// Its result never came.
        #[source]
        source: tokio::sync::oneshot::error::RecvError,
    },
}

/// Everything that the kernel holds for us.
#[derive(Debug, Default)]
pub struct Observed {
    /// Both ipcache maps.
    pub ipcache: HashMap<IpPrefix, abi::IpcacheValue>,
    /// Identities of the prefixes that rules name.
    pub cidrs: HashMap<IpPrefix, IdentityId>,
    /// The policy map, in key order, so that an endpoint's entries are one range.
    pub policy: BTreeMap<PolicyKey, PolicyEntry>,
    /// Interface index to endpoint.
    pub endpoints: HashMap<u32, abi::Endpoint>,
    /// Interfaces with both programs attached.
    pub links: HashSet<u32>,
    /// Current epoch, and flags.
    pub config: abi::Config,
}

/// A kernel. All calls are synchronous system calls of microseconds, `attach` of milliseconds.
#[expect(
    clippy::missing_errors_doc,
    reason = "each says which operation failed on what"
)]
pub trait Datapath: Send {
    /// Reads everything back, takes over links that live, collects those that don't.
    fn observe(&mut self) -> Result<Observed, Error>;
    /// Writes (`Some`) or deletes (`None`); deleting what is absent is fine.
    fn set_ipcache(
        &mut self,
        prefix: &IpPrefix,
        value: Option<abi::IpcacheValue>,
    ) -> Result<(), Error>;
    /// Same for a policy entry.
    fn set_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) -> Result<(), Error>;
    /// Same for an endpoint.
    fn set_endpoint(&mut self, ifindex: u32, value: Option<abi::Endpoint>) -> Result<(), Error>;
    /// Same for the identity of a prefix that rules name.
    fn set_cidr(&mut self, prefix: &IpPrefix, value: Option<IdentityId>) -> Result<(), Error>;
    /// Moves the epoch, sets the flags.
    fn set_config(&mut self, config: abi::Config) -> Result<(), Error>;
    /// Adds what a counter slot counted to that of what is gone, and sets it to zero.
    fn retire_slot(&mut self, slot: u32) -> Result<(), Error>;
    /// Forgets what an endpoint's ports were used for.
    fn forget_ports(&mut self, endpoint: EndpointId) -> Result<(), Error>;
    /// The index of an interface in this network namespace.
    fn ifindex(&self, name: &str) -> Option<u32>;
    /// True if an interface has this index.
    fn exists(&self, ifindex: u32) -> bool;
    /// Attaches both programs, or replaces what is attached without a gap.
    fn attach(&mut self, ifindex: u32, name: &str) -> Result<(), Error>;
    /// Detaches both programs; also right if the interface or the links are gone.
    fn detach(&mut self, ifindex: u32) -> Result<(), Error>;
}

impl<D: Datapath + ?Sized> Datapath for Box<D> {
    fn observe(&mut self) -> Result<Observed, Error> {
        (**self).observe()
    }

    fn set_ipcache(
        &mut self,
        prefix: &IpPrefix,
        value: Option<abi::IpcacheValue>,
    ) -> Result<(), Error> {
        (**self).set_ipcache(prefix, value)
    }

    fn set_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) -> Result<(), Error> {
        (**self).set_policy(key, value)
    }

    fn set_endpoint(&mut self, ifindex: u32, value: Option<abi::Endpoint>) -> Result<(), Error> {
        (**self).set_endpoint(ifindex, value)
    }

    fn set_cidr(&mut self, prefix: &IpPrefix, value: Option<IdentityId>) -> Result<(), Error> {
        (**self).set_cidr(prefix, value)
    }

    fn set_config(&mut self, config: abi::Config) -> Result<(), Error> {
        (**self).set_config(config)
    }

    fn retire_slot(&mut self, slot: u32) -> Result<(), Error> {
        (**self).retire_slot(slot)
    }

    fn forget_ports(&mut self, endpoint: EndpointId) -> Result<(), Error> {
        (**self).forget_ports(endpoint)
    }

    fn ifindex(&self, name: &str) -> Option<u32> {
        (**self).ifindex(name)
    }

    fn exists(&self, ifindex: u32) -> bool {
        (**self).exists(ifindex)
    }

    fn attach(&mut self, ifindex: u32, name: &str) -> Result<(), Error> {
        (**self).attach(ifindex, name)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        (**self).detach(ifindex)
    }
}

/// A kernel made of plain maps.
#[derive(Debug, Default)]
pub struct Memory {
    /// What it holds.
    pub state: Observed,
    /// Interfaces that exist.
    pub interfaces: HashMap<String, u32>,
    /// Operations in the order they came, for tests of the order.
    pub log: Vec<String>,
    /// When true, writes of policy entries fail as in a full map.
    pub full: bool,
}

impl Datapath for Memory {
    fn observe(&mut self) -> Result<Observed, Error> {
        Ok(Observed {
            ipcache: self.state.ipcache.clone(),
            policy: self.state.policy.clone(),
            endpoints: self.state.endpoints.clone(),
            links: self.state.links.clone(),
            cidrs: self.state.cidrs.clone(),
            config: self.state.config,
        })
    }

    fn set_ipcache(
        &mut self,
        prefix: &IpPrefix,
        value: Option<abi::IpcacheValue>,
    ) -> Result<(), Error> {
        self.log(|| format!("ipcache {prefix} {:?}", value.map(|v| v.identity)));
        match value {
            Some(value) => self.state.ipcache.insert(*prefix, value),
            None => self.state.ipcache.remove(prefix),
        };
        Ok(())
    }

    fn set_policy(&mut self, key: PolicyKey, value: Option<PolicyEntry>) -> Result<(), Error> {
        if self.full && value.is_some() {
            let source = io::ErrorKind::StorageFull.into();
            return Err(Error::Map {
                map: "policy",
                op: "write",
                source,
            });
        }
        self.log(|| {
            format!(
                "policy {} {} {:?}",
                key.endpoint,
                key.identity,
                value.map(|v| v.votes.bits())
            )
        });
        match value {
            Some(value) => self.state.policy.insert(key, value),
            None => self.state.policy.remove(&key),
        };
        Ok(())
    }

    fn set_endpoint(&mut self, ifindex: u32, value: Option<abi::Endpoint>) -> Result<(), Error> {
        self.log(|| {
            format!(
                "endpoint {ifindex} {:?}",
                value.map(|v| (v.endpoint, v.flags, v.levels))
            )
        });
        match value {
            Some(value) => self.state.endpoints.insert(ifindex, value),
            None => self.state.endpoints.remove(&ifindex),
        };
        Ok(())
    }

    fn set_cidr(&mut self, prefix: &IpPrefix, value: Option<IdentityId>) -> Result<(), Error> {
        self.log(|| format!("cidr {prefix} {:?}", value.map(|id| id.0 & 0xff)));
        match value {
            Some(value) => self.state.cidrs.insert(*prefix, value),
            None => self.state.cidrs.remove(prefix),
        };
        Ok(())
    }

    fn set_config(&mut self, config: abi::Config) -> Result<(), Error> {
        let moved = self.state.config.epoch != config.epoch;
        self.log(|| {
            let what = if moved { "epoch" } else { "flags" };
            what.into()
        });
        self.state.config = config;
        Ok(())
    }

    fn retire_slot(&mut self, slot: u32) -> Result<(), Error> {
        self.log(|| format!("retire {slot}"));
        Ok(())
    }

    fn forget_ports(&mut self, endpoint: EndpointId) -> Result<(), Error> {
        self.log(|| format!("forget ports {endpoint}"));
        Ok(())
    }

    fn ifindex(&self, name: &str) -> Option<u32> {
        self.interfaces.get(name).copied()
    }

    fn exists(&self, ifindex: u32) -> bool {
        self.interfaces.values().any(|i| *i == ifindex)
    }

    fn attach(&mut self, ifindex: u32, _name: &str) -> Result<(), Error> {
        self.log(|| format!("attach {ifindex}"));
        self.state.links.insert(ifindex);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        self.log(|| format!("detach {ifindex}"));
        self.state.links.remove(&ifindex);
        Ok(())
    }
}

impl Memory {
    /// Kept short outside tests, where nobody empties it.
    fn log(&mut self, line: impl FnOnce() -> String) {
        if cfg!(test) {
            self.log.push(line());
        }
    }
}
