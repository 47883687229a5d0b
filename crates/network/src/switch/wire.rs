//! Frames on a Unix socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use backend::{Frame, MAX_FRAME, MacAddress, Offload};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, send, sendmsg, shutdown, socket_with, sockopt,
};

use super::Hello;

/// What a hello begins with: the protocol and its version.
const MAGIC: &[u8; 8] = b"rfswitc1";
/// The longest name in a hello.
const MAX_NAME: usize = 63;
/// How long sending may take: a peer that stands still does not hold up a guest for longer.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes that may wait in the socket; the kernel grants less where that is its limit.
const BUFFER: usize = 4 << 20;

/// One end of a connection between a VM and a switch.
pub(super) struct Connection(OwnedFd);

/// A socket that can be connected, or listened on.
pub(super) fn socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl Connection {
    /// Connects to the switch at `path`.
    pub(super) fn connect(path: &Path, hello: &Hello) -> io::Result<Self> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let connection = Self::new(socket)?;
        let mut message = MAGIC.to_vec();
        message.extend(hello.mac.0);
        message.extend(hello.vlan.to_le_bytes());
        message.extend(hello.name.bytes().take(MAX_NAME));
        send(&connection.0, &message, SendFlags::NOSIGNAL)?;
        Ok(connection)
    }

    /// A connection that was accepted.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        // A small buffer is no reason to do without.
        let _ = sockopt::set_socket_send_buffer_size(&socket, BUFFER);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_TIMEOUT))?;
        Ok(Self(socket))
    }

    /// Waits for what the other end says of itself; `None` when that is no hello.
    pub(super) fn hello(&self) -> Option<Hello> {
        let message = self.message()?;
        let rest = message.strip_prefix(MAGIC)?;
        let (mac, rest) = rest.split_first_chunk::<6>()?;
        let (vlan, name) = rest.split_first_chunk::<2>()?;
        let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_NAME)?;
        let (mac, vlan) = (MacAddress(*mac), u16::from_le_bytes(*vlan));
        (!mac.is_multicast() && vlan < 4095).then(|| Hello { mac, vlan, name: name.to_owned() })
    }

    /// Waits for a frame; `None` when the other end is gone.
    pub(super) fn receive(&self) -> Option<Frame> {
        loop {
            let message = self.message()?;
            // What makes no sense is dropped.
            let Some((header, frame)) = message.split_first_chunk::<{ Offload::LEN }>() else {
                continue;
            };
            let Some(offload) = Offload::from_bytes(*header, frame.len()) else { continue };
            let body = bytes::Bytes::from(message).slice(Offload::LEN..);
            return Some(Frame { offload, head: Vec::new(), body });
        }
    }

    fn message(&self) -> Option<Vec<u8>> {
        loop {
            let mut message = Vec::with_capacity(Offload::LEN + MAX_FRAME);
            match recv(&self.0, spare_capacity(&mut message), RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok(_) if message.len() < message.capacity() / 2 => {
                    return Some(message[..].to_vec());
                }
                Ok(_) => return Some(message),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends a frame; whether it is on its way.
    pub(super) fn send(&self, frame: &[u8], offload: Offload) -> bool {
        self.send_parts(&[&offload.to_bytes(), frame])
    }

    /// Sends a frame in its parts.
    pub(super) fn send_frame(&self, frame: &Frame) -> bool {
        self.send_parts(&[&frame.offload.to_bytes(), &frame.head, &frame.body])
    }

    fn send_parts(&self, parts: &[&[u8]]) -> bool {
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut none = SendAncillaryBuffer::default();
        loop {
            match sendmsg(&self.0, &parts, &mut none, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                other => return other.is_ok(),
            }
        }
    }

    /// Ends the connection: who waits on it is told.
    pub(super) fn close(&self) {
        // It may be gone already.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}
