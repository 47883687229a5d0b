//! fw_cfg: what firmware and test suites ask the machine about (QEMU `docs/specs/fw_cfg`).
//!
//! [`FwCfgItems`] collects the items: those with a fixed key and files, which are found by name in
//! a directory. [`FwCfg`] shows them at sixteen ports: a 16-bit selector, an 8-bit data register
//! that reads the item byte by byte, and the address of a DMA request, whose second half starts the
//! transfer. All items are read-only, all fields of the DMA interface are big-endian.
//!
//! A DMA request is executed at once, in the access that starts it. What a hostile guest asks for
//! is bounded: no transfer is longer than [`MAX_TRANSFER`], and one that leaves RAM sets the error
//! bit.
//!
//! Neighbours: `machine` says what the items are and gives it a view of guest RAM; `boot::acpi`
//! makes the files with the ACPI tables. Saved: the selector, the place in the item, half an
//! address.

mod items;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use device::{Answer, Device, PortIo, Width};

use crate::sync::lock;
pub use items::FwCfgItems;

/// Guest RAM as a device reads and writes it.
pub trait DmaMemory: Send + Sync {
    /// Copies out of guest RAM; false when not all of it is RAM.
    fn read(&self, gpa: u64, to: &mut [u8]) -> bool;

    /// Copies into guest RAM; false when not all of it is RAM, and nothing is written then.
    fn write(&self, gpa: u64, from: &[u8]) -> bool;
}

/// The longest transfer, in bytes: far above the largest item, and short enough that the vCPU which
/// starts it is back soon.
pub const MAX_TRANSFER: u32 = 16 << 20;

/// What the DMA address register reads as: "QEMU CFG".
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Offset of the DMA address register.
const DMA: u16 = 4;
/// Bytes that are copied at once.
const CHUNK: usize = 4096;

/// Bits of a DMA request's control field; the upper half is a key.
mod control {
    pub(super) const ERROR: u32 = 1 << 0;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const SKIP: u32 = 1 << 2;
    pub(super) const SELECT: u32 = 1 << 3;
    pub(super) const WRITE: u32 = 1 << 4;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// Key of the selected item.
    selector: u16,
    /// Bytes of it that were read; beyond its end there are zeros.
    offset: u32,
    /// Upper half of the address of the next request.
    dma_high: u32,
}

/// A request in guest memory.
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

impl Request {
    const LEN: usize = 16;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word =
            |at| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        Self { control: word(0), length: word(4), address }
    }
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    memory: Arc<dyn DmaMemory>,
    state: Mutex<State>,
}

impl FwCfg {
    /// First port and number of ports.
    pub const PORTS: (u16, u16) = (0x510, 12);

    /// A device that shows `items`.
    pub fn new(items: FwCfgItems, memory: Arc<dyn DmaMemory>) -> Self {
        Self { items: items.finish(), memory, state: Mutex::default() }
    }

    fn select(&self, key: u16) {
        let mut state = lock(&self.state);
        (state.selector, state.offset) = (key, 0);
    }

    /// Fills `to` from `offset` of the item; zeros where there is nothing.
    fn copy(&self, key: u16, offset: u32, to: &mut [u8]) {
        let item = self.items.get(&key).map_or(&[][..], Vec::as_slice);
        let rest = item.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(to.len());
        to[..len].copy_from_slice(&rest[..len]);
        to[len..].fill(0);
    }

    fn next_byte(&self) -> u8 {
        let mut state = lock(&self.state);
        let mut byte = [0];
        self.copy(state.selector, state.offset, &mut byte);
        state.offset = state.offset.saturating_add(1);
        byte[0]
    }

    /// Executes the request at `gpa` and says in its control field how it went.
    fn request(&self, gpa: u64) {
        let mut bytes = [0; Request::LEN];
        if !self.memory.read(gpa, &mut bytes) {
            // There is no control field to say it in.
            return;
        }
        let done = self.execute(&Request::parse(&bytes));
        let control = if done { 0 } else { control::ERROR };
        let _: bool = self.memory.write(gpa, &control.to_be_bytes());
    }

    fn execute(&self, request: &Request) -> bool {
        if request.control & control::SELECT != 0 {
            self.select((request.control >> 16) as u16);
        }
        let transfer = request.control & (control::READ | control::SKIP | control::WRITE);
        if transfer == 0 || request.length == 0 {
            return true;
        }
        // Not locked meanwhile: two vCPUs that use the device at once get what they ask for.
        let State { selector, offset, .. } = *lock(&self.state);
        // As in QEMU, reading wins; no item can be written.
        let moved = if transfer & control::READ != 0 {
            self.transfer(selector, offset, request)
        } else {
            transfer & control::WRITE == 0
        };
        if moved {
            lock(&self.state).offset = offset.saturating_add(request.length);
        }
        moved
    }

    fn transfer(&self, key: u16, offset: u32, request: &Request) -> bool {
        if request.length > MAX_TRANSFER {
            return false;
        }
        let mut buffer = [0; CHUNK];
        let mut done = 0;
        while done < request.length {
            let part = &mut buffer[..CHUNK.min((request.length - done) as usize)];
            self.copy(key, offset.saturating_add(done), part);
            let Some(gpa) = request.address.checked_add(done.into()) else { return false };
            if !self.memory.write(gpa, part) {
                return false;
            }
            done += part.len() as u32;
        }
        true
    }

    /// What the DMA address register shows from `at` on.
    fn signature(at: u16, width: Width) -> u32 {
        let bytes = (at..at + width.bytes()).rev();
        bytes.fold(0, |value, index| {
            value << 8 | u32::from(DMA_SIGNATURE.get(usize::from(index)).copied().unwrap_or(0xff))
        })
    }
}

impl PortIo for FwCfg {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        Answer::Done(match (port.wrapping_sub(Self::PORTS.0), width) {
            (0 | 1, Width::Byte) => self.next_byte().into(),
            (at @ DMA..=0xb, _) => Self::signature(at - DMA, width),
            _ => width.mask(),
        })
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        const DMA_LOW: u16 = DMA + 4;
        match (port.wrapping_sub(Self::PORTS.0), width) {
            (0, Width::Word) => self.select(value as u16),
            (DMA, Width::Dword) => lock(&self.state).dma_high = value.swap_bytes(),
            (DMA_LOW, Width::Dword) => {
                let high = std::mem::take(&mut lock(&self.state).dma_high);
                self.request(u64::from(high) << 32 | u64::from(value.swap_bytes()));
            }
            _ => {}
        }
        Answer::Done(())
    }
}

impl Device for FwCfg {
    fn reset(&self) {
        *lock(&self.state) = State::default();
    }
}
