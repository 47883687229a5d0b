//! The I/O APIC (Intel 82093AA data sheet).

const BASE: u64 = 0xfec0_0000;

/// Redirection entry: masked.
pub const MASKED: u64 = 1 << 16;
/// Redirection entry: level triggered.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: active low.
pub const ACTIVE_LOW: u64 = 1 << 13;
/// Redirection entry: a level interrupt was accepted and awaits its EOI.
pub const REMOTE_IRR: u64 = 1 << 14;

/// Reads a register.
pub fn read(index: u32) -> u32 {
    // SAFETY: the register window is mapped uncached, outside Rust's memory.
    unsafe {
        (BASE as *mut u32).write_volatile(index);
        ((BASE + 0x10) as *const u32).read_volatile()
    }
}

/// Writes a register.
pub fn write(index: u32, value: u32) {
    // SAFETY: as for `read`.
    unsafe {
        (BASE as *mut u32).write_volatile(index);
        ((BASE + 0x10) as *mut u32).write_volatile(value);
    }
}

/// Number of redirection entries.
pub fn pins() -> u32 {
    (read(1) >> 16 & 0xff) + 1
}

/// Reads a redirection entry.
pub fn redirection(pin: u32) -> u64 {
    u64::from(read(0x10 + 2 * pin)) | u64::from(read(0x11 + 2 * pin)) << 32
}

/// Writes a redirection entry, masked while half-written.
pub fn set_redirection(pin: u32, value: u64) {
    write(0x10 + 2 * pin, MASKED as u32);
    write(0x11 + 2 * pin, (value >> 32) as u32);
    write(0x10 + 2 * pin, value as u32);
}

/// Masks every pin.
pub fn mask_all() {
    for pin in 0..pins() {
        set_redirection(pin, MASKED);
    }
}
