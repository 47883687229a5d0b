//! Measures guests on Ringfence beside other machines.
//!
//! `bench` boots the stock cloud kernel to GUEST-UP; `bench suite` runs `benches/guest/guest-bench.sh`
//! natively and in guests, `bench crypto` runs `openssl speed` there, `bench micro` the program of
//! `guests/micro`, `bench memory` looks at what the process of a VM occupies, and `bench vm` pauses,
//! saves, restores and copies VMs. Machines are measured in turn, run by run, so that whatever else
//! the host does meets all of them alike; what is reported are medians. Times are the host's, or are
//! compared with the host's: every line of output is dated when it arrives.
//!
//! [`machines`] knows the machines and starts them, [`capture`] dates their lines, [`boot`],
//! [`suite`], [`crypto`], [`micro`], [`memory`] and [`vm`] are the measurements, [`report`] makes medians
//! and tables.

mod boot;
pub mod capture;
mod crypto;
mod machines;
mod memory;
mod micro;
pub mod report;
mod suite;
mod vm;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum What {
    /// Time from the start of the program to GUEST-UP, and guest instructions per second (default)
    Boot,
    /// The ten parts of the guest benchmark, natively and in guests
    Suite {
        /// Multiplies the work of each part
        #[arg(long, default_value_t = 1)]
        scale: u32,
    },
    /// What openssl computes per second, natively and in guests: AES-128-GCM, SHA-256, SHA-512 and
    /// RSA-2048 signatures. Skipped where the host has no openssl
    Crypto {
        /// Time of each measurement, seconds
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// What single operations of a kernel cost, natively and in guests: system calls, faults,
    /// processes, interrupts, devices
    Micro {
        /// Measure nothing else, by its name in the table
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// What a VM costs the host in memory beyond its guest's, idle and busy
    Memory {
        /// How long after the guest is up, seconds
        #[arg(long, default_value_t = 20)]
        seconds: u32,
    },
    /// Pause, suspend, snapshot, restore, clone, change of engine of a guest under write load, and
    /// the cost of idle clones, beside QEMU's savevm and loadvm
    Vm {
        /// Clones of an idle guest of 128 MiB; 0 for none
        #[arg(long, default_value_t = 10)]
        clones: u32,
    },
}

/// What all measurements take.
#[derive(Args)]
struct Common {
    /// Runs of each machine
    #[arg(long, default_value_t = 3, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Engines of Ringfence to measure
    #[arg(long, default_value = "translator", value_delimiter = ',', global = true)]
    engines: Vec<String>,
    /// Leave QEMU out even where it is installed
    #[arg(long, global = true)]
    no_qemu: bool,
    /// A kernel other than the stock cloud kernel
    #[arg(long, value_name = "FILE", global = true)]
    kernel: Option<PathBuf>,
    /// A ringfence to measure instead of building one
    #[arg(long, value_name = "FILE", global = true)]
    ringfence: Option<PathBuf>,
    /// Memory of the guests, MiB
    #[arg(long, default_value_t = 512, global = true)]
    memory: u32,
    /// Longest time of one run, seconds
    #[arg(long, default_value_t = 3600, global = true)]
    timeout: u64,
    /// Also write the result as JSON
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        None | Some(What::Boot) => boot::run(&options.common),
        Some(What::Suite { scale }) => suite::run(&options.common, *scale),
        Some(What::Crypto { seconds }) => crypto::run(&options.common, *seconds),
        Some(What::Micro { only }) => micro::run(&options.common, only.as_deref()),
        Some(What::Memory { seconds }) => memory::run(&options.common, *seconds),
        Some(What::Vm { clones }) => vm::run(&options.common, *clones),
    }
}
