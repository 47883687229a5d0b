//! Builds the Linux programs of `guests/` for the host and for guests alike: static executables in
//! OUT_DIR, whose paths are exported as `STRESS_PROGRAM` and `MICRO_PROGRAM`.
//!
//! Plain rustc does it, since cargo cannot link one package statically and the others not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["stress", "micro"] {
        build(name);
    }
}

/// Builds `guests/NAME/main.rs`.
fn build(name: &str) {
    let sources = Path::new(&var("CARGO_MANIFEST_DIR")).join("../../guests").join(name);
    println!("cargo:rerun-if-changed={}", sources.display());
    let program = PathBuf::from(var("OUT_DIR")).join(name);
    let mut command = Command::new(var("RUSTC"));
    command.arg(sources.join("main.rs")).arg("-o").arg(&program);
    command.args(["--edition=2024", "--crate-name", name, "--target"]).arg(var("TARGET"));
    command.args(["-Copt-level=2", "-Ctarget-feature=+crt-static", "-Cstrip=symbols"]);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().expect("rustc starts");
    assert!(status.success(), "guests/{name} does not build (rustc: {status})");
    println!("cargo:rustc-env={}_PROGRAM={}", name.to_uppercase(), program.display());
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
