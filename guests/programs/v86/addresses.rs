//! Segments as in real mode, behind paging as of level 3.

use crate::run as v86;
use kit::legacy;
use kit::page::{bit, peek, poke};
use kit::real::{CODE, DATA, STACK_TOP, linear, place};
use kit::tables;
use kit::trap::vector::*;
use kit::{Code, Frame4K, Global, Outcome, Report, ZERO_FRAME, snippet};

const OTHER: u16 = 0x5800;
static DIRECTORY: Global<Frame4K> = Global::new(ZERO_FRAME);
static TABLE: Global<Frame4K> = Global::new(ZERO_FRAME);

pub fn run(t: &mut Report) {
    bases(t);
    limits(t);
    far(t);
    undefined(t);
    paging(t);
}

fn bases(t: &mut Report) {
    poke(linear(DATA, 0x10), 0x1122_3344_5566_7788);
    let code = snippet!(
        ".code16"; "mov eax, [bx]", "mov cx, es", "mov dx, cs", "mov si, ss", "mov di, ds", "mov bp, sp"
    );
    let mut run = v86(code).ebx(0x10);
    run.es = 0x1234;
    let trap = run.run();
    let r = trap.regs;
    t.eq("IRETD enters", (trap.outcome(), trap.cs), (Outcome::Done, CODE.into()));
    let got = (r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp);
    let expected = (0x5566_7788, 0x1234, CODE.into(), trap.ss, DATA.into(), STACK_TOP.into());
    t.eq("selectors and data", got, expected);
    let code = snippet!(
        ".code16"; "mov ax, {data} - 1", "mov fs, ax", "mov eax, fs:[0x20]", "push ds", "pop gs",
        "mov bl, gs:[0x11]", "lds cx, [si]", "mov dx, ds" => data = const DATA
    );
    let mut run = v86(code);
    run.regs[4] = 0x10;
    let r = run.run().regs;
    t.eq("loading segments", (r.rax, r.rbx, r.rcx, r.rdx), (0x5566_7788, 0x77, 0x7788, 0x5566));
    // Entry far above 1 MiB: the high memory area.
    let mut run = v86(snippet!(".code16"; "mov eax, [bx]")).ebx(0x10);
    run.ds = 0xffff;
    t.eq("high memory area", run.run().regs.rax, peek(0x10_0000) & 0xffff_ffff);
}

fn limits(t: &mut Report) {
    let word = snippet!(".code16"; "mov ax, [bx]");
    t.eq("word at fffe", v86(word).ebx(0xfffe).outcome(), Outcome::Done);
    t.eq("#GP word at ffff", v86(word).ebx(0xffff).outcome(), Outcome::coded(GP, 0));
    let wide = snippet!(".code16"; "mov al, [ebx]");
    t.eq("#GP 32-bit address beyond", v86(wide).ebx(0x1_0000).outcome(), Outcome::coded(GP, 0));
    let mut stack = v86(snippet!(".code16"; "push ax"));
    stack.esp = 1;
    t.eq("#SS push with SP 1", stack.outcome(), Outcome::coded(SS, 0));
    stack.esp = 0;
    let trap = stack.run();
    t.eq("push wraps", (trap.outcome(), trap.rsp), (Outcome::Done, 0xfffe));
}

/// Targets beyond the limit; a machine that does not check runs away.
pub fn code_limit(t: &mut Report) {
    // A limit of 4 GiB from before does not live on.
    let mut jump = v86(snippet!(".code16"; "jmp eax")).eax(0x1_0000);
    t.eq("#GP a 32-bit jump beyond", jump.outcome(), Outcome::coded(GP, 0));
    jump.eip = 0x1_0000;
    let trap = jump.run();
    t.eq("#GP IRETD beyond the limit", (trap.vector, trap.cs), (GP, tables::KERNEL_CODE32.into()));
}

fn far(t: &mut Report) {
    let there = snippet!(".code16"; "mov bx, cs", "mov cx, sp", ".byte 0xcb"); // retf
    place(there, linear(OTHER, 0x20));
    let call = snippet!(
        ".code16"; ".byte 0x9a", ".word 0x20, {other}", "mov dx, cs" => other = const OTHER
    );
    let trap = v86(call).run();
    let got = (trap.outcome(), trap.regs.rbx, trap.regs.rcx, trap.regs.rdx);
    let expected = (Outcome::Done, OTHER.into(), u64::from(STACK_TOP) - 4, CODE.into());
    t.eq("far call and return", got, expected);
    let jump = snippet!(".code16"; ".byte 0xea", ".word 0x20, {other}" => other = const OTHER);
    place(snippet!(".code16"; "mov ax, cs"), linear(OTHER, 0x20));
    let trap = v86(jump).run();
    t.eq("far jump", (trap.vector, trap.regs.rax), (0xf0, OTHER.into()));
    let wide = snippet!(
        ".code16"; ".byte 0x66, 0x9a", ".long 0x40", ".word {other}" => other = const OTHER
    );
    place(snippet!(".code16"; "mov cx, sp", ".byte 0x66, 0xcb"), linear(OTHER, 0x40));
    let trap = v86(wide).run();
    let expected = (Outcome::Done, u64::from(STACK_TOP) - 8);
    t.eq("32-bit far call and return", (trap.outcome(), trap.regs.rcx), expected);
}

fn undefined(t: &mut Report) {
    let cases: [(&str, Code); 9] = [
        ("lldt", snippet!(".code16"; "lldt ax")),
        ("ltr", snippet!(".code16"; "ltr ax")),
        ("sldt", snippet!(".code16"; "sldt ax")),
        ("str", snippet!(".code16"; "str ax")),
        ("lar", snippet!(".code16"; "lar ax, bx")),
        ("lsl", snippet!(".code16"; "lsl ax, bx")),
        ("verr", snippet!(".code16"; "verr ax")),
        ("verw", snippet!(".code16"; "verw ax")),
        ("arpl", snippet!(".code16"; ".byte 0x63, 0xc8")),
    ];
    for (name, code) in cases {
        t.eq(format_args!("#UD {name}"), v86(code).outcome(), Outcome::fault(UD));
    }
}

/// 4 KiB pages for the first 4 MiB: those of the run for users, unless the check says otherwise.
fn paging(t: &mut Report) {
    let user = |at: u64| (0x4_0000..0x8_0000).contains(&at);
    for index in 0..1024_u64 {
        let at = index * 4096;
        let flags = bit::P | bit::W | if user(at) { bit::U } else { 0 };
        TABLE.write(index as usize * 4, &((at | flags) as u32).to_le_bytes());
    }
    DIRECTORY.write(0, &(TABLE.addr() as u32 | 7).to_le_bytes());
    let page = |code: Code| {
        let mut run = v86(code);
        run.cr0 = legacy::CR0_FLAT | 1 << 31;
        run.cr3 = DIRECTORY.addr() as u32;
        run
    };
    let set = |at: u64, flags: u64| {
        TABLE.write((at >> 12) as usize * 4, &((at | flags) as u32).to_le_bytes());
    };
    let read = snippet!(".code16"; "mov al, [bx]");
    let write = snippet!(".code16"; "mov [bx], al");
    t.eq("paged: user page", page(write).outcome(), Outcome::Done);
    let data = linear(DATA, 0x2000);
    set(data, bit::P | bit::W);
    let got = page(read).ebx(0x2010).outcome();
    t.eq("paged: #PF supervisor page", got, Outcome::page(5, data + 0x10));
    set(data, bit::P | bit::U);
    let got = page(write).ebx(0x2010).outcome();
    t.eq("paged: #PF read-only page", got, Outcome::page(7, data + 0x10));
    set(data, bit::U);
    let got = page(read).ebx(0x2010).outcome();
    t.eq("paged: #PF absent page", got, Outcome::page(4, data + 0x10));
    // A word across two pages.
    let across = snippet!(".code16"; "mov ax, [bx]");
    let got = page(across).ebx(0x1fff).outcome();
    t.eq("paged: #PF in the second page", got, Outcome::page(4, data));
    set(data, bit::P | bit::W | bit::U);
    t.eq("paged: across two pages", page(across).ebx(0x1fff).outcome(), Outcome::Done);
}
