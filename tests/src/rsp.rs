//! A debugger's end of the GDB remote serial protocol, as far as tests need it (GDB manual, "Remote
//! Serial Protocol").

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest time that an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Places of registers in the answer to `g`: RBX and RIP.
pub mod register {
    /// RBX.
    pub const RBX: usize = 8;
    /// RIP.
    pub const RIP: usize = 16 * 8;
}

/// A debugger.
pub struct Debugger {
    stream: UnixStream,
    received: VecDeque<u8>,
}

impl Debugger {
    /// Connects to the Unix socket at `path`; the VM is paused then.
    ///
    /// # Panics
    /// When nobody listens there, or does not answer as a debugger's server.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut debugger = Self { stream, received: VecDeque::new() };
        let offer = debugger.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+");
        assert!(offer.contains("vContSupported+"), "{offer}");
        assert!(debugger.ask("?").starts_with("T05"));
        debugger
    }

    /// Sends a packet and gives the answer.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer()
    }

    /// Sends a packet.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        self.write(format!("${packet}#{sum:02x}").as_bytes());
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// When the connection fails.
    pub fn interrupt(&mut self) {
        self.write(&[3]);
    }

    /// The next packet that comes.
    ///
    /// # Panics
    /// When none comes.
    pub fn answer(&mut self) -> String {
        let mut packet = Vec::new();
        while self.byte() != b'$' {}
        loop {
            match self.byte() {
                b'#' => break,
                byte => packet.push(byte),
            }
        }
        // The checksum, which TCP and Unix sockets make needless.
        self.byte();
        self.byte();
        // A server whose VM has ended may be gone already.
        let _ = self.stream.write_all(b"+");
        expand(&packet)
    }

    /// All registers.
    ///
    /// # Panics
    /// When the answer is none.
    pub fn registers(&mut self) -> Vec<u8> {
        bytes(&self.ask("g"))
    }

    /// One register, by its place.
    ///
    /// # Panics
    /// When the answer is none.
    pub fn register(&mut self, place: usize) -> u64 {
        word(&self.registers()[place..])
    }

    /// Replaces one register.
    ///
    /// # Panics
    /// When that is refused.
    pub fn set_register(&mut self, place: usize, value: u64) {
        let mut all = self.registers();
        all[place..place + 8].copy_from_slice(&value.to_le_bytes());
        let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("G{hex}")), "OK");
    }

    /// Reads guest-virtual memory.
    ///
    /// # Panics
    /// When it is not there.
    pub fn memory(&mut self, address: u64, len: usize) -> Vec<u8> {
        bytes(&self.ask(&format!("m{address:x},{len:x}")))
    }

    /// Gives the command to gdb's `monitor`; what it printed.
    ///
    /// # Panics
    /// When the answer is none.
    pub fn monitor(&mut self, command: &str) -> String {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.send(&format!("qRcmd,{hex}"));
        let mut printed = Vec::new();
        loop {
            let answer = self.answer();
            match answer.strip_prefix('O') {
                Some("K") => return String::from_utf8_lossy(&printed).into_owned(),
                Some(text) => printed.extend(bytes(text)),
                None => panic!("monitor {command}: {answer}"),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server listens");
    }

    fn byte(&mut self) -> u8 {
        while self.received.is_empty() {
            let mut buffer = [0; 4096];
            let len = self.stream.read(&mut buffer).expect("an answer in time");
            assert_ne!(len, 0, "the server has closed the connection");
            self.received.extend(&buffer[..len]);
        }
        self.received.pop_front().unwrap_or_default()
    }
}

/// Undoes the run-length encoding.
fn expand(packet: &[u8]) -> String {
    let mut text = String::new();
    let mut bytes = packet.iter();
    while let Some(byte) = bytes.next() {
        match (*byte, text.chars().last(), bytes.as_slice().first()) {
            (b'*', Some(last), Some(count)) => {
                text.extend(std::iter::repeat_n(last, usize::from(count - 29)));
                bytes.next();
            }
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    (0..hex.len())
        .step_by(2)
        .map(|at| byte(at).unwrap_or_else(|| panic!("{hex:?} is not hexadecimal")))
        .collect()
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"))
}
