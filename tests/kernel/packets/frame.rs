//! Builds Ethernet frames part by part. Lengths and next-header fields are right unless a part says
//! otherwise; checksums are those of IPv4 headers, TCP, UDP and ICMP, and SCTP's is zero.
use std::net::IpAddr;

/// IP protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;

/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// A frame in the making.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Of the transport, or whatever stands behind the last extension header.
    pub(crate) protocol: u8,
    /// Transport header and data.
    pub(crate) payload: Vec<u8>,
    pub(crate) hop_limit: u8,
    /// Tags, the outermost first.
    pub(crate) vlans: Vec<u16>,
    /// IPv4 options; a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers in order: number and bytes, the first of which is filled in.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Identification, offset in units of eight bytes, and whether more fragments follow. Of IPv4
    /// only: for IPv6 it is an extension header, see [`fragment`].
    pub(crate) fragment: (u16, u16, bool),
}

impl Frame {
    /// From and to addresses of one family; empty otherwise.
    pub(crate) fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            protocol: 0,
            payload: Vec::new(),
            hop_limit: 64,
            vlans: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: (0, 0, false),
        }
    }

    pub(crate) fn tcp(self, source: u16, destination: u16, flags: u8) -> Self {
        let mut header = vec![0; 20];
        header[12] = 5 << 4; // words
        header[13] = flags;
        self.ports(TCP, header, source, destination, Some(16))
    }

    /// With eight bytes of data.
    pub(crate) fn udp(self, source: u16, destination: u16) -> Self {
        let mut header = vec![0; 16];
        header[5] = 16; // bytes
        self.ports(UDP, header, source, destination, Some(6))
    }

    /// With one chunk of this type.
    pub(crate) fn sctp(self, source: u16, destination: u16, chunk: u8) -> Self {
        let mut header = vec![0; 32];
        header[12] = chunk;
        header[15] = 20; // bytes of the chunk
        self.ports(SCTP, header, source, destination, None)
    }

    /// ICMP or ICMPv6, by the family; `rest` stands behind the identifier.
    pub(crate) fn icmp(mut self, kind: u8, code: u8, id: u16, rest: &[u8]) -> Self {
        self.protocol = if self.source.is_ipv4() { ICMP } else { ICMPV6 };
        self.payload = vec![kind, code, 0, 0];
        self.payload.extend(id.to_be_bytes());
        self.payload.extend([0, 0]);
        self.payload.extend(rest);
        let pseudo = self.source.is_ipv6();
        self.checksum(2, pseudo);
        self
    }

    /// A protocol without ports.
    pub(crate) fn other(mut self, protocol: u8, payload: &[u8]) -> Self {
        self.protocol = protocol;
        self.payload = payload.to_vec();
        self
    }

    fn ports(
        mut self,
        protocol: u8,
        mut header: Vec<u8>,
        source: u16,
        destination: u16,
        checksum: Option<usize>,
    ) -> Self {
        header[..2].copy_from_slice(&source.to_be_bytes());
        header[2..4].copy_from_slice(&destination.to_be_bytes());
        self.protocol = protocol;
        self.payload = header;
        if let Some(at) = checksum {
            self.checksum(at, true);
        }
        self
    }

    /// Fills in the Internet checksum of the payload, with or without the pseudo header.
    fn checksum(&mut self, at: usize, pseudo: bool) {
        let mut bytes = Vec::new();
        if pseudo {
            bytes.extend(octets(self.source));
            bytes.extend(octets(self.destination));
            bytes.extend(u32::try_from(self.payload.len()).unwrap().to_be_bytes());
            bytes.extend([0, 0, 0, self.protocol]);
        }
        bytes.extend(&self.payload);
        let sum = checksum(&bytes);
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// From the Ethernet header on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in &self.vlans {
            out.extend(ETHERTYPE_VLAN.to_be_bytes());
            out.extend(tag.to_be_bytes());
        }
        let ethertype = match self.source {
            IpAddr::V4(_) => ETHERTYPE_V4,
            IpAddr::V6(_) => ETHERTYPE_V6,
        };
        out.extend(ethertype.to_be_bytes());
        out.extend(self.packet());
        out
    }

    /// From the IP header on: also what an ICMP error carries.
    pub(crate) fn packet(&self) -> Vec<u8> {
        match self.source {
            IpAddr::V4(_) => self.v4(),
            IpAddr::V6(_) => self.v6(),
        }
    }

    fn v4(&self) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let length = words * 4 + self.payload.len();
        let (id, offset, more) = self.fragment;
        let mut out = vec![0x40 | u8::try_from(words).unwrap(), 0];
        out.extend(u16::try_from(length).unwrap().to_be_bytes());
        out.extend(id.to_be_bytes());
        out.extend((offset | u16::from(more) << 13).to_be_bytes());
        out.extend([self.hop_limit, self.protocol, 0, 0]);
        out.extend(octets(self.source));
        out.extend(octets(self.destination));
        out.extend(&self.options);
        let sum = checksum(&out);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(&self.payload);
        out
    }

    fn v6(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        let numbers = self.extensions.iter().map(|(number, _)| *number);
        let next = numbers.skip(1).chain([self.protocol]);
        for ((_, bytes), next) in self.extensions.iter().zip(next) {
            let start = rest.len();
            rest.extend(bytes);
            rest[start] = next;
        }
        rest.extend(&self.payload);
        let first = self.extensions.first().map_or(self.protocol, |(n, _)| *n);
        let mut out = vec![0x60, 0, 0, 0];
        out.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        out.extend([first, self.hop_limit]);
        out.extend(octets(self.source));
        out.extend(octets(self.destination));
        out.extend(rest);
        out
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
