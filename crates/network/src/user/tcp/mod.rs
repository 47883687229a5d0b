//! TCP: connections of guests with the host's world, and of the host's world with guests.

mod connection;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use self::connection::{Connection, Verdict};
use self::segment::{Segment, flag, refusal};
use super::env::{Env, Token};
use super::icmp;
use super::plan::Target;
use super::sockets;
use super::table::{FlowKey, Table};
use crate::headers::{Ip, Malformed};

/// The most connections at once.
const MAX_CONNECTIONS: usize = 16_384;

/// What is listened for, once for each connection: edges are enough, since everything is read.
const EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// All connections.
#[derive(Default)]
pub(super) struct Tcp {
    connections: Table<Connection>,
    /// Those whose guest is to be answered when it has sent everything.
    due: Vec<u32>,
    numbers: RandomState,
}

impl Tcp {
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// A segment of a guest, in `packet`.
    pub(super) fn packet(
        &mut self,
        ip: &Ip,
        packet: &[u8],
        frame: &[u8],
        env: &mut Env,
    ) -> Result<(), Malformed> {
        let segment = Segment::parse(packet).ok_or(Malformed::Transport)?;
        let (guest, remote) = ip.endpoints().ok_or(Malformed::Transport)?;
        let key = FlowKey { guest, remote };
        let is_syn = segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        match self.connections.find(key) {
            Some(id) => {
                self.with(id, env, |connection, env| connection.guest_segment(&segment, env));
            }
            None if is_syn => self.open(key, &segment, (ip, frame), env),
            None => self.refuse(key, &segment, env),
        }
        Ok(())
    }

    /// A guest asks for a connection.
    fn open(&mut self, key: FlowKey, syn: &Segment<'_>, (ip, frame): (&Ip, &[u8]), env: &mut Env) {
        let to = match env.plan.target(key.remote, &env.resolver) {
            Target::Host(to) => to,
            Target::Nobody => return self.refuse(key, syn, env),
            Target::Neighbour => return icmp::unreachable(icmp::Unreachable::Host, ip, frame, env),
            Target::Unroutable => return env.counters.count("dropped_unroutable"),
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            env.counters.count("tcp_too_many");
            return self.refuse(key, syn, env);
        }
        let id = self.connections.next_id();
        let socket = sockets::tcp(to);
        let watched = socket.and_then(|socket| {
            env.watch(&socket, Token::Tcp(id), EVENTS)?;
            Ok(socket)
        });
        match watched {
            Ok(socket) => {
                env.counters.count("tcp_opened");
                let connection = Connection::from_guest(key, socket, syn, self.start(key));
                self.connections.insert(id, key, connection);
            }
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ADDRNOTAVAIL) => {
                icmp::unreachable(icmp::Unreachable::Network, ip, frame, env);
            }
            Err(error) => {
                let full = matches!(error, Errno::MFILE | Errno::NFILE);
                env.counters.count(if full { "tcp_no_files_left" } else { "tcp_refused" });
                self.refuse(key, syn, env);
            }
        }
    }

    fn refuse(&self, key: FlowKey, segment: &Segment<'_>, env: &mut Env) {
        if let Some(answer) = refusal(segment) {
            answer.send(key, env);
        }
    }

    /// A peer of the host, which the guest sees at `key.remote`, has connected by `socket`.
    pub(super) fn accept(&mut self, key: FlowKey, socket: OwnedFd, env: &mut Env) {
        let taken = self.connections.find(key).is_some();
        if taken || self.connections.len() >= MAX_CONNECTIONS {
            return env.counters.count("tcp_too_many");
        }
        let id = self.connections.next_id();
        if env.watch(&socket, Token::Tcp(id), EVENTS).is_err() {
            return env.counters.count("tcp_no_files_left");
        }
        env.counters.count("tcp_accepted");
        let connection = Connection::from_host(key, socket, self.start(key), env);
        self.connections.insert(id, key, connection);
    }

    /// Whether a connection between the two is there already.
    pub(super) fn is_taken(&self, guest: SocketAddr, remote: SocketAddr) -> bool {
        self.connections.find(FlowKey { guest, remote }).is_some()
    }

    /// An initial sequence number that nobody guesses.
    fn start(&self, key: FlowKey) -> u32 {
        self.numbers.hash_one((key, self.connections.len())) as u32
    }

    /// Events of the socket of connection `id`.
    pub(super) fn host_event(&mut self, id: u32, events: EventFlags, env: &mut Env) {
        self.with(id, env, |connection, env| connection.host_event(events, env));
    }

    /// Does something with a connection, and what follows from it.
    fn with(
        &mut self,
        id: u32,
        env: &mut Env,
        action: impl FnOnce(&mut Connection, &mut Env) -> Verdict,
    ) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let was_due = connection.answer_due;
        match action(connection, env) {
            Verdict::Keep if connection.answer_due && !was_due => self.due.push(id),
            Verdict::Keep => {}
            Verdict::Remove => {
                let key = connection.key;
                self.connections.remove(id, key);
            }
        }
    }

    /// Answers guests that were not answered along with something else.
    pub(super) fn answer(&mut self, env: &mut Env) {
        for id in std::mem::take(&mut self.due) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.answer(env);
            }
        }
    }

    /// Goes on with connections for which there was no room.
    pub(super) fn go_on(&mut self, env: &mut Env) {
        if !std::mem::take(&mut env.stalled) {
            return;
        }
        let ids: Vec<u32> = self.connections.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.with(id, env, Connection::pump);
        }
    }

    /// Does what is due by time.
    pub(super) fn tick(&mut self, env: &mut Env) {
        let timeouts = self.connections.iter();
        let timeouts: Vec<_> =
            timeouts.filter_map(|(id, connection)| Some((id, connection.timeout()?))).collect();
        for (id, at) in timeouts {
            if at <= env.now {
                self.with(id, env, Connection::timed_out);
            } else {
                env.reschedule(at);
            }
        }
    }

    /// The guest knows of no connection any more.
    pub(super) fn reset(&mut self) {
        let ids: Vec<u32> = self.connections.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.reset_host();
            }
        }
        self.connections.clear();
        self.due.clear();
    }
}
