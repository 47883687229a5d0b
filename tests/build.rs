//! Builds the bare-machine test programs of `guests/`.
//!
//! Every entry of `guests/programs` (`name.rs` or `name/main.rs`) becomes one
//! ELF file in OUT_DIR, linked with the kit by `guests/link.ld`. Its path is
//! exported as `GUEST_<NAME>`, and `guests.rs` in OUT_DIR lists all of them;
//! `each_program.rs` has the macro `each_program!`, which makes a test of each.
//! The programs are built by plain rustc for the host's target, since that is
//! the only target whose `core` is installed everywhere.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Code generation for a bare machine: fixed addresses, no unwinding, no red
/// zone (interrupts push on the running stack).
const FLAGS: [&str; 7] = [
    "--edition=2024",
    "-Copt-level=1",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Cno-redzone=yes",
    "-Cstrip=debuginfo",
    "-Coverflow-checks=no",
];

fn main() {
    let guests = Path::new(&var("CARGO_MANIFEST_DIR")).join("../guests");
    let out = PathBuf::from(var("OUT_DIR"));
    for part in ["kit", "programs", "link.ld"] {
        println!("cargo:rerun-if-changed={}", guests.join(part).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let kit = out.join("libkit.rlib");
    let mut compile = rustc(&guests.join("kit/lib.rs"), "rlib", "kit", &kit);
    finish("kit", compile.spawn().expect("rustc starts"));

    let programs = programs(&guests.join("programs"));
    let elf = |name: &str| out.join(format!("{name}.elf"));
    let running: Vec<(&str, Child)> = programs
        .iter()
        .map(|(name, source)| {
            let mut link = rustc(source, "bin", name, &elf(name));
            link.arg("--extern").arg(format!("kit={}", kit.display()));
            link.arg(format!("-Clink-arg=-T{}", guests.join("link.ld").display()));
            link.args(["-Clink-args=-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none"]);
            (name.as_str(), link.spawn().expect("rustc starts"))
        })
        .collect();
    for (name, child) in running {
        finish(name, child);
    }

    let mut list = String::from("&[\n");
    for (name, _) in &programs {
        let path = elf(name);
        println!("cargo:rustc-env=GUEST_{}={}", name.to_uppercase(), path.display());
        writeln!(list, "    ({name:?}, {:?}),", path.display().to_string())
            .expect("a string grows");
    }
    list.push_str("]\n");
    fs::write(out.join("guests.rs"), list).expect("OUT_DIR is writable");
    fs::write(out.join("each_program.rs"), each_program(&programs)).expect("OUT_DIR is writable");
}

/// The macro `each_program!(run)`: a test for each program, which calls `run` with its name.
fn each_program(programs: &[(String, PathBuf)]) -> String {
    let tests = programs.iter().map(|(name, _)| {
        format!(
            "        #[test]\n        fn {name}() {{\n            $run({name:?});\n        }}\n"
        )
    });
    let tests: String = tests.collect();
    format!("macro_rules! each_program {{\n    ($run:expr) => {{\n{tests}    }};\n}}\n")
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// A rustc call, free of the flags that cargo passes to the workspace.
fn rustc(source: &Path, kind: &str, name: &str, output: &Path) -> Command {
    let mut command = Command::new(var("RUSTC"));
    command.args(FLAGS).arg(source).arg("-o").arg(output);
    command.args(["--crate-type", kind, "--crate-name", name]);
    command.arg("--target").arg(var("TARGET"));
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

fn finish(name: &str, mut child: Child) {
    let status = child.wait().expect("rustc can be waited for");
    assert!(status.success(), "guest program {name} does not build (rustc: {status})");
}

/// Name and main file of every program, sorted by name.
fn programs(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(directory)
        .expect("guests/programs exists")
        .map(|entry| entry.expect("guests/programs is readable").path())
        .filter_map(|path| {
            let main = if path.is_dir() { path.join("main.rs") } else { path.clone() };
            let name = path.file_stem()?.to_str()?.to_owned();
            (main.extension()? == "rs" && main.exists()).then_some((name, main))
        })
        .collect();
    found.sort();
    found
}
