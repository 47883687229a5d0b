//! From a disk to the kernel on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use backend::Disk;

use crate::entries::{self, FileEntry, parse_entry};
use crate::grub::{self, FileName, Machine, SearchBy};
use crate::source::Source;
use crate::volume::{MAX_FILE, Volume};
use crate::{Error, Result, partitions, plain};

/// Where GRUB's configuration can be on its file system: with and without a partition for `/boot`.
const GRUB: [&str; 4] =
    ["/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg"];

/// Where entries of the Boot Loader Specification can be.
const ENTRIES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// Where it was found, and under which title; for messages.
    pub origin: String,
    /// The kernel's content.
    pub kernel: Vec<u8>,
    /// Its path on the disk.
    pub kernel_path: String,
    /// The content of the initramfs.
    pub initrd: Option<Vec<u8>>,
    /// The command line as it was found.
    pub cmdline: String,
}

/// Finds what a boot loader would start from `disk`.
///
/// # Errors
/// [`Error::Nothing`] when there is no boot configuration and no kernel; [`Error::File`],
/// [`Error::Config`] when there is one that cannot be followed; [`Error::Read`], [`Error::TooMuch`].
pub fn find(disk: &Arc<dyn Disk>) -> Result<BootEntry> {
    let source = Source::new(Arc::clone(disk));
    let found = find_on(&source);
    // Whatever else was found out then is a consequence.
    if source.is_exhausted() { Err(Error::TooMuch) } else { found }
}

fn find_on(source: &Source) -> Result<BootEntry> {
    let partitions = partitions::read(source)?;
    let volumes = partitions.into_iter().map(|partition| Volume::open(source, partition));
    let machine = Volumes(volumes.collect());
    for volume in &machine.0 {
        if volume.exists(ENTRIES[0])
            && let Some(entry) = from_entries(&machine, volume, None)?
        {
            return Ok(entry);
        }
    }
    for volume in &machine.0 {
        if let Some(path) = GRUB.iter().find(|path| volume.exists(path))
            && let Some(entry) = from_grub(&machine, volume, path)?
        {
            return Ok(entry);
        }
    }
    for volume in &machine.0 {
        if let Some((kernel, initrd)) = plain::find(volume) {
            let cmdline = format!("root={} ro", volume.device());
            let initrds: Vec<String> = initrd.into_iter().collect();
            let origin = volume.describe();
            return load(
                &machine,
                origin,
                &on(volume, &kernel),
                &on_all(volume, &initrds),
                cmdline,
            );
        }
    }
    let volumes: Vec<String> = machine.0.iter().map(Volume::describe).collect();
    Err(Error::Nothing { volumes: volumes.join(", ") })
}

/// The chosen one of the entries in files; `variables` are GRUB's, which knows only those.
fn from_entries(
    machine: &Volumes,
    volume: &Volume,
    variables: Option<&BTreeMap<String, String>>,
) -> Result<Option<BootEntry>> {
    let none = BTreeMap::new();
    let mut found: Vec<(String, FileEntry)> = Vec::new();
    let Some(folder) = ENTRIES.iter().find(|folder| volume.exists(folder)) else { return Ok(None) };
    for name in volume.names(folder).into_iter().filter(|name| name.ends_with(".conf")) {
        let text = volume.text(&format!("{folder}/{name}")).unwrap_or_default();
        found.extend(parse_entry(&text, variables.unwrap_or(&none)).map(|entry| (name, entry)));
    }
    let default = match variables {
        Some(variables) => variables.get("saved_entry").cloned(),
        None => volume.text("/loader/loader.conf").and_then(|text| {
            let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
            lines.find(|(key, _)| *key == "default").map(|(_, value)| value.trim().to_owned())
        }),
    };
    let Some((name, entry)) = entries::choose(&mut found, default.as_deref()) else {
        return Ok(None);
    };
    let origin = format!("{folder}/{name} on {}", volume.describe());
    let (kernel, initrds) = (on(volume, &entry.linux), on_all(volume, &entry.initrds));
    load(machine, origin, &kernel, &initrds, entry.options.clone()).map(Some)
}

fn from_grub(machine: &Volumes, volume: &Volume, path: &str) -> Result<Option<BootEntry>> {
    let config = format!("{path} on {}", volume.describe());
    let entry = grub::default_entry(machine, &device(volume), path)
        .map_err(|reason| Error::Config { config: config.clone(), reason })?;
    if let Some(kernel) = &entry.linux {
        let origin = format!("{config}: {}", entry.title);
        return load(machine, origin, kernel, &entry.initrds, entry.cmdline).map(Some);
    }
    if entry.has_entry_files {
        return from_entries(machine, volume, Some(&entry.variables));
    }
    Ok(None)
}

/// Reads the files that are to be booted.
fn load(
    machine: &Volumes,
    origin: String,
    kernel: &FileName,
    initrds: &[FileName],
    cmdline: String,
) -> Result<BootEntry> {
    let read = |file: &FileName, most: u64| {
        let volume = machine.volume(&file.device);
        let content = match volume {
            Some(volume) => volume.read(&file.path, most),
            None => Err(format!("there is no device {}", file.device)),
        };
        content.map_err(|cause| Error::File {
            config: origin.clone(),
            path: file.path.clone(),
            cause,
        })
    };
    let content = read(kernel, MAX_FILE)?;
    let mut initrd = Vec::new();
    for file in initrds {
        // The kernel finds one part after the other at multiples of 4.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(read(file, MAX_FILE - initrd.len() as u64)?);
    }
    let initrd = (!initrds.is_empty()).then_some(initrd);
    let kernel_path = kernel.path.clone();
    Ok(BootEntry { origin, kernel: content, kernel_path, initrd, cmdline })
}

/// The file systems of the only disk that there is.
struct Volumes(Vec<Volume>);

/// What GRUB calls the partition. It says besides how the table is made, which it need not.
fn device(volume: &Volume) -> String {
    match volume.partition.number {
        0 => "hd0".to_owned(),
        number => format!("hd0,{number}"),
    }
}

fn on(volume: &Volume, path: &str) -> FileName {
    FileName { device: device(volume), path: path.to_owned() }
}

fn on_all(volume: &Volume, paths: &[String]) -> Vec<FileName> {
    paths.iter().map(|path| on(volume, path)).collect()
}

impl Volumes {
    /// The volume that GRUB calls `hd0`, `hd0,2`, `hd0,gpt2` or `hd0,msdos2`.
    fn volume(&self, device: &str) -> Option<&Volume> {
        let number = match device.split_once(',') {
            None => 0,
            Some((_, part)) => {
                part.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?
            }
        };
        self.0.iter().find(|volume| volume.partition.number == number)
    }
}

impl Machine for Volumes {
    fn text(&self, device: &str, path: &str) -> Option<String> {
        self.volume(device)?.text(path)
    }

    fn exists(&self, device: &str, path: &str) -> bool {
        self.volume(device).is_some_and(|volume| volume.exists(path))
    }

    fn search(&self, by: SearchBy, what: &str) -> Option<String> {
        let fits = |volume: &&Volume| match by {
            SearchBy::Uuid => volume.uuid().is_some_and(|uuid| uuid.eq_ignore_ascii_case(what)),
            SearchBy::Label => volume.label().is_some_and(|label| label == what),
            SearchBy::File => volume.exists(what),
        };
        self.0.iter().find(fits).map(device)
    }
}
