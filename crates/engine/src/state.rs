//! The complete, engine-neutral state of a vCPU.

use lapic::SavedLocalApic;
use serde::{Deserialize, Serialize};
use state::{Saved, Section, StateError};
use x86::segment::{Segment, TableRegister};

/// General registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct General {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS; bit 1 is set.
    pub rflags: u64,
}

/// Segment and table registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// ES, CS, SS, DS, FS, GS.
    pub segment: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
}

/// Control registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// The four page-directory-pointer entries that legacy PAE paging loaded with CR3.
    pub pdptr: [u64; 4],
}

/// Debug registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debug {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// Which events an instruction just executed holds off for one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shadow {
    /// None.
    #[default]
    None,
    /// STI that set IF: maskable interrupts.
    Sti,
    /// MOV SS or POP SS: interrupts and debug exceptions.
    MovSs,
}

/// An event whose delivery has begun but not ended (a fault occurred inside an engine's exit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    /// Vector.
    pub vector: u8,
    /// Error code, when it pushes one.
    pub error_code: Option<u32>,
}

/// Events that wait at the instruction boundary where the state was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// An exception or interrupt to deliver before the next instruction.
    pub event: Option<PendingEvent>,
    /// An NMI waits.
    pub nmi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Interrupt shadow.
    pub shadow: Shadow,
    /// DR6 bits of a debug trap that waits at this boundary (SDM vol. 3B 18.3).
    pub debug_trap: u64,
    /// Another vCPU has asked for the end of the present or the next HLT (KVM_HC_KICK_CPU).
    #[serde(default)]
    pub woken: bool,
    /// The ExtINT line from the 8259A is high.
    pub extint: bool,
}

/// What the vCPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Executing.
    #[default]
    Running,
    /// In HLT, waiting for an interrupt.
    Halted,
    /// Waiting for a start-up IPI.
    WaitForSipi,
    /// Shut down by a triple fault.
    Shutdown,
}

/// The complete state of a vCPU, the same for every engine: what is saved by one can be restored
/// by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers.
    pub general: General,
    /// Segment and table registers.
    pub segments: Segments,
    /// Control registers.
    pub control: Control,
    /// Debug registers.
    pub debug: Debug,
    /// XSAVE area in standard form, with canonical XSTATE_BV ([`x86::xsave`]).
    pub xsave: Vec<u8>,
    /// Architectural MSRs that have no field of their own, by number, ascending.
    pub msrs: Vec<(u32, u64)>,
    /// Local APIC.
    pub apic: SavedLocalApic,
    /// Pending events.
    pub events: PendingEvents,
    /// TSC at the time of saving.
    pub tsc: u64,
    /// What the vCPU is doing.
    pub run_state: RunState,
}

impl Saved for VcpuState {
    const KIND: &'static str = "vcpu";
    const VERSION: u32 = 1;
}

impl VcpuState {
    /// The state as section of vCPU `index`.
    ///
    /// # Errors
    /// [`StateError::Encode`].
    pub fn to_section(&self, index: u32) -> Result<Section, StateError> {
        Section::encode(&index.to_string(), self)
    }
}
