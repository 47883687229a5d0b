//! Unpacks the kernel of a bzImage.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The compressed kernel (bzImage, vmlinuz)
    bzimage: PathBuf,
    /// Where the ELF file goes
    out: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let name = options.bzimage.display().to_string();
    let packed = fs::read(&options.bzimage).with_context(|| format!("cannot read {name}"))?;
    let vmlinux = boot::vmlinux::extract(packed, &name)?;
    fs::write(&options.out, &vmlinux)
        .with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("{}: {} bytes", options.out.display(), vmlinux.len());
    Ok(())
}
