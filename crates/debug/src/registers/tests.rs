use engine::{CpuProfile, Level, PendingEvents, RunState, Vendor};
use lapic::{LocalApic, LocalApicConfig};
use memory::Gpa;
use x86::segment::TableRegister;

use super::*;

fn state() -> VcpuState {
    let mut state = VcpuState {
        general: Default::default(),
        segments: Default::default(),
        control: Default::default(),
        debug: Default::default(),
        xsave: vec![0; xsave::AREA_SIZE],
        msrs: vec![(msr::KERNEL_GS_BASE, 77)],
        apic: LocalApic::new(LocalApicConfig::default()).save(0),
        events: PendingEvents::default(),
        tsc: 0,
        run_state: RunState::Running,
    };
    state.general.gpr = std::array::from_fn(|n| 0x100 + n as u64);
    state.general.rip = 0xffff_ffff_8100_0000;
    state.general.rflags = 0x246;
    state.segments.gdtr = TableRegister { base: 0x1000, limit: 0x1f };
    state.control.cr0 = cr0::PE;
    state
}

fn surroundings() -> (GuestRam, CpuProfile) {
    let ram = GuestRam::new(&[(0, 1 << 20)]).unwrap();
    (ram, CpuProfile::new(Level::V2, Vendor::Intel, 1_000_000, &|_| true).unwrap())
}

fn sent(registers: &GuestRegisters) -> Vec<u8> {
    let mut bytes = Vec::new();
    registers.gdb_serialize(|byte| bytes.push(byte.expect("known")));
    bytes
}

#[test]
fn the_description_has_the_size_of_what_is_sent() {
    let xml = description();
    let bits: usize = xml
        .split("<reg ")
        .skip(1)
        .map(|reg| reg.split("bitsize=\"").nth(1).unwrap().split('"').next().unwrap())
        .map(|bits| bits.parse::<usize>().unwrap())
        .sum();
    assert_eq!(bits, 8 * BYTES);
    assert_eq!(sent(&of(&state())).len(), BYTES);
}

#[test]
fn registers_travel_both_ways() {
    let mut before = of(&state());
    before.core.st[3] = [1, 2, 3, 4, 5, 6, 7, 0x88, 9, 0x40];
    before.core.fpu.ftag = 0xffff;
    before.core.xmm[15] = 5;
    before.ymm_high[1] = 6;
    before.bases = [7, 8];
    let mut after = GuestRegisters::default();
    after.gdb_deserialize(&sent(&before)).unwrap();
    assert_eq!(after, before);
    assert!(after.gdb_deserialize(&sent(&before)[1..]).is_err());
    // gdb's third general register is RCX, which is the CPU's second.
    assert_eq!(before.core.regs[2], 0x101);
}

#[test]
fn what_is_not_changed_stays_as_it_was() {
    let (ram, profile) = surroundings();
    let before = state();
    let mut after = before.clone();
    apply(&of(&before), &mut after, &ram, &profile).unwrap();
    assert_eq!(after, before);
}

#[test]
fn what_is_changed_shows() {
    let (ram, profile) = surroundings();
    let mut state = state();
    let mut wanted = of(&state);
    wanted.core.regs[1] = 0xb;
    wanted.core.rip = 0x1234;
    wanted.core.eflags = 0x202;
    wanted.core.xmm[2] = 1 << 100;
    wanted.core.mxcsr = 0x1fa0;
    wanted.core.st[0] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    // Register 0 is in use and holds a number; the others are empty.
    wanted.core.fpu.ftag = 0xfffc;
    wanted.ymm_high[9] = 3;
    wanted.bases[1] = 0xffff_8880_0000_0000;
    wanted.system[0] = 78;
    apply(&wanted, &mut state, &ram, &profile).unwrap();
    assert_eq!(of(&state), wanted);
    assert_eq!(state.general.gpr[RBX], 0xb);
    assert_eq!(state.xsave[xsave::XSTATE_BV], 7);
}

#[test]
fn a_selector_brings_its_descriptor() {
    let (ram, profile) = surroundings();
    ram.write(Gpa(0x1010), &0x00cf_9312_3456_ffff_u64.to_le_bytes()).unwrap();
    let mut state = state();
    let mut wanted = of(&state);
    wanted.core.segments.ds = 0x10;
    apply(&wanted, &mut state, &ram, &profile).unwrap();
    assert_eq!(state.segments.segment[seg::DS].base, 0x12_3456);
    wanted.core.segments.ds = 0x20;
    assert_eq!(apply(&wanted, &mut state, &ram, &profile), Err(NotThere), "beyond the table");
    state.control.cr0 = 0;
    wanted.system[1] = 0;
    apply(&wanted, &mut state, &ram, &profile).unwrap();
    assert_eq!(state.segments.segment[seg::DS].base, 0x200);
}
