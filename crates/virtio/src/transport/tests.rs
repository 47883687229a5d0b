use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use backend::{Disk, DiskDone, DiskOperation, DiskRequest, HostEntropy, MemoryDisk};
use device::Message;
use device::testing::RecordingLine;

use super::*;
use crate::testing::Ring;
use crate::{Block, Entropy};

const LONG: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Inbox(Mutex<Vec<Message>>);

impl MsiSender for Inbox {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

/// A disk device, and a driver that has set up one queue.
struct Rig {
    pci: VirtioPci,
    ring: Ring,
    disk: Arc<MemoryDisk>,
    line: Arc<RecordingLine>,
    inbox: Arc<Inbox>,
}

const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const STATUS: u64 = COMMON + 0x14;

fn disk_device(
    disk: Arc<dyn Disk>,
    dma: &Dma,
    line: &Arc<RecordingLine>,
) -> (VirtioPci, Arc<Inbox>) {
    let inbox = Arc::new(Inbox::default());
    let block = Box::new(Block::new(disk, "disk0"));
    let pci = VirtioPci::new(block, dma.clone(), inbox.clone(), line.clone()).unwrap();
    (pci, inbox)
}

impl Rig {
    /// A device that is reset.
    fn fresh() -> Self {
        let (ring, _) = Ring::new(8);
        let (disk, line) = (Arc::new(MemoryDisk::new(64)), RecordingLine::new());
        let (pci, inbox) = disk_device(Arc::clone(&disk) as _, &ring.dma, &line);
        pci.resume();
        Self { pci, ring, disk, line, inbox }
    }

    /// A device that its driver has started.
    fn started() -> Self {
        let rig = Self::fresh();
        rig.start();
        rig
    }

    fn start(&self) {
        self.pci.config_write(4, &[6, 0]);
        self.write(COMMON + 0x08, &[1, 0, 0, 0]);
        self.write(COMMON + 0x0c, &[1, 0, 0, 0]);
        self.write(STATUS, &[11]);
        self.write(COMMON + 0x18, &[8, 0]);
        self.write(COMMON + 0x1a, &[0, 0]);
        self.write(COMMON + 0x20, &Ring::DESCRIPTORS.to_le_bytes());
        self.write(COMMON + 0x28, &Ring::AVAILABLE.to_le_bytes());
        self.write(COMMON + 0x30, &Ring::USED.to_le_bytes());
        self.write(COMMON + 0x1c, &[1, 0]);
        self.write(STATUS, &[15]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pci.bar_write(4, offset, data);
    }

    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.pci.bar_read(4, offset, &mut data);
        data[0]
    }

    /// Asks for a sector to be written, without telling the device.
    fn offer(&self, sector: u8, content: u8) {
        self.ring
            .dma
            .write(0x8000, &[1, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0])
            .unwrap();
        self.ring.dma.write(0x9000, &[content; 512]).unwrap();
        self.ring.chain(&[(0x8000, 16, false), (0x9000, 512, false), (0xa000, 1, true)]);
        self.ring.offer(0);
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

    fn config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.pci.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }
}

#[test]
fn a_driver_finds_everything_by_capabilities() {
    let rig = Rig::fresh();
    assert_eq!(rig.config(0), 0x1042_1af4);
    assert_eq!(rig.config(8), 0x0100_0001);
    let mut found = Vec::new();
    let mut at = rig.config(0x34) as u16 & 0xff;
    while at != 0 {
        let (head, bar) = (rig.config(at), rig.config(at + 4) & 0xff);
        let kind = if head & 0xff == 9 { head >> 24 } else { 0x100 | head & 0xff };
        found.push((kind, bar, rig.config(at + 8), rig.config(at + 12)));
        at = (head >> 8) as u16 & 0xff;
    }
    let expected = [
        (1, 4, 0, 0x38),
        (3, 4, 0x1000, 1),
        (4, 4, 0x2000, 0x1000),
        (2, 4, 0x3000, 4),
        (5, 0, 0, 0),
    ];
    assert_eq!(found[0].0, 0x111, "MSI-X");
    assert_eq!(found[1..6], expected);
    assert_eq!((found[6].0, found.len()), (0x110, 7), "PCI Express");
    assert_eq!(rig.read(CONFIG), 64, "sectors");
    assert_eq!(rig.read(CONFIG + 0x800), 0xff);
}

#[test]
fn requests_are_executed_and_interrupt_by_line() {
    let rig = Rig::started();
    rig.offer(5, 0x77);
    rig.notify();
    rig.wait("an interrupt", |rig| rig.line.level());
    assert_eq!(rig.disk.content()[5 * 512..6 * 512], [0x77; 512]);
    assert_eq!((rig.ring.used_index(), rig.ring.used(0)), (1, (0, 1)));
    assert_eq!(rig.config(4) >> 16 & 8, 8, "interrupt status");
    rig.pci.config_write(4, &[6, 4]);
    assert!(!rig.line.level(), "INTx disabled");
    rig.pci.config_write(4, &[6, 0]);
    assert!(rig.line.level());
    assert_eq!(rig.read(ISR), 1);
    assert!(!rig.line.level(), "reading acknowledges");
    assert_eq!(rig.read(ISR), 0);
    assert_eq!(rig.pci.requests(), 1);
}

#[test]
fn messages_replace_the_line() {
    let rig = Rig::started();
    rig.pci.bar_write(1, 0, &0xfee0_0000_u64.to_le_bytes());
    rig.pci.bar_write(1, 8, &[0x41, 0, 0, 0, 0, 0, 0, 0]);
    let msix = rig.config(0x34) as u16 & 0xff;
    rig.pci.config_write(msix + 2, &[0, 0x80]);
    rig.offer(1, 1);
    rig.notify();
    rig.wait("a message", |rig| !rig.inbox.0.lock().unwrap().is_empty());
    let expected = Message { address: 0xfee0_0000, data: 0x41 };
    assert_eq!(*rig.inbox.0.lock().unwrap(), [expected]);
    assert_eq!((rig.line.edges(), rig.read(ISR)), (0, 0));
}

#[test]
fn a_device_works_only_while_it_may() {
    let rig = Rig::fresh();
    rig.offer(1, 1);
    rig.notify();
    rig.start();
    rig.wait("the start", |rig| rig.ring.used_index() == 1);
    rig.pci.config_write(4, &[2, 0]);
    rig.offer(2, 2);
    rig.notify();
    rig.pci.pause();
    rig.pci.resume();
    rig.pci.pause();
    assert_eq!(rig.ring.used_index(), 1, "it is no bus master");
    rig.pci.config_write(4, &[6, 0]);
    assert_eq!(rig.ring.used_index(), 1, "it is paused");
    rig.pci.resume();
    rig.wait("the end of the pause", |rig| rig.ring.used_index() == 2);
}

#[test]
fn a_ring_without_sense_stops_the_device_until_a_reset() {
    let rig = Rig::started();
    rig.ring.dma.store_u16(Ring::AVAILABLE + 2, 1000).unwrap();
    rig.notify();
    rig.wait("DEVICE_NEEDS_RESET", |rig| rig.read(STATUS) == 0x4f);
    assert_eq!(rig.read(ISR), 2);
    rig.ring.dma.store_u16(Ring::AVAILABLE + 2, 0).unwrap();
    rig.write(STATUS, &[0]);
    assert_eq!(rig.read(STATUS), 0);
    rig.start();
    rig.offer(1, 1);
    rig.notify();
    rig.wait("a request", |rig| rig.ring.used_index() == 1);
}

/// A disk whose writes wait until they are let go.
#[derive(Default)]
struct SlowDisk {
    entered: AtomicBool,
    go: AtomicBool,
}

impl Disk for SlowDisk {
    fn len(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, _to: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> io::Result<()> {
        self.entered.store(true, Ordering::SeqCst);
        while !self.go.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reset_waits_for_the_request_and_no_vcpu_waits_for_the_reset() {
    let (ring, _) = Ring::new(8);
    let (slow, line) = (Arc::new(SlowDisk::default()), RecordingLine::new());
    let (pci, inbox) = disk_device(Arc::clone(&slow) as _, &ring.dma, &line);
    pci.resume();
    let rig = Rig { pci, ring, disk: Arc::new(MemoryDisk::new(1)), line, inbox };
    rig.start();
    rig.offer(1, 1);
    rig.notify();
    rig.wait("the request", |_| slow.entered.load(Ordering::SeqCst));
    rig.write(STATUS, &[0]);
    rig.write(STATUS, &[1]);
    assert_eq!(rig.read(STATUS), 15, "not yet");
    slow.go.store(true, Ordering::SeqCst);
    rig.wait("the reset", |rig| rig.read(STATUS) == 0);
    assert_eq!(rig.ring.used_index(), 0, "the request is forgotten");
}

/// A disk that keeps requests until they are let go.
#[derive(Default)]
struct HoldingDisk {
    held: Mutex<Vec<(DiskRequest, DiskDone)>>,
}

impl HoldingDisk {
    fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Ends the last request that is held.
    fn end(&self, result: io::Result<()>) {
        let (request, done) = self.held.lock().unwrap().pop().expect("a request");
        done(request, result, false);
    }
}

impl Disk for HoldingDisk {
    fn len(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, _to: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn submit(&self, request: DiskRequest, done: DiskDone) {
        // The driver of these tests has not negotiated flushes: each write ends with one.
        if request.operation == DiskOperation::Flush {
            return done(request, Ok(()), false);
        }
        self.held.lock().unwrap().push((request, done));
    }
}

/// A started device with a disk that holds what it is asked for, and so many requests.
fn held(requests: usize) -> (Rig, Arc<HoldingDisk>) {
    let (ring, _) = Ring::new(8);
    let (disk, line) = (Arc::new(HoldingDisk::default()), RecordingLine::new());
    let (pci, inbox) = disk_device(Arc::clone(&disk) as _, &ring.dma, &line);
    pci.resume();
    let rig = Rig { pci, ring, disk: Arc::new(MemoryDisk::new(1)), line, inbox };
    rig.start();
    (0..requests).for_each(|_| rig.offer(1, 1));
    rig.notify();
    rig.wait("the requests", |_| disk.held() == requests);
    (rig, disk)
}

#[test]
fn many_requests_are_under_way_and_a_reset_waits_for_all() {
    let (rig, disk) = held(3);
    assert_eq!(rig.ring.used_index(), 0);
    disk.end(Ok(()));
    assert_eq!((rig.ring.used_index(), rig.line.level()), (1, true));
    rig.write(STATUS, &[0]);
    disk.end(Ok(()));
    assert_eq!(rig.read(STATUS), 15, "one is still under way");
    disk.end(Err(io::ErrorKind::Other.into()));
    assert_eq!((rig.read(STATUS), rig.ring.used_index()), (0, 1));
}

#[test]
fn a_full_host_puts_requests_off_until_the_device_is_resumed() {
    let (rig, disk) = held(2);
    disk.end(Err(io::ErrorKind::StorageFull.into()));
    rig.offer(1, 1);
    rig.notify();
    rig.wait("the third request", |_| disk.held() == 2);
    disk.end(Ok(()));
    disk.end(Ok(()));
    rig.pci.pause();
    assert_eq!((rig.ring.used_index(), rig.read(STATUS)), (2, 15));
    let section = state::Persist::save(&rig.pci, "0").unwrap();
    rig.pci.resume();
    rig.wait("another try", |_| disk.held() == 1);
    disk.end(Ok(()));
    assert_eq!(rig.ring.used_index(), 3);
    // A device that was saved meanwhile knows of it too.
    let line = RecordingLine::new();
    let (other, _) = disk_device(Arc::clone(&disk) as _, &rig.ring.dma, &line);
    state::Persist::restore(&other, &section).unwrap();
    other.resume();
    rig.wait("a try of the restored device", |_| disk.held() == 1);
    disk.end(Ok(()));
}

#[test]
fn a_driver_with_more_requests_than_its_ring_has_room_for_is_stopped() {
    let (rig, disk) = held(8);
    rig.offer(1, 1);
    rig.notify();
    rig.wait("DEVICE_NEEDS_RESET", |rig| rig.read(STATUS) == 0x4f);
    (0..8).for_each(|_| disk.end(Ok(())));
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let rig = Rig::fresh();
    let mut at = rig.config(0x34) as u16 & 0xff;
    while rig.config(at) >> 24 != 5 {
        at = (rig.config(at) >> 8) as u16 & 0xff;
    }
    let select = |bar: u8, offset: u32, len: u32| {
        rig.pci.config_write(at + 4, &[bar]);
        rig.pci.config_write(at + 8, &offset.to_le_bytes());
        rig.pci.config_write(at + 12, &len.to_le_bytes());
    };
    select(4, 0x14, 1);
    rig.pci.config_write(at + 16, &[3]);
    assert_eq!(rig.read(STATUS), 3);
    let mut status = [0];
    rig.pci.config_read(at + 16, &mut status);
    assert_eq!(status, [3]);
    for (bar, offset, len) in [(4, 0x14, 2), (1, 0, 4), (0, 0, 4), (4, u32::MAX, 1), (4, 0x13, 2)] {
        select(bar, offset, len);
        rig.pci.config_write(at + 16, &[0xff; 4]);
        let mut data = [0; 4];
        rig.pci.config_read(at + 16, &mut data);
    }
    assert_eq!(rig.read(STATUS), 3);
}

#[test]
fn entropy_fills_buffers() {
    let (ring, _) = Ring::new(8);
    let (source, line) = (Arc::new(HostEntropy::open().unwrap()), RecordingLine::new());
    let device = Box::new(Entropy::new(source));
    let inbox = Arc::new(Inbox::default());
    let pci = VirtioPci::new(device, ring.dma.clone(), inbox.clone(), line.clone()).unwrap();
    pci.resume();
    let rig = Rig { pci, ring, disk: Arc::new(MemoryDisk::new(1)), line, inbox };
    assert_eq!(rig.config(0), 0x1044_1af4);
    rig.start();
    rig.ring.chain(&[(0x8000, 64, true), (0x9000, 1 << 16, true)]);
    rig.ring.offer(0);
    rig.notify();
    rig.wait("random bytes", |rig| rig.ring.used_index() == 1);
    assert_eq!(rig.ring.used(0), (0, 4096));
    let bytes = rig.ring.read(0x8000, 64);
    assert!(bytes.iter().any(|byte| *byte != bytes[0]), "{bytes:?}");
}

#[test]
fn a_restored_device_goes_on() {
    let old = Rig::started();
    old.offer(1, 0x11);
    old.notify();
    old.wait("a request", |rig| rig.line.level());
    old.pci.pause();
    let section = state::Persist::save(&old.pci, "0").unwrap();
    let (disk, line) = (Arc::new(MemoryDisk::new(64)), RecordingLine::new());
    let (pci, inbox) = disk_device(Arc::clone(&disk) as _, &old.ring.dma, &line);
    state::Persist::restore(&pci, &section).unwrap();
    assert!(line.level(), "the interrupt still waits");
    let Rig { ring, .. } = old;
    let new = Rig { pci, ring, disk, line, inbox };
    new.offer(2, 0x22);
    new.pci.resume();
    new.wait("a request", |rig| rig.ring.used_index() == 2);
    assert_eq!(new.disk.content()[1024..1536], [0x22; 512]);
}

#[test]
fn another_disk_is_refused() {
    let old = Rig::started();
    let section = state::Persist::save(&old.pci, "00:02.0").unwrap();
    let line = RecordingLine::new();
    let (other, _) = disk_device(Arc::new(MemoryDisk::new(65)), &old.ring.dma, &line);
    let error = state::Persist::restore(&other, &section).unwrap_err().to_string();
    assert!(error.contains("virtio/00:02.0") && error.contains("size"), "{error}");
}

state::conformance!(saves_and_restores, Rig::fresh().pci, |pci: &VirtioPci| {
    pci.config_write(4, &[6, 4]);
    pci.bar_write(1, 0, &[0x5a; 8]);
    pci.bar_write(4, 0x08, &[1, 0, 0, 0]);
    pci.bar_write(4, 0x0c, &[1, 0, 0, 0]);
    pci.bar_write(4, 0x14, &[11]);
    pci.bar_write(4, 0x20, &[0x12; 8]);
    pci.bar_write(4, 0x1c, &[1, 0]);
});
