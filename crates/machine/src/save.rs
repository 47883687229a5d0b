//! The sections that are the machine's own.

use device::Nanos;
use engine::CpuProfile;
use serde::{Deserialize, Serialize};
use state::{Archive, Saved, Section, StateError};
use x86::cpuid::feature;

use crate::{MachineError, host};

/// The instance of what there is once.
const ONLY: &str = "0";
/// Guest times from here on, 146 years, are no machine's.
const END_OF_TIME: Nanos = 1 << 62;
/// TSC frequencies that a profile can have, kHz.
const TSC_KHZ: std::ops::RangeInclusive<u32> = 1_000..=100_000_000;

/// The guest's clock.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedClock {
    /// Guest real time in nanoseconds.
    pub(crate) now: Nanos,
}

impl Saved for SavedClock {
    const KIND: &'static str = "clock";
    const VERSION: u32 = 1;
}

impl SavedClock {
    pub(crate) fn push(&self, archive: &mut Archive) -> Result<(), StateError> {
        archive.push(Section::encode(ONLY, self)?)
    }

    pub(crate) fn take(archive: &mut Archive) -> Result<Self, StateError> {
        let section = archive.take(Self::KIND, ONLY)?;
        let clock: Self = section.decode()?;
        if clock.now >= END_OF_TIME {
            return Err(section.invalid("the guest has run for more than a century"));
        }
        Ok(clock)
    }
}

/// The whole CPU profile, with the platform's leaves.
#[derive(Serialize, Deserialize)]
struct SavedProfile {
    profile: CpuProfile,
}

impl Saved for SavedProfile {
    const KIND: &'static str = "cpu-profile";
    const VERSION: u32 = 1;
}

pub(crate) fn profile(profile: &CpuProfile, archive: &mut Archive) -> Result<(), StateError> {
    let saved = SavedProfile { profile: profile.clone() };
    archive.push(Section::encode(ONLY, &saved)?)
}

/// Takes the profile out and checks that this host has what it needs.
pub(crate) fn take_profile(archive: &mut Archive) -> Result<CpuProfile, MachineError> {
    let section = archive.take(SavedProfile::KIND, ONLY)?;
    let SavedProfile { profile } = section.decode()?;
    if !TSC_KHZ.contains(&profile.tsc_khz()) {
        return Err(section.invalid("no TSC has such a frequency").into());
    }
    // The most that this host can offer to a guest whose CPU has that vendor.
    let here = CpuProfile::portable(profile.vendor(), host::tsc_khz(), &host::has)?;
    match feature::ALL.iter().find(|f| profile.has(**f) && !here.has(**f)) {
        Some(lacking) => Err(MachineError::SavedFeature { feature: lacking.name }),
        None => Ok(profile),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuLevel;

    #[test]
    fn the_clock_is_bounded() {
        for (now, good) in [(0, true), (1 << 61, true), (1 << 62, false), (u64::MAX, false)] {
            let mut archive = Archive::new();
            SavedClock { now }.push(&mut archive).unwrap();
            assert_eq!(SavedClock::take(&mut archive).is_ok(), good, "{now}");
        }
    }

    #[test]
    fn a_profile_survives() {
        let ours = CpuLevel::Portable.profile().unwrap();
        let mut archive = Archive::new();
        profile(&ours, &mut archive).unwrap();
        assert_eq!(take_profile(&mut archive).unwrap(), ours);
        archive.finish().unwrap();
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let every = |_| true;
        let most = CpuProfile::new(engine::Level::V3, host::vendor(), 1_000_000, &every).unwrap();
        let here = CpuLevel::Portable.profile().unwrap();
        let lacking = feature::ALL.iter().find(|f| most.has(**f) && !here.has(**f));
        let mut archive = Archive::new();
        profile(&most, &mut archive).unwrap();
        match (take_profile(&mut archive), lacking) {
            (Ok(taken), None) => assert_eq!(taken, most),
            (Err(error), Some(feature)) => assert!(error.to_string().contains(feature.name)),
            (result, lacking) => panic!("{result:?} although {lacking:?} is lacking"),
        }
    }

    #[test]
    fn a_frequency_that_cannot_be_is_refused() {
        let odd = CpuProfile::new(engine::Level::V2, host::vendor(), 0, &host::has).unwrap();
        let mut archive = Archive::new();
        profile(&odd, &mut archive).unwrap();
        assert!(take_profile(&mut archive).unwrap_err().to_string().contains("cpu-profile/0"));
    }
}
