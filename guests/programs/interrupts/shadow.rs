//! When a pending interrupt is taken: STI and MOV SS shadows, POPF, IRET,
//! HLT, ring 3 (SDM vol. 3A 6.8.1, 6.8.3).

use kit::cpu::flag;
use kit::trap::{self, Frame};
use kit::{Global, Mode, Outcome, Report, Run, apic, cpu, snippet, tables};

const VECTOR: u8 = 0x40;

/// Runs with a self-interrupt pending; where it was taken.
fn with_pending(run: Run) -> kit::Trap {
    apic::self_ipi(VECTOR);
    let trap = run.run();
    if trap.vector == u64::from(VECTOR) {
        apic::eoi();
    } else {
        // Not taken: take it now, so that nothing is left pending.
        trap::hook(VECTOR, Some(|_| apic::eoi()));
        cpu::interrupt_window();
        trap::hook(VECTOR, None);
    }
    trap
}

fn taken_at(at: i64) -> Outcome {
    Outcome::trap(VECTOR.into(), at)
}

pub fn run(t: &mut Report) {
    windows(t);
    flags_and_stack(t);
    halt(t);
}

fn windows(t: &mut Report) {
    let kernel = |code: kit::Code| with_pending(code.at(Mode::Kernel64)).outcome();
    let masked = snippet!("nop", "nop", "nop");
    t.eq("IF clear: not taken", kernel(masked), Outcome::Done);
    let sti = snippet!("sti"; "inc eax", "inc ecx", "cli");
    t.eq("STI: taken after the next instruction", kernel(sti), taken_at(2));
    let sti_cli = snippet!("sti", "cli"; "nop", "nop");
    t.eq("STI, CLI: not taken", kernel(sti_cli), Outcome::Done);
    // The second STI finds IF set and casts no shadow.
    let sti_sti = snippet!("sti"; "sti", "nop", "nop");
    t.eq("STI, STI: taken after the second", kernel(sti_sti), taken_at(1));
    let popf = snippet!("pushfq", "or dword ptr [rsp], 0x200", "popfq"; "nop", "nop");
    t.eq("POPF: taken at once", kernel(popf), taken_at(0));
    let iret = with_pending(snippet!("nop", "nop").at(Mode::Kernel64).flags(flag::IF));
    t.eq("IRETQ: taken at its target", iret.outcome(), taken_at(0));
    let iret = with_pending(snippet!("nop", "nop").at(Mode::User64).flags(flag::IF));
    t.eq("IRETQ to ring 3: taken at its target", iret.outcome(), taken_at(0));
    // STI, then MOV SS: the shadow of STI covers MOV SS; whether the shadow
    // of MOV SS then holds is not guaranteed.
    let sti_ss = snippet!("mov ecx, ss", "sti"; "mov ss, ecx", "inc eax", "inc eax", "cli");
    t.holds("STI, MOV SS: taken after MOV SS or one later", kernel(sti_ss), |&outcome| {
        outcome == taken_at(2) || outcome == taken_at(4)
    });
    let cr8 = snippet!("mov eax, 15", "mov cr8, rax", "sti", "nop", "xor eax, eax";
        "mov cr8, rax", "nop", "nop", "cli");
    t.eq("lowering CR8: taken at once", kernel(cr8), taken_at(4));
    let jump = snippet!("sti"; "jmp 2f", "ud2", "2:", "nop", "cli");
    t.eq("STI, JMP: taken at the target", kernel(jump), taken_at(4));
    let syscall = snippet!("sti"; "call 2f", "2:", "pop rax", "cli");
    t.eq("STI, CALL: taken at the target", kernel(syscall), taken_at(5));
}

fn flags_and_stack(t: &mut Report) {
    let trap = with_pending(snippet!("sti"; "stc", "nop").at(Mode::Kernel64).flags(flag::DF));
    t.eq("saved flags", trap.rflags, flag::IF | flag::DF | flag::CF | 2);
    t.eq("same level: on the running stack", trap.stack, kit::snippet::stack_top());
    let trap = with_pending(snippet!("nop").at(Mode::User64).flags(flag::IF));
    t.eq("ring 3: on RSP0", trap.stack, tables::rsp0_top());
    t.eq("ring 3: saved CS", trap.cs, tables::USER_CODE.into());
}

static RESUME: Global<u64> = Global::new(0);

fn halt(t: &mut Report) {
    let halt = snippet!("sti"; "hlt", "nop", "cli");
    let trap = with_pending(halt.at(Mode::Kernel64));
    t.eq("STI, HLT with an interrupt pending: saved RIP behind HLT", trap.outcome(), taken_at(1));
    // A real sleep: the APIC timer wakes it.
    trap::hook(
        VECTOR,
        Some(|frame: &mut Frame| {
            RESUME.set(frame.rip);
            apic::eoi();
        }),
    );
    apic::write(apic::reg::TIMER_DIVIDE, 0xb);
    apic::write(apic::reg::LVT_TIMER, VECTOR.into());
    apic::write(apic::reg::TIMER_INITIAL, 100_000);
    let trap = snippet!("sti"; "hlt", "cli", "mov eax, 1").kernel();
    trap::hook(VECTOR, None);
    t.eq("HLT continues behind itself", (trap.outcome(), trap.regs.rax), (Outcome::Done, 1));
    t.eq("HLT: interrupt frame", RESUME.get(), trap.mark + 1);
    apic::write(apic::reg::LVT_TIMER, apic::MASKED);
}
