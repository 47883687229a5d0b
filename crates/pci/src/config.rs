//! Configuration space of a function with a type 0 header (PCI Local Bus 3.0, chapter 6).
//!
//! A [`ConfigSpace`] is 256 bytes, of which software may change those bits that the function has
//! declared writable. Sizing of BARs needs nothing more: the bits below a BAR's size are not
//! writable. Extended configuration space is empty where a function has it
//! ([`ConfigSpace::add_express_endpoint`]); where it has not, its addresses read as all-ones.

use std::ops::Range;

use crate::{command, register};

/// Bytes of a configuration space.
const SIZE: usize = 256;
/// The same with extended configuration space.
const EXTENDED_SIZE: usize = 4096;
/// Where capabilities begin, behind the header.
const FIRST_CAPABILITY: u8 = 0x40;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// BAR: 64 bits.
const BAR_64: u32 = 2 << 1;
/// BAR: address bits of a memory BAR.
const BAR_ADDRESS: u32 = !0xf;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor id and subsystem id.
    pub subsystem: (u16, u16),
}

/// A memory BAR: not prefetchable, at any place in 64 bits or in 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// 32-bit, with its size in bytes: a power of two from 4096 to 2 GiB.
    Memory32(u32),
    /// 64-bit, with its size in bytes: a power of two from 4096 to 2 GiB. Takes two registers.
    Memory64(u32),
}

impl Bar {
    const fn size(self) -> u32 {
        match self {
            Self::Memory32(size) | Self::Memory64(size) => size,
        }
    }
}

/// A BAR that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedBar {
    /// Index of its (first) register, 0 to 5.
    pub bar: u8,
    /// First guest-physical address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// Configuration space of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    power_on: [u8; SIZE],
    bars: [Option<Bar>; 6],
    /// Where the next capability goes, and the offset of the pointer to it.
    next_capability: u8,
    last_link: usize,
    /// There is extended configuration space, with the PCI Express capability that this is the
    /// place of, and the link to it.
    express: Option<(Range<usize>, usize)>,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            power_on: [0; SIZE],
            bars: [None; 6],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
            express: None,
        };
        space.define(0, &identity.vendor.to_le_bytes());
        space.define(2, &identity.device.to_le_bytes());
        space.define(REVISION, &[identity.revision]);
        let [base, sub, interface] = identity.class;
        space.define(CLASS, &[interface, sub, base]);
        space.define(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.define(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        let commands = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        space.allow(register::COMMAND.into(), &commands.to_le_bytes());
        space
    }

    /// With interrupt pin INTA# and an interrupt line register.
    #[must_use]
    pub fn with_intx(mut self) -> Self {
        self.define(register::INTERRUPT_PIN.into(), &[1]);
        self.allow(register::INTERRUPT_LINE.into(), &[0xff]);
        self
    }

    /// With `bar` at register `index`.
    ///
    /// # Panics
    /// When the registers are taken or the size cannot be: both are constants of a device.
    #[must_use]
    pub fn with_bar(mut self, index: u8, bar: Bar) -> Self {
        let size = bar.size();
        assert!(size.is_power_of_two() && size >= 4096, "a BAR of {size} bytes");
        let at = usize::from(register::BAR0) + 4 * usize::from(index);
        let slot = &mut self.bars[usize::from(index)];
        assert!(slot.replace(bar).is_none(), "BAR {index} is taken");
        self.allow(at, &(!(size - 1) & BAR_ADDRESS).to_le_bytes());
        if matches!(bar, Bar::Memory64(_)) {
            assert!(index < 5 && self.bars[usize::from(index) + 1].is_none(), "no upper half");
            self.define(at, &BAR_64.to_le_bytes());
            self.allow(at + 4, &[0xff; 4]);
        }
        self
    }

    /// Appends a capability: its id, what follows the link, and which bits of that are writable
    /// (missing ones are not). Returns its offset.
    ///
    /// # Panics
    /// When there is no room: the capabilities are constants of a device.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.next_capability;
        let start = usize::from(at);
        let end = start + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len(), "no room for capability {id:#x}");
        self.define(start, &[id, 0]);
        self.define(start + 2, body);
        self.allow(start + 2, writable);
        self.define(self.last_link, &[at]);
        self.define(register::STATUS.into(), &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = start + 1;
        // Beyond the last there is only what `end` may be, 256, which no further one fits behind.
        self.next_capability = u8::try_from(end.next_multiple_of(4)).unwrap_or(u8::MAX);
        at
    }

    /// Sets bytes, also for after a reset; for what is in no capability.
    ///
    /// # Panics
    /// When they are outside the space.
    pub fn define(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.power_on[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Declares bits as writable.
    ///
    /// # Panics
    /// When they are outside the space.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Adds extended configuration space for the PCI Express capability at `place`, the last one
    /// so far.
    pub(crate) fn extend(&mut self, place: Range<usize>, link: usize) {
        self.express = Some((place, link));
    }

    /// Where the next capability will be linked from.
    pub(crate) fn last_link(&self) -> usize {
        self.last_link
    }

    /// Reads; beyond the space all-ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = match self.bytes.get(at) {
                Some(byte) => *byte,
                // A header of zeros: there is no extended capability (PCI Express Base 4.0, 7.6.1).
                None if self.express.is_some() && at < EXTENDED_SIZE => 0,
                None => 0xff,
            };
        }
    }

    /// Writes the writable bits.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// One byte; 0 outside the space.
    pub fn byte(&self, at: u8) -> u8 {
        self.bytes[usize::from(at)]
    }

    /// 16 bits at `at`.
    pub fn word(&self, at: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(at.into(), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// 32 bits at `at`.
    pub fn dword(&self, at: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(at.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.word(register::COMMAND as u8)
    }

    /// The BARs that are decoded now: none while memory decoding is off.
    pub fn mapped_bars(&self) -> Vec<MappedBar> {
        if self.command() & command::MEMORY == 0 {
            return Vec::new();
        }
        let bars = (0_u8..).zip(self.bars);
        bars.filter_map(|(index, bar)| {
            let bar = bar?;
            let at = register::BAR0 as u8 + 4 * index;
            let low = u64::from(self.dword(at) & BAR_ADDRESS);
            let high = match bar {
                Bar::Memory32(_) => 0,
                Bar::Memory64(_) => u64::from(self.dword(at + 4)),
            };
            Some(MappedBar { bar: index, base: high << 32 | low, len: bar.size().into() })
        })
        .collect()
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.power_on;
    }

    /// The same function as it was before it had the PCI Express capability, if it has it and it is
    /// the last one.
    fn without_express(&self) -> Option<Self> {
        let (place, link) = self.express.clone()?;
        let mut older = Self { express: None, ..self.clone() };
        older.power_on[place.clone()].fill(0);
        older.writable[place].fill(0);
        older.power_on[link] = 0;
        Some(older)
    }

    /// All bytes, to be saved.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Replaces what is writable by what was saved; whether the rest is the same, as it must be.
    /// Nothing changes when it is not. A function that was saved when there was no PCI Express yet
    /// stays without: a guest's hardware does not change.
    #[must_use]
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        let Ok(saved) = <&[u8; SIZE]>::try_from(saved) else { return false };
        let fixed = |at: usize, byte: u8| byte & !self.writable[at];
        let same = (0..SIZE).all(|at| fixed(at, saved[at]) == fixed(at, self.power_on[at]));
        if same {
            self.bytes = *saved;
            return true;
        }
        let Some(mut older) = self.without_express() else { return false };
        let restored = older.restore(&saved[..]);
        if restored {
            *self = older;
        }
        restored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 2, 3],
            subsystem: (0x1af4, 0x1100),
        };
        ConfigSpace::new(identity)
            .with_intx()
            .with_bar(1, Bar::Memory32(4096))
            .with_bar(4, Bar::Memory64(1 << 14))
    }

    #[test]
    fn a_function_is_identified() {
        let space = space();
        assert_eq!(space.dword(0), 0x1042_1af4);
        assert_eq!(space.dword(8), 0x0102_0301);
        assert_eq!(space.dword(0x2c), 0x1100_1af4);
        assert_eq!(space.word(0x3c), 0x0100);
        let mut beyond = [0; 4];
        space.read(0xfe, &mut beyond);
        assert_eq!(beyond, [0, 0, 0xff, 0xff]);
        space.read(0x1000, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
    }

    #[test]
    fn bars_are_sized_and_moved() {
        let mut space = space();
        for at in [0x10_u8, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            space.write(at.into(), &[0xff; 4]);
        }
        let masks = [0x10_u8, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| space.dword(at));
        assert_eq!(masks, [0, 0xffff_f000, 0, 0, 0xffff_c004, 0xffff_ffff, 0]);
        assert!(space.mapped_bars().is_empty(), "decoding is off");
        space.write(0x14, &0xc000_1234_u32.to_le_bytes());
        space.write(0x20, &0x1234_5678_u32.to_le_bytes());
        space.write(0x24, &0x9a_u32.to_le_bytes());
        space.write(4, &[0xff, 0xff]);
        assert_eq!(space.command(), 0x0406);
        let expected = [
            MappedBar { bar: 1, base: 0xc000_1000, len: 4096 },
            MappedBar { bar: 4, base: 0x9a_1234_4000, len: 1 << 14 },
        ];
        assert_eq!(space.mapped_bars(), expected);
        space.reset();
        assert_eq!(space.dword(0x20), 4);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        let first = space.add_capability(9, &[16, 1, 0xaa], &[0, 0, 0x0f]);
        let second = space.add_capability(0x11, &[1, 2], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.byte(0x34), first);
        assert_eq!(space.byte(first + 1), second);
        assert_eq!(space.byte(second + 1), 0);
        assert_eq!(space.word(6) & 0x10, 0x10);
        space.write(0x40, &[0xff; 12]);
        assert_eq!(space.dword(0x40), 0x0110_4809);
        assert_eq!(space.byte(0x44), 0xaf);
        assert_eq!(space.dword(0x48), 0x0201_0011);
    }

    #[test]
    fn only_writable_bits_are_restored() {
        let mut old = space();
        old.write(0x20, &[0xff; 8]);
        let mut new = space();
        assert!(new.restore(&old.save()));
        assert_eq!(new, old);
        let mut forged = old.save();
        forged[0] ^= 1;
        assert!(!new.restore(&forged));
        assert!(!new.restore(&forged[1..]));
        assert_eq!(new, old);
    }
}
