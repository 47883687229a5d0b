//! Frames made here: Ethernet, IP and what is above it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use backend::{Frame, MacAddress, Offload, PartialChecksum};
use bytes::Bytes;
use smoltcp::wire::{EthernetAddress, EthernetFrame, Ipv4Packet, Ipv6Packet};

use crate::headers::{ETHERNET, ethertype, protocol, pseudo_header, sum};

/// Hop limit of what is sent; neighbour discovery demands 255 (RFC 4861 7.1), others do not mind.
const HOPS: u8 = 255;

/// From whom to whom a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) from: (MacAddress, IpAddr),
    pub(crate) to: (MacAddress, IpAddr),
}

/// Where the checksum is in the header of a protocol above IP.
fn checksum_offset(protocol: u8) -> u16 {
    match protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    }
}

/// Bytes of Ethernet and IP headers on `route`.
pub(crate) fn header_len(route: &Route) -> usize {
    ETHERNET + if route.to.1.is_ipv4() { 20 } else { 40 }
}

/// A frame with one packet of `protocol`: `header` (with a checksum of 0), and a payload behind it.
/// Checksums of TCP and UDP are left to the receiver; `None` for addresses of two families, or more
/// than fits into a packet.
pub(crate) fn packet(route: &Route, protocol: u8, header: &[u8], body: Bytes) -> Option<Frame> {
    let len = header.len() + body.len();
    let mut head = ethernet(route);
    match (route.from.1, route.to.1) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(&mut head, from, to, protocol, len)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(&mut head, from, to, protocol, len)?,
        _ => return None,
    }
    let start = head.len();
    head.extend_from_slice(header);
    let offset = checksum_offset(protocol);
    let field = start + usize::from(offset);
    let pseudo = match protocol {
        protocol::ICMP => 0,
        _ => pseudo_header(route.from.1, route.to.1, protocol, len),
    };
    let mut offload = Offload::default();
    let value = if matches!(protocol, protocol::TCP | protocol::UDP) {
        offload.checksum = Some(PartialChecksum { start: start as u16, offset });
        pseudo as u16
    } else {
        // A header of odd length with a body behind it is not made here.
        let all = sum(sum(pseudo, header), &body);
        !(all as u16)
    };
    head.get_mut(field..field + 2)?.copy_from_slice(&value.to_be_bytes());
    Some(Frame { offload, head, body })
}

/// A frame with something other than IP.
pub(crate) fn other(from: MacAddress, to: MacAddress, kind: u16, content: &[u8]) -> Frame {
    let mut head = ethernet_header(from, to, kind);
    head.extend_from_slice(content);
    Frame { head, ..Frame::default() }
}

fn ethernet(route: &Route) -> Vec<u8> {
    let kind = if route.to.1.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
    ethernet_header(route.from.0, route.to.0, kind)
}

fn ethernet_header(from: MacAddress, to: MacAddress, kind: u16) -> Vec<u8> {
    // Room for the largest headers: IPv6, and TCP with options.
    let mut head = Vec::with_capacity(ETHERNET + 40 + 40);
    head.resize(ETHERNET, 0);
    let mut frame = EthernetFrame::new_unchecked(&mut head[..]);
    frame.set_src_addr(EthernetAddress(from.0));
    frame.set_dst_addr(EthernetAddress(to.0));
    frame.set_ethertype(kind.into());
    head
}

fn ipv4(head: &mut Vec<u8>, from: Ipv4Addr, to: Ipv4Addr, kind: u8, len: usize) -> Option<()> {
    let at = head.len();
    head.resize(at + 20, 0);
    let mut packet = Ipv4Packet::new_unchecked(&mut head[at..]);
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_total_len(u16::try_from(20 + len).ok()?);
    packet.set_dont_frag(true);
    packet.set_hop_limit(HOPS);
    packet.set_next_header(kind.into());
    packet.set_src_addr(from);
    packet.set_dst_addr(to);
    packet.fill_checksum();
    Some(())
}

fn ipv6(head: &mut Vec<u8>, from: Ipv6Addr, to: Ipv6Addr, kind: u8, len: usize) -> Option<()> {
    let at = head.len();
    head.resize(at + 40, 0);
    let mut packet = Ipv6Packet::new_unchecked(&mut head[at..]);
    packet.set_version(6);
    packet.set_payload_len(u16::try_from(len).ok()?);
    packet.set_next_header(kind.into());
    packet.set_hop_limit(HOPS);
    packet.set_src_addr(from);
    packet.set_dst_addr(to);
    Some(())
}
