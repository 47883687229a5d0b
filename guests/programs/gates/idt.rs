//! Delivery through IDT gates: flags, stacks, frame, descriptor checks.

use crate::{CONFORMING, PRESENT, SPARE, collector};
use kit::cpu::flag;
use kit::snippet::{USER_BASE, bytes, stack_top};
use kit::tables::{self, Gate, field};
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, Trap, snippet, snippet32};

const VECTOR: u8 = 0x60;

pub fn run(t: &mut Report) {
    flags(t);
    stacks(t);
    compatibility(t);
    conforming(t);
    types(t);
    selectors(t);
    offset(t);
    data_segments(t);
}

/// Delivers VECTOR through `gate` from `mode` and returns the state that the
/// collector saw.
fn deliver(gate: Gate, mode: Mode, rsp: u64, flags: u64) -> Trap {
    tables::set_gate(VECTOR, Gate { offset: collector().start, dpl: 3, ..gate });
    let trap = snippet!("int 0x60").at(mode).rsp(rsp + mode.base()).flags(flags).run();
    tables::restore_gate(VECTOR);
    trap
}

fn flags(t: &mut Report) {
    let all = flag::CF | flag::ZF | flag::DF | flag::NT | flag::AC | flag::ID | flag::IF;
    for (kind, name) in [(14, "interrupt gate"), (15, "trap gate")] {
        for mode in [Mode::Kernel64, Mode::User64] {
            let gate = Gate { kind, ..Gate::standard(VECTOR) };
            let trap = deliver(gate, mode, stack_top(), all);
            let mut inside = all & !flag::NT | 2;
            if kind == 14 {
                inside &= !flag::IF;
            }
            t.eq(format_args!("{name} {mode:?} flags in the handler"), trap.regs.rax, inside);
            t.eq(format_args!("{name} {mode:?} flags saved"), trap.regs.r10, all | 2);
        }
    }
}

fn stacks(t: &mut Report) {
    let plain = Gate { ist: 0, ..Gate::standard(VECTOR) };
    for off in [0, 1, 7, 8, 15] {
        let rsp = stack_top() - 256 + off;
        let trap = deliver(plain, Mode::Kernel64, rsp, 0);
        let got = (trap.regs.rbx, trap.regs.r12);
        t.eq(format_args!("same level, stack + {off}: frame"), got, ((rsp & !15) - 40, rsp));
    }
    let trap = deliver(plain, Mode::Kernel64, stack_top(), 0);
    t.eq("same level keeps SS", trap.regs.rcx, tables::KERNEL_DATA.into());
    t.eq("same level frame: CS, SS", (trap.regs.r9, trap.regs.r13), (8, 0x10));

    let trap = deliver(plain, Mode::User64, stack_top() - 3, 0);
    t.eq("ring 3 to 0: RSP0", trap.regs.rbx, tables::rsp0_top() - 40);
    t.eq("ring 3 to 0: SS null", trap.regs.rcx, 0);
    t.eq("ring 3 to 0: CS", trap.regs.rdx, tables::KERNEL_CODE.into());
    let (cs, ss) = Mode::User64.selectors();
    t.eq("ring 3 to 0: CS, SS saved", (trap.regs.r9, trap.regs.r13), (cs.into(), ss.into()));
    t.eq("ring 3 to 0: RSP saved", trap.regs.r12, stack_top() - 3 + USER_BASE);

    tables::tss().rsp[0] = tables::rsp0_top() - 5;
    let trap = deliver(plain, Mode::User64, stack_top(), 0);
    t.eq("ring 3 to 0: RSP0 aligned down", trap.regs.rbx, tables::rsp0_top() - 16 - 40);
    tables::tss().rsp[0] = tables::rsp0_top();

    for mode in [Mode::Kernel64, Mode::User64] {
        let trap = deliver(Gate { ist: 6, ..plain }, mode, stack_top(), 0);
        t.eq(format_args!("IST 6 from {mode:?}"), trap.regs.rbx, tables::ist_top(6) - 40);
        // Without a change of level the manuals disagree about SS: SDM 6.14.5
        // says null, its pseudocode of INT n keeps it.
        t.holds(format_args!("IST 6 from {mode:?}: SS"), trap.regs.rcx, |&ss| {
            ss == 0 || (mode.cpl() == 0 && ss == 0x10)
        });
    }
    tables::tss().ist[5] = tables::ist_top(6) - 9;
    let trap = deliver(Gate { ist: 6, ..plain }, Mode::Kernel64, stack_top(), 0);
    t.eq("IST aligned down", trap.regs.rbx, tables::ist_top(6) - 16 - 40);
    tables::tss().ist[5] = tables::ist_top(6);

    // An error code makes the frame six quadwords long.
    tables::set_gate(13, Gate { offset: collector().start, ..Gate::standard(13) });
    let trap = snippet!("hlt").user();
    tables::restore_gate(13);
    let frame = (trap.regs.rbx, trap.regs.r8);
    t.eq("error code is pushed last", frame, (tables::ist_top(1) - 48, 0));
}

/// From 32-bit code the frame is the same, with 32-bit values.
fn compatibility(t: &mut Report) {
    tables::set_gate(VECTOR, Gate { offset: collector().start, dpl: 3, ..Gate::standard(VECTOR) });
    let code = snippet32!("int 0x60");
    let trap = code.at(Mode::User32).rsp(0xffff_ffff_8000_0000 | stack_top()).run();
    t.eq("from 32-bit code: RSP saved", trap.regs.r12 & 0xffff_ffff, USER_BASE | stack_top());
    t.eq("from 32-bit code: RIP saved", trap.regs.r8, code.end + USER_BASE);
    t.eq("from 32-bit code: CS saved", trap.regs.r9, tables::USER_CODE32.into());
    tables::restore_gate(VECTOR);
}

/// A conforming handler runs at the level of the interrupted code.
fn conforming(t: &mut Report) {
    tables::set_descriptor(SPARE, tables::CODE64 | CONFORMING);
    let gate = Gate {
        selector: SPARE,
        dpl: 3,
        offset: collector().start + USER_BASE,
        ..Gate::standard(VECTOR)
    };
    tables::set_gate(VECTOR, gate);
    let rsp = stack_top() + USER_BASE - 64;
    let trap = snippet!("int 0x60").at(Mode::User64).rsp(rsp).run();
    tables::restore_gate(VECTOR);
    t.eq("conforming handler: stays in ring 3", trap.regs.rdx, u64::from(SPARE | 3));
    t.eq("conforming handler: same stack", trap.regs.rbx, rsp - 40);
    t.eq("conforming handler: SS kept", trap.regs.rcx, tables::USER_DATA.into());
}

fn types(t: &mut Report) {
    let mut table = t.table("#GP gates that are no 64-bit interrupt or trap gates");
    for kind in 0..32u64 {
        if matches!(kind, 14 | 15) {
            continue;
        }
        let offset = kit::trap::stub(VECTOR);
        let low =
            (offset & 0xffff) | 8 << 16 | kind << 40 | PRESENT | (offset >> 16 & 0xffff) << 48;
        tables::set_raw_gate(VECTOR, [low, offset >> 32]);
        let got = snippet!("int 0x60").k();
        table.eq(format_args!("type {kind:#x}"), got, Outcome::coded(GP, 0x60 * 8 + 2));
    }
    table.finish();
    tables::restore_gate(VECTOR);
}

/// The checks of the gate's code segment.
fn selectors(t: &mut Report) {
    let null = 0u16;
    let with = |selector: u16| {
        tables::set_gate(VECTOR, Gate { selector, ..Gate::standard(VECTOR) });
        let outcome = snippet!("int 0x60").k();
        tables::restore_gate(VECTOR);
        outcome
    };
    let described = |descriptor: u64| {
        tables::set_descriptor(SPARE, descriptor);
        with(SPARE)
    };
    let gp = Outcome::coded(GP, SPARE.into());
    t.eq("gate: null selector", with(null), Outcome::coded(GP, 0));
    t.eq("gate: null selector with RPL 3", with(3), Outcome::coded(GP, 0));
    t.eq("gate: beyond the GDT limit", with(0x200), Outcome::coded(GP, 0x200));
    t.eq("gate: LDT selector without LDT", with(0x0c), Outcome::coded(GP, 0x0c));
    t.eq("gate: data segment", described(tables::DATA), gp);
    t.eq("gate: system descriptor", described(tables::system_descriptor(0, 0, 9)), gp);
    t.eq("gate: 32-bit code segment", described(tables::CODE32), gp);
    t.eq("gate: L and D both set", described(tables::CODE64 | field::BIG), gp);
    t.eq("gate: code DPL 3 from ring 0", described(tables::CODE64 | field::DPL3), gp);
    t.eq(
        "gate: code not present",
        described(tables::CODE64 & !PRESENT),
        Outcome::coded(NP, SPARE.into()),
    );
    t.eq("gate: RPL is ignored", with(tables::KERNEL_CODE | 3), Outcome::trap(0x60, 2));
    let not_accessed = tables::CODE64 & !(1 << 40);
    t.eq("gate: code not accessed yet", described(not_accessed), Outcome::trap(0x60, 2));

    // The same checks for an exception carry EXT.
    tables::set_gate(UD as u8, Gate { selector: 0x200, ..Gate::standard(UD as u8) });
    let outcome = snippet!("ud2").k();
    tables::restore_gate(UD as u8);
    t.eq("gate: EXT for an exception", outcome, Outcome::coded(GP, 0x201));
}

fn offset(t: &mut Report) {
    tables::set_gate(VECTOR, Gate { offset: 1 << 47, ..Gate::standard(VECTOR) });
    let trap = bytes(&[0xcd, VECTOR]).kernel();
    tables::restore_gate(VECTOR);
    t.eq("gate: non-canonical offset", (trap.vector, trap.error & !1), (GP, 0));
}

/// A handler finds the data segments as they were; IRET to ring 3 clears
/// those that ring 3 may not use.
fn data_segments(t: &mut Report) {
    let read = snippet!("mov eax, ds", "mov ebx, es");
    let mut run = read.at(Mode::User64);
    run.ds = tables::KERNEL_DATA.into();
    let trap = run.run();
    t.eq("IRET to ring 3 nulls DPL 0 data", (trap.regs.rax, trap.regs.rbx), (0, 0));
    let trap = read.user();
    let user = u64::from(tables::USER_DATA);
    t.eq("IRET to ring 3 keeps DPL 3 data", (trap.regs.rax, trap.regs.rbx), (user, user));
    tables::set_gate(VECTOR, Gate { offset: read.start, dpl: 3, ..Gate::standard(VECTOR) });
    let trap = snippet!("int 0x60").user();
    tables::restore_gate(VECTOR);
    t.eq("a handler finds DS unchanged", trap.regs.rax, user);
}
