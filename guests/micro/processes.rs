//! Processes: how they are made, how they talk, and what a change from one to the next costs.

use std::ffi::CStr;
use std::hint::black_box;
use std::ptr::null;
use std::time::{Duration, Instant};

use crate::{Operation, Place, sys, timed};

/// A byte to another process and back by pipes.
pub fn pipe(_: &Place) -> Result<Operation, String> {
    let (there, back) = (sys::pipe(), sys::pipe());
    Ok(round_trips([there[1], back[0]], [there[0], back[1]]))
}

/// A byte to another process and back by a Unix stream socket.
pub fn unix_socket(_: &Place) -> Result<Operation, String> {
    let [here, there] = sys::socket_pair();
    Ok(round_trips([here, here], [there, there]))
}

/// A byte to another process and back. Each end has a descriptor to write to and one to read of,
/// the other process the reading one first.
fn round_trips(own: [usize; 2], other: [usize; 2]) -> Operation {
    let echo = Echo { child: sys::fork(|| echo(own, other)), own };
    close_all(other);
    timed(move || {
        // All of it, so that the process lives as long as the operation.
        let echo = &echo;
        sys::write_byte(echo.own[0]);
        sys::read_byte(echo.own[1]);
    })
}

/// The other process: answers until there is nothing more to read.
fn echo(foreign: [usize; 2], [input, output]: [usize; 2]) {
    close_all(foreign);
    while sys::read_byte(input) {
        sys::write_byte(output);
    }
}

/// A process that ends when the descriptors that it reads of are closed.
struct Echo {
    child: usize,
    own: [usize; 2],
}

impl Drop for Echo {
    fn drop(&mut self) {
        close_all(self.own);
        sys::wait(self.child);
    }
}

/// Closes both; they may be the same.
fn close_all([first, second]: [usize; 2]) {
    sys::close(first);
    if second != first {
        sys::close(second);
    }
}

/// `processes` processes hand a byte around by pipes, and each adds up `kilobytes` of its own when
/// it is its turn. The time of one hand-over, without that of the pipe and of the addition: a
/// single process does the same alone before.
pub fn switch(processes: usize, kilobytes: usize) -> Result<Operation, String> {
    let mut memory = vec![1_u64; kilobytes * 128];
    let alone = alone(&mut memory);
    let ring = Ring::new(processes, &mut memory);
    Ok(Box::new(move |count| {
        // All of it, so that the processes live as long as the operation.
        let ring = &ring;
        let rounds = count.div_ceil(processes as u64);
        let begin = Instant::now();
        for _ in 0..rounds {
            sys::write_byte(ring.output);
            sys::read_byte(ring.input);
            add_up(&mut memory);
        }
        // A round has as many hand-overs as there are processes.
        let each = begin.elapsed().as_secs_f64() / (rounds * processes as u64) as f64;
        Duration::from_secs_f64((each - alone).max(0.0) * count as f64)
    }))
}

/// Seconds of one hand-over of a process to itself: the fastest of some batches.
fn alone(memory: &mut [u64]) -> f64 {
    const BATCHES: usize = 10;
    const COUNT: u32 = 1000;
    let [input, output] = sys::pipe();
    let mut batch = || {
        let begin = Instant::now();
        for _ in 0..COUNT {
            sys::write_byte(output);
            sys::read_byte(input);
            add_up(memory);
        }
        begin.elapsed().as_secs_f64() / f64::from(COUNT)
    };
    let least = (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min);
    close_all([input, output]);
    least
}

/// Reads the memory and makes it differ, so that each process has pages of its own.
fn add_up(memory: &mut [u64]) {
    let sum = black_box(&*memory).iter().fold(0, |sum: u64, word| sum.wrapping_add(*word));
    if let Some(first) = memory.first_mut() {
        *first = sum;
    }
}

/// A ring of processes; this one is a part of it.
struct Ring {
    children: Vec<usize>,
    input: usize,
    output: usize,
}

impl Ring {
    fn new(processes: usize, memory: &mut [u64]) -> Self {
        let mut children = Vec::new();
        let [mut input, output] = sys::pipe();
        for _ in 1..processes {
            let [next, child_output] = sys::pipe();
            children.push(sys::fork(|| {
                close_all([output, next]);
                // Pages of its own before the first turn.
                memory.fill(1);
                while sys::read_byte(input) {
                    add_up(memory);
                    sys::write_byte(child_output);
                }
            }));
            close_all([input, child_output]);
            input = next;
        }
        Self { children, input, output }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The first child comes to the end of its pipe, ends, and so on around.
        close_all([self.output, self.input]);
        self.children.iter().for_each(|&child| sys::wait(child));
    }
}

/// A process that ends at once.
pub fn fork_exit(_: &Place) -> Result<Operation, String> {
    Ok(timed(|| sys::wait(sys::fork(|| {}))))
}

/// A process that becomes a program, which ends at once.
pub fn fork_exec(place: &Place) -> Result<Operation, String> {
    let program = place.program.clone();
    Ok(timed(move || run(&program, &[&program, c"--exit"])))
}

/// A process that becomes a shell with one command.
pub fn shell(place: &Place) -> Result<Operation, String> {
    let program = place.shell.clone().ok_or("no busybox was named")?;
    Ok(timed(move || run(&program, &[c"sh", c"-c", c"true"])))
}

/// Runs a program to its end.
fn run(program: &CStr, arguments: &[&CStr]) {
    let mut list = [null(); 4];
    for (entry, argument) in list.iter_mut().zip(arguments) {
        *entry = argument.as_ptr();
    }
    sys::wait(sys::fork(|| {
        sys::exec(program, &list);
        sys::exit(1);
    }));
}
