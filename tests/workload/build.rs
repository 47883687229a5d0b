//! Builds the stress program of `guests/stress` for the host and for guests alike: one static
//! executable in OUT_DIR, whose path is exported as `STRESS_PROGRAM`.
//!
//! Plain rustc does it, since cargo cannot link one package statically and the others not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let sources = Path::new(&var("CARGO_MANIFEST_DIR")).join("../../guests/stress");
    println!("cargo:rerun-if-changed={}", sources.display());
    println!("cargo:rerun-if-changed=build.rs");
    let program = PathBuf::from(var("OUT_DIR")).join("stress");
    let mut command = Command::new(var("RUSTC"));
    command.arg(sources.join("main.rs")).arg("-o").arg(&program);
    command.args(["--edition=2024", "--crate-name=stress", "--target"]).arg(var("TARGET"));
    command.args(["-Copt-level=2", "-Ctarget-feature=+crt-static", "-Cstrip=symbols"]);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().expect("rustc starts");
    assert!(status.success(), "the stress program does not build (rustc: {status})");
    println!("cargo:rustc-env=STRESS_PROGRAM={}", program.display());
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
