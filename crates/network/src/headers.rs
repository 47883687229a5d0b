//! The headers of a frame: Ethernet, VLAN tag, IPv4 or IPv6 with its extension headers, and the
//! ports.
//!
//! Key types: [`Headers`], [`Ip`], [`Malformed`]. What a guest or a peer sent is looked at here
//! first, so that everybody else has places that exist.

use std::net::{IpAddr, SocketAddr};

use backend::MacAddress;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6Packet,
};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const VLAN_TAG: usize = 4;
/// Ethertype of a VLAN tag (IEEE 802.1Q).
const VLAN: u16 = 0x8100;
/// IPv6 extension headers of one packet; more are not sent by anybody with good intentions.
const MAX_EXTENSIONS: usize = 8;

/// Protocols above IP.
pub mod protocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// Ethertypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Too short for an Ethernet header.
    Ethernet,
    /// The IPv4 header, its length or its checksum.
    Ipv4,
    /// The IPv6 header, its length or an extension header.
    Ipv6,
    /// Too short for the ports.
    Transport,
}

/// The IP part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the payload, behind extension headers.
    pub protocol: u8,
    /// Where the payload begins, in bytes from the frame's first.
    pub payload: usize,
    /// Where the packet ends.
    pub end: usize,
    /// Whether it is a part of a packet, and if so whether the first.
    pub fragment: Option<First>,
    /// Source and destination port, of TCP and UDP; type and code of ICMP are none.
    pub ports: Option<(u16, u16)>,
}

/// Whether a fragment is the first of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First(pub bool);

/// The headers of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Sender.
    pub source: MacAddress,
    /// Receiver.
    pub destination: MacAddress,
    /// VLAN, 0 to 4095, of a tagged frame.
    pub vlan: Option<u16>,
    /// Ethertype of the payload, behind a tag.
    pub ethertype: u16,
    /// Where the payload begins, in bytes from the frame's first.
    pub payload: usize,
    /// The IP packet, of a frame that has one.
    pub ip: Option<Ip>,
}

impl Headers {
    /// Reads the headers of a frame, of which `bytes` has at least all headers; it is `len` bytes
    /// long.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8], len: usize) -> Result<Self, Malformed> {
        let frame = EthernetFrame::new_checked(bytes).map_err(|_| Malformed::Ethernet)?;
        let mut ethertype = u16::from(frame.ethertype());
        let mut payload = ETHERNET;
        let mut vlan = None;
        if ethertype == VLAN {
            let tag = bytes.get(ETHERNET..ETHERNET + VLAN_TAG).ok_or(Malformed::Ethernet)?;
            vlan = Some(u16::from_be_bytes([tag[0], tag[1]]) & 0xfff);
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            payload += VLAN_TAG;
        }
        let ip = match EthernetProtocol::from(ethertype) {
            EthernetProtocol::Ipv4 => Some(ipv4(bytes, payload, len)?),
            EthernetProtocol::Ipv6 => Some(ipv6(bytes, payload, len)?),
            _ => None,
        };
        Ok(Self {
            source: MacAddress(frame.src_addr().0),
            destination: MacAddress(frame.dst_addr().0),
            vlan,
            ethertype,
            payload,
            ip,
        })
    }
}

impl Ip {
    /// Source and destination with their ports, where there are any.
    pub fn endpoints(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (from, to) = self.ports?;
        Some((SocketAddr::new(self.source, from), SocketAddr::new(self.destination, to)))
    }
}

fn ipv4(bytes: &[u8], at: usize, len: usize) -> Result<Ip, Malformed> {
    let packet = Ipv4Packet::new_unchecked(&bytes[at..]);
    let rest = bytes.len() - at;
    if rest < 20 || packet.version() != 4 {
        return Err(Malformed::Ipv4);
    }
    let header = usize::from(packet.header_len());
    let end = at + usize::from(packet.total_len());
    if header < 20 || header > rest || at + header > end || end > len || !packet.verify_checksum() {
        return Err(Malformed::Ipv4);
    }
    let part = packet.more_frags() || packet.frag_offset() != 0;
    let ip = Ip {
        source: IpAddr::V4(packet.src_addr()),
        destination: IpAddr::V4(packet.dst_addr()),
        protocol: packet.next_header().into(),
        payload: at + header,
        end,
        fragment: part.then_some(First(packet.frag_offset() == 0)),
        ports: None,
    };
    with_ports(ip, bytes)
}

fn ipv6(bytes: &[u8], at: usize, len: usize) -> Result<Ip, Malformed> {
    let packet = Ipv6Packet::new_unchecked(&bytes[at..]);
    if bytes.len() - at < 40 || packet.version() != 6 {
        return Err(Malformed::Ipv6);
    }
    let end = at + packet.total_len();
    if end > len {
        return Err(Malformed::Ipv6);
    }
    let mut next = packet.next_header();
    let mut payload = at + 40;
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        let rest = || bytes.get(payload..end.min(bytes.len())).ok_or(Malformed::Ipv6);
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => {
                let header = Ipv6ExtHeader::new_checked(rest()?).map_err(|_| Malformed::Ipv6)?;
                next = header.next_header();
                payload += (usize::from(header.header_len()) + 1) * 8;
            }
            IpProtocol::Ipv6Frag => {
                let header: &[u8; 8] = rest()?.first_chunk().ok_or(Malformed::Ipv6)?;
                let place = u16::from_be_bytes([header[2], header[3]]);
                // The whole packet in one fragment (RFC 6946) is none.
                fragment = (place & 0xfff9 != 0).then_some(First(place & 0xfff8 == 0));
                next = header[0].into();
                payload += 8;
            }
            _ => {
                let ip = Ip {
                    source: IpAddr::V6(packet.src_addr()),
                    destination: IpAddr::V6(packet.dst_addr()),
                    protocol: next.into(),
                    payload,
                    end,
                    fragment,
                    ports: None,
                };
                return with_ports(ip, bytes);
            }
        }
    }
    Err(Malformed::Ipv6)
}

fn with_ports(ip: Ip, bytes: &[u8]) -> Result<Ip, Malformed> {
    let later = ip.fragment.is_some_and(|first| !first.0);
    if !matches!(ip.protocol, protocol::TCP | protocol::UDP) || later {
        return Ok(ip);
    }
    let end = ip.end.min(bytes.len());
    let ports = bytes.get(ip.payload..end).and_then(|rest| rest.first_chunk());
    let [a, b, c, d]: [u8; 4] = *ports.ok_or(Malformed::Transport)?;
    let ports = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
    Ok(Ip { ports, ..ip })
}

/// The Internet checksum (RFC 1071), not yet complemented, of `bytes` after what was summed up
/// before.
pub fn sum(before: u32, bytes: &[u8]) -> u32 {
    let mut sum = u64::from(before);
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

/// The sum over the pseudo header of a packet of `len` bytes above IP.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let start = u32::from(protocol) + len as u32;
    let add = |before, address: IpAddr| match address {
        IpAddr::V4(address) => sum(before, &address.octets()),
        IpAddr::V6(address) => sum(before, &address.octets()),
    };
    sum(add(add(start, source), destination), &[])
}

/// Whether the checksum of the TCP, UDP or ICMPv6 packet of `ip` in the frame `bytes` is right.
pub fn checksum_is_right(bytes: &[u8], ip: &Ip) -> bool {
    let Some(packet) = bytes.get(ip.payload..ip.end) else { return false };
    let pseudo = match ip.protocol {
        protocol::ICMP => 0,
        // None at all, over IPv4 (RFC 768).
        protocol::UDP if ip.source.is_ipv4() && packet.get(6..8) == Some(&[0, 0]) => return true,
        other => pseudo_header(ip.source, ip.destination, other, packet.len()),
    };
    sum(pseudo, packet) == 0xffff
}

#[cfg(test)]
mod tests;
