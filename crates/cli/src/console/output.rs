//! From the guest's console to standard output.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use lifecycle::ConsoleOutput;
use rustix::event::{PollFd, PollFlags, poll};

/// Bytes that wait for a slow reader before the guest has to wait too.
const LIMIT: usize = 1 << 20;

/// The guest's console output, written by a thread as soon as it comes. When standard output is
/// closed or fails, what the guest writes is dropped and it runs on.
pub struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Nothing more comes.
    finished: bool,
    /// Nobody reads any more.
    abandoned: bool,
}

impl Output {
    /// Starts the thread that writes to `file`. It calls `done` when it ends: all is written
    /// after [`Output::finish`], or cannot be.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn start(file: File, done: impl FnOnce() + Send + 'static) -> io::Result<Arc<Self>> {
        let output = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&output);
        thread::Builder::new().name("console out".to_owned()).spawn(move || {
            writer.pass_on(&file);
            done();
        })?;
        Ok(output)
    }

    /// No more output comes: the thread ends when what waits is written.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Drops what waits and all that comes: nobody is held up any more.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.waiting.clear();
        self.changed.notify_all();
    }

    fn pass_on(&self, file: &File) {
        while let Some(bytes) = self.next() {
            if write_all(file, &bytes).is_err() {
                self.abandon();
                return;
            }
        }
    }

    /// What waits, as soon as there is something; none at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.finished || state.abandoned {
                return None;
            }
            state = self.wait(state);
        }
        self.changed.notify_all();
        Some(std::mem::take(&mut state.waiting))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleOutput for Output {
    fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.waiting.len() >= LIMIT && !state.abandoned {
            state = self.wait(state);
        }
        if !state.abandoned {
            state.waiting.extend(bytes);
            self.changed.notify_all();
        }
    }
}

/// Writes everything, also to a file that whoever shares it has made non-blocking.
fn write_all(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(&file, PollFlags::OUT)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits until `file` is ready for `what`, or has failed.
pub(super) fn wait_for(file: &impl AsFd, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, what)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn output() -> (Arc<Output>, PipeReader, Receiver<()>) {
        let (reader, writer) = pipe().unwrap();
        let (sender, done) = channel();
        let file = File::from(OwnedFd::from(writer));
        let output = Output::start(file, move || sender.send(()).unwrap()).unwrap();
        (output, reader, done)
    }

    #[test]
    fn a_byte_arrives_at_once() {
        let (output, mut reader, _done) = output();
        for byte in *b"ok" {
            output.write(&[byte]);
            let mut got = [0];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got, [byte]);
        }
    }

    #[test]
    fn everything_arrives_before_the_end() {
        let (output, mut reader, done) = output();
        let text: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let expected = text.clone();
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        text.chunks(7).for_each(|part| output.write(part));
        output.finish();
        done.recv_timeout(LONG).unwrap();
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn a_closed_reader_drops_output_and_holds_up_nobody() {
        let (output, reader, done) = output();
        drop(reader);
        for _ in 0..3 * LIMIT / 4096 {
            output.write(&[0; 4096]);
        }
        done.recv_timeout(LONG).unwrap();
        output.write(b"more");
    }

    #[test]
    fn abandoning_frees_a_guest_that_waits_for_a_stopped_reader() {
        let (output, _reader, _done) = output();
        let guest = {
            let output = Arc::clone(&output);
            thread::spawn(move || (0..3 * LIMIT / 4096).for_each(|_| output.write(&[0; 4096])))
        };
        thread::sleep(Duration::from_millis(50));
        assert!(!guest.is_finished(), "the guest did not have to wait");
        output.abandon();
        guest.join().unwrap();
    }

    #[test]
    fn a_non_blocking_file_is_waited_for() {
        let (mut reader, writer) = pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        let file = File::from(OwnedFd::from(writer));
        let writing = thread::spawn(move || write_all(&file, &[7; 500_000]).is_ok());
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(writing.join().unwrap() && all.len() == 500_000);
    }
}
