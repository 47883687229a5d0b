//! MOV and POP to segment registers, LFS, LGS and LSS: every descriptor type,
//! DPL and RPL against a model of SDM vol. 3A 5.6 and vol. 2B MOV.

use crate::{PRESENT, SPARE, described};
use kit::tables::set_descriptor;
use kit::trap::vector::*;
use kit::{Code, Mode, Outcome, Report, snippet, snippet32};

/// What a load of DS, ES, FS or GS does.
fn data_model(kind: u64, dpl: u64, present: bool, rpl: u64, cpl: u64) -> Outcome {
    let selector = u64::from(SPARE);
    let is_segment = kind & 0x10 != 0;
    let is_code = kind & 0x18 == 0x18;
    let readable = !is_code || kind & 2 != 0;
    let conforming = is_code && kind & 4 != 0;
    if !is_segment || !readable || (!conforming && (rpl > dpl || cpl > dpl)) {
        Outcome::coded(GP, selector)
    } else if !present {
        Outcome::coded(NP, selector)
    } else {
        Outcome::Done
    }
}

/// What a load of SS does.
fn stack_model(kind: u64, dpl: u64, present: bool, rpl: u64, cpl: u64) -> Outcome {
    let selector = u64::from(SPARE);
    let writable_data = kind & 0x1a == 0x12;
    if rpl != cpl || !writable_data || dpl != cpl {
        Outcome::coded(GP, selector)
    } else if !present {
        Outcome::coded(SS, selector)
    } else {
        Outcome::Done
    }
}

pub fn run(t: &mut Report) {
    every_descriptor(t);
    null(t);
    limits(t);
    accessed(t);
    pointers(t);
    values(t);
}

/// The instructions that load each register from AX.
fn loaders() -> [(&'static str, Code); 6] {
    [
        ("mov ds", snippet!("mov ds, eax")),
        ("mov es", snippet!("mov es, eax")),
        ("mov fs", snippet!("mov fs, eax")),
        ("mov gs", snippet!("mov gs, eax")),
        ("pop fs", snippet!("push rax"; ".byte 0x0f, 0xa1")),
        ("pop gs", snippet!("push rax"; ".byte 0x0f, 0xa9")),
    ]
}

fn every_descriptor(t: &mut Report) {
    let modes = [Mode::Kernel64, Mode::User64];
    let mut table = t.table("data segment loads");
    for (name, code) in loaders() {
        for kind in 0..32 {
            for dpl in [0, 1, 3] {
                for present in [true, false] {
                    let descriptor = described(kind, dpl);
                    set_descriptor(SPARE, if present { descriptor } else { descriptor & !PRESENT });
                    for mode in modes {
                        for rpl in [0, 3] {
                            let got = code.at(mode).rax(u64::from(SPARE) | rpl).outcome();
                            let expected = data_model(kind, dpl, present, rpl, mode.cpl());
                            let case = format_args!(
                                "{name} type {kind:#x} dpl {dpl} present {present} rpl {rpl} {mode:?}"
                            );
                            table.eq(case, got, expected);
                        }
                    }
                }
            }
        }
    }
    table.finish();

    let mut table = t.table("stack segment loads");
    let code = snippet!("mov ss, eax");
    for kind in 0..32 {
        for dpl in [0, 1, 3] {
            for present in [true, false] {
                let descriptor = described(kind, dpl);
                set_descriptor(SPARE, if present { descriptor } else { descriptor & !PRESENT });
                for mode in modes {
                    for rpl in [0, 1, 3] {
                        let got = code.at(mode).rax(u64::from(SPARE) | rpl).outcome();
                        let expected = stack_model(kind, dpl, present, rpl, mode.cpl());
                        let case = format_args!(
                            "type {kind:#x} dpl {dpl} present {present} rpl {rpl} {mode:?}"
                        );
                        table.eq(case, got, expected);
                    }
                }
            }
        }
    }
    table.finish();
}

fn null(t: &mut Report) {
    for (name, code) in loaders() {
        for mode in [Mode::Kernel64, Mode::User64] {
            for selector in 0..4 {
                let got = code.at(mode).rax(selector).outcome();
                t.eq(format_args!("null: {name} {selector} {mode:?}"), got, Outcome::Done);
            }
        }
    }
    let ss = snippet!("mov ss, eax");
    t.eq("null: mov ss 0 in ring 0", ss.at(Mode::Kernel64).rax(0).outcome(), Outcome::Done);
    let wrong = ss.at(Mode::Kernel64).rax(3).outcome();
    t.eq("null: mov ss 3 in ring 0", wrong, Outcome::coded(GP, 0));
    t.eq("null: mov ss 3 in ring 3", ss.at(Mode::User64).rax(3).outcome(), Outcome::coded(GP, 0));
    t.eq("null: mov ss 0 in ring 3", ss.at(Mode::User64).rax(0).outcome(), Outcome::coded(GP, 0));
    let ss = snippet32!("mov ss, eax");
    let narrow = ss.at(Mode::Kernel32).rax(0).outcome();
    t.eq("null: mov ss 0 in 32-bit ring 0", narrow, Outcome::coded(GP, 0));
    // A null segment works in 64-bit mode and faults in 32-bit mode.
    let wide = snippet!("xor eax, eax", "mov ds, eax"; "mov eax, [rsp]").u();
    t.eq("null DS in 64-bit code", wide, Outcome::Done);
    let narrow = snippet32!("mov ebx, esp", "xor eax, eax", "mov ds, eax"; "mov eax, [ebx]");
    t.eq("null DS in 32-bit code", narrow.at(Mode::User32).outcome(), Outcome::coded(GP, 0));
}

fn limits(t: &mut Report) {
    let load = snippet!("mov ds, eax");
    let at = |selector: u64| load.at(Mode::Kernel64).rax(selector).outcome();
    t.eq("beyond the GDT limit", at(0x200), Outcome::coded(GP, 0x200));
    t.eq("beyond the GDT limit, RPL kept out", at(0xfffb), Outcome::coded(GP, 0xfff8));
    t.eq("LDT selector without LDT", at(0x14), Outcome::coded(GP, 0x14));
    let user = snippet!("mov ss, eax").at(Mode::User64).rax(0x203).outcome();
    t.eq("mov ss beyond the GDT limit", user, Outcome::coded(GP, 0x200));
    // An expand-up segment's limit counts in 32-bit code only.
    let descriptor = described(0x12, 3) & !(0xff_ffff | 0xf << 48 | 1 << 55) | 0xfff;
    set_descriptor(SPARE, descriptor | 1 << 54);
    let code = snippet32!("mov ds, eax"; "mov ecx, [ebx]");
    let at = |address: u64| {
        let run = code.at(Mode::User32).rax(u64::from(SPARE | 3)).rbx(address);
        run.run().vector
    };
    t.eq("32-bit: last doubleword below the limit", at(0xffc), PF);
    t.eq("#GP 32-bit: across the limit", at(0xffd), GP);
    t.eq("#GP 32-bit: beyond the limit", at(0x1000), GP);
    let wide = snippet!("mov ds, eax"; "mov ecx, [rsp]");
    let got = wide.at(Mode::User64).rax(u64::from(SPARE | 3)).outcome();
    t.eq("64-bit code ignores the limit", got, Outcome::Done);
    // Expand-down: valid above the limit.
    set_descriptor(SPARE, descriptor | 1 << 54 | 4 << 40);
    t.eq("#GP 32-bit expand-down: below the limit", at(0xfff), GP);
    t.eq("32-bit expand-down: above the limit", at(0x1000), PF);
    // Read-only data and execute-only code.
    set_descriptor(SPARE, described(0x10, 3));
    let write = snippet32!("mov ebx, esp", "mov ds, eax"; "mov [ebx], ecx");
    let got = write.at(Mode::User32).rax(u64::from(SPARE | 3)).outcome();
    t.eq("#GP 32-bit: write to read-only data", got, Outcome::coded(GP, 0));
    let over = snippet32!("mov ecx, cs:[esp]"; "mov cs:[esp], ecx").at(Mode::User32).outcome();
    t.eq("#GP 32-bit: write to code", over, Outcome::coded(GP, 0));
    // Base addresses count in 32-bit code.
    let based = described(0x12, 3) | 1 << 54 | 0x1000 << 16;
    set_descriptor(SPARE, based);
    let read =
        snippet32!("mov [esp], esp", "lea ebx, [esp - 0x1000]", "mov ds, eax"; "mov ecx, [ebx]");
    let trap = read.at(Mode::User32).rax(u64::from(SPARE | 3)).run();
    t.eq("32-bit: segment base is added", trap.regs.rcx, trap.rsp & 0xffff_ffff);
}

fn accessed(t: &mut Report) {
    for (name, code) in loaders() {
        let fresh = described(0x12, 0);
        set_descriptor(SPARE, fresh);
        code.at(Mode::Kernel64).rax(SPARE.into()).run();
        let now = kit::tables::descriptor(SPARE);
        t.eq(format_args!("{name} sets the accessed bit"), now, fresh | 1 << 40);
    }
    let fresh = described(0x12, 0) & !PRESENT;
    set_descriptor(SPARE, fresh);
    snippet!("mov ds, eax").at(Mode::Kernel64).rax(SPARE.into()).run();
    let now = kit::tables::descriptor(SPARE);
    t.eq("a faulting load sets no accessed bit", now, fresh);
}

/// LFS, LGS, LSS, and LDS, LES in 32-bit code.
fn pointers(t: &mut Report) {
    let good = 0x23;
    let lfs = snippet!(
        "sub rsp, 16", "mov dword ptr [rsp], 0x1234", "mov [rsp + 4], ax"; "lfs ecx, [rsp]",
        "mov edx, fs"
    );
    let trap = lfs.at(Mode::User64).rax(good).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdx);
    t.eq("lfs", got, (Outcome::Done, 0x1234, good));
    let trap = lfs.at(Mode::User64).rax(0x203).rcx(7).run();
    let got = (trap.outcome(), trap.regs.rcx);
    t.eq("lfs with a bad selector keeps the register", got, (Outcome::coded(GP, 0x200), 7));
    let lss = snippet!(
        "mov rbx, rsp", "sub rbx, 64", "mov [rbx], ebx", "mov [rbx + 4], ax"; "lss esp, [rbx]",
        "mov edx, ss"
    );
    let trap = lss.at(Mode::User64).rax(good).run();
    let got = (trap.outcome(), trap.rsp, trap.regs.rdx);
    t.eq("lss", got, (Outcome::Done, trap.regs.rbx, good));
    let les = snippet32!(
        "sub esp, 16", "mov dword ptr [esp], 0x4321", "mov [esp + 4], ax"; "les ecx, [esp]",
        "mov edx, es"
    );
    let trap = les.at(Mode::User32).rax(good).run();
    let got = (trap.outcome(), trap.regs.rcx, trap.regs.rdx);
    t.eq("les in 32-bit code", got, (Outcome::Done, 0x4321, good));
}

/// Reading segment registers: sizes and upper bits.
fn values(t: &mut Report) {
    let code = snippet!(
        "mov rax, -1",
        "mov rbx, rax",
        "mov eax, ss",
        ".byte 0x66, 0x8c, 0xd3",
        "mov rdx, ss"
    );
    let trap = code.user();
    let got = (trap.regs.rax, trap.regs.rbx, trap.regs.rdx);
    t.eq("mov from a segment register", got, (0x23, 0xffff_ffff_ffff_0023, 0x23));
    let mem = snippet!("push -1", "mov [rsp], ss", "pop rax");
    t.eq("mov to memory is 16 bits", mem.user().regs.rax, 0xffff_ffff_ffff_0023);
    let pop = snippet!(
        "mov rcx, rsp",
        "push 0x23",
        ".byte 0x0f, 0xa9",
        ".byte 0x0f, 0xa8",
        "pop rax",
        "sub rcx, rsp"
    );
    let trap = pop.user();
    t.eq("push and pop move rsp by 8", (trap.regs.rax, trap.regs.rcx), (0x23, 0));
}
