//! The saved form of a virtio function. It has no request under way: what waits is in guest memory.

use pci::SavedVector;
use serde::{Deserialize, Serialize};
use state::{Persist, Saved, Section, StateError};

use super::VirtioPci;
use super::function::{ISR_BITS, State};
use crate::Queue;
use crate::common::{Common, NO_VECTOR, status};

#[derive(Serialize, Deserialize)]
struct SavedVirtio {
    /// Virtio device id.
    device: u16,
    /// The device's configuration structure: a disk of another size is another disk.
    device_config: Vec<u8>,
    /// PCI configuration space.
    config: Vec<u8>,
    vectors: Vec<SavedVector>,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<SavedQueue>,
    /// Requests that were put off: index of the queue, first descriptor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put_off: Vec<(u16, u16)>,
}

#[derive(Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    enabled: bool,
    vector: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    next_available: u16,
    next_used: u16,
    signalled: u16,
}

impl Saved for SavedVirtio {
    const KIND: &'static str = "virtio";
    const VERSION: u32 = 1;
}

impl SavedQueue {
    fn of(queue: &Queue) -> Self {
        let Queue {
            max_size: _,
            size,
            enabled,
            vector,
            descriptors,
            driver,
            device,
            next_available,
            next_used,
            signalled,
        } = *queue;
        Self {
            size,
            enabled,
            vector,
            descriptors,
            driver,
            device,
            next_available,
            next_used,
            signalled,
        }
    }

    /// The queue, if it can be one that has room for `max_size` entries.
    fn queue(&self, max_size: u16, vectors: u16) -> Option<Queue> {
        let Self {
            size,
            enabled,
            vector,
            descriptors,
            driver,
            device,
            next_available,
            next_used,
            signalled,
        } = *self;
        let possible = size.is_power_of_two() && size <= max_size && is_vector(vector, vectors);
        possible.then_some(Queue {
            max_size,
            size,
            enabled,
            vector,
            descriptors,
            driver,
            device,
            next_available,
            next_used,
            signalled,
        })
    }
}

fn is_vector(vector: u16, vectors: u16) -> bool {
    vector < vectors || vector == NO_VECTOR
}

impl SavedVirtio {
    /// Whether what was put off can be in the queues.
    fn put_off_fits(&self) -> bool {
        let room: usize = self.queues.iter().map(|queue| usize::from(queue.size)).sum();
        self.put_off.len() <= room
            && self.put_off.iter().all(|(queue, _)| usize::from(*queue) < self.queues.len())
    }

    /// The registers, if they can be those of a device like `fresh`.
    fn common(&self, fresh: &Common) -> Option<Common> {
        let possible = self.status & !(status::DRIVERS | status::NEEDS_RESET) == 0
            && is_vector(self.config_vector, fresh.vectors)
            && self.queues.len() == fresh.queues.len();
        let agreed = self.status & status::FEATURES_OK != 0;
        if !possible || agreed && self.driver_features & !fresh.offered != 0 {
            return None;
        }
        let pairs = self.queues.iter().zip(&fresh.queues);
        let queues =
            pairs.map(|(saved, fresh_queue)| saved.queue(fresh_queue.max_size, fresh.vectors));
        Some(Common {
            offered: fresh.offered,
            vectors: fresh.vectors,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            config_vector: self.config_vector,
            status: self.status,
            queue_select: self.queue_select,
            queues: queues.collect::<Option<_>>()?,
        })
    }
}

impl Persist for VirtioPci {
    fn kind(&self) -> &'static str {
        SavedVirtio::KIND
    }

    fn save(&self, instance: &str) -> Result<Section, StateError> {
        let state = self.shared.lock();
        let State { config, msix, common, isr, put_off, layout: _, .. } = &*state;
        let Common {
            offered: _,
            vectors: _,
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            queue_select,
            queues,
        } = common;
        let saved = SavedVirtio {
            device: self.shared.device.kind().id,
            device_config: self.shared.device.config().to_vec(),
            config: config.save(),
            vectors: msix.save(),
            isr: *isr,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            config_vector: *config_vector,
            status: *status,
            queue_select: *queue_select,
            queues: queues.iter().map(SavedQueue::of).collect(),
            put_off: put_off.clone(),
        };
        Section::encode(instance, &saved)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let saved: SavedVirtio = section.decode()?;
        let device = &self.shared.device;
        if saved.device != device.kind().id {
            return Err(section.invalid(format!("it is of another device than {}", self.name())));
        }
        if saved.device_config != device.config() {
            let cause = format!("what is behind {} has changed, a disk's size", self.name());
            return Err(section.invalid(cause));
        }
        self.shared.update(|state, _| {
            let common = saved.common(&state.common);
            let common = common.filter(|_| saved.isr & !ISR_BITS == 0 && saved.put_off_fits());
            let common =
                common.ok_or_else(|| section.invalid("a register cannot have its value"))?;
            let fits = state.config.restore(&saved.config) && state.msix.restore(&saved.vectors);
            if !fits {
                return Err(section.invalid("this is not a PCI function like this one"));
            }
            (state.common, state.isr) = (common, saved.isr);
            state.put_off = saved.put_off;
            Ok(())
        })?;
        self.shared.publish();
        Ok(())
    }
}
