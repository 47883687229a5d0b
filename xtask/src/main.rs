//! Developer verbs: `cargo xtask ci|tidy|test|bench|boots|stress|fuzz|vmlinux|dump-block`.
//!
//! Few entry points, each one command that does everything: what continuous integration runs is
//! `cargo xtask test`, and what a developer runs before a commit is `cargo xtask ci`.
//!
//! [`workspace`] knows where things are and starts cargo; [`tidy`] tests the repository itself;
//! [`bench`] measures guests beside other machines; [`boots`] boots stock kernels time and again; [`stress`] compares a guest that has several
//! vCPUs with the host; [`fuzz`] runs the fuzz targets of `fuzz/`; [`dump_block`] shows what the
//! translator makes of guest code.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command-line tool reports on standard output")]

mod bench;
mod boots;
mod ci;
mod dump_block;
mod fuzz;
mod stress;
mod test;
mod tidy;
mod vmlinux;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer verbs of Ringfence", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Format check, clippy, tidy and all tests: what must pass before a commit
    Ci,
    /// Test the repository itself: layers, unsafe policy, file lengths, orphans, dependencies
    Tidy,
    /// Install what the tests need, then run all tests, whole-VM tests included
    Test(test::Options),
    /// Measure the interpreter and the boot time, or the guest benchmark suite, beside QEMU
    Bench(bench::Options),
    /// Boot stock kernels time and again, with several numbers of CPUs
    Boots(boots::Options),
    /// Run the stress program in a guest with several vCPUs, compared with the host
    Stress(stress::Options),
    /// Run a fuzz target (without a name: list them); needs a nightly toolchain and a C++ compiler
    Fuzz(fuzz::Options),
    /// Unpack the ELF kernel of a bzImage, for booting through its PVH entry
    Vmlinux(vmlinux::Options),
    /// Show guest code beside the host code that the translator makes of it
    DumpBlock(dump_block::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Ci => ci::run(),
        Verb::Tidy => tidy::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Boots(options) => boots::run(&options),
        Verb::Stress(options) => stress::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Vmlinux(options) => vmlinux::run(&options),
        Verb::DumpBlock(options) => dump_block::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
