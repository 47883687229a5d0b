//! The map of memory-mapped devices.

use std::sync::Arc;

use device::{Answer, Mmio};

use super::{AccessCount, Parts, Slots};
use crate::MachineError;

/// Which device is at which guest-physical address outside RAM.
#[derive(Default)]
pub struct MmioMap {
    slots: Slots<dyn Mmio, ()>,
}

impl MmioMap {
    /// Puts `device` at `len` bytes from `first`.
    ///
    /// # Errors
    /// [`MachineError::Overlap`].
    ///
    /// # Panics
    /// When `len` is 0 or the range goes beyond the address space: both are constants of a device.
    pub fn insert(
        &mut self,
        name: &'static str,
        first: u64,
        len: u64,
        device: Arc<dyn Mmio>,
    ) -> Result<(), MachineError> {
        let last = len.checked_sub(1).and_then(|n| first.checked_add(n)).expect("address range");
        self.slots.insert(name, first, last, (), device)
    }

    /// Reads 1 to 8 bytes.
    #[inline]
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Answer<()> {
        let last = gpa.saturating_add(data.len() as u64 - 1);
        match self.slots.find(gpa) {
            Some(slot) if last <= slot.last => {
                slot.counter.read();
                slot.device.mmio_read(gpa - slot.first, data)
            }
            None if self.slots.is_empty(gpa, last) => {
                self.slots.unclaimed.read();
                data.fill(0xff);
                Answer::Done(())
            }
            _ => self.read_split(gpa, data),
        }
    }

    /// Writes 1 to 8 bytes.
    #[inline]
    pub fn write(&self, gpa: u64, data: &[u8]) -> Answer<()> {
        let last = gpa.saturating_add(data.len() as u64 - 1);
        match self.slots.find(gpa) {
            Some(slot) if last <= slot.last => {
                slot.counter.write();
                slot.device.mmio_write(gpa - slot.first, data)
            }
            None if self.slots.is_empty(gpa, last) => {
                self.slots.unclaimed.write();
                Answer::Done(())
            }
            _ => self.write_split(gpa, data),
        }
    }

    /// Accesses by device, in the order of addresses.
    pub fn counts(&self) -> Vec<AccessCount> {
        self.slots.counts()
    }

    /// An access that no device takes whole, byte by byte.
    fn read_split(&self, gpa: u64, data: &mut [u8]) -> Answer<()> {
        let mut parts = Parts::default();
        for (index, byte) in data.iter_mut().enumerate() {
            parts.take(self.read(gpa.saturating_add(index as u64), std::slice::from_mut(byte)));
        }
        parts.answer(())
    }

    fn write_split(&self, gpa: u64, data: &[u8]) -> Answer<()> {
        let mut parts = Parts::default();
        for (index, byte) in data.iter().enumerate() {
            let gpa = gpa.saturating_add(index as u64);
            parts.take(self.write(gpa, std::slice::from_ref(byte)));
        }
        parts.answer(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Sixteen bytes of registers.
    #[derive(Default)]
    struct Registers(Mutex<[u8; 16]>);

    impl Mmio for Registers {
        fn mmio_read(&self, offset: u64, data: &mut [u8]) -> Answer<()> {
            let at = offset as usize;
            data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
            Answer::Done(())
        }

        fn mmio_write(&self, offset: u64, data: &[u8]) -> Answer<()> {
            let at = offset as usize;
            self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            Answer::Done(())
        }
    }

    fn map() -> MmioMap {
        let mut map = MmioMap::default();
        map.insert("low", 0x1000, 16, Arc::new(Registers::default())).unwrap();
        map.insert("high", 0x1010, 16, Arc::new(Registers::default())).unwrap();
        map
    }

    fn read<const N: usize>(map: &MmioMap, gpa: u64) -> [u8; N] {
        let mut data = [0x55; N];
        assert_eq!(map.read(gpa, &mut data), Answer::Done(()));
        data
    }

    #[test]
    fn devices_see_offsets_and_nobody_reads_as_ones() {
        let map = map();
        map.write(0x1014, &[1, 2, 3, 4]);
        assert_eq!(read(&map, 0x1015), [2, 3]);
        assert_eq!(read(&map, 0x2000), [0xff; 8]);
        assert_eq!(read(&map, u64::MAX - 1), [0xff; 4]);
        assert_eq!(map.write(u64::MAX, &[0; 8]), Answer::Done(()));
    }

    #[test]
    fn an_access_may_straddle_devices_and_holes() {
        let map = map();
        map.write(0x100e, &[1, 2, 3, 4]);
        assert_eq!(read(&map, 0x100e), [1, 2, 3, 4]);
        assert_eq!(read(&map, 0x0fff), [0xff, 0]);
        map.write(0x101f, &[9, 9]);
        assert_eq!(read(&map, 0x101e), [0, 9, 0xff, 0xff]);
    }

    #[test]
    fn overlaps_are_refused_by_name() {
        let error = map().insert("late", 0xfff, 2, Arc::new(Registers::default())).unwrap_err();
        assert!(error.to_string().contains("low"), "{error}");
    }

    #[test]
    fn accesses_are_counted() {
        let map = map();
        let _: [u8; 4] = read(&map, 0x1000);
        map.write(0x1010, &[0]);
        map.write(0x3000, &[0]);
        let counts: Vec<_> =
            map.counts().into_iter().map(|c| (c.device, c.reads, c.writes)).collect();
        assert_eq!(counts, [("low", 1, 0), ("high", 0, 1), ("unclaimed", 0, 1)]);
    }
}
