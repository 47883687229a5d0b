//! The common configuration structure (virtio 1.2, 4.1.4.3): features, status and queues.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::Queue;

/// Bytes of the structure.
pub(crate) const LEN: usize = 0x38;
/// No MSI-X vector.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Bits of the status.
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = super::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub(crate) const FEATURES_OK: u8 = super::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub(crate) const NEEDS_RESET: u8 = super::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// What a driver may set.
    pub(crate) const DRIVERS: u8 = (super::VIRTIO_CONFIG_S_ACKNOWLEDGE
        | super::VIRTIO_CONFIG_S_DRIVER
        | super::VIRTIO_CONFIG_S_FAILED) as u8
        | DRIVER_OK
        | FEATURES_OK;
}

/// Offsets of the registers.
mod at {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const QUEUES: usize = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY: usize = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
}

/// What a write to the registers asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing more.
    Nothing,
    /// The device is to be reset.
    Reset,
    /// The driver is ready: requests may wait.
    Start,
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Common {
    /// What the device offers; fixed.
    pub(crate) offered: u64,
    /// Number of MSI-X vectors; fixed.
    pub(crate) vectors: u16,
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) driver_features: u64,
    pub(crate) config_vector: u16,
    pub(crate) status: u8,
    pub(crate) queue_select: u16,
    pub(crate) queues: Vec<Queue>,
}

impl Common {
    /// The registers of a device that offers `device_features` besides those of the transport.
    pub(crate) fn new(device_features: u64, vectors: u16, queues: &[u16]) -> Self {
        let transport = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        Self {
            offered: device_features | transport,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queues.iter().map(|size| Queue::new(*size)).collect(),
        }
    }

    /// As after a reset.
    pub(crate) fn reset(&mut self) {
        for queue in &mut self.queues {
            *queue = Queue::new(queue.max_size);
        }
        *self = Self {
            offered: self.offered,
            vectors: self.vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: std::mem::take(&mut self.queues),
        };
    }

    /// Whether the device may serve its queues.
    pub(crate) fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// All registers as they read now. The generation never changes, since the configuration
    /// structures of our devices do not.
    pub(crate) fn image(&self) -> [u8; LEN] {
        let mut image = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(at::DEVICE_FEATURE_SELECT as usize, &self.device_feature_select.to_le_bytes());
        let offered = half(self.offered, self.device_feature_select);
        put(at::DEVICE_FEATURE, &offered.to_le_bytes());
        put(at::DRIVER_FEATURE_SELECT as usize, &self.driver_feature_select.to_le_bytes());
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(at::DRIVER_FEATURE as usize, &accepted.to_le_bytes());
        put(at::CONFIG_VECTOR as usize, &self.config_vector.to_le_bytes());
        put(at::QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(at::STATUS as usize, &[self.status]);
        put(at::QUEUE_SELECT as usize, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(at::QUEUE_SIZE as usize, &queue.size.to_le_bytes());
            put(at::QUEUE_VECTOR as usize, &queue.vector.to_le_bytes());
            put(at::QUEUE_ENABLE as usize, &u16::from(queue.enabled).to_le_bytes());
            put(at::QUEUE_NOTIFY, &self.queue_select.to_le_bytes());
            put(at::QUEUE_DESCRIPTORS as usize, &queue.descriptors.to_le_bytes());
            put(at::QUEUE_DRIVER as usize, &queue.driver.to_le_bytes());
            put(at::QUEUE_DEVICE as usize, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes a register with an access of its width, or half a 64-bit one; others do nothing.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Request {
        match *data {
            [a] => return self.write_byte(offset, a),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if (0x20..LEN as u64).contains(&offset) => {
                self.write_dword(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_dword(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Request::Nothing
    }

    fn write_byte(&mut self, offset: u64, value: u8) -> Request {
        if offset != at::STATUS {
            return Request::Nothing;
        }
        if value == 0 {
            return Request::Reset;
        }
        let before = self.status;
        self.status |= value & status::DRIVERS;
        let asks = !before & self.status & status::FEATURES_OK != 0;
        let refused = self.driver_features & !self.offered != 0
            || self.driver_features >> VIRTIO_F_VERSION_1 & 1 == 0;
        if asks && refused {
            self.status &= !status::FEATURES_OK;
        }
        // Without agreement on the features there is no device to start (3.1.1).
        if self.status & status::FEATURES_OK == 0 {
            self.status &= !status::DRIVER_OK;
        }
        if before & status::DRIVER_OK == 0 && self.is_live() {
            return Request::Start;
        }
        Request::Nothing
    }

    fn write_word(&mut self, offset: u64, value: u16) {
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            at::CONFIG_VECTOR => self.config_vector = vector,
            at::QUEUE_SELECT => self.queue_select = value,
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match offset {
            at::QUEUE_VECTOR => queue.vector = vector,
            at::QUEUE_SIZE if queue.enabled => {}
            at::QUEUE_SIZE if value.is_power_of_two() && value <= queue.max_size => {
                queue.size = value;
            }
            // It stays so until a reset.
            at::QUEUE_ENABLE if value == 1 => queue.enabled = true,
            _ => {}
        }
    }

    fn write_dword(&mut self, offset: u64, value: u32) {
        match offset {
            at::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            at::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            at::DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value);
            }
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled {
            return;
        }
        let which = u32::from(offset % 8 == 4);
        match offset & !4 {
            at::QUEUE_DESCRIPTORS => set_half(&mut queue.descriptors, which, value),
            at::QUEUE_DRIVER => set_half(&mut queue.driver, which, value),
            at::QUEUE_DEVICE => set_half(&mut queue.device, which, value),
            _ => {}
        }
    }
}

/// The lower or upper half, by 0 or 1; there is nothing beyond.
fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(to: &mut u64, which: u32, value: u32) {
    match which {
        0 => *to = *to & !0xffff_ffff | u64::from(value),
        1 => *to = *to & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
