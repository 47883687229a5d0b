use std::sync::{Arc, Mutex};

use device::{Answer, Device, PortIo, Width};

use super::{DmaMemory, FwCfg, FwCfgItems, MAX_TRANSFER};
use crate::hammer::{Random, Subject, access, hammer};
use crate::sync::lock;

/// 64 KiB of guest RAM from 0 on.
struct Ram(Mutex<Vec<u8>>);

impl Ram {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0xee; 1 << 16])))
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        lock(&self.0)[at..at + len].to_vec()
    }
}

fn range(len: usize, gpa: u64, wanted: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(gpa).ok()?;
    let end = start.checked_add(wanted)?;
    (end <= len).then_some(start..end)
}

impl DmaMemory for Ram {
    fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        let ram = lock(&self.0);
        let Some(range) = range(ram.len(), gpa, to.len()) else { return false };
        to.copy_from_slice(&ram[range]);
        true
    }

    fn write(&self, gpa: u64, from: &[u8]) -> bool {
        let mut ram = lock(&self.0);
        let Some(range) = range(ram.len(), gpa, from.len()) else { return false };
        ram[range].copy_from_slice(from);
        true
    }
}

fn long() -> Vec<u8> {
    (0..10_000).map(|i| (i % 251) as u8).collect()
}

fn device(ram: &Arc<Ram>) -> FwCfg {
    let items = FwCfgItems::new(3 << 30, 2)
        .file("etc/b", b"second".to_vec())
        .file("etc/a", long())
        .file("opt/empty", Vec::new());
    FwCfg::new(items, Arc::clone(ram) as _)
}

fn select(device: &FwCfg, key: u16) {
    assert_eq!(device.port_write(0x510, Width::Word, key.into()), Answer::Done(()));
}

fn read(device: &FwCfg, len: usize) -> Vec<u8> {
    (0..len).map(|_| device_byte(device)).collect()
}

fn device_byte(device: &FwCfg) -> u8 {
    match device.port_read(0x511, Width::Byte) {
        Answer::Done(byte) => byte as u8,
        other => panic!("{other:?}"),
    }
}

const REQUEST: u32 = 0x100;
const BUFFER: u64 = 0x1000;

/// Executes a request; returns what its control field says then.
fn dma(device: &FwCfg, ram: &Ram, control: u32, length: u32, address: u64) -> u32 {
    let mut request = control.to_be_bytes().to_vec();
    request.extend(length.to_be_bytes());
    request.extend(address.to_be_bytes());
    assert!(ram.write(REQUEST.into(), &request));
    start(device, REQUEST.into());
    u32::from_be_bytes(ram.bytes(REQUEST as usize, 4).try_into().unwrap())
}

/// Writes the address of a request, which starts it.
fn start(device: &FwCfg, gpa: u64) {
    device.port_write(0x514, Width::Dword, ((gpa >> 32) as u32).swap_bytes());
    device.port_write(0x518, Width::Dword, (gpa as u32).swap_bytes());
}

/// Bytes and key of a file, by the directory.
fn find(device: &FwCfg, name: &str) -> (usize, u16) {
    select(device, 0x19);
    let count = u32::from_be_bytes(read(device, 4).try_into().unwrap());
    for _ in 0..count {
        let entry = read(device, 64);
        if entry[8..].split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            let len = u32::from_be_bytes(entry[..4].try_into().unwrap());
            return (len as usize, u16::from_be_bytes([entry[4], entry[5]]));
        }
    }
    panic!("no {name}")
}

#[test]
fn items_are_read_byte_by_byte() {
    let device = device(&Ram::new());
    for _ in 0..2 {
        select(&device, 0);
        assert_eq!(read(&device, 6), b"QEMU\0\0");
    }
    for (key, value) in [(1, &[3, 0, 0, 0][..]), (3, &[0, 0, 0, 0xc0, 0]), (5, &[2, 0, 0])] {
        select(&device, key);
        assert_eq!(read(&device, value.len()), value);
    }
    // By the other port, and what is no item.
    select(&device, 15);
    assert_eq!(device.port_read(0x510, Width::Byte), Answer::Done(2));
    select(&device, 0xffff);
    assert_eq!(read(&device, 2), [0, 0]);
    assert_eq!(device.port_read(0x510, Width::Word), Answer::Done(0xffff));
}

#[test]
fn files_are_found_by_name() {
    let device = device(&Ram::new());
    assert_eq!(find(&device, "etc/a"), (10_000, 0x20));
    assert_eq!(find(&device, "etc/b"), (6, 0x21));
    assert_eq!(find(&device, "opt/empty"), (0, 0x22));
    select(&device, 0x21);
    assert_eq!(read(&device, 8), b"second\0\0");
    select(&device, 0x20);
    assert_eq!(read(&device, 10_000), long());
}

#[test]
fn dma_selects_reads_and_skips() {
    let ram = Ram::new();
    let device = device(&ram);
    let whole = |at: usize| long()[at..at + 5_000].to_vec();
    assert_eq!(dma(&device, &ram, 0x20 << 16 | 0b1010, 5_000, BUFFER), 0);
    assert_eq!(ram.bytes(BUFFER as usize, 5_001), [whole(0), vec![0xee]].concat());
    assert_eq!(dma(&device, &ram, 0b0100, 100, 0), 0, "skip");
    assert_eq!(dma(&device, &ram, 0b0010, 10, BUFFER), 0);
    assert_eq!(ram.bytes(BUFFER as usize, 10), long()[5_100..5_110]);
    assert_eq!(device_byte(&device), long()[5_110]);
    // Zeros behind the end.
    assert_eq!(dma(&device, &ram, 0x21 << 16 | 0b1010, 8, BUFFER), 0);
    assert_eq!(
        ram.bytes(BUFFER as usize, 9),
        b"second\0\0\x93".map(|b| if b == 0x93 { long()[8 + 5_100] } else { b })
    );
    // To select alone is a request too.
    assert_eq!(dma(&device, &ram, 0x21 << 16 | 0b1000, 0, 0), 0);
    assert_eq!(read(&device, 3), b"sec");
}

#[test]
fn a_bad_request_sets_the_error_bit() {
    let ram = Ram::new();
    let device = device(&ram);
    for (control, length, address) in [
        (0x20 << 16 | 0b1010, 16, 0xfff8),
        (0x20 << 16 | 0b1010, 16, u64::MAX - 4),
        (0x20 << 16 | 0b1010, 8_192, u64::MAX - 4_095),
        (0x20 << 16 | 0b1010, u32::MAX, BUFFER),
        (0x20 << 16 | 0b1010, MAX_TRANSFER + 1, BUFFER),
        (0x20 << 16 | 0b1_1000, 4, BUFFER),
    ] {
        assert_eq!(dma(&device, &ram, control, length, address), 1, "{control:#x} {length:#x}");
    }
    // Where no request can be, nothing happens.
    let before = ram.bytes(0, 1 << 16);
    for gpa in [0xfff1, u64::MAX, 1 << 40] {
        start(&device, gpa);
    }
    assert_eq!(ram.bytes(0, 1 << 16), before);
    // A skip to nowhere ends there.
    assert_eq!(dma(&device, &ram, 0x20 << 16 | 0b1100, u32::MAX, 0), 0);
    assert_eq!(dma(&device, &ram, 0b0100, u32::MAX, 0), 0);
    assert_eq!(device_byte(&device), 0);
}

#[test]
fn the_dma_register_shows_that_it_is_there() {
    let device = device(&Ram::new());
    let read = |port, width| device.port_read(port, width);
    assert_eq!(read(0x514, Width::Dword), Answer::Done(u32::from_le_bytes(*b"QEMU")));
    assert_eq!(read(0x518, Width::Dword), Answer::Done(u32::from_le_bytes(*b" CFG")));
    assert_eq!(read(0x51b, Width::Byte), Answer::Done(b'G'.into()));
    assert_eq!(
        read(0x51a, Width::Dword),
        Answer::Done(0xffff_0000 | u32::from_le_bytes(*b"FG\0\0"))
    );
    assert_eq!(read(0x512, Width::Byte), Answer::Done(0xff));
}

#[test]
fn the_upper_half_of_an_address_counts_once() {
    let ram = Ram::new();
    let device = device(&ram);
    device.port_write(0x514, Width::Dword, 1_u32.swap_bytes());
    device.port_write(0x518, Width::Dword, 0);
    assert_eq!(dma(&device, &ram, 0x21 << 16 | 0b1010, 6, BUFFER), 0);
    device.port_write(0x514, Width::Dword, 1_u32.swap_bytes());
    device.reset();
    device.port_write(0x518, Width::Dword, REQUEST.swap_bytes());
    assert_eq!(ram.bytes(BUFFER as usize, 6), b"second");
}

state::conformance!(saves_and_restores, device(&Ram::new()), |device: &FwCfg| {
    select(device, 0x20);
    read(device, 3);
    device.port_write(0x514, Width::Dword, 0x1234_5678);
});

impl Subject for FwCfg {
    fn step(&self, random: &mut Random) -> u64 {
        let ports: Vec<u16> = (0x50f..0x520).collect();
        access(self, &ports, random)
    }

    fn device(&self) -> &dyn Device {
        self
    }
}

#[test]
fn survives_a_hostile_guest() {
    hammer(0x510, |_| device(&Ram::new()));
}
