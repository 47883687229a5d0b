//! What is where: identity, BARs and capabilities of a virtio function (virtio 1.2, 4.1.2 and
//! 4.1.4).

use pci::{Bar, ConfigSpace, Identity, Msix};

use crate::DeviceKind;
use crate::common;

/// BAR of the MSI-X table.
pub(super) const MSIX_BAR: u8 = 1;
/// BAR of the registers.
pub(super) const REGISTER_BAR: u8 = 4;

/// Bytes of the page that each structure has in the register BAR.
pub(super) const PAGE: u64 = 0x1000;
/// The structures, by page.
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = 1;
pub(super) const DEVICE: u64 = 2;
pub(super) const NOTIFY: u64 = 3;
const REGISTERS: u32 = 4 * PAGE as u32;

/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// Device id of virtio device 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Of devices that are not transitional (4.1.2.1).
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x1100;

/// Id of vendor-specific capabilities.
const VENDOR_CAPABILITY: u8 = 9;
/// Types of virtio's capabilities (4.1.4).
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}
/// Bytes of a virtio capability without what is special to its type.
const CAPABILITY: u8 = 16;
/// Offsets in the capability of type PCI.
mod window {
    pub(super) const BAR: u8 = 4;
    pub(super) const OFFSET: u8 = 8;
    pub(super) const LENGTH: u8 = 12;
    pub(super) const DATA: u8 = 16;
}

/// An access to a BAR through configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) offset: u64,
}

/// Where the capability is that makes such accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    window: u8,
}

/// Configuration space and MSI-X of a device with so many queues.
pub(super) fn function(kind: DeviceKind, queues: u16) -> (ConfigSpace, Msix, Layout) {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE + kind.id,
        revision: REVISION,
        class: kind.class,
        subsystem: (VENDOR, SUBSYSTEM),
    })
    .with_intx()
    .with_bar(MSIX_BAR, Bar::Memory32(Msix::BAR_SIZE))
    .with_bar(REGISTER_BAR, Bar::Memory64(REGISTERS));
    // One vector for each queue, one for changes of the configuration.
    let msix = Msix::new(&mut config, queues + 1, MSIX_BAR);
    let mut add = |kind, page: u64, len, more: &[u8], writable: &[u8]| {
        let body = capability(kind, (page * PAGE) as u32, len, more);
        config.add_capability(VENDOR_CAPABILITY, &body, writable)
    };
    add(cfg_type::COMMON, COMMON, common::LEN as u32, &[], &[]);
    add(cfg_type::ISR, ISR, 1, &[], &[]);
    add(cfg_type::DEVICE, DEVICE, PAGE as u32, &[], &[]);
    let notify = u32::from(queues) * NOTIFY_MULTIPLIER;
    add(cfg_type::NOTIFY, NOTIFY, notify, &NOTIFY_MULTIPLIER.to_le_bytes(), &[]);
    // BAR, offset, length and data are the driver's.
    let mut writable = [0; window::DATA as usize + 4 - 2];
    writable[usize::from(window::BAR) - 2] = 0xff;
    writable[usize::from(window::OFFSET) - 2..].fill(0xff);
    let window = add(cfg_type::PCI, 0, 0, &[0; 4], &writable);
    config.add_express_endpoint();
    (config, msix, Layout { window })
}

/// A virtio capability from its length on: what follows id and link.
fn capability(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let bar = if kind == cfg_type::PCI { 0 } else { REGISTER_BAR };
    let mut body = vec![CAPABILITY + more.len() as u8, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

impl Layout {
    /// The access that one of `len` bytes to configuration space at `offset` stands for (4.1.4.9):
    /// it must be to the data field, of the length that was set, aligned, and to the registers.
    pub(super) fn window(self, config: &ConfigSpace, offset: u16, len: usize) -> Option<Window> {
        if offset != u16::from(self.window + window::DATA) {
            return None;
        }
        let bar = config.byte(self.window + window::BAR);
        let at = config.dword(self.window + window::OFFSET);
        let length = config.dword(self.window + window::LENGTH);
        let fits = matches!(length, 1 | 2 | 4)
            && length as usize == len
            && at.is_multiple_of(length)
            && at < REGISTERS
            && bar == REGISTER_BAR;
        fits.then_some(Window { bar, offset: at.into() })
    }
}
