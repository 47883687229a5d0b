//! Names for addresses of a guest's kernel, from its `System.map`, `/proc/kallsyms` or ELF file.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use object::{Object, ObjectSymbol, SymbolKind};

/// Largest file that is read.
const MAX_FILE: u64 = 2 << 30;
/// Where the addresses of kernels begin.
const KERNEL: u64 = 1 << 63;
/// Furthest from a symbol that an address belongs to it: a gap of this size is another module.
const REACH: u64 = 1 << 20;
/// What the kernel enters by SYSCALL.
const SYSCALL_ENTRY: &str = "entry_SYSCALL_64";

/// Functions by address.
pub struct Symbols {
    /// In order.
    functions: Vec<(u64, String)>,
    /// What is added to the addresses above: kernels place themselves anew at each boot.
    slide: u64,
}

impl Symbols {
    /// Reads the symbols of a file.
    ///
    /// # Errors
    /// When it cannot be read or has no functions of a kernel.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let read = || format!("cannot read symbols from {}", path.display());
        let size = fs::metadata(path).with_context(read)?.len();
        if size > MAX_FILE {
            bail!("{}: it is larger than 2 GiB", read());
        }
        let content = fs::read(path).with_context(read)?;
        let mut functions = match content.starts_with(b"\x7fELF") {
            true => from_elf(&content).with_context(read)?,
            false => from_map(&String::from_utf8_lossy(&content)),
        };
        if functions.is_empty() {
            bail!(
                "{}: it has none of a kernel; give the guest's /proc/kallsyms, a System.map or a vmlinux",
                read()
            );
        }
        functions.sort();
        functions.dedup_by_key(|(address, _)| *address);
        Ok(Self { functions, slide: 0 })
    }

    /// The guest's kernel is entered by SYSCALL at `entry`: where it is follows from that.
    pub fn place(&mut self, entry: u64) {
        let known = self.functions.iter().find(|(_, name)| name == SYSCALL_ENTRY);
        if let Some((address, _)) = known.filter(|_| entry != 0) {
            self.slide = entry.wrapping_sub(*address);
        }
    }

    /// The function that `address` belongs to.
    pub fn name(&self, address: u64) -> Option<&str> {
        let address = address.wrapping_sub(self.slide);
        let behind = self.functions.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.functions.get(behind.checked_sub(1)?)?;
        (address - start < REACH).then_some(name)
    }
}

/// Lines of address, kind and name; `t`, `T`, `w` and `W` are functions.
fn from_map(text: &str) -> Vec<(u64, String)> {
    let function = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok().filter(|at| *at >= KERNEL)?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
    };
    text.lines().filter_map(function).collect()
}

fn from_elf(content: &[u8]) -> anyhow::Result<Vec<(u64, String)>> {
    let file = object::File::parse(content)?;
    let functions = file.symbols().filter(|symbol| {
        symbol.address() >= KERNEL && matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label)
    });
    let named = functions.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.into())));
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(text: &str) -> anyhow::Result<Symbols> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        Symbols::open(file.path())
    }

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let text = "ffffffff81000000 T start\nffffffff81000100 t entry_SYSCALL_64\n\
                    ffffffff81000200 D data\n0000000000000000 A fixed\nnonsense\n";
        let mut symbols = symbols(text).unwrap();
        assert_eq!(symbols.name(0xffff_ffff_8100_00ff), Some("start"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0300), Some("entry_SYSCALL_64"));
        assert_eq!(symbols.name(0xffff_ffff_80ff_ffff), None);
        assert_eq!(symbols.name(0xffff_ffff_c000_0000), None);
        symbols.place(0xffff_ffff_9100_0100);
        assert_eq!(symbols.name(0xffff_ffff_9100_0010), Some("start"));
    }

    #[test]
    fn a_file_without_symbols_is_refused() {
        assert!(symbols("nothing").is_err());
        assert!(symbols("\x7fELF and nothing more").is_err());
        assert!(Symbols::open(Path::new("/does/not/exist")).is_err());
    }
}
