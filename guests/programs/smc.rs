//! Self-modifying and generated code: every kind of store into code, at every
//! distance, through aliases and remapping (Intel SDM vol. 3A 8.1.3, 11.6).
//!
//! A store through the address that the code runs at takes effect for the
//! next instruction. A store through another linear address takes effect
//! after a serializing instruction.

#![no_std]
#![no_main]

use kit::page::{self, bit};
use kit::snippet::USER_BASE;
use kit::{Frame4K, Global, Mode, Outcome, Report, Run, ZERO_FRAME, snippet, tables};

kit::program!(main);

static CODE: Global<[Frame4K; 4]> = Global::new([ZERO_FRAME; 4]);
static FIRST: Global<Frame4K> = Global::new(ZERO_FRAME);
static SECOND: Global<Frame4K> = Global::new(ZERO_FRAME);

const ALIAS: u64 = page::WINDOW;
const OTHER_ALIAS: u64 = page::WINDOW + 0x10_0000;
const FULL: u64 = bit::P | bit::W | bit::U;
/// INT of the snippet end vector.
const END: [u8; 2] = [0xcd, tables::END_VECTOR];

fn main(t: &mut Report) {
    next_instruction(t);
    distances(t);
    store_kinds(t);
    across_pages(t);
    loops(t);
    generated(t);
    of_the_other_size(t);
    aliases(t);
    remapped(t);
    data_beside_code(t);
    ring_three(t);
    frames(t);
}

/// Copies machine code, followed by the end, into the code area.
fn place(offset: u64, code: &[u8]) -> u64 {
    let at = CODE.addr() + offset;
    for (i, &byte) in code.iter().chain(&END).enumerate() {
        // SAFETY: the callers' offsets leave room in the code area.
        unsafe { ((at + i as u64) as *mut u8).write_volatile(byte) };
    }
    at
}

/// A run in ring 0 that starts at `address`.
fn at(address: u64) -> Run {
    let mut run = snippet!("nop").at(Mode::Kernel64);
    run.rip = address;
    run.mark = address;
    run
}

/// `mov eax, imm32` in machine code.
fn mov_eax(value: u32) -> [u8; 5] {
    let v = value.to_le_bytes();
    [0xb8, v[0], v[1], v[2], v[3]]
}

fn next_instruction(t: &mut Report) {
    // mov dword [rip + 1], ecx ; mov eax, 0
    let code = [0x89, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0];
    let start = place(0, &code);
    let trap = at(start).rcx(0x1234_5678).run();
    t.eq("store into the next instruction", trap.regs.rax, 0x1234_5678);
    let trap = at(start).rcx(0x8765_4321).run();
    t.eq("again, now that it was executed", trap.regs.rax, 0x8765_4321);
    // The opcode itself: mov byte [rip], cl ; inc eax -> dec eax.
    let start = place(0, &[0x88, 0x0d, 1, 0, 0, 0, 0xff, 0xc0]);
    let trap = at(start).rcx(0xc8).rax(5).run();
    t.eq("inc eax becomes dec eax", trap.regs.rax, 4);
    // To an undefined instruction.
    let start = place(0, &[0x66, 0x89, 0x0d, 0, 0, 0, 0, 0x90, 0x90]);
    let trap = at(start).rcx(0x0b0f).run();
    let got = (trap.vector, trap.rip);
    t.eq("nop nop becomes ud2", got, (kit::trap::vector::UD, start + 7));
}

/// A store followed by some instructions, then the changed one.
fn distances(t: &mut Report) {
    let mut table = t.table("store a few instructions ahead");
    for gap in 0..64u8 {
        let mut code = [0x90u8; 80];
        code[..6].copy_from_slice(&[0x89, 0x0d, gap + 1, 0, 0, 0]);
        let target = 6 + usize::from(gap);
        code[target..target + 5].copy_from_slice(&mov_eax(0));
        let start = place(0, &code[..target + 5]);
        for value in [u64::from(gap) + 1, 0x100 + u64::from(gap)] {
            let trap = at(start).rcx(value).run();
            table.eq(format_args!("gap {gap} value {value:#x}"), trap.regs.rax, value);
        }
    }
    table.finish();
}

/// Every kind of store into an instruction that was executed before.
fn store_kinds(t: &mut Report) {
    let kinds = [
        ("mov byte", snippet!("mov [rdi], cl", "jmp rbx")),
        ("mov word", snippet!("mov [rdi], cx", "jmp rbx")),
        ("mov doubleword", snippet!("mov [rdi], ecx", "jmp rbx")),
        ("mov quadword", snippet!("mov [rdi], rcx", "jmp rbx")),
        ("movnti", snippet!("movnti [rdi], ecx", "sfence", "jmp rbx")),
        ("xchg", snippet!("xchg [rdi], ecx", "jmp rbx")),
        ("lock add", snippet!("sub ecx, [rdi]", "lock add [rdi], ecx", "jmp rbx")),
        ("lock cmpxchg", snippet!("mov eax, [rdi]", "lock cmpxchg [rdi], ecx", "jmp rbx")),
        ("stosb", snippet!("mov eax, ecx", "stosb", "jmp rbx")),
        ("rep stosb", snippet!("mov eax, ecx", "mov ecx, 1", "rep stosb", "jmp rbx")),
        ("rep movsb", snippet!("push rcx", "mov rsi, rsp", "mov ecx, 4", "rep movsb", "jmp rbx")),
        ("rep movsq", snippet!("push rcx", "mov rsi, rsp", "mov ecx, 1", "rep movsq", "jmp rbx")),
        ("movd", snippet!("movd xmm0, ecx", "movd [rdi], xmm0", "jmp rbx")),
        ("movq", snippet!("movq xmm0, rcx", "movq [rdi], xmm0", "jmp rbx")),
        (
            "movups",
            snippet!(
                "movups xmm0, [rdi]",
                "movd xmm1, ecx",
                "movss xmm0, xmm1",
                "movups [rdi], xmm0",
                "jmp rbx"
            ),
        ),
        ("push", snippet!("lea rsp, [rdi + 8]", "push rcx", "jmp rbx")),
        ("setcc", snippet!("test ecx, ecx", "setne [rdi]", "jmp rbx")),
        (
            "bts",
            snippet!(
                "btr dword ptr [rdi], 0",
                "bts dword ptr [rdi], 0",
                "mov [rdi], cl",
                "jmp rbx"
            ),
        ),
        (
            "fistp",
            snippet!(
                "push rcx",
                "fninit",
                "fild dword ptr [rsp]",
                "fistp dword ptr [rdi]",
                "jmp rbx"
            ),
        ),
    ];
    let mut table = t.table("kinds of stores into code");
    for (name, code) in kinds {
        // mov eax, 0x55; the high bytes of the patched words are zero too.
        let start = place(0, &[0xb8, 0x55, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90]);
        at(start).run();
        // A quadword store covers the bytes behind the immediate: NOPs again.
        let nops = 0x9090_9090u64 << 32;
        for value in [0x01u64, 0x66, 0x01] {
            let run = code.at(Mode::Kernel64).rdi(start + 1).rbx(start).rcx(value | nops);
            let expected = if name == "setcc" { 1 } else { value };
            table.eq(format_args!("{name} {value:#x}"), run.run().regs.rax, expected);
        }
    }
    table.finish();
}

/// An instruction on two pages, changed on either.
fn across_pages(t: &mut Report) {
    let mut table = t.table("instruction on two pages");
    for before in 1..=4u64 {
        let start = place(4096 - before, &mov_eax(0x1111_1111));
        table.eq(format_args!("{before}"), at(start).run().regs.rax, 0x1111_1111);
        for i in 1..=4u64 {
            page_byte(start + i, 0x22);
            let mask = (1u64 << (8 * i)) - 1;
            let expected = 0x1111_1111 & !mask | 0x2222_2222 & mask;
            let got = at(start).run().regs.rax;
            table.eq(format_args!("{before} before the edge, byte {i}"), got, expected);
        }
    }
    table.finish();
}

/// Writes one byte through the identity map.
fn page_byte(address: u64, value: u8) {
    // SAFETY: callers name bytes of the code area.
    unsafe { (address as *mut u8).write_volatile(value) };
}

/// Loops that change themselves in every turn.
fn loops(t: &mut Report) {
    // 2: add eax, imm32 ; inc dword [rip - 10] ; dec ecx ; jnz 2b
    // The immediate counts up, so the sum is 1 + 2 + .. + n.
    let code = [
        0x05, 1, 0, 0, 0, // add eax, 1
        0xff, 0x05, 0xf6, 0xff, 0xff, 0xff, // inc dword [rip - 10]
        0xff, 0xc9, // dec ecx
        0x75, 0xf1, // jnz
    ];
    let start = place(0, &code);
    let n = 5000;
    let trap = at(start).rcx(n).run();
    t.eq("a loop that counts up its own immediate", trap.regs.rax, n * (n + 1) / 2);
    // The loop's branch is taken away in the middle of its turns.
    let snippet = snippet!(
        "lea rdi, [rip + 3f]",
        "mov ecx, 100",
        "4:",
        "inc eax",
        "cmp eax, 37",
        "jne 5f",
        "mov word ptr [rdi], 0x9090",
        "5:",
        "dec ecx",
        "3: jnz 4b"
    );
    let trap = snippet.kernel();
    let got = (trap.outcome(), trap.regs.rax);
    t.eq("a loop that removes its own branch", got, (Outcome::Done, 37));
}

/// A just-in-time compiler's pattern: generate, call, generate over it.
fn generated(t: &mut Report) {
    let call = snippet!("call rbx");
    let mut sum = 0u64;
    let mut expected = 0u64;
    for i in 0..600u64 {
        let offset = (i * 37) % 8000;
        let mut code = [0u8; 6];
        code[..5].copy_from_slice(&mov_eax(i as u32 * 3 + 1));
        code[5] = 0xc3;
        let start = place(offset, &code);
        sum += call.at(Mode::Kernel64).rbx(start).run().regs.rax;
        expected += i * 3 + 1;
    }
    t.eq("600 functions over each other", sum, expected);
    // Data again where code was.
    let start = place(0, &mov_eax(1));
    at(start).run();
    page::poke(start, 0x1122_3344_5566_7788);
    t.eq("data where code was", page::peek(start), 0x1122_3344_5566_7788);
    place(0, &mov_eax(2));
    t.eq("code where data was", at(start).run().regs.rax, 2);
}

/// 32-bit code that 64-bit code writes, again and again at the same place.
fn of_the_other_size(t: &mut Report) {
    let mut wrong = 0u64;
    for value in 0..100u32 {
        let mut run = at(place(0x2000, &mov_eax(value)));
        let kernel32 = snippet!("nop").at(Mode::Kernel32);
        (run.cs, run.ss) = (kernel32.cs, kernel32.ss);
        wrong += u64::from(run.run().regs.rax != u64::from(value));
    }
    t.eq("32-bit code written by 64-bit code", wrong, 0);
}

/// Code seen at several addresses, changed through one of them.
fn aliases(t: &mut Report) {
    FIRST.write(0, &mov_eax(1));
    FIRST.write(5, &END);
    page::map(ALIAS, FIRST.addr(), FULL);
    page::map(OTHER_ALIAS, FIRST.addr(), FULL);
    let values = || [ALIAS, OTHER_ALIAS, FIRST.addr()].map(|address| at(address).run().regs.rax);
    t.eq("one page at three addresses", values(), [1; 3]);
    for (value, through) in [(2, FIRST.addr()), (3, ALIAS), (4, OTHER_ALIAS)] {
        page_byte(through + 1, value);
        // Entering a snippet is serializing (IRETQ).
        t.eq(format_args!("changed through {through:#x}"), values(), [u64::from(value); 3]);
    }
    // From the running code itself, with CPUID between store and use.
    let code = [
        0x88,
        0x0f, // mov [rdi], cl
        0x31,
        0xc0,
        0x53,
        0x0f,
        0xa2,
        0x5b, // xor eax, eax; push rbx; cpuid; pop rbx
        0xb8,
        0,
        0,
        0,
        0, // mov eax, 0
        0xcd,
        tables::END_VECTOR,
    ];
    FIRST.write(0, &code);
    for value in [7, 8] {
        let trap = at(ALIAS).rdi(OTHER_ALIAS + 9).rcx(value).run();
        t.eq(format_args!("changed by itself through an alias, {value}"), trap.regs.rax, value);
    }
}

/// The page under an address changes.
fn remapped(t: &mut Report) {
    FIRST.write(0, &mov_eax(1));
    FIRST.write(5, &END);
    SECOND.write(0, &mov_eax(2));
    SECOND.write(5, &END);
    let mut table = t.table("remapped code page");
    for i in 0..20u64 {
        let frame = if i % 2 == 0 { &FIRST } else { &SECOND };
        page::map(ALIAS, frame.addr(), FULL);
        table.eq(format_args!("{i}"), at(ALIAS).run().regs.rax, i % 2 + 1);
    }
    table.finish();
    page::map(ALIAS, FIRST.addr(), FULL | bit::NX);
    t.eq("code page made NX", at(ALIAS).outcome(), Outcome::page(0x11, ALIAS));
    page::map(ALIAS, FIRST.addr(), bit::P);
    t.eq("code page made read-only", at(ALIAS).run().regs.rax, 1);
    page_byte(FIRST.addr() + 1, 9);
    t.eq("read-only code changed through another address", at(ALIAS).run().regs.rax, 9);
}

/// Data on the page of running code: slow on some machines, never wrong.
fn data_beside_code(t: &mut Report) {
    // 2: inc dword [rdi] ; dec ecx ; jnz 2b
    let start = place(0, &[0xff, 0x07, 0xff, 0xc9, 0x75, 0xfa]);
    let data = CODE.addr() + 2048;
    page::poke(data, 0);
    at(start).rdi(data).rcx(20_000).run();
    t.eq("counting beside the code", page::peek(data), 20_000);
}

fn ring_three(t: &mut Report) {
    let code = [0x89, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0];
    let start = place(0, &code) + USER_BASE;
    let mut run = snippet!("nop").at(Mode::User64);
    run.rip = start;
    run.mark = start;
    let got = [5, 6].map(|value| run.rcx(value).run().regs.rax);
    t.eq("store into the next instruction, ring 3", got, [5, 6]);
}

/// CALL pushes its return address over the immediate of an instruction.
fn frames(t: &mut Report) {
    // mov rax, imm64
    let start = place(0, &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
    at(start).run();
    let call = snippet!("lea rsp, [rdi + 8]", "call 2f"; "2:", "jmp rbx");
    let trap = call.at(Mode::Kernel64).rdi(start + 2).rbx(start).run();
    t.eq("call pushes over code", page::peek(start + 2), call.mark);
    t.eq("the pushed bytes are executed", trap.regs.rax, call.mark);
}
