//! 16-bit task state segments (8.6).

use crate::scene::*;
use kit::cpu::flag;
use kit::legacy::{TASK_SELECTOR, last};
use kit::real::linear;
use kit::tables::{self, KERNEL_DATA};
use kit::trap::vector::{GP, TS};
use kit::{Code, Frame4K, Global, Outcome, Report, ZERO_FRAME, real, snippet};

static TSS16: Global<Frame4K> = Global::new(ZERO_FRAME);
static OWN16: Global<Frame4K> = Global::new(ZERO_FRAME);
/// 16-bit code at `real::CODE:0`, and a 16-bit stack.
const CODE16: u16 = SPARE + 8;
const STACK16: u16 = SPARE + 16;
const OWN: u16 = SPARE + 24;

const SP: u16 = 0xf000;

fn word(tss: &Global<Frame4K>, offset: usize) -> u16 {
    u16::from_le_bytes(tss.read(offset))
}

/// Makes the other task a 16-bit one that executes `code`.
fn set_other16(code: Code) {
    real::place(code, linear(real::CODE, 0));
    tables::set_descriptor(CODE16, 0x0000_9b00_0000_ffff | linear(real::CODE, 0) << 16);
    tables::set_descriptor(STACK16, 0x0000_9300_0000_ffff | linear(real::STACK, 0) << 16);
    TSS16.fill(0);
    let fields: [(usize, u16); 9] = [
        (0x10, 0x0003),
        (0x12, 0x1111),
        (0x14, 0x2222),
        (0x1a, SP),
        (0x20, 0x7777),
        (0x22, KERNEL_DATA),
        (0x24, CODE16),
        (0x26, STACK16),
        (0x28, KERNEL_DATA),
    ];
    for (offset, value) in fields {
        TSS16.write(offset, &value.to_le_bytes());
    }
    tables::set_descriptor(OTHER, tables::system_descriptor(TSS16.addr(), 0x2b, 1));
    kit::legacy::TASK.set(kit::legacy::Task::new());
}

pub fn run(t: &mut Report) {
    there_and_back(t);
    jump(t);
    from_sixteen(t);
    limit(t);
}

/// Long mode needs a 32-bit TSS, which becomes a 64-bit one (SDM vol. 2B MOV
/// to CR0). A machine that does not check is lost.
pub fn long_mode(t: &mut Report) {
    tables::set_descriptor(OWN, tables::system_descriptor(OWN16.addr(), 0x2b, 1));
    let code = kit::snippet32!(
        "mov ecx, 0xc0000080", "rdmsr", "bts eax, 8", "wrmsr", "mov eax, cr0", "bts eax, 31"; "mov cr0, eax"
    );
    let mut run = kit::legacy::at(code);
    run.cr4 |= 1 << 5;
    run.tr = OWN.into();
    t.eq("#GP long mode with a 16-bit TSS", run.outcome(), Outcome::coded(GP, 0));
}

fn call_there() -> Code {
    kit::snippet32!(
        "mov eax, 0xaaaa5555"; ".byte 0x9a", ".long 0", ".word {other}", "mov ecx, 8" => other = const OTHER
    )
}

fn there_and_back(t: &mut Report) {
    let there =
        snippet!(".code16"; "mov bx, sp", "pushf", "pop si", "mov bp, fs", "add ax, cx", "iret");
    set_other16(there);
    let trap = at(call_there()).run();
    let r = trap.regs;
    let got = (trap.outcome(), r.rax, r.rcx, busy());
    t.eq("16-bit: call and iret", got, (Outcome::Done, 0xaaaa_5555, 8, (true, false)));
    t.eq("16-bit: the link", word(&TSS16, 0), TASK_SELECTOR);
    let words = [0x12, 0x18, 0x1e, 0x1c, 0x20].map(|at| word(&TSS16, at));
    t.eq("16-bit: AX, BX, SI, BP, DI saved", words, [0x3333, SP, 0x4003, 0, 0x7777]);
    t.eq(
        "16-bit: IP and FLAGS saved",
        (word(&TSS16, 0xe), word(&TSS16, 0x10) & 0x4001),
        (word(&TSS16, 0xe), 0),
    );
    t.eq("16-bit: IP behind iret", u64::from(word(&TSS16, 0xe)), there.end - there.start);
}

fn jump(t: &mut Report) {
    // The upper half of ESP is not defined; the end of the run needs it.
    let there = snippet!(".code16"; "movzx esp, sp", "mov bx, ss", "mov cx, cs", "mov si, gs");
    set_other16(there);
    let jump = kit::snippet32!(".byte 0xea", ".long 0", ".word {other}" => other = const OTHER);
    let trap = at(jump).run();
    let r = trap.regs;
    let got = (trap.vector, r.rax & 0xffff, r.rbx & 0xffff, r.rcx & 0xffff, r.rsi & 0xffff);
    t.eq("16-bit: jmp", got, (0xf0, 0x1111, STACK16.into(), CODE16.into(), 0));
    t.eq("16-bit: TR", last().tr, OTHER);
    t.eq("16-bit: SP at the end", trap.regs.rdi & 0xffff, 0x7777);
    t.eq("16-bit: FLAGS", trap.rflags & (flag::CF | flag::NT), flag::CF);
}

/// The own task is a 16-bit one: only words are saved.
fn from_sixteen(t: &mut Report) {
    let there = kit::snippet32!("mov ebx, 0x12345678", "iretd");
    set_other(task(there), 0);
    OWN16.fill(0xee);
    OWN16.write(0x2a, &[0, 0]);
    tables::set_descriptor(OWN, tables::system_descriptor(OWN16.addr(), 0x2b, 1));
    // A task in 16-bit code, so that IP is enough.
    let code = snippet!(
        ".code16", "mov ax, {stack}", "mov ss, ax", "mov esp, 0xe000", "mov ax, 0x5678";
        ".byte 0x9a", ".word 0, {other}", "movzx esp, sp", "mov ecx, 8"
        => other = const OTHER, stack = const STACK16
    );
    real::place(code, linear(real::CODE, 0));
    let mut run = kit::legacy::at(code);
    (run.eip, run.mark, run.cs) = (0, 0, CODE16.into());
    run.tr = OWN.into();
    run.eflags |= flag::CF as u32;
    let trap = run.run();
    let got = (trap.vector, trap.regs.rax & 0xffff, trap.regs.rcx);
    t.eq("from 16-bit and back", got, (0xf0, 0x5678, 8));
    let ip = (code.mark - code.start) as u16 + 5;
    let words = [0xe, 0x10, 0x12, 0x1a, 0x24, 0x26].map(|at| word(&OWN16, at));
    t.eq("from 16-bit: words saved", words, [ip, 3, 0x5678, 0xe000, CODE16, STACK16]);
    let around = (word(&OWN16, 0), word(&OWN16, 0xc), word(&OWN16, 0x2c));
    t.eq("from 16-bit: nothing around", around, (0xeeee, 0xeeee, 0xeeee));
    t.eq("from 16-bit: the link", other().link, OWN.into());
}

fn limit(t: &mut Report) {
    set_other16(snippet!(".code16"; "nop"));
    tables::set_descriptor(OTHER, tables::system_descriptor(TSS16.addr(), 0x2a, 1));
    t.eq("#TS 16-bit: limit", at(call_there()).outcome(), Outcome::coded(TS, OTHER.into()));
}
