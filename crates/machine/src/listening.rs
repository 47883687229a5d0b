//! Holding console input back until the guest listens.
//!
//! A kernel that probes and opens its UART reads and clears it several times before anybody wants
//! input: what a script had typed ahead would be lost there, as on a real serial line. So input is
//! taken only while the guest listens: it has enabled the received-data interrupt and leads it to
//! the interrupt controller, or it was seen to poll the line status for input. What is not taken
//! stays with whoever offers it. None of this is part of the guest's state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backend::ConsoleInput;
use chipset::Uart;
use device::{Answer, PortIo, Width};

/// Offsets of registers (PC16550D data sheet, table II).
const IER: u16 = 1;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
/// IER: received data available.
const RECEIVED_DATA: u32 = 1 << 0;
/// LCR: offset 1 is the divisor, not IER.
const DIVISOR_LATCH: u32 = 1 << 7;
/// MCR: interrupts leave the UART.
const OUT2: u32 = 1 << 3;
/// MCR: the UART is cut off from the line.
const LOOPBACK: u32 = 1 << 4;
/// So many reads of the line status with nothing between them wait for input: the transmitter,
/// which is always ready, is waited for by one.
const POLLS: u32 = 16;

/// The UART at its ports, with a console input that waits for the guest to listen.
pub(crate) struct ListeningUart {
    uart: Arc<Uart>,
    base: u16,
    /// Reads of the line status in a row; from [`POLLS`] on it stays.
    polls: AtomicU32,
}

impl ListeningUart {
    /// `uart`, whose first port is `base`; the guest does not listen yet.
    pub(crate) fn new(uart: Arc<Uart>, base: u16) -> Self {
        Self { uart, base, polls: AtomicU32::new(0) }
    }

    /// After a reset the guest polls no more.
    pub(crate) fn reset(&self) {
        self.polls.store(0, Ordering::Relaxed);
    }

    fn is_listening(&self) -> bool {
        let (line, modem) = (self.register(LCR), self.register(MCR));
        let connected = line & DIVISOR_LATCH == 0 && modem & (OUT2 | LOOPBACK) == OUT2;
        connected && self.register(IER) & RECEIVED_DATA != 0 || self.is_polling()
    }

    fn is_polling(&self) -> bool {
        self.polls.load(Ordering::Relaxed) >= POLLS
    }

    /// A register that reading does not change.
    fn register(&self, offset: u16) -> u32 {
        match self.uart.port_read(self.base + offset, Width::Byte) {
            Answer::Done(value) => value,
            _ => 0,
        }
    }

    /// Counts reads of the line status in a row.
    fn watch(&self, is_status_read: bool) {
        if !self.is_polling() {
            let polls = if is_status_read { self.polls.load(Ordering::Relaxed) + 1 } else { 0 };
            self.polls.store(polls, Ordering::Relaxed);
        }
    }
}

impl PortIo for ListeningUart {
    fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
        self.watch(port.wrapping_sub(self.base) == LSR);
        self.uart.port_read(port, width)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        self.watch(false);
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
        for value in [0x0f, 0] {
            write(&uart, IER, value);
            assert_eq!(uart.push(b"early"), 0);
        }
        for value in [1, 7, 0] {
            write(&uart, 2, value);
        }
        for _ in 0..100 {
            read(&uart, LSR);
            write(&uart, 0, b'x'.into());
        }
        write(&uart, MCR, OUT2 | 3);
        write(&uart, LCR, 0x83);
        write(&uart, 1, 1);
        assert_eq!(uart.push(b"early"), 0);
        write(&uart, LCR, 0x03);
        for register in [0, 2, LSR, 6] {
            read(&uart, register);
        }
        assert_eq!(uart.push(b"early"), 0);
        write(&uart, IER, 5);
        assert_eq!(uart.push(b"early"), 5);
        assert_eq!(read(&uart, 0), u32::from(b'e'));
        write(&uart, IER, 0);
        assert_eq!(uart.room(), 0);
    }

    #[test]
    fn a_guest_that_polls_listens_until_it_is_reset() {
        let uart = uart();
        for _ in 0..POLLS {
            assert_eq!(uart.push(b"a"), 0);
            assert_eq!(read(&uart, LSR) & 1, 0);
        }
        assert_eq!(uart.push(b"a"), 1);
        assert_eq!((read(&uart, LSR) & 1, read(&uart, 0)), (1, u32::from(b'a')));
        write(&uart, 0, 0);
        assert_ne!(uart.room(), 0);
        uart.reset();
        assert_eq!(uart.room(), 0);
    }
}
