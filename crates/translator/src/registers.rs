//! Where guest registers live while translated code runs.
//!
//! | guest | host |
//! | --- | --- |
//! | RAX RDX RBX RBP RSI RDI R12 R13 R14 | the same |
//! | RCX | R10 |
//! | RSP | R11 |
//! | R8 R9 R10 R11 R15 | slots of the [`Context`](crate::context::Context) |
//!
//! RCX, R8 and R9 of the host are scratch (JRCXZ, the only branch that leaves flags alone, needs
//! RCX); R15 holds the tables; RSP points at the context.

use iced_x86::Register;

/// Guest registers that live in the host register of the same number.
pub(crate) const IN_PLACE: [u8; 9] = [0, 2, 3, 5, 6, 7, 12, 13, 14];
/// Guest registers that live in slots, in the order of the slots.
pub(crate) const SLOTTED: [u8; 5] = [8, 9, 10, 11, 15];
/// Host register of guest RCX.
pub(crate) const HOST_RCX_OF_GUEST: u8 = 10;
/// Host register of guest RSP.
pub(crate) const HOST_RSP_OF_GUEST: u8 = 11;

/// Where a guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In this host register.
    Host(u8),
    /// In its slot.
    Slot,
}

/// Where guest general register `number` is.
pub(crate) const fn home(number: u8) -> Home {
    match number {
        1 => Home::Host(HOST_RCX_OF_GUEST),
        4 => Home::Host(HOST_RSP_OF_GUEST),
        8..=11 | 15 => Home::Slot,
        _ => Home::Host(number),
    }
}

/// The register of host number `number` with the width of `like`.
pub(crate) fn sized(number: u8, like: Register) -> Register {
    let base = match like.size() {
        1 => {
            // AL, CL, DL, BL, then SPL, BPL, SIL, DIL, R8L: AH to BH lie between.
            let index = if number < 4 { u32::from(number) } else { u32::from(number) + 4 };
            return Register::AL + index;
        }
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    base + u32::from(number)
}

/// AH, CH, DH or BH.
pub(crate) const fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
