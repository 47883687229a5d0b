//! The model: slow, literal, without tables of shapes.

use std::ops::RangeInclusive;

use paging::{Access, Config, Kind, Mode};

/// What a walk must give, and which entries it must change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Translation or error code.
    pub result: Result<Page, u32>,
    /// Address of each entry on the way and the bits that the walk sets there; empty on a fault.
    pub marks: Vec<(u64, u64)>,
}

/// A translation, with the rights of all levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub gpa: u64,
    pub size: u64,
    pub writable: bool,
    pub user: bool,
    pub no_execute: bool,
    pub global: bool,
    /// Dirty before the walk.
    pub dirty: bool,
}

/// Formats of entries, by the tables of chapter 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Table 4-15.
    Pml4e,
    /// Table 4-17.
    PdpteToDirectory,
    /// Table 4-16.
    PdpteToPage,
    /// Tables 4-19 and 4-10.
    PdeToTable,
    /// Tables 4-18 and 4-9.
    PdeToPage,
    /// Tables 4-20 and 4-11.
    Pte,
    /// Table 4-5.
    Pde32ToTable,
    /// Table 4-4.
    Pde32ToPage,
    /// Table 4-6.
    Pte32,
}

fn bit(value: u64, index: u32) -> bool {
    value >> index & 1 == 1
}

fn field(value: u64, bits: RangeInclusive<u32>) -> u64 {
    let width = bits.end() - bits.start() + 1;
    value >> bits.start() & (u64::MAX >> (64 - width))
}

/// The format of the present `entry` at `level` (4 is the PML4), and the level below it.
pub fn format(config: &Config, level: u32, entry: u64) -> Format {
    let ps = bit(entry, 7);
    match (config.mode, level) {
        (Mode::FourLevel, 4) => Format::Pml4e,
        (Mode::FourLevel, 3) if ps => Format::PdpteToPage,
        (Mode::FourLevel, 3) => Format::PdpteToDirectory,
        (Mode::FourLevel | Mode::Pae, 2) if ps => Format::PdeToPage,
        (Mode::FourLevel | Mode::Pae, 2) => Format::PdeToTable,
        (Mode::FourLevel | Mode::Pae, 1) => Format::Pte,
        (Mode::Legacy, 2) if ps && config.pse => Format::Pde32ToPage,
        (Mode::Legacy, 2) => Format::Pde32ToTable,
        (Mode::Legacy, 1) => Format::Pte32,
        other => panic!("no such level: {other:?}"),
    }
}

/// Whether a present entry of this format sets a reserved bit.
pub fn is_reserved(config: &Config, format: Format, entry: u64) -> bool {
    let width = config.physical_bits;
    let any = |bits: RangeInclusive<u32>| bits.into_iter().any(|index| bit(entry, index));
    match format {
        Format::Pde32ToTable | Format::Pte32 => return false,
        // 4.3: bits 21:(M-19) with M the smaller of 40 and the physical address width.
        Format::Pde32ToPage => return any(width.min(40) - 19..=21),
        _ => {}
    }
    // Above the address, the entries of four-level paging have ignored bits, those of PAE none.
    let above_address = match config.mode {
        Mode::FourLevel => width..=51,
        _ => width..=62,
    };
    let high = any(above_address) || bit(entry, 63) && !config.nxe;
    high || match format {
        Format::Pml4e => bit(entry, 7),
        Format::PdpteToPage => !config.gigabyte_pages || any(13..=29),
        Format::PdeToPage => any(13..=20),
        _ => false,
    }
}

/// The start and size of the page that an entry maps; `None` if it points to a table.
fn mapped(config: &Config, format: Format, entry: u64) -> Option<(u64, u64)> {
    let top = config.physical_bits - 1;
    match format {
        Format::Pml4e | Format::PdpteToDirectory | Format::PdeToTable | Format::Pde32ToTable => {
            None
        }
        Format::PdpteToPage => Some((field(entry, 30..=top) << 30, 1 << 30)),
        Format::PdeToPage => Some((field(entry, 21..=top) << 21, 2 << 20)),
        Format::Pte => Some((field(entry, 12..=top) << 12, 4096)),
        Format::Pte32 => Some((field(entry, 12..=31) << 12, 4096)),
        Format::Pde32ToPage => {
            Some((field(entry, 13..=20) << 32 | field(entry, 22..=31) << 22, 4 << 20))
        }
    }
}

/// Where the entry of `linear` at `level` is in its table.
fn index(mode: Mode, level: u32, linear: u64) -> u64 {
    match (mode, level) {
        (Mode::FourLevel, 4) => field(linear, 39..=47) * 8,
        (Mode::FourLevel, 3) => field(linear, 30..=38) * 8,
        (Mode::FourLevel | Mode::Pae, 2) => field(linear, 21..=29) * 8,
        (Mode::FourLevel | Mode::Pae, 1) => field(linear, 12..=20) * 8,
        (Mode::Legacy, 2) => field(linear, 22..=31) * 4,
        (Mode::Legacy, 1) => field(linear, 12..=21) * 4,
        other => panic!("no such level: {other:?}"),
    }
}

/// Section 4.6.1, sentence by sentence.
pub fn is_permitted(config: &Config, page: &Page, access: Access) -> bool {
    let supervisor_address = !page.user;
    if !access.user {
        return match access.kind {
            Kind::Read | Kind::Write
                if !supervisor_address && config.smap && !access.smap_override =>
            {
                false
            }
            Kind::Read => true,
            Kind::Write if config.wp => page.writable,
            Kind::Write => true,
            Kind::Fetch if supervisor_address => !page.no_execute,
            Kind::Fetch if config.smep => false,
            Kind::Fetch => !page.no_execute,
        };
    }
    if supervisor_address {
        return false;
    }
    match access.kind {
        Kind::Read => true,
        Kind::Write => page.writable,
        Kind::Fetch => !page.no_execute,
    }
}

/// Section 4.7, figure 4-12.
fn error_code(config: &Config, access: Access, protection: bool, reserved: bool) -> u32 {
    let pae = config.mode != Mode::Legacy;
    let fetch = access.kind == Kind::Fetch && (config.smep || pae && config.nxe);
    u32::from(protection)
        | u32::from(access.kind == Kind::Write) << 1
        | u32::from(access.user) << 2
        | u32::from(reserved) << 3
        | u32::from(fetch) << 4
}

/// Translates, reading entries through `read` (zero where there is no memory).
pub fn translate(
    read: impl Fn(u64) -> u64,
    config: &Config,
    linear: u64,
    access: Access,
) -> Outcome {
    let fault = |protection, reserved| Outcome {
        result: Err(error_code(config, access, protection, reserved)),
        marks: Vec::new(),
    };
    let address = |value: u64| field(value, 12..=config.physical_bits - 1) << 12;
    let (mut level, mut table) = match config.mode {
        Mode::Off => panic!("nothing to translate"),
        Mode::FourLevel => (4, address(config.root)),
        Mode::Legacy => (2, field(config.root, 12..=31) << 12),
        Mode::Pae => {
            let register = config.pdptr[field(linear, 30..=31) as usize];
            if !bit(register, 0) {
                return fault(false, false);
            }
            (2, address(register))
        }
    };
    let (mut writable, mut user, mut no_execute) = (true, true, false);
    let mut marks = Vec::new();
    loop {
        let at = table + index(config.mode, level, linear);
        let entry = read(at);
        if !bit(entry, 0) {
            return fault(false, false);
        }
        let format = format(config, level, entry);
        if is_reserved(config, format, entry) {
            return fault(true, true);
        }
        writable = writable && bit(entry, 1);
        user = user && bit(entry, 2);
        no_execute = no_execute || bit(entry, 63);
        marks.push((at, 1 << 5));
        if let Some((start, size)) = mapped(config, format, entry) {
            let page = Page {
                gpa: start + linear % size,
                size,
                writable,
                user,
                no_execute,
                global: config.pge && bit(entry, 8),
                dirty: bit(entry, 6),
            };
            if !is_permitted(config, &page, access) {
                return fault(true, false);
            }
            if access.kind == Kind::Write {
                marks.push((at, 1 << 6));
            }
            return Outcome { result: Ok(page), marks };
        }
        table = match config.mode {
            Mode::Legacy => field(entry, 12..=31) << 12,
            _ => address(entry),
        };
        level -= 1;
    }
}
