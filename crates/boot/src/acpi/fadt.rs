//! Fixed ACPI description table (ACPI 6.4, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{AcpiSpec, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Bytes of the register blocks.
const PM1_EVENT_LEN: u8 = 4;
const PM1_CONTROL_LEN: u8 = 2;
const PM_TIMER_LEN: u8 = 4;

/// A C2 or C3 latency of more than this says that the state does not exist (5.2.9, P_LVL2_LAT and
/// P_LVL3_LAT).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// IA-PC boot architecture flags (table 5.11).
mod boot_architecture {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const HAS_8042: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// An I/O port register block of `bytes`, accessed by units of `access`.
fn ports(address: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, u64::from(address))
}

/// The table; `facs` and `dsdt` are addresses.
///
/// All addresses are below 4 GiB. Those of tables stand only in the 32-bit fields, where the
/// specification wants one of the two; those of registers in both, since readers differ.
pub(super) fn build(spec: &AcpiSpec, facs: u32, dsdt: u32) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .firmware_ctrl_32(facs)
        .dsdt_32(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button; the power button is in PM1 since its flag is clear.
        .flag(Flags::SlpButton)
        // The RTC does not wake the machine: there is no state to wake from.
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(spec.sci_irq).into();
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = spec.century;
    let keyboard = if spec.has_8042 { boot_architecture::HAS_8042 } else { 0 };
    fadt.iapc_boot_arch =
        (boot_architecture::LEGACY_DEVICES | boot_architecture::NO_VGA | keyboard).into();
    let (reset_port, reset_value) = spec.reset;
    fadt.reset_reg = ports(reset_port, 1, AccessSize::ByteAccess);
    fadt.reset_value = reset_value;

    fadt.pm1a_evt_blk = u32::from(spec.pm1_event()).into();
    fadt.pm1_evt_len = PM1_EVENT_LEN;
    fadt.x_pm1a_evt_blk = ports(spec.pm1_event(), PM1_EVENT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(spec.pm1_control()).into();
    fadt.pm1_cnt_len = PM1_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk = ports(spec.pm1_control(), PM1_CONTROL_LEN, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(spec.pm_timer()).into();
    fadt.pm_tmr_len = PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = ports(spec.pm_timer(), PM_TIMER_LEN, AccessSize::DwordAccess);
    if spec.gpe0_len != 0 {
        fadt.gpe0_blk = u32::from(spec.gpe0()).into();
        fadt.gpe0_blk_len = spec.gpe0_len;
        fadt.x_gpe0_blk = ports(spec.gpe0(), spec.gpe0_len, AccessSize::ByteAccess);
    }
    fadt.finalize()
}
