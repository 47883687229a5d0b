//! Everything that a guest sends and gets, in a file for tcpdump and Wireshark.
//!
//! The form is pcap (draft-ietf-opsawg-pcap) with times in microseconds. Frames are written as guest
//! and network exchange them: larger than a wire would carry, and with checksums that are to be
//! completed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use backend::{Counter, Frame, NetBackend, Offload, Wake};

/// The longest frame that a reader has to expect.
const SNAP_LENGTH: u32 = 1 << 18;
/// Ethernet.
const LINK_TYPE: u32 = 1;

/// A file of captured frames, which several networks may share. What the file's place has no room
/// for is left out, and counted.
pub struct CaptureFile(Mutex<Output>);

struct Output {
    file: BufWriter<File>,
    frames: u64,
    lost: u64,
}

impl CaptureFile {
    /// Begins a capture in `file`, which is empty.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(file: File) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut header = [0; 24];
        header[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        header[4..6].copy_from_slice(&2_u16.to_le_bytes());
        header[6..8].copy_from_slice(&4_u16.to_le_bytes());
        header[16..20].copy_from_slice(&SNAP_LENGTH.to_le_bytes());
        header[20..].copy_from_slice(&LINK_TYPE.to_le_bytes());
        file.write_all(&header)?;
        file.flush()?;
        Ok(Self(Mutex::new(Output { file, frames: 0, lost: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, parts: &[&[u8]]) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = parts.iter().map(|part| part.len() as u32).sum::<u32>();
        let fields = [time.as_secs() as u32, time.subsec_micros(), len, len];
        let mut header = [0; 16];
        for (to, field) in header.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        let mut output = self.lock();
        let all = std::iter::once(&header[..]).chain(parts.iter().copied());
        let mut written = Ok(());
        for part in all {
            written = written.and_then(|()| output.file.write_all(part));
        }
        match written {
            Ok(()) => output.frames += 1,
            Err(_) => output.lost += 1,
        }
    }

    fn flush(&self) {
        let mut output = self.lock();
        if output.file.flush().is_err() {
            output.lost += 1;
        }
    }
}

/// A network whose frames are captured.
pub struct Capture {
    inner: Arc<dyn NetBackend>,
    file: Arc<CaptureFile>,
}

impl Capture {
    /// Captures what goes to and comes from `inner`.
    pub fn new(inner: Arc<dyn NetBackend>, file: Arc<CaptureFile>) -> Self {
        Self { inner, file }
    }
}

impl NetBackend for Capture {
    fn mtu(&self) -> Option<u16> {
        self.inner.mtu()
    }

    fn send(&self, frame: &mut [u8], offload: Offload) {
        self.file.write(&[frame]);
        self.inner.send(frame, offload);
    }

    fn sent(&self) {
        self.file.flush();
        self.inner.sent();
    }

    fn receive(&self) -> Option<Frame> {
        let frame = self.inner.receive();
        match &frame {
            Some(frame) => self.file.write(&[&frame.head, &frame.body]),
            None => self.file.flush(),
        }
        frame
    }

    fn connect(&self, wake: Wake) {
        self.inner.connect(wake);
    }

    fn reset(&self) {
        self.inner.reset();
    }

    fn counters(&self) -> Vec<Counter> {
        let mut all = self.inner.counters();
        let output = self.file.lock();
        let own = [("captured", output.frames), ("capture_lost", output.lost)];
        all.extend(own.map(|(name, count)| Counter { name: name.to_owned(), count }));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Echo(Mutex<Option<Frame>>);

    impl NetBackend for Echo {
        fn send(&self, frame: &mut [u8], offload: Offload) {
            *self.0.lock().unwrap() =
                Some(Frame { offload, head: frame.to_vec(), ..Frame::default() });
        }

        fn receive(&self) -> Option<Frame> {
            self.0.lock().unwrap().take()
        }

        fn connect(&self, _wake: Wake) {}
    }

    #[test]
    fn both_directions_are_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        let file = Arc::new(CaptureFile::new(File::create(&path).unwrap()).unwrap());
        let net = Capture::new(Arc::new(Echo(Mutex::new(None))), file);
        net.send(&mut [7; 60], Offload::default());
        assert_eq!(net.receive().unwrap().head, [7; 60]);
        assert!(net.receive().is_none());
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 2 * (16 + 60));
        assert_eq!(bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!((bytes[24 + 8], bytes[24 + 12], bytes[24 + 16 + 59]), (60, 60, 7));
        assert_eq!(net.counters()[0], Counter { name: "captured".to_owned(), count: 2 });
    }
}
