//! The addresses of a user-mode network, and which of the host's they stand for.
//!
//! | | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | network | 10.0.2.0/24 | fd52:4e47::/64 |
//! | gateway, which is also the host's loopback | 10.0.2.2 | fd52:4e47::2, fe80::2 |
//! | name server | 10.0.2.3 | fd52:4e47::3 |
//! | guests | from 10.0.2.15 on | by autoconfiguration |
//!
//! The IPv4 part is that of other monitors, so that users find what they know. The IPv6 prefix is a
//! unique local one (RFC 4193): a guest that has only such an address prefers IPv4 for the Internet
//! (RFC 6724), so that a host without IPv6 does no harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use backend::MacAddress;

use super::resolver::Resolver;

/// The address that the first guest gets.
pub(super) const FIRST_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Length of the IPv6 prefix.
pub(super) const PREFIX_LEN: u8 = 64;
/// Port of name servers.
pub(super) const DNS: u16 = 53;

/// The addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Ethernet address of gateway and name server.
    pub(crate) mac: MacAddress,
    pub(crate) network: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) dns: Ipv4Addr,
    /// The first address for guests, and the last.
    pub(crate) guests: (Ipv4Addr, Ipv4Addr),
    pub(crate) prefix: Ipv6Addr,
    pub(crate) gateway6: Ipv6Addr,
    pub(crate) link_local: Ipv6Addr,
    pub(crate) dns6: Ipv6Addr,
    /// The largest IP packet in bytes.
    pub(crate) mtu: u16,
    /// Whether guests reach nothing of the host's world.
    pub(crate) isolated: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let host = |last| Ipv4Addr::new(10, 0, 2, last);
        let host6 = |last| Ipv6Addr::new(0xfd52, 0x4e47, 0, 0, 0, 0, 0, last);
        Self {
            mac: MacAddress([0x52, 0x46, 0x0a, 0x00, 0x02, 0x02]),
            network: host(0),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: host(2),
            dns: host(3),
            guests: (FIRST_GUEST, host(254)),
            prefix: host6(0),
            gateway6: host6(2),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            dns6: host6(3),
            mtu: 65_520,
            isolated: false,
        }
    }
}

/// What a guest reaches at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// This address of the host's world.
    Host(SocketAddr),
    /// The network's own address, where nobody listens.
    Nobody,
    /// Another station of the network.
    Neighbour,
    /// No single station, or an address that must not be routed.
    Unroutable,
}

impl Plan {
    /// Whether `address` is the gateway's or the name server's.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.gateway || v4 == self.dns,
            IpAddr::V6(v6) => v6 == self.gateway6 || v6 == self.dns6 || v6 == self.link_local,
        }
    }

    /// Whether `address` is one of the network's.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.to_bits() & self.mask.to_bits() == self.network.to_bits(),
            IpAddr::V6(v6) => v6.to_bits() >> 64 == self.prefix.to_bits() >> 64,
        }
    }

    /// What a guest reaches at `to`.
    pub(crate) fn target(&self, to: SocketAddr, resolver: &Resolver) -> Target {
        match self.open_target(to, resolver) {
            Target::Host(_) if self.isolated => Target::Nobody,
            target => target,
        }
    }

    fn open_target(&self, to: SocketAddr, resolver: &Resolver) -> Target {
        let address = to.ip();
        let is_dns = address == IpAddr::V4(self.dns) || address == IpAddr::V6(self.dns6);
        if is_dns {
            let server = (to.port() == DNS).then(|| resolver.server()).flatten();
            return server.map_or(Target::Nobody, Target::Host);
        }
        if self.is_ours(address) {
            let loopback: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return Target::Host(SocketAddr::new(loopback, to.port()));
        }
        if self.is_inside(address) {
            return Target::Neighbour;
        }
        if to.port() == 0 || !is_routable(address) {
            return Target::Unroutable;
        }
        Target::Host(to)
    }

    /// As which address guests see a peer of the host's world: the host's loopback is the gateway.
    pub(crate) fn seen_as(&self, peer: IpAddr) -> IpAddr {
        match peer.to_canonical() {
            IpAddr::V4(v4) if v4.is_loopback() || self.is_inside(v4.into()) => self.gateway.into(),
            IpAddr::V6(v6) if v6.is_loopback() || !is_routable(v6.into()) => self.gateway6.into(),
            other => other,
        }
    }
}

/// Whether packets to `address` may leave the network: it is one station, somewhere else.
pub(crate) fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first != 0 && first != 127 && first < 224 && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_multicast()
                && !v6.is_unicast_link_local()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}
