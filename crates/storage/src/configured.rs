//! What the user wants of a disk besides its content.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use backend::{Disk, DiskDone, DiskRequest, RateLimit};

/// Called when the host has no space for what a guest writes, with the name of the image.
pub(crate) type WhenFull = Arc<dyn Fn(&str) + Send + Sync>;

/// A disk with a serial number, a limit, and somebody who is told when the host's disk is full.
pub(crate) struct Configured {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) name: Arc<str>,
    pub(crate) serial: Option<String>,
    pub(crate) limit: RateLimit,
    pub(crate) when_full: WhenFull,
}

impl Disk for Configured {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn block_size(&self) -> u32 {
        self.disk.block_size()
    }

    fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    fn limit(&self) -> RateLimit {
        self.limit
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, to)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.disk.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(offset, len, unmap)
    }

    fn submit(&self, request: DiskRequest, done: DiskDone) {
        let (tell, name) = (Arc::clone(&self.when_full), Arc::clone(&self.name));
        let done: DiskDone = Box::new(move |request, result, more| {
            let is_full = matches!(&result, Err(error) if
                matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
            done(request, result, more);
            // Only now: who is told may pause the device, which waits for the request.
            if is_full {
                tell(&name);
            }
        });
        self.disk.submit(request, done);
    }

    fn commit(&self) {
        self.disk.commit();
    }
}
