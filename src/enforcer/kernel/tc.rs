//! Interfaces and what hangs on their clsact discipline, over a netlink socket that is opened for
//! one question: the map thread has no runtime to ask with.
//! Absent on purpose: TCX, which needs no netlink; `links` decides which of both is used.
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::LinkMessage,
    tc::{
        TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
        TcOption,
    },
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
        NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Asked before all other filters, as a filter before ours could let packets past it.
pub(super) const PRIORITY: u16 = 1;
/// "tb" in ASCII: nobody's default, so that a filter with it is ours or an accident.
pub(super) const HANDLE: u32 = 0x7462;

const ETH_P_ALL: u16 = 3;
/// linux/if_link.h, linux/rtnetlink.h and linux/pkt_cls.h.
const IFLA_IFNAME: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// Without the flags for nesting and byte order.
const ATTRIBUTE_KIND_MASK: u16 = 0x3fff;
const LINK_HEADER_BYTES: usize = 16;
const TC_HEADER_BYTES: usize = 20;

/// A direction of the clsact discipline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress,
    Egress,
}

/// A filter as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// `bpf`, `flower`, …
    pub(super) kind: String,
    /// Of a bpf filter: its program's name as it was given, and id.
    pub(super) name: String,
    pub(super) program: u32,
}

impl Filter {
    /// At our place, whoever put it there.
    pub(super) const fn at_our_place(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE
    }
}

/// All interfaces: index and name.
pub(super) fn interfaces() -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    ask(question, NLM_F_DUMP, |kind, body| {
        if kind == RTM_NEWLINK
            && let (Some(index), Some(attributes)) = (word(body, 4), body.get(LINK_HEADER_BYTES..))
            && let Some(name) = attribute(attributes, IFLA_IFNAME)
        {
            found.push((index, text(name)));
        }
    })?;
    Ok(found)
}

/// The filters of one direction, in the order in which they are asked; none without a clsact
/// discipline.
pub(super) fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let question = RouteNetlinkMessage::GetTrafficFilter(message(header(ifindex, hook)?));
    ask(question, NLM_F_DUMP, |kind, body| {
        if kind == RTM_NEWTFILTER {
            found.extend(filter(body));
        }
    })?;
    Ok(found)
}

/// Puts a program to our place, making the discipline and the filter as needed; what was there is
/// replaced in one step. True if the discipline was made.
pub(super) fn set_filter(
    ifindex: u32,
    hook: Hook,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<bool> {
    let made = add_clsact(ifindex)?;
    let mut message = message(ours(ifindex, hook)?);
    let fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.into()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(fd)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.into())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    ask(message, NLM_F_ACK | NLM_F_CREATE, |_, _| {})?;
    Ok(made)
}

/// Takes our filter away; none is fine.
pub(super) fn remove_filter(ifindex: u32, hook: Hook) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelTrafficFilter(message(ours(ifindex, hook)?));
    or_absent(ask(message, NLM_F_ACK, |_, _| {}))
}

/// Takes the clsact discipline away with all its filters; none is fine.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex)?);
    or_absent(ask(message, NLM_F_ACK, |_, _| {}))
}

/// False if there was one.
fn add_clsact(ifindex: u32) -> io::Result<bool> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(ifindex)?);
    match ask(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_, _| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// No such device, discipline (`EINVAL`) or filter.
fn or_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn clsact(ifindex: u32) -> io::Result<TcMessage> {
    let mut message = message(TcHeader {
        index: index(ifindex)?,
        handle: TcHandle {
            major: u16::MAX,
            minor: 0,
        },
        parent: TcHandle::CLSACT,
        ..TcHeader::default()
    });
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    Ok(message)
}

fn message(header: TcHeader) -> TcMessage {
    TcMessage::from_parts(header, Vec::new())
}

fn header(ifindex: u32, hook: Hook) -> io::Result<TcHeader> {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    Ok(TcHeader {
        index: index(ifindex)?,
        parent: TcHandle {
            major: u16::MAX,
            minor,
        },
        ..TcHeader::default()
    })
}

/// The place of our filter.
fn ours(ifindex: u32, hook: Hook) -> io::Result<TcHeader> {
    Ok(TcHeader {
        handle: HANDLE.into(),
        info: u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be()),
        ..header(ifindex, hook)?
    })
}

fn index(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(io::Error::other)
}

/// `None` for the line that speaks of a priority as such.
fn filter(body: &[u8]) -> Option<Filter> {
    let handle = word(body, 8).filter(|handle| *handle != 0)?;
    let priority = u16::try_from(word(body, 16)? >> 16).ok()?;
    let attributes = body.get(TC_HEADER_BYTES..)?;
    let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
    Some(Filter {
        priority,
        handle,
        kind: attribute(attributes, TCA_KIND)
            .map(text)
            .unwrap_or_default(),
        name: attribute(options, TCA_BPF_NAME)
            .map(text)
            .unwrap_or_default(),
        program: attribute(options, TCA_BPF_ID)
            .and_then(|id| word(id, 0))
            .unwrap_or(0),
    })
}

/// The value of the first attribute of this kind: length and kind in two bytes each, the value, and
/// padding to four bytes.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (length, rest) = attributes.split_first_chunk()?;
        let (found, _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if u16::from_ne_bytes(*found) & ATTRIBUTE_KIND_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(ATTRIBUTE_HEADER_BYTES)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + size_of::<u32>())?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A string of the kernel's, up to its zero byte.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends one message and hands out the answers' type and body until the kernel is done.
fn ask(
    message: RouteNetlinkMessage,
    flags: u16,
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let one = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let body = one.payload();
            match one.message_type() {
                NLMSG_DONE => return Ok(()),
                // Zero acknowledges; else it is an error number, negative.
                NLMSG_ERROR => {
                    return match word(body, 0).map_or(-libc::EIO, u32::cast_signed) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                kind => each(kind, body),
            }
            let length = usize::try_from(one.length()).map_err(io::Error::other)?;
            rest = rest
                .get(length.next_multiple_of(size_of::<u32>())..)
                .unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_attributes_end_the_search() {
        let mut bytes = Vec::new();
        for (kind, value) in [(1u16, &b"bpf\0"[..]), (7, b"x\0")] {
            let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attribute(&bytes, 7).map(text), Some("x".into()));
        assert_eq!(attribute(&bytes, 2), None);
        for end in 0..bytes.len() - 2 {
            assert_eq!(attribute(&bytes[..end], 7), None, "{end}");
        }
        // A length of zero would never come to an end.
        assert_eq!(attribute(&[0; 16], 7), None);
    }
}
