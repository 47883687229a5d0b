//! What decides about frames.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use backend::{Counter, Frame, MacAddress, Offload};
use bytes::Bytes;

use super::flows::{Flow, Flows};
use super::rewrite;
use super::rules::{Action, Direction, Fallback, FlowState, Protocol, Rule, Rules};
use crate::counters::Counters;
use crate::frames::{self, Route};
use crate::headers::{Headers, Ip, ethertype, protocol};

/// What a rule without one has as its burst: what two large frames need.
const BURST: u64 = 256 << 10;
/// Bytes of a frame in which all headers are found, when it comes in one piece.
const HEADERS: usize = 512;

/// What happens to a frame.
pub(super) enum Verdict {
    Pass,
    Drop,
    /// It is dropped, and this goes back to its sender.
    Answer(Frame),
}

/// A rule, and what it counted.
struct Active {
    rule: Rule,
    label: String,
    frames: u64,
    bytes: u64,
    /// Bytes that may pass now, and since when that is right.
    credit: f64,
    since: Instant,
}

/// Rules at work.
pub(super) struct Engine {
    rules: Vec<Active>,
    fallback: Fallback,
    anti_spoofing: bool,
    /// Whether any rule asks for it.
    needs_state: bool,
    mac: MacAddress,
    lease: Option<Ipv4Addr>,
    allowed: Flows<()>,
    /// For answers to frames that were rewritten: what their addresses are to be.
    rewritten: Flows<(SocketAddr, SocketAddr)>,
    counters: Counters,
}

impl Engine {
    pub(super) fn new(
        rules: &Rules,
        mac: MacAddress,
        lease: Option<Ipv4Addr>,
        now: Instant,
    ) -> Self {
        let mut engine = Self {
            rules: Vec::new(),
            fallback: Fallback::Allow,
            anti_spoofing: true,
            needs_state: false,
            mac,
            lease,
            allowed: Flows::new(now),
            rewritten: Flows::new(now),
            counters: Counters::default(),
        };
        engine.replace(rules);
        engine
    }

    /// Takes other rules.
    pub(super) fn replace(&mut self, rules: &Rules) {
        let now = Instant::now();
        let active = |(index, rule): (usize, &Rule)| Active {
            label: match &rule.name {
                Some(name) => format!("filter_rule_{}_{name}", index + 1),
                None => format!("filter_rule_{}", index + 1),
            },
            rule: rule.clone(),
            frames: 0,
            bytes: 0,
            credit: rule.burst.map_or(BURST, |burst| burst.0) as f64,
            since: now,
        };
        let all = rules.rules.iter().map(toml::Spanned::get_ref);
        self.needs_state = all.clone().any(|rule| rule.state.is_some());
        self.rules = all.enumerate().map(active).collect();
        self.fallback = rules.default;
        self.anti_spoofing = rules.anti_spoofing;
    }

    /// A frame of the guest.
    pub(super) fn outgoing(&mut self, frame: &mut [u8], offload: Offload, now: Instant) -> Verdict {
        let Ok(headers) = Headers::parse(frame, frame.len()) else {
            self.counters.count("dropped_malformed");
            return Verdict::Drop;
        };
        if self.anti_spoofing && self.is_spoofed(&headers, frame) {
            self.counters.count("dropped_spoofed");
            return Verdict::Drop;
        }
        let len = frame.len();
        self.decide(Direction::Out, &headers, frame, len, offload, now)
    }

    /// A frame for the guest.
    pub(super) fn incoming(&mut self, frame: &mut Frame, now: Instant) -> Verdict {
        let len = frame.len();
        if frame.head.is_empty() {
            // So that it can be changed; payload may come along.
            frame.head = frame.body.split_to(frame.body.len().min(HEADERS)).to_vec();
        }
        let Ok(headers) = Headers::parse(&frame.head, len) else {
            self.counters.count("dropped_malformed");
            return Verdict::Drop;
        };
        self.watch_leases(&headers, frame);
        let offload = frame.offload;
        self.decide(Direction::In, &headers, &mut frame.head, len, offload, now)
    }

    /// Whether a frame of the guest has sources that are not its own.
    fn is_spoofed(&self, headers: &Headers, frame: &[u8]) -> bool {
        if headers.source != self.mac {
            return true;
        }
        let claimed = match (headers.ethertype, headers.ip) {
            (_, Some(Ip { source: IpAddr::V4(source), .. })) => Some(source),
            // The sender's protocol address (RFC 826).
            (ethertype::ARP, None) => {
                let at = headers.payload + 14;
                let bytes: Option<[u8; 4]> = frame.get(at..at + 4).and_then(|b| b.try_into().ok());
                bytes.map(Ipv4Addr::from)
            }
            _ => None,
        };
        let (Some(claimed), Some(lease)) = (claimed, self.lease) else { return false };
        claimed != lease && !claimed.is_unspecified()
    }

    /// Looks whether the guest is given an address by DHCP.
    fn watch_leases(&mut self, headers: &Headers, frame: &Frame) {
        let Some(ip) = headers.ip else { return };
        if ip.ports != Some((67, 68)) || ip.protocol != protocol::UDP {
            return;
        }
        let bytes = frame.to_vec();
        // RFC 2131 2: yiaddr and chaddr; the type of the message is the first option with others.
        let Some(message) = bytes.get(ip.payload + 8..ip.end) else { return };
        let (Some(address), Some(mac)) = (message.get(16..20), message.get(28..34)) else { return };
        let address: [u8; 4] = address.try_into().unwrap_or_default();
        let acknowledges = message.get(240..).is_some_and(|options| has_type(options, 5));
        let address = Ipv4Addr::from(address);
        if acknowledges && *mac == self.mac.0 && !address.is_unspecified() {
            self.lease = Some(address);
        }
    }

    fn decide(
        &mut self,
        direction: Direction,
        headers: &Headers,
        bytes: &mut [u8],
        len: usize,
        offload: Offload,
        now: Instant,
    ) -> Verdict {
        let flow = headers.ip.and_then(|ip| {
            let (from, to) = ip.endpoints()?;
            Some(Flow { protocol: ip.protocol, from, to })
        });
        if let Some(flow) = flow.filter(|_| !self.rewritten.is_empty())
            && let Some((from, to)) = self.rewritten.get(flow, now)
        {
            rewrite::apply(bytes, headers, (from, to), offload);
            return Verdict::Pass;
        }
        let established = match flow {
            Some(flow) if self.needs_state => {
                self.allowed.get(flow, now).is_some()
                    || self.allowed.get(flow.reversed(), now).is_some()
            }
            _ => false,
        };
        let mut rules = self.rules.iter_mut();
        let found = rules.find(|active| fits(&active.rule, direction, headers, established));
        let action = match found {
            Some(active) => {
                active.frames += 1;
                active.bytes += len as u64;
                if active.rule.action == Action::RateLimit {
                    if active.spend(len, now) { Action::Allow } else { Action::Drop }
                } else if let Some(change) = &active.rule.rewrite {
                    let change = change.clone();
                    return self.rewrite(&change, flow, headers, bytes, offload, now);
                } else {
                    active.rule.action
                }
            }
            None if self.fallback == Fallback::Drop => {
                self.counters.count("dropped_by_default");
                Action::Drop
            }
            None => Action::Allow,
        };
        match action {
            Action::Drop => Verdict::Drop,
            Action::Reject => rejection(headers, bytes).map_or(Verdict::Drop, Verdict::Answer),
            Action::Allow | Action::RateLimit | Action::Rewrite => {
                if let Some(flow) = flow.filter(|_| self.needs_state && !established) {
                    self.allowed.insert(flow, (), now);
                }
                Verdict::Pass
            }
        }
    }

    fn rewrite(
        &mut self,
        change: &super::Rewrite,
        flow: Option<Flow>,
        headers: &Headers,
        bytes: &mut [u8],
        offload: Offload,
        now: Instant,
    ) -> Verdict {
        let Some(flow) = flow else {
            self.counters.count("dropped_not_rewritable");
            return Verdict::Drop;
        };
        let new = |old: SocketAddr, address: Option<IpAddr>, port: Option<u16>| {
            SocketAddr::new(address.unwrap_or(old.ip()), port.unwrap_or(old.port()))
        };
        let from = new(flow.from, change.source, change.source_port);
        let to = new(flow.to, change.destination, change.destination_port);
        if !rewrite::apply(bytes, headers, (from, to), offload) {
            self.counters.count("dropped_not_rewritable");
            return Verdict::Drop;
        }
        let answer = Flow { protocol: flow.protocol, from: to, to: from };
        self.rewritten.insert(answer, (flow.to, flow.from), now);
        Verdict::Pass
    }

    /// What was counted: by each rule, and besides.
    pub(super) fn counters(&self) -> Vec<Counter> {
        let mut all = self.counters.list("filter_");
        for active in &self.rules {
            for (what, count) in [("frames", active.frames), ("bytes", active.bytes)] {
                all.push(Counter { name: format!("{}_{what}", active.label), count });
            }
        }
        all
    }
}

impl Active {
    /// Takes `len` bytes off what may pass now; `false` when there are not so many.
    fn spend(&mut self, len: usize, now: Instant) -> bool {
        let rate = self.rule.rate.map_or(0.0, |rate| rate.0 as f64);
        let burst = self.rule.burst.map_or(BURST, |burst| burst.0) as f64;
        let earned = now.saturating_duration_since(self.since).as_secs_f64() * rate;
        self.credit = (self.credit + earned).min(burst);
        self.since = now;
        let enough = self.credit >= len as f64;
        if enough {
            self.credit -= len as f64;
        }
        enough
    }
}

/// Whether all that a rule says is so.
fn fits(rule: &Rule, direction: Direction, headers: &Headers, established: bool) -> bool {
    if rule.direction.is_some_and(|wanted| wanted != direction) {
        return false;
    }
    let ip = headers.ip;
    let is_protocol = |protocol: &Protocol| match protocol {
        Protocol::Arp => headers.ethertype == ethertype::ARP,
        Protocol::Ip(number) => ip.is_some_and(|ip| ip.protocol == *number),
    };
    if !rule.protocol.is_empty() && !rule.protocol.iter().any(is_protocol) {
        return false;
    }
    let address = |networks: &[super::Network], address: Option<IpAddr>| {
        networks.is_empty()
            || address.is_some_and(|address| networks.iter().any(|net| net.contains(address)))
    };
    let port = |ports: &[super::rules::Ports], port: Option<u16>| {
        ports.is_empty() || port.is_some_and(|port| ports.iter().any(|p| p.0.contains(&port)))
    };
    let mac = |macs: &[MacAddress], mac| macs.is_empty() || macs.contains(&mac);
    let state = match rule.state {
        None => true,
        Some(FlowState::New) => !established,
        Some(FlowState::Established) => established,
    };
    let ports = ip.and_then(|ip| ip.ports);
    state
        && address(&rule.source, ip.map(|ip| ip.source))
        && address(&rule.destination, ip.map(|ip| ip.destination))
        && port(&rule.source_port, ports.map(|(from, _)| from))
        && port(&rule.destination_port, ports.map(|(_, to)| to))
        && mac(&rule.source_mac, headers.source)
        && mac(&rule.destination_mac, headers.destination)
}

/// Whether DHCP options have a message of type `kind` (RFC 2132 9.6).
fn has_type(mut options: &[u8], kind: u8) -> bool {
    while let [code, rest @ ..] = options {
        match (*code, rest) {
            (0, _) => options = rest,
            (255, _) => return false,
            (53, [1, found, ..]) => return *found == kind,
            (_, [len, more @ ..]) => options = more.get(usize::from(*len)..).unwrap_or_default(),
            _ => return false,
        }
    }
    false
}

/// What tells the sender of a frame, whose headers are in `bytes`, that it was rejected: a reset
/// for TCP, that the port cannot be reached for UDP.
fn rejection(headers: &Headers, bytes: &[u8]) -> Option<Frame> {
    let ip = headers.ip.filter(|ip| ip.fragment.is_none())?;
    let from = (headers.destination, ip.destination);
    let route = Route { from, to: (headers.source, ip.source) };
    if headers.destination.is_multicast() {
        return None;
    }
    match ip.protocol {
        protocol::TCP => {
            let tcp: &[u8; 20] = bytes.get(ip.payload..)?.first_chunk()?;
            let flags = tcp[13];
            if flags & 4 != 0 {
                return None;
            }
            let header = usize::from(tcp[12] >> 4) * 4;
            let payload = (ip.end - ip.payload).checked_sub(header)? as u32;
            let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            // SYN and FIN have a sequence number each.
            let len = payload + u32::from(flags >> 1 & 1) + u32::from(flags & 1);
            let mut reset = [0; 20];
            reset[..2].copy_from_slice(&tcp[2..4]);
            reset[2..4].copy_from_slice(&tcp[..2]);
            if flags & 16 != 0 {
                reset[4..8].copy_from_slice(&tcp[8..12]);
            }
            reset[8..12].copy_from_slice(&seq.wrapping_add(len).to_be_bytes());
            reset[12] = 5 << 4;
            reset[13] = 4 | 16;
            frames::packet(&route, protocol::TCP, &reset, Bytes::new())
        }
        protocol::UDP => {
            let end = bytes.len().min(ip.payload + 8);
            let quoted = Bytes::copy_from_slice(bytes.get(headers.payload..end)?);
            let (number, kind, code) = match ip.source {
                IpAddr::V4(_) => (protocol::ICMP, 3, 3),
                IpAddr::V6(_) => (protocol::ICMPV6, 1, 4),
            };
            frames::packet(&route, number, &[kind, code, 0, 0, 0, 0, 0, 0], quoted)
        }
        _ => None,
    }
}
