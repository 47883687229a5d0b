//! #UD: undefined opcodes, forms and prefixes; the 15-byte limit.

use kit::cpu::{self, cr4, feature};
use kit::snippet::bytes;
use kit::trap::vector::*;
use kit::{Mode, Outcome, Report, snippet, snippet32};

const UD_FAULT: Outcome = Outcome::fault(UD);
const GP_FAULT: Outcome = Outcome::fault(GP);

pub fn run(t: &mut Report) {
    opcodes(t);
    forms(t);
    lock(t);
    registers(t);
    vex(t);
    length(t);
    hints(t);
}

/// Opcodes that processors without a feature take for NOPs (SDM vol. 2B, "NOP" and "RDSSP"), so
/// that programs may ask with them.
fn hints(t: &mut Report) {
    const SHADOW_STACKS: u32 = 1 << 7;
    if cpu::cpuid(7, 0).ecx & SHADOW_STACKS == 0 {
        let rdssp = snippet!(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8"); // rdsspq rax
        let rdssp32 = snippet!(".byte 0xf3, 0x0f, 0x1e, 0xc8"); // rdsspd eax
        for (name, code) in [("rdsspq", rdssp), ("rdsspd", rdssp32)] {
            let trap = code.at(Mode::Kernel64).rax(0x1234_5678_9abc_def0).run();
            let got = (trap.outcome(), trap.regs.rax);
            t.eq(
                format_args!("{name} without shadow stacks"),
                got,
                (Outcome::Done, 0x1234_5678_9abc_def0),
            );
        }
    } else {
        t.skip("rdssp without shadow stacks", "there are some");
    }
    let mut table = t.table("hint NOPs");
    for opcode in 0x19u8..=0x1f {
        for mode in [Mode::Kernel64, Mode::User64, Mode::User32] {
            // MPX and CLDEMOTE change no register either. A memory operand is not accessed.
            let outcome = bytes(&[0x0f, opcode, 0x00]).at(mode).rax(8).outcome();
            table.eq(format_args!("0f {opcode:#x} {mode:?}"), outcome, Outcome::Done);
        }
    }
    table.finish();
}

fn opcodes(t: &mut Report) {
    t.eq("ud2 in ring 3", snippet!("ud2").u(), UD_FAULT);
    t.eq("ud1", snippet!(".byte 0x0f, 0xb9, 0xc0").k(), UD_FAULT);
    t.eq("ud0", snippet!(".byte 0x0f, 0xff, 0xc0").k(), UD_FAULT);

    let mut table = t.table("#UD one-byte opcodes invalid in 64-bit mode");
    for opcode in [
        0x06u8, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a,
        0xce, 0xd4, 0xd5, 0xd6, 0xea,
    ] {
        for mode in [Mode::Kernel64, Mode::User64] {
            let outcome = bytes(&[opcode, 0xc0, 0, 0, 0, 0, 0]).at(mode).outcome();
            table.eq(format_args!("{opcode:#x} {mode:?}"), outcome, UD_FAULT);
        }
    }
    table.finish();

    let mut table = t.table("#UD undefined two-byte opcodes");
    for opcode in [0x04u8, 0x0a, 0x0c, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3b, 0x3f] {
        for mode in [Mode::Kernel64, Mode::User64, Mode::User32] {
            let outcome = bytes(&[0x0f, opcode, 0xc0, 0x90, 0x90]).at(mode).outcome();
            table.eq(format_args!("0f {opcode:#x} {mode:?}"), outcome, UD_FAULT);
        }
    }
    table.finish();

    t.eq("rsm outside SMM", snippet!("rsm").k(), UD_FAULT);
    t.eq("rsm outside SMM, ring 3", snippet!("rsm").u(), UD_FAULT);
}

/// Opcodes that exist, with operands that do not.
fn forms(t: &mut Report) {
    let cases: [(&str, &[u8]); 19] = [
        ("lea with a register", &[0x8d, 0xc0]),
        ("fe /2", &[0xfe, 0xd0]),
        ("fe /7", &[0xfe, 0xf8]),
        ("ff /7", &[0xff, 0xf8]),
        ("ff /3 with a register", &[0xff, 0xd8]),
        ("ff /5 with a register", &[0xff, 0xe8]),
        ("c6 /1", &[0xc6, 0xc8, 0]),
        ("c7 /1", &[0xc7, 0xc8, 0, 0, 0, 0]),
        ("0f ba /0", &[0x0f, 0xba, 0xc0, 0]),
        ("0f ba /3", &[0x0f, 0xba, 0xd8, 0]),
        ("cmpxchg8b with a register", &[0x0f, 0xc7, 0xc8]),
        ("0f c7 /0", &[0x0f, 0xc7, 0x04, 0x24]),
        ("0f 01 /2 register 3", &[0x0f, 0x01, 0xd3]),
        ("invlpg form 0f 01 /7 register 6", &[0x0f, 0x01, 0xfe]),
        ("mov to cs", &[0x8e, 0xc8]),
        ("mov to segment 6", &[0x8e, 0xf0]),
        ("mov to segment 7", &[0x8e, 0xf8]),
        ("mov from segment 6", &[0x8c, 0xf0]),
        ("movntps with a register", &[0x0f, 0x2b, 0xc0]),
    ];
    for (name, code) in cases {
        t.eq(format_args!("#UD {name}"), bytes(code).k(), UD_FAULT);
        if name == "0f 01 /2 register 3" {
            t.eq("#UD before #GP: 0f 01 /2 register 3 in ring 3", bytes(code).u(), UD_FAULT);
        }
    }
    let les = bytes(&[0xc4, 0xc0, 0, 0, 0]).at(Mode::Kernel32);
    // In 32-bit code C4 with a register form is VEX; 0xc0 selects the
    // undefined map 0.
    t.eq("#UD vex map 0 in 32-bit code", les.outcome(), UD_FAULT);
}

fn lock(t: &mut Report) {
    let bad: [(&str, &[u8]); 9] = [
        ("nop", &[0xf0, 0x90]),
        ("mov r, r", &[0xf0, 0x89, 0xc8]),
        ("add r, r", &[0xf0, 0x01, 0xc8]),
        ("add r, m", &[0xf0, 0x03, 0x04, 0x24]),
        ("cmp m, r", &[0xf0, 0x39, 0x04, 0x24]),
        ("test m, r", &[0xf0, 0x85, 0x04, 0x24]),
        ("bt m, r", &[0xf0, 0x0f, 0xa3, 0x04, 0x24]),
        ("shl m", &[0xf0, 0xd1, 0x24, 0x24]),
        ("jmp", &[0xf0, 0xeb, 0]),
    ];
    for (name, code) in bad {
        t.eq(format_args!("#UD lock {name}"), bytes(code).k(), UD_FAULT);
    }
    let good = snippet!(
        "push 5",
        "lock add qword ptr [rsp], 1",
        "lock bts qword ptr [rsp], 4",
        "lock xchg [rsp], rax",
        "lock dec qword ptr [rsp]",
        "lock not qword ptr [rsp]",
        "pop rcx"
    );
    let trap = good.at(Mode::User64).rax(8).run();
    let got = (trap.outcome(), trap.regs.rax, trap.regs.rcx);
    t.eq("lock where allowed", got, (Outcome::Done, 22, !7));
}

/// Control and debug registers that do not exist.
fn registers(t: &mut Report) {
    let mut table = t.table("#UD control registers 1, 5, 6, 7, 9 to 15");
    for index in [1u8, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15] {
        let rex = 0x40 | index >> 3 << 2;
        let modrm = 0xc0 | (index & 7) << 3;
        let read = bytes(&[rex, 0x0f, 0x20, modrm]).k();
        table.eq(format_args!("from cr{index}"), read, UD_FAULT);
        let write = bytes(&[rex, 0x0f, 0x22, modrm]).k();
        table.eq(format_args!("to cr{index}"), write, UD_FAULT);
    }
    table.finish();

    t.eq("dr4 is dr6 without CR4.DE", snippet!(".byte 0x0f, 0x21, 0xe0").k(), Outcome::Done);
    cpu::write_cr4(cpu::read_cr4() | cr4::DE);
    t.eq("#UD dr4 with CR4.DE", snippet!(".byte 0x0f, 0x21, 0xe0").k(), UD_FAULT);
    t.eq("#UD dr5 with CR4.DE", snippet!(".byte 0x0f, 0x23, 0xe8").k(), UD_FAULT);
    cpu::write_cr4(cpu::read_cr4() & !cr4::DE);
    t.eq("#UD dr8", snippet!(".byte 0x44, 0x0f, 0x21, 0xc0").k(), UD_FAULT);
}

/// VEX encodings need CR4.OSXSAVE and XCR0; some prefixes are forbidden.
fn vex(t: &mut Report) {
    const VZEROUPPER: &[u8] = &[0xc5, 0xf8, 0x77];
    cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
    t.eq("#UD vex without CR4.OSXSAVE", bytes(VZEROUPPER).k(), UD_FAULT);
    t.eq("#UD xgetbv without CR4.OSXSAVE", snippet!("xgetbv").k(), UD_FAULT);
    t.eq("#UD xsetbv without CR4.OSXSAVE", snippet!("xsetbv").k(), UD_FAULT);
    if !feature::XSAVE.offered() || !feature::AVX.offered() {
        return t.skip("vex prefixes", "no AVX");
    }
    cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
    let xcr0 = cpu::xgetbv(0);
    cpu::try_xsetbv(0, 3);
    t.eq("#UD vex without XCR0.AVX", bytes(VZEROUPPER).k(), UD_FAULT);
    cpu::try_xsetbv(0, 7);
    t.eq("vex with XCR0.AVX", bytes(VZEROUPPER).k(), Outcome::Done);
    for (name, prefix) in
        [("lock", 0xf0u8), ("66", 0x66), ("f2", 0xf2), ("f3", 0xf3), ("rex", 0x40)]
    {
        let code = bytes(&[prefix, 0xc5, 0xf8, 0x77]);
        t.eq(format_args!("#UD {name} before vex"), code.k(), UD_FAULT);
    }
    // VADDPS with vvvv; VMOVAPS demands vvvv = 1111.
    t.eq("#UD vex.vvvv not 1111", bytes(&[0xc5, 0xf0, 0x28, 0xc0]).k(), UD_FAULT);
    cpu::try_xsetbv(0, xcr0);
    cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
}

/// Instructions longer than 15 bytes (SDM vol. 3A 6.15, #GP).
fn length(t: &mut Report) {
    let mut code = [0x66u8; 16];
    code[14] = 0x90;
    t.eq("15 bytes are allowed", bytes(&code[..15]).k(), Outcome::Done);
    code[14] = 0x66;
    code[15] = 0x90;
    t.eq("#GP 16 bytes", bytes(&code).k(), GP_FAULT);
    t.eq("#GP 16 bytes, ring 3", bytes(&code).u(), GP_FAULT);
    let mut add = [0x2eu8; 17];
    add[11..].copy_from_slice(&[0x81, 0xc0, 1, 0, 0, 0]);
    t.eq("#GP 17 bytes with an immediate", bytes(&add).k(), GP_FAULT);
    t.eq("15 bytes with an immediate", bytes(&add[2..]).k(), Outcome::Done);
    let prefixes = snippet32!(".rept 15", ".byte 0x3e", ".endr", "nop").at(Mode::User32);
    t.eq("#GP 16 bytes in 32-bit code", prefixes.outcome(), GP_FAULT);
}
