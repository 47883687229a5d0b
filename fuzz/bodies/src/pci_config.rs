//! A hostile guest on the PCI bus: configuration space by ports and by ECAM, BARs anywhere, and the
//! registers behind them.

use std::sync::Arc;

use backend::{HostEntropy, MemoryDisk};
use device::{Device, Message, MsiSender, NoLine, PortIo, Width};
use memory::GuestRam;
use pci::{Address, Assignment, Function, HostBridge, LpcBridge, Root};
use virtio::{Block, Dma, Entropy, VirtioDevice, VirtioPci};

use crate::Input;

/// Accesses in one run.
const ACCESSES: usize = 96;
/// What the host bridge says that it is.
const HOST_BRIDGE: u32 = 0x29c0_8086;

struct Nowhere;

impl MsiSender for Nowhere {
    fn send(&self, _message: Message) {}
}

/// Makes accesses that the input chooses.
///
/// # Panics
/// When a function panics, forgets who it is, or is restored to something else than it was.
pub fn pci_config(data: &[u8]) {
    let mut input = Input::new(data);
    let (root, devices) = bus();
    if input.byte() & 1 != 0 {
        Assignment { first: 0xc000_0000, last: 0xfebf_ffff }.apply(&root);
    }
    for _ in 0..ACCESSES {
        if input.is_empty() {
            break;
        }
        access(&root, &mut input);
    }
    is_in_order(&root, &devices);
    devices.iter().for_each(|device| device.reset());
    root.reset();
    is_in_order(&root, &devices);
}

/// The bus of a machine with one disk; its devices never work on their own.
fn bus() -> (Root, Vec<Arc<dyn Device>>) {
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 16)]).expect("a small RAM"));
    let dma = Dma::new(ram, Arc::new(|| ()));
    let virtio = |device: Box<dyn VirtioDevice>| {
        let (messages, line) = (Arc::new(Nowhere), Arc::new(NoLine));
        Arc::new(VirtioPci::new(device, dma.clone(), messages, line).expect("a thread"))
    };
    let host = Arc::new(HostBridge::new());
    let io_apic = std::array::from_fn(|_| Arc::new(NoLine) as _);
    let lpc = Arc::new(LpcBridge::new(0x600, io_apic, vec![(10, Arc::new(NoLine) as _)]));
    let entropy = Arc::new(HostEntropy::open().expect("a host with random bytes"));
    let entropy = virtio(Box::new(Entropy::new(entropy)));
    let disk = virtio(Box::new(Block::new(Arc::new(MemoryDisk::new(16)), "disk0")));
    let functions: Vec<(Address, Arc<dyn Function>)> = vec![
        (Address::new(1, 0), Arc::clone(&entropy) as _),
        (Address::new(2, 0), Arc::clone(&disk) as _),
        (Address::new(31, 0), Arc::clone(&lpc) as _),
    ];
    let devices: Vec<Arc<dyn Device>> = vec![Arc::clone(&host) as _, lpc, entropy, disk];
    (Root::new(host, functions), devices)
}

fn access(root: &Root, input: &mut Input<'_>) {
    let kind = input.byte();
    let write = kind & 0x80 != 0;
    match kind % 4 {
        0 => {
            let port = 0xcf8 + u16::from(input.byte() % 8);
            let width = input.pick(&[Width::Dword, Width::Word, Width::Byte]);
            if write {
                root.port_write(port, width, input.word() as u32);
            } else {
                root.port_read(port, width);
            }
        }
        // Registers of functions that exist, where it is to be decided what is decoded.
        1 | 2 => {
            let address = Address::new(input.pick(&[0, 1, 2, 31]), 0);
            let register = u16::from(input.byte());
            let mut data = input.word().to_le_bytes();
            let part = &mut data[..input.pick(&[4, 2, 1, 8])];
            if write {
                root.config_write(address, register, part);
            } else {
                root.config_read(address, register, part);
            }
        }
        _ => {
            let base = input.pick(&[0xb000_0000, 0xc000_0000, 0, 1 << 40, u64::MAX - 0xffff]);
            let gpa = base + u64::from(input.short());
            let mut data = input.word().to_le_bytes();
            let part = &mut data[..input.pick(&[4, 2, 1, 8])];
            if write {
                root.memory_write(gpa, part);
            } else {
                root.memory_read(gpa, part);
            }
        }
    }
}

/// The bus finds its host bridge, and everything is saved and restored to the same.
fn is_in_order(root: &Root, devices: &[Arc<dyn Device>]) {
    let mut id = [0; 4];
    root.config_read(Address::new(0, 0), 0, &mut id);
    assert_eq!(u32::from_le_bytes(id), HOST_BRIDGE, "the host bridge is another");
    let all = devices.iter().map(|device| &**device).chain([root as &dyn Device]);
    for device in all {
        let saved = device.save("0").expect("save");
        device.restore(&saved).expect("its own state");
        assert_eq!(device.save("0").expect("save"), saved, "restored to something else");
    }
}
