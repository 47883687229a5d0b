//! The PCI transport (virtio 1.2, 4.1).
//!
//! BAR 1 has the MSI-X table, BAR 4 the registers, a page for each structure: common configuration,
//! ISR status, device configuration, notifications. The structures can also be reached through
//! configuration space (4.1.4.9).
//!
//! The device's thread takes requests and returns them ([`Requests`]), or other threads return them
//! later ([`Pending`](crate::Pending)). A driver that resets the
//! device meanwhile reads a status that is not 0 until none is under way (4.1.4.3.1), so that the
//! vCPU need not wait for it here.

mod function;
mod layout;
mod requests;
mod saved;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use device::{Device, InterruptLine, MsiSender};
use pci::{Function, MappedBar, STATUS_INTERRUPT, register};

use crate::worker::Control;
use crate::{DeviceError, Dma, VirtioDevice};
use function::{Effects, State};
use layout::{MSIX_BAR, REGISTER_BAR, Window};
pub(crate) use requests::Job;
pub use requests::Requests;

/// A virtio device on the PCI bus. It is made paused. Dropping it ends its thread.
pub struct VirtioPci {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Shared {
    device: Box<dyn VirtioDevice>,
    dma: Dma,
    messages: Arc<dyn MsiSender>,
    line: Arc<dyn InterruptLine>,
    state: Mutex<State>,
    /// Nothing is under way any more.
    drained: Condvar,
    control: Control,
    requests: AtomicU64,
}

impl VirtioPci {
    /// `device` with access to guest memory through `dma`; it interrupts by `messages` and by
    /// `line`, its INTA#.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        dma: Dma,
        messages: Arc<dyn MsiSender>,
        line: Arc<dyn InterruptLine>,
    ) -> io::Result<Self> {
        let kind = device.kind();
        let state = State::new(kind, device.features(), device.queues());
        let shared = Arc::new(Shared {
            device,
            dma,
            messages,
            line,
            state: Mutex::new(state),
            drained: Condvar::new(),
            control: Control::default(),
            requests: AtomicU64::new(0),
        });
        let woken = Arc::downgrade(&shared);
        shared.device.connect(Arc::new(move || {
            if let Some(shared) = woken.upgrade() {
                shared.control.kick();
            }
        }));
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(kind.name.to_owned())
            .spawn(move || served.control.serve(|| Shared::serve_queues(&served)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the device work. What was put off is tried again.
    pub fn resume(&self) {
        self.shared.lock().retry();
        self.shared.control.resume();
    }

    /// Keeps the device from working; returns when the requests that it has taken are done. What
    /// the driver has asked for besides stays in its rings.
    pub fn pause(&self) {
        self.shared.control.pause();
        self.shared.drain();
    }

    /// Brings what the device holds back to where it survives a failure of the host. It is paused.
    pub fn flush(&self) {
        self.shared.device.flush();
    }

    /// The device's name, `virtio-blk` for example.
    pub fn name(&self) -> &'static str {
        self.shared.device.kind().name
    }

    /// Requests executed so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.shared.control.end();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and does what follows from it when it is unlocked.
    fn update<R>(&self, change: impl FnOnce(&mut State, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let mut state = self.lock();
        let before = state.level();
        let result = change(&mut state, &mut effects);
        let after = state.level();
        drop(state);
        for message in effects.messages {
            self.messages.send(message);
        }
        if before != after {
            self.publish();
        }
        if effects.reset {
            self.device.reset();
        }
        if effects.kick {
            self.control.kick();
        }
        result
    }

    /// Sets INTA# to the level of the state. Two threads may do so in the wrong order, so each
    /// looks again.
    fn publish(&self) {
        loop {
            let level = self.lock().level();
            self.line.set(level);
            if self.lock().level() == level {
                return;
            }
        }
    }

    /// What the thread does when it was kicked.
    fn serve_queues(this: &Arc<Self>) {
        for index in 0..this.device.queues().len() {
            Requests::serve(this, index);
        }
    }

    /// Guest memory.
    pub(crate) fn dma(&self) -> &Dma {
        &self.dma
    }

    /// A request that was under way is done. Unless others follow at once (`more`), the driver is
    /// told.
    pub(crate) fn finish(&self, job: &Job, result: Result<u32, DeviceError>, more: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.update(|state, effects| {
            match result {
                Ok(written) => {
                    let done = [(job.chain.head, written)];
                    state.finish((job.queue, job.life), &done, &self.dma, effects);
                }
                Err(DeviceError) => state.refuse(job.life, 1, effects),
            }
            self.note_drained(state);
        });
        if !more {
            self.tell_all();
        }
    }

    /// A request is put off until [`VirtioPci::resume`].
    pub(crate) fn put_off(&self, job: &Job) {
        self.update(|state, effects| {
            state.put_off((job.queue, job.life), job.chain.head, effects);
            self.note_drained(state);
        });
    }

    /// Tells the driver what it wants to know of finished requests, of every queue.
    fn tell_all(&self) {
        self.update(|state, effects| {
            for index in 0..self.device.queues().len() {
                state.tell(index, &self.dma, effects);
            }
        });
    }

    fn note_drained(&self, state: &State) {
        if state.is_drained() {
            self.drained.notify_all();
        }
    }

    /// Waits until no request is under way.
    fn drain(&self) {
        let mut state = self.lock();
        while !state.is_drained() {
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            MSIX_BAR => self.lock().msix.read(offset, data),
            REGISTER_BAR => self.update(|state, _| state.read(offset, data, &*self.device)),
            _ => data.fill(0xff),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            MSIX_BAR => self.update(|state, effects| state.write_msix(offset, data, effects)),
            REGISTER_BAR => self.update(|state, effects| state.write(offset, data, effects)),
            _ => {}
        }
    }

    /// The access through configuration space that an access of `len` bytes at `offset` stands
    /// for.
    fn window(&self, offset: u16, len: usize) -> Option<Window> {
        let state = self.lock();
        state.layout.window(&state.config, offset, len)
    }
}

impl Function for VirtioPci {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if let Some(window) = self.shared.window(offset, data.len()) {
            return self.shared.bar_read(window.bar, window.offset, data);
        }
        let state = self.shared.lock();
        state.config.read(offset, data);
        let status = register::STATUS.checked_sub(offset).map(usize::from);
        if let Some(byte) = status.and_then(|at| data.get_mut(at)) {
            *byte |= if state.isr != 0 { STATUS_INTERRUPT as u8 } else { 0 };
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.shared.update(|state, effects| state.write_config(offset, data, effects));
        if let Some(window) = self.shared.window(offset, data.len()) {
            self.shared.bar_write(window.bar, window.offset, data);
        }
    }

    fn mapped_bars(&self) -> Vec<MappedBar> {
        self.shared.lock().config.mapped_bars()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.shared.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.shared.bar_write(bar, offset, data);
    }
}

impl Device for VirtioPci {
    fn reset(&self) {
        self.shared.update(|state, effects| state.power_on(effects));
        self.shared.publish();
    }
}
