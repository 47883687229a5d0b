//! The console of a managed VM: a log, a scroll-back, any number of viewers and one writer.
//!
//! What the guest writes goes into a ring; the log's thread and every viewer read from it at their
//! own pace. The guest waits for the log only, which is a file; a viewer that is too slow loses what
//! it did not read in time, and is told so.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use lifecycle::ConsoleOutput;
use tokio::sync::Notify;
use vms::{VmDir, member};

/// Bytes of scroll-back.
const RING: usize = 256 << 10;
/// So much may wait for the log before the guest waits too.
const UNLOGGED: u64 = 128 << 10;
/// Size at which the log is begun anew; the one before it is kept.
const LOG_LIMIT: u64 = 1 << 20;

/// The console of a VM.
pub struct ConsoleHub {
    state: Mutex<State>,
    /// For the log's thread, and a guest that waits for it.
    changed: Condvar,
    /// For viewers.
    news: Notify,
    /// Somebody writes to the guest.
    writer: AtomicBool,
    log: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    ring: VecDeque<u8>,
    /// Bytes that ever went through the ring.
    end: u64,
    /// Bytes that are in the log.
    logged: u64,
    finished: bool,
}

impl State {
    /// The bytes from `from` on, how many before them are lost, and where they end.
    fn read(&self, from: u64, most: usize) -> (Vec<u8>, u64, u64) {
        let start = self.end - self.ring.len() as u64;
        let at = from.clamp(start, self.end);
        let skip = (at - start) as usize;
        let bytes: Vec<u8> = self.ring.iter().skip(skip).take(most).copied().collect();
        let next = at + bytes.len() as u64;
        (bytes, start.saturating_sub(from), next)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.ring.extend(bytes);
        let surplus = self.ring.len().saturating_sub(RING);
        self.ring.drain(..surplus);
        self.end += bytes.len() as u64;
    }
}

impl ConsoleHub {
    /// The console of the VM in `dir`, which goes on with the log that is there.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn start(dir: &Arc<VmDir>) -> io::Result<Arc<Self>> {
        let log = Log::open(dir)?;
        let mut state = State::default();
        state.push(&log.tail()?);
        state.logged = state.end;
        let hub = Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            news: Notify::new(),
            writer: AtomicBool::new(false),
            log: Mutex::default(),
        });
        let logged = Arc::clone(&hub);
        let thread = thread::Builder::new().name("console log".to_owned());
        let thread = thread.spawn(move || logged.write_log(log))?;
        *hub.log.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(hub)
    }

    /// No more output comes; returns when all of it is in the log.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
        self.news.notify_waiters();
        let thread = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }

    /// Where a viewer begins who wants to see `scroll_back` bytes of the past.
    pub(crate) fn position(&self, scroll_back: u64) -> u64 {
        let state = self.lock();
        state.end.saturating_sub(scroll_back.min(state.ring.len() as u64))
    }

    /// What comes from `position` on, as soon as there is something; none at the end.
    pub(crate) async fn next(&self, position: &mut u64) -> Option<Vec<u8>> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on no news is missed.
            news.as_mut().enable();
            {
                let state = self.lock();
                let (mut bytes, lost, next) = state.read(*position, 64 << 10);
                *position = next;
                if lost > 0 {
                    let note =
                        format!("\r\n[{lost} bytes were lost: this viewer was too slow]\r\n");
                    bytes.splice(..0, note.into_bytes());
                }
                match bytes.is_empty() {
                    false => return Some(bytes),
                    true if state.finished => return None,
                    true => {}
                }
            }
            news.await;
        }
    }

    /// Becomes the writer, if there is none.
    pub(crate) fn claim_writer(self: &Arc<Self>) -> Option<Writer> {
        let free = !self.writer.swap(true, Ordering::AcqRel);
        free.then(|| Writer(Arc::clone(self)))
    }

    fn write_log(&self, mut log: Log) {
        let mut state = self.lock();
        loop {
            if state.logged < state.end {
                let (bytes, _, next) = state.read(state.logged, RING);
                drop(state);
                // A log that cannot be written, on a full disk, holds up nobody.
                let _ = log.append(&bytes);
                state = self.lock();
                state.logged = next;
                self.changed.notify_all();
            } else if state.finished {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleOutput for ConsoleHub {
    fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.end - state.logged > UNLOGGED && !state.finished {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.push(bytes);
        drop(state);
        self.changed.notify_all();
        self.news.notify_waiters();
    }
}

/// The right to write to the guest, until it is dropped.
pub(crate) struct Writer(Arc<ConsoleHub>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.writer.store(false, Ordering::Release);
    }
}

/// The log of the console: a file, and the one before it.
struct Log {
    dir: Arc<VmDir>,
    file: File,
    len: u64,
}

impl Log {
    fn open(dir: &Arc<VmDir>) -> io::Result<Self> {
        let mut file =
            File::options().create(true).append(true).read(true).open(dir.path(member::CONSOLE))?;
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { dir: Arc::clone(dir), file, len })
    }

    /// The last of it, for the scroll-back.
    fn tail(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.len.saturating_sub(RING as u64 / 4)))?;
        file.take(RING as u64 / 4).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= LOG_LIMIT {
            let (new, old) = (self.dir.path(member::CONSOLE), self.dir.path(member::OLD_CONSOLE));
            fs::rename(&new, old)?;
            self.file = File::options().create(true).append(true).read(true).open(new)?;
            self.len = 0;
        }
        self.len += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vms::{Store, VmRecord};

    use super::*;

    fn vm() -> (TempDir, Arc<VmDir>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().to_owned()).unwrap();
        let record = VmRecord::new(Vec::new(), "/".into(), "pc");
        let vm = store.create("vm", &record, |_| Ok::<_, vms::Error>(())).unwrap();
        (folder, Arc::new(vm))
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn read_all(hub: &ConsoleHub, scroll_back: u64) -> String {
        let mut position = hub.position(scroll_back);
        let mut all = Vec::new();
        while let Some(bytes) = wait(hub.next(&mut position)) {
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn viewers_see_the_past_they_ask_for_and_the_log_has_it_all() {
        let (_folder, vm) = vm();
        let hub = ConsoleHub::start(&vm).unwrap();
        hub.write(b"hello ");
        hub.write(b"world");
        hub.finish();
        assert_eq!(read_all(&hub, 5), "world");
        assert_eq!(read_all(&hub, u64::MAX), "hello world");
        assert_eq!(fs::read(vm.path(member::CONSOLE)).unwrap(), b"hello world");
        let again = ConsoleHub::start(&vm).unwrap();
        again.write(b"!");
        again.finish();
        assert_eq!(read_all(&again, u64::MAX), "hello world!", "the log outlives the process");
    }

    #[test]
    fn a_slow_viewer_is_told_what_it_lost() {
        let (_folder, vm) = vm();
        let hub = ConsoleHub::start(&vm).unwrap();
        let mut position = hub.position(0);
        for _ in 0..RING / 1024 + 1 {
            hub.write(&[b'x'; 1024]);
        }
        let seen = String::from_utf8(wait(hub.next(&mut position)).unwrap()).unwrap();
        assert!(seen.starts_with("\r\n[1024 bytes were lost"), "{}", &seen[..60]);
        hub.finish();
    }

    #[test]
    fn the_log_is_bounded() {
        let (_folder, vm) = vm();
        let hub = ConsoleHub::start(&vm).unwrap();
        for _ in 0..3 * LOG_LIMIT / 4096 {
            hub.write(&[b'x'; 4096]);
        }
        hub.finish();
        for log in [member::CONSOLE, member::OLD_CONSOLE] {
            let len = fs::metadata(vm.path(log)).unwrap().len();
            assert!((1..=LOG_LIMIT + RING as u64).contains(&len), "{len}");
        }
    }

    #[test]
    fn there_is_one_writer() {
        let (_folder, vm) = vm();
        let hub = ConsoleHub::start(&vm).unwrap();
        let writer = hub.claim_writer();
        assert!(writer.is_some() && hub.claim_writer().is_none());
        drop(writer);
        assert!(hub.claim_writer().is_some());
        hub.finish();
    }
}
