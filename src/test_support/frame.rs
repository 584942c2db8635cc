//! Ethernet frames made by hand, right or wrong, for runs of the BPF programs without a network.
//! Lengths and checksums of IP and transport are zero: the programs leave both to the receiver.
use std::net::IpAddr;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;
/// See [`ICMP`].
pub const SCTP: u8 = 132;
/// Headers of IPv6 that may stand before the transport.
pub const HOP_BY_HOP: u8 = 0;
/// See [`HOP_BY_HOP`].
pub const ROUTING: u8 = 43;
/// See [`HOP_BY_HOP`].
pub const AUTHENTICATION: u8 = 51;
/// See [`HOP_BY_HOP`].
pub const DESTINATION: u8 = 60;
const FRAGMENT: u8 = 44;

/// TCP flags.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// What kind of frame it is.
pub const ETH_IPV4: u16 = 0x0800;
/// See [`ETH_IPV4`].
pub const ETH_ARP: u16 = 0x0806;
/// See [`ETH_IPV4`].
pub const ETH_IPV6: u16 = 0x86dd;
/// See [`ETH_IPV4`].
pub const ETH_VLAN: u16 = 0x8100;

/// An IP packet in the making.
#[derive(Debug, Clone)]
pub struct Frame {
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    vlan: Option<u16>,
    /// Words of IPv4 options.
    options: usize,
    /// Identification, offset in units of eight bytes, more to come.
    fragment: Option<(u16, u16, bool)>,
    extensions: Vec<(u8, Vec<u8>)>,
    protocol: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// From one address to another of the same family, of a protocol without ports.
    ///
    /// # Panics
    /// If the families differ.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family");
        Self {
            source,
            destination,
            hop_limit: 64,
            vlan: None,
            options: 0,
            fragment: None,
            extensions: Vec::new(),
            protocol,
            payload: payload.to_vec(),
        }
    }

    /// A TCP header of 20 bytes.
    #[must_use]
    pub fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8) -> Self {
        let mut header = ports(source.1, destination.1);
        header.extend([0; 8]);
        header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        Self::new(source.0, destination.0, TCP, &header)
    }

    /// A UDP header with a little payload.
    #[must_use]
    pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let mut header = ports(source.1, destination.1);
        header.extend([0; 8]);
        Self::new(source.0, destination.0, UDP, &header)
    }

    /// An SCTP header with the head of a chunk of type `chunk`: 1 INIT, 2 INIT ACK, 0 DATA.
    #[must_use]
    pub fn sctp(source: (IpAddr, u16), destination: (IpAddr, u16), chunk: u8) -> Self {
        let mut header = ports(source.1, destination.1);
        header.extend([0; 8]);
        header.extend([chunk, 0, 0, 4]);
        Self::new(source.0, destination.0, SCTP, &header)
    }

    /// An ICMP or ICMPv6 message: type, code 0, and what follows the checksum.
    #[must_use]
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, rest: &[u8]) -> Self {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(rest);
        Self::new(source, destination, icmp_of(source), &message)
    }

    /// An echo request with this id, or its reply.
    #[must_use]
    pub fn echo(source: IpAddr, destination: IpAddr, id: u16, reply: bool) -> Self {
        let kind = match (source.is_ipv4(), reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        let [high, low] = id.to_be_bytes();
        Self::icmp(source, destination, kind, &[high, low, 0, 1])
    }

    /// An error of type `kind` about `inner`, which is cut to its IP header and `bytes` more.
    #[must_use]
    pub fn error(
        source: IpAddr,
        destination: IpAddr,
        kind: u8,
        inner: &Self,
        bytes: usize,
    ) -> Self {
        let mut rest = vec![0; 4];
        let inside = inner.ip();
        let header = inside.len() - inner.payload.len();
        rest.extend(&inside[..inside.len().min(header + bytes)]);
        Self::icmp(source, destination, kind, &rest)
    }

    /// As a fragment: identification, offset in units of eight bytes, more to come.
    #[must_use]
    pub fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        self.fragment = Some((id, offset, more));
        self
    }

    /// With an 802.1Q tag.
    #[must_use]
    pub fn vlan(mut self, tag: u16) -> Self {
        self.vlan = Some(tag);
        self
    }

    /// With so many words of IPv4 options.
    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    /// With a further extension header of the least size, in front of a fragment header.
    #[must_use]
    pub fn extension(mut self, kind: u8) -> Self {
        // An authentication header counts its length in words of four bytes, less two.
        let length = u8::from(kind == AUTHENTICATION);
        let size = if kind == AUTHENTICATION { 12 } else { 8 };
        let mut header = vec![0; size];
        header[1] = length;
        self.extensions.push((kind, header));
        self
    }

    /// With another hop limit, or time to live.
    #[must_use]
    pub fn hop_limit(mut self, hops: u8) -> Self {
        self.hop_limit = hops;
        self
    }

    /// The whole frame, from the Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let kind = if self.source.is_ipv4() {
            ETH_IPV4
        } else {
            ETH_IPV6
        };
        let mut frame = match self.vlan {
            None => ethernet(kind, &[]),
            Some(tag) => ethernet(ETH_VLAN, &[tag.to_be_bytes(), kind.to_be_bytes()].concat()),
        };
        frame.extend(self.ip());
        frame
    }

    /// The packet without its Ethernet header.
    fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.v4(source.octets(), destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.v6(source.octets(), destination.octets())
            }
            _ => Vec::new(),
        }
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let words = u8::try_from(5 + self.options).unwrap_or(15).min(15);
        let (id, offset, more) = self.fragment.unwrap_or_default();
        let fragment = offset | if more { 0x2000 } else { 0 };
        let mut packet = vec![0x40 | words, 0, 0, 0];
        packet.extend(id.to_be_bytes());
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.hop_limit, self.protocol, 0, 0]);
        packet.extend(source);
        packet.extend(destination);
        packet.resize(usize::from(words) * 4, 1);
        packet.extend(&self.payload);
        packet
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some((id, offset, more)) = self.fragment {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            let [first, second] = id.to_be_bytes();
            extensions.push((FRAGMENT, vec![0, 0, high, low, 0, 0, first, second]));
        }
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 0, self.hop_limit];
        packet.extend(source);
        packet.extend(destination);
        // Each header names the next one; the fixed header has the place at 6.
        let mut next = 6;
        for (kind, header) in &extensions {
            packet[next] = *kind;
            next = packet.len();
            packet.extend(header);
        }
        packet[next] = self.protocol;
        packet.extend(&self.payload);
        packet
    }
}

/// An ARP request (1) or answer (2) for IPv4 over Ethernet.
#[must_use]
pub fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend([2; 6]);
    payload.extend(sender);
    payload.extend([0; 6]);
    payload.extend(target);
    ethernet(ETH_ARP, &payload)
}

/// An Ethernet header of this kind, and what follows.
#[must_use]
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

const fn icmp_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => ICMP,
        IpAddr::V6(_) => ICMPV6,
    }
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}
