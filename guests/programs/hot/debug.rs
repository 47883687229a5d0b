//! Single-step and breakpoints in code that was executed without them before.

use kit::cpu::{self, flag};
use kit::trap::{self, Frame, vector::DB};
use kit::{Global, Mode, Outcome, Report, Run, snippet};

const DR6_CLEAR: u64 = 0xffff_0ff0;
const DR7_CLEAR: u64 = 0x400;
/// Enables breakpoint 0, globally.
const ENABLE: u64 = 2;
/// Breakpoint 0 is for writes of 8 bytes.
const WRITE_8: u64 = 1 << 16 | 2 << 18;

static COUNT: Global<u64> = Global::new(0);
static LAST: Global<u64> = Global::new(0);
static TARGET: Global<u64> = Global::new(0);

fn note(frame: &mut Frame) {
    COUNT.set(COUNT.get() + 1);
    LAST.set(frame.rip);
    cpu::write_dr6(DR6_CLEAR);
    frame.rflags |= flag::RF;
}

/// How often #DB came in a run, and how the run ended.
fn traps(run: Run) -> (u64, Outcome) {
    COUNT.set(0);
    trap::hook(DB as u8, Some(note));
    let outcome = run.outcome();
    trap::hook(DB as u8, None);
    (COUNT.get(), outcome)
}

pub fn run(t: &mut Report) {
    let target = TARGET.addr();
    let code = snippet!("2: inc rax", "mov [rdi], rax"; "add rbx, 3", "dec rcx", "jnz 2b");
    let hot = || {
        for _ in 0..4 {
            code.at(Mode::Kernel64).rdi(target).rcx(1000).run();
        }
        code.at(Mode::Kernel64).rdi(target)
    };
    for turn in 0..3 {
        // Five instructions in a turn; the trap after the last one is that of the end's first.
        let got = traps(hot().rcx(50).flags(flag::TF));
        t.eq(format_args!("single-step {turn}"), got, (250, Outcome::Done));
        cpu::write_dr0(code.mark);
        cpu::write_dr7(DR7_CLEAR | ENABLE);
        let got = traps(code.at(Mode::Kernel64).rdi(target).rcx(50));
        cpu::write_dr7(DR7_CLEAR);
        t.eq(format_args!("breakpoint on an instruction {turn}"), got, (50, Outcome::Done));
        t.eq(format_args!("breakpoint on an instruction {turn}, rip"), LAST.get(), code.mark);
        let run = hot().rcx(50);
        cpu::write_dr0(target);
        cpu::write_dr7(DR7_CLEAR | ENABLE | WRITE_8);
        let got = traps(run);
        cpu::write_dr7(DR7_CLEAR);
        t.eq(format_args!("breakpoint on data {turn}"), got, (50, Outcome::Done));
        let got = traps(hot().rcx(50));
        t.eq(format_args!("no breakpoint {turn}"), got, (0, Outcome::Done));
    }
}
