use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use backend::{PartialChecksum, Segmentation, SegmentationKind, Wake};
use bytes::Bytes;
use device::Message;
use device::testing::RecordingLine;
use pci::Function;

use super::*;
use crate::VirtioPci;
use crate::testing::Ring;

const LONG: Duration = Duration::from_secs(20);
const MAC: MacAddress = MacAddress([0x52, 0x46, 0, 1, 2, 3]);

/// A network that keeps what it is sent, and has frames for the guest.
#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<(Vec<u8>, Offload)>>,
    frames: Mutex<VecDeque<Frame>>,
    wake: Mutex<Option<Wake>>,
    was_reset: AtomicBool,
}

impl Wire {
    fn arrive(&self, frame: Frame) {
        lock(&self.frames).push_back(frame);
        lock(&self.wake).as_ref().expect("connected")();
    }
}

impl NetBackend for Wire {
    fn mtu(&self) -> Option<u16> {
        Some(65_520)
    }

    fn send(&self, frame: &mut [u8], offload: Offload) {
        lock(&self.sent).push((frame.to_vec(), offload));
    }

    fn receive(&self) -> Option<Frame> {
        lock(&self.frames).pop_front()
    }

    fn connect(&self, wake: Wake) {
        *lock(&self.wake) = Some(wake);
    }

    fn reset(&self) {
        self.was_reset.store(true, Ordering::SeqCst);
    }
}

struct Nobody;

impl device::MsiSender for Nobody {
    fn send(&self, _message: Message) {}
}

/// A card whose driver has set up one of its queues.
struct Rig {
    pci: VirtioPci,
    ring: Ring,
    wire: Arc<Wire>,
    counters: Arc<NetCounters>,
}

const NOTIFY: u64 = 0x3000;

impl Rig {
    fn new(queue: usize, features: u64) -> Self {
        let (ring, _) = Ring::new(8);
        let wire = Arc::new(Wire::default());
        let card = Net::new(Arc::clone(&wire) as _, MAC);
        let counters = card.counters();
        let line = RecordingLine::new();
        let pci = VirtioPci::new(Box::new(card), ring.dma.clone(), Arc::new(Nobody), line).unwrap();
        pci.resume();
        let rig = Self { pci, ring, wire, counters };
        rig.start(queue, features);
        rig
    }

    fn start(&self, queue: usize, features: u64) {
        self.pci.config_write(4, &[6, 0]);
        self.write(0x0c, &(features as u32).to_le_bytes());
        self.write(0x08, &1_u32.to_le_bytes());
        self.write(0x0c, &1_u32.to_le_bytes());
        self.write(0x14, &[11]);
        self.write(0x16, &[queue as u8, 0]);
        self.write(0x18, &[8, 0]);
        self.write(0x20, &Ring::DESCRIPTORS.to_le_bytes());
        self.write(0x28, &Ring::AVAILABLE.to_le_bytes());
        self.write(0x30, &Ring::USED.to_le_bytes());
        self.write(0x1c, &[1, 0]);
        self.write(0x14, &[15]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pci.bar_write(4, offset, data);
    }

    fn status(&self) -> u8 {
        let mut data = [0];
        self.pci.bar_read(4, 0x14, &mut data);
        data[0]
    }

    fn notify(&self) {
        self.write(NOTIFY, &[0, 0]);
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what} did not come");
            thread::yield_now();
        }
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.list().iter().find(|c| c.name == name).expect("a counter").count
    }

    /// Offers a buffer for a received frame at descriptor `index`.
    fn room(&self, index: u16, len: u32) {
        let gpa = 0x8000 + 0x1000 * u64::from(index);
        self.ring.describe(Ring::DESCRIPTORS, index, gpa, len, 2, 0);
        self.ring.offer(index);
    }
}

fn frame(len: usize) -> Frame {
    let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
    Frame {
        offload: Offload::default(),
        head: bytes[..20].to_vec(),
        body: Bytes::from(bytes[20..].to_vec()),
    }
}

#[test]
fn the_card_says_what_it_is() {
    let rig = Rig::new(TRANSMIT, 0);
    let mut config = [0; 12];
    rig.pci.bar_read(4, 0x2000, &mut config);
    assert_eq!(config, [0x52, 0x46, 0, 1, 2, 3, 1, 0, 1, 0, 0xf0, 0xff]);
}

#[test]
fn frames_are_sent_with_what_is_to_be_done_to_them() {
    let rig = Rig::new(TRANSMIT, 1 << VIRTIO_NET_F_CSUM);
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    bytes.extend([0x77; 60]);
    rig.ring.dma.write(0x8000, &bytes).unwrap();
    rig.ring.chain(&[(0x8000, 30, false), (0x8000 + 30, 42, false)]);
    rig.ring.offer(0);
    rig.notify();
    rig.wait("a frame", |rig| rig.ring.used_index() == 1);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let expected = (vec![0x77; 60], Offload { checksum, ..Offload::default() });
    assert_eq!(*lock(&rig.wire.sent), [expected]);
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let rig = Rig::new(TRANSMIT, 0);
    rig.ring.dma.write(0x8000, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]).unwrap();
    rig.ring.chain(&[(0x8000, 100, false)]);
    rig.ring.offer(0);
    rig.notify();
    rig.wait("an answer", |rig| rig.ring.used_index() == 1);
    assert_eq!(rig.count("dropped_bad_offload"), 1);
    rig.ring.dma.write(0x8000, &[0; 12]).unwrap();
    rig.ring.chain(&[(0x8000, 0x8000, false), (0x8000, 0x8000, false), (0x8000, 100, false)]);
    rig.ring.offer(0);
    rig.notify();
    rig.wait("an answer", |rig| rig.ring.used_index() == 2);
    assert_eq!((rig.count("dropped_oversized"), rig.count("sent")), (1, 0));
    rig.ring.chain(&[(0x8000, 11, false)]);
    rig.ring.offer(0);
    rig.notify();
    rig.wait("DEVICE_NEEDS_RESET", |rig| rig.status() & 0x40 != 0);
    assert!(lock(&rig.wire.sent).is_empty());
}

#[test]
fn a_frame_is_spread_over_buffers_or_waits_for_them() {
    let rig = Rig::new(RECEIVE, 1 << VIRTIO_NET_F_MRG_RXBUF);
    rig.room(0, 100);
    rig.wire.arrive(frame(150));
    // The buffer is taken, found too small, and put back.
    rig.pci.pause();
    rig.pci.resume();
    assert_eq!(rig.ring.used_index(), 0);
    rig.room(1, 100);
    rig.notify();
    rig.wait("a frame", |rig| rig.ring.used_index() == 2);
    assert_eq!((rig.ring.used(0), rig.ring.used(1)), ((0, 100), (1, 62)));
    let bytes = [rig.ring.read(0x8000, 100), rig.ring.read(0x9000, 62)].concat();
    assert_eq!(bytes[10..12], [2, 0], "number of buffers");
    assert_eq!(bytes[12..], frame(150).to_vec());
}

#[test]
fn a_frame_too_large_for_a_buffer_is_dropped_without_merging() {
    let rig = Rig::new(RECEIVE, 0);
    rig.room(0, 100);
    rig.room(1, 100);
    rig.wire.arrive(frame(150));
    rig.wire.arrive(frame(60));
    rig.wait("the second frame", |rig| rig.ring.used_index() == 1);
    assert_eq!((rig.count("dropped_no_room"), rig.ring.used(0)), (1, (0, 72)));
}

#[test]
fn buffers_of_nothing_do_no_harm() {
    let rig = Rig::new(RECEIVE, 1 << VIRTIO_NET_F_MRG_RXBUF);
    for index in 0..8 {
        rig.room(index, 0);
    }
    rig.wire.arrive(frame(60));
    rig.pci.pause();
    assert_eq!((rig.ring.used_index(), rig.status()), (0, 15));
}

#[test]
fn a_reset_reaches_the_network() {
    let rig = Rig::new(RECEIVE, 1 << VIRTIO_NET_F_MRG_RXBUF);
    rig.wire.arrive(frame(60));
    rig.write(0x14, &[0]);
    rig.start(RECEIVE, 0);
    rig.wait("the reset", |rig| rig.wire.was_reset.load(Ordering::SeqCst));
}

/// An Ethernet frame with a TCP segment of `payload` bytes over IPv4.
fn segment(payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 54 + payload];
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14] = 0x45;
    bytes[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    bytes[23] = 6;
    bytes[26..34].copy_from_slice(&[10, 0, 2, 2, 10, 0, 2, 15]);
    bytes[38..42].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
    bytes[46] = 0x50;
    bytes[47] = 0x19;
    for (index, byte) in bytes[54..].iter_mut().enumerate() {
        *byte = index as u8;
    }
    bytes
}

/// The sum over the pseudo header and the segment, which is all ones when the checksum is right.
fn sums_up(bytes: &[u8]) -> bool {
    let mut all = bytes[26..34].to_vec();
    all.extend([0, 6]);
    all.extend((bytes.len() as u16 - 34).to_be_bytes());
    all.extend(&bytes[34..]);
    let mut sum = 0_u32;
    for pair in all.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

#[test]
fn segments_are_cut_for_drivers_that_do_not() {
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let cut = Segmentation { kind: SegmentationKind::Tcp4, size: 1000, header: 54 };
    let offload = Offload { checksum, checked: false, segmentation: Some(cut) };
    let large = || Frame { offload, head: segment(2500), ..Frame::default() };
    let mut frames = VecDeque::new();
    software::adapt(large(), 1 << VIRTIO_NET_F_GUEST_CSUM, &mut frames);
    let pieces: Vec<Vec<u8>> = frames.iter().map(Frame::to_vec).collect();
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
    assert_eq!(pieces[2][38..42], (0xffff_ff00_u32.wrapping_add(2000)).to_be_bytes());
    assert_eq!([pieces[0][47], pieces[2][47]], [0x10, 0x19], "FIN and PSH");
    assert_eq!(pieces[1][16..18], 1040_u16.to_be_bytes());
    assert!(pieces.iter().all(|piece| sums_up(piece)));
    let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[54..].to_vec()).collect();
    assert_eq!(payload, segment(2500)[54..]);
    frames.clear();
    let all = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    software::adapt(large(), all, &mut frames);
    assert_eq!(frames, [large()], "a driver that can take it");
}

#[test]
fn segments_without_sense_are_lost() {
    let cut = Segmentation { kind: SegmentationKind::Tcp4, size: 1000, header: 54 };
    for len in [0, 14, 33, 46, 53] {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let offload = Offload { checksum, checked: false, segmentation: Some(cut) };
        let frame = Frame { offload, head: segment(0)[..len].to_vec(), ..Frame::default() };
        let mut frames = VecDeque::new();
        software::adapt(frame.clone(), 0, &mut frames);
        assert!(frames.is_empty(), "{len} bytes");
    }
}
