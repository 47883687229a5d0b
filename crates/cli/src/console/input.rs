//! From standard input to the guest's console.
//!
//! One thread reads, one offers what was read to the guest. So the escape keys work also while
//! the guest takes nothing.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use lifecycle::ConsoleInput;
use rustix::event::PollFlags;

use super::escape::{Escapes, Key};
use super::output::wait_for;

/// Bytes that wait for the guest. More typed keys are lost; a pipe is read no further.
const LIMIT: usize = 64 << 10;
/// A guest that takes nothing is asked again after this time, then less and less often.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// What input comes from, and who is told of escape keys.
pub enum Source {
    /// A terminal: escape keys are looked for.
    Terminal(Box<dyn Fn(Key) + Send>),
    /// Anything else: every byte is the guest's.
    Stream,
}

/// Starts to feed `guest` from `file`. The threads end with the input or with the process.
///
/// # Errors
/// When the host has no threads for it.
pub fn start(
    file: impl Read + AsFd + Send + 'static,
    source: Source,
    guest: Arc<dyn ConsoleInput>,
) -> io::Result<()> {
    let queue = Arc::new(Queue::default());
    let fed = Arc::clone(&queue);
    let feeder = thread::Builder::new().name("console in".to_owned());
    feeder.spawn(move || feed(&fed, &*guest))?;
    let reader = thread::Builder::new().name("console keys".to_owned());
    reader.spawn(move || {
        // The end of the input is nothing special: the VM runs on without.
        let _ = read(file, &source, &queue);
        queue.close();
    })?;
    Ok(())
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    closed: bool,
}

impl Queue {
    /// Adds bytes, waiting for room.
    fn push_all(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.bytes.len() >= LIMIT {
            state = self.wait(state);
        }
        state.bytes.extend(bytes);
        self.changed.notify_all();
    }

    /// Adds a byte if there is room.
    fn offer(&self, byte: u8) {
        let mut state = self.lock();
        if state.bytes.len() < LIMIT {
            state.bytes.push_back(byte);
            self.changed.notify_all();
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The first bytes, as soon as there are any; none at the end.
    fn front(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.bytes.is_empty() {
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
        Some(state.bytes.iter().take(4096).copied().collect())
    }

    fn remove(&self, count: usize) {
        let mut state = self.lock();
        let count = count.min(state.bytes.len());
        state.bytes.drain(..count);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(mut file: impl Read + AsFd, source: &Source, queue: &Queue) -> io::Result<()> {
    let mut escapes = Escapes::default();
    let mut buffer = [0; 4096];
    loop {
        let bytes = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => &buffer[..count],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(&file, PollFlags::IN)?;
                continue;
            }
            Err(e) => return Err(e),
        };
        match source {
            Source::Stream => queue.push_all(bytes),
            Source::Terminal(tell) => {
                for key in bytes.iter().filter_map(|b| escapes.feed(*b)) {
                    match key {
                        Key::Guest(byte) => queue.offer(byte),
                        other => tell(other),
                    }
                }
            }
        }
    }
}

fn feed(queue: &Queue, guest: &dyn ConsoleInput) {
    let mut wait = FIRST_WAIT;
    while let Some(bytes) = queue.front() {
        match guest.push(&bytes) {
            0 => {
                thread::sleep(wait);
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            taken => {
                queue.remove(taken);
                wait = FIRST_WAIT;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    /// A guest that takes a few bytes at a time, when it takes any.
    #[derive(Default)]
    struct Guest {
        taken: Mutex<Vec<u8>>,
        deaf: std::sync::atomic::AtomicBool,
    }

    impl ConsoleInput for Guest {
        fn push(&self, bytes: &[u8]) -> usize {
            if self.deaf.load(std::sync::atomic::Ordering::Relaxed) {
                return 0;
            }
            let count = bytes.len().min(3);
            self.taken.lock().unwrap().extend(&bytes[..count]);
            count
        }

        fn room(&self) -> usize {
            3
        }
    }

    fn wait_until(guest: &Guest, expected: &[u8]) {
        let start = Instant::now();
        while *guest.taken.lock().unwrap() != expected {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", guest.taken.lock());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_stream_arrives_whole_with_its_ctrl_a() {
        let (reader, mut writer) = pipe().unwrap();
        let guest = Arc::new(Guest::default());
        start(reader, Source::Stream, Arc::clone(&guest) as _).unwrap();
        writer.write_all(b"echo \x01x and more\n").unwrap();
        drop(writer);
        wait_until(&guest, b"echo \x01x and more\n");
    }

    #[test]
    fn escape_keys_work_while_the_guest_takes_nothing() {
        let (reader, mut writer) = pipe().unwrap();
        let guest = Arc::new(Guest::default());
        guest.deaf.store(true, std::sync::atomic::Ordering::Relaxed);
        let (sender, keys) = channel();
        let tell = Box::new(move |key| sender.send(key).unwrap());
        start(reader, Source::Terminal(tell), Arc::clone(&guest) as _).unwrap();
        writer.write_all(&vec![b'k'; 2 * LIMIT]).unwrap();
        writer.write_all(b"\x01h\x01x").unwrap();
        let key = || keys.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((key(), key()), (Key::Help, Key::End));
        guest.deaf.store(false, std::sync::atomic::Ordering::Relaxed);
        wait_until(&guest, &vec![b'k'; LIMIT]);
    }
}
