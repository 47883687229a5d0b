//! The local APIC as a pure state machine, and the mailbox that posts interrupts to it.
