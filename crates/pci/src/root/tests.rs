use std::sync::Mutex;

use super::*;
use crate::{Assignment, Bar, ConfigSpace, Identity, lock};

/// A function with 4 KiB of memory that answers with its own number.
struct Probe {
    config: Mutex<ConfigSpace>,
    number: u8,
    written: Mutex<Vec<(u8, u64, Vec<u8>)>>,
}

impl Probe {
    fn new(number: u8) -> Arc<Self> {
        let identity = Identity {
            vendor: 0x1234,
            device: number.into(),
            revision: 0,
            class: [0xff, 0, 0],
            subsystem: (0, 0),
        };
        let config = ConfigSpace::new(identity)
            .with_intx()
            .with_bar(0, Bar::Memory32(4096))
            .with_bar(2, Bar::Memory64(1 << 16));
        Arc::new(Self { config: Mutex::new(config), number, written: Mutex::default() })
    }
}

impl Function for Probe {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.config).write(offset, data);
    }

    fn mapped_bars(&self) -> Vec<MappedBar> {
        lock(&self.config).mapped_bars()
    }

    fn bar_read(&self, bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.number << 4 | bar);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        lock(&self.written).push((bar, offset, data.to_vec()));
    }
}

fn bus() -> (Arc<Root>, [Arc<Probe>; 2]) {
    let probes = [Probe::new(1), Probe::new(2)];
    let [first, second] = [1, 2].map(|slot| Address::new(slot, 0));
    let functions =
        vec![(first, Arc::clone(&probes[0]) as _), (second, Arc::clone(&probes[1]) as _)];
    (Arc::new(Root::new(Arc::new(HostBridge::new()), functions)), probes)
}

fn select(root: &Root, value: u32) {
    root.port_write(0xcf8, Width::Dword, value);
}

fn data(root: &Root, port: u16, width: Width) -> u32 {
    match root.port_read(port, width) {
        Answer::Done(value) => value,
        other => panic!("{other:?}"),
    }
}

fn peek(root: &Root, gpa: u64) -> u8 {
    let mut data = [0];
    root.memory_read(gpa, &mut data);
    data[0]
}

fn place(root: &Root, slot: u8, register: u16, value: u32) {
    root.config_write(Address::new(slot, 0), register, &value.to_le_bytes());
}

#[test]
fn the_ports_reach_every_byte() {
    let (root, _) = bus();
    select(&root, 0x8000_0800);
    assert_eq!(data(&root, 0xcf8, Width::Dword), 0x8000_0800);
    assert_eq!(data(&root, 0xcfc, Width::Dword), 0x0001_1234);
    assert_eq!(data(&root, 0xcfd, Width::Byte), 0x12);
    assert_eq!(data(&root, 0xcfe, Width::Word), 1);
    select(&root, 0x8000_083c);
    root.port_write(0xcfc, Width::Byte, 0x5a);
    assert_eq!(data(&root, 0xcfc, Width::Word), 0x015a);
    for absent in [0x0000_0800, 0x8000_1800, 0x8001_0800, 0x8000_0900] {
        select(&root, absent);
        assert_eq!(data(&root, 0xcfc, Width::Dword), 0xffff_ffff, "{absent:#x}");
        root.port_write(0xcfc, Width::Dword, 0);
    }
    select(&root, 0xffff_ffff);
    assert_eq!(data(&root, 0xcf8, Width::Dword), 0x80ff_fffc);
    root.port_write(0xcf8, Width::Word, 0);
    root.port_write(0xcfb, Width::Byte, 1);
    assert_eq!(data(&root, 0xcf8, Width::Dword), 0x80ff_fffc, "only 32 bits at once count");
    assert_eq!(data(&root, 0xcf8, Width::Byte), 0xff);
}

#[test]
fn ecam_reaches_the_same_registers() {
    let (root, _) = bus();
    let mut id = [0; 4];
    root.memory_read(HostBridge::ECAM, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x29c0_8086);
    root.memory_read(HostBridge::ECAM + (2 << 15), &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x0002_1234);
    for nobody in [3 << 15, 1 << 20, 0xfff_fffc, (2 << 15) + 0x100] {
        root.memory_read(HostBridge::ECAM + nobody, &mut id);
        assert_eq!(id, [0xff; 4], "{nobody:#x}");
    }
    place(&root, 0, 0x60, 0xd000_0001);
    root.memory_read(0xd000_0000, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x29c0_8086);
    root.memory_read(HostBridge::ECAM, &mut id);
    assert_eq!(id, [0xff; 4]);
}

#[test]
fn bars_are_reached_where_they_are_and_only_while_decoded() {
    let (root, probes) = bus();
    place(&root, 1, 0x10, 0xc000_0000);
    assert_eq!(peek(&root, 0xc000_0000), 0xff);
    place(&root, 1, 0x04, 2);
    assert_eq!(peek(&root, 0xc000_0fff), 0x10);
    assert_eq!(peek(&root, 0xc000_1000), 0xff);
    place(&root, 1, 0x18, 0xffff_ffff);
    place(&root, 1, 0x1c, 0xffff_ffff);
    assert_eq!(peek(&root, u64::MAX), 0x12, "the end of the address space");
    place(&root, 1, 0x1c, 0x80);
    assert_eq!(peek(&root, 0x80_ffff_0000), 0x12);
    root.memory_write(0x80_ffff_0010, &[1, 2]);
    assert_eq!(*lock(&probes[0].written), [(2, 0x10, vec![1, 2])]);
    let mut across = [0; 8];
    root.memory_read(0xc000_0ffc, &mut across);
    assert_eq!(across, [0xff; 8], "an access that leaves a BAR reaches nobody");
}

#[test]
fn bars_over_each_other_are_harmless() {
    let (root, _) = bus();
    for slot in [1, 2] {
        place(&root, slot, 0x10, HostBridge::ECAM as u32);
        place(&root, slot, 0x18, 0xd000_0000);
        place(&root, slot, 0x04, 2);
    }
    assert_eq!(peek(&root, HostBridge::ECAM), 0x86, "ECAM comes first");
    assert_eq!(peek(&root, 0xd000_0000), 0x12, "then the lowest address");
    place(&root, 1, 0x04, 0);
    assert_eq!(peek(&root, 0xd000_0000), 0x22);
}

#[test]
fn firmware_places_every_bar() {
    let (root, probes) = bus();
    Assignment { first: 0xc000_0000, last: 0xfebf_ffff }.apply(&root);
    let mapped: Vec<_> = probes.iter().flat_map(|p| p.mapped_bars()).collect();
    let bases: Vec<_> = mapped.iter().map(|bar| bar.base).collect();
    assert_eq!(bases, [0xc000_0000, 0xc001_0000, 0xc002_0000, 0xc003_0000]);
    let lines = probes.each_ref().map(|p| lock(&p.config).byte(0x3c));
    assert_eq!(lines, [10, 11]);
    assert_eq!(peek(&root, 0xc003_ffff), 0x22);
    root.reset();
    Assignment { first: 0xc000_0000, last: 0xc000_0fff }.apply(&root);
    assert_eq!(probes[1].mapped_bars()[0].base, 0, "no room is left to the kernel");
}

#[test]
fn a_restored_bus_finds_its_functions() {
    let (root, probes) = bus();
    lock(&probes[0].config).write(4, &[2]);
    lock(&probes[0].config).write(0x10, &0xc000_0000_u32.to_le_bytes());
    assert_eq!(peek(&root, 0xc000_0000), 0xff);
    root.restore(&root.save("0").unwrap()).unwrap();
    assert_eq!(peek(&root, 0xc000_0000), 0x10);
}

state::conformance!(
    saves_and_restores,
    Root::new(Arc::new(HostBridge::new()), Vec::new()),
    |root: &Root| {
        root.port_write(0xcf8, Width::Dword, 0x8000_1234);
    }
);
