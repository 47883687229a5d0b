//! Standard input and output that are no terminal.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::guests;
use crate::support::{Kernel, read_until, send, signal, stderr, wait};

#[test]
fn only_the_guests_output_goes_to_standard_output() {
    let output = Kernel::new(&guests::print("hello\n")).run(&[]);
    assert_eq!(output.stdout, b"hello\n");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn the_last_byte_arrives() {
    let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(Kernel::new(&guests::print(&text)).run(&[]).stdout, text.as_bytes());
}

#[test]
fn standard_input_is_the_guests() {
    let kernel = Kernel::new(&guests::echo());
    let mut child = kernel.command(&[]).stdin(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), ".");
    // Escape keys are nothing special in a pipe.
    send(child.stdin.as_mut().unwrap(), b"some text \x01x and q");
    assert_eq!(wait(&mut child).code(), Some(0));
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "some text \x01x and q");
}

#[test]
fn input_may_come_before_the_guest_reads_and_end() {
    let kernel = Kernel::new(&guests::echo());
    let input = kernel.path("input");
    std::fs::write(&input, "x".repeat(5000) + "q").unwrap();
    let output = kernel.command(&[]).stdin(std::fs::File::open(input).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout.len(), 5002);
}

#[test]
fn closed_streams_do_not_matter() {
    let kernel = Kernel::new(&guests::print("x"));
    let program = env!("CARGO_BIN_EXE_ringfence");
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let script = format!("exec \"$0\" run --memory 32M --kernel \"$1\" {closed}");
        let output =
            Command::new("sh").args(["-c", &script, program]).arg(kernel.path("kernel")).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(0), "{closed}: {}", stderr(&output));
    }
}

#[test]
fn a_vm_ends_although_its_reader_has_long_gone() {
    let kernel = Kernel::new(&guests::echo());
    let mut child = kernel.command(&[]).stdin(Stdio::piped()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), ".");
    drop(child.stdout.take());
    // What is written after that finds the output closed, well before the VM ends.
    send(child.stdin.as_mut().unwrap(), b"some text");
    std::thread::sleep(Duration::from_millis(300));
    send(child.stdin.as_mut().unwrap(), b"q");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_vm() {
    let kernel = Kernel::new(&guests::print_for_ever());
    let mut child = kernel.command(&[]).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "yyy");
    drop(child.stdout.take());
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the VM ended");
    signal(&child, "INT");
    assert_eq!(wait(&mut child).code(), Some(130));
}

#[test]
fn a_reader_that_stops_reading_does_not_keep_the_vm_from_ending() {
    let kernel = Kernel::new(&guests::print_for_ever());
    for (name, expected) in [("INT", 130), ("TERM", 143)] {
        let mut child = kernel.command(&[]).spawn().unwrap();
        read_until(child.stdout.as_mut().unwrap(), "yyy");
        // The pipe and the program's own buffer fill meanwhile.
        std::thread::sleep(Duration::from_millis(700));
        signal(&child, name);
        if name == "TERM" {
            std::thread::sleep(Duration::from_millis(100));
            signal(&child, name);
        }
        assert_eq!(wait(&mut child).code(), Some(expected));
    }
}
