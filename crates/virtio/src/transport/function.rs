//! The state of a virtio function, and what happens to it.

use device::Message;
use pci::{ConfigSpace, Msix, command};

use super::layout::{self, Layout};
use crate::common::{Common, Request, status};
use crate::queue::RingFeatures;
use crate::{Chain, DeviceKind, Dma, VirtioDevice};

/// ISR status: a queue has finished requests.
const ISR_QUEUE: u8 = 1 << 0;
/// ISR status: the configuration, or the device's status, has changed.
const ISR_CONFIG: u8 = 1 << 1;
/// All bits of the ISR status.
pub(super) const ISR_BITS: u8 = ISR_QUEUE | ISR_CONFIG;

/// What is to be done when the state is unlocked.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) messages: Vec<Message>,
    /// The thread may have something to do.
    pub(super) kick: bool,
    /// The device was reset.
    pub(super) reset: bool,
}

pub(super) struct State {
    pub(super) config: ConfigSpace,
    pub(super) msix: Msix,
    pub(super) common: Common,
    /// ISR status; only used without MSI-X.
    pub(super) isr: u8,
    pub(super) layout: Layout,
    /// Requests that were taken and not returned.
    in_flight: u32,
    /// Requests that were put off: index of the queue, first descriptor. They are the first to be
    /// taken when the device works again.
    pub(super) put_off: Vec<(u16, u16)>,
    /// They can be tried again.
    retry: bool,
    /// The driver wants a reset, which waits for those requests.
    resetting: bool,
    /// Counts resets, so that the result of a request from before is not taken for a new one's.
    pub(super) life: u64,
}

impl State {
    pub(super) fn new(kind: DeviceKind, features: u64, queues: &[u16]) -> Self {
        let (config, msix, layout) = layout::function(kind, queues.len() as u16);
        let common = Common::new(features, msix.count(), queues);
        Self {
            config,
            msix,
            common,
            isr: 0,
            layout,
            in_flight: 0,
            put_off: Vec::new(),
            retry: false,
            resetting: false,
            life: 0,
        }
    }

    /// The level of INTA#.
    pub(super) fn level(&self) -> bool {
        let disabled = self.config.command() & command::INTX_DISABLE != 0;
        self.isr != 0 && !disabled && !self.msix.is_enabled(&self.config)
    }

    /// As after power-on.
    pub(super) fn power_on(&mut self, effects: &mut Effects) {
        self.config.reset();
        self.msix.reset();
        self.reset(effects);
    }

    /// As after a reset by the driver.
    fn reset(&mut self, effects: &mut Effects) {
        self.common.reset();
        self.isr = 0;
        self.in_flight = 0;
        self.put_off.clear();
        self.resetting = false;
        self.life = self.life.wrapping_add(1);
        effects.reset = true;
    }

    /// Reads from the register BAR.
    pub(super) fn read(&mut self, offset: u64, data: &mut [u8], device: &dyn VirtioDevice) {
        let at = (offset % layout::PAGE) as usize;
        match offset / layout::PAGE {
            layout::COMMON => fill(data, &self.common.image(), at),
            layout::ISR => {
                fill(data, &[self.isr], at);
                if at == 0 {
                    self.isr = 0;
                }
            }
            layout::DEVICE => fill(data, device.config(), at),
            _ => data.fill(0xff),
        }
    }

    /// Writes to the register BAR.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], effects: &mut Effects) {
        match offset / layout::PAGE {
            // A device that is being reset listens to nothing.
            layout::COMMON if !self.resetting => match self.common.write(offset, data) {
                Request::Nothing => {}
                Request::Start => effects.kick = true,
                Request::Reset if self.in_flight != 0 => self.resetting = true,
                Request::Reset => self.reset(effects),
            },
            layout::NOTIFY => effects.kick = self.common.is_live(),
            _ => {}
        }
    }

    /// Writes to configuration space.
    pub(super) fn write_config(&mut self, offset: u16, data: &[u8], effects: &mut Effects) {
        let before = self.config.command();
        self.config.write(offset, data);
        effects.messages = self.msix.unmasked(&self.config);
        // What waited for access to memory can go on.
        effects.kick = !before & self.config.command() & command::BUS_MASTER != 0;
    }

    /// Writes to the MSI-X table.
    pub(super) fn write_msix(&mut self, offset: u64, data: &[u8], effects: &mut Effects) {
        self.msix.write(offset, data);
        effects.messages = self.msix.unmasked(&self.config);
    }

    /// Takes the next request of a queue, if there is one and the device may.
    pub(super) fn take(&mut self, queue: usize, dma: &Dma, effects: &mut Effects) -> Option<Chain> {
        if self.resetting || !self.may_access_memory() {
            return None;
        }
        let features = self.common.driver_features;
        let ring = self.common.queues.get_mut(queue).filter(|queue| queue.enabled)?;
        let put_off = self.put_off.iter().position(|(of, _)| usize::from(*of) == queue);
        let next = match put_off.filter(|_| self.retry) {
            Some(index) => {
                let (_, head) = self.put_off.remove(index);
                ring.chain(dma, head, RingFeatures::new(features)).map(Some)
            }
            None => ring.pop(dma, RingFeatures::new(features)),
        };
        match next {
            Ok(chain) => {
                let chain = chain?;
                self.in_flight += 1;
                Some(chain)
            }
            Err(_) => {
                self.fail(effects);
                None
            }
        }
    }

    /// Returns requests, by the head of each and how many bytes were written to it, which were
    /// taken in the device's life `life`. The driver sees them all at once.
    pub(super) fn finish(
        &mut self,
        (queue, life): (usize, u64),
        done: &[(u16, u32)],
        dma: &Dma,
        effects: &mut Effects,
    ) {
        if !self.leaves(life, done.len(), effects) {
            return;
        }
        let ring = self.common.queues.get_mut(queue);
        if ring.is_none_or(|ring| ring.push_all(dma, done).is_err()) {
            self.fail(effects);
        }
    }

    /// The last `count` requests that were taken from a queue wait again.
    pub(super) fn untake(
        &mut self,
        (queue, life): (usize, u64),
        count: u16,
        effects: &mut Effects,
    ) {
        if !self.leaves(life, count.into(), effects) {
            return;
        }
        if let Some(ring) = self.common.queues.get_mut(queue) {
            ring.next_available = ring.next_available.wrapping_sub(count);
        }
    }

    /// A request that was taken cannot be done now.
    pub(super) fn put_off(
        &mut self,
        (queue, life): (usize, u64),
        head: u16,
        effects: &mut Effects,
    ) {
        if self.leaves(life, 1, effects) {
            self.retry = false;
            self.put_off.push((queue as u16, head));
        }
    }

    /// What was put off can be tried again.
    pub(super) fn retry(&mut self) {
        self.retry = true;
    }

    /// No request is under way.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight == 0
    }

    /// The driver broke the rules with a request.
    pub(super) fn refuse(&mut self, life: u64, taken: usize, effects: &mut Effects) {
        if self.leaves(life, taken, effects) {
            self.fail(effects);
        }
    }

    /// `count` requests of the device's life `life` are not under way any more. Whether that life
    /// still lasts.
    fn leaves(&mut self, life: u64, count: usize, effects: &mut Effects) -> bool {
        if self.life != life {
            return false;
        }
        self.in_flight = self.in_flight.saturating_sub(count as u32);
        if self.resetting && self.in_flight == 0 {
            self.reset(effects);
        }
        !self.resetting && self.life == life
    }

    /// Interrupts the driver if it wants to know of what a queue has finished.
    pub(super) fn tell(&mut self, queue: usize, dma: &Dma, effects: &mut Effects) {
        if self.resetting || !self.may_access_memory() {
            return;
        }
        let features = RingFeatures::new(self.common.driver_features);
        let ring = self.common.queues.get_mut(queue).filter(|queue| queue.enabled);
        let Some(ring) = ring else { return };
        let vector = ring.vector;
        match ring.must_signal(dma, features) {
            Ok(true) => self.interrupt(vector, ISR_QUEUE, effects),
            Ok(false) => {}
            Err(_) => self.fail(effects),
        }
    }

    fn may_access_memory(&self) -> bool {
        self.common.is_live() && self.config.command() & command::BUS_MASTER != 0
    }

    /// The driver broke the rules: the device stops until it is reset (2.1.2).
    fn fail(&mut self, effects: &mut Effects) {
        self.common.status |= status::NEEDS_RESET;
        self.interrupt(self.common.config_vector, ISR_CONFIG, effects);
    }

    fn interrupt(&mut self, vector: u16, isr: u8, effects: &mut Effects) {
        if self.msix.is_enabled(&self.config) {
            effects.messages.extend(self.msix.fire(vector, &self.config));
        } else {
            self.isr |= isr;
        }
    }
}

/// Reads from a structure; beyond its end there is nobody.
fn fill(data: &mut [u8], structure: &[u8], at: usize) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = structure.get(at + index).copied().unwrap_or(0xff);
    }
}
