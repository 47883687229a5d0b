//! What firmware does on a PCI bus before it starts a kernel: it places the BARs, switches their
//! decoding on and writes down the interrupt lines (PCI Firmware 3.3, 3.5).

use crate::root::Root;
use crate::{Address, LpcBridge, command, pirq, register};

const BARS: u16 = 6;
/// BAR: the bits that say what kind it is.
const BAR_KIND: u32 = 0xf;
/// BAR: a port range.
const BAR_PORTS: u32 = 1;
/// BAR: 64 bits.
const BAR_64: u32 = 2 << 1;

/// Where BARs are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// First address, below 4 GiB.
    pub first: u32,
    /// Last address.
    pub last: u32,
}

impl Assignment {
    /// Configures every function of `root`. All BARs go below 4 GiB, where every kernel reaches
    /// them; one that does not fit stays at 0, for the kernel to place.
    pub fn apply(self, root: &Root) {
        let mut next = u64::from(self.first);
        for address in root.addresses() {
            let mut index = 0;
            while index < BARS {
                index += self.place(root, address, register::BAR0 + 4 * index, &mut next);
            }
            let command = read(root, address, register::COMMAND) & 0xffff;
            write(root, address, register::COMMAND, command | u32::from(command::MEMORY), 2);
            let pin = read(root, address, register::INTERRUPT_LINE) >> 8 & 0xff;
            if let Some(pin @ 0..=3) = pin.checked_sub(1) {
                let line = LpcBridge::PIC_IRQS[pirq(address.slot(), pin as u8) % 4 / 2];
                write(root, address, register::INTERRUPT_LINE, line.into(), 1);
            }
        }
    }

    /// Sizes and places the BAR at `register`; returns how many registers it takes.
    fn place(self, root: &Root, address: Address, register: u16, next: &mut u64) -> u16 {
        write(root, address, register, u32::MAX, 4);
        let probed = read(root, address, register);
        write(root, address, register, 0, 4);
        let registers = if probed & BAR_64 != 0 { 2 } else { 1 };
        let mask = probed & !BAR_KIND;
        if mask == 0 || probed & BAR_PORTS != 0 {
            return registers;
        }
        let size = u64::from(!mask) + 1;
        let base = next.next_multiple_of(size);
        if base + size - 1 <= self.last.into() {
            write(root, address, register, base as u32, 4);
            *next = base + size;
        }
        registers
    }
}

fn read(root: &Root, address: Address, register: u16) -> u32 {
    let mut data = [0; 4];
    root.config_read(address, register, &mut data);
    u32::from_le_bytes(data)
}

fn write(root: &Root, address: Address, register: u16, value: u32, len: usize) {
    root.config_write(address, register, &value.to_le_bytes()[..len]);
}
