//! #NM, #MF, #XM and the #UD conditions of CR0 and CR4 (SDM vol. 3A 2.5,
//! 9.2; vol. 1 8.7, 11.5).

use kit::cpu::{self, cr0, cr4};
use kit::trap::vector::*;
use kit::{Code, Mode, Outcome, Report, snippet};

const UD_FAULT: Outcome = Outcome::fault(UD);
const NM_FAULT: Outcome = Outcome::fault(NM);

pub fn run(t: &mut Report) {
    availability(t);
    x87(t);
    simd(t);
}

/// Runs in ring 0 with these bits of CR0 set.
fn with_cr0(bits: u64, code: Code) -> Outcome {
    let old = cpu::read_cr0();
    let value = old & !(cr0::TS | cr0::EM | cr0::MP) | bits;
    let outcome = code.at(Mode::Kernel64).cr0(value).outcome();
    cpu::write_cr0(old);
    outcome
}

/// The table of CR0.EM, MP, TS against instruction classes.
fn availability(t: &mut Report) {
    let x87 = snippet!("fld1");
    let wait = snippet!("fwait");
    let mmx = snippet!("pxor mm0, mm0", "emms");
    let sse = snippet!("xorps xmm0, xmm0");
    let prefetch = snippet!("prefetcht0 [rsp]", "sfence", "lfence", "mfence");
    let movnti = snippet!("movnti [rsp - 8], eax");
    let crc32 = snippet!("crc32 eax, ecx");
    let done = Outcome::Done;
    let mut table = t.table("CR0.EM, MP, TS against x87, FWAIT, MMX, SSE");
    for bits in 0..8u64 {
        let em = bits & 1 != 0;
        let mp = bits & 2 != 0;
        let ts = bits & 4 != 0;
        let value = if em { cr0::EM } else { 0 }
            | if mp { cr0::MP } else { 0 }
            | if ts { cr0::TS } else { 0 };
        let nm_if = |condition| if condition { NM_FAULT } else { done };
        let ud_or_nm = if em { UD_FAULT } else { nm_if(ts) };
        let expectations = [
            ("x87", x87, nm_if(em || ts)),
            ("fwait", wait, nm_if(mp && ts)),
            ("mmx", mmx, ud_or_nm),
            ("sse", sse, ud_or_nm),
            ("prefetch and fences", prefetch, done),
            ("movnti", movnti, done),
            ("crc32", crc32, done),
        ];
        for (name, code, expected) in expectations {
            let case = format_args!("{name} em={em} mp={mp} ts={ts}");
            table.eq(case, with_cr0(value, code), expected);
        }
    }
    table.finish();

    // In the snippet itself, since compiled code uses SSE; the kit's entry
    // code sets the bit again.
    let sse = snippet!("mov rax, cr4", "btr eax, 9", "mov cr4, rax"; "xorps xmm0, xmm0");
    t.eq("#UD sse without CR4.OSFXSR", sse.k(), UD_FAULT);
    let mmx = snippet!("mov rax, cr4", "btr eax, 9", "mov cr4, rax"; "pxor mm0, mm0", "emms");
    t.eq("mmx without CR4.OSFXSR", mmx.k(), Outcome::Done);
    let value = cpu::read_cr0();
    let trap = snippet!("clts", "mov rax, cr0").at(Mode::Kernel64).cr0(value | cr0::TS).run();
    t.eq("clts clears TS alone", trap.regs.rax, value);
}

/// An unmasked x87 exception is reported by the next waiting instruction.
fn x87(t: &mut Report) {
    let divide = snippet!(
        "fninit", "push 0x37b", "fldcw [rsp]", "fld1", "fldz",
        "fdivp st(1), st", // pends, but does not fault itself
        "mov eax, 1", "fnstsw ax";
        "fwait"
    );
    let trap = divide.kernel();
    t.eq("#MF at the next waiting instruction", trap.outcome(), Outcome::fault(MF));
    t.eq("#MF status: ES, ZE", trap.regs.rax & 0x84, 0x84);
    let load = snippet!(
        "fninit", "push 0x37b", "fldcw [rsp]", "fld1", "fldz", "fdivp st(1), st";
        "fld1"
    );
    t.eq("#MF at an x87 instruction, ring 3", load.u(), Outcome::fault(MF));
    let mmx = snippet!(
        "fninit", "push 0x37b", "fldcw [rsp]", "fld1", "fldz", "fdivp st(1), st";
        "pxor mm0, mm0"
    );
    t.eq("#MF at an MMX instruction", mmx.k(), Outcome::fault(MF));
    let cleared = snippet!(
        "fninit", "push 0x37b", "fldcw [rsp]", "fld1", "fldz", "fdivp st(1), st", "fnclex";
        "fwait"
    );
    t.eq("fnclex withdraws the exception", cleared.k(), Outcome::Done);
    let unmask = snippet!(
        "fninit", "fld1", "fldz", "fdivp st(1), st", "push 0x37b", "fldcw [rsp]";
        "fwait"
    );
    t.eq("#MF after unmasking by fldcw", unmask.k(), Outcome::fault(MF));
    let stack = snippet!("fninit", "push 0x37e", "fldcw [rsp]", "fstp st(0)", "fnstsw ax"; "fwait");
    let trap = stack.kernel();
    t.eq("#MF stack underflow", trap.outcome(), Outcome::fault(MF));
    t.eq("stack underflow status: ES, SF, IE", trap.regs.rax & 0xc1, 0xc1);
    // FNINIT leaves no exception pending for what follows.
    t.eq("fninit clears", snippet!("fninit", "fwait").k(), Outcome::Done);
}

/// Unmasked SIMD exceptions fault at the instruction itself.
fn simd(t: &mut Report) {
    let divide = snippet!(
        "push 0x1d80", "ldmxcsr [rsp]", "mov eax, 0x3f800000", "movd xmm0, eax",
        "xorps xmm1, xmm1";
        "divss xmm0, xmm1",
        "nop"
    );
    t.eq("#XM division by zero", divide.k(), Outcome::fault(XM));
    t.eq("#XM division by zero, ring 3", divide.u(), Outcome::fault(XM));
    let flags = snippet!("push 0", "stmxcsr [rsp]", "pop rax").kernel().regs.rax;
    t.eq("#XM sets the flag in MXCSR", flags & 0x3f, 4);
    cpu::write_cr4(cpu::read_cr4() & !cr4::OSXMMEXCPT);
    t.eq("#UD instead of #XM without CR4.OSXMMEXCPT", divide.k(), UD_FAULT);
    cpu::write_cr4(cpu::read_cr4() | cr4::OSXMMEXCPT);
    let reserved = snippet!("push 0x10000"; "ldmxcsr [rsp]");
    t.eq("#GP ldmxcsr with a reserved bit", reserved.k(), Outcome::fault(GP));
    t.eq("mxcsr back to default", snippet!("push 0x1f80", "ldmxcsr [rsp]").k(), Outcome::Done);
}
