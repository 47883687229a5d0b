//! Model-specific registers of the architecture. What is not here goes to the machine
//! (`CpuBus::msr_read`), which answers for platform MSRs and faults the rest.

use std::collections::BTreeMap;

use engine::CpuProfile;
use x86::is_canonical;
use x86::msr::{self, spec_ctrl};
use x86::segment::seg;

use crate::cpu::{Bus, Cpu, Raised, Step};
use x86::cpuid::feature;
use x86::exception::Exception;

/// PAT after reset (SDM vol. 3A 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings; branch trace and PEBS unavailable.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// IA32_DEBUGCTL: last branch records, which no register shows, and single-step on branches.
const DEBUGCTL_LBR: u64 = 1 << 0;
const DEBUGCTL_BTF: u64 = 1 << 1;
/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// IA32_MTRR_DEF_TYPE after a firmware: enabled, write-back.
const MTRR_DEF_TYPE_RESET: u64 = 1 << 11 | 6;
/// Bits of IA32_SPEC_CTRL, which are kept and change nothing: they steer predictors of the CPU
/// that runs the guest's branches itself.
const SPEC_CTRL: u64 = spec_ctrl::IBRS | spec_ctrl::STIBP | spec_ctrl::SSBD;

/// The MSRs that have no better place.
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) tsc_adjust: u64,
    /// Registers that only hold a value, by number; a write to another one faults.
    plain: BTreeMap<u32, u64>,
}

impl Msrs {
    /// The values after reset, of the registers that `profile` has.
    pub(crate) fn new(profile: &CpuProfile) -> Self {
        Self::reset(profile.has(feature::AMD_IBRS))
    }

    fn reset(spec_ctrl: bool) -> Self {
        let mut plain = BTreeMap::from([
            (msr::PAT, PAT_RESET),
            (msr::MISC_ENABLE, MISC_ENABLE_RESET),
            (msr::MTRR_DEF_TYPE, MTRR_DEF_TYPE_RESET),
            (msr::MCG_STATUS, 0),
            (msr::DEBUGCTL, 0),
            (msr::XSS, 0),
        ]);
        plain.extend(spec_ctrl.then_some((msr::SPEC_CTRL, 0)));
        plain.extend((msr::MTRR_PHYSBASE0..msr::MTRR_PHYSBASE0 + 16).map(|number| (number, 0)));
        let fixed = [0, 8, 9].into_iter().chain(0x18..0x20);
        plain.extend(fixed.map(|offset| (msr::MTRR_FIX64K + offset, 0x0606_0606_0606_0606)));
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_adjust: 0,
            plain,
        }
    }

    /// A register that is a plain field, and whether it must be canonical.
    fn field(&mut self, number: u32) -> Option<(&mut u64, bool)> {
        Some(match number {
            msr::STAR => (&mut self.star, false),
            msr::LSTAR => (&mut self.lstar, true),
            msr::CSTAR => (&mut self.cstar, true),
            msr::KERNEL_GS_BASE => (&mut self.kernel_gs_base, true),
            msr::SYSENTER_CS => (&mut self.sysenter_cs, false),
            msr::SYSENTER_ESP => (&mut self.sysenter_esp, true),
            msr::SYSENTER_EIP => (&mut self.sysenter_eip, true),
            _ => return None,
        })
    }

    /// DEBUGCTL.BTF: with RFLAGS.TF, only taken branches trap (SDM vol. 3B 18.4.3).
    pub(crate) fn steps_on_branches(&self) -> bool {
        self.plain.get(&msr::DEBUGCTL).is_some_and(|value| value & DEBUGCTL_BTF != 0)
    }

    /// A debug exception switches branch records and stepping on branches off.
    pub(crate) fn debug_exception(&mut self) {
        self.plain.insert(msr::DEBUGCTL, 0);
    }

    /// All values for saving, by number.
    pub(crate) fn save(&self) -> Vec<(u32, u64)> {
        let mut all = self.plain.clone();
        all.extend([
            (msr::STAR, self.star),
            (msr::LSTAR, self.lstar),
            (msr::CSTAR, self.cstar),
            (msr::SFMASK, self.sfmask),
            (msr::KERNEL_GS_BASE, self.kernel_gs_base),
            (msr::TSC_AUX, self.tsc_aux),
            (msr::SYSENTER_CS, self.sysenter_cs),
            (msr::SYSENTER_ESP, self.sysenter_esp),
            (msr::SYSENTER_EIP, self.sysenter_eip),
            (msr::TSC_ADJUST, self.tsc_adjust),
        ]);
        all.into_iter().collect()
    }

    /// Replaces all values; an unknown or impossible one is named in the error.
    pub(crate) fn restore(&mut self, values: &[(u32, u64)]) -> Result<(), String> {
        let mut fresh = Self::reset(self.plain.contains_key(&msr::SPEC_CTRL));
        for &(number, value) in values {
            let bad = || Err(format!("MSR {number:#x} cannot hold {value:#x}"));
            match number {
                msr::SFMASK if value >> 32 == 0 => fresh.sfmask = value,
                msr::TSC_AUX if value >> 32 == 0 => fresh.tsc_aux = value,
                msr::TSC_ADJUST => fresh.tsc_adjust = value,
                _ => match fresh.field(number) {
                    Some((_, true)) if !is_canonical(value) => return bad(),
                    Some((field, _)) => *field = value,
                    None => match fresh.plain.get_mut(&number) {
                        Some(plain) if plain_is_valid(number, value) => *plain = value,
                        _ => return bad(),
                    },
                },
            }
        }
        *self = fresh;
        Ok(())
    }
}

/// Whether a plain register can hold `value`.
fn plain_is_valid(number: u32, value: u64) -> bool {
    match number {
        // Memory types 0, 1, 4 to 7 in each byte.
        msr::PAT => value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
        msr::XSS => value == 0,
        msr::SPEC_CTRL => value & !SPEC_CTRL == 0,
        msr::DEBUGCTL => value & !(DEBUGCTL_LBR | DEBUGCTL_BTF) == 0,
        msr::MTRR_DEF_TYPE => value & !0xcff == 0 && is_range_type(value as u8),
        // Base and mask of the variable ranges alternate; physical addresses have at most 52 bits.
        msr::MTRR_PHYSBASE0..msr::MTRR_FIX64K if number.is_multiple_of(2) => {
            value & 0xfff0_0000_0000_0f00 == 0 && is_range_type(value as u8)
        }
        msr::MTRR_PHYSBASE0..msr::MTRR_FIX64K => value & 0xfff0_0000_0000_07ff == 0,
        msr::MTRR_FIX64K..msr::PAT => value.to_le_bytes().into_iter().all(is_range_type),
        _ => true,
    }
}

/// Whether an MTRR can give memory this type (SDM vol. 3A table 12-8).
fn is_range_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4..=6)
}

impl Cpu {
    /// RDMSR.
    pub(crate) fn read_msr(&mut self, bus: Bus<'_>, number: u32) -> Result<u64, Raised> {
        if let Some((field, _)) = self.msrs.field(number) {
            return Ok(*field);
        }
        if let Some(value) = self.msrs.plain.get(&number) {
            return Ok(*value);
        }
        Ok(match number {
            msr::TSC => self.tsc(bus),
            msr::TSC_ADJUST => self.msrs.tsc_adjust,
            msr::TSC_AUX => self.msrs.tsc_aux,
            msr::SFMASK => self.msrs.sfmask,
            msr::EFER => self.efer,
            msr::FS_BASE => self.segment[seg::FS].base,
            msr::GS_BASE => self.segment[seg::GS].base,
            msr::APIC_BASE => self.apic.base_msr(),
            msr::MTRR_CAP => MTRR_CAP,
            msr::MCG_CAP | msr::UCODE_WRITE => 0,
            msr::UCODE_REV => 1 << 32,
            // Locked, without VMX.
            msr::FEATURE_CONTROL => 1,
            msr::PLATFORM_ID | msr::PLATFORM_INFO => 0,
            msr::ARCH_CAPABILITIES if self.profile.has(feature::ARCH_CAPABILITIES) => {
                self.profile.arch_capabilities()
            }
            msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = self.tsc(bus);
                match self.apic.msr_read(number, now) {
                    Ok(value) => value,
                    Err(_) => return self.fault(Exception::GP0),
                }
            }
            _ => {
                let answer = bus.msr_read(self.index, number);
                return self.take(answer, Exception::GP0);
            }
        })
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, bus: Bus<'_>, number: u32, value: u64) -> Step {
        if let Some((field, canonical)) = self.msrs.field(number) {
            if canonical && !is_canonical(value) {
                return self.fault(Exception::GP0);
            }
            *field = value;
            return Ok(());
        }
        if self.msrs.plain.contains_key(&number) {
            self.require(plain_is_valid(number, value))?;
            self.msrs.plain.insert(number, value);
            return Ok(());
        }
        match number {
            msr::EFER => return self.write_efer(value),
            msr::FS_BASE | msr::GS_BASE => {
                self.require(is_canonical(value))?;
                let index = if number == msr::FS_BASE { seg::FS } else { seg::GS };
                self.segment[index].base = value;
            }
            msr::TSC_AUX => {
                self.require(value >> 32 == 0)?;
                self.msrs.tsc_aux = value;
            }
            msr::SFMASK => {
                self.require(value >> 32 == 0)?;
                self.msrs.sfmask = value;
            }
            msr::TSC => {
                let old = self.tsc(bus);
                self.move_tsc(old, value);
            }
            msr::TSC_ADJUST => {
                let old = self.tsc(bus);
                let moved = value.wrapping_sub(self.msrs.tsc_adjust);
                self.move_tsc(old, old.wrapping_add(moved));
            }
            msr::APIC_BASE => return self.write_apic_base(value),
            // A microcode update is accepted and changes nothing.
            msr::UCODE_WRITE | msr::UCODE_REV => {}
            msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                return self.write_apic_msr(bus, number, value);
            }
            _ => {
                let answer = bus.msr_write(self.index, number, value);
                return self.take(answer, Exception::GP0);
            }
        }
        Ok(())
    }

    /// Sets the TSC; TSC_ADJUST follows (SDM vol. 3B 18.17.3).
    fn move_tsc(&mut self, old: u64, new: u64) {
        let delta = new.wrapping_sub(old);
        self.tsc_offset = self.tsc_offset.wrapping_add(delta);
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(delta);
        self.apic.tsc_changed(old, new);
    }
}

#[cfg(test)]
mod tests {
    use engine::{Level, Vendor};

    use super::*;

    fn msrs(vendor: Vendor) -> Msrs {
        Msrs::new(&CpuProfile::new(Level::V2, vendor, 1_000_000, &|_| true).unwrap())
    }

    #[test]
    fn spec_ctrl_is_saved_where_the_profile_has_it() {
        let mut amd = msrs(Vendor::Amd);
        for value in 0..=SPEC_CTRL {
            amd.restore(&[(msr::SPEC_CTRL, value)]).unwrap();
            assert!(amd.save().contains(&(msr::SPEC_CTRL, value)));
        }
        let error = amd.restore(&[(msr::SPEC_CTRL, 1 << 3)]).unwrap_err();
        assert!(error.contains("0x48"), "{error}");
        let mut intel = msrs(Vendor::Intel);
        assert!(intel.save().iter().all(|(number, _)| *number != msr::SPEC_CTRL));
        assert!(intel.restore(&[(msr::SPEC_CTRL, 0)]).is_err());
    }

    #[test]
    fn what_is_saved_can_be_restored() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let saved = msrs(vendor).save();
            let mut restored = msrs(vendor);
            restored.restore(&saved).unwrap();
            assert_eq!(restored.save(), saved);
        }
    }
}
