//! The x86 page walk (SDM vol. 3A chapter 4), shared by engines, debugger and hypercalls.
//!
//! [`walk`] translates a linear address through the tables that [`Config`] describes, checks the
//! access, and sets accessed and dirty bits by compare-and-exchange. All paging modes are one
//! table of [`LevelShape`]s. There is no cache here: engines keep their own TLBs.
//!
//! Neighbours: reads `memory`; `interpreter` and `translator` fill TLBs from [`Translation`].

#![forbid(unsafe_code)]

use memory::{Gpa, GuestRam, RamOffset};
use x86::exception::pf;
use x86::paging::{ACCESSED, DIRTY, GLOBAL, LARGE, NX, PRESENT, USER, WRITE};

/// Paging mode (SDM vol. 3A 4.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// No paging: linear is physical.
    #[default]
    Off,
    /// Two levels of 32-bit entries.
    Legacy,
    /// Three levels of 64-bit entries; the first is in the PDPTE registers.
    Pae,
    /// Four levels of 64-bit entries.
    FourLevel,
}

/// What decides a translation besides the tables: bits of CR0, CR3, CR4, EFER and RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Paging mode.
    pub mode: Mode,
    /// CR3 without its PCID: address of the first table.
    pub root: u64,
    /// The four PDPTE registers, for [`Mode::Pae`].
    pub pdptr: [u64; 4],
    /// CR0.WP.
    pub wp: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// CR4.PSE, for [`Mode::Legacy`].
    pub pse: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// Whether 1 GiB pages exist.
    pub gigabyte_pages: bool,
    /// Bits of a physical address, 36 to 52.
    pub physical_bits: u32,
}

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write, or read with intent to write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// An access to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Kind.
    pub kind: Kind,
    /// User-mode access: CPL 3 and not an implicit supervisor access.
    pub user: bool,
    /// Supervisor access that SMAP does not stop: explicit, with RFLAGS.AC set.
    pub smap_override: bool,
}

/// A successful translation, with what a TLB needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Size of the page: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub page_size: u64,
    /// All levels allow writing.
    pub writable: bool,
    /// All levels allow user access.
    pub user: bool,
    /// Some level forbids execution.
    pub no_execute: bool,
    /// The page is global and CR4.PGE is set.
    pub global: bool,
    /// The dirty bit of the mapping entry is set: a write needs no further walk.
    pub dirty: bool,
    /// The accessed bits of all entries are set: an access needs no further walk.
    pub accessed: bool,
}

impl Translation {
    const fn identity(gpa: u64) -> Self {
        Self {
            gpa,
            page_size: 4096,
            writable: true,
            user: true,
            no_execute: false,
            global: false,
            dirty: true,
            accessed: true,
        }
    }

    /// Whether `access` is allowed by the rights of the page (SDM vol. 3A 4.6.1).
    pub fn allows(&self, config: &Config, access: Access) -> bool {
        match access.kind {
            Kind::Fetch if access.user => self.user && !self.no_execute,
            Kind::Fetch => !self.no_execute && (!self.user || !config.smep),
            Kind::Read | Kind::Write if access.user => {
                self.user && (access.kind == Kind::Read || self.writable)
            }
            Kind::Read | Kind::Write => {
                let stopped_by_smap = self.user && config.smap && !access.smap_override;
                let stopped_by_wp = access.kind == Kind::Write && !self.writable && config.wp;
                !stopped_by_smap && !stopped_by_wp
            }
        }
    }
}

/// A page fault: the error code; the address is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// Bits as in [`x86::exception::pf`].
    pub code: u32,
}

/// One level of a paging mode.
struct LevelShape {
    /// Lowest linear-address bit of the index.
    shift: u32,
    /// Bits of the index.
    bits: u32,
    /// Whether an entry may map a page at this level.
    may_map: bool,
}

const FOUR_LEVEL: &[LevelShape] = &[
    LevelShape { shift: 39, bits: 9, may_map: false },
    LevelShape { shift: 30, bits: 9, may_map: true },
    LevelShape { shift: 21, bits: 9, may_map: true },
    LevelShape { shift: 12, bits: 9, may_map: true },
];
const PAE: &[LevelShape] = &[
    LevelShape { shift: 21, bits: 9, may_map: true },
    LevelShape { shift: 12, bits: 9, may_map: true },
];
const LEGACY: &[LevelShape] = &[
    LevelShape { shift: 22, bits: 10, may_map: true },
    LevelShape { shift: 12, bits: 10, may_map: true },
];

/// The entries that a walk went through, to set their accessed and dirty bits afterwards.
struct Trail {
    entries: [(RamOffset, u64); 4],
    len: usize,
}

/// Translates `linear` and checks `access`. On success the accessed bits of all entries and, for a
/// write, the dirty bit of the last one are set.
///
/// A table outside guest RAM reads as zeros (not present); on hardware it would read all-ones from
/// the bus, which is a reserved-bit fault: nothing depends on it.
///
/// # Errors
/// [`PageFault`] with the architectural error code; no accessed or dirty bit has changed.
pub fn walk(
    ram: &GuestRam,
    config: &Config,
    linear: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    let levels = match config.mode {
        Mode::Off => return Ok(Translation::identity(linear)),
        Mode::FourLevel => FOUR_LEVEL,
        Mode::Pae => PAE,
        Mode::Legacy => LEGACY,
    };
    let linear = if config.mode == Mode::FourLevel { linear } else { linear & 0xffff_ffff };
    // An entry changed by another CPU between the check and the update of its accessed bit starts
    // the walk anew; the bound only guards against a guest that changes entries for ever.
    for _ in 0..64 {
        let mut trail = Trail { entries: [(RamOffset(0), 0); 4], len: 0 };
        let found = lookup(ram, config, levels, linear, access, &mut trail)?;
        if !found.allows(config, access) {
            return Err(fault(config, access, pf::PRESENT));
        }
        if trail.mark(ram, config.mode, access.kind == Kind::Write) {
            let dirty = found.dirty || access.kind == Kind::Write;
            return Ok(Translation { dirty, accessed: true, ..found });
        }
    }
    Err(fault(config, access, 0))
}

/// Translates `linear` without checking rights and without changing any bit: for debuggers.
pub fn probe(ram: &GuestRam, config: &Config, linear: u64) -> Option<Translation> {
    let access = Access { kind: Kind::Read, user: false, smap_override: true };
    let levels = match config.mode {
        Mode::Off => return Some(Translation::identity(linear)),
        Mode::FourLevel => FOUR_LEVEL,
        Mode::Pae => PAE,
        Mode::Legacy => LEGACY,
    };
    let mut trail = Trail { entries: [(RamOffset(0), 0); 4], len: 0 };
    lookup(ram, config, levels, linear, access, &mut trail).ok()
}

fn lookup(
    ram: &GuestRam,
    config: &Config,
    levels: &[LevelShape],
    linear: u64,
    access: Access,
    trail: &mut Trail,
) -> Result<Translation, PageFault> {
    let address_mask = ((1_u64 << config.physical_bits) - 1) & !0xfff;
    let mut table = config.root & address_mask;
    if config.mode == Mode::Pae {
        let entry = config.pdptr[(linear >> 30 & 3) as usize];
        if entry & PRESENT == 0 {
            return Err(fault(config, access, 0));
        }
        table = entry & address_mask;
    }
    let (mut writable, mut user, mut no_execute, mut accessed) = (true, true, false, true);
    for level in levels {
        let index = linear >> level.shift & ((1 << level.bits) - 1);
        let entry = read_entry(ram, config.mode, table, index, trail);
        if entry & PRESENT == 0 {
            return Err(fault(config, access, 0));
        }
        let maps = level.shift == 12 || is_large(config, level, entry);
        if entry & reserved_bits(config, level, maps) != 0 {
            return Err(fault(config, access, pf::PRESENT | pf::RESERVED));
        }
        writable &= entry & WRITE != 0;
        user &= entry & USER != 0;
        no_execute |= config.nxe && entry & NX != 0;
        accessed &= entry & ACCESSED != 0;
        if maps {
            let page_size = 1_u64 << level.shift;
            return Ok(Translation {
                gpa: frame(config, level, entry, address_mask) | linear & (page_size - 1),
                page_size,
                writable,
                user,
                no_execute,
                global: config.pge && entry & GLOBAL != 0,
                dirty: entry & DIRTY != 0,
                accessed,
            });
        }
        table = entry & address_mask;
    }
    unreachable!("the last level always maps")
}

fn read_entry(ram: &GuestRam, mode: Mode, table: u64, index: u64, trail: &mut Trail) -> u64 {
    let size = if mode == Mode::Legacy { 4 } else { 8 };
    let Some(at) = ram.translate(Gpa(table + index * size), size) else { return 0 };
    let entry = if mode == Mode::Legacy { u64::from(ram.load::<u32>(at)) } else { ram.load(at) };
    trail.entries[trail.len] = (at, entry);
    trail.len += 1;
    entry
}

fn is_large(config: &Config, level: &LevelShape, entry: u64) -> bool {
    level.may_map && entry & LARGE != 0 && (config.mode != Mode::Legacy || config.pse)
}

/// Bits of an entry that must be zero (SDM vol. 3A table 4-14 and its neighbours).
fn reserved_bits(config: &Config, level: &LevelShape, maps: bool) -> u64 {
    if config.mode == Mode::Legacy {
        // A 4 MiB entry holds address bits 39:32 in 20:13; bit 21 is reserved.
        let large = maps && level.shift == 22;
        return if large { 1 << 21 | pse36_reserved(config.physical_bits) } else { 0 };
    }
    let high_end = if config.mode == Mode::Pae { 63 } else { 52 };
    let mut reserved = ((1_u64 << high_end) - 1) & !((1 << config.physical_bits) - 1);
    if !config.nxe {
        reserved |= NX;
    }
    if maps && level.shift > 12 {
        // The frame is aligned to the page; bit 12 is PAT.
        reserved |= ((1_u64 << level.shift) - 1) & !0x1fff;
    }
    let page_size_bit_exists = level.may_map && (level.shift != 30 || config.gigabyte_pages);
    if !page_size_bit_exists {
        reserved |= LARGE;
    }
    reserved
}

/// Bits 20:13 that lie above the physical address width in a 4 MiB entry.
fn pse36_reserved(physical_bits: u32) -> u64 {
    let usable = physical_bits.clamp(32, 40) - 32;
    (0xff_u64 << usable & 0xff) << 13
}

fn frame(config: &Config, level: &LevelShape, entry: u64, address_mask: u64) -> u64 {
    if config.mode == Mode::Legacy && level.shift == 22 {
        return entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
    }
    entry & address_mask & !((1 << level.shift) - 1)
}

fn fault(config: &Config, access: Access, cause: u32) -> PageFault {
    let mut code = cause;
    if access.kind == Kind::Write {
        code |= pf::WRITE;
    }
    if access.user {
        code |= pf::USER;
    }
    // The fetch bit is reported only where fetches can be forbidden (SDM vol. 3A 4.7).
    if access.kind == Kind::Fetch && (config.smep || config.nxe && config.mode != Mode::Legacy) {
        code |= pf::FETCH;
    }
    PageFault { code }
}

impl Trail {
    /// Sets accessed bits, and dirty in the last entry for a write. False when an entry was
    /// changed by somebody else in between.
    fn mark(&self, ram: &GuestRam, mode: Mode, write: bool) -> bool {
        for (index, &(at, old)) in self.entries[..self.len].iter().enumerate() {
            let last = index + 1 == self.len;
            let new = old | ACCESSED | if last && write { DIRTY } else { 0 };
            if new == old {
                continue;
            }
            ram.prepare_write(at);
            let swapped = if mode == Mode::Legacy {
                ram.compare_exchange(at, old as u32, new as u32).is_ok()
            } else {
                ram.compare_exchange(at, old, new).is_ok()
            };
            ram.mark_dirty(at);
            if !swapped {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access { kind: Kind::Read, user: false, smap_override: false };
    const WRITE_ACCESS: Access = Access { kind: Kind::Write, ..READ };

    fn mapped(entry: u64) -> (GuestRam, Config) {
        let ram = GuestRam::new(&[(0, 1 << 20)]).unwrap();
        for (at, value) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, entry)] {
            ram.store::<u64>(RamOffset(at), value);
        }
        let config = Config {
            mode: Mode::FourLevel,
            root: 0x1000,
            wp: true,
            nxe: true,
            physical_bits: 46,
            ..Config::default()
        };
        (ram, config)
    }

    #[test]
    fn accessed_and_dirty_bits_follow_the_access() {
        let (ram, config) = mapped(0x5007);
        assert_eq!(walk(&ram, &config, 0x123, READ).unwrap().gpa, 0x5123);
        assert_eq!(ram.load::<u64>(RamOffset(0x4000)), 0x5007 | ACCESSED);
        assert!(walk(&ram, &config, 0x123, WRITE_ACCESS).unwrap().dirty);
        assert_eq!(ram.load::<u64>(RamOffset(0x4000)), 0x5007 | ACCESSED | DIRTY);
    }

    #[test]
    fn a_refused_access_changes_nothing() {
        let (ram, config) = mapped(0x5005);
        let refused = walk(&ram, &config, 0, WRITE_ACCESS).unwrap_err();
        assert_eq!(refused.code, pf::PRESENT | pf::WRITE);
        assert_eq!(ram.load::<u64>(RamOffset(0x1000)), 0x2007);
        assert_eq!(ram.load::<u64>(RamOffset(0x4000)), 0x5005);
    }

    #[test]
    fn tables_outside_ram_are_not_present() {
        let (ram, config) = mapped(0x5007);
        let lost = Config { root: 0x7fff_f000, ..config };
        assert_eq!(walk(&ram, &lost, 0, READ).unwrap_err().code, 0);
    }
}
