//! The program in a terminal: a pseudo-terminal whose other side is the test.

use std::fs::{File, OpenOptions};
use std::process::{Child, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::guests;
use crate::support::{Kernel, read_until, send, signal, wait};

/// A pseudo-terminal.
struct Terminal {
    user: File,
    program: File,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("openpt");
        grantpt(&user).expect("grantpt");
        unlockpt(&user).expect("unlockpt");
        let name = ptsname(&user, Vec::new()).expect("ptsname");
        let path = name.to_str().expect("path");
        let program = OpenOptions::new().read(true).write(true).open(path).expect("terminal");
        Self { user: user.into(), program }
    }

    fn start(&self, kernel: &Kernel) -> Child {
        let side = || Stdio::from(self.program.try_clone().expect("clone"));
        let mut command = kernel.command(&[]);
        command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("spawn")
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.program).expect("tcgetattr").local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ISIG)
    }
}

#[test]
fn ctrl_a_x_ends_the_vm_and_the_terminal_is_as_before() {
    let mut terminal = Terminal::new();
    let kernel = Kernel::new(&guests::print_and_spin("up"));
    let mut child = terminal.start(&kernel);
    read_until(&mut terminal.user, "up");
    assert!(terminal.is_raw());
    send(&mut terminal.user, b"\x01x");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn keys_reach_the_guest_as_they_are() {
    let mut terminal = Terminal::new();
    let kernel = Kernel::new(&guests::echo());
    let mut child = terminal.start(&kernel);
    read_until(&mut terminal.user, ".");
    // Ctrl-C is the guest's, Ctrl-A Ctrl-A a Ctrl-A, Ctrl-A H is help.
    send(&mut terminal.user, b"a\x03b\x01\x01c");
    read_until(&mut terminal.user, "a\x03b\x01c");
    send(&mut terminal.user, b"\x01h");
    read_until(&mut terminal.user, "this help");
    send(&mut terminal.user, b"q");
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn the_terminal_is_given_back_however_the_vm_ends() {
    for (guest, ending, expected) in [
        (guests::print("up"), None, 0),
        (guests::print_and_sleep("up"), Some("INT"), 130),
        (guests::print_and_sleep("up"), Some("HUP"), 129),
    ] {
        let mut terminal = Terminal::new();
        let kernel = Kernel::new(&guest);
        let mut child = terminal.start(&kernel);
        read_until(&mut terminal.user, "up");
        if let Some(name) = ending {
            signal(&child, name);
        }
        assert_eq!(wait(&mut child).code(), Some(expected));
        assert!(!terminal.is_raw());
    }
}

#[test]
fn messages_are_legible_in_a_raw_terminal() {
    let mut terminal = Terminal::new();
    let kernel = Kernel::new(&guests::triple_fault());
    let mut child = terminal.start(&kernel);
    let text = read_until(&mut terminal.user, "cr3 0x0");
    assert!(text.contains("ringfence: error: triple fault"), "{text}");
    assert_eq!(wait(&mut child).code(), Some(3));
}
