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
use smallvec::SmallVec;

use crate::plan::Pointer;

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

/// The host's scratch registers.
pub(crate) const SCRATCH: [u8; 3] = [9, 8, 1];

/// What a scratch register still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// The pointer of a group.
    Pointer(Pointer),
    /// What is in the slot of this guest register.
    Guest(u8),
}

/// Some scratch registers.
pub(crate) type Scratch = SmallVec<[u8; SCRATCH.len()]>;

/// What the scratch registers still hold, in the order of [`SCRATCH`]: a copy each of something that
/// is in the context, too.
#[derive(Debug, Default)]
pub(crate) struct Held([Option<Content>; SCRATCH.len()]);

impl Held {
    fn place(&mut self, register: u8) -> Option<&mut Option<Content>> {
        SCRATCH.iter().position(|scratch| *scratch == register).map(|index| &mut self.0[index])
    }

    fn find(&self, holds: impl Fn(Content) -> bool) -> Option<u8> {
        let index = self.0.iter().position(|content| content.is_some_and(&holds))?;
        Some(SCRATCH[index])
    }

    /// The register that holds the pointer in `slot`.
    pub(crate) fn find_pointer(&self, slot: u8) -> Option<u8> {
        self.find(|content| matches!(content, Content::Pointer(kept) if kept.slot == slot))
    }

    /// The register that holds guest register `number`.
    pub(crate) fn find_guest(&self, number: u8) -> Option<u8> {
        self.find(|content| content == Content::Guest(number))
    }

    /// Those of `allowed`, that first whose content is needed last; `next_use` tells which of the
    /// block's instructions needs a guest register next.
    pub(crate) fn by_need(&mut self, allowed: &[u8], next_use: impl Fn(u8) -> u16) -> Scratch {
        let mut order = Scratch::from_slice(allowed);
        order.sort_by_key(|register| {
            let next = match self.place(*register) {
                Some(Some(Content::Pointer(kept))) => kept.next,
                Some(Some(Content::Guest(number))) => next_use(*number),
                _ => return (0, 0),
            };
            (1, u16::MAX - next)
        });
        order
    }

    /// Scratch register `register` holds the pointer from now on, and no other does.
    pub(crate) fn hold_pointer(&mut self, register: u8, kept: Pointer) {
        if let Some(other) = self.find_pointer(kept.slot) {
            self.lose(other);
        }
        if let Some(place) = self.place(register) {
            *place = Some(Content::Pointer(kept));
        }
    }

    /// If `register` is a scratch register, it holds guest register `number` from now on; no other
    /// does.
    pub(crate) fn hold_guest(&mut self, register: u8, number: u8) {
        if let Some(other) = self.find_guest(number) {
            self.lose(other);
        }
        if let Some(place) = self.place(register) {
            *place = Some(Content::Guest(number));
        }
    }

    /// `register` is used for something else.
    pub(crate) fn lose(&mut self, register: u8) {
        if let Some(place) = self.place(register) {
            *place = None;
        }
    }

    /// All scratch registers are, or code may be entered here.
    pub(crate) fn lose_all(&mut self) {
        *self = Self::default();
    }
}

/// AH, CH, DH or BH.
pub(crate) const fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
