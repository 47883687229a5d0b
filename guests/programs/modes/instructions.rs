//! Instructions and forms that only 32-bit code has; run both outside long
//! mode and in compatibility mode.

use kit::cpu::flag;
use kit::legacy::at;
use kit::snippet::stack_top;
use kit::{Code, Mode, Outcome, Report, Trap, snippet32};

const AF: u64 = 1 << 4;
const CF: u64 = flag::CF;

pub fn run(t: &mut Report) {
    for (mode, name) in [(None, "legacy"), (Some(Mode::User32), "compatibility")] {
        let run = |code: Code, eax: u32, eflags: u64| -> Trap {
            match mode {
                None => {
                    let mut run = at(code).eax(eax);
                    run.eflags |= eflags as u32;
                    run.run()
                }
                Some(mode) => code.at(mode).rax(eax.into()).flags(eflags).run(),
            }
        };
        decimal(t, name, &run);
        stack(t, name, &run);
        forms(t, name, &run);
    }
}

type Runner<'a> = &'a dyn Fn(Code, u32, u64) -> Trap;

fn decimal(t: &mut Report, name: &str, run: Runner<'_>) {
    // Instruction, AX before, flags before, AX after, CF and AF after.
    let cases: [(&str, Code, u32, u64, u64, u64); 14] = [
        ("daa 9a", snippet32!("daa"), 0x9a, 0, 0x00, CF | AF),
        ("daa 3f", snippet32!("daa"), 0x3f, 0, 0x45, AF),
        ("daa 21 with CF", snippet32!("daa"), 0x21, CF, 0x81, CF),
        ("daa 42", snippet32!("daa"), 0x42, 0, 0x42, 0),
        ("das 3f", snippet32!("das"), 0x3f, 0, 0x39, AF),
        ("das 9a", snippet32!("das"), 0x9a, 0, 0x34, CF | AF),
        ("das 02 with AF", snippet32!("das"), 0x02, AF, 0xfc, CF | AF),
        ("aaa 000b", snippet32!("aaa"), 0x000b, 0, 0x0101, CF | AF),
        ("aaa 0104", snippet32!("aaa"), 0x0104, 0, 0x0104, 0),
        ("aaa 00ff", snippet32!("aaa"), 0x00ff, 0, 0x0205, CF | AF),
        ("aas 010b", snippet32!("aas"), 0x010b, 0, 0x0005, CF | AF),
        ("aas 0003", snippet32!("aas"), 0x0003, 0, 0x0003, 0),
        ("aam 63", snippet32!("aam"), 63, 0, 0x0603, !0),
        ("aad 0603", snippet32!("aad"), 0x0603, 0, 63, !0),
    ];
    for (what, code, ax, flags, after, flags_after) in cases {
        let trap = run(code, ax, flags);
        let cf_af = if flags_after == !0 { !0 } else { trap.rflags & (CF | AF) };
        let got = (trap.outcome(), trap.regs.rax & 0xffff, cf_af);
        t.eq(format_args!("{name}: {what}"), got, (Outcome::Done, after, flags_after));
    }
    let trap = run(snippet32!(".byte 0xd4, 7"), 50, 0); // aam 7
    t.eq(format_args!("{name}: aam 7"), trap.regs.rax, 0x0701);
    let salc = snippet32!(".byte 0xd6");
    let got = [0, CF].map(|flags| run(salc, 0x55, flags).regs.rax);
    t.eq(format_args!("{name}: salc"), got, [0, 0xff]);
}

fn stack(t: &mut Report, name: &str, run: Runner<'_>) {
    let code = snippet32!(
        "mov ecx, 1",
        "mov edx, 2",
        "mov ebx, 3",
        "mov ebp, 5",
        "mov esi, 6",
        "mov edi, 7",
        "pushad",
        "mov eax, [esp + 28]",
        "add eax, [esp + 24]",
        "add eax, [esp]",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor edi, edi",
        "mov dword ptr [esp + 12], 0",
        "popad",
        "lea eax, [ecx + edx * 8 + 0x100]",
        "add eax, edi"
    );
    let trap = run(code, 0x1000, 0);
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rbx);
    t.eq(format_args!("{name}: pushad, popad"), got, (Outcome::Done, 0x100 + 1 + 16 + 7, 3));
    let low = trap.rsp & 0x7fff_ffff;
    t.eq(format_args!("{name}: popad ignores the stored esp"), low, stack_top());
    let code = snippet32!(
        // push ds, pop es, push ss, pop ecx, push cs, pop edx, as bytes: the
        // assembler takes the mnemonics for the 16-bit forms.
        ".byte 0x1e, 0x07, 0x16, 0x59, 0x0e, 0x5a",
        "mov eax, es",
        "sub eax, ecx"
    );
    let trap = run(code, 0, 0);
    t.eq(
        format_args!("{name}: push and pop of segments"),
        (trap.outcome(), trap.regs.rax),
        (Outcome::Done, 0),
    );
    let code = snippet32!(
        "mov ebx, esp",
        "push 0x11223344",
        ".byte 0x66, 0x6a, 0x7f",
        "sub ebx, esp",
        "pop ax",
        "pop ecx"
    );
    let trap = run(code, 0, 0);
    let got = (trap.regs.rax, trap.regs.rbx, trap.regs.rcx);
    t.eq(format_args!("{name}: word pushes"), got, (0x7f, 6, 0x1122_3344));
    let code = snippet32!("mov ebx, esp", "enter 16, 0", "mov ecx, esp", "leave", "sub ebx, esp");
    let trap = run(code, 0, 0);
    t.eq(format_args!("{name}: enter, leave"), (trap.outcome(), trap.regs.rbx), (Outcome::Done, 0));
}

fn forms(t: &mut Report, name: &str, run: Runner<'_>) {
    let code = snippet32!(
        ".byte 0x40",
        ".byte 0x40",
        ".byte 0x48", // inc eax, inc eax, dec eax
        "mov ecx, 3",
        "2:",
        "inc edx",
        "loop 2b",
        "jecxz 3f",
        "ud2",
        "3:"
    );
    let trap = run(code, 7, 0);
    t.eq(format_args!("{name}: inc, dec, loop, jecxz"), (trap.regs.rax, trap.regs.rdx), (8, 3));
    // 16-bit addressing: [bx + si + 8] with BX and SI whose sum wraps.
    let code = snippet32!("mov ebx, 0x1ffff", "mov esi, 0x20005", ".byte 0x67, 0x8d, 0x40, 8");
    let trap = run(code, 0, 0);
    t.eq(format_args!("{name}: 16-bit addressing wraps"), trap.regs.rax, 0xc);
    let code = snippet32!("mov ecx, 0x23", ".byte 0x63, 0xc8"); // arpl ax, cx
    let trap = run(code, 0x20, 0);
    let got = (trap.regs.rax, trap.rflags & flag::ZF);
    t.eq(format_args!("{name}: arpl raises RPL"), got, (0x23, flag::ZF));
    let trap = run(code, 0x23, flag::ZF);
    let got = (trap.regs.rax, trap.rflags & flag::ZF);
    t.eq(format_args!("{name}: arpl leaves an equal RPL"), got, (0x23, 0));
    let code = snippet32!("mov eax, 0xffffffff", "add eax, 1", "adc edx, 0", "cdq");
    let trap = run(code, 0, 0);
    t.eq(format_args!("{name}: 32-bit carry"), (trap.regs.rax, trap.regs.rdx), (0, 0));
    if name == "legacy" {
        // In compatibility mode the address would be supervisor memory.
        let code = snippet32!(".byte 0xa3", ".long {spot}", "mov ebx, [{spot}]" => spot = sym SPOT);
        let trap = run(code, 0x1234_5678, 0);
        t.eq(format_args!("{name}: direct address"), trap.regs.rbx, 0x1234_5678);
    }
}

static SPOT: kit::Global<u64> = kit::Global::new(0);
