//! Interrupts that arise at the APIC itself and go through the local vector table (Intel SDM
//! vol. 3A 11.5.1).

use crate::LocalApic;
use crate::registers::{esr, lvt};

/// Positions in the local vector table, in the order of the register offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Timer = 0,
    Thermal = 1,
    Performance = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

/// Inputs of the APIC whose handling the guest programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalInput {
    /// Pin LINT0, where the 8259's INTR output leads.
    Lint0,
    /// Pin LINT1, where the platform's NMI leads.
    Lint1,
    /// Overflow of a performance counter.
    PerformanceCounter,
    /// Thermal sensor.
    Thermal,
}

/// What a signal at a [`LocalInput`] does to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalSignal {
    /// Nothing: masked, or a reserved delivery mode.
    None,
    /// An interrupt with the entry's vector, which is in IRR now.
    Accepted,
    /// The processor fetches the vector from the 8259.
    ExtInt,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// System-management interrupt.
    Smi,
}

impl LocalApic {
    /// Signals `input`: for LINT pins the rising edge.
    ///
    /// The level of the 8259's INTR is better followed through
    /// [`accepts_extint`](Self::accepts_extint); this is for guests that program LINT0 as a fixed
    /// interrupt or as NMI, and for the other inputs.
    pub fn signal(&mut self, input: LocalInput) -> LocalSignal {
        if !self.hardware_enabled() {
            // The pins are INTR and NMI, as on a processor without APIC (11.4.3).
            return match input {
                LocalInput::Lint0 => LocalSignal::ExtInt,
                LocalInput::Lint1 => LocalSignal::Nmi,
                LocalInput::PerformanceCounter | LocalInput::Thermal => LocalSignal::None,
            };
        }
        let entry = match input {
            LocalInput::Lint0 => Entry::Lint0,
            LocalInput::Lint1 => Entry::Lint1,
            LocalInput::PerformanceCounter => Entry::Performance,
            LocalInput::Thermal => Entry::Thermal,
        };
        let value = self.lvt[entry as usize];
        if value & lvt::MASKED != 0 {
            return LocalSignal::None;
        }
        if entry == Entry::Performance {
            // The entry masks itself until its handler has run (vol. 3B 20.6.3).
            self.lvt[entry as usize] |= lvt::MASKED;
        }
        match value >> lvt::DELIVERY_SHIFT & 7 {
            0 => {
                // Only LINT0 can be level-triggered; LINT1 is always edge-triggered.
                let level = entry == Entry::Lint0 && value & lvt::LEVEL != 0;
                self.accept((value & lvt::VECTOR) as u8, level);
                LocalSignal::Accepted
            }
            2 => LocalSignal::Smi,
            4 => LocalSignal::Nmi,
            5 => LocalSignal::Init,
            7 => LocalSignal::ExtInt,
            _ => LocalSignal::None,
        }
    }

    /// Delivers the fixed interrupt of the timer or error entry.
    pub(crate) fn signal_fixed(&mut self, entry: Entry) {
        let value = self.lvt[entry as usize];
        if value & lvt::MASKED == 0 {
            self.accept((value & lvt::VECTOR) as u8, false);
        }
    }

    /// Records errors for the error status register. The first one since the guest last wrote
    /// that register raises the error interrupt (11.5.3).
    pub(crate) fn record_error(&mut self, errors: u32) {
        debug_assert!(errors & !esr::DEFINED == 0);
        let armed = self.pending_errors == 0;
        self.pending_errors |= errors;
        if armed {
            self.signal_fixed(Entry::Error);
        }
    }

    /// Masks all entries, as long as the APIC is software-disabled (11.4.7.2).
    pub(crate) fn mask_local_vectors(&mut self) {
        self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
    }
}
