//! Registers and bits of the 16550A (PC16550D data sheet, table 2, "Summary of registers").

/// A register by its offset; what DLAB and the direction make of it is decided by the UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// RBR (read), THR (write); the low half of the divisor with DLAB set.
    Data,
    /// IER; the high half of the divisor with DLAB set.
    InterruptEnable,
    /// IIR (read), FCR (write).
    InterruptIdOrFifo,
    /// LCR.
    LineControl,
    /// MCR.
    ModemControl,
    /// LSR.
    LineStatus,
    /// MSR.
    ModemStatus,
    /// SCR.
    Scratch,
}

impl Register {
    pub(super) fn at(offset: u16) -> Option<Self> {
        Some(match offset {
            0 => Self::Data,
            1 => Self::InterruptEnable,
            2 => Self::InterruptIdOrFifo,
            3 => Self::LineControl,
            4 => Self::ModemControl,
            5 => Self::LineStatus,
            6 => Self::ModemStatus,
            7 => Self::Scratch,
            _ => return None,
        })
    }
}

/// Interrupt enable register.
pub(super) struct Ier;
impl Ier {
    pub(super) const RECEIVED: u8 = 1 << 0;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub(super) const LINE_STATUS: u8 = 1 << 2;
    pub(super) const MODEM_STATUS: u8 = 1 << 3;
    /// Bits 7:4 read zero; later chips are told apart by them.
    pub(super) const ALL: u8 = 0x0f;
}

/// Interrupt identification register, bits 3:0 by priority.
pub(super) struct Iir;
impl Iir {
    pub(super) const MODEM_STATUS: u8 = 0x0;
    pub(super) const NONE: u8 = 0x1;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x2;
    pub(super) const RECEIVED: u8 = 0x4;
    pub(super) const LINE_STATUS: u8 = 0x6;
    pub(super) const TIME_OUT: u8 = 0xc;
    pub(super) const FIFO_ENABLED: u8 = 0xc0;
}

/// FIFO control register.
pub(super) struct Fcr;
impl Fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVED: u8 = 1 << 1;
    pub(super) const TRIGGER_SHIFT: u32 = 6;
    /// Bits that keep what was written: enable, DMA mode, trigger level.
    pub(super) const STORED: u8 = 0xc9;
}

/// Line control register.
pub(super) struct Lcr;
impl Lcr {
    pub(super) const DIVISOR_LATCH: u8 = 1 << 7;
}

/// Modem control register.
pub(super) struct Mcr;
impl Mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    /// Gates the interrupt on a PC.
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOPBACK: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

/// Line status register.
pub(super) struct Lsr;
impl Lsr {
    pub(super) const DATA_READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const HOLDING_EMPTY: u8 = 1 << 5;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 6;
}

/// Modem status register.
pub(super) struct Msr;
impl Msr {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
}
