//! UDP: each pair of a guest's and a remote address is a flow with a socket of its own, connected
//! to the remote, so that nobody else can answer and errors come back. Flows end by time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, recvfrom, send, sendto};

use super::env::{Env, Token};
use super::icmp::{self, Unreachable};
use super::plan::{DNS, Target};
use super::sockets;
use super::table::{FlowKey, Table};
use crate::headers::{Ip, Malformed, protocol};

/// The most flows at once; beyond, the one that was idle for longest ends.
const MAX_FLOWS: usize = 1024;
/// Datagrams that are read for one event, so that one flow does not keep the others waiting.
const BATCH: usize = 64;
/// Bytes of a UDP header.
const HEADER: usize = 8;
const MAX_DATAGRAM: usize = 65_535;

/// How long a flow lasts without traffic: a question to a name server, others.
const DNS_IDLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(120);

struct Flow {
    key: FlowKey,
    by: By,
    last: Instant,
    answered: bool,
    /// The host's address that the guest reaches.
    peer: SocketAddr,
}

/// By which socket a flow goes.
enum By {
    Own(OwnedFd),
    /// That of the port forward with this number.
    Listener(u32),
}

impl Flow {
    fn idle(&self) -> Duration {
        if self.peer.port() == DNS { DNS_IDLE } else { IDLE }
    }
}

/// All flows, and the sockets of port forwards.
#[derive(Default)]
pub(super) struct Udp {
    flows: Table<Flow>,
    listeners: HashMap<u32, (OwnedFd, SocketAddr)>,
}

impl Udp {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// A datagram of a guest, in `packet`.
    pub(super) fn packet(
        &mut self,
        ip: &Ip,
        packet: &[u8],
        frame: &[u8],
        env: &mut Env,
    ) -> Result<(), Malformed> {
        let (guest, remote) = ip.endpoints().ok_or(Malformed::Transport)?;
        let len = packet.get(4..6).ok_or(Malformed::Transport)?;
        let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
        let payload = packet.get(HEADER..len).ok_or(Malformed::Transport)?;
        let key = FlowKey { guest, remote };
        let known = self.flows.find(key);
        let Some(id) = known.or_else(|| self.open(key, (ip, frame), env)) else { return Ok(()) };
        let now = env.now;
        let Some(flow) = self.flows.get_mut(id) else { return Ok(()) };
        flow.last = now;
        let sent = match &flow.by {
            By::Own(socket) => send(socket, payload, SendFlags::NOSIGNAL),
            By::Listener(index) => match self.listeners.get(index) {
                Some((socket, _)) => sendto(socket, payload, SendFlags::NOSIGNAL, &flow.peer),
                None => Ok(0),
            },
        };
        match sent {
            Ok(_) => {}
            // The error of an earlier datagram, which is told of when it is read.
            Err(Errno::CONNREFUSED) => self.host_event(id, env),
            Err(Errno::MSGSIZE) => env.counters.count("udp_too_large"),
            Err(_) => env.counters.count("udp_send_failed"),
        }
        Ok(())
    }

    fn open(&mut self, key: FlowKey, (ip, frame): (&Ip, &[u8]), env: &mut Env) -> Option<u32> {
        env.resolver.refresh(env.now);
        let peer = match env.plan.target(key.remote, &env.resolver) {
            Target::Host(peer) => peer,
            Target::Nobody => {
                icmp::unreachable(Unreachable::Port, ip, frame, env);
                return None;
            }
            Target::Neighbour => {
                icmp::unreachable(Unreachable::Host, ip, frame, env);
                return None;
            }
            Target::Unroutable => {
                env.counters.count("dropped_unroutable");
                return None;
            }
        };
        self.make_room(env);
        let id = self.flows.next_id();
        let socket = sockets::udp(peer).and_then(|socket| {
            env.watch(&socket, Token::Udp(id), EventFlags::IN | EventFlags::ET)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => self.add(id, key, By::Own(socket), peer, env),
            Err(_) => {
                env.counters.count("udp_no_socket");
                icmp::unreachable(Unreachable::Network, ip, frame, env);
                return None;
            }
        }
        Some(id)
    }

    fn add(&mut self, id: u32, key: FlowKey, by: By, peer: SocketAddr, env: &mut Env) {
        let flow = Flow { key, by, last: env.now, answered: false, peer };
        env.schedule(flow.idle());
        env.counters.count("udp_flows");
        self.flows.insert(id, key, flow);
    }

    fn make_room(&mut self, env: &mut Env) {
        if self.flows.len() < MAX_FLOWS {
            return;
        }
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last);
        if let Some((id, key)) = oldest.map(|(id, flow)| (id, flow.key)) {
            env.counters.count("udp_flows_pushed_out");
            self.flows.remove(id, key);
        }
    }

    /// The socket of flow `id` has something.
    pub(super) fn host_event(&mut self, id: u32, env: &mut Env) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let By::Own(socket) = &flow.by else { return };
        for _ in 0..BATCH {
            let mut data = Vec::with_capacity(MAX_DATAGRAM);
            match recv(socket, spare_capacity(&mut data), RecvFlags::empty()) {
                Ok(_) => {
                    flow.last = env.now;
                    flow.answered = true;
                    deliver(flow.key.remote, flow.key.guest, &data, env);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNREFUSED) => {
                    env.resolver.failed(flow.peer);
                    refused(flow.key, env);
                }
                Err(_) => return env.counters.count("udp_receive_failed"),
            }
        }
        // There is more, and nobody would say so again.
        if env.watch_again(socket, Token::Udp(id), EventFlags::IN | EventFlags::ET).is_err() {
            env.counters.count("udp_receive_failed");
        }
    }

    /// Takes what comes to `socket` to the guest's `to`; `index` is the forward's number.
    pub(super) fn listen(&mut self, index: u32, socket: OwnedFd, to: SocketAddr) {
        self.listeners.insert(index, (socket, to));
    }

    /// The socket of forward `index` has something.
    pub(super) fn listener_event(&mut self, index: u32, env: &mut Env) {
        for _ in 0..BATCH {
            let Some((socket, to)) = self.listeners.get(&index) else { return };
            let to = *to;
            let mut data = Vec::with_capacity(MAX_DATAGRAM);
            let Ok((_, _, Some(from))) =
                recvfrom(socket, spare_capacity(&mut data), RecvFlags::empty())
            else {
                return;
            };
            let Ok(peer) = SocketAddr::try_from(from) else { continue };
            let remote = SocketAddr::new(env.plan.seen_as(peer.ip()), peer.port());
            if remote.is_ipv4() != to.is_ipv4() {
                continue;
            }
            let key = FlowKey { guest: to, remote };
            match self.flows.find(key) {
                Some(id) => {
                    if let Some(flow) = self.flows.get_mut(id) {
                        flow.last = env.now;
                    }
                }
                None => {
                    self.make_room(env);
                    let id = self.flows.next_id();
                    self.add(id, key, By::Listener(index), peer, env);
                }
            }
            deliver(remote, to, &data, env);
        }
    }

    /// Ends what is idle.
    pub(super) fn tick(&mut self, env: &mut Env) {
        let mut over = Vec::new();
        for (id, flow) in self.flows.iter() {
            let end = flow.last + flow.idle();
            if end <= env.now {
                over.push((id, flow.key));
                if !flow.answered {
                    env.resolver.failed(flow.peer);
                }
            } else {
                env.reschedule(end);
            }
        }
        for (id, key) in over {
            self.flows.remove(id, key);
        }
    }

    /// The guest knows of no flow any more.
    pub(super) fn reset(&mut self) {
        self.flows.clear();
    }
}

/// Sends a guest a datagram.
pub(super) fn deliver(from: SocketAddr, to: SocketAddr, payload: &[u8], env: &mut Env) {
    let Ok(len) = u16::try_from(HEADER + payload.len()) else { return };
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&len.to_be_bytes());
    let addresses: (IpAddr, IpAddr) = (from.ip(), to.ip());
    env.send(addresses, protocol::UDP, &header, Bytes::copy_from_slice(payload));
}

/// Tells a guest that nobody listens: by an ICMP error with the datagram's headers.
fn refused(key: FlowKey, env: &mut Env) {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&key.guest.port().to_be_bytes());
    header[2..4].copy_from_slice(&key.remote.port().to_be_bytes());
    header[4..6].copy_from_slice(&(HEADER as u16).to_be_bytes());
    env.counters.count("udp_refused");
    icmp::port_unreachable((key.guest.ip(), key.remote.ip()), &header, env);
}
