//! TCP segments from and to guests.

use std::net::SocketAddr;

use backend::{Segmentation, SegmentationKind};
use bytes::Bytes;
use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

use crate::frames::{self, Route};
use crate::user::env::Env;
use crate::user::table::FlowKey;

/// Flags of a segment (RFC 9293 3.1).
pub(super) mod flag {
    pub(in crate::user::tcp) const FIN: u8 = 1;
    pub(in crate::user::tcp) const SYN: u8 = 2;
    pub(in crate::user::tcp) const RST: u8 = 4;
    pub(in crate::user::tcp) const PSH: u8 = 8;
    pub(in crate::user::tcp) const ACK: u8 = 16;
}

/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// A segment of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) payload: &'a [u8],
    /// Options of a SYN.
    pub(super) options: Options,
}

/// The options that matter (RFC 9293 3.2, RFC 7323 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) max_segment: Option<u16>,
    pub(super) window_scale: Option<u8>,
}

impl<'a> Segment<'a> {
    /// Reads a segment; `None` for what is none.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let tcp = TcpPacket::new_checked(packet).ok()?;
        let header = usize::from(tcp.header_len());
        let options =
            if tcp.syn() { options(packet.get(HEADER..header)?)? } else { Options::default() };
        Some(Self {
            seq: tcp.seq_number().0 as u32,
            ack: tcp.ack_number().0 as u32,
            flags: packet[13],
            window: tcp.window_len(),
            payload: packet.get(header..)?,
            options,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that it takes up.
    pub(super) fn len(&self) -> u32 {
        let flags = u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN));
        self.payload.len() as u32 + flags
    }
}

/// Reads options; `None` when one does not end.
fn options(mut bytes: &[u8]) -> Option<Options> {
    let mut found = Options::default();
    while !bytes.is_empty() {
        let (rest, option) = TcpOption::parse(bytes).ok()?;
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(size) => found.max_segment = Some(size),
            TcpOption::WindowScale(scale) => found.window_scale = Some(scale),
            _ => {}
        }
        bytes = rest;
    }
    Some(found)
}

/// A segment for a guest.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Options of a SYN.
    pub(super) options: Options,
    pub(super) payload: Bytes,
    /// Payload bytes that the guest wants in one segment; 0 without a payload.
    pub(super) max_segment: usize,
}

impl Outgoing {
    /// Sends the segment to the guest of `key`; whether it is on its way.
    pub(super) fn send(self, key: FlowKey, env: &mut Env) -> bool {
        let Some(mac) = env.mac_of(key.guest.ip()) else {
            return env.send(
                (key.remote.ip(), key.guest.ip()),
                PROTOCOL,
                &[0; HEADER],
                Bytes::new(),
            );
        };
        let route = Route { from: (env.plan.mac, key.remote.ip()), to: (mac, key.guest.ip()) };
        let (header, len) = self.header(key.remote, key.guest);
        let cut = (self.payload.len() > self.max_segment && self.max_segment != 0).then(|| {
            Segmentation {
                kind: if key.guest.is_ipv4() {
                    SegmentationKind::Tcp4
                } else {
                    SegmentationKind::Tcp6
                },
                size: self.max_segment as u16,
                header: (frames::header_len(&route) + len) as u16,
            }
        });
        let Some(mut frame) = frames::packet(&route, PROTOCOL, &header[..len], self.payload) else {
            return false;
        };
        frame.offload.segmentation = cut;
        env.emit(frame)
    }

    fn header(&self, from: SocketAddr, to: SocketAddr) -> ([u8; HEADER + 8], usize) {
        let mut bytes = [0; HEADER + 8];
        let mut len = HEADER;
        if let Some(size) = self.options.max_segment {
            let [high, low] = size.to_be_bytes();
            bytes[len..len + 4].copy_from_slice(&[2, 4, high, low]);
            len += 4;
        }
        if let Some(scale) = self.options.window_scale {
            bytes[len..len + 4].copy_from_slice(&[1, 3, 3, scale]);
            len += 4;
        }
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[..]);
        tcp.set_src_port(from.port());
        tcp.set_dst_port(to.port());
        tcp.set_seq_number(TcpSeqNumber(self.seq as i32));
        tcp.set_ack_number(TcpSeqNumber(self.ack as i32));
        tcp.set_header_len(len as u8);
        tcp.set_window_len(self.window);
        bytes[13] = self.flags;
        (bytes, len)
    }
}

const PROTOCOL: u8 = crate::headers::protocol::TCP;

/// The answer to a segment of a connection that there is not (RFC 9293 3.10.7.1).
pub(super) fn refusal(segment: &Segment<'_>) -> Option<Outgoing> {
    if segment.has(flag::RST) {
        return None;
    }
    Some(match segment.has(flag::ACK) {
        true => Outgoing { seq: segment.ack, flags: flag::RST, ..Outgoing::default() },
        false => Outgoing {
            ack: segment.seq.wrapping_add(segment.len()),
            flags: flag::RST | flag::ACK,
            ..Outgoing::default()
        },
    })
}

/// How far `a` is behind `b` in sequence space: negative when it is before.
pub(super) fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}
