//! What is known about the places where translated code can be left: one [`Record`] each, found by
//! the number behind the call of the exit stub.

use iced_x86::Code;
use interpreter::Kept;

use crate::allow::Access;

/// An access whose check can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) access: Access,
    /// Bytes from the address in R8 that must lie in one page.
    pub(crate) len: u16,
    /// Alignment that the instruction demands: 1, 16 or 32.
    pub(crate) alignment: u8,
    pub(crate) group: Sharing,
}

/// Whether a check is for several accesses at once: when it cannot pass, the rest of the block must
/// run with a check for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// It is for one.
    Alone,
    /// It is for several; `access` is what the first of them does.
    Group,
    /// It asks for the right to write, for the sake of later accesses; the first only reads. It
    /// must not mark the page dirty, nor fault for lack of that right.
    ReadFirst,
}

/// A place where translated code can be left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Offset in the page, 0 to 4096: of the present instruction, or of the target of a direct
    /// branch.
    pub(crate) offset: u16,
    /// Instructions of the block that have not been completed, when blocks count.
    pub(crate) left: u16,
    /// The present instruction goes on in the next page.
    pub(crate) straddles: bool,
    /// The present instruction, for statistics; `INVALID` at a block's edges.
    pub(crate) instruction: Code,
    pub(crate) checked: Option<Checked>,
    /// Host code that begins the present instruction: nothing of it has happened there.
    pub(crate) retry: u64,
    /// Host code behind the present instruction; 0: it ends the block.
    pub(crate) resume: u64,
    /// What can be patched: the displacement of a direct branch, or the call that leaves.
    pub(crate) site: u64,
    /// The instruction, for the interpreter.
    pub(crate) kept: Kept,
    /// How often the exit was taken, and as which [`Exit`](crate::glue::Exit) last.
    pub(crate) taken: u32,
    pub(crate) taken_as: u8,
}
