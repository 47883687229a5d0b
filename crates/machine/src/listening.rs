//! Holding console input back until the guest listens.
//!
//! A kernel that probes and opens its UART reads and clears it several times before anybody wants
//! input: what a script had typed ahead would be lost there, as on a real serial line. So input is
//! taken only once the guest listens: it has enabled the received-data interrupt, or it polls the
//! line status for input. What is not taken stays with whoever offers it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backend::ConsoleInput;
use chipset::Uart;
use device::{Answer, PortIo, Width};

/// Offsets of registers (PC16550D data sheet, table II).
const IER: u16 = 1;
const LCR: u16 = 3;
const LSR: u16 = 5;
/// IER: received data available.
const RECEIVED_DATA: u32 = 1 << 0;
/// LCR: offset 1 is the divisor, not IER.
const DIVISOR_LATCH: u32 = 1 << 7;
/// So many reads of the line status with nothing between them wait for input: the transmitter,
/// which is always ready, is waited for by one.
const POLLS: u32 = 16;
const LISTENING: u32 = u32::MAX;

/// The UART at its ports, with a console input that waits for the guest to listen.
pub(crate) struct ListeningUart {
    uart: Arc<Uart>,
    base: u16,
    /// Reads of the line status in a row, or [`LISTENING`].
    polls: AtomicU32,
}

impl ListeningUart {
    /// `uart`, whose first port is `base`; the guest does not listen yet.
    pub(crate) fn new(uart: Arc<Uart>, base: u16) -> Self {
        Self { uart, base, polls: AtomicU32::new(0) }
    }

    /// After a reset the guest listens no more.
    pub(crate) fn reset(&self) {
        self.polls.store(0, Ordering::Relaxed);
    }

    /// A guest that was saved is taken to have listened.
    pub(crate) fn restore(&self) {
        self.polls.store(LISTENING, Ordering::Relaxed);
    }

    fn is_listening(&self) -> bool {
        self.polls.load(Ordering::Relaxed) == LISTENING
    }

    /// Looks at an access of a guest that does not listen yet.
    fn watch(&self, port: u16, written: Option<u32>) {
        let polls = match (port.wrapping_sub(self.base), written) {
            (LSR, None) => match self.polls.load(Ordering::Relaxed) {
                before if before + 1 < POLLS => before + 1,
                _ => LISTENING,
            },
            (IER, Some(value)) if value & RECEIVED_DATA != 0 && !self.divisor_latched() => {
                LISTENING
            }
            _ => 0,
        };
        self.polls.store(polls, Ordering::Relaxed);
    }

    fn divisor_latched(&self) -> bool {
        match self.uart.port_read(self.base + LCR, Width::Byte) {
            Answer::Done(lcr) => lcr & DIVISOR_LATCH != 0,
            _ => false,
        }
    }
}

impl PortIo for ListeningUart {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        if !self.is_listening() {
            self.watch(port, None);
        }
        self.uart.port_read(port, width)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        if !self.is_listening() {
            self.watch(port, Some(value));
        }
        self.uart.port_write(port, width, value)
    }
}

impl ConsoleInput for ListeningUart {
    fn push(&self, bytes: &[u8]) -> usize {
        if self.is_listening() { self.uart.push(bytes) } else { 0 }
    }

    fn room(&self) -> usize {
        if self.is_listening() { self.uart.room() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use backend::CaptureConsole;
    use device::NoLine;

    use super::*;

    const BASE: u16 = 0x3f8;

    fn uart() -> ListeningUart {
        let uart = Uart::new(BASE, Arc::new(NoLine), CaptureConsole::new(64));
        ListeningUart::new(Arc::new(uart), BASE)
    }

    fn read(uart: &ListeningUart, register: u16) -> u32 {
        match uart.port_read(BASE + register, Width::Byte) {
            Answer::Done(value) => value,
            other => panic!("{other:?}"),
        }
    }

    fn write(uart: &ListeningUart, register: u16, value: u32) {
        assert_eq!(uart.port_write(BASE + register, Width::Byte, value), Answer::Done(()));
    }

    #[test]
    fn probing_loses_nothing() {
        let uart = uart();
        assert_eq!((uart.push(b"early"), uart.room()), (0, 0));
        // What a driver does that looks for a UART, prints, and sets a slow line.
        for value in [1, 7, 0] {
            write(&uart, 2, value);
        }
        for _ in 0..100 {
            read(&uart, LSR);
            write(&uart, 0, b'x'.into());
        }
        write(&uart, LCR, 0x83);
        write(&uart, 1, 1);
        write(&uart, LCR, 0x03);
        for register in [0, 2, LSR, 6] {
            read(&uart, register);
        }
        assert_eq!(uart.push(b"early"), 0);
        write(&uart, IER, 5);
        assert_eq!(uart.push(b"early"), 5);
        assert_eq!(read(&uart, 0), u32::from(b'e'));
    }

    #[test]
    fn a_guest_that_polls_listens() {
        let uart = uart();
        for _ in 0..POLLS {
            assert_eq!(uart.push(b"a"), 0);
            assert_eq!(read(&uart, LSR) & 1, 0);
        }
        assert_eq!(uart.push(b"a"), 1);
        assert_eq!((read(&uart, LSR) & 1, read(&uart, 0)), (1, u32::from(b'a')));
    }

    #[test]
    fn a_reset_guest_listens_no_more_and_a_restored_one_does() {
        let uart = uart();
        write(&uart, IER, 1);
        assert_ne!(uart.room(), 0);
        uart.reset();
        assert_eq!(uart.room(), 0);
        uart.restore();
        assert_ne!(uart.room(), 0);
    }
}
