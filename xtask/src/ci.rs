//! What must pass before a commit.

use anyhow::Result;

use crate::workspace::{cargo, run as run_command};
use crate::{test, tidy};

/// Format check, clippy, documentation, tidy, tests: the quick ones first.
pub fn run() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    run_command(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    test::run(&test::Options::default())
}
