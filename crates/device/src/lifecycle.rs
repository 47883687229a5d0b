//! The life of a device.

use state::Persist;

/// A device of the machine.
///
/// The machine calls [`reset`](Device::reset) on power-up and on every guest reset, with all vCPUs
/// parked; [`Persist::save`] and [`Persist::restore`] with vCPUs parked, back ends drained and
/// timers stopped. After a restore the device re-arms its timers and sets its lines to the levels
/// that its state implies.
pub trait Device: Persist + Send + Sync {
    /// Returns to the power-on state, drops its lines and disarms its timers.
    fn reset(&self);
}
