//! What a guest has flushed survives the death of its VM at any moment.
//!
//! A stock kernel writes numbered records with checksums to a raw disk, to a qcow2 image, and to files
//! on ext4 in an overlay from which older files are removed with their space (discard). It says on its
//! console which record has been flushed everywhere. Its process is killed, and all of these records
//! must be there; the images must be whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use images::initramfs::{Builder, Compression};
use images::{Recipe, Silent, Store};
use lifecycle::storage::{self, Format, ImageOptions, Overlay};
use tempfile::TempDir;

use crate::support::{read_until, ringfence};

/// Places for records on the disks, of a sector each.
const PLACES: u64 = 8192;
/// Records that lie beside each other in time are as many places apart.
const STRIDE: u64 = 97;
const SECTOR: u64 = 512;
/// How many files there are at a time on ext4.
const FILES: u64 = 40;

/// Writes records from `@` on.
const SCRIPT: &str = r#"
for module in virtio_pci virtio_blk ext4 crc32c_generic; do modprobe $module; done
mkdir -p /mnt
mount -t ext4 -o discard /dev/vdc /mnt || echo MOUNT-FAILED
put() { dd if=/tmp/record of=$1 bs=512 seek=$2 conv=sync,notrunc,fsync 2>/dev/null || echo WRITE-FAILED; }
i=@
echo WRITING
while :; do
  text=$(printf 'record %012d' $i)
  echo "$text $(printf %s "$text" | sha256sum | cut -c 1-64)" >/tmp/record
  put /dev/vda $((i * 97 % 8192))
  put /dev/vdb $((i * 97 % 8192))
  put /mnt/r$i 0
  rm -f /mnt/r$((i - 40))
  echo "ACK $i"
  i=$((i + 1))
done
"#;

#[test]
fn flushed_records_survive_kills() {
    kill_and_look(4);
}

#[test]
#[ignore = "100 kills: some five minutes"]
fn flushed_records_survive_100_kills() {
    kill_and_look(100);
}

fn kill_and_look(rounds: u32) {
    let Some(bench) = Bench::new() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("KILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seed: u64 = seed.unwrap_or(u64::from(now.subsec_nanos()));
    eprintln!("KILL_SEED={seed}");
    // For each place the last record that was flushed there, in all rounds.
    let mut flushed = BTreeMap::new();
    let mut next = 1;
    for round in 0..rounds {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let last = bench.run_and_kill(next, Duration::from_millis((seed >> 33) % 800));
        for record in next..=last {
            flushed.insert(record * STRIDE % PLACES, record);
        }
        eprintln!("round {round}: records {next} to {last}");
        bench.check(&flushed, last.saturating_sub(FILES - 1).max(next)..=last);
        // What was being written may be there or not; it is never acknowledged later.
        next = last + 2;
    }
    assert!(next > u64::from(rounds) * 2, "hardly a record was written");
}

/// The disks, and what the guest boots.
struct Bench {
    folder: TempDir,
    kernel: PathBuf,
    initrd: Vec<u8>,
}

impl Bench {
    /// `None` where the host lacks something, after saying so.
    fn new() -> Option<Self> {
        let store = Store::open_default().expect("a store");
        let image = match store.find_or_build(&Recipe::Tiny, &Silent) {
            Ok(image) => image,
            Err(error) => return skipped(&format!("image tiny is not to be had: {error}")),
        };
        let (kernel, initrd) = image.files().kernel_and_initrd().expect("tiny has no disk");
        let folder = tempfile::tempdir().expect("folder");
        let base = folder.path().join("base.img");
        for (path, size) in
            [(folder.path().join("raw.img"), PLACES * SECTOR), (base.clone(), 64 << 20)]
        {
            File::create(path).and_then(|file| file.set_len(size)).expect("image");
        }
        let made = tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&base).status();
        if !made.is_ok_and(|status| status.success()) {
            return skipped("mke2fs is not installed");
        }
        let mut options = File::options();
        let qcow2 = options.read(true).write(true).create_new(true);
        let qcow2 = qcow2.open(folder.path().join("records.qcow2")).expect("image");
        storage::create_qcow2(&qcow2, "records.qcow2", PLACES * SECTOR, None).expect("image");
        let initrd = fs::read(initrd).expect("initramfs");
        Some(Self { kernel: kernel.to_owned(), initrd, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the guest from the record `first` on, and kills it so long after the first flush; returns
    /// the last record that was flushed.
    fn run_and_kill(&self, first: u64, after: Duration) -> u64 {
        let init = workload::init(&SCRIPT.replace('@', &first.to_string()));
        let own = Builder::new().file("/init", 0o755, init).finish(Compression::None);
        // The kernel unpacks one archive after the other; the last file of a name stays.
        let mut initrd = self.initrd.clone();
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(own.expect("fixed paths"));
        fs::write(self.path("initrd"), initrd).expect("initramfs");
        let overlay = format!(
            "{},overlay={}",
            self.path("base.img").display(),
            self.path("overlay.qcow2").display()
        );
        let mut child = ringfence(&["run", "--memory", "256M", "--net", "none", "--kernel"])
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(self.path("initrd"))
            .args(["--cmdline", "console=ttyS0 quiet", "--disk"])
            .arg(self.path("raw.img"))
            .arg("--disk")
            .arg(self.path("records.qcow2"))
            .args(["--disk", &overlay])
            .stderr(Stdio::inherit())
            .spawn()
            .expect("run");
        let mut console = child.stdout.take().expect("piped");
        let mut text = read_until(&mut console, &format!("ACK {first}"));
        std::thread::sleep(after);
        kill(&mut child);
        console.read_to_string(&mut text).expect("text");
        assert!(!text.contains("FAILED"), "{text}");
        // The last line may have been cut short.
        let (whole, _) = text.rsplit_once('\n').unwrap_or((&text, ""));
        let numbers = whole.lines().filter_map(|line| line.trim().strip_prefix("ACK "));
        numbers.filter_map(|number| number.parse().ok()).max().unwrap_or(first)
    }

    fn check(&self, flushed: &BTreeMap<u64, u64>, files: std::ops::RangeInclusive<u64>) {
        let raw = fs::read(self.path("raw.img")).expect("image");
        look_for("raw.img", &raw, flushed);
        let qcow2 = self.content(&ImageOptions { path: self.path("records.qcow2"), ..read_only() });
        look_for("records.qcow2", &qcow2, flushed);
        for name in ["records.qcow2", "overlay.qcow2"] {
            self.check_qcow2(name);
        }
        let overlay = Some(Overlay::File(self.path("overlay.qcow2")));
        let base = self.path("base.img");
        let content =
            self.content(&ImageOptions { path: base, overlay, ..ImageOptions::default() });
        self.check_ext4(&content, files);
    }

    fn content(&self, options: &ImageOptions) -> Vec<u8> {
        let disk = storage::open(options, Arc::new(|_: &str| ())).expect("it opens again").disk;
        let mut content = vec![0; disk.len() as usize];
        disk.read(0, &mut content).expect("all of it is readable");
        content
    }

    fn check_qcow2(&self, name: &str) {
        let Ok(output) = tool("qemu-img").arg("check").arg(self.path(name)).output() else {
            skipped::<()>("qemu-img is not installed");
            return;
        };
        // 3: clusters that nothing uses. They are lost, not wrong, and allowed after a kill.
        let status = output.status.code();
        assert!(
            matches!(status, Some(0 | 3)),
            "{name}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    /// The journal is replayed on a copy, which must be without a fault then, and have the files.
    fn check_ext4(&self, content: &[u8], files: std::ops::RangeInclusive<u64>) {
        let copy = self.path("ext4.img");
        fs::write(&copy, content).expect("copy");
        let mut e2fsck = tool("e2fsck");
        let replayed =
            e2fsck.args(["-y", "-E", "journal_only"]).arg(&copy).output().expect("e2fsck");
        assert!(matches!(replayed.status.code(), Some(0 | 1)), "{replayed:?}");
        let output = tool("e2fsck").arg("-fn").arg(&copy).output().expect("e2fsck");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let commands: String = files.clone().map(|record| format!("cat /r{record}\n")).collect();
        fs::write(self.path("commands"), commands).expect("commands");
        let output = tool("debugfs").arg("-f").arg(self.path("commands")).arg(&copy).output();
        let text = String::from_utf8_lossy(&output.expect("debugfs").stdout).into_owned();
        for record in files {
            assert!(text.contains(&format!("record {record:012}")), "file r{record} is lost");
        }
    }
}

/// Every flushed record is in its place, or a later one that was on its way.
fn look_for(name: &str, disk: &[u8], flushed: &BTreeMap<u64, u64>) {
    for (place, record) in flushed {
        let sector = &disk[(place * SECTOR) as usize..][..SECTOR as usize];
        let text = String::from_utf8_lossy(sector);
        let found = text.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        let Some(found) =
            found.filter(|found| found >= record && found * STRIDE % PLACES == *place)
        else {
            panic!("{name}: record {record} is lost; there is {:?}", &text[..40]);
        };
        let digest = text.split_whitespace().nth(2).unwrap_or_default();
        assert_eq!(digest, digest_of(&format!("record {found:012}")), "{name}: record {found}");
    }
}

/// SHA-256, by the program that the host has as the guest does.
fn digest_of(text: &str) -> String {
    use std::io::Write;
    thread_local! {
        static KNOWN: std::cell::RefCell<BTreeMap<String, String>> = const {
            std::cell::RefCell::new(BTreeMap::new())
        };
    }
    if let Some(digest) = KNOWN.with_borrow(|known| known.get(text).cloned()) {
        return digest;
    }
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("sha256sum");
    let digest: String = String::from_utf8_lossy(&output.stdout).chars().take(64).collect();
    KNOWN.with_borrow_mut(|known| known.insert(text.to_owned(), digest.clone()));
    digest
}

fn read_only() -> ImageOptions {
    ImageOptions { read_only: true, format: Some(Format::Qcow2), ..ImageOptions::default() }
}

/// A program of the administrator's.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command
}

fn kill(child: &mut Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

fn skipped<T>(reason: &str) -> Option<T> {
    eprintln!("skipped: durability: {reason}");
    None
}
