//! Snapshots that were damaged, cut, forged, or come from elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use lifecycle::SnapshotTree;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::Input;

/// A snapshot and a difference to it, as a release wrote them.
const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/format-2.tar.gz");
/// Their names.
const FULL: &str = "format-2";
const DIFFERENCE: &str = "format-2-difference";
/// Names that lead out of a tree of snapshots, or are nobody's.
const NAMES: [&str; 8] =
    ["../outside", "/", "..", ".", "", "a/../../outside", "format-2-difference", "gone\0"];
/// The files of a snapshot that are small. Memory is only cut.
const SMALL: [&str; 2] = ["manifest.json", "state"];

/// A tree of two snapshots beside a folder that is none of its business.
struct Home {
    folder: TempDir,
    /// The files that an input may have changed, as they were.
    small: Vec<(PathBuf, Vec<u8>)>,
    memory_len: u64,
}

/// Changes a file of a snapshot, or forges its manifest with a checksum that is right, and reads the
/// tree as the verbs do.
///
/// # Panics
/// When a reader panics, or a name leads out of the tree.
pub fn snapshots(data: &[u8]) {
    static HOME: OnceLock<Home> = OnceLock::new();
    let home = HOME.get_or_init(Home::new);
    let mut input = Input::new(data);
    let name = input.pick(&[FULL, DIFFERENCE]);
    let kind = input.byte() % 4;
    match kind {
        0 => home.change(&home.path(name).join(input.pick(&SMALL)), &mut input),
        1 => home.replace(&home.path(name).join(input.pick(&SMALL)), &mut input),
        2 => home.forge(name, &mut input),
        _ => home.cut(name, &mut input),
    }
    // Reads all of memory, so not each time.
    home.read(input.byte().is_multiple_of(64));
    home.restore();
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for place in ["tree", "outside"] {
            let mut golden = tar::Archive::new(GzDecoder::new(GOLDEN));
            golden.unpack(folder.path().join(place)).expect("the golden snapshots");
        }
        // A whole snapshot outside: whatever follows a name to it finds one.
        let outside = folder.path().join("outside");
        for file in SMALL.iter().chain(&["memory"]) {
            fs::rename(outside.join(FULL).join(file), outside.join(file)).expect("a file");
        }
        let tree = folder.path().join("tree");
        let paths = [FULL, DIFFERENCE].iter().flat_map(|n| SMALL.iter().map(move |f| (n, f)));
        let small = paths.map(|(name, file)| {
            let path = tree.join(name).join(file);
            let content = fs::read(&path).expect("a golden file");
            (path, content)
        });
        let small = small.collect();
        let memory = fs::metadata(tree.join(FULL).join("memory")).expect("golden memory");
        Self { folder, small, memory_len: memory.len() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tree").join(name)
    }

    /// Changes some bytes.
    fn change(&self, path: &Path, input: &mut Input<'_>) {
        let mut content = fs::read(path).expect("a file");
        for _ in 0..=input.byte() % 8 {
            let at = usize::from(input.short()) % content.len();
            content[at] ^= input.byte();
        }
        content.truncate(content.len() - usize::from(input.short()) % content.len());
        fs::write(path, content).expect("a file");
    }

    /// Puts something else in its place.
    fn replace(&self, path: &Path, input: &mut Input<'_>) {
        fs::write(path, input.rest()).expect("a file");
    }

    /// Cuts memory; what is missing comes back as a hole, which is as wrong.
    fn cut(&self, name: &str, input: &mut Input<'_>) {
        let memory = File::options().write(true).open(self.path(name).join("memory"));
        let len = input.word() % (self.memory_len + 1);
        memory.and_then(|memory| memory.set_len(len)).expect("memory");
    }

    /// A manifest that names what it should not, with the right checksum.
    fn forge(&self, name: &str, input: &mut Input<'_>) {
        let path = self.path(name).join("manifest.json");
        let text = fs::read(&path).expect("a manifest");
        let mut map: Map<String, Value> = serde_json::from_slice(&text).expect("golden");
        let named = input.pick(&NAMES);
        let id = map.get("id").cloned().unwrap_or_default();
        match input.byte() % 5 {
            0 => map.insert("base".to_owned(), json!({"name": named, "id": id})),
            1 => map.insert("parent".to_owned(), named.into()),
            2 => map.insert("disks".to_owned(), json!([{"index": input.word(), "bytes": 1}])),
            3 => map.insert("format".to_owned(), input.word().into()),
            _ => {
                let key = map.keys().nth(usize::from(input.byte()) % map.len()).cloned();
                map.insert(key.unwrap_or_default(), input.pick(&[0, 1, u64::MAX]).into())
            }
        };
        map.remove("checksum");
        // docs/snapshots.md: over all else in compact form with sorted keys.
        let sorted: BTreeMap<&String, &Value> = map.iter().collect();
        let compact = serde_json::to_vec(&sorted).expect("JSON");
        map.insert("checksum".to_owned(), crc32fast::hash(&compact).into());
        fs::write(&path, serde_json::to_vec(&map).expect("JSON")).expect("a manifest");
    }

    /// Reads as `snapshot ls`, `check`, `restore` and `create` do.
    fn read(&self, memory: bool) {
        let tree = SnapshotTree::open(self.folder.path().join("tree")).expect("the tree");
        for name in tree.names().expect("the tree can be listed") {
            let Ok(manifest) = tree.manifest(&name) else { continue };
            let base = manifest.base.as_ref().map(|base| base.name.clone());
            let whole = tree.snapshot(&name);
            let leads_out = |name: &str| name.contains('/') || name.starts_with('.');
            assert!(
                whole.is_err() || !base.as_deref().is_some_and(leads_out),
                "{name} is on top of {base:?}"
            );
            let _ = tree.can_be_base(&name, &manifest.id);
            if let (Ok(whole), true) = (whole, memory) {
                // Damage may be where no checksum is: the runs of a difference.
                let _ = whole.verify();
            }
        }
        for name in NAMES.iter().filter(|name| **name != DIFFERENCE) {
            assert!(tree.snapshot(name).is_err(), "{name:?} is no name of a snapshot");
        }
    }

    fn restore(&self) {
        for (path, content) in &self.small {
            fs::write(path, content).expect("a file");
        }
        for name in [FULL, DIFFERENCE] {
            let memory = File::options().write(true).open(self.path(name).join("memory"));
            memory.and_then(|memory| memory.set_len(self.memory_len)).expect("memory");
        }
    }
}
