//! Runs a fuzz target of `fuzz/`.
//!
//! The targets are a workspace of their own, since they need a nightly compiler: coverage
//! counters and the address sanitizer are unstable options. The flags are those of cargo-fuzz,
//! which so need not be installed.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::{has_program, root, run as run_command};

/// Counters for every edge and comparison, 8 bit wide, as libFuzzer reads them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Zsanitizer=address -Cdebug-assertions --cfg fuzzing";

/// Sanitizers cannot be built into build scripts, which a named target keeps apart.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Args)]
pub struct Options {
    /// The target; without one they are listed
    target: Option<String>,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Largest input in bytes
    #[arg(long, default_value_t = 4096)]
    max_len: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let known = targets()?;
    let Some(target) = &options.target else {
        println!("{}", known.join("\n"));
        return Ok(());
    };
    if !known.contains(target) {
        bail!("no fuzz target {target}; there are {}", known.join(", "));
    }
    if !has_program("c++") {
        bail!("the fuzzer needs a C++ compiler: apt-get install g++");
    }
    let folder = root().join("fuzz");
    let corpus = folder.join("corpus").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let mut command = Command::new("cargo");
    command
        .current_dir(&folder)
        .args(["+nightly", "run", "--release", "--target", TARGET, "--bin", target, "--"])
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-max_len={}", options.max_len))
        // An input that takes this long is a hang.
        .arg("-timeout=10")
        .env("RUSTFLAGS", COVERAGE)
        // The cargo that runs this has chosen its own toolchain for its children.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    run_command(&mut command)
}

/// The targets, by their files.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).context("cannot list fuzz/fuzz_targets")? {
        let path = entry?.path();
        let name = path.file_stem().context("a file has a name")?;
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
