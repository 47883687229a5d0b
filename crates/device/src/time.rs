//! Time as a device sees it.

use std::sync::Arc;
use std::time::Duration;

/// Nanoseconds of guest real time since the machine was created. It does not advance while the VM
/// is paused and never jumps backwards, also across save, restore and migration.
pub type Nanos = u64;

/// The guest's real time.
pub trait GuestClock: Send + Sync {
    /// Nanoseconds of guest real time.
    fn now(&self) -> Nanos;
}

/// The wall clock.
pub trait WallClock: Send + Sync {
    /// Time since 1970-01-01T00:00:00Z, without leap seconds.
    fn since_epoch(&self) -> Duration;
}

/// What a timer calls when it fires. It gets the deadline that was armed, runs on the timer
/// thread, may arm the timer again and may set interrupt lines, and must not block.
pub type TimerCallback = Box<dyn Fn(Nanos) + Send + Sync>;

/// One device's one-shot alarm.
pub trait Timer: Send + Sync {
    /// Calls back at guest time `deadline` or as soon after as the host allows; at once when it
    /// has passed. Replaces an earlier deadline.
    fn arm(&self, deadline: Nanos);

    /// Forgets the deadline. A callback that is running may still finish.
    fn disarm(&self);
}

/// Makes timers for devices.
pub trait Timers: Send + Sync {
    /// A disarmed timer that will call `callback`. `name` is for messages and statistics.
    fn create(&self, name: &'static str, callback: TimerCallback) -> Arc<dyn Timer>;
}
