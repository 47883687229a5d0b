//! Between real and protected mode, and what survives (SDM vol. 3A 10.9).

use kit::page::peek;
use kit::real::{CODE, at, last, linear};
use kit::tables::{self, DATA as FLAT, KERNEL_DATA, field};
use kit::{Outcome, Report, snippet};

/// 16-bit code with its base at `CODE:0`, and the way to it.
const PROTECTED: u16 = tables::FREE_SELECTOR;
/// Data with 64 KiB, as the way back needs it.
const PLAIN: u16 = tables::FREE_SELECTOR + 8;

pub fn run(t: &mut Report) {
    let base = linear(CODE, 0);
    tables::set_descriptor(PROTECTED, 0x0000_9b00_0000_ffff | base << 16);
    tables::set_descriptor(PLAIN, FLAT & !(0xf << 48 | 1 << 55 | field::BIG) | 0xffff);
    round_trip(t);
    unreal(t);
    lmsw(t);
    before_the_jump(t);
}

fn round_trip(t: &mut Report) {
    let code = snippet!(
        ".code16";
        "mov eax, cr0", "or al, 1", "mov cr0, eax",
        ".byte 0xea", ".word 2f - 96b, {protected}",
        "2:", "mov bx, {data}", "mov ds, bx", "mov ebx, [esi]", "str cx", "mov dx, cs",
        "mov di, {plain}", "mov ds, di",
        "and al, 0xfe", "mov cr0, eax",
        ".byte 0xea", ".word 3f - 96b, {code}",
        "3:", "mov di, cs"
        => protected = const PROTECTED, data = const KERNEL_DATA, plain = const PLAIN, code = const CODE
    );
    let mut run = at(code);
    run.esi = 0x10_0000;
    let trap = run.run();
    let regs = trap.regs;
    let got = (trap.outcome(), regs.rbx, regs.rdx, regs.rdi);
    let expected = (Outcome::Done, peek(0x10_0000) & 0xffff_ffff, PROTECTED.into(), CODE.into());
    t.eq("real to protected and back", got, expected);
    t.eq("back in real mode", last().cr0 & 1, 0);
}

/// A limit of 4 GiB, loaded in protected mode, stays.
fn unreal(t: &mut Report) {
    let code = snippet!(
        ".code16";
        "mov eax, cr0", "or al, 1", "mov cr0, eax", "mov bx, {data}", "mov ds, bx", "and al, 0xfe",
        "mov cr0, eax", "mov ebx, [esi]", "xor cx, cx", "mov ds, cx", "mov ecx, [esi]"
        => data = const KERNEL_DATA
    );
    let mut run = at(code);
    run.esi = 0x10_0000;
    let trap = run.run();
    let wanted = peek(0x10_0000) & 0xffff_ffff;
    let got = (trap.outcome(), trap.regs.rbx, trap.regs.rcx);
    t.eq("a limit of 4 GiB in real mode", got, (Outcome::Done, wanted, wanted));
}

fn lmsw(t: &mut Report) {
    let code = snippet!(
        ".code16";
        "smsw ax", "or ax, 1", "lmsw ax", "smsw bx", "and ax, 0xfffe", "lmsw ax", "smsw cx",
        "mov eax, cr0", "and al, 0xfe", "mov cr0, eax", "smsw dx"
    );
    let regs = at(code).run().regs;
    let got = (regs.rbx & 1, regs.rcx & 1, regs.rdx & 1);
    t.eq("LMSW sets PE and cannot clear it", got, (1, 1, 0));
}

/// With PE just set, CS is still what real mode loaded, at level 0.
fn before_the_jump(t: &mut Report) {
    let code = snippet!(
        ".code16";
        "mov eax, cr0", "or al, 1", "mov cr0, eax", "mov bx, cs", "lar cx, si", "mov dx, 0xf0f0",
        "and al, 0xfe", "mov cr0, eax"
    );
    let mut run = at(code);
    run.esi = KERNEL_DATA.into();
    let trap = run.run();
    let regs = trap.regs;
    let got = (trap.outcome(), regs.rbx, regs.rcx, regs.rdx);
    t.eq("protected mode before the far jump", got, (Outcome::Done, CODE.into(), 0x9300, 0xf0f0));
}
