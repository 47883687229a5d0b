//! The wiring of ISA interrupts.

use std::sync::Arc;

use device::InterruptLine;

use super::IoApic;
use crate::Pic;

/// An ISA interrupt, wired to both controllers as on a PC's board: the guest listens to one and
/// masks the other.
///
/// Interrupt 0, the PIT, is input 2 of the I/O APIC (the MADT says so in an interrupt source
/// override); all others have their own number.
///
/// ```
/// # use std::sync::Arc;
/// # use chipset::{IoApic, IsaLine, Pic, Pit, Uart};
/// # fn board(
/// #     intr: Arc<dyn device::InterruptLine>, messages: Arc<dyn device::MsiSender>,
/// #     clock: Arc<dyn device::GuestClock>, timers: &dyn device::Timers,
/// #     console: Arc<dyn backend::ConsoleOutput>,
/// # ) -> (Pit, Uart) {
/// let pic = Pic::new(intr);
/// let io_apic = IoApic::new(messages);
/// let isa = |irq| Arc::new(IsaLine::new(&pic, &io_apic, irq));
/// let pit = Pit::new(clock, timers, isa(0));
/// let com1 = Uart::new(Uart::COM1, isa(Uart::COM1_IRQ), console);
/// # (pit, com1)
/// # }
/// ```
pub struct IsaLine {
    pic: Arc<dyn InterruptLine>,
    io_apic: Arc<dyn InterruptLine>,
}

impl IsaLine {
    /// ISA interrupt `irq`, 0 to 15 and not 2, of `pic` and `io_apic`.
    ///
    /// # Panics
    /// When there is no such interrupt.
    pub fn new(pic: &Pic, io_apic: &IoApic, irq: u8) -> Self {
        assert!(irq < 16 && irq != 2, "there is no ISA interrupt {irq}");
        Self { pic: pic.line(irq), io_apic: io_apic.line(Self::gsi(irq)) }
    }

    /// Global interrupt number of ISA interrupt `irq`.
    pub const fn gsi(irq: u8) -> u8 {
        if irq == 0 { 2 } else { irq }
    }
}

impl InterruptLine for IsaLine {
    fn set(&self, level: bool) {
        self.pic.set(level);
        self.io_apic.set(level);
    }
}
