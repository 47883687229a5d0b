//! `--profile FILE`: where the guest spent its time, as folded stacks.
//!
//! A line is frames separated by semicolons and a count: `vcpu 0;kernel;do_sys_open;translated code
//! 12`, the form that flame-graph programs read. There are no call chains: the frames are the vCPU,
//! the guest's mode, the function or address, and what the host did.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lifecycle::{Activity, Profile, Profiler, Sample};

use crate::symbols::Symbols;
use crate::{report, stats};

/// Samples per second. Not a divisor of the frequencies at which guests tick, so that samples do not
/// go with the ticks.
pub const SAMPLES_PER_SECOND: u32 = 997;

/// Where the profile goes, and the names for it.
pub struct Output {
    path: PathBuf,
    symbols: Option<Symbols>,
}

impl Output {
    /// A profile for `path`, with the names of the kernel whose symbols `symbols` has.
    ///
    /// # Errors
    /// When it is plain that the file cannot be made, or the symbols cannot be read.
    pub fn new(path: &Path, symbols: Option<&Path>) -> anyhow::Result<Self> {
        stats::check_target(path, "the profile")?;
        let symbols = symbols.map(Symbols::open).transpose()?;
        Ok(Self { path: path.to_owned(), symbols })
    }

    /// Ends the profile and writes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(mut self, profiler: Profiler) -> anyhow::Result<()> {
        let profile = profiler.finish();
        if let Some(symbols) = &mut self.symbols {
            symbols.place(profile.syscall_entry);
        }
        let text = fold(&profile, self.symbols.as_ref());
        stats::replace(&self.path, text.as_bytes())
            .with_context(|| format!("cannot write the profile to {}", self.path.display()))?;
        report::note(&summary(&profile));
        Ok(())
    }
}

/// Folded stacks, in order.
fn fold(profile: &Profile, symbols: Option<&Symbols>) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for (sample, count) in &profile.samples {
        *lines.entry(frames(sample, symbols)).or_default() += count;
    }
    lines.iter().map(|(frames, count)| format!("{frames} {count}\n")).collect()
}

fn frames(sample: &Sample, symbols: Option<&Symbols>) -> String {
    let Sample { vcpu, activity, user, rip } = *sample;
    if activity == Activity::Idle {
        return format!("vcpu {vcpu};idle");
    }
    let mode = if user { "user" } else { "kernel" };
    let name = symbols.filter(|_| !user).and_then(|symbols| symbols.name(rip));
    // Names are a file's: none of them makes frames of its own.
    let place = name.map_or_else(|| format!("{rip:#x}"), |name| name.replace(';', ":"));
    format!("vcpu {vcpu};{mode};{place};{}", activity.name())
}

/// One line on what the vCPUs did.
fn summary(profile: &Profile) -> String {
    let total: u64 = profile.samples.iter().map(|(_, count)| count).sum();
    let share = |wanted: &dyn Fn(&Sample) -> bool| {
        let found = profile.samples.iter().filter(|(sample, _)| wanted(sample));
        100.0 * found.map(|(_, count)| count).sum::<u64>() as f64 / total.max(1) as f64
    };
    let shares = Activity::ALL.map(|activity| {
        format!("{:.1}% {}", share(&|sample| sample.activity == activity), activity.name())
    });
    let user = share(&|sample| sample.user);
    format!("profile: {total} samples: {}; {user:.1}% in user code", shares.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(activity: Activity, user: bool, rip: u64) -> Sample {
        Sample { vcpu: 1, activity, user, rip }
    }

    #[test]
    fn samples_become_folded_stacks() {
        let profile = Profile {
            samples: vec![
                (sample(Activity::Translated, true, 0x401000), 3),
                (sample(Activity::Helpers, false, 0xffff_ffff_8100_0010), 1),
                (sample(Activity::Idle, false, 0), 4),
            ],
            syscall_entry: 0,
        };
        let text = fold(&profile, None);
        assert_eq!(
            text,
            "vcpu 1;idle 4\nvcpu 1;kernel;0xffffffff81000010;helpers 1\n\
             vcpu 1;user;0x401000;translated code 3\n"
        );
        let summary = summary(&profile);
        assert!(summary.contains("8 samples: 12.5% helpers, 37.5% translated code"), "{summary}");
        assert!(summary.ends_with("37.5% in user code"), "{summary}");
    }
}
