//! One TCP connection of a guest, which ends here and goes on in a socket of the host.
//!
//! Written for a link that loses and reorders nothing but what a filter, or a guest without memory,
//! drops: there is no congestion window, what comes out of order is asked for again, and a timeout
//! sends everything again (RFC 9293; go-back-N). What the guest sends is acknowledged when the
//! host's socket, or the buffer before it, has it: the buffer never exceeds the window that the
//! guest was offered. What the host sends is kept until the guest acknowledges it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::segment::{Options, Outgoing, Segment, distance, flag};
use crate::user::env::Env;
use crate::user::table::FlowKey;

/// Bytes that a guest may send ahead of the host's socket, and the most that is kept of what was
/// sent to it: the memory of a connection is at most twice this.
const WINDOW: u32 = 512 << 10;
/// Shift of the window in our segments: WINDOW fits into 16 bits.
const SCALE: u8 = 4;
/// Largest payload of one segment: an IP packet of 65,535 bytes without its headers.
const MAX_PAYLOAD: usize = 65_535 - 60;
/// Segment size of a guest that says nothing (RFC 9293 3.7.1).
const DEFAULT_SEGMENT: u16 = 536;
/// Time until something is sent again, at first; guests may be slow.
const TIMEOUT: Duration = Duration::from_millis(1000);
/// Times that something is sent again before the connection is given up.
const RETRIES: u32 = 10;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest wants it, the host connects.
    Connecting,
    /// The host is connected, the guest was told.
    SynReceived,
    /// A peer of the host wants it, the guest was asked.
    SynSent,
    /// It is open, at least in one direction.
    Open,
    /// It is over.
    Closed,
}

/// What is to be done with a connection after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    Remove,
}

/// A connection.
pub(super) struct Connection {
    pub(super) key: FlowKey,
    socket: OwnedFd,
    state: State,

    /// The first sequence number that the guest has not acknowledged, and the first not yet used.
    unacknowledged: u32,
    next: u32,
    /// What is between them, but for SYN and FIN.
    kept: VecDeque<Bytes>,
    /// The guest's window in bytes, and the shift in its segments.
    window: u32,
    guest_scale: Option<u8>,
    max_segment: usize,
    duplicates: u32,
    /// After a timeout: what was sent before this is sent again as acknowledgements come.
    recover: Option<u32>,
    fin_sent: bool,
    /// When something is to be sent again, and how often that was done.
    timeout: Option<Instant>,
    retries: u32,

    /// The next sequence number of the guest, and the end of the window that it was offered.
    expected: u32,
    offered: u32,
    /// What the host's socket had no room for.
    pending: VecDeque<u8>,
    guest_closed: bool,
    /// The guest is to be answered.
    pub(super) answer_due: bool,

    /// The host's socket may have something to read.
    readable: bool,
    host_closed: bool,
    /// The socket was told that the guest sends no more.
    shut: bool,
}

impl Connection {
    /// A connection that a guest asks for by `syn`, whose socket is being connected.
    pub(super) fn from_guest(key: FlowKey, socket: OwnedFd, syn: &Segment<'_>, start: u32) -> Self {
        let mut connection = Self::new(key, socket, State::Connecting, start);
        connection.expected = syn.seq.wrapping_add(1);
        connection.offered = connection.expected;
        connection.take_options(syn);
        connection
    }

    /// A connection that a peer of the host has asked for; the guest is asked.
    pub(super) fn from_host(key: FlowKey, socket: OwnedFd, start: u32, env: &mut Env) -> Self {
        let mut connection = Self::new(key, socket, State::SynSent, start);
        connection.next = start.wrapping_add(1);
        connection.send_syn(env);
        connection
    }

    fn new(key: FlowKey, socket: OwnedFd, state: State, start: u32) -> Self {
        Self {
            key,
            socket,
            state,
            unacknowledged: start,
            next: start,
            kept: VecDeque::new(),
            window: 0,
            guest_scale: None,
            max_segment: DEFAULT_SEGMENT.into(),
            duplicates: 0,
            recover: None,
            fin_sent: false,
            timeout: None,
            retries: 0,
            expected: 0,
            offered: 0,
            pending: VecDeque::new(),
            guest_closed: false,
            answer_due: false,
            readable: false,
            host_closed: false,
            shut: false,
        }
    }

    /// Events of the socket.
    pub(super) fn host_event(&mut self, events: EventFlags, env: &mut Env) -> Verdict {
        if self.state == State::Connecting {
            return self.connected(env);
        }
        if events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            self.readable = true;
        }
        if events.contains(EventFlags::OUT) && self.flush_pending().is_err() {
            return self.abort(env);
        }
        self.offer_more();
        self.pump(env)
    }

    /// The host has an answer to the attempt to connect.
    fn connected(&mut self, env: &mut Env) -> Verdict {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => {
                // An event may come before the answer.
                if !rustix::net::getpeername(&self.socket).is_ok_and(|peer| peer.is_some()) {
                    return Verdict::Keep;
                }
                // The peer may have sent something already, of which no other event tells.
                self.readable = true;
                self.state = State::SynReceived;
                self.next = self.next.wrapping_add(1);
                self.send_syn(env);
                Verdict::Keep
            }
            _ => {
                env.counters.count("tcp_refused");
                self.abort(env)
            }
        }
    }

    /// Sends the SYN, or SYN and ACK, until it is acknowledged.
    fn send_syn(&mut self, env: &mut Env) {
        let answers = self.state == State::SynReceived;
        // A guest that does not scale gets none (RFC 7323 2.2).
        let scales = !answers || self.guest_scale.is_some();
        let headers = if self.key.guest.is_ipv4() { 40 } else { 60 };
        let options = Options {
            max_segment: Some(env.plan.mtu - headers),
            window_scale: scales.then_some(SCALE),
        };
        let (ack, flags) =
            if answers { (self.expected, flag::SYN | flag::ACK) } else { (0, flag::SYN) };
        // Windows of SYN segments are not scaled.
        let window = WINDOW.min(0xffff);
        self.offered = self.expected.wrapping_add(window);
        let seq = self.unacknowledged;
        let syn =
            Outgoing { seq, ack, flags, options, window: window as u16, ..Outgoing::default() };
        syn.send(self.key, env);
        self.timeout = Some(env.schedule(TIMEOUT * 2_u32.pow(self.retries.min(5))));
    }

    fn take_options(&mut self, syn: &Segment<'_>) {
        let size = syn.options.max_segment.unwrap_or(DEFAULT_SEGMENT).max(64);
        self.max_segment = size.into();
        // RFC 7323 2.3: at most 14.
        self.guest_scale = syn.options.window_scale.map(|scale| scale.min(14));
        self.window = syn.window.into();
    }

    /// A segment of the guest.
    pub(super) fn guest_segment(&mut self, segment: &Segment<'_>, env: &mut Env) -> Verdict {
        if segment.has(flag::RST) {
            return self.reset_by_guest(segment, env);
        }
        match self.state {
            // The guest is impatient.
            State::Connecting | State::Closed => return Verdict::Keep,
            State::SynSent => {
                if !segment.has(flag::SYN) || segment.ack != self.next {
                    return Verdict::Keep;
                }
                self.expected = segment.seq.wrapping_add(1);
                self.offered = self.expected;
                self.take_options(segment);
                self.open();
                self.answer_due = true;
                return self.pump(env);
            }
            State::SynReceived if segment.has(flag::SYN) => {
                self.send_syn(env);
                return Verdict::Keep;
            }
            State::SynReceived | State::Open => {}
        }
        if segment.has(flag::SYN) || !segment.has(flag::ACK) {
            // RFC 5961 4.2: a challenge.
            self.answer_due = true;
            return Verdict::Keep;
        }
        if !self.take_acknowledgement(segment, env) {
            return Verdict::Keep;
        }
        if self.take_payload(segment).is_err() {
            return self.abort(env);
        }
        self.pump(env)
    }

    fn reset_by_guest(&mut self, segment: &Segment<'_>, env: &mut Env) -> Verdict {
        let in_window = distance(segment.seq, self.expected) >= 0
            && distance(segment.seq, self.offered.wrapping_add(1)) <= 0;
        let answers = self.state == State::SynSent && segment.ack == self.next;
        if !in_window && !answers {
            return Verdict::Keep;
        }
        env.counters.count("tcp_reset_by_guest");
        self.reset_host();
        Verdict::Remove
    }

    fn open(&mut self) {
        self.state = State::Open;
        self.unacknowledged = self.next;
        // The window that a SYN can offer is small.
        self.answer_due = true;
        (self.timeout, self.retries) = (None, 0);
    }

    /// Takes acknowledgement and window; whether the segment is to be looked at further.
    fn take_acknowledgement(&mut self, segment: &Segment<'_>, env: &mut Env) -> bool {
        if distance(segment.ack, self.next) > 0 {
            // Of what was never sent.
            self.answer_due = true;
            return false;
        }
        if self.state == State::SynReceived {
            if segment.ack != self.next {
                return false;
            }
            self.open();
        }
        let window = u32::from(segment.window) << self.guest_scale.unwrap_or(0);
        let acked = distance(segment.ack, self.unacknowledged);
        if acked > 0 {
            self.forget(acked as u32, env);
        } else if acked == 0 && self.is_outstanding() && segment.len() == 0 && window == self.window
        {
            self.duplicates += 1;
            if self.duplicates == 3 {
                env.counters.count("tcp_fast_retransmissions");
                self.send_again(env);
            }
        }
        if acked >= 0 {
            self.window = window;
        }
        true
    }

    /// The guest has `acked` sequence numbers more.
    fn forget(&mut self, acked: u32, env: &mut Env) {
        self.unacknowledged = self.unacknowledged.wrapping_add(acked);
        let mut left = acked as usize;
        while let Some(first) = self.kept.front_mut() {
            if first.len() > left {
                let _ = first.split_to(left);
                break;
            }
            left -= first.len();
            self.kept.pop_front();
        }
        (self.duplicates, self.retries) = (0, 0);
        self.timeout = self.is_outstanding().then(|| env.schedule(TIMEOUT));
        if let Some(recover) = self.recover {
            if distance(self.unacknowledged, recover) >= 0 {
                self.recover = None;
            } else {
                self.send_again(env);
            }
        }
    }

    /// Whether the guest has to acknowledge something.
    fn is_outstanding(&self) -> bool {
        self.unacknowledged != self.next
    }

    /// Takes what the segment brings, as far as it is next and in the window.
    fn take_payload(&mut self, segment: &Segment<'_>) -> rustix::io::Result<()> {
        let old = distance(self.expected, segment.seq);
        if segment.len() == 0 {
            // An old sequence number asks whether we are there (RFC 9293 3.8.4).
            self.answer_due |= old != 0;
            return Ok(());
        }
        self.answer_due = true;
        // What comes out of order, and what is here already, is answered with what is expected.
        if old < 0 || old as u32 >= segment.len() || self.guest_closed {
            return Ok(());
        }
        let fresh = segment.payload.get(old as usize..).unwrap_or_default();
        let room = distance(self.offered, self.expected).max(0) as usize;
        let taken = &fresh[..fresh.len().min(room)];
        self.expected = self.expected.wrapping_add(taken.len() as u32);
        if !taken.is_empty() {
            self.hand_on(taken)?;
        }
        if segment.has(flag::FIN) && taken.len() == fresh.len() {
            self.expected = self.expected.wrapping_add(1);
            self.guest_closed = true;
            self.flush_pending()?;
        }
        Ok(())
    }

    /// Gives the host's socket what it takes, and keeps the rest.
    fn hand_on(&mut self, mut data: &[u8]) -> rustix::io::Result<()> {
        while self.pending.is_empty() && !data.is_empty() {
            match send(&self.socket, data, SendFlags::NOSIGNAL) {
                Ok(sent) => data = &data[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        self.pending.extend(data);
        Ok(())
    }

    /// Gives the host's socket what waits for it, and then the end.
    fn flush_pending(&mut self) -> rustix::io::Result<()> {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match send(&self.socket, first, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.pending.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.pending.capacity() > WINDOW as usize / 8 {
            self.pending = VecDeque::new();
        }
        if self.guest_closed && !self.shut {
            self.shut = true;
            // A peer that is gone is found when it is read from.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        Ok(())
    }

    /// The end of the window that the guest can be offered.
    fn offer(&self) -> u32 {
        let free = WINDOW - (self.pending.len() as u32).min(WINDOW);
        let end = self.expected.wrapping_add(free);
        // What was offered stays so.
        if distance(end, self.offered) > 0 { end } else { self.offered }
    }

    /// Tells the guest of room, when it is worth it.
    fn offer_more(&mut self) {
        let more = distance(self.offer(), self.offered) >= (WINDOW / 4) as i32;
        self.answer_due |= more && self.state == State::Open;
    }

    /// Brings the guest what the host has, as far as it has room, and looks whether that was all.
    pub(super) fn pump(&mut self, env: &mut Env) -> Verdict {
        while self.state == State::Open && self.readable && !self.host_closed {
            let Some(room) = self.room_at_guest(env) else { break };
            match self.read(room) {
                Ok(Some(data)) => self.send_data(data, env),
                Ok(None) => break,
                Err(_) => return self.abort(env),
            }
        }
        if self.host_closed && !self.fin_sent && self.state == State::Open {
            self.fin_sent = true;
            self.send_flags(flag::FIN | flag::ACK, env);
            self.next = self.next.wrapping_add(1);
            self.timeout.get_or_insert(env.schedule(TIMEOUT));
        }
        let sent_all = self.fin_sent && !self.is_outstanding();
        if sent_all && self.guest_closed && self.pending.is_empty() {
            self.answer(env);
            self.state = State::Closed;
            return Verdict::Remove;
        }
        Verdict::Keep
    }

    /// Bytes for which the guest has room; `None` when it is better to wait.
    fn room_at_guest(&mut self, env: &mut Env) -> Option<usize> {
        let in_flight = self.next.wrapping_sub(self.unacknowledged);
        let room = self.window.min(WINDOW).saturating_sub(in_flight) as usize;
        // Small pieces only when nothing is on its way (RFC 9293 3.8.6.2.1).
        let silly = in_flight != 0 && room < self.max_segment.min(self.window as usize / 2);
        if room == 0 && in_flight == 0 {
            // The guest is asked now and then whether its window has opened.
            self.timeout.get_or_insert(env.schedule(TIMEOUT));
        }
        if room == 0 || silly || self.recover.is_some() || !env.has_room() {
            return None;
        }
        Some(room.min(MAX_PAYLOAD))
    }

    /// Reads at most `room` bytes from the host; `None` when there is nothing, or the end.
    fn read(&mut self, room: usize) -> rustix::io::Result<Option<Bytes>> {
        let mut data = Vec::with_capacity(room);
        let read = loop {
            match recv(&self.socket, spare_capacity(&mut data), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match read {
            Ok((0, _)) => self.host_closed = true,
            Err(Errno::AGAIN) => self.readable = false,
            Err(error) => return Err(error),
            Ok(_) => {
                // A few bytes do not keep a large buffer.
                let small = data.len() < room / 2;
                return Ok(Some(if small { Bytes::copy_from_slice(&data) } else { data.into() }));
            }
        }
        Ok(None)
    }

    fn send_data(&mut self, data: Bytes, env: &mut Env) {
        self.kept.push_back(data.clone());
        let seq = self.next;
        self.next = self.next.wrapping_add(data.len() as u32);
        self.transmit(seq, data, env);
        self.timeout.get_or_insert(env.schedule(TIMEOUT));
    }

    fn transmit(&mut self, seq: u32, payload: Bytes, env: &mut Env) {
        let (ack, window) = self.acknowledge();
        let flags = flag::ACK | flag::PSH;
        let max_segment = self.max_segment;
        let data =
            Outgoing { seq, ack, flags, window, payload, max_segment, ..Outgoing::default() };
        // What is lost is sent again.
        data.send(self.key, env);
    }

    /// What the guest is told of its own direction; it is told with this.
    fn acknowledge(&mut self) -> (u32, u16) {
        self.answer_due = false;
        self.offered = self.offer();
        let window = distance(self.offered, self.expected).max(0) as u32;
        let scale = if self.guest_scale.is_some() { SCALE } else { 0 };
        // Rounded down: what was promised shrinks by less than 16 bytes, which are not sent.
        (self.expected, (window >> scale).min(0xffff) as u16)
    }

    fn send_flags(&mut self, flags: u8, env: &mut Env) {
        let (ack, window) = self.acknowledge();
        let seq = self.next;
        Outgoing { seq, ack, flags, window, ..Outgoing::default() }.send(self.key, env);
    }

    /// Answers the guest, if that is due.
    pub(super) fn answer(&mut self, env: &mut Env) {
        if self.answer_due && self.state == State::Open {
            self.send_flags(flag::ACK, env);
        }
    }

    /// Sends again the first of what is not acknowledged.
    fn send_again(&mut self, env: &mut Env) {
        match self.kept.front().cloned() {
            Some(data) => self.transmit(self.unacknowledged, data, env),
            None if self.fin_sent => {
                let (ack, window) = self.acknowledge();
                let (seq, flags) = (self.unacknowledged, flag::FIN | flag::ACK);
                Outgoing { seq, ack, flags, window, ..Outgoing::default() }.send(self.key, env);
            }
            None => {}
        }
    }

    /// When something is to be done without anybody asking.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.timeout
    }

    /// The time for that has come.
    pub(super) fn timed_out(&mut self, env: &mut Env) -> Verdict {
        self.timeout = None;
        if !env.out.is_empty() {
            // The guest takes nothing at all: it is paused, or slow.
            self.timeout = Some(env.schedule(TIMEOUT));
            return Verdict::Keep;
        }
        self.retries += 1;
        if self.retries > RETRIES {
            env.counters.count("tcp_timeouts");
            return self.abort(env);
        }
        match self.state {
            State::SynSent | State::SynReceived => {
                self.send_syn(env);
                return Verdict::Keep;
            }
            State::Open if self.is_outstanding() => {
                env.counters.count("tcp_retransmissions");
                self.recover = Some(self.next);
                self.send_again(env);
            }
            State::Open if self.window == 0 && !self.host_closed => {
                // An old sequence number makes the guest tell its window.
                let (ack, window) = self.acknowledge();
                let seq = self.next.wrapping_sub(1);
                let flags = flag::ACK;
                Outgoing { seq, ack, flags, window, ..Outgoing::default() }.send(self.key, env);
                // It may stay closed for as long as the guest answers.
                self.retries = self.retries.min(RETRIES - 1);
            }
            _ => return Verdict::Keep,
        }
        self.timeout = Some(env.schedule(TIMEOUT * 2_u32.pow(self.retries.min(6))));
        Verdict::Keep
    }

    /// The host's side has failed, or is given up: the guest is told.
    fn abort(&mut self, env: &mut Env) -> Verdict {
        let (ack, seq) = (self.expected, self.next);
        let flags = flag::RST | flag::ACK;
        Outgoing { seq, ack, flags, ..Outgoing::default() }.send(self.key, env);
        self.reset_host();
        Verdict::Remove
    }

    /// Ends the host's side by a reset, as the guest's was.
    pub(super) fn reset_host(&mut self) {
        self.state = State::Closed;
        // Without it the peer sees an orderly end, which is the worst that can happen.
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}
