//! The port map.

use std::sync::Arc;

use device::{Answer, PortIo, Width};

use super::{AccessCount, Parts, Slot, Slots};
use crate::MachineError;

/// Which device is at which I/O port.
///
/// ```
/// use device::{Answer, Width};
/// let ports = machine::PortMap::default();
/// assert_eq!(ports.read(0x80, Width::Byte), Answer::Done(0xff));
/// ```
#[derive(Default)]
pub struct PortMap {
    slots: Slots<dyn PortIo, Width>,
}

impl PortMap {
    /// Puts `device` at `count` ports from `first`. It takes accesses of up to `widest`; wider
    /// ones are split, as the ISA bus does for 8-bit cards.
    ///
    /// # Errors
    /// [`MachineError::Overlap`].
    ///
    /// # Panics
    /// When `count` is 0 or the ports go beyond 0xffff: both are constants of a device.
    pub fn insert(
        &mut self,
        name: &'static str,
        first: u16,
        count: u16,
        widest: Width,
        device: Arc<dyn PortIo>,
    ) -> Result<(), MachineError> {
        let last = count.checked_sub(1).and_then(|n| first.checked_add(n)).expect("port range");
        self.slots.insert(name, first.into(), last.into(), widest, device)
    }

    /// Reads a port.
    #[inline]
    pub fn read(&self, port: u16, width: Width) -> Answer<u32> {
        match self.slots.find(port.into()) {
            Some(slot) if takes(slot, port, width) => {
                slot.counter.read();
                slot.device.port_read(port, width)
            }
            None if self.slots.is_empty(port.into(), last(port, width)) => {
                self.slots.unclaimed.read();
                Answer::Done(width.mask())
            }
            found => self.read_split(port, width, part(width, found)),
        }
    }

    /// Writes a port.
    #[inline]
    pub fn write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
        match self.slots.find(port.into()) {
            Some(slot) if takes(slot, port, width) => {
                slot.counter.write();
                slot.device.port_write(port, width, value & width.mask())
            }
            None if self.slots.is_empty(port.into(), last(port, width)) => {
                self.slots.unclaimed.write();
                Answer::Done(())
            }
            found => self.write_split(port, width, part(width, found), value),
        }
    }

    /// Accesses by device, in the order of ports.
    pub fn counts(&self) -> Vec<AccessCount> {
        self.slots.counts()
    }

    fn read_split(&self, port: u16, width: Width, part: Width) -> Answer<u32> {
        let mut parts = Parts::default();
        let mut value = 0;
        for at in (0..width.bytes()).step_by(part.bytes().into()) {
            let answer = match port.checked_add(at) {
                Some(port) => self.read(port, part),
                None => Answer::Done(part.mask()),
            };
            value |= (parts.take(answer) & part.mask()) << (8 * at);
        }
        parts.answer(value)
    }

    fn write_split(&self, port: u16, width: Width, part: Width, value: u32) -> Answer<()> {
        let mut parts = Parts::default();
        for at in (0..width.bytes()).step_by(part.bytes().into()) {
            if let Some(port) = port.checked_add(at) {
                parts.take(self.write(port, part, value >> (8 * at)));
            }
        }
        parts.answer(())
    }
}

/// The last address of an access; beyond 0xffff there is nobody.
fn last(port: u16, width: Width) -> u64 {
    u64::from(port) + u64::from(width.bytes()) - 1
}

/// Whether the device takes the access whole.
fn takes(slot: &Slot<dyn PortIo, Width>, port: u16, width: Width) -> bool {
    width <= slot.rule && last(port, width) <= slot.last
}

/// Into which parts to split an access of `width` that nobody takes whole: what the device found
/// at its first port takes, or bytes when it reaches beyond that device or begins before one.
fn part(width: Width, found: Option<&Slot<dyn PortIo, Width>>) -> Width {
    found.map(|slot| slot.rule).filter(|rule| *rule < width).unwrap_or(Width::Byte)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use device::StopCause;

    use super::*;

    /// Answers reads with the low byte of each port, and records what it sees.
    #[derive(Default)]
    struct Probe {
        seen: Mutex<Vec<(u16, Width, Option<u32>)>>,
        stop: Option<StopCause>,
    }

    impl Probe {
        fn seen(&self) -> Vec<(u16, Width, Option<u32>)> {
            std::mem::take(&mut self.seen.lock().unwrap())
        }
    }

    impl PortIo for Probe {
        fn port_read(&self, port: u16, width: Width) -> Answer<u32> {
            self.seen.lock().unwrap().push((port, width, None));
            let bytes: [u8; 4] = std::array::from_fn(|i| (port as u8).wrapping_add(i as u8));
            // More than asked for: the map cuts parts to their width.
            Answer::Done(u32::from_le_bytes(bytes))
        }

        fn port_write(&self, port: u16, width: Width, value: u32) -> Answer<()> {
            self.seen.lock().unwrap().push((port, width, Some(value)));
            match self.stop {
                Some(cause) => Answer::StopAfterInstruction((), cause),
                None => Answer::Done(()),
            }
        }
    }

    fn map(devices: &[(u16, u16, Width, &Arc<Probe>)]) -> PortMap {
        let mut ports = PortMap::default();
        for (first, count, widest, probe) in devices {
            ports.insert("probe", *first, *count, *widest, Arc::clone(probe) as _).unwrap();
        }
        ports
    }

    #[test]
    fn nobody_reads_as_ones_at_any_width() {
        let ports = PortMap::default();
        for port in [0, 0x80, 0xcf8, 0xfffd, 0xffff] {
            for width in [Width::Byte, Width::Word, Width::Dword] {
                assert_eq!(ports.read(port, width), Answer::Done(width.mask()));
                assert_eq!(ports.write(port, width, 0), Answer::Done(()));
            }
        }
    }

    #[test]
    fn an_access_that_fits_arrives_whole() {
        let probe = Arc::new(Probe::default());
        let ports = map(&[(0x600, 8, Width::Dword, &probe)]);
        assert_eq!(ports.read(0x604, Width::Dword), Answer::Done(0x0706_0504));
        assert_eq!(ports.write(0x602, Width::Word, 0xdead_beef), Answer::Done(()));
        assert_eq!(probe.seen(), [(0x604, Width::Dword, None), (0x602, Width::Word, Some(0xbeef))]);
    }

    #[test]
    fn wide_accesses_to_an_8_bit_card_become_bytes() {
        let probe = Arc::new(Probe::default());
        let ports = map(&[(0x40, 4, Width::Byte, &probe)]);
        assert_eq!(ports.read(0x40, Width::Dword), Answer::Done(0x4342_4140));
        probe.seen();
        assert_eq!(ports.write(0x42, Width::Word, 0x1234), Answer::Done(()));
        assert_eq!(
            probe.seen(),
            [(0x42, Width::Byte, Some(0x34)), (0x43, Width::Byte, Some(0x12))]
        );
    }

    #[test]
    fn straddling_accesses_reach_both_neighbours_and_nobody() {
        let (low, high) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
        let ports = map(&[(0x70, 2, Width::Dword, &low), (0x72, 1, Width::Byte, &high)]);
        assert_eq!(ports.read(0x71, Width::Dword), Answer::Done(0xffff_7271));
        assert_eq!(ports.read(0x6f, Width::Word), Answer::Done(0x70ff));
        ports.write(0x71, Width::Word, 0x0201);
        let bytes = |s: &Probe| s.seen().iter().filter_map(|s| s.2).collect::<Vec<_>>();
        assert_eq!((bytes(&low), bytes(&high)), (vec![1], vec![2]));
    }

    #[test]
    fn a_dword_at_the_last_port_does_not_wrap_around() {
        let first = Arc::new(Probe::default());
        let ports = map(&[(0, 4, Width::Dword, &first)]);
        assert_eq!(ports.read(0xffff, Width::Dword), Answer::Done(0xffff_ffff));
        ports.write(0xfffe, Width::Dword, 0);
        assert!(first.seen().is_empty());
    }

    #[test]
    fn a_stop_survives_splitting() {
        let stop = Some(StopCause::DebugExit { value: 5 });
        let probe = Arc::new(Probe { stop, ..Probe::default() });
        let ports = map(&[(0xf4, 1, Width::Byte, &probe)]);
        let answer = ports.write(0xf4, Width::Dword, 5);
        assert_eq!(answer, Answer::StopAfterInstruction((), StopCause::DebugExit { value: 5 }));
    }

    #[test]
    fn accesses_are_counted_and_overlaps_refused() {
        let probe = Arc::new(Probe::default());
        let mut ports = map(&[(0x20, 2, Width::Byte, &probe), (0xa0, 2, Width::Byte, &probe)]);
        for (first, count) in [(0x1f, 2), (0x21, 1), (0x10, 0x200)] {
            let error = ports.insert("late", first, count, Width::Byte, Arc::clone(&probe) as _);
            assert!(error.unwrap_err().to_string().contains("probe"));
        }
        ports.read(0x21, Width::Byte);
        ports.write(0xa1, Width::Byte, 0);
        ports.write(0x80, Width::Byte, 0);
        let counts = ports.counts();
        assert_eq!(counts[0], AccessCount { device: "probe", reads: 1, writes: 1 });
        assert_eq!(counts[1], AccessCount { device: "unclaimed", reads: 0, writes: 1 });
    }
}
