//! ICMP and ICMPv6: echo requests of guests, and errors about what they sent.
//!
//! The gateway answers by itself. Requests to other stations go through the kernel's sockets for
//! that purpose; where the administrator does not let the user ping, the guest is told that it is
//! prohibited.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::env::{Env, Token};
use super::plan::Target;
use super::sockets;
use super::table::{FlowKey, Table};
use crate::headers::{Ip, Malformed, protocol};

/// Types of messages (RFC 792, RFC 4443).
mod kind {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const ECHO_REQUEST: u8 = 8;
    pub(super) const UNREACHABLE6: u8 = 1;
    pub(super) const ECHO_REQUEST6: u8 = 128;
    pub(super) const ECHO_REPLY6: u8 = 129;
}

/// Bytes of a message's header; of an echo request: type, code, checksum, identifier, sequence
/// number.
const HEADER: usize = 8;
/// Bytes of an offending packet that an error has.
const QUOTED: usize = 128;
const MAX_FLOWS: usize = 256;
const IDLE: Duration = Duration::from_secs(30);
const MAX_MESSAGE: usize = 65_535;

/// Why something did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    fn code(self, is_v4: bool) -> u8 {
        match (self, is_v4) {
            (Self::Network, _) => 0,
            (Self::Host, true) => 1,
            (Self::Port, true) => 3,
            (Self::Prohibited, true) => 13,
            (Self::Host, false) => 3,
            (Self::Port, false) => 4,
            (Self::Prohibited, false) => 1,
        }
    }
}

/// Tells a guest that the packet `ip` of `frame` did not arrive.
pub(super) fn unreachable(why: Unreachable, ip: &Ip, frame: &[u8], env: &mut Env) {
    // Where the IP header begins: extension headers and options are left as they are.
    let is_v4 = ip.source.is_ipv4();
    let start = frame.get(12..14).map_or(0, |kind| if kind == [0x81, 0] { 18 } else { 14 });
    let end = ip.end.min(start + QUOTED);
    let Some(quoted) = frame.get(start..end) else { return };
    env.counters.count("unreachable");
    error((ip.destination, ip.source), why.code(is_v4), quoted, env);
}

/// Tells the guest of a flow that nobody listens; `header` is that of its datagram.
pub(super) fn port_unreachable((guest, remote): (IpAddr, IpAddr), header: &[u8], env: &mut Env) {
    let route = crate::frames::Route { from: (env.plan.mac, guest), to: (env.plan.mac, remote) };
    let udp = Bytes::copy_from_slice(header);
    // As if the guest's own frame were at hand.
    let Some(frame) = crate::frames::packet(&route, protocol::UDP, header, Bytes::new()) else {
        return;
    };
    let mut quoted = frame.head[crate::headers::ETHERNET..].to_vec();
    let len = quoted.len();
    quoted[len - udp.len()..].copy_from_slice(&udp);
    error((remote, guest), Unreachable::Port.code(guest.is_ipv4()), &quoted, env);
}

fn error((from, to): (IpAddr, IpAddr), code: u8, quoted: &[u8], env: &mut Env) {
    let (number, kind) = match to {
        IpAddr::V4(_) => (protocol::ICMP, kind::UNREACHABLE),
        IpAddr::V6(_) => (protocol::ICMPV6, kind::UNREACHABLE6),
    };
    let header = [kind, code, 0, 0, 0, 0, 0, 0];
    env.send((from, to), number, &header, Bytes::copy_from_slice(quoted));
}

struct Flow {
    key: FlowKey,
    socket: OwnedFd,
    last: Instant,
}

/// Echo requests to stations outside.
#[derive(Default)]
pub(super) struct Echo {
    /// The identifier of the requests is the guest's port.
    flows: Table<Flow>,
}

impl Echo {
    /// A message of a guest, in `packet`; neighbour discovery is not for here.
    pub(super) fn packet(
        &mut self,
        ip: &Ip,
        packet: &[u8],
        frame: &[u8],
        env: &mut Env,
    ) -> Result<(), Malformed> {
        let header: &[u8; HEADER] = packet.first_chunk().ok_or(Malformed::Transport)?;
        let request = if ip.source.is_ipv4() { kind::ECHO_REQUEST } else { kind::ECHO_REQUEST6 };
        if header[0] != request {
            // Errors about what the guest was sent, and what no router answers.
            env.counters.count("icmp_ignored");
            return Ok(());
        }
        if env.plan.is_ours(ip.destination) {
            let mut reply = *header;
            reply[0] = reply_kind(ip.source);
            reply[2..4].fill(0);
            let body = Bytes::copy_from_slice(&packet[HEADER..]);
            let number = ip.protocol;
            env.send((ip.destination, ip.source), number, &reply, body);
            return Ok(());
        }
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        let key = FlowKey {
            guest: SocketAddr::new(ip.source, identifier),
            remote: SocketAddr::new(ip.destination, 1),
        };
        let known = self.flows.find(key);
        let Some(id) = known.or_else(|| self.open(key, (ip, frame), env)) else { return Ok(()) };
        if let Some(flow) = self.flows.get_mut(id) {
            flow.last = env.now;
            if send(&flow.socket, packet, SendFlags::NOSIGNAL).is_err() {
                env.counters.count("icmp_send_failed");
            }
        }
        Ok(())
    }

    fn open(&mut self, key: FlowKey, (ip, frame): (&Ip, &[u8]), env: &mut Env) -> Option<u32> {
        let to = match env.plan.target(key.remote, &env.resolver) {
            Target::Host(to) => to,
            Target::Nobody | Target::Neighbour => {
                unreachable(Unreachable::Host, ip, frame, env);
                return None;
            }
            Target::Unroutable => {
                env.counters.count("dropped_unroutable");
                return None;
            }
        };
        if self.flows.len() >= MAX_FLOWS {
            env.counters.count("icmp_too_many");
            return None;
        }
        let id = self.flows.next_id();
        // The port means nothing there.
        let socket = sockets::echo(SocketAddr::new(to.ip(), 0)).and_then(|socket| {
            env.watch(&socket, Token::Echo(id), EventFlags::IN | EventFlags::ET)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                let last = env.now;
                env.schedule(IDLE);
                self.flows.insert(id, key, Flow { key, socket, last });
                Some(id)
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                env.counters.count("icmp_not_permitted_by_host");
                unreachable(Unreachable::Prohibited, ip, frame, env);
                None
            }
            Err(_) => {
                unreachable(Unreachable::Network, ip, frame, env);
                None
            }
        }
    }

    /// The socket of flow `id` has something.
    pub(super) fn host_event(&mut self, id: u32, env: &mut Env) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        loop {
            let mut data = Vec::with_capacity(MAX_MESSAGE);
            if recv(&flow.socket, spare_capacity(&mut data), RecvFlags::empty()).is_err() {
                return;
            }
            let Some(mut header) = data.first_chunk::<HEADER>().copied() else { continue };
            if header[0] != reply_kind(flow.key.guest.ip()) {
                continue;
            }
            // The kernel has put in an identifier of its own.
            header[2..4].fill(0);
            header[4..6].copy_from_slice(&flow.key.guest.port().to_be_bytes());
            let number = if flow.key.guest.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
            let addresses = (flow.key.remote.ip(), flow.key.guest.ip());
            env.send(addresses, number, &header, Bytes::copy_from_slice(&data[HEADER..]));
        }
    }

    /// Ends what is idle.
    pub(super) fn tick(&mut self, env: &mut Env) {
        let mut over = Vec::new();
        for (id, flow) in self.flows.iter() {
            let end = flow.last + IDLE;
            if end <= env.now { over.push((id, flow.key)) } else { env.reschedule(end) }
        }
        for (id, key) in over {
            self.flows.remove(id, key);
        }
    }

    /// The guest knows of no request any more.
    pub(super) fn reset(&mut self) {
        self.flows.clear();
    }
}

fn reply_kind(guest: IpAddr) -> u8 {
    if guest.is_ipv4() { kind::ECHO_REPLY } else { kind::ECHO_REPLY6 }
}
