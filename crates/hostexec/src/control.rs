//! Instructions on control, status and tag words and on whole states: executed
//! in safe Rust, because that is simpler than keeping their effects away from
//! the host (Intel SDM vol. 1, 8.1 and 8.3.11).

use iced_x86::{Code, CodeSize, Instruction, Mnemonic};

use crate::executor::{Outcome, Scratch, X87Pointers};
use crate::image::{EnvironmentFormat, ImageForm};
use crate::{FCW_INITIAL, FpuState, Unit};

/// An instruction that is executed in Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Wait,
    /// FNENI, FNDISI and FNSETPM: nothing, since the 80387.
    Nop,
    Fninit,
    Fnclex,
    Fldcw,
    Fnstcw,
    FnstswMemory,
    FnstswAx,
    /// FLDENV, FNSTENV, FRSTOR and FNSAVE with 16 or 32-bit operand size.
    Fldenv {
        wide: bool,
    },
    Fnstenv {
        wide: bool,
    },
    Frstor {
        wide: bool,
    },
    Fnsave {
        wide: bool,
    },
    Emms,
    Fxsave(ImageForm),
    Fxrstor(ImageForm),
    Ldmxcsr {
        vex: bool,
    },
    Stmxcsr {
        vex: bool,
    },
    /// With the number of vector registers in the current mode.
    Vzeroupper {
        registers: u8,
    },
    Vzeroall {
        registers: u8,
    },
}

impl Control {
    /// The control instruction that `instruction` is, if any.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        let mode64 = instruction.code_size() == CodeSize::Code64;
        let registers = if mode64 { 16 } else { 8 };
        Some(match instruction.code() {
            Code::Fnstsw_AX => Self::FnstswAx,
            Code::Fldenv_m14byte => Self::Fldenv { wide: false },
            Code::Fldenv_m28byte => Self::Fldenv { wide: true },
            Code::Fnstenv_m14byte => Self::Fnstenv { wide: false },
            Code::Fnstenv_m28byte => Self::Fnstenv { wide: true },
            Code::Frstor_m94byte => Self::Frstor { wide: false },
            Code::Frstor_m108byte => Self::Frstor { wide: true },
            Code::Fnsave_m94byte => Self::Fnsave { wide: false },
            Code::Fnsave_m108byte => Self::Fnsave { wide: true },
            code => match code.mnemonic() {
                Mnemonic::Wait => Self::Wait,
                Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => Self::Nop,
                Mnemonic::Fninit => Self::Fninit,
                Mnemonic::Fnclex => Self::Fnclex,
                Mnemonic::Fldcw => Self::Fldcw,
                Mnemonic::Fnstcw => Self::Fnstcw,
                Mnemonic::Fnstsw => Self::FnstswMemory,
                Mnemonic::Emms => Self::Emms,
                Mnemonic::Fxsave => Self::Fxsave(ImageForm { mode64, long: false }),
                Mnemonic::Fxsave64 => Self::Fxsave(ImageForm { mode64, long: true }),
                Mnemonic::Fxrstor => Self::Fxrstor(ImageForm { mode64, long: false }),
                Mnemonic::Fxrstor64 => Self::Fxrstor(ImageForm { mode64, long: true }),
                Mnemonic::Ldmxcsr => Self::Ldmxcsr { vex: false },
                Mnemonic::Vldmxcsr => Self::Ldmxcsr { vex: true },
                Mnemonic::Stmxcsr => Self::Stmxcsr { vex: false },
                Mnemonic::Vstmxcsr => Self::Stmxcsr { vex: true },
                Mnemonic::Vzeroupper => Self::Vzeroupper { registers },
                Mnemonic::Vzeroall => Self::Vzeroall { registers },
                _ => return None,
            },
        })
    }

    /// Enable bits and faults of the instruction.
    pub fn unit(self) -> Unit {
        match self {
            Self::Wait => Unit::Wait,
            Self::Emms => Unit::Mmx,
            Self::Fxsave(_) | Self::Fxrstor(_) => Unit::Fxsave,
            Self::Ldmxcsr { vex: false } | Self::Stmxcsr { vex: false } => Unit::Sse,
            Self::Ldmxcsr { vex: true }
            | Self::Stmxcsr { vex: true }
            | Self::Vzeroupper { .. }
            | Self::Vzeroall { .. } => Unit::Avx,
            _ => Unit::X87,
        }
    }

    /// Whether a pending x87 exception comes before the instruction.
    pub fn waits_for_x87(self) -> bool {
        matches!(
            self,
            Self::Wait | Self::Fldcw | Self::Fldenv { .. } | Self::Frstor { .. } | Self::Emms
        )
    }

    /// Executes the instruction.
    pub fn run(
        self,
        state: &mut FpuState,
        gprs: &mut [u64; 16],
        scratch: &mut Scratch,
        x87: &X87Pointers,
    ) -> Outcome {
        let memory = &mut scratch.bytes;
        let format = |wide| EnvironmentFormat { wide, real_mode: x87.real_mode };
        if self.waits_for_x87() && state.x87_pending() {
            return Outcome::X87Pending;
        }
        match self {
            Self::Wait | Self::Nop => {}
            Self::Fninit => state.fninit(),
            Self::Fnclex => state.fnclex(),
            Self::Fldcw => state.set_fcw(u16::from_le_bytes([memory[0], memory[1]])),
            Self::Fnstcw => memory[..2].copy_from_slice(&state.fcw().to_le_bytes()),
            Self::FnstswMemory => memory[..2].copy_from_slice(&state.fsw().to_le_bytes()),
            Self::FnstswAx => gprs[0] = (gprs[0] & !0xffff) | u64::from(state.fsw()),
            Self::Fldenv { wide } => state.fldenv(memory, format(wide)),
            Self::Fnstenv { wide } => state.fnstenv(memory, format(wide)),
            Self::Frstor { wide } => state.frstor(memory, format(wide)),
            Self::Fnsave { wide } => state.fnsave(memory, format(wide)),
            Self::Emms => state.emms(),
            Self::Fxsave(form) => state.fxsave(memory, form),
            Self::Fxrstor(form) => {
                if state.fxrstor(memory, form).is_err() {
                    return Outcome::GeneralProtection;
                }
            }
            Self::Ldmxcsr { .. } => {
                let value = u32::from_le_bytes([memory[0], memory[1], memory[2], memory[3]]);
                if state.set_mxcsr(value).is_err() {
                    return Outcome::GeneralProtection;
                }
            }
            Self::Stmxcsr { .. } => memory[..4].copy_from_slice(&state.mxcsr().to_le_bytes()),
            Self::Vzeroupper { registers } => state.vzeroupper(usize::from(registers)),
            Self::Vzeroall { registers } => state.vzeroall(usize::from(registers)),
        }
        Outcome::Done
    }
}

/// x87 and MMX control instructions.
impl FpuState {
    /// FNINIT: control word 0x37f, status and pointers zero, all registers
    /// empty but with their contents.
    pub fn fninit(&mut self) {
        self.set_top_in_place(0);
        self.set_fcw(FCW_INITIAL);
        self.set_fsw(0);
        self.set_ftw(0);
        self.set_x87_pointers(0, 0, 0);
    }

    /// FNCLEX: clears exception flags, stack fault and error summary.
    pub fn fnclex(&mut self) {
        self.set_fsw(self.fsw() & 0x7f00);
    }

    /// EMMS: all x87 registers become empty, and TOP 0.
    pub fn emms(&mut self) {
        self.set_top_in_place(0);
        self.set_ftw(0);
    }
}
