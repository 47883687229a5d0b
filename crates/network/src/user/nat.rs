//! The network itself: takes frames of guests and events of the host, one at a time.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use backend::{Counter, MacAddress, Offload};
use rustix::event::epoll;

use super::dhcp;
use super::env::{Env, Token};
use super::forward::Listeners;
use super::icmp::Echo;
use super::leases::Leases;
use super::neighbours;
use super::plan::is_routable;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{UserConfig, names};
use crate::NetworkError;
use crate::headers::{Headers, Ip, Malformed, checksum_is_right, ethertype, protocol};
use crate::queue::FrameQueue;

/// The network.
pub(super) struct Nat {
    env: Env,
    leases: Leases,
    tcp: Tcp,
    udp: Udp,
    echo: Echo,
    listeners: Listeners,
}

impl Nat {
    /// A network as `config` says; what it has for guests goes to `out`.
    pub(super) fn new(config: &UserConfig, out: Arc<FrameQueue>) -> Result<Self, NetworkError> {
        let failed = |cause| NetworkError::Host { action: "wait for events", cause };
        let env = Env::new(config.plan, config.resolv_conf.clone(), out).map_err(failed)?;
        let mut udp = Udp::default();
        let first = config.plan.guests.0;
        let listeners = Listeners::open(&config.forwards, first, &mut udp, &env)?;
        let mut leases = Leases::new(config.plan.guests);
        leases.load(&config.leases);
        Ok(Self { env, leases, tcp: Tcp::default(), udp, echo: Echo::default(), listeners })
    }

    /// A handle of the host's events, to wait for them.
    pub(super) fn events(&self) -> io::Result<OwnedFd> {
        self.env.events()
    }

    /// Has the thread that waits for events woken by `socket`.
    pub(super) fn watch_wake(&self, socket: &OwnedFd) -> rustix::io::Result<()> {
        self.env.watch(socket, Token::Wake, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    /// Sets the time; what follows happens then.
    pub(super) fn now(&mut self) {
        self.env.now = Instant::now();
    }

    /// A frame of a guest.
    pub(super) fn frame(&mut self, frame: &[u8], offload: Offload) {
        if let Err(error) = self.take(frame, offload) {
            self.env.counters.count(match error {
                Malformed::Ethernet => "dropped_bad_ethernet",
                Malformed::Ipv4 => "dropped_bad_ipv4",
                Malformed::Ipv6 => "dropped_bad_ipv6",
                Malformed::Transport => "dropped_bad_transport",
            });
        }
    }

    fn take(&mut self, frame: &[u8], offload: Offload) -> Result<(), Malformed> {
        let headers = Headers::parse(frame, frame.len())?;
        let to = headers.destination;
        if to != self.env.plan.mac && !to.is_multicast() {
            // Somebody else's.
            return Ok(());
        }
        if headers.vlan.is_some() || headers.source.is_multicast() {
            self.env.counters.count("dropped_not_for_us");
            return Ok(());
        }
        match (headers.ethertype, &headers.ip) {
            (ethertype::ARP, _) => neighbours::arp(&headers, frame, &mut self.env),
            (_, Some(ip)) => self.packet(&headers, ip, frame, offload),
            _ => {
                self.env.counters.count("dropped_unknown_ethertype");
                Ok(())
            }
        }
    }

    fn packet(
        &mut self,
        headers: &Headers,
        ip: &Ip,
        frame: &[u8],
        offload: Offload,
    ) -> Result<(), Malformed> {
        if ip.fragment.is_some() {
            // The MTU is large enough for everybody to do without.
            self.env.counters.count("dropped_fragments");
            return Ok(());
        }
        let checked = offload.checked || offload.checksum.is_some();
        if !checked && !checksum_is_right(frame, ip) {
            self.env.counters.count("dropped_bad_checksum");
            return Ok(());
        }
        let packet = &frame[ip.payload..ip.end];
        if neighbours::discovery(headers, ip, packet, &mut self.env)? {
            return Ok(());
        }
        if ip.protocol == protocol::UDP && ip.ports.is_some_and(|(_, to)| to == dhcp::SERVER) {
            let content = packet.get(8..).ok_or(Malformed::Transport)?;
            return dhcp::message(headers.source, content, &mut self.leases, &mut self.env);
        }
        if !self.is_guest(ip.source) || !is_single(ip.destination) {
            // Multicast and broadcast find nobody here.
            self.env.counters.count("dropped_unroutable");
            return Ok(());
        }
        self.env.learn(ip.source, headers.source);
        match ip.protocol {
            protocol::TCP => self.tcp.packet(ip, packet, frame, &mut self.env),
            protocol::UDP if names::answer(ip, packet, &self.leases, &mut self.env) => Ok(()),
            protocol::UDP => self.udp.packet(ip, packet, frame, &mut self.env),
            protocol::ICMP | protocol::ICMPV6 => self.echo.packet(ip, packet, frame, &mut self.env),
            _ => {
                self.env.counters.count("dropped_unknown_protocol");
                Ok(())
            }
        }
    }

    /// Whether `address` can be a guest's.
    fn is_guest(&self, address: IpAddr) -> bool {
        let plan = &self.env.plan;
        is_routable(address) && plan.is_inside(address) && !plan.is_ours(address)
    }

    /// Guests have sent what they had.
    pub(super) fn answer(&mut self) {
        self.tcp.answer(&mut self.env);
    }

    /// An event of the host.
    pub(super) fn event(&mut self, event: epoll::Event) {
        let (tcp, udp, env) = (&mut self.tcp, &mut self.udp, &mut self.env);
        match Token::decode(event.data.u64()) {
            Token::Wake => tcp.go_on(env),
            Token::Tcp(id) => tcp.host_event(id, event.flags, env),
            Token::Udp(id) => udp.host_event(id, env),
            Token::Echo(id) => self.echo.host_event(id, env),
            Token::Listener(index) => self.listeners.event(index, tcp, udp, env),
        }
    }

    /// Does what is due by time.
    pub(super) fn tick(&mut self) {
        if self.env.take_due() {
            self.tcp.tick(&mut self.env);
            self.udp.tick(&mut self.env);
            self.echo.tick(&mut self.env);
        }
    }

    /// When there is something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.env.deadline()
    }

    /// All guests have been reset.
    pub(super) fn reset(&mut self) {
        self.tcp.reset();
        self.udp.reset();
        self.echo.reset();
    }

    /// The guest with `mac` is called `name`, and gets an address.
    pub(super) fn name(&mut self, mac: MacAddress, name: &str) {
        self.leases.lease(mac, Some(name));
    }

    /// The leases as text, when they have changed.
    pub(super) fn take_changed_leases(&mut self) -> Option<String> {
        self.leases.take_changed()
    }

    /// What was counted.
    pub(super) fn counters(&self) -> Vec<Counter> {
        let mut all = self.env.counters.list("nat_");
        let open = [("nat_tcp_open", self.tcp.len()), ("nat_udp_open", self.udp.len())];
        all.extend(
            open.map(|(name, count)| Counter { name: name.to_owned(), count: count as u64 }),
        );
        all
    }

    #[cfg(test)]
    pub(super) fn count(&self, name: &str) -> u64 {
        self.env.counters.get(name)
    }
}

/// Whether `address` is that of one station.
fn is_single(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}
