//! Far branches and returns between code segments without gates (5.8.1, 5.8.2, 5.8.6).

use crate::loads::at_level;
use crate::{SPARE, descriptor};
use kit::snippet::stack_top;
use kit::tables::{self, KERNEL_DATA, USER_CODE32, USER_DATA};
use kit::trap::vector::*;
use kit::{Outcome, Report, legacy, snippet32};

pub fn run(t: &mut Report) {
    branches(t);
    conforming(t);
    kinds(t);
    returns(t);
    nulls(t);
}

/// JMP and CALL to plain and conforming code for every CPL, RPL and DPL.
fn branches(t: &mut Report) {
    let jump = snippet32!("push eax", "push esi"; "jmp fword ptr [esp]", "nop");
    let call = snippet32!("push eax", "push esi"; "call fword ptr [esp]", "nop");
    let there = snippet32!("mov ecx, cs");
    let mut table = t.table("far branches: CPL, RPL, DPL");
    for (name, access) in [("plain", 0x9b), ("conforming", 0x9f)] {
        for (cpl, rpl, dpl) in (0..64_u8).map(|n| (n >> 4, n >> 2 & 3, n & 3)) {
            tables::set_descriptor(SPARE, descriptor(0, 0xfffff, access | dpl << 5, 12));
            let allowed = if access == 0x9f { dpl <= cpl } else { dpl == cpl && rpl <= cpl };
            for code in [jump, call] {
                let mut run = at_level(code, cpl).eax(u32::from(SPARE) | u32::from(rpl));
                run.regs[4] = there.start as u32;
                let trap = run.run();
                let case = format_args!("{name} CPL {cpl} RPL {rpl} DPL {dpl}");
                if allowed {
                    // RPL becomes CPL, which stays.
                    let got = (trap.vector, trap.regs.rcx, trap.cs);
                    let cs = u64::from(SPARE) | u64::from(cpl);
                    table.eq(case, got, (0xf0, cs, cs));
                } else {
                    table.eq(case, (trap.vector, trap.error, 0), (GP, SPARE.into(), 0));
                }
            }
        }
    }
    table.finish();
}

/// Conforming code of ring 0 runs at the caller's level.
fn conforming(t: &mut Report) {
    tables::set_descriptor(SPARE, descriptor(0, 0xfffff, 0x9f, 12));
    let there = snippet32!("mov ecx, cs", "cli");
    let call =
        snippet32!("push {spare}", "push esi", "call fword ptr [esp]" => spare = const SPARE);
    let mut run = at_level(call, 3);
    run.regs[4] = there.start as u32;
    run.mark = there.start as u32 + 2;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rcx);
    t.eq("conforming code keeps ring 3", got, (Outcome::coded(GP, 0), u64::from(SPARE) | 3));
    let back = snippet32!(".byte 0xcb");
    let call = snippet32!(
        "push {spare}", "push esi", "call fword ptr [esp]", "mov ecx, cs", "add esp, 8"
        => spare = const SPARE
    );
    let mut run = at_level(call, 3);
    run.regs[4] = back.start as u32;
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rcx, trap.rsp);
    t.eq("and returns", got, (Outcome::Done, USER_CODE32.into(), stack_top()));
}

fn kinds(t: &mut Report) {
    let jump = snippet32!("push eax", "push esi"; "jmp fword ptr [esp]");
    let code = u64::from(SPARE);
    let cases: [(&str, u8, Outcome); 5] = [
        ("data", 0x93, Outcome::coded(GP, code)),
        ("absent code", 0x1b, Outcome::coded(NP, code)),
        ("absent data", 0x13, Outcome::coded(GP, code)),
        ("an LDT", 0x82, Outcome::coded(GP, code)),
        ("an interrupt gate", 0x8e, Outcome::coded(GP, code)),
    ];
    for (name, access, expected) in cases {
        tables::set_descriptor(SPARE, descriptor(0, 0xfffff, access, 12));
        let trap = legacy::at(jump).eax(SPARE.into()).run();
        t.eq(format_args!("far jump to {name}"), trap.outcome(), expected);
    }
    let null = legacy::at(jump).eax(3).outcome();
    t.eq("far jump to null", null, Outcome::coded(GP, 0));
    tables::set_descriptor(SPARE, descriptor(0, 0xff, 0x9b, 4));
    let mut run = legacy::at(jump).eax(SPARE.into());
    run.regs[4] = 0x100;
    t.eq("far jump beyond the limit", run.outcome(), Outcome::coded(GP, 0));
    // A base: EIP counts from it.
    let there = snippet32!("mov ecx, 0x77");
    tables::set_descriptor(SPARE, descriptor(there.start as u32 - 0x10, 0xfffff, 0x9b, 12));
    let mut run = legacy::at(jump).eax(SPARE.into());
    run.regs[4] = 0x10;
    let trap = run.run();
    t.eq("far jump to a segment with a base", (trap.vector, trap.regs.rcx), (0xf0, 0x77));
}

/// RETF and IRETD to outer levels: code, stack, and who may.
fn returns(t: &mut Report) {
    let outer = snippet32!("mov ecx, cs", "mov edx, ss", "mov edi, esp");
    let retf = snippet32!("push ebx", "push 0x5000", "push eax", "push esi"; "retf");
    let iret = snippet32!("push ebx", "push 0x5000", "pushfd", "push eax", "push esi"; "iretd");
    for (name, code) in [("retf", retf), ("iretd", iret)] {
        let run = |cs: u16, ss: u16| {
            let mut run = legacy::at(code).with_task().eax(cs.into()).ebx(ss.into());
            run.regs[4] = outer.start as u32;
            run.run()
        };
        let trap = run(USER_CODE32, USER_DATA);
        let r = trap.regs;
        let got = (trap.vector, r.rcx, r.rdx, r.rdi);
        let expected = (0xf0, USER_CODE32.into(), USER_DATA.into(), 0x5000);
        t.eq(format_args!("{name} to ring 3"), got, expected);
        let (code_error, data_error) = (u64::from(USER_CODE32) & !3, u64::from(USER_DATA) & !3);
        tables::set_descriptor(SPARE, descriptor(0, 0xfffff, 0x73, 12));
        let absent = u64::from(SPARE);
        let cases: [(&str, u16, u16, u64, u64); 9] = [
            ("SS null", USER_CODE32, 3, GP, 0),
            ("SS of another RPL", USER_CODE32, USER_DATA & !3, GP, data_error),
            ("SS of ring 0", USER_CODE32, KERNEL_DATA | 3, GP, KERNEL_DATA.into()),
            ("SS code", USER_CODE32, USER_CODE32, GP, code_error),
            ("SS absent", USER_CODE32, SPARE | 3, SS, absent),
            ("SS beyond the GDT", USER_CODE32, 0x203, GP, 0x200),
            ("CS null", 3, USER_DATA, GP, 0),
            ("CS data", USER_DATA, USER_DATA, GP, data_error),
            (
                "CS with RPL 3 and DPL 0",
                tables::KERNEL_CODE32 | 3,
                USER_DATA,
                GP,
                tables::KERNEL_CODE32.into(),
            ),
        ];
        for (what, cs, ss, vector, error) in cases {
            let trap = run(cs, ss);
            let got = (trap.vector, trap.error, trap.rip);
            t.eq(format_args!("{name} {what}"), got, (vector, error, trap.mark));
        }
    }
}

/// Data segments that the outer level may not use become null (5.8.6).
fn nulls(t: &mut Report) {
    tables::set_descriptor(SPARE, descriptor(0, 0xfffff, 0x9f, 12));
    let outer = snippet32!("mov eax, ds", "mov ebx, es", "mov ecx, fs", "mov edx, gs");
    let code = snippet32!(
        "push {ss}", "push 0x5000", "push {cs}", "push esi", "mov eax, {spare}", "mov fs, eax", "mov eax, {user}",
        "mov gs, eax", "retf"
        => ss = const USER_DATA, cs = const USER_CODE32, spare = const SPARE, user = const USER_DATA
    );
    let mut run = legacy::at(code).with_task();
    run.regs[4] = outer.start as u32;
    let r = run.run().regs;
    let got = (r.rax, r.rbx, r.rcx, r.rdx);
    t.eq("only conforming code and ring 3 data stay", got, (0, 0, SPARE.into(), USER_DATA.into()));
}
