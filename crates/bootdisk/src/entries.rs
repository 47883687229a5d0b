//! Entries of the Boot Loader Specification (UAPI.1): one small file for each, as systemd-boot reads
//! them, and GRUB on Fedora and its relatives.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// The most initramfs parts and lines of options of an entry.
const MAX_LINES: usize = 64;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileEntry {
    /// Its title.
    pub title: String,
    /// The version of what it boots.
    pub version: String,
    /// Entries with one come first, in this order.
    pub sort_key: String,
    /// The kernel's path.
    pub linux: String,
    /// The paths of the parts of the initramfs, in order.
    pub initrds: Vec<String>,
    /// The command line.
    pub options: String,
}

/// Reads an entry; variables (`$name`), which GRUB allows, are replaced by their values in
/// `variables`. `None` for an entry that boots no Linux.
pub fn parse_entry(text: &str, variables: &BTreeMap<String, String>) -> Option<FileEntry> {
    let mut entry = FileEntry::default();
    let mut options = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "linux" => value.clone_into(&mut entry.linux),
            // GRUB's have several in a line.
            "initrd" if entry.initrds.len() < MAX_LINES => {
                let paths = value.split_whitespace().filter(|path| !path.starts_with('$'));
                entry.initrds.extend(paths.take(MAX_LINES).map(str::to_owned));
            }
            "options" if options.len() < MAX_LINES => options.push(expand(value, variables)),
            _ => {}
        }
    }
    entry.options = options.join(" ");
    (!entry.linux.is_empty()).then_some(entry)
}

fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let value = |word: &str| match word.strip_prefix('$') {
        Some(name) => variables.get(name).cloned().unwrap_or_default(),
        None => word.to_owned(),
    };
    let words: Vec<String> = text.split_whitespace().map(value).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

/// The entry that is booted, of those with the names of their files: the first that fits the pattern
/// `default`, else the first in the specification's order, newest version first.
pub(crate) fn choose<'a>(
    entries: &'a mut [(String, FileEntry)],
    default: Option<&str>,
) -> Option<&'a (String, FileEntry)> {
    let key = |(name, entry): &(String, FileEntry)| {
        (
            entry.sort_key.is_empty(),
            entry.sort_key.clone(),
            Reverse(Version(entry.version.clone())),
            Reverse(Version(name.clone())),
        )
    };
    entries.sort_by_cached_key(key);
    let fits = |(name, _): &&(String, FileEntry)| {
        let name = name.strip_suffix(".conf").unwrap_or(name);
        default
            .is_some_and(|pattern| matches(pattern.strip_suffix(".conf").unwrap_or(pattern), name))
    };
    entries.iter().find(fits).or(entries.first())
}

/// Whether a name fits a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((after, at)) => {
                    (p, n) = (after, at + 1);
                    retry = Some((after, at + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// A version: numbers in it are compared as numbers, everything else as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(pub String);

impl Version {
    /// Runs of digits without leading zeros, by length and value, and what is between them.
    fn parts(&self) -> Vec<(usize, &str)> {
        let mut parts = Vec::new();
        let mut rest = self.0.as_str();
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            let number = part.trim_start_matches('0');
            parts.push(if digits { (number.len() + 1, number) } else { (0, part) });
            rest = after;
        }
        parts
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: &str) -> FileEntry {
        FileEntry { version: version.to_owned(), ..FileEntry::default() }
    }

    fn named(names: &[(&str, &str)]) -> Vec<(String, FileEntry)> {
        names.iter().map(|(name, version)| ((*name).to_owned(), entry(version))).collect()
    }

    #[test]
    fn an_entry_is_read() {
        let text = "# comment\ntitle  Debian 12\nversion 6.1.0-9\nlinux\t/debian/6.1/linux\n\
                    initrd /a\ninitrd /b $tuned_initrd\noptions root=UUID=1 $kernelopts\n\
                    options quiet $none\nefi /x\n";
        let variables = [("kernelopts".to_owned(), "ro rhgb".to_owned())].into();
        let entry = parse_entry(text, &variables).expect("it boots Linux");
        assert_eq!(
            (entry.title.as_str(), entry.linux.as_str()),
            ("Debian 12", "/debian/6.1/linux")
        );
        assert_eq!(entry.initrds, ["/a", "/b"]);
        assert_eq!(entry.options, "root=UUID=1 ro rhgb quiet");
        assert_eq!(parse_entry("title Windows\nefi /w.efi\n", &BTreeMap::new()), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let mut entries = named(&[("a.conf", "6.1.9"), ("b.conf", "6.1.10"), ("c.conf", "5.99")]);
        assert_eq!(choose(&mut entries, None).expect("one").0, "b.conf");
        assert_eq!(choose(&mut entries, Some("c*")).expect("one").0, "c.conf");
        assert_eq!(choose(&mut entries, Some("a.conf")).expect("one").0, "a.conf");
        assert_eq!(choose(&mut entries, Some("x")).expect("one").0, "b.conf");
        entries[2].1.sort_key = "z".to_owned();
        let first = entries[2].0.clone();
        assert_eq!(choose(&mut entries, None).expect("one").0, first);
        assert!(choose(&mut [], None).is_none());
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text: &str| Version(text.to_owned());
        for (older, newer) in [("6.1.9", "6.1.10"), ("6.1", "6.1.1"), ("6.1.0-9", "6.1.0-10-x")] {
            assert!(version(older) < version(newer), "{older} {newer}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [("*", ""), ("a*c", "abbc"), ("a?c*", "abc"), ("*-6.1", "x-6.1")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", ""), ("a*c", "ab"), ("?", ""), ("", "a")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(1000), &"a".repeat(999)));
    }
}
