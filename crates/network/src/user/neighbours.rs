//! Who is where: ARP (RFC 826), neighbour discovery and router advertisements (RFC 4861, 4862,
//! 8106).

use std::net::{IpAddr, Ipv6Addr};

use backend::MacAddress;
use bytes::Bytes;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, NdiscNeighborFlags,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::env::Env;
use super::plan::PREFIX_LEN;
use crate::frames::{self, Route};
use crate::headers::{Headers, Ip, Malformed, ethertype, protocol};

/// How long a guest may use us as a router, and its address, without hearing of us again.
const LIFETIME: Duration = Duration::from_secs(9000);
const FOREVER: Duration = Duration::from_secs(0xffff_ffff);
/// Type of the option with name servers (RFC 8106 5.1).
const RDNSS: u8 = 25;
/// Types of messages (RFC 4861 4).
const ROUTER_SOLICIT: u8 = 133;
const NEIGHBOUR_ADVERT: u8 = 136;

/// An ARP packet of a guest.
pub(super) fn arp(headers: &Headers, frame: &[u8], env: &mut Env) -> Result<(), Malformed> {
    let packet = ArpPacket::new_checked(&frame[headers.payload..]);
    let arp = packet.and_then(|packet| ArpRepr::parse(&packet)).map_err(|_| Malformed::Ethernet)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = arp
    else {
        return Err(Malformed::Ethernet);
    };
    let (mac, address) = (MacAddress(source_hardware_addr.0), source_protocol_addr);
    let inside = env.plan.is_inside(address.into()) && !env.plan.is_ours(address.into());
    if mac == headers.source && inside {
        env.learn(address.into(), mac);
    }
    if operation != ArpOperation::Request || !env.plan.is_ours(target_protocol_addr.into()) {
        return Ok(());
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(env.plan.mac.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: address,
    };
    emit_arp(&reply, headers.source, env);
    Ok(())
}

fn emit_arp(arp: &ArpRepr, to: MacAddress, env: &mut Env) {
    let mut content = vec![0; arp.buffer_len()];
    arp.emit(&mut ArpPacket::new_unchecked(&mut content[..]));
    env.emit(frames::other(env.plan.mac, to, ethertype::ARP, &content));
}

/// Asks where a guest is.
pub(super) fn ask(env: &mut Env, address: IpAddr) {
    if !env.plan.is_inside(address) {
        return;
    }
    match address {
        IpAddr::V4(address) => {
            let request = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: EthernetAddress(env.plan.mac.0),
                source_protocol_addr: env.plan.gateway,
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: address,
            };
            emit_arp(&request, MacAddress::BROADCAST, env);
        }
        IpAddr::V6(address) => {
            let solicit = NdiscRepr::NeighborSolicit {
                target_addr: address,
                lladdr: Some(EthernetAddress(env.plan.mac.0).into()),
            };
            let [.., a, b, c] = address.octets();
            let group = Ipv6Addr::new(
                0xff02,
                0,
                0,
                0,
                0,
                1,
                0xff00 | u16::from(a),
                u16::from_be_bytes([b, c]),
            );
            let mac = MacAddress([0x33, 0x33, 0xff, a, b, c]);
            emit(&solicit, &[], env.plan.gateway6, (mac, group), env);
        }
    }
}

/// A message of a guest's neighbour discovery, in `packet`; `false` when it is none.
pub(super) fn discovery(
    headers: &Headers,
    ip: &Ip,
    packet: &[u8],
    env: &mut Env,
) -> Result<bool, Malformed> {
    let kind = packet.first().copied().ok_or(Malformed::Transport)?;
    if ip.protocol != protocol::ICMPV6 || !(ROUTER_SOLICIT..=NEIGHBOUR_ADVERT + 1).contains(&kind) {
        return Ok(false);
    }
    let message = Icmpv6Packet::new_checked(packet);
    let message = message.and_then(|message| NdiscRepr::parse(&message));
    let message = message.map_err(|_| Malformed::Transport)?;
    let IpAddr::V6(source) = ip.source else { return Err(Malformed::Transport) };
    match message {
        NdiscRepr::RouterSolicit { .. } => advertise_router(env),
        NdiscRepr::NeighborSolicit { target_addr, .. } if env.plan.is_ours(target_addr.into()) => {
            let answer = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::ROUTER
                    | NdiscNeighborFlags::SOLICITED
                    | NdiscNeighborFlags::OVERRIDE,
                target_addr,
                lladdr: Some(EthernetAddress(env.plan.mac.0).into()),
            };
            // One that has no address yet looks whether it may have ours.
            let to = if source.is_unspecified() { ALL_NODES } else { (headers.source, source) };
            emit(&answer, &[], target_addr, to, env);
        }
        NdiscRepr::NeighborAdvert { target_addr, .. } if target_addr == source => {
            env.learn(source.into(), headers.source);
        }
        _ => {}
    }
    Ok(true)
}

const ALL_NODES: (MacAddress, Ipv6Addr) =
    (MacAddress([0x33, 0x33, 0, 0, 0, 1]), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));

fn advertise_router(env: &mut Env) {
    let prefix = NdiscPrefixInformation {
        prefix_len: PREFIX_LEN,
        flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
        valid_lifetime: FOREVER,
        preferred_lifetime: FOREVER,
        prefix: env.plan.prefix,
    };
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(env.plan.mac.0).into()),
        mtu: Some(env.plan.mtu.into()),
        prefix_info: Some(prefix),
    };
    let mut servers = vec![RDNSS, 3, 0, 0];
    servers.extend((LIFETIME.secs() as u32).to_be_bytes());
    servers.extend(env.plan.dns6.octets());
    emit(&advert, &servers, env.plan.link_local, ALL_NODES, env);
}

/// Sends a message with further options.
fn emit(
    message: &NdiscRepr<'_>,
    options: &[u8],
    from: Ipv6Addr,
    (mac, to): (MacAddress, Ipv6Addr),
    env: &mut Env,
) {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut Icmpv6Packet::new_unchecked(&mut bytes[..]));
    bytes.extend_from_slice(options);
    // The checksum is made over zeros.
    bytes[2..4].fill(0);
    let route = Route { from: (env.plan.mac, from.into()), to: (mac, to.into()) };
    if let Some(frame) = frames::packet(&route, protocol::ICMPV6, &bytes, Bytes::new()) {
        env.emit(frame);
    }
}
