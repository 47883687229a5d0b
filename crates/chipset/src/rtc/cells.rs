//! The 128 bytes of CMOS memory.

use std::ops::{Index, IndexMut};

pub(super) const SECONDS: u8 = 0x00;
pub(super) const ALARM_SECONDS: u8 = 0x01;
pub(super) const MINUTES: u8 = 0x02;
pub(super) const ALARM_MINUTES: u8 = 0x03;
pub(super) const HOURS: u8 = 0x04;
pub(super) const ALARM_HOURS: u8 = 0x05;
pub(super) const DAY_OF_WEEK: u8 = 0x06;
pub(super) const DAY: u8 = 0x07;
pub(super) const MONTH: u8 = 0x08;
pub(super) const YEAR: u8 = 0x09;
pub(super) const REGISTER_A: u8 = 0x0a;
pub(super) const REGISTER_B: u8 = 0x0b;
pub(super) const REGISTER_C: u8 = 0x0c;
pub(super) const REGISTER_D: u8 = 0x0d;
pub(super) const CENTURY: u8 = 0x32;

/// Cells that the clock counts.
pub(super) const TIME_CELLS: [u8; 8] =
    [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY];

const SIZE: usize = 128;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Conventional memory below the video memory, in KiB.
const CONVENTIONAL: u16 = 640;

/// The size of guest memory as CMOS memory tells it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySize {
    /// From 0 to the hole below 4 GiB.
    pub below_4g: u64,
    /// From 4 GiB on.
    pub above_4g: u64,
}

/// CMOS memory, addressed by the low 7 bits of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cells([u8; SIZE]);

impl Cells {
    /// As the battery kept it: 32.768 kHz and 1,024 Hz selected, 24 hours, BCD, time valid, and
    /// the memory sizes where PC firmware keeps them.
    pub(super) fn new(memory: MemorySize) -> Self {
        let mut cells = Self([0; SIZE]);
        cells[REGISTER_A] = 0x26;
        cells[REGISTER_B] = 0x02;
        cells[REGISTER_D] = 0x80;
        let above_1m = capped(memory.below_4g.saturating_sub(MIB) / KIB);
        let above_16m = capped(memory.below_4g.saturating_sub(16 * MIB) / (64 * KIB));
        for (at, value) in
            [(0x15, CONVENTIONAL), (0x17, above_1m), (0x30, above_1m), (0x34, above_16m)]
        {
            [cells[at], cells[at + 1]] = value.to_le_bytes();
        }
        let above_4g = (memory.above_4g / (64 * KIB)).min(0xff_ffff) as u32;
        [cells[0x5b], cells[0x5c], cells[0x5d], _] = above_4g.to_le_bytes();
        cells
    }

    pub(super) fn from_bytes(bytes: [u8; SIZE]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; SIZE] {
        &self.0
    }
}

fn capped(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Index<u8> for Cells {
    type Output = u8;

    fn index(&self, index: u8) -> &u8 {
        &self.0[usize::from(index) % SIZE]
    }
}

impl IndexMut<u8> for Cells {
    fn index_mut(&mut self, index: u8) -> &mut u8 {
        &mut self.0[usize::from(index) % SIZE]
    }
}
