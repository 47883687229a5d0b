//! The 8259 pair, with requests from the 8254 (IRQ 0) and from the UART's
//! transmitter (IRQ 4), delivered through LINT0 as external interrupts.

use crate::{END, Log, clear_log, let_in, log, logged, wait_until};
use kit::apic::{self, reg};
use kit::port::{in8, out8};
use kit::trap::Frame;
use kit::{Global, Report, cpu, pic, pit, trap};

const BASE: u8 = 0x20;
const TIMER: u8 = BASE;
const UART: u8 = BASE + 4;
const LIMIT_MS: u64 = 400;

/// UART: enable the transmitter interrupt, which requests at once since the
/// transmitter is empty.
pub fn raise_uart() {
    out8(0x3fc, 0x0b);
    out8(0x3f9, 0x02);
}

/// UART: all interrupts off.
pub fn drop_uart() {
    out8(0x3f9, 0);
    in8(0x3fa);
}

pub fn run(t: &mut Report) {
    apic::write(reg::LVT_LINT0, apic::EXTINT);
    masks(t);
    timer_once(t);
    pending(t);
    in_service(t);
    priority(t);
    automatic_eoi(t);
    remap(t);
    pit_modes(t);
    pic::mask_all();
    apic::write(reg::LVT_LINT0, apic::MASKED);
}

fn log_and_eoi(frame: &mut Frame) {
    log(frame.vector as u16);
    pic::eoi(frame.vector as u8 - BASE);
}

fn masks(t: &mut Report) {
    pic::init(BASE, BASE + 8);
    t.eq("PIC: masks after initialisation by the kit", pic::mask(), 0xffff);
    pic::set_mask(0xa55a);
    t.eq("PIC: masks read back", pic::mask(), 0xa55a);
    pic::set_mask(0xffff);
    t.eq("PIC: nothing in service", pic::isr(), 0);
}

fn timer_once(t: &mut Report) {
    trap::hook(TIMER, Some(log_and_eoi));
    clear_log();
    pic::set_mask(!1);
    pit::start(0, 1193);
    t.that("PIT mode 0: interrupt", wait_until(LIMIT_MS, || crate::LOG_LEN.get() > 0));
    let_in(5);
    t.eq("PIT mode 0: one interrupt", logged(), Log::of(&[TIMER.into()]));
    t.eq("PIT mode 0: output high", pit::status() & 0x80, 0x80);
    pic::set_mask(0xffff);
    pit::stop();
    t.eq("PIT mode 0: output low after a new mode", pit::status() & 0x80, 0);
}

/// Waits, with interrupts off, until the timer requests.
fn await_request() {
    let limit = pit::tsc_per_ms() * LIMIT_MS;
    let start = cpu::tsc();
    while pic::irr() & 1 == 0 && cpu::tsc() - start < limit {
        core::hint::spin_loop();
    }
}

/// A request waits in the IRR while masked and while IF is clear.
fn pending(t: &mut Report) {
    clear_log();
    pit::start(0, 1193);
    await_request();
    t.eq("PIC: masked request in IRR", pic::irr() & 1, 1);
    let_in(1);
    t.eq("PIC: masked, no interrupt", logged(), Log::of(&[]));
    pic::set_mask(!1);
    cpu::interrupt_window();
    t.eq("PIC: unmasked, delivered", logged(), Log::of(&[TIMER.into()]));
    pic::set_mask(0xffff);
    pit::stop();
}

static SEEN: Global<(u16, u16)> = Global::new((0, 0));

fn in_service(t: &mut Report) {
    trap::hook(
        UART,
        Some(|frame: &mut Frame| {
            log(frame.vector as u16);
            drop_uart();
            SEEN.set((pic::isr(), pic::irr()));
            pic::eoi(4);
        }),
    );
    clear_log();
    pic::set_mask(!(1 << 4));
    raise_uart();
    cpu::interrupt_window();
    cpu::interrupt_window();
    t.eq("PIC: UART interrupt", logged(), Log::of(&[UART.into()]));
    t.eq("PIC: in service in the handler", SEEN.get().0, 1 << 4);
    t.eq("PIC: not in service after EOI", pic::isr(), 0);
    drop_uart();
    pic::set_mask(0xffff);
}

/// IRQ 0 goes before IRQ 4, and only the higher one nests.
fn priority(t: &mut Report) {
    trap::hook(TIMER, Some(log_and_eoi));
    trap::hook(
        UART,
        Some(|frame: &mut Frame| {
            drop_uart();
            log_and_eoi(frame);
        }),
    );
    clear_log();
    pit::start(0, 600);
    await_request();
    raise_uart();
    pic::set_mask(!0x11);
    for _ in 0..3 {
        cpu::interrupt_window();
    }
    let expected = Log::of(&[TIMER.into(), UART.into()]);
    t.eq("PIC: both pending, IRQ 0 first", logged(), expected);

    // The UART in service: the timer nests.
    trap::hook(
        UART,
        Some(|frame: &mut Frame| {
            drop_uart();
            log(frame.vector as u16);
            pit::start(0, 600);
            await_request();
            cpu::interrupt_window();
            log(frame.vector as u16 + END);
            pic::eoi(4);
        }),
    );
    clear_log();
    raise_uart();
    for _ in 0..3 {
        cpu::interrupt_window();
    }
    let expected = Log::of(&[UART.into(), TIMER.into(), u16::from(UART) + END]);
    t.eq("PIC: IRQ 0 nests in IRQ 4", logged(), expected);

    // The timer in service: the UART waits for its EOI.
    trap::hook(
        TIMER,
        Some(|frame: &mut Frame| {
            log(frame.vector as u16);
            raise_uart();
            cpu::interrupt_window();
            log(frame.vector as u16 + END);
            pic::eoi(0);
        }),
    );
    trap::hook(
        UART,
        Some(|frame: &mut Frame| {
            drop_uart();
            log_and_eoi(frame);
        }),
    );
    clear_log();
    pit::start(0, 600);
    await_request();
    for _ in 0..3 {
        cpu::interrupt_window();
    }
    let expected = Log::of(&[TIMER.into(), u16::from(TIMER) + END, UART.into()]);
    t.eq("PIC: IRQ 4 waits for the EOI of IRQ 0", logged(), expected);
    pic::set_mask(0xffff);
    pit::stop();
}

/// ICW4 with automatic EOI leaves nothing in service.
fn automatic_eoi(t: &mut Report) {
    for (port, value) in [(0x20, 0x11), (0x21, BASE), (0x21, 4), (0x21, 3), (0x21, 0xef)] {
        out8(port, value);
    }
    trap::hook(
        UART,
        Some(|frame: &mut Frame| {
            drop_uart();
            log(frame.vector as u16);
            SEEN.set((pic::isr(), 0));
        }),
    );
    clear_log();
    raise_uart();
    cpu::interrupt_window();
    t.eq("PIC: automatic EOI, interrupt", logged(), Log::of(&[UART.into()]));
    t.eq("PIC: automatic EOI, nothing in service", SEEN.get().0 & 0xff, 0);
    drop_uart();
    pic::init(BASE, BASE + 8);
}

fn remap(t: &mut Report) {
    pic::init(0x70, 0x78);
    trap::hook(
        0x74,
        Some(|frame: &mut Frame| {
            drop_uart();
            log(frame.vector as u16);
            pic::eoi(4);
        }),
    );
    clear_log();
    pic::set_mask(!0x10);
    raise_uart();
    cpu::interrupt_window();
    t.eq("PIC: vector base 0x70", logged(), Log::of(&[0x74]));
    trap::hook(0x74, None);
    trap::hook(UART, None);
    pic::init(BASE, BASE + 8);
}

/// Modes 2 and 3 request again and again.
fn pit_modes(t: &mut Report) {
    trap::hook(TIMER, Some(log_and_eoi));
    for (mode, name) in [(2u8, "mode 2"), (3, "mode 3")] {
        clear_log();
        pic::set_mask(!1);
        let start = cpu::tsc();
        pit::start(mode, 1193);
        let came = wait_until(LIMIT_MS, || crate::LOG_LEN.get() >= 20);
        let ms = (cpu::tsc() - start) / pit::tsc_per_ms();
        pic::set_mask(0xffff);
        t.that(format_args!("PIT {name}: interrupts"), came);
        t.that(format_args!("PIT {name}: not faster than its rate"), ms >= 15);
        let counts = [0; 8].map(|_| pit::count());
        let below = counts.iter().all(|&count| count <= 1193);
        t.that(format_args!("PIT {name}: count within its period"), below);
        t.eq(format_args!("PIT {name}: status mode"), pit::status() >> 1 & 3, mode);
    }
    pit::stop();
    trap::hook(TIMER, None);
}
