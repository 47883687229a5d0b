//! The devices of a PC: PIC, PIT, I/O APIC, RTC, UART, i8042, ACPI power management, debug exit.
