//! Guest memory as a vCPU sees it: what a linear address means by its page tables, whatever rights
//! it has there, and without leaving accessed or dirty bits. Devices are not touched.

use engine::{CpuProfile, VcpuState};
use lifecycle::Machine;
use memory::{Gpa, GuestRam};
use paging::{Config, Mode};
use x86::cpuid::feature;
use x86::cr::{cr0, cr4, efer};
use x86::paging::CR3_NOFLUSH;

const PAGE: u64 = 4096;

/// There is no RAM at an address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotThere;

/// How the vCPU translates addresses.
fn config(state: &VcpuState, profile: &CpuProfile) -> Config {
    let control = &state.control;
    let mode = if control.cr0 & cr0::PG == 0 {
        Mode::Off
    } else if control.efer & efer::LMA != 0 {
        Mode::FourLevel
    } else if control.cr4 & cr4::PAE != 0 {
        Mode::Pae
    } else {
        Mode::Legacy
    };
    Config {
        mode,
        root: control.cr3 & !0xfff & !CR3_NOFLUSH,
        pdptr: control.pdptr,
        nxe: control.efer & efer::NXE != 0,
        pse: control.cr4 & cr4::PSE != 0,
        gigabyte_pages: profile.has(feature::PDPE1GB),
        physical_bits: profile.physical_bits(),
        ..Config::default()
    }
}

/// Calls `access` for each piece of `len` bytes at `linear` that lies in one page, with its
/// guest-physical address and its place in the bytes; gives how many bytes came before the first
/// piece that is not there.
fn pieces(
    ram: &GuestRam,
    config: &Config,
    linear: u64,
    len: usize,
    mut access: impl FnMut(Gpa, std::ops::Range<usize>) -> bool,
) -> usize {
    let mut done = 0;
    while done < len {
        let at = linear.wrapping_add(done as u64);
        let piece = (len - done).min((PAGE - at % PAGE) as usize);
        let Some(found) = paging::probe(ram, config, at) else { break };
        if !access(Gpa(found.gpa), done..done + piece) {
            break;
        }
        done += piece;
    }
    done
}

/// Reads memory as the vCPU with `state` sees it; how many bytes there are.
pub(crate) fn read(machine: &Machine, state: &VcpuState, linear: u64, to: &mut [u8]) -> usize {
    read_ram(machine.ram(), &config(state, machine.profile()), linear, to)
}

/// Reads a whole structure, such as a descriptor.
pub(crate) fn read_exact(
    ram: &GuestRam,
    profile: &CpuProfile,
    state: &VcpuState,
    linear: u64,
    to: &mut [u8],
) -> Result<(), NotThere> {
    let whole = to.len();
    match read_ram(ram, &config(state, profile), linear, to) {
        read if read == whole => Ok(()),
        _ => Err(NotThere),
    }
}

fn read_ram(ram: &GuestRam, config: &Config, linear: u64, to: &mut [u8]) -> usize {
    pieces(ram, config, linear, to.len(), |gpa, range| ram.read(gpa, &mut to[range]).is_ok())
}

/// Writes memory as the vCPU with `state` sees it: all of it or nothing.
pub(crate) fn write(
    machine: &Machine,
    state: &VcpuState,
    linear: u64,
    from: &[u8],
) -> Result<(), NotThere> {
    write_ram(machine.ram(), &config(state, machine.profile()), linear, from)
}

fn write_ram(ram: &GuestRam, config: &Config, linear: u64, from: &[u8]) -> Result<(), NotThere> {
    let there = pieces(ram, config, linear, from.len(), |gpa, range| {
        ram.translate(gpa, range.len() as u64).is_some()
    });
    if there != from.len() {
        return Err(NotThere);
    }
    pieces(ram, config, linear, from.len(), |gpa, range| ram.write(gpa, &from[range]).is_ok());
    Ok(())
}

#[cfg(test)]
mod tests {
    use memory::RamOffset;

    use super::*;

    /// Linear pages 0 and 1 are physical pages 6 and 5; page 2 is not there, page 3 is no RAM.
    fn mapped() -> (GuestRam, Config) {
        let ram = GuestRam::new(&[(0, 1 << 20)]).unwrap();
        let entries = [
            (0x1000, 0x2001),
            (0x2000, 0x3001),
            (0x3000, 0x4001),
            (0x4000, 0x6001),
            (0x4008, 0x5001),
            (0x4018, 0x4000_0001),
        ];
        for (at, value) in entries {
            ram.store::<u64>(RamOffset(at), value);
        }
        let config =
            Config { mode: Mode::FourLevel, root: 0x1000, physical_bits: 46, ..Config::default() };
        (ram, config)
    }

    #[test]
    fn pages_are_found_one_by_one_and_tables_stay_as_they_are() {
        let (ram, config) = mapped();
        write_ram(&ram, &config, 0xffe, b"abcd").unwrap();
        let mut bytes = [0; 4];
        ram.read(Gpa(0x6ffe), &mut bytes[..2]).unwrap();
        ram.read(Gpa(0x5000), &mut bytes[2..]).unwrap();
        assert_eq!(&bytes, b"abcd");
        let mut back = [0; 4];
        assert_eq!(read_ram(&ram, &config, 0xffe, &mut back), 4);
        assert_eq!(&back, b"abcd");
        assert_eq!(ram.load::<u64>(RamOffset(0x4000)), 0x6001);
    }

    #[test]
    fn what_is_not_there_is_not_read_and_nothing_of_it_written() {
        let (ram, config) = mapped();
        ram.write(Gpa(0x5ffc), b"1234").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(read_ram(&ram, &config, 0x1ffc, &mut bytes), 4);
        assert_eq!(&bytes, b"1234\0\0\0\0");
        assert_eq!(read_ram(&ram, &config, 0x3000, &mut bytes), 0);
        assert_eq!(read_ram(&ram, &config, u64::MAX, &mut bytes), 0);
        assert_eq!(write_ram(&ram, &config, 0x1ffc, &[9; 8]), Err(NotThere));
        assert_eq!(ram.load::<u32>(RamOffset(0x5ffc)), u32::from_le_bytes(*b"1234"));
    }
}
