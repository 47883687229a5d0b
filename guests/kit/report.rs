//! Counting and printing of checks, and the exit status.
//!
//! One line for each check: `PASS name`, `FAIL name: expected .. got ..` or
//! `SKIP name: why`; the last line is `N passed, N failed, N skipped`. The
//! program then writes to the debug-exit port 0xf4: 0 if nothing failed,
//! else 1 (a virtual machine monitor turns v into exit status `(v << 1) | 1`).

use crate::port::out8;
use crate::println;
use core::fmt::{self, Debug, Display};

const DEBUG_EXIT: u16 = 0xf4;
/// A table prints at most this many of its failures.
const TABLE_FAILURES_SHOWN: u32 = 12;

/// The running totals of a program.
pub struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    pub(crate) const fn new() -> Self {
        Self { passed: 0, failed: 0, skipped: 0 }
    }

    /// One check: the value must be as expected.
    pub fn eq<T: PartialEq + Debug>(&mut self, name: impl Display, got: T, expected: T) {
        if got == expected {
            self.passed += 1;
            println!("PASS {name}");
        } else {
            self.failed += 1;
            println!("FAIL {name}: expected {expected:x?} got {got:x?}");
        }
    }

    /// One check: the condition must hold.
    pub fn that(&mut self, name: impl Display, holds: bool) {
        self.eq(name, holds, true);
    }

    /// One check where several values are allowed; `got` is printed on failure.
    pub fn holds<T: Debug>(&mut self, name: impl Display, got: T, rule: impl Fn(&T) -> bool) {
        if rule(&got) {
            self.passed += 1;
            println!("PASS {name}");
        } else {
            self.failed += 1;
            println!("FAIL {name}: expected the rule of the check to hold got {got:x?}");
        }
    }

    /// Counts a check that the machine offers no ground for.
    pub fn skip(&mut self, name: impl Display, why: impl Display) {
        self.skipped += 1;
        println!("SKIP {name}: {why}");
    }

    /// Starts a table: many cases that make one check.
    pub fn table<'a>(&'a mut self, name: &'a str) -> Table<'a> {
        Table { report: self, name, cases: 0, bad: 0 }
    }

    pub(crate) fn finish(&self) -> ! {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        exit(u8::from(self.failed != 0))
    }
}

/// Many similar cases that count as one check; only failing ones are printed.
pub struct Table<'a> {
    report: &'a mut Report,
    name: &'a str,
    cases: u32,
    bad: u32,
}

impl Table<'_> {
    /// One case of the table.
    pub fn eq<T: PartialEq + Debug>(&mut self, case: fmt::Arguments<'_>, got: T, expected: T) {
        self.cases += 1;
        if got == expected {
            return;
        }
        self.bad += 1;
        if self.bad <= TABLE_FAILURES_SHOWN {
            println!("     {} [{case}]: expected {expected:x?} got {got:x?}", self.name);
        }
    }

    /// Ends the table and prints its verdict.
    pub fn finish(self) {
        if self.bad == 0 && self.cases > 0 {
            self.report.passed += 1;
            println!("PASS {} ({} cases)", self.name, self.cases);
        } else {
            self.report.failed += 1;
            println!("FAIL {}: expected 0 bad cases got {} of {}", self.name, self.bad, self.cases);
        }
    }
}

/// Ends a program that cannot go on.
pub fn abort(why: fmt::Arguments<'_>) -> ! {
    println!("FAIL program: expected a regular end got {why}");
    println!("0 passed, 1 failed, 0 skipped");
    exit(1)
}

/// Leaves the machine with the given debug-exit value.
pub fn exit(value: u8) -> ! {
    out8(DEBUG_EXIT, value);
    loop {
        crate::cpu::halt_forever();
    }
}
