//! `--profile` and `--trace`, from outside.

use crate::guests;
use crate::support::{Kernel, read_until, signal, stderr, wait};

#[test]
fn a_trace_is_a_line_for_each_event() {
    let kernel = Kernel::new(&guests::print("AB"));
    let output = kernel.run(&["--trace", "io"]);
    let text = stderr(&output);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"AB"[..]), "{text}");
    let written: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" 0 port-write port=0x3f8 ")?.1.into())
        .collect();
    assert_eq!(written, ["size=1 value=0x41", "size=1 value=0x42"], "{text}");

    let file = kernel.path("trace");
    let output = kernel.run(&["--trace", "exits,msr", "--trace-file", file.to_str().unwrap()]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.ends_with("0 exit reason=stop\n") && !text.contains("port-"), "{text}");
}

#[test]
fn a_profile_is_folded_stacks() {
    let kernel = Kernel::new(&guests::print_and_spin("."));
    let file = kernel.path("profile");
    for engine in ["interpreter", "translator"] {
        let mut child = kernel
            .command(&["--engine", engine, "--profile", file.to_str().unwrap()])
            .spawn()
            .unwrap();
        read_until(child.stdout.as_mut().unwrap(), ".");
        std::thread::sleep(std::time::Duration::from_millis(300));
        signal(&child, "INT");
        assert_eq!(wait(&mut child).code(), Some(130));
        let text = std::fs::read_to_string(&file).unwrap();
        let counts = text.lines().map(|line| {
            let (frames, count) = line.rsplit_once(' ').expect("frames and a count");
            assert!(frames.starts_with("vcpu 0;kernel;0x"), "{line}");
            count.parse::<u64>().expect("a count")
        });
        assert!(counts.sum::<u64>() > 0, "{engine}: {text:?}");
        assert!(engine == "translator" || text.contains(";interpreter "), "{text}");
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn what_cannot_be_watched_is_refused_before_the_vm_runs() {
    let kernel = Kernel::new(&guests::print("x"));
    for (args, status, words) in [
        (&["--trace", "everything"][..], 2, "exits, interrupts, io, msr"),
        (&["--trace-file", "x"][..], 2, "--trace"),
        (&["--profile", "/nowhere/profile"][..], 1, "there is no such folder"),
        (&["--trace", "io", "--trace-file", "/nowhere/trace"][..], 1, "cannot trace to"),
        (&["--profile", "x", "--profile-symbols", "/nowhere/map"][..], 1, "cannot read symbols"),
    ] {
        let output = kernel.run(args);
        let text = stderr(&output);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(status), &b""[..]));
        assert!(text.contains(words), "{args:?}: {text}");
    }
}
