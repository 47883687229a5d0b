//! The I/O APIC: edge and level, masks, remote IRR and EOI.

use crate::pic::{drop_uart, raise_uart};
use crate::{Log, clear_log, let_in, log, log_eoi, logged, wait_until};
use kit::apic::{self, reg};
use kit::ioapic::{self, LEVEL, MASKED, REMOTE_IRR};
use kit::trap::{self, Frame, vector::NMI};
use kit::{Global, Outcome, Report, cpu, pit, snippet};

const UART_PIN: u32 = 4;
const VECTOR: u8 = 0x58;
const LIMIT_MS: u64 = 400;

pub fn run(t: &mut Report) {
    registers(t);
    ioapic::mask_all();
    if let Some(pin) = timer_pin(t) {
        halt_by_nmi(t, pin);
    }
    edge(t);
    level(t);
    ioapic::mask_all();
}

fn registers(t: &mut Report) {
    t.holds("I/O APIC: version", ioapic::read(1) & 0xff, |v| (0x11..=0x20).contains(v));
    t.holds("I/O APIC: pins", ioapic::pins(), |&n| n >= 16);
    let id = ioapic::read(0);
    ioapic::write(0, 0x0500_0000);
    t.eq("I/O APIC: ID reads back", ioapic::read(0) & 0x0f00_0000, 0x0500_0000);
    ioapic::write(0, id);
    let value = 0x0300_0000_0001_a958;
    ioapic::set_redirection(5, value | REMOTE_IRR | 1 << 12);
    let got = ioapic::redirection(5);
    t.eq("I/O APIC: entry reads back, status bits do not", got, value);
    ioapic::set_redirection(5, MASKED);
}

/// The pin of the PIT: 2 on usual PCs, 0 without the override.
fn timer_pin(t: &mut Report) -> Option<u32> {
    trap::hook(VECTOR, Some(log_eoi));
    trap::hook(VECTOR + 1, Some(log_eoi));
    clear_log();
    ioapic::set_redirection(0, VECTOR.into());
    ioapic::set_redirection(2, u64::from(VECTOR) + 1);
    pit::start(0, 1193);
    let came = wait_until(LIMIT_MS, || crate::LOG_LEN.get() > 0);
    let_in(3);
    t.that("I/O APIC: PIT interrupt", came);
    let log = logged();
    t.that("I/O APIC: PIT on pin 2 or pin 0, once", {
        log == Log::of(&[VECTOR.into()]) || log == Log::of(&[u16::from(VECTOR) + 1])
    });
    ioapic::set_redirection(0, MASKED);
    ioapic::set_redirection(2, MASKED);
    pit::stop();
    trap::hook(VECTOR + 1, None);
    came.then_some(if log == Log::of(&[VECTOR.into()]) { 0 } else { 2 })
}

/// Where the NMI is to find the processor, and whether it did.
static WANTED: Global<u64> = Global::new(0);
static FOUND: Global<bool> = Global::new(false);
static PIN: Global<u32> = Global::new(0);

/// The PIT's pin delivers NMIs: they end HLT although IF is clear.
fn halt_by_nmi(t: &mut Report, pin: u32) {
    const DELIVER_NMI: u64 = 4 << 8;
    // An NMI that comes too early is followed by another one.
    trap::hook(
        NMI as u8,
        Some(|frame: &mut Frame| {
            if frame.rip == WANTED.get() {
                FOUND.set(true);
                ioapic::set_redirection(PIN.get(), MASKED);
            }
        }),
    );
    let halt = snippet!("mov rax, cr0"; "hlt", "mov eax, 1");
    WANTED.set(halt.mark + 1);
    PIN.set(pin);
    ioapic::set_redirection(pin, DELIVER_NMI | u64::from(apic::read(reg::ID)) << 32);
    pit::start(2, 4 * 1193);
    let trap = halt.kernel();
    t.eq("NMI wakes HLT", (trap.outcome(), trap.regs.rax), (Outcome::Done, 1));
    t.that("NMI in HLT: saved RIP behind HLT", FOUND.get());
    ioapic::set_redirection(pin, MASKED);
    pit::stop();
    trap::hook(NMI as u8, None);
}

fn edge(t: &mut Report) {
    trap::hook(VECTOR, Some(log_eoi));
    clear_log();
    ioapic::set_redirection(UART_PIN, VECTOR.into());
    raise_uart();
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    // The report goes out by the same UART: only with its interrupt off.
    let first = logged();
    drop_uart();
    raise_uart();
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    let second = logged();
    drop_uart();
    let vector = u16::from(VECTOR);
    t.eq("I/O APIC edge: one interrupt while the line is high", first, Log::of(&[vector]));
    t.eq("I/O APIC edge: again after a new edge", second, Log::of(&[vector; 2]));
    ioapic::set_redirection(UART_PIN, MASKED);
    clear_log();
    raise_uart();
    let_in(1);
    drop_uart();
    t.eq("I/O APIC edge: masked", logged(), Log::of(&[]));
}

/// Remote IRR and TMR, seen by a handler.
static SEEN: Global<(bool, bool)> = Global::new((false, false));

fn level(t: &mut Report) {
    fn handler(frame: &mut Frame) {
        log(frame.vector as u16);
        let remote = ioapic::redirection(UART_PIN) & REMOTE_IRR != 0;
        SEEN.set((remote, apic::vector_bit(reg::TMR, VECTOR)));
        if crate::LOG_LEN.get() >= 3 {
            drop_uart();
        }
        apic::eoi();
    }
    trap::hook(VECTOR, Some(handler));
    clear_log();
    ioapic::set_redirection(UART_PIN, LEVEL | u64::from(VECTOR));
    raise_uart();
    for _ in 0..8 {
        cpu::interrupt_window();
    }
    let three = Log::of(&[VECTOR.into(); 3]);
    t.eq("I/O APIC level: again after EOI until the line drops", logged(), three);
    t.eq("I/O APIC level: remote IRR, TMR in service", SEEN.get(), (true, true));
    let remote = ioapic::redirection(UART_PIN) & REMOTE_IRR;
    t.eq("I/O APIC level: remote IRR clear after EOI", remote, 0);

    // Asserted while masked: delivered when unmasked.
    ioapic::set_redirection(UART_PIN, MASKED | LEVEL | u64::from(VECTOR));
    clear_log();
    raise_uart();
    let_in(1);
    let masked = logged();
    crate::LOG_LEN.set(2);
    ioapic::set_redirection(UART_PIN, LEVEL | u64::from(VECTOR));
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    let count = crate::LOG_LEN.get();
    drop_uart();
    t.eq("I/O APIC level: masked", masked, Log::of(&[]));
    t.eq("I/O APIC level: delivered after unmasking", count, 3);

    // Accepted by the local APIC: dropping the line does not take it back.
    clear_log();
    raise_uart();
    drop_uart();
    for _ in 0..4 {
        cpu::interrupt_window();
    }
    t.eq("I/O APIC level: an accepted request stays", logged(), Log::of(&[VECTOR.into()]));
    trap::hook(VECTOR, None);
}
