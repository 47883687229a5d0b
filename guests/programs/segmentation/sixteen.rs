//! 16-bit protected mode: code, stack and data of 64 KiB, and both sizes mixed
//! (vol. 3B chapter 22).

use crate::{SPARE, descriptor};
use kit::legacy::{Legacy, at};
use kit::page::{peek, poke};
use kit::real::{CODE, DATA, STACK, linear, place};
use kit::tables::{self, KERNEL_CODE32};
use kit::trap::vector::*;
use kit::{Code, Outcome, Report, snippet, snippet32};

const CODE16: u16 = SPARE + 80;
const DATA16: u16 = SPARE + 88;
const STACK16: u16 = SPARE + 96;

pub fn run(t: &mut Report) {
    let segment = |selector: u16, paragraph: u16, access: u8| {
        let base = linear(paragraph, 0) as u32;
        tables::set_descriptor(selector, descriptor(base, 0xffff, access, 0));
    };
    segment(CODE16, CODE, 0x9b);
    segment(DATA16, DATA, 0x93);
    segment(STACK16, STACK, 0xf3);
    basics(t);
    stack(t);
    mixed(t);
}

/// A run of 16-bit code in ring 0, on the flat stack.
fn at16(code: Code) -> Legacy {
    place(code, linear(CODE, 0));
    let mut run = at(code);
    (run.eip, run.mark) = (0, (code.mark - code.start) as u32);
    run.cs = CODE16.into();
    run.ds = DATA16.into();
    run
}

fn basics(t: &mut Report) {
    poke(linear(DATA, 0x20), 0x8877_6655_4433_2211);
    let code =
        snippet!(".code16"; "mov ax, [bx + si]", "mov ecx, [bx + si + 2]", "mov dx, cs", "inc bp");
    let mut run = at16(code).ebx(0xfff0);
    run.regs[4] = 0x30;
    run.regs[6] = 0x1_ffff;
    let trap = run.run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rax, r.rcx, r.rdx, r.rbp);
    let expected = (Outcome::Done, 0x2211, 0x6655_4433, CODE16.into(), 0x1_0000);
    t.eq("16-bit code and data", got, expected);
    let word = snippet!(".code16"; "mov ax, [bx]");
    t.eq("#GP word at ffff", at16(word).ebx(0xffff).outcome(), Outcome::coded(GP, 0));
    let wide = snippet!(".code16"; "mov al, [ebx]");
    t.eq("#GP 32-bit address beyond", at16(wide).ebx(0x1_0000).outcome(), Outcome::coded(GP, 0));
    let call = snippet!(
        ".code16"; ".byte 0xe8", ".word 2f - . - 2", "jmp 3f", "2:", "mov bx, sp", ".byte 0xc3", "3:", "mov cx, sp"
    );
    let r = at16(call).run().regs;
    t.eq("near call pushes a word", r.rcx - r.rbx, 2);
    let int = snippet!(".code16"; "int 0x60");
    let trap = at16(int).run();
    let got = (trap.outcome(), trap.cs);
    t.eq("INT through a 32-bit gate", got, (Outcome::trap(0x60, 2), CODE16.into()));
    let jump = snippet!(".code16"; ".byte 0xe9", ".word 0xfff0 - . - 2 + 96b");
    place(snippet!(".code16"; "mov ax, 3"), linear(CODE, 0xfff0));
    let trap = at16(jump).run();
    t.eq("a near jump to fff0", (trap.vector, trap.regs.rax), (0xf0, 3));
    // LGDT and LIDT with a 16-bit operand take 24 bits of the base.
    let table = snippet!(".code16"; "mov eax, 0xff000000", "or [bx + 2], eax", ".byte 0x0f, 0x01, 0x17", "sgdt [bx + 8]");
    let gdt = tables::gdt_addr();
    poke(linear(DATA, 0x40), gdt << 16 | u64::from(tables::GDT_LIMIT));
    t.eq("16-bit LGDT", at16(table).ebx(0x40).outcome(), Outcome::Done);
    t.eq("16-bit LGDT: 24 bits", peek(linear(DATA, 0x4a)) & 0xffff_ffff, gdt);
}

/// A 16-bit stack, in ring 3: SP wraps, the upper half of ESP does not count.
fn stack(t: &mut Report) {
    let ring3 = |code: Code, esp: u32| {
        let mut run = at(code).ring3(0).with_task();
        run.ss = u32::from(STACK16) | 3;
        run.esp = esp;
        run
    };
    let code = snippet32!(
        "mov eax, 0x12345678",
        "push eax",
        "movzx ecx, sp",
        "mov ebx, esp",
        "pop edx",
        "movzx edi, sp"
    );
    let mut run = ring3(code, 0x8000);
    run.mark = run.eip;
    let trap = run.run();
    let r = trap.regs;
    let got = (trap.vector, r.rcx, r.rdx, r.rdi);
    t.eq("push and pop", got, (0xf0, 0x7ffc, 0x1234_5678, 0x8000));
    t.eq("the doubleword", peek(linear(STACK, 0x7ffc)) & 0xffff_ffff, 0x1234_5678);
    let code = snippet32!("push eax", "movzx ecx, sp");
    let trap = ring3(code, 0).run();
    t.eq("push wraps", (trap.vector, trap.regs.rcx), (0xf0, 0xfffc));
    t.eq("#SS push across the end", ring3(code, 2).outcome(), Outcome::coded(SS, 0));
    let code = snippet32!(
        "mov ebp, 0x11118000",
        "enter 0x10, 0",
        "movzx ecx, sp",
        "leave",
        "movzx edx, sp"
    );
    let trap = ring3(code, 0x4000).run();
    let got = (trap.vector, trap.regs.rcx, trap.regs.rdx, trap.regs.rbp);
    t.eq("enter, leave", got, (0xf0, 0x3fec, 0x4000, 0x1111_8000));
}

/// Far calls between code of both sizes.
fn mixed(t: &mut Report) {
    // 32-bit code calls 16-bit code, which returns with a 32-bit RETF.
    place(
        snippet!(".code16"; "mov cx, cs", "mov edx, esp", ".byte 0x66, 0xcb"),
        linear(CODE, 0x100),
    );
    let call = snippet32!(
        ".byte 0x9a", ".long 0x100", ".word {code}", "sub edx, esp", "mov ebx, cs" => code = const CODE16
    );
    let trap = at(call).run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rcx, r.rdx, r.rbx);
    let expected = (Outcome::Done, CODE16.into(), 0xffff_fff8, KERNEL_CODE32.into());
    t.eq("32-bit code calls 16-bit code", got, expected);
    // 16-bit code calls 32-bit code by an operand size prefix.
    let there = snippet32!("mov ecx, cs", "mov edx, esp", ".byte 0xcb");
    let call = snippet!(
        ".code16"; ".byte 0x66, 0xff, 0x1f", "sub edx, esp", "mov bx, cs"
    );
    poke(linear(DATA, 0), there.start | u64::from(KERNEL_CODE32) << 32);
    let trap = at16(call).run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rcx, r.rdx, r.rbx);
    let expected = (Outcome::Done, KERNEL_CODE32.into(), 0xffff_fff8, CODE16.into());
    t.eq("16-bit code calls 32-bit code", got, expected);
    // A 16-bit far return reaches only 64 KiB.
    let short = snippet32!("push {code}", "push 0x7777", "mov word ptr [esp + 2], {code}"; ".byte 0x66, 0xcb" => code = const CODE16);
    place(snippet!(".code16"; "mov ax, 9"), linear(CODE, 0x7777));
    let trap = at(short).run();
    t.eq(
        "16-bit RETF from 32-bit code",
        (trap.vector, trap.regs.rax, trap.cs),
        (0xf0, 9, CODE16.into()),
    );
}
