//! The DHCP server (RFC 2131, 2132): every Ethernet address has one lease, for as long as the
//! network lives, or for longer where leases are kept in a file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use backend::MacAddress;
use bytes::Bytes;
use smoltcp::wire::{ArpHardware, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress};

use super::env::Env;
use super::leases::Leases;
use crate::frames::{self, Route};
use crate::headers::{Malformed, protocol};

/// Port of the server.
pub(super) const SERVER: u16 = 67;
/// Port of clients.
const CLIENT: u16 = 68;
/// Seconds that a lease lasts; a client asks again at half of it.
const LEASE: u32 = 86_400;
/// Bytes of an answer: the least that a client accepts (RFC 2131 2).
const ANSWER: usize = 548;
/// What begins the options (RFC 2131 3).
const MAGIC: u32 = 0x6382_5363;

/// Kinds of options (RFC 2132).
mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
}

/// Types of messages (RFC 2132 9.6).
mod message {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const DECLINE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const INFORM: u8 = 8;
}

/// What a client says.
struct Query {
    kind: u8,
    xid: u32,
    mac: MacAddress,
    /// The address that it has.
    has: Ipv4Addr,
    /// The address that it wants.
    wants: Option<Ipv4Addr>,
    /// The server that it has chosen.
    server: Option<Ipv4Addr>,
    name: Option<String>,
    flags: u16,
}

/// A message of a guest, in `payload`, the content of a datagram from `sender`.
pub(super) fn message(
    sender: MacAddress,
    payload: &[u8],
    leases: &mut Leases,
    env: &mut Env,
) -> Result<(), Malformed> {
    let query = parse(payload).ok_or(Malformed::Transport)?;
    if query.mac != sender {
        env.counters.count("dhcp_other_sender");
        return Ok(());
    }
    if query.server.is_some_and(|server| server != env.plan.gateway) {
        return Ok(());
    }
    let Some(lease) = leases.lease(query.mac, query.name.as_deref()) else {
        env.counters.count("dhcp_no_address_left");
        return Ok(());
    };
    match query.kind {
        message::DISCOVER => answer(message::OFFER, lease, &query, env),
        message::REQUEST => {
            let wants = query.wants.unwrap_or(query.has);
            let kind = if wants == lease { message::ACK } else { message::NAK };
            if kind == message::ACK {
                env.counters.count("dhcp_leases");
                env.learn(lease.into(), query.mac);
            }
            answer(kind, lease, &query, env);
        }
        message::INFORM => answer(message::ACK, Ipv4Addr::UNSPECIFIED, &query, env),
        message::DECLINE | message::RELEASE => {}
        _ => return Err(Malformed::Transport),
    }
    Ok(())
}

fn parse(payload: &[u8]) -> Option<Query> {
    let packet = DhcpPacket::new_checked(payload).ok()?;
    let ethernet = packet.hardware_type() == ArpHardware::Ethernet && packet.hardware_len() == 6;
    if packet.opcode() != DhcpOpCode::Request || !ethernet || packet.magic_number() != MAGIC {
        return None;
    }
    let options: BTreeMap<u8, Vec<u8>> =
        packet.options().map(|option| (option.kind, option.data.to_vec())).collect();
    let address = |kind| {
        let bytes: [u8; 4] = options.get(&kind)?.as_slice().try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let [kind] = *options.get(&option::MESSAGE)?.as_slice() else { return None };
    let name =
        options.get(&option::HOST_NAME).map(|name| String::from_utf8_lossy(name).into_owned());
    Some(Query {
        kind,
        xid: packet.transaction_id(),
        mac: MacAddress(packet.client_hardware_address().0),
        has: packet.client_ip(),
        wants: address(option::REQUESTED),
        server: address(option::SERVER),
        name,
        flags: packet.flags().bits(),
    })
}

fn answer(kind: u8, lease: Ipv4Addr, query: &Query, env: &mut Env) {
    let refused = kind == message::NAK;
    let mut content = [0; ANSWER];
    let mut packet = DhcpPacket::new_unchecked(&mut content[..]);
    packet.set_sname_and_boot_file_to_zero();
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(query.xid);
    packet.set_client_hardware_address(EthernetAddress(query.mac.0));
    packet.set_flags(smoltcp::wire::DhcpFlags::from_bits_truncate(query.flags));
    packet.set_magic_number(MAGIC);
    if !refused {
        packet.set_client_ip(query.has);
        packet.set_your_ip(lease);
        packet.set_server_ip(env.plan.gateway);
    }
    let plan = &env.plan;
    let server = plan.gateway.octets();
    let (mask, dns) = (plan.mask.octets(), plan.dns.octets());
    let (time, mtu) = (LEASE.to_be_bytes(), plan.mtu.to_be_bytes());
    let always = [(option::MESSAGE, &[kind][..]), (option::SERVER, &server)];
    let network: [(u8, &[u8]); 4] = [
        (option::SUBNET_MASK, &mask),
        (option::ROUTER, &server),
        (option::DNS, &dns),
        (option::MTU, &mtu),
    ];
    let leased = (option::LEASE_TIME, &time[..]);
    let mut options = packet.options_mut();
    let with_lease = !refused && !lease.is_unspecified();
    let all = always.into_iter().chain(network.into_iter().filter(|_| !refused));
    for (kind, data) in all.chain(Some(leased).filter(|_| with_lease)) {
        // There is room for more than these.
        let _ = options.emit(DhcpOption { kind, data });
    }
    let _ = options.end();
    send(&content, query, lease, refused, env);
}

/// Sends an answer to where the client listens (RFC 2131 4.1).
fn send(content: &[u8], query: &Query, lease: Ipv4Addr, refused: bool, env: &mut Env) {
    let everybody = query.flags & 0x8000 != 0 || refused;
    let address = match () {
        () if !query.has.is_unspecified() && !refused => query.has,
        () if everybody || lease.is_unspecified() => Ipv4Addr::BROADCAST,
        () => lease,
    };
    let mac = if address.is_broadcast() { MacAddress::BROADCAST } else { query.mac };
    let from = SocketAddr::from((env.plan.gateway, SERVER));
    let route = Route { from: (env.plan.mac, from.ip()), to: (mac, IpAddr::V4(address)) };
    let mut header = [0; 8];
    header[..2].copy_from_slice(&SERVER.to_be_bytes());
    header[2..4].copy_from_slice(&CLIENT.to_be_bytes());
    header[4..6].copy_from_slice(&((8 + content.len()) as u16).to_be_bytes());
    let body = Bytes::copy_from_slice(content);
    if let Some(frame) = frames::packet(&route, protocol::UDP, &header, body) {
        env.emit(frame);
    }
}
