//! Page tables of a hostile guest.

use memory::{Gpa, GuestRam, RamOffset};
use paging::{Access, Config, Kind, Mode};

use crate::Input;

/// RAM of the guest: some tables and pages, with its end near.
const RAM: u64 = 64 << 10;

/// Accessed and dirty: all that a walk may change in an entry (SDM vol. 3A 4.8).
const ACCESSED_DIRTY: u8 = 1 << 5 | 1 << 6;

/// Fills a small RAM with entries, walks to some addresses, and checks what a walk promises:
/// a refused access changes nothing, a granted one sets accessed and dirty bits only, the offset
/// inside the page is kept, and the same access is granted again in the same way.
///
/// # Panics
/// When the walk breaks one of these promises.
pub fn page_walk(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(&mut input);
    let accesses: Vec<(u64, Access)> =
        (0..4).map(|_| (linear(&mut input), access(&mut input))).collect();
    let ram = GuestRam::new(&[(0, RAM)]).expect("64 KiB");
    fill(&ram, &mut input);
    for (linear, access) in accesses {
        check(&ram, &config, linear, access);
    }
}

fn config(input: &mut Input<'_>) -> Config {
    let modes = [Mode::FourLevel, Mode::FourLevel, Mode::Pae, Mode::Legacy, Mode::Off];
    let mode = input.pick(&modes);
    let flags = input.byte();
    let flag = |bit: u8| flags & 1 << bit != 0;
    Config {
        mode,
        root: table(input),
        pdptr: [table(input) | 1, table(input) | 1, table(input), input.word()],
        wp: flag(0),
        nxe: flag(1),
        pse: flag(2),
        pge: flag(3),
        smep: flag(4),
        smap: flag(5),
        gigabyte_pages: flag(6),
        physical_bits: 36 + u32::from(input.byte()) % 17,
    }
}

/// The address of a table: mostly in RAM, sometimes beside it.
fn table(input: &mut Input<'_>) -> u64 {
    u64::from(input.short() % 20) << 12
}

/// Low indexes, since the tables hold few entries.
fn linear(input: &mut Input<'_>) -> u64 {
    let indexes = input.word();
    let low = |shift: u32| indexes >> shift & 3;
    let spread = low(0) << 39 | low(8) << 30 | low(16) << 21 | low(24) << 12;
    spread | u64::from(input.short() & 0xfff) | input.pick(&[0, 0, 0, 0xffff_8000_0000_0000])
}

fn access(input: &mut Input<'_>) -> Access {
    let kind = input.pick(&[Kind::Read, Kind::Write, Kind::Fetch]);
    let flags = input.byte();
    Access { kind, user: flags & 1 != 0, smap_override: flags & 2 != 0 }
}

/// Writes entries: a place among the first four of a page, and a value whose frame is in RAM or
/// whatever the input says.
fn fill(ram: &GuestRam, input: &mut Input<'_>) {
    while !input.is_empty() {
        let place = input.short();
        let at = u64::from(place % 16) << 12 | u64::from(place >> 4 & 3) << 3;
        let value = if place & 1 << 15 == 0 {
            table(input) | u64::from(input.byte()) | input.pick(&[0, 0, 1 << 63, 1 << 8, 1 << 12])
        } else {
            input.word()
        };
        ram.store::<u64>(RamOffset(at), value);
    }
}

fn check(ram: &GuestRam, config: &Config, linear: u64, access: Access) {
    let before = content(ram);
    let outcome = paging::walk(ram, config, linear, access);
    let after = content(ram);
    let Ok(found) = outcome else {
        assert_eq!(before, after, "a refused access changed the tables");
        return;
    };
    let changed = before.iter().zip(&after).map(|(old, new)| (old ^ new, new));
    for (bits, new) in changed.filter(|(bits, _)| *bits != 0) {
        assert_eq!(bits & !ACCESSED_DIRTY, 0, "other bits than accessed and dirty changed");
        assert_eq!(new & bits, bits, "a bit was cleared");
    }
    assert!(found.page_size.is_power_of_two() && found.page_size >= 4096);
    let offset = found.page_size - 1;
    assert_eq!(found.gpa & offset, linear & offset, "the offset in the page is lost");
    let paging = config.mode != Mode::Off;
    assert!(!paging || found.allows(config, access), "granted against its own rights");
    assert!(access.kind != Kind::Write || found.dirty, "written and not dirty");
    // Bits that the walk set may have changed entries on its own way.
    if paging::probe(ram, config, linear).is_some_and(|again| again.gpa == found.gpa) {
        let again = paging::walk(ram, config, linear, access);
        assert_eq!(again.map(|t| t.gpa), Ok(found.gpa), "granted once and then refused");
        assert_eq!(after, content(ram), "the second walk changed something");
    }
}

fn content(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    ram.read(Gpa(0), &mut bytes).expect("all of RAM");
    bytes
}
