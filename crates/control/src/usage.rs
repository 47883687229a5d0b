//! What this process has used.

use std::fs;
use std::time::{Duration, Instant};

use api::VmUsage;
use lifecycle::VmStats;
use rustix::time::{ClockId, clock_gettime};

use crate::ControlError;

/// What the process has used since `started`.
pub(crate) fn usage(started: Instant, stats: &VmStats) -> Result<VmUsage, ControlError> {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu =
        Duration::new(cpu.tv_sec.try_into().unwrap_or(0), cpu.tv_nsec.try_into().unwrap_or(0));
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")
        .map_err(ControlError::io("read /proc/self/smaps_rollup"))?;
    let encode = |e: serde_json::Error| ControlError::io("encode counters")(e.into());
    Ok(VmUsage {
        wall_seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        resident: bytes_of(&rollup, &["Rss"]),
        private: bytes_of(&rollup, &["Private_Clean", "Private_Dirty"]),
        guest_time_ns: stats.guest_time_ns,
        instructions: stats.vcpus.iter().filter_map(|vcpu| vcpu.instructions).sum(),
        vm: serde_json::to_value(stats).map_err(encode)?,
    })
}

/// The sum of some lines of `smaps_rollup`, in bytes.
fn bytes_of(rollup: &str, names: &[&str]) -> u64 {
    let kib = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let wanted = names.contains(&name);
        wanted.then(|| value.split_whitespace().next()?.parse::<u64>().ok()).flatten()
    };
    rollup.lines().filter_map(kib).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_name() {
        let text = "Rss:    12 kB\nPss: 1 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty:\t 4 kB\n";
        assert_eq!(bytes_of(text, &["Rss"]), 12 << 10);
        assert_eq!(bytes_of(text, &["Private_Clean", "Private_Dirty"]), 7 << 10);
        let usage = usage(Instant::now(), &VmStats::default()).unwrap();
        assert!(usage.resident >= usage.private && usage.private > 0 && usage.cpu_seconds > 0.0);
    }
}
