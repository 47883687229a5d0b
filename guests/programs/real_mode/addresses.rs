//! Segments are their selector times 16, 64 KiB long (SDM vol. 3B 21.1.1).

use kit::page::{peek, poke};
use kit::real::{DATA, STACK_TOP, at, linear};
use kit::trap::vector::*;
use kit::{Outcome, Report, snippet};

pub fn run(t: &mut Report) {
    bases(t);
    limits(t);
    stack(t);
    sizes(t);
    strings(t);
}

fn bases(t: &mut Report) {
    poke(linear(DATA, 0x10), 0x1122_3344_5566_7788);
    let read = snippet!(".code16"; "mov ax, [bx]", "mov ecx, es:[bx + 2]", "mov dx, ds");
    let trap = real::at(read, 0x10);
    let got = (trap.regs.rax, trap.regs.rcx, trap.regs.rdx);
    t.eq("DS and ES", got, (0x7788, 0x3344_5566, DATA.into()));
    // The same byte by another selector.
    let mut run = at(snippet!(".code16"; "mov al, [bx]"));
    (run.ds, run.ebx) = (u32::from(DATA) - 0x100, 0x1010);
    t.eq("overlapping segments", run.run().regs.rax, 0x88);
    let mut run = at(snippet!(
        ".code16"; "mov ax, {segment}", "mov fs, ax", "mov gs, ax", "mov bl, fs:[si + 1]",
        "mov cx, gs", "mov dl, gs:[0x12]" => segment = const DATA
    ));
    run.esi = 0x10;
    let regs = run.run().regs;
    let got = (regs.rbx, regs.rcx, regs.rdx);
    t.eq("FS and GS", got, (0x77, DATA.into(), 0x66));
    // Beyond 1 MiB: no wrap with the address line 20 on.
    let mut run = at(snippet!(".code16"; "mov eax, [bx]"));
    (run.ds, run.ebx) = (0xffff, 0x10);
    t.eq("high memory area", run.run().regs.rax, peek(0x10_0000) & 0xffff_ffff);
    let mut run =
        at(snippet!(".code16"; "les di, [si + 4]", "lds bx, [si]", "mov ax, ds", "mov cx, es"));
    run.esi = 0x10;
    let regs = run.run().regs;
    let got = (regs.rbx, regs.rax, regs.rdi, regs.rcx);
    t.eq("LDS and LES", got, (0x7788, 0x5566, 0x3344, 0x1122));
    // Any selector loads.
    let mut run = at(snippet!(".code16"; "mov ds, ax", "mov es, bx", "mov cx, ds", "mov dx, es"));
    (run.eax, run.ebx) = (0, 0xfff7);
    let regs = run.run().regs;
    t.eq("null and odd selectors", (regs.rcx, regs.rdx), (0, 0xfff7));
}

mod real {
    use kit::{Code, Trap};

    /// A run with this BX.
    pub fn at(code: Code, ebx: u32) -> Trap {
        let mut run = kit::real::at(code);
        run.ebx = ebx;
        run.run()
    }
}

fn limits(t: &mut Report) {
    let word = snippet!(".code16"; "mov ax, [bx]");
    t.eq("word at fffe", real::at(word, 0xfffe).outcome(), Outcome::Done);
    t.eq("#GP word at ffff", real::at(word, 0xffff).outcome(), Outcome::fault(GP));
    let byte = snippet!(".code16"; "mov al, [bx]");
    t.eq("byte at ffff", real::at(byte, 0xffff).outcome(), Outcome::Done);
    let wide = snippet!(".code16"; "mov al, [ebx]");
    t.eq("32-bit address below the limit", real::at(wide, 0xffff).outcome(), Outcome::Done);
    t.eq("#GP 32-bit address beyond it", real::at(wide, 0x1_0000).outcome(), Outcome::fault(GP));
    t.eq("#GP 32-bit address far beyond it", real::at(wide, !0).outcome(), Outcome::fault(GP));
    let write = snippet!(".code16"; "mov dword ptr [bx], 1");
    poke(linear(DATA, 0xfff8), !0);
    t.eq("#GP doubleword at fffd", real::at(write, 0xfffd).outcome(), Outcome::fault(GP));
    t.eq("nothing was written", peek(linear(DATA, 0xfff8)), !0);
    // 16-bit addresses wrap.
    let sum = snippet!(".code16"; "mov al, [bx + si + 0x20]");
    let mut run = at(sum);
    (run.ebx, run.esi) = (0xfff0, 0);
    t.eq("16-bit addresses wrap", run.run().regs.rax, 0x88);
    // Code is writable through CS.
    let patch = snippet!(".code16"; ".byte 0x2e, 0xc6, 0x06", ".word 2f + 1 - 96b", ".byte 7", "2:", "mov al, 1");
    t.eq("a write through CS", kit::real::at(patch).outcome(), Outcome::Done);
}

fn stack(t: &mut Report) {
    let push = snippet!(".code16"; "push ax");
    let with = |esp: u32| {
        let mut run = at(push);
        run.esp = esp;
        run
    };
    let trap = with(2).run();
    t.eq("push to 0", (trap.outcome(), trap.rsp), (Outcome::Done, 0));
    let trap = with(0x10000).run();
    t.eq("push wraps to fffe", (trap.outcome(), trap.rsp), (Outcome::Done, 0x1fffe));
    // SS faults with SP = 1 cannot be delivered on that stack: the frame
    // needs a word at ffff. An offset by BP is a clean case.
    let mut run = at(snippet!(".code16"; "mov ax, [bp]"));
    run.ebp = 0xffff;
    t.eq("#SS word at ffff", run.outcome(), Outcome::fault(SS));
    let mut run = at(snippet!(".code16"; "mov eax, [esp + ecx]"));
    run.ecx = 0x1_0000;
    t.eq("#SS beyond the limit", run.outcome(), Outcome::fault(SS));
    let mut run = at(
        snippet!(".code16"; "push ebx", "push 0x12", ".byte 0x66, 0x68", ".long 0x3456789a", "pop eax", "pop cx", "pop edx"),
    );
    run.ebx = 0x1234_5678;
    let trap = run.run();
    let got = (trap.regs.rax, trap.regs.rcx, trap.regs.rdx, trap.rsp);
    t.eq("push and pop of both sizes", got, (0x3456_789a, 0x12, 0x1234_5678, STACK_TOP.into()));
    let code = snippet!(
        ".code16"; "mov cx, 1", "mov dx, 2", "mov si, 6", "mov di, 7", "pusha", "mov bp, sp",
        "mov ax, [bp + 14]", "mov bx, [bp + 6]", "xor cx, cx", "mov word ptr [bp + 6], 0", "mov [bp + 14], ax",
        "mov [bp + 8], bx", "popa"
    );
    let mut run = at(code);
    run.eax = 0xabcd_0005;
    let trap = run.run();
    let got = (trap.regs.rax, trap.regs.rbx, trap.regs.rcx, trap.rsp);
    t.eq("pusha, popa", got, (0xabcd_0005, STACK_TOP.into(), 1, STACK_TOP.into()));
    let code =
        snippet!(".code16"; "mov bp, 0x1234", "enter 8, 0", "mov ax, bp", "mov bx, sp", "leave");
    let trap = at(code).run();
    let got = (trap.regs.rax, trap.regs.rbx, trap.regs.rbp, trap.rsp);
    let top = u64::from(STACK_TOP);
    t.eq("enter, leave", got, (top - 2, top - 10, 0x1234, top));
}

fn sizes(t: &mut Report) {
    let mut run =
        at(snippet!(".code16"; "add ax, bx", "adc cx, 0", "inc edx", "movzx esi, al", "cwd"));
    (run.eax, run.ebx, run.ecx, run.edx) = (0x1234_8000, 0x9000, 0xffff_ffff, 0xffff);
    let regs = run.run().regs;
    let got = (regs.rax, regs.rcx, regs.rdx, regs.rsi);
    t.eq("16-bit operations keep upper halves", got, (0x1234_1000, 0xffff_0000, 0x1_0000, 0));
    let mut run = at(snippet!(".code16"; "lea ax, [bx + si + 4]", "lea ecx, [ebx + esi * 2 + 4]"));
    (run.ebx, run.esi) = (0xffff, 0x1_0001);
    let regs = run.run().regs;
    t.eq("lea of both sizes", (regs.rax, regs.rcx), (4, 0x3_0005));
    let mut run = at(snippet!(".code16"; "mul bx", "mov si, ax", "mov di, dx", "div cx"));
    (run.eax, run.ebx, run.ecx) = (0x1234, 0x100, 0x100);
    let regs = run.run().regs;
    t.eq("mul, div", (regs.rdi, regs.rsi, regs.rax), (0x12, 0x3400, 0x1234));
    let code = snippet!(".code16"; "aam", "mov bl, al", "aad", "daa", "xlatb");
    let mut run = at(code);
    (run.eax, run.ebx) = (63, 0);
    t.eq("aam, aad", run.run().regs.rbx & 0xff, 3);
}

fn strings(t: &mut Report) {
    for i in 0..8 {
        poke(linear(DATA, 0x100 + i * 8), 0x0101_0101_0101_0101 * u64::from(i + 1));
        poke(linear(DATA, 0x200 + i * 8), 0);
    }
    let mut run = at(snippet!(".code16"; "rep movsw"));
    (run.esi, run.edi, run.ecx) = (0xabc0_0100, 0xabc0_0200, 0x5_0010);
    let regs = run.run().regs;
    let got = (regs.rsi, regs.rdi, regs.rcx, peek(linear(DATA, 0x218)), peek(linear(DATA, 0x220)));
    t.eq("rep movsw", got, (0xabc0_0120, 0xabc0_0220, 0x5_0000, 0x0404_0404_0404_0404, 0));
    // DI wraps behind a byte at ffff.
    let mut run = at(snippet!(".code16"; "rep stosb"));
    (run.edi, run.ecx, run.eax) = (0xfffe, 4, 0x5a);
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rdi, peek(linear(DATA, 0)) & 0xffff);
    t.eq("rep stosb wraps", got, (Outcome::Done, 2, 0x5a5a));
    // A word at ffff faults, with the words before it stored.
    let mut run = at(snippet!(".code16"; "rep stosw"));
    (run.edi, run.ecx, run.eax) = (0xfffb, 4, 0x1234);
    let trap = run.run();
    let got = (trap.outcome(), trap.regs.rdi, trap.regs.rcx);
    t.eq("#GP rep stosw at ffff", got, (Outcome::fault(GP), 0xffff, 2));
    let mut run = at(snippet!(".code16"; "repne scasb"));
    (run.edi, run.ecx, run.eax) = (0x100, 0x100, 3);
    t.eq("repne scasb", run.run().regs.rdi, 0x111);
    let mut run = at(snippet!(".code16"; ".byte 0x67", "rep stosb"));
    (run.edi, run.ecx, run.eax) = (0x300, 4, 0x77);
    let regs = run.run().regs;
    let got = (regs.rdi, regs.rcx, peek(linear(DATA, 0x300)) & 0xffff_ffff);
    t.eq("rep stosb with 32-bit addresses", got, (0x304, 0, 0x7777_7777));
}
