//! Jobs with processes, signals and files.

use std::arch::asm;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::compute;
use crate::random::{Digest, Random, mix};
use crate::sys::{self, Mapping, PAGE, protection, signal};
use crate::violation;

/// The program itself, for children.
const SELF: &str = "/proc/self/exe";

/// Forks while other threads write: a child's memory stands still, and what a thread stored first
/// is in it if what it stored next is.
pub fn forks(seed: u64, threads: usize) -> u64 {
    const FORKS: u64 = 4;
    const BUSY: usize = PAGE / 8;
    let area = Mapping::private(2 * threads, protection::WRITE);
    let children = Mapping::shared(1, protection::WRITE);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 1..threads {
            let (area, done) = (&area, &done);
            scope.spawn(move || {
                let (first, second) =
                    (area.word(2 * thread * BUSY), area.word((2 * thread + 1) * BUSY));
                let mut value = 0;
                while !done.load(Ordering::Relaxed) {
                    value += 1;
                    first.store(value, Ordering::Release);
                    second.store(value, Ordering::Release);
                }
            });
        }
        for fork in 0..FORKS {
            area.word(0).store(fork + 1, Ordering::Relaxed);
            let pid = sys::fork_child(|| frozen(&area, &children, threads, fork));
            area.word(0).store(0, Ordering::Relaxed);
            match sys::wait_child(pid) {
                Some(0) => {}
                Some(status) => violation(&format!("a child's memory changed ({status})")),
                None => violation("a child was killed"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    (0..FORKS as usize).map(|fork| children.word(fork).load(Ordering::Relaxed)).fold(seed, mix)
}

/// In a child: 0 if its memory is as it was at the fork.
fn frozen(area: &Mapping, children: &Mapping, threads: usize, fork: u64) -> u8 {
    const BUSY: usize = PAGE / 8;
    let value = |page: usize| area.word(page * BUSY).load(Ordering::Acquire);
    for _ in 0..20 {
        let sum = || (0..2 * threads).fold(0_u64, |sum, page| sum.wrapping_add(value(page)));
        let before = sum();
        for _ in 0..2000 {
            std::hint::spin_loop();
        }
        if sum() != before {
            return 1;
        }
    }
    for thread in 1..threads {
        let (first, second) = (value(2 * thread), value(2 * thread + 1));
        if first != second && first != second + 1 {
            return 2;
        }
    }
    if value(0) != fork + 1 {
        return 3;
    }
    children.word(fork as usize).store(mix(fork, 77), Ordering::Relaxed);
    0
}

/// Sends bytes through a child and back, and has a child compute.
pub fn children(seed: u64) -> u64 {
    let mut random = Random::new(seed);
    let bytes = random.bytes(30_000);
    let mut child = Command::new(SELF)
        .args(["--child", "invert"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child starts");
    let (mut to, mut from) =
        (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let mut returned = Vec::new();
    thread::scope(|scope| {
        let bytes = &bytes;
        scope.spawn(move || to.write_all(bytes).expect("the child reads"));
        from.read_to_end(&mut returned).expect("the child writes");
    });
    if !child.wait().expect("the child ends").success() {
        violation("a child failed");
    }
    if !returned.iter().copied().eq(bytes.iter().map(|byte| !byte)) {
        violation("bytes changed in a pipe");
    }
    let output = Command::new(SELF).args(["--child", &seed.to_string()]).output();
    let output = output.expect("a child starts");
    let mut digest = Digest::default();
    digest.add_bytes(&returned);
    digest.add_bytes(&output.stdout);
    digest.value()
}

/// What a child does: `invert` its input, or compute from a seed.
pub fn child(task: &str) {
    let mut output = std::io::stdout();
    if task == "invert" {
        let mut bytes = [0; 1000];
        loop {
            let count = std::io::stdin().read(&mut bytes).expect("the parent writes");
            if count == 0 {
                return;
            }
            bytes[..count].iter_mut().for_each(|byte| *byte = !*byte);
            output.write_all(&bytes[..count]).expect("the parent reads");
            output.flush().expect("the parent reads");
        }
    }
    let seed = task.parse().expect("a seed");
    writeln!(output, "{:016x}", compute::integers(seed)).expect("the parent reads");
}

/// Two threads talk through a Unix socket.
pub fn sockets(seed: u64) -> u64 {
    let (mut near, mut far) = UnixStream::pair().expect("a socket pair");
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut message = [0; 64];
            while far.read_exact(&mut message).is_ok() {
                message.reverse();
                far.write_all(&message).expect("the other end reads");
            }
        });
        let mut random = Random::new(seed);
        let mut digest = Digest::default();
        for _ in 0..60 {
            let sent = random.bytes(64);
            near.write_all(&sent).expect("the other end reads");
            let mut received = [0; 64];
            near.read_exact(&mut received).expect("the other end writes");
            if !received.iter().rev().eq(&sent) {
                violation("bytes changed in a socket");
            }
            digest.add_bytes(&received);
        }
        drop(near);
        digest.value()
    })
}

thread_local! {
    static SIGNALS: AtomicU64 = const { AtomicU64::new(0) };
}

/// SIGUSR1 and SIGTRAP: counts.
pub extern "C" fn on_signal(_: i32) {
    SIGNALS.with(|count| count.fetch_add(1, Ordering::Relaxed));
}

/// SIGALRM: leaves other values in the vector and x87 registers, which the interrupted code must
/// not see.
pub extern "C" fn on_alarm(_: i32) {
    // SAFETY: only registers change that the compiler is told of; the x87 stack is empty again.
    unsafe {
        asm!(
            "pcmpeqd xmm0, xmm0",
            "movdqa xmm1, xmm0",
            "movdqa xmm7, xmm0",
            "movdqa xmm15, xmm0",
            "fninit",
            "fldpi",
            "fstp st(0)",
            out("xmm0") _, out("xmm1") _, out("xmm7") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nomem, nostack),
        );
    }
}

/// Signals that the thread sends itself, and breakpoints.
pub fn signals(seed: u64) -> u64 {
    const TIMES: u64 = 40;
    let before = SIGNALS.with(|count| count.load(Ordering::Relaxed));
    for _ in 0..TIMES {
        sys::raise(signal::USER);
        // SAFETY: SIGTRAP has a handler, after which the program goes on behind the instruction.
        unsafe { asm!("int3") };
    }
    let count = SIGNALS.with(|count| count.load(Ordering::Relaxed)) - before;
    if count != 2 * TIMES {
        violation(&format!("{count} signals instead of {}", 2 * TIMES));
    }
    mix(seed, count)
}

/// Many short threads with memory of their own.
pub fn threads(seed: u64) -> u64 {
    let running: Vec<_> = (0..12)
        .map(|index| thread::spawn(move || compute::integers(mix(seed, index)) ^ signals(index)))
        .collect();
    running.into_iter().map(|thread| thread.join().expect("no panic")).fold(seed, mix)
}

/// Writes, reads, maps, renames and removes a file in `folder`.
pub fn files(seed: u64, folder: &Path) -> u64 {
    const LEN: usize = 64 << 10;
    let mut random = Random::new(seed);
    // Another run with the same seed may use the folder, too.
    let name = format!("{}-{seed:x}", std::process::id());
    let (path, other) = (folder.join(&name), folder.join(name + ".new"));
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(&path).expect("a new file");
    let mut expected = vec![0; LEN];
    file.set_len(LEN as u64).expect("a file grows");
    let mapping = Mapping::of_file(&file, LEN / PAGE, protection::WRITE);
    for _ in 0..60 {
        let count = random.index(5000);
        let (at, bytes) = (random.index(LEN - count), random.bytes(count));
        expected[at..at + count].copy_from_slice(&bytes);
        if random.below(3) == 0 {
            mapping.write(at, &bytes);
        } else {
            file.seek(SeekFrom::Start(at as u64)).expect("a place in the file");
            file.write_all(&bytes).expect("room in the file system");
        }
    }
    fs::rename(&path, &other).expect("a file can be renamed");
    let mut found = Vec::new();
    File::open(&other).and_then(|mut file| file.read_to_end(&mut found)).expect("the file");
    if found != expected || mapping.read(0, LEN) != expected {
        violation("a file or its mapping differs from what was written");
    }
    fs::remove_file(&other).expect("a file can be removed");
    let mut digest = Digest::default();
    digest.add_bytes(&found);
    digest.value()
}
