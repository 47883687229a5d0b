//! Gathers and masked moves: which elements they access.
//!
//! Each element may fault on its own and masked-out elements must not fault,
//! so the caller does the accesses one by one (Intel SDM vol. 2C, VGATHERDPS
//! and VPMASKMOV; vol. 2B, MASKMOVDQU).
//!
//! ```text
//! let mut plan = ElementPlan::new(&instruction, &state)?;
//! for i in 0..plan.len() where plan.active(i):
//!     address = segment + base + plan.index(i) * scale + displacement   (gather)
//!             = operand address + plan.offset(i)                        (masked move)
//!     load:  plan.load(&mut state, i, value)      store: plan.store_value(i)
//! plan.finish(&mut state)
//! ```

use iced_x86::Instruction;

use crate::FpuState;

/// The elements of one gather or masked move.
#[derive(Clone, Debug)]
pub struct ElementPlan {
    len: usize,
}

impl ElementPlan {
    /// The plan for VGATHER*, VPGATHER*, VMASKMOV*, VPMASKMOV*, MASKMOVDQU and
    /// MASKMOVQ; `None` for any other instruction.
    #[must_use]
    pub fn new(instruction: &Instruction, state: &FpuState) -> Option<Self> {
        let _ = (instruction, state);
        None
    }

    /// Number of elements, at most 32.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
}
