//! Access of devices to guest memory.

use std::sync::Arc;

use memory::{Gpa, GuestRam, PAGE_SIZE, RamOffset};

/// An address that is not guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam;

/// Guest RAM as devices write to it: with the hooks of `memory`, and so that running vCPUs notice
/// that code has changed.
#[derive(Clone)]
pub struct Dma {
    ram: Arc<GuestRam>,
    code_written: Arc<dyn Fn() + Send + Sync>,
}

impl Dma {
    /// Access to `ram`. `code_written` is called after a write to a page that held decoded or
    /// translated code: it makes every vCPU look up soon.
    pub fn new(ram: Arc<GuestRam>, code_written: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { ram, code_written }
    }

    /// Copies out of guest RAM.
    ///
    /// # Errors
    /// [`NotRam`] when not all of the range is RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), NotRam> {
        if to.is_empty() {
            return Ok(());
        }
        self.ram.read(Gpa(gpa), to).map_err(|_| NotRam)
    }

    /// Copies into guest RAM.
    ///
    /// # Errors
    /// [`NotRam`] when not all of the range is RAM; nothing is written then.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), NotRam> {
        let len = from.len() as u64;
        if len == 0 {
            return Ok(());
        }
        let at = self.ram.translate(Gpa(gpa), len).ok_or(NotRam)?;
        let epoch = self.ram.code_epoch();
        self.ram.write(Gpa(gpa), from).map_err(|_| NotRam)?;
        self.written(at, len, epoch);
        Ok(())
    }

    /// Loads a little-endian integer with acquire order.
    ///
    /// # Errors
    /// [`NotRam`].
    pub fn load_u16(&self, gpa: u64) -> Result<u16, NotRam> {
        let at = self.ram.translate(Gpa(gpa), 2).ok_or(NotRam)?;
        Ok(u16::from_le(self.ram.load(at)))
    }

    /// Stores a little-endian integer with release order.
    ///
    /// # Errors
    /// [`NotRam`].
    pub fn store_u16(&self, gpa: u64, value: u16) -> Result<(), NotRam> {
        let at = self.ram.translate(Gpa(gpa), 2).ok_or(NotRam)?;
        let last = RamOffset(at.0 + 1);
        let epoch = self.ram.code_epoch();
        for page in [at, last] {
            self.ram.prepare_write(page);
        }
        self.ram.store(at, value.to_le());
        for page in [at, last] {
            self.ram.mark_dirty(page);
        }
        self.written(at, 2, epoch);
        Ok(())
    }

    /// After a write of `len` bytes at `at`, before which the code epoch was `epoch`.
    ///
    /// A vCPU may have decoded a page again between the declared intent and the write, and seen the
    /// old bytes: the intent is declared a second time.
    fn written(&self, at: RamOffset, len: u64, epoch: u64) {
        let first = at.0 / PAGE_SIZE;
        let last = (at.0 + len - 1) / PAGE_SIZE;
        for page in (first..=last).map(|page| RamOffset(page * PAGE_SIZE)) {
            if !self.ram.is_quiet(page) {
                self.ram.prepare_write(page);
            }
        }
        if self.ram.code_epoch() != epoch {
            (self.code_written)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_write_to_code_makes_it_stale_and_is_told() {
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 16)]).unwrap());
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        let note = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let dma = Dma::new(Arc::clone(&ram), note);
        let code = RamOffset(0x2000);
        let version = ram.watch_code(code);
        dma.write(0x1000, &[1; 4096]).unwrap();
        assert_eq!((ram.code_version(code), told.load(Ordering::Relaxed)), (version, 0));
        dma.write(0x1ffe, &[1; 4]).unwrap();
        assert_ne!(ram.code_version(code), version);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        let version = ram.watch_code(code);
        dma.store_u16(0x1fff, 7).unwrap();
        assert_ne!(ram.code_version(code), version, "an integer across the edge of the page");
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn nothing_outside_ram_is_touched() {
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 16)]).unwrap());
        let dma = Dma::new(ram, Arc::new(|| ()));
        for gpa in [0xffff, 0x1_0000, u64::MAX, u64::MAX - 1] {
            assert_eq!(dma.store_u16(gpa, 1), Err(NotRam));
            assert_eq!(dma.load_u16(gpa), Err(NotRam));
            assert_eq!(dma.write(gpa, &[1; 2]), Err(NotRam));
            assert_eq!(dma.read(gpa, &mut [0; 2]), Err(NotRam));
        }
        assert_eq!(dma.load_u16(0xfffe), Ok(0), "a write that fails writes nothing");
        assert_eq!(dma.write(u64::MAX, &[]), Ok(()));
    }
}
