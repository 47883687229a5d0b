//! `cargo xtask dump-block`: what the translator makes of a piece of guest code.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use translator::{DumpOptions, dump_block};

/// What is dumped, and what it is translated for.
#[derive(Args)]
pub struct Options {
    /// Guest code as hexadecimal digits, spaces allowed, such as "48 8b 07 c3"
    #[arg(long, value_name = "CODE")]
    hex: Option<String>,
    /// File of guest code, without headers; its first 4096 bytes are taken
    #[arg(required_unless_present = "hex", conflicts_with = "hex")]
    file: Option<PathBuf>,
    /// The code runs at CPL 3 (the default)
    #[arg(long, conflicts_with = "kernel")]
    user: bool,
    /// The code runs at CPL 0
    #[arg(long)]
    kernel: bool,
    /// The code is 32-bit code
    #[arg(long)]
    bits32: bool,
    /// Check each memory access by itself
    #[arg(long)]
    plain: bool,
    /// Count instructions, as under an instruction budget
    #[arg(long)]
    counts: bool,
}

/// Prints guest and host code side by side.
///
/// # Errors
/// When there is no code, or the host has no memory for the translator.
pub fn run(options: &Options) -> Result<()> {
    let code = match (&options.hex, &options.file) {
        (Some(hex), _) => digits(hex)?,
        (None, Some(file)) => {
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, None) => bail!("no code: give --hex or a file"),
    };
    let (user, plain, counts) = (!options.kernel, options.plain, options.counts);
    let bits32 = options.bits32;
    print!("{}", dump_block(&code, DumpOptions { user, plain, counts, bits32 })?);
    Ok(())
}

/// The bytes of a string of hexadecimal digits.
fn digits(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        bail!("--hex has an odd number of digits");
    }
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes.context("--hex has something else than hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn digits_become_bytes() {
        assert_eq!(digits("48 8b07\nC3").unwrap(), [0x48, 0x8b, 0x07, 0xc3]);
        assert!(digits("4").is_err());
        assert!(digits("4g").is_err());
    }
}
