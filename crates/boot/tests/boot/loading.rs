//! Good kernels: what lies where, and the state in which they are entered.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use boot::{E820Entry, E820Kind, EntryState, KernelImage, KernelKind, MemoryMap, Payload};
use engine::{RunState, VcpuState};
use lapic::{LocalApic, LocalApicConfig};
use x86::cr::{cr0, cr4, efer, rflags};
use x86::gpr::{RBX, RSI};
use x86::segment::seg;

use crate::sample::{
    ELF_DATA, ELF_ENTRY, ELF_TEXT, Guest, INIT_SIZE, KERNEL_ADDRESS, KERNEL_LEN, KERNEL_OFFSET,
    MIB, bzimage, bzimage_but, elf, field, initrd,
};

const SIZES: [u64; 4] = [32 * MIB, 512 * MIB, 0xb000_0000 - 4096, 6 << 30];
const CMDLINE: &str = "console=ttyS0 panic=-1";

/// The e820 table of the zero page.
fn zero_page_e820(guest: &Guest, zero_page: u64) -> Vec<(u64, u64, u32)> {
    let count = guest.bytes(zero_page + 0x1e8, 1)[0];
    let entry = |i: u64| {
        let at = zero_page + 0x2d0 + i * 20;
        (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16))
    };
    (0..u64::from(count)).map(entry).collect()
}

pub fn expected_map(guest: &Guest) -> Vec<(u64, u64, u32)> {
    let tuple = |e: E820Entry| (e.addr, e.len, if e.kind == E820Kind::Usable { 1 } else { 2 });
    guest.map.e820().into_iter().map(tuple).collect()
}

/// All that was loaded is whole, so nothing overlaps.
fn assert_tables_intact(guest: &Guest) {
    assert_eq!(guest.bytes(guest.rsdp, 8), b"RSD PTR ");
    let sum = |gpa, len| guest.bytes(gpa, len).iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
    assert_eq!(sum(guest.rsdp, 36), 0);
    let xsdt = guest.u64(guest.rsdp + 24);
    assert_eq!(sum(xsdt, guest.u32(xsdt + 4) as usize), 0);
    for at in (xsdt + 36..xsdt + u64::from(guest.u32(xsdt + 4))).step_by(8) {
        let table = guest.u64(at);
        assert_eq!(sum(table, guest.u32(table + 4) as usize), 0);
    }
}

#[test]
fn a_bzimage_is_loaded_whole() {
    for size in SIZES {
        let guest = Guest::new(size);
        let (kernel, ramdisk) = (bzimage(), initrd(3 * MIB as usize + 17));
        let entry = guest.load(kernel.clone(), Some(ramdisk.clone()), CMDLINE).unwrap();
        let EntryState::Linux64 { entry, boot_params } = entry else { panic!("{entry:?}") };
        assert_eq!(entry, KERNEL_ADDRESS + 0x200);
        assert_eq!(guest.bytes(KERNEL_ADDRESS, KERNEL_LEN), kernel[KERNEL_OFFSET..]);

        let param = |at: usize| guest.u32(boot_params + at as u64);
        assert_eq!(guest.bytes(boot_params + field::MAGIC as u64, 4), b"HdrS");
        assert_eq!(guest.bytes(boot_params + 0x1ef, 1), [0], "sentinel");
        assert_eq!(guest.bytes(boot_params + 0x210, 1), [0xff], "type_of_loader");
        assert_eq!(guest.u64(boot_params + 0x70), guest.rsdp);
        let cmdline = u64::from(param(0x228));
        assert_eq!(guest.bytes(cmdline, CMDLINE.len() + 1), [CMDLINE.as_bytes(), &[0]].concat());
        let (at, len) = (u64::from(param(0x218)), param(0x21c) as usize);
        assert_eq!(guest.bytes(at, len), ramdisk);
        assert!(at % 4096 == 0 && at >= KERNEL_ADDRESS + INIT_SIZE);
        assert!(at + len as u64 <= guest.map.low_end().min(0x8000_0000));
        assert_eq!(zero_page_e820(&guest, boot_params), expected_map(&guest));
        assert_tables_intact(&guest);
        assert_eq!(u64::from(guest.u32(0x40e) & 0xffff) << 4, MemoryMap::LOW_USABLE_END);
        assert_eq!(guest.u32(0x413) & 0xffff, 639);
    }
}

#[test]
fn a_32_bit_bzimage_is_entered_at_its_start() {
    let guest = Guest::new(64 * MIB);
    let entry = guest.load(bzimage_but(field::XLOAD_FLAGS, &[0]), None, CMDLINE).unwrap();
    let EntryState::Linux32 { entry, boot_params } = entry else { panic!("{entry:?}") };
    assert_eq!(u64::from(entry), KERNEL_ADDRESS);
    assert_eq!(guest.bytes(u64::from(boot_params) + field::MAGIC as u64, 4), b"HdrS");
}

#[test]
fn an_elf_is_loaded_whole() {
    for size in SIZES {
        let guest = Guest::new(size);
        // What an earlier run of the guest left behind must not be seen in the new one's bss.
        guest.ram.write(memory::Gpa(ELF_DATA.address), &[0xee; 0x5000]).unwrap();
        let (kernel, ramdisk) = (elf(), initrd(3 * MIB as usize + 17));
        let entry = guest.load(kernel.clone(), Some(ramdisk.clone()), CMDLINE).unwrap();
        let EntryState::Pvh { entry, start_info } = entry else { panic!("{entry:?}") };
        assert_eq!(u64::from(entry), ELF_ENTRY);
        for segment in [ELF_TEXT, ELF_DATA] {
            let (from, len) = (segment.offset as usize, segment.file_len as usize);
            assert_eq!(guest.bytes(segment.address, len), kernel[from..from + len]);
            let bss = (segment.memory_len - segment.file_len) as usize;
            assert_eq!(guest.bytes(segment.address + segment.file_len, bss), vec![0; bss]);
        }
        assert_eq!(guest.bytes(ELF_DATA.address + ELF_DATA.memory_len, 1), [0xee]);

        let info = u64::from(start_info);
        assert_eq!((guest.u32(info), guest.u32(info + 4)), (0x336e_c578, 1));
        assert_eq!(guest.u32(info + 12), 1, "modules");
        let module = guest.u64(info + 16);
        assert_eq!(guest.bytes(guest.u64(module), guest.u64(module + 8) as usize), ramdisk);
        let cmdline = guest.bytes(guest.u64(info + 24), CMDLINE.len() + 1);
        assert_eq!(cmdline, [CMDLINE.as_bytes(), &[0]].concat());
        assert_eq!(guest.u64(info + 32), guest.rsdp);
        let (table, count) = (guest.u64(info + 40), u64::from(guest.u32(info + 48)));
        let entry = |at| (guest.u64(at), guest.u64(at + 8), guest.u32(at + 16));
        let map: Vec<_> = (0..count).map(|i| entry(table + i * 24)).collect();
        assert_eq!(map, expected_map(&guest));
        assert_tables_intact(&guest);
    }
}

#[test]
fn without_initrd_there_is_none() {
    let guest = Guest::new(64 * MIB);
    let EntryState::Linux64 { boot_params, .. } = guest.load(bzimage(), None, "").unwrap() else {
        panic!()
    };
    assert_eq!(guest.u64(boot_params + 0x218), 0);
    let EntryState::Pvh { start_info, .. } = guest.load(elf(), None, "").unwrap() else { panic!() };
    assert_eq!((guest.u32(0x600c), guest.u64(0x6010)), (0, 0), "{start_info:x}");
}

#[test]
fn a_kernel_that_cannot_move_lies_at_1_mib() {
    let guest = Guest::new(64 * MIB);
    let kernel = bzimage_but(field::RELOCATABLE, &[0]);
    let entry = guest.load(kernel.clone(), None, "").unwrap();
    assert_eq!(entry.rip(), MIB + 0x200);
    assert_eq!(guest.bytes(MIB, KERNEL_LEN), kernel[KERNEL_OFFSET..]);
}

#[test]
fn alignment_and_initrd_limit_are_honoured() {
    let guest = Guest::new(512 * MIB);
    let aligned = bzimage_but(field::ALIGNMENT, &0x0400_0000_u32.to_le_bytes());
    assert_eq!(guest.load(aligned, None, "").unwrap().rip(), 0x0400_0200);
    let limited = bzimage_but(field::INITRD_ADDR_MAX, &0x03ff_f123_u32.to_le_bytes());
    guest.load(limited, Some(initrd(4096)), "").unwrap();
    assert_eq!(guest.u32(0x7218), 0x03ff_e000);
}

#[test]
fn the_first_4_gib_are_mapped_one_to_one() {
    let guest = Guest::new(64 * MIB);
    let entry = guest.load(bzimage(), None, "").unwrap();
    let mut state = reset_state();
    entry.apply(&mut state);
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let index = |linear: u64, level: u32| (linear >> (12 + 9 * level) & 0x1ff) * 8;
    for linear in [0, 0x1f_ffff, MIB, KERNEL_ADDRESS, 0x8000_0000, 0xfec0_0000, 0xffff_ffff] {
        let level4 = guest.u64(state.control.cr3 + index(linear, 3));
        let level3 = guest.u64((level4 & ADDRESS) + index(linear, 2));
        let level2 = guest.u64((level3 & ADDRESS) + index(linear, 1));
        assert!(level4 & level3 & level2 & 3 == 3 && level2 & 0x80 != 0, "{linear:#x}");
        assert_eq!(level2 & ADDRESS, linear & !0x1f_ffff);
    }
    assert_eq!(guest.u64(state.control.cr3 + 8), 0);
}

/// A boot processor after reset, as far as matters here (SDM vol. 3A table 10-1).
pub fn reset_state() -> VcpuState {
    VcpuState {
        general: engine::General { rip: 0xfff0, rflags: 2, ..Default::default() },
        segments: Default::default(),
        control: engine::Control { cr0: 0x6000_0010, ..Default::default() },
        debug: Default::default(),
        xsave: vec![0; 832],
        msrs: vec![(x86::msr::MTRR_CAP, 0x508), (x86::msr::MTRR_DEF_TYPE, 0)],
        apic: LocalApic::new(LocalApicConfig::default()).save(0),
        events: Default::default(),
        tsc: 0,
        run_state: RunState::Running,
    }
}

/// Checks that the hidden part of a segment is what the descriptor table in memory says.
pub fn assert_descriptor(guest: &Guest, state: &VcpuState, segment: x86::segment::Segment) {
    let at = state.segments.gdtr.base + u64::from(segment.selector & !7);
    assert!(u64::from(segment.selector | 7) <= u64::from(state.segments.gdtr.limit));
    let raw = guest.u64(at);
    assert_eq!(x86::segment::Segment::from_descriptor(segment.selector, raw), segment);
}

#[test]
fn linux_is_entered_in_long_mode() {
    let guest = Guest::new(64 * MIB);
    let mut state = reset_state();
    guest.load(bzimage(), None, "").unwrap().apply(&mut state);
    assert_eq!(state.general.rip, KERNEL_ADDRESS + 0x200);
    assert_eq!(state.general.gpr[RSI], 0x7000);
    assert_eq!(state.general.rflags & rflags::IF, 0);
    assert_eq!(state.control.cr0 & (cr0::PE | cr0::PG | cr0::CD | cr0::NW), cr0::PE | cr0::PG);
    assert_eq!(state.control.cr4, cr4::PAE);
    assert_eq!(state.control.efer, efer::LME | efer::LMA);
    let segment = state.segments.segment;
    assert_eq!(segment[seg::CS].selector, 0x10);
    assert!(segment[seg::CS].long() && !segment[seg::CS].big() && segment[seg::CS].is_readable());
    for index in [seg::DS, seg::ES, seg::SS] {
        assert_eq!(segment[index].selector, 0x18);
        assert!(segment[index].is_writable());
    }
    for segment in segment.into_iter().chain([state.segments.tr]) {
        assert_descriptor(&guest, &state, segment);
    }
}

#[test]
fn pvh_is_entered_in_protected_mode() {
    let guest = Guest::new(64 * MIB);
    let mut state = reset_state();
    guest.load(elf(), None, "").unwrap().apply(&mut state);
    assert_eq!(state.general.rip, ELF_ENTRY);
    assert_eq!(state.general.gpr[RBX], 0x6000);
    assert_eq!(state.general.rflags & (rflags::IF | rflags::VM | rflags::TF), 0);
    assert_eq!(state.control.cr0 & !cr0::ET, cr0::PE);
    assert_eq!((state.control.cr4, state.control.efer), (0, 0));
    let cs = state.segments.segment[seg::CS];
    assert!(cs.big() && !cs.long() && cs.is_readable() && (cs.base, cs.limit) == (0, u32::MAX));
    assert_eq!((state.segments.tr.base & 7, state.segments.tr.limit), (0, 0x67));
    for segment in state.segments.segment.into_iter().chain([state.segments.tr]) {
        assert_descriptor(&guest, &state, segment);
    }
}

#[test]
fn firmware_defaults_are_set() {
    let guest = Guest::new(64 * MIB);
    let mut state = reset_state();
    guest.load(elf(), None, "").unwrap().apply(&mut state);
    assert_eq!(state.msrs, [(x86::msr::MTRR_CAP, 0x508), (x86::msr::MTRR_DEF_TYPE, 0x806)]);
    let mut apic = LocalApic::new(LocalApicConfig::default());
    assert!(apic.restore(&state.apic, 0).is_ok());
    assert!(apic.accepts_extint());
}

#[test]
fn a_file_is_read_wherever_its_position_is() {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&bzimage()).unwrap();
    file.seek(SeekFrom::Start(7)).unwrap();
    let kernel = KernelImage::open(file, "vmlinuz").unwrap();
    assert_eq!((kernel.kind(), kernel.name()), (KernelKind::BzImage, "vmlinuz"));
    let guest = Guest::new(64 * MIB);
    for _ in 0..2 {
        boot::load(&guest.ram, &kernel, &Payload::default(), &guest.map, guest.rsdp).unwrap();
        assert_eq!(guest.bytes(KERNEL_ADDRESS, KERNEL_LEN), bzimage()[KERNEL_OFFSET..]);
    }
}

#[test]
fn the_kind_is_told() {
    let kernel = KernelImage::from_bytes(elf(), "vmlinux").unwrap();
    assert_eq!(kernel.kind(), KernelKind::Pvh);
}
