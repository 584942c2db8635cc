//! Network devices over rtnetlink, in the network namespace the process was started in.
//!
//! Two sockets: one for questions, one that only listens, so that a burst of notifications cannot
//! get in the way of an answer. Notifications carry no content to the caller: they say "look again".
//! Absent on purpose: any change to the system.
use std::{collections::HashMap, net::IpAddr, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::{sync::watch, task::JoinSet};

use crate::limits;

#[cfg(test)]
mod tests;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("open netlink socket")]
    Open(#[source] std::io::Error),
    /// No socket that hears notifications.
    #[error("open netlink notification socket")]
    Listen(#[source] std::io::Error),
    /// A link was not told.
    #[error("get link {name}")]
    Link {
        /// The interface asked for.
        name: String,
        /// What the kernel or the socket said.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// Links were not listed.
    #[error("list links")]
    Links(#[source] Box<rtnetlink::Error>),
    /// Routes were not listed.
    #[error("list routes")]
    Routes(#[source] Box<rtnetlink::Error>),
    /// Addresses were not listed.
    #[error("list addresses")]
    Addresses(#[source] Box<rtnetlink::Error>),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number; never reused while the machine is up, except after four billion.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// What made it (`veth`, `bridge`, …); `None` for hardware.
    pub kind: Option<String>,
    /// Administratively up.
    pub up: bool,
}

impl Link {
    /// True for one end of a virtual cable.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// Asks the kernel about links, routes and addresses. Clones share their sockets.
#[derive(Debug, Clone)]
pub struct Netdev {
    handle: Handle,
    changes: watch::Receiver<()>,
    /// Serve the sockets; end with the last clone.
    _tasks: Arc<JoinSet<()>>,
}

impl Netdev {
    /// Opens the sockets; must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses a socket.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        let (listener, _, mut messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(Error::Listen)?;
        let (changed, changes) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(listener);
        tasks.spawn(async move {
            // The library's queue of messages has no limit, so it is emptied at all times. A lost
            // message (the socket overran) comes as one too, and means the same: look again.
            while messages.next().await.is_some() {
                changed.send_replace(());
            }
        });
        Ok(Self {
            handle,
            changes,
            _tasks: Arc::new(tasks),
        })
    }

    /// The interface with this name, if there is one.
    ///
    /// # Errors
    /// [`Error::Link`] if the kernel could not be asked.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut answers = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        match answers.try_next().await {
            Ok(message) => Ok(message.as_ref().and_then(link)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(source) => Err(Error::Link {
                name: name.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    /// All interfaces by number.
    ///
    /// # Errors
    /// [`Error::Links`] if the kernel could not be asked.
    pub async fn links(&self) -> Result<HashMap<u32, Link>, Error> {
        let answers = self.handle.link().get().execute();
        let links = answers.try_filter_map(|m| std::future::ready(Ok(link(&m))));
        links
            .map_ok(|link| (link.index, link))
            .try_collect()
            .await
            .map_err(|error| Error::Links(Box::new(error)))
    }

    /// Addresses whose own route (`/32`, `/128`) leads to a veth, with the name of that interface.
    ///
    /// # Errors
    /// [`Error::Links`], [`Error::Routes`] if the kernel could not be asked.
    pub async fn veth_routes(&self) -> Result<HashMap<IpAddr, String>, Error> {
        let links = self.links().await?;
        let mut found = HashMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let mut answers = std::pin::pin!(self.handle.route().get(question).execute());
            while let Some(route) = answers
                .try_next()
                .await
                .map_err(|error| Error::Routes(Box::new(error)))?
            {
                if let Some((address, index)) = host_route(&route)
                    && let Some(link) = links.get(&index).filter(|link| link.is_veth())
                {
                    found.insert(address, link.name.clone());
                }
            }
        }
        Ok(found)
    }

    /// The veth that `address`'s own route leads to.
    ///
    /// # Errors
    /// As [`Netdev::veth_routes`].
    pub async fn veth_of(&self, address: IpAddr) -> Result<Option<String>, Error> {
        Ok(self.veth_routes().await?.remove(&address))
    }

    /// The addresses of all interfaces, without order, loopback and link-local ones included.
    ///
    /// # Errors
    /// [`Error::Addresses`] if the kernel could not be asked.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let answers = self.handle.address().get().execute();
        let addresses = answers.try_filter_map(|message| {
            // Where both are given, `Address` is the other end of a point-to-point link.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            let address = local.or_else(|| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
            });
            std::future::ready(Ok(address))
        });
        addresses
            .try_collect()
            .await
            .map_err(|error| Error::Addresses(Box::new(error)))
    }

    /// Notifications from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        Changes(changes)
    }
}

/// Tells that links, routes or addresses changed.
#[derive(Debug)]
pub struct Changes(watch::Receiver<()>);

impl Changes {
    /// Waits for a change, and a moment longer so that a burst counts as one. False if there will
    /// be no more. Cancel safe: a change that was not told yet is told by the next call.
    pub async fn changed(&mut self) -> bool {
        if self.0.changed().await.is_err() {
            return false;
        }
        self.0.mark_changed();
        tokio::time::sleep(limits::NETDEV_COALESCE).await;
        self.0.mark_unchanged();
        true
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        kind: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Veth) => Some("veth".to_owned()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// Address and interface of a route in the main table that is for a single address.
fn host_route(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    let header = &route.header;
    let full = if header.address_family == AddressFamily::Inet {
        32
    } else {
        128
    };
    if header.destination_prefix_length != full
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let (mut address, mut index) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    address.zip(index)
}
