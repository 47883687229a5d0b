//! Whatever is given to the program: one line on standard error with name, cause and way out, and
//! the right status.

use std::fs;

use crate::guests;
use crate::support::{Kernel, finish, ringfence, stderr};

/// One line `ringfence: error: ...` that contains all of `named`, and nothing on standard output.
fn assert_refused(output: &std::process::Output, status: i32, named: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(output.stdout.is_empty(), "something went to standard output");
    assert!(text.starts_with("ringfence: error: ") && text.lines().count() == 1, "{text}");
    for part in named {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn unknown_options_and_values_are_usage_errors() {
    for (args, named) in [
        (&["run", "--frob"][..], &["--frob", "--help"][..]),
        (&["run", "--memory", "lots"], &["lots", "512M"]),
        (&["run", "--memory", "-5"], &["-5"]),
        (&["run", "--memory", ""], &["--memory"]),
        (&["run", "--memory", "99999999999T"], &["16T"]),
        (&["run", "--cpus", "many"], &["many"]),
        (&["run", "--cpus", "0"], &["--cpus"]),
        (&["run", "--engine", "warp"], &["warp", "interpreter"]),
        (&["run", "--platform", "vax"], &["vax"]),
        (&["run", "--triple-fault", "ignore"], &["stop", "reset"]),
        (&["run", "--kernel"], &["--kernel"]),
        (&["run", "--name", "../x"], &["../x"]),
        (&["image", "build"], &["IMAGE"]),
        (&["walk"], &["walk"]),
        (&[], &["subcommand"]),
    ] {
        assert_refused(&finish(args), 2, named);
    }
}

#[test]
fn what_later_versions_do_is_refused_by_name() {
    let kernel = Kernel::new(&guests::power_off());
    for args in [&["--net", "tap"][..], &["--platform", "xen-pvh"], &["--platform", "xen-pv"]] {
        assert_refused(&kernel.run(args), 1, &[args[0], "not supported"]);
    }
    let accepted = kernel.run(&["--net", "none", "--name", "x", "--ephemeral", "--cpus", "2"]);
    assert_eq!(accepted.status.code(), Some(0), "{}", stderr(&accepted));
}

#[test]
fn modules_that_cannot_be() {
    let kernel = Kernel::new(&guests::power_off());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("module");
    let module = path.display().to_string();
    let refused = |value: &str, named: &[&str]| {
        assert_refused(&kernel.run(&["--module", value]), 1, &[&[module.as_str()], named].concat());
    };
    refused(&format!("{module} its arguments"), &["No such file", "--module"]);
    fs::write(&path, "").unwrap();
    refused(&module, &["is empty"]);
    fs::write(&path, "content").unwrap();
    refused(&format!("{module} its arguments"), &["no multiboot kernel"]);
}

#[test]
fn disks_that_cannot_be() {
    let kernel = Kernel::new(&guests::power_off());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let disk = path.display().to_string();
    let refused = |value: &str, named: &[&str]| {
        assert_refused(&kernel.run(&["--disk", value]), 1, &[&[disk.as_str()], named].concat());
    };
    refused(&disk, &["No such file"]);
    fs::write(&path, [0; 513]).unwrap();
    refused(&disk, &["513 bytes", "truncate"]);
    fs::write(&path, [0; 512]).unwrap();
    let other = fs::File::open(&path).unwrap();
    other.lock().unwrap();
    refused(&disk, &["in use"]);
    refused(&format!("{disk},readonly"), &["in use"]);
    drop(other);
    let overlay = format!("{disk},overlay");
    let overlays = kernel.run(&["--disk", &overlay, "--disk", &overlay]);
    assert_eq!(overlays.status.code(), Some(0), "{}", stderr(&overlays));
    refused(&format!("{disk},overlay,format=qcow2"), &["qcow2"]);
    let twice = kernel.run(&["--disk", &disk, "--disk", &disk]);
    assert_refused(&twice, 1, &[&disk, "in use"]);
    let readonly = format!("{disk},readonly");
    let shared = kernel.run(&["--disk", &readonly, "--disk", &readonly]);
    assert_eq!(shared.status.code(), Some(0), "{}", stderr(&shared));
    assert_refused(&finish(&["run", "--disk", "d,format=vmdk"]), 2, &["vmdk", "raw"]);
}

#[test]
fn memory_that_cannot_be() {
    let kernel = Kernel::new(&guests::power_off());
    for (size, named) in [
        ("0", "--memory"),
        ("1M", "--memory"),
        ("33333K", "4 KiB"),
        ("15T", "--memory"),
        ("17T", "--memory"),
    ] {
        let mut command = ringfence(&["run", "--memory", size, "--kernel"]);
        let output = command.arg(kernel.path("kernel")).output().unwrap();
        assert_refused(&output, 1, &[named]);
    }
}

#[test]
fn kernels_that_are_none() {
    let elf = guests::power_off();
    for (content, named) in [
        (&b""[..], "kernel"),
        (b"#!/bin/sh\n", "kernel"),
        (&[0; 4096], "kernel"),
        (&elf[..0x50], "kernel"),
        (&elf[..0x180], "truncated"),
        (&elf[..elf.len() - 1], "truncated"),
        (b"\x1f\x8b\x08\0 not really gzip", "kernel"),
    ] {
        let output = Kernel::new(content).run(&[]);
        assert_refused(&output, 1, &["/kernel", named, ";"]);
    }
    assert_refused(&finish(&["run", "--kernel", "/nowhere/vmlinuz"]), 1, &["/nowhere/vmlinuz"]);
    assert_refused(&finish(&["run", "--kernel", "/"]), 1, &["directory"]);
    assert_refused(&finish(&["run", "--kernel", "/dev/zero"]), 1, &["/dev/zero"]);
}

#[test]
fn initramfs_that_are_none() {
    let kernel = Kernel::new(&guests::power_off());
    let empty = kernel.path("empty");
    fs::write(&empty, "").unwrap();
    let initrd = |path: &str| kernel.run(&["--initrd", path]);
    assert_refused(&initrd("/nowhere/initrd"), 1, &["/nowhere/initrd", "--initrd"]);
    assert_refused(&initrd(empty.to_str().unwrap()), 1, &["empty"]);
    assert_refused(&initrd("/"), 1, &["directory"]);
    let large = kernel.path("large");
    fs::File::create(&large).unwrap().set_len(40 << 20).unwrap();
    assert_refused(&initrd(large.to_str().unwrap()), 1, &["large", "--memory"]);
}

#[test]
fn pipes_in_the_place_of_files_do_not_hang() {
    let kernel = Kernel::new(&guests::power_off());
    let fifo = kernel.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.to_str().unwrap();
    assert_refused(&finish(&["run", "--kernel", path]), 1, &["fifo"]);
    assert_refused(&kernel.run(&["--initrd", path]), 1, &["fifo"]);
}

#[test]
fn images_that_are_none() {
    assert_refused(&finish(&["run", "no-such-image"]), 1, &["no-such-image", "image ls"]);
    assert_refused(&finish(&["run", "Bad Name"]), 1, &["Bad Name"]);
    assert_refused(&finish(&["run", "/nowhere/image"]), 1, &["/nowhere/image"]);
    assert_refused(&finish(&["run", "/dev/null"]), 1, &["/dev/null", "block device"]);
    assert_refused(&finish(&["image", "rm", "no-such-image"]), 1, &["no-such-image"]);
    assert_refused(&finish(&["image", "build", "no-such-recipe"]), 1, &["tiny"]);
}

#[test]
fn a_command_line_that_does_not_fit() {
    let kernel = Kernel::new(&guests::power_off());
    let long = "x".repeat(70_000);
    assert_refused(&kernel.run(&["--cmdline", &long]), 1, &["command line", "--cmdline"]);
}

#[test]
fn statistics_that_cannot_be_written() {
    let kernel = Kernel::new(&guests::power_off());
    for path in ["/nowhere/stats", "/"] {
        assert_refused(&kernel.run(&["--stats", path]), 1, &["statistics"]);
    }
}
