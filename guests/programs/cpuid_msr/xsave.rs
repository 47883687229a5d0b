//! XCR0, the XSAVE family and FXSAVE (SDM vol. 1 chapters 10.5 and 13).

use kit::cpu::{self, cpuid, cr0, cr4, feature};
use kit::trap::vector::*;
use kit::{Code, Global, Mode, Outcome, Report, Trap, snippet};

/// A save area.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Area([u8; 4096]);

static AREA: Global<Area> = Global::new(Area([0; 4096]));

const HEADER: u64 = 512;
const GP_FAULT: Outcome = Outcome::fault(GP);

pub fn run(t: &mut Report) {
    fxsave(t);
    if !feature::XSAVE.offered() {
        return t.skip("XSAVE", "not offered");
    }
    cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
    xcr0(t);
    round_trip(t);
    header(t);
    masks(t);
    variants(t);
    cpu::try_xsetbv(0, 3);
    cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
}

fn peek(offset: u64) -> u64 {
    kit::page::peek(AREA.addr() + offset)
}

fn poke(offset: u64, value: u64) {
    kit::page::poke(AREA.addr() + offset, value);
}

fn clear(byte: u8) {
    AREA.set(Area([byte; 4096]));
}

/// Runs with RBX at the area (plus `offset`) and EDX:EAX = `mask`.
fn with_mask(code: Code, offset: u64, mask: u64) -> Trap {
    let run = code.at(Mode::Kernel64).rbx(AREA.addr() + offset);
    run.rax(mask & 0xffff_ffff).rdx(mask >> 32).run()
}

fn fxsave(t: &mut Report) {
    clear(0xaa);
    let save = snippet!(
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "fninit",
        "fldpi",
        "mov rcx, 0x1122334455667788",
        "movq xmm5, rcx",
        "fxsave [rbx]"
    );
    with_mask(save, 0, 0);
    t.eq("fxsave: control word, status", peek(0) & 0xffff_ffff, 0x3800_037f);
    t.eq("fxsave: one register in use", peek(0) >> 32 & 0xff, 0x80);
    t.eq("fxsave: MXCSR", peek(24) & 0xffff_ffff, 0x1f80);
    t.holds("fxsave: MXCSR mask", peek(24) >> 32, |&mask| {
        mask & 0xffbf == 0xffbf && mask >> 17 == 0
    });
    t.eq("fxsave: st(0)", (peek(32), peek(40) & 0xffff), (0xc90f_daa2_2168_c235, 0x4000));
    t.eq("fxsave: xmm5", peek(160 + 5 * 16), 0x1122_3344_5566_7788);
    let available = [464, 472, 504].map(peek);
    t.eq("fxsave: the available bytes are not written", available, [0xaaaa_aaaa_aaaa_aaaa; 3]);
    let restore = snippet!(
        "pxor xmm5, xmm5",
        "fninit",
        "fxrstor [rbx]",
        "movq rax, xmm5",
        "fstp tbyte ptr [rbx + 512]"
    );
    let trap = with_mask(restore, 0, 0);
    t.eq("fxrstor: xmm5", trap.regs.rax, 0x1122_3344_5566_7788);
    t.eq("fxrstor: st(0)", peek(512), 0xc90f_daa2_2168_c235);
    poke(24, 0x1_0000 | 0x1f80);
    let bad = with_mask(snippet!("fxrstor [rbx]"), 0, 0).outcome();
    t.eq("#GP fxrstor: reserved MXCSR bit", bad, GP_FAULT);
    for bits in [cr0::TS, cr0::EM] {
        for (name, code) in
            [("fxsave", snippet!("fxsave [rbx]")), ("fxrstor", snippet!("fxrstor [rbx]"))]
        {
            let run = code.at(Mode::Kernel64).rbx(AREA.addr()).cr0(cpu::read_cr0() | bits);
            t.eq(
                format_args!("#NM {name} with CR0 bit {bits:#x}"),
                run.outcome(),
                Outcome::fault(NM),
            );
        }
    }
    snippet!("fninit").k();
}

fn xcr0(t: &mut Report) {
    let supported = u64::from(cpuid(13, 0).eax) | u64::from(cpuid(13, 0).edx) << 32;
    for (name, value) in [
        ("0", 0),
        ("without x87", supported & !1),
        ("AVX without SSE", 5),
        ("an unsupported bit", supported | 1 << 62),
        ("bit 63", supported | 1 << 63),
        ("an opmask without AVX", 3 | 1 << 5),
    ] {
        t.eq(format_args!("#GP XCR0: {name}"), cpu::try_xsetbv(0, value), Some(GP));
    }
    t.eq("#GP xsetbv 1", cpu::try_xsetbv(1, 1), Some(GP));
    t.eq("#GP xsetbv in ring 3", snippet!("xsetbv").u(), GP_FAULT);
    t.eq("#GP xgetbv 5", snippet!("mov ecx, 5"; "xgetbv").u(), GP_FAULT);
    for value in [1, 3, 7].into_iter().filter(|value| value & !supported == 0) {
        let result = (cpu::try_xsetbv(0, value), cpu::xgetbv(0));
        t.eq(format_args!("XCR0 = {value}"), result, (None, value));
    }
    let read = snippet!("xor ecx, ecx", "xgetbv").at(Mode::User64).rax(!0).rdx(!0).run();
    t.eq("xgetbv in ring 3", (read.regs.rax, read.regs.rdx), (cpu::xgetbv(0), 0));
}

/// x87, SSE and AVX state to memory and back.
fn round_trip(t: &mut Report) {
    let avx = feature::AVX.offered();
    cpu::try_xsetbv(0, if avx { 7 } else { 3 });
    clear(0);
    let fill = if avx {
        snippet!(
            "fninit",
            "fld1",
            "mov rcx, 0x123456789abcdef0",
            "movq xmm7, rcx",
            "vinsertf128 ymm7, ymm7, xmm7, 1",
            "xsave [rbx]"
        )
    } else {
        snippet!("fninit", "fld1", "mov rcx, 0x123456789abcdef0", "movq xmm7, rcx", "xsave [rbx]")
    };
    with_mask(fill, 0, !0);
    let all = cpu::xgetbv(0);
    t.eq("xsave: XSTATE_BV", peek(HEADER) & all, all);
    t.eq("xsave: XCOMP_BV", peek(HEADER + 8), 0);
    t.eq("xsave: st(0)", (peek(32), peek(40) & 0xffff), (1 << 63, 0x3fff));
    t.eq("xsave: xmm7", peek(160 + 7 * 16), 0x1234_5678_9abc_def0);
    if avx {
        t.eq("xsave: upper ymm7", peek(576 + 7 * 16), 0x1234_5678_9abc_def0);
        let back = snippet!(
            "vzeroall",
            "fninit",
            "xrstor [rbx]",
            "vextractf128 xmm0, ymm7, 1",
            "movq rax, xmm0",
            "movq rcx, xmm7"
        );
        let trap = with_mask(back, 0, !0);
        t.eq("xrstor: xmm7", trap.regs.rcx, 0x1234_5678_9abc_def0);
        t.eq("xrstor: upper ymm7", trap.regs.rax, 0x1234_5678_9abc_def0);
    }
    // Components whose XSTATE_BV bit is clear go to their initial state.
    poke(HEADER, 1);
    let back = snippet!("pcmpeqd xmm7, xmm7", "xrstor [rbx]", "movq rcx, xmm7");
    let trap = with_mask(back, 0, !0);
    t.eq("xrstor: SSE to its initial state", (trap.outcome(), trap.regs.rcx), (Outcome::Done, 0));
    poke(HEADER, 0);
    poke(0, 0xffff);
    let back = snippet!("xrstor [rbx]", "push 0", "fnstcw [rsp]", "pop rcx");
    let trap = with_mask(back, 0, 1);
    t.eq("xrstor: x87 to its initial state", trap.regs.rcx, 0x37f);
}

fn header(t: &mut Report) {
    let restore = snippet!("xrstor [rbx]");
    let good = || {
        clear(0);
        poke(0, 0x37f);
        poke(24, 0x1f80);
        poke(HEADER, 3);
    };
    good();
    t.eq("xrstor of a good area", with_mask(restore, 0, !0).outcome(), Outcome::Done);
    poke(HEADER, 1 << 40);
    t.eq("#GP xrstor: XSTATE_BV beyond XCR0", with_mask(restore, 0, !0).outcome(), GP_FAULT);
    for offset in [8, 16] {
        good();
        poke(HEADER + offset, 1);
        let got = with_mask(restore, 0, !0).outcome();
        t.eq(format_args!("#GP xrstor: header byte {offset}"), got, GP_FAULT);
    }
    good();
    poke(24, 0x8000_0000);
    t.eq("#GP xrstor: reserved MXCSR bit", with_mask(restore, 0, !0).outcome(), GP_FAULT);
    t.eq("xrstor of x87 alone ignores MXCSR", with_mask(restore, 0, 1).outcome(), Outcome::Done);
    good();
    t.eq("#GP xrstor unaligned", with_mask(restore, 16, !0).outcome(), GP_FAULT);
    t.eq("#GP xsave unaligned", with_mask(snippet!("xsave [rbx]"), 32, !0).outcome(), GP_FAULT);
    let ts = cpu::read_cr0() | cr0::TS;
    for (name, code) in [("xsave", snippet!("xsave [rbx]")), ("xrstor", restore)] {
        let run = code.at(Mode::Kernel64).rbx(AREA.addr()).cr0(ts);
        t.eq(format_args!("#NM {name} with CR0.TS"), run.outcome(), Outcome::fault(NM));
        cpu::write_cr4(cpu::read_cr4() & !cr4::OSXSAVE);
        let outcome = code.at(Mode::Kernel64).rbx(AREA.addr()).outcome();
        cpu::write_cr4(cpu::read_cr4() | cr4::OSXSAVE);
        t.eq(format_args!("#UD {name} without OSXSAVE"), outcome, Outcome::fault(UD));
    }
    let hole = snippet!("xsave [rbx]").at(Mode::Kernel64).rbx(0x4000_0000).rax(3);
    t.eq("#PF xsave", hole.run().vector, PF);
}

/// Only the requested components are touched.
fn masks(t: &mut Report) {
    clear(0xcc);
    poke(HEADER, 0);
    poke(HEADER + 8, 0);
    poke(HEADER + 16, 0);
    with_mask(snippet!("fninit", "pcmpeqd xmm0, xmm0", "xsave [rbx]"), 0, 2);
    let untouched = 0xcccc_cccc_cccc_cccc;
    t.eq("xsave of SSE leaves x87 alone", (peek(0), peek(32)), (untouched, untouched));
    t.eq("xsave of SSE writes xmm0", peek(160), !0);
    t.eq("xsave of SSE: XSTATE_BV", peek(HEADER) & 3, 2);
    poke(HEADER, 2);
    with_mask(snippet!("fldz", "xsave [rbx]"), 0, 1);
    t.eq("xsave of x87 keeps the SSE bit", peek(HEADER) & 3, 3);
    let keep = snippet!("pcmpeqd xmm1, xmm1", "xrstor [rbx]", "movq rcx, xmm1");
    let trap = with_mask(keep, 0, 1);
    t.eq("xrstor of x87 leaves SSE alone", (trap.outcome(), trap.regs.rcx), (Outcome::Done, !0));
}

fn variants(t: &mut Report) {
    if feature::XSAVEOPT.offered() {
        clear(0);
        let code = snippet!("fninit", "fldpi", "pcmpeqd xmm2, xmm2", "xsaveopt [rbx]");
        with_mask(code, 0, 3);
        let got = (peek(HEADER) & 3, peek(32), peek(160 + 32));
        t.eq("xsaveopt", got, (3, 0xc90f_daa2_2168_c235, !0));
    } else {
        t.skip("xsaveopt", "not offered");
    }
    if feature::XSAVEC.offered() {
        compact(t);
    } else {
        t.skip("xsavec", "not offered");
    }
    if feature::XSAVES.offered() {
        t.eq("#GP xsaves in ring 3", snippet!("xsaves [rbx]").u(), GP_FAULT);
        t.eq("#GP xrstors in ring 3", snippet!("xrstors [rbx]").u(), GP_FAULT);
        let result = cpu::try_wrmsr(0xda0, 1 << 62);
        t.eq("#GP IA32_XSS with an unsupported bit", result, Some(GP));
        clear(0);
        let code = snippet!(
            "fninit",
            "fldpi",
            "xsaves [rbx]",
            "fninit",
            "xrstors [rbx]",
            "fstp tbyte ptr [rbx + 1024]"
        );
        let trap = with_mask(code, 0, 3);
        let got = (trap.outcome(), peek(1024));
        t.eq("xsaves and xrstors", got, (Outcome::Done, 0xc90f_daa2_2168_c235));
    } else {
        t.skip("xsaves", "not offered");
        t.eq("#UD xsaves, not offered", snippet!("xsaves [rbx]").k(), Outcome::fault(UD));
    }
}

fn compact(t: &mut Report) {
    const COMPACT: u64 = 1 << 63;
    let avx = feature::AVX.offered();
    let mask = if avx { 7 } else { 3 };
    cpu::try_xsetbv(0, mask);
    clear(0);
    let code = snippet!("fninit", "fldpi", "pcmpeqd xmm2, xmm2", "xsavec [rbx]");
    with_mask(code, 0, mask);
    t.eq("xsavec: XCOMP_BV", peek(HEADER + 8), COMPACT | mask);
    t.eq("xsavec: x87 and SSE in use", peek(HEADER) & 3, 3);
    let trap = with_mask(
        snippet!(
            "fninit",
            "pxor xmm2, xmm2",
            "xrstor [rbx]",
            "movq rcx, xmm2",
            "fstp tbyte ptr [rbx + 1024]"
        ),
        0,
        mask,
    );
    let got = (trap.outcome(), trap.regs.rcx, peek(1024));
    t.eq("xrstor of the compact form", got, (Outcome::Done, !0, 0xc90f_daa2_2168_c235));
    poke(HEADER, mask);
    poke(HEADER + 8, COMPACT | 1);
    let got = with_mask(snippet!("xrstor [rbx]"), 0, mask).outcome();
    t.eq("#GP xrstor: XSTATE_BV beyond XCOMP_BV", got, GP_FAULT);
    poke(HEADER, 1);
    poke(HEADER + 8, COMPACT | 1 << 50);
    let got = with_mask(snippet!("xrstor [rbx]"), 0, mask).outcome();
    t.eq("#GP xrstor: XCOMP_BV beyond XCR0", got, GP_FAULT);
    poke(HEADER + 8, COMPACT | mask);
    poke(HEADER + 16, 1);
    let got = with_mask(snippet!("xrstor [rbx]"), 0, mask).outcome();
    t.eq("#GP xrstor: compact header byte 16", got, GP_FAULT);
    let in_use = cpuid(13, 1).eax >> 2 & 1 != 0;
    if in_use {
        let trap = snippet!("fninit", "mov ecx, 1", "xgetbv").kernel();
        t.eq("xgetbv 1", (trap.outcome(), trap.regs.rax & !mask), (Outcome::Done, 0));
    } else {
        t.eq("#GP xgetbv 1", snippet!("mov ecx, 1"; "xgetbv").k(), GP_FAULT);
    }
}
