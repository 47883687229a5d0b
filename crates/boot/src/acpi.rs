//! The ACPI tables of the platform `pc` (ACPI 6.4).

use memory::GuestRam;

use crate::BootError;

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Local APIC ids of the processors, the boot processor first.
    pub apic_ids: Vec<u32>,
    /// I/O APIC.
    pub io_apic: IoApicSpec,
    /// First port of the ACPI power-management block: PM1 events at +0, PM1 control at +4, timer
    /// at +8, GPE0 at +0x20.
    pub pm_base: u16,
    /// Interrupt line of the system control interrupt, level-triggered, active high.
    pub sci_irq: u8,
    /// Port and value of the reset register.
    pub reset: (u16, u8),
    /// Index of the century in CMOS RAM, 0 for none.
    pub century: u8,
    /// Whether an 8042 keyboard controller is to be probed.
    pub has_8042: bool,
}

/// An I/O APIC, as the MADT describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicSpec {
    /// Its id.
    pub id: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// First global system interrupt of its inputs.
    pub gsi_base: u32,
}

impl AcpiSpec {
    /// The platform `pc` with these processors.
    pub fn pc(apic_ids: &[u32]) -> Self {
        Self {
            apic_ids: apic_ids.to_vec(),
            io_apic: IoApicSpec { id: 0, address: 0xfec0_0000, gsi_base: 0 },
            pm_base: 0x600,
            sci_irq: 9,
            reset: (0xcf9, 6),
            century: 0x32,
            has_8042: true,
        }
    }
}

/// Puts the tables into guest RAM at 0xe_0000 and returns the address of the RSDP.
///
/// # Errors
/// [`BootError::Acpi`] when the tables do not fit into 128 KiB, [`BootError::Memory`].
pub fn build(spec: &AcpiSpec, ram: &GuestRam) -> Result<u64, BootError> {
    let _ = (spec, ram);
    Err(BootError::Acpi("not written yet".into()))
}
