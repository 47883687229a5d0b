//! Networks: Ethernet frames to and from a guest.
//!
//! Frames may be larger than the wire would carry, and without checksums: what a network card would
//! do to them on their way is said by their [`Offload`], and whoever needs it done does it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of the largest frame: an Ethernet header with a VLAN tag, and the largest IP packet.
pub const MAX_FRAME: usize = 14 + 4 + 65_535;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// To everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it stands for a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no Ethernet address such as 52:46:00:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

/// A checksum that is to be completed (virtio 1.2, 5.1.6.2): the field has the sum of the pseudo
/// header; what is missing is the sum from `start` to the end of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where summing begins, in bytes from the frame's first.
    pub start: u16,
    /// Where the 16-bit field is, in bytes from `start`.
    pub offset: u16,
}

/// What a frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A frame that is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Into what.
    pub kind: SegmentationKind,
    /// Payload bytes of each piece, not 0.
    pub size: u16,
    /// Bytes of all headers, as a hint.
    pub header: u16,
}

/// What a network card would do to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum that is missing.
    pub checksum: Option<PartialChecksum>,
    /// Whether somebody has checked the checksums.
    pub checked: bool,
    /// How it is to be cut.
    pub segmentation: Option<Segmentation>,
}

/// Bits and values of `struct virtio_net_hdr` (virtio 1.2, 5.1.6), which TAP devices use as well.
mod header {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const DATA_VALID: u8 = 2;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
    pub(super) const GSO_ECN: u8 = 0x80;
}

impl Offload {
    /// Bytes of `struct virtio_net_hdr` without the number of buffers.
    pub const LEN: usize = 10;

    /// As `struct virtio_net_hdr` (virtio 1.2, 5.1.6), little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut flags = if self.checked { header::DATA_VALID } else { 0 };
        let (mut start, mut offset) = (0, 0);
        if let Some(checksum) = self.checksum {
            flags |= header::NEEDS_CSUM;
            (start, offset) = (checksum.start, checksum.offset);
        }
        let (mut kind, mut header_len, mut size) = (header::GSO_NONE, 0, 0);
        if let Some(cut) = self.segmentation {
            kind = match cut.kind {
                SegmentationKind::Tcp4 => header::GSO_TCPV4,
                SegmentationKind::Tcp6 => header::GSO_TCPV6,
            };
            (header_len, size) = (cut.header, cut.size);
        }
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields: [u16; 4] = [header_len, size, start, offset];
        for (to, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// What the header `bytes` says of a frame of `len` bytes. `None` when that makes no sense.
    pub fn from_bytes(bytes: [u8; Self::LEN], len: usize) -> Option<Self> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        let (start, offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
        let checksum =
            (flags & header::NEEDS_CSUM != 0).then_some(PartialChecksum { start, offset });
        if checksum.is_some_and(|c| usize::from(c.start) + usize::from(c.offset) + 2 > len) {
            return None;
        }
        let kind = match kind & !header::GSO_ECN {
            header::GSO_NONE => None,
            header::GSO_TCPV4 => Some(SegmentationKind::Tcp4),
            header::GSO_TCPV6 => Some(SegmentationKind::Tcp6),
            _ => return None,
        };
        let (header, size) = (u16::from_le_bytes([h0, h1]), u16::from_le_bytes([s0, s1]));
        if kind.is_some() && (size == 0 || checksum.is_none()) {
            return None;
        }
        let segmentation = kind.map(|kind| Segmentation { kind, size, header });
        Some(Self { checksum, checked: flags & header::DATA_VALID != 0, segmentation })
    }
}

/// A frame for a guest: `head`, then `body`. Unless the head is empty, all protocol headers are in
/// it, so that the payload need not be copied to stand behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// What a network card would do to it.
    pub offload: Offload,
    /// The first bytes.
    pub head: Vec<u8>,
    /// The others.
    pub body: Bytes,
}

impl Frame {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that have all protocol headers.
    pub fn headers(&self) -> &[u8] {
        if self.head.is_empty() { &self.body } else { &self.head }
    }

    /// A copy in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        [&self.head[..], &self.body].concat()
    }
}

/// Called when a network has something for its guest.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// One number that a network counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// What is counted.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// A network, as one guest is connected to it. Its methods are called by the thread of the guest's
/// network card, and do not block for long.
pub trait NetBackend: Send + Sync {
    /// The largest IP packet in bytes that the guest may be told of, if other than 1500.
    fn mtu(&self) -> Option<u16> {
        None
    }

    /// Takes a frame of the guest, in any content whatsoever. It may be changed in place. What
    /// cannot be delivered is dropped, and counted.
    fn send(&self, frame: &mut [u8], offload: Offload);

    /// The guest has nothing more to send for the moment: answers that were put off are due.
    fn sent(&self) {}

    /// The next frame for the guest.
    fn receive(&self) -> Option<Frame>;

    /// What to call when there is a frame, after [`NetBackend::receive`] had none; by any thread.
    /// Called once.
    fn connect(&self, wake: Wake);

    /// The guest has reset its network card: it knows of no connection any more.
    fn reset(&self) {}

    /// What was counted, for statistics.
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_text_and_back() {
        let text = "52:46:00:ab:cd:ef";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        for bad in
            ["", "52:46:00:ab:cd", "52:46:00:ab:cd:ef:00", "52:46:0:ab:cd:ef", "g2:46:00:ab:cd:ef"]
        {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn offloads_are_bytes_and_back() {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let cut = Segmentation { kind: SegmentationKind::Tcp6, size: 1440, header: 74 };
        for offload in [
            Offload::default(),
            Offload { checked: true, ..Offload::default() },
            Offload { checksum, ..Offload::default() },
            Offload { checksum, checked: false, segmentation: Some(cut) },
        ] {
            assert_eq!(Offload::from_bytes(offload.to_bytes(), 60), Some(offload));
        }
    }

    #[test]
    fn offloads_without_sense_are_refused() {
        // A checksum beyond the end, an unknown kind, pieces of nothing, no checksum to complete.
        let from = |bytes| Offload::from_bytes(bytes, 60);
        assert_eq!(from([1, 0, 0, 0, 0, 0, 50, 0, 9, 0]), None);
        assert_eq!(from([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(from([1, 3, 0, 0, 1, 0, 0, 0, 0, 0]), None);
        assert_eq!(from([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(from([0, 1, 0, 0, 1, 0, 0, 0, 0, 0]), None);
        assert!(from([1, 0x81, 0, 0, 1, 0, 50, 0, 8, 0]).is_some());
    }
}
