//! The non-maskable interrupt, sent by an interprocessor interrupt to this
//! processor (SDM vol. 3A 6.7).

use crate::{END, Log, clear_log, log, logged};
use kit::apic::{self, reg};
use kit::trap::{self, Frame, vector::NMI};
use kit::{Global, Mode, Report, snippet, tables};

/// Sends an NMI to this processor by its physical ID (the "self" shorthand
/// is for fixed interrupts only).
fn send() {
    let id = apic::read(reg::ID);
    if apic::is_x2apic() {
        let icr = u64::from(id) << 32 | u64::from(apic::ICR_NMI | apic::ICR_ASSERT);
        kit::cpu::wrmsr(0x830, icr);
    } else {
        apic::write(reg::ICR_HIGH, id);
        apic::write(reg::ICR, apic::ICR_NMI | apic::ICR_ASSERT);
    }
}

/// Spins a little: delivery of the message may take a few instructions.
fn settle() {
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
}

static STACK: Global<u64> = Global::new(0);

pub fn run(t: &mut Report) {
    trap::hook(
        NMI as u8,
        Some(|frame: &mut Frame| {
            log(frame.vector as u16);
            STACK.set(&raw const *frame as u64 + size_of::<Frame>() as u64);
        }),
    );
    clear_log();
    send();
    settle();
    t.eq("NMI is taken with IF clear", logged(), Log::of(&[NMI as u16]));
    t.eq("NMI on its IST stack", STACK.get(), tables::ist_top(tables::IST_NMI));

    // A second one during the handler waits for IRET, a third is lost.
    trap::hook(
        NMI as u8,
        Some(|frame: &mut Frame| {
            log(frame.vector as u16);
            if crate::LOG_LEN.get() == 1 {
                send();
                send();
                settle();
            }
            log(frame.vector as u16 + END);
        }),
    );
    clear_log();
    send();
    settle();
    let twice = [2, 2 + END, 2, 2 + END];
    t.eq("NMI in its handler waits for IRET", logged(), Log::of(&twice));

    trap::hook(NMI as u8, None);

    // Without a hook it ends a snippet.
    let spin = snippet!("2:", "dec ecx", "jnz 2b");
    let trap = send_before(spin);
    t.eq("NMI vector without a hook", trap.vector, NMI);
    t.eq("NMI frame stack", trap.stack, tables::ist_top(tables::IST_NMI));
}

/// Sends an NMI from ring 0 assembly right before a loop that it interrupts.
fn send_before(code: kit::Code) -> kit::Trap {
    if apic::is_x2apic() {
        unreachable!("this part runs in xAPIC mode");
    }
    apic::write(reg::ICR_HIGH, apic::read(reg::ID));
    let send = snippet!("mov [rbx], eax", "mov ecx, 100000", "jmp rdx");
    let run = send.at(Mode::Kernel64).rax(u64::from(apic::ICR_NMI | apic::ICR_ASSERT));
    run.rbx(apic::BASE + u64::from(reg::ICR)).rdx(code.start).run()
}
