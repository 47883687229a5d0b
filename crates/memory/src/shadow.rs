//! Which accesses of vCPUs reach RAM below 1 MiB, where PCs have ROMs that firmware may copy into
//! RAM and then protect (the PAM registers of Intel's host bridges). Devices always reach it.

use std::sync::atomic::{AtomicU32, Ordering};

/// First address of the area.
const FIRST: u64 = 0xc_0000;
/// Bytes of a segment; there are 16.
const SEGMENT: u64 = 0x4000;
const SEGMENTS: u64 = 16;

/// The rights of the area; all accesses reach RAM at first.
#[derive(Debug, Default)]
pub(crate) struct Shadow(AtomicU32);

impl Shadow {
    /// Replaces the rights; whether they were others.
    pub(crate) fn set(&self, unreadable: u16, unwritable: u16) -> bool {
        let bits = u32::from(unreadable) | u32::from(unwritable) << SEGMENTS;
        self.0.swap(bits, Ordering::Relaxed) != bits
    }

    /// Whether an access to the page at `gpa` reaches RAM. Where reads do not, the bus has to know
    /// of writes too.
    pub(crate) fn lets_through(&self, gpa: u64, write: bool) -> bool {
        let Some(segment) = segment_of(gpa) else { return true };
        let bits = self.0.load(Ordering::Relaxed) >> segment;
        let (unreadable, unwritable) = (bits & 1 != 0, bits >> SEGMENTS & 1 != 0);
        !(unreadable || write && unwritable)
    }

    /// Whether writes to `gpa` are RAM's.
    pub(crate) fn is_writable(&self, gpa: u64) -> bool {
        let bits = self.0.load(Ordering::Relaxed) >> SEGMENTS;
        segment_of(gpa).is_none_or(|segment| bits >> segment & 1 == 0)
    }
}

fn segment_of(gpa: u64) -> Option<u64> {
    let segment = gpa.checked_sub(FIRST)? / SEGMENT;
    (segment < SEGMENTS).then_some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_rights_of_their_own() {
        let shadow = Shadow::default();
        assert!(shadow.lets_through(0xc_0000, true));
        // Segment 0 can be read only, 1 written only, 15 nothing.
        assert!(shadow.set(0x8002, 0x8001));
        assert!(!shadow.set(0x8002, 0x8001), "as before");
        let rights = |gpa| {
            let reached = [false, true].map(|write| shadow.lets_through(gpa, write));
            (reached, shadow.is_writable(gpa))
        };
        assert_eq!(rights(0xb_f000), ([true, true], true));
        assert_eq!(rights(0xc_3fff), ([true, false], false));
        assert_eq!(rights(0xc_4000), ([false, false], true));
        assert_eq!(rights(0xc_8000), ([true, true], true));
        assert_eq!(rights(0xf_ffff), ([false, false], false));
        assert_eq!(rights(0x10_0000), ([true, true], true));
    }
}
