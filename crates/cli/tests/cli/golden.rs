//! Snapshots that earlier versions wrote: each is restored and goes on.

use std::process::Command;

use crate::guests;
use crate::managed::Home;
use crate::support::stderr;

/// What the host's CPU may lack that the one had on which they were written.
const LACKING: &str = "uses CPU feature";

#[test]
fn snapshots_of_earlier_formats_are_restored() {
    let home = Home::new(&guests::count_keys());
    home.ok(&["create", "a", "--kernel", "kernel", "--memory", "32M", "--net", "none"]);
    let folder = home.path("a").join("snapshots");
    std::fs::create_dir_all(&folder).unwrap();
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/format-2.tar.gz");
    let unpacked = Command::new("tar").args(["-xzf", archive, "-C"]).arg(&folder).status();
    assert!(unpacked.expect("tar").success());
    for (name, answer) in [("format-2", "B"), ("format-2-difference", "C")] {
        home.ok(&["snapshot", "check", "a", name]);
        let restored = home.run(&["snapshot", "restore", "a", name, "--engine", "interpreter"]);
        if stderr(&restored).contains(LACKING) {
            eprintln!("skipped: {}", stderr(&restored));
            return;
        }
        assert!(restored.status.success(), "{}", stderr(&restored));
        home.press("a", answer);
    }
}
