//! The host bridge, 8086:29c0 at 00:00.0 (Intel 82G33 data sheet 316966, chapter 5).
//!
//! It is as firmware leaves it: ECAM enabled, the ROM area readable and writable. PCIEXBAR moves
//! ECAM or switches it off. The PAM registers say which accesses of processors to the ROM area reach
//! RAM; the others reach nobody. There is no SMM, so that SMRAM is closed for good.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use device::Device;
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use crate::root::Function;
use crate::{ConfigSpace, Identity, MappedBar, lock};

const PCIEXBAR: u8 = 0x60;
const PCIEXBAR_ENABLED: u32 = 1;
/// Address bits of PCIEXBAR; the window has 256 MiB, whatever the length field says.
const PCIEXBAR_BASE: u32 = 0xf000_0000;
const PCIEXBAR_HIGH: u32 = 0xf;
/// PAM0: 0xf0000 to 0xfffff in its upper half; PAM1 to PAM6: two times 16 KiB from 0xc0000 on.
const PAM0: usize = 0x90;
const PAM_COUNT: usize = 7;
const PAM_READ_WRITE: u8 = 0x33;
/// SMRAM control: C_BASE_SEG, which reads as 2, and D_LCK.
const SMRAMC: usize = 0x9d;
const SMRAM_LOCKED: u8 = 0x12;

/// PAM: reads reach RAM; the same for the upper half in the upper four bits.
const PAM_READ: u8 = 1;
/// PAM: writes reach RAM.
const PAM_WRITE: u8 = 2;

/// The RAM behind the ROM area, 0xc0000 to 0xfffff, in sixteen segments of 16 KiB.
pub trait ShadowRam: Send + Sync {
    /// From now on reads of the segments in `unreadable` (bit 0 is the first) and writes to those
    /// in `unwritable` do not reach RAM. Whether that is a change.
    fn set(&self, unreadable: u16, unwritable: u16) -> bool;
}

/// Nobody's.
struct NoShadow;

impl ShadowRam for NoShadow {
    fn set(&self, _unreadable: u16, _unwritable: u16) -> bool {
        false
    }
}

/// The host bridge.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
    shadow: Arc<dyn ShadowRam>,
    /// The rights of the ROM area have changed since somebody asked.
    changed: AtomicBool,
}

impl HostBridge {
    /// Where ECAM is after power-on.
    pub const ECAM: u64 = 0xb000_0000;
    /// Bytes of the ECAM window: 256 buses.
    pub const ECAM_LEN: u64 = 0x1000_0000;

    /// As firmware leaves it, without anybody who listens to the PAM registers.
    pub fn new() -> Self {
        Self::with_shadow(Arc::new(NoShadow))
    }

    /// As firmware leaves it, with `shadow` behind the PAM registers.
    pub fn with_shadow(shadow: Arc<dyn ShadowRam>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 2,
            class: [6, 0, 0],
            subsystem: (0x1af4, 0x1100),
        });
        config.define(PCIEXBAR.into(), &(Self::ECAM as u32 | PCIEXBAR_ENABLED).to_le_bytes());
        config.allow(PCIEXBAR.into(), &(PCIEXBAR_BASE | 0b111).to_le_bytes());
        config.allow(usize::from(PCIEXBAR) + 4, &PCIEXBAR_HIGH.to_le_bytes());
        config.define(PAM0, &[PAM_READ_WRITE; PAM_COUNT]);
        config.allow(PAM0, &[PAM_READ_WRITE; PAM_COUNT]);
        config.define(PAM0, &[PAM_READ_WRITE & 0xf0]);
        config.allow(PAM0, &[PAM_READ_WRITE & 0xf0]);
        config.define(SMRAMC, &[SMRAM_LOCKED]);
        Self { config: Mutex::new(config), shadow, changed: AtomicBool::new(false) }
    }

    /// Whether the rights of the ROM area have changed since the last call: processors may remember
    /// the old ones.
    pub fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Tells what the PAM registers say.
    fn publish(&self, config: &ConfigSpace) {
        let register = |n: usize| config.byte((PAM0 + n) as u8);
        let half = |segment: usize| match segment {
            12.. => register(0) >> 4,
            _ => register(1 + segment / 2) >> (4 * (segment % 2)),
        };
        let lacking =
            |right: u8| (0..16).filter(|n| half(*n) & right == 0).fold(0, |bits, n| bits | 1 << n);
        if self.shadow.set(lacking(PAM_READ), lacking(PAM_WRITE)) {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// First address of the ECAM window, if there is one.
    pub fn ecam(&self) -> Option<u64> {
        let config = lock(&self.config);
        let (low, high) = (config.dword(PCIEXBAR), config.dword(PCIEXBAR + 4));
        let base = u64::from(high & PCIEXBAR_HIGH) << 32 | u64::from(low & PCIEXBAR_BASE);
        (low & PCIEXBAR_ENABLED != 0).then_some(base)
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut config = lock(&self.config);
        config.write(offset, data);
        self.publish(&config);
    }

    fn mapped_bars(&self) -> Vec<MappedBar> {
        Vec::new()
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

#[derive(Serialize, Deserialize)]
struct SavedHostBridge {
    config: Vec<u8>,
}

impl Saved for SavedHostBridge {
    const KIND: &'static str = "pci-host-bridge";
    const VERSION: u32 = 1;
}

impl Persist for HostBridge {
    fn kind(&self) -> &'static str {
        SavedHostBridge::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let Self { config, shadow: _, changed: _ } = self;
        Section::encode(instance, &SavedHostBridge { config: lock(config).save() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let SavedHostBridge { config } = section.decode()?;
        let mut own = lock(&self.config);
        match own.restore(&config) {
            true => {
                self.publish(&own);
                Ok(())
            }
            false => Err(section.invalid("this is not the configuration space of a host bridge")),
        }
    }
}

impl Device for HostBridge {
    fn reset(&self) {
        let mut config = lock(&self.config);
        config.reset();
        self.publish(&config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecam_is_where_pciexbar_says() {
        let bridge = HostBridge::new();
        assert_eq!(bridge.ecam(), Some(HostBridge::ECAM));
        bridge.config_write(0x60, &0xffff_fffe_u32.to_le_bytes());
        assert_eq!(bridge.ecam(), None);
        bridge.config_write(0x60, &[0x07, 0, 0, 0xe0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(bridge.ecam(), Some(0xf_e000_0000));
        bridge.reset();
        assert_eq!(bridge.ecam(), Some(HostBridge::ECAM));
    }

    #[test]
    fn pam_registers_hold_what_is_written() {
        let bridge = HostBridge::new();
        let mut pam = [0; 8];
        bridge.config_read(0x90, &mut pam);
        assert_eq!(pam, [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0]);
        bridge.config_write(0x90, &[0x0f, 0x11, 0xff, 0, 0, 0, 0, 0xff]);
        bridge.config_read(0x90, &mut pam);
        assert_eq!(pam, [0, 0x11, 0x33, 0, 0, 0, 0, 0]);
    }

    /// Remembers what it was told last.
    #[derive(Default)]
    struct Told(Mutex<(u16, u16)>);

    impl ShadowRam for Told {
        fn set(&self, unreadable: u16, unwritable: u16) -> bool {
            let new = (unreadable, unwritable);
            std::mem::replace(&mut *lock(&self.0), new) != new
        }
    }

    #[test]
    fn pam_registers_say_what_reaches_ram() {
        let told = Arc::new(Told::default());
        let bridge = HostBridge::with_shadow(Arc::clone(&told) as _);
        assert!(!bridge.take_change());
        // 0xc0000 read only, 0xc4000 write only; 0xf0000 to 0xfffff neither.
        bridge.config_write(0x91, &[0x21]);
        bridge.config_write(0x90, &[0]);
        assert_eq!(*lock(&told.0), (0xf002, 0xf001));
        assert!(bridge.take_change() && !bridge.take_change());
        let saved = bridge.save("0").unwrap();
        bridge.reset();
        assert_eq!(*lock(&told.0), (0, 0));
        assert!(bridge.take_change());
        bridge.restore(&saved).unwrap();
        assert_eq!(*lock(&told.0), (0xf002, 0xf001));
    }

    state::conformance!(saves_and_restores, HostBridge::new(), |bridge: &HostBridge| {
        bridge.config_write(0x60, &[0; 8]);
        bridge.config_write(0x91, &[0x11]);
    });
}
