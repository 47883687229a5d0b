//! Limits and types on every access (5.3, 5.5).

use crate::{SPARE, descriptor};
use kit::legacy::{Legacy, at};
use kit::trap::vector::*;
use kit::{Code, Frame4K, Global, Outcome, Report, ZERO_FRAME, snippet32};

static AREA: Global<[Frame4K; 4]> = Global::new([ZERO_FRAME; 4]);

const DATA: u8 = 0x93;
const DOWN: u8 = 0x97;
const READ_ONLY: u8 = 0x91;
const READ_ONLY_DOWN: u8 = 0x95;
const CODE: u8 = 0x9b;
const EXECUTE_ONLY: u8 = 0x99;

const DONE: Outcome = Outcome::Done;
const FAULT: Outcome = Outcome::coded(GP, 0);

pub fn run(t: &mut Report) {
    sizes(t);
    expand_down(t);
    types(t);
    stack(t);
    operands(t);
    code(t);
}

/// `code` with FS on the spare descriptor and EBX.
fn with(code: Code, value: u64, ebx: u32) -> Legacy {
    kit::tables::set_descriptor(SPARE, value);
    at(code).eax(SPARE.into()).ebx(ebx)
}

fn base() -> u32 {
    AREA.addr() as u32
}

/// Each width at the last place where it fits, and one byte further.
fn sizes(t: &mut Report) {
    let codes: [(u32, Code, Code); 5] = [
        (
            1,
            snippet32!("mov fs, eax"; "mov cl, fs:[ebx]"),
            snippet32!("mov fs, eax"; "mov fs:[ebx], cl"),
        ),
        (
            2,
            snippet32!("mov fs, eax"; "mov cx, fs:[ebx]"),
            snippet32!("mov fs, eax"; "mov fs:[ebx], cx"),
        ),
        (
            4,
            snippet32!("mov fs, eax"; "mov ecx, fs:[ebx]"),
            snippet32!("mov fs, eax"; "mov fs:[ebx], ecx"),
        ),
        (
            8,
            snippet32!("mov fs, eax"; "movq xmm0, qword ptr fs:[ebx]"),
            snippet32!("mov fs, eax"; "movq qword ptr fs:[ebx], xmm0"),
        ),
        (
            16,
            snippet32!("mov fs, eax"; "movups xmm0, fs:[ebx]"),
            snippet32!("mov fs, eax"; "movups fs:[ebx], xmm0"),
        ),
    ];
    let mut table = t.table("expand-up limits");
    for (name, limit, flags, end) in [
        ("byte limit", 0x123, 4, 0x124),
        ("byte limit, 16-bit", 0x123, 0, 0x124),
        ("page limit", 1, 12, 0x2000),
        ("one byte", 0, 4, 1),
    ] {
        let value = descriptor(base(), limit, DATA, flags);
        for (size, read, write) in codes {
            for (kind, code) in [("read", read), ("write", write)] {
                let fits = end >= size;
                if fits {
                    let got = with(code, value, end - size).outcome();
                    table.eq(format_args!("{name}: {kind} {size} at the end"), got, DONE);
                }
                let over = with(code, value, end.saturating_sub(size) + 1).outcome();
                table.eq(format_args!("{name}: {kind} {size} across"), over, FAULT);
                let got = with(code, value, 0xffff_fff0).outcome();
                table.eq(format_args!("{name}: {kind} {size} far beyond"), got, FAULT);
            }
        }
    }
    table.finish();
}

/// Offsets above the limit, up to 64 KiB or 4 GiB.
fn expand_down(t: &mut Report) {
    let read = snippet32!("mov fs, eax"; "mov ecx, fs:[ebx]");
    let byte = snippet32!("mov fs, eax"; "mov cl, fs:[ebx]");
    // So that the valid offsets lie in the area: its end is offset 64 KiB.
    let end = base() + 0x4000;
    let small = descriptor(end.wrapping_sub(0x1_0000), 0xdfff, DOWN, 0);
    let big = descriptor(end, 0xffffd, DOWN, 12);
    let cases: [(&str, u64, Code, u32, Outcome); 12] = [
        ("16-bit: at the limit", small, read, 0xdfff, FAULT),
        ("16-bit: above the limit", small, read, 0xe000, DONE),
        ("16-bit: below", small, byte, 0x100, FAULT),
        ("16-bit: last doubleword", small, read, 0xfffc, DONE),
        ("16-bit: across ffff", small, read, 0xfffd, FAULT),
        ("16-bit: last byte", small, byte, 0xffff, DONE),
        ("16-bit: beyond ffff", small, byte, 0x1_0000, FAULT),
        ("32-bit: at the limit", big, byte, 0xffff_dfff, FAULT),
        ("32-bit: above the limit", big, read, 0xffff_e000, DONE),
        ("32-bit: last doubleword", big, read, 0xffff_fffc, DONE),
        ("32-bit: 0", big, byte, 0, FAULT),
        ("32-bit: across the limit", big, read, 0xffff_dffd, FAULT),
    ];
    for (name, value, code, offset, expected) in cases {
        let got = with(code, value, offset).outcome();
        t.eq(format_args!("expand-down {name}"), got, expected);
    }
    // A limit of ffffffff leaves nothing.
    let nothing = descriptor(base(), 0xfffff, DOWN, 12);
    t.eq("expand-down: an empty segment", with(byte, nothing, !0).outcome(), FAULT);
}

fn types(t: &mut Report) {
    let read = snippet32!("mov fs, eax"; "mov ecx, fs:[ebx]");
    let write = snippet32!("mov fs, eax"; "mov fs:[ebx], ecx");
    let update = snippet32!("mov fs, eax"; "inc dword ptr fs:[ebx]");
    for (name, access, offset, writes) in [
        ("data", DATA, 0, DONE),
        ("read-only data", READ_ONLY, 0, FAULT),
        ("read-only expand-down data", READ_ONLY_DOWN, 0x2000, FAULT),
        ("readable code", CODE, 0, FAULT),
        ("readable conforming code", CODE | 4, 0, FAULT),
    ] {
        let value = descriptor(base(), if offset == 0 { 0xfff } else { 0x1fff }, access, 4);
        t.eq(format_args!("{name}: read"), with(read, value, offset).outcome(), DONE);
        t.eq(format_args!("{name}: write"), with(write, value, offset).outcome(), writes);
        t.eq(format_args!("{name}: update"), with(update, value, offset).outcome(), writes);
    }
    // Through CS only reading is possible, and of execute-only code not even that.
    let through_cs = snippet32!("mov ecx, cs:[ebx]");
    let target = AREA.addr() as u32;
    t.eq("cs: read", at(through_cs).ebx(target).outcome(), DONE);
    let to_cs = snippet32!(".byte 0x2e, 0x89, 0x0b"); // mov cs:[ebx], ecx
    t.eq("cs: write", at(to_cs).ebx(target).outcome(), FAULT);
    kit::tables::set_descriptor(SPARE, descriptor(0, 0xfffff, EXECUTE_ONLY, 12));
    let mut run = at(through_cs).ebx(target);
    run.cs = SPARE.into();
    t.eq("cs: read of execute-only code", run.outcome(), FAULT);
    let null = snippet32!("xor eax, eax", "mov fs, eax"; "mov ecx, fs:[ebx]");
    t.eq("null segment", at(null).ebx(target).outcome(), FAULT);
    let null3 = snippet32!("mov eax, 3", "mov fs, eax"; "mov ecx, fs:[ebx]");
    t.eq("null segment with RPL 3", at(null3).ebx(target).outcome(), FAULT);
}

/// The stack: #SS, for explicit and implicit accesses. Runs in ring 3, so that the handler has
/// another one.
fn stack(t: &mut Report) {
    let fault = Outcome::coded(SS, 0);
    let ring3 = |code: Code, value: u64, esp: u32| {
        kit::tables::set_descriptor(SPARE, value | 3 << 45);
        let mut run = at(code).ring3(0).with_task();
        run.ss = u32::from(SPARE) | 3;
        run.esp = esp;
        run
    };
    let up = descriptor(base(), 0xfff, DATA, 4);
    let push = snippet32!("push eax");
    let pop = snippet32!("pop eax");
    let cases: [(&str, Code, u64, u32, Outcome); 9] = [
        ("push", push, up, 0x1000, DONE),
        ("push beyond", push, up, 0x1001, fault),
        ("push at 0", push, up, 0, fault),
        ("pop", pop, up, 0xffc, DONE),
        ("pop across", pop, up, 0xffd, fault),
        ("call", snippet32!("call 2f", "2:"), up, 0, fault),
        ("ret", snippet32!("ret"), up, 0x1000, fault),
        ("pushad", snippet32!("pushad"), up, 0x1c, fault),
        ("enter", snippet32!("enter 0x800, 0"), up, 0x700, fault),
    ];
    for (name, code, value, esp, expected) in cases {
        let trap = ring3(code, value, esp).run();
        t.eq(format_args!("stack: {name}"), trap.outcome(), expected);
        if expected != DONE {
            t.eq(format_args!("stack: {name} leaves ESP"), trap.rsp, esp.into());
        }
    }
    // The usual use of expand-down: offsets from 2000h to the top.
    let end = base() + 0x4000;
    let down = descriptor(end.wrapping_sub(0x1_0000), 0xdfff, DOWN, 0);
    t.eq("expand-down stack: push", ring3(push, down, 0xe004).outcome(), DONE);
    t.eq("expand-down stack: #SS at the limit", ring3(push, down, 0xe002).outcome(), fault);
    // A 16-bit stack wraps SP and leaves the rest of ESP.
    let words = descriptor(base(), 0xffff, DATA, 0);
    let trap = ring3(push, words, 0x1234_0000).run();
    t.eq("16-bit stack: push wraps", trap.outcome(), DONE);
    let by_bp = snippet32!("mov ecx, [ebp]");
    let mut run = ring3(by_bp, up, 0x800);
    run.regs[6] = 0x1000;
    t.eq("stack: [ebp]", run.outcome(), fault);
    let by_ds = snippet32!("mov ecx, ds:[ebp]");
    let mut run = ring3(by_ds, up, 0x800);
    run.regs[6] = base();
    t.eq("stack: ds:[ebp]", run.outcome(), DONE);
    let by_ss = snippet32!("mov ecx, ss:[ebx]");
    t.eq("stack: ss:[ebx]", ring3(by_ss, up, 0x800).ebx(0x1000).outcome(), fault);
}

/// Accesses that instructions make on the side.
fn operands(t: &mut Report) {
    let value = descriptor(base(), 0xff, DATA, 4);
    let cases: [(&str, Code, u32, Outcome); 10] = [
        ("lgdt", snippet32!("mov fs, eax"; "lgdt fs:[ebx]"), 0xfb, FAULT),
        ("sidt", snippet32!("mov fs, eax"; "sidt fs:[ebx]"), 0xfa, DONE),
        ("sidt", snippet32!("mov fs, eax"; "sidt fs:[ebx]"), 0xfb, FAULT),
        ("fxsave", snippet32!("mov fs, eax"; "fxsave fs:[ebx]"), 0, FAULT),
        ("fstp tbyte", snippet32!("mov fs, eax", "fldz"; "fstp tbyte ptr fs:[ebx]"), 0xf7, FAULT),
        ("cmpxchg8b", snippet32!("mov fs, eax"; "cmpxchg8b fs:[ebx]"), 0xf9, FAULT),
        ("jmp far", snippet32!("mov fs, eax"; "jmp fword ptr fs:[ebx]"), 0xfb, FAULT),
        ("bound", snippet32!("mov fs, eax"; ".byte 0x64, 0x62, 0x03"), 0xf9, FAULT),
        ("xlat", snippet32!("mov fs, eax", "xor eax, eax"; ".byte 0x64, 0xd7"), 0x100, FAULT),
        ("lea", snippet32!("mov fs, eax"; "lea ecx, fs:[ebx]"), 0x1000, DONE),
    ];
    for (name, code, offset, expected) in cases {
        let got = with(code, value, offset).outcome();
        t.eq(format_args!("operand of {name} at {offset:#x}"), got, expected);
    }
    // INVLPG and prefetches never fault.
    let quiet = snippet32!("mov fs, eax"; "prefetcht0 fs:[ebx]", "nop dword ptr fs:[ebx]");
    t.eq("prefetch and nop beyond", with(quiet, value, 0x1000).outcome(), DONE);
    // A string stops at the limit, with what came before done.
    let copy = snippet32!("mov es, eax", "mov edi, 0xf8", "mov ecx, 4"; "rep stosd");
    let trap = with(copy, value, 0).run();
    let got = (trap.outcome(), trap.regs.rdi, trap.regs.rcx);
    t.eq("rep stosd at the limit", got, (FAULT, 0x100, 2));
    let back = snippet32!("mov es, eax", "std", "mov edi, 4", "mov ecx, 4"; "rep stosd");
    let trap = with(back, value, 0).run();
    let got = (trap.outcome(), trap.regs.rdi, trap.regs.rcx);
    t.eq("rep stosd downwards", got, (FAULT, 0xffff_fffc, 2));
}

/// A code segment ends, also inside an instruction.
fn code(t: &mut Report) {
    let piece = snippet32!("nop", "mov eax, 0x11223344");
    let length = (piece.end - piece.start) as u32 + 2;
    let run = |limit: u32| {
        kit::tables::set_descriptor(SPARE, descriptor(piece.start as u32, limit, CODE, 4));
        let mut run = at(piece);
        (run.eip, run.mark, run.cs) = (0, 0, SPARE.into());
        run.run()
    };
    t.eq("code: whole", run(length - 1).outcome(), Outcome::Done);
    t.eq(
        "code: an instruction across the limit",
        run(4).outcome(),
        Outcome::Fault { vector: GP, error: 0, at: 1 },
    );
    t.eq(
        "code: an instruction behind the limit",
        run(0).outcome(),
        Outcome::Fault { vector: GP, error: 0, at: 1 },
    );
    let jump = snippet32!("jmp eax");
    kit::tables::set_descriptor(SPARE, descriptor(0, 0x1ff, CODE, 12));
    let mut beyond = at(jump).eax(0x20_0000);
    beyond.cs = SPARE.into();
    t.eq("code: a jump beyond the limit", beyond.outcome(), FAULT);
}
