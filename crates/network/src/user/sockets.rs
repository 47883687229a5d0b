//! Sockets of the host, which never block.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with, sockopt,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A TCP socket that is being connected to `to`.
pub(super) fn tcp(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(to), SocketType::STREAM, FLAGS, None)?;
    // The guest has put together what belongs together.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// A UDP socket that is connected to `to`.
pub(super) fn udp(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(to), SocketType::DGRAM, FLAGS, None)?;
    connect(&socket, &to)?;
    Ok(socket)
}

/// A socket for echo requests to `to`, which the kernel gives to those whom the administrator lets
/// ping (`net.ipv4.ping_group_range`).
pub(super) fn echo(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = socket_with(family(to), SocketType::DGRAM, FLAGS, Some(protocol))?;
    connect(&socket, &to)?;
    Ok(socket)
}

/// A TCP socket that listens.
pub(super) fn tcp_listener(at: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(at), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A UDP socket that takes what is sent to `at`.
pub(super) fn udp_listener(at: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(family(at), SocketType::DGRAM, FLAGS, None)?;
    bind(&socket, &at)?;
    Ok(socket)
}
