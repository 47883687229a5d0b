//! What the parts of the network use together: the way to the guests, the host's events, time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Frame, MacAddress};
use bytes::Bytes;
use rustix::event::epoll;

use super::neighbours;
use super::plan::Plan;
use super::resolver::Resolver;
use crate::counters::Counters;
use crate::frames::{self, Route};
use crate::queue::FrameQueue;

/// The most guests' addresses that are remembered.
const MAX_NEIGHBOURS: usize = 1024;

/// Whose an event of the host is. The number is the place in the table of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Somebody wants the network's thread to look around.
    Wake,
    Tcp(u32),
    Udp(u32),
    Echo(u32),
    Listener(u32),
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Wake => (0, 0),
            Self::Tcp(index) => (1, index),
            Self::Udp(index) => (2, index),
            Self::Echo(index) => (3, index),
            Self::Listener(index) => (4, index),
        };
        kind << 32 | u64::from(index)
    }

    pub(super) fn decode(value: u64) -> Self {
        let index = value as u32;
        match value >> 32 {
            1 => Self::Tcp(index),
            2 => Self::Udp(index),
            3 => Self::Echo(index),
            4 => Self::Listener(index),
            _ => Self::Wake,
        }
    }
}

/// What the parts of the network use together.
pub(crate) struct Env {
    pub(super) plan: Plan,
    pub(super) resolver: Resolver,
    pub(super) counters: Counters,
    pub(super) out: Arc<FrameQueue>,
    pub(super) now: Instant,
    /// Somebody waits for room on the way to the guests.
    pub(super) stalled: bool,
    epoll: OwnedFd,
    neighbours: HashMap<IpAddr, MacAddress>,
    /// When there is something to do next.
    deadline: Option<Instant>,
}

impl Env {
    pub(super) fn new(plan: Plan, resolv_conf: PathBuf, out: Arc<FrameQueue>) -> io::Result<Self> {
        Ok(Self {
            plan,
            resolver: Resolver::new(resolv_conf),
            counters: Counters::default(),
            out,
            now: Instant::now(),
            stalled: false,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            neighbours: HashMap::new(),
            deadline: None,
        })
    }

    /// Another handle of what is waited for.
    pub(super) fn events(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    /// Has events of `socket` come as `token`.
    pub(super) fn watch(
        &self,
        socket: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token.encode()), flags)
    }

    /// Has an event of `socket` come again for what it has now.
    pub(super) fn watch_again(
        &self,
        socket: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token.encode()), flags)
    }

    /// A guest has `address` at `mac`.
    pub(super) fn learn(&mut self, address: IpAddr, mac: MacAddress) {
        let known = self.neighbours.contains_key(&address);
        if mac.is_multicast() || !known && self.neighbours.len() >= MAX_NEIGHBOURS {
            return;
        }
        self.neighbours.insert(address, mac);
    }

    /// Sends a guest a packet of `protocol`. Whether it is on its way: a guest that is not known
    /// yet is asked for first, and a queue may be full.
    pub(super) fn send(
        &mut self,
        (from, to): (IpAddr, IpAddr),
        protocol: u8,
        header: &[u8],
        body: Bytes,
    ) -> bool {
        let Some(mac) = self.neighbours.get(&to).copied() else {
            neighbours::ask(self, to);
            self.counters.count("dropped_unknown_guest");
            return false;
        };
        let route = Route { from: (self.plan.mac, from), to: (mac, to) };
        let len = frames::header_len(&route) + header.len() + body.len();
        if len > usize::from(self.plan.mtu) + crate::headers::ETHERNET {
            self.counters.count("dropped_larger_than_mtu");
            return false;
        }
        match frames::packet(&route, protocol, header, body) {
            Some(frame) => self.emit(frame),
            None => false,
        }
    }

    /// Whether there is room on the way to the guests; if not, who asks will be asked again.
    pub(super) fn has_room(&mut self) -> bool {
        let room = self.out.has_room();
        self.stalled |= !room;
        room
    }

    /// Sends guests a frame; whether there was room.
    pub(super) fn emit(&mut self, frame: Frame) -> bool {
        let taken = self.out.push(frame);
        if !taken {
            self.counters.count("dropped_queue_full");
        }
        taken
    }

    /// The Ethernet address of a guest, if it is known.
    pub(super) fn mac_of(&self, address: IpAddr) -> Option<MacAddress> {
        self.neighbours.get(&address).copied()
    }

    /// Looks around in `delay` at the latest.
    pub(super) fn schedule(&mut self, delay: Duration) -> Instant {
        let at = self.now + delay;
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
        at
    }

    /// When there is something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether something may be due; what still is in the future is to be scheduled again.
    pub(super) fn take_due(&mut self) -> bool {
        let due = self.deadline.is_some_and(|deadline| deadline <= self.now);
        if due {
            self.deadline = None;
        }
        due
    }

    /// Has it looked around at `at`, if not before.
    pub(super) fn reschedule(&mut self, at: Instant) {
        self.schedule(at.saturating_duration_since(self.now));
    }
}
