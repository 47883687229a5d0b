//! How long vCPUs waited for a core of the host: the delay on run queues that Linux accounts for
//! each thread (proc(5), schedstat).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use chipset::StolenTime;
use device::Nanos;

/// The time that the threads of vCPUs waited. It stands still where the host does not account it.
pub(crate) struct HostStolenTime {
    vcpus: Vec<Mutex<Option<Thread>>>,
}

/// The thread that last was a vCPU's.
struct Thread {
    schedstat: File,
    /// Its delay when it was last looked at.
    delay: Nanos,
}

impl HostStolenTime {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { vcpus: (0..vcpus).map(|_| Mutex::default()).collect() }
    }
}

impl StolenTime for HostStolenTime {
    fn since_last(&self, vcpu: usize) -> Nanos {
        let Some(slot) = self.vcpus.get(vcpu) else { return 0 };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &mut *slot
            && let Some(delay) = delay_of(&thread.schedstat)
        {
            let before = std::mem::replace(&mut thread.delay, delay);
            return delay.saturating_sub(before);
        }
        // The first call, or the vCPU has another thread now: it begins here.
        *slot = File::open("/proc/thread-self/schedstat").ok().and_then(|schedstat| {
            let delay = delay_of(&schedstat)?;
            Some(Thread { schedstat, delay })
        });
        0
    }
}

/// The second number is the delay; a thread that is gone has none.
fn delay_of(schedstat: &File) -> Option<Nanos> {
    let mut text = [0; 128];
    let len = schedstat.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(&text[..len]).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn threads_that_share_a_core_wait_for_each_other() {
        if File::open("/proc/thread-self/schedstat").ok().as_ref().and_then(delay_of).is_none() {
            eprintln!("skipped: this host does not account delays");
            return;
        }
        let stolen = HostStolenTime::new(2);
        assert_eq!(stolen.since_last(9), 0, "no such vCPU");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let end = Instant::now() + Duration::from_millis(300);
        let spin = || while Instant::now() < end {};
        std::thread::scope(|scope| {
            (0..cores).for_each(|_| drop(scope.spawn(spin)));
            stolen.since_last(0);
            spin();
            let waited = stolen.since_last(0);
            assert!((1..400_000_000).contains(&waited), "{waited} ns");
        });
        // The vCPU's next thread: what this one waited before is not counted.
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(stolen.since_last(1), 0));
        });
        assert_eq!(stolen.since_last(1), 0, "that thread is gone");
    }
}
