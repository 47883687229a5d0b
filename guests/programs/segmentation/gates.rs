//! Call gates of both sizes (5.8.3 to 5.8.5).

use crate::loads::{DATA_AT, at_level};
use crate::{SPARE, descriptor};
use kit::legacy::{self, TASK, Task};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_CODE32, KERNEL_DATA, USER_DATA, field};
use kit::trap::vector::*;
use kit::{Outcome, Report, snippet32};

const GATE: u16 = SPARE + 64;
const TARGET: u16 = SPARE + 72;

/// A 32-bit call gate, present.
fn gate(selector: u16, offset: u64, parameters: u64, dpl: u64) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | parameters << 32
        | 12 << 40
        | dpl << 45
        | field::PRESENT
        | (offset >> 16) << 48
}

pub fn run(t: &mut Report) {
    levels(t);
    parameters(t);
    sixteen(t);
    faults(t);
    stacks(t);
    round_trip(t);
}

/// CALL and JMP through a gate of DPL 3 for every CPL and DPL of the target.
fn levels(t: &mut Report) {
    let call = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const GATE);
    let jump = snippet32!(".byte 0xea", ".long 0", ".word {gate}" => gate = const GATE);
    let there = snippet32!("mov ecx, cs");
    let mut task = Task::new();
    for dpl in 1..3_u32 {
        let selector = u32::from(DATA_AT[dpl as usize]) | dpl;
        task.stacks[dpl as usize] = [stack_top() as u32 - 0x1000 * dpl, selector];
    }
    TASK.set(task);
    let mut table = t.table("call gates: CPL, DPL of the target");
    for (name, access) in [("plain", 0x9b), ("conforming", 0x9f)] {
        for (cpl, dpl) in (0..16_u8).map(|n| (n >> 2, n & 3)) {
            tables::set_descriptor(TARGET, descriptor(0, 0xfffff, access | dpl << 5, 12));
            tables::set_descriptor(GATE, gate(TARGET, there.start, 0, 3));
            for (code, is_call) in [(call, true), (jump, false)] {
                let trap = at_level(code, cpl).with_task().run();
                let case = format_args!("{name} CPL {cpl} DPL {dpl} call {is_call}");
                let conforming = access == 0x9f;
                let allowed = if conforming || is_call { dpl <= cpl } else { dpl == cpl };
                if allowed {
                    let new = if conforming { cpl } else { dpl };
                    let cs = u64::from(TARGET) | u64::from(new);
                    table.eq(case, (trap.vector, trap.regs.rcx), (0xf0, cs));
                } else {
                    table.eq(case, (trap.vector, trap.error), (GP, TARGET.into()));
                }
            }
        }
    }
    table.finish();
    TASK.set(Task::new());
}

/// 0 to 31 doublewords are copied.
fn parameters(t: &mut Report) {
    let there = snippet32!("mov ecx, esp", "mov edx, [esp + 8]", "mov edi, [esp + eax * 4 + 4]");
    let code = snippet32!(
        "mov ecx, 31", "2:", "push ecx", "loop 2b"; ".byte 0x9a", ".long 0", ".word {gate}"
        => gate = const GATE | 3
    );
    let mut table = t.table("call gates: parameters");
    for count in 0..32_u32 {
        tables::set_descriptor(GATE, gate(KERNEL_CODE32, there.start, count.into(), 3));
        let trap = at_level(code, 3).eax(count).run();
        let r = trap.regs;
        let top = tables::rsp0_top();
        table.eq(format_args!("{count}: ESP"), r.rcx, top - 16 - u64::from(count) * 4);
        if count != 0 {
            // The first and the last parameter: 1 was pushed last.
            table.eq(format_args!("{count}: values"), (r.rdx, r.rdi), (1, count.into()));
        }
    }
    table.finish();
}

/// A 16-bit gate pushes and copies words.
fn sixteen(t: &mut Report) {
    let there =
        snippet32!("mov ecx, esp", "mov edx, [esp]", "mov edi, [esp + 4]", "mov ebp, [esp + 8]");
    tables::set_descriptor(TARGET, descriptor(there.start as u32 & 0xffff_0000, 0xfffff, 0x9b, 12));
    let value = gate(TARGET, there.start & 0xffff, 2, 3) & !(0xff_u64 << 40) | 0xe4 << 40;
    tables::set_descriptor(GATE, value);
    let code = snippet32!(
        "push 0x22221111"; ".byte 0x9a", ".long 0xffffffff", ".word {gate}" => gate = const GATE | 3
    );
    let trap = at_level(code, 3).run();
    let r = trap.regs;
    t.eq("16-bit call gate: ESP", (trap.vector, r.rcx), (0xf0, tables::rsp0_top() - 12));
    let back = (code.mark + 7) & 0xffff | u64::from(tables::USER_CODE32) << 16;
    t.eq("16-bit call gate: IP and CS", r.rdx, back);
    t.eq("16-bit call gate: parameters", r.rdi, 0x2222_1111);
    let outer = (stack_top() - 4) & 0xffff | u64::from(USER_DATA) << 16;
    t.eq("16-bit call gate: SP and SS", r.rbp, outer);
}

fn faults(t: &mut Report) {
    let call = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const GATE);
    let there = snippet32!("nop");
    let offset = there.start;
    let code = u64::from(GATE);
    let good = gate(KERNEL_CODE32, offset, 0, 3);
    tables::set_descriptor(TARGET, descriptor(0, 0xfffff, 0x1b, 12));
    let cases: [(&str, u64, Outcome); 8] = [
        ("gate DPL 0 in ring 3", gate(KERNEL_CODE32, offset, 0, 0), Outcome::coded(GP, code)),
        ("absent gate", good & !field::PRESENT, Outcome::coded(NP, code)),
        ("null target", gate(0, offset, 0, 3), Outcome::coded(GP, 0)),
        ("data", gate(KERNEL_DATA, offset, 0, 3), Outcome::coded(GP, KERNEL_DATA.into())),
        ("absent code", gate(TARGET, offset, 0, 3), Outcome::coded(NP, TARGET.into())),
        ("beyond the GDT", gate(0x200, offset, 0, 3), Outcome::coded(GP, 0x200)),
        ("no LDT", gate(TARGET | 4, offset, 0, 3), Outcome::coded(GP, u64::from(TARGET) | 4)),
        ("another gate", gate(GATE, offset, 0, 3), Outcome::coded(GP, code)),
    ];
    for (name, value, expected) in cases {
        tables::set_descriptor(GATE, value);
        t.eq(format_args!("call gate: {name}"), at_level(call, 3).outcome(), expected);
    }
    // RPL of the gate's selector counts, that of the target's does not.
    let weak = snippet32!(".byte 0x9a", ".long 0", ".word {gate} + 3" => gate = const GATE);
    tables::set_descriptor(GATE, gate(KERNEL_CODE32, offset, 0, 0));
    t.eq("call gate: RPL 3 in ring 0", legacy::at(weak).outcome(), Outcome::coded(GP, code));
    tables::set_descriptor(GATE, gate(KERNEL_CODE32 | 3, offset, 0, 3));
    t.eq("call gate: RPL of the target", at_level(call, 3).run().vector, 0xf0);
    tables::set_descriptor(TARGET, descriptor(0, 0xff, 0x9b, 4));
    tables::set_descriptor(GATE, gate(TARGET, 0x100, 0, 3));
    t.eq("call gate: beyond the limit", at_level(call, 3).outcome(), Outcome::coded(GP, 0));
}

/// The stack of ring 1 from the TSS. (That of ring 0 serves the handler.)
fn stacks(t: &mut Report) {
    let call = snippet32!(".byte 0x9a", ".long 0", ".word {gate}" => gate = const GATE);
    let there = snippet32!("mov ecx, esp", "mov edx, ss");
    let data1 = DATA_AT[1];
    tables::set_descriptor(TARGET, descriptor(0, 0xfffff, 0x9b | 1 << 5, 12));
    tables::set_descriptor(GATE, gate(TARGET, there.start, 0, 3));
    tables::set_descriptor(SPARE, descriptor(0, 0xfffff, 0x33, 12));
    // One page for a stack that is too small.
    let small = TARGET + 8;
    tables::set_descriptor(small, descriptor(0, 0xfff, 0xb3, 4));
    let esp = stack_top() as u32 - 0x1000;
    let cases: [(&str, u32, u16, Outcome); 8] = [
        ("SS null", esp, 1, Outcome::coded(TS, 0)),
        ("SS of another RPL", esp, data1, Outcome::coded(TS, data1.into())),
        ("SS of ring 0", esp, KERNEL_DATA | 1, Outcome::coded(TS, KERNEL_DATA.into())),
        ("SS code", esp, TARGET | 1, Outcome::coded(TS, TARGET.into())),
        ("SS beyond the GDT", esp, 0x201, Outcome::coded(TS, 0x200)),
        ("SS absent", esp, SPARE | 1, Outcome::coded(SS, SPARE.into())),
        ("no room", 0xc, small | 1, Outcome::coded(SS, small.into())),
        ("ESP beyond the limit", 0x1004, small | 1, Outcome::coded(SS, small.into())),
    ];
    for (name, esp, ss, expected) in cases {
        let mut task = Task::new();
        task.stacks[1] = [esp, ss.into()];
        TASK.set(task);
        t.eq(format_args!("inner stack: {name}"), at_level(call, 3).outcome(), expected);
    }
    let mut task = Task::new();
    task.stacks[1] = [esp, u32::from(data1) | 1];
    TASK.set(task);
    let trap = at_level(call, 3).run();
    let got = (trap.vector, trap.regs.rcx, trap.regs.rdx);
    t.eq("inner stack of ring 1", got, (0xf0, u64::from(esp) - 16, u64::from(data1) | 1));
    TASK.set(Task::new());
}

/// CALL through a gate and RETF n back, which drops parameters on both stacks.
fn round_trip(t: &mut Report) {
    let there = snippet32!("mov edx, [esp + 8]", ".byte 0xca, 12, 0");
    tables::set_descriptor(GATE, gate(KERNEL_CODE32, there.start, 3, 3));
    let code = snippet32!(
        "push 1", "push 2", "push 3", ".byte 0x9a", ".long 0", ".word {gate}", "mov ecx, esp", "mov ebx, cs"
        => gate = const GATE
    );
    let trap = at_level(code, 3).run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rcx, r.rdx, r.rbx);
    let expected = (Outcome::Done, stack_top(), 3, tables::USER_CODE32.into());
    t.eq("call gate and retf n", got, expected);
}
