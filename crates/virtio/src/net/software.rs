//! What a network card does to frames, for drivers that do not want to: completing checksums, and
//! cutting TCP segments.

use std::collections::VecDeque;

use backend::{Frame, Offload, Segmentation, SegmentationKind};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::has;

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;
/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// Bytes of a TCP header without options.
const TCP: usize = 20;
/// Offsets in an IP header.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV6_LENGTH: usize = 4;
/// Offsets in a TCP header.
const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
/// FIN and PSH: of the last segment only.
const LAST_FLAGS: u8 = 0x09;

/// Puts `frame` into `frames` as a driver with `features` takes it: as it is, with its checksum, or
/// in pieces.
pub(super) fn adapt(frame: Frame, features: u64, frames: &mut VecDeque<Frame>) {
    let cuts = frame.offload.segmentation.filter(|cut| {
        !has(
            features,
            match cut.kind {
                SegmentationKind::Tcp4 => VIRTIO_NET_F_GUEST_TSO4,
                SegmentationKind::Tcp6 => VIRTIO_NET_F_GUEST_TSO6,
            },
        )
    });
    if let Some(cut) = cuts {
        // What cannot be cut is none of ours: it is lost.
        frames.extend(segments(&frame.to_vec(), cut).unwrap_or_default());
        return;
    }
    let sums = frame.offload.checksum.filter(|_| !has(features, VIRTIO_NET_F_GUEST_CSUM));
    let Some(partial) = sums else {
        let checked = frame.offload.checked && has(features, VIRTIO_NET_F_GUEST_CSUM);
        let offload = Offload { checked, ..frame.offload };
        frames.push_back(Frame { offload, ..frame });
        return;
    };
    let mut bytes = frame.to_vec();
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    if at + 2 <= bytes.len() {
        let sum = checksum(0, &bytes[start..]);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frames.push_back(Frame { head: bytes, ..Frame::default() });
    }
}

/// The Internet checksum (RFC 1071) of `bytes` and of what was summed up before.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(before);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Cuts a TCP segment into pieces with checksums.
fn segments(frame: &[u8], cut: Segmentation) -> Option<Vec<Frame>> {
    let ip = ETHERNET;
    let tcp = match cut.kind {
        SegmentationKind::Tcp4 => ip + usize::from(frame.get(ip)? & 0xf) * 4,
        SegmentationKind::Tcp6 => ip + IPV6,
    };
    let header = tcp + usize::from(frame.get(tcp + TCP_DATA_OFFSET)? >> 4) * 4;
    if header < tcp + TCP || header > frame.len() {
        return None;
    }
    let (head, payload) = frame.split_at(header);
    let sequence = u32::from_be_bytes(head.get(tcp + TCP_SEQUENCE..)?.first_chunk().copied()?);
    let size = usize::from(cut.size);
    let count = payload.len().div_ceil(size);
    let mut done = 0;
    let pieces = payload.chunks(size).enumerate().map(|(index, piece)| {
        let mut bytes = [head, piece].concat();
        let place = sequence.wrapping_add(done as u32);
        done += piece.len();
        bytes[tcp + TCP_SEQUENCE..][..4].copy_from_slice(&place.to_be_bytes());
        if index + 1 != count {
            bytes[tcp + TCP_FLAGS] &= !LAST_FLAGS;
        }
        finish(&mut bytes, (ip, tcp), cut.kind, index as u16);
        Frame { head: bytes, ..Frame::default() }
    });
    Some(pieces.collect())
}

/// Sets lengths, identification and checksums of piece `index`, whose IP and TCP headers are at
/// these places.
fn finish(bytes: &mut [u8], (ip, tcp): (usize, usize), kind: SegmentationKind, index: u16) {
    let len = (bytes.len() - tcp) as u16;
    let addresses = match kind {
        SegmentationKind::Tcp4 => {
            let total = (bytes.len() - ip) as u16;
            bytes[ip + IPV4_LENGTH..][..2].copy_from_slice(&total.to_be_bytes());
            let id = u16::from_be_bytes([bytes[ip + IPV4_ID], bytes[ip + IPV4_ID + 1]]);
            let id = id.wrapping_add(index);
            bytes[ip + IPV4_ID..][..2].copy_from_slice(&id.to_be_bytes());
            bytes[ip + IPV4_CHECKSUM..][..2].fill(0);
            let sum = checksum(0, &bytes[ip..tcp]);
            bytes[ip + IPV4_CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
            ip + 12..ip + 20
        }
        SegmentationKind::Tcp6 => {
            bytes[ip + IPV6_LENGTH..][..2].copy_from_slice(&len.to_be_bytes());
            ip + 8..ip + 40
        }
    };
    const TCP_PROTOCOL: u32 = 6;
    let pseudo = TCP_PROTOCOL + u32::from(len) + u32::from(!checksum(0, &bytes[addresses]));
    bytes[tcp + TCP_CHECKSUM..][..2].fill(0);
    let sum = checksum(pseudo, &bytes[tcp..]);
    bytes[tcp + TCP_CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
}
