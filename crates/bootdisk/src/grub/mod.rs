//! GRUB's configuration: as much of its shell as it takes to find the default entry.
//!
//! `grub.cfg` is a script in a language like a shell's (GRUB manual, "Writing full configuration
//! files directly"). [`parse`](script::parse) makes statements of it, which [`default_entry`]
//! executes: variables, conditions, functions, `search`, `load_env`, and files that it reads in.
//! Commands that have nothing to do with finding a kernel do nothing and succeed. Loops are passed
//! over: no generated configuration has any.

mod run;
mod script;

pub use run::default_entry;

/// What a script sees of the machine that it runs on. A device is what GRUB calls one, without
/// parentheses: `hd0,gpt1`.
pub trait Machine {
    /// The content of a text file.
    fn text(&self, device: &str, path: &str) -> Option<String>;

    /// Whether there is a file or folder.
    fn exists(&self, device: &str, path: &str) -> bool;

    /// The device with a file system that is told by `by`.
    fn search(&self, by: SearchBy, what: &str) -> Option<String>;
}

/// How `search` tells file systems apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchBy {
    /// Its UUID.
    Uuid,
    /// Its name.
    Label,
    /// A file on it.
    File,
}

/// A file that a script names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// The device that it is on.
    pub device: String,
    /// Its path there.
    pub path: String,
}

/// What the default entry of a configuration boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The entry's title.
    pub title: String,
    /// The kernel, if it boots Linux.
    pub linux: Option<FileName>,
    /// The command line.
    pub cmdline: String,
    /// The parts of the initramfs, in order.
    pub initrds: Vec<FileName>,
    /// Whether the entries are in files of their own (command `blscfg`); then nothing else is known.
    pub has_entry_files: bool,
    /// The variables at the end: entries in files may use them.
    pub variables: std::collections::BTreeMap<String, String>,
}
