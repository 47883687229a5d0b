//! Snapshots of a VM that goes on: what is asked for, and what passes between the driver and
//! whoever writes the files.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use state::Archive;

use crate::snapshot::LiveMemory;
use crate::{BaseEntry, DiskEntry, Manifest, SnapshotError};

/// What is to be done while the vCPUs are parked and disks stand still: copies the content of
/// disks, and says of which.
pub type WhileParked = Box<dyn FnOnce() -> Result<Vec<DiskEntry>, SnapshotError> + Send>;

/// What a snapshot is to be.
#[derive(Default)]
pub struct SnapshotOrder {
    /// What it is for, in the user's words.
    pub description: String,
    /// The snapshot that the VM has gone on from.
    pub parent: Option<String>,
    /// The snapshot that was taken, or that the VM was restored from, last: only the pages that
    /// were written since are saved, where the engine knows them. Without, all.
    pub base: Option<BaseEntry>,
    /// What is to be done meanwhile, for VMs with disks.
    pub while_parked: Option<WhileParked>,
}

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct SnapshotTaken {
    /// What it says of itself.
    pub manifest: Manifest,
    /// How long the guest stood still.
    pub paused: Duration,
}

/// What the driver is to do for a snapshot.
pub(crate) struct Order {
    /// The file for memory, empty but for what was copied ahead.
    pub(crate) file: File,
    /// What was copied ahead, of a full snapshot.
    pub(crate) ahead: Option<Arc<LiveMemory>>,
    pub(crate) base: Option<BaseEntry>,
    pub(crate) while_parked: Option<WhileParked>,
}

/// What the driver has saved, and the memory that is still to be written.
pub(crate) struct Parked {
    pub(crate) manifest: Manifest,
    pub(crate) archive: Archive,
    pub(crate) live: Arc<LiveMemory>,
    pub(crate) paused: Duration,
}

/// For how long the VM has stood still. Counts the time in which the host sleeps.
pub(crate) struct PauseClock {
    since: Option<Duration>,
    before: Duration,
}

impl PauseClock {
    /// The clock of a VM that stands, and has already stood for the time given: none for one that
    /// never ran.
    pub(crate) fn new(already: Option<Duration>) -> Self {
        Self { since: already.map(|_| host_time()), before: already.unwrap_or_default() }
    }

    pub(crate) fn begin(&mut self) {
        self.since = Some(host_time());
    }

    /// Ends the pause and says how long it was; none for a VM that never ran before.
    pub(crate) fn end(&mut self) -> Option<Duration> {
        let since = self.since.take()?;
        Some(std::mem::take(&mut self.before) + host_time().saturating_sub(since))
    }
}

/// Time since the host's boot (CLOCK_BOOTTIME).
fn host_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_counted_from_the_first_run_on() {
        let mut clock = PauseClock::new(None);
        assert_eq!(clock.end(), None);
        clock.begin();
        assert!(clock.end().is_some_and(|passed| passed < Duration::from_secs(60)));
        assert_eq!(clock.end(), None);
        let hour = Duration::from_secs(3600);
        let mut restored = PauseClock::new(Some(hour));
        assert!(restored.end().is_some_and(|passed| passed >= hour));
        restored.begin();
        assert!(restored.end().is_some_and(|passed| passed < hour));
    }
}
