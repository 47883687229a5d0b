//! Port forwards: what is sent to a port of the host goes to a guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::env::{Env, Token};
use super::sockets;
use super::table::FlowKey;
use super::tcp::Tcp;
use super::udp::Udp;
use crate::NetworkError;

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port forward: `tcp:HOSTPORT:GUESTPORT`, `tcp:ADDRESS:HOSTPORT:GUESTPORT`, or the same with
/// `udp`.
///
/// ```
/// let forward: network::Forward = "tcp:8080:80".parse()?;
/// assert_eq!(forward.host.to_string(), "127.0.0.1:8080");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What is forwarded.
    pub transport: Transport,
    /// Where the host listens: on its loopback, unless another address is given.
    pub host: SocketAddr,
    /// Where it goes.
    pub guest_port: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no port forward such as tcp:8080:80 or udp:0.0.0.0:5353:53");
        let (transport, rest) = text.split_once(':').ok_or_else(wrong)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(wrong()),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                (bare.unwrap_or(address).parse().map_err(|_| wrong())?, host)
            }
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
        Ok(Self {
            transport,
            host: SocketAddr::new(address, port(host)?),
            guest_port: port(guest)?,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport}:{}:{}", self.host, self.guest_port)
    }
}

/// The sockets that wait for connections.
#[derive(Default)]
pub(super) struct Listeners {
    tcp: Vec<(u32, OwnedFd, SocketAddr)>,
}

impl Listeners {
    /// Listens for `forwards`, which go to the guest at `guest`.
    pub(super) fn open(
        forwards: &[Forward],
        guest: Ipv4Addr,
        udp: &mut Udp,
        env: &Env,
    ) -> Result<Self, NetworkError> {
        let mut listeners = Self::default();
        for (index, forward) in (0..).zip(forwards) {
            let to = SocketAddr::new(guest.into(), forward.guest_port);
            let socket = match forward.transport {
                Transport::Tcp => sockets::tcp_listener(forward.host),
                Transport::Udp => sockets::udp_listener(forward.host),
            };
            let refused = |cause: Errno| NetworkError::Forward {
                forward: forward.to_string(),
                cause: cause.into(),
            };
            let socket = socket.map_err(refused)?;
            let edges = if forward.transport == Transport::Tcp {
                EventFlags::ET
            } else {
                EventFlags::empty()
            };
            env.watch(&socket, Token::Listener(index), EventFlags::IN | edges).map_err(refused)?;
            match forward.transport {
                Transport::Tcp => listeners.tcp.push((index, socket, to)),
                Transport::Udp => udp.listen(index, socket, to),
            }
        }
        Ok(listeners)
    }

    /// The socket of forward `index` has something.
    pub(super) fn event(&self, index: u32, tcp: &mut Tcp, udp: &mut Udp, env: &mut Env) {
        match self.tcp.iter().find(|(number, ..)| *number == index) {
            Some((_, socket, to)) => accept(socket, *to, tcp, env),
            None => udp.listener_event(index, env),
        }
    }
}

fn accept(listener: &OwnedFd, guest: SocketAddr, tcp: &mut Tcp, env: &mut Env) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    loop {
        match acceptfrom_with(listener, flags) {
            Ok((socket, Some(peer))) => {
                let Ok(peer) = SocketAddr::try_from(peer) else { continue };
                let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                if let Some(remote) = as_seen(peer, guest, tcp, env) {
                    tcp.accept(FlowKey { guest, remote }, socket, env);
                }
            }
            Ok((_, None)) | Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(Errno::MFILE | Errno::NFILE) => return env.counters.count("tcp_no_files_left"),
            Err(_) => return,
        }
    }
}

/// As which address the guest sees `peer`: its own, or the gateway's with a port that is free.
fn as_seen(peer: SocketAddr, guest: SocketAddr, tcp: &Tcp, env: &Env) -> Option<SocketAddr> {
    let seen = match env.plan.seen_as(peer.ip()) {
        IpAddr::V4(address) => address.into(),
        // The guest is reached by IPv4.
        IpAddr::V6(_) => IpAddr::V4(env.plan.gateway),
    };
    let ports = std::iter::once(peer.port()).chain(32_768..=u16::MAX);
    let mut remotes = ports.map(|port| SocketAddr::new(seen, port));
    remotes.find(|remote| !tcp.is_taken(guest, *remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_text() {
        let parsed = |text: &str| text.parse::<Forward>().map(|forward| forward.to_string());
        assert_eq!(parsed("tcp:2222:22").unwrap(), "tcp:127.0.0.1:2222:22");
        assert_eq!(parsed("udp:0.0.0.0:53:5353").unwrap(), "udp:0.0.0.0:53:5353");
        assert_eq!(parsed("tcp:[::1]:80:8080").unwrap(), "tcp:[::1]:80:8080");
        for bad in
            ["", "tcp", "tcp:80", "sctp:1:2", "tcp:0:1", "tcp:1:65536", "tcp:x:1:2", "tcp::1:2:"]
        {
            assert!(parsed(bad).unwrap_err().contains("such as"), "{bad}");
        }
    }
}
